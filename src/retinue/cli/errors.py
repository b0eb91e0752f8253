"""The one error of the command line, and the group of commands that shows it."""

from typing import Any

import typer
from typer.core import TyperGroup

from retinue.cli import output
from retinue.protocol.errors import ControllerError


class CliError(Exception):
    """What was asked cannot be done. The message is one sentence for the user: what, where, what to do."""


class Commands(TyperGroup):
    """Shows a CliError, or what the controller rejects, as one sentence on standard error; exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (CliError, ControllerError) as error:
            output.say(f"retinue: {error}", err=True)
            raise typer.Exit(1) from error

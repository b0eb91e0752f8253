"""The one error of the command line, and the group of commands that shows it."""

from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from retinue.cli import output
from retinue.protocol.errors import ControllerError


class CliError(Exception):
    """What was asked cannot be done. The message is one sentence for the user: what, where, what to do."""


def _arguments(command: Any) -> Iterator[Any]:
    yield from (one for one in command.params if one.param_type_name == "argument")
    for sub in getattr(command, "commands", {}).values():
        yield from _arguments(sub)


class Commands(TyperGroup):
    """Shows a CliError, or what the controller rejects, as one sentence on standard error; exit code 1."""

    def __init__(self, **found: Any) -> None:
        """Arguments are shown in capitals, as all that stands for something else is."""
        super().__init__(**found)
        for argument in _arguments(self):
            argument.metavar = argument.metavar or argument.name.upper()

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (CliError, ControllerError) as error:
            output.say(f"retinue: {error}", err=True)
            raise typer.Exit(1) from error

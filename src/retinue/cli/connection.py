"""Finding the controller: by its URL, or in a running lab, whose addresses exist only inside its sandbox.

For a controller in a lab the command is run once more inside the sandbox: this process becomes that one, so
that terminal, exit code and signals are the command's own. How a lab is entered is known to the laboratory's
package alone (see plugins).
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import typer

from retinue.cli import options, plugins
from retinue.cli.errors import CliError
from retinue.protocol.blocking import Client

INSIDE = "RETINUE_INSIDE_URL"
"""Set for the command run inside the sandbox: the controller's URL there. A command that has it does not
enter the lab again."""


@dataclass(frozen=True)
class Connection:
    """What --url, --lab and --json of a command say."""

    url: str | None
    lab: str | None
    as_json: bool

    def client(self) -> Client:
        """The controller named by, in this order: --url, --lab, RETINUE_URL, RETINUE_LAB, the default lab.

        Does not return when it is a lab's and this process is outside: the command then runs inside the lab.
        """
        if self.url and self.lab:
            raise typer.BadParameter("give --url or --lab, not both")
        environment = None if self.lab else os.environ.get("RETINUE_URL")
        found = self.url or os.environ.get(INSIDE) or environment
        return Client(found) if found else _inside(self.lab)


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options --url, --lab and --json; its parameter `at` is the Connection they make."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "at"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter("url", keyword, default=None, annotation=options.Url),
        inspect.Parameter("lab", keyword, default=None, annotation=options.Lab),
        inspect.Parameter("as_json", keyword, default=False, annotation=options.Json),
    ]

    @functools.wraps(command)
    def run(*, url: str | None, lab: str | None, as_json: bool, **own: Any) -> None:
        command(Connection(url, lab, as_json), **own)

    parameters = [*(parameter.replace(kind=keyword) for parameter in own), *shared]
    # What the command line's parser looks at: typer takes options from signature and annotations.
    run.__dict__["__signature__"] = signature.replace(parameters=parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _inside(lab: str | None) -> NoReturn:
    """Run this command, with the same arguments, inside the lab."""
    enter = plugins.enter_lab()
    if enter is None:
        raise CliError(
            "there is no controller to speak to: name one with --url or RETINUE_URL. (To try one in a lab: "
            f"{plugins.HOW_TO_INSTALL})"
        )
    enter(lab, [sys.executable, "-P", "-m", "retinue.cli.main", *sys.argv[1:]], INSIDE)

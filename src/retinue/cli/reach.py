"""Finding the controller: by its URL, or in a running lab, whose addresses exist only inside its sandbox.

For a controller in a lab the command is run once more inside the sandbox: this process becomes that one, so
that terminal, exit code and signals are the command's own.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from retinue.cli.client import Client
from retinue.cli.errors import CliError

if TYPE_CHECKING:
    from retinue.lab.sandbox import LabHandle

DEFAULT_LAB = "default"
INSIDE = "RETINUE_INSIDE_URL"
"""Set for the command run inside the sandbox: the controller's URL there. Who has it never enters again."""


def controller(url: str | None, lab: str | None) -> Client:
    """The controller named by, in this order: --url, --lab, RETINUE_URL, RETINUE_LAB, the default lab.

    Does not return when it is a lab's and this process is outside: the command then runs inside the lab.
    """
    if url and lab:
        raise typer.BadParameter("give --url or --lab, not both")
    at = url or os.environ.get(INSIDE) or (None if lab else os.environ.get("RETINUE_URL"))
    return Client(at) if at else _inside(running(lab))


def _inside(handle: "LabHandle") -> NoReturn:
    """Run this command, with the same arguments, inside the lab."""
    again = [sys.executable, "-P", "-m", "retinue.cli.main", *sys.argv[1:]]
    become(handle, "sandbox", again, {INSIDE: handle.topology.controller_url})


def lab_name(given: str | None) -> str:
    return given or os.environ.get("RETINUE_LAB") or DEFAULT_LAB


def running(given: str | None) -> "LabHandle":
    """The lab of that name, which runs; otherwise CliError says what to do."""
    from retinue.lab import sandbox

    name = lab_name(given)
    with lab_errors():
        others = sandbox.list_labs()
        if name in others:
            return sandbox.handle(name)
    if others:
        raise CliError(
            f"lab {name} does not run, but {', '.join(others)} does: choose with --lab or RETINUE_LAB"
        )
    raise CliError(
        f"there is no controller to speak to, as lab {name} does not run: start it with `retinue lab up`, "
        "or name a controller with --url or RETINUE_URL"
    )


@contextmanager
def lab_errors() -> Iterator[None]:
    """A LabError becomes the command's error."""
    from retinue.lab.errors import LabError

    try:
        yield
    except LabError as error:
        raise CliError(str(error)) from error


def become(handle: "LabHandle", node: str, argv: Sequence[str], env: dict[str, str]) -> NoReturn:
    """Replace this process by `argv` run in a node. Interrupts from the terminal are for `argv` alone."""
    words = [f"{key}={value}" for key, value in env.items()]
    with lab_errors():
        command = handle.command(node, ["env", "--default-signal=INT,QUIT", *words, *argv])
    sys.stdout.flush()
    sys.stderr.flush()
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # else they would end the helpers around the command
    os.execv(command[0], command)

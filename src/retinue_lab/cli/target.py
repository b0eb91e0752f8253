"""The running lab that a command is about, and how a process becomes a program inside it."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from retinue.cli.errors import CliError
from retinue_lab.errors import LabError

if TYPE_CHECKING:
    from retinue_lab.sandbox.handle import LabHandle

DEFAULT_LAB = "default"


def enter(lab: str | None, argv: Sequence[str], url_variable: str) -> NoReturn:
    """Become `argv` inside the running lab (see retinue.cli.plugins.Enter)."""
    handle = running(lab)
    become(handle, "sandbox", argv, {url_variable: handle.topology.controller_url})


def lab_name(given: str | None) -> str:
    return given or os.environ.get("RETINUE_LAB") or DEFAULT_LAB


def running(given: str | None) -> "LabHandle":
    """The lab of that name, which runs; otherwise CliError says what to do."""
    from retinue_lab.sandbox import handle as sandbox

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
    try:
        yield
    except LabError as error:
        raise CliError(str(error)) from error


def become(handle: "LabHandle", node: str, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Replace this process by `argv` run in a node. Interrupts from the terminal are for `argv` alone."""
    words = [f"{key}={value}" for key, value in env.items()]
    with lab_errors():
        command = handle.command(node, ["env", "--default-signal=INT,QUIT", *words, *argv])
    sys.stdout.flush()
    sys.stderr.flush()
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # else they would end the helpers around the command
    os.execv(command[0], command)

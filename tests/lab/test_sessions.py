"""The pages for newcomers, typed as they stand into a shell: each command does, and prints, what is shown."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from support.page_sessions import SESSIONS, Session
from support.sessions import Step, missing, steps

pytestmark = [pytest.mark.lab, pytest.mark.long]

AGAIN = (
    "retinue link list",
    *("retinue vm list", "retinue vm show", "retinue binding", "retinue server list", "retinue switch list"),
    *("retinue lab exec", "retinue server unfence", "retinue doctor"),
)
"""Typed again until it shows what is to come by itself: a VM boots, and asks by DHCP."""
FAILS = ("retinue: ", "CRITICAL ")
"""How a line begins that a command shows which ends with another exit code than 0."""
PATIENCE = 90.0
"""Seconds for that."""
LONGEST = 240.0
"""Seconds, after which a command is one that never ends."""
SENTINEL = "the end of what the command printed"


class Shell:
    """One shell for a whole page: functions and background jobs go on from command to command.

    `status`: the exit code of the last command.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.status = 0

    def types(self, command: str) -> str:
        """All that is printed until the shell takes the next command, that of background jobs too."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f'{command}\necho "{SENTINEL}: $?"\n')
        self._process.stdin.flush()
        printed = ""
        too_long = threading.Timer(LONGEST, os.killpg, (self._process.pid, signal.SIGKILL))
        too_long.start()
        try:
            for line in self._process.stdout:
                before, end, status = line.partition(f"{SENTINEL}: ")
                printed += before
                if end:
                    self.status = int(status)
                    return printed
        finally:
            too_long.cancel()
        raise AssertionError(f"the shell has ended in {command}: {printed}")


@contextmanager
def shell(folder: Path) -> Iterator[Shell]:
    """`folder`: where its files are."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("RETINUE_LAB", "RETINUE_URL")
    }
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        ["bash"],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield Shell(process)
    finally:
        subprocess.run(["retinue", "lab", "down"], env=environment, capture_output=True)
        process.terminate()
        process.wait()


def addresses(step: Step, at: Shell) -> dict[str, str]:
    """By address that the page shows of a VM, the one that it has here: who boots first gets the first."""
    words = [line.split() for line in step.printed]
    if (shown := re.match(r"retinue vm show (\w+)", step.typed)) is not None:
        on_page = {shown[1]: row[1] for row in words if row[0] == "IP"}  # noqa: B035
    elif step.typed.startswith(("retinue vm list", "retinue binding list")):
        on_page = {row[0]: row[2] for row in words if len(row) > 2 and row[2].startswith("10.")}
    else:
        return {}
    vms = json.loads(at.types("retinue vm list --json"))["vms"]
    return {on_page[vm["id"]]: vm["holds"][0] for vm in vms if vm["id"] in on_page and vm["holds"]}


def as_here(typed: str, at: Shell, known: Mapping[str, str]) -> str:
    """With what is to be looked up: the laboratory's directory, VMs' addresses, the controller's PID."""
    here = typed.replace("/tmp/retinue-labs/", f"{os.environ['RETINUE_LAB_DIR']}/")
    here = re.sub(r"\b10\.1\.0\.10\d\b", lambda address: known.get(address[0], address[0]), here)
    if '"pid": 54' in here:
        daemons = json.loads(at.types("retinue lab status --json"))["daemons"]
        (pid,) = [one["pid"] for one in daemons if one["name"] == "controller"]
        here = here.replace('"pid": 54', f'"pid": {pid}')
    return here


def in_place(step: Step, session: Session) -> Step:
    """With what the page's own files and machines are here."""
    typed = step.typed
    for pattern, here in session.here:
        typed = re.sub(pattern, here, typed)
    return replace(step, typed=typed)


def typed_until_it_shows(step: Step, at: Shell, before: str, known: Mapping[str, str]) -> tuple[str, str]:
    """What is printed, and what of it is not as it is shown, if anything. `wait` shows what a job printed
    while the command before it ran.
    """
    ends = time.monotonic() + PATIENCE
    while True:
        printed = at.types(as_here(step.typed, at, known))
        line = missing(step.printed, before + printed if step.typed == "wait" else printed)
        if line is None and at.status and not any(shown.startswith(FAILS) for shown in step.printed):
            line = f"(nothing that failed, and its exit code is {at.status})"
        if line is None:
            return printed, ""
        if not step.typed.startswith(AGAIN) or time.monotonic() > ends:
            return printed, f"$ {step.typed}\nis to show\n{line}\nand printed\n{printed}"


@pytest.mark.parametrize("page", SESSIONS)
async def test_a_session_goes_as_it_is_shown(traceless: None, page: str, tmp_path: Path) -> None:
    session = SESSIONS[page]
    if lacking := [one for one in session.programs if shutil.which(one) is None]:
        pytest.skip(f"{', '.join(lacking)} is not installed")
    folder = tmp_path / "typed"
    folder.mkdir()

    def whole() -> list[str]:
        wrong: list[str] = []
        before = ""
        known: dict[str, str] = {}
        with shell(folder) as at:
            for step in steps(session.typed):
                before, why = typed_until_it_shows(in_place(step, session), at, before, known)
                wrong += [why] if why else []
                known |= {} if why or known else addresses(step, at)
        return wrong

    wrong = await asyncio.to_thread(whole)
    assert not wrong, "\n".join(wrong)

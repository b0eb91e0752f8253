"""The demonstration, as the host sees it: a lab of its own, in it the work (demo.inside), the result.

It leaves nothing behind, also when it fails or is interrupted: whatever runs ends with the lab, and whatever
is written, but for the output asked for, is in the lab's directory.
"""

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from retinue_lab.demo import report
from retinue_lab.demo.report import DemoReport
from retinue_lab.errors import LabError
from retinue_lab.sandbox import handle, web_door
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.sandbox.inside import last_lines, work_inside

Say = Callable[[str], None]

INSIDE = "retinue_lab.demo.inside"
KEPT_NAME = "demo"
LAST_LINES = 15
"""Of the log, shown when the work inside fails without saying why."""
NARROW = 100


def run(output: Path | None, keep: bool, say: Say) -> int:
    """Show and measure; returns 0, or 1 when something was not as expected.

    `output` gets the report as JSON (demo.report.Report). With `keep` the lab stays up, its switches as the
    baseline left them. `say` is given text for a person, as it goes and at the end. Raises LabError when the
    demonstration cannot be carried out.
    """
    name = KEPT_NAME if keep else f"demo-{os.getpid()}"
    if output is not None:
        _check_writable(output)
    with _ending(name, keep, say):
        say(f"Building a network on this machine (lab {name})")
        lab = handle.up(
            name, start_driver=True, progress=lambda text: say(f"  {text}"), tie_to_parent=not keep
        )
        with web_door.open_door(lab, lab.topology.controller_url) as page:
            say(f"See it in a browser meanwhile: {page}")
            found = _carry_out(lab, say)
        say(report.table(found, colour=sys.stdout.isatty(), width=_width()))
        if output is not None:
            output.write_bytes(report.encode(found))
            say(f"All figures: {output}")
    return 1 if report.unmet(found) else 0


def _check_writable(output: Path) -> None:
    """Before the minute of work, not after it."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("ab"):
            pass
    except OSError as error:
        raise LabError(f"cannot write {output}: {error.strerror}") from error


@contextlib.contextmanager
def _ending(name: str, keep: bool, say: Say) -> Iterator[None]:
    """Take the lab down however the body ends; an interrupt during that waits until it is done.

    SIGTERM and SIGHUP end the body as an interrupt from the terminal does.
    """
    with _handling({signal.SIGTERM: _interrupt, signal.SIGHUP: _interrupt}):
        try:
            yield
        finally:
            with _handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)):
                if keep:
                    say(
                        f"Lab {name} stays up, as it is now: `retinue lab web --name {name}` shows it in a "
                        f"browser, `retinue lab down --name {name}` ends it"
                    )
                else:
                    with contextlib.suppress(LabError):  # It did not come up, or has ended.
                        handle.down(name)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    """Only the main thread may set handlers; in any other there is nobody to interrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _carry_out(lab: LabHandle, say: Say) -> DemoReport:
    """Do the work inside the lab, pass on what it says, and return what it has measured."""
    log = lab.directory / "tmp" / "demo.log"
    with work_inside(lab, INSIDE, [], log) as messages:
        for message in messages:
            match message:
                case {"say": str(text)}:
                    say(text)
                case {"error": str(text)}:
                    raise LabError(text)
                case {"report": measured}:
                    return msgspec.convert(measured, DemoReport)
    last = "\n".join(last_lines(log, LAST_LINES))
    raise LabError(f"the demonstration broke off:\n{last}")


def _width() -> int:
    return max(NARROW, shutil.get_terminal_size((NARROW, 24)).columns)

"""Work that a module of ours does inside a lab, as the host sees it: messages, a JSON object a line."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from retinue_lab.topology.topology import SANDBOX


class RunningLab(Protocol):
    """What a running lab (LabHandle) offers."""

    @property
    def directory(self) -> Path: ...

    def popen(self, node: str, argv: Sequence[str], **popen: Any) -> "subprocess.Popen[Any]": ...


@contextlib.contextmanager
def work_inside(
    lab: RunningLab, module: str, words: Sequence[str], log: Path
) -> Iterator[Iterator[dict[str, Any]]]:
    """The messages of `python -m module LAB'S-DIRECTORY WORDS...`, as they come, until it ends.

    An error in the context ends it; leaving the context waits for its end. `log` is what it writes besides;
    the folder of that is made, for this and for its temporary files.
    """
    log.parent.mkdir()
    argv = ["env", f"TMPDIR={log.parent}", sys.executable, "-P", "-m", module, str(lab.directory), *words]
    with (
        log.open("wb") as sink,
        # In a session of its own: an interrupt from the terminal is ours; it ends with the lab.
        lab.popen(
            SANDBOX,
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield (json.loads(line) for line in process.stdout)
        except BaseException:
            process.terminate()
            raise


def last_lines(log: Path, count: int) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-count:]

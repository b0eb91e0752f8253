"""A control group for the tests and all that they start, so that it counts how nice a process is.

Linux shares processors among sessions first, and only among the processes of one by how nice they are
(sched(7), autogroup). Of a laboratory each daemon and each QEMU is a session. What is in a control group of
its own is left out of that.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")
OWN = Path("/proc/self/cgroup")
CONTROLLERS = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu,cpuacct"), Path("/sys/fs/cgroup"))
"""Where that of processors may be: of version 1, and of version 2."""
SHARES = {"cpu.shares": 8192, "cpu.weight": 800}
"""Of the group as a whole: as much as eight sessions."""
PROCESSES = "cgroup.procs"
NAME = "retinue-tests-"
"""And the number of the process that has made it."""


def nice_counts() -> bool:
    """Whether it counts also among sessions how nice this process is."""
    try:
        if AUTOGROUP.read_text().strip() == "0":
            return True
    except FileNotFoundError:
        return True
    return any(_has_group(*line.split(":", 2)) for line in OWN.read_text().splitlines())


def _has_group(number: str, controllers: str, path: str) -> bool:
    if path == "/":
        return False
    return "cpu" in controllers.split(",") or (
        number == "0" and (CONTROLLERS[-1] / path.lstrip("/") / "cpu.weight").exists()
    )


def enter(controllers: Sequence[Path] = CONTROLLERS) -> Path | None:
    """Put this process into a group of its own, where that is needed and can be; which."""
    if os.geteuid() != 0 or nice_counts():
        return None
    for controller in controllers:
        _remove_left(controller)
        group = controller / f"{NAME}{os.getpid()}"
        try:
            group.mkdir()
            for name, shares in SHARES.items():
                if (group / name).exists():
                    (group / name).write_text(str(shares))
                    (group / PROCESSES).write_text(str(os.getpid()))
                    return group
            group.rmdir()
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
    return None


def _remove_left(controller: Path) -> None:
    """Groups of tests that were killed."""
    for group in controller.glob(f"{NAME}*"):
        if not Path(f"/proc/{group.name.removeprefix(NAME)}").exists():
            with contextlib.suppress(OSError):
                group.rmdir()


def leave(group: Path) -> None:
    """Back to where this process was. What still runs in the group stays there."""
    (group.parent / PROCESSES).write_text(str(os.getpid()))
    with contextlib.suppress(OSError):
        group.rmdir()

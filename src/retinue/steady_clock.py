"""A clock that nobody sets: seconds since the epoch, by what has passed and not by what the wall clock says.

The wall clock may be set, by a person or by NTP, forward or back; leases run on all the same, and so do the
time limits of migrations. So the wall clock is read once, and from then on the time that has passed since the
machine's start is counted (CLOCK_BOOTTIME, which goes on while the machine sleeps). When the machine started,
as reckoned by that, is the *anchor*. It is stored: a program that is started again on the same machine goes
on with it, whatever the wall clock says by then. After the machine's own start that is read anew.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ClockAnchor:
    """The time at which the machine started, in seconds since the epoch, as it was first reckoned."""

    boot: str
    """Which start of which machine, as the kernel names it."""
    began: float


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


class SteadyClock:
    """Called, it gives the time: seconds since the epoch that pass evenly."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        passed: Callable[[], float] = _since_boot,
        boot: Callable[[], str] = _boot,
    ) -> None:
        """`passed`: seconds since the machine's start; `boot`: which start that was, "": nobody knows."""
        self._passed = passed
        self.anchor = ClockAnchor(boot(), wall() - passed())

    def __call__(self) -> float:
        return self.anchor.began + self._passed()

    def take_up(self, anchor: ClockAnchor) -> bool:
        """Go on by the anchor of an earlier program; False, and nothing done, after another start."""
        if not anchor.boot or anchor.boot != self.anchor.boot:
            return False
        self.anchor = anchor
        return True

"""Whether a VM is to run, how its run has ended, and what becomes of it then."""

from enum import StrEnum


class Power(StrEnum):
    """Whether a VM is to run, as its manager, its guest or its end has decided it."""

    RUNNING = "running"
    """It is to run: whoever comes back, controller, agent or server, starts it if it does not."""
    OFF = "off"
    """It was switched off, from inside or as ordered: it is not started before somebody orders it."""
    CRASHED = "crashed"
    """It ended by itself, and is not started before somebody orders it."""


class Ending(StrEnum):
    """How a VM's run has ended."""

    OFF = "off"
    """It was switched off, from inside or as ordered."""
    CRASHED = "crashed"
    """It ended otherwise, or could not be started."""


class Restart(StrEnum):
    """What becomes of a VM that has ended by itself."""

    NEVER = "never"
    ON_CRASH = "on-crash"

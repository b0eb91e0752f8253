"""A hypervisor's own wish that a VM should go: pressure over a threshold, all the time for a while."""

from dataclasses import dataclass, replace

from retinue.core.placement.snapshot import Reason, Wish


@dataclass(frozen=True, slots=True)
class PressureRule:
    """Thresholds in hundredths of a per cent; 0: off."""

    cpu: int = 0
    memory: int = 0
    """Of the time in which something waits for a processor, or for memory (PSI, some avg60)."""
    seconds: int = 60
    """For how long a threshold must be passed without a break."""
    bandwidth: int = 0
    """Of the uplink's bandwidth that is in use."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement of the same; None: there is none."""

    cpu: int | None = None
    memory: int | None = None
    bandwidth: int | None = None


@dataclass(frozen=True, slots=True)
class Pressure:
    """Since when each threshold has been passed; None: it is not."""

    cpu: float | None = None
    memory: float | None = None
    bandwidth: float | None = None


MOST_PRESSING = (("memory", Reason.MEMORY), ("cpu", Reason.COMPUTING), ("bandwidth", Reason.BANDWIDTH))
"""Who is short of memory may lose a VM, and not only time."""


def pressed(
    state: Pressure, rule: PressureRule, measured: Measured, now: float
) -> tuple[Pressure, Wish | None]:
    """Take in a measurement; a wish when one is due, which begins its time anew."""
    state = Pressure(
        *(
            _since(getattr(state, what), getattr(rule, what), getattr(measured, what), now)
            for what in ("cpu", "memory", "bandwidth")
        )
    )
    for what, reason in MOST_PRESSING:
        since, value = getattr(state, what), getattr(measured, what)
        if since is not None and now - since >= rule.seconds:
            wish = Wish(reason, value, getattr(rule, what), int(now - since))
            return replace(state, **{what: None}), wish
    return state, None


def _since(since: float | None, threshold: int, measured: int | None, now: float) -> float | None:
    if threshold <= 0 or measured is None or measured < threshold:
        return None
    return now if since is None else since

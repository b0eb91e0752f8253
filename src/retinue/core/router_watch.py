"""Whether a router is there, where another one leads to the same prefixes: what is heard of it, and not.

    state      goes on to       when
    well       lost             its port has no link; or it has been asked, and has not answered for `silence`
    lost       returning        it answers again, or, one that cannot be asked, its port has a link again
    returning  well             it has answered for `hold` without a gap
    returning  lost             as well -> lost

A router whose leaf is not connected cannot be asked: nothing is concluded from that, and the time in which it
has to answer counts anew.
`hold` keeps a router that comes and goes from taking the traffic to and fro.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

NO_LINK = "its port has no link"


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """Seconds."""

    silence: float = 3.0
    """Without an answer to what it was asked a router is lost."""
    hold: float = 10.0
    """For so long one that was lost must be well again before it is used."""


class RouterState(StrEnum):
    WELL = "well"
    LOST = "lost"
    RETURNING = "returning"


@dataclass(frozen=True, slots=True)
class Router:
    """What is known of a router. Times are seconds by the controller's clock."""

    state: RouterState = RouterState.WELL
    since: float = 0.0
    link: bool = True
    asked: float | None = None
    """When it was asked first of what it has not answered; None: it has answered all."""
    reason: str = ""
    """Why it is lost, or was."""

    @property
    def usable(self) -> bool:
        return self.state is RouterState.WELL


@dataclass(frozen=True, slots=True)
class Asked:
    """It was asked, by ARP or neighbour discovery."""


@dataclass(frozen=True, slots=True)
class Heard:
    """It has spoken, at its place."""


@dataclass(frozen=True, slots=True)
class LinkIs:
    """Its port has a link, or none."""

    up: bool


@dataclass(frozen=True, slots=True)
class NoAddress:
    """It cannot be asked: its link is all that is known of it."""


@dataclass(frozen=True, slots=True)
class LeafAway:
    """It cannot be asked now, and what becomes of its link is not told."""


Event = Asked | Heard | LinkIs | NoAddress | LeafAway


def step(router: Router, event: Event, now: float, limits: RouterLimits) -> Router:
    """The router after an event."""
    match event:
        case Asked():
            asked = now if router.asked is None else router.asked
            return _late(replace(router, asked=asked), now, limits)
        case Heard():
            return _returning(replace(router, asked=None, link=True), now)
        case LinkIs(up=False):
            return _lost(replace(router, link=False), now, NO_LINK)
        case LinkIs():
            return replace(router, link=True, asked=None)
        case NoAddress():
            return _late(_returning(router, now) if router.link else router, now, limits)
        case LeafAway():
            return replace(router, asked=None, link=True)


def _late(router: Router, now: float, limits: RouterLimits) -> Router:
    """The router as time goes by."""
    if router.asked is not None and now - router.asked >= limits.silence:
        return _lost(router, now, f"it has not answered for {limits.silence:g} s")
    if router.state is RouterState.RETURNING and now - router.since >= limits.hold:
        return replace(router, state=RouterState.WELL, since=now)
    return router


def _lost(router: Router, now: float, reason: str) -> Router:
    if router.state is RouterState.LOST:
        return router
    return replace(router, state=RouterState.LOST, since=now, reason=reason)


def _returning(router: Router, now: float) -> Router:
    if router.state is not RouterState.LOST:
        return router
    return replace(router, state=RouterState.RETURNING, since=now)

"""Changes of which links of the fabric lose frames."""

from collections.abc import Iterator
from dataclasses import dataclass

from retinue.controller.changes import Change, Published
from retinue.controller.state import LostLink, State, Storable
from retinue.core.model import PortRef
from retinue.core.model.network import Touched
from retinue.protocol.events import EventType


@dataclass(frozen=True, slots=True)
class LinkLost(Change):
    """A link loses frames though both ends have a carrier: what went over it goes by others."""

    lower: PortRef
    upper: PortRef
    reason: str

    def apply(self, state: State) -> Touched:
        return state.net.lose_link(self.lower, self.reason)

    def kept(self) -> tuple[Storable, ...]:
        return (LostLink(self.lower, self.reason),)

    def events(self, state: State) -> Iterator[Published]:
        ends = {"lower": str(self.lower), "upper": str(self.upper)}
        yield EventType.LINK_LOST, {**ends, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class LinkReturned(Change):
    """It loses none any more, and has not for a while; or it is looked at no longer."""

    lower: PortRef
    upper: PortRef

    def apply(self, state: State) -> Touched | None:
        return state.net.return_link(self.lower)

    def dropped(self) -> tuple[Storable, ...]:
        return (LostLink(self.lower, ""),)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.LINK_RETURNED, {"lower": str(self.lower), "upper": str(self.upper)}

"""Changes of where the several uplinks of an edge lead, and which of them is in use."""

from collections.abc import Iterator
from dataclasses import dataclass

from retinue.controller.changes import Change, Published
from retinue.controller.state import LostLink, State, Storable, UplinkInUse, UplinkPlace
from retinue.core.model import PortRef
from retinue.core.model.network import NOTHING, Touched
from retinue.protocol.events import EventType


@dataclass(frozen=True, slots=True)
class UplinkFound(Change):
    """What is sent by an uplink comes in at this leaf port."""

    server: str
    uplink: PortRef
    at: PortRef
    former: tuple[PortRef, ...]
    """The uplinks that are not where they were known to lead (`uplinks.displaced`)."""

    def apply(self, state: State) -> Touched | None:
        return state.net.find_uplink(self.uplink, self.at) or None

    def kept(self) -> tuple[Storable, ...]:
        return (UplinkPlace(self.uplink, self.at),)

    def dropped(self) -> tuple[Storable, ...]:
        places = (UplinkPlace(one, self.at) for one in self.former)
        return (*places, *(LostLink(one, "") for one in self.former))

    def events(self, state: State) -> Iterator[Published]:
        found = {"server": self.server, "uplink": str(self.uplink), "location": str(self.at)}
        yield EventType.UPLINK_FOUND, found


@dataclass(frozen=True, slots=True)
class PlacesGone(Change):
    """What the database has of servers, uplinks and links that are not in the configuration any more goes."""

    places: tuple[Storable, ...]

    def apply(self, state: State) -> Touched | None:
        return NOTHING if self.places else None

    def dropped(self) -> tuple[Storable, ...]:
        return self.places


@dataclass(frozen=True, slots=True)
class UplinkUsed(Change):
    """All of a server's traffic goes by this uplink from now on."""

    server: str
    edge: str
    uplink: str
    before: str
    """The name of the one that was in use; "": none was."""

    def apply(self, state: State) -> Touched | None:
        return state.net.use_uplink(self.edge, self.uplink) or None

    def kept(self) -> tuple[Storable, ...]:
        return (UplinkInUse(self.edge, self.uplink),)

    def events(self, state: State) -> Iterator[Published]:
        location = str(state.net.location(self.server) or "")
        before = str(PortRef(self.edge, self.before)) if self.before else None
        uplink = str(PortRef(self.edge, self.uplink))
        yield EventType.UPLINK_USED, {
            "server": self.server, "uplink": uplink, "location": location, "before": before,
        }  # fmt: skip

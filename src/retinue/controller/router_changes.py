"""Changes of which routers are there."""

from collections.abc import Iterator
from dataclasses import dataclass

from retinue.controller.changes import Change, Published
from retinue.controller.state import LostRouter, State, Storable
from retinue.core.model.network import Touched
from retinue.protocol.events import EventType


@dataclass(frozen=True, slots=True)
class RouterLost(Change):
    """A router is not there any more: what went by it goes by another."""

    server: str
    reason: str

    def apply(self, state: State) -> Touched | None:
        return state.net.lose_router(self.server, self.reason) or None

    def kept(self) -> tuple[Storable, ...]:
        return (LostRouter(self.server, self.reason),)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.ROUTER_LOST, {"server": self.server, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class RouterReturned(Change):
    """A router is there again, and has been for a while."""

    server: str

    def apply(self, state: State) -> Touched | None:
        return state.net.return_router(self.server) or None

    def dropped(self) -> tuple[Storable, ...]:
        return (LostRouter(self.server, ""),)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.ROUTER_RETURNED, {"server": self.server}

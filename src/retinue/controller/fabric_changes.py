"""Changes of switches and links, and servers that go. Made like all others (controller/changes.py).

A new link is idle until it is used, and one that goes is idle first (inventory/fabric.py).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from retinue.controller.changes import Change, Published, Undo
from retinue.controller.state import (
    AgentAt,
    DrainedServer,
    FencedServer,
    LaidLink,
    LostLink,
    LostRouter,
    ServerLocation,
    State,
    Storable,
    TakenOut,
    UplinkInUse,
    UplinkPlace,
)
from retinue.core.model import Link, ModelError, Network, PortRef, Server, Switch
from retinue.core.model.in_use import check_server_removal, first_few
from retinue.core.model.network import Touched
from retinue.core.model.uplinks import forgotten_with
from retinue.protocol.events import EventType


def places_left(net: Network, switch: str, uplinks: Collection[str] = ()) -> tuple[Storable, ...]:
    """What is stored of uplinks' places that `Network` forgets (see `uplinks.forgotten_with`)."""
    left, used = forgotten_with(net, switch, uplinks), net.in_use.get(switch)
    places = (UplinkPlace(one, net.uplink_places[one]) for one in left)
    gone = () if used is None or used in uplinks else (UplinkInUse(switch, used),)
    return (*places, *(LostLink(one, "") for one in left), *gone)


class _Removal(Change):
    """The end of something that may stand in the configuration file: then it is left out at each start, until
    the file has it no longer, or it is given anew."""

    configured: bool

    def what(self) -> str:
        """As `TakenOut.what` has it."""
        raise NotImplementedError

    def _left_out(self, state: State, touched: Touched) -> Touched:
        if self.configured:
            state.taken_out.add(self.what())
        return touched

    def kept(self) -> tuple[Storable, ...]:
        return (TakenOut(self.what()),) if self.configured else ()


@dataclass(frozen=True, slots=True)
class SwitchRegistered(Change):
    """A switch was given, or changed, by the manager."""

    switch: Switch
    left: tuple[Storable, ...] = ()
    """Of an edge that is changed: `places_left`."""

    def apply(self, state: State) -> Touched:
        touched = state.net.put_switch(self.switch)
        state.taken_out.discard(f"switch {self.switch.id}")
        return touched

    def undo(self, state: State) -> Undo:
        net, old, taken_out = state.net, state.net.switches.get(self.switch.id), set(state.taken_out)

        def back() -> None:
            state.taken_out.update(taken_out)
            net.remove_switch(self.switch.id) if old is None else net.add_switch(old)

        return back

    def kept(self) -> tuple[Storable, ...]:
        return (self.switch,)

    def dropped(self) -> tuple[Storable, ...]:
        return (TakenOut(f"switch {self.switch.id}"), *self.left)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.SWITCH_REGISTERED, {"switch": self.switch.id, "role": self.switch.role}


@dataclass(frozen=True, slots=True)
class SwitchRemoved(_Removal):
    """A switch went, to which nothing led and at which nothing was any more."""

    switch: Switch
    left: tuple[Storable, ...] = ()
    """`places_left`."""
    configured: bool = False

    def what(self) -> str:
        return f"switch {self.switch.id}"

    def apply(self, state: State) -> Touched:
        touched = state.net.remove_switch(self.switch.id)
        return self._left_out(state, touched)

    def dropped(self) -> tuple[Storable, ...]:
        return (self.switch, *self.left)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.SWITCH_REMOVED, {"switch": self.switch.id}


def check_server_goes(state: State, server: str) -> None:
    """Raises ModelError while something runs there, or a migration has yet to end: one that is undone has no
    more of its VM at its target, and asks there all the same."""
    check_server_removal(state.net, server)
    under_way = state.migrations.under_way()
    users = sorted(f"{one.id} of VM {one.vm}" for one in under_way if server in (one.source, one.target))
    if users:
        raise ModelError(f"server {server} is in use by {first_few(users)}; ask again when that has ended")


@dataclass(frozen=True, slots=True)
class ServerRemoved(_Removal):
    """A server went, on which nothing ran any more."""

    server: Server
    configured: bool = False

    def what(self) -> str:
        return f"server {self.server.id}"

    def apply(self, state: State) -> Touched:
        check_server_goes(state, self.server.id)
        touched = state.net.remove_server(self.server.id)
        state.with_agent.discard(self.server.id)
        return self._left_out(state, touched)

    def dropped(self) -> tuple[Storable, ...]:
        id = self.server.id
        marks = (FencedServer(id), DrainedServer(id), LostRouter(id, ""), AgentAt(id))
        return (self.server, ServerLocation(id, PortRef("", "")), *marks)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.SERVER_REMOVED, {"server": self.server.id}


class _OfLink(Change):
    link: Link

    def _event(self, type: EventType) -> Iterator[Published]:
        yield type, {"lower": str(self.link.lower), "upper": str(self.link.upper)}


@dataclass(frozen=True, slots=True)
class LinksRegistered(Change):
    """Links were given by the manager, all that one request has. Nothing is sent up by them yet."""

    links: tuple[Link, ...]

    def apply(self, state: State) -> Touched:
        touched = state.net.put_links(self.links)
        state.taken_out.difference_update(f"link {link}" for link in self.links)
        return touched

    def kept(self) -> tuple[Storable, ...]:
        return tuple(LaidLink(link, idle=True) for link in self.links)

    def dropped(self) -> tuple[Storable, ...]:
        return tuple(TakenOut(f"link {link}") for link in self.links)

    def events(self, state: State) -> Iterator[Published]:
        for link in self.links:
            yield EventType.LINK_REGISTERED, {"lower": str(link.lower), "upper": str(link.upper)}


@dataclass(frozen=True, slots=True)
class LinkUsed(_OfLink):
    """Both its ends hold what they should: it is one of the ways up from now on."""

    link: Link
    configured: bool = False
    """It stands in the configuration file, and is no more than that says: nothing of it is stored."""

    def apply(self, state: State) -> Touched:
        return state.net.set_idle(self.link.lower, idle=False)

    def undo(self, state: State) -> Undo:
        return lambda: state.net.set_idle(self.link.lower, idle=True)

    def kept(self) -> tuple[Storable, ...]:
        return () if self.configured else (LaidLink(self.link, idle=False),)

    def dropped(self) -> tuple[Storable, ...]:
        return (LaidLink(self.link, idle=False),) if self.configured else ()

    def events(self, state: State) -> Iterator[Published]:
        return self._event(EventType.LINK_USED)


@dataclass(frozen=True, slots=True)
class LinkLeft(Change):
    """A link is about to go: nothing is sent up by it any more."""

    link: Link
    configured: bool = False
    """As of `LinkUsed`: a controller that ends before it has gone leaves it as the file has it."""

    def apply(self, state: State) -> Touched:
        return state.net.leave_link(self.link.lower)

    def kept(self) -> tuple[Storable, ...]:
        return () if self.configured else (LaidLink(self.link, idle=True),)


@dataclass(frozen=True, slots=True)
class LinkRemoved(_Removal, _OfLink):
    """A link went, by which nothing was sent any more."""

    link: Link
    configured: bool = False

    def what(self) -> str:
        return f"link {self.link}"

    def apply(self, state: State) -> Touched:
        return self._left_out(state, state.net.remove_link(self.link.lower))

    def dropped(self) -> tuple[Storable, ...]:
        return (LaidLink(self.link, idle=True), LostLink(self.link.lower, ""))

    def events(self, state: State) -> Iterator[Published]:
        return self._event(EventType.LINK_REMOVED)

"""Changes that leave a mark beside the network's things, and touch at most what a leaf lets through.

Servers that the operator fences or drains, servers with an agent, ports that VMs left behind when they
were removed, guests whose homes must hear that they were, images that are published, and the anchor of the
controller's clock. Made like all others (controller/changes.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from retinue.controller.changes import Change, Published, VMRemoved
from retinue.controller.state import (
    CLOCK,
    AgentAt,
    DrainedServer,
    FencedServer,
    Image,
    LeftPort,
    RemovedGuest,
    State,
    Storable,
)
from retinue.core.model.network import NOTHING, Touched
from retinue.protocol.events import EventType
from retinue.steady_clock import ClockAnchor


@dataclass(frozen=True, slots=True)
class ServerFenced(Change):
    """The operator gave the word that a server is dead: nothing that comes from there passes its leaf."""

    server: str

    def apply(self, state: State) -> Touched | None:
        return state.net.fence(self.server) or None

    def kept(self) -> tuple[Storable, ...]:
        return (FencedServer(self.server),)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.SERVER_FENCED, {"server": self.server}


@dataclass(frozen=True, slots=True)
class ServerUnfenced(Change):
    """The operator took that word back: the server is what it was."""

    server: str

    def apply(self, state: State) -> Touched | None:
        return state.net.unfence(self.server) or None

    def dropped(self) -> tuple[Storable, ...]:
        return (FencedServer(self.server),)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.SERVER_UNFENCED, {"server": self.server}


@dataclass(frozen=True, slots=True)
class ServerDrained(Change):
    """The operator wants no VM on a server any more; those that are there migrate one by one."""

    server: str

    def apply(self, state: State) -> Touched | None:
        if self.server in state.net.drained:
            return None
        state.net.drained.add(self.server)
        return NOTHING

    def kept(self) -> tuple[Storable, ...]:
        return (DrainedServer(self.server),)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.SERVER_DRAINED, {"server": self.server}


@dataclass(frozen=True, slots=True)
class ServerUndrained(Change):
    """A server takes VMs again."""

    server: str

    def apply(self, state: State) -> Touched | None:
        if self.server not in state.net.drained:
            return None
        state.net.drained.discard(self.server)
        return NOTHING

    def dropped(self) -> tuple[Storable, ...]:
        return (DrainedServer(self.server),)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.SERVER_UNDRAINED, {"server": self.server}


@dataclass(frozen=True, slots=True)
class AgentHeard(Change):
    """An agent of ours listens for a server: it runs the VMs there, whether it can be reached or not."""

    server: str

    def apply(self, state: State) -> Touched | None:
        if self.server in state.with_agent:
            return None
        state.with_agent.add(self.server)
        return NOTHING

    def kept(self) -> tuple[Storable, ...]:
        return (AgentAt(self.server),)


@dataclass(frozen=True, slots=True)
class AgentForgotten(Change):
    """The operator took the agent away from a server for good."""

    server: str

    def apply(self, state: State) -> Touched | None:
        if self.server not in state.with_agent:
            return None
        state.with_agent.discard(self.server)
        return NOTHING

    def dropped(self) -> tuple[Storable, ...]:
        return (AgentAt(self.server),)


@dataclass(frozen=True, slots=True)
class PortLeft(Change):
    """A VM that was removed has left a port behind, or may have."""

    left: LeftPort

    def apply(self, state: State) -> Touched:
        state.left_ports[self.left.port_id] = self.left
        return NOTHING

    def kept(self) -> tuple[Storable, ...]:
        return (self.left,)


@dataclass(frozen=True, slots=True)
class LeftPortForgotten(Change):
    """The port has gone, or a VM with its id was registered anew."""

    left: LeftPort

    def apply(self, state: State) -> Touched:
        state.left_ports.pop(self.left.port_id, None)
        return NOTHING

    def dropped(self) -> tuple[Storable, ...]:
        return (self.left,)


def left_elsewhere(left: LeftPort, switch: str) -> Change:
    """It does not stand on this switch any more."""
    switches = tuple(name for name in left.switches if name != switch)
    return PortLeft(replace(left, switches=switches)) if switches else LeftPortForgotten(left)


@dataclass(frozen=True, slots=True)
class GuestRemoved(VMRemoved):
    """The manager removed a guest: its home is to hear of it."""

    def apply(self, state: State) -> Touched:
        (removed,) = self.kept()
        state.removed_guests[removed.key] = removed
        return VMRemoved.apply(self, state)

    def kept(self) -> tuple[RemovedGuest]:
        return (RemovedGuest(self.vm.id, self.vm.home),)


@dataclass(frozen=True, slots=True)
class GuestRemovalHeard(Change):
    """Its home has heard of it, or sends the VM here anew."""

    removed: RemovedGuest

    def apply(self, state: State) -> Touched | None:
        return None if state.removed_guests.pop(self.removed.key, None) is None else NOTHING

    def dropped(self) -> tuple[Storable, ...]:
        return (self.removed,)


@dataclass(frozen=True, slots=True)
class ClockAnchored(Change):
    """The controller's clock goes by this from now on."""

    anchor: ClockAnchor

    def apply(self, state: State) -> Touched:
        state.anchors[CLOCK] = self.anchor
        return NOTHING

    def kept(self) -> tuple[Storable, ...]:
        return (self.anchor,)


@dataclass(frozen=True, slots=True)
class ImagePublished(Change):
    """A name has its meaning from now on."""

    image: Image

    def apply(self, state: State) -> Touched:
        state.images[self.image.name] = self.image
        return NOTHING

    def kept(self) -> tuple[Storable, ...]:
        return (self.image,)

    def events(self, state: State) -> Iterator[Published]:
        data = {"image": self.image.name, "server": self.image.origin, "publisher": self.image.publisher}
        yield EventType.IMAGE_PUBLISHED, data


@dataclass(frozen=True, slots=True)
class ImageRemoved(Change):
    """An image is published no more: servers let go of it."""

    image: Image

    def apply(self, state: State) -> Touched | None:
        return NOTHING if state.images.pop(self.image.name, None) is not None else None

    def dropped(self) -> tuple[Storable, ...]:
        return (self.image,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.IMAGE_REMOVED, {"image": self.image.name}

"""Many switches joined by cables, or by tunnels over an IP network, and a frame's way through them.

fabric = Fabric({"leaf1": leaf1, "spine1": spine1}, {("leaf1", 9): ("spine1", 1)})
for delivery in fabric.all_paths("leaf1", 1, frame):   # every choice of every select group
    delivery.arrivals                                  # where it left the fabric
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Generic, TypeVar

from retinue.core.forwarding.switch import Choose, Result, SwitchTables, every_choice, first
from retinue.core.forwarding.vxlan import unwrap
from retinue.core.pipeline.entry import Action, Flow

S = TypeVar("S", bound=SwitchTables)

End = tuple[str, int]
"""A switch's name and one of its ports."""


NO_TUNNELS: Mapping[IPv4Address, End] = {}


class Loop(Exception):  # noqa: N818
    """A frame goes through more switches than any path has."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A frame came into a switch."""

    switch: str
    in_port: int
    frame: bytes
    """As it came."""
    result: Result
    came_by: int = field(default=-1, compare=False)
    """The number of the hop whose switch sent it; -1 of a first one."""

    @property
    def matched(self) -> tuple[Flow, ...]:
        return self.result.matched


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one frame."""

    arrivals: tuple[tuple[str, int, bytes], ...] = ()
    """Switch, port and frame, wherever it left by a port without a cable."""
    to_controller: tuple[tuple[str, int, int, bytes], ...] = ()
    """Switch, cookie, in port and frame."""
    hops: tuple[Hop, ...] = ()


class Fabric(Generic[S]):
    """Switches by their names, and which port is joined to which; hosts are at the ports without a cable."""

    max_hops = 32

    def __init__(
        self,
        switches: Mapping[str, S],
        cables: Mapping[End, End],
        addresses: Mapping[IPv4Address, End] = NO_TUNNELS,
    ) -> None:
        """`cables` has each one by both of its ends; `addresses`: the tunnel's end that has each, on an IP
        network that brings every packet to the one that it is for."""
        self.switches = switches
        self.cables = cables
        self.addresses = addresses

    def send(self, switch: str, port: int, frame: bytes, choose: Choose = first) -> Delivery:
        """Send a frame into a switch's port, as a host there. Raises Loop and AmbiguousMatch."""
        result = self.switches[switch].receive(frame, port, choose)
        return self._follow(switch, result, choose, [Hop(switch, port, frame, result)])

    def packet_out(
        self, switch: str, frame: bytes, actions: Iterable[Action], choose: Choose = first
    ) -> Delivery:
        """Let a switch run a packet-out, and follow what it sends. Raises Loop and AmbiguousMatch."""
        result = self.switches[switch].packet_out(frame, actions, choose=choose)
        return self._follow(switch, result, choose, [])

    def all_paths(self, switch: str, port: int, frame: bytes) -> list[Delivery]:
        """What becomes of the frame for each way the select groups could choose, each outcome once."""
        return list(dict.fromkeys(every_choice(lambda choose: self.send(switch, port, frame, choose))))

    def _follow(self, switch: str, result: Result, choose: Choose, hops: list[Hop]) -> Delivery:
        arrivals: list[tuple[str, int, bytes]] = []
        told: list[tuple[str, int, int, bytes]] = []
        waiting = deque([(switch, result, 1, len(hops) - 1)])
        while waiting:
            name, result, depth, number = waiting.popleft()
            told.extend((name, *copy) for copy in result.to_controller)
            for port, frame in result.outputs:
                peer = self.peer_of(name, port, frame)
                if peer is None:
                    arrivals.append((name, port, frame))
                    continue
                if depth >= self.max_hops:
                    raise Loop(" > ".join(f"{hop.switch}:{hop.in_port}" for hop in hops))
                onward = self.switches[peer[0]].receive(frame, peer[1], choose)
                waiting.append((peer[0], onward, depth + 1, len(hops)))
                hops.append(Hop(*peer, frame, onward, number))
        return Delivery(tuple(arrivals), tuple(told), tuple(hops))

    def peer_of(self, switch: str, port: int, frame: bytes) -> End | None:
        """Where a frame comes in that has left by this port; None where it leaves all switches."""
        if port not in self.switches[switch].tunnels:
            return self.cables.get((switch, port))
        wrapped = unwrap(frame)
        return None if wrapped is None else self.addresses.get(wrapped.dst)

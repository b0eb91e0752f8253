"""A controller joined to fake switches: sessions that apply changes at once, frames that travel in memory.

The fake part is the wire and the switches; controller, snooping, pipeline and moves are the real ones.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from retinue.controller.app import Controller
from retinue.controller.context import Store
from retinue.core.model import Network
from retinue.core.model.uplinks import places
from retinue.core.pipeline import steps
from retinue.core.pipeline.entry import Change, Group, Meter, Output
from retinue.southbound.openflow.codec.messages import FlowStats, MeterStats, PacketIn
from retinue.southbound.openflow.server import Rejected
from support.fabric.networks import UPLINK, tunnel_ends
from support.fakes.switch import Delivery, FakeFabric


@dataclass
class FakeSession:
    """Stands in for `openflow.Session` of one fake switch."""

    net: "FakeNetwork"
    name: str
    dpid: int
    ports: dict[str, int]
    down: frozenset[str] = frozenset()
    """Ports that have no link."""
    peer: str = "fake"
    openflow: str = "1.4"
    closed: str = ""
    applied: list[Change] = field(default_factory=list)
    hold: asyncio.Event | None = None
    """While set and not signalled, the switch does not confirm."""

    reject: int = 0
    """How many more changes the switch rejects."""

    takes: int | None = None
    """Of the next change it takes so many steps, as one of OpenFlow 1.3, and rejects the rest."""

    mute: bool = False
    """It takes what it is sent and answers nothing: waiting for its barrier runs out of time."""

    late: float = 0.0
    """Seconds that what it sends waits at the controller's socket."""

    @property
    def alive(self) -> bool:
        return not self.closed

    def waited(self) -> float:
        return self.late

    async def apply(self, change: Change, now: float) -> None:
        if self.hold is not None:
            await self.hold.wait()
        await asyncio.sleep(0)
        if self.closed:
            raise ConnectionError(self.closed)
        if self.mute:
            raise TimeoutError(f"no answer from {self.name}")
        if self.reject:
            self.reject -= 1
            raise Rejected(("TABLE_FULL",))
        if self.takes is not None:
            taken, self.takes = tuple(steps.makes(change))[: self.takes], None
            for step in taken:
                self.net.fabric[self.name].apply(step)
            raise Rejected(("TABLE_FULL",), taken)
        self.net.fabric[self.name].apply(change)
        self.applied.append(change)
        self.net.confirms()

    async def read_flows(self, cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        await asyncio.sleep(0)
        flows = [f for f in self.net.fabric[self.name].flows.values() if f.cookie & cookie_mask == cookie]
        return [FlowStats(f, 0, 0, 0.0, 0) for f in flows]

    async def read_packets(self, cookie: int = 0, cookie_mask: int = 0) -> int:
        return sum(stats.packets for stats in await self.read_flows(cookie, cookie_mask))

    async def read_groups(self) -> dict[int, Group]:
        return dict(self.net.fabric[self.name].groups)

    async def read_meters(self) -> dict[int, Meter]:
        return dict(self.net.fabric[self.name].meters)

    async def read_meter_stats(self) -> list[MeterStats]:
        return [MeterStats(number, 0, 0) for number in self.net.fabric[self.name].meters]

    def packet_out(self, frame: bytes, port: int, in_port: int = 0) -> None:
        self.net.take(self.net.fabric.packet_out(self.name, frame, (Output(port),)))

    def close(self, reason: str) -> None:
        if not self.closed:
            self.closed = reason
            self.net.controller.disconnected(self, reason)


class FakeNetwork:
    """The fabric of `networks.fabric`, its controller, and hosts that are functions."""

    def __init__(
        self, net: Network, clock: Callable[[], float] | None, store: Store | None = None, **options: Any
    ) -> None:
        """`options`: the controller's."""
        self.net = net
        self.fabric = FakeFabric()
        self.controller = Controller(net, store, clock, **options)
        self.sessions: dict[str, FakeSession] = {}
        self.heard: list[tuple[str, int, bytes]] = []
        """Frames that came out at a host's port: switch, port, frame."""
        self.confirms: Callable[[], None] = lambda: None
        """Called after each change of a switch."""
        self.hosts: dict[tuple[str, int], Callable[[bytes], None]] = {}
        self._ports: dict[str, dict[str, int]] = {}
        for switch in net.switches:
            self.fabric.add(switch)
        for link in net.links:
            leaf, spine = net.port_number(link.lower), net.port_number(link.upper)
            assert leaf is not None
            assert spine is not None
            self.fabric.cable((link.lower.switch, leaf), (link.upper.switch, spine))
        for end, address in tunnel_ends(net):
            self.fabric.tunnel(end, address)
        for server in net.servers.values():
            uplinks = net.switches[server.edge].uplinks if server.edge else ()
            for number, at in enumerate(places(net, server.id)[: len(uplinks)], UPLINK):
                if (port := net.port_number(at)) is not None:
                    self.fabric.cable((server.edge, number), (at.switch, port))

    async def start(self) -> None:
        await self.controller.start()
        for switch in self.net.switches:
            self.connect(switch)
        await self.settle()

    def connect(self, switch: str, ports: dict[str, int] | None = None) -> FakeSession:
        """`ports`: those that it tells, if not all that the network has."""
        told = dict(self.net._numbers[switch] if ports is None else ports)
        session = FakeSession(self, switch, self.net.switches[switch].dpid, told)
        self.sessions[switch] = session
        self.controller.connected(session)
        return session

    async def settle(self) -> None:
        """Until the controller has nothing left to do but wait."""
        for _ in range(200):
            await asyncio.sleep(0)

    def send(self, switch: str, port: int, frame: bytes) -> Delivery:
        """A host sends a frame; what it causes at once, packet-ins among it, happens before this returns."""
        delivery = self.fabric.send(switch, port, frame)
        self.take(delivery)
        return delivery

    def take(self, delivery: Delivery) -> None:
        for switch, port, frame in delivery.arrivals:
            self.heard.append((switch, port, frame))
            host = self.hosts.get((switch, port))
            if host is not None:
                host(frame)
        for switch, cookie, in_port, frame in delivery.to_controller:
            if switch not in self.sessions:
                continue  # It has not come yet.
            message = PacketIn(0, 0xFFFFFFFF, 0, 0, cookie, in_port, frame, ())
            self.controller.packet_in(self.sessions[switch], message)  # type: ignore[arg-type]

    async def stop(self) -> None:
        await self.settle()
        left = set(self.controller.context.not_installed)
        for name, programmer in self.controller.context.installer.switches.items():
            if programmer.is_read:
                judged = programmer.held - programmer._left.not_yet(programmer.held)
                assert not judged, f"held on {name}, though it can be judged: {judged}"
        await self.controller.stop()
        assert not left, f"changed, and not brought onto the switches: {left}"

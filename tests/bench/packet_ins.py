"""Packet-ins and flow entries that starting VMs costs, beside reactive control, on fakes.

    PYTHONPATH=tests .venv/bin/python tests/bench/packet_ins.py [SERVERS] [WITH VMS] [VMS] [PARTNERS]

The controller is the real one; switches are the fakes of the unit tests, which forward frame by frame by the
entries they are given. Each VM gets its address by DHCP, asks for its gateway and for each partner by ARP,
sends each partner a packet, and gets one back. All servers are attached, each with its edge; VMs start on
some: what one costs is to be the same however many servers there are.

Reactive control is counted over the same frames, with a controller that knows where everybody is and never
floods: each switch hands up what it has no entry for, and is given one for this source and destination (as
learning switches do); or the first switch alone hands it up, and all on the way are given theirs. What idle
entries that end cost again is not counted.
"""

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from retinue.controller.counters import packet_ins
from retinue.core.model import (
    VM,
    Link,
    Mac,
    Network,
    PortRef,
    PortStatus,
    Role,
    Server,
    Service,
    Subnet,
    Switch,
)
from retinue.core.packets import (
    BROADCAST,
    MessageType,
    ack,
    arp_request,
    dhcp_frame,
    discover,
    offer,
    parse_dhcp_frame,
    request,
)
from retinue.core.pipeline.cookies import Reason
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import GATEWAY_MAC
from support.fabric.world import udp_frame
from support.fakes.session import FakeNetwork

PER_LEAF, SPINES = 40, 2
GATEWAY, DHCP_SERVER, DHCP_PORT = IPv4Address("10.127.255.254"), IPv4Address("10.64.0.2"), 1000
NOWHERE, EVERYWHERE, LEASE = IPv4Address(0), IPv4Address("255.255.255.255"), 86_400


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM as its fakes have it."""

    number: int
    server: int
    port: int

    @property
    def id(self) -> str:
        return f"vm{self.number}"

    @property
    def mac(self) -> Mac:
        return _mac(0x52, self.number)

    @property
    def ip(self) -> IPv4Address:
        return IPv4Address("10.64.1.0") + self.number

    @property
    def at(self) -> tuple[str, int]:
        return f"edge{self.server}", self.port


@dataclass
class Figures:
    """Of all VMs together."""

    ours: dict[str, int]
    """Packet-ins by their reason."""
    flow_mods: int
    each_switch: int
    """Packet-ins, and as many flow entries, of reactive control by each switch."""
    whole_way: tuple[int, int]
    """Packet-ins and flow entries where the first switch asks for the whole way."""
    seconds: float
    """Of a processor: of our controller with its fakes."""


def _mac(first: int, number: int) -> Mac:
    return bytes.hex(bytes([first]) + number.to_bytes(5), ":")


def network(servers: int) -> Network:
    net = Network(GATEWAY_MAC)
    net.add_subnet(Subnet("servers", IPv4Network("10.16.0.0/16"), IPv4Address("10.16.255.254")))
    net.add_subnet(Subnet("vms", IPv4Network("10.64.0.0/10"), GATEWAY))
    leaves = -(-servers // PER_LEAF)
    for spine in range(SPINES):
        net.add_switch(Switch(f"spine{spine}", Role.SPINE, 0x100 + spine))
    for leaf in range(leaves):
        net.add_switch(Switch(f"leaf{leaf}", Role.LEAF, 0x1000 + leaf))
        for spine in range(SPINES):
            net.add_link(Link(PortRef(f"leaf{leaf}", f"s{spine}"), PortRef(f"spine{spine}", f"l{leaf}")))
    for spine in range(SPINES):
        net.set_ports(f"spine{spine}", {f"l{leaf}": leaf + 1 for leaf in range(leaves)})
    for server in range(servers):
        net.add_switch(Switch(f"edge{server}", Role.EDGE, 0x10000 + server, uplink="up0"))
    for leaf in range(leaves):
        here = range(leaf * PER_LEAF, min(servers, (leaf + 1) * PER_LEAF))
        ports = {f"s{spine}": spine + 1 for spine in range(SPINES)} | {
            f"p{n}": 10 + n - here[0] for n in here
        }
        net.set_ports(f"leaf{leaf}", ports | ({"dhcp": DHCP_PORT} if leaf == 0 else {}))
        for n in here:
            net.set_ports(f"edge{n}", {"up0": 1})
            address = IPv4Address("10.16.0.1") + n
            at = PortRef(f"leaf{leaf}", f"p{n}")
            net.put_server(Server(f"server{n}", _mac(2, n), address, edge=f"edge{n}", given_at=at))
    services = frozenset({Service.DHCP})
    at = PortRef("leaf0", "dhcp")
    net.put_server(Server("dhcp", _mac(6, 0), DHCP_SERVER, services=services, given_at=at))
    return net


class Bench:
    def __init__(self, servers: int, guests: Sequence[Guest], partners: int) -> None:
        self._guests, self._partners = guests, partners
        self._by_mac = {guest.mac: guest for guest in guests}
        self._random = random.Random(1)
        self.fake = FakeNetwork(network(servers), clock=lambda: 1000.0)
        self.fake.hosts["leaf0", DHCP_PORT] = self._serve

    async def run(self) -> Figures:
        await self.fake.start()
        controller, began = self.fake.controller, time.process_time()
        counters, sent = Counter(controller.context.counters), controller.context.installer.flow_mods
        for guest in self._guests:
            await self._start(guest)
        await self.fake.settle()
        conversations = [(one, other) for one in self._guests for other in self._partners_of(one)]
        for one, other in conversations:
            await self._ask(one, other.ip)
            await self._talk(one, other)
            await self._ask(other, one.ip)
            await self._talk(other, one)
        seconds = time.process_time() - began
        more = controller.context.counters - counters
        ours = {reason.name.lower(): n for reason in Reason if (n := more[packet_ins(reason)])}
        flow_mods = controller.context.installer.flow_mods - sent
        await self.fake.stop()
        return Figures(ours, flow_mods, *reactive(self._guests, conversations), seconds)

    async def _start(self, guest: Guest) -> None:
        controller = self.fake.controller
        controller.inventory.register_vms([VM.with_one_nic(guest.id, guest.mac, f"server{guest.server}")])
        port = BridgePort(
            0x10000 + guest.server,
            "br0",
            f"tap{guest.number}",
            guest.port,
            PortStatus.UP,
            guest.id,
            guest.mac,
        )
        controller.inventory.ports.changed([], [port])
        await self.fake.settle()
        for said in (discover(guest.mac, 7), request(guest.mac, 7, guest.ip, DHCP_SERVER)):
            self.fake.send(*guest.at, dhcp_frame(said, guest.mac, BROADCAST, NOWHERE, EVERYWHERE, 68, 67))
            await self.fake.settle()
        held = controller.net.holder(guest.ip)
        assert held is not None and held.vm == guest.id, f"{guest.id} has got no address"
        await self._ask(guest, GATEWAY)

    async def _ask(self, guest: Guest, ip: IPv4Address) -> None:
        self.fake.heard.clear()
        self.fake.send(*guest.at, arp_request(guest.mac, guest.ip, ip))
        await self.fake.settle()
        assert any((s, p) == guest.at for s, p, _ in self.fake.heard), f"{guest.id} has no answer for {ip}"

    async def _talk(self, one: Guest, other: Guest) -> None:
        self.fake.heard.clear()
        self.fake.send(*one.at, udp_frame(one.mac, GATEWAY_MAC, one.ip, other.ip))
        assert any((s, p) == other.at for s, p, _ in self.fake.heard), f"{one.id} does not reach {other.id}"

    def _partners_of(self, guest: Guest) -> list[Guest]:
        """As many of the others."""
        others = [one for one in self._guests if one.number != guest.number]
        return self._random.sample(others, min(self._partners, len(others)))

    def _serve(self, frame: bytes) -> None:
        asked = parse_dhcp_frame(frame)[2]
        answer = offer if asked.message_type is MessageType.DISCOVER else ack
        reply = answer(asked, self._by_mac[asked.chaddr].ip, DHCP_SERVER, LEASE)
        server = self.fake.net.servers["dhcp"].mac
        told = dhcp_frame(reply, server, asked.chaddr, DHCP_SERVER, reply.yiaddr, 67, 68)
        self.fake.send("leaf0", DHCP_PORT, told)


def reactive(
    guests: Sequence[Guest], conversations: Sequence[tuple[Guest, Guest]]
) -> tuple[int, tuple[int, int]]:
    """What each switch asks for, and the first alone: DHCP's four messages and questions by ARP go to the
    controller there, too."""
    known: set[tuple[str, int, int]] = set()
    asked = 5 * len(guests) + 2 * len(conversations)
    each = first = entries = 0
    for pair in conversations:
        for one, other in (pair, pair[::-1]):
            new = {(switch, one.number, other.number) for switch in _way(one, other)} - known
            known |= new
            each, first, entries = each + len(new), first + bool(new), entries + len(new)
    return asked + each, (asked + first, entries)


def _way(one: Guest, other: Guest) -> Iterator[str]:
    """The switches from one to the other."""
    leaves = one.server // PER_LEAF, other.server // PER_LEAF
    yield from dict.fromkeys((f"edge{one.server}", f"edge{other.server}"))
    if one.server != other.server:
        yield from dict.fromkeys(f"leaf{leaf}" for leaf in leaves)
    if leaves[0] != leaves[1]:
        yield f"spine{(one.number + other.number) % SPINES}"


async def measure(servers: int, with_vms: int, vms: int, partners: int) -> Figures:
    """`with_vms`: of the servers, evenly spread; `vms`: of each of these."""
    apart = servers // with_vms
    guests = [Guest(k * vms + n, k * apart, 10 + n) for k in range(with_vms) for n in range(vms)]
    return await Bench(servers, guests, partners).run()


def main() -> None:
    given = [int(word) for word in sys.argv[1:]]
    servers, with_vms, vms, partners = (given + [2000, 10, 20, 5][len(given) :])[:4]
    found = asyncio.run(measure(servers, with_vms, vms, partners))
    count = with_vms * vms
    where = f"{servers} servers, {vms} VMs on each of {with_vms}, {partners} partners each"
    print(f"{where}; load {os.getloadavg()[0]:.1f}")
    print(f"{'':30}  packet-ins a VM  flow entries a VM")
    rows = {
        "ours": (sum(found.ours.values()), found.flow_mods),
        "reactive, by each switch": (found.each_switch, found.each_switch - 5 * count),
        "reactive, the whole way": found.whole_way,
    }
    for name, figures in rows.items():
        print(f"{name:30}" + "".join(f"{figure / count:17.1f}" for figure in figures))
    print("ours by reason:", ", ".join(f"{name} {n / count:.2f}" for name, n in found.ours.items()))
    print(f"seconds of a processor, with the fakes: {found.seconds:.1f}")


if __name__ == "__main__":
    main()

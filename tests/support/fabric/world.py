"""A network whose desired flows stand on fake switches, and the questions that must hold in every state."""

import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from retinue.core.model import Network
from retinue.core.model.network import Owner
from retinue.core.model.uplinks import places
from retinue.core.packets import (
    ARP,
    BROADCAST,
    Ethernet,
    EtherType,
    arp_request,
    build_udp4,
    checksum,
    dhcp_frame,
    discover,
    offer,
    parse,
    parse_arp,
)
from retinue.core.pipeline import steps
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.cookies import SPOOF_ATTEMPTS, Reason, reason_of
from retinue.core.pipeline.diff import difference
from retinue.core.pipeline.entry import Change, Output, Program
from retinue.core.pipeline.responders import arp
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import Near, underlay_of
from support.fabric.networks import (
    GATEWAY_MAC,
    UPLINK,
    tunnel_ends,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fakes.switch import Delivery, FakeFabric

OUTSIDE = IPv4Address("198.51.100.9")
NOWHERE, EVERYWHERE = IPv4Address(0), IPv4Address("255.255.255.255")
UNROUTABLE = (
    *("0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.169.254", "224.0.0.5", "224.0.0.251", "239.1.2.3"),
    *("240.0.0.1", "255.255.255.255"),
)
"""Destinations that no router may forward to."""
MARK = b"retinue test payload"


def rarp(src: str, sha: str, spa: IPv4Address = NOWHERE) -> bytes:
    """As a hypervisor announces a VM that has arrived."""
    return Ethernet(BROADCAST, src, EtherType.RARP, ARP(3, sha, spa, sha, spa).build()).build()


def udp_frame(src_mac: str, dst_mac: str, src: IPv4Address, dst: IPv4Address) -> bytes:
    return Ethernet(dst_mac, src_mac, 0x0800, build_udp4(src, dst, 4000, 7, MARK)).build()


def fragments(frame: bytes, first: int = 64) -> tuple[bytes, bytes]:
    """An IPv4 frame cut in two; `first` bytes of what IP carries are in the first part (RFC 791)."""
    ethernet, header, body = frame[:14], frame[14:34], frame[34 : 14 + int.from_bytes(frame[16:18], "big")]

    def part(data: bytes, location: int) -> bytes:
        head = bytearray(header)
        head[2:4], head[6:8] = (20 + len(data)).to_bytes(2, "big"), location.to_bytes(2, "big")
        head[10:12] = bytes(2)
        head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
        return (ethernet + bytes(head) + data).ljust(60, b"\0")

    return part(body[:first], 0x2000), part(body[first:], first // 8)


def dhcp_answer(src_mac: str, dst_mac: str, src: IPv4Address, to: int, sport: int = 67) -> bytes:
    """What a DHCP server, or who plays one, says to VM `to`."""
    reply = offer(discover(vm_mac(to), 7), vm_ip(to), src, 60)
    return dhcp_frame(reply, src_mac, dst_mac, src, vm_ip(to), sport, 68)


def tagged(frame: bytes, vlan: int) -> bytes:
    """The frame with an 802.1Q tag; VLAN 0 is a tag that has only a priority."""
    return frame[:12] + struct.pack("!HH", 0x8100, vlan) + frame[12:]


@dataclass
class FabricWorld:
    """VM N has the address, MAC and port of `networks`; switches and cables are made from the network."""

    net: Network
    compiler: Compiler = field(init=False)
    fabric: FakeFabric = field(default_factory=FakeFabric)
    installed: dict[str, Program] = field(default_factory=dict)
    copied: set[int] = field(default_factory=set)
    """VMs that may get a packet at each of their places at once."""
    in_steps: bool = False
    """No switch has bundles: each takes a change step by step (core.pipeline.steps)."""

    def __post_init__(self) -> None:
        self.compiler = Compiler(self.net, recent=1)
        for switch in self.net.switches:
            self.fabric.add(switch)
            self.installed[switch] = {}
        for link in self.net.links:
            leaf, spine = self.net.port_number(link.lower), self.net.port_number(link.upper)
            assert leaf is not None
            assert spine is not None
            self.fabric.cable((link.lower.switch, leaf), (link.upper.switch, spine))
        for end, own in tunnel_ends(self.net):
            self.fabric.tunnel(end, own)
        for server in self.net.servers.values():
            uplinks = self.net.switches[server.edge].uplinks if server.edge else ()
            for number, at in enumerate(places(self.net, server.id)[: len(uplinks)], UPLINK):
                port = self.net.port_number(at)
                assert port is not None
                self.fabric.cable((server.edge, number), (at.switch, port))
        self.apply(self.net.everything())

    def apply(
        self,
        touched: Iterable[Owner],
        near: Near = (),
        each: Callable[[], None] = lambda: None,
        order: Callable[[list[str]], list[str]] = sorted,
    ) -> None:
        """Bring a change onto the switches as the controller does; call `each` after every single switch.

        Within a stage switches confirm in any order: `order` chooses one.
        """
        updated = self.compiler.update(touched)
        changed = {switch: keys for switch, keys in updated.items() if switch in self.net.switches}
        for stage in underlay_of(self.net).stages(changed, near):
            for switch in order(stage):
                program = self.compiler.program(switch).whole()
                change = difference(program, self.installed[switch], changed[switch])
                self.installed[switch] = program
                for step in self._steps(change):
                    self.fabric[switch].apply(step)
                    each()

    def _steps(self, change: Change) -> Iterator[Change]:
        """What takes effect at one instant."""
        if not self.in_steps:
            yield change
            return
        yield from steps.makes(change)
        yield from steps.removes(change)

    # ---- questions ----

    def send(self, vm: int, at: int, frame: bytes) -> list[Delivery]:
        """Everything that may become of a frame VM `vm` sends from its port on server `at`."""
        return self.fabric.all_paths(f"edge{at}", vm_port(vm), frame)

    def reaches(
        self, vm: int, at: int, to: int, locations: Collection[int], dst_mac: str = GATEWAY_MAC
    ) -> None:
        """An honest packet of `vm`, sent from server `at`, comes to VM `to` on one of `places`, once."""
        frame = udp_frame(vm_mac(vm), dst_mac, vm_ip(vm), vm_ip(to))
        for delivery in self.send(vm, at, frame):
            self.comes(delivery, to, locations)

    def comes(self, delivery: Delivery, to: int, locations: Collection[int]) -> None:
        """A packet for VM `to` comes to one of its places; while it is copied, to each at most once."""
        ports = {(f"edge{location}", vm_port(to)) for location in locations}
        if to not in self.copied:
            self.comes_once(delivery, ports, vm_mac(to))
            return
        came = [(switch, port) for switch, port, _ in delivery.arrivals]
        assert came, f"lost: {delivery}"
        assert len(set(came)) == len(came), f"twice to one port: {delivery}"
        assert set(came) <= ports, f"came out at {came}, not at {ports}"
        for switch, port, frame in delivery.arrivals:
            assert parse(frame).dst == vm_mac(to)
            here = self.net.server_of_edge(switch)
            if here is None or parse(frame).src != here.mac:  # Not the mark of what has been copied.
                self.comes_from(delivery, switch, port, frame)
        assert not delivery.to_controller

    def comes_once(self, delivery: Delivery, ports: Collection[tuple[str, int]], mac: str) -> None:
        assert len(delivery.arrivals) == 1, f"not delivered once: {delivery}"
        switch, port, frame = delivery.arrivals[0]
        assert (switch, port) in ports, f"came out at {switch} port {port}, not at {ports}"
        assert parse(frame).dst == mac
        self.comes_from(delivery, switch, port, frame)
        assert MARK in frame
        assert not delivery.to_controller

    def comes_from(self, delivery: Delivery, switch: str, port: int, frame: bytes) -> None:
        """What has come by way of a leaf comes from the gateway's MAC: a receiver learns no other from it.

        What a switch hands over at once keeps its sender's MAC.
        """
        first = delivery.hops[0]
        sent_here = first.switch == switch and any(flow.table == Table.FORWARD for flow in first.matched)
        direct = sent_here and Output(port) in first.matched[-1].actions
        source = parse(frame).src
        gateway_mac = self.net.gateway_mac_of(self.net.server_of_edge(switch))
        assert (source != gateway_mac) == direct, f"came from {source}: {delivery}"

    def is_no_neighbour_of_other_subnets(self, vm: int, at: int, to: int) -> None:
        """What `vm` sends to the MAC of a VM in another subnet is routed; and it is not told that MAC."""
        if self.net.subnet_of(vm_ip(vm)) == self.net.subnet_of(vm_ip(to)):
            return
        frame = udp_frame(vm_mac(vm), vm_mac(to), vm_ip(vm), vm_ip(to))
        for delivery in self.send(vm, at, frame):
            fewer = {frame[22] - came[22] for _, _, came in delivery.arrivals}
            hops = {1, 2} if self.net.over_routers else {1}  # Each router of others is one.
            assert len(fewer) == 1 and fewer <= hops, "its TTL is one less"
        for delivery in self.send(vm, at, arp_request(vm_mac(vm), vm_ip(vm), vm_ip(to))):
            assert not delivery.arrivals, f"it is told a MAC: {delivery}"
            for switch, _, _, asked in delivery.to_controller:
                assert not arp.answers_vm(self.net, switch, parse_arp(parse(asked).payload))

    def reaches_from_outside(self, to: int, locations: Collection[int]) -> None:
        for delivery in self.from_outside(to):
            self.comes(delivery, to, locations)

    def from_outside(self, to: int) -> list[Delivery]:
        """What becomes of a packet to VM `to` that the router forwards."""
        last = self.net.servers["router"].given_at
        assert last is not None
        frame = udp_frame(self.net.servers["router"].mac, GATEWAY_MAC, OUTSIDE, vm_ip(to))
        return self.fabric.all_paths(last.switch, 91, frame)

    def reaches_outside(self, vm: int, at: int) -> None:
        at_router = self.net.servers["router"].given_at
        assert at_router is not None
        frame = udp_frame(vm_mac(vm), GATEWAY_MAC, vm_ip(vm), OUTSIDE)
        for delivery in self.send(vm, at, frame):
            self.comes_once(delivery, {(at_router.switch, 91)}, self.net.servers["router"].mac)

    def goes_nowhere(self, vm: int, at: int, frame: bytes) -> None:
        for delivery in self.send(vm, at, frame):
            assert not delivery.arrivals, f"delivered: {delivery}"

    def is_reported_spoofed(self, vm: int, at: int, frame: bytes) -> None:
        """The frame reaches nobody; the controller gets it as a spoofing."""
        for delivery in self.send(vm, at, frame):
            assert not delivery.arrivals, f"delivered: {delivery}"
            reasons = [reason_of(cookie) for _, cookie, _, _ in delivery.to_controller]
            assert len(reasons) == 1
            assert reasons[0] in SPOOF_ATTEMPTS

    def spoofs(self, vm: int, at: int, victim: int) -> None:
        """Every way in which `vm` may pretend to be `victim` fails, to whomever it is sent."""
        for dst_mac, dst in ((GATEWAY_MAC, OUTSIDE), (vm_mac(victim), vm_ip(victim))):
            for src_mac, src in (
                (vm_mac(vm), vm_ip(victim)),
                (vm_mac(victim), vm_ip(victim)),
                (vm_mac(victim), vm_ip(vm)),
            ):
                self.is_reported_spoofed(vm, at, udp_frame(src_mac, dst_mac, src, dst))
        self.is_reported_spoofed(vm, at, arp_request(vm_mac(vm), vm_ip(victim), vm_ip(victim)))
        self.is_reported_spoofed(vm, at, arp_request(vm_mac(victim), vm_ip(victim), vm_ip(victim)))
        for eth_src, sha, spa in (
            (vm_mac(victim), vm_mac(victim), NOWHERE),
            (vm_mac(vm), vm_mac(victim), NOWHERE),
            (vm_mac(vm), vm_mac(vm), vm_ip(victim)),
        ):
            self.is_reported_spoofed(vm, at, rarp(eth_src, sha, spa))
        self.speaks_untagged_only(vm, at, victim)
        self.serves_no_dhcp(vm, at, victim)
        self.asks_dhcp_by_the_controller_only(vm, at)
        self.goes_to_no_router(vm, at)

    def goes_to_no_router(self, vm: int, at: int) -> None:
        """What no router may forward is not brought to one, by whichever MAC it is sent, nor from a leaf's
        port."""
        for address in UNROUTABLE:
            dst = IPv4Address(address)
            for mac in (GATEWAY_MAC, "02:00:00:00:0f:ff", self.net.servers["router"].mac):
                self.goes_nowhere(vm, at, udp_frame(vm_mac(vm), mac, vm_ip(vm), dst))
            if self.net.over_routers:
                continue  # What others' machines send there is theirs to drop.
            server = self.net.servers["dhcp"]
            assert isinstance(server.address, IPv4Address) and server.given_at is not None
            frame = udp_frame(server.mac, GATEWAY_MAC, server.address, dst)
            for delivery in self.fabric.all_paths(server.given_at.switch, 90, frame):
                assert not delivery.arrivals, f"delivered: {delivery}"

    def asks_dhcp_by_the_controller_only(self, vm: int, at: int) -> None:
        """A VM's word to a DHCP server is snooped; one from another port than a client's does not pass."""
        for mac in (vm_mac(vm), vm_mac(vm + 1)):
            asked = discover(mac, 7)
            server = self.net.servers["dhcp"].address
            assert isinstance(server, IPv4Address)
            sent = dhcp_frame(asked, vm_mac(vm), GATEWAY_MAC, vm_ip(vm), server, 4000, 67)
            for frame in (sent, fragments(sent)[0]):
                self.is_reported_spoofed(vm, at, frame)

    def serves_no_dhcp(self, vm: int, at: int, victim: int) -> None:
        """No DHCP server's message comes from a VM, from whatever port, to whomever, whole or in parts."""
        for dst_mac in (GATEWAY_MAC, vm_mac(victim), BROADCAST):
            for sport in (67, 4000):
                answer = dhcp_answer(vm_mac(vm), dst_mac, vm_ip(vm), victim, sport)
                self.is_reported_spoofed(vm, at, answer)
                self.is_reported_spoofed(vm, at, fragments(answer, 8)[0])

    def speaks_untagged_only(self, vm: int, at: int, other: int) -> None:
        """A VM's port is an access port: a frame that is honest but for its tag reaches nobody.

        One with a priority and no VLAN is as untagged; behind its tag a second one is none that is read.
        """
        for honest in (
            udp_frame(vm_mac(vm), GATEWAY_MAC, vm_ip(vm), OUTSIDE),
            udp_frame(vm_mac(vm), vm_mac(other), vm_ip(vm), vm_ip(other)),
            arp_request(vm_mac(vm), vm_ip(vm), vm_ip(other)),
            rarp(vm_mac(vm), vm_mac(vm)),
            dhcp_frame(discover(vm_mac(vm), 7), vm_mac(vm), BROADCAST, NOWHERE, EVERYWHERE, 68, 67),
        ):
            self.is_reported_spoofed(vm, at, tagged(honest, 666))
            self.goes_nowhere(vm, at, tagged(tagged(honest, 666), 0))
            for with_priority, untagged in zip(
                self.send(vm, at, tagged(honest, 0)), self.send(vm, at, honest), strict=True
            ):
                assert with_priority.arrivals == untagged.arrivals
                assert with_priority.to_controller == untagged.to_controller
        spoofed = udp_frame(vm_mac(vm), GATEWAY_MAC, vm_ip(other), OUTSIDE)
        self.is_reported_spoofed(vm, at, tagged(spoofed, 0))
        for frame in (
            udp_frame(GATEWAY_MAC, self.net.servers[f"server{at}"].mac, OUTSIDE, vm_ip(vm)),
            udp_frame(self.net.servers["router"].mac, GATEWAY_MAC, OUTSIDE, vm_ip(vm)),
        ):
            # The fabric sends no tags, and takes none.
            for switch, port in ((f"edge{at}", UPLINK), self.server_port(at)):
                for delivery in self.fabric.all_paths(switch, port, tagged(frame, 0)):
                    assert not delivery.arrivals

    def services_speak_for_themselves(self, vm: int) -> None:
        """The router forwards from outside and the DHCP server serves: neither sends as anybody of ours.

        By none of the gateway's MACs, and by those of groups of servers not at all.
        """
        if self.net.over_routers:
            return
        router, dhcp = self.net.servers["router"], self.net.servers["dhcp"]
        inside = [vm_ip(vm), IPv4Address("10.1.0.200"), *(s.address for s in self.net.servers.values())]
        for server, port, others in ((router, 91, inside), (dhcp, 90, [*inside, OUTSIDE])):
            assert server.given_at is not None
            for src in others:
                assert isinstance(src, IPv4Address)
                sent = udp_frame(server.mac, GATEWAY_MAC, src, vm_ip(vm))
                for delivery in self.fabric.all_paths(server.given_at.switch, port, sent):
                    if src == server.address:
                        assert 1 <= len(delivery.arrivals) <= 1 + (vm in self.copied)
                        assert not delivery.to_controller
                    else:
                        assert not delivery.arrivals
                        told = [reason_of(cookie) for _, cookie, _, _ in delivery.to_controller]
                        assert told == [Reason.SPOOFED_IP]
            for group in self.net.gateway_groups.values():
                sent = udp_frame(server.mac, group.mac, OUTSIDE, vm_ip(vm))
                for delivery in self.fabric.all_paths(server.given_at.switch, port, sent):
                    assert not delivery.arrivals

    def floods_nothing(self, vm: int, at: int) -> None:
        for dst in (BROADCAST, "01:00:5e:00:00:fb", "33:33:00:00:00:01"):
            self.goes_nowhere(vm, at, udp_frame(vm_mac(vm), dst, vm_ip(vm), IPv4Address("10.1.0.255")))

    def server_port(self, server: int) -> tuple[str, int]:
        at = self.net.location(f"server{server}")
        number = None if at is None else self.net.port_number(at)
        assert at is not None and number is not None
        return at.switch, number

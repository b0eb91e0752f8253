"""VMs with trunks: what must hold between NICs of which some share a port, in every state."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from retinue.core.model import (
    DEFAULT_VRF,
    NIC,
    VM,
    Assignment,
    BindingKind,
    Network,
    Origin,
    Subnet,
    VMPort,
    Vnet,
    Vrf,
    port_id_of,
)
from retinue.core.packets import BROADCAST, Ethernet, arp_request, dhcp_frame, discover, parse, parse_arp
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.core.pipeline.responders import arp
from support.fabric.ipv6 import udp6_frame
from support.fabric.networks import GATEWAY, GATEWAY_MAC, vm_mac, vm_port
from support.fabric.sample_frames import icmp, ipv4
from support.fabric.world import EVERYWHERE, MARK, NOWHERE, FabricWorld, tagged, udp_frame
from support.fakes.switch import Delivery

UNKNOWN = 666
"""A VLAN that no vnet has."""


@dataclass(frozen=True)
class Place:
    """A vnet, and its subnet of IPv4; of IPv6 it has fd00:VLAN::/64."""

    vnet: str
    vlan: int
    vrf: str
    prefix: IPv4Network

    @property
    def gateway(self) -> IPv4Address:
        return self.prefix.network_address + 254

    @property
    def prefix6(self) -> IPv6Network:
        return IPv6Network(f"fd00:{self.vlan}::/64")


SHOP = Place("shop", 5, DEFAULT_VRF, IPv4Network("10.2.5.0/24"))
DMZ = Place("dmz", 6, DEFAULT_VRF, IPv4Network("10.2.6.0/24"))
REDS = Place("reds", 7, "red", IPv4Network("10.1.0.0/24"))
STORE = Place("store", 8, "red", IPv4Network("10.2.5.0/24"))
PLACES = (SHOP, DMZ, REDS, STORE)


def add_places(net: Network, ipv6: bool) -> None:
    net.put_vrf(Vrf("red", 4000))
    for place in PLACES:
        net.put_vnet(Vnet(place.vnet, place.vlan, vrf=place.vrf))
        net.add_subnet(Subnet(place.vnet, place.prefix, place.gateway, vnet=place.vnet))
        if ipv6:
            gateway = place.prefix6.network_address + 0xFE
            net.add_subnet(Subnet(f"{place.vnet}6", place.prefix6, gateway, vnet=place.vnet))


@dataclass(frozen=True)
class Member:
    """A NIC: by its number it has MAC and addresses; `port` is its own number, or its carrier's."""

    number: int
    vm: str
    place: Place | None
    """None: the vnet of the fabric's subnets."""
    port: int
    ipv6: bool = False

    @property
    def in_trunk(self) -> bool:
        return self.port != self.number

    @property
    def vlan(self) -> int:
        """The tag at its port."""
        return self.place.vlan if self.place is not None and self.in_trunk else 0

    @property
    def vrf(self) -> str:
        return DEFAULT_VRF if self.place is None else self.place.vrf

    @property
    def mac(self) -> str:
        return vm_mac(self.number)

    @property
    def ip(self) -> IPv4Address:
        """In another VRF it may be another's."""
        prefix = IPv4Network("10.1.0.0/24") if self.place is None else self.place.prefix
        return prefix.network_address + 100 + self.number

    @property
    def ip6(self) -> IPv6Address | None:
        if not self.ipv6 or self.place is None:
            return None
        return self.place.prefix6.network_address + self.number

    @property
    def gateway(self) -> IPv4Address:
        return GATEWAY if self.place is None else self.place.gateway


def add_vm(net: Network, id: str, at: int, members: list[Member]) -> VM:
    """A VM with these NICs, plugged in and bound; a carrier comes before those that it carries."""
    ids = {one.number: port_id_of(id, index) for index, one in enumerate(members, 1)}
    nics = tuple(
        NIC(
            one.mac, ids[one.number], vnet=one.place.vnet if one.place is not None else "",
            slot=0 if one.in_trunk else index, trunk=ids[one.port] if one.in_trunk else "",
        )
        for index, one in enumerate(members, 1)
    )  # fmt: skip
    vm = VM(id, nics, f"server{at}")
    net.put_vm(vm)
    plug(net, vm, at, members)
    for one in members:
        for ip in (one.ip, one.ip6):
            if ip is not None:
                kind, origin = BindingKind.DYNAMIC, Origin.CONTROLLER
                net.assign(Assignment(ip, one.mac, id, kind, origin, 1e10, vrf=one.vrf))
    return vm


def plug(net: Network, vm: VM, at: int, members: Iterable[Member]) -> None:
    for nic, one in zip(vm.nics, members, strict=True):
        if not nic.trunk:
            net.set_vm_port(nic.port_id, f"edge{at}", VMPort(vm_port(one.number)))


@dataclass
class Trunked:
    """The NICs of a world, and where each is."""

    world: FabricWorld = field(repr=False)
    members: list[Member]
    at: dict[str, int]
    """By VM: the server it runs on."""
    may_arrive: dict[str, Collection[int]]
    """By VM: the servers where what is for it may come."""
    copied: set[str] = field(default_factory=set)
    """VMs of which a packet may come to each of their places at once."""

    def check(self) -> None:
        """All of it."""
        self.passes()
        for sender in self.members:
            for victim in self.members:
                if victim is not sender:
                    self._spoofs(sender, victim, {0, UNKNOWN, sender.vlan, victim.vlan})
            self._says_what_it_is(sender)
            self._asks(sender)

    def passes(self) -> None:
        """What may be so for a moment only, between two switches: who is reached, by whom."""
        for sender in self.members:
            for receiver in self.members:
                if receiver is not sender:
                    self._reaches(sender, receiver)
                    if sender.in_trunk:
                        self._spoofs(sender, receiver, {receiver.vlan})

    def send(self, sender: Member, frame: bytes, vlan: int | None = None) -> list[Delivery]:
        """From the sender's port, with the tag that its frames have there, or another."""
        tag = sender.vlan if vlan is None else vlan
        return self.world.fabric.all_paths(
            f"edge{self.at[sender.vm]}", vm_port(sender.port), tagged(frame, tag) if tag else frame
        )

    def holder(self, vrf: str, ip: IPv4Address | IPv6Address) -> Member | None:
        return next((one for one in self.members if one.vrf == vrf and ip in (one.ip, one.ip6)), None)

    def _reaches(self, sender: Member, receiver: Member) -> None:
        """What is sent to an address comes to who has it in the sender's VRF, with the tag of its port."""
        wanted = self.holder(sender.vrf, receiver.ip)
        for mac in (GATEWAY_MAC, receiver.mac):
            if wanted is not sender:
                for delivery in self.send(sender, udp_frame(sender.mac, mac, sender.ip, receiver.ip)):
                    self._comes_to(delivery, wanted, receiver.ip)
            if sender.ip6 is not None and receiver.ip6 is not None and sender.vrf == receiver.vrf:
                for delivery in self.send(sender, udp6_frame(sender.mac, mac, sender.ip6, receiver.ip6)):
                    self._comes_to(delivery, receiver, receiver.ip6)

    def _comes_to(self, delivery: Delivery, wanted: Member | None, ip: IPv4Address | IPv6Address) -> None:
        if wanted is None:
            ours = [port for switch, port, _ in delivery.arrivals if switch.startswith("edge")]
            assert not ours, f"{ip} is nobody's in that VRF: {delivery}"
            return
        came = [(switch, port) for switch, port, _ in delivery.arrivals]
        ports = {(f"edge{at}", vm_port(wanted.port)) for at in self.may_arrive[wanted.vm]}
        assert came, f"lost: {delivery}"
        assert set(came) <= ports, f"came out at {came}, not at {ports}"
        assert len(came) == 1 or (wanted.vm in self.copied and len(set(came)) == len(came)), delivery
        assert not delivery.to_controller
        for _, _, frame in delivery.arrivals:
            ethernet = parse(frame)
            assert (ethernet.dst, ethernet.vlan or 0) == (wanted.mac, wanted.vlan)
            assert MARK in frame

    def _spoofs(self, sender: Member, victim: Member, tags: Collection[int]) -> None:
        """Nobody sends under another's MAC or address, with whichever tag, but who has them by that port."""
        for mac, ip in ((victim.mac, victim.ip), (victim.mac, sender.ip), (sender.mac, victim.ip)):
            for tag in tags:
                if self._is_honest(sender, mac, ip, tag):
                    continue
                self._is_reported(sender, udp_frame(mac, GATEWAY_MAC, ip, victim.ip), tag)
                self._is_reported(sender, arp_request(mac, ip, sender.gateway), tag)

    def _is_honest(self, sender: Member, mac: str, ip: IPv4Address, tag: int) -> bool:
        mine = [one for one in self.members if (one.vm, one.port) == (sender.vm, sender.port)]
        return any((one.mac, one.ip, one.vlan) == (mac, ip, tag) for one in mine)

    def _is_reported(self, sender: Member, frame: bytes, tag: int) -> None:
        sent = tagged(frame, tag) if tag else frame
        self.world.is_reported_spoofed(sender.port, self.at[sender.vm], sent)

    def _says_what_it_is(self, sender: Member) -> None:
        """Its own words with another tag are no others'; and the controller knows whose DHCP it is."""
        for tag in {0, UNKNOWN, *(place.vlan for place in PLACES)} - {sender.vlan}:
            self._is_reported(sender, udp_frame(sender.mac, GATEWAY_MAC, sender.ip, sender.gateway), tag)
        asked = dhcp_frame(
            discover(sender.mac, 7), sender.mac, "ff:ff:ff:ff:ff:ff", NOWHERE, EVERYWHERE, 68, 67
        )
        for delivery in self.send(sender, asked):
            assert not delivery.arrivals
            [(switch, cookie, port, frame)] = delivery.to_controller
            assert reason_of(cookie) is Reason.DHCP_CLIENT
            assert parse(frame).vlan is None
            self._is_of(sender, switch, port, frame)
        to_all = udp_frame(sender.mac, BROADCAST, sender.ip, EVERYWHERE)
        for delivery in self.send(sender, to_all):
            assert not delivery.arrivals

    def _is_of(self, sender: Member, switch: str, port: int, frame: bytes) -> None:
        nic = self.world.net.nic_at(switch, port, parse(frame).src)
        assert nic is not None and nic.mac == sender.mac

    def _asks(self, sender: Member) -> None:
        """Gateways answer it with its tag; who is its neighbour is found, by the switch or the controller."""
        back = (f"edge{self.at[sender.vm]}", vm_port(sender.port), sender.vlan)
        ping = Ethernet(GATEWAY_MAC, sender.mac, 0x0800, ipv4(sender.ip, sender.gateway, icmp(8, b"x")))
        for asked in (ping.build(), arp_request(sender.mac, sender.ip, sender.gateway)):
            for delivery in self.send(sender, asked):
                assert [(s, p, parse(f).vlan or 0) for s, p, f in delivery.arrivals] == [back]
                assert parse(delivery.arrivals[0][2]).src == GATEWAY_MAC
        for other in self.members:
            if other.ip != sender.ip:
                self._asks_for(sender, other.ip, back)
        own = Ethernet(GATEWAY_MAC, sender.mac, 0x0800, ipv4(sender.ip, REDS.gateway, icmp(8, b"x"))).build()
        for delivery in self.send(sender, own):  # Also where it is no gateway of its subnet.
            assert {(s, p, parse(f).vlan or 0) for s, p, f in delivery.arrivals} <= {back}

    def _asks_for(self, sender: Member, asked: IPv4Address, back: tuple[str, int, int]) -> None:
        net, holder = self.world.net, self.holder(sender.vrf, asked)
        is_neighbour = holder is not None and holder.place == sender.place and holder.vm != sender.vm
        for delivery in self.send(sender, arp_request(sender.mac, sender.ip, asked)):
            macs = []
            for switch, port, frame in delivery.arrivals:
                assert (switch, port, parse(frame).vlan or 0) == back
                macs.append(parse_arp(parse(frame).payload).sha)
            for switch, _, port, frame in delivery.to_controller:
                question, vrf = parse_arp(parse(frame).payload), net.vrf_at(switch, port, parse(frame).src)
                self._is_of(sender, switch, port, frame)
                assert (vrf, parse(frame).vlan) == (sender.vrf, None)
                nic = net.nic_at(switch, port, parse(frame).src)
                macs += filter(None, [arp.answer_to_vm(net, switch, nic, question, GATEWAY_MAC)])
            if not is_neighbour:
                assert macs == []
                continue
            assert holder is not None
            moves = len(self.may_arrive[holder.vm]) > 1
            assert macs in ([holder.mac], [GATEWAY_MAC]) or (moves and not macs)

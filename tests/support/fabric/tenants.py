"""Tenants with the same addresses: what must hold between the NICs of several VRFs, in every state."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from retinue.core.model import (
    DEFAULT_VRF,
    IP,
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
from retinue.core.packets import Ethernet, arp_request, parse, parse_arp
from retinue.core.pipeline.entry import Entry, Field, Flow, PopVlan, PushVlan
from retinue.core.pipeline.matches import PRIORITY_TAG
from retinue.core.pipeline.priorities import VRF_BAND
from retinue.core.pipeline.responders import arp
from retinue.core.pipeline.tables import Table
from support.fabric import ways_out
from support.fabric.ipv6 import OUTSIDE6, udp6_frame
from support.fabric.networks import GATEWAY, GATEWAY6, GATEWAY_MAC, add_ipv6, vm_ip, vm_mac, vm_port
from support.fabric.prefixes import udp
from support.fabric.sample_frames import icmp, ipv4
from support.fabric.world import OUTSIDE, FabricWorld, tagged, udp_frame
from support.fakes.switch import Delivery

TAGS = {DEFAULT_VRF: 0, "red": 7, "green": 4094}
ROUTER_PORT, DHCP_PORT = 91, 90
BESIDE = IPv4Network("10.9.0.0/24")
"""Another subnet of a tenant's VRF; the default VRF has none of this prefix."""


def vnet_of(vrf: str, beside: bool = False) -> str:
    return ("" if vrf == DEFAULT_VRF else f"{vrf}net") + ("-2" if beside else "")


def add_tenants(net: Network, ipv6: bool = False) -> None:
    """VRFs with the VMs' own prefix, and another one, each with a gateway."""
    if ipv6:
        add_ipv6(net)
    for vrf in ("red", "green"):
        add_tenant(net, vrf, ipv6)


def add_tenant(net: Network, vrf: str, ipv6: bool = False) -> None:
    net.put_vrf(Vrf(vrf, TAGS[vrf]))
    net.put_vnet(Vnet(vnet_of(vrf), vrf=vrf))
    net.put_vnet(Vnet(vnet_of(vrf, True), vrf=vrf))
    net.add_subnet(Subnet(f"{vrf}blue", IPv4Network("10.1.0.0/24"), GATEWAY, vnet=vnet_of(vrf)))
    beside = IPv4Address("10.9.0.254")
    net.add_subnet(Subnet(f"{vrf}beside", BESIDE, beside, vnet=vnet_of(vrf, True)))
    if ipv6:
        six = IPv6Network("fd00:1::/64")
        net.add_subnet(Subnet(f"{vrf}blue6", six, GATEWAY6, vnet=vnet_of(vrf), slaac=True))


@dataclass(frozen=True)
class Held:
    """A NIC and its addresses: the MAC and port tell its number, the addresses tell nothing of it."""

    number: int
    vm: str
    vrf: str
    ip: IPv4Address
    ip6: IPv6Address | None = None
    prefix: IPv4Network | None = None
    """Routed to it."""
    delegated: IPv6Network | None = None
    """The same, by a lease of DHCPv6."""

    @property
    def mac(self) -> str:
        return vm_mac(self.number)

    def __contains__(self, ip: object) -> bool:
        return ip in self.addresses or any(ip in one for one in (self.prefix, self.delegated) if one)

    @property
    def addresses(self) -> list[IP]:
        """Those it has, and one of each prefix."""
        found: list[IP] = [self.ip, *([] if self.ip6 is None else [self.ip6])]
        return [*found, *(one[5] for one in (self.prefix, self.delegated) if one is not None)]


def address(number: int, beside: bool = False) -> IPv4Address:
    return BESIDE.network_address + number if beside else vm_ip(number)


def add_vm(net: Network, id: str, at: int, nics: list[Held]) -> VM:
    """A VM with these NICs, plugged in and bound."""
    made = []
    for index, one in enumerate(nics, 1):
        vnet = vnet_of(one.vrf, one.ip in BESIDE)
        prefixes = () if one.prefix is None else (one.prefix,)
        made.append(NIC(one.mac, port_id_of(id, index), vnet=vnet, slot=index, prefixes=prefixes))
    vm = VM(id, tuple(made), f"server{at}")
    net.put_vm(vm)
    for nic, one in zip(made, nics, strict=True):
        net.set_vm_port(nic.port_id, f"edge{at}", VMPort(vm_port(one.number)))
        for ip in (one.ip, one.ip6):
            if ip is not None:
                held = Assignment(ip, one.mac, id, BindingKind.DYNAMIC, Origin.CONTROLLER, 1e10, vrf=one.vrf)
                net.assign(held)
        if one.delegated is not None:
            net.assign(replace(held, ip=one.delegated.network_address, prefix=one.delegated))
    return vm


@dataclass
class Tenants:
    """The NICs of a world, and where each is."""

    world: FabricWorld = field(repr=False)
    nics: list[Held]
    at: dict[str, int]
    """By VM: the server it runs on."""
    may_arrive: dict[str, Collection[int]]
    """By VM: the servers where what is for it may come."""

    def check(self) -> None:
        for sender in self.nics:
            for receiver in self.nics:
                self._reaches(sender, receiver)
                self._spoofs(sender, receiver)
            self._stays_inside(sender)
            self._asks(sender)
        self._from_outside()
        for way in ways_out.exits(self.world.net):
            self._from_its_router(way)

    def holder(self, vrf: str, ip: IPv4Address | IPv6Address) -> Held | None:
        found = [one for one in self.nics if one.vrf == vrf and ip in one]
        return found[0] if found else None

    def send(self, sender: Held, frame: bytes) -> list[Delivery]:
        edge = f"edge{self.at[sender.vm]}"
        found = self.world.fabric.all_paths(edge, vm_port(sender.number), frame)
        for delivery in found:
            self._is_unmarked(delivery)
        return found

    def reach(self, sender: Held, receiver: Held) -> list[Delivery]:
        """What becomes of a packet by the gateway."""
        return self.send(sender, udp_frame(sender.mac, GATEWAY_MAC, sender.ip, receiver.ip))

    def _is_unmarked(self, delivery: Delivery) -> None:
        """No tag of the fabric's own is ever seen where it leaves the fabric."""
        exits = {(one.switch, one.port) for one in ways_out.exits(self.world.net)}
        for switch, port, frame in delivery.arrivals:
            if (switch, port) not in exits:
                assert parse(frame).vlan is None, f"a tag comes out of {switch} port {port}"

    def _reaches(self, sender: Held, receiver: Held) -> None:
        """What is sent to an address comes to who has it in the sender's VRF, by whichever MAC it is sent."""
        wanted = self.holder(sender.vrf, receiver.ip)
        for mac in (*self.world.net.gateway_macs, receiver.mac):
            if receiver == sender or wanted == sender:
                continue
            frames = [udp_frame(sender.mac, mac, sender.ip, receiver.ip)]
            if sender.ip6 is not None and receiver.ip6 is not None:
                frames.append(udp6_frame(sender.mac, mac, sender.ip6, receiver.ip6))
            for frame in frames:
                for delivery in self.send(sender, frame):
                    if sender.vrf == DEFAULT_VRF and receiver.ip in BESIDE:
                        # To the default VRF that prefix is somewhere outside.
                        assert {port for _, port, _ in delivery.arrivals} == {ROUTER_PORT}
                    else:
                        self._comes_to(delivery, wanted)

    def _comes_to(self, delivery: Delivery, wanted: Held | None) -> None:
        if wanted is None:
            assert not delivery.arrivals, f"delivered: {delivery}"
            return
        self.world.comes(delivery, wanted.number, self.may_arrive[wanted.vm])

    def _spoofs(self, sender: Held, victim: Held) -> None:
        """Nobody sends under another's address or MAC, of whichever VRF; nor by a tag as if in another."""
        claims = [(victim.mac, victim.ip), (victim.mac, sender.ip), (sender.mac, victim.ip)]
        if victim.prefix is not None:
            claims.append((sender.mac, victim.prefix[5]))
        if victim.delegated is not None and victim.delegated[5] not in sender:
            forged = udp(sender.mac, GATEWAY_MAC, victim.delegated[5], OUTSIDE6)
            self._is_reported(sender, forged)
        for mac, ip in claims:
            if mac == sender.mac and ip in sender:
                continue
            for dst_mac, dst in ((GATEWAY_MAC, OUTSIDE), (victim.mac, victim.ip)):
                self._is_reported(sender, udp_frame(mac, dst_mac, ip, dst))
            self._is_reported(sender, arp_request(mac, ip, GATEWAY))
        for tag in filter(None, TAGS.values()):  # A priority tag says nothing, and is taken off.
            for src in (sender, victim):
                self._is_reported(sender, tagged(udp_frame(src.mac, victim.mac, src.ip, victim.ip), tag))
                self._is_reported(sender, tagged(udp_frame(src.mac, GATEWAY_MAC, src.ip, victim.ip), tag))

    def _is_reported(self, sender: Held, frame: bytes) -> None:
        self.world.is_reported_spoofed(sender.number, self.at[sender.vm], frame)

    def _stays_inside(self, sender: Held) -> None:
        """A tenant reaches nothing outside but by its VRF's own router, and no server of the default VRF."""
        if sender.vrf == DEFAULT_VRF:
            return
        way = ways_out.exit_of(self.world.net, sender.vrf)
        # By its own router goes what has an address that in the default VRF is a server's, too.
        servers = [s.address for s in self.world.net.servers.values() if s.address is not None]
        far = [ip for ip in servers if self.world.net.subnet_of(ip, sender.vrf) is None]
        for src in sender.addresses:
            for dst in (*ways_out.outsides(src), *(ip for ip in far if ip.version == src.version)):
                for delivery in self.send(sender, udp(sender.mac, GATEWAY_MAC, src, dst)):
                    ways_out.goes_out(delivery, way)
        for nobody in (*(ip for ip in servers if ip not in far), IPv4Address("10.1.0.250")):
            for delivery in self.send(sender, udp(sender.mac, GATEWAY_MAC, sender.ip, nobody)):
                assert not delivery.arrivals, f"{sender} reaches {nobody}: {delivery}"

    def _from_its_router(self, way: ways_out.Exit) -> None:
        """From outside each of the VRF is reached, and nobody else; and nobody is pretended to be."""
        inside = [one for one in self.nics if one.vrf == way.of.vrf]
        for one in inside:
            for ip in one.addresses:
                for src in ways_out.outsides(ip):
                    for delivery in self.world.fabric.all_paths(way.switch, way.port, way.frame(src, ip)):
                        self._is_unmarked(delivery)
                        self._comes_to(delivery, one)
            ways_out.is_guarded(self.world, way, one.addresses, [])
        strangers = [other.ip for other in self.nics if self.holder(way.of.vrf, other.ip) is None]
        for ip in strangers:
            for delivery in self.world.fabric.all_paths(way.switch, way.port, way.frame(OUTSIDE, ip)):
                assert not delivery.arrivals, f"delivered: {delivery}"
        ways_out.asks_for_its_gateways(self.world, way)

    def _asks(self, sender: Held) -> None:
        """Its own gateways answer it, and its VRF's neighbours are found; nobody of another's."""
        mine, other = (
            (GATEWAY, IPv4Address("10.9.0.254"))
            if sender.ip not in BESIDE
            else (IPv4Address("10.9.0.254"), GATEWAY)
        )
        gateways = [mine] if sender.vrf == DEFAULT_VRF else [mine, other]
        gateway_mac = self.world.net.gateway_mac_of(
            self.world.net.server_of_edge(f"edge{self.at[sender.vm]}")
        )
        back = (f"edge{self.at[sender.vm]}", vm_port(sender.number))
        for gateway in gateways:
            ping = Ethernet(GATEWAY_MAC, sender.mac, 0x0800, ipv4(sender.ip, gateway, icmp(8, b"x"))).build()
            for delivery in self.send(sender, ping):
                assert [arrival[:2] for arrival in delivery.arrivals] == [back]
        for delivery in self.send(sender, arp_request(sender.mac, sender.ip, mine)):
            [(switch, port, answer)] = delivery.arrivals
            assert (switch, port) == back
            assert parse_arp(parse(answer).payload).sha == gateway_mac
        for asked in {one.ip for one in self.nics} - {sender.ip}:
            self._asks_for(sender, asked, gateway_mac)

    def _asks_for(self, sender: Held, asked: IPv4Address, gateway_mac: str) -> None:
        holder = self.holder(sender.vrf, asked)
        neighbour = holder is not None and (asked in BESIDE) == (sender.ip in BESIDE)
        for delivery in self.send(sender, arp_request(sender.mac, sender.ip, asked)):
            macs = [parse_arp(parse(frame).payload).sha for *_, frame in delivery.arrivals]
            for switch, _, port, frame in delivery.to_controller:
                question, vrf = parse_arp(parse(frame).payload), self.world.net.vrf_at(switch, port)
                assert vrf == sender.vrf
                if arp.answers_vm(self.world.net, switch, question, vrf):
                    macs.append(gateway_mac)
            if not neighbour:
                assert macs == []
                continue
            assert holder is not None
            moves = len(self.may_arrive[holder.vm]) > 1
            assert macs in ([holder.mac], [gateway_mac]) or (moves and not macs)
            if macs == [holder.mac]:
                assert self.at[sender.vm] in self.may_arrive[holder.vm]

    def _from_outside(self) -> None:
        """The router reaches who is in the default VRF, and by a tag nobody; so does a DHCP server's host."""
        router, dhcp = self.world.net.servers["router"], self.world.net.servers["dhcp"]
        assert router.given_at is not None
        for receiver in self.nics:
            frame = udp_frame(router.mac, GATEWAY_MAC, OUTSIDE, receiver.ip)
            wanted = self.holder(DEFAULT_VRF, receiver.ip)
            if receiver.ip in BESIDE:
                continue
            for delivery in self.world.fabric.all_paths(router.given_at.switch, ROUTER_PORT, frame):
                self._comes_to(delivery, wanted)
            for port, server in ((ROUTER_PORT, router), (DHCP_PORT, dhcp)):
                assert isinstance(server.address, IPv4Address)
                mine = {one.vlan for one in server.subinterfaces}
                for tag in (tag for tag in (0, *TAGS.values()) if not tag or tag not in mine):
                    for src in (OUTSIDE, server.address, receiver.ip):
                        for mac in (GATEWAY_MAC, *self._server_macs(), receiver.mac):
                            odd = tagged(udp_frame(server.mac, mac, src, receiver.ip), tag)
                            self._goes_nowhere(router.given_at.switch, port, odd)

    def _goes_nowhere(self, switch: str, port: int, frame: bytes) -> None:
        for delivery in self.world.fabric.all_paths(switch, port, frame):
            assert not delivery.arrivals, f"delivered: {delivery}"

    def _server_macs(self) -> Iterator[str]:
        return (f"02:00:00:00:00:{n:02x}" for n in sorted(set(self.at.values())))


def is_of_a_vrf(entry: Entry) -> bool:
    """True for an entry that puts, takes or matches a tag, or stands in the band of the VRFs."""
    if not isinstance(entry, Flow):
        return False
    in_band = entry.priority >= VRF_BAND
    assert not in_band or entry.table not in (Table.ADMIT, Table.SERVERS)
    tags = [(value, mask) for field, value, mask in entry.match if field is Field.VLAN_VID and value]
    if tags == [(PRIORITY_TAG, None)]:
        return False
    matched = bool(tags)
    assert matched or not in_band
    return in_band or matched or any(isinstance(action, PushVlan | PopVlan) for action in entry.actions)

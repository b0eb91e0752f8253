"""NICs in vnets that flood, in others, and in none: who gets what one of them sends to a group."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from retinue.core.model import (
    DEFAULT_VRF,
    NIC,
    VM,
    Assignment,
    BindingKind,
    Flood,
    Network,
    Origin,
    Subnet,
    VMPort,
    Vnet,
    Vrf,
    port_id_of,
)
from retinue.core.model.link_local import link_local
from retinue.core.packets import BROADCAST, dhcp_frame, discover, parse
from retinue.core.pipeline.cookies import SPOOF_ATTEMPTS, reason_of
from support.fabric.ipv6 import udp6_frame
from support.fabric.networks import UPLINK, vm_mac, vm_port
from support.fabric.world import EVERYWHERE, NOWHERE, FabricWorld, tagged, udp_frame
from support.fakes.switch import Delivery

VNETS = {
    "": Vnet("default"),
    "shop": Vnet("shop", 42, flood=Flood.CONTROLLED),
    "store": Vnet("store", 43, flood=Flood.CONTROLLED),
    "quiet": Vnet("quiet", 44),
    # Its VLAN is the tag of its own VRF, which has the addresses of the vnet `shop`.
    "reds": Vnet("reds", 7, vrf="red", flood=Flood.CONTROLLED),
}
PREFIXES = {
    "": IPv4Network("10.1.0.0/24"),
    "shop": IPv4Network("10.2.0.0/24"),
    "store": IPv4Network("10.3.0.0/24"),
    "quiet": IPv4Network("10.4.0.0/24"),
    "reds": IPv4Network("10.2.0.0/24"),
}
MDNS, MDNS6 = IPv4Address("224.0.0.251"), IPv6Address("ff02::fb")
GROUP_MAC, GROUP_MAC6 = "01:00:5e:00:00:fb", "33:33:00:00:00:fb"


def add_vnets(net: Network, ipv6: bool) -> None:
    net.put_vrf(Vrf("red", 7))
    for id, vnet in VNETS.items():
        if not id:
            continue
        net.put_vnet(vnet)
        prefix = PREFIXES[id]
        net.add_subnet(Subnet(id, prefix, prefix.broadcast_address - 1, vnet=id))
        if ipv6:
            six = IPv6Network(f"fd00:{vnet.vlan}::/64")
            net.add_subnet(Subnet(f"{id}6", six, six[0xFE], vnet=id, slaac=True))


@dataclass(frozen=True)
class Member:
    """A NIC: the MAC and port tell its number, the address its vnet."""

    number: int
    vm: str
    vnet: str

    @property
    def mac(self) -> str:
        return vm_mac(self.number)

    @property
    def ip(self) -> IPv4Address:
        return PREFIXES[self.vnet][100 + self.number]

    @property
    def floods(self) -> bool:
        return VNETS[self.vnet].floods


def add_vm(net: Network, id: str, at: int, members: list[Member]) -> VM:
    """A VM with these NICs, plugged in and bound."""
    nics = tuple(
        NIC(one.mac, port_id_of(id, index), vnet=one.vnet, slot=index) for index, one in enumerate(members, 1)
    )
    vm = VM(id, nics, f"server{at}")
    net.put_vm(vm)
    for nic, one in zip(nics, members, strict=True):
        net.set_vm_port(nic.port_id, f"edge{at}", VMPort(vm_port(one.number)))
        vrf = VNETS[one.vnet].vrf if one.vnet else DEFAULT_VRF
        held = (BindingKind.DYNAMIC, Origin.CONTROLLER, 1e10)
        net.assign(Assignment(one.ip, one.mac, id, *held, vrf=vrf))
    return vm


@dataclass
class Flooded:
    """The NICs of a world, and where each is."""

    world: FabricWorld = field(repr=False)
    members: list[Member] = field(repr=False)
    at: dict[str, int]
    """By VM: the server it runs on."""
    gets_at: dict[str, tuple[set[int], set[int]]]
    """By VM: the servers where each copy for it comes, and those where one may come."""
    ipv6: bool

    def check(self) -> None:
        for sender in self.members:
            for frame in self._honest(sender):
                for delivery in self._send(sender, frame):
                    self._comes_to_all(sender, frame, delivery)
            self._spoofs(sender)
        self._from_elsewhere()

    def _honest(self, sender: Member) -> Iterator[bytes]:
        """What a NIC may send to all."""
        directed = PREFIXES[sender.vnet].broadcast_address
        for mac, dst in ((GROUP_MAC, MDNS), (BROADCAST, EVERYWHERE), (BROADCAST, directed)):
            yield udp_frame(sender.mac, mac, sender.ip, dst)
        if self.ipv6:
            yield udp6_frame(sender.mac, GROUP_MAC6, link_local(sender.mac), MDNS6)

    def _send(self, sender: Member, frame: bytes) -> list[Delivery]:
        return self.world.fabric.all_paths(f"edge{self.at[sender.vm]}", vm_port(sender.number), frame)

    def _comes_to_all(self, sender: Member, frame: bytes, delivery: Delivery) -> None:
        came = [(switch, port) for switch, port, _ in delivery.arrivals]
        assert len(set(came)) == len(came), f"twice to one port: {delivery}"
        assert not delivery.to_controller
        must: set[tuple[str, int]] = set()
        may: set[tuple[str, int]] = set()
        for one in self.members:
            if sender.floods and one.vnet == sender.vnet and one != sender:
                each, some = self.gets_at[one.vm]
                must |= {(f"edge{at}", vm_port(one.number)) for at in each}
                may |= {(f"edge{at}", vm_port(one.number)) for at in each | some}
        assert must <= set(came) <= may, f"{sender} reaches {came}, not {must}"
        for switch, _, got in delivery.arrivals:
            server = self.world.net.server_of_edge(switch)
            assert server is not None
            assert got[:6] == frame[:6] and got[12:] == frame[12:], "it is changed"
            assert parse(got).src in (sender.mac, server.mac)

    def _spoofs(self, sender: Member) -> None:
        """Nobody sends to all under another's address or MAC, nor by a tag; nothing else is replicated."""
        for other in self.members:
            if other == sender:
                continue
            for mac, ip in ((other.mac, other.ip), (sender.mac, other.ip), (other.mac, sender.ip)):
                if (mac, ip) != (sender.mac, sender.ip):
                    self._is_reported(sender, udp_frame(mac, GROUP_MAC, ip, MDNS))
            if self.ipv6:
                self._is_reported(sender, udp6_frame(sender.mac, GROUP_MAC6, link_local(other.mac), MDNS6))
            # To one alone, by the MAC of all.
            self._goes_nowhere(sender, udp_frame(sender.mac, BROADCAST, sender.ip, other.ip))
        for vnet in VNETS.values():
            if vnet.vlan:
                self._is_reported(
                    sender, tagged(udp_frame(sender.mac, GROUP_MAC, sender.ip, MDNS), vnet.vlan)
                )
        asked = dhcp_frame(discover(sender.mac, 7), sender.mac, BROADCAST, NOWHERE, EVERYWHERE, 68, 67)
        self._goes_nowhere(sender, asked)

    def _is_reported(self, sender: Member, frame: bytes) -> None:
        for delivery in self._send(sender, frame):
            assert not delivery.arrivals, f"delivered: {delivery}"
            assert [reason_of(cookie) in SPOOF_ATTEMPTS for _, cookie, _, _ in delivery.to_controller] == [
                True
            ]

    def _goes_nowhere(self, sender: Member, frame: bytes) -> None:
        for delivery in self._send(sender, frame):
            assert not delivery.arrivals, f"delivered: {delivery}"

    def _from_elsewhere(self) -> None:
        """A router and a DHCP server's host send into no vnet, with its tag or without."""
        net = self.world.net
        router, dhcp = net.servers["router"], net.servers["dhcp"]
        assert router.given_at is not None
        places = [(router.given_at.switch, 91, router.mac), (router.given_at.switch, 90, dhcp.mac)]
        for switch, port, mac in places:
            for tag in (0, *(vnet.vlan for vnet in VNETS.values() if vnet.vlan)):
                for src in (PREFIXES["shop"][101], IPv4Address("10.0.0.1")):
                    frame = udp_frame(mac, GROUP_MAC, src, MDNS)
                    odd = tagged(frame, tag) if tag else frame
                    for delivery in self.world.fabric.all_paths(switch, port, odd):
                        assert not delivery.arrivals, f"delivered: {delivery}"
        # What comes to an edge untagged, or to a vnet that does not flood, goes to no VM.
        for at in sorted({place for each, _ in self.gets_at.values() for place in each}):
            frame = udp_frame(router.mac, GROUP_MAC, PREFIXES["shop"][101], MDNS)
            for odd in (frame, tagged(frame, VNETS["quiet"].vlan)):
                for delivery in self.world.fabric.all_paths(f"edge{at}", UPLINK, odd):
                    assert not delivery.arrivals

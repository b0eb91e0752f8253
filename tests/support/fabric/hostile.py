"""Frames that somebody who means harm would send from vm1's port: each reaches nobody.

Vm1 has a second NIC; a neighbour, vm3, may be on the same edge, with nothing but that edge's entries between.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from retinue.core.model import Mac
from retinue.core.model.link_local import ALL_NODES, ALL_ROUTERS, UNSPECIFIED, group_mac
from retinue.core.packets import ARP, BROADCAST, ZERO_MAC, Ethernet, EtherType, build_ipv6, upper_checksum
from retinue.core.pipeline.cookies import Reason
from support.fabric.ipv6 import (
    GATEWAY_LOCAL,
    NOTHING_OF_NOTE,
    OUTSIDE6,
    advertises,
    extended,
    fragment,
    frame6,
    udp6,
    vm_ip6,
    vm_local,
)
from support.fabric.networks import GATEWAY, GATEWAY6, GATEWAY_MAC, NICS_APART, vm_ip, vm_mac
from support.fabric.sample_frames import ICMP4, ipv4, udp
from support.fabric.world import OUTSIDE, tagged, udp_frame

MAC, OTHER = vm_mac(1), vm_mac(3)
OWN, ITS, OF_OWN_OTHER_NIC = vm_ip6(1), vm_ip6(3), vm_ip6(1 + NICS_APART)
HONEST = udp_frame(MAC, GATEWAY_MAC, vm_ip(1), OUTSIDE)
ROUTER_ALERT = (0, b"\0\5\2\0\0\1\0")
SOURCE_ROUTE = (43, b"\2\0\1" + bytes(4) + ITS.packed)
AUTHENTICATED = (51, b"\4" + bytes(22))


def icmp6(src: IPv6Address, dst: IPv6Address, kind: int, rest: bytes, hops: int = 255) -> bytes:
    data = bytes((kind, 0, 0, 0)) + rest
    found = upper_checksum(src, dst, 58, data).to_bytes(2, "big")
    return build_ipv6(src, dst, 58, data[:2] + found + data[4:], hops)


def from_(src: IPv6Address, dst: IPv6Address = OUTSIDE6) -> bytes:
    return frame6(MAC, GATEWAY_MAC, udp6(src, dst))


def in_ipv4(change: slice, to: bytes) -> bytes:
    packet = bytearray(ipv4(vm_ip(1), OUTSIDE, udp(b"x" * 40)))
    packet[change] = to
    return Ethernet(GATEWAY_MAC, MAC, EtherType.IPV4, bytes(packet)).build()


def says_by_arp(op: int, ip: IPv4Address, to: Mac, for_mac: Mac, for_ip: IPv4Address) -> bytes:
    return Ethernet(to, MAC, EtherType.ARP, ARP(op, MAC, ip, for_mac, for_ip).build()).build()


def reported() -> Iterator[tuple[str, Reason, bytes]]:
    advertised = advertises(vm_local(1), MAC).build()
    for name, headers in (
        ("behind a router alert", (ROUTER_ALERT,)),
        ("behind many options", (NOTHING_OF_NOTE,) * 5),
        ("behind an authentication header", (AUTHENTICATED,)),
        ("behind a source route", (SOURCE_ROUTE,)),
        ("in a fragment that is whole", (fragment(0, False),)),
        ("in a fragment of a fragment", (fragment(0, False), fragment(0, False))),
    ):
        frame = frame6(MAC, group_mac(ALL_NODES), extended(advertised, *headers))
        yield f"router advertisement {name}", Reason.SPOOFED_ND, frame
    for source, address in (
        ("IPv4-mapped", IPv6Address("::ffff:10.1.0.101")),
        ("multicast", IPv6Address("ff02::1")),
        ("loopback", IPv6Address("::1")),
        ("of the subnet, and nobody's", IPv6Address("fd00:1::9999")),
        ("the subnet-router anycast address", IPv6Address("fd00:1::")),
        ("the gateway's", GATEWAY6),
        ("the gateway's link-local one", GATEWAY_LOCAL),
        ("that of the VM's own other NIC", OF_OWN_OTHER_NIC),
    ):
        yield f"source {source}", Reason.SPOOFED_IP, from_(address)
    packet = udp6(OWN, OUTSIDE6)
    yield "IPv6 that says it is IPv4", Reason.SPOOFED_IP, Ethernet(GATEWAY_MAC, MAC, 0x0800, packet).build()
    yield (
        "longer than its frame",
        Reason.SPOOFED_ND,
        frame6(MAC, GATEWAY_MAC, packet[:4] + b"\5\0" + packet[6:]),
    )
    yield "IPv4 header of 16 bytes", Reason.SPOOFED_IP, in_ipv4(slice(0, 1), b"\x44")
    yield (
        "ARP of a MAC of 8 bytes",
        Reason.SPOOFED_ARP,
        (Ethernet(BROADCAST, MAC, 0x0806, b"\0\1\x08\0\x08\x04\0\1" + bytes(30)).build()),
    )
    yield "ARP: the gateway is here", Reason.SPOOFED_ARP, says_by_arp(2, GATEWAY, OTHER, OTHER, vm_ip(3))
    yield (
        "gratuitous ARP of the gateway",
        Reason.SPOOFED_ARP,
        says_by_arp(1, GATEWAY, BROADCAST, ZERO_MAC, GATEWAY),
    )
    for mac in ("01:00:5e:00:00:05", ZERO_MAC, "02:00:00:00:00:02"):
        yield f"from MAC {mac}", Reason.SPOOFED_MAC, udp_frame(mac, GATEWAY_MAC, vm_ip(1), OUTSIDE)


def quiet() -> Iterator[tuple[str, bytes]]:
    yield "two tags without a VLAN", tagged(tagged(HONEST, 0), 0)
    yield "a tag behind one without a VLAN", tagged(tagged(HONEST, 5), 0)
    joined = bytes((0, 0, 0, 1, 4, 0, 0, 0)) + IPv6Address("ff02::1:ff00:1").packed
    report = icmp6(vm_local(1), IPv6Address("ff02::16"), 143, joined, 1)
    yield "MLD report", frame6(MAC, group_mac(IPv6Address("ff02::16")), extended(report, ROUTER_ALERT))
    asked = icmp6(vm_local(1), ALL_NODES, 130, bytes(20), 1)
    yield "MLD query", frame6(MAC, group_mac(ALL_NODES), extended(asked, ROUTER_ALERT))
    left = icmp6(UNSPECIFIED, ALL_ROUTERS, 132, bytes(20), 1)
    yield "MLD done from nobody", frame6(MAC, group_mac(ALL_ROUTERS), extended(left, ROUTER_ALERT))
    for name, dst in (
        ("subnet-router anycast", IPv6Address("fd00:1::")),
        ("a group, by the gateway's MAC", IPv6Address("ff0e::5")),
        ("IPv4-mapped", IPv6Address("::ffff:10.1.0.103")),
    ):
        yield f"to {name}", from_(OWN, dst)
    yield "to outside, by a group's MAC", frame6(MAC, group_mac(ALL_NODES), udp6(OWN, OUTSIDE6))
    yield "to a neighbour, by all's MAC", udp_frame(MAC, BROADCAST, vm_ip(1), vm_ip(3))
    yield "to a neighbour, by a group's MAC", udp_frame(MAC, "01:00:5e:00:00:01", vm_ip(1), vm_ip(3))
    yield "hop limit 0", frame6(MAC, GATEWAY_MAC, udp6(OWN, OUTSIDE6, hop_limit=0))
    dead = ipv4(vm_ip(1), OUTSIDE, (ICMP4, bytes(16)), ttl=0)
    yield "TTL 0", Ethernet(GATEWAY_MAC, MAC, 0x0800, dead).build()
    for name, to, kind in (
        ("spanning tree", "01:80:c2:00:00:00", 0x0027),
        ("LLDP", "01:80:c2:00:00:0e", 0x88CC),
        ("EAPOL", "01:80:c2:00:00:03", 0x888E),
        ("PPPoE", BROADCAST, 0x8863),
        ("MACsec", OTHER, 0x88E5),
    ):
        yield name, Ethernet(to, MAC, kind, bytes(40)).build()
    relayed = udp6(vm_local(1), IPv6Address("ff02::1:2"), sport=547, dport=547)
    yield "DHCPv6, as a relay", frame6(MAC, group_mac(IPv6Address("ff02::1:2")), relayed)


REPORTED = list(reported())
"""Each with a name, and as what it is reported."""
QUIET = list(quiet())
"""What is dropped, and nobody is told of."""

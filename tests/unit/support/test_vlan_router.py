"""The labs' router by a VLAN: its answers are such as scapy finds right."""

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from support.lab.vlan_router import answer

VM, ROUTER = "00:00:de:ad:be:ef", "02:00:00:00:00:e1"
ASKED: list[tuple[Packet, type[Packet]]] = [
    (IP(src="10.1.0.50", dst="203.0.113.9") / ICMP(id=7, seq=3), ICMP),
    (IPv6(src="fd00:1::50", dst="2001:db8::9") / ICMPv6EchoRequest(id=7, seq=3), ICMPv6EchoReply),
]


@pytest.mark.parametrize(("asked", "kind"), ASKED, ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("data", [b"", b"x", b"hello" * 20, b"\xff" * 64])
def test_a_ping_is_answered_in_its_family(asked: Packet, kind: type[Packet], data: bytes) -> None:
    frame = Ether(bytes(Ether(src=VM, dst=ROUTER) / asked / data))
    said = answer(bytes(frame), 100)
    assert said is not None
    found = Ether(said)
    ours, theirs = frame.payload, found[Dot1Q].payload
    assert (found.src, found.dst, found[Dot1Q].vlan) == (ROUTER, VM, 100)
    assert (theirs.src, theirs.dst, theirs[kind].id, theirs[kind].seq) == (ours.dst, ours.src, 7, 3)
    again = found.copy()  # scapy computes anew what is left out.
    was = again[kind].chksum if kind is ICMP else again[kind].cksum
    again[kind].delfieldval("chksum" if kind is ICMP else "cksum")
    anew = Ether(bytes(again))[kind]
    assert was == (anew.chksum if kind is ICMP else anew.cksum)
    assert bytes(theirs[kind]).endswith(data)


def test_what_is_no_ping_is_not_answered() -> None:
    for other in (
        IP(dst="203.0.113.9") / UDP(),
        IPv6(dst="2001:db8::9") / ICMPv6EchoReply(),
        IP(dst="203.0.113.9") / ICMP(type=0),
    ):
        assert answer(bytes(Ether(src=VM, dst=ROUTER) / other / (b"x" * 40)), 100) is None

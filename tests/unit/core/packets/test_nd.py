"""scapy reads our neighbour discovery as what we mean, and we read scapy's, strictly."""

from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from retinue.core.model.link_local import (
    ALL_NODES,
    ALL_ROUTERS,
    UNSPECIFIED,
    group_mac,
    is_link_local,
    link_local,
    solicited_node,
)
from retinue.core.packets import (
    ND,
    FrameError,
    NDOptions,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    PrefixInformation,
    Redirect,
    RouterAdvertisement,
    RouterSolicitation,
    nd_frame,
    parse_ipv6,
    parse_nd,
    summarize,
)

VM, GATEWAY = "52:54:00:00:00:01", "00:00:de:ad:be:ef"
A, B = IPv6Address("fd00:1::5"), IPv6Address("fd00:1::6")
LL = link_local(GATEWAY)
GROUP = str(solicited_node(B))
ENDS = {"src": str(A), "dst": str(B), "hlim": 255}
SLL, TLL = ICMPv6NDOptSrcLLAddr(lladdr=VM), ICMPv6NDOptDstLLAddr(lladdr=VM)


def test_addresses_that_follow_from_others() -> None:
    assert link_local(VM) == IPv6Address("fe80::5054:ff:fe00:1")
    assert link_local(GATEWAY) == IPv6Address("fe80::200:deff:fead:beef")
    assert link_local("02:00:00:00:00:01") == IPv6Address("fe80::ff:fe00:1")
    assert solicited_node(IPv6Address("2001:db8::12:3456")) == IPv6Address("ff02::1:ff12:3456")
    assert group_mac(IPv6Address("ff02::1:ff12:3456")) == "33:33:ff:12:34:56"
    assert group_mac(ALL_NODES) == "33:33:00:00:00:01"
    assert is_link_local(LL)
    assert not is_link_local(A)


PREFIX = PrefixInformation(IPv6Network("fd00:1::/64"), True, True, 86400, 14400)
MESSAGES: list[tuple[ND, Any]] = [
    (
        ND(A, solicited_node(B), NeighbourSolicitation(B, NDOptions(source_mac=VM))),
        IPv6(src=str(A), dst=GROUP, hlim=255) / ICMPv6ND_NS(tgt=str(B)) / SLL,
    ),
    (
        ND(UNSPECIFIED, solicited_node(B), NeighbourSolicitation(B)),
        IPv6(src="::", dst=GROUP, hlim=255) / ICMPv6ND_NS(tgt=str(B)),
    ),
    (
        ND(A, B, NeighbourAdvertisement(A, True, True, True, NDOptions(target_mac=VM))),
        IPv6(**ENDS) / ICMPv6ND_NA(tgt=str(A), R=1, S=1, O=1) / TLL,
    ),
    (
        ND(A, ALL_NODES, NeighbourAdvertisement(A, override=True, options=NDOptions(target_mac=VM))),
        IPv6(src=str(A), dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=str(A), R=0, S=0, O=1) / TLL,
    ),
    (
        ND(link_local(VM), ALL_ROUTERS, RouterSolicitation(NDOptions(source_mac=VM))),
        IPv6(src=str(link_local(VM)), dst="ff02::2", hlim=255) / ICMPv6ND_RS() / SLL,
    ),
    (
        ND(
            LL,
            ALL_NODES,
            RouterAdvertisement(
                9000, 64, True, False, 3_600_000, 1000,
                NDOptions(source_mac=GATEWAY, mtu=1450, prefixes=(PREFIX,)),
            ),
        ),
        IPv6(src=str(LL), dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(
            chlim=64, M=1, O=0, prf=0, routerlifetime=9000, reachabletime=3_600_000, retranstimer=1000
        )
        / ICMPv6NDOptSrcLLAddr(lladdr=GATEWAY)
        / ICMPv6NDOptMTU(mtu=1450)
        / ICMPv6NDOptPrefixInfo(
            prefix="fd00:1::", prefixlen=64, L=1, A=1, validlifetime=86400, preferredlifetime=14400
        ),
    ),
    (
        ND(LL, A, Redirect(B, B, NDOptions(target_mac=VM))),
        IPv6(src=str(LL), dst=str(A), hlim=255) / ICMPv6ND_Redirect(tgt=str(B), dst=str(B)) / TLL,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs"), MESSAGES)
def test_both_mean_the_same(ours: ND, theirs: Any) -> None:
    assert parse_nd(bytes(theirs)) == ours
    assert ours.build() == bytes(theirs)


def test_a_frame_goes_to_the_groups_mac_or_to_one() -> None:
    asked, _ = MESSAGES[0]
    frame = Ether(nd_frame(asked, VM))
    assert (frame.dst, frame.src, frame.type) == (group_mac(solicited_node(B)), VM, 0x86DD)
    assert Ether(nd_frame(asked, VM, GATEWAY)).dst == GATEWAY


def altered(packet: Any, at: int, value: int) -> bytes:
    """The packet with one byte of its ICMPv6 message changed, and its checksum right again."""
    raw = bytearray(bytes(packet))
    raw[40 + at] = value
    raw[42:44] = b"\0\0"
    found = IPv6(bytes(raw))
    del found.payload.cksum
    return bytes(found)


NS, NA = MESSAGES[0][1], MESSAGES[2][1]
BAD: dict[str, tuple[Any, str]] = {
    "forwarded": (IPv6(src=str(A), dst=GROUP, hlim=254) / ICMPv6ND_NS(tgt=str(B)) / SLL, "it was forwarded"),
    "a code": (altered(NS, 1, 1), "code 1"),
    "a checksum": (bytes(NS)[:42] + b"\x12\x34" + bytes(NS)[44:], "checksum is wrong"),
    "no ND": (IPv6(**ENDS) / ICMPv6EchoRequest(), "type 128"),
    "no ICMPv6": (IPv6(**ENDS, nh=59), "protocol 59"),
    "cut short": (IPv6(**ENDS, nh=58) / Raw(b"\x87\0\0\0"), "shorter than 8"),
    "no target": (IPv6(**ENDS) / ICMPv6EchoRequest(type=136), "cut short"),
    "a group's target": (IPv6(**ENDS) / ICMPv6ND_NS(tgt="ff02::1"), "no host's"),
    "nobody's target": (IPv6(**ENDS) / ICMPv6ND_NA(tgt="::"), "no host's"),
    "from a group": (IPv6(src="ff02::1", dst=str(B), hlim=255) / ICMPv6ND_NS(tgt=str(B)), "no host's"),
    "a check that names a MAC": (
        IPv6(src="::", dst=GROUP, hlim=255) / ICMPv6ND_NS(tgt=str(B)) / SLL, "from nobody, with"
    ),
    "a check sent elsewhere": (IPv6(src="::", dst="ff02::1", hlim=255) / ICMPv6ND_NS(tgt=str(B)), "sent to"),
    "solicited, to all": (
        IPv6(src=str(A), dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=str(A), S=1), "somebody asked for it"
    ),
    "an answer from nobody": (
        IPv6(src="::", dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=str(A), S=0), "from nobody"
    ),
    "a router's global source": (IPv6(**ENDS) / ICMPv6ND_RA(), "not from a link-local"),
    "a redirect's global source": (IPv6(**ENDS) / ICMPv6ND_Redirect(tgt=str(B), dst=str(B)), "not from a"),
    "a MAC twice": (NS / SLL, "there twice"),
    "an option of no length": (IPv6(**ENDS) / ICMPv6ND_NS(tgt=str(B)) / Raw(bytes((9, *bytes(7)))), "0 by"),
    "an option too long": (IPv6(**ENDS) / ICMPv6ND_NS(tgt=str(B)) / Raw(bytes((9, 2)) + bytes(6)), "8 are"),
    "half an option": (IPv6(**ENDS) / ICMPv6ND_NS(tgt=str(B)) / Raw(b"\x01"), "1 are left"),
    "a long MAC": (IPv6(**ENDS) / ICMPv6ND_NS(tgt=str(B)) / Raw(bytes((1, 2)) + bytes(14)), "not 8"),
    "many options": (IPv6(**ENDS) / ICMPv6ND_NS(tgt=str(B)) / Raw((bytes((9, 1)) + bytes(6)) * 65), "64 opt"),
    "a short prefix option": (
        IPv6(src=str(LL), dst=str(B), hlim=255) / ICMPv6ND_RA() / Raw(bytes((3, 1)) + bytes(6)), "not 32"
    ),
    "a prefix of 129 bits": (
        IPv6(src=str(LL), dst=str(B), hlim=255) / ICMPv6ND_RA() / Raw(bytes((3, 4, 129)) + bytes(29)), "129"
    ),
    "behind a fragment header": (
        IPv6(src=str(A), dst=GROUP, hlim=255) / IPv6ExtHdrFragment(offset=0, m=0) / ICMPv6ND_NS(tgt=str(B)),
        "RFC 6980",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_a_receiver_must_ignore_is_rejected(name: str) -> None:
    packet, said = BAD[name]
    with pytest.raises(FrameError, match=said):
        parse_nd(bytes(packet))


def test_what_is_just_within_the_bounds_is_read() -> None:
    """64 options, the prefix of one address; and a router advertisement that is a byte too short is not."""
    most = IPv6(**ENDS) / ICMPv6ND_NS(tgt=str(B)) / Raw((bytes((9, 1)) + bytes(6)) * 64)
    assert parse_nd(bytes(most)).message == NeighbourSolicitation(B)
    from_router = IPv6(src=str(LL), dst=str(B), hlim=255)
    longest = parse_nd(bytes(from_router / ICMPv6ND_RA() / Raw(bytes((3, 4, 128)) + bytes(29)))).message
    assert isinstance(longest, RouterAdvertisement)
    assert [one.prefix.prefixlen for one in longest.options.prefixes] == [128]
    short = IPv6(src=str(LL), dst=str(B), hlim=255, nh=58) / Raw(b"\x86" + bytes(14))
    with pytest.raises(FrameError, match="shorter than 16"):
        parse_nd(with_checksum(bytes(short)))


def with_checksum(packet: bytes) -> bytes:
    """RFC 8200, 8.1, over a packet whose ICMPv6 message has none."""
    body = packet[40:]
    padded = packet[8:40] + len(body).to_bytes(4, "big") + bytes((0, 0, 0, 58)) + body + bytes(len(body) % 2)
    total = sum(int.from_bytes(padded[at : at + 2], "big") for at in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return packet[:42] + (total ^ 0xFFFF).to_bytes(2, "big") + packet[44:]


def test_extension_headers_are_passed_over() -> None:
    asked = ICMPv6ND_NS(tgt=str(B)) / SLL
    behind = IPv6(src=str(A), dst=GROUP, hlim=255) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / asked
    assert parse_nd(bytes(behind)) == MESSAGES[0][0]
    assert parse_ipv6(bytes(behind)).extensions == (0, 60)


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        (b"\x60" + bytes(38), "shorter than its header"),
        (b"\x45" + bytes(39), "IP version 4"),
        (bytes(IPv6(**ENDS, plen=9) / Raw(b"12345678")), "payload length 9"),
        (bytes(IPv6(**ENDS, nh=60) / Raw(b"\x3a\0\0\0")), "cut short"),
        (bytes(IPv6(**ENDS, nh=60) / Raw(b"\x3a\x01" + bytes(6))), "of 16 bytes, 8 are left"),
        (bytes(IPv6(**ENDS, nh=51) / Raw(b"\x3a\x01" + bytes(6))), "of 12 bytes, 8 are left"),
        (bytes(IPv6(**ENDS, nh=44) / Raw(b"\x3a\0\0\x01" + bytes(4))), "fragment"),
        (bytes(IPv6(**ENDS, nh=44) / Raw(b"\x3a\0\0\x08" + bytes(4))), "fragment"),
        (bytes(IPv6(**ENDS, nh=60) / Raw((b"\x3c\0" + bytes(6)) * 9)), "more than 8"),
        (bytes(IPv6(**ENDS, nh=60) / Raw(b"\0\0" + bytes(14))), "do not come first"),
    ],
)
def test_a_packet_that_cannot_be_read(packet: bytes, said: str) -> None:
    with pytest.raises(FrameError, match=said):
        parse_ipv6(packet)


def test_padding_is_no_part_of_a_packet() -> None:
    packet = bytes(IPv6(**ENDS, nh=59) / Raw(b"12345678"))
    assert parse_ipv6(packet + bytes(20)).body == b"12345678"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (MESSAGES[0][0], "ND who has fd00:1::6, says 52:54:00:00:00:01"),
        (MESSAGES[1][0], "ND who has fd00:1::6"),
        (MESSAGES[2][0], "ND fd00:1::5 is at 52:54:00:00:00:01"),
        (MESSAGES[4][0], "ND where is a router, says 52:54:00:00:00:01"),
        (MESSAGES[5][0], "ND router at 00:00:de:ad:be:ef, for 9000 s"),
        (MESSAGES[6][0], "ND redirect: fd00:1::6 by fd00:1::6 at 52:54:00:00:00:01"),
    ],
)
def test_a_message_in_words(message: ND, said: str) -> None:
    assert summarize(nd_frame(message, VM)).endswith(said)

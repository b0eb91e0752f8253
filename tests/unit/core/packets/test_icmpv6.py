"""What a router answers to an IPv6 packet whose hop limit has ended, as scapy reads it."""

from contextlib import suppress
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.packet import Raw

from retinue.core.packets import FrameError
from retinue.core.packets.icmpv6 import MOST_QUOTED, packet_too_big, time_exceeded

ROUTER = IPv6Address("fd00:1::fe")
ENDS = {"src": "fd00:1::5", "dst": "2001:db8::9", "hlim": 1}


def answer(packet: Any) -> Any:
    found = time_exceeded(bytes(packet), ROUTER)
    return None if found is None else IPv6(found)


@pytest.mark.parametrize(
    "packet",
    [
        IPv6(**ENDS) / UDP(sport=40000, dport=33434) / Raw(b"x" * 12),
        IPv6(**ENDS) / ICMPv6EchoRequest(id=7, seq=3) / Raw(b"y" * 1400),
        IPv6(**ENDS) / IPv6ExtHdrDestOpt() / TCP(dport=80),
        IPv6(**ENDS) / IPv6ExtHdrFragment(m=1) / UDP() / Raw(b"z" * 64),
    ],
)
def test_the_sender_hears_which_packet_it_was(packet: Any) -> None:
    sent = bytes(packet)
    told = answer(packet)
    assert (told.src, told.dst, told.hlim, told.nh) == (str(ROUTER), ENDS["src"], 64, 58)
    assert (told[ICMPv6TimeExceeded].type, told[ICMPv6TimeExceeded].code) == (3, 0)
    assert bytes(told)[48:] == sent[:MOST_QUOTED]
    assert len(bytes(told)) <= 1280
    again = IPv6(bytes(told))
    del again[ICMPv6TimeExceeded].cksum
    assert bytes(again) == bytes(told)


@pytest.mark.parametrize(
    "packet",
    [
        IPv6(**ENDS) / ICMPv6TimeExceeded() / Raw(b"e" * 48),
        IPv6(**ENDS) / IPv6ExtHdrDestOpt() / ICMPv6TimeExceeded(),
        IPv6(**ENDS) / ICMPv6ND_Redirect(),
        IPv6(**ENDS, nh=58),
        IPv6(**ENDS, nh=60) / Raw(b"\x3a\0"),
        IPv6(**ENDS) / IPv6ExtHdrFragment(offset=8, m=1) / Raw(b"z" * 64),
        IPv6(src="fd00:1::5", dst="ff0e::9", hlim=1) / UDP(),
        IPv6(src="ff02::1", dst="2001:db8::9", hlim=1) / UDP(),
        IPv6(src="::", dst="2001:db8::9", hlim=1) / UDP(),
        IPv6(src="::1", dst="2001:db8::9", hlim=1) / UDP(),
        IPv6(src="fe80::1", dst="2001:db8::9", hlim=1) / UDP(),
    ],
)
def test_some_are_not_answered(packet: Any) -> None:
    assert answer(packet) is None


def test_which_size_does_is_said() -> None:
    sent = bytes(IPv6(**ENDS) / UDP() / Raw(bytes(1453)))
    told = IPv6(packet_too_big(sent, ROUTER, 1400))
    assert (told.src, told.dst, told[ICMPv6PacketTooBig].code) == (str(ROUTER), ENDS["src"], 0)
    assert told[ICMPv6PacketTooBig].mtu == 1400
    assert bytes(told)[48:] == sent[:MOST_QUOTED]
    again = IPv6(bytes(told))
    del again[ICMPv6PacketTooBig].cksum
    assert bytes(again) == bytes(told)
    assert packet_too_big(bytes(IPv6(**ENDS) / ICMPv6TimeExceeded()), ROUTER, 1400) is None


def test_padding_is_not_sent_back() -> None:
    packet = bytes(IPv6(**ENDS) / UDP())
    assert time_exceeded(packet + bytes(9), ROUTER) == time_exceeded(packet, ROUTER)


@given(st.binary(max_size=200) | st.binary(max_size=160).map(lambda rest: b"\x60" + rest))
def test_no_bytes_raise_anything_but_frame_error(packet: bytes) -> None:
    with suppress(FrameError):
        time_exceeded(packet, ROUTER)

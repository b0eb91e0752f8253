"""What a router answers to a packet whose time to live has ended, or that is too large, as scapy reads it."""

from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from retinue.core.packets import FrameError
from retinue.core.packets.icmp import MOST_QUOTED, fragmentation_needed, time_exceeded

ROUTER = IPv4Address("10.1.0.254")
ENDS = {"src": "10.1.0.100", "dst": "203.0.113.9", "ttl": 1}


def answer(packet: Any) -> Any:
    found = time_exceeded(bytes(packet), ROUTER)
    return None if found is None else IP(found)


@pytest.mark.parametrize(
    "packet",
    [
        IP(**ENDS) / UDP(sport=40000, dport=33434) / Raw(b"x" * 12),
        IP(**ENDS) / ICMP(type=8, id=7, seq=3) / Raw(b"y" * 1400),
        IP(**ENDS) / TCP(dport=80),
        IP(**ENDS, flags="MF") / UDP() / Raw(b"z" * 64),
    ],
)
def test_the_sender_hears_which_packet_it_was(packet: Any) -> None:
    sent = bytes(packet)
    told = answer(packet)
    assert (told.src, told.dst, told.ttl, told.proto) == (str(ROUTER), ENDS["src"], 64, 1)
    assert (told[ICMP].type, told[ICMP].code) == (11, 0)
    assert bytes(told)[24:] == bytes(4) + sent[:MOST_QUOTED], "what is not used is nought"
    assert len(bytes(told)) <= 576
    again = IP(bytes(told))
    del again.chksum, again[ICMP].chksum
    assert bytes(again) == bytes(told), "the checksums are right"


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_an_error_is_not_answered_by_an_error(kind: int) -> None:
    assert answer(IP(**ENDS) / ICMP(type=kind)) is None


@pytest.mark.parametrize("kind", sorted(set(range(20)) - {3, 4, 5, 11, 12}))
def test_what_is_no_error_is_answered(kind: int) -> None:
    assert answer(IP(**ENDS) / ICMP(type=kind))[ICMP].type == 11


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "224.0.0.5", "255.255.255.255", "240.0.0.1"])
@pytest.mark.parametrize("end", ["src", "dst"])
def test_nothing_is_said_about_what_is_not_one_hosts_address(end: str, address: str) -> None:
    assert answer(IP(**ENDS | {end: address}) / UDP()) is None


@pytest.mark.parametrize("offset", [1 << bit for bit in range(13)])
def test_only_the_first_fragment_is_answered(offset: int) -> None:
    assert answer(IP(**ENDS, frag=offset) / Raw(b"z" * 64)) is None


def test_which_size_does_is_said() -> None:
    sent = bytes(IP(**ENDS, flags="DF") / UDP() / Raw(bytes(1473)))
    told = IP(fragmentation_needed(sent, ROUTER, 1400))
    assert (told.src, told.dst, told[ICMP].type, told[ICMP].code) == (str(ROUTER), ENDS["src"], 3, 4)
    assert bytes(told)[24:28] == b"\0\0" + (1400).to_bytes(2)
    assert bytes(told)[28:] == sent[:MOST_QUOTED]
    again = IP(bytes(told))
    del again.chksum, again[ICMP].chksum
    assert bytes(again) == bytes(told)
    assert fragmentation_needed(bytes(IP(**ENDS) / ICMP(type=3)), ROUTER, 1400) is None


@given(st.binary(max_size=80))
def test_no_bytes_break_it(data: bytes) -> None:
    try:
        told = time_exceeded(data, ROUTER)
    except FrameError:
        return
    assert told is None or IP(told)[ICMP].type == 11

"""An IPv4 packet in parts, as a router makes them: scapy reads them, and puts them together again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import (
    IP,
    TCP,
    UDP,
    IPOption_LSRR,
    IPOption_NOP,
    IPOption_RR,
    IPOption_Timestamp,
    defragment,
)
from scapy.packet import Raw

from retinue.core.packets import FrameError
from retinue.core.packets.ipv4 import fragments, may_be_fragmented

ENDS: dict[str, Any] = {"src": "10.1.0.100", "dst": "10.7.0.5", "id": 4711, "tos": 3, "ttl": 9}


@given(st.integers(0, 3000), st.integers(68, 1500))
def test_put_together_they_are_what_was_sent(size: int, mtu: int) -> None:
    sent = IP(**ENDS) / UDP() / Raw(bytes(index % 251 for index in range(size)))
    parts = [IP(part) for part in fragments(bytes(sent), mtu)]
    assert all(part.len == len(bytes(part)) <= mtu for part in parts)
    for part in parts:
        right = part.copy()
        del right.chksum
        assert bytes(right) == bytes(part), "the checksum is right"
        assert (part.id, part.tos, part.ttl, part.proto) == (4711, 3, 9, 17)
    [whole] = defragment([part.copy() for part in parts]) if len(parts) > 1 else parts
    assert bytes(whole)[20:] == bytes(sent)[20:]
    assert len(parts) == 1 or all(len(bytes(part)) > mtu - 8 for part in parts[:-1]), "as large as can be"


def test_what_fits_stays_as_it_is() -> None:
    sent = bytes(IP(**ENDS) / UDP() / Raw(bytes(1372)))
    assert fragments(sent, 1400) == [sent]


@pytest.mark.parametrize(("more", "last"), [("MF", 1), (0, 0)])
def test_a_part_in_parts(more: Any, last: int) -> None:
    """Its offset counts on, and whether more follow is as the part itself says."""
    parts = [IP(part) for part in fragments(bytes(IP(**ENDS, frag=100, flags=more) / Raw(bytes(2000))), 1020)]
    assert [(part.frag, int(part.flags)) for part in parts] == [(100, 1), (225, last)]


def test_options_go_along_where_they_say_so() -> None:
    """RFC 791, 3.1: "copied" is said of source routes, not of a record of the route or of times."""
    options = [IPOption_RR(routers=["1.2.3.4"]), IPOption_NOP(), IPOption_LSRR(routers=["5.6.7.8"])]
    sent = IP(**ENDS, options=[*options, IPOption_Timestamp()]) / TCP() / Raw(bytes(2000))
    first, *later = (IP(part) for part in fragments(bytes(sent), 1400))
    assert bytes(first)[20 : first.ihl * 4] == bytes(sent)[20 : IP(bytes(sent)).ihl * 4]
    assert later
    for part in later:
        assert [type(option) for option in part.options if option.option] == [IPOption_LSRR]
        assert len(bytes(part)) <= 1400
    assert b"".join(bytes(part)[part.ihl * 4 :] for part in (first, *later)) == bytes(IP(bytes(sent)).payload)


@given(st.binary(max_size=100), st.integers(68, 100))
def test_no_bytes_break_it(data: bytes, mtu: int) -> None:
    try:
        parts = fragments(data, mtu)
    except FrameError:
        return
    assert parts


def test_who_says_so_is_not_fragmented() -> None:
    assert may_be_fragmented(bytes(IP(**ENDS)))
    assert not may_be_fragmented(bytes(IP(**ENDS, flags="DF")))

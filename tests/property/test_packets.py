"""Frames survive the way to bytes and back, and no bytes at all raise anything but FrameError."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.packets import (
    ARP,
    DHCP,
    BootOp,
    Ethernet,
    EtherType,
    FrameError,
    MessageType,
    Option,
    arp_reply,
    build_dhcp,
    build_options,
    build_udp4,
    checksum,
    dhcp_frame,
    parse,
    parse_arp,
    parse_dhcp,
    parse_dhcp_frame,
    parse_options,
    parse_udp4,
    summarize,
)

macs = st.binary(min_size=6, max_size=6).map(lambda six: six.hex(":"))
ips = st.integers(0, 0xFFFFFFFF).map(IPv4Address)
u8, u16, u32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)

CHECKED = {
    Option.REQUESTED_ADDRESS,
    Option.LEASE_TIME,
    Option.OVERLOAD,
    Option.MESSAGE_TYPE,
    Option.SERVER_ID,
}
free_options = st.tuples(
    st.integers(1, 254).filter(lambda code: code not in CHECKED), st.binary(max_size=255)
)


@st.composite
def messages(draw: st.DrawFn) -> DHCP:
    kind = draw(st.none() | st.sampled_from(MessageType))
    server = draw(st.booleans()) if kind is None else kind.from_server
    options: list[tuple[int, bytes]] = draw(st.lists(free_options, max_size=5))
    for code, values in (
        (Option.REQUESTED_ADDRESS, st.binary(min_size=4, max_size=4)),
        (Option.LEASE_TIME, st.binary(min_size=4, max_size=4)),
        (Option.SERVER_ID, st.binary(min_size=4, max_size=4)),
    ):
        if draw(st.booleans()):
            options.insert(draw(st.integers(0, len(options))), (code, draw(values)))
    if kind is not None:
        options.insert(draw(st.integers(0, len(options))), (Option.MESSAGE_TYPE, bytes((kind,))))
    return DHCP(
        op=BootOp.REPLY if server else BootOp.REQUEST,
        xid=draw(u32),
        chaddr=draw(macs),
        hops=draw(u8),
        secs=draw(u16),
        flags=draw(u16),
        ciaddr=draw(ips),
        yiaddr=draw(ips),
        siaddr=draw(ips),
        giaddr=draw(ips),
        sname=draw(st.binary(min_size=64, max_size=64)),
        file=draw(st.binary(min_size=128, max_size=128)),
        options=tuple(options),
    )


@given(
    macs,
    macs,
    u16.filter(lambda t: t != EtherType.VLAN),
    st.binary(min_size=46),
    st.none() | st.integers(0, 4095),
)
def test_ethernet_round_trip(dst: str, src: str, ethertype: int, payload: bytes, vlan: int | None) -> None:
    frame = Ethernet(dst, src, ethertype, payload, vlan)
    assert parse(frame.build()) == frame


@given(u16, macs, ips, macs, ips)
def test_arp_round_trip(op: int, sha: str, spa: IPv4Address, tha: str, tpa: IPv4Address) -> None:
    arp = ARP(op, sha, spa, tha, tpa)
    assert parse_arp(arp.build()) == arp


@given(u16, macs, ips, macs, ips, macs)
def test_arp_reply_answers_the_asker(
    op: int, sha: str, spa: IPv4Address, tha: str, tpa: IPv4Address, mac: str
) -> None:
    frame = parse(arp_reply(ARP(op, sha, spa, tha, tpa), mac))
    assert (frame.dst, frame.src, frame.ethertype) == (sha, mac, EtherType.ARP)
    assert parse_arp(frame.payload) == ARP(2, mac, tpa, sha, spa)


@given(ips, ips, u16, u16, st.binary(max_size=600), u8, st.binary(max_size=40))
def test_udp_round_trip_with_right_checksums(
    src: IPv4Address, dst: IPv4Address, sport: int, dport: int, payload: bytes, ttl: int, padding: bytes
) -> None:
    packet = build_udp4(src, dst, sport, dport, payload, ttl)
    read = parse_udp4(packet + padding)
    assert (read.src, read.dst, read.sport, read.dport, read.payload, read.ttl) == (
        src,
        dst,
        sport,
        dport,
        payload,
        ttl,
    )
    length = len(packet) - 20
    assert checksum(packet[:20]) == 0
    assert checksum(packet[12:20] + bytes((0, 17)) + length.to_bytes(2, "big") + packet[20:]) == 0
    assert packet[26:28] != b"\0\0"


@given(st.binary(min_size=28, max_size=28), st.integers(0, 19), st.integers(1, 255))
def test_one_wrong_byte_in_the_ip_header_is_rejected(payload: bytes, at: int, change: int) -> None:
    packet = bytearray(build_udp4(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), 68, 67, payload))
    packet[at] ^= change
    with pytest.raises(FrameError):
        parse_udp4(bytes(packet))


@given(st.lists(st.tuples(st.integers(1, 254), st.binary(max_size=255)), max_size=8).map(tuple))
def test_options_round_trip(options: tuple[tuple[int, bytes], ...]) -> None:
    assert parse_options(build_options(options)) == options


@given(st.integers(1, 254).filter(lambda code: code != Option.OVERLOAD), st.binary(max_size=1200))
def test_long_option_is_split_and_joined(code: int, value: bytes) -> None:
    pieces = parse_options(build_options(((code, value),)))
    assert all(number == code and len(piece) <= 255 for number, piece in pieces)
    assert DHCP(1, 0, "52:54:00:00:00:01", options=pieces).option(code) == value


@given(messages())
def test_dhcp_round_trip(message: DHCP) -> None:
    payload = build_dhcp(message)
    assert len(payload) >= 300
    assert parse_dhcp(payload) == message


@given(messages(), macs, macs, ips, ips, u16, st.sampled_from([67, 68]), st.none() | st.integers(0, 4095))
def test_dhcp_frame_round_trip(
    message: DHCP,
    src: str,
    dst: str,
    ip_src: IPv4Address,
    ip_dst: IPv4Address,
    sport: int,
    dport: int,
    vlan: int | None,
) -> None:
    frame = dhcp_frame(message, src, dst, ip_src, ip_dst, sport, dport, vlan)
    ethernet, datagram, read = parse_dhcp_frame(frame)
    assert read == message
    assert (ethernet.src, ethernet.dst, ethernet.vlan) == (src, dst, vlan)
    assert (datagram.src, datagram.dst, datagram.sport, datagram.dport) == (ip_src, ip_dst, sport, dport)


@given(messages(), st.lists(free_options, max_size=3), st.lists(free_options, max_size=2))
def test_overloaded_fields_are_read_after_the_options(
    message: DHCP, in_file: list[tuple[int, bytes]], in_sname: list[tuple[int, bytes]]
) -> None:
    file, sname = build_options(tuple(in_file)), build_options(tuple(in_sname))
    if len(file) > 128 or len(sname) > 64:
        return
    loaded = replace(
        message,
        options=((Option.OVERLOAD, b"\3"), *message.options),
        file=file.ljust(128, b"\0"),
        sname=sname.ljust(64, b"\0"),
    )
    read = parse_dhcp(build_dhcp(loaded))
    assert read.all_options == (*loaded.options, *in_file, *in_sname)


# ---- no bytes raise anything else ----


def use(message: DHCP) -> None:
    """Whatever was parsed must also be readable, and buildable."""
    assert message.lease_time is None or 0 <= message.lease_time <= math.inf
    read = (message.message_type, message.requested_address, message.server_id, message.client_id)
    assert len(read) == 4
    assert parse_dhcp(build_dhcp(message)) == message
    assert message.message is None or isinstance(message.message, str)


def read_dhcp(data: bytes) -> None:
    use(parse_dhcp(data))


def read_frame(data: bytes) -> None:
    use(parse_dhcp_frame(data)[2])


READERS: list[Callable[[bytes], Any]] = [parse, parse_arp, parse_udp4, parse_options, read_dhcp, read_frame]


@given(st.binary(max_size=400))
def test_random_bytes_raise_only_frame_errors(data: bytes) -> None:
    for reader in READERS:
        with suppress(FrameError):
            reader(data)
    assert summarize(data)


@given(messages(), st.data())
def test_damaged_frames_raise_only_frame_errors(message: DHCP, data: st.DataObject) -> None:
    """Random bytes seldom get past the checksum: damage a good frame, and a good message, in a few places."""
    payload = build_dhcp(message)
    frame = dhcp_frame(
        message, message.chaddr, "ff:ff:ff:ff:ff:ff", IPv4Address(0), IPv4Address("255.255.255.255"), 68, 67
    )
    for good, reader in ((payload, read_dhcp), (frame, read_frame)):
        bad = bytearray(good[: data.draw(st.integers(0, len(good)))])
        for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(good) - 1), u8), max_size=6)):
            if at < len(bad):
                bad[at] = value
        with suppress(FrameError):
            reader(bytes(bad))
        assert summarize(bytes(bad))

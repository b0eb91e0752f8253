"""Neighbour discovery survives the way to bytes and back; no bytes raise anything but FrameError."""

from contextlib import suppress
from ipaddress import IPv6Address, IPv6Network

from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core.model.link_local import LINK_LOCAL, MULTICAST, UNSPECIFIED, link_local, solicited_node
from retinue.core.packets import (
    ICMPV6,
    ND,
    FrameError,
    NDOptions,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    PrefixInformation,
    Redirect,
    RouterAdvertisement,
    RouterSolicitation,
    build_icmpv6,
    build_ipv6,
    parse_ipv6,
    parse_nd,
    summarize,
    upper_checksum,
)

macs = st.binary(min_size=6, max_size=6).map(lambda six: six.hex(":"))
hosts = st.integers(1, 0xFEFF << 112).map(IPv6Address)
local = st.integers(0, (1 << 118) - 1).map(lambda low: IPv6Address(int(LINK_LOCAL.network_address) | low))
u8, u16, u32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
prefixes = st.builds(
    PrefixInformation,
    st.tuples(hosts, st.integers(0, 128)).map(lambda pair: IPv6Network(pair, strict=False)),
    st.booleans(),
    st.booleans(),
    u32,
    u32,
)
options = st.builds(
    NDOptions, st.none() | macs, st.none() | macs, st.none() | u32, st.lists(prefixes, max_size=3).map(tuple)
)
advertisements = st.builds(
    RouterAdvertisement, u16, u8, st.booleans(), st.booleans(), u32, u32, options
)  # fmt: skip
unsolicited = st.builds(NeighbourAdvertisement, hosts, st.booleans(), st.just(False), st.booleans(), options)
groups = st.integers(0, 0xFFFF).map(lambda low: IPv6Address(int(MULTICAST.network_address) | low))
messages = st.one_of(
    st.builds(ND, hosts, hosts | groups, st.builds(RouterSolicitation, options)),
    st.builds(ND, hosts, hosts | groups, st.builds(NeighbourSolicitation, hosts, options)),
    st.builds(ND, hosts, groups, unsolicited),
    st.builds(
        ND, hosts, hosts,
        st.builds(NeighbourAdvertisement, hosts, st.booleans(), st.booleans(), st.booleans(), options),
    ),
    st.builds(ND, local, hosts | groups, advertisements),
    st.builds(ND, local, hosts, st.builds(Redirect, hosts, hosts, options)),
    hosts.map(lambda target: ND(UNSPECIFIED, solicited_node(target), NeighbourSolicitation(target))),
)  # fmt: skip


@given(messages, st.binary(max_size=20))
def test_a_message_is_read_as_it_was_made(message: ND, padding: bytes) -> None:
    packet = message.build()
    assert parse_nd(packet + padding) == message
    assert upper_checksum(message.src, message.dst, ICMPV6, packet[40:]) == 0


@given(macs, macs)
def test_link_local_addresses_differ_where_macs_do(one: str, other: str) -> None:
    assert (link_local(one) == link_local(other)) == (one == other)
    assert link_local(one) in LINK_LOCAL


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A message with some bytes changed, cut or put in, its checksum right again, so that more is read."""
    found: ND = draw(messages)
    body = bytearray(found.message.build())
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(body) - 1))
        body[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
        if len(body) < 4:
            return bytes(body)
    hop_limit = draw(st.sampled_from([255, 255, 255, 1]))
    return build_icmpv6(found.src, found.dst, bytes(body), hop_limit)


chains = st.lists(
    st.tuples(st.sampled_from([0, 43, 44, 51, 58, 60]), st.binary(min_size=1, max_size=24)), max_size=10
).map(
    lambda parts: build_ipv6(
        IPv6Address("fd00::1"), IPv6Address("fd00::2"), 60, b"".join(bytes((n,)) + rest for n, rest in parts)
    )
)


@settings(max_examples=1000)
@given(st.binary(max_size=200) | damaged() | chains)
def test_no_bytes_raise_anything_but_frame_error(packet: bytes) -> None:
    for read in (parse_ipv6, parse_nd):
        with suppress(FrameError):
            read(packet)
    summarize(bytes(12) + b"\x86\xdd" + packet)


@given(damaged())
def test_what_is_read_is_what_would_be_made(packet: bytes) -> None:
    """A message that is believed says the same to whoever reads it again."""
    try:
        found = parse_nd(packet)
    except FrameError:
        return
    assert parse_nd(found.build()) == found

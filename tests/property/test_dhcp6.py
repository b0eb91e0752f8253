"""DHCPv6 survives the way to bytes and back; no bytes raise anything but FrameError."""

from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from retinue.core.limits import LONGEST_DUID, MOST_DHCP6_ADDRESSES, MOST_DHCP6_RELAYS
from retinue.core.model import IAKind
from retinue.core.packets import FrameError
from retinue.core.packets.dhcp6 import (
    DHCP6,
    SERVER_PORT6,
    MessageType6,
    Relayed6,
    dhcp6_frame,
    kept_options6,
    parse_dhcp6,
    parse_relayed6,
    parse_udp6_frame,
)
from retinue.core.packets.dhcp6_options import IA, IA_OPTIONS, IAAddress, Option6, Status

u32 = st.integers(0, 0xFFFFFFFF)
hosts = st.integers(1, (1 << 128) - 1).map(IPv6Address)
macs = st.binary(min_size=6, max_size=6).map(lambda six: six.hex(":"))
statuses = st.none() | st.builds(Status, st.integers(0, 0xFFFF), st.text("abc é", max_size=20))
addresses = st.builds(IAAddress, hosts, u32, u32, statuses)
lists = st.lists(addresses, max_size=2, unique_by=lambda a: a.ip).map(tuple)
delegated = st.builds(
    lambda ip, length, one: replace(
        one, ip=IPv6Network((ip, length), strict=False).network_address, length=length
    ),
    hosts, st.integers(1, 128), addresses,
)  # fmt: skip
ias = st.one_of(
    st.builds(IA, u32, lists, u32, u32, statuses),
    st.builds(IA, u32, lists, status=statuses, kind=st.just(IAKind.TA)),
    st.builds(
        IA, u32, st.lists(delegated, max_size=2, unique_by=lambda a: a.ip).map(tuple), u32, u32, statuses,
        st.just(IAKind.PD),
    ),
)  # fmt: skip
duids = st.just(b"") | st.binary(min_size=3, max_size=LONGEST_DUID)
read_apart = {Option6.CLIENT_ID, Option6.SERVER_ID, *IA_OPTIONS.values(), Option6.STATUS_CODE}
of_relays = {Option6.RELAY_MESSAGE, Option6.INTERFACE_ID}
codes = st.integers(0, 0xFFFF).filter(lambda code: code not in read_apart | of_relays)
others = st.lists(st.tuples(codes, st.binary(max_size=40)), max_size=5).map(tuple)
kinds = st.sampled_from([kind for kind in MessageType6 if not kind.of_relay])
messages = st.builds(
    DHCP6,
    kinds,
    st.integers(0, (1 << 24) - 1),
    duids,
    duids,
    st.lists(ias, max_size=3, unique_by=lambda ia: ia.key).map(tuple),
    statuses,
    others,
).filter(lambda message: len(set(message.addresses)) == len(message.addresses))
envelopes = st.builds(
    Relayed6,
    st.sampled_from([MessageType6.RELAY_FORW, MessageType6.RELAY_REPL]),
    st.integers(0, MOST_DHCP6_RELAYS),
    hosts,
    hosts,
    st.binary(max_size=100),
    st.binary(max_size=30),
    others,
)


@given(messages)
def test_a_message_is_read_as_it_was_made(message: DHCP6) -> None:
    assert parse_dhcp6(message.build()) == message
    assert len(message.addresses) <= MOST_DHCP6_ADDRESSES


@given(envelopes)
def test_an_envelope_is_read_as_it_was_made(envelope: Relayed6) -> None:
    assert parse_relayed6(envelope.build()) == envelope


@given(messages, hosts, hosts, macs, macs)
def test_a_frame_is_read_as_it_was_made(
    message: DHCP6, src: IPv6Address, dst: IPv6Address, one: str, two: str
) -> None:
    payload = message.build()
    ethernet, datagram = parse_udp6_frame(dhcp6_frame(payload, one, two, src, dst, 546, SERVER_PORT6))
    assert (ethernet.src, ethernet.dst) == (one, two)
    assert (datagram.src, datagram.dst, datagram.sport, datagram.dport) == (src, dst, 546, 547)
    assert datagram.payload == payload


@given(st.binary(max_size=200) | st.tuples(st.sampled_from(range(1, 14)), st.binary(max_size=200)).map(
    lambda parts: bytes((parts[0],)) + parts[1]
))  # fmt: skip
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for read in (parse_dhcp6, parse_relayed6, parse_udp6_frame):
        with suppress(FrameError):
            read(data)


@given(messages | envelopes, st.data())
def test_no_message_with_a_byte_changed_or_cut_off_raises_anything_else(
    message: DHCP6 | Relayed6, data: st.DataObject
) -> None:
    """And what is read of it is what it is read as once more, when it is made anew."""
    whole = bytearray(message.build())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 0xFF))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for found in (bytes(whole), cut):
        with suppress(FrameError):
            read = parse_dhcp6(found)
            anew = DHCP6(
                read.type,
                read.xid,
                read.client_id,
                read.server_id,
                read.ias,
                read.status,
                kept_options6(read),
            )
            assert parse_dhcp6(anew.build()) == anew
        with suppress(FrameError):
            parse_relayed6(found)

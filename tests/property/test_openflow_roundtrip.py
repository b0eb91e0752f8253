"""OpenFlow codec: what we send is what os-ken would send and reads back the same; no bytes break it."""

import struct
from contextlib import suppress
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core.pipeline.entry import Flow, Group, Match, Meter
from retinue.southbound.openflow.codec import encode, messages, wire
from retinue.southbound.openflow.codec.actions import encode_buckets, encode_instructions
from retinue.southbound.openflow.codec.decode import decode
from retinue.southbound.openflow.codec.messages import BundleAdd, FlowMod, GroupMod, MeterMod
from retinue.southbound.openflow.codec.oxm import encode_match
from retinue.southbound.openflow.codec.wire import Framer, ModCommand, ProtocolError
from support.examples import examples
from support.oracles.openflow import (
    flows,
    groups,
    matches,
    meters,
    os_ken_flow_mod,
    os_ken_group_mod,
    os_ken_meter_mod,
    xids,
)


@given(flows(), xids)
def test_added_flow_reads_back_the_same(flow: Flow, xid: int) -> None:
    assert decode(encode.flow_add(xid, flow, 0.0)) == FlowMod(xid, wire.FlowCommand.ADD, flow, 0, 0)


@given(flows(), xids)
def test_added_flow_is_what_os_ken_sends(flow: Flow, xid: int) -> None:
    assert encode.flow_add(xid, flow, 0.0) == os_ken_flow_mod(flow, xid)


@given(flows(), xids)
def test_removed_flow_is_what_os_ken_sends(flow: Flow, xid: int) -> None:
    assert encode.flow_remove(xid, flow) == os_ken_flow_mod(flow, xid, remove=True)


@given(flows(), xids, st.integers(1, 0xFFFF))
def test_expiring_flow_is_what_os_ken_sends(flow: Flow, xid: int, seconds: int) -> None:
    ends = Flow(
        flow.table,
        flow.priority,
        flow.match,
        flow.actions,
        flow.goto,
        flow.meter,
        flow.cookie,
        expires_at=1000.0 + seconds,
    )
    assert encode.flow_add(xid, ends, 1000.0) == os_ken_flow_mod(flow, xid, timeout=seconds)


@given(groups(), xids, st.sampled_from([ModCommand.ADD, ModCommand.MODIFY]))
def test_group_reads_back_and_is_what_os_ken_sends(group: Group, xid: int, command: ModCommand) -> None:
    to_bytes = encode.group_add if command is ModCommand.ADD else encode.group_modify
    assert to_bytes(xid, group) == os_ken_group_mod(group, command, xid)
    assert decode(to_bytes(xid, group)) == GroupMod(xid, command, group)


@given(meters(), xids, st.sampled_from([ModCommand.ADD, ModCommand.MODIFY]))
def test_meter_reads_back_and_is_what_os_ken_sends(meter: Meter, xid: int, command: ModCommand) -> None:
    to_bytes = encode.meter_add if command is ModCommand.ADD else encode.meter_modify
    assert to_bytes(xid, meter) == os_ken_meter_mod(meter, command, xid)
    assert decode(to_bytes(xid, meter)) == MeterMod(xid, command, meter)


@given(flows(), xids, xids)
def test_bundled_message_comes_out_unchanged(flow: Flow, xid: int, bundle: int) -> None:
    inside = encode.flow_add(xid, flow, 0.0)
    assert decode(encode.bundle_add(xid, bundle, inside)) == BundleAdd(xid, bundle, 3, inside)


# ---- what a switch reports ----


def flow_stats(flow: Flow, packets: int, nbytes: int, seconds: int, hard: int, idle: int = 0) -> bytes:
    body = encode_match(flow.match) + encode_instructions(flow)
    return (
        struct.pack(
            "!HBxIIHHHHH2xQQQ",
            48 + len(body),
            flow.table,
            seconds,
            500_000_000,
            flow.priority,
            idle,
            hard,
            0,
            0,
            flow.cookie,
            packets,
            nbytes,
        )
        + body
    )


def multipart_reply(xid: int, kind: int, body: bytes, more: bool = False) -> bytes:
    return struct.pack("!BBHIHH4x", 5, 19, 16 + len(body), xid, kind, more) + body


count64 = st.integers(0, (1 << 64) - 1)


@given(st.lists(st.tuples(flows(), count64, count64), max_size=4), xids, st.booleans())
def test_reported_flows_equal_those_installed(
    rows: list[tuple[Flow, int, int]], xid: int, more: bool
) -> None:
    body = b"".join(flow_stats(flow, packets, nbytes, 3, 60) for flow, packets, nbytes in rows)
    assert decode(multipart_reply(xid, 1, body, more)) == messages.MultipartReply(
        xid, 1, more, tuple(messages.FlowStats(flow, p, o, 3.5, 60) for flow, p, o in rows)
    )


@given(st.lists(groups(), max_size=4), xids)
def test_reported_groups_equal_those_installed(found: list[Group], xid: int) -> None:
    encoded = [(g, int(not g.replicates), encode_buckets(g.buckets, int(not g.replicates))) for g in found]
    body = b"".join(struct.pack("!HBxI", 8 + len(b), kind, group.id) + b for group, kind, b in encoded)
    reply = decode(multipart_reply(xid, 7, body))
    assert isinstance(reply, messages.MultipartReply)
    assert reply.parts == tuple(messages.GroupDesc(group.id, group) for group in found)


@given(matches(), xids, st.integers(0, 5), st.integers(0, 254), count64, st.binary(max_size=200))
def test_packet_in_keeps_frame_and_match(
    match: Match, xid: int, reason: int, table: int, cookie: int, frame: bytes
) -> None:
    body = struct.pack("!IHBBQ", 0xFFFFFFFF, len(frame), reason, table, cookie)
    body += encode_match(match) + bytes(2) + frame
    message = decode(struct.pack("!BBHI", 5, 10, 8 + len(body), xid) + body)
    assert isinstance(message, messages.PacketIn)
    assert (message.frame, message.match, message.cookie) == (frame, match, cookie)
    assert (message.reason, message.table, message.buffer_id) == (reason, table, 0xFFFFFFFF)
    assert message.in_port == next((value for field, value, _ in match if field == 0), 0)


@given(flows(), xids, count64, st.integers(0, 0xFFFF))
def test_flow_removed_names_the_flow(flow: Flow, xid: int, packets: int, hard: int) -> None:
    body = struct.pack("!QHBBIIHHQQ", flow.cookie, flow.priority, 1, flow.table, 2, 0, 0, hard, packets, 9)
    body += encode_match(flow.match)
    message = decode(struct.pack("!BBHI", 5, 11, 8 + len(body), xid) + body)
    assert isinstance(message, messages.FlowRemoved)
    assert message.key == flow.key
    assert (message.cookie, message.packets, message.hard_timeout) == (flow.cookie, packets, hard)


# ---- untrusted bytes ----


@st.composite
def valid_messages(draw: st.DrawFn) -> bytes:
    flow, xid = draw(flows()), draw(xids)
    encoded_match = encode_match(flow.match)
    port = struct.pack("!IH2x6s2x16sII", 3, 40, b"abcdef", b"tap0", 0, 0)
    removed = struct.pack("!QHBBIIHHQQ", 1, 2, 1, 0, 2, 0, 0, 9, 1, 9) + encoded_match
    packet = struct.pack("!IHBBQ", 1, 3, 1, 0, 7) + encoded_match + bytes(2) + b"abc"
    return draw(
        st.sampled_from(
            [
                encode.hello(xid),
                encode.error(xid, 5, 1, b"some bytes"),
                encode.echo_request(xid, b"ping"),
                encode.flow_add(xid, flow, 0.0),
                encode.bundle_add(xid, 1, encode.flow_add(xid, flow, 0.0)),
                encode.group_add(xid, draw(groups())),
                encode.meter_add(xid, draw(meters())),
                encode.packet_out(xid, b"frame", 3),
                encode.bundle_control(xid, 4, wire.BundleStep.OPEN_REQUEST),
                encode.role_request(xid, 2, 5),
                multipart_reply(xid, 1, flow_stats(flow, 1, 2, 3, 4)),
                multipart_reply(xid, 13, port * 2),
                multipart_reply(xid, 0, bytes(1056)),
                multipart_reply(xid, 10, struct.pack("!HHIHHII4x", 24, 6, 1, 1, 16, 9, 9)),
                struct.pack("!BBHI", 5, 12, 56, xid) + bytes(8) + port,
                struct.pack("!BBHI", 5, 11, 8 + len(removed), xid) + removed,
                struct.pack("!BBHI", 5, 10, 8 + len(packet), xid) + packet,
                struct.pack("!BBHIQIBB2xII", 5, 6, 32, xid, 7, 0, 254, 0, 0, 0),
            ]
        )
    )


@st.composite
def damaged_messages(draw: st.DrawFn) -> bytes:
    message = bytearray(draw(valid_messages()))
    for _ in range(draw(st.integers(0, 4))):
        message[draw(st.integers(0, len(message) - 1))] = draw(st.integers(0, 255))
    end = draw(st.integers(0, len(message)) | st.just(len(message)))
    message = message[:end] + draw(st.binary(max_size=8) | st.just(b""))
    if draw(st.booleans()) and len(message) >= 8:  # Let it pass the length check, and go deeper.
        message[2:4] = len(message).to_bytes(2)
        message[0] = 5
    return bytes(message)


@settings(max_examples=examples(150))
@given(st.binary(max_size=300) | damaged_messages())
def test_no_bytes_break_the_decoder(data: bytes) -> None:
    with suppress(ProtocolError):
        decode(data)


@given(st.integers(0, 40), xids, st.binary(max_size=120))
def test_no_body_breaks_the_decoder(kind: int, xid: int, body: bytes) -> None:
    with suppress(ProtocolError):
        decode(struct.pack("!BBHI", 5, kind, 8 + len(body), xid) + body)


@given(valid_messages())
def test_messages_of_the_damage_test_are_sound(message: bytes) -> None:
    decode(message)


@given(st.lists(valid_messages(), max_size=6), st.data())
def test_framer_gives_the_same_messages_however_cut(messages: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    framer = Framer()
    found = []
    for start, end in pairwise([0, *cuts, len(stream)]):
        found += framer.feed(stream[start:end])
    assert found == messages
    assert not framer.partial


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_no_bytes_break_the_framer(chunks: list[bytes]) -> None:
    framer = Framer()
    with suppress(ProtocolError):
        for chunk in chunks:
            for message in framer.feed(chunk):
                decode(message)

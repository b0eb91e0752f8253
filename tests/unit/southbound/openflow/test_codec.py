"""OpenFlow messages one by one, against os-ken's codec or the specification's own layout."""

import re
import struct
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from os_ken.ofproto import nicira_ext

from retinue.core.pipeline.entry import (
    ERICSSON,
    FIELD_BYTES,
    NICIRA,
    CheckLarger,
    DecTtl,
    Field,
    Flow,
    Group,
    Meter,
    Output,
    PortNo,
    RegMove,
    SetField,
    match,
)
from retinue.southbound.openflow.codec import actions, encode, messages, wire
from retinue.southbound.openflow.codec.decode import decode
from retinue.southbound.openflow.codec.messages import Hello, Other
from retinue.southbound.openflow.codec.oxm import FIELD_OF_MOVE
from retinue.southbound.openflow.codec.wire import (
    VERSIONS,
    BundleStep,
    Framer,
    MultipartType,
    ProtocolError,
    UnknownFieldError,
)
from retinue.southbound.openflow.errors import error_text
from support.oracles.openflow import DATAPATH, OFP, PARSER, raw

NXAST_HEAD = "ffff0018 00002320 0006"


def message(kind: int, body: bytes, xid: int = 7, version: int = 5) -> bytes:
    return struct.pack("!BBHI", version, kind, 8 + len(body), xid) + body


def multipart(kind: int, body: bytes, more: bool = False) -> bytes:
    return message(19, struct.pack("!HH4x", kind, more) + body)


# ---- what we send, against os-ken ----

FRAME = bytes(range(60))

SENT: list[tuple[str, bytes, Any]] = [
    ("echo request", encode.echo_request(7, b"ping"), PARSER.OFPEchoRequest(DATAPATH, b"ping")),
    ("echo reply", encode.echo_reply(7, b"ping"), PARSER.OFPEchoReply(DATAPATH, b"ping")),
    ("features request", encode.features_request(7), PARSER.OFPFeaturesRequest(DATAPATH)),
    ("set config", encode.set_config(7), PARSER.OFPSetConfig(DATAPATH, 3, 0xFFFF)),
    ("barrier", encode.barrier_request(7), PARSER.OFPBarrierRequest(DATAPATH)),
    ("error", encode.error(7, 0, 0, b"why"), PARSER.OFPErrorMsg(DATAPATH, 0, 0, b"why")),
    (
        "role request",
        encode.role_request(7, 2, 99),
        PARSER.OFPRoleRequest(DATAPATH, OFP.OFPCR_ROLE_MASTER, 99),
    ),
    (
        "bundle open",
        encode.bundle_control(7, 4, BundleStep.OPEN_REQUEST),
        PARSER.OFPBundleCtrlMsg(DATAPATH, 4, OFP.OFPBCT_OPEN_REQUEST, 3, []),
    ),
    (
        "bundle commit",
        encode.bundle_control(7, 4, BundleStep.COMMIT_REQUEST),
        PARSER.OFPBundleCtrlMsg(DATAPATH, 4, OFP.OFPBCT_COMMIT_REQUEST, 3, []),
    ),
    (
        "bundle discard",
        encode.bundle_control(7, 4, BundleStep.DISCARD_REQUEST),
        PARSER.OFPBundleCtrlMsg(DATAPATH, 4, OFP.OFPBCT_DISCARD_REQUEST, 3, []),
    ),
    (
        "packet out",
        encode.packet_out(7, FRAME, 3),
        PARSER.OFPPacketOut(
            DATAPATH,
            buffer_id=OFP.OFP_NO_BUFFER,
            in_port=OFP.OFPP_CONTROLLER,
            actions=[PARSER.OFPActionOutput(3, 0)],
            data=FRAME,
        ),
    ),
    (
        "packet out through the tables",
        encode.packet_out(7, FRAME, PortNo.TABLE, 5),
        PARSER.OFPPacketOut(
            DATAPATH,
            buffer_id=OFP.OFP_NO_BUFFER,
            in_port=5,
            actions=[PARSER.OFPActionOutput(OFP.OFPP_TABLE, 0)],
            data=FRAME,
        ),
    ),
    (
        "packet out to ourselves",
        encode.packet_out(7, FRAME, PortNo.CONTROLLER, 5),
        PARSER.OFPPacketOut(
            DATAPATH,
            buffer_id=OFP.OFP_NO_BUFFER,
            in_port=5,
            actions=[PARSER.OFPActionOutput(OFP.OFPP_CONTROLLER, 0xFFFF)],
            data=FRAME,
        ),
    ),
    (
        "flows asked for",
        encode.flow_stats_request(7, 0xAB, 0xFF),
        PARSER.OFPFlowStatsRequest(
            DATAPATH,
            0,
            OFP.OFPTT_ALL,
            OFP.OFPP_ANY,
            OFP.OFPG_ANY,
            0xAB,
            0xFF,
            PARSER.OFPMatch(),
        ),
    ),
    (
        "flows asked for by match",
        encode.flow_stats_request(7, 0, 0, match(in_port=3)),
        PARSER.OFPFlowStatsRequest(
            DATAPATH,
            0,
            OFP.OFPTT_ALL,
            OFP.OFPP_ANY,
            OFP.OFPG_ANY,
            0,
            0,
            PARSER.OFPMatch(in_port=3),
        ),
    ),
    ("groups asked for", encode.group_desc_request(7), PARSER.OFPGroupDescStatsRequest(DATAPATH, 0)),
    ("meters asked for", encode.meter_config_request(7), PARSER.OFPMeterConfigStatsRequest(DATAPATH, 0)),
    (
        "a sum over flows",
        encode.aggregate_request(7, 0xA0, 0xF0),
        PARSER.OFPAggregateStatsRequest(
            DATAPATH, 0, 0xFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xA0, 0xF0, PARSER.OFPMatch()
        ),
    ),
    ("counts of meters", encode.meter_stats_request(7), PARSER.OFPMeterStatsRequest(DATAPATH, 0)),
    (
        "description asked for",
        encode.multipart_request(7, MultipartType.DESC),
        PARSER.OFPDescStatsRequest(DATAPATH, 0),
    ),
    (
        "group removed",
        encode.group_remove(7, 9),
        PARSER.OFPGroupMod(DATAPATH, OFP.OFPGC_DELETE, OFP.OFPGT_SELECT, 9, []),
    ),
    (
        "meter removed",
        encode.meter_remove(7, 9),
        PARSER.OFPMeterMod(DATAPATH, OFP.OFPMC_DELETE, OFP.OFPMF_PKTPS | OFP.OFPMF_BURST, 9, []),
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), [pytest.param(o, t, id=name) for name, o, t in SENT])
def test_sent_message_is_what_os_ken_sends(ours: bytes, theirs: Any) -> None:
    assert ours == raw(theirs, 7)


def test_hello_offers_versions_14_and_13() -> None:
    # Section 7.5.1: a version bitmap, bits 5 and 4 set (os-ken's encoder leaves elements out).
    assert encode.hello(7).hex(" ", 4) == "05000010 00000007 00010008 00000030"


def test_ports_are_asked_for_as_the_specification_says() -> None:
    # Section 7.3.5.8: the request has no body (os-ken adds the port number of OpenFlow 1.5).
    assert encode.multipart_request(7, MultipartType.PORT_DESC).hex(" ", 4) == (
        "05120010 00000007 000d0000 00000000"
    )


def test_bundled_flow_is_what_os_ken_sends() -> None:
    flow = Flow(1, 2, match(in_port=3), (Output(4),))
    inside = PARSER.OFPFlowMod(
        DATAPATH,
        table_id=1,
        priority=2,
        out_port=OFP.OFPP_ANY,
        out_group=OFP.OFPG_ANY,
        match=PARSER.OFPMatch(in_port=3),
        instructions=[PARSER.OFPInstructionActions(OFP.OFPIT_APPLY_ACTIONS, [PARSER.OFPActionOutput(4, 0)])],
    )
    inside.set_xid(7)
    theirs = PARSER.OFPBundleAddMsg(DATAPATH, 5, 3, inside, [])
    assert encode.bundle_add(7, 5, encode.flow_add(7, flow, 0.0)) == raw(theirs, 7)


def test_move_is_nicira_reg_move_with_oxm_headers() -> None:
    encoded = encode.flow_add(1, Flow(0, 0, (), (RegMove(Field.ARP_SHA, Field.ARP_THA),)), 0.0)
    assert encoded[64:].hex(" ", 4) == NXAST_HEAD + "0030 00000000 80003006 80003206"


# ---- times ----


@pytest.mark.parametrize(
    ("left", "seconds"), [(-5.0, 1), (0.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (65535.0, 65535), (1e9, 65535)]
)
def test_hard_timeout_is_rounded_up_and_within_its_field(left: float, seconds: int) -> None:
    assert encode.hard_timeout(1000.0 + left, 1000.0) == seconds


def test_only_a_flow_that_ends_asks_to_be_told() -> None:
    lasting, ending = Flow(0, 0, ()), Flow(0, 0, (), expires_at=30.0)
    told = [decode(encode.flow_add(1, flow, 10.0)) for flow in (lasting, ending)]
    assert [(m.hard_timeout, m.flags) for m in told if isinstance(m, messages.FlowMod)] == [(0, 0), (20, 1)]


# ---- entries that cannot be sent ----


@pytest.mark.parametrize(
    "flow",
    [
        Flow(256, 0, ()),
        Flow(0, 65536, ()),
        Flow(0, 0, ((Field.ETH_TYPE, 1 << 16, None),)),
        Flow(0, 0, ((Field.ETH_TYPE, -1, None),)),
        Flow(0, 0, (), (SetField(Field.ETH_DST, 1 << 48),)),
        Flow(0, 0, (), (Output(1 << 32),)),
        Flow(0, 0, (), (RegMove(Field.ETH_DST, Field.IPV4_DST),)),
        Flow(0, 0, (), ("drop",)),  # type: ignore[arg-type]
        Flow(0, 0, (), goto=300),
        Flow(0, 0, (), meter=1 << 32),
        Flow(0, 0, (), cookie=1 << 64),
        Flow(0, 0, (), (Output(1),) * 5000),
    ],
)
def test_flow_that_cannot_be_sent_is_named_in_the_error(flow: Flow) -> None:
    with pytest.raises(ValueError, match=r"flow-mod: Flow\(table="):
        encode.flow_add(1, flow, 0.0)


def test_group_and_meter_and_frame_that_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="group-mod"):
        encode.group_add(1, Group(1 << 32, ()))
    with pytest.raises(ValueError, match="group-mod"):
        encode.group_add(1, Group(1, ((Output(1),) * 5000,)))
    with pytest.raises(ValueError, match="meter-mod"):
        encode.meter_add(1, Meter(1, -1, 0))
    with pytest.raises(ValueError, match="frame of 65536 bytes"):
        encode.packet_out(1, bytes(65536), 1)


# ---- what a switch tells ----


def test_features_and_ports() -> None:
    features = decode(message(6, struct.pack("!QIBB2xII", 0x31, 0, 254, 0, 0x4F, 0)))
    assert features == messages.FeaturesReply(7, 0x31, 0, 254, 0, 0x4F)
    mac = bytes.fromhex("525400000001")
    up = struct.pack("!IH2x6s2x16sII", 3, 72, mac, b"vnet0", 0, 4) + bytes(32)
    down = struct.pack("!IH2x6s2x16sII", 0xFFFFFFFE, 40, mac, b"br0", 1, 1)
    reply = decode(multipart(13, up + down))
    assert isinstance(reply, messages.MultipartReply)
    assert reply.parts == (
        messages.PortDesc(3, "vnet0", mac, 0, 4),
        messages.PortDesc(0xFFFFFFFE, "br0", mac, 1, 1),
    )
    assert [part.up for part in reply.parts if isinstance(part, messages.PortDesc)] == [True, False]
    status = decode(message(12, struct.pack("!B7x", 1) + up))
    assert status == messages.PortStatus(7, wire.PortReason.DELETE, messages.PortDesc(3, "vnet0", mac, 0, 4))


def test_packet_in_with_fields_beyond_ours_keeps_the_rest() -> None:
    oxm = bytes.fromhex(
        "80000004 0000000900014204 0a00000180004c08 0000000000000005"
    )  # in_port, pkt_mark, tunnel id
    fields = struct.pack("!HH", 1, 4 + len(oxm)) + oxm + bytes(-(4 + len(oxm)) % 8)
    body = struct.pack("!IHBBQ", 0xFFFFFFFF, 3, 1, 2, 0xC0) + fields + bytes(2) + b"abc"
    told = decode(message(10, body))
    assert isinstance(told, messages.PacketIn)
    assert (told.in_port, told.table, told.cookie, told.frame) == (9, 2, 0xC0, b"abc")
    assert told.match == ((Field.IN_PORT, 9, None), (Field.TUNNEL_ID, 5, None))


def test_flow_removed_with_fields_beyond_ours_is_somebody_elses() -> None:
    oxm = bytes.fromhex("00014204 0a000001")
    body = (
        struct.pack("!QHBBIIHHQQ", 1, 2, 1, 0, 2, 0, 0, 9, 1, 9) + struct.pack("!HH", 1, 12) + oxm + bytes(4)
    )
    assert isinstance(decode(message(11, body)), Other)


def flow_row(match_bytes: bytes, instructions: bytes = b"", idle: int = 0) -> bytes:
    size = 48 + len(match_bytes) + len(instructions)
    return (
        struct.pack("!HBxIIHHHHH2xQQQ", size, 1, 2, 0, 3, idle, 0, 0, 0, 4, 5, 6) + match_bytes + instructions
    )


EMPTY = bytes.fromhex("0001000400000000")


@pytest.mark.parametrize(
    "row",
    [
        flow_row(bytes.fromhex("0001000c 00014204 0a000001 00000000")),  # a Nicira field
        flow_row(EMPTY, bytes.fromhex("0003001000000000 0000000800000000")),  # write-actions
        flow_row(EMPTY, bytes.fromhex("0004001000000000 0011000888a80000")),  # push-vlan
        flow_row(
            EMPTY, bytes.fromhex("0004002000000000") + bytes.fromhex("ffff0018 00002320 0020") + bytes(14)
        ),
        flow_row(EMPTY, idle=30),
    ],
    ids=["match field", "instruction", "action", "experimenter", "idle timeout"],
)
def test_flow_beyond_our_terms_is_counted_and_left_out(row: bytes) -> None:
    reply = decode(multipart(1, flow_row(EMPTY) + row))
    assert isinstance(reply, messages.MultipartReply)
    assert [part.flow for part in reply.parts if isinstance(part, messages.FlowStats)] == [
        Flow(1, 3, (), cookie=4)
    ]
    assert reply.left_out == 1


def test_group_and_meter_of_other_kinds_are_known_by_number() -> None:
    bucket = struct.pack("!HHII4x", 16, 1, 0xFFFFFFFF, 0xFFFFFFFF)
    weighted = struct.pack("!HHII4x", 16, 5, 0xFFFFFFFF, 0xFFFFFFFF)
    rows = [(0, 1, bucket), (1, 2, bucket), (1, 3, weighted)]  # type, id, buckets
    reply = decode(multipart(7, b"".join(struct.pack("!HBxI", 24, t, i) + b for t, i, b in rows)))
    assert isinstance(reply, messages.MultipartReply)
    assert reply.parts == (
        messages.GroupDesc(1, None),
        messages.GroupDesc(2, Group(2, ((),))),
        messages.GroupDesc(3, None),
    )
    drop = struct.pack("!HHII4x", 1, 16, 100, 20)
    rows = [(6, 1, drop), (5, 2, drop), (6, 3, drop + drop), (7, 4, drop), (4, 5, drop)]  # flags, id, bands
    meters = b"".join(struct.pack("!HHI", 8 + len(b), flags, number) + b for flags, number, b in rows)
    reply = decode(multipart(10, meters))
    assert isinstance(reply, messages.MultipartReply)
    assert reply.parts == (
        messages.MeterConfig(1, Meter(1, 100, 20)),
        messages.MeterConfig(2, Meter(2, 100, 20, kilobits=True)),
        messages.MeterConfig(3, None),
        messages.MeterConfig(4, None),
        messages.MeterConfig(5, None),
    )


def test_sums_over_flows() -> None:
    """Section 7.3.5.3."""
    reply = decode(multipart(2, struct.pack("!QQI4x", 900, 90_000, 12)))
    assert isinstance(reply, messages.MultipartReply)
    assert reply.parts == (messages.AggregateStats(900, 12),)


@pytest.mark.parametrize("length", [0, 20, 23, 25, 48])
def test_sums_over_flows_of_an_odd_length_are_refused(length: int) -> None:
    with pytest.raises(ProtocolError):
        decode(multipart(2, bytes(length)))


METER_COUNTS = struct.Struct("!IH6xIQQIIQQ")


def test_counts_of_meters() -> None:
    """Section 7.3.5.14: what came in, and of each band what it has dropped."""
    rows = METER_COUNTS.pack(7, 56, 1, 900, 90_000, 3, 4, 200, 20_000)
    rows += struct.pack("!IH6xIQQII", 8, 40, 0, 5, 500, 3, 4)
    reply = decode(multipart(9, rows))
    assert isinstance(reply, messages.MultipartReply)
    assert reply.parts == (messages.MeterStats(7, 900, 200), messages.MeterStats(8, 5, 0))


@pytest.mark.parametrize("length", [0, 39, 41, 57, 1000])
def test_counts_of_a_meter_of_an_odd_length_are_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match="counts of a meter"):
        decode(multipart(9, METER_COUNTS.pack(7, length, 1, 900, 90_000, 3, 4, 200, 20_000)))
    with pytest.raises(ProtocolError, match="cut short"):
        decode(multipart(9, bytes(39)))


def test_moves_are_understood_as_open_vswitch_reports_them() -> None:
    """Open vSwitch 3.1 answers with NXM headers where it was sent OXM ones; os-ken knows both numbers."""
    nxm = {t.name.removesuffix("_nxm"): t for t in nicira_ext.oxm_types}
    found = 0
    for number, field in FIELD_OF_MOVE.items():
        if number >> 16 < 2 and not field & (NICIRA | ERICSSON):
            theirs = nxm[field.name.lower().replace("ipv6_nd", "nd")]
            assert number == theirs.num << 9 | FIELD_BYTES[field], field
            found += 1
    assert found == 25


def test_arp_answer_as_open_vswitch_31_reports_it() -> None:
    recorded = bytes.fromhex(
        "0004009000000000 ffff0018000023200006003000000000 0000040600000206 00190010800008060000000000050000"
        "0019001080002a020002000000000000 ffff0018000023200006003000000000 0001220600012406"
        "00190010800030060000000000050000 ffff0018000023200006002000000000 0000200400002204"
        "00000010fffffff80000000000000000"
    )
    reply = decode(multipart(1, flow_row(EMPTY, recorded)))
    assert isinstance(reply, messages.MultipartReply)
    (row,) = reply.parts
    assert isinstance(row, messages.FlowStats)
    assert row.flow.actions == (
        RegMove(Field.ETH_SRC, Field.ETH_DST),
        SetField(Field.ETH_SRC, 5),
        SetField(Field.ARP_OP, 2),
        RegMove(Field.ARP_SHA, Field.ARP_THA),
        SetField(Field.ARP_SHA, 5),
        RegMove(Field.ARP_SPA, Field.ARP_TPA),
        Output(PortNo.IN_PORT),
    )


def test_match_reads_back_sorted_whatever_the_order() -> None:
    scrambled = bytes.fromhex("80000a02 080080000004 00000001")  # eth_type, in_port
    encoded = struct.pack("!HH", 1, 4 + len(scrambled)) + scrambled + bytes(-(4 + len(scrambled)) % 8)
    reply = decode(multipart(1, flow_row(encoded)))
    assert isinstance(reply, messages.MultipartReply)
    (row,) = reply.parts
    assert isinstance(row, messages.FlowStats)
    assert row.flow.match == match(in_port=1, eth_type=0x800)


def test_flow_of_every_part_reads_back() -> None:
    flow = Flow(
        3,
        100,
        match(
            in_port=5,
            eth_src="52:54:00:00:00:01",
            eth_dst=(1 << 40, 1 << 40),
            eth_type=0x800,
            ipv4_src=IPv4Address("10.1.0.3"),
            ipv4_dst=IPv4Network("10.1.0.0/24"),
        ),
        (SetField(Field.ETH_DST, 7), CheckLarger(1414, Field.METADATA, 1), DecTtl(), Output(4)),
        goto=7,
        meter=2,
        cookie=1 << 63,
    )
    assert decode(encode.flow_add(9, flow, 0.0)) == messages.FlowMod(9, 0, flow, 0, 0)


def test_what_of_neighbour_discovery_open_vswitch_alone_knows() -> None:
    """As `ovs-ofctl` 3.1 sent it for nd_reserved=5, nd_options_type=1, and an action that sets each."""
    asked = match(eth_type=0x86DD, ip_proto=58, icmpv6_type=135, nd_reserved=5, nd_options_type=1)
    said = (SetField(Field.ND_RESERVED, 0xE0000000), SetField(Field.ND_OPTIONS_TYPE, 2))
    flow = Flow(2, 0x8000, asked, said)
    sent = encode.flow_add(7, flow, 0.0).hex()
    assert "80003a0187" + "1000020400000005" + "1000040101" in sent
    assert "0019001010000204e000000000000000" + "00190010100004010200000000000000" in sent
    assert decode(bytes.fromhex(sent)) == messages.FlowMod(7, 0, flow, 0, 0)


def test_a_check_of_a_bit_that_a_field_has_not_is_not_sent() -> None:
    flow = Flow(0, 1, (), (CheckLarger(1414, Field.METADATA, 64),))
    with pytest.raises(ValueError, match="METADATA has no bit 64"):
        encode.flow_add(9, flow, 0.0)


@pytest.mark.parametrize(
    ("at", "value"), [(4, b"\0\0\0\1"), (12, b"\0\x40"), (14, b"\x80\0\2\4"), (14, b"\x80\0\4\4")]
)
def test_a_check_that_is_not_ours_is_somebody_elses(at: int, value: bytes) -> None:
    """Of another vendor, into a bit beyond the field, into a field that we do not know."""
    action = bytearray(actions.encode_action(CheckLarger(1414, Field.METADATA, 1)))
    assert actions.decode_actions(bytes(action), 0, 24) == (CheckLarger(1414, Field.METADATA, 1),)
    action[at : at + len(value)] = value
    with pytest.raises(UnknownFieldError):
        actions.decode_actions(bytes(action), 0, 24)


# ---- words for errors ----


def test_error_names_are_the_specifications() -> None:
    """Every error type and code os-ken knows of OpenFlow 1.4 has its name in our text."""
    types = {n.removeprefix("OFPET_"): v for n, v in vars(OFP).items() if n.startswith("OFPET_")}
    prefixes = {
        "HELLO_FAILED": "OFPHFC_",
        "BAD_REQUEST": "OFPBRC_",
        "BAD_ACTION": "OFPBAC_",
        "BAD_INSTRUCTION": "OFPBIC_",
        "BAD_MATCH": "OFPBMC_",
        "FLOW_MOD_FAILED": "OFPFMFC_",
        "GROUP_MOD_FAILED": "OFPGMFC_",
        "PORT_MOD_FAILED": "OFPPMFC_",
        "TABLE_MOD_FAILED": "OFPTMFC_",
        "QUEUE_OP_FAILED": "OFPQOFC_",
        "SWITCH_CONFIG_FAILED": "OFPSCFC_",
        "ROLE_REQUEST_FAILED": "OFPRRFC_",
        "METER_MOD_FAILED": "OFPMMFC_",
        "TABLE_FEATURES_FAILED": "OFPTFFC_",
        "BAD_PROPERTY": "OFPBPC_",
        "ASYNC_CONFIG_FAILED": "OFPACFC_",
        "FLOW_MONITOR_FAILED": "OFPMOFC_",
        "BUNDLE_FAILED": "OFPBFC_",
    }
    assert types.keys() - {"EXPERIMENTER"} == prefixes.keys()
    for kind, prefix in prefixes.items():
        codes = {n: v for n, v in vars(OFP).items() if n.startswith(prefix)}
        assert codes
        for name, code in codes.items():
            assert error_text(types[kind], code) == f"OFPET_{kind} {name}"


def test_unknown_error_is_told_by_number() -> None:
    assert error_text(5, 200) == "OFPET_FLOW_MOD_FAILED code 200"
    assert error_text(99, 1) == "OFPET_99 code 1"
    assert messages.ErrorMessage(1, 2, 4, b"").text == "OFPET_BAD_ACTION OFPBAC_BAD_OUT_PORT"


# ---- numbers ----


def test_message_numbers_are_os_kens() -> None:
    for ours, prefix in ((wire.MessageType, "OFPT_"), (MultipartType, "OFPMP_"), (BundleStep, "OFPBCT_")):
        for kind in ours:
            assert getattr(OFP, prefix + kind.name) == kind, kind


# ---- greeting and framing ----


@pytest.mark.parametrize(
    ("greeting", "settled"),
    [
        (encode.hello(1), 5),
        (message(0, b"", version=6), 5),
        (message(0, b"", version=4), 4),
        (message(0, b"", version=3), None),
        (message(0, struct.pack("!HHI", 1, 8, 1 << 6 | 1 << 5 | 1 << 4 | 1 << 1), version=6), 5),
        (message(0, struct.pack("!HHI", 1, 8, 1 << 6 | 1 << 4), version=6), 4),
        (message(0, struct.pack("!HHI", 1, 8, 1 << 6 | 1 << 3), version=6), None),
    ],
)
def test_version_is_settled_by_bitmap_or_by_highest(greeting: bytes, settled: int | None) -> None:
    (whole,) = Framer().feed(greeting)
    hello = decode(whole)
    assert isinstance(hello, Hello)
    assert hello.settled(VERSIONS) == settled


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"GET / HTTP/1.1\r\n", "version"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", "version"),
        (message(2, b"", version=3), "version"),
        (message(1, bytes(8), version=1), "version"),
        (b"\x05\x00\x00\x07\x00\x00\x00\x01", "length"),
        (b"\x05\x00\x20\x00\x00\x00\x00\x01", "length"),
        (bytes(8), "version"),
    ],
)
def test_framer_refuses_what_is_not_openflow_we_speak(data: bytes, kind: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        Framer(limit=4096).feed(data)
    assert caught.value.kind == kind
    assert re.search(r"0x05|bytes", caught.value.reason)


def test_framer_waits_for_the_rest() -> None:
    framer, whole = Framer(), encode.echo_request(1, b"ping")
    assert framer.feed(whole[:5]) == []
    assert framer.partial
    assert framer.feed(whole[5:10]) == []
    assert framer.feed(whole[10:] + whole) == [whole, whole]
    assert not framer.partial


@pytest.mark.parametrize("size", [0, 7])
def test_decoder_refuses_less_than_a_header(size: int) -> None:
    with pytest.raises(ProtocolError):
        decode(bytes(size))


@pytest.mark.parametrize(
    "data",
    [
        message(6, bytes(8)),  # features cut short
        message(10, bytes(10)),
        message(10, bytes(16) + struct.pack("!HH", 1, 60) + bytes(8)),  # match longer than message
        message(10, bytes(16) + struct.pack("!HH", 1, 3) + bytes(8)),  # match shorter than its head
        message(12, bytes(20)),
        message(0, struct.pack("!HH", 1, 2)),
        multipart(1, b"\x00\x00" + bytes(60)),  # flow entry of no length: would never end
        multipart(7, struct.pack("!HBxI", 24, 1, 1) + bytes(16)),  # bucket of no length
        multipart(10, struct.pack("!HHI", 4, 6, 1)),
        multipart(13, bytes(40)),
        message(14, bytes(40) + EMPTY + bytes(8)),  # instruction of no length
    ],
)
def test_damaged_message_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)

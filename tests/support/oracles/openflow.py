"""The same messages made by os-ken's codec, to compare ours with byte for byte; any flow, for hypothesis."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from hypothesis import strategies as st
from os_ken.ofproto import ofproto_protocol, ofproto_v1_4, ofproto_v1_4_parser

from retinue.core.model import mac_from_int
from retinue.core.pipeline.entry import (
    ERICSSON,
    FIELD_BYTES,
    NICIRA,
    Action,
    DecTtl,
    Field,
    Flow,
    Group,
    Match,
    Meter,
    Output,
    PopVlan,
    PortNo,
    PushVlan,
    RegMove,
    Resubmit,
    SetField,
    ToGroup,
)
from retinue.southbound.openflow.codec.oxm import BITS

OFP: Any = ofproto_v1_4
PARSER: Any = ofproto_v1_4_parser
DATAPATH: Any = ofproto_protocol.ProtocolDesc(OFP.OFP_VERSION)

_MACS = {
    Field.ETH_DST,
    Field.ETH_SRC,
    Field.ARP_SHA,
    Field.ARP_THA,
    Field.IPV6_ND_SLL,
    Field.IPV6_ND_TLL,
}


def raw(message: Any, xid: int) -> bytes:
    message.set_xid(xid)
    message.serialize()
    return bytes(message.buf)


def user_value(field: Field, value: int) -> int | str:
    """A field's value as os-ken's users write it."""
    if field in _MACS:
        return mac_from_int(value)
    if FIELD_BYTES[field] == 16:
        return str(IPv6Address(value))
    if field in {Field.IPV4_SRC, Field.IPV4_DST, Field.ARP_SPA, Field.ARP_TPA, Field.TUN_SRC, Field.TUN_DST}:
        return str(IPv4Address(value))
    return value


def os_ken_match(match: Match) -> Any:
    terms = {}
    for field, value, mask in match:
        user = user_value(field, value)
        terms[field.name.lower()] = user if mask is None else (user, user_value(field, mask))
    return PARSER.OFPMatch(**terms)


def os_ken_action(action: Action) -> Any:
    match action:
        case Output(port):
            return PARSER.OFPActionOutput(port, 0xFFFF if port == PortNo.CONTROLLER else 0)
        case SetField(field, value):
            return PARSER.OFPActionSetField(**{field.name.lower(): user_value(field, value)})
        case RegMove(source, target):
            return PARSER.NXActionRegMove(
                src_field=source.name.lower(), dst_field=target.name.lower(), n_bits=BITS[source]
            )
        case DecTtl():
            return PARSER.OFPActionDecNwTtl()
        case PushVlan():
            return PARSER.OFPActionPushVlan(0x8100)
        case PopVlan():
            return PARSER.OFPActionPopVlan()
        case Resubmit(table):
            return PARSER.NXActionResubmitTable(in_port=0xFFF8, table_id=table)
        case ToGroup(group):
            return PARSER.OFPActionGroup(group)


def os_ken_flow_mod(flow: Flow, xid: int, *, remove: bool = False, timeout: int = 0) -> bytes:
    instructions = []
    if not remove:
        if flow.meter is not None:
            instructions.append(PARSER.OFPInstructionMeter(flow.meter))
        if flow.actions:
            actions = [os_ken_action(action) for action in flow.actions]
            instructions.append(PARSER.OFPInstructionActions(OFP.OFPIT_APPLY_ACTIONS, actions))
        if flow.goto is not None:
            instructions.append(PARSER.OFPInstructionGotoTable(flow.goto))
    message = PARSER.OFPFlowMod(
        DATAPATH,
        cookie=flow.cookie,
        table_id=flow.table,
        command=OFP.OFPFC_DELETE_STRICT if remove else OFP.OFPFC_ADD,
        hard_timeout=timeout,
        priority=flow.priority,
        buffer_id=OFP.OFP_NO_BUFFER,
        out_port=OFP.OFPP_ANY,
        out_group=OFP.OFPG_ANY,
        flags=OFP.OFPFF_SEND_FLOW_REM if timeout else 0,
        match=os_ken_match(flow.match),
        instructions=instructions,
    )
    return raw(message, xid)


def os_ken_group_mod(group: Group, command: int, xid: int) -> bytes:
    buckets = [
        PARSER.OFPBucket(
            weight=0 if group.replicates else 1,
            watch_port=OFP.OFPP_ANY,
            watch_group=OFP.OFPG_ANY,
            actions=[os_ken_action(action) for action in bucket],
        )
        for bucket in group.buckets
    ]
    kind = OFP.OFPGT_ALL if group.replicates else OFP.OFPGT_SELECT
    return raw(PARSER.OFPGroupMod(DATAPATH, command, kind, group.id, buckets), xid)


def os_ken_meter_mod(meter: Meter, command: int, xid: int) -> bytes:
    band = PARSER.OFPMeterBandDrop(rate=meter.rate, burst_size=meter.burst)
    flags = (OFP.OFPMF_KBPS if meter.kilobits else OFP.OFPMF_PKTPS) | OFP.OFPMF_BURST
    return raw(PARSER.OFPMeterMod(DATAPATH, command, flags, meter.id, [band]), xid)


# ---- any flow ----

fields = st.sampled_from([field for field in Field if not field & (NICIRA | ERICSSON)])
"""Those that os-ken knows."""
xids = st.integers(1, 0xFFFFFFFF)


@st.composite
def terms(draw: st.DrawFn, field: Field) -> tuple[Field, int, int | None]:
    top = (1 << (13 if field is Field.VLAN_VID else 8 * FIELD_BYTES[field])) - 1
    mask = draw(st.none() | st.integers(1, top))
    value = draw(st.integers(0, top))
    return field, value if mask is None else value & mask, mask


@st.composite
def matches(draw: st.DrawFn) -> Match:
    chosen = sorted(draw(st.sets(fields, max_size=8)))
    return tuple(draw(terms(field)) for field in chosen)


@st.composite
def set_fields(draw: st.DrawFn) -> SetField:
    field, value, _ = draw(fields.flatmap(terms))
    return SetField(field, value)


def moves() -> st.SearchStrategy[RegMove]:
    return st.tuples(fields, fields).filter(lambda p: BITS[p[0]] == BITS[p[1]]).map(lambda p: RegMove(*p))


def _ports() -> st.SearchStrategy[int]:
    return st.integers(1, 0xFFFFFF00) | st.sampled_from([int(p) for p in PortNo])


def action_lists() -> st.SearchStrategy[tuple[Action, ...]]:
    one: Iterable[st.SearchStrategy[Action]] = (
        _ports().map(Output),
        set_fields(),
        moves(),
        st.just(DecTtl()),
        st.just(PushVlan()),
        st.just(PopVlan()),
        st.integers(0, 254).map(Resubmit),
        st.integers(0, 0xFFFFFF00).map(ToGroup),
    )
    return st.lists(st.one_of(*one), max_size=6).map(tuple)


def flows() -> st.SearchStrategy[Flow]:
    return st.builds(
        Flow,
        table=st.integers(0, 254),
        priority=st.integers(0, 0xFFFF),
        match=matches(),
        actions=action_lists(),
        goto=st.none() | st.integers(0, 254),
        meter=st.none() | st.integers(1, 0xFFFF0000),
        cookie=st.integers(0, (1 << 64) - 1),
        expires_at=st.none(),
    )


def groups() -> st.SearchStrategy[Group]:
    return st.builds(
        Group,
        id=st.integers(0, 0xFFFFFF00),
        buckets=st.lists(action_lists(), max_size=4).map(tuple),
        replicates=st.booleans(),
    )


def meters() -> st.SearchStrategy[Meter]:
    number = st.integers(0, 0xFFFFFFFF)
    identity = st.integers(1, 0xFFFF0000)
    return st.builds(Meter, id=identity, rate=number, burst=number, kilobits=st.booleans())

"""What a switch rejects to install: the part of `fake_switch` that reads entries before they are taken.

The rules are OpenFlow 1.4's (prerequisites of fields, and the reasons of its errors) as Open vSwitch applies
them; on top, the fake rejects what it does not know how to execute, and matches that are not in the one form
that `retinue.core.pipeline.entry` writes.
"""

from collections.abc import Collection

from retinue.core.forwarding.header import ARP, ICMP, ICMPV6, IPV4, IPV6, RARP, TCP, UDP
from retinue.core.pipeline.entry import (
    FIELD_BYTES,
    Action,
    CheckLarger,
    DecTtl,
    Field,
    Flow,
    Group,
    Match,
    Output,
    PopVlan,
    PortNo,
    PushVlan,
    RegMove,
    Resubmit,
    SetField,
    ToGroup,
)


class BadEntry(ValueError):  # noqa: N818
    """An entry that a switch rejects; the message says why."""


Needs = tuple[tuple[Field, tuple[int, ...]], ...]

_IP: Needs = ((Field.ETH_TYPE, (IPV4, IPV6)),)
_ARP: Needs = ((Field.ETH_TYPE, (ARP, RARP)),)
_ICMP: Needs = ((Field.ETH_TYPE, (IPV4,)), (Field.IP_PROTO, (ICMP,)))
_ICMPV6: Needs = ((Field.ETH_TYPE, (IPV6,)), (Field.IP_PROTO, (ICMPV6,)))

NEEDS: dict[Field, Needs] = {
    Field.IP_PROTO: _IP,
    Field.IP_FRAG: _IP,
    Field.IP_TTL: _IP,
    Field.IPV4_SRC: ((Field.ETH_TYPE, (IPV4,)),),
    Field.IPV4_DST: ((Field.ETH_TYPE, (IPV4,)),),
    Field.TCP_SRC: (*_IP, (Field.IP_PROTO, (TCP,))),
    Field.TCP_DST: (*_IP, (Field.IP_PROTO, (TCP,))),
    Field.UDP_SRC: (*_IP, (Field.IP_PROTO, (UDP,))),
    Field.UDP_DST: (*_IP, (Field.IP_PROTO, (UDP,))),
    Field.ICMPV4_TYPE: _ICMP,
    Field.ICMPV4_CODE: _ICMP,
    Field.ARP_OP: _ARP,
    Field.ARP_SPA: _ARP,
    Field.ARP_TPA: _ARP,
    Field.ARP_SHA: _ARP,
    Field.ARP_THA: _ARP,
    Field.IPV6_SRC: ((Field.ETH_TYPE, (IPV6,)),),
    Field.IPV6_DST: ((Field.ETH_TYPE, (IPV6,)),),
    Field.ICMPV6_TYPE: _ICMPV6,
    Field.ICMPV6_CODE: _ICMPV6,
    Field.IPV6_ND_TARGET: (*_ICMPV6, (Field.ICMPV6_TYPE, (135, 136))),
    Field.IPV6_ND_SLL: (*_ICMPV6, (Field.ICMPV6_TYPE, (135,))),
    Field.IPV6_ND_TLL: (*_ICMPV6, (Field.ICMPV6_TYPE, (136,))),
    Field.ND_RESERVED: (*_ICMPV6, (Field.ICMPV6_TYPE, (135, 136))),
    Field.ND_OPTIONS_TYPE: (*_ICMPV6, (Field.ICMPV6_TYPE, (135, 136))),
}
"""What a match must say of other fields before it, or an action, may name this one."""

_EXACT_ONLY = frozenset(
    {
        Field.IN_PORT,
        Field.ETH_TYPE,
        Field.IP_PROTO,
        Field.IP_TTL,
        Field.IP_FRAG,
        Field.ICMPV4_TYPE,
        Field.ICMPV4_CODE,
        Field.ARP_OP,
        Field.ICMPV6_TYPE,
        Field.ICMPV6_CODE,
        Field.ND_RESERVED,
        Field.ND_OPTIONS_TYPE,
    }
)

SETTABLE = frozenset(
    {
        Field.METADATA,
        Field.TUNNEL_ID,
        Field.TUN_DST,
        Field.ETH_DST,
        Field.ETH_SRC,
        Field.VLAN_VID,
        Field.IPV4_SRC,
        Field.IPV4_DST,
        Field.TCP_SRC,
        Field.TCP_DST,
        Field.UDP_SRC,
        Field.UDP_DST,
        Field.ICMPV4_TYPE,
        Field.ICMPV4_CODE,
        Field.ARP_OP,
        Field.ARP_SPA,
        Field.ARP_TPA,
        Field.ARP_SHA,
        Field.ARP_THA,
        Field.IPV6_SRC,
        Field.IPV6_DST,
        Field.ICMPV6_TYPE,
        Field.ICMPV6_CODE,
        Field.IPV6_ND_TARGET,
        Field.IPV6_ND_SLL,
        Field.IPV6_ND_TLL,
        Field.ND_RESERVED,
        Field.ND_OPTIONS_TYPE,
    }
)
"""Fields the fake can write."""

_LAST_TABLE = 253
VLAN_PRESENT = 0x1000
"""OFPVID_PRESENT: of a VLAN id, that there is a tag."""


def check_flow(flow: Flow, groups: Collection[int], meters: Collection[int]) -> None:
    """Raise BadEntry if a switch with these groups and meters rejects the flow, or the fake cannot run it."""
    try:
        if not 0 <= flow.table <= _LAST_TABLE or not 0 <= flow.priority <= 0xFFFF:
            raise BadEntry(f"table {flow.table} or priority {flow.priority} out of range")
        if not 0 <= flow.cookie < 1 << 64:
            raise BadEntry(f"cookie {flow.cookie:#x} does not fit 64 bits")
        _check_match(flow.match)
        if flow.actions.count(PopVlan()) > 1:
            raise BadEntry("pop_vlan twice: of a second tag nothing is known")
        for action in flow.actions:
            _check_action(action, groups)
            _check_needs_of_action(action, flow.match)
        _check_tags(flow)
        if flow.goto is not None and not flow.table < flow.goto <= _LAST_TABLE:
            raise BadEntry(f"goto table {flow.goto}: a frame can only go on to a later table")
        if flow.meter is not None and flow.meter not in meters:
            raise BadEntry(f"there is no meter {flow.meter}")
    except BadEntry as error:
        raise BadEntry(f"{error}, in {flow}") from None


def _check_tags(flow: Flow) -> None:
    """A tag is written and taken where there is one, and put where there is none."""
    tagged = any(field is Field.VLAN_VID and value & VLAN_PRESENT for field, value, _ in flow.match)
    for action in flow.actions:
        match action:
            case PushVlan() if tagged:
                raise BadEntry("a second tag")
            case PopVlan() | SetField(Field.VLAN_VID, _) if not tagged:
                raise BadEntry(f"{action} on a frame that may have no tag")
            case SetField(Field.VLAN_VID, value) if not value & VLAN_PRESENT:
                raise BadEntry("a tag is not removed by its number")
            case PushVlan() | PopVlan():
                tagged = isinstance(action, PushVlan)
            case _:
                pass


def check_group(group: Group) -> None:
    """Raise BadEntry if a switch rejects the group, or the fake cannot run it (a group that names groups)."""
    if not 0 <= group.id <= 0xFFFFFF00:
        raise BadEntry(f"group number {group.id:#x} out of range")
    for bucket in group.buckets:
        for action in bucket:
            _check_action(action, ())


def _check_match(match: Match) -> None:
    names = [field for field, _, _ in match]
    if names != sorted(set(names)):
        raise BadEntry(f"match is not sorted by field, or names one twice: {[f.name for f in names]}")
    for field, value, mask in match:
        _check_value(field, value)
        full = (1 << FIELD_BYTES[field] * 8) - 1
        if mask is not None:
            if field in _EXACT_ONLY:
                raise BadEntry(f"{field.name} cannot have a mask")
            if not 0 < mask < full:
                raise BadEntry(f"{field.name} mask {mask:#x}: leave the field, or the mask, out")
            if value & ~mask:
                raise BadEntry(f"{field.name} value {value:#x} has bits outside its mask {mask:#x}")
        _check_needs(field, match)


def _check_value(field: Field, value: int) -> None:
    bits = 8 if field is Field.ARP_OP else FIELD_BYTES[field] * 8  # Open vSwitch knows no higher operation.
    if not 0 <= value < 1 << bits:
        raise BadEntry(f"{field.name} value {value:#x} does not fit {bits} bits")


def _check_needs(field: Field, match: Match) -> None:
    exact = {name: value for name, value, mask in match if mask is None}
    for needed, values in NEEDS.get(field, ()):
        if exact.get(needed) not in values:
            wanted = " or ".join(hex(value) for value in values)
            raise BadEntry(f"{field.name} needs {needed.name} {wanted} in the match")


def _check_needs_of_action(action: Action, match: Match) -> None:
    match action:
        case SetField(field, _):
            _check_needs(field, match)
        case RegMove(source, target):
            _check_needs(source, match)
            _check_needs(target, match)
        case DecTtl():
            _check_needs(Field.IP_PROTO, match)
        case _:
            pass


def _check_action(action: Action, groups: Collection[int]) -> None:
    match action:
        case Output(port):
            if not (0 < port < PortNo.MAX or port in (PortNo.IN_PORT, PortNo.CONTROLLER, PortNo.LOCAL)):
                raise BadEntry(f"no output to port {port:#x}")
        case SetField(field, value):
            if field not in SETTABLE:
                raise BadEntry(f"{field.name} cannot be set")
            _check_value(field, value)
        case RegMove(source, target):
            if target not in SETTABLE or source not in SETTABLE:
                raise BadEntry(f"{source.name} cannot be moved to {target.name}")
            if FIELD_BYTES[source] != FIELD_BYTES[target]:
                raise BadEntry(f"{source.name} and {target.name} differ in width")
        case ToGroup(group):
            if group not in groups:
                raise BadEntry(f"there is no group {group} to go to")
        case Resubmit(table):
            if not 0 <= table <= _LAST_TABLE:
                raise BadEntry(f"no table {table} to resubmit to")
        case CheckLarger(size, field, bit):
            if field not in SETTABLE or not 0 <= bit < FIELD_BYTES[field] * 8:
                raise BadEntry(f"{field.name} has no bit {bit} to write")
            if not 0 <= size < 1 << 16:
                raise BadEntry(f"no frame is larger than {size}")
        case DecTtl() | PushVlan() | PopVlan():
            pass

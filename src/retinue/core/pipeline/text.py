"""Entries in the words `ovs-ofctl` prints, for people."""

from ipaddress import IPv4Address, IPv6Address

from retinue.core.model import mac_from_int
from retinue.core.pipeline.entry import (
    Action,
    CheckLarger,
    DecTtl,
    Field,
    Flow,
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

_MAC_FIELDS = frozenset(
    {Field.ETH_DST, Field.ETH_SRC, Field.ARP_SHA, Field.ARP_THA, Field.IPV6_ND_SLL, Field.IPV6_ND_TLL}
)
_V4_FIELDS = frozenset(
    {Field.IPV4_SRC, Field.IPV4_DST, Field.ARP_SPA, Field.ARP_TPA, Field.TUN_SRC, Field.TUN_DST}
)
_V6_FIELDS = frozenset({Field.IPV6_SRC, Field.IPV6_DST, Field.IPV6_ND_TARGET})


def value_text(field: Field, value: int) -> str:
    if field in _MAC_FIELDS:
        return mac_from_int(value)
    if field in _V4_FIELDS:
        return str(IPv4Address(value))
    if field in _V6_FIELDS:
        return str(IPv6Address(value))
    if field is Field.IN_PORT:
        return port_text(value)
    if field is Field.ETH_TYPE:
        return f"0x{value:04x}"
    return str(value)


def match_text(match: Match) -> str:
    """ "in_port=3,eth_type=0x0800,ipv4_src=10.1.0.100"; "any" for an empty match."""
    terms = [
        f"{field.name.lower()}={value_text(field, value)}"
        + ("" if mask is None else f"/{value_text(field, mask)}")
        for field, value, mask in match
    ]
    return ",".join(terms) or "any"


def actions_text(flow: Flow) -> str:
    words = [f"meter:{flow.meter}"] if flow.meter is not None else []
    words += [action_text(action) for action in flow.actions]
    words += [f"goto_table:{flow.goto}"] if flow.goto is not None else []
    return ",".join(words) or "drop"


def action_text(action: Action) -> str:
    match action:
        case Output(port):
            return f"output:{port_text(port)}"
        case SetField(field, value):
            return f"set_field:{value_text(field, value)}->{field.name.lower()}"
        case RegMove(source, target):
            return f"move:{source.name.lower()}->{target.name.lower()}"
        case DecTtl():
            return "dec_ttl"
        case PushVlan():
            return "push_vlan:0x8100"
        case PopVlan():
            return "pop_vlan"
        case Resubmit(table):
            return f"resubmit:{table}"
        case CheckLarger(size, field, bit):
            return f"check_pkt_larger({size})->{field.name.lower()}[{bit}]"
        case ToGroup(group):
            return f"group:{group}"


def port_text(port: int) -> str:
    return PortNo(port).name if port in PortNo._value2member_map_ else str(port)

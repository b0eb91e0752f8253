"""Our entries in the language of `ovs-ofctl`: a way to a real switch that is not our own codec."""

from ipaddress import IPv4Address, IPv6Address

from retinue.core.model import mac_from_int
from retinue.core.pipeline.entry import (
    FIELD_BYTES,
    Action,
    CheckLarger,
    DecTtl,
    Field,
    Flow,
    Group,
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

_NAMES = {
    Field.IN_PORT: "in_port",
    Field.METADATA: "metadata",
    Field.ETH_DST: "eth_dst",
    Field.ETH_SRC: "eth_src",
    Field.ETH_TYPE: "eth_type",
    Field.VLAN_VID: "vlan_vid",
    Field.IP_PROTO: "nw_proto",
    Field.IPV4_SRC: "ip_src",
    Field.IPV4_DST: "ip_dst",
    Field.TCP_SRC: "tcp_src",
    Field.TCP_DST: "tcp_dst",
    Field.UDP_SRC: "udp_src",
    Field.UDP_DST: "udp_dst",
    Field.ICMPV4_TYPE: "icmp_type",
    Field.ICMPV4_CODE: "icmp_code",
    Field.ARP_OP: "arp_op",
    Field.ARP_SPA: "arp_spa",
    Field.ARP_TPA: "arp_tpa",
    Field.ARP_SHA: "arp_sha",
    Field.ARP_THA: "arp_tha",
    Field.IPV6_SRC: "ipv6_src",
    Field.IPV6_DST: "ipv6_dst",
    Field.ICMPV6_TYPE: "icmpv6_type",
    Field.ICMPV6_CODE: "icmpv6_code",
    Field.IPV6_ND_TARGET: "nd_target",
    Field.IPV6_ND_SLL: "nd_sll",
    Field.IPV6_ND_TLL: "nd_tll",
    Field.TUNNEL_ID: "tun_id",
    Field.IP_FRAG: "ip_frag",
    Field.IP_TTL: "nw_ttl",
    Field.TUN_SRC: "tun_src",
    Field.TUN_DST: "tun_dst",
    Field.ND_RESERVED: "nd_reserved",
    Field.ND_OPTIONS_TYPE: "nd_options_type",
}


def flow_text(flow: Flow) -> str:
    terms = [f"table={flow.table}", f"priority={flow.priority}", f"cookie={flow.cookie:#x}"]
    for field, value, mask in flow.match:
        term = f"{_NAMES[field]}={_value(field, value)}"
        terms.append(term if mask is None else f"{term}/{_value(field, mask)}")
    actions = [] if flow.meter is None else [f"meter:{flow.meter}"]
    actions += [action_text(action) for action in flow.actions]
    if flow.goto is not None:
        actions.append(f"goto_table:{flow.goto}")
    return f"{','.join(terms)},actions={','.join(actions) or 'drop'}"


def group_text(group: Group) -> str:
    buckets = [
        f"bucket=bucket_id:{number},actions={','.join(map(action_text, bucket)) or 'drop'}"
        for number, bucket in enumerate(group.buckets)
    ]
    kind = "all" if group.replicates else "select"
    return ",".join([f"group_id={group.id},type={kind}", *buckets])


def meter_text(meter: Meter) -> str:
    return f"meter={meter.id},pktps,burst,band=type=drop,rate={meter.rate},burst_size={meter.burst}"


def action_text(action: Action) -> str:
    match action:
        case Output(PortNo.CONTROLLER):
            return "controller(max_len=65535)"
        case Output(port):
            return f"output:{port_text(port)}"
        case SetField(field, value):
            return f"set_field:{_value(field, value)}->{_NAMES[field]}"
        case RegMove(source, target):
            return f"move:OXM_OF_{source.name}[]->OXM_OF_{target.name}[]"
        case DecTtl():
            return "dec_ttl"
        case PushVlan():
            return "push_vlan:0x8100"
        case PopVlan():
            return "pop_vlan"
        case Resubmit(table):
            return f"resubmit(,{table})"
        case CheckLarger(size, field, bit):
            return f"check_pkt_larger({size})->OXM_OF_{field.name}[{bit}]"
        case ToGroup(group):
            return f"group:{group}"


def port_text(port: int) -> str:
    return (
        {PortNo.LOCAL: "LOCAL", PortNo.IN_PORT: "IN_PORT"}.get(PortNo(port), "")
        if port > 0xFF00
        else str(port)
    )


def _value(field: Field, value: int) -> str:
    if field is Field.IN_PORT:
        return port_text(value)
    if FIELD_BYTES[field] == 6:
        return mac_from_int(value)
    if field in (Field.IPV4_SRC, Field.IPV4_DST, Field.ARP_SPA, Field.ARP_TPA, Field.TUN_SRC, Field.TUN_DST):
        return str(IPv4Address(value))
    if field is Field.IP_FRAG:
        return {0: "no", 1: "first", 3: "later"}[value]
    if FIELD_BYTES[field] == 16:
        return str(IPv6Address(value))
    return hex(value)

"""Frames of bytes from the values of their fields: counter-examples that can be sent."""

from collections.abc import Iterator, Mapping
from functools import cache

import z3

from prove.terms import TAGGED, UNKNOWN
from retinue.core.forwarding.header import ARP, ICMP, ICMPV6, IPV4, IPV6, NO_TYPE, RARP, TCP, UDP
from retinue.core.packets import checksum
from retinue.core.pipeline.entry import FIELD_BYTES, Field

_OF_ARP = (Field.ARP_OP, Field.ARP_SHA, Field.ARP_SPA, Field.ARP_THA, Field.ARP_TPA)
_OF_ND = (
    Field.IPV6_ND_TARGET,
    Field.IPV6_ND_SLL,
    Field.IPV6_ND_TLL,
    Field.ND_RESERVED,
    Field.ND_OPTIONS_TYPE,
)
_SOURCE, _TARGET = 1, 2
"""Types of the options that have a link-layer address."""
SOLICITATION, ADVERTISEMENT = 135, 136
FRAGMENT = 44
FIRST, LATER = 1, 3
LOWEST_TYPE = 0x600
VLAN_TYPES = (0x8100, 0x88A8)


@cache
def real() -> tuple[z3.BoolRef, ...]:
    """What is so of frames that can be written down: what a frame has not is zero, as a switch has it.

    The proof is about more than these: a match asks first for the header that has its field.
    """
    x = UNKNOWN
    kind, proto, part = x[Field.ETH_TYPE], x[Field.IP_PROTO], x[Field.IP_FRAG]
    v4, v6 = kind == IPV4, kind == IPV6
    whole = part != LATER

    def only_if(holds: z3.BoolRef, *fields: Field) -> Iterator[z3.BoolRef]:
        for field in fields:
            yield z3.Implies(z3.Not(holds), x[field] == 0)

    nd = z3.And(v6, proto == ICMPV6, x[Field.ICMPV6_CODE] == 0, part == 0)
    asks, says = (z3.And(nd, x[Field.ICMPV6_TYPE] == n) for n in (SOLICITATION, ADVERTISEMENT))
    return (
        z3.Or(z3.UGE(kind, LOWEST_TYPE), kind == NO_TYPE),
        *(kind != tag for tag in VLAN_TYPES),
        *only_if(z3.Or(kind == ARP, kind == RARP), *_OF_ARP),
        z3.ULE(x[Field.ARP_OP], 0xFF),
        *only_if(z3.Or(v4, v6), Field.IP_PROTO, Field.IP_FRAG, Field.IP_TTL),
        *only_if(v4, Field.IPV4_SRC, Field.IPV4_DST),
        *only_if(v6, Field.IPV6_SRC, Field.IPV6_DST),
        *only_if(z3.And(z3.Or(v4, v6), whole, proto == TCP), Field.TCP_SRC, Field.TCP_DST),
        *only_if(z3.And(z3.Or(v4, v6), whole, proto == UDP), Field.UDP_SRC, Field.UDP_DST),
        *only_if(z3.And(v4, whole, proto == ICMP), Field.ICMPV4_TYPE, Field.ICMPV4_CODE),
        *only_if(z3.And(v6, whole, proto == ICMPV6), Field.ICMPV6_TYPE, Field.ICMPV6_CODE),
        *only_if(z3.Or(asks, says), Field.IPV6_ND_TARGET),
        *only_if(asks, Field.IPV6_ND_SLL),
        *only_if(says, Field.IPV6_ND_TLL),
        *only_if(z3.Or(asks, says), Field.ND_RESERVED, Field.ND_OPTIONS_TYPE),
        z3.Implies(asks, _has_one(_SOURCE, Field.IPV6_ND_SLL)),
        z3.Implies(says, _has_one(_TARGET, Field.IPV6_ND_TLL)),
        # Behind extension headers is another protocol than theirs; of later parts it is the fragment header.
        z3.Implies(v6, z3.And(*(proto != n for n in (43, 51, 60)))),
        z3.Implies(v6, (proto == FRAGMENT) == (part == LATER)),
        z3.Implies(z3.And(v6, proto == 0), z3.And(x[Field.IP_TTL] == 0, part == 0)),
    )


def _has_one(kind: int, address: Field) -> z3.BoolRef:
    """The message's option is of its own kind, and has an address; or there is none."""
    seen, mac = UNKNOWN[Field.ND_OPTIONS_TYPE], UNKNOWN[address]
    return z3.Or(z3.And(seen == kind, mac != 0), z3.And(seen == 0, mac == 0))


def build(frame: Mapping[Field, int]) -> bytes:
    """The frame that has these fields, as nearly as there is one."""
    vid, kind = frame[Field.VLAN_VID], frame[Field.ETH_TYPE]
    tag = b"\x81\x00" + (vid & 0xFFF).to_bytes(2, "big") if vid & TAGGED else b""
    macs = _bytes(frame, Field.ETH_DST) + _bytes(frame, Field.ETH_SRC)
    if kind == NO_TYPE:
        return (macs + tag + (46).to_bytes(2, "big") + bytes(46)).ljust(60, b"\0")
    head = macs + tag + kind.to_bytes(2, "big")
    match kind:
        case 0x0800:
            body = _ipv4(frame)
        case 0x86DD:
            body = _ipv6(frame)
        case 0x0806 | 0x8035:
            order = (Field.ARP_OP, Field.ARP_SHA, Field.ARP_SPA, Field.ARP_THA, Field.ARP_TPA)
            body = bytes.fromhex("000108000604") + b"".join(_bytes(frame, field) for field in order)
        case _:
            body = b""
    return (head + body).ljust(60, b"\0")


def _bytes(frame: Mapping[Field, int], field: Field) -> bytes:
    return frame[field].to_bytes(FIELD_BYTES[field], "big")


def _ipv4(frame: Mapping[Field, int]) -> bytes:
    upper = _upper(frame, ICMP, Field.ICMPV4_TYPE, Field.ICMPV4_CODE)
    parts = {0: 0, FIRST: 0x2000, LATER: 0x2001}[frame[Field.IP_FRAG]]
    head = bytearray(b"\x45\0" + (20 + len(upper)).to_bytes(2, "big") + bytes(2) + parts.to_bytes(2, "big"))
    head += _bytes(frame, Field.IP_TTL) + _bytes(frame, Field.IP_PROTO) + bytes(2)
    head += _bytes(frame, Field.IPV4_SRC) + _bytes(frame, Field.IPV4_DST)
    head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
    return bytes(head) + upper


def _ipv6(frame: Mapping[Field, int]) -> bytes:
    proto, part = frame[Field.IP_PROTO], frame[Field.IP_FRAG]
    upper = _upper(frame, ICMPV6, Field.ICMPV6_TYPE, Field.ICMPV6_CODE)
    first = proto
    if proto == 0:
        upper = b""  # Says that an extension header follows, and none does.
    elif part:
        first = FRAGMENT
        upper = bytes((59 if part == LATER else proto, 0, 0, 9 if part == LATER else 1)) + bytes(4) + upper
    head = b"\x60\0\0\0" + len(upper).to_bytes(2, "big") + bytes((first, frame[Field.IP_TTL]))
    return head + _bytes(frame, Field.IPV6_SRC) + _bytes(frame, Field.IPV6_DST) + upper


def _upper(frame: Mapping[Field, int], icmp: int, kind: Field, code: Field) -> bytes:
    proto = frame[Field.IP_PROTO]
    if frame[Field.IP_FRAG] == LATER:
        return bytes(8)
    if proto == UDP:
        return _bytes(frame, Field.UDP_SRC) + _bytes(frame, Field.UDP_DST) + b"\0\x08\0\0"
    if proto == TCP:
        ports = _bytes(frame, Field.TCP_SRC) + _bytes(frame, Field.TCP_DST)
        return ports + bytes(8) + b"\x50" + bytes(7)
    if proto != icmp:
        return bytes(8)
    message = _bytes(frame, kind) + _bytes(frame, code) + bytes(2) + _bytes(frame, Field.ND_RESERVED)
    if any(frame[field] for field in _OF_ND):
        message += _bytes(frame, Field.IPV6_ND_TARGET)
        for number, field in ((1, Field.IPV6_ND_SLL), (2, Field.IPV6_ND_TLL)):
            message += bytes((number, 1)) + _bytes(frame, field) if frame[field] else b""
    return message

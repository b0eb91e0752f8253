"""What a switch sees in a frame, and how it writes changed fields back.

It follows Open vSwitch 3.1, whose rules of thumb are: a field that a frame has not is zero; fields behind a
malformed or cut-off header are zero, and so are the ports of all fragments but the first (the controller asks
for that); changed fields are written when the frame leaves; checksums are amended, not computed anew
(RFC 1624), so that a wrong one stays wrong. `lab/test_fake_agrees_with_ovs.py` proves it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from retinue.core.forwarding import neighbour
from retinue.core.forwarding.octets import amend, amend_words, put, put_back, word
from retinue.core.pipeline.entry import FIELD_BYTES, Field

IPV4, ARP, RARP, IPV6 = 0x0800, 0x0806, 0x8035, 0x86DD
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
NO_TYPE = 0x05FF
"""The type Open vSwitch gives to IEEE 802.3 frames that hold no EtherType (OFP_DL_TYPE_NOT_ETH_TYPE)."""
_VLANS = (0x8100, 0x88A8)
_VLAN_PRESENT = 0x1000
_SNAP = bytes.fromhex("aaaa03000000")
_PORTS = {TCP: (Field.TCP_SRC, Field.TCP_DST), UDP: (Field.UDP_SRC, Field.UDP_DST)}


class CannotRunError(ValueError):
    """An entry does what no entry of ours does; the message says what."""


@dataclass(frozen=True, slots=True)
class Header:
    """A frame's fields, those of value zero left out, and where its headers start (0: none)."""

    fields: dict[Field, int]
    eth_type: int = 0
    proto: int = 0
    """IP protocol or ARP operation; 0 makes a switch leave the network header as it is."""
    ttl: int = 0
    l3: int = 0
    l4: int = 0
    l4_size: int = 0
    l4_known: bool = False
    """True if the transport header is whole, and its fields are in `fields`."""


_BESIDE = (Field.IN_PORT, Field.METADATA, Field.TUNNEL_ID, Field.TUN_SRC, Field.TUN_DST)
"""Fields that are not in the frame."""


class Packet:
    """A frame on its way through the tables: as it came in, and its fields as they are now."""

    def __init__(self, frame: bytes, in_port: int) -> None:
        self.frame = frame
        self.in_port = in_port
        self.base = read(frame)
        self.fields = {**self.base.fields, Field.IN_PORT: in_port}
        self.ttl = self.base.ttl
        self.recirculated = False

    def recirculate(self) -> None:
        """Read the frame again as it is now, once: Open vSwitch does so to choose a bucket by its hash.

        It shows where a change cannot be written: a malformed packet has its old fields again.
        """
        if self.recirculated:
            return
        self.frame = self.sent()
        self.base = read(self.frame)
        beside = {name: self.fields[name] for name in _BESIDE if name in self.fields}
        self.fields, self.ttl = {**self.base.fields, **beside}, self.base.ttl
        self.recirculated = True

    def copy(self) -> "Packet":
        """A copy that is changed by itself."""
        twin = object.__new__(Packet)
        twin.frame, twin.in_port, twin.base = self.frame, self.in_port, self.base
        twin.fields, twin.ttl, twin.recirculated = dict(self.fields), self.ttl, self.recirculated
        return twin

    def push_vlan(self) -> None:
        """Raises CannotRunError for a second tag: no frame of ours ever has two."""
        if self.fields.get(Field.VLAN_VID):
            raise CannotRunError("an entry puts a second VLAN tag before a frame")
        self.fields[Field.VLAN_VID] = _VLAN_PRESENT

    def pop_vlan(self) -> None:
        """Take the outermost tag off. What is behind it has been read; a second tag stays a type unread."""
        self.fields.pop(Field.VLAN_VID, None)

    def sent(self) -> bytes:
        """The frame as it would be sent now."""
        out = write(self.frame, self.base, self.fields, self.ttl)
        had, has = self.base.fields.get(Field.VLAN_VID, 0), self.fields.get(Field.VLAN_VID, 0)
        if had == has:
            return out
        tag = b"\x81\x00" + (has & 0x0FFF).to_bytes(2, "big") if has else b""
        return out[:12] + tag + out[16 if had else 12 :]


def read(frame: bytes) -> Header:
    """The header of a frame of at least 14 bytes."""
    fields: dict[Field, int] = {}
    put(fields, frame, 0, Field.ETH_DST)
    put(fields, frame, 6, Field.ETH_SRC)
    at = 12
    if word(frame, at) in _VLANS and len(frame) >= at + 6:
        fields[Field.VLAN_VID] = word(frame, at + 2) & 0x0FFF | _VLAN_PRESENT
        at += 4
    eth_type = word(frame, at)
    at += 2
    if eth_type < 0x600:
        eth_type, at = _llc(frame, at)
    fields[Field.ETH_TYPE] = eth_type
    match eth_type:
        case 0x0800:
            found = _ipv4(frame, at, fields)
        case 0x86DD:
            found = _ipv6(frame, at, fields)
        case 0x0806 | 0x8035:
            found = _arp(frame, at, fields, eth_type)
        case _:
            found = Header(fields, eth_type)
    for field in [field for field, value in fields.items() if value == 0]:
        del fields[field]
    return found


def write(frame: bytes, base: Header, fields: Mapping[Field, int], ttl: int) -> bytes:
    """The frame with those fields changed that differ from `base`, its header."""
    out = bytearray(frame)

    def changed(field: Field) -> bool:
        return fields.get(field, 0) != base.fields.get(field, 0)

    for field, at in ((Field.ETH_DST, 0), (Field.ETH_SRC, 6)):
        if changed(field):
            put_back(out, at, field, fields)
    if base.eth_type == ARP and fields.get(Field.ARP_OP, 0):
        for field, offset in _ARP_FIELDS:
            if changed(field):
                put_back(out, base.l3 + offset, field, fields)
    if not base.proto or not base.l3:
        return bytes(out)
    if base.eth_type == IPV4:
        for field, offset in ((Field.IPV4_SRC, 12), (Field.IPV4_DST, 16)):
            if changed(field):
                _set_address(out, base, base.l3 + offset, fields.get(field, 0))
        if ttl != base.ttl:
            amend(out, base.l3 + 10, base.ttl << 8, ttl << 8)
            out[base.l3 + 8] = ttl
    elif base.eth_type == IPV6:
        for field, offset in ((Field.IPV6_SRC, 8), (Field.IPV6_DST, 24)):
            if changed(field):
                _set_address6(out, base, base.l3 + offset, fields.get(field, 0))
        out[base.l3 + 7] = ttl
    if base.l4_known:
        if base.fields.get(Field.ICMPV6_TYPE) in neighbour.TYPES and not base.fields.get(Field.ICMPV6_CODE):
            neighbour.write(out, base.l3, base.l4, base.l4_size, base.fields, fields)
        _write_transport(out, base, fields)
    return bytes(out)


# ---- reading ----


def _llc(frame: bytes, at: int) -> tuple[int, int]:
    """IEEE 802.3: the type is in the SNAP header, if there is one."""
    if frame[at : at + 6] == _SNAP and len(frame) >= at + 8:
        inner = word(frame, at + 6)
        return (inner if inner >= 0x600 else NO_TYPE), at + 8
    return NO_TYPE, at


_ARP_FIELDS = (
    (Field.ARP_OP, 6),
    (Field.ARP_SHA, 8),
    (Field.ARP_SPA, 14),
    (Field.ARP_THA, 18),
    (Field.ARP_TPA, 24),
)


def _arp(frame: bytes, at: int, fields: dict[Field, int], eth_type: int) -> Header:
    if len(frame) < at + 28 or frame[at : at + 6] != bytes.fromhex("000108000604"):
        return Header(fields, eth_type, l3=at)
    for field, offset in _ARP_FIELDS:
        put(fields, frame, at + offset, field)
    if fields[Field.ARP_OP] > 0xFF:
        fields[Field.ARP_OP] = 0
    return Header(fields, eth_type, proto=fields[Field.ARP_OP], l3=at)


def _ipv4(frame: bytes, at: int, fields: dict[Field, int]) -> Header:
    if len(frame) < at + 20:
        return Header(fields, IPV4)
    header, total = (frame[at] & 0x0F) * 4, word(frame, at + 2)
    if not 20 <= header <= total <= len(frame) - at:
        return Header(fields, IPV4)
    put(fields, frame, at + 12, Field.IPV4_SRC)
    put(fields, frame, at + 16, Field.IPV4_DST)
    put(fields, frame, at + 9, Field.IP_PROTO)
    later = bool(word(frame, at + 6) & 0x1FFF)
    fields[Field.IP_FRAG] = 3 if later else int(bool(word(frame, at + 6) & 0x2000))
    fields[Field.IP_TTL] = frame[at + 8]
    known = not later and _transport(frame, at + header, at + total, frame[at + 9], fields)
    return Header(
        fields,
        IPV4,
        proto=frame[at + 9],
        ttl=frame[at + 8],
        l3=at,
        l4=at + header,
        l4_size=total - header,
        l4_known=known,
    )


def _ipv6(frame: bytes, at: int, fields: dict[Field, int]) -> Header:
    if len(frame) < at + 40 or at + 40 + word(frame, at + 4) > len(frame):
        return Header(fields, IPV6)
    put(fields, frame, at + 8, Field.IPV6_SRC)
    put(fields, frame, at + 24, Field.IPV6_DST)
    end = at + 40 + word(frame, at + 4)
    l4, proto, later, fragment = at + 40, frame[at + 6], False, 0
    while proto in (0, 43, 44, 51, 60) and not later:
        size = 8
        if end - l4 >= size and proto != 44:
            size = (frame[l4 + 1] + 2) * 4 if proto == 51 else (frame[l4 + 1] + 1) * 8
        if end - l4 < size:
            return Header(fields, IPV6)
        if proto == 44:
            later = word(frame, l4 + 2) & 0xFFF8 != 0
            # One that is neither a part nor followed by one is not fragmented.
            fragment = 3 if later else int(bool(word(frame, l4 + 2))) or fragment
        proto = 44 if later else frame[l4]
        l4 += size
    fields[Field.IP_PROTO] = proto
    fields[Field.IP_FRAG] = fragment
    known = not later and _transport(frame, l4, end, proto, fields)
    fields[Field.IP_TTL] = frame[at + 7]
    return Header(
        fields,
        IPV6,
        proto=proto,
        ttl=frame[at + 7],
        l3=at,
        l4=l4,
        l4_size=end - l4,
        l4_known=known,
    )


def _transport(frame: bytes, at: int, end: int, proto: int, fields: dict[Field, int]) -> bool:
    """Read the transport header; False if it is cut off or of an unknown protocol."""
    size = end - at
    if proto in _PORTS:
        whole = size >= 8
        if proto == TCP:
            whole = size >= 20 and 20 <= (frame[at + 12] >> 4) * 4 <= size
        if whole:
            for field, offset in zip(_PORTS[proto], (0, 2), strict=True):
                put(fields, frame, at + offset, field)
        return whole
    if size < 8 or proto not in (ICMP, ICMPV6):
        return False
    v4 = proto == ICMP
    put(fields, frame, at, Field.ICMPV4_TYPE if v4 else Field.ICMPV6_TYPE)
    put(fields, frame, at + 1, Field.ICMPV4_CODE if v4 else Field.ICMPV6_CODE)
    if not v4 and frame[at] in neighbour.TYPES and frame[at + 1] == 0:
        put(fields, frame, at + 4, Field.ND_RESERVED)
        neighbour.read(frame[at + 8 : end], fields)
    return True


# ---- writing ----


def _set_address(out: bytearray, base: Header, at: int, value: int) -> None:
    old, new = bytes(out[at : at + 4]), value.to_bytes(4, "big")
    if base.proto == TCP and base.l4_size >= 20:
        amend_words(out, base.l4 + 16, old, new)
    elif base.proto == UDP and base.l4_size >= 8:
        _amend_udp(out, base.l4 + 6, old, new)
    amend_words(out, base.l3 + 10, old, new)
    out[at : at + 4] = new


def _set_address6(out: bytearray, base: Header, at: int, value: int) -> None:
    old, new = bytes(out[at : at + 16]), value.to_bytes(16, "big")
    if base.proto == TCP and base.l4_size >= 20:
        amend_words(out, base.l4 + 16, old, new)
    elif base.proto == UDP and base.l4_size >= 8:
        _amend_udp(out, base.l4 + 6, old, new)
    elif base.proto == ICMPV6 and base.l4_size >= 4:
        amend_words(out, base.l4 + 2, old, new)
    out[at : at + 16] = new


def _amend_udp(out: bytearray, at: int, old: bytes, new: bytes) -> None:
    """Zero means "no checksum" (RFC 768): it stays so, and a computed zero becomes all ones."""
    if word(out, at):
        amend_words(out, at, old, new)
        if not word(out, at):
            out[at : at + 2] = b"\xff\xff"


def _write_transport(out: bytearray, base: Header, fields: Mapping[Field, int]) -> None:
    at = base.l4
    if base.proto in _PORTS:
        first, second = _PORTS[base.proto]
    elif base.proto == ICMP and base.eth_type == IPV4:
        first, second = Field.ICMPV4_TYPE, Field.ICMPV4_CODE
    elif base.proto == ICMPV6 and base.eth_type == IPV6:
        first, second = Field.ICMPV6_TYPE, Field.ICMPV6_CODE
    else:
        return
    size = FIELD_BYTES[first]
    new = fields.get(first, 0).to_bytes(size, "big") + fields.get(second, 0).to_bytes(size, "big")
    old = bytes(out[at : at + 2 * size])
    if new == old:
        return
    if base.proto == UDP:
        _amend_udp(out, at + 6, old, new)
    else:
        amend_words(out, at + (16 if base.proto == TCP else 2), old, new)
    out[at : at + 2 * size] = new

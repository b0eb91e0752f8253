"""Flow, group and meter entries as values: what a switch should hold, in OpenFlow's terms but not its bytes.

A match is a sorted tuple of (field, value, mask); values are integers, so that entries hash and compare fast.
`southbound.openflow.codec` turns entries into bytes, `core.forwarding` executes them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from operator import itemgetter

from retinue.core.model import mac_to_int

NICIRA = 0x80
"""Added to the number of a field that OpenFlow's basic class has not, and Nicira's class 1 (NXM_NX) has."""
ERICSSON = 0x100
"""The same of those that only Ericsson's class (0x1000) has. Of switches Open vSwitch alone knows it, since
2.11, and writes these fields where its datapath can: the one in user space."""


class Field(IntEnum):
    """Header fields, by their OpenFlow basic class number (OXM, OpenFlow 1.4 section 7.2.3.7)."""

    IN_PORT = 0
    METADATA = 2
    ETH_DST = 3
    ETH_SRC = 4
    ETH_TYPE = 5
    VLAN_VID = 6
    IP_PROTO = 10
    IPV4_SRC = 11
    IPV4_DST = 12
    TCP_SRC = 13
    TCP_DST = 14
    UDP_SRC = 15
    UDP_DST = 16
    ICMPV4_TYPE = 19
    ICMPV4_CODE = 20
    ARP_OP = 21
    ARP_SPA = 22
    ARP_TPA = 23
    ARP_SHA = 24
    ARP_THA = 25
    IPV6_SRC = 26
    IPV6_DST = 27
    ICMPV6_TYPE = 29
    ICMPV6_CODE = 30
    IPV6_ND_TARGET = 31
    IPV6_ND_SLL = 32
    IPV6_ND_TLL = 33
    TUNNEL_ID = 38
    IP_FRAG = NICIRA + 26
    """0: no fragment. Bits: 1 a fragment, 2 not the first one."""
    IP_TTL = NICIRA + 29
    TUN_SRC = NICIRA + 31
    """The outer addresses (IPv4) of what came by a tunnel, or is to go by one; 0 of what did not."""
    TUN_DST = NICIRA + 32
    ND_RESERVED = ERICSSON + 1
    """The four bytes behind the checksum of a neighbour solicitation or advertisement: the latter's flags."""
    ND_OPTIONS_TYPE = ERICSSON + 2
    """The type of its first link-layer address option (1 source, 2 target; 0: it has none). Written, it
    becomes that of its first option, whichever that is."""


FIELD_BYTES: dict[Field, int] = {
    Field.IN_PORT: 4,
    Field.METADATA: 8,
    Field.ETH_DST: 6,
    Field.ETH_SRC: 6,
    Field.ETH_TYPE: 2,
    Field.VLAN_VID: 2,
    Field.IP_PROTO: 1,
    Field.IPV4_SRC: 4,
    Field.IPV4_DST: 4,
    Field.TCP_SRC: 2,
    Field.TCP_DST: 2,
    Field.UDP_SRC: 2,
    Field.UDP_DST: 2,
    Field.ICMPV4_TYPE: 1,
    Field.ICMPV4_CODE: 1,
    Field.ARP_OP: 2,
    Field.ARP_SPA: 4,
    Field.ARP_TPA: 4,
    Field.ARP_SHA: 6,
    Field.ARP_THA: 6,
    Field.IPV6_SRC: 16,
    Field.IPV6_DST: 16,
    Field.ICMPV6_TYPE: 1,
    Field.ICMPV6_CODE: 1,
    Field.IPV6_ND_TARGET: 16,
    Field.IPV6_ND_SLL: 6,
    Field.IPV6_ND_TLL: 6,
    Field.TUNNEL_ID: 8,
    Field.IP_FRAG: 1,
    Field.IP_TTL: 1,
    Field.TUN_SRC: 4,
    Field.TUN_DST: 4,
    Field.ND_RESERVED: 4,
    Field.ND_OPTIONS_TYPE: 1,
}
"""Width of each field's value in bytes."""


class PortNo(IntEnum):
    """Reserved port numbers."""

    MAX = 0xFFFFFF00
    IN_PORT = 0xFFFFFFF8
    TABLE = 0xFFFFFFF9
    NORMAL = 0xFFFFFFFA
    FLOOD = 0xFFFFFFFB
    ALL = 0xFFFFFFFC
    CONTROLLER = 0xFFFFFFFD
    LOCAL = 0xFFFFFFFE
    ANY = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Output:
    """Send the frame out of a port, as it is at this point."""

    port: int


@dataclass(frozen=True, slots=True)
class SetField:
    """Overwrite a header field."""

    field: Field
    value: int


@dataclass(frozen=True, slots=True)
class RegMove:
    """Copy one field into another of the same width (Nicira reg_move, which every Open vSwitch has)."""

    source: Field
    target: Field


@dataclass(frozen=True, slots=True)
class DecTtl:
    """Take one from the IP TTL; a frame whose TTL runs out is dropped."""


@dataclass(frozen=True, slots=True)
class PushVlan:
    """Put an 802.1Q tag before all else, VLAN 0 until a SetField says which."""


@dataclass(frozen=True, slots=True)
class PopVlan:
    """Take the outermost VLAN tag off; the entry must match frames with a tag alone."""


@dataclass(frozen=True, slots=True)
class Resubmit:
    """Look the frame up in a table as it is at this point (Nicira resubmit, which every Open vSwitch has).

    Unlike `goto` it may be an earlier one, where the frame's new header has other entries.
    """

    table: int


@dataclass(frozen=True, slots=True)
class CheckLarger:
    """Write into a bit of a field whether the frame has more than `size` bytes, its Ethernet header and tag
    among them (Nicira check_pkt_larger, Open vSwitch since 2.12)."""

    size: int
    field: Field
    bit: int


@dataclass(frozen=True, slots=True)
class ToGroup:
    """Hand the frame to a group, which chooses one of its buckets, or hands all of them a copy."""

    group: int


CONTROLLER = Output(PortNo.CONTROLLER)
"""Hand the frame, as it is at this point, to the controller."""

Action = Output | SetField | RegMove | DecTtl | PushVlan | PopVlan | Resubmit | CheckLarger | ToGroup

MatchTerm = tuple[Field, int, int | None]
Match = tuple[MatchTerm, ...]
"""Sorted by field; the mask is None for an exact match, otherwise its set bits must agree with the value."""

FlowKey = tuple[int, int, Match]
"""Table, priority and match: what makes two entries the same entry to a switch."""


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow entry. Actions are applied at once, in order; then the frame goes on to table `goto`, if any.

    No actions and no `goto` drops the frame. `expires_at` (seconds since the epoch) makes the switch remove
    the entry by itself; the session turns it into a hard timeout when it sends the entry.
    """

    table: int
    priority: int
    match: Match
    actions: tuple[Action, ...] = ()
    goto: int | None = None
    meter: int | None = None
    cookie: int = 0
    expires_at: float | None = None

    @property
    def key(self) -> FlowKey:
        return (self.table, self.priority, self.match)


FlowsBySwitch = dict[str, list[Flow]]
"""Flow entries by the id of the switch they are for."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group of buckets. Of a select group each flow of packets takes one, by its hash."""

    id: int
    buckets: tuple[tuple[Action, ...], ...]
    replicates: bool = False
    """Every bucket gets a copy (type ALL). No copy goes back to the port where the frame came in."""


EntriesBySwitch = dict[str, list[Flow | Group]]
"""Flow entries, and groups that they name, by the id of the switch they are for."""


@dataclass(frozen=True, slots=True)
class Meter:
    """Frames above `rate` a second (after a burst of `burst`) are dropped."""

    id: int
    rate: int
    burst: int
    kilobits: bool = False
    """Rate and burst count kilobits, not frames."""


Entry = Flow | Group | Meter
EntryKey = FlowKey | tuple[str, int]
"""A flow's key, or ("group", id), or ("meter", id)."""
Program = dict[EntryKey, Entry]
"""Entries of one switch."""


def named_by(flow: Flow) -> Iterator[EntryKey]:
    """The meter and the groups that a flow names. A switch takes it only once it has these, and deletes it
    with any of them (OpenFlow 1.4.0, 5.6 and 7.3.4.14)."""
    if flow.meter is not None:
        yield ("meter", flow.meter)
    for action in flow.actions:
        if isinstance(action, ToGroup):
            yield ("group", action.group)


def key_of(entry: Entry) -> EntryKey:
    match entry:
        case Flow():
            return entry.key
        case Group():
            return ("group", entry.id)
        case Meter():
            return ("meter", entry.id)


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one switch's entries, applied as a whole or not at all: what to add, and what to remove.

    A flow in `add` replaces the one of its key; a flow in `remove` is removed by its key.
    """

    add: tuple[Flow, ...] = ()
    remove: tuple[Flow, ...] = ()
    groups: tuple[Group, ...] = ()
    remove_groups: tuple[int, ...] = ()
    meters: tuple[Meter, ...] = ()
    remove_meters: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        return not (
            self.add or self.remove or self.groups or self.remove_groups or self.meters or self.remove_meters
        )

    @property
    def flow_count(self) -> int:
        """Flow entries added, changed and removed."""
        return len(self.add) + len(self.remove)

    @property
    def entries(self) -> "dict[EntryKey, Entry | None]":
        """What a switch that has made the change holds of its keys; None: nothing."""
        has: dict[EntryKey, Entry | None] = {flow.key: flow for flow in self.add}
        has.update({("group", group.id): group for group in self.groups})
        has.update({("meter", meter.id): meter for meter in self.meters})
        has.update({flow.key: None for flow in self.remove})
        has.update({("group", number): None for number in self.remove_groups})
        has.update({("meter", number): None for number in self.remove_meters})
        return has


_FIELDS = {field.name.lower(): field for field in Field}
_FIELD_OF = itemgetter(0)
FieldValue = int | str | IPv4Address | IPv6Address | IPv4Network | IPv6Network | tuple[int, int]


def match(**terms: FieldValue) -> Match:
    """Build a match: match(in_port=3, eth_src="52:54:00:00:00:01", ipv4_dst=IPv4Network("10.1.0.0/24")).

    A string is a MAC, a network becomes value and mask, a pair of integers is (value, mask).
    A mask of zero bits matches all, and is left out, as a switch does.
    """
    found: list[MatchTerm] = []
    for name, value in terms.items():
        number, mask = _value(value)
        if mask != 0:
            found.append((_FIELDS[name], number, mask))
    return tuple(sorted(found, key=_FIELD_OF))


def in_order(*terms: MatchTerm) -> Match:
    """A match of these terms, each of another field."""
    return tuple(sorted(terms, key=lambda term: term[0]))


def set_field(field: Field, value: int | str | IPv4Address | IPv6Address) -> SetField:
    return SetField(field, _value(value)[0])


def _value(value: FieldValue) -> tuple[int, int | None]:
    match value:
        case int():
            return int(value), None
        case str():
            return mac_to_int(value), None
        case tuple():
            return value[0] & value[1], value[1]
        case IPv4Network() | IPv6Network():
            full = value.prefixlen == value.max_prefixlen
            return int(value.network_address), None if full else int(value.netmask)
        case _:
            return int(value), None

"""OpenFlow messages as values. `codec` makes them of bytes; the session acts on them."""

from collections.abc import Collection
from dataclasses import dataclass

from retinue.core.pipeline.entry import Action, Flow, FlowKey, Group, Match, Meter
from retinue.southbound.openflow.errors import error_text


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of each side: the versions it speaks."""

    xid: int
    version: int
    """The highest version the sender knows, from the header."""
    versions: frozenset[int]
    """All of its versions, where it lists them; otherwise empty."""

    def settled(self, ours: Collection[int]) -> int | None:
        """The version both sides settle on, where we offer `ours` by a bitmap; None: there is none.

        "If both [...] contain a OFPHET_VERSIONBITMAP hello element, and if those bitmaps have some common
        bits set, the negotiated version must be the highest version set in both bitmaps. Otherwise, the
        negotiated version must be the smaller of the version number that was sent and the one that was
        received in the version fields" (OpenFlow 1.4, section 6.3.1).
        """
        if self.versions:
            return max(self.versions.intersection(ours), default=None)
        lower = min(self.version, max(ours))
        return lower if lower in ours else None


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    """The switch rejected a message; `xid` is that of the message."""

    xid: int
    type: int
    code: int
    data: bytes
    """The first bytes of the message that was rejected, or a text."""

    @property
    def text(self) -> str:
        return error_text(self.type, self.code)


@dataclass(frozen=True, slots=True)
class EchoRequest:
    """Keep-alive; to be answered with the same data."""

    xid: int
    data: bytes


@dataclass(frozen=True, slots=True)
class EchoReply:
    """The answer to an echo request."""

    xid: int
    data: bytes


@dataclass(frozen=True, slots=True)
class FeaturesReply:
    """Which switch this is, and what it has."""

    xid: int
    dpid: int
    buffers: int
    tables: int
    auxiliary: int
    """0 for the main connection."""
    capabilities: int


@dataclass(frozen=True, slots=True)
class PacketIn:
    """A frame that an entry, or a table miss, sent to the controller."""

    xid: int
    buffer_id: int
    reason: int
    table: int
    cookie: int
    in_port: int
    """0 where the switch did not tell."""
    frame: bytes
    match: Match
    """What the switch says of the frame beside its bytes: in_port, tunnel id, metadata."""


@dataclass(frozen=True, slots=True)
class FlowRemoved:
    """A flow entry ended by its time limit, or was deleted."""

    xid: int
    reason: int
    table: int
    priority: int
    match: Match
    cookie: int
    packets: int
    bytes: int
    duration_s: float
    hard_timeout: int

    @property
    def key(self) -> FlowKey:
        return (self.table, self.priority, self.match)


@dataclass(frozen=True, slots=True)
class PortDesc:
    """A port of the switch."""

    number: int
    name: str
    mac: bytes
    config: int
    state: int

    @property
    def up(self) -> bool:
        """Administratively on (no OFPPC_PORT_DOWN) and with a link (no OFPPS_LINK_DOWN)."""
        return not (self.config & 1 or self.state & 1)


@dataclass(frozen=True, slots=True)
class PortStatus:
    """A port was added, changed or deleted."""

    xid: int
    reason: int
    port: PortDesc


@dataclass(frozen=True, slots=True)
class FlowStats:
    """A flow entry the switch has, with its counters."""

    flow: Flow
    """As installed; `expires_at` is None, see `hard_timeout`."""
    packets: int
    bytes: int
    duration_s: float
    """Seconds since it was installed or overwritten."""
    hard_timeout: int
    """Seconds after installation at which the switch removes it; 0 for never."""


@dataclass(frozen=True, slots=True)
class GroupDesc:
    """A group the switch has."""

    id: int
    group: Group | None
    """None when it is of a kind that ours never are."""


@dataclass(frozen=True, slots=True)
class MeterConfig:
    """A meter the switch has."""

    id: int
    meter: Meter | None
    """None when it is of a kind that ours never are."""


@dataclass(frozen=True, slots=True)
class MeterStats:
    """What a meter has counted since it was made."""

    id: int
    frames: int
    dropped: int
    """Of these, by its one band."""


@dataclass(frozen=True, slots=True)
class AggregateStats:
    """Sums over the flow entries that were asked for."""

    packets: int
    flows: int


Part = AggregateStats | FlowStats | GroupDesc | MeterConfig | MeterStats | PortDesc


@dataclass(frozen=True, slots=True)
class MultipartReply:
    """One message of an answer in several parts."""

    xid: int
    type: int
    more: bool
    """Further messages of the same reply follow."""
    parts: tuple[Part, ...]
    left_out: int = 0
    """Flow entries left out: well-formed, but nothing `pipeline.entry` can express, so not ours."""


@dataclass(frozen=True, slots=True)
class BarrierReply:
    """Everything sent before the barrier is done."""

    xid: int


@dataclass(frozen=True, slots=True)
class RoleReply:
    """The controller's role at this switch."""

    xid: int
    role: int
    generation_id: int


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """The switch has given the controller another role, unasked: another one has become its master."""

    xid: int
    role: int
    generation_id: int


@dataclass(frozen=True, slots=True)
class FlowMod:
    """Adds or deletes flow entries."""

    xid: int
    command: int
    flow: Flow
    hard_timeout: int
    flags: int


@dataclass(frozen=True, slots=True)
class GroupMod:
    """Adds, modifies or deletes a group."""

    xid: int
    command: int
    group: Group


@dataclass(frozen=True, slots=True)
class MeterMod:
    """Adds, modifies or deletes a meter."""

    xid: int
    command: int
    meter: Meter


@dataclass(frozen=True, slots=True)
class PacketOut:
    """Has the switch send a frame."""

    xid: int
    in_port: int
    actions: tuple[Action, ...]
    frame: bytes


@dataclass(frozen=True, slots=True)
class BundleControl:
    """A step of a bundle's life, or its answer."""

    xid: int
    bundle: int
    step: int
    flags: int


@dataclass(frozen=True, slots=True)
class BundleAdd:
    """Puts a message into a bundle."""

    xid: int
    bundle: int
    flags: int
    message: bytes
    """The whole message inside, header and all."""


@dataclass(frozen=True, slots=True)
class Other:
    """A message with nothing inside that we read (a request without body, a kind we never asked for)."""

    xid: int
    type: int
    body: bytes


Message = (
    Hello
    | ErrorMessage
    | EchoRequest
    | EchoReply
    | FeaturesReply
    | PacketIn
    | FlowRemoved
    | PortStatus
    | MultipartReply
    | BarrierReply
    | RoleReply
    | RoleStatus
    | FlowMod
    | GroupMod
    | MeterMod
    | PacketOut
    | BundleControl
    | BundleAdd
    | Other
)

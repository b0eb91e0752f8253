"""OpenFlow messages as values. `codec` makes them of bytes; the session acts on them."""

from dataclasses import dataclass

from retinue.flows.entry import Action, Flow, FlowKey, Group, Match, Meter
from retinue.openflow.errors import error_text


@dataclass(frozen=True, slots=True)
class Hello:
    xid: int
    version: int
    """The highest version the sender knows, from the header."""
    versions: frozenset[int]
    """All of its versions, where it lists them; otherwise empty."""

    def speaks(self, version: int) -> bool:
        """Whether both sides settle on `version`, the one version we offer (OpenFlow 1.4, section 6.3.1)."""
        return version in self.versions if self.versions else self.version >= version


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    xid: int
    type: int
    code: int
    data: bytes
    """The first bytes of the message that was refused, or a text."""

    @property
    def text(self) -> str:
        return error_text(self.type, self.code)


@dataclass(frozen=True, slots=True)
class EchoRequest:
    xid: int
    data: bytes


@dataclass(frozen=True, slots=True)
class EchoReply:
    xid: int
    data: bytes


@dataclass(frozen=True, slots=True)
class FeaturesReply:
    xid: int
    dpid: int
    buffers: int
    tables: int
    auxiliary: int
    """0 for the main connection."""
    capabilities: int


@dataclass(frozen=True, slots=True)
class PacketIn:
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
    xid: int
    reason: int
    port: PortDesc


@dataclass(frozen=True, slots=True)
class FlowStats:
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
    id: int
    group: Group | None
    """None when it is of a kind that ours never are."""


@dataclass(frozen=True, slots=True)
class MeterConfig:
    id: int
    meter: Meter | None
    """None when it is of a kind that ours never are."""


@dataclass(frozen=True, slots=True)
class SwitchDesc:
    manufacturer: str
    hardware: str
    software: str
    serial: str
    datapath: str


Part = SwitchDesc | FlowStats | GroupDesc | MeterConfig | PortDesc


@dataclass(frozen=True, slots=True)
class MultipartReply:
    xid: int
    type: int
    more: bool
    """Further messages of the same reply follow."""
    parts: tuple[Part, ...]
    foreign: int = 0
    """Flow entries left out: well-formed, but nothing `flows.entry` can express, so not ours."""


@dataclass(frozen=True, slots=True)
class BarrierReply:
    xid: int


@dataclass(frozen=True, slots=True)
class RoleReply:
    xid: int
    role: int
    generation_id: int


@dataclass(frozen=True, slots=True)
class FlowMod:
    xid: int
    command: int
    flow: Flow
    hard_timeout: int
    flags: int


@dataclass(frozen=True, slots=True)
class GroupMod:
    xid: int
    command: int
    group: Group


@dataclass(frozen=True, slots=True)
class MeterMod:
    xid: int
    command: int
    meter: Meter


@dataclass(frozen=True, slots=True)
class PacketOut:
    xid: int
    in_port: int
    actions: tuple[Action, ...]
    frame: bytes


@dataclass(frozen=True, slots=True)
class BundleControl:
    xid: int
    bundle: int
    step: int
    flags: int


@dataclass(frozen=True, slots=True)
class BundleAdd:
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
    | FlowMod
    | GroupMod
    | MeterMod
    | PacketOut
    | BundleControl
    | BundleAdd
    | Other
)

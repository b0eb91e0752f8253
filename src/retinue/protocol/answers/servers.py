"""Servers, switches, traces, other domains and the controller itself, as answers."""

import msgspec

from retinue.core.model import Role, Service
from retinue.core.tracing.ends import Ending
from retinue.core.tracing.trace import Sent
from retinue.protocol.answers.common import Numbers, Reasons
from retinue.protocol.fabric import Places
from retinue.protocol.links import LinkShown
from retinue.protocol.servers import AgentState, ServerState


class ShownHost(msgspec.Struct):
    id: str
    mac: str


class ShownSubinterface(msgspec.Struct):
    vrf: str
    vlan: int
    routes: list[str] = []
    address: str | None = None
    ways: list[str] = []
    """Of `routes` those to which it is the way now."""


class ShownServer(msgspec.Struct):
    """Of a machine that nobody registered, and whose ARP was seen, only the first five fields are there."""

    id: str
    mac: str
    detected_at: str
    at: str
    state: ServerState
    address: str | None = None
    edge: str = ""
    services: list[Service] = []
    routes: list[str] = []
    metric: int = 0
    chassis: str = ""
    anycast: list[str] = []
    load: int = 0
    ways: list[str] = []
    """Of `routes` those to which it is the way now."""
    subinterfaces: list[ShownSubinterface] = []
    """Of a router: its ways out of other VRFs than the default one."""
    lost: str = ""
    """Why a router is not there at the moment; "": it is."""
    given_at: str = ""
    gateway_group: str = ""
    vms: list[str] = []
    fenced: bool = False
    drained: bool = False
    agent: AgentState = AgentState.NONE
    agent_release: str = ""
    """As the agent said when it listened last; "": it has not, to this controller."""
    hosts: list[ShownHost] = []
    """Machines with ports of its edge of their own."""


class AllServers(msgspec.Struct):
    servers: list[ShownServer]


class RegisteredServers(msgspec.Struct):
    servers: list[str]


class DrainedServer(msgspec.Struct):
    server: str
    drained: bool
    vms: list[str] = []
    """Those that are still there: who asks migrates them."""


class FencedServer(msgspec.Struct):
    server: str
    fenced: bool


class MacRow(msgspec.Struct):
    mac: str
    port: int
    name: str
    """Of the port; "": the switch has not told it."""
    vm: str
    """Whose MAC it is; "": the gateway's."""
    shared: bool
    """Every unicast MAC that has no row becomes this one."""
    confirmed: bool


class MacTable(msgspec.Struct):
    switch: str
    rows: list[MacRow]


class JudgedRow(msgspec.Struct):
    mac: str
    ip: str
    rejected: str
    """Why it is not believed; "": it is a binding."""


class JudgedRows(msgspec.Struct):
    switch: str
    rows: list[JudgedRow]


class ServersAgent(msgspec.Struct):
    server: str
    agent: AgentState


class ReportedMigration(msgspec.Struct):
    migration: str
    """"": what was reported belongs to none, nor has it a `state`."""
    state: str


class RejectedPort(msgspec.Struct):
    port: str
    vm: str
    reason: str


class ShownSwitch(msgspec.Struct):
    id: str
    role: Role
    dpid: str
    connected: bool
    peer: str
    openflow: str
    """The version spoken with it: 1.4, or 1.3, in which a change is made step by step. Empty while it is
    away, and of a router of others."""
    server: str
    flows: int
    pending: int
    ports: dict[str, int]
    rejected_ports: list[RejectedPort]
    uplink: str
    standby: list[str]
    places: Places
    tunnel: str
    endpoint: str
    vdp: bool
    gateway_group: str
    configured: bool
    """It stands in the configuration file."""


class AllSwitches(msgspec.Struct):
    switches: list[ShownSwitch]


class ShownLink(msgspec.Struct):
    lower: str
    """SWITCH:PORT of a leaf, or of a spine to a core."""
    upper: str
    state: LinkShown
    reason: str
    """Why it is lost, or idle; "": it is not."""
    carries: bool
    """Whether the switch at its lower end sends up by it."""
    configured: bool


class AllLinks(msgspec.Struct):
    links: list[ShownLink]


class ShownAudit(msgspec.Struct):
    switch: str
    entries: int
    missing: int
    changed: int
    foreign: int
    mended: bool


class ShownFlow(msgspec.Struct):
    switch: str
    role: Role
    table: int
    table_name: str
    priority: int
    match: str
    actions: str
    reason: str
    cookie: str
    expires_at: float | None
    confirmed: bool


class AllFlows(msgspec.Struct):
    flows: list[ShownFlow]


class ShownPlace(msgspec.Struct):
    switch: str
    port: int
    name: str


class TracedEntry(msgspec.Struct):
    table: int
    table_name: str
    priority: int
    priority_name: str
    match: str
    actions: str
    reason: str
    meter: str
    owners: list[str]
    confirmed: bool = False
    """Of the entries that switches should hold."""
    packets: int | None = None
    """Of those that were read from them."""


class TracedHop(msgspec.Struct):
    switch: str
    role: Role
    port: str
    in_port: int
    frame: str
    summary: str
    entries: list[TracedEntry]
    sent: list[Sent]


class TracedWay(msgspec.Struct):
    at: ShownPlace
    frame: str
    summary: str
    notes: list[str]
    hops: list[TracedHop]
    ends: list[Ending]
    passes: bool
    ways: int
    others: list[str]


class LiveWay(TracedWay):
    unread: dict[str, str]
    differs: list[str]


class ShownTrace(TracedWay, kw_only=True):
    live: LiveWay | None = None
    """By the entries that were read from the switches; only there if it was asked for."""


class ShownDomain(msgspec.Struct):
    id: str
    gateway: str
    tunnel: str
    prefixes: list[str]
    away: int
    guests: int


class FarVM(msgspec.Struct):
    vm: str
    addresses: list[str]
    home: str
    domain: str
    server: str


class AllDomains(msgspec.Struct):
    domains: list[ShownDomain]
    vms: list[FarVM]


class Passed(msgspec.Struct):
    packets: int
    bytes: int


class ShownAnchor(msgspec.Struct):
    vm: str
    home: str
    """"": this domain."""
    domain: str
    """Where the VM is; "": here, as a guest."""
    gateway: str
    addresses: list[str]
    since: float
    ended: float | None
    reason: str
    """Of one that was ended."""
    idle_seconds: float
    until: float | None
    arrived: Passed
    """For the VM, since this controller was started, as the next two."""
    sent: Passed
    dropped: Passed
    """Since it was ended."""
    last_arrived: float | None
    read_at: float | None
    """When the gateway said so; null: not yet."""


class AllAnchors(msgspec.Struct):
    anchors: list[ShownAnchor]


class ActiveController(msgspec.Struct):
    name: str
    url: str
    epoch: int
    since: float


class ShownCluster(msgspec.Struct):
    """Of the only controller of its switches `role` alone, "alone"; else it is "active" or "standby"."""

    role: str
    name: str = ""
    active: ActiveController | None = None
    """None: there has been none yet."""
    mandate_seconds: float | None = None
    """Of the active one: for how long it may go on without the database."""
    heard_seconds: float | None = None
    """Since it last saw a sign of the active one's in the database."""
    database: str = ""
    database_cluster: bool = False
    switches_standing: int = 0
    """Switches that are connected and wait to be taken over."""


class KnownSwitches(msgspec.Struct):
    known: int
    connected: int


class KnownServers(msgspec.Struct):
    known: int
    placed: int


class ShownManager(msgspec.Struct):
    state: str
    """there, away, or not looked for yet."""
    reason: str
    since: float | None
    trouble: str
    """What was wrong with an answer of its, and when."""
    troubled: float | None


class ShownStatus(msgspec.Struct):
    version: str
    switches: KnownSwitches
    servers: KnownServers
    vms: int
    bindings: int
    migrations_under_way: int
    flow_mods: int
    pending: Numbers
    entries_rejected: dict[str, str]
    """By switch: what it said last."""
    spoof_attempts: int
    counters: Numbers
    rejected: Reasons
    rejected_by_agents: Reasons
    left_out: list[str]
    """What stands in the configuration file and was removed by request: "link leaf1:s2 - spine2:l1"."""
    managers: dict[str, ShownManager]
    """Of those that are processes of their own: mobility and resources, or none."""
    certificates: dict[str, float]
    """By holder: when one that ends within 30 days does, or did; the own, and of who has connected."""
    not_kept: str
    """Why what is changed now would not outlive the controller; "" while the database takes it."""
    last_event: int


class KnownMac(msgspec.Struct):
    """What is answered to a server's word of its own MAC."""

    server: str
    known: bool
    """The server is known by it, from now on."""
    reason: str
    """Why it is not."""

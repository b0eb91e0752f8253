"""The controller's event stream: its types, their fields, and an event as agents read it.

Every event has `id` (a number that rises by one), `at` (seconds since the epoch) and `type`; the stream
begins with a `hello`, whose id is that of the last event before it. The orders of a migration
(migrations.Order) are events of the same stream.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from retinue.protocol.errors import RecordError
from retinue.protocol.migrations import MigrationRecord, Order
from retinue.protocol.records import record
from retinue.protocol.vms import VMRecord

HELLO = "hello"
"""Type of the stream's first message, which is no event of the network."""


class EventType(StrEnum):
    EVENTS_LOST = "events.lost"
    """The listener asked for events that are not kept any more: read anew what there is."""
    VM_REGISTERED = "vm.registered"
    VM_REPORTED = "vm.reported"
    VM_ADDRESSES_REPORTED = "vm.addresses_reported"
    """A server says that a VM uses these addresses; a manager has to confirm them."""
    VM_REPORT_REFUSED = "vm.report_refused"
    """What a server says of a VM cannot be so, or is too much."""
    VM_READY = "vm.ready"
    VM_START = "vm.start"
    """An order to the agent of `server`: make the VM's port; the VM is to be started when it is ready."""
    VM_STOP = "vm.stop"
    """An order to the agent of `server`: switch the VM off."""
    VM_REBOOT = "vm.reboot"
    """An order to the agent of `server`: have the guest shut down and start anew."""
    VM_RESET = "vm.reset"
    """An order to the agent of `server`: start the guest anew at once."""
    VM_NICS = "vm.nics"
    """An order to the agent of `server`: put NICs in and take NICs out until the VM has those it is shown
    with."""
    VM_STARTED = "vm.started"
    VM_STOPPED = "vm.stopped"
    VM_CHANGED = "vm.changed"
    """Its manager has changed the VM: memory, addresses, whether it is started again, a NIC."""
    VM_REMOVED = "vm.removed"
    VM_ONLINE = "vm.online"
    """A migrated VM is bound at its new switch, which has confirmed it, and nowhere else."""
    VM_OFFLINE = "vm.offline"
    """Nothing of it is bound at the old one any more."""
    ADDRESS_TAKEN = "address.taken"
    MAC_CHANGED = "nic.mac_changed"
    """A guest has given its NIC another MAC, as it may."""
    VM_MISMATCH = "vm.mismatch"
    VM_RENEW = "vm.renew"
    """An order to the agent of `server`: renew a lease on the VM's behalf."""
    HYPERVISOR_EVENT = "hypervisor.event"
    PORT_ADDED = "port.added"
    PORT_REMOVED = "port.removed"
    BINDING_ADDED = "binding.added"
    BINDING_RENEWED = "binding.renewed"
    BINDING_REMOVED = "binding.removed"
    BINDING_UNCONFIRMED = "binding.unconfirmed"
    BINDING_REJECTED = "binding.rejected"
    LEASE_DIFFERS = "lease.differs"
    """A renewal on a VM's behalf brought other name servers than the VM was told."""
    RENEWAL_SENT = "renewal.sent"
    RENEWAL_ACKED = "renewal.acked"
    RENEWAL_REJECTED = "renewal.rejected"
    RENEWAL_SILENT = "renewal.silent"
    RENEWAL_FAILED = "renewal.failed"
    DHCP_REJECTED = "dhcp.rejected"
    STORAGE_LOGIN = "storage.login"
    """An FCoE forwarder has granted a port to a NIC, and its frames may pass."""
    STORAGE_LOGOUT = "storage.logout"
    SPOOFING = "spoofing"
    FRAME_REJECTED = "frame.rejected"
    GATEWAY_GROUP_REGISTERED = "gateway.registered"
    GATEWAY_GROUP_REMOVED = "gateway.removed"
    GATEWAY_LEARNED = "gateway.learned"
    """A leaf has told an edge the MAC of another gateway group: its server is in that from now on."""
    GATEWAY_REFUSED = "gateway.refused"
    """What was told of the gateway's MAC is not believed."""
    GATEWAY_CONFLICT = "gateway.conflict"
    """Some host has a MAC of the gateway's: it speaks under it at a leaf's port."""
    VRF_REGISTERED = "vrf.registered"
    VRF_REMOVED = "vrf.removed"
    VNET_REGISTERED = "vnet.registered"
    VNET_REMOVED = "vnet.removed"
    SUBNET_REGISTERED = "subnet.registered"
    SUBNET_REMOVED = "subnet.removed"
    SERVER_REGISTERED = "server.registered"
    SERVER_REMOVED = "server.removed"
    SERVER_DETECTED = "server.detected"
    SERVER_MOVED = "server.moved"
    UPLINK_FOUND = "uplink.found"
    """One of several uplinks of a server's edge leads to a leaf."""
    UPLINK_USED = "uplink.used"
    """All of a server's traffic goes by this one from now on."""
    SERVER_CONFLICT = "server.conflict"
    SERVER_IDENTIFIED = "server.identified"
    SERVER_MISMATCH = "server.mismatch"
    SERVER_UNKNOWN = "server.unknown"
    SERVER_DRAINED = "server.drained"
    SERVER_UNDRAINED = "server.undrained"
    SERVER_FENCED = "server.fenced"
    SERVER_UNFENCED = "server.unfenced"
    ROUTER_LOST = "router.lost"
    """A router is not there: what went by it goes by another."""
    ROUTER_RETURNED = "router.returned"
    LINK_LOST = "link.lost"
    """A link of the fabric loses frames: what went over it goes by others."""
    LINK_RETURNED = "link.returned"
    LINK_REGISTERED = "link.registered"
    LINK_USED = "link.used"
    """A new link, whose ends hold what they should, is one of the ways up."""
    LINK_REMOVED = "link.removed"
    SWITCH_REGISTERED = "switch.registered"
    SWITCH_REMOVED = "switch.removed"
    SWITCH_CONNECTED = "switch.connected"
    SWITCH_DISCONNECTED = "switch.disconnected"
    SWITCH_REPAIRED = "switch.repaired"
    SWITCH_UNKNOWN = "switch.unknown"
    SWITCH_ERROR = "switch.error"
    MIGRATION_STEP = "migration.step"
    """A migration has changed: it is in a new state, or has a new time or reason."""
    MIGRATION_COPYING = "migration.copying"
    """A pass over the VM's memory has begun."""
    MIGRATION_ADDRESSES_KEPT = "migration.addresses_kept"
    """A migrated VM could not be given the addresses that it was to have at its target."""
    IMAGE_PUBLISHED = "image.published"
    IMAGE_REMOVED = "image.removed"
    IMAGE_FETCH = "image.fetch"
    """An order to the agent of `server`: fetch the image."""
    IMAGE_UNPINNED = "image.unpinned"
    """An order to the agent of `server`: the image is not needed for `pin` any more."""
    IMAGE_GC = "image.gc"
    """An order to the agent of `server`: remove the chunks that no image has."""
    IMAGE_SCRUB = "image.scrub"
    """An order to the agent of `server`: read every chunk, and remove the bad ones."""
    IMAGE_HELD = "image.held"
    """A server has all of an image."""
    IMAGE_FAILED = "image.failed"
    """A server cannot fetch an image."""
    IMAGE_REJECTED = "image.rejected"
    """Chunks that came from `holder` are not what they should be."""
    PROFILE_QUERY = "mobility.profile_query"
    MOBILITY_MESSAGE = "mobility.message"
    """A hypervisor, or the manager, wishes that a VM should go."""
    MIGRATION_REQUEST = "mobility.request"
    MATCH = "mobility.match"
    """To the agents of `servers`: say what you have left."""
    MATCH_ANSWER = "mobility.answer"
    MATCH_SILENT = "mobility.silent"
    MATCH_OFFER = "mobility.offer"
    """Of another domain that was asked: its best server, or why there is none."""
    MANAGER = "mobility.manager"
    """How a mobility manager or resource manager is that is a process of its own."""
    PLACEMENT_DECISION = "mobility.decision"
    UNMATCHED = "mobility.unmatched"
    INITIATION = "mobility.initiation"
    """To the agent of `server`: the VM comes to you; its migration's orders follow."""
    BOOKED = "mobility.booked"
    """Room on `server` is kept for a VM that is to come."""
    BOOKING_ENDED = "mobility.booking_ended"
    READY = "mobility.ready"
    """A migrated VM runs at `server`; the five after it tell what follows from that, in this order."""
    REGISTERED = "mobility.registered"
    PROFILE_UPDATED = "mobility.profile_updated"
    DOUBLE_DELIVERY_ENDED = "mobility.double_delivery_ended"
    DEREGISTERED = "mobility.deregistered"
    RELEASED = "mobility.released"
    ENTITY_REGISTERED = "entity.registered"
    ENTITY_REMOVED = "entity.removed"
    DOMAIN_SAID = "domain.said"
    """The controller of another domain was told something of a migration."""
    DOMAIN_HEARD = "domain.heard"
    ANCHOR = "domain.anchor"
    """A gateway stands in for a VM that is in another domain, or does no longer."""
    ACCESS_REJECTED = "access.rejected"
    CONTROLLER_ERROR = "controller.error"


_RENEWAL = "renewal vm reason"
_ATTACHMENT = "migration_id vm server switch"

_FIELDS: Mapping[EventType | Order, str] = {
    EventType.EVENTS_LOST: "since",
    EventType.VM_REGISTERED: "vm server edge",
    EventType.VM_REPORTED: "vm server",
    EventType.VM_ADDRESSES_REPORTED: "vm server addresses",
    EventType.VM_REPORT_REFUSED: "vm server reason",
    EventType.VM_READY: "vm server",
    EventType.VM_STARTED: "vm server",
    EventType.VM_START: "vm server",
    EventType.VM_STOP: "vm server hard seconds",
    EventType.VM_REBOOT: "vm server seconds",
    EventType.VM_RESET: "vm server",
    EventType.VM_NICS: "vm server",
    EventType.VM_STOPPED: "vm server how reason",
    EventType.VM_CHANGED: "vm server",
    EventType.VM_REMOVED: "vm",
    EventType.VM_ONLINE: _ATTACHMENT,
    EventType.VM_OFFLINE: _ATTACHMENT,
    EventType.ADDRESS_TAKEN: "ip vm nic before",
    EventType.MIGRATION_ADDRESSES_KEPT: "migration_id vm reason",
    EventType.ROUTER_LOST: "server reason",
    EventType.ROUTER_RETURNED: "server",
    EventType.MAC_CHANGED: "vm nic mac before",
    EventType.VM_MISMATCH: "vm server switch port reason",
    EventType.VM_RENEW: "renewal vm server",
    EventType.HYPERVISOR_EVENT: "vm server kind at",
    EventType.PORT_ADDED: "vm switch port",
    EventType.PORT_REMOVED: "vm switch port",
    EventType.STORAGE_LOGIN: "vm nic mac fc_id forwarder",
    EventType.STORAGE_LOGOUT: "vm nic mac fc_id forwarder reason",
    EventType.BINDING_ADDED: "bindings",
    EventType.BINDING_RENEWED: "bindings",
    EventType.BINDING_REMOVED: "vm ip reason",
    EventType.BINDING_UNCONFIRMED: "vm ip reason",
    EventType.BINDING_REJECTED: "vm ip reason",
    EventType.LEASE_DIFFERS: "vm ip reason",
    EventType.RENEWAL_SENT: _RENEWAL,
    EventType.RENEWAL_ACKED: _RENEWAL,
    EventType.RENEWAL_REJECTED: _RENEWAL,
    EventType.RENEWAL_SILENT: _RENEWAL,
    EventType.RENEWAL_FAILED: _RENEWAL,
    EventType.DHCP_REJECTED: "switch port vm reason",
    EventType.SPOOFING: "spoofing reason",
    EventType.FRAME_REJECTED: "where reason",
    EventType.GATEWAY_GROUP_REGISTERED: "group",
    EventType.GATEWAY_GROUP_REMOVED: "group",
    EventType.GATEWAY_LEARNED: "server group mac",
    EventType.GATEWAY_REFUSED: "switch port mac reason",
    EventType.GATEWAY_CONFLICT: "mac location",
    EventType.VRF_REGISTERED: "vrf",
    EventType.VRF_REMOVED: "vrf",
    EventType.VNET_REGISTERED: "vnet",
    EventType.VNET_REMOVED: "vnet",
    EventType.SUBNET_REGISTERED: "subnet",
    EventType.SUBNET_REMOVED: "subnet",
    EventType.SERVER_REGISTERED: "server",
    EventType.SERVER_REMOVED: "server",
    EventType.SERVER_DETECTED: "server location before",
    EventType.SERVER_MOVED: "server location before",
    EventType.UPLINK_FOUND: "server uplink location",
    EventType.UPLINK_USED: "server uplink location before",
    EventType.SERVER_CONFLICT: "server location known reason",
    EventType.SERVER_IDENTIFIED: "server mac before location",
    EventType.SERVER_MISMATCH: "server given detected",
    EventType.SERVER_UNKNOWN: "mac location",
    EventType.SERVER_DRAINED: "server",
    EventType.SERVER_UNDRAINED: "server",
    EventType.SERVER_FENCED: "server",
    EventType.SERVER_UNFENCED: "server",
    EventType.SWITCH_CONNECTED: "switch peer flow_mods openflow",
    EventType.LINK_LOST: "lower upper reason",
    EventType.LINK_RETURNED: "lower upper",
    EventType.LINK_REGISTERED: "lower upper",
    EventType.LINK_USED: "lower upper",
    EventType.LINK_REMOVED: "lower upper",
    EventType.SWITCH_REGISTERED: "switch role",
    EventType.SWITCH_REMOVED: "switch",
    EventType.SWITCH_DISCONNECTED: "switch reason",
    EventType.SWITCH_REPAIRED: "switch missing changed foreign",
    EventType.SWITCH_UNKNOWN: "dpid peer",
    EventType.SWITCH_ERROR: "switch error",
    EventType.MIGRATION_STEP: "migration",
    EventType.MIGRATION_COPYING: "migration_id vm copy_pass remaining written_a_second postcopy",
    EventType.IMAGE_PUBLISHED: "image server publisher",
    EventType.IMAGE_REMOVED: "image",
    EventType.IMAGE_FETCH: "image server pin base segment order",
    EventType.IMAGE_UNPINNED: "image server pin",
    EventType.IMAGE_GC: "server",
    EventType.IMAGE_SCRUB: "server",
    EventType.IMAGE_HELD: "image server",
    EventType.IMAGE_FAILED: "image server reason",
    EventType.IMAGE_REJECTED: "server holder chunks",
    EventType.PROFILE_QUERY: "vm by profile",
    EventType.MOBILITY_MESSAGE: "vm by wish",
    EventType.MIGRATION_REQUEST: "match vm by wish profile services",
    EventType.MATCH: "match vm profile servers",
    EventType.MATCH_ANSWER: "match server report",
    EventType.MATCH_SILENT: "match server waited_ms",
    EventType.MATCH_OFFER: "match domain server reason",
    EventType.PLACEMENT_DECISION: "match vm outcome server runner_up decided_by reason by",
    EventType.MANAGER: "manager state reason",
    EventType.UNMATCHED: "match vm reason",
    EventType.INITIATION: "match vm server profile",
    EventType.BOOKED: "vm server memory_mib cpus until",
    EventType.BOOKING_ENDED: "vm server reason",
    EventType.READY: _ATTACHMENT,
    EventType.REGISTERED: _ATTACHMENT,
    EventType.PROFILE_UPDATED: _ATTACHMENT + " locator",
    EventType.DOUBLE_DELIVERY_ENDED: _ATTACHMENT,
    EventType.DEREGISTERED: _ATTACHMENT,
    EventType.RELEASED: _ATTACHMENT,
    EventType.ENTITY_REGISTERED: "entity",
    EventType.ENTITY_REMOVED: "entity",
    EventType.DOMAIN_SAID: "domain vm migration_id said",
    EventType.DOMAIN_HEARD: "domain vm migration_id said",
    EventType.ANCHOR: "vm domain state reason",
    EventType.ACCESS_REJECTED: "listener peer reason",
    EventType.CONTROLLER_ERROR: "what error",
    Order.OPEN_TARGET: "migration vm",
    Order.PREPARE_SOURCE: "migration vm",
    Order.START_COPY: "migration",
    Order.FREE_SOURCE: "migration",
    Order.ROLL_BACK: "migration reason",
    Order.RETURN_TO_SOURCE: "migration",
}
FIELDS = {type: frozenset(names.split()) for type, names in _FIELDS.items()}
"""By type of an event: the fields it may have besides `id`, `at` and `type`. docs/api.md says when each type
is published, and what each field holds."""

IMAGE_ORDERS = frozenset(
    {
        EventType.IMAGE_FETCH,
        EventType.IMAGE_REMOVED,
        EventType.IMAGE_UNPINNED,
        EventType.IMAGE_GC,
        EventType.IMAGE_SCRUB,
    }
)
"""Those about images that an agent acts on."""

ACTED_ON: frozenset[str] = frozenset(
    {
        HELLO,
        EventType.VM_REGISTERED,
        EventType.VM_READY,
        EventType.VM_START,
        EventType.VM_STOP,
        EventType.VM_REBOOT,
        EventType.VM_RESET,
        EventType.VM_NICS,
        EventType.VM_REMOVED,
        EventType.VM_RENEW,
        EventType.PORT_REMOVED,
        EventType.SERVER_FENCED,
        EventType.SERVER_UNFENCED,
        *IMAGE_ORDERS,
        EventType.MATCH,
        *Order,
    }
)
"""The types that an agent acts on."""


class ControllerEvent(msgspec.Struct, frozen=True):
    """An event as an agent reads it; a field that does not belong to its type is None."""

    type: str
    """An EventType, an Order or HELLO."""
    id: int = 0
    vm: VMRecord | None = None
    vm_id: str = ""
    """The VM's id, in an event that has no more of it (PORT_REMOVED)."""
    migration: MigrationRecord | None = None
    server: str = ""
    """The server's id, in an event that has no more of it (SERVER_FENCED, SERVER_UNFENCED, IMAGE_ORDERS)."""
    reason: str = ""
    renewal: dict[str, Any] | None = None
    """A renewals.Order, unchecked: most are for other servers."""
    hard: bool = False
    seconds: float = 0.0
    """Of VM_STOP and VM_REBOOT: see vms.StopBody."""
    image: str = ""
    """The image's name, in IMAGE_ORDERS."""
    pin: str = ""
    base: bool = False
    """Of IMAGE_FETCH: see images.FetchImageBody."""
    segment: tuple[int, int] | None = None
    """Of IMAGE_FETCH: the first and the last chunk; None, all."""
    order: int = 0
    """Of IMAGE_FETCH: the order's number, which no other has, of whichever controller."""
    match: str = ""
    servers: list[str] = []
    """Of MATCH: its id, and whose agents are to answer."""


def controller_event(type: str, data: bytes) -> ControllerEvent:
    """An event of the stream, for an agent. Raises RecordError."""
    try:
        value = msgspec.json.decode(data) if data else {}
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise RecordError(f"the data of an event {type} is not JSON") from error
    if not isinstance(value, dict):
        raise RecordError(f"the data of an event {type} is no object")
    if type in (
        EventType.VM_RENEW,
        EventType.PORT_REMOVED,
        EventType.MATCH,
    ):  # Here it is the VM's id, not the VM.
        value["vm_id"] = value.pop("vm", "")
    if type not in (EventType.SERVER_FENCED, EventType.SERVER_UNFENCED, *IMAGE_ORDERS):
        value.pop("server", None)  # In other events it may be the whole server.
    return record(ControllerEvent, {**value, "type": type})

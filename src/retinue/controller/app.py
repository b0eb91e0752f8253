"""The controller: every event of the outside ends in a method here, and leaves as flows, frames and events.

Wiring only. What an event means is decided by the parts (inventory, leases, migrations, neighbours and
switches); this module makes them, finds out which of them a switch's event concerns, and runs what is due.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from secrets import token_bytes

import structlog

from retinue.controller.agent_rejections import AgentRejections
from retinue.controller.audit import Auditor
from retinue.controller.by_the_clock import LeaseClock, repeat
from retinue.controller.changes import SwitchPortsChanged
from retinue.controller.content.images import Images
from retinue.controller.context import Context, NoStore, Store
from retinue.controller.counters import Count, packet_ins
from retinue.controller.domains import anchors, names
from retinue.controller.domains.domains import Domains
from retinue.controller.external_migrations import ExternalMigrations
from retinue.controller.fip import FipPath
from retinue.controller.flood_counts import FloodCounts
from retinue.controller.inventory.fabric import FabricInventory
from retinue.controller.inventory.fencing import Fencing
from retinue.controller.inventory.nic_settings import NICSettings
from retinue.controller.inventory.own_macs import OwnMacs
from retinue.controller.inventory.pairs import Pairs
from retinue.controller.inventory.switch_rows import SwitchRows
from retinue.controller.inventory.vms import Inventory
from retinue.controller.inventory.vnets import VnetInventory
from retinue.controller.kinds import restore
from retinue.controller.lease_changes import AddressReleased, LeaseEnded
from retinue.controller.leases.dhcp import DhcpPath
from retinue.controller.leases.dhcp6 import Dhcp6Path
from retinue.controller.marks import ClockAnchored
from retinue.controller.migrations.history import MIGRATIONS_KEPT, History
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.controller.mobility import spreading
from retinue.controller.mobility.bookings import Bookings
from retinue.controller.mobility.clients import LOOK_SECONDS, ClientWatch
from retinue.controller.mobility.entities import Entities
from retinue.controller.mobility.manager import MobilityManager
from retinue.controller.mobility.resources import ResourceManager
from retinue.controller.mobility.spreading import SpreadWatch
from retinue.controller.neighbours.arp_responder import ArpResponder
from retinue.controller.neighbours.gateway import Gateway
from retinue.controller.neighbours.held_packets import HeldPackets
from retinue.controller.neighbours.link_probes import LinkProbes
from retinue.controller.neighbours.mac_changes import MacChanges
from retinue.controller.neighbours.nd_responder import NdResponder
from retinue.controller.neighbours.router_watch import RouterWatch
from retinue.controller.neighbours.taking import Taking
from retinue.controller.neighbours.uplinks import Uplinks
from retinue.controller.neighbours.vdp import VdpPath
from retinue.controller.spoof_counts import SpoofCounts
from retinue.controller.state import Stored
from retinue.controller.switches.readback import SwitchSession
from retinue.controller.tracing import Tracer
from retinue.controller.uplink_changes import PlacesGone
from retinue.controller.words import Words
from retinue.core.link_watch import LinkLimits
from retinue.core.migration.copying import PLAIN, CopyOptions
from retinue.core.model import NIC, VM, Assignment, Network, Role
from retinue.core.model.families import is_leased
from retinue.core.model.network import Owner, Touched
from retinue.core.pipeline.cookies import SENT_UP_BY, Reason, reason_of
from retinue.core.placement import Policy
from retinue.core.router_watch import RouterLimits
from retinue.core.snooping.dhcp_rules import LEASES_PER_NIC
from retinue.core.snooping.spoofing import KIND_OF, interpret
from retinue.core.uplink_choice import ChoiceLimits
from retinue.protocol.events import EventType
from retinue.southbound.openflow.codec.messages import ErrorMessage, FlowRemoved, PacketIn, PortStatus
from retinue.southbound.openflow.codec.wire import PortReason
from retinue.southbound.openflow.server import Session
from retinue.steady_clock import SteadyClock

log = structlog.get_logger()

ENDED_BY_ITSELF = (0, 1)
"""OpenFlow's reasons for a removal that was the switch's own: idle timeout, hard timeout."""
MARKED_BY = (Reason.PROBE, Reason.EXPIRED)
"""As what the marks of migrations (`migrations.old_ways`) come back: over a link, over an uplink."""


class Controller:
    """The parts of the controller, and the handler of its switches' messages.

    All handlers are called from one event loop and never block.
    """

    def __init__(
        self,
        net: Network,
        store: Store | None = None,
        clock: Callable[[], float] | None = None,
        *,
        migrations_kept: int = MIGRATIONS_KEPT,
        audit_seconds: float = 0.0,
        warm_up_seconds: float = 0.0,
        leases_per_nic: int = LEASES_PER_NIC,
        forward_seconds: float = 0.0,
        copy_options: CopyOptions = PLAIN,
        policy: Policy | None = None,
        follow_clients: tuple[int, int] = (0, 60),
        spread: tuple[int, int] = (0, 300),
        router_limits: RouterLimits | None = None,
        probe_seconds: float = 0.0,
        link_limits: LinkLimits | None = None,
    ) -> None:
        """`clock`: None: a SteadyClock. Of all others see controller.config."""
        self._steady = SteadyClock()
        self.context = Context(net, clock or self._steady, store or NoStore())
        self.net = net
        self.events = self.context.events
        self.dhcp = DhcpPath(self.context, warm_up_seconds, leases_per_nic)
        self.dhcp6 = Dhcp6Path(self.context, self.dhcp)
        self.renewals = self.dhcp.renewals
        taking = Taking(self.context)
        self.arp = ArpResponder(self.context, taking)
        self.nd = NdResponder(self.context, taking)
        self.gateway = Gateway(self.context)
        self.held_packets = HeldPackets(self.context, self.arp.ask_for_servers)
        self.router_watch = RouterWatch(
            self.context, self.arp.locations.question_for, router_limits or RouterLimits()
        )
        self.arp.heard = self.nd.heard = self.router_watch.heard
        limits = link_limits or LinkLimits()
        self.link_probes = LinkProbes(self.context, limits, token_bytes(16))
        choice = ChoiceLimits(limits.hold, limits.longest_hold)
        self.uplinks = Uplinks(self.context, self.arp.locations, choice, token_bytes(16))
        self.link_probes.changed = self.uplinks.look
        self.fabric = FabricInventory(self.context, self.link_probes.watched, probed=probe_seconds > 0)
        self.router_watch.is_leaving = self.fabric.is_leaving
        self.mac_changes = MacChanges(self.context)
        self.fip = FipPath(self.context)
        history = History(migrations_kept)
        self.orchestrator = MigrationOrchestrator(
            self.context, self.renewals.vm_migrated, history, warm_up_seconds, forward_seconds, copy_options
        )
        self.flood_counts = FloodCounts(self.context)
        self.spoof_counts = SpoofCounts(self.context, self.flood_counts)
        self._by_dpid = net.by_dpid
        self.inventory = Inventory(self.context, self.orchestrator, self._by_dpid, self._give_back)
        self.arp.put_servers = self.inventory.put_servers
        self.vdp = VdpPath(self.context, self.inventory.put_servers)
        self.own_macs = OwnMacs(self.context, self.arp.locations, self.inventory.put_servers)
        self.nics = NICSettings(self.context, self.inventory.nics.ours)
        self.vnets = VnetInventory(self.context, self.inventory.ports.look_at_vnet, lambda: self.arp.unknown)
        self.pairs = Pairs(self.context)
        self.switch_rows = SwitchRows(self.context)
        self.words = Words(self.context)
        self.orchestrator.ended = self._migration_ended
        self.fencing = Fencing(self.context, self.orchestrator)
        self.external_migrations = ExternalMigrations(self.context, self.orchestrator, self.inventory)
        self.orchestrator.is_under_libvirt = self.external_migrations.is_under_libvirt
        self.agent_rejections = AgentRejections(net)
        self.images = Images(self.context)
        images_at = self.images.holders.whole_at
        self.resources = ResourceManager(self.context, self.orchestrator, policy or Policy(), images_at)
        self.entities = Entities(self.context, self.resources)
        self.mobility = MobilityManager(self.context, self.orchestrator, self.resources)
        self.bookings = Bookings(self.context, self.resources.size_of)
        self.orchestrator.begun = self.bookings.migration_begun
        self.mobility.before_deciding = self.bookings.look
        self.client_watch = ClientWatch(self.context, self.resources, self.mobility, *follow_clients)
        self.spread_watch = SpreadWatch(self.context, self.mobility, *spread)
        self.inventory.name_free = self.images.name_free = self.entities.check_free
        self.inventory.forgotten = self._vm_forgotten
        self.domains = Domains(
            self.context,
            self.orchestrator,
            self.mobility,
            self.images,
            lambda name, kind: self.inventory.name_free(name, kind),
            self.inventory.forget_vm,
            self._give_back,
            self.resources.on_size,
        )
        self.orchestrator.far_ends = self.domains
        self.auditor = Auditor(self.context, self.orchestrator, self._mended)
        self.tracer = Tracer(self.context, self.auditor)
        self._audit_seconds, self._probe_seconds = audit_seconds, probe_seconds
        self._lease_clock = LeaseClock(self.context, self.dhcp.next_end, self._end_leases)
        self.context.after_install(self._installed)

    def restore(self, stored: Stored) -> None:
        """Before the start: what the database holds; leases that ended meanwhile stay ended."""
        if not any(self._steady.take_up(anchor) for anchor in stored.anchors):
            self.context.apply(ClockAnchored(self._steady.anchor))
        now = self.context.clock()
        held: list[Assignment] = []
        ended: list[Assignment] = []
        for lease in stored.assignments:
            over = lease.lease_end is not None and lease.lease_end <= now
            (ended if over else held).append(lease)
        gone = restore(self.context.state, replace(stored, assignments=held))
        self.context.installer.follow()
        self.context.apply(PlacesGone(gone))
        for lease in ended:
            self.context.apply(AddressReleased(lease))
            if is_leased(lease.ip):
                self.context.apply(LeaseEnded(lease))
        self.context.knowledge.all_vms_known = True
        self.renewals.restored()
        self.orchestrator.restored()
        for vm in self.words.about("migration of"):
            self._migration_ended(vm)
        self.entities.restored()

    # ---- life ----

    async def start(self) -> None:
        self.context.began = self.context.clock()
        self.net.untold.update(edge.id for edge in self.net.with_role(Role.EDGE))
        # Of VMs that were removed, too: what switches still have of them is known to be wrong.
        removed = {Owner("vm", left.vm) for left in self.context.state.left_ports.values()}
        await self.context.install(self.net.everything() | removed)
        self.inventory.power.resume()
        self.domains.start()
        every = partial(repeat, self.context)
        every(1.0, self.arp.ask_for_servers, "search for servers")
        every(1.0, self.router_watch.look, "routers")
        every(1.0, self.uplinks.tick, "uplinks")
        every(1.0, self.fabric.look, "new links")
        every(1.0, self.nd.advertise, "advertisements of the gateway")
        every(1.0, self.vdp.say, "gateway MACs by VDP")
        every(1.0, self.orchestrator.tick, "time limits of migrations")
        every(1.0, self.spoof_counts.begin, "spoofed frames")
        every(1.0, self._tell_the_rest, "what is told once a second")
        every(names.LOOK_SECONDS, self.domains.names.look, "names of other domains")
        every(anchors.LOOK_SECONDS, self.domains.anchors.look, "what gateways pass for VMs that are away")
        every(60.0, self.context.installer.renew_long_leases, "long leases")
        every(1.0, self.bookings.look, "time limits of bookings")
        every(1.0, self.fip.look, "storage logins")
        every(LOOK_SECONDS, self.client_watch.look, "VMs that follow their clients")
        every(spreading.LOOK_SECONDS, self.spread_watch.look, "servers that differ in load")
        self.context.spawn(self._lease_clock.run(), "lease clock")
        if self._probe_seconds:
            self.context.spawn(self.link_probes.run(self._probe_seconds), "probes of links")
        else:
            self.link_probes.forget()
        if self._audit_seconds:
            self.context.spawn(self.auditor.run(self._audit_seconds), "audit of switches")

    async def stop(self) -> None:
        await self.context.stop()

    async def _end_leases(self) -> None:
        await self.dhcp.expire()
        self.dhcp6.expire()

    # ---- the controller-switch interface (openflow.SwitchHandler) ----

    def connected(self, session: SwitchSession) -> None:
        switch = self._by_dpid.get(session.dpid)
        if switch is None:
            self.context.counters[Count.UNKNOWN_SWITCHES] += 1
            self.events.publish(EventType.SWITCH_UNKNOWN, dpid=f"{session.dpid:#x}", peer=session.peer)
            session.close(f"datapath id {session.dpid:#x} is none of our switches' (`retinue switch add`)")
            return
        self.context.installer.switches[switch].connected(session)
        touched = self.context.apply(SwitchPortsChanged(switch, session.ports, session.down))
        self.context.spawn(self._attach(switch, session, touched), f"connection of {switch}")
        self.uplinks.look(switch)

    async def _attach(self, switch: str, session: SwitchSession, touched: Touched) -> None:
        try:
            await self.context.install_when_there_is_room(touched, f"ports of {switch}")
            if not session.alive:
                return  # It has gone, or is none of ours any more.
            report = await self.context.installer.switches[switch].read(session)
        except (ConnectionError, TimeoutError) as error:
            session.close(f"could not be read: {error}")
            return
        self.events.publish(
            EventType.SWITCH_CONNECTED,
            switch=switch,
            peer=session.peer,
            flow_mods=report.flow_mods,
            openflow=session.openflow,
        )
        self._installed(touched | self._concerned_by(switch))
        if self.net.switches[switch].role is Role.LEAF:
            self.arp.ask_for_servers()

    def disconnected(self, session: SwitchSession, reason: str) -> None:
        switch = self._by_dpid.get(session.dpid)
        if switch is None or not self.context.installer.switches[switch].disconnected(session):
            return
        self.events.publish(EventType.SWITCH_DISCONNECTED, switch=switch, reason=reason)

    def packet_in(self, session: Session, message: PacketIn) -> None:
        switch = self._by_dpid.get(session.dpid)
        reason = reason_of(message.cookie)
        if switch is None or reason is None or not self._may_send_up(switch, reason):
            self.context.counters[Count.PACKET_INS_NOT_OURS] += 1
            return
        marked = reason in MARKED_BY and self.orchestrator.old_ways.heard(switch, message.frame)
        self.context.counters[packet_ins(Reason.PROBE if marked else reason)] += 1
        if marked:
            return
        match reason:
            case Reason.DHCP_CLIENT:
                self.dhcp.from_vm(switch, message.in_port, message.frame)
            case Reason.DHCP_SERVER:
                self.dhcp.from_server(switch, message.in_port, message.frame, session.waited())
            case Reason.DHCP6_CLIENT:
                self.dhcp6.from_vm(switch, message.in_port, message.frame)
            case Reason.DHCP6_SERVER:
                self.dhcp6.from_server(switch, message.in_port, message.frame, session.waited())
            case Reason.VM_ARP:
                self.arp.from_vm(switch, message.in_port, message.frame)
            case Reason.SERVER_ARP:
                self.arp.from_server(switch, message.in_port, message.frame)
            case Reason.MISSING_SERVER:
                self.arp.from_missing_server(switch, message.in_port, message.frame)
            case Reason.VM_ND:
                self.nd.from_vm(switch, message.in_port, message.frame)
            case Reason.SERVER_ND:
                self.nd.from_server(switch, message.in_port, message.frame)
            case Reason.SERVER_ND_ANSWERED:
                self.nd.from_server(switch, message.in_port, message.frame, answered=True)
            case Reason.FIP_NODE:
                self.fip.from_vm(switch, message.in_port, message.frame)
            case Reason.FIP_FORWARDER:
                self.fip.from_forwarder(switch, message.in_port, message.frame)
            case Reason.VDP:
                self.vdp.from_edge(switch, message.in_port, message.frame)
            case Reason.PROBE:
                if not self.uplinks.heard(switch, message.in_port, message.frame):
                    self.link_probes.heard(switch, message.in_port, message.frame)
            case Reason.TUNNEL_MARK:
                self.domains.hearing.mark(switch, message.frame)
            case Reason.UNPLACED:
                self.held_packets.came(switch, message.in_port, message.frame)
            case Reason.EXPIRED:
                self.gateway.expired(switch, message.in_port, message.frame)
            case Reason.TOO_BIG:
                self.gateway.too_big(switch, message.in_port, message.frame)
            case Reason.SPOOFED_MAC if self.mac_changes.seen(switch, message.in_port, message.frame):
                pass
            case _ if reason in KIND_OF:
                self._spoofed(switch, message.in_port, reason, message.frame)

    def _give_back(self, vm: VM, nic: NIC | None = None) -> None:
        """The manager removes a VM, or a NIC of it; a guest's DHCP servers are at its home, which does it."""
        if not vm.home:
            self.dhcp.give_back(vm, nic)
            self.dhcp6.give_back(vm, nic)
        self.fip.give_back(vm, nic)

    def _may_send_up(self, switch: str, reason: Reason) -> bool:
        """A cookie is only what the switch says; no switch is believed what another's entries are for."""
        return self.net.switches[switch].role in SENT_UP_BY.get(reason, ())

    def flow_removed(self, session: Session, message: FlowRemoved) -> None:
        switch = self._by_dpid.get(session.dpid)
        if switch is not None and message.reason in ENDED_BY_ITSELF:
            key = (message.table, message.priority, message.match)
            self.context.installer.switches[switch].flow_ended(key)

    def router_ports(self, session: SwitchSession) -> None:
        """The ports of a router that is not ours have become others (routers.RouterHandler)."""
        switch = self._by_dpid.get(session.dpid)
        if switch is not None and self.context.session(switch) is session:
            touched = self.context.apply(SwitchPortsChanged(switch, session.ports, session.down))
            self.context.spawn(self._ports_of_router(switch, touched), f"ports of {switch}")

    async def _ports_of_router(self, switch: str, touched: Touched) -> None:
        if touched:
            await self.context.install(touched)
        self._mended(switch)  # A server may be reached by now.

    def port_status(self, session: Session, message: PortStatus) -> None:
        switch = self._by_dpid.get(session.dpid)
        if switch is not None and self.context.session(switch) is session:
            touched = self.context.apply(SwitchPortsChanged(switch, session.ports, session.down))
            if touched:
                self.context.spawn(self.context.install(touched), f"ports of {switch}")
            self.uplinks.look(switch)
            there = message.port.up and message.reason != PortReason.DELETE
            self.router_watch.link(switch, message.port.name, up=there)
            if there:
                self.arp.locations.port_up(switch, message.port.name, message.port.number)

    def error(self, session: Session, message: ErrorMessage) -> None:
        switch = self._by_dpid.get(session.dpid, f"{session.dpid:#x}")
        self.context.counters[Count.SWITCH_ERRORS] += 1
        log.warning("switch.error", switch=switch, error=str(message))
        self.events.publish(EventType.SWITCH_ERROR, switch=switch, error=str(message))

    def _spoofed(self, switch: str, port: int, reason: Reason, frame: bytes) -> None:
        vm = self.net.vm_at(switch, port)
        row = self.context.spoof_attempts.note(
            KIND_OF[reason], switch, port, vm.id if vm else "", interpret(frame), self.context.clock()
        )
        about = (row.kind, row.claimed_mac, row.claimed_ip)
        self.events.tell((switch, port), EventType.SPOOFING, about=about, spoofing=row)

    def _tell_the_rest(self) -> None:
        self.events.flush()
        if self.events.left_out:
            self.context.counters[Count.EVENTS_LEFT_OUT] = self.events.left_out

    def _vm_forgotten(self, vm: str) -> None:
        self.entities.gone(vm)
        self.resources.vm_gone(vm)
        for kind in ("vm", "migration of"):
            self.words.forget(kind, vm)
        self.domains.removals.tell()
        self.domains.anchors.look_at(vm)

    def _migration_ended(self, vm: str) -> None:
        if self.orchestrator.of_vm(vm) is None:
            self.bookings.migration_ended(vm)
            self.words.forget("migration of", vm)

    def _concerned_by(self, switch: str) -> set[Owner]:
        """Who may have waited for a switch: whoever has entries there, or is to be there; and migrations."""
        server = self.net.server_of_edge(switch)
        vms = set() if server is None else set(self.net.vms_on(server.id))
        vms |= {migration.vm for migration in self.orchestrator.migrations.under_way()}
        return self.context.compiler.owners_on(switch) | {Owner("vm", vm) for vm in vms}

    def _mended(self, switch: str) -> None:
        self._installed(self._concerned_by(switch))

    def _installed(self, owners: Collection[Owner]) -> None:
        """After an installation: leases may end at other times, VMs be ready or renewed, migrations go on."""
        self._lease_clock.moved()
        self.inventory.look_at(owners)
        self.renewals.look_at(owners)

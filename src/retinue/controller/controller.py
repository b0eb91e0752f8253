"""The controller: every event of the outside ends in a method here, and leaves as flows, frames and events.

Wiring only. What an event means is decided in `bindings`, `moves` and `flows`; this module finds out which
of them it concerns, hands it over, and brings the result onto the switches.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Any

import structlog

from retinue.bindings.forgery import KIND_OF, interpret
from retinue.controller.arp import ArpDesk
from retinue.controller.context import Context, NoStore, Store
from retinue.controller.dhcp import DhcpPath
from retinue.controller.moving import Mover
from retinue.flows.entry import FlowKey
from retinue.flows.pipeline import FORGERY_COOKIE, FORGERY_COOKIE_MASK, Reason, reason_of
from retinue.flows.plan import near_server
from retinue.model import (
    VM,
    BindingKind,
    Holding,
    ModelError,
    Network,
    Origin,
    Role,
    Server,
    VMPort,
)
from retinue.model.network import Owner, Touched
from retinue.openflow.messages import ErrorMessage, FlowRemoved, PacketIn, PortStatus
from retinue.openflow.session import Rejected, Session
from retinue.ovsdb.switch_view import BridgePort

log = structlog.get_logger()

ENDED_BY_ITSELF = (0, 1)
"""OpenFlow's reasons for a removal that was the switch's own: idle timeout, hard timeout."""
PAUSE_AFTER_FAILURE = 1.0
"""Seconds until the lease clock is tried again."""


class VMState(StrEnum):
    BOOKED = "booked"
    """Known; its port, its server's place or a switch's confirmation is missing."""
    READY = "ready"
    """Every switch has confirmed its flows: it may start (row D4)."""
    RUNNING = "running"
    """The hypervisor says it runs."""


class Controller:
    """All handlers are called from one event loop and never block."""

    def __init__(
        self, net: Network, store: Store | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.context = Context(net, clock, store or NoStore())
        self.net = net
        self.events = self.context.events
        self.dhcp = DhcpPath(self.context)
        self.arp = ArpDesk(self.context)
        self.mover = Mover(self.context)
        self.vm_states: dict[str, VMState] = {}
        self.unbooked_ports: dict[tuple[int, str], BridgePort] = {}
        """VM ports reported by switches for which no VM could be booked, with dpid and name."""
        self.forged_frames: dict[tuple[str, Reason], int] = {}
        """By switch and reason: all frames dropped as forged, from the switches' own counters."""
        self._forged_counts: dict[str, dict[FlowKey, int]] = {}
        self._removed: set[str] = set()
        """VMs the manager took away whose port still stands: not to be booked again by its report."""
        self._by_dpid = {switch.dpid: switch.id for switch in net.switches.values()}
        self._lease_timer_moved = asyncio.Event()
        self.context.after_install(self._look_at_vms)

    # ---- life ----

    async def start(self) -> None:
        await self.context.install(self.net.everything())
        self._repeat(1.0, self.arp.ask_for_servers, "search for servers")
        self._repeat(1.0, self.mover.tick, "time limits of moves")
        self._repeat(1.0, self._count_forged, "forged frames")
        self._repeat(60.0, self.context.installer.renew_long_leases, "long leases")
        self.context.spawn(self._lease_clock(), "lease clock")

    async def stop(self) -> None:
        await self.context.stop()

    def _repeat(self, seconds: float, work: Callable[[], Any], what: str) -> None:
        self.context.spawn(self._every(seconds, work, what), what)

    async def _every(self, seconds: float, work: Callable[[], Any], what: str) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                result = work()
                if asyncio.iscoroutine(result):
                    await result
            except Exception as error:
                self.context.failed(what, error)

    async def _lease_clock(self) -> None:
        """Sleep until the next lease ends, or until a binding changed."""
        while True:
            try:
                await self._until_a_lease_ends()
                await self.dhcp.expire()
            except Exception as error:
                self.context.failed("lease clock", error)
                await asyncio.sleep(PAUSE_AFTER_FAILURE)

    async def _until_a_lease_ends(self) -> None:
        while True:
            end = self.dhcp.next_end()
            wait = None if end is None else max(0.0, end - self.context.clock())
            self._lease_timer_moved.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._lease_timer_moved.wait()
            except TimeoutError:
                return

    # ---- C1: switches (openflow.SwitchHandler) ----

    def connected(self, session: Session) -> None:
        switch = self._by_dpid.get(session.dpid)
        if switch is None:
            self.context.counters["unknown switches"] += 1
            self.events.publish("switch.unknown", dpid=f"{session.dpid:#x}", peer=session.peer)
            session.close(f"datapath id {session.dpid:#x} is not in the configuration")
            return
        self.context.sessions[switch] = session
        touched = self.net.set_ports(switch, session.ports)
        self.context.spawn(self._attach(switch, session, touched), f"connection of {switch}")

    async def _attach(self, switch: str, session: Session, touched: Touched) -> None:
        try:
            await self.context.installer.install(touched)
            report = await self.context.installer.attach(switch, session)
        except (ConnectionError, TimeoutError) as error:
            session.close(f"could not be read: {error}")
            return
        self.events.publish("switch.connected", switch=switch, peer=session.peer, flow_mods=report.flow_mods)
        self._look_at_vms(touched | {Owner("vm", vm) for vm in self.net.vms})
        if self.net.switches[switch].role is Role.LEAF:
            self.arp.ask_for_servers()

    def disconnected(self, session: Session, reason: str) -> None:
        switch = self._by_dpid.get(session.dpid)
        if switch is None or self.context.sessions.get(switch) is not session:
            return
        del self.context.sessions[switch]
        self.context.installer.detach(switch, session)
        self.events.publish("switch.disconnected", switch=switch, reason=reason)

    def packet_in(self, session: Session, message: PacketIn) -> None:
        switch = self._by_dpid.get(session.dpid)
        reason = reason_of(message.cookie)
        if switch is None or reason is None:
            self.context.counters["packet-ins not ours"] += 1
            return
        self.context.counters[f"packet-ins {reason.name.lower()}"] += 1
        match reason:
            case Reason.DHCP_CLIENT:
                self.dhcp.from_vm(switch, message.in_port, message.frame)
            case Reason.DHCP_SERVER:
                self.dhcp.from_server(switch, message.in_port, message.frame)
            case Reason.VM_ARP:
                self.arp.from_vm(switch, message.in_port, message.frame)
            case Reason.SERVER_ARP:
                self.arp.from_server(switch, message.in_port, message.frame)
            case _ if reason in KIND_OF:
                self._forged(switch, message.in_port, reason, message.frame)

    def flow_removed(self, session: Session, message: FlowRemoved) -> None:
        switch = self._by_dpid.get(session.dpid)
        if switch is not None and message.reason in ENDED_BY_ITSELF:
            key = (message.table, message.priority, message.match)
            self.context.installer.flow_ended(switch, key)

    def port_status(self, session: Session, message: PortStatus) -> None:
        switch = self._by_dpid.get(session.dpid)
        if switch is not None and self.context.sessions.get(switch) is session:
            touched = self.net.set_ports(switch, session.ports)
            if touched:
                self.context.spawn(self.context.install(touched), f"ports of {switch}")

    def error(self, session: Session, message: ErrorMessage) -> None:
        switch = self._by_dpid.get(session.dpid, f"{session.dpid:#x}")
        self.context.counters["switch errors"] += 1
        log.warning("a switch reports an error", switch=switch, error=str(message))
        self.events.publish("switch.error", switch=switch, error=str(message))

    def _forged(self, switch: str, port: int, reason: Reason, frame: bytes) -> None:
        vm = self.net.vm_at(switch, port)
        row = self.context.forgeries.note(
            KIND_OF[reason], switch, port, vm.id if vm else "", interpret(frame), self.context.clock()
        )
        self.events.publish("forgery", forgery=row)

    async def _count_forged(self) -> None:
        for switch, session in list(self.context.sessions.items()):
            if self.net.switches[switch].role is Role.SPINE:
                continue
            try:
                found = await session.read_flows(FORGERY_COOKIE, FORGERY_COOKIE_MASK)
            except (ConnectionError, TimeoutError, Rejected):
                self.context.counters["forged frames not counted: no answer"] += 1
                continue
            counts = {stats.flow.key: stats.packets for stats in found}
            before = self._forged_counts.get(switch, {})
            self._forged_counts[switch] = counts
            for stats in found:
                reason = reason_of(stats.flow.cookie)
                # An entry made anew counts from nothing again; the sum never goes down.
                more = stats.packets - min(before.get(stats.flow.key, 0), stats.packets)
                if reason is not None and more:
                    sum_so_far = self.forged_frames.get((switch, reason), 0)
                    self.forged_frames[switch, reason] = sum_so_far + more

    # ---- ports of VMs, from the switches' databases ----

    def vm_ports_changed(self, gone: Collection[BridgePort], now: Collection[BridgePort]) -> None:
        """Ports with a VM's id that went away, and that appeared or changed."""
        touched: set[Owner] = set()
        for port in gone:
            touched |= self._vm_port_gone(port)
        for port in now:
            touched |= self._vm_port_here(port)
        if touched:
            self.context.spawn(self.context.install(touched), "VM ports")

    def _vm_port_gone(self, port: BridgePort) -> Touched:
        self.unbooked_ports.pop((port.dpid, port.name), None)
        switch = self._by_dpid.get(port.dpid)
        vm = port.iface_id or ""
        at = self.net.vm_ports.get(vm, {}).get(switch or "")
        if switch is None or at is None or at.name != port.name:
            return frozenset()
        touched = self.net.set_vm_port(vm, switch, None)
        self.events.publish("port.gone", vm=vm, switch=switch, port=at.number)
        if not self.net.vm_ports[vm]:
            self._removed.discard(vm)
            booked = self.net.vms.get(vm)
            if booked is not None and booked.reported:
                touched |= self._forget_vm(booked)  # Nobody booked it; it goes as it came.
        return touched

    def _vm_port_here(self, port: BridgePort) -> Touched:
        switch = self._by_dpid.get(port.dpid)
        if switch is None or not port.iface_id or port.number is None:
            return frozenset()
        vm = port.iface_id
        booked = self.net.vms.get(vm)
        if booked is None:
            booked = self._book_reported(switch, port)
        if booked is None or (port.attached_mac and port.attached_mac != booked.mac):
            if booked is not None:
                reason = f"attached-mac is {port.attached_mac}, {vm} is booked with {booked.mac}"
                self.events.publish("vm.mismatch", vm=vm, switch=switch, port=port.name, reason=reason)
            self.unbooked_ports[port.dpid, port.name] = port
            return frozenset()
        before = self.net.vm_ports.get(vm, {}).get(switch)
        touched = self.net.set_vm_port(vm, switch, VMPort(port.number, port.name, port.status))
        if touched and (before is None or before.number != port.number):
            self.events.publish("port.here", vm=vm, switch=switch, port=port.number)
        return touched | {Owner("vm", vm)} if touched else touched

    def _book_reported(self, switch: str, port: BridgePort) -> VM | None:
        """Row D1: a server reports a VM it made, by the ids it sets on the port, as libvirt does."""
        server = self.net.server_of_edge(switch)
        if server is None or not port.attached_mac or not port.iface_id or port.iface_id in self._removed:
            return None
        vm = VM(port.iface_id, port.attached_mac, server.id, reported=True)
        try:
            self.net.put_vm(vm)
        except ModelError as error:
            self.events.publish("vm.mismatch", vm=vm.id, switch=switch, port=port.name, reason=str(error))
            return None
        self.context.store.put(vm)
        self.vm_states[vm.id] = VMState.BOOKED
        self.events.publish("vm.reported", vm=vm, server=server.id)
        return vm

    # ---- I1: the manager ----

    def book_vms(self, vms: Collection[VM]) -> list[VM]:
        """Rows D1 and D4: VMs given in advance, in bulk; all of them or, on a mistake, none (ModelError)."""
        for vm in vms:
            known = self.net.vms.get(vm.id)
            if known is not None and not known.reported:
                raise ModelError(f"VM {vm.id} is booked already, at {known.server}")
        before = {vm.id: self.net.vms.get(vm.id) for vm in vms}
        touched: set[Owner] = set()
        try:
            for vm in vms:
                touched |= self.net.put_vm(vm)
                touched |= self._hold_static(vm)
        except ModelError:
            for name, old in before.items():
                if old is None:
                    self.net.remove_vm(name)
                else:
                    self.net.put_vm(old)
            raise
        for vm in vms:
            self.context.store.put(vm)
            for holding in self.net.held_by(vm.id):
                self.context.store.put(holding)
            self.vm_states[vm.id] = VMState.BOOKED
            self.events.publish("vm.booked", vm=vm, server=vm.server, edge=self.net.servers[vm.server].edge)
        for port in list(self.unbooked_ports.values()):
            self.unbooked_ports.pop((port.dpid, port.name))
            touched |= self._vm_port_here(port)
        self.context.spawn(self.context.install(touched), "booked VMs")
        return list(vms)

    def _hold_static(self, vm: VM) -> Touched:
        """Row B4: addresses the manager gives are bindings at once."""
        touched: set[Owner] = set()
        for address in vm.addresses:
            if self.net.subnet_of(address) is None:
                raise ModelError(f"VM {vm.id}: {address} is in no subnet of the fabric")
            touched |= self.net.hold(Holding(address, vm.mac, vm.id, BindingKind.STATIC, Origin.MANAGER))
        return frozenset(touched)

    async def remove_vm(self, vm: str) -> None:
        """Raises ModelError for a VM that is not there, or is being moved."""
        booked = self.net.vms.get(vm)
        if booked is None:
            raise ModelError(f"there is no VM {vm}; `retinue vm list` shows those there are")
        move = self.mover.of_vm(vm)
        if move is not None:
            raise ModelError(f"VM {vm} is being moved: {move.id} is {move.state}; cancel it first")
        if self.net.vm_ports.get(vm):
            self._removed.add(vm)
        await self.context.install(self._forget_vm(booked))

    def _forget_vm(self, vm: VM) -> Touched:
        for holding in self.net.held_by(vm.id):
            self.context.store.remove(holding)
        touched = self.net.remove_vm(vm.id)
        self.context.store.remove(vm)
        self.vm_states.pop(vm.id, None)
        self.events.publish("vm.removed", vm=vm)
        return touched

    def vm_says(self, vm: str, event: str, server: str) -> None:
        """The hypervisor's word about a VM: started or stopped. Raises ModelError."""
        if vm not in self.net.vms:
            raise ModelError(f"there is no VM {vm}; `retinue vm list` shows those there are")
        if event not in ("started", "stopped"):
            raise ModelError(f"a VM knows no event {event!r} (started, stopped)")
        self.vm_states[vm] = VMState.RUNNING if event == "started" else VMState.READY
        self.events.publish(f"vm.{event}", vm=self.net.vms[vm], server=server)

    async def put_servers(self, servers: Collection[Server]) -> None:
        """Rows D1, D6, D7: servers given, or changed, in bulk; all or, on a mistake, none (ModelError)."""
        before = {server.id: self.net.servers.get(server.id) for server in servers}
        touched: set[Owner] = set()
        try:
            for server in servers:
                touched |= self.net.put_server(server)
        except ModelError:
            for name, old in before.items():
                if old is None:
                    self.net.remove_server(name)
                else:
                    self.net.put_server(old)
            raise
        for server in servers:
            self.context.store.put(server)
            self.events.publish("server.booked", server=server)
        near = frozenset().union(*(near_server(self.net, s.id) for s in servers))
        await self.context.install(touched, near)

    # ---- readiness ----

    def _look_at_vms(self, owners: Collection[Owner]) -> None:
        """After an installation: leases may end at other times, VMs may be ready, moves may go on."""
        self._lease_timer_moved.set()
        for owner in owners:
            if owner.kind != "vm" or owner.id not in self.net.vms:
                continue
            self.mover.look_again_for(owner.id)
            if self.vm_states.get(owner.id, VMState.BOOKED) is VMState.BOOKED and self._is_ready(owner):
                self.vm_states[owner.id] = VMState.READY
                vm = self.net.vms[owner.id]
                self.events.publish("vm.ready", vm=vm, server=vm.server)

    def _is_ready(self, owner: Owner) -> bool:
        """Given and detected match (row D4), and every switch has confirmed the VM's flows."""
        vm = self.net.vms[owner.id]
        edge = self.net.servers[vm.server].edge
        return (
            self.net.place(vm.server) is not None
            and edge in self.net.vm_ports.get(vm.id, {})
            and edge in self.context.sessions
            and self.context.stands(owner)
        )

    def missing_for(self, vm: VM) -> list[str]:
        """In words, what a VM that is not ready waits for (row D4: missing is shown)."""
        edge = self.net.servers[vm.server].edge
        found = []
        if self.net.place(vm.server) is None:
            found.append(f"server {vm.server} has not been detected at any leaf")
        if edge not in self.net.vm_ports.get(vm.id, {}):
            found.append(f"switch {edge} has no port with iface-id {vm.id}")
        if edge not in self.context.sessions:
            found.append(f"switch {edge} is not connected")
        if not found and not self.context.stands(Owner("vm", vm.id)):
            found.append("its flows are not confirmed by every switch")
        return found

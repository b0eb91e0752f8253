"""The controller: every event of the outside ends in a method here, and leaves as flows, frames and events.

Wiring only. What an event means is decided in `bindings`, `moves` and `flows`; this module finds out which
of them it concerns, hands it over, and brings the result onto the switches.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any

import structlog

from retinue.bindings.forgery import KIND_OF, interpret
from retinue.controller.arp import ArpDesk
from retinue.controller.audit import Auditor
from retinue.controller.booking import Booking, VMState
from retinue.controller.context import Context, NoStore, Store
from retinue.controller.dhcp import DhcpPath
from retinue.controller.foreign import ForeignMoves
from retinue.controller.history import MOVES_KEPT, History
from retinue.controller.moving import Mover
from retinue.controller.refusals import AgentRefusals
from retinue.controller.renewals import Order
from retinue.flows.entry import FlowKey
from retinue.flows.pipeline import FORGERY_COOKIE, FORGERY_COOKIE_MASK, Reason, reason_of
from retinue.model import (
    VM,
    Network,
    Role,
    Server,
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


class Controller:
    """All handlers are called from one event loop and never block."""

    def __init__(
        self,
        net: Network,
        store: Store | None = None,
        clock: Callable[[], float] = time.time,
        *,
        moves_kept: int = MOVES_KEPT,
        audit_seconds: float = 0.0,
        warm_up_seconds: float = 0.0,
        forward_seconds: float = 0.0,
    ) -> None:
        """`moves_kept`, `..._seconds`: see controller.config."""
        self.context = Context(net, clock, store or NoStore())
        self.net = net
        self.events = self.context.events
        self.dhcp = DhcpPath(self.context, warm_up_seconds)
        self.renewals = self.dhcp.renewals
        self.arp = ArpDesk(self.context)
        history = History(moves_kept)
        self.mover = Mover(self.context, self.renewals.moved, history, warm_up_seconds, forward_seconds)
        self.forged_frames: dict[tuple[str, Reason], int] = {}
        """By switch and reason: all frames dropped as forged, from the switches' own counters."""
        self._forged_counts: dict[str, dict[FlowKey, int]] = {}
        self._by_dpid = {switch.dpid: switch.id for switch in net.switches.values()}
        self.booking = Booking(self.context, self.mover, self._by_dpid)
        self.vm_states = self.booking.vm_states
        self.foreign = ForeignMoves(self.context, self.mover, self.booking)
        self.agent_refusals = AgentRefusals(net)
        self.auditor = Auditor(self.context, self.mover, self._all_vms_again)
        self._audit_seconds = audit_seconds
        self._lease_timer_moved = asyncio.Event()
        self.context.after_install(self._installed)

    # ---- life ----

    async def start(self) -> None:
        await self.context.install(self.net.everything())
        self._repeat(1.0, self.arp.ask_for_servers, "search for servers")
        self._repeat(1.0, self.mover.tick, "time limits of moves")
        self._repeat(1.0, self._count_forged, "forged frames")
        self._repeat(60.0, self.context.installer.renew_long_leases, "long leases")
        self.context.spawn(self._lease_clock(), "lease clock")
        if self._audit_seconds:
            self.context.spawn(self.auditor.run(self._audit_seconds), "audit of switches")

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
            await self.context.install(touched)
            report = await self.context.installer.attach(switch, session)
        except (ConnectionError, TimeoutError) as error:
            session.close(f"could not be read: {error}")
            return
        self.events.publish("switch.connected", switch=switch, peer=session.peer, flow_mods=report.flow_mods)
        self._installed(touched | {Owner("vm", vm) for vm in self.net.vms})
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

    def _all_vms_again(self) -> None:
        self._installed({Owner("vm", vm) for vm in self.net.vms})

    def _installed(self, owners: Collection[Owner]) -> None:
        """After an installation: leases may end at other times, VMs be ready or renewed, moves go on."""
        self._lease_timer_moved.set()
        self.booking.look_at(owners)
        self.renewals.look_at(owners)

    # ---- ports of VMs, from the switches' databases; I1: the manager ----

    def vm_ports_changed(self, gone: Collection[BridgePort], now: Collection[BridgePort]) -> None:
        """Ports with a VM's id that went away, and that appeared or changed."""
        self.booking.vm_ports_changed(gone, now)

    def edge_read(self, dpids: Collection[int], vms: Collection[str] = ()) -> None:
        """See Booking.edge_read."""
        self.booking.edge_read(dpids, vms)

    def book_vms(self, vms: Collection[VM]) -> list[VM]:
        """See Booking.book_vms."""
        return self.booking.book_vms(vms)

    async def remove_vm(self, vm: str) -> None:
        """See Booking.remove_vm."""
        await self.booking.remove_vm(vm)

    def vm_says(self, vm: str, event: str, server: str) -> None:
        """See Booking.vm_says."""
        self.booking.vm_says(vm, event, server)

    def renew(self, vm: str, server: str = "") -> Order:
        """See Renewals.renew; how it ends: `await controller.renewals.result(order.id)`."""
        return self.renewals.renew(vm, server)

    async def put_servers(self, servers: Collection[Server]) -> None:
        """See Booking.put_servers."""
        await self.booking.put_servers(servers)

    def missing_for(self, vm: VM) -> list[str]:
        """See Booking.missing_for."""
        return self.booking.missing_for(vm)


__all__ = ["Controller", "VMState"]

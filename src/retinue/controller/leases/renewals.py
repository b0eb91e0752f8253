"""Renewals on a VM's behalf: ordered here, sent in at the VM's port by the agent, judged by DHCP.

    renew(vm)          -> what to renew is announced to the snooper, event vm.renew: the agent of the server
                          builds the request and sends it in at the VM's port
    request comes in   -> the port is recorded, event renewal.sent, and it goes to the DHCP server
    ACK                -> binding confirmed by the switches, then event renewal.acked, to the agent
    NAK                -> event renewal.rejected with the reason; the binding stays till the lease ends, for
                          the VM has asked nothing: it asks when its time comes, and the answer is its own
    no answer          -> the agent asks again, then reports it (or reports nothing at all): renewal.silent

What is renewed is the lease the VM holds, or held last: one that ended during a migration is put to the DHCP
server all the same, and the server decides.

The lease of a VM that has migrated (`vm_migrated`) is renewed by order of the controller. If no DHCP server
has answered when the controller ends, the next one orders it again, as soon as the VM's flows are confirmed.
"""

import asyncio
import secrets
from collections.abc import Collection, Iterator
from dataclasses import replace
from math import isinf

import structlog

from retinue.controller import counters as counted
from retinue.controller.context import Context
from retinue.controller.errors import no_vm
from retinue.controller.leases.lease_history import LeaseMemory, key_of, nic_of
from retinue.controller.leases.renewal_orders import RenewalError, new_order
from retinue.core.lease_renewal import BACK_OFF
from retinue.core.model import IP, NIC, VM, Assignment, BindingKind, Mac
from retinue.core.model.families import is_leased
from retinue.core.model.network import Owner
from retinue.core.snooping.dhcp6_headers import leases6
from retinue.core.snooping.dhcp6_rules import Snooper6
from retinue.core.snooping.dhcp_rules import Snooper
from retinue.core.snooping.messages import Recorded, ToAgent
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.renewals import Order, OrderState, RenewalOrder, RenewalOrder6, RenewalReport

log = structlog.get_logger()

LIMIT = sum(BACK_OFF) + 10.0
"""Seconds after which an agent that reports nothing is no longer waited for."""
AGAIN = 5.0
"""Seconds until an order of which no request has come in is announced once more."""
KEPT = 1000
"""Renewals that have ended that are remembered."""


class Renewals:
    """The controller's renewals. Times are in seconds: `limit` is how long an agent is waited for, `warm_up`
    how long a VM that has migrated is left alone first (see controller.config)."""

    def __init__(
        self,
        context: Context,
        snooper: Snooper,
        snooper6: Snooper6,
        limit: float = LIMIT,
        warm_up: float = 0.0,
    ) -> None:
        self._context = context
        self._snooper, self._snooper6 = snooper, snooper6
        self.limit = limit
        self._warm_up = warm_up
        self.orders: dict[str, Order] = {}
        self._by_xid: dict[int, str] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._memory = LeaseMemory(context)
        self._due: set[str] = set()
        """Keys of pending renewals that have not been ordered since the start."""

    # ---- VMs that have migrated ----

    def vm_migrated(self, vm: str) -> None:
        """A VM has migrated: each lease of its NICs is renewed from its new server."""
        leases = self._leases(vm)
        for nic, lease in leases:
            self._memory.pend(key_of(nic, lease.ip, lease.client_id))
        if leases:
            self._context.spawn(self._after_migration(vm), f"renewal of {vm} after its migration")

    async def _after_migration(self, vm: str) -> None:
        await asyncio.sleep(self._warm_up)
        registered = self._context.net.vms.get(vm)
        its = set() if registered is None else {nic.port_id for nic in registered.nics}
        for key in sorted(key for key in self._memory.pending if nic_of(key) in its):
            self._due.add(key)
            self._order_due(key)

    def restored(self) -> None:
        """The database has been read."""
        self._memory.restored()
        self._due |= self._memory.pending

    def look_at(self, owners: Collection[Owner]) -> None:
        """After an installation: a VM with a pending renewal may be where it can be renewed, or removed."""
        for owner in owners:
            if owner.kind != "vm":
                continue
            vm = self._context.net.vms.get(owner.id)
            if vm is None:
                self._vm_gone(owner.id)
                continue
            its = {nic.port_id for nic in vm.nics}
            due = sorted(key for key in self._due if nic_of(key) in its) if self._due else []
            if due and self._context.is_programmed(owner):
                for key in due:
                    self._order_due(key)

    def _order_due(self, key: str) -> None:
        """Order it, unless the NIC's port is not back yet."""
        net = self._context.net
        vm = net.vm_of_port_id(nic_of(key))
        found = () if vm is None else self._leases(vm.id)
        lease = next(((nic, lease) for nic, lease in found if _is_lease(nic, lease, key)), None)
        if vm is None or lease is None or self._is_away(vm.id):
            self._settle(key)  # The VM has given its lease back, or has gone to another domain.
        elif net.port_of(lease[0], net.servers[vm.server].edge) is not None:
            self._due.discard(key)
            try:
                self._renew(vm, *lease, vm.server, announce=True)
            except RenewalError as error:
                log.warning("renewal.not_ordered", vm=vm.id, lease=key, error=str(error))

    def _settle(self, key: str) -> None:
        self._due.discard(key)
        self._memory.settle(key)

    def _settle_lease(self, mac: Mac, ip: IP, client_id: bytes) -> None:
        vm = self._context.net.vm_of_mac(mac)
        nic = None if vm is None else vm.nic_with(mac)
        if nic is not None:
            self._settle(key_of(nic, ip, client_id))

    def _vm_gone(self, vm: str) -> None:
        self._memory.vm_gone(vm)
        self._due &= self._memory.pending
        for order in self.under_way(vm):
            self._end(order, OrderState.FAILED, f"VM {vm} was removed")

    # ---- orders ----

    def renew(self, vm: str, server: str = "", *, announce: bool = True, nic: str = "") -> Order:
        """Have a VM's lease renewed by the agent at `server` ("": where the VM is delivered).

        `nic` is the port id of the NIC whose lease it is; "": the first that has one. Of several leases of a
        NIC it is that of IPv4, else the first. With `announce` the order goes to the agent as event vm.renew;
        without, the caller is the agent and acts on the order returned. A renewal of the same lease that is
        under way is given up. Raises RenewalError.
        """
        registered = self._context.net.vms.get(vm)
        if registered is None:
            raise RenewalError(str(no_vm(vm)), ErrorCode.UNKNOWN_VM)
        at = server or registered.server
        its = self._nic_to_renew(registered, nic)
        return self._renew(registered, its, next(self._leases_of(its), None), at, announce=announce)

    def _renew(self, vm: VM, nic: NIC, lease: Assignment | None, at: str, *, announce: bool) -> Order:
        order = new_order(self._context.net, vm, nic, lease, at, self._context.clock(), self._fresh_xid)
        key = _key_of_order(nic, order)
        for other in self.under_way(vm.id):
            if other.mac == order.mac and _key_of_order(nic, other) == key:
                self._end(other, OrderState.FAILED, f"{order.id} took its place")
        self.orders[order.id] = order
        self._by_xid[order.xid] = order.id
        self._ended[order.id] = asyncio.Event()
        self._forget_old()
        now, (mac, xid, switch) = self._context.clock(), (order.mac, order.xid, order.switch)
        match order:
            case RenewalOrder():
                self._snooper.announced.announce(vm.id, mac, order.ip, xid, switch, now, order.dhcp_server)
            case RenewalOrder6():
                self._snooper6.announced.announce(vm.id, mac, order.ip, xid, switch, now)
        self._context.spawn(self._watch(order.id, announce), f"{order.id} of {vm.id}")
        if announce:
            self._announce(order)
        return order

    def _announce(self, order: Order) -> None:
        self._context.events.publish(EventType.VM_RENEW, renewal=order, vm=order.vm, server=order.server)

    async def result(self, id: str, wait: float | None = None) -> Order:
        """The renewal when it has ended, or as it is after `wait` seconds. Raises RenewalError."""
        order = self.get(id)
        if not order.state.ended:
            try:
                async with asyncio.timeout(wait):
                    await self._ended[id].wait()
            except TimeoutError:
                pass
        return self.orders[id]

    def get(self, id: str) -> Order:
        order = self.orders.get(id)
        if order is None:
            raise RenewalError(
                f"there is no renewal {id}; GET /v1/renewals lists those there are", ErrorCode.UNKNOWN_RENEWAL
            )
        return order

    def under_way(self, vm: str) -> list[Order]:
        return [o for o in self.orders.values() if o.vm == vm and not o.state.ended]

    # ---- reports of agents ----

    def on_report(self, id: str, report: RenewalReport, reason: str) -> Order:
        """What the agent reports of a renewal; about one that has ended it changes nothing."""
        order = self.get(id)
        if not order.state.ended:
            state = OrderState.SILENT if report is RenewalReport.SILENT else OrderState.FAILED
            self._end(order, state, reason or "the agent gave no reason")
        return self.orders[id]

    # ---- what DHCP does, from DhcpPath ----

    def recorded(self, effect: Recorded) -> None:
        """The request came in, at this port."""
        order = self._of(effect.xid)
        if order is None:
            return
        order = replace(order, state=OrderState.SENT, sent=order.sent + 1, recorded_port=effect.port)
        self.orders[order.id] = order
        self._context.events.publish(EventType.RENEWAL_SENT, renewal=order, vm=order.vm)

    def answered(self, effect: ToAgent, answer: bytes, seconds: float | None, confirmed: bool) -> None:
        """The DHCP server has answered, with a lease of so many seconds. With an ACK the binding is made;
        `confirmed`: by every switch."""
        order = self._of(effect.xid)
        if order is None:
            return
        order = replace(order, answer=answer.hex())
        if effect.rejection:
            self._settle_lease(order.mac, order.ip, bytes.fromhex(order.client_id))
            self._end(order, OrderState.REJECTED, effect.rejection)
            return
        if not confirmed:
            self._end(order, OrderState.REJECTED, "the switches have not confirmed the binding of the ACK")
            return
        net = self._context.net
        held = net.holder(order.ip, net.vrf_of_mac(order.mac))
        end = None if held is None else held.lease_end
        granted = None if seconds is None or isinf(seconds) else seconds
        self._settle_lease(order.mac, order.ip, bytes.fromhex(order.client_id))
        self._end(replace(order, lease_seconds=granted, lease_end=end), OrderState.ACKED, "")

    def lease_ended(self, assignment: Assignment) -> None:
        """A lease ran out. Its VM may be on its way; one of DHCPv6 cannot be renewed when it has ended."""
        if is_leased(assignment.ip):
            self._memory.ran_out(assignment)

    def bound(self, assignment: Assignment) -> None:
        """A DHCP server has made a binding."""
        if is_leased(assignment.ip):
            self._memory.bound(assignment.mac)

    def confirmed(self, assignment: Assignment) -> None:
        """The switches have confirmed it."""
        self._settle_lease(assignment.mac, assignment.ip, assignment.client_id)

    # ---- inside ----

    def _is_away(self, vm: str) -> bool:
        """In another domain, where agents of ours renew nothing."""
        known = self._context.net.vms.get(vm)
        return known is not None and self._context.net.peer_at(known.server) is not None

    def _leases(self, vm: str) -> list[tuple[NIC, Assignment]]:
        """The leases of a VM that can be renewed, each with its NIC."""
        known = self._context.net.vms.get(vm)
        nics = () if known is None else known.nics
        return [(nic, lease) for nic in nics for lease in self._leases_of(nic)]

    def _nic_to_renew(self, vm: VM, nic: str) -> NIC:
        found = vm.nic_called(nic) if nic else next((its for its, _ in self._leases(vm.id)), vm.nic)
        if found is None:
            raise RenewalError(f"VM {vm.id} has no NIC {nic}", ErrorCode.UNKNOWN_NIC)
        return found

    def _leases_of(self, nic: NIC) -> Iterator[Assignment]:
        """The leases of IPv4 that a NIC has, or the one it had last, and its leases of DHCPv6."""
        net = self._context.net
        vm = net.vm_of_mac(nic.mac)
        if vm is None:
            return
        assigned = net.assignments_of(vm, nic)
        held = [h for h in assigned if h.kind is BindingKind.DYNAMIC and is_leased(h.ip)]
        last = None if held else self._memory.last_of(nic.mac)
        yield from held if last is None else [last]
        yield from leases6(net, vm, nic)

    def _fresh_xid(self, bits: int) -> int:
        while (xid := secrets.randbits(bits)) in self._by_xid:
            pass
        return xid

    def _of(self, xid: int) -> Order | None:
        order = self.orders.get(self._by_xid.get(xid, ""))
        return None if order is None or order.state.ended else order

    async def _watch(self, id: str, announced: bool) -> None:
        """A renewal ends also when its agent is dead. To one that was away, it is announced once more."""
        left = self.limit
        while left > 0:
            order = await self.result(id, min(AGAIN, left))
            left -= AGAIN
            if order.state.ended:
                return
            if left > 0 and announced and not order.sent:
                self._announce(order)
        if order.sent:
            reason = f"{order.named} did not answer {order.sent} requests"
        else:
            reason = f"no request came in at port {order.port} of {order.switch}: is the agent running?"
        self._end(order, OrderState.SILENT, f"{reason} in {self.limit:.0f} s")

    def _end(self, order: Order, state: OrderState, reason: str) -> None:
        order = replace(order, state=state, reason=reason)
        self.orders[order.id] = order
        self._by_xid.pop(order.xid, None)
        snooper = self._snooper if isinstance(order, RenewalOrder) else self._snooper6
        snooper.withdraw(order.mac, order.xid, self._context.clock())
        self._ended[order.id].set()
        self._context.counters[counted.renewals(state)] += 1
        if state is not OrderState.ACKED:
            log.warning("renewal.failed", vm=order.vm, ip=str(order.ip), state=state, reason=reason)
        self._context.events.publish(EventType(f"renewal.{state}"), renewal=order, vm=order.vm, reason=reason)

    def _forget_old(self) -> None:
        ended = [id for id, order in self.orders.items() if order.state.ended]
        for id in ended[: max(0, len(ended) - KEPT)]:
            del self.orders[id], self._ended[id]


def _is_lease(nic: NIC, lease: Assignment, key: str) -> bool:
    return key_of(nic, lease.ip, lease.client_id) == key


def _key_of_order(nic: NIC, order: Order) -> str:
    return key_of(nic, order.ip, bytes.fromhex(order.client_id))

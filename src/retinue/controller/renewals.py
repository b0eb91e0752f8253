"""Renewals on a VM's behalf (seed 1): ordered here, sent in at the VM's port by the agent, judged by DHCP.

    renew(vm)          -> what to renew is announced to the snooper, event vm.renew: the agent of the server
                          builds the request and sends it in at the VM's port
    request comes in   -> the port is recorded, event renewal.sent, and it goes to the DHCP server
    ACK                -> binding confirmed by the switches, then event renewal.acked (row A7: to the agent)
    NAK                -> binding ended, event renewal.refused with the reason
    no answer          -> the agent asks again, then says so (or says nothing at all): renewal.silent

What is renewed is the lease the VM holds, or held last: one that ended during a move is put to the DHCP
server all the same, which says whether it can be had.

A VM that has moved (`moved`) is renewed by order of the controller. If no DHCP server has answered when the
controller ends, the next one orders it again, as soon as the VM's place is as it should be.
"""

import asyncio
import secrets
from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address
from math import isinf

import structlog

from retinue.bindings.renewal import BACK_OFF
from retinue.bindings.snooping import Recorded, Snooper, ToAgent
from retinue.controller.context import Context
from retinue.controller.lease_memory import LeaseMemory
from retinue.model import VM, BindingKind, Holding, Mac, ModelError, Service
from retinue.model.network import Owner
from retinue.packets import DHCP, build_dhcp
from retinue.store import EndedLease, Owed

log = structlog.get_logger()

LIMIT = sum(BACK_OFF) + 10.0
"""Seconds after which an agent that says nothing is no longer waited for."""
AGAIN = 5.0
"""Seconds until an agent is told once more of an order of which no request has come in."""
KEPT = 1000
"""Renewals that have ended that are remembered."""


class RenewalError(ModelError):
    """The renewal cannot be; the message says why and what to do."""


class OrderState(StrEnum):
    ORDERED = "ordered"
    """Announced; no request has come in."""
    SENT = "sent"
    """The request has come in at the VM's port and has gone to the DHCP server."""
    ACKED = "acked"
    REFUSED = "refused"
    """By the DHCP server, or what it granted makes no binding."""
    SILENT = "silent"
    FAILED = "failed"
    """The agent could not send, or the VM went."""

    @property
    def ended(self) -> bool:
        return self not in (OrderState.ORDERED, OrderState.SENT)


@dataclass(frozen=True, slots=True)
class Order:
    """One renewal as the agent is told to do it, and how it went."""

    id: str
    vm: str
    server: str
    switch: str
    port: str
    """Name of the VM's port on that switch."""
    port_number: int
    ip: IPv4Address
    mac: Mac
    xid: int
    dhcp_server: IPv4Address
    client_id: str
    """In hexadecimal; "" if the VM uses none."""
    next_hop: Mac
    ordered_at: float
    state: OrderState = OrderState.ORDERED
    sent: int = 0
    """How many times the request has come in."""
    recorded_port: int | None = None
    lease_seconds: float | None = None
    """What the ACK granted; None also for a lease that never ends."""
    lease_end: float | None = None
    answer: str = ""
    """The DHCP server's ACK or NAK itself, in hexadecimal: it goes to the agent, not to the VM (row A7)."""
    reason: str = ""


class Renewals:
    """The controller's renewals. Times are in seconds: `limit` is how long an agent is waited for, `warm_up`
    how long a VM that has moved is left alone first (see controller.config)."""

    def __init__(
        self, context: Context, snooper: Snooper, limit: float = LIMIT, warm_up: float = 0.0
    ) -> None:
        self._context = context
        self._snooper = snooper
        self.limit = limit
        self._warm_up = warm_up
        self.orders: dict[str, Order] = {}
        self._by_xid: dict[int, str] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._memory = LeaseMemory(context)
        self._due: set[str] = set()
        """VMs that owe a renewal which has not been ordered since the start."""

    # ---- VMs that have moved ----

    def moved(self, vm: str) -> None:
        """A VM has moved: its lease is renewed from its new place (row A1), if it has one."""
        if self.may_renew(vm):
            self._memory.owe(vm)
            self._context.spawn(self._moved(vm), f"renewal of {vm} after its move")

    async def _moved(self, vm: str) -> None:
        await asyncio.sleep(self._warm_up)
        if vm in self._context.net.vms and vm in self._memory.owed:
            self._due.add(vm)
            self._order_due(vm)

    def restored(self, owed: Collection[Owed], ended: Collection[EndedLease]) -> None:
        """What the database has kept; after the VMs and their holdings."""
        self._memory.restored(owed, ended)
        self._due |= self._memory.owed

    def look_at(self, owners: Collection[Owner]) -> None:
        """After an installation: a VM that owes a renewal may be where it can be renewed, or may be gone."""
        for owner in owners:
            if owner.kind != "vm":
                continue
            if owner.id not in self._context.net.vms:
                self._vm_gone(owner.id)
            elif owner.id in self._due and self._context.stands(owner):
                self._order_due(owner.id)

    def _order_due(self, vm: str) -> None:
        """Order it, unless the VM's port is not back yet."""
        net = self._context.net
        edge = net.servers[net.vms[vm].server].edge
        if not self.may_renew(vm):
            self._settle(vm)  # It has given its lease back.
        elif edge in net.vm_ports.get(vm, {}):
            self._due.discard(vm)
            try:
                self.renew(vm)
            except RenewalError as error:
                log.warning("no renewal after a move", vm=vm, error=str(error))

    def _settle(self, vm: str) -> None:
        self._due.discard(vm)
        self._memory.settle(vm)

    def _vm_gone(self, vm: str) -> None:
        self._due.discard(vm)
        self._memory.forget(vm)
        for order in self.under_way(vm):
            self._end(order, OrderState.FAILED, f"VM {vm} was removed")

    # ---- the word to renew ----

    def renew(self, vm: str, server: str = "", *, announce: bool = True) -> Order:
        """Have a VM's lease renewed by the agent at `server` ("": where the VM is delivered).

        With `announce` the agent is told by the event vm.renew; without, the caller is the agent and acts on
        the order returned. A renewal of the same VM that is under way is given up. Raises RenewalError.
        """
        booked = self._context.net.vms.get(vm)
        if booked is None:
            raise RenewalError(f"there is no VM {vm}; `retinue vm list` shows those there are")
        at = server or booked.server
        order = self._order(booked, at)
        for other in self.under_way(vm):
            self._end(other, OrderState.FAILED, f"{order.id} took its place")
        self.orders[order.id] = order
        self._by_xid[order.xid] = order.id
        self._ended[order.id] = asyncio.Event()
        self._forget_old()
        self._snooper.announce(vm, order.mac, order.ip, order.xid, order.switch, self._context.clock())
        self._context.spawn(self._watch(order.id, announce), f"{order.id} of {vm}")
        if announce:
            self._announce(order)
        return order

    def _announce(self, order: Order) -> None:
        self._context.events.publish("vm.renew", renewal=order, vm=order.vm, server=order.server)

    def may_renew(self, vm: str) -> bool:
        """True when the VM has, or had, a lease to renew: False for one with static addresses only."""
        return vm in self._context.net.vms and self._lease_of(vm) is not None

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
            raise RenewalError(f"there is no renewal {id}; GET /v1/renewals lists those there are")
        return order

    def under_way(self, vm: str) -> list[Order]:
        return [o for o in self.orders.values() if o.vm == vm and not o.state.ended]

    # ---- the agent's word ----

    def agent_says(self, id: str, event: str, reason: str) -> Order:
        """silent: it asked in vain. failed: it could not ask. About an ended renewal: changes nothing."""
        if event not in ("silent", "failed"):
            raise RenewalError(f"a renewal knows no event {event!r} (silent, failed)")
        order = self.get(id)
        if not order.state.ended:
            state = OrderState.SILENT if event == "silent" else OrderState.FAILED
            self._end(order, state, reason or "the agent gave no reason")
        return self.orders[id]

    # ---- what DHCP says, from controller.dhcp ----

    def recorded(self, effect: Recorded) -> None:
        """Row A3: the request came in, at this port."""
        order = self._of(effect.xid)
        if order is None:
            return
        order = replace(order, state=OrderState.SENT, sent=order.sent + 1, recorded_port=effect.port)
        self.orders[order.id] = order
        self._context.events.publish("renewal.sent", renewal=order, vm=order.vm)

    def answered(self, effect: ToAgent, answer: DHCP, stands: bool) -> None:
        """The DHCP server has answered; with an ACK the binding has been made, and `stands` if confirmed."""
        order = self._of(effect.xid)
        if order is None:
            return
        order = replace(order, answer=build_dhcp(answer).hex())
        if effect.refusal:
            self._settle(order.vm)
            self._end(order, OrderState.REFUSED, effect.refusal)
            return
        if not stands:
            self._end(order, OrderState.REFUSED, "the switches have not confirmed the binding of the ACK")
            return
        held = self._context.net.holdings.get(order.ip)
        end = None if held is None else held.lease_end
        seconds = answer.lease_time
        granted = None if seconds is None or isinf(seconds) else seconds
        self._settle(order.vm)
        self._end(replace(order, lease_seconds=granted, lease_end=end), OrderState.ACKED, "")

    def lease_ended(self, holding: Holding) -> None:
        """A lease ran out. Its VM may be on its way."""
        self._memory.ran_out(holding)

    def bound(self, holding: Holding) -> None:
        """An ACK has made a binding."""
        self._memory.bound(holding.vm)

    def stands(self, holding: Holding) -> None:
        """The switches have confirmed it."""
        self._settle(holding.vm)

    # ---- inside ----

    def _order(self, vm: VM, server: str) -> Order:
        net = self._context.net
        if server not in (vm.server, *vm.also):
            raise RenewalError(f"VM {vm.id} may not be found at {server}, but at {vm.server}")
        edge = net.servers[server].edge
        port = net.vm_ports.get(vm.id, {}).get(edge)
        if port is None:
            raise RenewalError(f"switch {edge} of {server} has no port of VM {vm.id}")
        lease = self._lease_of(vm.id)
        if lease is None or not isinstance(lease.ip, IPv4Address):
            raise RenewalError(f"VM {vm.id} has no lease to renew")
        granted_by = lease.server or self._only_server()
        if granted_by is None:
            raise RenewalError(f"it is not known which DHCP server granted {lease.ip} to VM {vm.id}")
        xid = self._fresh_xid()
        return Order(
            # Never the same again, also after a restart: an agent may still speak of an earlier one.
            id=f"renewal-{xid:08x}",
            vm=vm.id,
            server=server,
            switch=edge,
            port=port.name,
            port_number=port.number,
            ip=lease.ip,
            mac=vm.mac,
            xid=xid,
            dhcp_server=granted_by,
            client_id=lease.client_id.hex(),
            next_hop=net.gateway_mac,
            ordered_at=self._context.clock(),
        )

    def _lease_of(self, vm: str) -> Holding | None:
        held = (h for h in self._context.net.held_by(vm) if h.kind is BindingKind.DYNAMIC)
        return next(held, self._memory.last_of(vm))

    def _only_server(self) -> IPv4Address | None:
        servers = self._context.net.servers_with(Service.DHCP)
        address = servers[0].address if len(servers) == 1 else None
        return address if isinstance(address, IPv4Address) else None

    def _fresh_xid(self) -> int:
        while (xid := secrets.randbits(32)) in self._by_xid:
            pass
        return xid

    def _of(self, xid: int) -> Order | None:
        order = self.orders.get(self._by_xid.get(xid, ""))
        return None if order is None or order.state.ended else order

    async def _watch(self, id: str, announced: bool) -> None:
        """Row A5: a renewal ends also when its agent is dead. One that was away is told once more."""
        left = self.limit
        while left > 0:
            order = await self.result(id, min(AGAIN, left))
            left -= AGAIN
            if order.state.ended:
                return
            if left > 0 and announced and not order.sent:
                self._announce(order)
        if order.sent:
            reason = f"DHCP server {order.dhcp_server} did not answer {order.sent} requests"
        else:
            reason = f"no request came in at port {order.port} of {order.switch}: is the agent running?"
        self._end(order, OrderState.SILENT, f"{reason} in {self.limit:.0f} s")

    def _end(self, order: Order, state: OrderState, reason: str) -> None:
        order = replace(order, state=state, reason=reason)
        self.orders[order.id] = order
        self._by_xid.pop(order.xid, None)
        self._snooper.withdraw(order.mac, order.xid, self._context.clock())
        self._ended[order.id].set()
        self._context.counters[f"renewals {state}"] += 1
        if state is not OrderState.ACKED:
            log.warning("a lease was not renewed", vm=order.vm, ip=str(order.ip), state=state, reason=reason)
        self._context.events.publish(f"renewal.{state}", renewal=order, vm=order.vm, reason=reason)

    def _forget_old(self) -> None:
        ended = [id for id, order in self.orders.items() if order.state.ended]
        for id in ended[: max(0, len(ended) - KEPT)]:
            del self.orders[id], self._ended[id]


__all__ = ["Order", "OrderState", "RenewalError", "Renewals"]

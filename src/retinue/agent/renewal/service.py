"""Renewals that the controller orders of this server's agent, each carried out beside everything else.

    order = await controller.renew("vm1", "server2")     # or from the event vm.renew
    await carry_out(order, port, controller)

The controller sees the request at the VM's port, and has the answer: the ACK comes in at the controller,
which makes the binding from it and lets nothing of it reach the guest. It is in the order when that has
ended.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from retinue.agent.renewal.lease_notes import LeaseNotes
from retinue.agent.renewal.openflow_port import RenumberedPort
from retinue.agent.renewal.renewing import InjectionError, Port, renew
from retinue.core.lease_renewal import ControllerVerdict, Event, Lease, Lease6Held, RenewalState
from retinue.core.packets import FrameError, MessageType, parse_dhcp, parse_options
from retinue.core.packets.dhcp6_options import parse_options6
from retinue.protocol.errors import ControllerError
from retinue.protocol.renewals import (
    Order,
    OrderState,
    RenewalOrder,
    RenewalOrder6,
    RenewalReport,
    order_of,
)

log = structlog.get_logger()


class Orders(Protocol):
    """The controller, as far as renewals go (protocol.client). Every method raises ControllerError."""

    async def renew(self, vm: str, server: str = "") -> Order: ...

    async def renewal_ended(self, id: str) -> Order: ...

    async def report_renewal(self, id: str, report: RenewalReport, reason: str) -> None: ...


class RenewalService:
    """Carries out the orders of the event stream that are for `server`, at the ports of its `bridge`."""

    def __init__(
        self,
        server: str,
        bridge: str,
        orders: Orders,
        refused: Callable[[str], None] = lambda vm: None,
        leases: LeaseNotes | None = None,
    ) -> None:
        """`refused`: what to do where the DHCP server refuses to renew the lease of this VM; `leases`: where
        those that are renewed are kept."""
        self._server, self._bridge, self._orders = server, bridge, orders
        self._refused, self._leases = refused, leases
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, renewal: dict[str, Any]) -> None:
        """Act on an order, if it is this server's, in the background."""
        if renewal.get("server") != self._server:
            return
        task = asyncio.create_task(self._renew(renewal), name=f"renewal {renewal.get('id')}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _renew(self, renewal: dict[str, Any]) -> None:
        began = asyncio.get_running_loop().time()
        try:
            order = order_of(renewal)
            port = RenumberedPort(self._bridge, order.port_number, order.port)
            done = await carry_out(order, port, self._orders)
        except ControllerError as error:
            log.warning("renewal.not_carried_out", renewal=renewal.get("id"), error=str(error))
        else:
            log.info("renewal.ended", vm=done.vm, state=str(done.state), lease_seconds=done.lease_seconds)
            if isinstance(done, RenewalOrder) and done.state is OrderState.ACKED and self._leases is not None:
                seconds = math.inf if done.lease_seconds is None else done.lease_seconds
                took = asyncio.get_running_loop().time() - began
                self._leases.renewed(lease_of(done), seconds, done.vm, took)
            if is_refused(done):
                self._refused(done.vm)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def carry_out(order: Order, port: Port, orders: Orders) -> Order:
    """Do an order to its end, and report what the controller cannot see; how it ended.

    Raises ControllerError.
    """
    try:
        lease = lease_of(order) if isinstance(order, RenewalOrder) else lease6_of(order)
        done = await renew(lease, order.xid, port, _Answer(order.id, orders), vlan=order.vlan)
    except InjectionError as error:
        await orders.report_renewal(order.id, RenewalReport.FAILED, str(error))
        return await orders.renewal_ended(order.id)
    if done.state is RenewalState.SILENT:
        await orders.report_renewal(order.id, RenewalReport.SILENT, done.reason)
    return await orders.renewal_ended(order.id)


def is_refused(order: Order) -> bool:
    """True when the DHCP server has answered by a NAK: the VM's address is the VM's no longer.

    DHCPv6 has none: the VM has its address until the lease ends, and asks before.
    """
    if not isinstance(order, RenewalOrder):
        return False
    try:
        kind = parse_dhcp(bytes.fromhex(order.answer)).message_type if order.answer else None
    except (FrameError, ValueError):
        return False
    return order.state is OrderState.REJECTED and kind is MessageType.NAK


def lease_of(order: RenewalOrder) -> Lease:
    """What is renewed."""
    options = parse_options(bytes.fromhex(order.options))
    return Lease(
        order.ip, order.mac, order.dhcp_server, bytes.fromhex(order.client_id), order.next_hop, options
    )


def lease6_of(order: RenewalOrder6) -> Lease6Held:
    """What is renewed, of DHCPv6."""
    client_id, server = bytes.fromhex(order.client_id), bytes.fromhex(order.server_duid)
    options = parse_options6(bytes.fromhex(order.options))
    held = (order.ip, order.mac, client_id, server, order.iaid, options)
    return Lease6Held(*held, ia=order.ia, length=order.prefix_length)


class _Answer:
    """How an order ended, as the controller says it, for the renewal that waits for an answer."""

    def __init__(self, id: str, orders: Orders) -> None:
        self._id, self._orders = id, orders

    async def next(self) -> Event:
        ended = await self._orders.renewal_ended(self._id)
        if ended.state is OrderState.ACKED:
            return ControllerVerdict(ended.lease_seconds)
        return ControllerVerdict(None, ended.reason or f"the renewal is {ended.state}")

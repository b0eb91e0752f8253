"""Renewals with a controller of ours: it orders them, sees the request at the VM's port, and has the answer.

    order = await rest.order("vm1", "server2")     # or from the event vm.renew: order_of(event["renewal"])
    await carry_out(order, port, rest)

The ACK comes in at the controller, which makes the binding from it and lets nothing of it reach the guest;
it is in the order when that has ended (`answer`).
"""

from ipaddress import IPv4Address
from typing import Any, Protocol

import aiohttp
import msgspec

from retinue.agent.renewing import InjectionError, Port, renew
from retinue.bindings.renewal import Event, Lease, Renewal, RenewalState, Told
from retinue.pki.credentials import Credentials

LONG_POLL = 30.0
ANSWER_LIMIT = 10.0


class OrderRecord(msgspec.Struct, frozen=True):
    """What the agent reads of an order (controller.renewals.Order)."""

    id: str
    vm: str
    server: str
    switch: str
    port: str
    port_number: int
    ip: str
    mac: str
    xid: int
    dhcp_server: str
    client_id: str
    next_hop: str
    state: str
    lease_seconds: float | None = None
    lease_end: float | None = None
    answer: str = ""
    reason: str = ""

    @property
    def lease(self) -> Lease:
        return Lease(
            ip=IPv4Address(self.ip),
            mac=self.mac,
            server=IPv4Address(self.dhcp_server),
            client_id=bytes.fromhex(self.client_id),
            next_hop=self.next_hop,
        )


def order_of(value: Any) -> OrderRecord:
    """An order as an event or an answer of the controller has it. Raises OrderError."""
    try:
        return msgspec.convert(value, OrderRecord)
    except msgspec.ValidationError as error:
        raise OrderError(f"the controller sent no proper renewal: {error}") from error


class OrderError(Exception):
    """The controller does not order, cannot be reached, or says something else than agreed."""


class Orders(Protocol):
    """The controller, as far as renewals go. Every method raises OrderError."""

    async def order(self, vm: str, server: str = "") -> OrderRecord:
        """Have a renewal ordered; whoever calls carries it out."""

    async def outcome(self, id: str) -> OrderRecord:
        """The order, when it has ended."""

    async def report(self, id: str, event: str, reason: str) -> None:
        """silent, or failed."""


async def carry_out(order: OrderRecord, port: Port, orders: Orders) -> OrderRecord:
    """Do an order to its end, and report what the controller cannot see; how it ended. Raises OrderError."""
    try:
        done = await renew(order.lease, order.xid, port, _Answer(order.id, orders))
    except InjectionError as error:
        await orders.report(order.id, "failed", str(error))
        return await orders.outcome(order.id)
    if done.state is RenewalState.SILENT:
        await orders.report(order.id, "silent", done.reason)
    return await orders.outcome(order.id)


class _Answer:
    """The controller's word on how an order ended, for the renewal that waits for it."""

    def __init__(self, id: str, orders: Orders) -> None:
        self._id, self._orders = id, orders

    async def next(self) -> Event:
        ended = await self._orders.outcome(self._id)
        if ended.state == "acked":
            return Told(ended.lease_seconds)
        return Told(None, ended.reason or f"the renewal is {ended.state}")


class HttpOrders:
    """The controller's REST interface at `base`, such as "http://192.0.2.1:8080"; close it after use."""

    def __init__(self, base: str, credentials: Credentials | None = None) -> None:
        credentials = Credentials.of_environment() if credentials is None else credentials
        self._base = base.rstrip("/")
        connector = aiohttp.TCPConnector(ssl=credentials.ssl_for(self._base))
        self._http = aiohttp.ClientSession(connector=connector, headers=credentials.headers)

    async def close(self) -> None:
        await self._http.close()

    async def order(self, vm: str, server: str = "") -> OrderRecord:
        return order_of(await self._ask("POST", f"/v1/vms/{vm}/renewals", {"server": server, "agent": True}))

    async def outcome(self, id: str) -> OrderRecord:
        while True:
            order = order_of(await self._ask("GET", f"/v1/renewals/{id}?wait={LONG_POLL:.0f}"))
            if order.state not in ("ordered", "sent"):
                return order

    async def report(self, id: str, event: str, reason: str) -> None:
        await self._ask("POST", f"/v1/renewals/{id}/events", {"event": event, "reason": reason})

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        limit = aiohttp.ClientTimeout(total=ANSWER_LIMIT + LONG_POLL)
        try:
            async with self._http.request(method, self._base + path, json=body, timeout=limit) as reply:
                answer = msgspec.json.decode(await reply.read())
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
            raise OrderError(f"the controller at {self._base} cannot be asked: {error}") from error
        if reply.status >= 400:
            raise OrderError(str(answer.get("error", f"status {reply.status}")))
        return answer


__all__ = ["HttpOrders", "OrderError", "OrderRecord", "Orders", "Renewal", "carry_out", "order_of"]

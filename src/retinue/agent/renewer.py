"""Renewals the controller orders of this server's agent, each carried out beside everything else."""

import asyncio
from typing import Any

import structlog

from retinue.agent.orders import OrderError, Orders, carry_out, order_of
from retinue.agent.ovs_port import OvsPort

log = structlog.get_logger()


class Renewer:
    def __init__(self, server: str, bridge: str, orders: Orders) -> None:
        self._server, self._bridge, self._orders = server, bridge, orders
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, renewal: dict[str, Any]) -> None:
        """Act on an order, if it is this server's, in the background."""
        if renewal.get("server") != self._server:
            return
        task = asyncio.create_task(self._renew(renewal), name=f"renewal {renewal.get('id')}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _renew(self, renewal: dict[str, Any]) -> None:
        try:
            order = order_of(renewal)
            done = await carry_out(order, OvsPort(self._bridge, order.port_number), self._orders)
        except OrderError as error:
            log.warning("a renewal is not carried out", renewal=renewal.get("id"), error=str(error))
        else:
            log.info("renewal", vm=done.vm, state=done.state, lease_seconds=done.lease_seconds)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

"""The hypervisors' side of migrations, played by one fake; and agents that listen, and do nothing else."""

import asyncio
import contextlib
import time
from dataclasses import dataclass

from bench.scale.fakes.ovsdb import FakeDatabase, hash_of
from bench.scale.fakes.switch import Confirmations
from bench.scale.plan import VMPlan
from retinue.core.migration import MigrationState
from retinue.protocol.client import ControllerClient
from retinue.protocol.events import ACTED_ON, HELLO, EventType
from retinue.protocol.migrations import Order, Report
from retinue.protocol.routes import Route

ORDER_LIMIT = 60.0
"""Seconds an order of the controller is waited for."""


class FakeAgents(asyncio.Protocol):
    """One agent's event stream, as the agents of servers follow it; what comes is thrown away."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def listen(cls, rest: int, servers: list[str]) -> list["FakeAgents"]:
        loop = asyncio.get_running_loop()
        found = []
        for server in servers:
            _, agent = await loop.create_connection(lambda server=server: cls(server), "127.0.0.1", rest)  # type: ignore[misc]
            found.append(agent)
        return found

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        path = Route.FOLLOW_EVENTS.path(types=",".join(sorted(ACTED_ON - {HELLO})), server=self._server)
        transport.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Orders:
    """What the event stream says of migrations: each order, and each state, once for who waits for it."""

    def __init__(self, client: ControllerClient) -> None:
        self._client = client
        self._waiting: dict[tuple[str, str], asyncio.Future[float]] = {}
        self._seen: dict[tuple[str, str], float] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Orders":
        since = await self._client.last_event()
        self._task = asyncio.create_task(self._follow(since))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _follow(self, since: int) -> None:
        async with contextlib.aclosing(self._client.all_events(since)) as stream:
            async for event in stream:
                migration = event.get("migration")
                if migration is not None:
                    step = event["type"] == EventType.MIGRATION_STEP
                    self._tell((migration["state"] if step else event["type"], migration["id"]))

    def _tell(self, key: tuple[str, str]) -> None:
        waiting, now = self._waiting.pop(key, None), time.monotonic()
        if waiting is not None and not waiting.done():
            waiting.set_result(now)
        else:
            self._seen[key] = now

    async def wait(self, what: str, migration: str) -> float:
        """When it came. Raises TimeoutError."""
        key = what, migration
        if key in self._seen:
            return self._seen.pop(key)
        told: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[key] = told
        async with asyncio.timeout(ORDER_LIMIT):
            return await told

    def forget(self, migration: str) -> None:
        for key in [key for key in self._seen if key[1] == migration]:
            del self._seen[key]


@dataclass(frozen=True, slots=True)
class Migrated:
    """Seconds, and flow-mods, of one migration."""

    steer: float
    """From the report `converged` to the last confirmation of what diverts the traffic."""
    whole: float
    """From the request to its end."""
    flow_mods: int


class FakeHypervisors:
    """Carries out the orders of migrations at once."""

    def __init__(self, client: ControllerClient, orders: Orders, confirmations: Confirmations) -> None:
        self._client = client
        self._orders = orders
        self._confirmations = confirmations

    async def migrate(self, vm: VMPlan, source: FakeDatabase, target: FakeDatabase, server: str) -> Migrated:
        """Raises ControllerError, TimeoutError."""
        owner, began = hash_of(vm.id), time.monotonic()
        body = {"vm": vm.id, "target_server": server}
        answer = await self._client.post(Route.START_MIGRATION.path(), body)
        id = str(answer["id"])

        async def report(event: Report, **more: object) -> None:
            await self._client.post(Route.REPORT_MIGRATION.path(id), {"event": event, **more})

        target.add([vm])
        await report(Report.TARGET_OPENED, memory_at="192.0.2.5:7800")
        await self._orders.wait(Order.START_COPY, id)
        await report(Report.COPY_STARTED)
        converged = time.monotonic()
        await report(Report.CONVERGED)
        steered = self._confirmations.last(owner, converged)
        await report(Report.STOPPED, at=time.time())
        await report(Report.RESUMED, at=time.time())
        await self._orders.wait(Order.FREE_SOURCE, id)
        source.remove(vm.id)
        await report(Report.SOURCE_FREED)
        ended = await self._orders.wait(MigrationState.DONE, id)
        self._orders.forget(id)
        count = self._confirmations.count(owner, began)
        return Migrated(steered - converged, ended - began, count)

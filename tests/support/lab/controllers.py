"""Several controllers of a lab, each asked by itself."""

import contextlib
import time
from collections.abc import AsyncIterator

import aiohttp

from retinue.protocol.client import ControllerClient
from retinue.protocol.errors import ControllerError
from retinue.security.credentials import Credentials
from retinue_lab.network import credentials
from support.lab.tools import Json, LabBench, eventually

SOON = 3.0
"""Seconds for one controller to say which it is: one that is stopped never does."""


class Controllers:
    """The controllers of a lab; a name is that of the node, and of its program."""

    def __init__(self, bench: LabBench) -> None:
        self._bench = bench
        manager = credentials.manager(bench.lab.directory)
        self.clients = {name: self._made(name, manager) for name in bench.topology.controller_nodes}

    def _made(self, name: str, shown: Credentials) -> ControllerClient:
        connector = aiohttp.TCPConnector(
            socket_factory=lambda _: self._bench.doorman.socket(), force_close=True, ssl=shown.context()
        )
        return ControllerClient(self._bench.topology.url_of(name), shown, connector)

    @contextlib.asynccontextmanager
    async def client(self, name: str, shown: Credentials) -> AsyncIterator[ControllerClient]:
        """Somebody else, who speaks to this one."""
        made = self._made(name, shown)
        try:
            yield made
        finally:
            await made.close()

    async def aclose(self) -> None:
        for client in self.clients.values():
            await client.close()

    async def reports(self) -> dict[str, Json]:
        """What each says of itself and the others; one that is away, or stopped, says nothing."""
        found = {}
        for name, client in self.clients.items():
            with contextlib.suppress(ControllerError):
                found[name] = await client.request("GET", "/v1/cluster", limit=SOON)
        return found

    async def active(self, but: str = "") -> str:
        """The one that is active and serves, once there is one that is not `but`."""
        found: list[str] = []

        async def there_is() -> bool:
            for name, client in self.clients.items():
                if name != but:
                    with contextlib.suppress(ControllerError):
                        await client.request("GET", "/v1/status", limit=SOON)
                        found.append(name)
            return bool(found)

        await eventually(there_is)
        return found[0]

    async def standing(self, name: str) -> Json:
        """Wait until it is a standby to which every switch is connected, and which hears the active one."""
        found: list[Json] = []

        async def is_so() -> bool:
            report = (await self.reports()).get(name)
            if report is None or report["role"] != "standby" or report["active"] is None:
                return False
            found.append(report)
            heard = report["heard_seconds"]
            return (
                report["switches_standing"] == len(self._bench.topology.switches)
                and report["active"]["name"] != name
                and heard is not None
                and heard < SOON
            )

        await eventually(is_so)
        return found[-1]

    async def all_connected(self) -> None:
        """Wait until the active one has taken every switch over, and nothing is pending."""

        async def is_so() -> bool:
            with contextlib.suppress(ControllerError):
                status = await self._bench.get("status")
                known, connected = status["switches"]["known"], status["switches"]["connected"]
                return bool(known == connected and not status["pending"])
            return False

        await eventually(is_so)

    async def ended(self, migration: str) -> Json:
        """A migration when it has ended, whoever is active then."""
        found: list[Json] = []

        async def has() -> bool:
            with contextlib.suppress(ControllerError):
                found.append(await self._bench.get(f"migrations/{migration}"))
                return found[-1]["state"] in ("done", "undone")
            return False

        await eventually(has)
        return found[-1]

    async def rows(self, database: str) -> str:
        """Everything the database holds but whose turn it is."""
        socket = self._bench.lab.directory / "databases" / database / "db.sock"
        said = await self._bench.run(
            database, "ovsdb-client", "--format=csv", "dump", f"unix:{socket}", "Retinue"
        )
        tables = said.split("\n\n")
        return "\n\n".join(table for table in tables if not table.startswith("Active table"))

    async def post_as_soon_as_possible(self, path: str, body: Json) -> float:
        """Ask again until a controller has taken it; when that was."""

        async def taken() -> bool:
            with contextlib.suppress(ControllerError):
                await self._bench.post(path, body)
                return True
            return False

        await eventually(taken)
        return time.time()


@contextlib.asynccontextmanager
async def controllers_of(bench: LabBench) -> AsyncIterator[Controllers]:
    async with contextlib.aclosing(Controllers(bench)) as found:
        yield found

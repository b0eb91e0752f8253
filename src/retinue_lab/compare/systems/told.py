"""The network alone is retinue's: a manager of others migrates the VM, and says where it is.

No agent is anywhere. QEMU migrates the VM by itself, as it does for systems that are not retinue; the manager
tells the controller either before that begins (US 9,313,088, S201 and S202: the server's address in the VM's
row is changed) or when it is over (US 9,323,554, S125 to S140: the live-migration message).
"""

import asyncio

from retinue.core.migration import MigrationState
from retinue.protocol.routes import Route
from retinue_lab.compare.bench import ADDRESS, MAC, SERVERS, Bench
from retinue_lab.compare.systems.base import System, reached
from retinue_lab.errors import LabError
from retinue_lab.sandbox.clients import Manager

LOOKS, LOOK_SECONDS = 120, 0.5
"""In its first 15 seconds a controller takes no word ahead: an agent might be on its way."""


class ToldSystem(System):
    """The controller knows the VM and where it starts; what it is told at a migration is the subclass's."""

    controlled = True

    async def before_boot(self, bench: Bench) -> None:
        vm = {"id": bench.vm, "mac": MAC, "server": bench.at, "addresses": [ADDRESS]}
        async with Manager(bench.topology.controller_url) as manager:
            await manager.post(Route.REGISTER_VMS.path(), vm)


class ToldAhead(ToldSystem):
    name = "told-ahead"
    how = (
        "The lab's controller without agents; QEMU migrates the VM by itself, and before that begins its "
        "manager says where it goes, by `PATCH /v1/vms/ID`."
    )

    async def set_up(self, bench: Bench) -> None:
        """There and back, so that the controller is past the time in which it waits for agents."""
        for server in (*SERVERS[1:], bench.at):
            await self._tell_until_believed(bench, server)

    async def _tell_until_believed(self, bench: Bench, server: str) -> None:
        for _ in range(LOOKS):
            try:
                return await self._tell(bench, server)
            except LabError as error:
                problem = error
            await asyncio.sleep(LOOK_SECONDS)
        raise problem

    async def before_migration(self, bench: Bench, source: str, target: str) -> None:
        await self._tell(bench, target)

    async def after_migration(self, bench: Bench, source: str, target: str) -> None:
        await reached(bench)

    async def _tell(self, bench: Bench, server: str) -> None:
        async with Manager(bench.topology.controller_url) as manager:
            await manager.patch(Route.SET_VM.path(bench.vm), {"server": server})


class ToldAfterwards(ToldSystem):
    name = "told-afterwards"
    how = (
        "The lab's controller without agents; QEMU migrates the VM by itself, and as soon as it runs at the "
        "target its manager says so, by `POST /v1/migrations` with `after_the_fact`."
    )

    def __init__(self) -> None:
        self._said = ""
        """The migration that was made of the last message."""

    async def at_resume(self, bench: Bench, source: str, target: str) -> None:
        message = {"vm": bench.vm, "target_server": target, "after_the_fact": True}
        async with Manager(bench.topology.controller_url) as manager:
            self._said = (await manager.post(Route.START_MIGRATION.path(), message))["id"]

    async def after_migration(self, bench: Bench, source: str, target: str) -> None:
        """The next is not taken before this one has ended."""
        async with Manager(bench.topology.controller_url) as manager:
            for _ in range(LOOKS):
                migration = await manager.get(Route.GET_MIGRATION.path(self._said))
                if MigrationState(migration["state"]).ended:
                    return await reached(bench)
                await asyncio.sleep(LOOK_SECONDS)
        raise LabError(f"{self._said} of {bench.vm} to {target} does not end")

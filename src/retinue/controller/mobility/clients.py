"""VMs that follow their clients: one whose clients have come nearer to another server wishes to go.

Off unless the operator says by how many switches nearer another server must be (`placement.follow_switches`),
all the time for how long (`placement.follow_seconds`). Whether the VM then goes, and where, is decided as
for any other wish.
"""

import asyncio
import contextlib

from retinue.controller.context import Context
from retinue.controller.migrations.requests import MigrationError
from retinue.controller.mobility.manager import DOMAIN, MobilityManager
from retinue.controller.mobility.resources import ResourceManager
from retinue.core.model import Power
from retinue.core.placement import Reason, Wish

LOOK_SECONDS = 5.0
"""Between two looks."""


class ClientWatch:
    """Measures, again and again, how far each VM is from its clients, and speaks for it."""

    def __init__(
        self,
        context: Context,
        resources: ResourceManager,
        mobility: MobilityManager,
        switches: int = 0,
        seconds: int = 60,
    ) -> None:
        """`switches`: how many fewer must be on the way; 0: off."""
        self._context = context
        self._resources = resources
        self._mobility = mobility
        self._threshold, self._seconds = switches * 100, seconds
        self._since: dict[str, float] = {}
        """By VM: since when another server has been so much nearer."""

    def look(self) -> list[asyncio.Task[None]]:
        """Once; the tasks of the wishes that came of it."""
        if not self._threshold:
            return []
        now = self._context.clock()
        wishes: list[asyncio.Task[None]] = []
        nearer = {vm: by for vm in self._served() if (by := self._resources.nearer_by(vm)) >= self._threshold}
        self._since = {vm: self._since.get(vm, now) for vm in nearer}
        for vm, since in list(self._since.items()):
            if now - since >= self._seconds:
                del self._since[vm]
                wish = Wish(Reason.CLIENTS, nearer[vm], self._threshold, int(now - since))
                wishes.append(self._context.spawn(self._go(vm, wish), f"{vm} follows its clients"))
        return wishes

    def _served(self) -> list[str]:
        """VMs that run, with clients and nothing that keeps them where they are."""
        vms, profile_of = self._context.net.vms, self._resources.profile_of
        return [
            id for id, vm in sorted(vms.items())
            if vm.power is Power.RUNNING and profile_of(id).clients and not profile_of(id).pinned
        ]  # fmt: skip

    async def _go(self, vm: str, wish: Wish) -> None:
        with contextlib.suppress(MigrationError):  # It was told, with the reason: the VM stays.
            await self._mobility.migrate(vm, wish, DOMAIN)

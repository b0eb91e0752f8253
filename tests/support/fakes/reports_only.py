"""A controller for what only reports to it."""

from collections.abc import AsyncGenerator

from retinue.protocol.events import ControllerEvent
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.vms import VMsRecord


class ReportsOnly:
    """`post` is the test's; nothing else is to be asked."""

    async def vms(self) -> VMsRecord:
        raise NotImplementedError

    async def migrations(self) -> list[MigrationRecord]:
        raise NotImplementedError

    def events(self, since: int | None) -> AsyncGenerator[ControllerEvent, None]:
        raise NotImplementedError

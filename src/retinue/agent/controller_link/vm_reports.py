"""What an agent reports to the controller of its VMs and their migrations."""

import asyncio
import base64
from collections.abc import Collection
from typing import Any

from retinue.agent.controller_link.reports import Reports
from retinue.core.model import Ending
from retinue.hypervisor import HypervisorError
from retinue.protocol.errors import ControllerError
from retinue.protocol.migrations import Report
from retinue.protocol.routes import Route
from retinue.protocol.vms import VMReport

DIVERT_LIMIT = 30.0
"""Seconds that a copy which is all but done waits for its traffic to be diverted; the VM runs meanwhile. Long
enough for a controller that is started anew, and for the switches to come back to it."""
HAND_BACK_LIMIT = 5.0
"""Seconds that a target which is given up waits for an answer. (A source that has handed the VM over waits
for the target.)"""


class VMReports:
    """Writes the reports of one server's agent. Those about one VM arrive in the order they were made in."""

    def __init__(self, server: str, reports: Reports) -> None:
        self._server = server
        self._reports = reports

    def of_vm(
        self, vm: str, report: VMReport, reason: str = "", how: Ending | None = None
    ) -> asyncio.Task[dict[str, Any]]:
        """Report, in the background, what has become of a VM on this server; `how` it has stopped."""
        more = {name: value for name, value in (("reason", reason), ("how", how)) if value}
        body = {"event": report, "server": self._server, **more}
        return self._reports.tell(vm, Route.REPORT_VM.path(vm), body)

    def of_migration(
        self, vm: str, migration: str, report: Report, *, frames: int = 0, **more: Any
    ) -> asyncio.Task[dict[str, Any]]:
        """Report, in the background, what has come of a migration.

        `frames` is how many had come to the VM's port here; 0 is left out.
        """
        if frames:
            more["frames"] = frames
        body = {"event": report, **more}
        return self._reports.tell(vm, Route.REPORT_MIGRATION.path(migration), body)

    async def until_diverted(self, vm: str, migration: str, step_factor: float = 1.0) -> str:
        """Report that little is left to copy; returns when the VM's traffic goes to the target.
        `step_factor`: it is waited so many times as long for.

        Returns the MAC address that copies for the paused VM will come from, "" where there are none. Raises
        HypervisorError.
        """
        path = Route.REPORT_MIGRATION.path(migration)
        try:
            answer = await self._reports.ask(
                vm, path, {"event": Report.CONVERGED}, DIVERT_LIMIT * step_factor
            )
        except ControllerError as error:
            raise HypervisorError(f"its traffic is not diverted: {error}") from error
        return str(answer.get("copies_from", ""))

    async def until_come(self, vm: str, migration: str, step_factor: float = 1.0) -> None:
        """As `until_diverted`; returns when what had left for this server before has come, as far as any
        queue on its way is concerned. Until `until_diverted` nothing is forwarded from here.

        Raises HypervisorError.
        """
        path, body = Route.REPORT_MIGRATION.path(migration), {"event": Report.CONVERGED, "watching": True}
        try:
            await self._reports.ask(vm, path, body, DIVERT_LIMIT * step_factor)
        except ControllerError as error:
            raise HypervisorError(f"its traffic is not diverted: {error}") from error

    async def until_gone(self, vm: str, migration: str, at: float, limit: float) -> None:
        """Report once more that the VM has stopped, what it has sent having left this server; returns when it
        has come so far that what it sends from its target does not overtake it, or after `limit` seconds.

        It waits for no earlier report of the VM: whichever comes first says that it has stopped. Raises
        HypervisorError.
        """
        body = {"event": Report.STOPPED, "at": at, "sent": True}
        try:
            await self._reports.ask(
                f"{vm}: what it has sent", Route.REPORT_MIGRATION.path(migration), body, limit
            )
        except ControllerError as error:
            raise HypervisorError(f"nobody knows where what it has sent is: {error}") from error

    async def until_returned(self, vm: str, migration: str) -> str:
        """Returns when the VM's traffic goes to the source again, at a target that is given up.

        Returns the source MAC address of those frames that the source has copies of. Raises HypervisorError.
        """
        answer = await self._of_waiting(vm, migration, ())
        return str(answer.get("copies_from", ""))

    async def until_led_away(self, vm: str, migration: str) -> None:
        """Returns when the VM's traffic goes to the target, at a source where it was stopped before. Nothing
        is copied to here until it is said by `hand_on` that nothing waits.

        Raises HypervisorError.
        """
        await self._of_waiting(vm, migration, (), watching=True)

    async def hand_on(self, vm: str, migration: str, frames: Collection[bytes]) -> str:
        """Give the controller frames that waited for the VM here, where it is no more; none, where nothing
        did. Returns the migration's state, by which they were sent. Raises HypervisorError."""
        return str((await self._of_waiting(vm, migration, frames)).get("state", ""))

    async def hand_back(self, vm: str, migration: str, frames: Collection[bytes]) -> None:
        """Give the controller frames that waited for the VM. Raises HypervisorError."""
        await self._of_waiting(vm, migration, frames)

    async def _of_waiting(
        self, vm: str, migration: str, frames: Collection[bytes], **more: Any
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"event": Report.WAITED, "server": self._server, **more}
        if frames:
            body["waiting"] = [base64.b64encode(frame).decode() for frame in frames]
        try:
            return await self._reports.ask(vm, Route.REPORT_MIGRATION.path(migration), body, HAND_BACK_LIMIT)
        except ControllerError as error:
            raise HypervisorError(f"what waited for it is not handed back: {error}") from error

"""A QEMU whose monitor is ours as what copies its memory in passes (`hypervisor.passes`), asked by QMP."""

from collections.abc import Sequence
from typing import Any

from retinue.core.migration.precopy import may_look_again
from retinue.host.errors import HostError
from retinue.hypervisor.monitor import Monitor
from retinue.hypervisor.passes import UNBOUNDED_DOWNTIME, Progress

ENDED = ("none", "completed", "failed", "cancelled")


def downtime_limit(version: Sequence[int]) -> int:
    """The `downtime-limit` in ms with which a QEMU (major, minor, micro) converges by itself in one pass.

    Of an emulated VM a QEMU before 9.0 may lose writes where it looks more than once (`may_look_again`).

    Before 8.0 it looks when what remains is less than bandwidth times the limit; with 0, never. A newer one
    looks when nothing remains, too, and is never content with 0. In 8.x a limit beyond all measure makes
    the first look the last one, at the price of a longer pause; from 9.0 looking is safe.
    """
    if version[0] < 8:
        return 0
    return UNBOUNDED_DOWNTIME if version[0] < 9 else 300


class QmpCopier:
    """See Copier. Methods raise HypervisorError."""

    def __init__(self, machine: Monitor) -> None:
        self._machine = machine

    @property
    def vm(self) -> str:
        return self._machine.vm

    async def version(self) -> tuple[int, int, int]:
        """Of QEMU: major, minor, micro."""
        found = (await self._machine.execute("query-version"))["qemu"]
        return found["major"], found["minor"], found["micro"]

    async def prepare(self, version: Sequence[int]) -> bool:
        """Whether there can be several passes; have QEMU slow a VM down then that writes too much."""
        enabled = (await self._machine.execute("query-kvm"))["enabled"]
        memory = (await self._machine.execute("query-memory-size-summary"))["base-memory"]
        several = may_look_again("kvm" if enabled else "tcg", version, memory)
        await self._machine.set_capability("auto-converge", several)
        return several

    async def progress(self) -> Progress:
        said = await self._machine.execute("query-migrate")
        status, ram = said.get("status"), said.get("ram", {})
        return Progress(
            began=status == "active" and bool(ram.get("transferred")),
            ended=status in ENDED,
            number=int(ram.get("dirty-sync-count", 1)),
            remaining=int(ram.get("remaining", 0)),
            mbps=float(ram.get("mbps", 0.0)),
        )

    async def statistics(self) -> dict[str, Any]:
        """What QEMU knows of the copy, if it still answers: the VM has left it."""
        try:
            found: dict[str, Any] = (await self._machine.execute("query-migrate")).get("ram", {})
        except HostError:
            return {}
        return found

    async def set_downtime_limit(self, milliseconds: int) -> None:
        await self._machine.execute("migrate-set-parameters", downtime_limit=milliseconds)

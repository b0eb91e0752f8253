"""A migration that fails before the VM is handed over: the source is as it was before."""

import asyncio
import contextlib
import time

import structlog

from retinue.host.errors import HostError
from retinue.hypervisor.interface import MigrationFailed, OnEvent, RunState
from retinue.hypervisor.qemu.machine import QemuMachine
from retinue.hypervisor.qemu.mirrors import Mirrors
from retinue.hypervisor.qmp_copier import ENDED
from retinue.hypervisor.throttle import Throttle

RECOVERY_LIMIT = 14.0

log = structlog.get_logger()


async def as_before(
    machine: QemuMachine, reason: str, on_event: OnEvent, mirrors: Mirrors, stream: Throttle
) -> None:
    """Cancel the migration, where it is still under way, and resume the source."""
    await mirrors.close()
    runs, waited = False, 0
    try:
        async with asyncio.timeout(RECOVERY_LIMIT):
            if await machine.migration_status() not in ENDED:
                with contextlib.suppress(HostError):
                    await machine.cancel_migration(stream)
                while True:
                    if await machine.migration_status() in ENDED:
                        break
                    await asyncio.sleep(0.005)
            if await machine.state() is not RunState.RUNNING:
                with contextlib.suppress(HostError):  # A figure only: the VM is resumed in any case.
                    waited = await machine.waiting()
                await machine.resume()
            runs = True
    except (HostError, TimeoutError) as error:
        log.error("migration.source_not_resumed", vm=machine.spec.id, error=str(error))
    await mirrors.undo()
    on_event(MigrationFailed(machine.spec.id, time.time(), reason, source_runs=runs, queued_frames=waited))


def let_qemu_answer(throttle: Throttle, *, in_postcopy: bool) -> None:
    """QEMU may wait for a reader, and answers nobody meanwhile: now it finds that there is none. In post-copy
    it must find one: see `postcopy`."""
    if in_postcopy:
        throttle.keep_open()
    else:
        throttle.close()

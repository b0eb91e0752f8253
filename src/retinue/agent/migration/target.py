"""What an agent does at the target of a migration: wait for the VM, and let it run once it is its own.

The memory comes in by a task beside the VM's steps, so that a rollback can call it off.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from retinue.agent.migration.peer import Transfer
from retinue.agent.vms.authority import Authority
from retinue.agent.vms.local_vm import LocalVM
from retinue.core.migration.endpoint_steps import (
    Fact,
    NotArrived,
    NotOpened,
    Opened,
    RanAndEnded,
    RanHere,
)
from retinue.host.errors import HostError
from retinue.hypervisor import Event, HandedOverError, Hypervisor, OnEvent, Resumed, VMSpec
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.vms import VMRecord

log = structlog.get_logger()


class TargetEnd:
    """Takes VMs in. `learn` is told every fact; `listener` makes the listener of a VM's next machine."""

    def __init__(
        self,
        hypervisor: Hypervisor[Any],
        authority: Authority,
        transfer: Transfer,
        spec: Callable[[VMRecord], VMSpec],
        learn: Callable[[LocalVM, Fact], None],
        listener: Callable[[LocalVM], OnEvent],
    ) -> None:
        self._hypervisor = hypervisor
        self._authority = authority
        self._transfer = transfer
        self._spec = spec
        self._learn = learn
        self._listener = listener

    async def open(self, vm: LocalVM, migration: MigrationRecord, plugged: bool) -> None:
        """Make a machine that waits for the VM's memory, and its port unless the VM has it (`plugged`)."""
        vm.migration = migration
        try:
            if not plugged:
                await self._authority.make_target_port(vm)
                plugged = True
            vm.machine = await self._hypervisor.open_target(self._spec(vm.record), self._listener(vm))
        except HostError as error:
            self._learn(vm, NotOpened(migration.id, str(error), plugged))
            return
        self._learn(vm, Opened(migration.id))

    def receive(self, vm: LocalVM, migration: MigrationRecord) -> None:
        """Let the source's agent in, and receive the VM in the background."""
        self._transfer.expect(migration.id, migration.source)
        vm.transfer = asyncio.create_task(self._receive(vm, migration), name=f"{migration.id}: incoming")

    async def _receive(self, vm: LocalVM, migration: MigrationRecord) -> None:
        def hear(event: Event) -> None:
            if isinstance(event, Resumed):
                self._learn(vm, RanHere(migration.id, event.at))

        try:
            channel = await self._transfer.arrival(migration.id)
            await self._hypervisor.run_incoming(vm.machine, channel, hear)
        except HandedOverError as error:
            # The VM may have run, so the source must never resume it: it has migrated, and ended.
            vm.machine = None
            self._learn(vm, RanAndEnded(migration.id, time.time(), str(error)))
        except HostError as error:
            log.warning("migration.vm_did_not_arrive", vm=vm.id, migration=migration.id, error=str(error))
            vm.machine = None
            self._learn(vm, NotArrived(migration.id, str(error)))
        finally:
            self._transfer.forget(migration.id)

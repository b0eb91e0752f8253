"""A migration in which the controller has no part: orders come by the agent's admin socket, at both ends."""

import asyncio

from retinue.agent.lifecycle import VMLifecycle
from retinue.agent.migration.peer import Transfer
from retinue.agent.vms.local_vm import LocalVM
from retinue.core.migration import endpoint_events as e
from retinue.core.migration.presence import IncomingFailed
from retinue.host.errors import HostError
from retinue.hypervisor import HypervisorError, MigrationResult
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.vms import VMRecord


class MigrationsByHand:
    """Has VMs brought here, or taken away, with the same steps as the controller's orders."""

    def __init__(self, lifecycle: VMLifecycle, transfer: Transfer) -> None:
        self._lifecycle = lifecycle
        self._transfer = transfer

    async def take_in(self, record: VMRecord, migration: str, source: str) -> str:
        """Wait for a VM that is brought here; where to bring it. Raises HypervisorError."""
        if record.id in self._lifecycle.vms:
            raise HypervisorError(f"VM {record.id} is on {self._lifecycle.server} already")
        by_hand = MigrationRecord(migration, record.id, source, self._lifecycle.server)
        vm = self._lifecycle.local_vm(record)
        await self._lifecycle.in_turn(vm, self._open, by_hand)
        return self._transfer.address

    async def _open(self, vm: LocalVM, migration: MigrationRecord) -> None:
        vm.by_hand = True
        await self._lifecycle.order(vm, e.OpenTarget(migration.id), migration)
        if isinstance(vm.presence, IncomingFailed):
            await self._lifecycle.order(vm, e.Remove())
            raise HypervisorError(vm.failure)
        assert vm.transfer is not None

        def over(transfer: asyncio.Task[None]) -> None:
            if not transfer.cancelled() and not vm.runs:
                # It did not arrive, and nobody else clears up.
                self._lifecycle.later(vm, self._lifecycle.order, e.Remove())

        vm.transfer.add_done_callback(over)

    async def give(self, vm: LocalVM, migration: str, memory_at: str, target: str) -> MigrationResult:
        """Bring a VM to an agent that waits for it.

        Raises HypervisorError, and the VM still runs here; HandedOverError, and the VM is paused here,
        since the target may run it.
        """
        by_hand = MigrationRecord(migration, vm.id, self._lifecycle.server, target, memory_at=memory_at)
        return await self._lifecycle.in_turn(vm, self._send, by_hand)

    async def _send(self, vm: LocalVM, migration: MigrationRecord) -> MigrationResult:
        if vm.transferring:
            raise HypervisorError(f"VM {vm.id} is being migrated already: {vm.migration_id}")
        if vm.machine is None or not vm.runs:
            raise HypervisorError(f"VM {vm.id} does not run on {self._lifecycle.server}")
        vm.by_hand = True
        await self._lifecycle.order(vm, e.StartCopy(migration.id), migration)
        assert vm.transfer is not None
        await asyncio.wait({vm.transfer})
        match vm.outcome:
            case MigrationResult():
                await self._lifecycle.order(vm, e.FreeSource(migration.id), migration)
                return vm.outcome
            case HostError():
                raise vm.outcome
        raise HypervisorError(f"the migration of VM {vm.id} was called off")

    async def drop(self, vm: LocalVM) -> None:
        """End what is here of a VM."""
        await self._lifecycle.in_turn(vm, self._lifecycle.order, e.Remove())

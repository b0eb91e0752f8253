"""What an agent does at the target of a move: wait for the VM, and let it run once it is its own.

The memory comes in by a task beside the VM's worker, so that a rollback can call it off.
"""

import asyncio
import time

import structlog

from retinue.agent.kept import Kept
from retinue.agent.records import MoveRecord, VMRecord
from retinue.agent.ward import Ward, ended
from retinue.hypervisor import Event, HandedOverError, HypervisorError, Resumed

log = structlog.get_logger()


class TargetEnd:
    def __init__(self, ward: Ward) -> None:
        self.ward = ward

    async def prepare(self, kept: Kept, move: MoveRecord) -> None:
        ward = self.ward
        if kept.runs and not kept.handed_over:
            ward.tell_move(move, "resumed", at=kept.resumed_at)  # It is here already.
            return
        if kept.move != move.id or kept.machine is None:
            await ended(kept.copying)
            await ward.quit(kept)  # What an earlier move has left here.
            kept.move, kept.coming = move.id, True
            kept.runs = kept.handed_over = False
            try:
                await self._open(kept)
            except HypervisorError as error:
                ward.tell_move(move, "failed", reason=str(error))
                return
            ward.transfer.expect(move.id, move.source)
            kept.copying = asyncio.create_task(self._arrive(kept, move), name=f"{move.id}: arrival")
        ward.tell_move(move, "target_open", memory_at=ward.transfer.address)

    async def _open(self, kept: Kept) -> None:
        ward = self.ward
        await self.plug(kept)
        kept.machine = await ward.hypervisor.open_target(ward.spec(kept.record), ward.hears(kept))
        kept.ending = True  # If it fails, the hypervisor ends it.
        ward.note_console(kept)

    async def plug(self, kept: Kept) -> None:
        await self.ward.plug(kept)

    async def _arrive(self, kept: Kept, move: MoveRecord) -> None:
        def hear(event: Event) -> None:
            if isinstance(event, Resumed):
                kept.arrived(event.at)
                self.ward.tell_move(move, "resumed", at=event.at)

        try:
            channel = await self.ward.transfer.arrival(move.id)
            await self.ward.hypervisor.arrive(kept.machine, channel, hear)
        except HandedOverError as error:
            # It may have run, so it is nobody's past any more: it has moved, and ended.
            kept.machine, kept.coming = None, False
            self.ward.tell_move(move, "resumed", at=time.time())
            self.ward.tell_vm(kept.id, "stopped", reason=str(error))
        except HypervisorError as error:
            kept.machine = None
            self.ward.tell_move(move, "failed", reason=str(error))
        finally:
            self.ward.transfer.forget(move.id)

    async def withdraw(self, kept: Kept, move: MoveRecord) -> None:
        """The move is off: nothing of the VM stays here, unless it runs."""
        if not kept.runs:
            await ended(kept.copying)
        if kept.runs:
            # What it has done here must not be undone: the move goes forward.
            log.warning("the VM had arrived before it was called back", vm=kept.id, move=move.id)
            self.ward.tell_move(move, "resumed", at=kept.resumed_at)
            return
        self.ward.transfer.forget(move.id)
        frames = await self.ward.ports.come(kept.id)
        await self.ward.forget(kept)
        self.ward.tell_move(move, "target_gone", frames=frames)

    # ---- a move in which the controller has no part ----

    async def take_in(self, vm: VMRecord, move: str, source: str) -> str:
        """See Keeper.take_in."""
        if vm.id in self.ward.vms:
            raise HypervisorError(f"VM {vm.id} is on {self.ward.server} already")
        return await self.ward.in_turn(self.ward.kept(vm), self._wait_for, move, source)

    async def _wait_for(self, kept: Kept, move: str, source: str) -> str:
        kept.coming = True
        try:
            await self._open(kept)
        except HypervisorError:
            await self.ward.forget(kept)
            raise
        self.ward.transfer.expect(move, source)
        kept.copying = asyncio.create_task(self._come(kept, move), name=f"{move}: arrival")
        return self.ward.transfer.address

    async def _come(self, kept: Kept, move: str) -> None:
        def hear(event: Event) -> None:
            if isinstance(event, Resumed):
                kept.arrived(event.at)

        try:
            channel = await self.ward.transfer.arrival(move)
            await self.ward.hypervisor.arrive(kept.machine, channel, hear)
        except HypervisorError as error:
            log.error("a VM did not arrive", vm=kept.id, error=str(error))
            kept.machine = None
            self.ward.later(kept, self.ward.remove)
        finally:
            self.ward.transfer.forget(move)

"""What an agent does at the source of a move: bring the VM there, or keep it.

The memory goes out by a task beside the VM's worker, so that a rollback can call it off.
"""

import asyncio
import contextlib
from collections.abc import Collection
from typing import Any

import structlog

from retinue.agent.kept import Kept, KeptMachine
from retinue.agent.records import MoveRecord
from retinue.agent.ward import Ward, ended
from retinue.hypervisor import (
    Event,
    HandedOverError,
    HypervisorError,
    MigrationFailed,
    MigrationResult,
    RunState,
    Stopped,
)

log = structlog.get_logger()


class SourceEnd:
    def __init__(self, ward: Ward) -> None:
        self.ward = ward

    async def copy(self, kept: Kept, move: MoveRecord) -> None:
        if kept.copying is not None and not kept.copying.done():
            return
        if kept.machine is None or not kept.runs:
            reason = f"VM {kept.id} does not run on {self.ward.server}"
            self.ward.tell_move(move, "failed", reason=reason)
            return
        if kept.handed_over:
            return  # The target will say how it went.
        kept.move = move.id
        self.ward.tell_move(move, "copying")
        kept.copying = asyncio.create_task(self.depart(kept, move, kept.machine), name=f"{move.id}: copy")

    async def depart(self, kept: Kept, move: MoveRecord, machine: KeptMachine, **more: Any) -> None:
        """Bring the VM to the target's agent. `more` is for the hypervisor."""
        stays = True
        kept.waited = 0

        def hear(event: Event) -> None:
            nonlocal stays
            match event:
                case Stopped():
                    self.ward.tell_move(move, "stopped", at=event.at)
                case MigrationFailed():
                    stays, kept.waited = True, event.waited

        async def divert(taps: Collection[str]) -> bool:
            answer = await self.ward.ask(move, "converged")
            return await self.ward.bypassed(taps, str(answer.get("copies_from", "")))

        try:
            channel = await self.ward.transfer.connect(move.memory_at, move.id, move.target)
            stays = False
            result = await self.ward.hypervisor.depart(machine, channel, hear, divert, **more)
        except HandedOverError as error:
            kept.handed_over = True
            log.error("the target has the VM, and does not answer", vm=kept.id, error=str(error))
        except HypervisorError as error:
            self.ward.tell_move(move, "failed", reason=str(error))
        except Exception as error:
            log.exception("a departure failed", vm=kept.id, move=move.id)
            kept.handed_over = not stays
            if stays:
                self.ward.tell_move(move, "failed", reason=f"{type(error).__name__}: {error}")
        except BaseException:
            # A departure that is called off tells that it has failed, unless it has given the VM away.
            kept.handed_over = not stays
            raise
        else:
            kept.handed_over, kept.ending = True, True
            log.info(
                "moved",
                vm=kept.id,
                target=move.target,
                total_ms=round(result.total_ms, 1),
                pause_ms=round(result.pause_ms, 1),
            )

    async def clean_up(self, kept: Kept, move: MoveRecord) -> None:
        if kept.copying is not None:
            await asyncio.wait({kept.copying})
        if kept.runs and not kept.handed_over:
            log.error("asked to free a source that still runs the VM", vm=kept.id, move=move.id)
            return
        await self.ward.forget(kept)
        self.ward.tell_move(move, "source_gone")

    async def stay(self, kept: Kept, move: MoveRecord) -> None:
        """The move is off. What has been given away does not run here again without the target's word."""
        await ended(kept.copying)
        if not kept.handed_over:
            await self.take_back(kept, move)

    async def take_back(self, kept: Kept, move: MoveRecord) -> None:
        """The VM is this server's again."""
        try:
            if kept.machine is None:
                raise HypervisorError("its machine is gone")
            if await kept.machine.state() is not RunState.RUNNING:
                with contextlib.suppress(HypervisorError):  # A figure only: it runs on in any case.
                    kept.waited = await kept.machine.waiting()
                await kept.machine.resume()
            kept.runs, kept.handed_over, kept.ending = True, False, False
        except HypervisorError as error:
            log.error("the VM does not run on at the source", vm=kept.id, move=move.id, error=str(error))
            kept.runs = kept.handed_over = kept.ending = False
            self.ward.tell_vm(kept.id, "stopped", reason=str(error))
        self.ward.tell_move(move, "rolled_back", frames=kept.waited)

    # ---- a move in which the controller has no part ----

    async def give(self, kept: Kept, move: str, memory_at: str, target: str) -> MigrationResult:
        """See Keeper.give."""
        return await self.ward.in_turn(kept, self._give, move, memory_at, target)

    async def _give(self, kept: Kept, move: str, memory_at: str, target: str) -> MigrationResult:
        if kept.machine is None or not kept.runs or kept.handed_over:
            raise HypervisorError(f"VM {kept.id} does not run on {self.ward.server}")
        if kept.copying is not None and not kept.copying.done():
            raise HypervisorError(f"VM {kept.id} is being moved already: {kept.move}")
        channel = await self.ward.transfer.connect(memory_at, move, target)
        try:
            result = await self.ward.hypervisor.depart(kept.machine, channel)
        except HandedOverError:
            kept.handed_over = True
            raise
        kept.handed_over = True
        await self.ward.forget(kept)
        return result

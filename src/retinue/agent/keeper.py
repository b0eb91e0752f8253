"""What an agent does with each VM of its server: its port, its machine, and this server's part of its moves.

Each VM has a worker that takes its events one after the other; VMs do not wait for each other. Every step may
be asked for twice, as happens when the controller comes back: what is done already is only reported again.
Copies, going out and coming in, are tasks beside the worker, so that a rollback can call them off.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import structlog

from retinue.agent.kept import Kept, KeptMachine, Ports
from retinue.agent.records import Happening, MoveRecord, VMRecord
from retinue.agent.rest import ControllerAwayError, RefusedError, Reports, Rest, quoted
from retinue.agent.transfer import Transfer
from retinue.hypervisor import (
    Event,
    Gone,
    HandedOverError,
    Hypervisor,
    HypervisorError,
    MigrationFailed,
    MigrationResult,
    Resumed,
    RunState,
    Stopped,
    VMSpec,
)

log = structlog.get_logger()

T = TypeVar("T")

DIVERT_SECONDS = 10.0
"""How long a copy that is all but done waits for its traffic to be diverted; the VM runs meanwhile."""
GIVING = frozenset({"diverted", "rolling back"})
"""States of a move in which a VM may have been given away: never before its traffic is diverted."""


class Keeper:
    """All VMs of one server. `spec` tells how a VM is to be run."""

    def __init__(
        self,
        server: str,
        rest: Rest,
        hypervisor: Hypervisor[Any],
        ports: Ports,
        spec: Callable[[VMRecord], VMSpec],
        transfer: Transfer,
    ) -> None:
        self.server = server
        self.reports = Reports(rest)
        self.vms: dict[str, Kept] = {}
        self.consoles: dict[str, list[Path]] = {}
        """By VM, of every machine it has had here, oldest first; until the VM is removed for good."""
        self._left: dict[str, Kept] = {}
        """VMs whose machines an earlier agent has left, until they are adopted."""
        self._rest = rest
        self._hypervisor = hypervisor
        self._ports = ports
        self._spec = spec
        self._transfer = transfer

    # ---- what comes in ----

    def take(self, happening: Happening) -> None:
        """Act on an event, in the background; most are other servers' affairs."""
        vm, move = happening.vm, happening.move
        match happening.type:
            case "vm.booked" if vm and vm.server == self.server and not self._is_anothers(vm):
                self._later(self._kept(vm), self._plug)
            case "vm.ready" if vm and vm.server == self.server and not self._is_anothers(vm):
                self._later(self._kept(vm), self._run)
            case "vm.removed" if vm:
                self.consoles.pop(vm.id, None)
                if vm.id in self.vms:
                    self._later(self.vms[vm.id], self._remove)
            case "move.prepare" if move and happening.vm and move.target == self.server:
                self._later(self._kept(happening.vm), self._prepare, move)
            case "move.copy" if move and move.source == self.server:
                self._step_of(move, self._copy)
            case "move.cleanup" if move and move.source == self.server:
                self._step_of(move, self._clean_up)
            case "move.rollback" if move and move.source == self.server:
                self._step_of(move, self._stay)
            case "move.rollback" if move and move.target == self.server:
                self._step_of(move, self._withdraw)
            case "move.return" if move and move.source == self.server:
                self._step_of(move, self._take_back)

    def _step_of(self, move: MoveRecord, step: Callable[..., Awaitable[None]]) -> None:
        kept = self.vms.get(move.vm)
        if kept is not None:
            self._later(kept, step, move)
        elif step == self._clean_up:
            self._tell_move(move, "source_gone")
        elif step == self._withdraw:
            self._tell_move(move, "target_gone")
        elif step == self._stay:
            pass  # Whether it was given away before this agent started, only the target knows.
        elif step == self._take_back:
            self._tell_vm(move.vm, "stopped", reason=f"the agent of {self.server} has started again")
            self._tell_move(move, "rolled_back")
        else:
            self._tell_move(move, "failed", reason=f"the agent of {self.server} does not run VM {move.vm}")

    async def catch_up(self) -> None:
        """Do what the controller's present state asks for; its events may have been missed.

        A VM that the controller does not know is left alone: a controller that has forgotten is no reason to
        end what runs.
        """
        vms, moves = await self._rest.vms(), await self._rest.moves()
        moving = {move.vm for move in moves if move.state in GIVING}
        for vm in vms:
            if vm.id not in moving or vm.id in self.vms:
                self.take(Happening("vm.booked" if vm.state == "booked" else "vm.ready", vm=vm))
        asked = {
            "matched": "move.prepare",
            "prepared": "move.copy",
            "confirmed": "move.cleanup",
            "rolling back": "move.rollback",
        }
        records = {vm.id: vm for vm in vms}
        for move in moves:
            kept = self.vms.get(move.vm)
            knows = kept is not None and kept.move == move.id
            if self._began(move) and not knows:
                self._after_a_restart(move, kept)
            elif move.state in asked:
                self.take(Happening(asked[move.state], vm=records.get(move.vm), move=move))
                if move.target_gone:
                    self.take(Happening("move.return", move=move))
            elif move.state == "undone" and kept is not None and knows and not kept.runs:
                self.take(Happening("move.rollback", move=move))  # Its target; that it is off was missed.

    def _began(self, move: MoveRecord) -> bool:
        """The move is in a state in which this agent, as one of its ends, must have begun with it."""
        if move.target == self.server:
            return move.state in ("admitting", "prepared", "copying", "diverted")
        return move.source == self.server and move.state in ("copying", "diverted")

    def _after_a_restart(self, move: MoveRecord, kept: Kept | None) -> None:
        """A move that was under way when the agent before this one ended; `kept`: what it left of the VM."""
        if move.target == self.server and kept is not None and kept.runs:
            self._tell_move(move, "resumed", at=kept.resumed_at)
        elif kept is None or not kept.handed_over:
            self._tell_move(move, "failed", reason=f"the agent of {self.server} has started again")

    def machines(self) -> list[KeptMachine]:
        return [kept.machine for kept in self.vms.values() if kept.machine is not None]

    def listener(self, vm: str) -> Callable[[Event], None]:
        """For a machine of this VM that is about to be adopted."""
        # Not one of ours before it is adopted: one on its way in is ended instead, which is no news.
        kept = self._left[vm] = Kept(VMRecord(vm, "", self.server), ending=True)
        return self._hears(kept)

    async def adopt(self, machine: KeptMachine) -> None:
        """Keep a machine that an earlier agent has left; its move, if it was in one, is off or over."""
        spec = machine.spec
        if spec.id in self._left:
            self.vms[spec.id] = self._left.pop(spec.id)
        kept = self._kept(VMRecord(spec.id, spec.mac, self.server))
        kept.machine, kept.plugged, kept.runs, kept.ending = machine, True, True, False
        kept.resumed_at = time.time()
        # It was given away, and only the target's word gives it back.
        kept.handed_over = await machine.state() is RunState.MOVED
        self._note_console(kept)
        log.info("taken up", vm=spec.id, handed_over=kept.handed_over)

    async def close(self) -> None:
        """Call off what is under way, and let go of the machines: they run on."""
        for kept in list(self.vms.values()):
            for task in (kept.worker, kept.copying):
                await _ended(task)
        for machine in self.machines():
            await machine.let_go()
        await self.reports.close()

    async def idle(self) -> None:
        """Wait until everything that was asked for is done and told."""
        for kept in list(self.vms.values()):
            await kept.todo.join()
            if kept.copying is not None:
                await asyncio.wait({kept.copying})
        await self.reports.delivered()

    def _is_anothers(self, vm: VMRecord) -> bool:
        """True for a VM that a server has made by itself: nobody booked it, so it is not ours to run."""
        return vm.reported and vm.id not in self.vms

    def _kept(self, vm: VMRecord) -> Kept:
        kept = self.vms.setdefault(vm.id, Kept(vm))
        kept.record = vm
        return kept

    def _later(self, kept: Kept, step: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        kept.todo.put_nowait(lambda: step(kept, *arguments))
        if kept.worker is None:
            kept.worker = asyncio.create_task(self._work(kept), name=f"VM {kept.id}")

    async def _in_turn(self, kept: Kept, step: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Have the VM's worker take a step, and what came of it."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def work(kept: Kept) -> None:
            try:
                result = await step(kept, *arguments)
            except HypervisorError as error:
                if not outcome.done():
                    outcome.set_exception(error)
            else:
                if not outcome.done():
                    outcome.set_result(result)
            finally:
                outcome.cancel()  # Where the step has come to no end of its own.

        self._later(kept, work)
        return await outcome

    async def _work(self, kept: Kept) -> None:
        while self.vms.get(kept.id) is kept:
            step = await kept.todo.get()
            try:
                await step()
            except HypervisorError as error:
                log.error("a step failed", vm=kept.id, error=str(error))
            except Exception:
                log.exception("a step failed", vm=kept.id)
            finally:
                kept.todo.task_done()

    # ---- a VM's life ----

    async def _plug(self, kept: Kept) -> None:
        if not kept.plugged:
            await self._ports.add(kept.id, kept.record.mac)
            kept.plugged = True

    async def _run(self, kept: Kept) -> None:
        if kept.coming or kept.handed_over:
            return  # It runs at the other end of its move, or soon will.
        await self._plug(kept)
        if kept.machine is None:
            try:
                kept.machine = await self._hypervisor.start(self._spec(kept.record), self._hears(kept))
            except HypervisorError as error:
                log.error("the VM does not start", vm=kept.id, error=str(error))
                self._tell_vm(kept.id, "stopped", reason=str(error))
                return
            kept.ending, kept.runs = False, True
            self._note_console(kept)
        self._tell_vm(kept.id, "started")

    async def _remove(self, kept: Kept) -> None:
        await _ended(kept.copying)
        await self._forget(kept)

    async def _forget(self, kept: Kept) -> None:
        """End the machine, remove the port, and know nothing more of the VM."""
        await self._quit(kept)
        await self._ports.remove(kept.id)
        kept.plugged = kept.runs = kept.coming = kept.handed_over = False
        kept.copying = None
        kept.move = ""
        if kept.todo.empty():  # else it has been booked again meanwhile
            del self.vms[kept.id]

    async def _quit(self, kept: Kept) -> None:
        machine, kept.ending, kept.machine = kept.machine, True, None
        if machine is not None:
            await machine.quit()

    # ---- a move, at its target ----

    async def _prepare(self, kept: Kept, move: MoveRecord) -> None:
        if kept.runs and not kept.handed_over:
            self._tell_move(move, "resumed", at=kept.resumed_at)  # It is here already.
            return
        if kept.move != move.id or kept.machine is None:
            await _ended(kept.copying)
            await self._quit(kept)  # What an earlier move has left here.
            kept.move, kept.coming = move.id, True
            kept.runs = kept.handed_over = False
            try:
                await self._plug(kept)
                kept.machine = await self._hypervisor.open_target(self._spec(kept.record), self._hears(kept))
            except HypervisorError as error:
                self._tell_move(move, "failed", reason=str(error))
                return
            kept.ending = True  # If it fails, the hypervisor ends it.
            self._note_console(kept)
            self._transfer.expect(move.id, move.source)
            kept.copying = asyncio.create_task(self._arrive(kept, move), name=f"{move.id}: arrival")
        self._tell_move(move, "target_open", memory_at=self._transfer.address)

    async def _arrive(self, kept: Kept, move: MoveRecord) -> None:
        def hear(event: Event) -> None:
            if isinstance(event, Resumed):
                kept.arrived(event.at)
                self._tell_move(move, "resumed", at=event.at)

        try:
            channel = await self._transfer.arrival(move.id)
            await self._hypervisor.arrive(kept.machine, channel, hear)
        except HypervisorError as error:
            kept.machine = None
            self._tell_move(move, "failed", reason=str(error))
        finally:
            self._transfer.forget(move.id)

    async def _withdraw(self, kept: Kept, move: MoveRecord) -> None:
        """The move is off: nothing of the VM stays here, unless it runs."""
        if not kept.runs:
            await _ended(kept.copying)
        if kept.runs:
            # What it has done here must not be undone: the move goes forward.
            log.warning("the VM had arrived before it was called back", vm=kept.id, move=move.id)
            self._tell_move(move, "resumed", at=kept.resumed_at)
            return
        await self._forget(kept)
        self._tell_move(move, "target_gone")

    # ---- a move, at its source ----

    async def _copy(self, kept: Kept, move: MoveRecord) -> None:
        if kept.copying is not None and not kept.copying.done():
            return
        if kept.machine is None or not kept.runs:
            self._tell_move(move, "failed", reason=f"VM {kept.id} does not run on {self.server}")
            return
        if kept.handed_over:
            return  # The target will say how it went.
        kept.move = move.id
        self._tell_move(move, "copying")
        kept.copying = asyncio.create_task(self._depart(kept, move, kept.machine), name=f"{move.id}: copy")

    async def _depart(self, kept: Kept, move: MoveRecord, machine: KeptMachine) -> None:
        stays = True

        def hear(event: Event) -> None:
            nonlocal stays
            match event:
                case Stopped():
                    self._tell_move(move, "stopped", at=event.at)
                case MigrationFailed():
                    stays = True

        async def divert() -> None:
            await self._ask(move, "converged")

        try:
            channel = await self._transfer.connect(move.memory_at, move.id, move.target)
            stays = False
            result = await self._hypervisor.depart(machine, channel, hear, divert)
        except HandedOverError as error:
            kept.handed_over = True
            log.error("the target has the VM, and does not answer", vm=kept.id, error=str(error))
        except HypervisorError as error:
            self._tell_move(move, "failed", reason=str(error))
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

    async def _clean_up(self, kept: Kept, move: MoveRecord) -> None:
        if kept.copying is not None:
            await asyncio.wait({kept.copying})
        if kept.runs and not kept.handed_over:
            log.error("asked to free a source that still runs the VM", vm=kept.id, move=move.id)
            return
        await self._forget(kept)
        self._tell_move(move, "source_gone")

    async def _stay(self, kept: Kept, move: MoveRecord) -> None:
        """The move is off. What has been given away does not run here again without the target's word."""
        await _ended(kept.copying)
        if not kept.handed_over:
            await self._take_back(kept, move)

    async def _take_back(self, kept: Kept, move: MoveRecord) -> None:
        try:
            if kept.machine is None:
                raise HypervisorError("its machine is gone")
            if await kept.machine.state() is not RunState.RUNNING:
                await kept.machine.resume()
            kept.runs, kept.handed_over, kept.ending = True, False, False
        except HypervisorError as error:
            log.error("the VM does not run on at the source", vm=kept.id, move=move.id, error=str(error))
            kept.handed_over = kept.ending = False
            self._tell_vm(kept.id, "stopped", reason=str(error))
        self._tell_move(move, "rolled_back")

    # ---- a move in which the controller has no part ----

    async def take_in(self, vm: VMRecord, move: str, source: str) -> str:
        """Wait for a VM that is brought here; where to bring it. Raises HypervisorError."""
        if vm.id in self.vms:
            raise HypervisorError(f"VM {vm.id} is on {self.server} already")
        return await self._in_turn(self._kept(vm), self._open_for, move, source)

    async def _open_for(self, kept: Kept, move: str, source: str) -> str:
        kept.coming = True
        try:
            await self._plug(kept)
            kept.machine = await self._hypervisor.open_target(self._spec(kept.record), self._hears(kept))
        except HypervisorError:
            await self._forget(kept)
            raise
        kept.ending = True
        self._note_console(kept)
        self._transfer.expect(move, source)
        kept.copying = asyncio.create_task(self._come(kept, move), name=f"{move}: arrival")
        return self._transfer.address

    async def _come(self, kept: Kept, move: str) -> None:
        def hear(event: Event) -> None:
            if isinstance(event, Resumed):
                kept.arrived(event.at)

        try:
            channel = await self._transfer.arrival(move)
            await self._hypervisor.arrive(kept.machine, channel, hear)
        except HypervisorError as error:
            log.error("a VM did not arrive", vm=kept.id, error=str(error))
            kept.machine = None
            self._later(kept, self._remove)
        finally:
            self._transfer.forget(move)

    async def give(self, kept: Kept, move: str, memory_at: str, target: str) -> MigrationResult:
        """Bring a VM to an agent that waits for it.

        Raises HypervisorError, and it runs on here; HandedOverError, and it stands still here, for the
        target may run it.
        """
        return await self._in_turn(kept, self._give, move, memory_at, target)

    async def _give(self, kept: Kept, move: str, memory_at: str, target: str) -> MigrationResult:
        if kept.machine is None or not kept.runs or kept.handed_over:
            raise HypervisorError(f"VM {kept.id} does not run on {self.server}")
        if kept.copying is not None and not kept.copying.done():
            raise HypervisorError(f"VM {kept.id} is being moved already: {kept.move}")
        channel = await self._transfer.connect(memory_at, move, target)
        try:
            result = await self._hypervisor.depart(kept.machine, channel)
        except HandedOverError:
            kept.handed_over = True
            raise
        kept.handed_over = True
        await self._forget(kept)
        return result

    async def drop(self, kept: Kept) -> None:
        """End what is here of a VM."""
        await self._in_turn(kept, self._remove)

    # ---- words ----

    def _hears(self, kept: Kept) -> Callable[[Event], None]:
        """Listens to the machine that is about to be made: it may end without being asked."""
        life = kept.life = object()

        def hear(event: Event) -> None:
            if not isinstance(event, Gone) or kept.ending or kept.life is not life:
                return
            kept.machine, kept.runs = None, False
            log.warning("the VM has ended", vm=kept.id)
            if not kept.handed_over:  # else it is the target that tells of it
                self._tell_vm(kept.id, "stopped")

        return hear

    def _note_console(self, kept: Kept) -> None:
        if kept.machine is not None:
            self.consoles.setdefault(kept.id, []).append(kept.machine.files.serial_log)

    def _tell_vm(self, vm: str, event: str, **more: Any) -> None:
        body = {"event": event, "server": self.server, **more}
        self.reports.tell(vm, f"/v1/vms/{quoted(vm)}/events", body)

    def _tell_move(self, move: MoveRecord, event: str, **more: Any) -> asyncio.Task[None]:
        return self.reports.tell(move.vm, f"/v1/moves/{quoted(move.id)}/events", {"event": event, **more})

    async def _ask(self, move: MoveRecord, event: str) -> None:
        """Tell an event of a move and wait for the controller's answer. Raises HypervisorError."""
        path = f"/v1/moves/{quoted(move.id)}/events"
        try:
            await self.reports.ask(move.vm, path, {"event": event}, DIVERT_SECONDS)
        except (ControllerAwayError, RefusedError) as error:
            raise HypervisorError(f"its traffic is not diverted: {error}") from error


async def _ended(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait until it has put things in order."""
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task})

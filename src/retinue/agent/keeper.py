"""What an agent does with each VM of its server: its port, its machine, and this server's part of its moves.

Every step may be asked for twice, as happens when the controller comes back: what is done already is only
reported again. `ward` has a VM's life, `source` and `target` the two ends of a move, `managed` what is
different about all three under libvirt.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from retinue.agent.kept import Bypassed, Kept, KeptMachine, Ports, unknown
from retinue.agent.managed import ManagedSource, ManagedTarget, ManagedWard
from retinue.agent.records import Happening, MoveRecord, VMRecord
from retinue.agent.rest import Rest
from retinue.agent.source import SourceEnd
from retinue.agent.target import TargetEnd
from retinue.agent.transfer import Transfer
from retinue.agent.ward import Ward, ended
from retinue.hypervisor import Event, Hypervisor, ManagedHypervisor, MigrationResult, RunState, VMSpec
from retinue.hypervisor.libvirt_events import Happening as Noticed

log = structlog.get_logger()

GIVING = frozenset({"diverted", "rolling back"})
"""States of a move in which a VM may have been given away: never before its traffic is diverted."""
ASKED = {
    "matched": "move.prepare",
    "prepared": "move.copy",
    "confirmed": "move.cleanup",
    "rolling back": "move.rollback",
}
"""By the state of a move, the order it waits for."""


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
        bypassed: Bypassed = unknown,
    ) -> None:
        self.server = server
        self._rest = rest
        self._ward: Ward
        self._source: SourceEnd
        self._target: TargetEnd
        self._managed: ManagedSource | None = None
        """Where a manager of its own, such as libvirt, runs the VMs."""
        if isinstance(hypervisor, ManagedHypervisor):
            managed = ManagedWard(server, rest, hypervisor, ports, spec, transfer, bypassed)
            self._managed = ManagedSource(managed)
            self._ward, self._source, self._target = managed, self._managed, ManagedTarget(managed)
        else:
            self._ward = Ward(server, rest, hypervisor, ports, spec, transfer, bypassed)
            self._source, self._target = SourceEnd(self._ward), TargetEnd(self._ward)
        self.reports, self.vms, self.consoles = self._ward.reports, self._ward.vms, self._ward.consoles
        self._left: dict[str, Kept] = {}
        """VMs whose machines an earlier agent has left, until they are adopted."""

    # ---- what comes in ----

    def take(self, happening: Happening) -> None:
        """Act on an event, in the background; most are other servers' affairs."""
        vm, move = happening.vm, happening.move
        ward, source, target = self._ward, self._source, self._target
        match happening.type:
            case "vm.booked" if vm and self._is_ours(vm):
                ward.later(ward.kept(vm), ward.plug)
            case "vm.ready" if vm and self._is_ours(vm):
                ward.later(ward.kept(vm), ward.run)
            case "vm.removed" if vm:
                self.consoles.pop(vm.id, None)
                if vm.id in self.vms or self._managed is not None:
                    ward.later(ward.kept(vm), ward.remove)
            case "move.prepare" if move and vm and move.target == self.server:
                ward.later(ward.kept(vm), target.prepare, move)
            case "move.begin" if move and move.source == self.server and self._managed is not None:
                self._step_of(move, self._managed.begin)
            case "move.copy" if move and move.source == self.server:
                self._step_of(move, source.copy)
            case "move.cleanup" if move and move.source == self.server:
                self._step_of(move, source.clean_up)
            case "move.rollback" if move and move.source == self.server:
                self._step_of(move, source.stay)
            case "move.rollback" if move and move.target == self.server:
                self._step_of(move, target.withdraw)
            case "move.return" if move and move.source == self.server:
                self._step_of(move, source.take_back)

    def noticed(self, happening: Noticed) -> None:
        """libvirt's word about a VM of this server, whoever is the cause; in the background."""
        if self._managed is not None:
            self._managed.ward.noticed(happening)

    def _is_ours(self, vm: VMRecord) -> bool:
        """It is booked here. One that a server has made by itself nobody booked: it is not ours to run."""
        if vm.server != self.server:
            return False
        return not vm.reported or (self._managed is None and vm.id in self.vms)

    def _step_of(self, move: MoveRecord, step: Callable[..., Awaitable[None]]) -> None:
        kept, tell = self.vms.get(move.vm), self._ward.tell_move
        if self._managed is not None:
            kept = self._managed.ward.stranger(move.vm)
        if kept is not None:
            self._ward.later(kept, step, move)
        elif step == self._source.clean_up:
            tell(move, "source_gone")
        elif step == self._target.withdraw:
            tell(move, "target_gone")
        elif step == self._source.stay:
            pass  # Whether it was given away before this agent started, only the target knows.
        elif step == self._source.take_back:
            reason = f"the agent of {self.server} has started again"
            self._ward.tell_vm(move.vm, "stopped", reason=reason)
            tell(move, "rolled_back")
        else:
            tell(move, "failed", reason=f"the agent of {self.server} does not run VM {move.vm}")

    # ---- what was missed ----

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
            if self._managed is not None and vm.id not in moving:
                await self._managed.ward.booked_at(vm)
        records = {vm.id: vm for vm in vms}
        for move in moves:
            kept = self.vms.get(move.vm)
            knows = kept is not None and kept.move == move.id
            if self._began(move) and not knows:
                self._after_a_restart(move, kept)
            elif move.state in ASKED:
                self.take(Happening(ASKED[move.state], vm=records.get(move.vm), move=move))
                if move.state == "matched" and move.memory_at:
                    self.take(Happening("move.begin", vm=records.get(move.vm), move=move))
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
        if self._managed is not None and not move.memory_at:
            return  # Somebody else makes it.
        if move.target == self.server and kept is not None and kept.runs:
            self._ward.tell_move(move, "resumed", at=kept.resumed_at)
        elif kept is None or not kept.handed_over:
            reason = f"the agent of {self.server} has started again"
            self._ward.tell_move(move, "failed", reason=reason)

    # ---- the agent's own coming and going ----

    def machines(self) -> list[KeptMachine]:
        return [kept.machine for kept in self.vms.values() if kept.machine is not None]

    def listener(self, vm: str) -> Callable[[Event], None]:
        """For a machine of this VM that is about to be adopted."""
        # Not one of ours before it is adopted: one on its way in is ended instead, which is no news.
        kept = self._left[vm] = Kept(VMRecord(vm, "", self.server), ending=True)
        return self._ward.hears(kept)

    async def adopt(self, machine: KeptMachine) -> None:
        """Keep a machine that an earlier agent has left; its move, if it was in one, is off or over."""
        spec = machine.spec
        if spec.id in self._left:
            self.vms[spec.id] = self._left.pop(spec.id)
        record = VMRecord(spec.id, spec.mac, self.server, reported=self._managed is not None)
        kept = self._ward.kept(record)
        kept.machine, kept.plugged, kept.runs, kept.ending = machine, True, True, False
        kept.resumed_at = time.time()
        # It was given away, and only the target's word gives it back.
        kept.handed_over = await machine.state() is RunState.MOVED
        self._ward.note_console(kept)
        log.info("taken up", vm=spec.id, handed_over=kept.handed_over)

    async def close(self) -> None:
        """Call off what is under way, and let go of the machines: they run on."""
        for kept in list(self.vms.values()):
            for task in (kept.worker, kept.copying):
                await ended(task)
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

    # ---- a move in which the controller has no part ----

    async def take_in(self, vm: VMRecord, move: str, source: str) -> str:
        """Wait for a VM that is brought here; where to bring it. Raises HypervisorError."""
        return await self._target.take_in(vm, move, source)

    async def give(self, kept: Kept, move: str, memory_at: str, target: str) -> MigrationResult:
        """Bring a VM to an agent that waits for it.

        Raises HypervisorError, and it runs on here; HandedOverError, and it stands still here, for the
        target may run it.
        """
        return await self._source.give(kept, move, memory_at, target)

    async def drop(self, kept: Kept) -> None:
        """End what is here of a VM."""
        await self._ward.in_turn(kept, self._ward.remove)

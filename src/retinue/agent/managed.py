"""What is different on a server whose VMs a manager of its own runs, such as libvirt.

* A VM's port comes with the VM. One that is booked is made at once, but does not run.
* Others make, move and end VMs, too. The manager's word of it (`noticed`) is believed, and what nobody booked
  is never ended by us.
* A move's target is opened from its source, when the controller says that the target waits (`begin`). Of a
  move that somebody else makes we learn from the controller, and take no part in it, but to call it off.

Which moves are ours: those that we have begun with here, or that have an address where an agent of ours takes
the memory in (`MoveRecord.memory_at`).
"""

import asyncio
import time
from typing import Any

import structlog

from retinue.agent.kept import Kept
from retinue.agent.records import MoveRecord, VMRecord
from retinue.agent.seen import Seen
from retinue.agent.source import SourceEnd
from retinue.agent.target import TargetEnd
from retinue.agent.ward import Ward, ended
from retinue.hypervisor import Event, HypervisorError, ManagedHypervisor, OnEvent, RunState
from retinue.hypervisor.libvirt_events import Happening, Kind

COPY_SECONDS = 90.0
"""How long an opened target waits for the word that the copy may start; the controller's own limits are
less."""
GOING_SECONDS, LOOK_SECONDS = 5.0, 0.05
"""How long the manager may take to end a source whose VM runs at the target, and between two looks."""

log = structlog.get_logger()


class MayRunElsewhereError(HypervisorError):
    """The VM has been here, and went while nobody looked."""


class ManagedWard(Ward):
    hypervisor: ManagedHypervisor[Any]

    async def booked_at(self, vm: VMRecord) -> None:
        """What the controller knows of a VM, wherever it is."""
        if vm.id in self.vms:
            self.vms[vm.id].record = vm
        elif vm.server != self.server:
            await self.ports.remove(vm.id)  # That it has left is known.

    def stranger(self, vm: str) -> Kept:
        """A VM that is kept already, or of which nothing is known but that it is, or was, here."""
        return self.vms.get(vm) or self.kept(VMRecord(vm, "", self.server, reported=True))

    async def plug(self, kept: Kept) -> None:
        """Make the VM, and with it its port."""
        if kept.coming or kept.handed_over:
            return
        if kept.machine is None:
            machine = await self.hypervisor.find(kept.id)
            if machine is None and self._was_here(kept.id):
                raise MayRunElsewhereError(
                    f"VM {kept.id} was on {self.server} and went while no agent looked. It may run "
                    "elsewhere, so it is not started again. If it does not: remove it, and book it again"
                )
            kept.machine = machine or await self.hypervisor.plug(self.spec(kept.record))
            kept.ending = False
            self.note_console(kept)
        kept.plugged = True
        await self.ports.add(kept.id, kept.record.mac)

    def _was_here(self, vm: str) -> bool:
        return isinstance(self.ports, Seen) and self.ports.was_here(vm)

    async def run(self, kept: Kept) -> None:
        machine = await self.hypervisor.find(kept.id)
        if machine is not None and await machine.state() is RunState.MOVED:
            return  # It is being moved, from here or to here: what becomes of it will be told.
        try:
            await super().run(kept)
        except MayRunElsewhereError as error:
            log.error("the VM is not started", vm=kept.id, error=str(error))
        except HypervisorError as error:
            log.error("the VM does not start", vm=kept.id, error=str(error))
            self.tell_vm(kept.id, "stopped", reason=str(error))

    async def quit(self, kept: Kept) -> None:
        if kept.record.reported:
            kept.machine = None  # It is somebody else's.
        await super().quit(kept)

    def hears(self, kept: Kept) -> OnEvent:
        """Nothing: the manager's own word tells of every VM, whoever ends it (`noticed`)."""

        def hear(event: Event) -> None:
            pass

        return hear

    def note_console(self, kept: Kept) -> None:
        if kept.machine is not None:
            known = self.consoles.setdefault(kept.id, [])
            if kept.machine.files.serial_log not in known:
                known.append(kept.machine.files.serial_log)

    # ---- what others do ----

    def noticed(self, happening: Happening) -> None:
        """The manager's word about a VM of this server, whoever is the cause."""
        match happening.kind:
            case Kind.STARTED | Kind.RESUMED:
                kept = self.stranger(happening.vm)
                if not kept.runs or kept.handed_over:
                    self.later(kept, self.runs_here, happening.at)
            case Kind.DEPARTED | Kind.STOPPED | Kind.FAILED if happening.vm in self.vms:
                kept = self.vms[happening.vm]
                kept.handed_over = kept.handed_over or (happening.kind is Kind.DEPARTED and kept.runs)
                self.later(kept, self._is_not_here, happening.kind)

    async def runs_here(self, kept: Kept, at: float) -> None:
        if _under_way(kept):
            return  # What moves it tells, too.
        machine = await self.hypervisor.find(kept.id)
        if machine is None or await machine.state() is not RunState.RUNNING:
            self.drop_if_nothing(kept)
            return
        kept.machine, kept.plugged, kept.handed_over = machine, True, False
        kept.arrived(at)
        self.note_console(kept)
        if not kept.record.reported:
            await self.ports.add(kept.id, kept.record.mac)

    async def _is_not_here(self, kept: Kept, kind: Kind) -> None:
        if _under_way(kept) or await self.hypervisor.find(kept.id) is not None:
            return
        kept.machine, kept.plugged, kept.coming = None, False, False
        if kind is not Kind.DEPARTED:
            await self.ports.remove(kept.id)
        if kind is not Kind.DEPARTED or kept.record.reported:
            kept.runs = kept.handed_over = False
        self.drop_if_nothing(kept)  # Else it is known, until the controller knows it too, that it has left.

    def drop_if_nothing(self, kept: Kept) -> None:
        """Know nothing more of a VM that was not to be here."""
        known = kept.machine is not None or kept.handed_over or kept.coming or _under_way(kept)
        if not known and kept.todo.empty() and self.vms.get(kept.id) is kept:
            del self.vms[kept.id]


class ManagedSource(SourceEnd):
    ward: ManagedWard

    async def begin(self, kept: Kept, move: MoveRecord) -> None:
        """The target waits: have it opened, and go on when the copy may start."""
        if _under_way(kept):
            if kept.move != move.id:
                self.ward.tell_move(
                    move, "failed", reason=f"VM {kept.id} is being moved already: {kept.move}"
                )
            return
        machine = await self.ward.hypervisor.find(kept.id)
        if machine is None or kept.handed_over or await machine.state() is not RunState.RUNNING:
            self.ward.tell_move(move, "failed", reason=f"VM {kept.id} does not run on {self.ward.server}")
            self.ward.drop_if_nothing(kept)
            return
        kept.machine, kept.runs, kept.move, kept.may_copy = machine, True, move.id, asyncio.Event()

        async def opened() -> None:
            try:
                async with asyncio.timeout(COPY_SECONDS):
                    await kept.may_copy.wait()
            except TimeoutError:
                raise HypervisorError(f"no word to copy within {COPY_SECONDS:.0f} s") from None

        going = self.depart(kept, move, machine, opened=opened)
        kept.copying = asyncio.create_task(going, name=f"{move.id}: copy")

    async def copy(self, kept: Kept, move: MoveRecord) -> None:
        if kept.move == move.id and _under_way(kept):
            if not kept.may_copy.is_set():
                self.ward.tell_move(move, "copying")
                kept.may_copy.set()
        elif move.memory_at and not kept.handed_over:
            reason = f"the agent of {self.ward.server} has not begun with it, or not to its end"
            self.ward.tell_move(move, "failed", reason=reason)
        self.ward.drop_if_nothing(kept)  # Else somebody else moves it, or the target will say how it went.

    async def clean_up(self, kept: Kept, move: MoveRecord) -> None:
        if kept.copying is not None:
            await asyncio.wait({kept.copying})
        until = time.monotonic() + GOING_SECONDS
        while await self.ward.hypervisor.find(kept.id) is not None:
            if time.monotonic() > until:
                log.error("asked to free a source that still has the VM", vm=kept.id, move=move.id)
                return
            await asyncio.sleep(LOOK_SECONDS)
        kept.machine = None
        await self.ward.forget(kept)
        self.ward.tell_move(move, "source_gone")

    async def stay(self, kept: Kept, move: MoveRecord) -> None:
        """The move is off, whoever makes it, unless it has been made."""
        await ended(kept.copying)
        if kept.handed_over:
            return
        machine = await self.ward.hypervisor.find(kept.id)
        if machine is not None and await self.ward.hypervisor.call_off(machine):
            kept.machine, kept.plugged, kept.runs, kept.ending = machine, True, True, False
            self.ward.tell_move(move, "rolled_back")
        self.ward.drop_if_nothing(kept)

    async def take_back(self, kept: Kept, move: MoveRecord) -> None:
        kept.machine = await self.ward.hypervisor.find(kept.id)
        await super().take_back(kept, move)
        self.ward.drop_if_nothing(kept)


class ManagedTarget(TargetEnd):
    ward: ManagedWard

    async def prepare(self, kept: Kept, move: MoveRecord) -> None:
        if kept.move != move.id:
            machine = await self.ward.hypervisor.find(kept.id)
            if machine is not None:  # Somebody brings it, or has brought it.
                if await machine.state() is RunState.RUNNING:
                    await self.ward.runs_here(kept, time.time())
                elif not _under_way(kept):
                    kept.machine, kept.coming, kept.handed_over = machine, True, False
                return
        await super().prepare(kept, move)

    async def plug(self, kept: Kept) -> None:
        """The port comes with the VM, when the source opens the target."""
        await self.ward.ports.add(kept.id, kept.record.mac)
        kept.plugged = True

    async def withdraw(self, kept: Kept, move: MoveRecord) -> None:
        if not kept.runs:
            await ended(kept.copying)
        machine = await self.ward.hypervisor.find(kept.id)
        if machine is not None and not _is_ours(kept, move):
            return  # Its source's manager decides.
        if machine is not None and not kept.runs:
            if await machine.state() is RunState.RUNNING:
                await self.ward.runs_here(kept, time.time())
            else:
                await machine.quit()
        if not _is_ours(kept, move):
            kept.coming, kept.machine = False, None
            self.ward.drop_if_nothing(kept)
            return
        if not kept.runs:
            kept.machine = None
        await super().withdraw(kept, move)


def _under_way(kept: Kept) -> bool:
    return kept.copying is not None and not kept.copying.done()


def _is_ours(kept: Kept, move: MoveRecord) -> bool:
    return bool(move.memory_at) or kept.move == move.id


__all__ = ["ManagedSource", "ManagedTarget", "ManagedWard", "MayRunElsewhereError"]

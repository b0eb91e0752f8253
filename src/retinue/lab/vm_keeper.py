"""What the VM driver does with each VM: where it has a port, where it runs, and its move.

Each VM has a worker that takes its events one after the other; VMs do not wait for each other. Every step may
be asked for twice, as happens when the controller comes back: what is done already is only reported again.
The copy of a move is a task beside the worker, so that a rollback can call it off.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import structlog

from retinue.hypervisor import (
    Event,
    Gone,
    Hypervisor,
    HypervisorError,
    Machine,
    MigrationResult,
    Resumed,
    Stopped,
    VMSpec,
    together,
)
from retinue.hypervisor.argv import Files
from retinue.hypervisor.taps import tap_name
from retinue.lab.driver_records import Happening, MoveRecord, VMRecord, guest_command_line
from retinue.lab.driver_rest import ControllerAwayError, RefusedError, Reports, Rest, quoted
from retinue.lab.guest import Guest

log = structlog.get_logger()

DIVERT_SECONDS = 10.0
"""How long a copy that is all but done waits for its traffic to be diverted; the VM runs meanwhile."""


class LabMachine(Machine, Protocol):
    @property
    def files(self) -> Files: ...


class Ports(Protocol):
    """Makes and removes VM ports on servers. Failures are HypervisorError; doing it twice is no error."""

    async def add(self, server: str, vm: str, mac: str) -> None: ...

    async def remove(self, server: str, vm: str) -> None: ...


@dataclass
class Place:
    """A VM's port on one server, and the machine behind it, if any."""

    machine: LabMachine | None = None
    ending: bool = False
    """The machine is being ended by us: its end is no news."""


@dataclass
class Kept:
    """One VM, as far as the driver has to do with it."""

    record: VMRecord
    places: dict[str, Place] = field(default_factory=dict)
    runs_at: str = ""
    resumed_at: float = 0.0
    """When it ran on after its last move."""
    consoles: list[Path] = field(default_factory=list)
    """Of every machine it has had, oldest first."""
    copying: asyncio.Task[None] | None = None
    move: str = ""
    """The move whose target is open, or that is being copied, or that was."""
    todo: "asyncio.Queue[Callable[[], Awaitable[None]]]" = field(default_factory=asyncio.Queue)
    worker: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.record.id

    def machine(self) -> LabMachine | None:
        """The one that runs, or ran last."""
        place = self.places.get(self.runs_at)
        return None if place is None else place.machine


class Keeper:
    """All VMs of the lab. `hypervisors` has one for each server."""

    def __init__(
        self,
        rest: Rest,
        hypervisors: Mapping[str, Hypervisor[Any]],
        ports: Ports,
        guest: Guest,
    ) -> None:
        self._rest = rest
        self.reports = Reports(rest)
        self._hypervisors = hypervisors
        self._ports = ports
        self._guest = guest
        self.vms: dict[str, Kept] = {}

    # ---- what comes in ----

    def take(self, happening: Happening) -> None:
        """Act on an event, in the background."""
        vm, move = happening.vm, happening.move
        match happening.type:
            case "vm.booked" if vm:
                self._keep(vm, self._plug, vm.server)
            case "vm.ready" if vm:
                if not self._is_anothers(vm):
                    self._keep(vm, self._run, vm.server)
            case "vm.removed" if vm:
                if vm.id in self.vms:
                    self._later(self.vms[vm.id], self._remove)
            case "move.prepare" | "move.copy" | "move.cleanup" | "move.rollback" if move:
                kept = self.vms.get(move.vm)
                if kept is None:
                    self._tell_move(move, "failed", reason=f"the VM driver does not run VM {move.vm}")
                    return
                steps = {
                    "move.prepare": self._prepare,
                    "move.copy": self._copy,
                    "move.cleanup": self._clean_up,
                    "move.rollback": self._roll_back,
                }
                self._later(kept, steps[happening.type], move)
            case other:
                log.error("an event without what it is about", type=other)

    async def catch_up(self) -> None:
        """Do what the controller's present state asks for; its events may have been missed.

        A VM that the controller does not know is left alone: a controller that has forgotten is no reason to
        end what runs.
        """
        vms, moves = await self._rest.vms(), await self._rest.moves()
        for vm in vms:
            if self._is_anothers(vm):
                continue
            self.take(Happening("vm.booked" if vm.state == "booked" else "vm.ready", vm=vm))
        asked = {
            "matched": "move.prepare",
            "prepared": "move.copy",
            "confirmed": "move.cleanup",
            "rolling back": "move.rollback",
        }
        for move in moves:
            if move.state in asked:
                self.take(Happening(asked[move.state], move=move))
            elif move.state == "copying" and (kept := self.vms.get(move.vm)) and kept.move != move.id:
                self._tell_move(move, "failed", reason="the VM driver knows nothing of this copy")

    async def close(self) -> None:
        """End every machine; ports are left to the next start."""
        for kept in list(self.vms.values()):
            for task in (kept.worker, kept.copying):
                await _ended(task)
            for place in kept.places.values():
                await _quit(place)
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

    def _keep(self, vm: VMRecord, step: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        kept = self.vms.setdefault(vm.id, Kept(vm))
        kept.record = vm
        self._later(kept, step, *arguments)

    def _later(self, kept: Kept, step: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        kept.todo.put_nowait(lambda: step(kept, *arguments))
        if kept.worker is None:
            kept.worker = asyncio.create_task(self._work(kept), name=f"VM {kept.id}")

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

    async def _plug(self, kept: Kept, server: str) -> None:
        if server in kept.places:
            return
        if server not in self._hypervisors:
            raise HypervisorError(f"VM {kept.id}: the laboratory has no server {server}")
        await self._ports.add(server, kept.id, kept.record.mac)
        kept.places[server] = Place()

    async def _run(self, kept: Kept, server: str) -> None:
        await self._plug(kept, server)
        if kept.machine() is None:
            place = kept.places[server]
            try:
                machine = await self._hypervisors[server].start(self._spec(kept), self._hears(kept, server))
            except HypervisorError as error:
                log.error("the VM does not start", vm=kept.id, server=server, error=str(error))
                self._tell_vm(kept, "stopped", server, reason=str(error))
                return
            place.machine, place.ending = machine, False
            kept.consoles.append(machine.files.serial_log)
            kept.runs_at = server
        self._tell_vm(kept, "started", kept.runs_at)

    async def _remove(self, kept: Kept) -> None:
        await _ended(kept.copying)
        for server in list(kept.places):
            await self._unplug(kept, server)
        kept.consoles.clear()
        kept.move = ""
        if kept.todo.empty():  # else it has been booked again meanwhile
            del self.vms[kept.id]

    async def _unplug(self, kept: Kept, server: str) -> None:
        """End the machine there and remove its port."""
        place = kept.places.get(server)
        if place is None:
            return
        await _quit(place)
        await self._ports.remove(server, kept.id)
        del kept.places[server]
        if kept.runs_at == server:
            kept.runs_at = ""

    # ---- a move ----

    async def _prepare(self, kept: Kept, move: MoveRecord) -> None:
        try:
            await self._plug(kept, move.target)
            place = kept.places[move.target]
            if place.machine is None:
                hypervisor = self._hypervisors[move.target]
                place.machine = await hypervisor.open_target(self._spec(kept), self._hears(kept, move.target))
                place.ending = False
                kept.consoles.append(place.machine.files.serial_log)
        except HypervisorError as error:
            self._tell_move(move, "failed", reason=str(error))
            return
        kept.move = move.id
        self._tell_move(move, "target_open")

    async def _copy(self, kept: Kept, move: MoveRecord) -> None:
        if kept.copying is not None and not kept.copying.done():
            return
        source, target = (kept.places.get(s, Place()).machine for s in (move.source, move.target))
        if kept.runs_at == move.target:
            self._tell_move(move, "resumed", at=kept.resumed_at)  # It is there already.
            return
        if source is None or target is None:
            what = "source" if source is None else "target"
            self._tell_move(move, "failed", reason=f"there is no QEMU at the {what}")
            return
        self._tell_move(move, "copying")
        copy = self._migrate(kept, move, source, target)
        kept.copying = asyncio.create_task(copy, name=f"{move.id}: copy")

    async def _migrate(self, kept: Kept, move: MoveRecord, source: LabMachine, target: LabMachine) -> None:
        def hear(event: Event) -> None:
            match event:
                case Stopped(_, at):
                    self._tell_move(move, "stopped", at=at)
                case Resumed(_, at):
                    kept.runs_at, kept.resumed_at = move.target, at
                    self._tell_move(move, "resumed", at=at)

        kept.places[move.target].ending = True  # If it fails, the hypervisor ends it.
        from_, to = (self._hypervisors[server] for server in (move.source, move.target))
        asked_at = 0.0

        async def divert() -> None:
            nonlocal asked_at
            asked_at = time.time()
            await self.ask_move(move, "converged")

        try:
            result = await together.move(from_, source, to, target, hear, divert)
        except HypervisorError as error:
            kept.places[move.target].machine = None
            self._tell_move(move, "failed", reason=str(error))
            return
        kept.places[move.target].ending = False
        log.info(
            "moved",
            vm=kept.id,
            source=move.source,
            target=move.target,
            total_ms=round(result.total_ms, 1),
            pause_ms=round(result.pause_ms, 1),
            diverted_ms=round((result.resumed_at - asked_at) * 1000, 1),
        )

    async def ask_move(self, move: MoveRecord, event: str) -> None:
        """Tell an event of a move and wait for the controller's answer. Raises HypervisorError."""
        path = f"/v1/moves/{quoted(move.id)}/events"
        try:
            await self.reports.ask(move.vm, path, {"event": event}, DIVERT_SECONDS)
        except (ControllerAwayError, RefusedError) as error:
            raise HypervisorError(f"its traffic is not diverted: {error}") from error

    async def migrate(self, kept: Kept, target: str) -> MigrationResult:
        """Move a VM as a hypervisor does by itself: no controller is asked before, and none is told.

        For comparing with a network without one. Raises HypervisorError; the VM then runs where it was.
        """
        source, machine = kept.runs_at, kept.machine()
        if machine is None or target in kept.places:
            raise HypervisorError(f"VM {kept.id} does not run, or has a port on {target} already")
        await self._plug(kept, target)
        place = kept.places[target]
        place.ending = True
        try:
            from_, to = self._hypervisors[source], self._hypervisors[target]
            there = await to.open_target(self._spec(kept), self._hears(kept, target))
            result = await together.move(from_, machine, to, there)
        except HypervisorError:
            await self._unplug(kept, target)
            raise
        place.machine, place.ending, kept.runs_at = there, False, target
        kept.consoles.append(there.files.serial_log)
        await self._unplug(kept, source)
        return result

    async def _clean_up(self, kept: Kept, move: MoveRecord) -> None:
        if kept.runs_at == move.source:
            log.error("asked to free a source that still runs the VM", vm=kept.id, move=move.id)
            return
        if kept.copying is not None:
            await asyncio.wait({kept.copying})
        await self._unplug(kept, move.source)
        self._tell_move(move, "source_gone")

    async def _roll_back(self, kept: Kept, move: MoveRecord) -> None:
        """The target ends first, then the source runs: never both."""
        await _ended(kept.copying)
        if kept.runs_at == move.target:
            # What it has done there must not be undone: the move goes forward.
            log.warning("the VM had moved before it was called back", vm=kept.id, move=move.id)
            self._tell_move(move, "resumed", at=kept.resumed_at)
            return
        await self._unplug(kept, move.target)
        source = kept.places.get(move.source, Place()).machine
        try:
            if source is None:
                raise HypervisorError("its QEMU is gone")
            await source.resume()
            kept.runs_at = move.source
        except HypervisorError as error:
            log.error("the VM does not run on at the source", vm=kept.id, move=move.id, error=str(error))
            self._tell_vm(kept, "stopped", move.source, reason=str(error))
        self._tell_move(move, "rolled_back")

    # ---- words ----

    def _spec(self, kept: Kept) -> VMSpec:
        return VMSpec(
            id=kept.id,
            mac=kept.record.mac,
            port=tap_name(kept.id),
            kernel=self._guest.kernel,
            initrd=self._guest.initrd,
            append=guest_command_line(kept.record),
        )

    def _hears(self, kept: Kept, server: str) -> Callable[[Event], None]:
        """Listens to one machine: it may end without being asked."""

        def hear(event: Event) -> None:
            place = kept.places.get(server)
            if not isinstance(event, Gone) or place is None or place.ending:
                return
            place.machine = None
            if kept.runs_at == server:
                kept.runs_at = ""
                log.warning("the VM has ended", vm=kept.id, server=server)
                self._tell_vm(kept, "stopped", server)

        return hear

    def _tell_vm(self, kept: Kept, event: str, server: str, **more: Any) -> None:
        body = {"event": event, "server": server, **more}
        self.reports.tell(kept.id, f"/v1/vms/{quoted(kept.id)}/events", body)

    def _tell_move(self, move: MoveRecord, event: str, **more: Any) -> asyncio.Task[None]:
        return self.reports.tell(move.vm, f"/v1/moves/{quoted(move.id)}/events", {"event": event, **more})


async def _quit(place: Place) -> None:
    machine, place.ending, place.machine = place.machine, True, None
    if machine is not None:
        await machine.quit()


async def _ended(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait until it has put things in order."""
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task})

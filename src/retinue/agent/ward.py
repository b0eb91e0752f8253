"""The VMs of one server: the life of each, its port, and the words about it to the controller.

Each VM has a worker that takes its steps one after the other; VMs do not wait for each other.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import structlog

from retinue.agent.kept import Bypassed, Kept, Ports, unknown
from retinue.agent.records import MoveRecord, VMRecord
from retinue.agent.rest import ControllerAwayError, RefusedError, Reports, Rest, quoted
from retinue.agent.transfer import Transfer
from retinue.hypervisor import Event, Gone, Hypervisor, HypervisorError, VMSpec

log = structlog.get_logger()

T = TypeVar("T")

DIVERT_SECONDS = 10.0
"""How long a copy that is all but done waits for its traffic to be diverted; the VM runs meanwhile."""


class Ward:
    """`spec` tells how a VM is to be run."""

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
        self.hypervisor = hypervisor
        self.ports = ports
        self.spec = spec
        self.transfer = transfer
        self.bypassed = bypassed
        self.reports = Reports(rest)
        self.vms: dict[str, Kept] = {}
        self.consoles: dict[str, list[Path]] = {}
        """By VM, of every machine it has had here, oldest first; until the VM is removed for good."""

    # ---- who is kept, and their turns ----

    def kept(self, vm: VMRecord) -> Kept:
        kept = self.vms.setdefault(vm.id, Kept(vm))
        kept.record = vm
        return kept

    def later(self, kept: Kept, step: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Have the VM's worker take a step, after those it has to take already."""
        kept.todo.put_nowait(lambda: step(kept, *arguments))
        if kept.worker is None:
            kept.worker = asyncio.create_task(self._work(kept), name=f"VM {kept.id}")

    async def in_turn(self, kept: Kept, step: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """The same, and wait for what came of it."""
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

        self.later(kept, work)
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

    async def plug(self, kept: Kept) -> None:
        """Give a VM that is booked here, or brought here, its port."""
        if not kept.plugged:
            await self.ports.add(kept.id, kept.record.mac)
            kept.plugged = True

    async def run(self, kept: Kept) -> None:
        if kept.coming or kept.handed_over:
            return  # It runs at the other end of its move, or soon will.
        await self.plug(kept)
        if kept.machine is None or not kept.runs:
            try:
                kept.machine = await self.hypervisor.start(self.spec(kept.record), self.hears(kept))
            except HypervisorError as error:
                log.error("the VM does not start", vm=kept.id, error=str(error))
                self.tell_vm(kept.id, "stopped", reason=str(error))
                return
            kept.ending, kept.runs = False, True
            self.note_console(kept)
        self.tell_vm(kept.id, "started")

    async def remove(self, kept: Kept) -> None:
        await ended(kept.copying)
        await self.forget(kept)

    async def forget(self, kept: Kept) -> None:
        """End the machine, remove the port, and know nothing more of the VM."""
        await self.quit(kept)
        await self.ports.remove(kept.id)
        kept.plugged = kept.runs = kept.coming = kept.handed_over = False
        kept.copying = None
        kept.move = ""
        if kept.todo.empty():  # else it has been booked again meanwhile
            del self.vms[kept.id]

    async def quit(self, kept: Kept) -> None:
        machine, kept.ending, kept.machine = kept.machine, True, None
        if machine is not None:
            await machine.quit()

    def hears(self, kept: Kept) -> Callable[[Event], None]:
        """Listens to the machine that is about to be made: it may end without being asked."""
        life = kept.life = object()

        def hear(event: Event) -> None:
            if not isinstance(event, Gone) or kept.ending or kept.life is not life:
                return
            kept.machine, kept.runs = None, False
            log.warning("the VM has ended", vm=kept.id)
            if not kept.handed_over:  # else it is the target that tells of it
                self.tell_vm(kept.id, "stopped")

        return hear

    def note_console(self, kept: Kept) -> None:
        if kept.machine is not None:
            self.consoles.setdefault(kept.id, []).append(kept.machine.files.serial_log)

    # ---- words ----

    def tell_vm(self, vm: str, event: str, **more: Any) -> None:
        body = {"event": event, "server": self.server, **more}
        self.reports.tell(vm, f"/v1/vms/{quoted(vm)}/events", body)

    def tell_move(self, move: MoveRecord, event: str, *, frames: int = 0, **more: Any) -> asyncio.Task[None]:
        """`frames`: how many had come for the VM; 0 is not worth a word."""
        if frames:
            more["frames"] = frames
        return self.reports.tell(move.vm, f"/v1/moves/{quoted(move.id)}/events", {"event": event, **more})

    async def ask(self, move: MoveRecord, event: str) -> dict[str, Any]:
        """Tell an event of a move and wait for the controller's answer. Raises HypervisorError."""
        path = f"/v1/moves/{quoted(move.id)}/events"
        try:
            return await self.reports.ask(move.vm, path, {"event": event}, DIVERT_SECONDS)
        except (ControllerAwayError, RefusedError) as error:
            raise HypervisorError(f"its traffic is not diverted: {error}") from error


async def ended(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait until it has put things in order."""
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task})

"""A worker for each VM, which takes its steps one after the other; VMs do not wait for each other."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import structlog

from retinue.agent.vms.local_vm import LocalVM
from retinue.core.migration.presence import Absent
from retinue.host.errors import HostError

log = structlog.get_logger()

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds between two attempts at what has failed: they double."""


def pauses() -> Iterator[float]:
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE)


class VMWorkers:
    """The VMs of one server, and what is still to be done for each."""

    def __init__(self) -> None:
        self.vms: dict[str, LocalVM] = {}
        self.changes = 0
        """Counts what has changed in which VMs there are, and in what the controller says of them."""

    def later(self, vm: LocalVM, step: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Have the VM's worker take a step, after those it has to take already."""
        vm.steps.put_nowait(lambda: step(vm, *arguments))
        if vm.worker is None:
            vm.worker = asyncio.create_task(self._work(vm), name=f"VM {vm.id}")

    async def in_turn(self, vm: LocalVM, step: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """The same, and wait for the result of the step. Raises its HostError."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def work(vm: LocalVM) -> None:
            try:
                result = await step(vm, *arguments)
            except HostError as error:
                if not outcome.done():
                    outcome.set_exception(error)
            else:
                if not outcome.done():
                    outcome.set_result(result)
            finally:
                outcome.cancel()  # Where the step has come to no end of its own.

        self.later(vm, work)
        return await outcome

    def again(self, vm: LocalVM, pause: float, step: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Have a step that has failed taken once more after a pause, unless the VM is to go before that.

        Each step has its own pause: one that fails does not put off, or off for good, what another waits for.
        """

        def now() -> None:
            del vm.retries[step.__name__]
            if self.vms.get(vm.id) is vm:
                self.later(vm, step, *arguments)

        if step.__name__ in vm.retries:
            vm.retries[step.__name__].cancel()
        vm.retries[step.__name__] = asyncio.get_running_loop().call_later(pause, now)

    async def until_done(self, vm: LocalVM, work: Callable[[], Awaitable[object]], what: str) -> None:
        """Undo something for good: what fails is tried again until it is so, and the VM's next step waits.

        Nobody would come back to it: an order is given once, and what would be left of the VM here, such as a
        port that feeds nobody, would stand in the way of the next.
        """
        for pause in pauses():
            try:
                await work()
                return
            except Exception as error:
                expected = isinstance(error, HostError)
                log.error(
                    "vm.not_undone", vm=vm.id, what=what, error=str(error), again_in=pause,
                    exc_info=not expected,
                )  # fmt: skip
            await asyncio.sleep(pause)

    async def _work(self, vm: LocalVM) -> None:
        while self.vms.get(vm.id) is vm:
            step = await vm.steps.get()
            try:
                await step()
            except HostError as error:
                log.error("vm.step_failed", vm=vm.id, error=str(error))
            except Exception:
                log.exception("vm.step_failed", vm=vm.id)
            finally:
                self._drop_if_absent(vm)
                vm.steps.task_done()

    def _drop_if_absent(self, vm: LocalVM) -> None:
        """Know nothing more of a VM of which nothing is here, unless something is still to be done for it."""
        waits = vm.transferring or not vm.steps.empty() or vm.retries
        idle = isinstance(vm.presence, Absent) and not waits
        if idle and self.vms.get(vm.id) is vm:
            del self.vms[vm.id]
            self.changes += 1

"""Switching a VM off and starting it anew: first as a person at its power button would, then without asking.

A guest may take as long as it likes over a pressed button, so this runs beside the steps of the VM's worker:
another order, such as to remove the VM, does not wait for it. What comes of it the hypervisor tells.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from retinue.agent.vms.local_vm import LocalMachine, LocalVM, ended
from retinue.core.migration.endpoint_effects import RebootMachine, ResetMachine, StopMachine
from retinue.core.migration.presence import Running
from retinue.host.errors import HostError

log = structlog.get_logger()


async def carry_out(vm: LocalVM, effect: StopMachine | RebootMachine | ResetMachine) -> None:
    """Begin with it, in place of what was begun before. Raises HostError where that is not possible."""
    await ended(vm.powering)
    machine = vm.machine
    if machine is None:
        return
    match effect:
        case StopMachine(hard=True):
            await machine.cut_power()
        case StopMachine(seconds=seconds):
            _beside(vm, _off(vm, machine, seconds))
        case RebootMachine(seconds):
            _beside(vm, _anew(vm, machine, seconds))
        case ResetMachine():
            await machine.reset()


async def flap_link(vm: LocalVM) -> None:
    """Have the guest see its link go and come; a step of the VM's worker, which a migration waits for."""
    if vm.machine is not None and isinstance(vm.presence, Running) and not vm.transferring:
        log.info("vm.link_flapped", vm=vm.id)
        await vm.machine.flap_link()


def has_ended(vm: LocalVM) -> None:
    """The machine has ended: nobody waits for that any more."""
    vm.machine_over.set()


def is_anew(vm: LocalVM) -> None:
    """The guest has started anew: nobody waits for that any more."""
    vm.started_anew.set()


def _beside(vm: LocalVM, work: Awaitable[None]) -> None:
    vm.machine_over, vm.started_anew = asyncio.Event(), asyncio.Event()

    async def logged() -> None:
        try:
            await work
        except HostError as error:
            log.error("vm.power_failed", vm=vm.id, error=str(error))

    vm.powering = asyncio.create_task(logged(), name=f"power of VM {vm.id}")


async def _off(vm: LocalVM, machine: LocalMachine, seconds: float) -> None:
    await _heeded(machine.press_power, vm.machine_over, seconds)
    if not vm.machine_over.is_set():
        log.warning("vm.does_not_shut_down", vm=vm.id, seconds=seconds)
        await machine.cut_power()


async def _anew(vm: LocalVM, machine: LocalMachine, seconds: float) -> None:
    await _heeded(machine.reboot, vm.started_anew, seconds)
    if not vm.started_anew.is_set() and not vm.machine_over.is_set():
        log.warning("vm.does_not_shut_down", vm=vm.id, seconds=seconds)
        await machine.reset()


async def _heeded(ask: Callable[[], Awaitable[None]], heeded: asyncio.Event, seconds: float) -> None:
    """Ask, and wait as long; one that cannot be asked has not heeded it."""
    try:
        await ask()
    except HostError as error:
        log.warning("vm.power_button_not_pressed", error=str(error))
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await heeded.wait()


__all__ = ["carry_out", "has_ended", "is_anew"]

"""What libvirt tells of the VMs of this server, taken in: others make, migrate and end VMs there, too."""

import asyncio
from typing import Any

from retinue.agent.lifecycle import VMLifecycle
from retinue.agent.vms import nic_ports, power
from retinue.agent.vms.local_vm import LocalVM, Ports
from retinue.core.migration import endpoint_events as e
from retinue.core.migration.presence import Running
from retinue.hypervisor import ManagedHypervisor, RunState
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent


class LibvirtFollower:
    """Takes in what the manager tells of the VMs of this server, whoever is the cause."""

    def __init__(self, lifecycle: VMLifecycle, hypervisor: ManagedHypervisor[Any], ports: Ports) -> None:
        self._lifecycle = lifecycle
        self._hypervisor = hypervisor
        self._ports = ports

    def on_event(self, event: HypervisorEvent) -> None:
        """Act on it in the background."""
        lifecycle = self._lifecycle
        match event.kind:
            case EventKind.STARTED | EventKind.RESUMED:
                vm = lifecycle.get_or_unknown(event.vm)
                if not vm.runs:
                    lifecycle.later(vm, self._is_running, event.at)
            case EventKind.REBOOTED if event.vm in lifecycle.vms:
                power.is_anew(lifecycle.vms[event.vm])
            case EventKind.DEPARTED | EventKind.STOPPED | EventKind.FAILED if event.vm in lifecycle.vms:
                vm = lifecycle.vms[event.vm]
                if event.kind is EventKind.DEPARTED:
                    lifecycle.learn(vm, e.Departed())  # At once: it must not be started again.
                lifecycle.later(vm, self._is_gone, event.kind)

    async def _is_running(self, vm: LocalVM, at: float) -> None:
        if vm.transferring:
            return  # What migrates it tells, too.
        machine = await self._hypervisor.find(vm.id)
        if machine is None or await machine.state() is not RunState.RUNNING:
            return
        vm.machine = machine
        self._lifecycle.learn(vm, e.FoundRunning(at))
        self._lifecycle.note_console(vm)
        if not vm.record.reported:
            await nic_ports.add(self._ports, vm.record)

    async def _is_gone(self, vm: LocalVM, kind: EventKind) -> None:
        if vm.transfer is not None and isinstance(vm.presence, Running):
            await asyncio.wait({vm.transfer})  # It came by post-copy, which ends with it.
        if vm.transferring or await self._hypervisor.find(vm.id) is not None:
            return
        vm.machine = None
        power.has_ended(vm)
        departed = kind is EventKind.DEPARTED
        if not departed:
            await nic_ports.remove(self._ports, vm.record)
        self._lifecycle.learn(vm, e.NotFound(ended=not departed or vm.record.reported))

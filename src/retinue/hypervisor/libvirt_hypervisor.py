"""libvirt behind H1: VMs of one server, run by its libvirtd.

A VM's port comes with the VM: libvirt makes it. So a VM is first `plugged`, that is, made but paused, and
starts when its network is ready. During a move libvirt opens the target itself.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retinue.hypervisor.argv import Files
from retinue.hypervisor.interface import (
    HypervisorError,
    OnEvent,
    RunState,
    VMSpec,
    ignore,
)
from retinue.hypervisor.libvirt_domain import Consoles, domain_xml
from retinue.hypervisor.libvirt_events import Happening, event_of
from retinue.hypervisor.libvirt_host import STATE_PAUSED, STATE_RUNNING, LibvirtHost
from retinue.hypervisor.libvirt_move import LibvirtMove, UnixWay

START_PAUSED = 1
"""VIR_DOMAIN_START_PAUSED."""
PAUSED_MIGRATION = 2
"""virDomainPausedReason: on a source, stopped by a move; on a target, not there yet."""


class LibvirtMachine:
    """One domain on one server."""

    def __init__(self, host: LibvirtHost, domain: Any, spec: VMSpec, files: Files) -> None:
        self._host = host
        self._domain = domain
        self._spec = spec
        self.files = files

    @property
    def spec(self) -> VMSpec:
        return self._spec

    @property
    def domain(self) -> Any:
        return self._domain

    async def state(self) -> RunState:
        """Raises HypervisorError when the domain has ended."""
        state, reason = await self._host.call(self._domain.state)
        if state == STATE_RUNNING:
            return RunState.RUNNING
        if state == STATE_PAUSED:
            return RunState.MOVED if reason == PAUSED_MIGRATION else RunState.PAUSED
        return RunState.BROKEN

    async def pause(self) -> None:
        await self._host.call(self._domain.suspend)

    async def resume(self) -> None:
        if await self.state() is not RunState.RUNNING:
            await self._host.call(self._domain.resume)

    async def abort(self) -> None:
        """Call off what libvirt is doing with the VM, such as a move. Raises HypervisorError for nothing."""
        await self._host.call(self._domain.abortJob)

    async def quit(self) -> None:
        with contextlib.suppress(HypervisorError):  # it has ended
            await self._host.call(self._domain.destroy)


def _memory(vm: str) -> str:
    return f"{vm}.memory"


class LibvirtHypervisor:
    """Runs VMs on one server through its libvirtd.

    `inside` is the folder of the VMs' consoles as libvirtd sees it, and must be there; `outside` the same as
    we see it, where that is not the same.
    """

    def __init__(
        self, host: LibvirtHost, inside: Path, outside: Path | None = None, *, bridge: str = "br0"
    ) -> None:
        self.host = host
        self._inside = inside
        self._outside = inside if outside is None else outside
        self._bridge = bridge
        self._listeners: dict[str, OnEvent] = {}

    async def plug(self, spec: VMSpec) -> LibvirtMachine:
        """Make the VM and its port, paused. One that is there already is returned as it is."""
        found = await self.find(spec)
        if found is not None:
            return found
        xml = domain_xml(spec, self._consoles(spec), bridge=self._bridge)
        connection = await self.host.connection()
        domain = await self.host.call(connection.createXML, xml, START_PAUSED)
        return LibvirtMachine(self.host, domain, spec, self._files(spec))

    async def start(self, spec: VMSpec, on_event: OnEvent = ignore) -> LibvirtMachine:
        """Boot a VM, or start one that is plugged. Its events are told as `follow` hears them."""
        self._listeners[spec.id] = on_event
        machine = await self.plug(spec)
        await machine.resume()
        return machine

    async def follow(self, hear: Callable[[Happening], None]) -> None:
        """Hear, for ever, what happens to VMs on this server: those we started, and all others."""
        async for happening in self.host.watch():
            event = event_of(happening)
            if event is not None:
                self._listeners.get(happening.vm, ignore)(event)
            hear(happening)

    async def find(self, spec: VMSpec) -> LibvirtMachine | None:
        """The VM, if this server has it, whoever started it."""
        domain = await self.host.domain(spec.id)
        return None if domain is None else LibvirtMachine(self.host, domain, spec, self._files(spec))

    def move(self, machine: LibvirtMachine, control: str) -> LibvirtMove:
        """A move of the VM to the server whose libvirt this one reaches as `control`."""
        name = _memory(machine.spec.id)
        return LibvirtMove(
            self.host, machine.domain, machine.spec.id, control, self._inside / name, self._outside / name
        )

    def way(self, vm: str) -> UnixWay:
        """To where a VM's memory is taken in that is moved to this server, on this machine."""
        return UnixWay(self._outside / _memory(vm))

    def _consoles(self, spec: VMSpec) -> Consoles:
        return Consoles(self._inside / f"{spec.id}.console", self._inside / f"{spec.id}.shell")

    def _files(self, spec: VMSpec) -> Files:
        return Files.named(self._outside, spec.id)

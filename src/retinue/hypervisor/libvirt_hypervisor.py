"""libvirt behind H1: VMs of one server, run by its libvirtd.

A VM's port comes with the VM: libvirt makes it. So a VM is first `plugged`, that is, made but paused, and
starts when its network is ready. In a move libvirt opens the target, from the source (`libvirt_departure`).
VMs are known by their interface's id (`libvirt_domain`), and asked for each time: anybody's `virsh` may make,
move and end them.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from retinue.hypervisor.argv import Files
from retinue.hypervisor.channel import Channel
from retinue.hypervisor.commands import run
from retinue.hypervisor.interface import (
    Divert,
    HypervisorError,
    MigrationFailed,
    MigrationResult,
    OnEvent,
    Opened,
    RunState,
    Started,
    VMSpec,
    ignore,
)
from retinue.hypervisor.libvirt_arrival import LibvirtArrival
from retinue.hypervisor.libvirt_departure import LibvirtDeparture
from retinue.hypervisor.libvirt_domain import domain_xml, taps
from retinue.hypervisor.libvirt_events import Happening
from retinue.hypervisor.libvirt_folder import Folder
from retinue.hypervisor.libvirt_host import STATE_PAUSED, STATE_RUNNING, LibvirtHost
from retinue.hypervisor.quiet import frames_given, until_quiet
from retinue.hypervisor.tap_queue import Holders, holders_of
from retinue.hypervisor.taps import frames_come

START_PAUSED = 1
"""VIR_DOMAIN_START_PAUSED."""
PAUSED_MIGRATION = 2
"""virDomainPausedReason: on a source, stopped by a move; on a target, not there yet."""
MIGRATION_OUT = 5
"""virDomainJobOperation."""
LOOK_SECONDS = 0.05
CALL_OFF_LIMIT = 10.0

log = structlog.get_logger()


class LibvirtMachine:
    """A VM on one server, or one that is to come there."""

    def __init__(self, host: LibvirtHost, spec: VMSpec, files: Files) -> None:
        self._host = host
        self._spec = spec
        self.files = files

    @property
    def spec(self) -> VMSpec:
        return self._spec

    async def domain(self) -> Any:
        """Raises HypervisorError when libvirt has none here."""
        domain = await self._host.domain(self.spec.id)
        if domain is None:
            raise HypervisorError(f"server {self._host.name}: libvirt has no VM {self.spec.id}")
        return domain

    async def state(self) -> RunState:
        state, reason = await self._host.call((await self.domain()).state)
        if state == STATE_RUNNING:
            return RunState.RUNNING
        if state == STATE_PAUSED:
            return RunState.MOVED if reason == PAUSED_MIGRATION else RunState.PAUSED
        return RunState.BROKEN

    async def pause(self) -> None:
        await self._host.call((await self.domain()).suspend)

    async def resume(self) -> None:
        if await self.state() is not RunState.RUNNING:
            await self._host.call((await self.domain()).resume)

    async def waiting(self) -> int:
        waiting = 0
        with contextlib.suppress(HypervisorError):  # its taps are not in our network, or it has none
            for tap in taps(await self._host.call((await self.domain()).XMLDesc, 0)):
                waiting += max(0, await frames_come(run, tap) - frames_given(os.getpid(), tap))
        return waiting

    async def quit(self) -> None:
        domain = await self._host.domain(self.spec.id)
        if domain is not None:
            try:
                await self._host.call(domain.destroy)
            except HypervisorError:
                if await self._host.domain(self.spec.id) is not None:  # else it has ended by itself
                    raise

    async def let_go(self) -> None:
        """libvirt keeps it."""


class LibvirtHypervisor:
    """Runs VMs on one server through its libvirtd.

    `control` is how other servers' libvirts reach this one. `kind` is "qemu", or "kvm". `quiet` returns when
    nothing is on its way any more to a VM with these taps.
    """

    def __init__(
        self,
        host: LibvirtHost,
        folder: Folder,
        control: str = "",
        *,
        bridge: str = "br0",
        kind: str = "qemu",
        quiet: Callable[[Sequence[str], Holders], Awaitable[None]] = until_quiet,
    ) -> None:
        self.host = host
        self._folder = folder
        self._control = control
        self._bridge = bridge
        self._kind = kind
        self._quiet = quiet
        self._coming: dict[str, asyncio.Queue[Happening]] = {}
        """By VM, what libvirt says of those that are brought here."""

    # ---- a VM ----

    async def plug(self, spec: VMSpec) -> LibvirtMachine:
        if await self.host.domain(spec.id) is None:
            if spec.kernel == Path():
                raise HypervisorError(
                    f"VM {spec.id}: the agent of {self.host.name} is not told how VMs are made ([vm]), and "
                    "nobody else has made it"
                )
            xml = domain_xml(spec, self._folder.consoles(spec.id), bridge=self._bridge, kind=self._kind)
            connection = await self.host.connection()
            await self.host.call(connection.createXML, xml, START_PAUSED)
        return self._machine(spec)

    async def start(self, spec: VMSpec, on_event: OnEvent = ignore) -> LibvirtMachine:
        """Boot a VM, or start one that is plugged."""
        machine = await self.plug(spec)
        await machine.resume()
        on_event(Started(spec.id, time.time()))
        return machine

    async def find(self, vm: str) -> LibvirtMachine | None:
        domain = await self.host.domain(vm)
        return None if domain is None else self._machine(_unknown(vm, await self._taps(domain)))

    async def adopt(self, hear: Callable[[str], OnEvent]) -> list[LibvirtMachine]:
        """All VMs that run here; libvirt's own word tells of their ends, so nobody needs to `hear`."""
        found = [self.host.known(domain) for domain in await self.host.domains()]
        machines = [await self.find(vm) for ids in found for vm in ids]
        return [machine for machine in machines if machine is not None and await _runs(machine)]

    # ---- a move ----

    async def open_target(self, spec: VMSpec, on_event: OnEvent = ignore) -> LibvirtMachine:
        """libvirt opens it, when the source begins."""
        if not self._control:
            raise HypervisorError(
                f"server {self.host.name} takes no VMs in: its agent is not told how other servers' libvirts "
                "reach this one ([libvirt] control)"
            )
        return self._machine(spec)

    async def depart(
        self,
        source: LibvirtMachine,
        channel: Channel,
        on_event: OnEvent = ignore,
        divert: Divert | None = None,
        opened: Opened | None = None,
    ) -> MigrationResult:
        vm = source.spec.id
        try:
            domain, memory = await source.domain(), self._folder.memory(vm)
            names = await self._taps(domain)
            # Known beforehand: every process of the server is looked at for it.
            holders = {} if divert is None else await asyncio.to_thread(holders_of, names)
        except BaseException as error:
            on_event(MigrationFailed(vm, time.time(), str(error) or "it was called off", source_runs=True))
            await channel.close()
            raise

        async def drain(nothing_comes: bool) -> None:
            await self._quiet(names, holders if nothing_comes else {})

        departure = LibvirtDeparture(
            self.host, domain, vm, names, channel, memory, self._control, on_event, drain
        )
        return await departure.run(divert, opened)

    async def arrive(self, target: LibvirtMachine, channel: Channel, on_event: OnEvent = ignore) -> float:
        vm = target.spec.id
        heard = self._coming[vm] = asyncio.Queue()
        try:
            memory = self._folder.memory(vm)
            arrival = LibvirtArrival(self.host, vm, channel, memory, self._control, heard)
            return await arrival.run(on_event)
        finally:
            del self._coming[vm]

    async def call_off(self, machine: LibvirtMachine) -> bool:
        until = time.monotonic() + CALL_OFF_LIMIT
        while True:
            domain = await self.host.domain(machine.spec.id)
            if domain is None:
                return False
            with contextlib.suppress(HypervisorError):  # It has ended, or moved: the next look tells.
                if not await self._is_leaving(domain):
                    return await machine.state() is not RunState.MOVED
                await self.host.call(domain.abortJob)
            if time.monotonic() > until:
                raise HypervisorError(
                    f"VM {machine.spec.id}: libvirt goes on moving it {CALL_OFF_LIMIT:.0f} s after it was "
                    "called off"
                )
            await asyncio.sleep(LOOK_SECONDS)

    async def _is_leaving(self, domain: Any) -> bool:
        """It is being moved from here, or is not yet as it was before that."""
        job = await self.host.call(domain.jobStats)
        if job.get("type") and job.get("operation") == MIGRATION_OUT:
            return True
        state, reason = await self.host.call(domain.state)
        return bool(state == STATE_PAUSED and reason == PAUSED_MIGRATION)

    def hear(self, happening: Happening) -> None:
        """Be told what libvirt says, for VMs that are brought here."""
        if happening.vm in self._coming:
            self._coming[happening.vm].put_nowait(happening)

    # ---- details ----

    def _machine(self, spec: VMSpec) -> LibvirtMachine:
        return LibvirtMachine(self.host, spec, self._folder.files(spec.id))

    async def _taps(self, domain: Any) -> tuple[str, ...]:
        return taps(await self.host.call(domain.XMLDesc, 0))


def _unknown(vm: str, names: Sequence[str]) -> VMSpec:
    """A VM that somebody made."""
    return VMSpec(vm, "", next(iter(names), ""), Path(), Path())


async def _runs(machine: LibvirtMachine) -> bool:
    try:
        return await machine.state() is RunState.RUNNING
    except HypervisorError:
        return False

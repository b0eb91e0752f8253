"""libvirt behind the hypervisor interface: VMs of one server, run by its libvirtd.

A VM's port comes with the VM: libvirt makes it. So a VM is first `plugged`, that is, made but paused, and
starts when its network is ready. In a migration libvirt opens the target, from the source (`outgoing`).
VMs are known by their interface's id (`domain_xml`), and libvirt is asked for them each time: anybody's
`virsh` may make, migrate and end them.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from retinue.core.migration.copying import PLAIN, CopyOptions, Postcopy
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.host.commands import run
from retinue.host.drain import drain, frames_given
from retinue.host.errors import HostError
from retinue.host.tap_queue import Holders, holders_of
from retinue.host.taps import rx_frames
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import (
    LINK_DOWN_SECONDS,
    Divert,
    Left,
    MigrationFailed,
    MigrationResult,
    NICSpec,
    OnEvent,
    OpenDisk,
    Opened,
    RunState,
    Started,
    VMSpec,
    ignore,
)
from retinue.hypervisor.libvirt import postcopy
from retinue.hypervisor.libvirt.connection import (
    LACKS_MEMORY,
    STATE_PAUSED,
    STATE_RUNNING,
    STOPPED_FOR_POSTCOPY,
    LibvirtHost,
)
from retinue.hypervisor.libvirt.directory import Folder
from retinue.hypervisor.libvirt.disk_copies import DiskCopies, take_disk
from retinue.hypervisor.libvirt.domain_xml import domain_xml, interfaces_with_link, memory_of, taps
from retinue.hypervisor.libvirt.far_end import say_that_it_failed
from retinue.hypervisor.libvirt.incoming import LibvirtIncoming
from retinue.hypervisor.libvirt.nics import AFFECT_LIVE, set_nics
from retinue.hypervisor.libvirt.outgoing import LibvirtOutgoing
from retinue.hypervisor.libvirt.undoing import check_that_it_may_go, take_back
from retinue.hypervisor.memory_channel import Again, Channel
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent

START_PAUSED = 1
"""VIR_DOMAIN_START_PAUSED."""
PAUSED_MIGRATION = 2
"""virDomainPausedReason: on a source, stopped by a migration; on a target, not there yet."""
POSTCOPY_FAILED = (STATE_PAUSED, 13)
"""The same with its state: on a source, when the VM runs elsewhere, or nowhere any more."""
MIGRATION_OUT = 5
"""virDomainJobOperation."""
LOOK_SECONDS = 0.05
CALL_OFF_LIMIT = 10.0

log = structlog.get_logger()


class PrepareDisks(Protocol):
    """Sees that a VM's disks are on this server: `anew`, as at a migration's target, its private ones are
    empty over their bases. Raises HypervisorError."""

    async def __call__(self, spec: VMSpec, *, anew: bool) -> None: ...


class LibvirtMachine:
    """A VM on one server, or one that is incoming there."""

    def __init__(self, host: LibvirtHost, spec: VMSpec, folder: Folder, *, postcopy: bool = False) -> None:
        self._host = host
        self._offers_postcopy = postcopy
        self._spec = spec
        self._folder = folder
        self.files = folder.files(spec.id)
        self.expects_postcopy = False

    @property
    def spec(self) -> VMSpec:
        return self._spec

    async def domain(self) -> Any:
        """Raises HypervisorError when libvirt has none here."""
        domain = await self._host.domain(self.spec.id)
        if domain is None:
            raise HypervisorError(f"server {self._host.name}: libvirt has no VM {self.spec.id}")
        return domain

    async def look_at_memory(self) -> None:
        """What libvirt says of one that has come here just now: others may have made it, with any."""
        # It may have ended by now, or who waits is called off too late; nothing hangs on this.
        with contextlib.suppress(HypervisorError, asyncio.CancelledError):
            xml = await self._host.call((await self.domain()).XMLDesc, 0)
            self._spec = replace(self._spec, memory_mib=memory_of(xml))

    async def state(self) -> RunState:
        state, reason = await self._host.call((await self.domain()).state)
        if state == STATE_RUNNING:
            return RunState.RUNNING
        if state == STATE_PAUSED:
            leaves = reason == PAUSED_MIGRATION or (state, reason) in LACKS_MEMORY
            return RunState.MOVED if leaves else RunState.PAUSED
        return RunState.BROKEN

    async def is_left_over(self) -> bool:
        """The VM was handed over by post-copy, which has failed: it never runs here again."""
        found = tuple(await self._host.call((await self.domain()).state))
        # Where its stream is kept open libvirt does not find that it has failed.
        return found == POSTCOPY_FAILED or (found in STOPPED_FOR_POSTCOPY and self.spec.id in self._host.kept)

    async def resume(self) -> None:
        domain = await self.domain()
        found = tuple(await self._host.call(domain.state))
        if found in STOPPED_FOR_POSTCOPY:
            await take_back(self._host, self.spec.id)
        elif found[0] != STATE_RUNNING:
            self._host.is_ours_to_resume(self.spec.id)
            await self._host.call(domain.resume)

    async def expect_postcopy(self) -> None:
        if not self._offers_postcopy:
            raise HypervisorError(
                f"server {self._host.name} takes no VM by post-copy: its agent's configuration has no "
                "`postcopy = true` in [libvirt]"
            )
        await postcopy.check(postcopy.probe(self._folder.user))
        self.expects_postcopy = True

    def hold_frames(self) -> None:
        """Its process is libvirt's, and there is none before the source opens it."""

    async def take_disk(self, number: int, channel: Channel) -> None:
        if number not in (disk.number for disk in self.spec.private_disks):
            raise HypervisorError(f"VM {self.spec.id} has no private disk {number}")
        await take_disk(self._folder.disks(self.spec.id), channel)

    async def waiting(self) -> int:
        waiting = 0
        with contextlib.suppress(HostError):  # its taps are not in our network, or it has none
            for tap in taps(await self._host.call((await self.domain()).XMLDesc, 0)):
                waiting += max(0, await rx_frames(run, tap) - frames_given(os.getpid(), tap))
        return waiting

    async def set_nics(self, nics: Sequence[NICSpec], gone: Collection[str]) -> None:
        await set_nics(self._host, await self.domain(), self.spec.id, nics, gone)

    async def press_power(self) -> None:
        await self._host.call((await self.domain()).shutdown)

    async def reboot(self) -> None:
        await self._host.call((await self.domain()).reboot)

    async def reset(self) -> None:
        await self._host.call((await self.domain()).reset)

    async def flap_link(self) -> None:
        domain = await self.domain()
        xml = await self._host.call(domain.XMLDesc, 0)
        try:
            for interface in interfaces_with_link(xml, "down"):
                await self._host.call(domain.updateDeviceFlags, interface, AFFECT_LIVE)
            await asyncio.sleep(LINK_DOWN_SECONDS)
        finally:
            for interface in interfaces_with_link(xml, "up"):
                await self._host.call(domain.updateDeviceFlags, interface, AFFECT_LIVE)

    async def cut_power(self) -> None:
        await self.quit()

    async def quit(self) -> None:
        domain = await self._host.domain(self.spec.id)
        if domain is not None:
            try:
                await self._host.call(domain.destroy)
            except HostError:
                if await self._host.domain(self.spec.id) is not None:  # else it has ended by itself
                    raise
        self._host.let_go(self.spec.id)

    async def let_go(self) -> None:
        """libvirt keeps it."""


class LibvirtHypervisor:
    """Runs VMs on one server through its libvirtd.

    `control` is how other servers' libvirts reach this one. `kind` is "qemu", or "kvm". `drain` returns when
    nothing is on its way any more to a VM with these taps; `holders` are the processes that have them open.
    `postcopy`: VMs may come here by it. `prepare_disks` makes what a VM's disks need on this server.
    """

    def __init__(
        self,
        host: LibvirtHost,
        folder: Folder,
        control: str = "",
        *,
        bridge: str = "br0",
        kind: str = "qemu",
        postcopy: bool = False,
        drain: Callable[[Sequence[str], Holders], Awaitable[None]] = drain,
        holders: Callable[[Sequence[str]], Holders] = holders_of,
        prepare_disks: PrepareDisks | None = None,
    ) -> None:
        self.host = host
        self._folder = folder
        self._control = control
        self._bridge = bridge
        self._kind = kind
        self._postcopy = postcopy
        self._drain = drain
        self._holders = holders
        self._prepare_disks = prepare_disks
        self._incoming: dict[str, asyncio.Queue[HypervisorEvent]] = {}
        """By VM, the events of libvirt about those that are incoming here."""
        self._outgoing: dict[str, LibvirtOutgoing] = {}

    # ---- a VM ----

    async def plug(self, spec: VMSpec) -> LibvirtMachine:
        if await self.host.domain(spec.id) is None:
            if spec.kernel == Path():
                raise HypervisorError(
                    f"VM {spec.id}: the agent of {self.host.name} is not told how VMs are made ([vm]), and "
                    "nobody else has made it"
                )
            await self._disks_of(spec, anew=False)
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

    def end_is_reported(self, spec: VMSpec) -> None:
        """libvirt reports it itself, and forgets."""

    def forget(self, spec: VMSpec) -> None:
        files = self._folder.files(spec.id)
        for path in (files.serial_log, files.shell):
            with contextlib.suppress(OSError):
                path.unlink()

    def forget_all_but(self, specs: Collection[VMSpec]) -> None:
        """What is in the folder may be others'."""

    async def find(self, vm: str) -> LibvirtMachine | None:
        domain = await self.host.domain(vm)
        if domain is None:
            return None
        xml = await self.host.call(domain.XMLDesc, 0)
        return self._machine(_unknown(vm, taps(xml), memory_of(xml)))

    async def adopt(self, listener: Callable[[str], OnEvent]) -> Left[LibvirtMachine]:
        """All VMs that run here; libvirt's own events tell of their ends, so nobody needs to listen."""
        machines = [await self.find(vm) for _, ids in await self.host.domains() for vm in ids]
        return Left([machine for machine in machines if machine is not None and await _runs(machine)])

    # ---- a migration ----

    async def open_target(self, spec: VMSpec, on_event: OnEvent = ignore) -> LibvirtMachine:
        """libvirt opens it, when the source begins; what its disks need is there before."""
        if not self._control:
            raise HypervisorError(
                f"server {self.host.name} does not accept incoming migrations: its agent is not told "
                "how other servers' libvirts reach this one ([libvirt] control)"
            )
        await self._disks_of(spec, anew=True)
        return self._machine(spec)

    async def run_outgoing(
        self,
        source: LibvirtMachine,
        channel: Channel,
        on_event: OnEvent = ignore,
        divert: Divert | None = None,
        wanted_downtime: float = WANTED_DOWNTIME,
        options: CopyOptions = PLAIN,
        open_disk: OpenDisk | None = None,
        opened: Opened | None = None,
    ) -> MigrationResult:
        vm = source.spec.id
        how = Postcopy.NEVER if divert is None else options.postcopy
        try:
            domain, memory = await source.domain(), self._folder.memory(vm)
            await check_that_it_may_go(self.host, domain, vm)
            xml = await self.host.call(domain.XMLDesc, 0)
            names, disks = taps(xml), DiskCopies(xml, self._folder.disks(vm), open_disk)
            # Known beforehand: every process of the server is looked at for it.
            holders = {} if divert is None else await asyncio.to_thread(self._holders, names)
        except BaseException as error:
            reason = str(error) or "it was called off"
            on_event(MigrationFailed(vm, time.time(), reason, source_runs=True))
            await say_that_it_failed(channel, reason)
            await channel.close()
            raise

        async def drain_taps(nothing_comes: bool) -> None:
            await self._drain(names, holders if nothing_comes else {})

        own = (channel, memory, self._control, on_event, drain_taps, holders, wanted_downtime, how, disks)
        outgoing = LibvirtOutgoing(self.host, domain, vm, names, *own, options.step_factor)
        self._outgoing[vm] = outgoing
        try:
            return await outgoing.run(divert, opened)
        finally:
            del self._outgoing[vm]

    async def send_the_rest(self, source: LibvirtMachine, again: Again, on_event: OnEvent = ignore) -> None:
        """libvirt has the connection of its QEMU, and ends it with whoever has ended."""

    async def receive_the_rest(self, target: LibvirtMachine, again: Again) -> None:
        raise HypervisorError(f"what VM {target.spec.id} lacks of its memory is libvirt's to fetch")

    async def run_incoming(
        self, target: LibvirtMachine, channel: Channel, on_event: OnEvent = ignore
    ) -> float:
        vm = target.spec.id
        events = self._incoming[vm] = asyncio.Queue()
        try:
            memory = self._folder.memory(vm)
            incoming = LibvirtIncoming(
                *(self.host, vm, channel, memory, self._control, events),
                postcopy=target.expects_postcopy,
                disks=target.spec.disks,
            )
            runs_since = await incoming.run(on_event)
            await target.look_at_memory()
            return runs_since
        finally:
            del self._incoming[vm]

    async def call_off(self, machine: LibvirtMachine) -> bool:
        until = time.monotonic() + CALL_OFF_LIMIT
        while True:
            domain = await self.host.domain(machine.spec.id)
            if domain is None:
                return False
            with contextlib.suppress(HostError):  # The VM has ended, or migrated: the next look tells.
                if not await self._is_leaving(domain):
                    return await machine.state() is not RunState.MOVED
                await self.host.call(domain.abortJob)
            if time.monotonic() > until:
                raise HypervisorError(
                    f"VM {machine.spec.id}: libvirt goes on moving it {CALL_OFF_LIMIT:.0f} s after it was "
                    "called off"
                )
            await asyncio.sleep(LOOK_SECONDS)

    def brings(self, vm: str) -> bool:
        """The VM is migrated from here by us, and no one else."""
        return vm in self._outgoing

    async def _is_leaving(self, domain: Any) -> bool:
        """The VM is being migrated away, or is not yet as it was before that."""
        job = await self.host.call(domain.jobStats)
        if job.get("type") and job.get("operation") == MIGRATION_OUT:
            return True
        state, reason = await self.host.call(domain.state)
        return bool(state == STATE_PAUSED and reason == PAUSED_MIGRATION)

    def on_event(self, event: HypervisorEvent) -> None:
        """Take in an event of libvirt, for VMs that come here or leave."""
        if event.vm in self._incoming:
            self._incoming[event.vm].put_nowait(event)
        if event.vm in self._outgoing:
            self._outgoing[event.vm].hear(event)
        if event.kind in (EventKind.STOPPED, EventKind.FAILED, EventKind.DEPARTED):
            self.host.let_go(event.vm)

    # ---- details ----

    async def _disks_of(self, spec: VMSpec, *, anew: bool) -> None:
        if not spec.disks:
            return
        if self._prepare_disks is None:
            raise HypervisorError(f"VM {spec.id} has disks, and server {self.host.name} makes none")
        await self._prepare_disks(spec, anew=anew)
        await asyncio.to_thread(self._folder.give, [disk.path for disk in spec.private_disks])

    def _machine(self, spec: VMSpec) -> LibvirtMachine:
        return LibvirtMachine(self.host, spec, self._folder, postcopy=self._postcopy)


def _unknown(vm: str, names: Sequence[str], memory_mib: int) -> VMSpec:
    """A VM that somebody made."""
    return VMSpec(vm, "", next(iter(names), ""), Path(), Path(), memory_mib=memory_mib)


async def _runs(machine: LibvirtMachine) -> bool:
    try:
        return await machine.state() is RunState.RUNNING
    except HostError:
        return False

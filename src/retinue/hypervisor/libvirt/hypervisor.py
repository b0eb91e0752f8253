"""libvirt behind the hypervisor interface: VMs of one server, run by its libvirtd.

A VM's port comes with the VM: libvirt makes it. So a VM is first `plugged`, that is, made but paused, and
starts when its network is ready. In a migration libvirt opens the target, from the source (`outgoing`).
VMs are known by their interface's id (`domain_xml`), and libvirt is asked for them each time: anybody's
`virsh` may make, migrate and end them.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog

from retinue.core.migration.copying import PLAIN, CopyOptions, Postcopy
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.host.drain import drain
from retinue.host.errors import HostError
from retinue.host.tap_queue import Holders, holders_of
from retinue.hypervisor import rest_at_source
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import (
    Divert,
    Left,
    MigrationFailed,
    MigrationResult,
    OnEvent,
    OpenDisk,
    Opened,
    RunState,
    Started,
    VMSpec,
    ignore,
)
from retinue.hypervisor.libvirt import own_monitor
from retinue.hypervisor.libvirt.connection import (
    LACKS_MEMORY,
    STATE_PAUSED,
    LibvirtHost,
)
from retinue.hypervisor.libvirt.directory import Folder
from retinue.hypervisor.libvirt.disk_copies import DiskCopies
from retinue.hypervisor.libvirt.domain_xml import domain_xml, memory_of, taps
from retinue.hypervisor.libvirt.far_end import say_that_it_failed
from retinue.hypervisor.libvirt.incoming import LibvirtIncoming
from retinue.hypervisor.libvirt.machine import PAUSED_MIGRATION, LibvirtMachine
from retinue.hypervisor.libvirt.outgoing import LibvirtOutgoing
from retinue.hypervisor.libvirt.own_monitor import OwnMonitor
from retinue.hypervisor.libvirt.undoing import check_that_it_may_go
from retinue.hypervisor.memory_channel import Again, Channel, broken_channel
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent

START_PAUSED = 1
"""VIR_DOMAIN_START_PAUSED."""
MIGRATION_OUT = 5
"""virDomainJobOperation."""
LOOK_SECONDS = 0.05
CALL_OFF_LIMIT = 10.0

log = structlog.get_logger()


class PrepareDisks(Protocol):
    """Sees that a VM's disks are on this server: `anew`, as at a migration's target, its private ones are
    empty over their bases. Raises HypervisorError."""

    async def __call__(self, spec: VMSpec, *, anew: bool) -> None: ...


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
        self._left: dict[str, OwnMonitor] = {}
        """By VM, of those that lack memory, and that an agent before us has taken in."""

    # ---- a VM ----

    async def plug(self, spec: VMSpec) -> LibvirtMachine:
        if await self.host.domain(spec.id) is None:
            if spec.kernel == Path():
                raise HypervisorError(
                    f"VM {spec.id}: the agent of {self.host.name} is not told how VMs are made ([vm]), and "
                    "nobody else has made it"
                )
            await self._disks_of(spec, anew=False)
            consoles = self._folder.consoles(spec.id)
            with_monitor = self._postcopy
            xml = domain_xml(spec, consoles, bridge=self._bridge, kind=self._kind, monitor=with_monitor)
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
        for path in (files.serial_log, files.shell, files.observer):
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
        left: Left[LibvirtMachine] = Left()
        for vm in [vm for _, ids in await self.host.domains() for vm in ids]:
            machine = await self.find(vm)
            if machine is None or not await _runs(machine):
                continue
            left.machines.append(machine)
            if await self._keeps_a_monitor(machine):
                left.lacking.add(vm)
        return left

    async def _keeps_a_monitor(self, machine: LibvirtMachine) -> bool:
        """An agent before us took it in by post-copy, and it lacks memory: its monitor is ours now."""
        vm = machine.spec.id
        if not own_monitor.may_be_left(self._folder, vm):
            return False
        domain = await machine.domain()
        names = taps(await self.host.call(domain.XMLDesc, 0))
        holders = await asyncio.to_thread(self._holders, names)
        monitor = await own_monitor.left(self._folder, vm, holders)
        if monitor is None:
            return False
        if tuple(await self.host.call(domain.state)) not in LACKS_MEMORY:
            await monitor.close()
            return False
        self._left[vm] = monitor
        return True

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
        monitor = partial(own_monitor.opened, self._folder, vm)
        outgoing = LibvirtOutgoing(self.host, domain, vm, names, *own, options.step_factor, monitor)
        self._outgoing[vm] = outgoing
        try:
            return await outgoing.run(divert, opened)
        finally:
            del self._outgoing[vm]

    async def send_the_rest(self, source: LibvirtMachine, again: Again, on_event: OnEvent = ignore) -> None:
        try:
            if await source.has_memory_to_give():
                await self._send_the_rest(source.spec.id, again, on_event)
        except HostError:
            # libvirt ends it as soon as it has nothing to give any more.
            if await self.host.domain(source.spec.id) is not None:
                raise

    async def _send_the_rest(self, vm: str, again: Again, on_event: OnEvent) -> None:
        monitor = await own_monitor.opened(self._folder, vm)
        if monitor is None:
            raise HypervisorError(f"VM {vm} has no monitor of ours, without which libvirt does not go on")
        self.host.let_go(vm)  # Nobody gives it back any more.
        try:
            await rest_at_source.send(monitor, again, on_event)
        finally:
            await monitor.close()

    async def receive_the_rest(self, target: LibvirtMachine, again: Again) -> None:
        vm = target.spec.id
        if (monitor := self._left.pop(vm, None)) is None:
            raise HypervisorError(f"what VM {vm} lacks of its memory is libvirt's to fetch")

        async def is_left() -> OwnMonitor | None:
            return monitor

        events = self._incoming[vm] = asyncio.Queue()
        try:
            incoming = LibvirtIncoming(
                *(self.host, vm, await broken_channel(again), self._folder.memory(vm), self._control, events),
                postcopy=True,
                monitor=is_left,
            )
            await incoming.go_on_after_another()
        finally:
            del self._incoming[vm]

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
                monitor=partial(own_monitor.opened, self._folder, vm),
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

"""Who runs the VMs of this server, as its configuration says: QEMUs of our own, or libvirt."""

import asyncio
from functools import partial
from pathlib import Path

import structlog

from retinue.agent.config import KINDS, AgentConfig, LibvirtTable, VMTable
from retinue.agent.controller_link.libvirt_reporter import LibvirtReporter
from retinue.agent.controller_link.made_here import MadeHere
from retinue.agent.controller_link.vm_reports import VMReports
from retinue.agent.dispatcher import Dispatcher
from retinue.agent.migration.left_in_taps import LeftInTaps
from retinue.agent.vms.departed import DepartedVMs
from retinue.agent.vms.local_vm import ended
from retinue.agent.vms.workers import pauses
from retinue.host.errors import HostError
from retinue.host.flow_cache import FlowCache
from retinue.host.ports import LocalPorts
from retinue.host.taps import tap_name
from retinue.hypervisor import QemuHypervisor
from retinue.hypervisor.libvirt.connection import LibvirtHost, LibvirtMissingError
from retinue.hypervisor.libvirt.directory import Folder
from retinue.hypervisor.libvirt.hypervisor import LibvirtHypervisor
from retinue.hypervisor.qemu import overlays
from retinue.protocol.errors import ControllerError

log = structlog.get_logger()


class QemuBackend:
    """QEMUs that the agent starts itself, and ports that it makes."""

    def __init__(self, config: AgentConfig, vm: VMTable, folder: Path) -> None:
        self.ports = LocalPorts(config.bridge)
        self.hypervisor = QemuHypervisor(folder, vm.wrapper, accelerator=vm.accelerator)

        self._clearing: asyncio.Task[None] | None = None

    async def begin(self, dispatcher: Dispatcher) -> None:
        """Adopt what the agent before this one has left, and clear what of it is of no use.

        A port that is busy, or a switch that is away, is no reason not to start: it is cleared later.
        """
        await dispatcher.adopt_all(await self.hypervisor.adopt(dispatcher.listener))
        if not await self._is_clear(dispatcher):
            self._clearing = asyncio.create_task(self._clear(dispatcher), name="ports that were left")

    async def _clear(self, dispatcher: Dispatcher) -> None:
        for pause in pauses():
            await asyncio.sleep(pause)
            if await self._is_clear(dispatcher):
                return

    async def _is_clear(self, dispatcher: Dispatcher) -> bool:
        """Remove the ports that are no VM's, as they are now."""
        try:
            return not await self.ports.clear(lambda: _taps(dispatcher))
        except HostError as error:
            log.error("ports.not_cleared", error=str(error))
            return False

    async def end(self) -> None:
        """VMs keep running."""
        await ended(self._clearing)


def _taps(dispatcher: Dispatcher) -> set[str]:
    return {tap_name(nic.id) for vm in dispatcher.vms.values() for nic in vm.record.all_nics}


class LibvirtBackend:
    """The server's libvirtd runs the VMs. Raises HypervisorError where it cannot be used at all."""

    def __init__(
        self, config: AgentConfig, table: LibvirtTable, folder: Path, made: MadeHere | None = None
    ) -> None:
        self._made = made
        self._server, self._bridge = config.server, config.bridge
        shared = Folder(Path(table.folder), Path(table.seen_at or table.folder), table.user)
        shared.make()
        self._host = LibvirtHost(config.server, table.uri)
        _ = self._host.library  # Says at once when it is missing.
        kind = KINDS[config.vm.accelerator if config.vm is not None else "tcg"]
        self.ports = DepartedVMs(folder)
        self.hypervisor = LibvirtHypervisor(
            *(self._host, shared, table.control),
            bridge=config.bridge,
            kind=kind,
            postcopy=table.postcopy,
            prepare_disks=overlays.prepare,
        )
        self._watching: asyncio.Task[None] | None = None
        self._catching_up: asyncio.Task[None] | None = None
        self._left: LeftInTaps | None = None
        self._adopted = False

    async def begin(self, dispatcher: Dispatcher) -> None:
        """Adopt what runs, and follow what happens to it; a libvirtd that is away is waited for."""
        try:
            await self._adopt(dispatcher)
        except LibvirtMissingError:
            raise
        except HostError as error:
            log.warning("libvirt.vms_unknown", error=str(error))
        listeners = (self.hypervisor.on_event, dispatcher.on_hypervisor_event)
        back = partial(self._is_back, dispatcher)
        reports = VMReports(self._server, dispatcher.reports)
        self._left = LeftInTaps(self._host, reports, FlowCache(), self.hypervisor.brings)
        watch = LibvirtReporter(
            *(self._server, self._host, dispatcher.reports, listeners),
            back=back,
            made=self._made,
            bridge=self._bridge,
            reported=self._left.hear,
        )
        self._watching = asyncio.create_task(watch.run(), name="what libvirt does")

    def _is_back(self, dispatcher: Dispatcher) -> None:
        """What could not be done while libvirtd was away is done now."""
        self._catching_up = asyncio.create_task(self._catch_up(dispatcher), name="catching up with libvirt")

    async def _adopt(self, dispatcher: Dispatcher) -> None:
        await dispatcher.adopt_all(await self.hypervisor.adopt(dispatcher.listener))
        self._adopted = True

    async def _catch_up(self, dispatcher: Dispatcher) -> None:
        try:
            if not self._adopted:  # Else nobody would know which of them lack memory.
                await self._adopt(dispatcher)
            await dispatcher.catch_up()
        except HostError as error:
            log.warning("libvirt.vms_unknown", error=str(error))  # It is away again.
        except ControllerError as error:
            log.warning("libvirt.back_without_controller", error=str(error))  # Its next hello does it.

    async def end(self) -> None:
        for task in (self._watching, self._catching_up):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._left is not None:
            await self._left.close()
        await self._host.close()


def runner(config: AgentConfig, folder: Path, made: MadeHere) -> QemuBackend | LibvirtBackend:
    """`folder` is for what is known of VMs; `made` is told of those that others make.

    Raises HypervisorError.
    """
    if config.libvirt is not None:
        return LibvirtBackend(config, config.libvirt, folder, made)
    assert config.vm is not None
    return QemuBackend(config, config.vm, folder)

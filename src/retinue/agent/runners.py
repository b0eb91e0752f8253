"""Who runs the VMs of this server, as its configuration says: QEMUs of our own, or libvirt."""

import asyncio
from functools import partial
from pathlib import Path

import structlog

from retinue.agent.config import KINDS, AgentConfig, LibvirtTable, VMTable
from retinue.agent.keeper import Keeper
from retinue.agent.ports import LocalPorts
from retinue.agent.records import RecordError
from retinue.agent.rest import ControllerAwayError, RefusedError
from retinue.agent.seen import Seen
from retinue.agent.watch import Watch
from retinue.hypervisor import HypervisorError, QemuHypervisor
from retinue.hypervisor.libvirt_folder import Folder
from retinue.hypervisor.libvirt_host import LibvirtHost, LibvirtMissingError
from retinue.hypervisor.libvirt_hypervisor import LibvirtHypervisor

log = structlog.get_logger()


class OwnQemus:
    def __init__(self, config: AgentConfig, vm: VMTable, folder: Path) -> None:
        self.ports = LocalPorts(config.bridge)
        self.hypervisor = QemuHypervisor(folder, vm.wrapper, accelerator=vm.accelerator)

    async def begin(self, keeper: Keeper) -> None:
        """Take up what the agent before this one has left. Raises HypervisorError."""
        for machine in await self.hypervisor.adopt(keeper.listener):
            await keeper.adopt(machine)
        await self.ports.clear({machine.spec.port for machine in keeper.machines()})

    async def end(self) -> None:
        """VMs run on."""


class Libvirt:
    """Raises HypervisorError where it cannot be used at all."""

    def __init__(self, config: AgentConfig, table: LibvirtTable, folder: Path) -> None:
        self._server = config.server
        shared = Folder(Path(table.folder), Path(table.seen_at or table.folder), table.user)
        shared.make()
        self._host = LibvirtHost(config.server, table.uri)
        _ = self._host.library  # Says at once when it is missing.
        kind = KINDS[config.vm.accelerator if config.vm is not None else "tcg"]
        self.ports = Seen(folder)
        self.hypervisor = LibvirtHypervisor(
            self._host, shared, table.control, bridge=config.bridge, kind=kind
        )
        self._watching: asyncio.Task[None] | None = None
        self._catching_up: asyncio.Task[None] | None = None

    async def begin(self, keeper: Keeper) -> None:
        """Take up what runs, and follow what happens to it; a libvirtd that is away is waited for."""
        try:
            for machine in await self.hypervisor.adopt(keeper.listener):
                await keeper.adopt(machine)
        except LibvirtMissingError:
            raise
        except HypervisorError as error:
            log.warning("what runs here is not known yet", error=str(error))
        hears = (self.hypervisor.hear, keeper.noticed)
        back = partial(self._is_back, keeper)
        watch = Watch(self._server, self._host, keeper.reports, hears, back=back)
        self._watching = asyncio.create_task(watch.run(), name="what libvirt does")

    def _is_back(self, keeper: Keeper) -> None:
        """What could not be done while libvirtd was away is done now."""
        self._catching_up = asyncio.create_task(_catch_up(keeper), name="catching up with libvirt")

    async def end(self) -> None:
        for task in (self._watching, self._catching_up):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._host.close()


async def _catch_up(keeper: Keeper) -> None:
    try:
        await keeper.catch_up()
    except (ControllerAwayError, RefusedError, RecordError) as error:
        log.warning(
            "libvirt is back, and the controller is away", error=str(error)
        )  # Its next hello does it.


def runner(config: AgentConfig, folder: Path) -> OwnQemus | Libvirt:
    """`folder` is for what is known of VMs. Raises HypervisorError."""
    if config.libvirt is not None:
        return Libvirt(config, config.libvirt, folder)
    assert config.vm is not None
    return OwnQemus(config, config.vm, folder)

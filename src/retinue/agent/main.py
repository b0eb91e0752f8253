"""The agent as a program: beside the hypervisor of one server, on the controller's word.

The agent follows the controller's event stream. A VM registered on this server gets a port, and is started
when the controller says that its network is ready. Of a migration the agent does this server's part (see
`vms.lifecycle`). It reports what it did, and when a VM was paused and resumed. `admin_socket` is for programs
on the server itself.

VMs keep running when the agent ends, and the next agent adopts them. They are QEMUs of ours, or libvirt's.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from retinue import logs, systemd
from retinue.agent import admin_socket, alone
from retinue.agent.backends import runner
from retinue.agent.config import AgentConfig, load
from retinue.agent.content.service import ContentService
from retinue.agent.content.store import Store, StoreError
from retinue.agent.controller_link.made_here import MadeHere
from retinue.agent.controller_link.own_mac import OwnMac
from retinue.agent.controller_link.rejections import Rejections
from retinue.agent.controller_link.reports import Rest
from retinue.agent.dispatcher import Dispatcher
from retinue.agent.migration.peer import Transfer, secured
from retinue.agent.mobility import MobilityAgent
from retinue.agent.renewal.lease_notes import LEASES, LeaseNotes
from retinue.agent.renewal.service import RenewalService
from retinue.agent.renewal.tap_watch import TapWatch, WatchedTap
from retinue.agent.vms.disks import LocalDisks
from retinue.agent.vms.vm_spec import spec
from retinue.config_file import ConfigError
from retinue.host.errors import HostError
from retinue.host.flow_cache import FlowCache
from retinue.host.load import LoadMeter
from retinue.host.taps import tap_name
from retinue.hypervisor import VMSpec
from retinue.hypervisor.libvirt import connection
from retinue.protocol.client import ControllerClient
from retinue.protocol.errors import ControllerError
from retinue.protocol.events import HELLO, IMAGE_ORDERS, ControllerEvent, EventType
from retinue.protocol.mobility import VMSize
from retinue.security.contexts import TlsFilesError
from retinue.security.credentials import Credentials
from retinue.security.listener import descriptors
from retinue.socket_addresses import endpoint

AGAIN_SECONDS = 0.2
"""Between two attempts to reach the controller."""
READY_FD = "RETINUE_READY_FD"
LOCK = "agent.lock"
"""File in the agent's folder that it has locked for as long as it runs."""
OURS_ALONE = 0o077
"""Whatever the agent makes, and its QEMUs: sockets, notes, logs and what guests write are nobody else's."""

log = structlog.get_logger()


def run(path: Path) -> int:
    """Run until told to end (SIGTERM, SIGINT); the exit code."""
    logs.to_stderr()
    descriptors.raise_limit()
    os.umask(OURS_ALONE)
    code = _run(path)
    if connection.in_use():  # Its threads are never done, and nothing waits for them.
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(path: Path) -> int:
    try:
        asyncio.run(_serve(load(path)))
    except (ConfigError, HostError, TlsFilesError) as error:
        print(f"retinue agent: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"retinue agent: cannot listen: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(config: AgentConfig) -> None:
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # Also one that was made before: what guests write is in it.
    with only_one(folder):
        await _serve_in(folder, config)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Raises HostError where another agent runs with this folder: each would take what the other has opened
    for something that is left over, and end it. The kernel lets a lock go with whoever has it."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise HostError(f"{folder} is another agent's, which runs: end that first") from error
        yield


async def _serve_in(folder: Path, config: AgentConfig) -> None:
    credentials = Credentials()
    transfer = Transfer(config.server)
    if config.tls is not None:
        credentials = Credentials(Path(config.tls.ca), Path(config.tls.certificate), Path(config.tls.key))
        transfer = secured(config.server, credentials)
    if config.alone is not None:
        await alone.serve(config, transfer)
        return
    rest = ControllerClient(config.controller, credentials, agent_of=config.server)
    await transfer.start(*config.endpoint)
    content = _content(config, folder, rest, transfer, credentials)
    for domain in config.domain:
        other = secured(config.server, replace(credentials, ca=Path(domain.ca)))
        other.visitors = content.far(domain.id) if domain.images else None
        await other.start(*endpoint(domain.listen))
        transfer.domains[domain.id] = other
    if config.content.cache:
        await _serve_cache(config, rest, transfer, content)
        return
    manager = _manager(config, rest, credentials)
    own_interface = config.report.interface or config.bridge
    made = MadeHere(config.server, manager, own_interface)
    own_mac = OwnMac(config.server, rest, own_interface)
    runs = runner(config, folder / "vms", made)
    disk_folder = Path(config.disk_folder) if config.disk_folder else folder / "disks"
    disks = LocalDisks(disk_folder, content, [Path(one) for one in config.disk_paths])
    dispatcher = Dispatcher(
        config.server,
        rest,
        runs.hypervisor,
        runs.ports,
        lambda record: spec(record, config.vm, disks.specs(record)),
        transfer,
        switch=FlowCache(),
        disks=disks,
    )
    leases = LeaseNotes(folder / LEASES)
    watch = TapWatch(leases, ManagedTaps(dispatcher))
    renewals = RenewalService(config.server, config.bridge, rest, dispatcher.has_lost_its_lease, leases)
    await runs.begin(dispatcher)
    ready = asyncio.Event()
    meter = LoadMeter(folder, config.mobility.uplink, time.monotonic)
    mobility = MobilityAgent(
        config.server, rest, meter.measure, lambda: sizes(dispatcher), config.mobility.rule(),
        others=lambda: sizes_of_others(dispatcher),
    )  # fmt: skip
    rejections = Rejections(config.server, transfer.rejected, rest, time.time())
    try:
        async with admin_socket.serving(folder / admin_socket.SOCKET, dispatcher, leases, made):
            watch.start()

            def back() -> None:
                rejections.again()
                content.reports.again()
                made.again()
                own_mac.again()

            def others(event: ControllerEvent) -> None:
                if event.type == EventType.VM_REMOVED:
                    made.forget(event.vm.id if event.vm is not None else event.vm_id)
                    return
                (mobility.on_match if event.type == EventType.MATCH else content.on_event)(event)

            following = asyncio.create_task(follow(rest, dispatcher, renewals, ready, back, others))
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, following.cancel)
            telling = [
                asyncio.create_task(work)
                for work in (_tell_ready(ready), rejections.run(), content.run(), mobility.run())
            ]
            log.info("agent.up", server=config.server, listens=transfer.address)
            with contextlib.suppress(asyncio.CancelledError):
                async with systemd.ready(f"server {config.server}, of {config.controller}"):
                    await following
            for task in telling:
                task.cancel()
            log.info("agent.stopping")
    finally:
        watch.close()
        await mobility.close()
        await renewals.close()
        await leases.written()
        await content.close()
        await dispatcher.close()
        await runs.end()
        await transfer.close()
        await made.close()
        await own_mac.close()
        if manager is not rest:
            await manager.close()
        await rest.close()


def _manager(config: AgentConfig, rest: ControllerClient, credentials: Credentials) -> ControllerClient:
    """Who is told of VMs that others make here: the controller, or who passes it on. Raises TlsFilesError."""
    if not config.report.manager:
        return rest
    shown = replace(credentials, ca=Path(config.report.ca)) if config.report.ca else credentials
    return ControllerClient(config.report.manager, shown)


class NoVMs:
    """What a cache does of what an agent does with VMs."""

    async def catch_up(self) -> None:
        pass

    def on_event(self, event: ControllerEvent) -> None:
        pass

    def take(self, renewal: dict[str, Any]) -> None:
        pass


async def _serve_cache(
    config: AgentConfig, rest: ControllerClient, transfer: Transfer, content: ContentService
) -> None:
    ready = asyncio.Event()
    rejections = Rejections(config.server, transfer.rejected, rest, time.time())

    def back() -> None:
        rejections.again()
        content.reports.again()

    def orders(event: ControllerEvent) -> None:
        if event.type in IMAGE_ORDERS:  # A cache takes no VM in, and has none.
            content.on_event(event)

    following = asyncio.create_task(follow(rest, NoVMs(), NoVMs(), ready, back, orders))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, following.cancel)
    telling = [asyncio.create_task(work) for work in (_tell_ready(ready), rejections.run(), content.run())]
    log.info("agent.up", server=config.server, listens=transfer.address, cache=True)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            async with systemd.ready(f"cache {config.server}, of {config.controller}"):
                await following
        log.info("agent.stopping")
    finally:
        for task in telling:
            task.cancel()
        await content.close()
        await transfer.close()
        await rest.close()


def _content(
    config: AgentConfig, folder: Path, rest: ControllerClient, transfer: Transfer, credentials: Credentials
) -> ContentService:
    """Raises HostError."""
    try:
        place = Path(config.content.folder) if config.content.folder else folder / "content"
        store = Store(place, config.content.quota_mib << 20, evicts=config.content.cache)
    except StoreError as error:
        raise HostError(f"the images cannot be kept: {error}") from error
    content = ContentService(
        config.server,
        store,
        rest,
        transfer.open_anywhere,
        lambda: transfer.address,
        credentials.ca,
        cache=config.content.cache,
        domains={domain.id: Path(domain.ca) for domain in config.domain if domain.images},
        doors=lambda: {one.id: transfer.domains[one.id].address for one in config.domain if one.images},
    )
    transfer.visitors = content
    return content


def sizes(dispatcher: Dispatcher) -> list[VMSize]:
    """What the hypervisor gives to each VM that runs here, and that we have made."""
    return [VMSize(spec.id, spec.memory_mib) for spec in _running(dispatcher, by_us=True)]


def sizes_of_others(dispatcher: Dispatcher) -> list[VMSize]:
    """The memory of those that somebody else has made, as far as their hypervisor says it; nobody asks for
    us that they should go elsewhere."""
    specs = _running(dispatcher, by_us=False)
    return [VMSize(spec.id, spec.memory_mib, 0) for spec in specs if spec.memory_mib]


def _running(dispatcher: Dispatcher, *, by_us: bool) -> list[VMSpec]:
    """One that others have made, and we have taken in from another server, has a kernel in its words, too."""
    made = [(vm, vm.machine.spec) for vm in dispatcher.vms.values() if vm.runs and vm.machine is not None]
    ours = ((not vm.record.reported and spec.kernel != Path(), spec) for vm, spec in made)
    return [spec for is_ours, spec in ours if is_ours is by_us]


class ManagedTaps:
    """The taps of this server's VMs, as far as the agent made them (libvirt names its own)."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    @property
    def changes(self) -> int:
        return self._dispatcher.changes

    def watched(self) -> Mapping[str, WatchedTap]:
        vms = self._dispatcher.vms.values()
        return {tap_name(nic.id): WatchedTap(vm.id, nic.mac) for vm in vms for nic in vm.record.all_nics}


class Acts(Protocol):
    """See Dispatcher."""

    async def catch_up(self) -> None: ...

    def on_event(self, event: ControllerEvent) -> None: ...


class Renews(Protocol):
    """See RenewalService."""

    def take(self, renewal: dict[str, Any]) -> None: ...


async def follow(
    rest: Rest,
    dispatcher: Acts,
    renewals: Renews,
    ready: asyncio.Event,
    back: Callable[[], None] = lambda: None,
    others: Callable[[ControllerEvent], None] = lambda event: None,
) -> None:
    """Act on the controller's events for ever; after each (new) connection catch up first.

    `back` is called when the controller is there, or there again; `others` with each of IMAGE_ORDERS, with
    each match message, and with each VM's removal.
    """
    last: int | None = None
    while True:
        try:
            async with contextlib.aclosing(rest.events(last)) as events:
                async for happening in events:
                    if happening.type == HELLO:
                        back()
                        await dispatcher.catch_up()
                        ready.set()
                        # A controller that has started again numbers its events from the start.
                        last = happening.id if last is None else min(last, happening.id)
                    else:
                        last = happening.id
                        _act(happening, dispatcher, renewals, others)
            log.warning("events.ended")
        except ControllerError as error:
            log.warning("events.none", error=str(error))
        except Exception:  # Whatever came, the VMs of this server need an agent.
            log.exception("events.failed")
        await asyncio.sleep(AGAIN_SECONDS)


def _act(
    happening: ControllerEvent,
    dispatcher: Acts,
    renewals: Renews,
    others: Callable[[ControllerEvent], None],
) -> None:
    """An event that cannot be acted on is no reason to act on no other."""
    try:
        if happening.type in IMAGE_ORDERS or happening.type == EventType.MATCH:
            others(happening)
        elif happening.type == EventType.VM_RENEW:
            renewals.take(happening.renewal or {})
        else:
            dispatcher.on_event(happening)
            if happening.type == EventType.VM_REMOVED:
                others(happening)
    except Exception:
        log.exception("events.left_out", event_id=happening.id, type=happening.type)


async def _tell_ready(ready: asyncio.Event) -> None:
    """Tell who started us, if it wants to know, that we have caught up."""
    await ready.wait()
    log.info("agent.ready")
    if READY_FD in os.environ:
        fd = int(os.environ[READY_FD])
        os.write(fd, b"ready\n")
        os.close(fd)

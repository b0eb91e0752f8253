"""Reports what libvirt does here, so that the network follows a migration that anybody typed.

Each event of libvirt about a VM becomes one report, POST /v1/servers/SERVER/hypervisor-events (see
docs/libvirt.md). Reports about one VM arrive in order, and again while the controller is away; those about
others do not wait for them. What runs here is reported again from time to time, so that nothing stays
unknown, whoever was away. The tap of a VM gets a long queue, since packets wait there until an incoming VM
runs, and for as long as a guest has no processor.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence, Set
from typing import Any

import structlog

from retinue.agent.controller_link.made_here import PAUSE_SECONDS, MadeHere
from retinue.agent.controller_link.reports import Reports
from retinue.host.commands import run
from retinue.host.errors import HostError
from retinue.host.taps import QUEUE_FRAMES, Run
from retinue.hypervisor.libvirt.connection import LibvirtHost
from retinue.hypervisor.libvirt.domain_xml import taps
from retinue.protocol.errors import ControllerError
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent
from retinue.protocol.json_lines import RequestError
from retinue.protocol.routes import Route

ROUND_SECONDS = 10.0
"""Between two accounts of all that runs here."""
SOON_SECONDS = 1.0
"""Until the next account when a VM has started: the controller may hear of it before it sees its port."""
OLDEST = 600.0
"""Seconds after which a report nobody took is no news any more."""
_ENDED = (EventKind.DEPARTED, EventKind.STOPPED, EventKind.FAILED)

log = structlog.get_logger()


class LibvirtReporter:
    """Reports what libvirt does on one server.

    `listeners` are called first, with each event. `back` is called when a libvirtd that was away is there
    again.
    """

    def __init__(
        self,
        server: str,
        host: LibvirtHost,
        reports: Reports,
        listeners: Sequence[Callable[[HypervisorEvent], None]] = (),
        run: Run = run,
        back: Callable[[], None] = lambda: None,
        made: MadeHere | None = None,
        bridge: str = "",
        reported: Callable[[HypervisorEvent, asyncio.Task[dict[str, Any]]], None] = lambda *_: None,
    ) -> None:
        """`bridge`: the one in which its VMs are; "": what becomes of packets there is not looked at.
        `reported` is called with each event and the report of it, which is on its way."""
        self._path = Route.REPORT_HYPERVISOR_EVENT.path(server)
        self._host = host
        self._reports = reports
        self._listeners = listeners
        self._run = run
        self._back = back
        self._made = made
        self._told: dict[tuple[str, str], tuple[str, ...]] = {}
        """By VM and MAC of libvirt's that `made` keeps, the addresses that libvirt gave last; what others
        reported is not libvirt's to take back."""
        self._bridge = bridge
        self._reported = reported
        self._loses: bool | None = None
        """Packets without a checksum, at that bridge; None: nobody has told yet."""
        self._started = asyncio.Event()
        self._work: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Report for ever; a libvirtd that is away is waited for."""
        rounds = asyncio.create_task(self._rounds(), name="accounts of what libvirt runs")
        try:
            async with contextlib.aclosing(self._host.watch(self._back)) as events:
                async for event in events:
                    if event.kind is EventKind.STARTED and not await self._host.runs(event.vm):
                        continue  # It is only made, and waits paused.
                    log.info("libvirt.event", kind=str(event.kind), vm=event.vm, at=event.at)
                    for listener in self._listeners:
                        listener(event)
                    self._reported(event, self.report(event))
                    if event.kind in _ENDED:
                        self._not_here({key for key in self._told if key[0] == event.vm})
                    if event.kind is EventKind.STARTED:
                        self._started.set()
                    if event.kind in (EventKind.INCOMING, EventKind.STARTED):
                        task = asyncio.create_task(self._lengthen_queues(event.vm))
                        self._work.add(task)
                        task.add_done_callback(self._work.discard)
        finally:
            for task in (rounds, *self._work):
                task.cancel()
            await asyncio.gather(rounds, *self._work, return_exceptions=True)

    def report(self, event: HypervisorEvent) -> asyncio.Task[dict[str, Any]]:
        """Report in the background."""
        body: dict[str, Any] = {"vm": event.vm, "kind": str(event.kind), "at": event.at}
        if event.vlan_filters:
            body["vlan_filters"] = event.vlan_filters
        if event.without_checksums and self._loses:
            body["without_checksums"] = event.without_checksums
        return self._reports.tell(_subject(event), self._path, body, event.at + OLDEST)

    async def _rounds(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_SECONDS):
                    await self._started.wait()
                    await asyncio.sleep(SOON_SECONDS)
            self._started.clear()
            with contextlib.suppress(HostError):  # LibvirtHost.watch says so
                found = await self._host.found()
                if self._loses is None and self._bridge and any(event.without_checksums for event in found):
                    await self._look_at_bridge()
                for event in found:
                    if not self._reports.busy(_subject(event)):
                        self.report(event)
            await self._tell_of_interfaces()

    async def _look_at_bridge(self) -> None:
        """In user space nobody fills a checksum in, but for an Open vSwitch that is told to (TSO)."""
        asked = ["ovs-vsctl", "get", "bridge", self._bridge, "datapath_type", "--", "--if-exists", "get"]
        asked += ["open_vswitch", ".", "other_config:userspace-tso-enable"]
        try:
            kind, *more = (await self._run(asked)).replace('"', "").split("\n")
        except HostError as error:
            log.warning("libvirt.bridge_unknown", bridge=self._bridge, error=str(error))
        else:
            self._loses = kind == "netdev" and "true" not in more

    async def _tell_of_interfaces(self) -> None:
        """What runs here, with the MACs and static addresses of its XML, where that is news: addresses that
        somebody else reported meanwhile stay. What does not run here any more is not said again, whoever
        missed its end."""
        if self._made is None:
            return
        with contextlib.suppress(HostError):  # As above; or a domain has ended meanwhile.
            found = {(one.id, one.mac): one.addresses for one in await self._host.interfaces()}
            self._not_here(self._told.keys() - found.keys())
            for (vm, mac), addresses in found.items():
                before = self._told.get((vm, mac), ())
                self._told[vm, mac] = addresses
                if addresses == before and self._made.has(vm, mac):
                    continue
                try:
                    await self._made.tell(vm, mac, addresses)
                except (ControllerError, RequestError) as error:
                    log.warning("made_here.not_reported", vm=vm, reason=str(error))
                await asyncio.sleep(PAUSE_SECONDS)

    def _not_here(self, gone: Set[tuple[str, str]]) -> None:
        self._told = {key: addresses for key, addresses in self._told.items() if key not in gone}
        if self._made is not None:
            for vm, mac in gone:
                self._made.forget(vm, mac)

    async def _lengthen_queues(self, vm: str) -> None:
        """Let a VM's tap hold what arrives while the VM does not read; libvirt leaves it at the system's
        1000."""
        try:
            domain = await self._host.domain(vm)
            names = () if domain is None else taps(await self._host.call(domain.XMLDesc, 0))
            for name in names:
                await self._run(["ip", "link", "set", "dev", name, "txqueuelen", str(QUEUE_FRAMES)])
        except HostError as error:
            log.warning("tap.queue_not_lengthened", vm=vm, reason=str(error))


def _subject(event: HypervisorEvent) -> str:
    """Another subject than the agent's own reports of the VM have: neither waits for the other."""
    return f"libvirt's {event.vm}"

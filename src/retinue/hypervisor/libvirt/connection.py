"""One libvirtd, spoken to from asyncio.

libvirt's calls block, a migration for as long as it takes, so each is made in a thread of its own. Its events
come through libvirt's own event loop, in one thread of this process: the loop it has for asyncio is not made
for calls from other threads. A connection that broke is made again, by whoever needs it.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import structlog
from msgspec.structs import replace

from retinue.host.errors import HostError
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.libvirt.domain_xml import (
    Interface,
    interfaces,
    vlan_filters,
    vm_ids,
    without_checksums,
)
from retinue.hypervisor.libvirt.events import Lifecycle, kind_of
from retinue.hypervisor.throttle import Throttle
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent

THREADS = 64
"""Calls at a time to one libvirtd: two for each migration under way, and some to spare."""
AGAIN_SECONDS = 0.5
"""Between two attempts to reach a libvirtd that is away."""
KEEPALIVE = (5, 3)
"""Seconds between questions whether libvirtd is still there, and how many may stay without an answer."""
STATE_RUNNING, STATE_PAUSED = 1, 3
"""virDomainState."""
STOPPED_FOR_POSTCOPY = frozenset({(STATE_PAUSED, 12), (STATE_PAUSED, 13)})
LACKS_MEMORY = STOPPED_FOR_POSTCOPY | {(STATE_RUNNING, 10), (STATE_RUNNING, 11)}
"""States with their reasons (virDomainRunningReason, virDomainPausedReason): in post-copy, or that failed."""
LIFECYCLE, REBOOT, DEVICE_REMOVED, DEVICE_ADDED = 0, 1, 15, 19
"""virDomainEventID."""
BEGINS = (Lifecycle.DEFINED, Lifecycle.STARTED)
ENDS = (Lifecycle.STOPPED, Lifecycle.UNDEFINED)
"""Events with which what is known of a domain begins, and ends."""
RUNS = (EventKind.STARTED, EventKind.RESUMED)
ACTIVE = 1
"""VIR_CONNECT_LIST_DOMAINS_ACTIVE."""

log = structlog.get_logger()
T = TypeVar("T")


class LibvirtMissingError(HypervisorError):
    """Python's libvirt is not installed."""


def bindings() -> Any:
    """The module `libvirt`, its event loop running. Raises LibvirtMissingError."""
    try:
        import libvirt
    except ImportError as error:
        raise LibvirtMissingError(
            "Python's libvirt is missing: run `make install-libvirt`, or install retinue[libvirt]"
        ) from error
    _run_events(libvirt)
    return libvirt


def monitor_command() -> Any:
    """The function of the module `libvirt_qemu`, which comes with `libvirt`."""
    from libvirt_qemu import qemuMonitorCommand

    return qemuMonitorCommand


class Known(NamedTuple):
    """What a domain's XML says."""

    ids: tuple[str, ...]
    cards: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """What is said of them in an event: `vlan_filters`, and `without_checksums`."""


UNKNOWN = Known(())

_running = threading.Lock()
_events: threading.Thread | None = None


def _run_events(libvirt: Any) -> None:
    """Start libvirt's event loop, once in a process; it must run before a connection is made."""
    global _events
    with _running:
        if _events is not None:
            return
        libvirt.virEventRegisterDefaultImpl()
        # By default the bindings print every error; each is raised, too.
        libvirt.registerErrorHandler(lambda *_: None, None)

        def run() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        _events = threading.Thread(target=run, name="libvirt events", daemon=True)
        _events.start()


def in_use() -> bool:
    """libvirt's event loop runs in this process, and will until it ends."""
    return _events is not None


class LibvirtHost:
    """A server's libvirtd. `name` is the server's, for messages; `library` is for tests. `ids_of` reads from
    a domain's XML by which ids it is known."""

    def __init__(
        self,
        name: str,
        uri: str,
        library: Any = None,
        ids_of: Callable[[str], tuple[str, ...]] = vm_ids,
    ) -> None:
        self.name = name
        self.uri = uri
        self._given = library
        self._ids_of = ids_of
        self._connection: Any = None
        self._making = asyncio.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"libvirt {name}")
        self._standing: set[str] = set()
        """VMs that were stopped here for their migration, which has come to no end yet."""
        self.lost: set[str] = set()
        """VMs that we end because their memory does not come: they have crashed, were not switched off."""
        self.kept: dict[str, Throttle] = {}
        """By VM, the stream of one that was stopped here for post-copy, and may yet be given back
        (`undoing`)."""
        self._known: dict[str, Known] = {}
        """What is read of domains, by the domain's UUID, from its start to its end: one that has gone tells
        nothing any more, and one that is started again, or gets other devices, may have others."""

    @property
    def library(self) -> Any:
        if self._given is None:
            self._given = bindings()
        return self._given

    async def connection(self) -> Any:
        """The connection, made now if there is none. Raises HypervisorError."""
        async with self._making:
            if self._connection is None or not await self._in_thread(self._connection.isAlive):
                self._connection = await self._in_thread(self._open)
            return self._connection

    def _open(self) -> Any:
        connection = self.library.open(self.uri)
        connection.setKeepAlive(*KEEPALIVE)
        return connection

    async def call(self, what: Callable[..., T], *arguments: Any) -> T:
        """Make a blocking call of libvirt's. Raises HypervisorError with libvirt's message."""
        return await self._in_thread(what, *arguments)

    async def _in_thread(self, what: Callable[..., T], *arguments: Any) -> T:
        library = self.library
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, what, *arguments)
        except library.libvirtError as error:
            raise HypervisorError(f"server {self.name}, libvirt: {error}") from error

    async def monitor(self, domain: Any, command: str) -> Any:
        """What the domain's QEMU answers to a command without arguments. Raises HypervisorError."""
        ask = getattr(self.library, "qemuMonitorCommand", None) or monitor_command()
        answer = json.loads(await self._in_thread(ask, domain, json.dumps({"execute": command}), 0))
        if "return" not in answer:
            raise HypervisorError(f"server {self.name}, QEMU: {command}: {answer.get('error')}")
        return answer["return"]

    @contextlib.asynccontextmanager
    async def apart(self, domain: Any) -> AsyncIterator[Any]:
        """The domain, on a connection of its own, for a call that takes long.

        libvirt (9.0) may let other calls on the same connection wait for the end of such a one, or until the
        next keepalive.
        """
        connection = await self._in_thread(self._open)
        try:
            yield await self._in_thread(connection.lookupByUUIDString, domain.UUIDString())
        finally:
            with contextlib.suppress(HostError):
                await self._in_thread(connection.close)

    def let_go(self, vm: str) -> None:
        """Nothing gives the VM back any more."""
        if (stream := self.kept.pop(vm, None)) is not None:
            stream.close()

    async def domain(self, vm: str) -> Any | None:
        """The domain with an interface of that id, running or not yet; None when there is none here."""
        for domain, ids in await self.domains():
            if vm in ids:
                return domain
        return None

    async def runs(self, vm: str) -> bool:
        """Whether libvirt runs the VM here; False where libvirt cannot be asked."""
        try:
            domain = await self.domain(vm)
            return domain is not None and (await self.call(domain.state))[0] == STATE_RUNNING
        except HostError:
            return False

    async def domains(self) -> list[tuple[Any, tuple[str, ...]]]:
        """All that are active, each with the ids of its interfaces."""
        connection = await self.connection()
        found: list[tuple[Any, tuple[str, ...]]] = []
        for domain in await self.call(connection.listAllDomains, ACTIVE):
            with contextlib.suppress(HostError):  # it ended meanwhile
                found.append((domain, await self.call(self.ids, domain)))
        return found

    def ids(self, domain: Any, *, anew: bool = False) -> tuple[str, ...]:
        """The ids of a domain's interfaces; blocks until it has any.

        They are kept until the domain ends, or until they are read `anew`: what cannot be read any more is as
        it was.
        """
        return self._read(domain, anew=anew).ids

    def _read(self, domain: Any, *, anew: bool = False) -> "Known":
        key = domain.UUIDString()
        known = self._known.get(key, UNKNOWN)
        if anew or not known.ids:
            with contextlib.suppress(self.library.libvirtError):
                xml = domain.XMLDesc(0)
                cards = (vlan_filters(xml), without_checksums(xml))
                known = self._known[key] = Known(self._ids_of(xml), cards)
        return known

    def forget(self, domain: Any) -> None:
        """The domain has ended."""
        self._known.pop(domain.UUIDString(), None)

    # ---- events ----

    async def watch(self, back: Callable[[], None] = lambda: None) -> AsyncGenerator[HypervisorEvent, None]:
        """What happens to VMs on this server, for ever; after each (new) connection first what is there.

        That libvirtd is away is logged once, and it is waited for; `back` is called when it is there again.
        """
        reported = False

        def connected() -> None:
            nonlocal reported
            if reported:
                reported = False
                back()

        while True:
            try:
                async with contextlib.aclosing(self._watch_once(connected)) as events:
                    async for happened in events:
                        yield happened
                reason = "the connection has ended"
            except LibvirtMissingError:
                raise
            except HostError as error:
                reason = str(error)
            if not reported:
                log.warning("libvirt.disconnected", server=self.name, reason=reason)
                reported = True
            await asyncio.sleep(AGAIN_SECONDS)

    async def _watch_once(self, connected: Callable[[], None]) -> AsyncGenerator[HypervisorEvent, None]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[HypervisorEvent | None] = asyncio.Queue()

        def put(happened: HypervisorEvent | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(queue.put_nowait, happened)

        def hear(_: Any, domain: Any, event: int, detail: int, __: Any) -> None:
            at = time.time()
            if event in BEGINS:
                ids = self.ids(domain, anew=True)
                if event == Lifecycle.STARTED:  # Its end, before, nobody may have told.
                    self.lost.difference_update(ids)
                    self._standing.difference_update(ids)
            if (kind := kind_of(event, detail)) is not None:
                tell(domain, kind, at)
            if event in ENDS:
                self.forget(domain)

        def tell(domain: Any, kind: EventKind, at: float) -> None:
            known = self._read(domain)
            cards = known.cards if kind in RUNS else UNKNOWN.cards
            for vm in known.ids:
                meant = kind
                if kind is EventKind.SUSPENDED:
                    self._standing.add(vm)
                elif vm in self._standing:
                    self._standing.discard(vm)
                    if kind is EventKind.STARTED:
                        meant = EventKind.RESUMED  # By a person, say: it was stopped to leave, and has not.
                lost = kind is EventKind.STOPPED and vm in self.lost
                if lost:
                    self.lost.discard(vm)  # The next end of that VM is one like any other.
                put(HypervisorEvent(vm, EventKind.FAILED if lost else meant, at, *cards))

        def rebooted(_: Any, domain: Any, __: Any) -> None:
            tell(domain, EventKind.REBOOTED, time.time())

        def other_devices(_: Any, domain: Any, __: str, ___: Any) -> None:
            self.ids(domain, anew=True)

        connection = await self.connection()
        await self.call(connection.registerCloseCallback, lambda *_: put(None), None)
        self._known.clear()  # What happened meanwhile nobody has told.
        wanted = {
            LIFECYCLE: hear, REBOOT: rebooted, DEVICE_REMOVED: other_devices, DEVICE_ADDED: other_devices
        }  # fmt: skip
        handles = [
            await self.call(connection.domainEventRegisterAny, None, event, listener, None)
            for event, listener in wanted.items()
        ]
        connected()
        try:
            for happened in await self.found():
                if happened.vm in self._standing:  # That it was resumed nobody has told.
                    self._standing.discard(happened.vm)
                    happened = replace(happened, kind=EventKind.RESUMED)
                yield happened
            while (next_ := await queue.get()) is not None:
                yield next_
        finally:
            with contextlib.suppress(HostError):
                for handle in handles:
                    await self.call(connection.domainEventDeregisterAny, handle)
                await self.call(connection.unregisterCloseCallback)

    def is_ours_to_resume(self, vm: str) -> None:
        """We are about to do so, and tell what has come of its migration: its event is no sign of that."""
        self._standing.discard(vm)

    async def found(self) -> list[HypervisorEvent]:
        """What runs here now, as if each had just been started. Raises HypervisorError."""
        found = []
        for domain, ids in await self.domains():
            with contextlib.suppress(HostError):  # It has ended meanwhile.
                state, _ = await self.call(domain.state)
                if state == STATE_RUNNING:
                    cards = self._known.get(domain.UUIDString(), UNKNOWN).cards
                    found += [HypervisorEvent(vm, EventKind.STARTED, time.time(), *cards) for vm in ids]
        return found

    async def interfaces(self) -> list[Interface]:
        """The interfaces of what runs here now, as its XML has them. Raises HypervisorError."""
        found: list[Interface] = []
        for domain, _ in await self.domains():
            with contextlib.suppress(HostError):  # It has ended meanwhile.
                state, _ = await self.call(domain.state)
                if state == STATE_RUNNING:
                    found += interfaces(await self.call(domain.XMLDesc, 0))
        return found

    async def close(self) -> None:
        for vm in list(self.kept):
            self.let_go(vm)
        if self._connection is not None:
            with contextlib.suppress(HostError):
                await self.call(self._connection.close)
        self._threads.shutdown(wait=False)

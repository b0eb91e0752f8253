"""What the controller's parts share: the network, the way to its switches, the event stream, the store."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Protocol

import structlog

from retinue.bindings import ForgeryBook
from retinue.controller.events import EventBus
from retinue.controller.installer import Installer, Report
from retinue.flows.compiler import Compiler, contribution
from retinue.flows.plan import Near
from retinue.model import Network
from retinue.model.network import Owner
from retinue.openflow.session import Session

log = structlog.get_logger()


LARGE = 500
"""Owners; a change that touches more is computed in batches."""
BATCH = 100


class Store(Protocol):
    """Where the controller keeps what must outlive it; writes are queued, never awaited here."""

    def put(self, value: Any) -> None: ...
    def remove(self, value: Any) -> None: ...


class NoStore:
    """Keeps nothing: for tests, and for a controller that may forget."""

    def put(self, value: Any) -> None:
        pass

    def remove(self, value: Any) -> None:
        pass


class Context:
    def __init__(self, net: Network, clock: Callable[[], float], store: Store) -> None:
        self.net = net
        self.clock = clock
        self.store = store
        self.compiler = Compiler(net)
        self.installer = Installer(self.compiler, clock)
        self.events = EventBus(clock)
        self.forgeries = ForgeryBook()
        self.sessions: dict[str, Session] = {}
        """Connected switches by id."""
        self.counters: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._after_install: list[Callable[[Collection[Owner]], None]] = []

    # ---- changes of the network, onto the switches ----

    async def install(self, touched: Iterable[Owner], near: Near = ()) -> Report:
        """Bring a change onto the switches; who listens (see `after_install`) is told when it is done.

        A large one is computed in batches, between which others have their turn; all of it has been sent when
        this returns. Listeners are told of each batch.
        """
        owners = sorted(set(touched))
        if len(owners) <= LARGE:
            return await self._install(owners, near)
        work: list[asyncio.Task[Report]] = []
        for batch in batched(owners, BATCH):
            task = asyncio.get_running_loop().create_task(self._install(batch, near))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            work.append(task)
            await asyncio.sleep(0)
        return together(await asyncio.gather(*work))

    async def _install(self, owners: Collection[Owner], near: Near) -> Report:
        report = await self.installer.install(owners, near)
        self._installed(owners)
        return report

    def after_install(self, callback: Callable[[Collection[Owner]], None]) -> None:
        self._after_install.append(callback)

    def _installed(self, owners: Collection[Owner]) -> None:
        for callback in self._after_install:
            callback(owners)

    def stands(self, owner: Owner) -> bool:
        """True when every entry of this owner, as the network now is, is confirmed by its switch."""
        return all(
            self.compiler.program(switch).get(key) == entry and self.installer.confirmed(switch, key)
            for switch, entries in contribution(self.net, owner).items()
            for key, entry in entries.items()
        )

    # ---- frames and tasks ----

    def send_frame(self, switch: str, port: int, frame: bytes) -> bool:
        """Send a frame out of a switch's port; False (and counted) when the switch is away."""
        session = self.sessions.get(switch)
        if session is None:
            self.counters["frames not sent: switch away"] += 1
            return False
        session.packet_out(frame, port)
        return True

    def refuse_frame(self, kind: str, where: str, why: Exception) -> None:
        """Count, log and tell a frame that is not what it should be; it goes no further."""
        self.counters[f"bad {kind} frames"] += 1
        log.warning("frame refused", kind=kind, where=where, why=str(why))
        self.events.publish("frame.refused", where=where, reason=str(why))

    def spawn(self, work: Coroutine[Any, Any, Any], what: str) -> asyncio.Task[Any]:
        """Run in the background; a failure is logged and counted, and stops nothing else."""
        task = asyncio.get_running_loop().create_task(work, name=what)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def failed(self, what: str, error: BaseException) -> None:
        """Count, log and tell an error that is no one's but ours; what runs goes on."""
        self.counters["internal errors"] += 1
        log.error("background work failed", what=what, exc_info=error)
        self.events.publish("controller.error", what=what, error=repr(error))

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(task.get_name(), error)

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.installer.close()
        self.events.close()


def batched(owners: Sequence[Owner], size: int) -> Iterator[Sequence[Owner]]:
    return (owners[start : start + size] for start in range(0, len(owners), size))


def together(reports: Iterable[Report]) -> Report:
    """One report of several."""
    total = Report()
    for report in reports:
        total.flow_mods += report.flow_mods
        total.missing |= report.missing
        for switch, keys in report.changed.items():
            total.changed[switch] = total.changed.get(switch, frozenset()) | keys
    return total

"""What the controller's parts share: the network, the way to its switches, the event stream, the store."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Protocol

import structlog

from retinue.controller.certificate_ends import CertificateEnds
from retinue.controller.changes import Change, Undo
from retinue.controller.counters import Count, bad_frames
from retinue.controller.durations import Durations
from retinue.controller.events import Agents, EventBus
from retinue.controller.marks import AgentHeard
from retinue.controller.recipients import recipients
from retinue.controller.room import Room, Turns
from retinue.controller.state import State, Storable
from retinue.controller.switches.installer import Installer, InstallReport
from retinue.controller.switches.readback import SwitchSession
from retinue.core.model import NIC, Network
from retinue.core.model.fabric_checks import is_unused
from retinue.core.model.network import Owner, Touched
from retinue.core.model.uplinks import unreached_by
from retinue.core.packets import tagged
from retinue.core.pipeline.building import Step, step_of
from retinue.core.pipeline.compiler import Compiler, ConflictError
from retinue.core.pipeline.knowledge import Knowledge
from retinue.core.pipeline.underlay import Near, underlay_of
from retinue.core.snooping import SpoofingLog
from retinue.protocol.events import EventType

log = structlog.get_logger()


BACK_WITHIN = 15.0
"""Seconds after a start by which switches and agents that can be reached have come back; Open vSwitch waits
up to 8."""
LARGE = 500
"""Owners; a change that touches more is computed in batches."""
BATCH = 100
MOST_UNDER_WAY = 400
"""Owners of large changes, and of what nobody waits for, that are on their way to the switches; others wait,
not computed: what is under way takes memory, and where switches have much to answer, that is read first. It
is less than what is kept as it was computed (core.pipeline.contributions)."""
REJECTED_SECONDS = 10.0
"""In which frames that cannot be read, of one kind and from one place, are logged once."""
PLACES_REMEMBERED = 1000


class Store(Protocol):
    """Where the controller keeps what must outlive it; writes are queued, never awaited here."""

    @property
    def trouble(self) -> str:
        """Why nothing is kept at the moment; "" while it is."""

    def put(self, value: Storable) -> None: ...
    def remove(self, value: Storable) -> None: ...


class NoStore:
    """Stores nothing: for tests, and for a controller that may lose its state."""

    trouble = ""

    def put(self, value: Storable) -> None:
        pass

    def remove(self, value: Storable) -> None:
        pass


class Context:
    """The way from a part of the controller to everything around it: one for the whole controller."""

    def __init__(self, net: Network, clock: Callable[[], float], store: Store) -> None:
        self.net = net
        self.state = State(net)
        self.clock = clock
        self.began: float | None = None
        """When the controller started to listen to switches."""
        self._store = store
        self.not_installed: set[Owner] = set()
        """Touched by a change, and their flows not computed since: empty whenever nothing is going on. Of two
        that are to compute an owner, the first does it for both."""
        self.compiler = Compiler(net)
        self.knowledge = Knowledge(net, self.compiler, self.not_installed)
        self.installer = Installer(self.compiler, self.knowledge, clock)
        self.events = EventBus(clock, partial(recipients, net))
        self.agents = Agents(
            lambda server: server in self.state.with_agent,
            lambda server: self.apply(AgentHeard(server)),
            self.may_all_be_back,
        )
        self.certificates = CertificateEnds(net)
        self.spoof_attempts = SpoofingLog()
        self.counters: Counter[str] = Counter()
        self.durations = Durations()
        self._frames_rejected: dict[tuple[str, str], float] = {}
        """By kind and place: when a frame that could not be read was logged last."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._room = Room(MOST_UNDER_WAY)
        self._turns = Turns(self._room, BATCH, self._install, self.spawn)
        self._after_install: list[Callable[[Collection[Owner]], None]] = []

    # ---- changes ----

    @property
    def store_trouble(self) -> str:
        """Why what is changed now would not outlive the controller; "" while it would."""
        return self._store.trouble

    def apply(self, *changes: Change, first: Callable[[], None] | None = None) -> Touched:
        """Make these changes, all of them or (ModelError) none: in the state, in the database, in the events.

        What they touched must then be brought onto the switches (`install`; `commit` does both). `first` is
        called when the state has changed and before it is stored and published: for work that every packet
        waits for.
        """
        made: list[Change] = []
        touched: set[Owner] = set()
        undo: list[Undo] = []
        try:
            for change in changes:
                step_back = change.undo(self.state) if len(changes) > 1 else None
                owners = change.apply(self.state)
                if step_back is not None:
                    undo.append(step_back)
                if owners is not None:
                    made.append(change)
                    touched |= owners
        except Exception:
            # The last first, so that each finds the state it left; the one that failed has changed nothing.
            for step_back in reversed(undo):
                step_back()
            raise
        self.not_installed |= touched
        if first is not None:
            first()
        # Stored before it is published: what a listener has read survives a restart. The store's writes
        # are queued in this order; a crash may lose the last of them, never one before another.
        for change in made:
            for value in change.kept():
                self._store.put(value)
            for value in change.dropped():
                self._store.remove(value)
        for change in made:
            for type, data in change.events(self.state):
                self.events.publish(type, **data)
        return frozenset(touched)

    def commit(self, *changes: Change, near: Near = ()) -> Coroutine[Any, Any, InstallReport]:
        """Make these changes at once (see `apply`); awaited, the result brings them onto the switches."""
        return self.install(self.apply(*changes), near)

    async def install(
        self, touched: Iterable[Owner], near: Near = (), patient: Callable[[str], bool] = lambda switch: False
    ) -> InstallReport:
        """Bring a change onto the switches; the callbacks of `after_install` are called when it is done.

        A large one is computed in batches, between which others have their turn, those first whose groups and
        meters others use; all of it has been sent when this returns. The callbacks are called for each batch.
        """
        owners = sorted(set(touched))
        self.not_installed.update(owners)
        if len(owners) <= LARGE:
            return await self._install(owners, near, patient)
        found: list[InstallReport | BaseException] = []
        for step in await self._in_steps(owners):
            found += await self._in_batches(step, near, patient)
        for one in found:
            if isinstance(one, BaseException):
                raise one  # Two clash: after all the others have been sent.
        return together(one for one in found if isinstance(one, InstallReport))

    async def _in_steps(self, owners: Sequence[Owner]) -> list[list[Owner]]:
        by_step: dict[Step, list[Owner]] = {step: [] for step in Step}
        for batch in batched(owners, BATCH):
            for owner in batch:
                by_step[step_of(self.compiler, owner)].append(owner)
            await asyncio.sleep(0)
        return list(by_step.values())

    async def _in_batches(
        self, owners: Sequence[Owner], near: Near, patient: Callable[[str], bool]
    ) -> list[InstallReport | BaseException]:
        work: list[asyncio.Task[InstallReport]] = []
        for batch in batched(owners, BATCH):
            await self._room.enter(len(batch))
            task = asyncio.get_running_loop().create_task(self._install_one(batch, near, patient))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            work.append(task)
            await asyncio.sleep(0)
        return await asyncio.gather(*work, return_exceptions=True)

    def install_in_turn(self, touched: Iterable[Owner], what: str) -> None:
        """As `install`, in the background, of what nobody waits for: while much is under way it waits, and
        goes together with what else has come by then; who has been computed by then is not again."""
        touched = frozenset(touched)
        self.not_installed |= touched
        self._turns.add(touched, what)

    async def install_when_there_is_room(self, touched: Collection[Owner], what: str) -> None:
        """As `install`; of a large change each owner goes together with what else has come of it meanwhile:
        when all switches come back, and say where their ports are, nobody is computed for each of them. They
        queue in the order of a large change."""
        if len(touched) <= LARGE:
            await self.install(touched)
        else:
            self.not_installed.update(touched)
            await self._turns.passed(chain(*await self._in_steps(sorted(touched))), what)

    async def _install_one(
        self, batch: Collection[Owner], near: Near, patient: Callable[[str], bool]
    ) -> InstallReport:
        with self._room.held(len(batch)):
            return await self._install(batch, near, patient)

    async def _install(
        self,
        owners: Collection[Owner],
        near: Near = (),
        patient: Callable[[str], bool] = lambda switch: False,
    ) -> InstallReport:
        due = [owner for owner in owners if owner in self.not_installed]
        self.not_installed.difference_update(due)  # They are computed before anything is awaited.
        began = self.clock()
        try:
            report = await self.installer.install(due, near, patient)
        except ConflictError:
            self._installed(owners)  # All but those that clash.
            raise
        if report.flow_mods and not report.missing:
            self.durations.confirmation.observe(self.clock() - began)
        self._installed(owners)
        return report

    def after_install(self, callback: Callable[[Collection[Owner]], None]) -> None:
        self._after_install.append(callback)

    def _installed(self, owners: Collection[Owner]) -> None:
        for callback in self._after_install:
            callback(owners)

    def is_programmed(self, owner: Owner) -> bool:
        """True when every entry of this owner, as the network now is, is confirmed by its switch."""
        concerned = self.compiler.switches_of(owner)
        if concerned is None or owner in self.not_installed:
            return False
        switches = self.installer.switches
        silent = {one for one in concerned if one in switches and not switches[one].has_confirmed_of(owner)}
        return not silent or silent <= self.spared(silent, self._servers_of(owner))

    def spared(self, switches: Collection[str], servers: Iterable[str]) -> set[str]:
        """Of these switches those, no edges, for which nobody waits of what goes to these servers: as dead as
        the servers that are fenced; leaves that are away, and by which these servers, which others reach, are
        not; those into which nothing comes. They are corrected when they are back, before they are used."""
        underlay = underlay_of(self.net)
        lost = (underlay.lost_with(server) for server in self.net.fenced)
        away = (leaf for leaf in unreached_by(self.net, servers) if not self.is_connected(leaf))
        dead = frozenset[str]().union(*lost, away)
        return {one for one in switches if one in dead or is_unused(self.net, one)}

    def _servers_of(self, owner: Owner) -> Collection[str]:
        vm = self.net.vms.get(owner.id) if owner.kind == "vm" else None
        return vm.locations if vm is not None else (owner.id,) if owner.kind == "server" else ()

    # ---- connected switches ----

    def is_connected(self, switch: str) -> bool:
        return switch in self.installer.switches and self.installer.switches[switch].is_connected

    def is_away(self, switch: str) -> bool:
        """True for a switch that is not connected, nor just on its way back after the controller's start."""
        known = self.installer.switches.get(switch)
        if known is None or known.is_connected:
            return known is None
        return known.was_connected or self.may_all_be_back()

    def may_all_be_back(self) -> bool:
        """True once whoever can be reached has had the time to come back since the controller's start."""
        return self.began is not None and self.clock() - self.began >= BACK_WITHIN

    def session(self, switch: str) -> SwitchSession | None:
        """The session of a connected switch; None for one that is away."""
        known = self.installer.switches.get(switch)
        return None if known is None else known.session

    def sessions(self) -> dict[str, SwitchSession]:
        """The sessions of all connected switches."""
        return {name: s.session for name, s in self.installer.switches.items() if s.session is not None}

    # ---- frames and tasks ----

    def send_frame(self, switch: str, port: int, frame: bytes) -> bool:
        """Send a frame out of a switch's port; False (and counted) when the switch is away."""
        session = self.session(switch)
        if session is None:
            self.counters[Count.FRAMES_NOT_SENT] += 1
            return False
        session.packet_out(frame, port)
        return True

    def send_to_nic(self, switch: str, port: int, nic: NIC, frame: bytes) -> bool:
        """Send a VM a frame at this port of an edge switch, with the tag that the NIC's frames have there."""
        return self.send_frame(switch, port, tagged(frame, self.net.vlan_in_trunk(nic)))

    def reject_frame(self, kind: str, where: str, why: Exception) -> None:
        """Count, log and publish a frame that is not what it should be; it goes no further.

        The log has the first from a place, then one in REJECTED_SECONDS: who sends such frames sends many.
        """
        self.counters[bad_frames(kind)] += 1
        now, last = self.clock(), self._frames_rejected.pop((kind, where), None)
        quiet = last is not None and 0 <= now - last < REJECTED_SECONDS
        self._frames_rejected[kind, where] = last if last is not None and quiet else now
        if len(self._frames_rejected) > PLACES_REMEMBERED:
            del self._frames_rejected[next(iter(self._frames_rejected))]
        if not quiet:
            log.warning("frame.rejected", kind=kind, where=where, why=str(why))
        self.events.tell((where,), EventType.FRAME_REJECTED, where=where, reason=str(why))

    def spawn(self, work: Coroutine[Any, Any, Any], what: str) -> asyncio.Task[Any]:
        """Run in the background; a failure is logged and counted, and stops nothing else."""
        task = asyncio.get_running_loop().create_task(work, name=what)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def failed(self, what: str, error: BaseException) -> None:
        """Count, log and publish a fault of the controller itself; what runs goes on."""
        self.counters[Count.INTERNAL_ERRORS] += 1
        log.error("controller.error", what=what, exc_info=error)
        self.events.publish(EventType.CONTROLLER_ERROR, what=what, error=repr(error))

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


def together(reports: Iterable[InstallReport]) -> InstallReport:
    """One report of several."""
    total = InstallReport()
    for report in reports:
        total.flow_mods += report.flow_mods
        total.missing |= report.missing
        for switch, keys in report.changed.items():
            total.changed[switch] = total.changed.get(switch, frozenset()) | keys
    return total

"""What the other domain is told of a migration: our controller stands in for the agent of its gateway here.

The orchestrator gives us the orders that agents get and the steps that it has made; what concerns the end
behind our gateway is said to that domain. Words of one migration are said in order, and again while nobody
answers, as long as the migration is under way: what matters is said anew when its state asks for it again.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

import structlog

from retinue.controller.changes import MigrationStepped
from retinue.controller.context import Context
from retinue.controller.domains.ends import End, end_of, told_of
from retinue.controller.domains.guests import described
from retinue.controller.domains.peer_client import PeerDoor
from retinue.controller.domains.refusals import why_undone
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.controller.migrations.reports import RETURNED_LIMIT, confirmed_within
from retinue.controller.migrations.requests import MigrationError
from retinue.core import migration as fsm
from retinue.core.migration import Migration, MigrationState, PlacementChange
from retinue.core.migration.record import Far
from retinue.core.model import VM, Assignment
from retinue.core.packets import Ethernet
from retinue.core.pipeline.gateway import MARK_TYPE
from retinue.core.text import cut
from retinue.patience import patience
from retinue.protocol.domains import LONGEST_REASON, Prepare, Prepared, Said, Word
from retinue.protocol.errors import ControllerAwayError, ControllerError, ErrorCode, RejectedError
from retinue.protocol.events import EventType
from retinue.protocol.migrations import Report

log = structlog.get_logger()

AGAIN_SECONDS, SELDOM_SECONDS = 0.3, 5.0
"""Until a word is said again to a domain that is away: at first, and at the most, doubled each time."""
CONVERGED_SECONDS = 1.0
"""Until it is said again that the VM is all but copied, while the other domain has not diverted."""
TURN_LIMIT = 15.0
"""Seconds for which a place is asked for where others are being looked for."""
DIVERTING_LIMIT = 7.0
"""Seconds that a VM which runs at its source waits for the other domain to divert. It is the source that
undoes a migration first: this ends before the other domain's own limit for what comes after."""
MARK_SECONDS = 0.02
"""Between two marks: a tunnel may lose one."""


class Saying:
    """Speaks to the peers. `doors`: by domain."""

    def __init__(
        self,
        context: Context,
        orchestrator: MigrationOrchestrator,
        memory_of: Callable[[str], Awaitable[int]],
    ) -> None:
        """`memory_of`: MiB that a VM runs with here; 0: nobody knows."""
        self._memory_of = memory_of
        self.doors: dict[str, PeerDoor] = {}
        self._context = context
        self._orchestrator = orchestrator
        self._migrations: Mapping[str, Migration] = orchestrator.migrations
        self._last: dict[str, asyncio.Task[None]] = {}
        """By migration: the last thing that is to be said of it."""
        self._diverting: dict[str, asyncio.Task[None]] = {}
        self.diverted: dict[str, asyncio.Event] = {}
        """By migration of which we are the source's domain: set when the target's has diverted."""
        self._told: dict[str, list[Assignment]] = {}
        """By migration: what its target's domain was told that the VM holds."""
        self._unmarked: dict[str, str] = {}
        """By migration: why what the other domain sent into the tunnel last has not come out of it here."""

    # ---- what the orchestrator tells ----

    def ordered(self, migration: Migration, effect: fsm.Effect) -> None:
        """An order that agents get; the one of our gateway is in another domain."""
        end = end_of(self._context.net, migration)
        match end, effect:
            case End.SOURCE, fsm.OpenTarget():
                self._in_turn(migration, self._prepare(migration.id))
            case End.SOURCE, fsm.RollBackAtHypervisor():
                self._in_turn(migration, self._roll_back(migration.id))
            case End.TARGET, fsm.StartCopy():
                opened = Word(Said.OPENED, memory_at=migration.memory_at, server=migration.target)
                self._in_turn(migration, self._opened(migration.id, opened))
            case End.SOURCE, fsm.StartCopy() if migration.stopped_at is not None:
                # Asked for again: a restart may have come before it was said, or heard.
                stopped = Word(Said.STOPPED, migration.stopped_at)
                self._in_turn(migration, self._stopped(migration.id, stopped))
            case End.TARGET, fsm.RollBackAtHypervisor() if migration.target_closed:
                self._in_turn(migration, self._say(migration.id, Word(Said.TARGET_CLOSED), ended=True))
            case End.TARGET, fsm.FreeSource() if migration.resumed_at is not None:
                self._in_turn(migration, self._resumed(migration.id, migration.resumed_at))
            case End.TARGET, fsm.RollBackAtHypervisor():
                failed = Word(Said.FAILED, reason=self._why(migration, migration.reason))
                self._in_turn(migration, self._say(migration.id, failed))

    def stepped(self, event: fsm.Event, after: Migration) -> None:
        """A step that has been made."""
        end = end_of(self._context.net, after)
        if end is None:
            return
        word = told_of(end, event)
        if word is not None:
            closed = word.said is Said.TARGET_CLOSED
            self._in_turn(after, self._say(after.id, word, ended=closed))
        if end is End.TARGET and isinstance(event, fsm.TargetClosed):
            # What becomes of the VM at its source is that domain's affair: here nothing is left to undo.
            self._context.spawn(self._restored(after.id), f"{after.id}: nothing of it is here")

    def ended(self, migration: Migration) -> None:
        self.diverted.pop(migration.id, None)
        self._unmarked.pop(migration.id, None)
        self._told.pop(migration.id, None)
        self._diverting.pop(migration.id, None)

    async def _restored(self, id: str) -> None:
        migration = self._migrations.get(id)
        if migration is not None and migration.state is MigrationState.ROLLING_BACK:
            self._orchestrator.step(id, fsm.RolledBack())

    # ---- reports that wait for the other domain ----

    async def before_report(self, id: str, report: Report, reason: str) -> Migration | None:
        """Before a report of our own agent counts; a migration: it is to count no further.

        `converged`: the other domain diverts first. `failed`, at the target: the source undoes it first, so
        that nothing is sent here any more when our traffic goes back; unless it has done so, or is away.
        Raises MigrationError.
        """
        migration = self._migrations.get(id)
        end = None if migration is None else end_of(self._context.net, migration)
        if migration is None or end is None or not migration.state.may_undo:
            return None
        if end is End.SOURCE and report is Report.CONVERGED:
            await self._until_diverted(migration)
        elif end is End.TARGET and report is Report.FAILED:
            try:
                heard = await self._once(migration, Word(Said.FAILED, reason=self._why(migration, reason)))
            except ControllerError:
                return None
            return None if heard.ended else self._migrations.get(id)
        return None

    async def _until_diverted(self, migration: Migration) -> None:
        diverted = self.diverted.setdefault(migration.id, asyncio.Event())
        if migration.state not in (MigrationState.PREPARED, MigrationState.COPYING):
            return
        assert migration.far is not None
        try:
            async with patience(DIVERTING_LIMIT):
                await self._say_until_diverted(migration, diverted)
        except (TimeoutError, ControllerError) as error:
            unmarked = self._unmarked.get(migration.id)
            why = str(error) or unmarked or f"it has not said so within {DIVERTING_LIMIT:g} s"
            raise MigrationError(
                f"domain {migration.far.domain} does not divert: {why}", ErrorCode.NOT_CONFIRMED
            ) from error

    async def _say_until_diverted(self, migration: Migration, diverted: asyncio.Event) -> None:
        """Again and again: its controller may be started anew meanwhile, and knows only what it has heard."""
        while not diverted.is_set():
            try:
                await self._tell_what_it_holds(migration)
                state = await self._once(migration, Word(Said.CONVERGED))
            except ControllerAwayError as error:
                log.warning("domain.away", migration=migration.id, said="converged", reason=str(error))
            else:
                if state.ended:
                    raise RejectedError(f"there it is {state}")
            await confirmed_within(diverted, CONVERGED_SECONDS)

    def heard_diverted(self, id: str, unmarked: str = "") -> None:
        """The target's domain has diverted. `unmarked`: why that is of no use, as its mark did not come.

        Whoever sent it may have died over it, and sends another when it is back: there is time for that."""
        if unmarked:
            self._unmarked[id] = unmarked
        else:
            self.diverted.setdefault(id, asyncio.Event()).set()

    def divert(self, id: str) -> None:
        """The source waits for us to divert: do so, and say it, with marks through the tunnel."""
        if id not in self._diverting or self._diverting[id].done():
            self._diverting[id] = self._context.spawn(self._divert(id), f"{id}: diverted")

    async def _divert(self, id: str) -> None:
        try:
            await self._orchestrator.reports.answer(id, Report.CONVERGED)
        except MigrationError as error:
            log.warning("domain.not_diverted", migration=id, reason=str(error))
            return
        migration = self._migrations.get(id)
        if migration is None or migration.state is not MigrationState.DIVERTED:
            return
        mark = secrets.token_hex(8)
        marking = self._context.spawn(self._send_marks(migration.source, mark), f"{id}: marks")
        try:
            await self._say(id, Word(Said.DIVERTED, mark=mark))
        finally:
            marking.cancel()

    async def _send_marks(self, gateway: str, mark: str) -> None:
        """Behind all that has been sent into the tunnel before."""
        net = self._context.net
        server = net.servers[gateway]
        while (tunnel := net.tunnel_at(server.edge)) is not None:
            frame = Ethernet(net.gateway_mac, server.mac, MARK_TYPE, mark.encode()).build()
            self._context.send_frame(server.edge, tunnel.number, frame)
            await asyncio.sleep(MARK_SECONDS)

    # ---- saying ----

    async def _prepare(self, id: str) -> None:
        migration, net = self._migrations.get(id), self._context.net
        vm = None if migration is None else net.vms.get(migration.vm)
        if migration is None or vm is None or migration.far is None or migration.state.ended:
            return
        far = migration.far
        try:
            prepared = await self._when_there_is_a_turn(migration, far, vm)
        except ControllerError as error:
            if (now := self._migrations.get(id)) is not None and now.state.may_undo:
                self._orchestrator.step(id, fsm.Failed(f"domain {far.domain}: {cut(str(error))}"))
            return
        now = self._migrations.get(id)
        if now is not None:
            known = replace(far, server=prepared.server, migration=prepared.migration)
            self._context.apply(MigrationStepped(replace(now, far=known)))

    async def _when_there_is_a_turn(self, migration: Migration, far: Far, vm: VM) -> Prepared:
        """The other domain looks for so many places at once, and a whole server may be on its way there.
        Raises ControllerError."""
        until, pause = self._context.clock() + TURN_LIMIT, AGAIN_SECONDS
        while True:
            try:
                return await self._ask_for_a_place(migration, far, vm)
            except RejectedError as error:
                now = self._migrations.get(migration.id)
                is_over = now is None or not now.state.may_undo or self._context.clock() >= until
                if error.code != ErrorCode.TOO_OFTEN or is_over:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, SELDOM_SECONDS)

    async def _ask_for_a_place(self, migration: Migration, far: Far, vm: VM) -> Prepared:
        """Raises ControllerError."""
        net = self._context.net
        memory = await self._memory_of(vm.id)
        door = self._door(far.domain)
        self._tell(migration, "prepare")
        held = list(net.held_by(vm.id))
        guest = described(net, vm, far.domain, memory, self._context.clock())
        downtime = round(migration.wanted_downtime * 1000)
        prepared = await door.prepare(Prepare(migration.id, guest, migration.source, far.server, downtime))
        if (now := self._migrations.get(migration.id)) is not None and not now.state.ended:
            self._told[migration.id] = held
        return prepared

    async def _tell_what_it_holds(self, migration: Migration) -> None:
        """If that is not what was told when the place was booked: a lease of its may have been renewed since,
        and is not to end there before the VM comes. Asked once more, a place is the same one."""
        vm = self._context.net.vms.get(migration.vm)
        if vm is None or migration.far is None:
            return
        if self._told.get(migration.id) == list(self._context.net.held_by(vm.id)):
            return
        prepared = await self._ask_for_a_place(migration, migration.far, vm)
        if migration.far.migration and prepared.migration != migration.far.migration:
            # It had ended there, and an older version books another place then, which nobody would free.
            other = replace(migration, far=replace(migration.far, migration=prepared.migration))
            await self._once(other, Word(Said.ROLL_BACK, reason="it was asked for once more"))
            raise RejectedError("there it has ended")

    async def _roll_back(self, id: str) -> None:
        """When our traffic goes to the source again: what the other domain gives back then finds the way."""
        migration = self._migrations.get(id)
        if migration is None or migration.far is None or not migration.far.migration:
            return
        if migration.was_diverted:
            progress = self._orchestrator.get(id)[0].progress
            await confirmed_within(progress.is_confirmed(PlacementChange.RETURNED), RETURNED_LIMIT)
        word = Word(Said.ROLL_BACK, reason=self._why(migration, migration.reason))
        self._closed_there(id, await self._say(id, word, ended=True))

    async def _stopped(self, id: str, word: Word) -> None:
        self._closed_there(id, await self._say(id, word))

    def _closed_there(self, id: str, heard: MigrationState | None) -> None:
        """Undone at the target: the VM never ran there, and never will. Its word may have been lost."""
        if heard is not MigrationState.UNDONE:
            return
        self._undone_there(id)
        now = self._migrations.get(id)
        if now is not None and now.state is MigrationState.ROLLING_BACK and not now.target_closed:
            self._orchestrator.step(id, fsm.TargetClosed())

    def _undone_there(self, id: str) -> None:
        now = self._migrations.get(id)
        if now is not None and now.far is not None and now.state.may_undo:
            self._orchestrator.step(id, fsm.Failed(f"domain {now.far.domain} has undone it"))

    async def _opened(self, id: str, word: Word) -> None:
        if await self._say(id, word) is MigrationState.UNDONE:
            self._undone_there(id)

    async def _resumed(self, id: str, at: float) -> None:
        """Said once more when our end is done, and the source is to be freed: it may have been lost."""
        heard = await self._say(id, Word(Said.RESUMED, at))
        now = self._migrations.get(id)
        if now is None or now.state is not MigrationState.CONFIRMED:
            return
        if heard in (MigrationState.FREED, MigrationState.DONE):
            self._orchestrator.step(id, fsm.SourceFreed())

    async def _say(self, id: str, word: Word, *, ended: bool = False) -> MigrationState | None:
        """Say it until it is answered, while the migration is under way (`ended`: once more after that)."""
        pause = AGAIN_SECONDS
        while (migration := self._migrations.get(id)) is not None and (ended or not migration.state.ended):
            try:
                return await self._once(migration, word)
            except ControllerAwayError as error:
                log.warning("domain.away", migration=id, said=str(word.said), reason=str(error))
                if migration.state.ended:
                    return None
                await asyncio.sleep(pause)
                pause = min(2 * pause, SELDOM_SECONDS)
            except RejectedError as error:
                log.warning("domain.rejects", migration=id, said=str(word.said), reason=str(error))
                return None
        return None

    def _why(self, migration: Migration, reason: str) -> str:
        return why_undone(self._context.state, migration, reason)[:LONGEST_REASON]

    async def _once(self, migration: Migration, word: Word) -> MigrationState:
        """Raises ControllerError."""
        assert migration.far is not None
        door = self._door(migration.far.domain)
        self._tell(migration, word.said)
        return (await door.say(migration.far.migration, word)).state

    def _door(self, domain: str) -> PeerDoor:
        if domain not in self.doors:
            raise RejectedError(f"domain {domain} is not configured here")
        return self.doors[domain]

    def _tell(self, migration: Migration, said: str) -> None:
        assert migration.far is not None
        self._context.events.publish(
            EventType.DOMAIN_SAID, domain=migration.far.domain, vm=migration.vm, migration_id=migration.id,
            said=str(said),
        )  # fmt: skip

    def _in_turn(self, migration: Migration, work: Coroutine[Any, Any, object]) -> None:
        before = self._last.get(migration.id)

        async def after() -> None:
            if before is not None and not before.done():
                await asyncio.wait({before})
            await work

        task = self._context.spawn(after(), f"{migration.id}: said to domain {migration.far}")
        self._last[migration.id] = task
        task.add_done_callback(lambda done: self._said(migration.id, done))
        task.add_done_callback(lambda _: work.close())  # Where it ended before it began.

    def _said(self, id: str, done: "asyncio.Task[None]") -> None:
        if self._last.get(id) is done:
            del self._last[id]

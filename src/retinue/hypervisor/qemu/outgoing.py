"""The source's half of a live migration: copy, hold back, divert, stop, hand over.

    1. QEMU sends the VM's memory through a throttle (`throttle`), in as many passes as are worth it
       (`passes`); we pass it on to the target.
    2. When little remains of the last pass we stop reading. The VM runs for as long as it takes to
    3. divert its traffic to the target, where it waits (`divert`), and drain what is on its way here.
    4. QEMU is read without limit, and stops the VM when nothing remains; what was written meanwhile goes
       over. (A newer QEMU has to be told to stop it.)
    5. When all of it is sent, and what the VM has sent is on its way, the target is told that the VM is its
       own. Until then the source may run it again, from then on never: so it cannot run twice, whoever fails.

Where pre-copy does not come to an end that is good enough, and post-copy is allowed, the VM is stopped and
handed over with what is left: 1 to 3 as above, then `postcopy`.

A VM's private disks are copied before 1, and are the same at both ends from then on (`mirrors`). They are
handed over when the VM has stopped; for post-copy that is before it begins.

Without `divert` QEMU goes through to the end by itself, as it would for any hypervisor manager.
"""

import asyncio
import time

import structlog

from retinue.core.migration.copying import (
    PLAIN,
    CopyOptions,
    Postcopy,
    limit_for,
    limit_for_disks,
)
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.host.errors import HostError
from retinue.hypervisor import rest_at_source
from retinue.hypervisor.aio import Beside, both, first_of, run_to_completion, unless, value
from retinue.hypervisor.errors import HandedOverError, HypervisorError, reason_of
from retinue.hypervisor.interface import (
    Divert,
    MigrationResult,
    OnEvent,
    OpenDisk,
    RunsElsewhere,
    Stopped,
)
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.monitor import EXITED, EventQueue, QMPEvent, event_time
from retinue.hypervisor.passes import UNBOUNDED_DOWNTIME, Passes
from retinue.hypervisor.qemu import postcopy
from retinue.hypervisor.qemu.machine import QemuMachine
from retinue.hypervisor.qemu.mirrors import Mirrors
from retinue.hypervisor.qemu.undoing import as_before, let_qemu_answer
from retinue.hypervisor.qmp_copier import QmpCopier, downtime_limit
from retinue.hypervisor.rest_of_memory import STEP, Answers, send_the_rest
from retinue.hypervisor.throttle import LARGEST_STEP, SMALLEST_STEP, Throttle

LEAST_SECONDS = 0.05
"""In less no rate is measured, for a few frames may come at once."""
UNBOUNDED_BANDWIDTH = 1 << 40

log = structlog.get_logger()


async def run_outgoing(
    machine: QemuMachine,
    channel: Channel,
    on_event: OnEvent,
    divert: Divert | None,
    wanted_downtime: float = WANTED_DOWNTIME,
    options: CopyOptions = PLAIN,
    open_disk: OpenDisk | None = None,
    *,
    limit: float | None = None,
) -> MigrationResult:
    """See Hypervisor.run_outgoing."""
    outgoing = _Outgoing(machine, channel, on_event, divert, wanted_downtime, options, open_disk)
    limit = limit_for(machine.spec.memory_mib << 20, options.step_factor) if limit is None else limit
    vm = machine.spec.id
    with machine.events_into(outgoing.events):
        watching = asyncio.create_task(outgoing.watch(), name=f"QMP events of the outgoing migration of {vm}")
        try:
            async with asyncio.timeout(None) as clock:
                await outgoing.copy_disks()  # Which has a limit of its own.
                clock.reschedule(asyncio.get_running_loop().time() + limit)
                return await outgoing.run()
        except BaseException as error:
            reason = reason_of(error, limit)
            if outgoing.handed_over:
                outgoing.keep_what_may_be_given_back()
                if isinstance(error, (HostError, TimeoutError)):
                    raise HandedOverError(
                        f"VM {vm} was handed over, and {outgoing.unknown}: {reason}"
                    ) from error
                raise
            watching.cancel()
            let_qemu_answer(outgoing.throttle, in_postcopy=outgoing.in_postcopy)
            await run_to_completion(outgoing.beside.end())
            await run_to_completion(as_before(machine, reason, on_event, outgoing.mirrors, outgoing.throttle))
            if isinstance(error, (HostError, TimeoutError)):
                raise HypervisorError(f"VM {vm} was not migrated: {reason}") from error
            raise
        finally:
            watching.cancel()
            outgoing.close()
            await outgoing.beside.end()
            await outgoing.mirrors.close()
            await outgoing.channel.close()


class _Outgoing:
    def __init__(
        self,
        machine: QemuMachine,
        channel: Channel,
        on_event: OnEvent,
        divert: Divert | None,
        wanted_downtime: float,
        options: CopyOptions,
        open_disk: OpenDisk | None,
    ) -> None:
        self._machine = machine
        self.channel = channel
        self._on_event = on_event
        self._divert = divert
        self._taps = machine.spec.ports
        self.throttle = Throttle()
        self.events: EventQueue = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[float] = loop.create_future()
        self._completed: asyncio.Future[None] = loop.create_future()
        self._failed: asyncio.Future[str] = loop.create_future()
        self._in_postcopy: asyncio.Future[None] = loop.create_future()
        self._broken: asyncio.Future[str] = loop.create_future()
        """Why no more of it goes this way; or why it has failed."""
        self._options = options
        self._answers: Answers | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._runs_there = self._kept = False
        self._frames_before = self._converges_at = 0
        self._copier = QmpCopier(machine)
        self._passes = Passes(
            self._copier, self.throttle, channel, self._stopped, wanted_downtime, on_event, options.postcopy
        )
        self._begun = self._stopping = False
        """The memory is copied; QEMU may stop the VM. Before, what is left of another copy is cleared."""
        self.mirrors = Mirrors(machine, open_disk, on_event)
        self.beside = Beside(self._fail)
        self.handed_over = False

    async def run(self) -> MigrationResult:
        await self._prepare()
        began, self._frames_before = time.time(), self._machine.frames_given()
        if self._divert is not None and await unless(self._failed, self._passes.until_little_remains()):
            await unless(self._failed, self._make_room(began))
            if self._passes.to_postcopy:
                resumed_at = await self._by_postcopy(self._divert)
                if resumed_at is not None:
                    return await self._result(began, resumed_at)
            else:
                await unless(self._failed, self._switch_over(self._divert))
        else:
            self.throttle.release_qemu_end()
            passing = asyncio.create_task(rest_at_source.pass_on(self.throttle, self.channel, LARGEST_STEP))
            try:
                await unless(self._failed, value(self._stopped))
                if self._divert is not None:
                    log.warning("migration.paused_before_diverted", vm=self._machine.spec.id)
                    await unless(self._failed, self._divert(self._taps))
                await unless(self._failed, value(passing))
            finally:
                passing.cancel()
        await self.channel.send_memory(b"")
        await unless(self._failed, value(self._completed))
        return await self._result(began, await self._hand_over())

    async def _hand_over(self, **how: bool) -> float:
        """Tell the target that the VM is its own; returns since when it runs there."""
        await unless(self._failed, self.channel.may_hand_over())
        self.handed_over = True
        await self.channel.send_message("handed_over", **how)
        answer = await (self.channel.receive_message() if self._answers is None else self._answers.message())
        if answer["type"] != "running":
            # The target's own message, and the only one that gives the VM back: it never ran there.
            self.handed_over = False
            raise HypervisorError(f"the target could not take the VM in: {answer.get('reason')}")
        return float(answer["at"])

    async def _result(self, began: float, resumed_at: float) -> MigrationResult:
        ram = await self._copier.statistics()
        return MigrationResult(
            stopped_at=await self._stopped,
            resumed_at=resumed_at,
            total_ms=(resumed_at - began) * 1000,
            transferred=ram.get("transferred", 0),
            passes=ram.get("dirty-sync-count", 0),
        )

    async def watch(self) -> None:
        """Sort QEMU's events, for ever."""
        while True:
            _, event = await self.events.get()
            self._sort(event)

    def _sort(self, event: QMPEvent) -> None:
        match event["event"], event.get("data", {}).get("status"):
            case "STOP", _ if self._begun and not self._stopped.done():
                self._stopped.set_result(event_time(event))
                if not self._stopping:  # QEMU ends by itself, and with it its stream.
                    self.throttle.release_qemu_end()
                self._on_event(Stopped(self._machine.spec.id, event_time(event)))
            case "MIGRATION", "pre-switchover":
                self.beside.begin(self._hand_disks_over(), "the disks are handed over")
            case "MIGRATION", "completed" if not self._completed.done():
                self._completed.set_result(None)
            case "MIGRATION", "postcopy-active" if not self._in_postcopy.done():
                self._in_postcopy.set_result(None)
            case "MIGRATION", "postcopy-paused":
                self._break("the way to the target is broken, with some of the memory still to go over")
            case "MIGRATION", "failed" | "cancelled" | "cancelling":
                self._fail("the source gave up")
            case name, _ if name == EXITED:
                self._fail("the source has ended")

    async def copy_disks(self) -> None:
        """Have them the same at both ends, and so until they are handed over."""
        if not self.mirrors:
            return
        limit = limit_for_disks(self.mirrors.size(), self._options.step_factor)
        try:
            async with asyncio.timeout(limit):
                await unless(self._failed, self.mirrors.start())
                await unless(self._failed, self.mirrors.until_ready())
        except TimeoutError as error:
            raise HypervisorError(f"its disks are not copied within {limit:.0f} s") from error
        self.beside.begin(self.mirrors.watch(), "the disks stay the same")

    async def _hand_disks_over(self) -> None:
        await self.mirrors.finish()
        await self._machine.execute("migrate-continue", state="pre-switchover")

    def _fail(self, reason: str) -> None:
        for future in (self._failed, self._broken):
            if not future.done():
                future.set_result(reason)

    def _break(self, reason: str) -> None:
        """Nothing more goes this way; the VM may run at the target already, and then go on by another."""
        if not self._runs_there or self.channel.again is None:
            self._fail(reason)
        elif not self._broken.done():
            self._broken.set_result(reason)

    async def _prepare(self) -> None:
        machine, throttle = self._machine, self.throttle
        await machine.set_capability("events", True)
        await machine.set_capability("pause-before-switchover", bool(self.mirrors))
        await machine.set_capability(postcopy.CAPABILITY, False)
        how = Postcopy.NEVER if self._divert is None else self._options.postcopy
        if await postcopy.agree(machine, self.channel, how):
            self._hear()
        else:
            self._passes.never_by_postcopy()
        version = await self._copier.version()
        self._converges_at = downtime_limit(version)
        await machine.execute(
            "migrate-set-parameters",
            max_bandwidth=UNBOUNDED_BANDWIDTH,
            downtime_limit=self._converges_at if self._divert is None else 0,
        )
        if self._divert is not None:
            self._passes.begin(several=await self._copier.prepare(version))
        throttle.set_window(SMALLEST_STEP if self._divert else LARGEST_STEP)
        uri = await machine.give(throttle.theirs)
        if self._divert is None:
            throttle.release_qemu_end()
        self._begun = True
        await machine.execute("migrate", uri=uri)

    async def _make_room(self, began: float) -> None:
        """Let the target know how much the VM is sent, for all of it will have to wait there."""
        given = self._machine.frames_given() - self._frames_before
        await self.channel.send_message(
            "expect", frames_a_second=given / max(time.time() - began, LEAST_SECONDS)
        )

    async def _switch_over(self, divert: Divert) -> None:
        await self._drained(divert)
        if self._converges_at:
            await self._machine.execute("stop")
        self.throttle.set_window(LARGEST_STEP)
        self.throttle.release_qemu_end()
        # Both at once: when all RAM has gone QEMU answers nobody before the rest has been read.
        await both(self._let_converge(), rest_at_source.pass_on(self.throttle, self.channel, LARGEST_STEP))

    async def _by_postcopy(self, divert: Divert) -> float | None:
        """Since when the VM runs at the target, when all has gone over; None: QEMU had nothing left to send
        after the stop, so that all of it goes over as ever."""
        machine = self._machine
        await unless(self._failed, self._drained(divert))
        if self.mirrors:
            # From post-copy's own stop on QEMU holds its big lock: a mirror whose target is gone has no end.
            await unless(self._failed, machine.execute("stop"))
            await unless(self._failed, self.mirrors.finish())
        await unless(self._failed, machine.execute("migrate-start-postcopy"))
        self.throttle.set_window(STEP)
        self.throttle.release_qemu_end()
        passing = asyncio.create_task(
            rest_at_source.pass_on(self.throttle, self.channel, STEP), name=f"memory of {machine.spec.id}"
        )
        try:
            await unless(self._failed, first_of(self._in_postcopy, self._completed, passing))
            if not self._in_postcopy.done():
                await unless(self._failed, passing)
                return None
            await unless(self._failed, value(self._stopped))
            resumed_at = await unless(self._failed, self._hand_over(postcopy=True))
            self._runs_there = True
            self._on_event(RunsElsewhere(machine.spec.id, resumed_at))
            await run_to_completion(self._send_the_rest(passing))
            return resumed_at
        finally:
            passing.cancel()
            await asyncio.gather(passing, return_exceptions=True)

    async def _send_the_rest(self, passing: "asyncio.Task[None]") -> None:
        """The same, by as many ways as it takes. Raises HypervisorError: it will not go over."""
        assert self._hearing is not None
        self._hearing.add_done_callback(self._has_hung_up)  # Also if it has by now.
        ended, number = (passing, self._completed, self._broken), self._passes.number + 1
        try:
            await send_the_rest(self._copier, self.throttle, *ended, number, self._on_event)
            await self.channel.send_memory(b"")
            return
        except HostError as error:
            if self._failed.done() or self._completed.done() or self.channel.again is None:
                raise
            log.warning("migration.way_broken", vm=self._machine.spec.id, reason=str(error))
        finally:
            passing.cancel()
        self.close()
        self.channel.abort()
        await rest_at_source.send(
            self._machine, self.channel.again, self._on_event, compress=self.channel.compress
        )

    def _hear(self) -> None:
        """Take in what comes from the target, from now on."""
        self._answers = Answers(self.channel, self.throttle)
        self._hearing = asyncio.create_task(self._answers.hear(), name="answers of the target")

    def _has_hung_up(self, _: object) -> None:
        self._break("the target has hung up")

    async def _drained(self, divert: Divert) -> None:
        await self._machine.drain(await divert(self._taps))
        self._stopping = True

    @property
    def unknown(self) -> str:
        """What is not known of a VM that was handed over."""
        if self._runs_there:
            return "runs at the target, which lacks some of its memory"
        return "the target does not confirm that it runs"

    def keep_what_may_be_given_back(self) -> None:
        """A VM that was handed over in post-copy, of which nobody says that it has run: see `postcopy`."""
        if self._in_postcopy.done() and not self._runs_there:
            self._kept = True
            self._machine.kept.append(self.throttle)
            self.throttle.keep_open()

    @property
    def in_postcopy(self) -> bool:
        """QEMU may have been told to begin with it."""
        return self._stopping and self._passes.to_postcopy

    def close(self) -> None:
        if self._hearing is not None:
            self._hearing.cancel()
        if not self._kept:
            self.throttle.close()

    async def _let_converge(self) -> None:
        """An older QEMU is content when nothing remains; a newer one never is with a limit of 0."""
        if self._converges_at:
            await self._copier.set_downtime_limit(UNBOUNDED_DOWNTIME)

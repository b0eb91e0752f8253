"""Post-copy on real parts: the VM runs at the target before its memory is there, and lacks none of it."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from retinue.core.migration import copying
from retinue.core.migration.copying import CopyOptions, Postcopy
from retinue.core.model import Ending
from retinue.hypervisor import (
    Channel,
    Copying,
    Event,
    Exited,
    HandedOverError,
    HypervisorError,
    MigrationFailed,
    MigrationResult,
    QemuHypervisor,
    QemuMachine,
    Resumed,
    RunsElsewhere,
    RunState,
    Stopped,
    another_way,
    channel_pair,
)
from retinue.hypervisor.aio import cancelled
from retinue_lab.guest.image import Guest, ensure_guest
from retinue_lab.guest.shell import GuestShell
from support.lab.qemu_bench import QemuBench, qemu_bench
from support.lab.tools import long

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.patient]

MIB = 32
WRITES, ALWAYS_WRITES = 300, 5000
"""MiB a second: much of its memory is written again in a pass; all that there is time for, so that no pass is
shorter than the one before, however quick this machine copies."""
BEHIND_MIB, BEHIND_WRITES = 48, 40
"""A guest that comes back to what it wrote after more than a second: what follows it is asked for late."""
SLOWLY = 4 << 20
"""Bytes a second that are sent unasked of what follows a VM: so there is some to come when the way breaks."""
REQUIRED = CopyOptions(postcopy=Postcopy.REQUIRED)
WANTED = 0.0
"""Seconds of pause: none is short enough, however quick this machine copies."""


@pytest.fixture(scope="module")
def guest() -> Guest:
    return ensure_guest(print)


@pytest.fixture(autouse=True)
def no_pause_is_short_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "LEAST_PAUSE", 0.0)


@pytest.fixture
async def bench(guest: Guest) -> AsyncIterator[QemuBench]:
    async with qemu_bench(guest) as made:
        yield made


async def diverted(taps: object) -> bool:
    await asyncio.sleep(0.01)
    return True


async def writing(bench: QemuBench, rate: int = WRITES, mib: int = MIB) -> QemuMachine:
    machine, shell = await bench.boot()
    assert (await shell.run(f"scribble {mib} {rate} /tmp/scribbled >/dev/null 2>&1 &"))[0] == 0
    await shell.run("until [ -f /tmp/scribbled ]; do usleep 20000; done")
    return machine


async def all_is_right(machine: QemuMachine, mib: int = MIB) -> None:
    """The guest has written and compared all of its memory since now, twice over."""
    shell = GuestShell(machine.files.shell)
    before = int((await shell.run("cut -d' ' -f4 /tmp/scribbled"))[1])
    enough = before + 2 * mib * 256
    await shell.run(f"until [ $(cut -d' ' -f4 /tmp/scribbled) -gt {enough} ]; do usleep 50000; done", 120)
    assert (await shell.run("cut -d' ' -f6 /tmp/scribbled"))[1].strip() == "0"


@pytest.mark.parametrize("how", [long(Postcopy.IF_NEEDED), Postcopy.REQUIRED])
async def test_a_vm_that_writes_faster_than_any_copy_moves_by_postcopy_and_lacks_nothing(
    bench: QemuBench, how: Postcopy
) -> None:
    source = await writing(bench, ALWAYS_WRITES if how is Postcopy.IF_NEEDED else WRITES)
    for port in ("tap-b", "tap-a"):
        target = await bench.target(port)
        await target.expect_postcopy()
        result = await bench.migration(source, target, diverted, CopyOptions(postcopy=how), WANTED)
        copies = [event for event in bench.events if isinstance(event, Copying)]
        assert copies[-1].postcopy
        assert copies[-1].remaining == 0
        assert [type(event) for event in bench.events if isinstance(event, RunsElsewhere | Resumed)] == [
            Resumed,
            RunsElsewhere,
        ]
        assert await source.state() is RunState.MOVED
        await source.quit()
        await all_is_right(target)
        print(f"{how}: pause {result.downtime_ms:.0f} ms, {result.total_ms:.0f} ms, passes {result.passes}")
        source = target
        bench.events.clear()


class OtherWays:
    """Connections that are there when the one before is broken: so many."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._ends: asyncio.Queue[Channel] = asyncio.Queue()
        self.all_made = asyncio.Event()
        self.made: list[Channel] = []

    async def at_source(self) -> Channel:
        if not self._left:
            raise HypervisorError("the agent of server2 cannot be reached")
        self._left -= 1
        here, there = await channel_pair()
        self.made.append(here)
        if not self._left:
            self.all_made.set()
        self._ends.put_nowait(there)
        return here

    async def at_target(self) -> Channel:
        return await self._ends.get()


async def moving(
    bench: QemuBench,
    source: QemuMachine,
    target: QemuMachine,
    at: dict[type, Callable[[Channel], None]],
    again: "OtherWays | None" = None,
) -> tuple[object, object]:
    """What comes of the two ends of a migration by post-copy; `at` an event something is done."""
    here, there = await channel_pair()
    if again is not None:
        here.again, there.again = again.at_source, again.at_target

    def hear(event: Event) -> None:
        bench.events.append(event)
        for do in (what for kind, what in at.items() if isinstance(event, kind)):
            do(here)

    incoming = bench.hypervisor.run_incoming(target, there, hear)
    outgoing = bench.hypervisor.run_outgoing(source, here, hear, diverted, WANTED, options=REQUIRED)
    came, went = await asyncio.gather(incoming, outgoing, return_exceptions=True)
    return went, came


async def test_a_vm_whose_rest_does_not_come_ends_at_the_target_and_never_runs_at_the_source(
    bench: QemuBench,
) -> None:
    source = await writing(bench)
    target = await bench.target()
    await target.expect_postcopy()
    went, came = await moving(bench, source, target, {Resumed: Channel.abort})
    assert isinstance(went, HandedOverError), went
    assert isinstance(came, HandedOverError), came
    (end,) = (event for event in bench.events if isinstance(event, Exited))
    assert end.how is Ending.CRASHED
    assert "it ran by post-copy, with some of its memory still at the source" in end.reason
    assert not target.alive
    assert await source.state() is RunState.MOVED
    with pytest.raises(HypervisorError):
        await source.execute("cont")


@pytest.mark.parametrize("breaks", [1, 2])
async def test_a_way_that_breaks_in_the_middle_costs_the_vm_nothing_where_there_is_another(
    bench: QemuBench, breaks: int
) -> None:
    source = await writing(bench, BEHIND_WRITES, BEHIND_MIB)
    target = await bench.target()
    await target.expect_postcopy()
    await source.execute("migrate-set-parameters", max_postcopy_bandwidth=SLOWLY)
    ways, left = OtherWays(breaks), 1

    def broken(_: Channel) -> None:
        nonlocal left
        if ways.made and left < breaks:
            left += 1
            ways.made[-1].abort()

    async def hurried() -> None:
        """What is tried has happened."""
        await ways.all_made.wait()
        await source.execute("migrate-set-parameters", max_postcopy_bandwidth=0)

    at = {RunsElsewhere: Channel.abort, Copying: broken}
    hurrying = asyncio.create_task(hurried())
    went, came = await moving(bench, source, target, at, ways)
    await cancelled(hurrying)
    assert (isinstance(came, float), isinstance(went, MigrationResult)) == (True, True), (came, went)
    assert len(ways.made) == breaks, "nothing was left to come"
    assert await source.state() is RunState.MOVED
    await source.quit()
    await all_is_right(target, BEHIND_MIB)


@pytest.mark.long
async def test_a_vm_for_which_there_is_no_other_way_in_time_has_crashed(
    bench: QemuBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(another_way, "AGAIN_LIMIT", 2.0)
    source = await writing(bench, BEHIND_WRITES, BEHIND_MIB)
    target = await bench.target()
    await target.expect_postcopy()
    await source.execute("migrate-set-parameters", max_postcopy_bandwidth=SLOWLY)
    went, came = await moving(bench, source, target, {RunsElsewhere: Channel.abort}, OtherWays(0))
    assert isinstance(went, HandedOverError) and "cannot be reached" in str(went), went
    assert isinstance(came, HandedOverError) and "no other way" in str(came), came
    (end,) = (event for event in bench.events if isinstance(event, Exited))
    assert end.how is Ending.CRASHED
    assert await source.state() is RunState.MOVED


async def test_a_vm_that_never_ran_at_the_target_is_resumed_at_the_source_as_it_was(bench: QemuBench) -> None:
    source = await writing(bench)
    target = await bench.target()
    await target.expect_postcopy()
    went, came = await moving(bench, source, target, {Stopped: lambda _: target.kill()})
    assert isinstance(went, HypervisorError), went
    assert not isinstance(went, HandedOverError), went
    assert isinstance(came, HypervisorError), came
    (failed,) = (event for event in bench.events if isinstance(event, MigrationFailed))
    assert failed.source_runs
    assert await source.state() is RunState.RUNNING
    await all_is_right(source)
    target = await bench.target()
    await target.expect_postcopy()
    await bench.migration(source, target, diverted, REQUIRED, WANTED)
    await all_is_right(target)


async def test_a_vm_whose_target_says_nothing_can_still_be_given_back(bench: QemuBench) -> None:
    """The connection breaks between the word that hands it over and the word that it runs."""
    source = await writing(bench, ALWAYS_WRITES)
    here, there = await channel_pair()
    going = bench.hypervisor.run_outgoing(
        source, here, divert=diverted, wanted_downtime=WANTED, options=REQUIRED
    )
    outgoing = asyncio.create_task(going)
    while (received := await there.receive()) != {"type": "handed_over", "postcopy": True}:
        if received == {"type": "postcopy"}:
            await there.send_message("postcopy", ready=True)
    there.abort()
    with pytest.raises(HandedOverError):
        await outgoing
    assert await source.state() is RunState.MOVED
    await source.resume()  # The target says, by another way, that it never ran there.
    assert await source.state() is RunState.RUNNING
    await all_is_right(source)


async def test_a_server_that_cannot_says_so_before_anything_is_copied(bench: QemuBench) -> None:
    bench.hypervisor = QemuHypervisor(
        bench.folder, (*bench.prefix, "setpriv", "--pdeathsig", "KILL", "--bounding-set", "-sys_ptrace")
    )
    target = await bench.target()
    with pytest.raises(HypervisorError, match=r"all of its memory has come \(post-copy\): QEMU needs"):
        await target.expect_postcopy()
    assert not target.expects_postcopy

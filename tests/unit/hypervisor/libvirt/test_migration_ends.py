"""Both halves of a migration through libvirt, with a libvirt in memory at each end and real sockets."""

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import pytest

from retinue.core.limits import LONGEST_REASON
from retinue.core.migration import precopy
from retinue.core.migration.copying import CopyOptions
from retinue.host.errors import HostError
from retinue.hypervisor import (
    Channel,
    HandedOverError,
    HypervisorError,
    MigrationFailed,
    MigrationResult,
    Resumed,
    RunState,
    Stopped,
    channel_pair,
    passes,
)
from retinue.hypervisor.interface import Copying, Event
from retinue.hypervisor.libvirt import hypervisor as libvirt_hypervisor
from retinue.hypervisor.libvirt import incoming, order, outgoing
from retinue.hypervisor.libvirt.directory import Folder
from retinue.hypervisor.libvirt.domain_xml import QEMU_NAMESPACE, UNEVEN_KIB
from retinue.hypervisor.libvirt.hypervisor import LibvirtHypervisor
from retinue.hypervisor.libvirt.machine import LibvirtMachine
from retinue.hypervisor.libvirt.migration_uri import accepted
from retinue.hypervisor.passes import UNBOUNDED_DOWNTIME
from retinue.hypervisor.throttle import Throttle
from support.agents.libvirt_world import (
    ID,
    INSIDE,
    LIMIT,
    MEMORY,
    PAUSED,
    RUNS,
    ServerLocation,
    control,
    locations,
    made_spec,
)
from support.fakes.libvirt import FakeDomain, libvirtError


@dataclass
class MigrationEnds:
    source: ServerLocation
    target: ServerLocation
    here: LibvirtHypervisor
    there: LibvirtHypervisor
    machine: LibvirtMachine
    said: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    arrived: list[Event] = field(default_factory=list)
    arriving: "asyncio.Task[float] | None" = None
    ends: tuple[Channel, ...] = ()
    late_pages: bool = False
    """The target can run a VM before all of its memory is there."""

    @property
    def domain(self) -> FakeDomain:
        return self.source.domain()

    def state(self) -> str:
        return "runs" if self.domain.now[0] == RUNS else "stands still"

    async def divert(self, taps: Collection[str]) -> bool:
        self.said.append(f"diverted, {self.seen()}")
        return True

    def seen(self) -> str:
        for domain in self.source.connection.domains_:
            state = "runs" if domain.now[0] == RUNS else "stands still"
            left = "some" if domain.remaining else "nothing"
            return f"VM {state}, {left} left of pass {domain.looks}"
        return "VM gone"  # Its libvirt may be quicker than we.

    def hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Copying):
            return
        still = ID in [d.uuid for d in self.source.connection.domains_]
        self.said.append(f"{type(event).__name__}, VM {self.state() if still else 'gone'}")

    async def migration(self, **how: object) -> MigrationResult:
        self.ends = await channel_pair()
        waiting = await self.there.open_target(made_spec())
        waiting.expects_postcopy = self.late_pages
        self.arriving = asyncio.create_task(
            self.there.run_incoming(waiting, self.ends[1], self.arrived.append)
        )
        return await self.here.run_outgoing(self.machine, self.ends[0], self.hear, **how)  # type: ignore[arg-type]

    async def stayed(self) -> None:
        """The VM runs where it was, may be moved by anybody, and nothing is left of it at the target."""
        assert self.arriving is not None
        async with asyncio.timeout(LIMIT):
            await asyncio.gather(self.arriving, return_exceptions=True)
        assert (self.source.states(), self.target.states(), self.arrived) == ([RUNS], [], [])
        assert self.domain.downtime != 0
        left = [p.name for location in (self.source, self.target) for p in location.folder.glob("*.memory")]
        assert left == []


@pytest.fixture
async def bench() -> AsyncIterator[MigrationEnds]:
    with locations() as made:
        source, target = made.values()
        here, there = source.hypervisor(), target.hypervisor()
        machine = await here.start(made_spec())
        source.domain().memory = MEMORY
        following = [asyncio.create_task(_follow(hypervisor)) for hypervisor in (here, there)]
        async with asyncio.timeout(LIMIT):
            for location in (source, target):
                while not location.connection.watched():  # noqa: ASYNC110 - else its first words are missed
                    await asyncio.sleep(0.001)
        bench = MigrationEnds(source, target, here, there, machine)
        yield bench
        if bench.arriving is not None:
            await asyncio.wait_for(asyncio.gather(bench.arriving, return_exceptions=True), LIMIT)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        for hypervisor in (here, there):
            await hypervisor.host.close()


async def _follow(hypervisor: LibvirtHypervisor) -> None:
    async with contextlib.aclosing(hypervisor.host.watch()) as happenings:
        async for happening in happenings:
            hypervisor.on_event(happening)


async def test_the_vm_is_held_back_until_its_traffic_is_diverted(bench: MigrationEnds) -> None:
    async def opened() -> None:
        bench.said.append(f"opened, {bench.target.states()}, sent {len(bench.target.domain().taken)}")
        assert bench.domain.downtime == 0, "QEMU must not stop the VM by itself"

    domain = bench.domain
    result = await bench.migration(divert=bench.divert, opened=opened)
    assert bench.said == [
        f"opened, [{PAUSED}], sent 0",
        "diverted, VM runs, some left of pass 2",
        "Stopped, VM stands still",
    ]
    assert bench.source.quiet == [("tap-" + made_spec().port.removeprefix("tap-"),)]
    assert bytes(bench.target.domain().taken[: len(MEMORY)]) == MEMORY
    assert (domain.downtime, domain.stopped_itself) == (UNBOUNDED_DOWNTIME, False)
    assert (bench.source.states(), bench.target.states()) == ([], [RUNS])
    assert bench.arriving is not None
    at = await bench.arriving
    assert bench.arrived == [Resumed(ID, at)]
    (stopped,) = (event for event in bench.events if isinstance(event, Stopped))
    assert (result.stopped_at, result.resumed_at) == (stopped.at, at), "by the target's own clock"
    assert list(bench.target.folder.glob("*.memory")) == []


def copies(bench: MigrationEnds) -> list[Copying]:
    return [event for event in bench.events if isinstance(event, Copying)]


async def test_how_far_the_copy_is_is_told_pass_by_pass(
    bench: MigrationEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "TELL_SECONDS", float("inf"))
    bench.domain.written = [1 << 20, 1 << 18]
    result = await bench.migration(divert=bench.divert, wanted_downtime=100.0)
    first, second = copies(bench)
    assert (first.copy_pass, first.written_a_second, first.postcopy) == (1, 0, False)
    assert 0 < first.remaining < len(MEMORY)
    assert second.copy_pass == 2
    assert second.remaining > 1 << 19  # Some of it may have gone before anybody looked.
    assert second.written_a_second > 0
    assert (result.passes, result.transferred) == (2, len(MEMORY) + (1 << 20) + (1 << 18))


async def test_a_pass_that_takes_long_is_told_of_now_and_then(
    bench: MigrationEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "TELL_SECONDS", 0.0)
    await bench.migration(divert=bench.divert)
    left = [event.remaining for event in copies(bench) if event.copy_pass == 1]
    assert len(left) > 2
    assert left == sorted(left, reverse=True)


async def test_there_are_as_many_passes_as_the_wanted_downtime_takes(
    bench: MigrationEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A downtime of nothing is not to be had, and tried for as long as passes shrink."""
    monkeypatch.setattr(precopy, "LEAST_SECONDS", 0.0)  # However quick this machine copies.
    domain = bench.domain
    domain.written = [3 << 20] * 10
    result = await bench.migration(divert=bench.divert, wanted_downtime=0.0)
    assert result.passes == len({event.copy_pass for event in copies(bench)}) > 2
    assert domain.flags & order.AUTO_CONVERGE
    assert not domain.stopped_itself


async def test_where_qemus_end_is_not_to_be_had_there_is_one_pass_and_more_is_held_back(
    bench: MigrationEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "HELD_BACK_UNSEEN", 3 << 20)
    monkeypatch.setattr(bench.here, "_holders", lambda taps: {})
    bench.domain.written = [4 << 20, 3 << 20]
    result = await bench.migration(divert=bench.divert, wanted_downtime=0.0)
    assert "diverted, VM runs, some left of pass 1" in bench.said
    assert result.passes == 1


async def test_an_emulated_vm_that_qemu_may_not_look_at_twice_is_copied_in_one_pass(
    bench: MigrationEnds,
) -> None:
    """Made by somebody else, its memory whole MiB."""
    domain = bench.domain
    xml = ElementTree.fromstring(domain.xml)
    line = xml.find(f"{{{QEMU_NAMESPACE}}}commandline")
    assert line is not None
    xml.remove(line)
    domain.xml = ElementTree.tostring(xml, encoding="unicode")
    domain.written = [1 << 20]
    result = await bench.migration(divert=bench.divert, wanted_downtime=0.0)
    assert (result.passes, domain.flags & order.AUTO_CONVERGE) == (1, 0)
    assert "diverted, VM runs, some left of pass 1" in bench.said


async def test_how_long_a_copy_may_take_goes_by_the_memory_there_is(
    bench: MigrationEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def limit_for(memory: int, step_factor: float) -> float:
        asked.append(memory)
        assert step_factor == 1.0
        return 0.2

    async def never(taps: Collection[str]) -> bool:
        return await asyncio.Event().wait()

    monkeypatch.setattr(outgoing, "limit_for", limit_for)
    with pytest.raises(HypervisorError, match="not done within 0 s"):
        await bench.migration(divert=never)
    assert asked == [made_spec().memory_mib * (1 << 20) + (UNEVEN_KIB << 10)]
    await bench.stayed()


async def test_a_vm_that_slips_through_is_diverted_as_soon_as_it_is_seen_to_stand(
    bench: MigrationEnds,
) -> None:
    """QEMU looks, finds nothing written, and stops it."""

    async def divert(taps: Collection[str]) -> bool:
        diverted = await bench.divert(taps)
        source.may_end.set()
        return diverted

    source = bench.domain
    source.written = []
    source.may_end.clear()
    await bench.migration(divert=divert)
    stopped, diverted = bench.said
    assert stopped == "Stopped, VM stands still"
    assert diverted.startswith("diverted, VM stands still")
    assert bytes(bench.target.domain().taken) == MEMORY


async def test_a_vm_that_slips_through_may_be_gone_when_it_is_seen_to_stand(bench: MigrationEnds) -> None:
    """Nothing holds its libvirt up, which may be quicker than we."""
    bench.domain.written = []
    await bench.migration(divert=bench.divert)
    assert [said.split(",")[0] for said in bench.said] == ["Stopped", "diverted"]
    assert bytes(bench.target.domain().taken) == MEMORY


async def test_without_a_divert_libvirt_does_it_all(bench: MigrationEnds) -> None:
    await bench.migration()
    assert bytes(bench.target.domain().taken[: len(MEMORY)]) == MEMORY
    assert bench.target.states() == [RUNS]


async def test_a_target_that_cannot_be_opened_is_said_in_libvirts_words(bench: MigrationEnds) -> None:
    bench.domain.rejects = "internal error: no room at the target"
    with pytest.raises(HostError, match="no room at the target"):
        await bench.migration()
    await bench.stayed()
    assert bench.arriving is not None
    with pytest.raises(HostError, match="no room at the target"):
        await bench.arriving  # Its agent says the same, whoever's word the controller hears first.


def test_a_sources_reason_is_short_and_no_command_to_a_terminal() -> None:
    """Its agent is another server's, and what it says goes to the log, and on to the controller."""
    told = str(incoming._said({"type": "failed", "reason": f"\x1b[2J{60_000 * 'x'}"}, "in the middle"))
    assert told.startswith("\\x1b[2Jxx") and len(told) <= LONGEST_REASON


async def fail(*taps: Collection[str]) -> bool:
    raise HypervisorError("the switches do not answer")


def reject(bench: MigrationEnds) -> None:
    bench.target.connection.answer = b"it is broken"


@pytest.mark.parametrize("how", [{"divert": fail}, {"opened": fail}, {}], ids=["divert", "opened", "answer"])
async def test_a_move_that_fails_leaves_the_vm_running_where_it_was(
    bench: MigrationEnds, how: dict[str, Callable[[], object]]
) -> None:
    if not how:
        reject(bench)
    domain = bench.domain
    with pytest.raises(HostError, match=f"VM {ID} was not migrated"):
        await bench.migration(**{"divert": bench.divert, **how})
    await bench.stayed()
    failed = bench.events[-1]
    assert isinstance(failed, MigrationFailed) and failed.source_runs
    if how:  # Else libvirt fails by itself; the target's agent may say so before.
        assert domain.aborted


async def test_traffic_that_does_not_cease_calls_the_move_off(bench: MigrationEnds) -> None:
    async def loud(taps: Sequence[str], holders: Mapping[str, int]) -> None:
        raise HypervisorError("frames still come")

    bench.here._drain = loud
    with pytest.raises(HostError, match="frames still come"):
        await bench.migration(divert=bench.divert)
    await bench.stayed()


class Stuck:
    """Something that is reached and does not go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def __call__(self, *taps: Collection[str]) -> bool:
        self.reached.set()
        return await asyncio.Event().wait()


@pytest.mark.parametrize("what", ["opened", "divert"])
async def test_a_move_that_is_called_off_leaves_the_vm_running(bench: MigrationEnds, what: str) -> None:
    stuck = Stuck()
    going = asyncio.create_task(bench.migration(**{"divert": bench.divert, what: stuck}))
    await asyncio.wait_for(stuck.reached.wait(), LIMIT)
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    await bench.stayed()
    assert bench.domain.aborted
    assert not any(isinstance(event, Stopped) for event in bench.events)


@pytest.mark.parametrize("what", ["opened", "divert"])
@pytest.mark.parametrize("end", [0, 1], ids=["source's agent", "target's agent"])
async def test_a_connection_that_breaks_leaves_the_vm_running(
    bench: MigrationEnds, what: str, end: int
) -> None:
    stuck = Stuck()
    going = asyncio.create_task(bench.migration(**{"divert": bench.divert, what: stuck}))
    await asyncio.wait_for(stuck.reached.wait(), LIMIT)
    bench.ends[end]._writer.transport.abort()
    with pytest.raises(HostError, match="hung up"):
        await asyncio.wait_for(going, LIMIT)
    await bench.stayed()


async def test_a_target_that_is_ended_there_leaves_the_vm_running(bench: MigrationEnds) -> None:
    stuck = Stuck()
    going = asyncio.create_task(bench.migration(opened=stuck))
    await asyncio.wait_for(stuck.reached.wait(), LIMIT)
    bench.target.domain().destroy()
    with pytest.raises(HostError, match="libvirt has ended it"):
        await asyncio.wait_for(going, LIMIT)
    await bench.stayed()


async def test_a_target_whose_vm_runs_is_not_called_back(bench: MigrationEnds) -> None:
    """libvirt has it all, and decides: what it decided is told."""
    assert await bench.migration() is not None
    assert bench.arriving is not None
    bench.arriving.cancel()
    await bench.arriving
    assert (bench.target.states(), len(bench.arrived)) == ([RUNS], 1)


async def test_an_arrival_called_off_too_late_finds_the_vm_running(
    bench: MigrationEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it has come; the agent is called off before it hears libvirt's word."""
    monkeypatch.setattr(incoming, "LOOK_SECONDS", 0.01)
    bench.there.on_event = lambda event: None  # type: ignore[method-assign]
    reached = asyncio.Event()
    original = incoming.LibvirtIncoming._running

    async def running(self: incoming.LibvirtIncoming) -> float:
        reached.set()
        return await original(self)

    monkeypatch.setattr(incoming.LibvirtIncoming, "_running", running)
    going = asyncio.create_task(bench.migration())
    await asyncio.wait_for(reached.wait(), LIMIT)
    assert bench.arriving is not None
    bench.arriving.cancel()
    await asyncio.wait_for(bench.arriving, LIMIT)
    await going
    assert [type(event) for event in bench.arrived] == [Resumed]


async def test_where_libvirt_does_not_tell_the_source_is_not_run_again(
    bench: MigrationEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its libvirtd is gone with the answer: only the target's word counts then."""
    domain = bench.domain

    def gone() -> list[int]:
        raise libvirtError("Cannot recv data: Connection reset by peer")

    reject(bench)
    stopped = asyncio.Event()

    async def divert(taps: Collection[str]) -> bool:
        stopped.set()
        return True

    def break_off(taps: Sequence[str]) -> None:
        monkeypatch.setattr(domain, "state", gone)

    async def quiet(taps: Sequence[str], holders: Mapping[str, int]) -> None:
        break_off(taps)

    bench.here._drain = quiet
    with pytest.raises(HandedOverError, match="does not tell whether it has migrated"):
        await bench.migration(divert=divert)
    assert not any(isinstance(event, MigrationFailed) for event in bench.events)


async def test_the_target_runs_the_vm_when_what_it_has_sent_is_on_its_way(bench: MigrationEnds) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def until_gone() -> None:
        asked.set()
        await gone.wait()

    async def divert(taps: Collection[str]) -> bool:
        bench.ends[0].before_handover = until_gone
        return await bench.divert(taps)

    going = asyncio.create_task(bench.migration(divert=divert))
    await asked.wait()
    done, _ = await asyncio.wait({going}, timeout=0.1)
    assert not done
    assert RUNS not in bench.target.states()
    gone.set()
    await going
    assert (bench.source.states(), bench.target.states()) == ([], [RUNS])


async def test_what_libvirt_has_moved_has_moved_whatever_fails_then(
    bench: MigrationEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = outgoing.LibvirtOutgoing._hand_over

    async def hand_over(self: outgoing.LibvirtOutgoing, throttle: Throttle) -> None:
        await original(self, throttle)
        assert self._libvirt is not None
        await self._libvirt
        raise HypervisorError("too late to fail")

    monkeypatch.setattr(outgoing.LibvirtOutgoing, "_hand_over", hand_over)
    result = await bench.migration(divert=bench.divert)
    assert result.resumed_at >= result.stopped_at
    assert (bench.source.states(), bench.target.states()) == ([], [RUNS])
    assert not any(isinstance(event, MigrationFailed) for event in bench.events)


async def test_two_servers_with_different_folders_are_told_so(bench: MigrationEnds) -> None:
    bench.there._folder = Folder(Path("/elsewhere"), bench.target.folder)
    with pytest.raises(HostError, match=r"/elsewhere.*must be the same on both servers"):
        await bench.migration()
    await bench.stayed()


async def test_a_server_that_is_not_told_how_it_is_reached_takes_nothing_in(bench: MigrationEnds) -> None:
    bench.there._control = ""
    with pytest.raises(HostError, match=r"\[libvirt\] control"):
        await bench.there.open_target(made_spec())


@pytest.mark.parametrize(
    "control",
    [
        "qemu+ssh://server2/system?command=/tmp/evil",
        "qemu+ssh://-oProxyCommand=evil/system",
        "qemu+unix:///system?socket=/tmp/evil",
        "qemu+ext://server2/system?command=/tmp/evil",
        "qemu+tcp://server2/system#",
        "qemu+tcp://a b/system",
        "test:///default",
        "qemu+ssh://server2/session",
        "qemu+tls://server2/system",  # Not as this server itself is reached.
        "",
        7,
    ],
)
async def test_libvirt_is_not_led_anywhere_by_another_server(bench: MigrationEnds, control: object) -> None:
    bench.there._control = control or " "  # type: ignore[assignment]
    domain = bench.domain
    with pytest.raises(HostError):
        await bench.migration()
    await bench.stayed()
    assert not domain.moved


@pytest.mark.parametrize(
    "control",
    [
        "qemu+tcp://192.0.2.4/system",
        "qemu+tls://server2.example:16514/system",
        "qemu+ssh://root@server2/system",
        "qemu+tcp://[2001:db8::1]:16509/system",
        "qemu+libssh2://server2/system",
    ],
)
def test_what_is_accepted_from_another_server(control: str) -> None:
    assert accepted(control, "") == accepted(control, control) == control


# ---- moves of others ----


async def test_a_move_of_others_is_called_off_at_its_source(bench: MigrationEnds) -> None:
    domain, target = bench.domain, bench.target
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(bench.source.folder / "theirs"))
        listener.listen()
        parameters = {"migrate_uri": f"unix://{INSIDE}/theirs"}
        theirs = asyncio.create_task(
            asyncio.to_thread(domain.migrateToURI3, control("server2"), parameters, 3)
        )
        async with asyncio.timeout(LIMIT):
            while not domain.sent:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert await bench.here.call_off(bench.machine)
        with pytest.raises(libvirtError):
            await theirs
    assert (domain.aborted, bench.source.states(), target.states()) == (True, [RUNS], [])


async def test_what_is_not_moved_is_not_called_off(bench: MigrationEnds) -> None:
    assert await bench.here.call_off(bench.machine)
    assert not bench.domain.aborted
    await bench.machine.quit()
    assert not await bench.here.call_off(bench.machine)


async def test_what_libvirt_goes_on_moving_is_not_said_to_stay(
    bench: MigrationEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_hypervisor, "CALL_OFF_LIMIT", 0.05)
    bench.domain.now = (PAUSED, 2)
    with pytest.raises(HostError, match="goes on moving it"):
        await bench.here.call_off(bench.machine)


# ---- the folder ----


@pytest.fixture
def short() -> Iterator[Path]:
    """A socket's path has little room."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def test_the_folder_is_for_the_user_whose_qemus_are(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, int, int]] = []

    def chown(path: Path, user: int, group: int, *, follow_symlinks: bool = True) -> None:
        given.append((path.name, user, group))
        assert not (follow_symlinks and path.name == f"{ID}.memory"), "a link would be followed"

    monkeypatch.setattr(os, "chown", chown)
    folder = Folder(Path("/vms"), short / "vms", "nobody")
    folder.make()
    memory = folder.memory(ID)
    with memory.listen():
        assert memory.outside.stat().st_mode & 0o777 == 0o600
    number = given[0][1]
    assert given == [("vms", number, -1), (f"{ID}.memory", number, -1)]
    assert (short / "vms").stat().st_mode & 0o777 == 0o750
    memory.clear()
    memory.clear()


def test_a_user_that_is_not_there_and_a_folder_too_deep_are_said(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no user 'nobody-of-that-name'"):
        Folder(tmp_path, tmp_path, "nobody-of-that-name").make()
    with pytest.raises(HostError, match="too long for a socket"):
        Folder(tmp_path / ("x" * 90), tmp_path).memory(ID)


async def test_a_target_that_does_not_listen_is_said(short: Path) -> None:
    with pytest.raises(HostError, match="takes in nothing"):
        await Folder(short, short).memory(ID).connect()


async def test_a_machine_that_is_not_there_has_no_state(bench: MigrationEnds) -> None:
    assert await bench.machine.state() is RunState.RUNNING
    await bench.machine.quit()
    await bench.machine.quit()
    with pytest.raises(HostError, match="libvirt has no VM"):
        await bench.machine.state()
    with contextlib.suppress(HostError):
        await bench.machine.resume()


@pytest.mark.parametrize("who", ["source", "target"])
async def test_libvirt_has_so_many_times_as_long_to_open_the_target_as_the_migration_says(
    bench: MigrationEnds, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    async def hangs(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(outgoing, "by_libvirt", hangs)
    for module, limit in ((outgoing, 0.25), (incoming, 60.0)) if who == "source" else ((incoming, 0.25),):
        monkeypatch.setattr(module, "OPEN_LIMIT", limit)
    monkeypatch.setattr(outgoing, "RECOVERY_LIMIT", 0.1)
    here, there = await channel_pair()
    there.step_factor = 4.0
    waiting = await bench.there.open_target(made_spec())
    coming = asyncio.create_task(bench.there.run_incoming(waiting, there))
    options = CopyOptions(step_factor=4.0)
    going = asyncio.create_task(
        bench.here.run_outgoing(bench.machine, here, divert=bench.divert, options=options)
    )
    said = {"source": "libvirt did not open the target within 1 s"}.get(
        who, "the source's libvirt has not opened the target within 1 s"
    )
    with pytest.raises(HypervisorError, match=said):
        await (going if who == "source" else coming)
    await asyncio.gather(going, coming, return_exceptions=True)

"""Post-copy through libvirt, with a libvirt in memory at each end: the VM runs before its memory is there."""

import asyncio
import json
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retinue.core.migration import copying
from retinue.core.migration.copying import CopyOptions, Postcopy
from retinue.hypervisor import (
    Channel,
    HandedOverError,
    HypervisorError,
    RunsElsewhere,
    RunState,
    another_way,
    channel_pair,
)
from retinue.hypervisor.interface import Copying, Event, Resumed, ignore
from retinue.hypervisor.libvirt import incoming, outgoing, own_monitor, postcopy, resuming
from retinue.hypervisor.libvirt.directory import Folder
from retinue.hypervisor.libvirt.far_end import FarEnd
from retinue.hypervisor.libvirt.own_monitor import OwnMonitor
from retinue.hypervisor.monitor import Monitor
from retinue.hypervisor.throttle import Throttle
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent
from support.agents.libvirt_world import ID, LIMIT, MEMORY, RUNS
from support.fakes.libvirt import FakeDomain, libvirtError
from unit.hypervisor.libvirt.test_migration_ends import MigrationEnds, bench  # noqa: F401 - a fixture

REQUIRED = CopyOptions(postcopy=Postcopy.REQUIRED)
WRITTEN = 3 << 20


@pytest.fixture(autouse=True)
def no_pause_is_short_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "LEAST_PAUSE", 0.0)


def by_postcopy(bench: MigrationEnds, options: CopyOptions = REQUIRED) -> "asyncio.Task[object]":  # noqa: F811
    bench.domain.written = [WRITTEN] * 10
    how = {"divert": bench.divert, "wanted_downtime": 0.0, "options": options}
    bench.late_pages = True
    return asyncio.create_task(bench.migration(**how))


@pytest.mark.parametrize("how", [Postcopy.REQUIRED, Postcopy.IF_NEEDED])
async def test_the_vm_runs_at_the_target_while_its_memory_follows(
    bench: MigrationEnds,  # noqa: F811
    how: Postcopy,
) -> None:
    source = bench.domain
    result = await asyncio.wait_for(by_postcopy(bench, CopyOptions(postcopy=how)), LIMIT)
    assert source.flags & postcopy.FLAG
    assert source.asked_for == b"a page", "a question goes through both agents"
    (runs,) = (event for event in bench.events if isinstance(event, RunsElsewhere))
    assert bench.arrived == [Resumed(ID, runs.at)]
    follows = [event for event in bench.events if isinstance(event, Copying) and event.postcopy]
    assert follows[-1].remaining == 0
    assert bench.said[0].startswith("diverted, VM runs, some left")
    assert [line.partition(",")[0] for line in bench.said[1:]] == ["Stopped", "RunsElsewhere"]
    assert bytes(bench.target.domain().taken[: len(MEMORY)]) == MEMORY
    assert (bench.source.states(), bench.target.states()) == ([], [RUNS])
    assert result.resumed_at == runs.at  # type: ignore[attr-defined]


async def test_a_target_that_cannot_is_told_apart(bench: MigrationEnds) -> None:  # noqa: F811
    with pytest.raises(HypervisorError, match="post-copy was asked for, and the target says that it cannot"):
        await bench.migration(divert=bench.divert, options=REQUIRED)
    await bench.stayed()
    domain = bench.domain
    await bench.migration(divert=bench.divert, options=CopyOptions(postcopy=Postcopy.IF_NEEDED))
    assert not domain.flags & postcopy.FLAG


async def test_a_vm_whose_rest_does_not_come_has_crashed_at_the_target_and_stays_stopped_here(
    bench: MigrationEnds,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outgoing, "RECOVERY_LIMIT", 1.0)
    told: list[HypervisorEvent] = []
    monkeypatch.setattr(bench.there, "on_event", _both(bench.there.on_event, told.append))
    source = bench.domain
    source.rest_goes.clear()
    going = by_postcopy(bench)
    async with asyncio.timeout(LIMIT):
        while not any(isinstance(event, RunsElsewhere) for event in bench.events):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    bench.ends[0]._writer.transport.abort()
    source.rest_goes.set()
    with pytest.raises(HandedOverError, match="lacks some of its memory"):
        await asyncio.wait_for(going, LIMIT)
    assert bench.arriving is not None
    with pytest.raises(HandedOverError, match="ran here, and has ended"):
        await asyncio.wait_for(asyncio.shield(bench.arriving), LIMIT)
    assert bench.target.states() == []
    async with asyncio.timeout(LIMIT):
        while told[-1].kind is not EventKind.FAILED:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert await bench.machine.state() is RunState.MOVED
    assert await bench.machine.is_left_over()


class OtherWays:
    """Connections in place of one that is broken, each in the order in which its two ends ask."""

    def __init__(self, *ends: Channel) -> None:
        self.made: list[tuple[Channel, ...]] = []
        self._asked = [0, 0]
        self._making = asyncio.Lock()
        for end, channel in enumerate(ends):
            channel.again = partial(self._next, end)

    async def _next(self, end: int) -> Channel:
        number = self._asked[end]
        self._asked[end] += 1
        async with self._making:
            while len(self.made) <= number:
                self.made.append(await channel_pair())
        return self.made[number][end]


@pytest.mark.parametrize("cannot_at_first", [0, 1])
async def test_post_copy_whose_connection_breaks_twice_goes_on(
    bench: MigrationEnds,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    cannot_at_first: int,
) -> None:
    """libvirt is told to go on, again where it fails at first; the guest's memory is whole."""
    monkeypatch.setattr(outgoing, "RECOVERY_LIMIT", 0.1)
    monkeypatch.setattr(another_way, "AGAIN_SECONDS", 0.001)
    source = bench.domain
    source.rest_goes.clear()
    source.cannot_go_on = cannot_at_first
    going = by_postcopy(bench)
    async with asyncio.timeout(LIMIT):
        while not any(isinstance(event, RunsElsewhere) for event in bench.events):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        ways = OtherWays(*bench.ends)
        bench.ends[0].abort()
        for time in (1, 2):
            source.rest_goes.set()  # Until libvirt goes on, when some is yet to go.
            while source.went_on < time:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            if time == 1:
                ways.made[-1][1].abort()
        source.rest_goes.set()
        await going
        assert bench.arriving is not None
        await bench.arriving
    assert bytes(bench.target.domain().taken[: len(MEMORY)]) == MEMORY
    assert (bench.source.states(), bench.target.states()) == ([], [RUNS])
    assert source.flags & resuming.FLAG and source.flags & postcopy.FLAG


class QemusMonitor(OwnMonitor):
    """Of the QEMU of a domain in memory, which breaks no page and needs no band."""

    def __init__(self, folder: Folder, domain: FakeDomain, source: FakeDomain) -> None:
        Monitor.__init__(self, ID, None, folder.memory(ID).outside, folder.memory(ID).inside)
        self.domain, self.source = domain, source
        self.asked: list[str] = []
        self.is_there = True
        self._end: socket.socket | None = None
        self._sending: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        return self.is_there

    async def keep(self) -> None:
        while not self._subscribers:  # noqa: ASYNC110
            await asyncio.sleep(0)
        self.publish({"event": "MIGRATION", "data": {"status": "postcopy-paused"}})

    async def close(self, *, is_left: bool = False) -> None:
        self.asked.append("left" if is_left else "close")

    async def give(self, end: socket.socket, name: str = "memory") -> str:
        self._end = end.dup()
        self._end.setblocking(True)
        return f"fd:{name}"

    async def command(self, command: str, arguments: dict[str, Any], *, out_of_band: bool = False) -> Any:
        self.asked.append(command)
        match command:
            case "query-migrate":
                return {"status": "postcopy-paused"}
            case "migrate-recover":
                assert out_of_band, "its main loop may wait for a page"
                self.domain.connection.listen_for(self.domain, self.source)
            case "migrate":
                assert arguments["resume"] and self._end is not None
                self._sending = asyncio.create_task(self._send(self._end))
        return {}

    async def _send(self, end: socket.socket) -> None:
        self.publish({"event": "MIGRATION", "data": {"status": "postcopy-recover"}})
        try:
            await asyncio.to_thread(self.domain.go_on_by, end)
            status = "completed"
        except libvirtError:
            status = "postcopy-paused"
        self.publish({"event": "MIGRATION", "data": {"status": status}})


class Monitors:
    """Those of both QEMUs, in the order in which they are opened."""

    def __init__(self, bench: MigrationEnds, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
        self._bench = bench
        self.made: list[QemusMonitor] = []
        monkeypatch.setattr(own_monitor, "opened", self._opened)

    async def _opened(self, folder: Folder, vm: str) -> QemusMonitor:
        source = self._bench.domain
        here = folder.outside == self._bench.source.folder
        self.made.append(QemusMonitor(folder, source if here else self._bench.target.domain(), source))
        return self.made[-1]


async def runs_there(bench: MigrationEnds) -> None:  # noqa: F811
    while not any(isinstance(event, RunsElsewhere) for event in bench.events):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_where_both_qemus_have_a_monitor_of_ours_they_go_on_past_libvirt(
    bench: MigrationEnds,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """libvirt would ask the target's, in band, which may wait for a page; twice, and the memory is whole."""
    monkeypatch.setattr(outgoing, "RECOVERY_LIMIT", 0.1)
    monkeypatch.setattr(another_way, "AGAIN_SECONDS", 0.001)
    monitors = Monitors(bench, monkeypatch)
    source = bench.domain
    source.rest_goes.clear()
    source.cannot_go_on = 1000
    going = by_postcopy(bench)
    async with asyncio.timeout(LIMIT):
        await runs_there(bench)
        ways = OtherWays(*bench.ends)
        bench.ends[0].abort()
        for time in (1, 2):
            source.rest_goes.set()
            while source.went_on < time:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            if time == 1:
                ways.made[-1][1].abort()
        source.rest_goes.set()
        await going
        assert bench.arriving is not None
        await bench.arriving
    assert bytes(bench.target.domain().taken[: len(MEMORY)]) == MEMORY
    assert (bench.source.states(), bench.target.states()) == ([], [RUNS])
    assert not source.flags & resuming.FLAG
    there, here = monitors.made
    assert there.asked.count("migrate-recover") >= 2 and there.asked[-1] == "close"
    assert here.asked.count("migrate") == 2 and here.asked[-1] == "close"


def left_in_postcopy(bench: MigrationEnds) -> FakeDomain:  # noqa: F811
    """The VM runs at its target, and both agents have ended; returns it as it is there."""
    source = bench.domain
    source.postcopy, source.memory = True, MEMORY
    came = source.came = bench.target.connection.take_in(source, source.xml)
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(bench.target.folder / f"{ID}.memory"))
        stream.sendall(MEMORY[: 64 * 4096])
    assert came.settled.wait(LIMIT)
    source.sent, source.remaining = 64 * 4096, len(MEMORY) - 64 * 4096
    source.now, came.now = (3, 13), (1, 11)
    return came


async def test_agents_that_come_after_go_on_at_both_ends(
    bench: MigrationEnds,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The target's by the monitor that QEMU has kept there; the source's as it frees the VM."""
    monkeypatch.setattr(another_way, "AGAIN_SECONDS", 0.001)
    source, came = bench.domain, left_in_postcopy(bench)
    Monitors(bench, monkeypatch)
    kept = QemusMonitor(bench.there._folder, came, source)
    monkeypatch.setattr(own_monitor, "may_be_left", lambda folder, vm: folder.outside == bench.target.folder)

    async def left(folder: Folder, vm: str, holders: object) -> QemusMonitor:
        return kept

    monkeypatch.setattr(own_monitor, "left", left)
    assert (await bench.here.adopt(lambda vm: ignore)).lacking == set()
    found = await bench.there.adopt(lambda vm: ignore)
    assert found.lacking == {ID}
    ways = OtherWays()
    events: list[Event] = []
    async with asyncio.timeout(LIMIT):
        assert await bench.machine.has_memory_to_give()
        coming = asyncio.create_task(bench.there.receive_the_rest(found.machines[0], partial(ways._next, 1)))
        going = asyncio.create_task(
            bench.here.send_the_rest(bench.machine, partial(ways._next, 0), events.append)
        )
        while not source.went_on:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        source.rest_goes.set()
        await asyncio.gather(coming, going)
        assert not await bench.machine.has_memory_to_give()
    assert bytes(came.taken) == MEMORY
    assert (bench.source.states(), bench.target.states()) == ([], [RUNS])
    assert isinstance(events[-1], Copying) and events[-1].postcopy and events[-1].remaining == 0
    assert kept.asked[-1] == "close"


async def test_an_agent_that_ends_as_it_takes_in_the_rest_leaves_it_to_the_next(
    bench: MigrationEnds,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    came = left_in_postcopy(bench)
    kept = QemusMonitor(bench.there._folder, came, bench.domain)
    bench.there._left[ID] = kept
    machine = await bench.there.find(ID)
    assert machine is not None
    ways = OtherWays()
    coming = asyncio.create_task(bench.there.receive_the_rest(machine, partial(ways._next, 1)))
    async with asyncio.timeout(LIMIT):
        while not ways.made:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    coming.cancel()
    await asyncio.gather(coming, return_exceptions=True)
    assert (kept.asked[-1], bench.target.states()) == ("left", [RUNS])


async def test_a_vm_whose_rest_nobody_brings_to_the_agent_that_comes_after_has_crashed(
    bench: MigrationEnds,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(another_way, "AGAIN_LIMIT", 0.1)
    came = left_in_postcopy(bench)
    bench.there._left[ID] = QemusMonitor(bench.there._folder, came, bench.domain)
    machine = await bench.there.find(ID)
    assert machine is not None

    async def nobody() -> Channel:
        raise HypervisorError("nobody brings it")

    async with asyncio.timeout(LIMIT):
        with pytest.raises(HandedOverError, match=r"lacks some of its memory: .* nobody brings it"):
            await bench.there.receive_the_rest(machine, nobody)
    assert bench.target.states() == []
    with pytest.raises(HypervisorError, match="is libvirt's to fetch"):
        await bench.there.receive_the_rest(machine, nobody)


async def test_a_vm_that_never_ran_at_its_target_is_taken_back(bench: MigrationEnds) -> None:  # noqa: F811
    """libvirt would leave it paused; its QEMU, whose stream stays open, has it as it was."""
    source = bench.domain
    source.dies_before_it_runs = True
    with pytest.raises(HandedOverError, match="libvirt does not tell whether it has migrated"):
        await asyncio.wait_for(by_postcopy(bench), LIMIT)
    assert bench.arriving is not None
    with pytest.raises(HypervisorError) as arrived:
        await asyncio.wait_for(asyncio.shield(bench.arriving), LIMIT)
    assert not isinstance(arrived.value, HandedOverError), "it never ran there: so the target says"
    assert await bench.machine.state() is RunState.MOVED
    await bench.machine.resume()
    assert await bench.machine.state() is RunState.RUNNING
    why = f"`retinue vm stop {ID} --hard`.*asyncPaused"
    with pytest.raises(HypervisorError, match=why):
        await bench.migration(divert=bench.divert)
    assert bench.arriving is not None
    with pytest.raises(HypervisorError, match=why):
        await bench.arriving
    source.now = (3, 13)
    with pytest.raises(HypervisorError, match=f"its stream ended with the agent.*`virsh destroy {ID}`"):
        await bench.machine.resume()


async def never_ran_there(bench: MigrationEnds) -> None:  # noqa: F811
    """The VM stands still here, stopped for post-copy, and its stream is kept open."""
    bench.domain.dies_before_it_runs = True
    with pytest.raises(HandedOverError):
        await asyncio.wait_for(by_postcopy(bench), LIMIT)
    assert bench.arriving is not None
    await asyncio.gather(bench.arriving, return_exceptions=True)
    assert list(bench.here.host.kept) == [ID]


async def test_a_qemu_that_is_cancelled_writes_nothing_meanwhile(
    bench: MigrationEnds,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await never_ran_there(bench)
    tell, told = bench.source.library.qemuMonitorCommand, list[str]()

    def telling(domain: FakeDomain, text: str, flags: int) -> str:
        told.append(json.loads(text)["execute"])
        return tell(domain, text, flags)

    monkeypatch.setattr(bench.source.library, "qemuMonitorCommand", telling)
    monkeypatch.setattr(Throttle, "let_wait", lambda stream: told.append("nobody reads"))
    await asyncio.wait_for(bench.machine.resume(), LIMIT)
    assert told[:3] == ["query-status", "nobody reads", "migrate_cancel"]


async def test_a_libvirtd_that_is_away_for_a_moment_costs_no_vm_its_return(
    bench: MigrationEnds,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await never_ran_there(bench)
    tell, away = bench.source.library.qemuMonitorCommand, ["migrate_cancel", "query-status"]

    def sometimes(domain: FakeDomain, text: str, flags: int) -> str:
        if away and away[0] in text:
            away.pop(0)
            raise libvirtError("Cannot recv data: Connection reset by peer")
        return tell(domain, text, flags)

    monkeypatch.setattr(bench.source.library, "qemuMonitorCommand", sometimes)
    await asyncio.wait_for(bench.machine.resume(), LIMIT)
    assert (away, await bench.machine.state()) == ([], RunState.RUNNING)
    assert not bench.here.host.kept


async def test_one_that_ran_there_after_all_is_freed_here(bench: MigrationEnds) -> None:  # noqa: F811
    """The target's word was lost on its way. With the stream open libvirt never sees a failure."""
    await never_ran_there(bench)
    bench.domain.now = (3, 12)
    assert await bench.machine.is_left_over()
    await bench.machine.quit()
    assert (bench.source.states(), bench.here.host.kept) == ([], {})


async def test_of_one_that_somebody_ends_nothing_is_kept(bench: MigrationEnds) -> None:  # noqa: F811
    await never_ran_there(bench)
    (stream,) = bench.here.host.kept.values()
    bench.domain.destroy()
    async with asyncio.timeout(LIMIT):
        while bench.here.host.kept:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert stream._ours.fileno() < 0


async def test_of_one_that_may_have_run_there_nobody_says_that_it_never_did(
    bench: MigrationEnds,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its target's libvirtd has started it, and is away before it says so."""
    monkeypatch.setattr(incoming, "AWAY_LIMIT", 0.05)
    monkeypatch.setattr(incoming, "AGAIN_SECONDS", 0.01)
    target = bench.target.connection

    def ran_unseen(came: FakeDomain) -> None:
        came.now = (1, 10)
        target.alive = False

    monkeypatch.setattr(target, "give_up", ran_unseen)
    bench.domain.dies_before_it_runs = True
    with pytest.raises(HandedOverError):
        await asyncio.wait_for(by_postcopy(bench), LIMIT)
    assert bench.arriving is not None
    with pytest.raises(HandedOverError, match="whether it has run here"):
        await asyncio.wait_for(asyncio.shield(bench.arriving), LIMIT)


async def test_of_a_vm_that_may_come_back_qemu_finds_no_end_of_its_stream() -> None:
    """The target's QEMU has ended: from an end in post-copy the source's would take nothing back."""
    here, there = await channel_pair()
    far = FarEnd(here, ID)
    ours, qemus = socket.socketpair()
    qemus.setblocking(False)
    far.throttle, far.asks_on = Throttle((ours, socket.socket())), True
    hearing = asyncio.create_task(far.hear())
    await there.send_memory(b"a page")
    await there.send_memory(b"")
    async with asyncio.timeout(LIMIT):
        assert await asyncio.get_running_loop().sock_recv(qemus, 100) == b"a page"
        while not far._end_is_due:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    with pytest.raises(BlockingIOError):
        qemus.recv(100)
    await there.send_message("running", at=1.0)
    async with asyncio.timeout(LIMIT):
        assert await asyncio.get_running_loop().sock_recv(qemus, 100) == b"", "it ran, and has all"
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)
    far.throttle.close()
    qemus.close()
    for channel in (here, there):
        channel.abort()


async def test_a_libvirtd_that_is_away_at_the_end_is_waited_for(
    bench: MigrationEnds,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(incoming, "AGAIN_SECONDS", 0.01)
    source = bench.domain
    source.rest_goes.clear()
    going = by_postcopy(bench)
    async with asyncio.timeout(LIMIT):
        while not any(isinstance(event, RunsElsewhere) for event in bench.events):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        bench.target.connection.alive = False
        source.rest_goes.set()
        await going
        assert bench.arriving is not None
        await asyncio.wait({bench.arriving}, timeout=0.1)
        assert not bench.arriving.done()
        bench.target.connection.alive = True
        await bench.arriving
    assert bench.target.states() == [RUNS]


def _both(*listeners: object) -> object:
    def hear(event: HypervisorEvent) -> None:
        for listener in listeners:
            listener(event)  # type: ignore[operator]

    return hear


async def test_a_cancelled_source_waits_for_the_rest(bench: MigrationEnds) -> None:  # noqa: F811
    source = bench.domain
    source.rest_goes.clear()
    going = by_postcopy(bench)
    async with asyncio.timeout(LIMIT):
        while not any(isinstance(event, RunsElsewhere) for event in bench.events):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    going.cancel()
    await asyncio.sleep(0)
    source.rest_goes.set()
    await asyncio.wait_for(going, LIMIT)
    assert (bench.source.states(), bench.target.states()) == ([], [RUNS])


# ---- whether this server can ----


def script(folder: Path, said: str, code: int = 0) -> tuple[str, ...]:
    path = folder / "qemu"
    path.write_text(f"cat >/dev/null\ncat <<'E'\n{said}\nE\necho complaint >&2\nexit {code}\n")
    return ("sh", str(path))


async def test_qemu_itself_says_whether_this_server_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    returns = "\n".join(3 * ['{"return": {}}'])
    await postcopy.check(script(tmp_path, returns))
    error = '{"return": {}}\n{"error": {"class": "GenericError", "desc": "Postcopy is not supported"}}'
    for said, why in ((error, "Postcopy is not supported"), ("", "complaint")):
        with pytest.raises(HypervisorError, match=f"userfaultfd.*{why}"):
            await postcopy.check(script(tmp_path, said, 1))
    with pytest.raises(HypervisorError, match=r"userfaultfd.*cannot be run: No such file"):
        await postcopy.check(("/nowhere/qemu",))
    monkeypatch.setattr(postcopy, "ANSWER_LIMIT", 0.05)
    with pytest.raises(HypervisorError, match="has not said so"):
        await postcopy.check(("sleep", "60"))


def test_qemu_is_asked_as_libvirt_would_start_it() -> None:
    assert postcopy.probe("")[:3] == ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
    assert postcopy.probe("root")[:6] == ("setpriv", "--reuid", "root", "--regid", "0", "--init-groups")
    with pytest.raises(HypervisorError, match="no user 'nobody-of-that-name'"):
        postcopy.probe("nobody-of-that-name")

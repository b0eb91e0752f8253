"""The VM driver as dialogues: the controller's events go in, what is done and told comes out."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from retinue.hypervisor import (
    Channel,
    Divert,
    Gone,
    HypervisorError,
    MigrationResult,
    OnEvent,
    Resumed,
    RunState,
    Stopped,
    VMSpec,
    ignore,
)
from retinue.hypervisor.argv import Files
from retinue.lab.driver_records import Happening, MoveRecord, SubnetRecord, VMRecord, guest_command_line
from retinue.lab.driver_rest import ControllerAwayError, HttpRest, RefusedError, parse_events
from retinue.lab.driver_socket import serving
from retinue.lab.guest import Guest
from retinue.lab.vm_keeper import Keeper
from retinue.lab.vmdriver import follow

GUEST = Guest(Path("/g/vmlinuz"), Path("/g/initrd"))
VM = VMRecord("web", "52:54:00:00:00:01", "server1", addresses=["10.1.0.50"])
MOVE = MoveRecord("move-1", "web", "server1", "server2")


class World:
    """Everything that happens on the fake servers and is told to the fake controller, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def note(self, what: str) -> None:
        self.log.append(what)

    def take(self) -> list[str]:
        found, self.log = self.log, []
        return found


class FakeMachine:
    def __init__(self, world: World, server: str, spec: VMSpec, on_event: OnEvent, state: RunState) -> None:
        self.world, self.server, self.spec, self.on_event, self.now = world, server, spec, on_event, state
        self.files = Files.named(Path("/tmp"), f"{server}-{spec.port}")
        self.ended = False

    async def state(self) -> RunState:
        return self.now

    async def pause(self) -> None:
        self.now = RunState.PAUSED

    async def resume(self) -> None:
        if self.ended:
            raise HypervisorError("QEMU has ended")
        if self.now is not RunState.RUNNING:
            self.world.note(f"{self.server}: cont")
        self.now = RunState.RUNNING

    async def quit(self) -> None:
        if not self.ended:
            self.world.note(f"{self.server}: quit")
        self.die()

    def die(self) -> None:
        if not self.ended:
            self.ended = True
            self.on_event(Gone(self.spec.id, 9.0))


class FakeHypervisor:
    """`script` tells what the next migration does: "ok", "fails", or "hangs" after an optional stop."""

    def __init__(self, world: World, server: str) -> None:
        self.world, self.server = world, server
        self.machines: list[FakeMachine] = []
        self.script = "ok"
        self.copying = asyncio.Event()
        self.broken = ""

    async def start(self, spec: VMSpec, on_event: OnEvent = ignore) -> FakeMachine:
        return self._open("start", spec, on_event, RunState.RUNNING)

    async def open_target(self, spec: VMSpec, on_event: OnEvent = ignore) -> FakeMachine:
        return self._open("open", spec, on_event, RunState.INCOMING)

    def _open(self, how: str, spec: VMSpec, on_event: OnEvent, state: RunState) -> FakeMachine:
        if self.broken:
            raise HypervisorError(self.broken)
        self.world.note(f"{self.server}: {how} {spec.id}")
        self.machines.append(FakeMachine(self.world, self.server, spec, on_event, state))
        return self.machines[-1]

    async def depart(
        self,
        source: FakeMachine,
        channel: Channel,
        on_event: OnEvent = ignore,
        divert: Divert | None = None,
    ) -> MigrationResult:
        self.world.note(f"{self.server}: depart")
        self.copying.set()
        try:
            if self.script == "hangs":
                await asyncio.Event().wait()
            if self.script == "fails":
                raise HypervisorError("the source gave up")
            if divert is not None:
                await divert()
            source.now = RunState.MOVED
            on_event(Stopped("web", 100.0))
            await channel.say("yours")
            at = float((await channel.hear())["at"])
        finally:
            await channel.close()
        if self.script == "hangs after resume":
            await asyncio.Event().wait()
        return MigrationResult(100.0, at, 600.0, 1, 2)

    async def arrive(self, target: FakeMachine, channel: Channel, on_event: OnEvent = ignore) -> float:
        try:
            await channel.hear()
        except HypervisorError:
            target.die()  # As the real one does: the target ends, the source runs.
            raise
        self.world.note(f"{target.server}: runs")
        target.now = RunState.RUNNING
        on_event(Resumed("web", 100.5))
        await channel.say("runs", at=100.5)
        await channel.close()
        return 100.5


class FakePorts:
    def __init__(self, world: World) -> None:
        self.world = world
        self.broken = ""

    async def add(self, server: str, vm: str, mac: str) -> None:
        if self.broken:
            raise HypervisorError(self.broken)
        self.world.note(f"{server}: plug {vm} {mac}")

    async def remove(self, server: str, vm: str) -> None:
        self.world.note(f"{server}: unplug {vm}")


class FakeRest:
    def __init__(self, world: World) -> None:
        self.world = world
        self.known: list[VMRecord] = []
        self.under_way: list[MoveRecord] = []
        self.away = 0
        """How many reports are not received."""
        self.refuses = ""
        self.silent = ""
        """Two kinds of report: one that is refused, and one that is never answered."""
        self.streams: asyncio.Queue[list[Happening] | ControllerAwayError] = asyncio.Queue()
        self.since: asyncio.Queue[int | None] = asyncio.Queue()

    async def vms(self) -> list[VMRecord]:
        return self.known

    async def moves(self) -> list[MoveRecord]:
        return self.under_way

    async def post(self, path: str, body: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        if body["event"] == self.silent:
            await asyncio.Event().wait()
        if self.away:
            self.away -= 1
            raise ControllerAwayError("hung up")
        if body["event"] == self.refuses:
            raise RefusedError("does not fit")
        self.world.note(" ".join(["told", path, *(str(v) for v in body.values())]))

    async def events(self, since: int | None) -> AsyncGenerator[Happening, None]:
        self.since.put_nowait(since)
        stream = await self.streams.get()
        if isinstance(stream, ControllerAwayError):
            raise stream
        for happening in stream:
            yield happening


class Bench:
    def __init__(self, tmp_path: Path) -> None:
        self.world = World()
        self.rest = FakeRest(self.world)
        self.ports = FakePorts(self.world)
        self.servers = {name: FakeHypervisor(self.world, name) for name in ("server1", "server2")}
        self.keeper = Keeper(self.rest, self.servers, self.ports, GUEST)

    async def after(self, *happenings: Happening) -> list[str]:
        for happening in happenings:
            self.keeper.take(happening)
        async with asyncio.timeout(5):
            await self.keeper.idle()
        return self.world.take()

    async def running(self) -> None:
        await self.after(Happening("vm.booked", vm=VM), Happening("vm.ready", vm=VM))

    async def prepared(self) -> None:
        await self.running()
        await self.after(Happening("move.prepare", move=MOVE))

    async def copying(self) -> None:
        """A move whose copy hangs."""
        await self.prepared()
        self.servers["server1"].script = "hangs"
        self.keeper.take(Happening("move.copy", move=MOVE))
        await self.servers["server1"].copying.wait()
        await self.keeper.reports.delivered()
        self.world.take()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.keeper.close()


# ---- a VM's life ----


async def test_a_booked_vm_is_plugged_in_and_a_ready_one_started(bench: Bench) -> None:
    assert await bench.after(Happening("vm.booked", vm=VM)) == ["server1: plug web 52:54:00:00:00:01"]
    assert await bench.after(Happening("vm.ready", vm=VM)) == [
        "server1: start web",
        "told /v1/vms/web/events started server1",
    ]
    spec = bench.servers["server1"].machines[0].spec
    assert (spec.port, spec.mac, spec.kernel) == ("tap-web", VM.mac, GUEST.kernel)


async def test_a_repeated_word_changes_nothing_and_is_answered_again(bench: Bench) -> None:
    await bench.running()
    assert await bench.after(Happening("vm.booked", vm=VM)) == []
    assert await bench.after(Happening("vm.ready", vm=VM)) == ["told /v1/vms/web/events started server1"]


async def test_a_removed_vm_ends_before_its_port_goes(bench: Bench) -> None:
    await bench.running()
    removed = [Happening("vm.removed", vm=VM)]
    assert await bench.after(*removed) == ["server1: quit", "server1: unplug web"]
    assert bench.keeper.vms == {}
    assert await bench.after(*removed) == []


async def test_a_vm_removed_and_booked_again_at_once_is_there(bench: Bench) -> None:
    await bench.running()
    again = VMRecord("web", "52:54:00:00:00:02", "server2")
    told = await bench.after(
        Happening("vm.removed", vm=VM), Happening("vm.booked", vm=again), Happening("vm.ready", vm=again)
    )
    assert told == [
        "server1: quit",
        "server1: unplug web",
        "server2: plug web 52:54:00:00:00:02",
        "server2: start web",
        "told /v1/vms/web/events started server2",
    ]


async def test_a_vm_that_ends_by_itself_is_reported_and_can_be_started_again(bench: Bench) -> None:
    await bench.running()
    bench.servers["server1"].machines[0].die()
    assert await bench.after() == ["told /v1/vms/web/events stopped server1"]
    assert "server1: start web" in await bench.after(Happening("vm.ready", vm=VM))


async def test_a_vm_that_does_not_start_is_reported_with_the_reason(bench: Bench) -> None:
    bench.servers["server1"].broken = "no kernel"
    told = await bench.after(Happening("vm.ready", vm=VM))
    assert told[-1] == "told /v1/vms/web/events stopped server1 no kernel"


async def test_one_vm_in_trouble_does_not_hold_up_another(bench: Bench) -> None:
    bench.ports.broken = "no bridge"
    assert await bench.after(Happening("vm.booked", vm=VM)) == []
    bench.ports.broken = ""
    elsewhere = VMRecord("lost", "52:54:00:00:00:03", "server9")
    assert await bench.after(Happening("vm.ready", vm=elsewhere), Happening("vm.ready", vm=VM)) == [
        "server1: plug web 52:54:00:00:00:01",
        "server1: start web",
        "told /v1/vms/web/events started server1",
    ]


# ---- a move ----


async def test_a_move_from_end_to_end(bench: Bench) -> None:
    await bench.running()
    assert await bench.after(Happening("move.prepare", move=MOVE)) == [
        "server2: plug web 52:54:00:00:00:01",
        "server2: open web",
        "told /v1/moves/move-1/events target_open",
    ]
    assert await bench.after(Happening("move.copy", move=MOVE)) == [
        "told /v1/moves/move-1/events copying",
        "server1: depart",
        "told /v1/moves/move-1/events converged",
        "told /v1/moves/move-1/events stopped 100.0",
        "server2: runs",
        "told /v1/moves/move-1/events resumed 100.5",
    ]
    assert await bench.after(Happening("move.cleanup", move=MOVE)) == [
        "server1: quit",
        "server1: unplug web",
        "told /v1/moves/move-1/events source_gone",
    ]
    kept = bench.keeper.vms["web"]
    assert (kept.runs_at, list(kept.places)) == ("server2", ["server2"])
    # Its end at the new place is news again.
    bench.servers["server2"].machines[0].die()
    assert await bench.after() == ["told /v1/vms/web/events stopped server2"]


async def test_steps_asked_for_twice_are_answered_twice_and_done_once(bench: Bench) -> None:
    await bench.prepared()
    assert await bench.after(Happening("move.prepare", move=MOVE)) == [
        "told /v1/moves/move-1/events target_open"
    ]
    await bench.after(Happening("move.copy", move=MOVE))
    assert await bench.after(Happening("move.copy", move=MOVE)) == [
        "told /v1/moves/move-1/events resumed 100.5"
    ]
    await bench.after(Happening("move.cleanup", move=MOVE))
    assert await bench.after(Happening("move.cleanup", move=MOVE)) == [
        "told /v1/moves/move-1/events source_gone"
    ]


async def test_a_target_that_does_not_open_fails_the_move(bench: Bench) -> None:
    await bench.running()
    bench.servers["server2"].broken = "no memory"
    told = await bench.after(Happening("move.prepare", move=MOVE))
    assert told[-1] == "told /v1/moves/move-1/events failed no memory"
    assert await bench.after(Happening("move.rollback", move=MOVE)) == [
        "server2: unplug web",
        "told /v1/moves/move-1/events rolled_back",
    ]


async def test_a_copy_that_fails_is_reported_and_rolled_back(bench: Bench) -> None:
    await bench.prepared()
    bench.servers["server1"].script = "fails"
    told = await bench.after(Happening("move.copy", move=MOVE))
    assert told[-1] == "told /v1/moves/move-1/events failed the source gave up"
    assert await bench.after(Happening("move.rollback", move=MOVE)) == [
        "server2: unplug web",
        "told /v1/moves/move-1/events rolled_back",
    ]
    assert bench.keeper.vms["web"].runs_at == "server1"
    # And once more, with success.
    bench.servers["server1"].script = "ok"
    await bench.after(Happening("move.prepare", move=MOVE), Happening("move.copy", move=MOVE))
    assert bench.keeper.vms["web"].runs_at == "server2"


async def test_a_rollback_calls_off_a_copy_under_way(bench: Bench) -> None:
    await bench.copying()
    assert await bench.after(Happening("move.rollback", move=MOVE)) == [
        "server2: unplug web",
        "told /v1/moves/move-1/events rolled_back",
    ]
    assert bench.servers["server2"].machines[0].ended
    assert await bench.servers["server1"].machines[0].state() is RunState.RUNNING
    assert bench.keeper.vms["web"].runs_at == "server1"


async def test_a_rollback_while_the_traffic_is_being_diverted_leaves_the_vm_where_it_is(bench: Bench) -> None:
    await bench.prepared()
    bench.rest.silent = "converged"
    bench.keeper.take(Happening("move.copy", move=MOVE))
    await bench.servers["server1"].copying.wait()
    told = await bench.after(Happening("move.rollback", move=MOVE))
    assert "server2: runs" not in told
    assert bench.servers["server2"].machines[0].ended
    assert await bench.servers["server1"].machines[0].state() is RunState.RUNNING
    assert bench.keeper.vms["web"].runs_at == "server1"


async def test_a_vm_whose_traffic_is_not_diverted_does_not_move(bench: Bench) -> None:
    await bench.prepared()
    bench.rest.refuses = "converged"
    told = await bench.after(Happening("move.copy", move=MOVE))
    assert told[-1].startswith(
        "told /v1/moves/move-1/events failed its traffic is not diverted: does not fit"
    )
    assert "server2: runs" not in told
    assert await bench.servers["server1"].machines[0].state() is RunState.RUNNING


async def test_a_vm_that_has_moved_is_not_sent_back_to_its_past(bench: Bench) -> None:
    await bench.prepared()
    await bench.after(Happening("move.copy", move=MOVE))
    assert await bench.after(Happening("move.rollback", move=MOVE)) == [
        "told /v1/moves/move-1/events resumed 100.5"
    ]
    kept = bench.keeper.vms["web"]
    assert kept.runs_at == "server2"
    assert await kept.places["server2"].machine.state() is RunState.RUNNING  # type: ignore[union-attr]


async def test_a_move_without_the_controller_is_told_to_nobody(bench: Bench) -> None:
    await bench.running()
    bench.world.take()
    kept = bench.keeper.vms["web"]
    moved = await bench.keeper.migrate(kept, "server2")
    assert (moved.stopped_at, moved.resumed_at) == (100.0, 100.5)
    assert kept.runs_at == "server2"
    assert bench.world.take() == [
        "server2: plug web 52:54:00:00:00:01",
        "server2: open web",
        "server1: depart",
        "server2: runs",
        "server1: quit",
        "server1: unplug web",
    ]
    with pytest.raises(HypervisorError, match="server2 already"):
        await bench.keeper.migrate(kept, "server2")


async def test_a_move_without_the_controller_that_fails_leaves_the_vm_where_it_was(bench: Bench) -> None:
    await bench.running()
    bench.servers["server1"].script = "fails"
    kept = bench.keeper.vms["web"]
    with pytest.raises(HypervisorError, match="gave up"):
        await bench.keeper.migrate(kept, "server2")
    assert kept.runs_at == "server1"
    assert list(kept.places) == ["server1"]


async def test_a_source_that_still_runs_the_vm_is_not_freed(bench: Bench) -> None:
    await bench.prepared()
    assert await bench.after(Happening("move.cleanup", move=MOVE)) == []
    assert bench.keeper.vms["web"].runs_at == "server1"


async def test_a_source_that_is_gone_after_a_rollback_is_told(bench: Bench) -> None:
    await bench.prepared()
    bench.servers["server1"].machines[0].die()
    told = await bench.after(Happening("move.rollback", move=MOVE))
    assert "told /v1/vms/web/events stopped server1" in told
    assert told[-1] == "told /v1/moves/move-1/events rolled_back"


async def test_a_move_of_a_vm_run_by_nobody_here_fails_with_the_reason(bench: Bench) -> None:
    assert await bench.after(Happening("move.prepare", move=MOVE)) == [
        "told /v1/moves/move-1/events failed the VM driver does not run VM web"
    ]


# ---- the controller comes and goes ----


async def test_reports_wait_for_the_controller_and_keep_their_order(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.agent.rest.RETRY_SECONDS", 0)
    await bench.prepared()
    bench.rest.away = 3
    told = await bench.after(Happening("move.copy", move=MOVE))
    assert [line.split()[2] for line in told if line.startswith("told")] == [
        "copying",
        "converged",
        "stopped",
        "resumed",
    ]


async def test_a_refused_report_does_not_hold_up_the_next(bench: Bench) -> None:
    await bench.prepared()
    bench.rest.refuses = "stopped"
    told = await bench.after(Happening("move.copy", move=MOVE))
    assert [line.split()[2] for line in told if line.startswith("told")] == [
        "copying",
        "converged",
        "resumed",
    ]


async def test_catching_up_does_what_was_missed(bench: Bench) -> None:
    waiting = VMRecord("db", "52:54:00:00:00:02", "server2")
    foreign = VMRecord("other", "52:54:00:00:00:09", "server2", reported=True)
    bench.rest.known = [VMRecord("web", VM.mac, "server1", state="running"), waiting, foreign]
    bench.rest.under_way = [
        MoveRecord("move-1", "web", "server1", "server2", "matched"),
        MoveRecord("move-0", "web", "server2", "server1", "done"),
    ]
    await bench.keeper.catch_up()
    told = await bench.after()
    assert "server2: plug db 52:54:00:00:00:02" in told
    assert not any("other" in line for line in told)
    assert [line for line in told if "web" in line or "move" in line] == [
        "server1: plug web 52:54:00:00:00:01",
        "server1: start web",
        "server2: plug web 52:54:00:00:00:01",
        "server2: open web",
        "told /v1/vms/web/events started server1",
        "told /v1/moves/move-1/events target_open",
    ]


async def test_a_copy_nobody_knows_of_fails(bench: Bench) -> None:
    bench.rest.known = [VM]
    bench.rest.under_way = [MoveRecord("move-1", "web", "server1", "server2", "copying")]
    await bench.keeper.catch_up()
    told = await bench.after()
    assert told[-1] == "told /v1/moves/move-1/events failed the VM driver knows nothing of this copy"


async def test_a_copy_under_way_survives_the_controllers_return(bench: Bench) -> None:
    await bench.copying()
    bench.rest.known = [VMRecord("web", VM.mac, "server1", state="running")]
    bench.rest.under_way = [MoveRecord("move-1", "web", "server1", "server2", "copying")]
    await bench.keeper.catch_up()
    await bench.keeper.vms["web"].todo.join()
    await bench.keeper.reports.delivered()
    assert not [line for line in bench.world.take() if "failed" in line]
    copying = bench.keeper.vms["web"].copying
    assert copying is not None
    assert not copying.done()


async def test_the_stream_is_followed_on_from_the_last_event(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.lab.vmdriver.AGAIN_SECONDS", 0)
    ready = asyncio.Event()
    following = asyncio.create_task(follow(bench.rest, bench.keeper, ready))
    for stream in (
        ControllerAwayError("not yet"),
        [Happening("hello", id=4), Happening("vm.booked", id=5, vm=VM)],
        [Happening("hello", id=9), Happening("vm.ready", id=9, vm=VM)],
        [Happening("hello", id=2)],
        [],
    ):
        bench.rest.streams.put_nowait(stream)
    async with asyncio.timeout(5):
        await ready.wait()
        asked = [await bench.rest.since.get() for _ in range(6)]
    following.cancel()
    # Not from a number that the controller, started again, has not reached.
    assert asked == [None, None, 5, 9, 2, 2]
    assert "server1: start web" in await bench.after()


# ---- what is read and written ----


async def lines(text: str) -> AsyncIterator[bytes]:
    for line in text.splitlines(keepends=True):
        yield line.encode()


async def test_events_are_read_from_the_stream_and_the_broken_ones_left_out() -> None:
    vm = json.dumps({"id": 7, "vm": {"id": "web", "mac": "m", "server": "s", "also": []}, "server": "s"})
    text = (
        'event: hello\ndata: {"id": 6, "type": "hello"}\n\n: still here\n\n'
        f"id: 7\nevent: vm.ready\ndata: {vm}\n\n"
        "event: port.here\ndata: not even read\n\n"
        "event: vm.booked\ndata: {broken\n\n"
        'event: vm.booked\ndata: {"vm": {"id": 5}}\n\n'
        "event: vm.booked\ndata: [1]\n\n"
        f"event: vm.removed\r\ndata: {vm}\r\n\r\n"
    )
    found = [h async for h in parse_events(lines(text))]
    assert [(h.type, h.id) for h in found] == [("hello", 6), ("vm.ready", 7), ("vm.removed", 7)]
    assert found[1].vm == VMRecord("web", "m", "s")


def test_a_guest_is_told_its_address_or_to_ask_for_one() -> None:
    assert "ip=dhcp" in guest_command_line(VMRecord("web", "m", "s")).split()
    subnets = {"10.1.0.50": SubnetRecord(25, "10.1.0.126")}
    fixed = VMRecord("web_1", "m", "s", addresses=["10.1.0.50"], subnets=subnets)
    assert {"ip=10.1.0.50/25,10.1.0.126", "hostname=web-1"} <= set(guest_command_line(fixed).split())
    assert "ip=10.1.0.50/24" in guest_command_line(VM).split()
    six = guest_command_line(VMRecord("v6", "m", "s", addresses=["2001:db8::5"])).split()
    assert {"ip=none", "ip6=2001:db8::5/64"} <= set(six)


async def test_the_real_client_speaks_http(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def stream(request: web.Request) -> web.StreamResponse:
        seen.append(request.query.get("since"))
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'event: hello\ndata: {"id": 3}\n\n')
        return response

    async def vms(_: web.Request) -> web.Response:
        return web.json_response({"vms": [{"id": "a/b", "mac": "m", "server": "s"}]})

    async def told(request: web.Request) -> web.Response:
        assert request.transport is not None
        seen.append(
            (request.match_info["id"], await request.json(), request.transport.get_extra_info("peername"))
        )
        if (await request.json())["event"] == "odd":
            return web.json_response({"error": "a VM knows no event 'odd'"}, status=409)
        return web.json_response({"ok": True})

    app = web.Application()
    app.add_routes(
        [web.get("/v1/events", stream), web.get("/v1/vms", vms), web.post("/v1/vms/{id}/events", told)]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    rest = HttpRest(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    try:
        assert [h.id async for h in rest.events(8)] == [3]
        assert (await rest.vms())[0].id == "a/b"
        await rest.post("/v1/vms/a%2Fb/events", {"event": "started"})
        with pytest.raises(RefusedError, match="knows no event 'odd'"):
            await rest.post("/v1/vms/a%2Fb/events", {"event": "odd"})
        assert seen[0] == "8"
        (first, _, peer), (_, _, again) = seen[1:]
        assert first == "a/b"
        assert peer == again  # One standing connection.
        await runner.cleanup()
        with pytest.raises(ControllerAwayError):
            await rest.vms()
    finally:
        await rest.close()
        await runner.cleanup()


async def test_lab_tools_ask_over_the_socket(bench: Bench, tmp_path: Path) -> None:
    await bench.running()
    machine = bench.servers["server1"].machines[0]
    machine.files = Files.named(tmp_path, "m")
    bench.keeper.vms["web"].consoles[:] = [tmp_path / "first", tmp_path / "gone"]
    (tmp_path / "first").write_text("RETINUE READY\n")

    async def shell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line.strip():
                token = line.split()[0]
                writer.write(token + b" begin\nhi\n\n" + token + b" end 0\n")

    async with (
        await asyncio.start_unix_server(shell, machine.files.shell),
        serving(tmp_path / "sock", bench.keeper),
    ):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "sock")

        async def ask(line: str) -> Any:
            writer.write(line.encode() + b"\n")
            return json.loads(await reader.readline())

        (shown,) = (await ask('{"do": "vms"}'))["vms"]
        assert (shown["id"], shown["runs_at"]) == ("web", "server1")
        assert shown["places"] == {"server1": {"port": "tap-web", "machine": True}}
        answer = await ask('{"do": "guest", "vm": "web", "command": "echo hi"}')
        assert answer == {"code": 0, "output": "hi\n"}
        assert await ask('{"do": "serial", "vm": "web"}') == {"text": "RETINUE READY\n"}
        for wrong, said in (
            ('{"do": "guest", "vm": "db"}', "there are: web"),
            ('{"do": "dance"}', "vms, guest or serial"),
            ("{", "truncated"),
            ('{"do": 5}', "str"),
        ):
            assert said in (await ask(wrong))["error"]
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    assert not (tmp_path / "sock").exists()

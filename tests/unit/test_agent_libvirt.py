"""Agents of servers whose VMs libvirt runs: two of them, with a controller and two libvirts in memory."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from fake_libvirt import FakeDomain, libvirtError
from libvirt_world import ID, INSIDE, LIMIT, MEMORY, PAUSED, RUNS, VM, Bench, bench_up, control
from retinue.agent.records import Happening, MoveRecord, VMRecord
from retinue.hypervisor import libvirt_departure

REPORTED = VMRecord(ID, VM.mac, "server1", reported=True)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(libvirt_departure, "HELD_BACK", 1 << 20)
    async with bench_up() as made:
        yield made


# ---- a VM's life ----


async def test_a_booked_vm_waits_paused_and_runs_when_its_network_stands(bench: Bench) -> None:
    assert await bench.take(Happening("vm.booked", vm=VM)) == []
    assert bench.source.place.states() == [PAUSED]
    assert bench.source.rest.kinds == [], "what waits does not run"
    for _ in ("once", "once more"):
        assert await bench.take(Happening("vm.ready", vm=VM)) == [f"server1 tells {ID} started"]
    assert bench.source.place.states() == [RUNS]
    assert len(bench.source.keeper.consoles[ID]) == 1
    assert await bench.take(Happening("vm.removed", vm=VM)) == []
    assert bench.source.place.states() == []
    assert (bench.source.keeper.vms, bench.target.keeper.vms) == ({}, {})


async def test_a_vm_of_somebody_elses_is_not_made_and_not_ended(bench: Bench) -> None:
    for kind in ("vm.booked", "vm.ready"):
        await bench.take(Happening(kind, vm=REPORTED))
    assert bench.source.place.states() == []
    theirs = await made_by_others(bench)
    await bench.take(Happening("vm.ready", vm=REPORTED), Happening("vm.removed", vm=REPORTED))
    assert bench.source.place.connection.domains_ == [theirs]


async def made_by_others(bench: Bench) -> FakeDomain:
    """A VM made by somebody's virsh, at server1."""
    await bench.runs()
    (ours,) = bench.source.place.connection.domains_
    ours.destroy()
    await bench.until(lambda: bench.source.keeper.vms == {})
    theirs = bench.source.place.connection.createXML(ours.xml, 0)
    theirs.memory = MEMORY
    await bench.until(lambda: ID in bench.source.keeper.vms and bench.source.keeper.vms[ID].runs)
    await bench.idle()
    return theirs


async def test_a_vm_that_ends_by_itself_is_known_to_have_ended_and_may_be_started_again(bench: Bench) -> None:
    (await bench.runs()).destroy()
    await bench.until(lambda: bench.source.keeper.vms == {})
    assert bench.source.rest.kinds[-1] == "stopped"
    await bench.take(Happening("vm.ready", vm=VM))
    assert bench.source.place.states() == [RUNS]


async def test_the_next_agent_takes_up_what_runs(bench: Bench) -> None:
    domain = await bench.runs()
    await bench.up("server1")
    assert bench.source.keeper.vms[ID].runs
    assert await bench.catch_up("server1", vm=VMRecord(ID, VM.mac, "server1", state="running")) == [
        f"server1 tells {ID} started"
    ]
    await bench.take(Happening("vm.removed", vm=VM))
    assert domain not in bench.source.place.connection.domains_, "it is ours to end again"


async def test_a_vm_that_left_while_nobody_looked_is_not_started_again(bench: Bench) -> None:
    """It may run elsewhere; and so it may not when its end was seen, or it was removed."""
    domain = await bench.runs()
    await bench.source.down()
    bench.source.place.connection.domains_.remove(domain)
    await bench.up("server1")
    for state in ("booked", "running"):
        told = await bench.catch_up("server1", vm=VMRecord(ID, VM.mac, "server1", state=state))
        assert (told, bench.source.place.states()) == ([], [])
    await bench.take(Happening("vm.removed", vm=VM), Happening("vm.booked", vm=VM))
    assert bench.source.place.states() == [PAUSED]


async def test_that_a_vm_is_booked_elsewhere_clears_the_doubt(bench: Bench) -> None:
    domain = await bench.runs()
    await bench.source.down()
    bench.source.place.connection.domains_.remove(domain)
    await bench.up("server1")
    await bench.catch_up("server1", vm=VMRecord(ID, VM.mac, "server2", state="running"))
    await bench.catch_up("server1", vm=VMRecord(ID, VM.mac, "server1", state="ready"))
    assert bench.source.place.states() == [RUNS]


# ---- moves of ours ----


def said_after_the_start(bench: Bench) -> list[str]:
    """What libvirt said at server1; whether its VM ran already when it was heard that it was made varies."""
    return [kind for kind in bench.source.rest.kinds if kind != "started"]


async def test_a_move_is_carried_out_by_both_agents(bench: Bench) -> None:
    domain = await bench.runs()
    bench.order("prepare")
    assert await bench.told("target_open") == ["server2 tells move-1 target_open"]
    assert bench.target.rest.memory_at == bench.target.transfer.address
    assert bench.target.place.states() == [], "libvirt opens the target when the source begins"
    bench.order("begin", "begin")
    await bench.until(lambda: bench.target.place.states() == [PAUSED])
    assert await bench.idle() == []
    assert not bench.target.place.domain().taken, "nothing is copied before it is asked for"
    bench.order("copy")
    told = await bench.told("resumed")
    assert told == [f"{at} tells move-1 {what}" for at, what in (
        ("server1", "copying"), ("server1", "converged"), ("server1", "stopped"), ("server2", "resumed"))
    ]  # fmt: skip
    assert bytes(bench.target.place.domain().taken) == MEMORY
    await bench.until(lambda: bench.source.place.states() == [])
    bench.order("cleanup")
    assert await bench.told("source_gone") == ["server1 tells move-1 source_gone"]
    await bench.idle()
    assert bench.source.keeper.vms == {}
    assert (bench.target.place.states(), bench.target.keeper.vms[ID].runs) == ([RUNS], True)
    assert said_after_the_start(bench) == ["departed"]
    assert bench.target.rest.kinds == ["incoming", "resumed"]
    port = bench.target.keeper.vms[ID].machine.spec.port  # type: ignore[union-attr]
    assert bench.target.commands == [f"ip link set dev {port} txqueuelen 10000"]
    assert domain.sent == len(MEMORY)
    assert not bench.source.keeper._ward.ports.was_here(ID)  # type: ignore[attr-defined]


async def test_it_comes_back_the_same_way(bench: Bench) -> None:
    await test_a_move_is_carried_out_by_both_agents(bench)
    bench.target.place.domain().memory = MEMORY
    bench.agents = dict(zip(("server1", "server2"), reversed(bench.agents.values()), strict=True))
    back = MoveRecord("move-2", ID, "server2", "server1", "", bench.target.transfer.address)
    here = VMRecord(ID, VM.mac, "server2")
    for name, word in (("prepare", "target_open"), ("begin", ""), ("copy", "resumed")):
        for agent in bench.agents.values():
            agent.keeper.take(Happening(f"move.{name}", vm=here, move=back))
        if word:
            await bench.told(word)
        else:
            await bench.until(lambda: bench.target.place.states() == [PAUSED])
    assert bench.target.place.states() == [RUNS]


async def test_a_vm_of_somebody_elses_can_be_moved_by_us_too(bench: Bench) -> None:
    await made_by_others(bench)
    bench.order("prepare", vm=REPORTED)
    await bench.told("target_open")
    bench.order("begin", vm=REPORTED)
    await bench.until(lambda: bench.target.place.states() == [PAUSED])
    bench.order("copy")
    await bench.told("resumed")
    await bench.until(lambda: bench.source.place.states() == [])
    bench.order("cleanup")
    await bench.told("source_gone")
    assert bench.target.place.states() == [RUNS]


async def test_a_refused_diversion_ends_the_move_with_the_vm_where_it_was(bench: Bench) -> None:
    domain = await bench.opened()
    bench.source.rest.refuses = "converged"
    bench.order("copy")
    await bench.told("server1 tells move-1 failed")
    bench.order("rollback")
    told = await bench.told("rolled_back", "target_gone")
    assert [line for line in told if "stopped" in line] == []
    assert (domain.now[0], domain.aborted, bench.target.place.states()) == (RUNS, True, [])
    await bench.idle()
    assert bench.target.keeper.vms == {}
    # And it can be moved after that.
    bench.source.rest.refuses = ""
    domain.sent = 0
    bench.order("prepare")
    await bench.told("target_open")
    bench.order("begin")
    await bench.until(lambda: bench.target.place.states() == [PAUSED])
    bench.order("copy")
    await bench.told("resumed")


@pytest.mark.parametrize("after", ["prepare", "begin"])
async def test_a_move_is_cancelled_before_it_is_copied(bench: Bench, after: str) -> None:
    if after == "prepare":
        await bench.runs()
        bench.order("prepare")
        await bench.told("target_open")
    else:
        await bench.opened()
    bench.order("rollback")
    await bench.told("rolled_back", "target_gone")
    assert (bench.source.place.states(), bench.target.place.states()) == ([RUNS], [])
    await bench.until(lambda: bench.target.keeper.vms == {})


async def test_a_vm_that_is_not_there_cannot_be_moved(bench: Bench) -> None:
    bench.order("prepare", "begin")
    told = await bench.told("server1 tells move-1 failed")
    assert [line for line in told if "failed" in line] == [
        f"server1 tells move-1 failed VM {ID} does not run on server1"
    ]
    assert bench.source.keeper.vms == {}


async def test_what_was_missed_is_caught_up_with(bench: Bench) -> None:
    await bench.runs()
    matched = bench.move("matched")
    assert await bench.catch_up("server2", matched) == ["server2 tells move-1 target_open"]
    await bench.catch_up("server1", matched)
    await bench.until(lambda: bench.target.place.states() == [PAUSED])
    await bench.catch_up("server1", bench.move("prepared"))
    await bench.told("resumed")


# ---- an agent that ends in the middle ----


@pytest.mark.parametrize("state", ["prepared", "copying", "diverted"])
async def test_the_sources_agent_ends_in_the_middle(bench: Bench, state: str) -> None:
    """Its socket goes with it: libvirt gives up, and the VM runs on."""
    domain = await bench.opened()
    bench.source.rest.silent = "converged"
    if state != "prepared":
        bench.order("copy")
        await bench.told("copying")
    await bench.up("server1")
    await bench.until(lambda: (domain.now[0], bench.target.place.states()) == (RUNS, []))
    told = await bench.catch_up("server1", bench.move(state))
    assert any("server1 tells move-1 failed" in line for line in told)
    bench.order("rollback")
    await bench.told("rolled_back", "target_gone")
    assert bench.source.place.states() == [RUNS]


@pytest.mark.parametrize("state", ["admitting", "copying", "diverted"])
async def test_the_targets_agent_ends_in_the_middle(bench: Bench, state: str) -> None:
    domain = await bench.opened()
    bench.source.rest.silent = "converged"
    if state != "admitting":
        bench.order("copy")
        await bench.told("copying")
    await bench.up("server2")
    await bench.told("server1 tells move-1 failed")
    await bench.until(lambda: (domain.now[0], bench.target.place.states()) == (RUNS, []))
    await bench.catch_up("server2", bench.move(state))
    bench.order("rollback")
    await bench.told("rolled_back", "target_gone")
    assert bench.source.place.states() == [RUNS]
    await bench.until(lambda: bench.target.keeper.vms == {})


async def test_a_target_that_has_run_while_its_agent_was_away_is_told(bench: Bench) -> None:
    """Its move was on its last step: libvirt has made it, and the VM runs there."""
    domain = await bench.runs()
    await bench.target.down()
    bench.source.place.connection.domains_.remove(domain)
    there = bench.target.place.connection.createXML(domain.xml, 0)
    await bench.up("server2")
    told = await bench.catch_up(
        "server2", bench.move("diverted"), vm=VMRecord(ID, VM.mac, "server2", state="running")
    )
    assert "server2 tells move-1 resumed" in told
    assert bench.target.place.connection.domains_ == [there]


# ---- moves of others ----


class Theirs:
    """A move that somebody's virsh makes of VM, from server1 to server2; it takes its time."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.domain = bench, bench.source.place.domain()
        self._wire = socket.socket(socket.AF_UNIX)
        self._wire.bind(str(bench.source.place.folder / "theirs"))
        self._wire.listen()
        self._wire.setblocking(False)
        self._moving: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        parameters = {"migrate_uri": f"unix://{INSIDE}/theirs"}
        going = asyncio.to_thread(self.domain.migrateToURI3, control("server2"), parameters, 3)
        self._moving = asyncio.create_task(going)
        await self.bench.until(lambda: self.bench.target.place.states() == [PAUSED])

    async def end(self) -> None:
        """Bring the memory there, as their own connection would."""
        loop = asyncio.get_running_loop()
        wire, _ = await loop.sock_accept(self._wire)
        there = socket.socket(socket.AF_UNIX)
        with wire, there:
            for end in (wire, there):
                end.setblocking(False)
            await loop.sock_connect(there, str(self.bench.target.place.folder / f"{ID}.memory"))
            while octets := await loop.sock_recv(wire, 1 << 20):
                await loop.sock_sendall(there, octets)
            there.shutdown(socket.SHUT_WR)
            await loop.sock_sendall(wire, await loop.sock_recv(there, 100))
            await self.over()

    async def over(self) -> None:
        assert self._moving is not None
        async with asyncio.timeout(LIMIT):
            await self._moving

    def close(self) -> None:
        self._wire.close()


@pytest.fixture
async def theirs(bench: Bench) -> AsyncIterator[Theirs]:
    await bench.runs()
    made = Theirs(bench)
    yield made
    made.close()


async def test_a_move_of_others_is_followed_and_left_alone(bench: Bench, theirs: Theirs) -> None:
    await theirs.begin()
    bench.order("prepare", "copy", ours=False)
    assert await bench.idle() == []
    await theirs.end()
    bench.order("cleanup", ours=False)
    assert await bench.told("source_gone") == ["server1 tells move-1 source_gone"]
    await bench.until(lambda: bench.target.keeper.vms[ID].runs and bench.source.keeper.vms == {})
    assert said_after_the_start(bench) == ["suspended", "departed"]
    assert bench.target.rest.kinds == ["incoming", "resumed"]
    # It is ours to end, as it is booked, wherever it has been brought.
    await bench.take(Happening("vm.removed", vm=VMRecord(ID, VM.mac, "server2")))
    assert bench.target.place.states() == []


async def test_what_others_moved_away_is_not_started_here_again(bench: Bench, theirs: Theirs) -> None:
    """The controller has not heard of it yet, and asks for the VM where it was."""
    await theirs.begin()
    await theirs.end()
    await bench.until(lambda: bench.source.keeper.vms[ID].handed_over)
    for kind in ("vm.booked", "vm.ready"):
        assert await bench.take(Happening(kind, vm=VM)) == []
    assert (bench.source.place.states(), bench.target.place.states()) == ([], [RUNS])


async def test_a_move_of_others_can_be_cancelled(bench: Bench, theirs: Theirs) -> None:
    await theirs.begin()
    bench.order("prepare", "copy", ours=False)
    await bench.idle()
    bench.order("rollback", ours=False)
    assert await bench.told("rolled_back") == ["server1 tells move-1 rolled_back"]
    with pytest.raises(libvirtError):
        await theirs.over()
    assert (bench.source.place.states(), bench.target.place.states()) == ([RUNS], [])
    await bench.until(lambda: bench.target.keeper.vms == {})
    assert bench.source.keeper.vms[ID].runs


async def test_an_agent_that_starts_again_leaves_a_move_of_others_alone(bench: Bench, theirs: Theirs) -> None:
    await theirs.begin()
    for server in ("server1", "server2"):
        await bench.up(server)
        assert [
            w for w in await bench.catch_up(server, bench.move("copying", ours=False)) if "fail" in w
        ] == []
    await theirs.end()
    await bench.until(lambda: bench.target.keeper.vms[ID].runs)
    assert (bench.source.place.states(), bench.target.place.states()) == ([], [RUNS])


async def test_what_is_being_moved_is_not_moved_by_us_besides(bench: Bench, theirs: Theirs) -> None:
    """The target has the VM already when the controller asks for it there."""
    await theirs.begin()
    bench.order("prepare")
    assert await bench.idle() == []
    await theirs.end()
    await bench.until(lambda: bench.target.keeper.vms[ID].runs)

"""Agents of servers whose VMs libvirt runs: two of them, with a controller and two libvirts in memory."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from retinue.agent.main import sizes, sizes_of_others
from retinue.agent.vms import libvirt as agent_libvirt
from retinue.core.migration import MigrationState
from retinue.core.migration.presence import HandedOver
from retinue.core.model import Power
from retinue.hypervisor import Channel, HandedOverError, OnEvent, Resumed
from retinue.hypervisor.libvirt.machine import LibvirtMachine
from retinue.protocol.events import ControllerEvent, EventType
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.mobility import VMSize
from retinue.protocol.vms import VMRecord, VMState
from support.agents.libvirt_world import (
    ID,
    INSIDE,
    LIMIT,
    MEMORY,
    PAUSED,
    RUNS,
    VM,
    LibvirtServers,
    bench_up,
    control,
)
from support.fakes.libvirt import FakeDomain, libvirtError

REPORTED = VMRecord(ID, VM.mac, "server1", reported=True)


@pytest.fixture
async def bench() -> AsyncIterator[LibvirtServers]:
    async with bench_up() as made:
        yield made


# ---- a VM's life ----


async def test_a_registered_vm_waits_paused_and_runs_when_its_network_stands(bench: LibvirtServers) -> None:
    assert await bench.take(ControllerEvent("vm.registered", vm=VM)) == []
    assert bench.source.location.states() == [PAUSED]
    assert bench.source.rest.kinds == [], "what waits does not run"
    for _ in ("once", "once more"):
        assert await bench.take(ControllerEvent("vm.ready", vm=VM)) == [f"server1 tells {ID} started"]
    assert bench.source.location.states() == [RUNS]
    assert len(bench.source.dispatcher.consoles[ID]) == 1
    assert await bench.take(ControllerEvent("vm.removed", vm=VM)) == []
    assert bench.source.location.states() == []
    assert (bench.source.dispatcher.vms, bench.target.dispatcher.vms) == ({}, {})


async def test_a_vm_of_somebody_elses_is_not_made_and_not_ended(bench: LibvirtServers) -> None:
    for kind in ("vm.registered", "vm.ready"):
        await bench.take(ControllerEvent(kind, vm=REPORTED))
    assert bench.source.location.states() == []
    theirs = await made_by_others(bench)
    assert sizes(bench.source.dispatcher) == []
    assert sizes_of_others(bench.source.dispatcher) == [VMSize(ID, 128, 0)], "as its libvirt describes it"
    await bench.take(ControllerEvent("vm.ready", vm=REPORTED), ControllerEvent("vm.removed", vm=REPORTED))
    assert bench.source.location.connection.domains_ == [theirs]


async def test_a_vm_that_others_start_here_outlives_the_removal_of_its_name_elsewhere(
    bench: LibvirtServers,
) -> None:
    """Its removal from server2 is told here last; by then somebody has it running here."""
    theirs = await made_by_others(bench)
    elsewhere = VMRecord(ID, VM.mac, "server2")
    await bench.take(ControllerEvent("vm.removed", vm=elsewhere))
    assert bench.source.location.connection.domains_ == [theirs]
    assert bench.source.dispatcher.vms[ID].runs
    await bench.take(ControllerEvent("server.fenced", server="server1"))
    await bench.take(ControllerEvent("vm.removed", vm=elsewhere))
    assert bench.source.location.connection.domains_ == [], "what was called dead keeps nothing"


async def made_by_others(bench: LibvirtServers) -> FakeDomain:
    """A VM made by somebody's virsh, at server1."""
    await bench.runs()
    (ours,) = bench.source.location.connection.domains_
    ours.destroy()
    await bench.until(lambda: bench.source.dispatcher.vms == {})
    theirs = bench.source.location.connection.createXML(ours.xml, 0)
    theirs.memory = MEMORY
    await bench.until(lambda: ID in bench.source.dispatcher.vms and bench.source.dispatcher.vms[ID].runs)
    await bench.idle()
    return theirs


async def test_a_vm_that_ends_by_itself_is_known_to_have_ended_and_may_be_started_again(
    bench: LibvirtServers,
) -> None:
    (await bench.runs()).destroy()
    await bench.until(lambda: bench.source.dispatcher.vms == {})
    assert bench.source.rest.kinds[-1] == "stopped"
    await bench.take(ControllerEvent("vm.ready", vm=VM))
    assert bench.source.location.states() == [RUNS]


async def test_the_next_agent_takes_up_what_runs(bench: LibvirtServers) -> None:
    domain = await bench.runs()
    await bench.up("server1")
    assert bench.source.dispatcher.vms[ID].runs
    assert await bench.catch_up("server1", vm=VMRecord(ID, VM.mac, "server1", state=VMState.RUNNING)) == [
        f"server1 tells {ID} started"
    ]
    await bench.take(ControllerEvent("vm.removed", vm=VM))
    assert domain not in bench.source.location.connection.domains_, "it is ours to end again"


async def test_a_vm_that_left_while_nobody_looked_is_not_started_again(bench: LibvirtServers) -> None:
    """It may run elsewhere; and so it may not when its end was seen, or it was removed."""
    domain = await bench.runs()
    await bench.source.down()
    bench.source.location.connection.domains_.remove(domain)
    await bench.up("server1")
    for state in (VMState.REGISTERED, VMState.RUNNING):
        told = await bench.catch_up("server1", vm=VMRecord(ID, VM.mac, "server1", state=state))
        assert (told, bench.source.location.states()) == ([], [])
    await bench.take(ControllerEvent("vm.removed", vm=VM), ControllerEvent("vm.registered", vm=VM))
    assert bench.source.location.states() == [PAUSED]


async def test_that_a_vm_is_registered_elsewhere_clears_the_doubt(bench: LibvirtServers) -> None:
    domain = await bench.runs()
    await bench.source.down()
    bench.source.location.connection.domains_.remove(domain)
    await bench.up("server1")
    await bench.catch_up("server1", vm=VMRecord(ID, VM.mac, "server2", state=VMState.RUNNING))
    await bench.catch_up("server1", vm=VMRecord(ID, VM.mac, "server1", state=VMState.READY))
    assert bench.source.location.states() == [RUNS]


# ---- moves of ours ----


def said_after_the_start(bench: LibvirtServers) -> list[str]:
    """What libvirt said at server1; whether its VM ran already when it was heard that it was made varies."""
    return [kind for kind in bench.source.rest.kinds if kind != "started"]


async def test_a_move_is_carried_out_by_both_agents(bench: LibvirtServers) -> None:
    domain = await bench.runs()
    bench.order("open_target")
    assert await bench.told("target_opened") == ["server2 tells migration-1 target_opened"]
    assert bench.target.rest.memory_at == bench.target.transfer.address
    assert bench.target.location.states() == [], "libvirt opens the target when the source begins"
    bench.order("prepare_source", "prepare_source")
    await bench.until(lambda: bench.target.location.states() == [PAUSED])
    assert await bench.idle() == []
    assert not bench.target.location.domain().taken, "nothing is copied before it is asked for"
    bench.order("start_copy")
    every = [line for line in await bench.told("resumed", f"{ID} started") if ID not in line]
    told = [line for line in every if " copying " not in line]
    assert told != every, "how far the copy is is told, however often libvirt was asked"
    assert told == [f"{at} tells migration-1 {what}" for at, what in (
        ("server1", "copy_started"), ("server1", "converged"), ("server1", "stopped"), ("server2", "resumed"))
    ]  # fmt: skip
    assert bytes(bench.target.location.domain().taken[: len(MEMORY)]) == MEMORY
    await bench.until(lambda: bench.source.location.states() == [])
    bench.order("free_source")
    assert await bench.told("source_freed") == ["server1 tells migration-1 source_freed"]
    await bench.idle()
    assert bench.source.dispatcher.vms == {}
    assert (bench.target.location.states(), bench.target.dispatcher.vms[ID].runs) == ([RUNS], True)
    assert said_after_the_start(bench) == ["departed"]
    assert bench.target.rest.kinds == ["incoming", "resumed"]
    port = bench.target.dispatcher.vms[ID].machine.spec.port  # type: ignore[union-attr]
    assert bench.target.commands == [f"ip link set dev {port} txqueuelen 10000"]
    assert bench.source.commands == bench.target.commands, "and so it was where it was started"
    assert domain.sent > len(MEMORY)
    assert not bench.source.dispatcher._lifecycle.ports.was_here(ID)  # type: ignore[attr-defined]


async def test_what_a_failed_post_copy_has_left_at_the_source_is_ended(bench: LibvirtServers) -> None:
    """libvirt keeps it, paused, for another attempt; the VM ran elsewhere, and is old here."""
    domain = await bench.runs()
    domain.now = (PAUSED, 13)
    bench.order("free_source")
    assert await bench.told("source_freed") == ["server1 tells migration-1 source_freed"]
    assert bench.source.location.states() == []


@pytest.mark.parametrize(("reason", "ours"), [(2, True), (2, False), (13, False)])
async def test_a_vm_that_is_paused_for_its_move_is_not_ended(
    bench: LibvirtServers, monkeypatch: pytest.MonkeyPatch, reason: int, ours: bool
) -> None:
    """Nor is what a post-copy of others has left, which they may take up again (`--postcopy-resume`)."""
    domain = await bench.runs()
    domain.now = (PAUSED, reason)
    monkeypatch.setattr(agent_libvirt, "FREED_LIMIT", 0.1)
    bench.order("free_source", ours=ours)
    await asyncio.sleep(3 * agent_libvirt.FREED_LIMIT)  # It is tried again and again.
    assert bench.source.location.states() == [PAUSED]


async def test_it_comes_back_the_same_way(bench: LibvirtServers) -> None:
    await test_a_move_is_carried_out_by_both_agents(bench)
    bench.target.location.domain().memory = MEMORY
    bench.agents = dict(zip(("server1", "server2"), reversed(bench.agents.values()), strict=True))
    back = MigrationRecord(
        "migration-2", ID, "server2", "server1", MigrationState.PLANNED, bench.target.transfer.address
    )
    here = VMRecord(ID, VM.mac, "server2")
    for name, word in (("open_target", "target_opened"), ("prepare_source", ""), ("start_copy", "resumed")):
        for agent in bench.agents.values():
            agent.dispatcher.on_event(ControllerEvent(f"migration.{name}", vm=here, migration=back))
        if word:
            await bench.told(word)
        else:
            await bench.until(lambda: bench.target.location.states() == [PAUSED])
    assert bench.target.location.states() == [RUNS]


async def test_a_vm_of_somebody_elses_can_be_moved_by_us_too(bench: LibvirtServers) -> None:
    theirs = await made_by_others(bench)
    theirs.xml = theirs.xml.replace("131080K", f"{256 * 1024}K")
    bench.order("open_target", vm=REPORTED)
    await bench.told("target_opened")
    bench.order("prepare_source", vm=REPORTED)
    await bench.until(lambda: bench.target.location.states() == [PAUSED])
    bench.order("start_copy")
    await bench.told("resumed")
    await bench.until(lambda: bench.source.location.states() == [])
    bench.order("free_source")
    await bench.told("source_freed")
    assert bench.target.location.states() == [RUNS]
    assert sizes(bench.target.dispatcher) == []
    assert sizes_of_others(bench.target.dispatcher) == [VMSize(ID, 256, 0)], "as libvirt says there, too"


async def test_a_rejected_diversion_ends_the_move_with_the_vm_where_it_was(bench: LibvirtServers) -> None:
    domain = await bench.opened()
    bench.source.rest.rejects = "converged"
    bench.order("start_copy")
    await bench.told("server1 tells migration-1 failed")
    bench.order("roll_back")
    told = await bench.told("rolled_back", "target_closed")
    assert [line for line in told if "stopped" in line] == []
    assert (domain.now[0], domain.aborted, bench.target.location.states()) == (RUNS, True, [])
    await bench.idle()
    assert bench.target.dispatcher.vms == {}
    # And it can be moved after that.
    bench.source.rest.rejects = ""
    domain.sent = 0
    bench.order("open_target")
    await bench.told("target_opened")
    bench.order("prepare_source")
    await bench.until(lambda: bench.target.location.states() == [PAUSED])
    bench.order("start_copy")
    await bench.told("resumed")


@pytest.mark.parametrize("after", ["open_target", "prepare_source"])
async def test_a_move_is_cancelled_before_it_is_copied(bench: LibvirtServers, after: str) -> None:
    if after == "open_target":
        await bench.runs()
        bench.order("open_target")
        await bench.told("target_opened")
    else:
        await bench.opened()
    bench.order("roll_back")
    await bench.told("rolled_back", "target_closed")
    assert (bench.source.location.states(), bench.target.location.states()) == ([RUNS], [])
    await bench.until(lambda: bench.target.dispatcher.vms == {})


async def test_a_vm_that_is_not_there_cannot_be_moved(bench: LibvirtServers) -> None:
    bench.order("open_target", "prepare_source")
    told = await bench.told("server1 tells migration-1 failed")
    assert [line for line in told if "failed" in line] == [
        f"server1 tells migration-1 failed VM {ID} does not run on server1"
    ]
    assert bench.source.dispatcher.vms == {}


async def test_what_was_missed_is_caught_up_with(bench: LibvirtServers) -> None:
    await bench.runs()
    matched = bench.migration("matched")
    assert await bench.catch_up("server2", matched) == ["server2 tells migration-1 target_opened"]
    await bench.catch_up("server1", matched)
    await bench.until(lambda: bench.target.location.states() == [PAUSED])
    await bench.catch_up("server1", bench.migration("prepared"))
    await bench.told("resumed")


# ---- an agent that ends in the middle ----


@pytest.mark.parametrize("state", ["prepared", "copying", "diverted"])
async def test_the_sources_agent_ends_in_the_middle(bench: LibvirtServers, state: str) -> None:
    """Its socket goes with it: libvirt gives up, and the VM runs on."""
    domain = await bench.opened()
    bench.source.rest.silent = "converged"
    if state != "prepared":
        bench.order("start_copy")
        await bench.told("copy_started")
    await bench.up("server1")
    await bench.until(lambda: (domain.now[0], bench.target.location.states()) == (RUNS, []))
    told = await bench.catch_up("server1", bench.migration(state))
    assert any("server1 tells migration-1 failed" in line for line in told)
    bench.order("roll_back")
    await bench.told("rolled_back", "target_closed")
    assert bench.source.location.states() == [RUNS]


@pytest.mark.parametrize("state", ["admitting", "copying", "diverted"])
async def test_the_targets_agent_ends_in_the_middle(bench: LibvirtServers, state: str) -> None:
    domain = await bench.opened()
    bench.source.rest.silent = "converged"
    if state != "admitting":
        bench.order("start_copy")
        await bench.told("copy_started")
    await bench.up("server2")
    await bench.told("server1 tells migration-1 failed")
    await bench.until(lambda: (domain.now[0], bench.target.location.states()) == (RUNS, []))
    await bench.catch_up("server2", bench.migration(state))
    bench.order("roll_back")
    await bench.told("rolled_back", "target_closed")
    assert bench.source.location.states() == [RUNS]
    await bench.until(lambda: bench.target.dispatcher.vms == {})


async def test_a_target_that_has_run_while_its_agent_was_away_is_told(bench: LibvirtServers) -> None:
    """Its migration was on its last step: libvirt has made it, and the VM runs there."""
    domain = await bench.runs()
    await bench.target.down()
    bench.source.location.connection.domains_.remove(domain)
    there = bench.target.location.connection.createXML(domain.xml, 0)
    await bench.up("server2")
    told = await bench.catch_up(
        "server2", bench.migration("diverted"), vm=VMRecord(ID, VM.mac, "server2", state=VMState.RUNNING)
    )
    assert "server2 tells migration-1 resumed" in told
    assert bench.target.location.connection.domains_ == [there]


# ---- moves of others ----


class Theirs:
    """A migration that somebody's virsh makes of VM, from server1 to server2; it takes its time."""

    def __init__(self, bench: LibvirtServers) -> None:
        self.bench, self.domain = bench, bench.source.location.domain()
        self._wire = socket.socket(socket.AF_UNIX)
        self._wire.bind(str(bench.source.location.folder / "theirs"))
        self._wire.listen()
        self._wire.setblocking(False)
        self._migrating: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        parameters = {"migrate_uri": f"unix://{INSIDE}/theirs"}
        going = asyncio.to_thread(self.domain.migrateToURI3, control("server2"), parameters, 3)
        self._migrating = asyncio.create_task(going)
        await self.bench.until(lambda: self.bench.target.location.states() == [PAUSED])

    async def end(self) -> None:
        """Bring the memory there, as their own connection would."""
        loop = asyncio.get_running_loop()
        wire, _ = await loop.sock_accept(self._wire)
        there = socket.socket(socket.AF_UNIX)
        with wire, there:
            for end in (wire, there):
                end.setblocking(False)
            await loop.sock_connect(there, str(self.bench.target.location.folder / f"{ID}.memory"))
            await asyncio.gather(_bring(wire, there), _bring(there, wire))
            await self.over()

    async def over(self) -> None:
        assert self._migrating is not None
        async with asyncio.timeout(LIMIT):
            await self._migrating

    def close(self) -> None:
        self._wire.close()


async def _bring(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while nbytes := await loop.sock_recv(source, 1 << 20):
        await loop.sock_sendall(target, nbytes)
    with contextlib.suppress(OSError):  # It has all, and has hung up.
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
async def theirs(bench: LibvirtServers) -> AsyncIterator[Theirs]:
    await bench.runs()
    made = Theirs(bench)
    yield made
    made.close()


async def test_a_move_of_others_is_followed_and_left_alone(bench: LibvirtServers, theirs: Theirs) -> None:
    await theirs.begin()
    bench.order("open_target", "start_copy", ours=False)
    assert await bench.idle() == []
    await theirs.end()
    bench.order("free_source", ours=False)
    assert await bench.told("source_freed") == ["server1 tells migration-1 source_freed"]
    await bench.until(lambda: bench.target.dispatcher.vms[ID].runs and bench.source.dispatcher.vms == {})
    assert said_after_the_start(bench) == ["suspended", "departed"]
    assert bench.target.rest.kinds == ["incoming", "resumed"]
    # It is ours to end, as it is registered, wherever it has been brought.
    await bench.take(ControllerEvent("vm.removed", vm=VMRecord(ID, VM.mac, "server2")))
    assert bench.target.location.states() == []


async def test_what_others_moved_away_is_not_started_here_again(
    bench: LibvirtServers, theirs: Theirs
) -> None:
    """The controller has not heard of it yet, and asks for the VM where it was."""
    await theirs.begin()
    await theirs.end()
    await bench.until(lambda: bench.source.dispatcher.vms[ID].handed_over)
    for kind in ("vm.registered", "vm.ready"):
        assert await bench.take(ControllerEvent(kind, vm=VM)) == []
    assert (bench.source.location.states(), bench.target.location.states()) == ([], [RUNS])


async def test_a_move_of_others_can_be_cancelled(bench: LibvirtServers, theirs: Theirs) -> None:
    await theirs.begin()
    bench.order("open_target", "start_copy", ours=False)
    await bench.idle()
    bench.order("roll_back", ours=False)
    assert await bench.told("rolled_back", f"{ID} started") == [
        "server1 tells migration-1 rolled_back",
        f"server1 tells {ID} started",
    ]
    with pytest.raises(libvirtError):
        await theirs.over()
    assert (bench.source.location.states(), bench.target.location.states()) == ([RUNS], [])
    await bench.until(lambda: bench.target.dispatcher.vms == {})
    assert bench.source.dispatcher.vms[ID].runs


async def test_an_agent_that_starts_again_leaves_a_move_of_others_alone(
    bench: LibvirtServers, theirs: Theirs
) -> None:
    await theirs.begin()
    for server in ("server1", "server2"):
        await bench.up(server)
        assert [
            w for w in await bench.catch_up(server, bench.migration("copying", ours=False)) if "fail" in w
        ] == []
    await theirs.end()
    await bench.until(lambda: bench.target.dispatcher.vms[ID].runs)
    assert (bench.source.location.states(), bench.target.location.states()) == ([], [RUNS])


async def test_what_is_being_moved_is_not_moved_by_us_besides(bench: LibvirtServers, theirs: Theirs) -> None:
    """The target has the VM already when the controller asks for it there."""
    await theirs.begin()
    bench.order("open_target")
    assert await bench.idle() == []
    await theirs.end()
    await bench.until(lambda: bench.target.dispatcher.vms[ID].runs)


# ---- power ----


def power(type: EventType, **fields: object) -> ControllerEvent:
    return ControllerEvent(type, vm=VM, **fields)  # type: ignore[arg-type]


async def test_a_vm_of_libvirts_is_switched_off_by_its_power_button(bench: LibvirtServers) -> None:
    domain = await bench.runs()
    await bench.take(power(EventType.VM_STOP, seconds=60.0))
    await bench.until(lambda: bench.source.dispatcher.vms == {})
    assert (domain.asked, bench.source.location.states()) == (["shutdown"], [])
    assert bench.source.rest.kinds[-1] == "stopped"
    off = VMRecord(ID, VM.mac, "server1", VMState.OFF, power=Power.OFF)
    await bench.catch_up("server1", vm=off)
    assert bench.source.location.states() == [], "not even made: it would take its memory"
    await bench.take(power(EventType.VM_START), ControllerEvent("vm.ready", vm=VM))
    assert bench.source.location.states() == [RUNS]


async def test_a_vm_of_libvirts_that_does_not_heed_it_is_destroyed(bench: LibvirtServers) -> None:
    domain = await bench.runs()
    domain.deaf = True
    await bench.take(power(EventType.VM_STOP, seconds=0.01))
    await bench.until(lambda: bench.source.dispatcher.vms == {})
    assert (domain.asked, bench.source.rest.kinds[-1]) == (["shutdown"], "stopped")


async def test_a_vm_of_libvirts_that_waits_to_be_started_is_ended_by_a_stop(bench: LibvirtServers) -> None:
    await bench.take(ControllerEvent("vm.registered", vm=VM))
    await bench.take(power(EventType.VM_STOP, hard=True))
    assert bench.source.location.states() == []


async def test_a_vm_of_libvirts_reboots_where_it_is(bench: LibvirtServers) -> None:
    domain = await bench.runs()
    await bench.take(power(EventType.VM_REBOOT, seconds=60.0))
    await bench.until(lambda: bench.source.rest.kinds[-1] == "rebooted")
    await bench.until(bench.source.dispatcher.vms[ID].started_anew.is_set)
    assert domain.asked == ["reboot"]
    domain.deaf = True
    await bench.take(power(EventType.VM_REBOOT, seconds=0.01))
    await bench.until(lambda: domain.asked == ["reboot", "reboot", "reset"])
    await bench.take(power(EventType.VM_RESET))
    assert domain.asked[-1] == "reset"
    assert bench.source.location.domain() is domain, "it is the same, at the same port"
    assert bench.source.dispatcher.vms[ID].runs


async def test_a_guest_of_libvirts_whose_lease_is_refused_sees_its_link_go_and_come(
    bench: LibvirtServers,
) -> None:
    domain = await bench.runs()
    bench.source.dispatcher.has_lost_its_lease(ID)
    await bench.until(lambda: domain.asked == ["link down", "link up"])


async def test_a_vm_that_is_lost_in_postcopy_is_told_to_have_crashed(bench: LibvirtServers) -> None:
    """libvirt's own word of its end comes in the middle of its migration, and counts as that's."""

    async def lost(target: object, channel: Channel, hear: OnEvent) -> float:
        hear(Resumed(ID, 5.0))
        came.crash()
        await asyncio.sleep(0.1)  # Its end is told before that of its memory is seen.
        await channel.close()
        raise HandedOverError("its memory does not come")

    xml = (await bench.runs()).xml
    bench.target.hypervisor.run_incoming = lost  # type: ignore[method-assign, assignment]
    bench.order("open_target")
    await bench.told("target_opened")
    came = bench.target.location.connection.createXML(xml, 0)
    bench.order("prepare_source")
    (end,) = [line for line in await bench.told(f"server2 tells {ID} stopped") if "stopped" in line]
    assert "its memory does not come" in end or "crashed" in end
    await bench.until(lambda: ID not in bench.target.dispatcher.vms)
    await bench.take(ControllerEvent("vm.ready", vm=replace(VM, server="server2")))
    assert bench.target.location.states() == [RUNS], "it may be started anew"


async def test_a_vm_of_libvirts_whose_qemu_ends_has_crashed(bench: LibvirtServers) -> None:
    (await bench.runs()).crash()
    await bench.until(lambda: bench.source.dispatcher.vms == {})
    assert bench.source.rest.kinds[-1] == "failed"


async def test_a_source_with_memory_to_give_gives_it_before_it_is_freed(bench: LibvirtServers) -> None:
    """Whoever sent it has ended: the agent that comes after knows nothing of the migration, and looks."""
    domain = await bench.runs()
    domain.now = (3, 13)
    bench.source.dispatcher.vms.clear()
    given: list[str] = []

    async def send_the_rest(machine: LibvirtMachine, again: object, hear: object) -> None:
        given.append(machine.spec.id)
        bench.source.location.connection.domains_.remove(domain)  # libvirt ends it then.

    bench.source.hypervisor.send_the_rest = send_the_rest  # type: ignore[method-assign, assignment]
    bench.order("free_source")
    await bench.told("source_freed")
    assert given == [ID]


async def test_a_source_that_libvirt_ends_late_is_freed_late(
    bench: LibvirtServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("FREED_LIMIT", 0.01), ("LOOK_SECONDS", 0.001)):
        monkeypatch.setattr(f"retinue.agent.vms.libvirt.{name}", seconds)
    domain = await bench.runs()
    bench.source.dispatcher.vms[ID].presence = HandedOver("migration-1")
    bench.order("free_source")
    await asyncio.sleep(0.1)
    assert not any("source_freed" in line for line in bench.world.log)
    bench.source.location.connection.domains_.remove(domain)
    assert "server1 tells migration-1 source_freed" in await bench.told("source_freed")

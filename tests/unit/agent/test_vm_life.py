"""A VM's life as its agent leads it: what fails is tried again, what was done is looked at, and a VM that was
switched off, one that has crashed and one that reboots are three things."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from retinue.core.model import Ending, Power, Restart
from retinue.hypervisor import Left, RunState
from retinue.protocol.events import ControllerEvent, EventType
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.vms import VMRecord, VMState
from support.agents.world import VM, FakeMachine, FakeServer, TwoServers, bench_up
from support.virtual_time import run

REMOVED = ControllerEvent("vm.removed", vm=VM)
REGISTERED, READY = ControllerEvent("vm.registered", vm=VM), ControllerEvent("vm.ready", vm=VM)
OFF = VMRecord(VM.id, VM.mac, "server1", VMState.OFF, power=Power.OFF)


@pytest.fixture
async def bench() -> AsyncIterator[TwoServers]:
    async with bench_up() as made:
        yield made


def order(type: EventType, **fields: object) -> ControllerEvent:
    return ControllerEvent(type, vm=VM, **fields)  # type: ignore[arg-type]


# ---- what is to be undone is undone ----


async def removed_in_the_end(bench: TwoServers) -> None:
    agent = bench.source
    agent.dispatcher.on_event(REMOVED)
    async with asyncio.timeout(600):
        while agent.dispatcher.vms:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert bench.world.log[-1] == "server1: unplug web"
    assert agent.ports.plugged == set()
    assert agent.machine.ended
    assert agent.hypervisor.forgotten == ["web"]


@pytest.mark.parametrize("what", ["port", "machine", "both"])
def test_a_removal_that_fails_is_tried_until_it_is_so(what: str) -> None:
    async def story() -> None:
        async with bench_up() as bench:
            await bench.registered()
            bench.source.ports.stuck = 3 if what != "machine" else 0
            bench.source.machine.immortal = 4 if what != "port" else 0
            await removed_in_the_end(bench)

    run(story())


def test_a_source_whose_port_stays_for_a_while_is_freed_and_said_to_be() -> None:
    async def story() -> None:
        async with bench_up() as bench:
            await bench.after(REGISTERED)
            bench.source.ports.stuck = 2
            event = ControllerEvent("migration.free_source", migration=bench.migration())
            bench.source.dispatcher.on_event(event)
            async with asyncio.timeout(600):
                while "server1 tells migration-1 source_freed" not in bench.world.log:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert bench.world.log[-2:] == ["server1: unplug web", "server1 tells migration-1 source_freed"]

    run(story())


def test_a_vm_that_had_no_port_gets_it_when_that_is_possible() -> None:
    async def story() -> None:
        async with bench_up() as bench:
            bench.source.ports.broken = "no bridge"
            assert await bench.after(REGISTERED) == []
            await asyncio.sleep(30)
            assert bench.source.ports.plugged == set()
            bench.source.ports.broken = ""
            await asyncio.sleep(30)
            assert bench.source.ports.plugged == {"web"}

    run(story())


def test_a_vm_that_is_removed_is_not_tried_to_be_plugged_in_any_more() -> None:
    async def story() -> None:
        async with bench_up() as bench:
            bench.source.ports.broken = "no bridge"
            await bench.after(REGISTERED, REMOVED)
            bench.source.ports.broken = ""
            await asyncio.sleep(60)
            assert bench.source.ports.plugged == set()
            assert bench.source.dispatcher.vms == {}

    run(story())


# ---- ports are looked at ----


async def test_a_port_that_was_taken_out_is_put_back(bench: TwoServers) -> None:
    await bench.registered()
    bench.source.ports.plugged.clear()
    gone = ControllerEvent(EventType.PORT_REMOVED, vm_id="web")
    assert await bench.after(gone) == ["server1: plug web 52:54:00:00:00:01"]
    assert await bench.after(gone) == [], "it is there"
    bench.source.ports.plugged.clear()
    assert "server1: plug web 52:54:00:00:00:01" in await bench.catch_up("server1")


async def test_a_port_is_put_back_when_its_vm_is_adopted(bench: TwoServers) -> None:
    await bench.registered()
    machine = bench.source.machine
    await adopted(bench, Left([machine]))
    assert await bench.settled() == ["server1: plug web 52:54:00:00:00:01"]
    assert machine.now is RunState.RUNNING, "untouched"


async def test_a_machine_that_ends_while_it_is_adopted_ends_no_agent(bench: TwoServers) -> None:
    await bench.registered()
    machine = bench.source.machine
    await bench.source.dispatcher.close()
    machine.die()
    await adopted(bench, Left([machine]))
    assert bench.source.dispatcher.vms == {}
    await bench.catch_up("server1", vms=(VMRecord(VM.id, VM.mac, "server1", VMState.READY),))
    assert bench.world.running("web") == ["server1"]


async def test_a_port_that_went_as_it_should_stays_away(bench: TwoServers) -> None:
    await bench.registered()
    await bench.after(REMOVED)
    assert await bench.after(ControllerEvent(EventType.PORT_REMOVED, vm_id="web")) == []


def test_a_port_that_cannot_be_put_back_is_tried_again() -> None:
    async def story() -> None:
        async with bench_up() as bench:
            await bench.registered()
            bench.source.ports.plugged.clear()
            bench.source.ports.broken = "the switch's database is away"
            await bench.after(ControllerEvent(EventType.PORT_REMOVED, vm_id="web"))
            await asyncio.sleep(20)
            bench.source.ports.broken = ""
            await asyncio.sleep(20)
            assert bench.source.ports.plugged == {"web"}

    run(story())


# ---- power ----


async def test_a_vm_is_switched_off_by_its_power_button(bench: TwoServers) -> None:
    await bench.registered()
    assert await bench.after(order(EventType.VM_STOP, seconds=60.0)) == [
        "server1: power button",
        "server1 tells web stopped off",
    ]
    assert await bench.after(order(EventType.VM_STOP, seconds=60.0)) == ["server1 tells web stopped off"]
    assert bench.source.hypervisor.reported == ["web"] * 2
    assert await bench.after(READY) == ["server1: start web", "server1 tells web started"]


def test_a_guest_that_does_not_heed_the_button_is_switched_off_after_the_time() -> None:
    async def story() -> None:
        async with bench_up() as bench:
            await bench.registered()
            bench.source.machine.deaf = True
            assert await bench.after(order(EventType.VM_STOP, seconds=60.0)) == ["server1: power button"]
            await asyncio.sleep(59)
            assert bench.world.running("web") == ["server1"]
            await asyncio.sleep(2)
            assert await bench.settled() == ["server1: power cut", "server1 tells web stopped off"]

    run(story())


async def test_a_guest_whose_lease_is_refused_sees_its_link_go_and_come(bench: TwoServers) -> None:
    """So a DHCP client that watches it asks by itself; a VM that does not run, or is not here, has none."""
    for vm in ("web", "other"):
        bench.source.dispatcher.has_lost_its_lease(vm)
    assert await bench.settled() == []
    await bench.registered()
    bench.source.dispatcher.has_lost_its_lease("web")
    assert await bench.settled() == ["server1: link down and up"]
    await bench.after(order(EventType.VM_STOP, hard=True))
    bench.source.dispatcher.has_lost_its_lease("web")
    assert await bench.settled() == []


def test_a_link_that_could_not_be_flapped_is_tried_again() -> None:
    """Until the guest has seen it, once; of a VM that has ended meanwhile there is none to see it."""

    async def story() -> None:
        async with bench_up() as bench:
            await bench.registered()
            for ends in (False, True):
                machine = bench.source.machine
                machine.stuck = True
                bench.source.dispatcher.has_lost_its_lease("web")
                await asyncio.sleep(60)
                assert await bench.settled() == []
                machine.stuck = False
                if ends:
                    await bench.after(order(EventType.VM_STOP, hard=True))
                await asyncio.sleep(60)
                assert await bench.settled() == ([] if ends else ["server1: link down and up"])

    run(story())


def test_what_failed_is_tried_again_whatever_else_fails_after_it() -> None:
    """A port that cannot be put back does not wait for ever, since a link could not be flapped either."""

    async def story() -> None:
        async with bench_up() as bench:
            await bench.registered()
            bench.source.ports.plugged.clear()
            bench.source.ports.broken = "the switch's database is away"
            bench.source.machine.stuck = True
            await bench.after(ControllerEvent(EventType.PORT_REMOVED, vm_id="web"))
            bench.source.dispatcher.has_lost_its_lease("web")
            await bench.settled()
            bench.source.ports.broken, bench.source.machine.stuck = "", False
            await asyncio.sleep(60)
            assert bench.source.ports.plugged == {"web"}
            assert "server1: link down and up" in await bench.settled()

    run(story())


async def test_a_hard_stop_does_not_wait_for_a_soft_one(bench: TwoServers) -> None:
    await bench.registered()
    bench.source.machine.deaf = True
    await bench.after(order(EventType.VM_STOP, seconds=3600.0))
    assert await bench.after(order(EventType.VM_STOP, hard=True)) == [
        "server1: power cut",
        "server1 tells web stopped off",
    ]


async def test_a_removal_does_not_wait_for_a_guest_to_shut_down(bench: TwoServers) -> None:
    await bench.registered()
    bench.source.machine.deaf = True
    await bench.after(order(EventType.VM_STOP, seconds=3600.0))
    assert await bench.after(REMOVED) == ["server1: quit", "server1: unplug web"]


async def test_a_vm_switched_off_from_inside_is_off_and_one_that_ends_has_crashed(bench: TwoServers) -> None:
    await bench.registered()
    bench.source.machine.power_off()
    assert await bench.settled() == ["server1 tells web stopped off"]
    await bench.after(READY)
    bench.source.machine.die()
    assert await bench.settled() == ["server1 tells web stopped crashed"]


def test_a_guest_is_rebooted_and_one_that_does_not_heed_it_is_reset() -> None:
    async def story() -> None:
        async with bench_up() as bench:
            await bench.registered()
            machine = bench.source.machine
            assert await bench.after(order(EventType.VM_REBOOT, seconds=60.0)) == ["server1: reboot"]
            await asyncio.sleep(100)
            assert bench.world.take() == []
            machine.deaf = True
            assert await bench.after(order(EventType.VM_REBOOT, seconds=60.0)) == ["server1: reboot"]
            await asyncio.sleep(100)
            assert bench.world.take() == ["server1: reset"]
            assert await bench.after(order(EventType.VM_RESET)) == ["server1: reset"]
            assert bench.source.machine is machine and machine.now is RunState.RUNNING
            assert bench.source.ports.plugged == {"web"}

    run(story())


async def test_a_guest_that_resets_in_the_middle_of_its_migration_migrates(bench: TwoServers) -> None:
    await bench.copying_until("copy")
    assert await bench.after(order(EventType.VM_RESET)) == ["server1: reset"]
    bench.source.hypervisor.go_on.set()
    told = await bench.settled()
    assert "server2 tells migration-1 resumed 100.5" in told
    assert not any("stopped off" in line or "crashed" in line for line in told)
    assert bench.world.running("web") == ["server2"]


async def test_what_is_another_servers_vm_is_not_switched_off(bench: TwoServers) -> None:
    await bench.registered()
    there = VMRecord("web", VM.mac, "server2")
    for type in (EventType.VM_STOP, EventType.VM_REBOOT, EventType.VM_RESET):
        bench.source.dispatcher.on_event(ControllerEvent(type, vm=there, hard=True))
    assert await bench.settled() == []
    assert bench.world.running("web") == ["server1"]


# ---- catching up ----


async def adopted(bench: TwoServers, left: Left[FakeMachine]) -> None:
    """Another agent takes up what this one has left."""
    old = bench.source
    await old.down()
    bench.agents["server1"] = await FakeServer.up(
        bench.world, "server1", int(old.transfer.address.rpartition(":")[2])
    )
    for machine in left.machines:
        machine.on_event = bench.source.dispatcher.listener(machine.spec.id)
    await bench.source.dispatcher.adopt_all(left)
    bench.world.take()


async def test_a_vm_that_is_off_stays_off_over_any_restart(bench: TwoServers) -> None:
    assert await bench.catch_up("server1", vms=(OFF,)) == ["server1: plug web 52:54:00:00:00:01"]
    assert await bench.catch_up("server1", vms=(OFF,)) == []
    await adopted(bench, Left())
    assert await bench.catch_up("server1", vms=(OFF,)) == ["server1: plug web 52:54:00:00:00:01"]


@pytest.mark.parametrize("power", [Power.CRASHED, Power.RUNNING])
async def test_a_vm_that_has_crashed_is_not_started_by_catching_up(bench: TwoServers, power: Power) -> None:
    crashed = VMRecord(VM.id, VM.mac, "server1", VMState.CRASHED, power=power, restart=Restart.ON_CRASH)
    assert await bench.catch_up("server1", vms=(crashed,)) == ["server1: plug web 52:54:00:00:00:01"]


async def test_a_stop_that_was_missed_is_made_good(bench: TwoServers) -> None:
    await bench.registered()
    assert await bench.catch_up("server1", vms=(OFF,)) == [
        "server1: power button",
        "server1 tells web stopped off",
    ]


async def test_a_stop_under_way_is_not_begun_again_by_catching_up(bench: TwoServers) -> None:
    await bench.registered()
    bench.source.machine.deaf = True
    await bench.after(order(EventType.VM_STOP, seconds=3600.0))
    assert await bench.catch_up("server1", vms=(OFF,)) == []


@pytest.mark.parametrize("how", Ending)
@pytest.mark.parametrize("power", Power)
@pytest.mark.parametrize("state", [VMState.REGISTERED, VMState.READY, VMState.RUNNING])
async def test_a_vm_that_ended_while_no_agent_looked_is_reported_and_not_started(
    bench: TwoServers, how: Ending, state: VMState, power: Power
) -> None:
    await adopted(bench, Left(ended={"web": how}))
    vm = VMRecord(VM.id, VM.mac, "server1", state, power=power)
    told, plugged = sorted(await bench.catch_up("server1", vms=(vm,)))
    assert told.startswith("server1 tells web stopped") and told.endswith(how)
    assert plugged == "server1: plug web 52:54:00:00:00:01"
    await asyncio.sleep(0)
    assert bench.source.hypervisor.reported == ["web"]
    assert await bench.after(READY) == [
        "server1: start web",
        "server1 tells web started",
    ], "the controller's word counts"


async def test_a_vm_that_was_removed_while_nobody_listened_ends(bench: TwoServers) -> None:
    await bench.registered()
    await adopted(bench, Left([bench.source.machine]))
    assert "server1: quit" not in await bench.catch_up("server1", vms=()), "forgotten is not removed"
    bench.source.rest.removed = ["web", "db"]
    assert await bench.catch_up("server1", vms=()) == ["server1: quit", "server1: unplug web"]
    assert await bench.catch_up("server1", vms=()) == []
    # One that was registered anew is another.
    await bench.catch_up("server1", vms=(VMRecord(VM.id, VM.mac, "server1", VMState.READY),))
    assert bench.world.running("web") == ["server1"]


@pytest.mark.parametrize("heard", ["as it happens", "afterwards"])
async def test_a_server_that_was_called_dead_gives_its_vms_up(bench: TwoServers, heard: str) -> None:
    """Where they are registered elsewhere by now; a server that only hung runs them still."""
    await bench.registered()
    elsewhere = VMRecord(VM.id, VM.mac, "server2", VMState.READY)
    assert "server1: quit" not in await bench.catch_up("server1", vms=(elsewhere,)), "its word is missing"
    if heard == "afterwards":
        bench.source.rest.fenced = ["server1"]
        done = await bench.catch_up("server1", vms=(elsewhere,))
    else:
        assert "server1: quit" not in await bench.after(ControllerEvent("server.fenced", server="server3"))
        done = await bench.after(
            ControllerEvent("server.fenced", server="server1"), ControllerEvent("vm.registered", vm=elsewhere)
        )
    assert [line for line in done if line.startswith("server1: ")] == ["server1: quit", "server1: unplug web"]
    bench.source.rest.fenced = []
    await bench.catch_up("server1", vms=(VMRecord(VM.id, VM.mac, "server1", VMState.READY),))
    assert "server1" in bench.world.running("web"), "it may have it again"


async def test_a_vm_that_is_known_by_its_port_alone_is_not_started(bench: TwoServers) -> None:
    """Its port came when it had been removed, and went again: it came back for ever."""
    reported = ControllerEvent("vm.ready", vm=VMRecord(VM.id, VM.mac, "server1", reported=True))
    await bench.registered()
    assert await bench.after(reported) == ["server1 tells web started"]
    assert await bench.after(REMOVED, reported) == ["server1: quit", "server1: unplug web"]
    assert bench.source.dispatcher.vms == {}


@pytest.mark.parametrize("at", ["server1", "server2"])
async def test_a_vm_that_runs_is_said_to_run_wherever_its_migration_has_come_to(
    bench: TwoServers, at: str
) -> None:
    """After a controller's restart it is registered at one end, and runs at the other."""
    await bench.registered()
    record = VMRecord(VM.id, VM.mac, "server2" if at == "server1" else "server1", VMState.READY)
    if at == "server2":
        await bench.step("open_target", "start_copy")
    copying = MigrationRecord("migration-1", "web", "server1", "server2", bench.migration("copying").state)
    bench.agents[at].dispatcher.vms["web"].migration = copying
    told = await bench.catch_up(at, copying, vms=(record,))
    assert f"{at} tells web started" in told

"""A server that is dead for good, and comes back all the same."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from retinue.controller.errors import RequestError
from retinue.controller.lease_changes import AddressAssigned
from retinue.controller.migrations.orchestrator import MigrationError
from retinue.core.migration import MigrationState
from retinue.core.model import VM, ModelError, PortStatus
from retinue.core.packets import arp_request
from retinue.protocol.errors import ErrorCode
from retinue.protocol.hypervisor_events import EventKind
from retinue.protocol.migrations import Report
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import GATEWAY_MAC, assignment, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork, FakeSession
from support.recent_events import recent


class Life:
    """vm1 at server1 with a lease, vm2 at server2; servers 1 and 3 are under one leaf."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.fake = FakeNetwork(fabric(), lambda: self.now, MemoryStore())

    async def begin(self) -> None:
        await self.fake.start()
        for number in (1, 2):
            vm = VM.with_one_nic(f"vm{number}", vm_mac(number), f"server{number}")
            self.fake.controller.inventory.register_vms([vm])
            self.port(number, number)
        await self.fake.settle()
        for number in (1, 2):
            await self.fake.controller.context.commit(AddressAssigned(assignment(number)))
        await self.fake.settle()

    def port(self, vm: int, at: int, *, gone: bool = False) -> None:
        port = BridgePort(0x30 + at, "br0", f"tap{vm}", vm_port(vm), PortStatus.UP, f"vm{vm}", vm_mac(vm))
        self.fake.controller.inventory.ports.changed(*([port], []) if gone else ([], [port]))

    async def dies(self, server: int) -> None:
        self.fake.sessions[f"edge{server}"].close("the server is dead")
        await self.fake.settle()

    async def says(self, id: str, *reports: str) -> None:
        for report in reports:
            if report == "target_opened":
                self.port(1, 2)
            self.fake.controller.orchestrator.reports.on_report(id, Report(report), self.now)
            await self.fake.settle()

    async def migrating(self, *reports: str) -> str:
        id = self.fake.controller.orchestrator.start("vm1", target_server="server2").id
        await self.says(id, *reports)
        return id

    def state(self, id: str) -> MigrationState:
        return self.fake.controller.orchestrator.migrations[id].state

    async def later(self, seconds: float) -> None:
        self.now += seconds
        self.fake.controller.orchestrator.tick()
        await self.fake.settle()

    def passes(self, vm: int, at: int) -> set[tuple[str, int]]:
        """Where a packet to the outside arrives that is sent with the VM's address from a server."""
        frame = udp_frame(vm_mac(vm), GATEWAY_MAC, vm_ip(vm), OUTSIDE)
        ways = self.fake.fabric.all_paths(f"edge{at}", vm_port(vm), frame)
        return {(switch, port) for way in ways for switch, port, _ in way.arrivals}

    def comes_to(self, vm: int) -> set[tuple[str, int]]:
        router = self.fake.net.servers["router"]
        frame = udp_frame(router.mac, GATEWAY_MAC, OUTSIDE, vm_ip(vm))
        ways = self.fake.fabric.all_paths("leaf2", 91, frame)
        return {(switch, port) for way in ways for switch, port, _ in way.arrivals}


ROUTER = {("leaf2", 91)}


@pytest.fixture
async def life() -> AsyncIterator[Life]:
    life = Life()
    await life.begin()
    yield life
    await life.fake.stop()


# ---- migrations ----


@pytest.mark.parametrize("server", [1, 2])
async def test_a_migration_whose_server_is_away_is_refused_at_once(life: Life, server: int) -> None:
    await life.dies(server)
    with pytest.raises(
        MigrationError, match=f"switch edge{server} of server server{server} is not connected"
    ) as e:
        life.fake.controller.orchestrator.start("vm1", target_server="server2")
    assert e.value.code is ErrorCode.PARTY_AWAY
    assert not life.fake.controller.orchestrator.migrations


async def test_a_switch_that_never_came_back_after_a_start_is_away(life: Life) -> None:
    """In the first moments it may be on its way."""
    again = FakeNetwork(fabric(), lambda: life.now)
    await again.controller.start()
    assert not again.controller.context.is_away("edge1")
    life.now += 15.0
    assert again.controller.context.is_away("edge1")
    again.connect("edge1")
    assert not again.controller.context.is_away("edge1")
    await again.stop()


@pytest.mark.parametrize("server", ["server1", "server2"])
async def test_a_migration_whose_agent_is_away_is_refused_at_once(life: Life, server: str) -> None:
    """One that has listened, and does so no longer; of one that never did nothing is known."""
    agents = life.fake.controller.context.agents
    with agents.listening(server), agents.listening(server):
        pass
    with pytest.raises(MigrationError, match=f"the agent of server {server} is away"):
        life.fake.controller.orchestrator.start("vm1", target_server="server2")
    with agents.listening(server):
        life.fake.controller.orchestrator.start("vm1", target_server="server2")


BEFORE_THE_STOP: tuple[list[str], ...] = (
    [],
    ["target_opened"],
    ["target_opened", "copy_started"],
    ["target_opened", "copy_started", "converged"],
)
AFTER = ["target_opened", "copy_started", "converged", "stopped"]


@pytest.mark.parametrize("said", [*BEFORE_THE_STOP, AFTER])
async def test_a_dead_target_ends_a_migration_and_the_vm_runs_on(life: Life, said: list[str]) -> None:
    """Nobody but the operator can say that the VM never ran there."""
    id = await life.migrating(*said)
    await life.dies(2)
    await life.fake.controller.fencing.fence("server2")
    await life.fake.settle()
    assert life.state(id) is MigrationState.ROLLING_BACK
    (returned,) = recent(life.fake.controller.events, "migration.return_to_source", 10)
    assert returned.data["migration"].target_closed
    await life.says(id, "rolled_back")
    assert life.state(id) is MigrationState.UNDONE
    assert life.comes_to(1) == {("edge1", vm_port(1))}
    await life.fake.controller.inventory.remove_vm("vm1")


@pytest.mark.parametrize("said", [*BEFORE_THE_STOP, AFTER])
async def test_a_dead_source_ends_a_migration_when_the_target_says_that_nothing_runs_there(
    life: Life, said: list[str]
) -> None:
    """The undo waits for no word of the source; why it waits at all is told."""
    id = await life.migrating(*said)
    await life.dies(1)
    life.fake.controller.orchestrator.cancel(id)
    for _ in range(3):
        await life.later(60)
    migration = life.fake.controller.orchestrator.migrations[id]
    assert migration.state is MigrationState.ROLLING_BACK
    assert migration.reason.startswith("cancelled by the operator; rolling back for longer than 15 s")
    assert "server server1 " in migration.reason
    assert migration.reason.count("rolling back") == 1
    await life.fake.controller.fencing.fence("server1")
    await life.fake.settle()
    assert life.state(id) is MigrationState.ROLLING_BACK, "it may run at the target"
    await life.says(id, "target_closed")
    assert life.state(id) is MigrationState.UNDONE
    assert life.fake.controller.orchestrator.migrations[id].reason == "cancelled by the operator"
    await life.fake.controller.inventory.remove_vm("vm1")


async def test_a_vm_that_did_arrive_goes_on_without_its_dead_source(life: Life) -> None:
    id = await life.migrating(*AFTER)
    await life.dies(1)
    await life.fake.controller.fencing.fence("server1")
    await life.says(id, "resumed")
    assert life.state(id) is MigrationState.DONE
    assert life.comes_to(1) == {("edge2", vm_port(1))}
    assert life.passes(1, 2) == ROUTER


async def test_both_dead(life: Life) -> None:
    id = await life.migrating(*AFTER)
    for number in (1, 2):
        await life.dies(number)
        await life.fake.controller.fencing.fence(f"server{number}")
    await life.fake.settle()
    assert life.state(id) is MigrationState.UNDONE


async def test_a_late_failure_of_an_undone_migration_is_told_where_the_vm_is(life: Life) -> None:
    id = await life.migrating("target_opened", "copy_started", "failed", "rolled_back")
    assert life.state(id) is MigrationState.UNDONE
    with pytest.raises(MigrationError, match="migration-1 of vm1 is undone already, the VM is at server1"):
        life.fake.controller.orchestrator.reports.on_report(id, Report.FAILED, life.now, "late")


# ---- its VMs ----


async def test_a_vm_of_a_dead_server_is_registered_elsewhere_with_what_it_holds(life: Life) -> None:
    inventory, vm = life.fake.controller.inventory, VM.with_one_nic("vm1", vm_mac(1), "server3")
    lease = life.fake.net.held_by("vm1")
    assert lease
    await life.dies(1)
    with pytest.raises(RequestError, match="vm1 is registered already, at server1"):
        inventory.register_vms([vm])
    await life.fake.controller.fencing.fence("server1")
    with pytest.raises(RequestError, match="server server1 is fenced"):
        inventory.register_vms([VM.with_one_nic("vm3", vm_mac(3), "server1")])
    with pytest.raises(ModelError, match="with MAC"):
        inventory.register_vms([VM.with_one_nic("vm1", vm_mac(7), "server3")])
    with pytest.raises(MigrationError, match="fenced"):
        life.fake.controller.orchestrator.start("vm1", target_server="server3")
    with pytest.raises(MigrationError, match="fenced"):
        life.fake.controller.orchestrator.start("vm2", target_server="server1")
    inventory.register_vms([vm])
    life.port(1, 3)
    await life.fake.settle()
    assert life.fake.net.held_by("vm1") == lease
    assert life.fake.controller.context.state.vm_states["vm1"] == "ready"
    assert life.comes_to(1) == {("edge3", vm_port(1))}
    assert life.passes(1, 3) == ROUTER
    with pytest.raises(RequestError, match="registered already, at server3"):
        inventory.register_vms([vm])


async def test_a_vm_that_somebody_starts_elsewhere_is_taken_over(life: Life) -> None:
    """As a person with libvirt does; without the fence it is a claim, and no more."""
    lease = life.fake.net.held_by("vm1")
    await life.dies(1)
    life.port(1, 3)
    external = life.fake.controller.external_migrations
    external.on_report("server3", "vm1", EventKind.STARTED, life.now)
    assert life.fake.net.vms["vm1"].server == "server1"
    await life.fake.controller.fencing.fence("server1")
    external.on_report("server3", "vm1", EventKind.STARTED, life.now)
    await life.fake.settle()
    assert life.fake.net.vms["vm1"].server == "server3"
    assert life.fake.net.held_by("vm1") == lease
    assert life.comes_to(1) == {("edge3", vm_port(1))}
    assert life.fake.controller.context.state.vm_states["vm1"] == "running"
    assert not life.fake.controller.orchestrator.migrations


# ---- its return ----


async def test_a_fenced_server_that_is_back_speaks_for_nobody(life: Life) -> None:
    """Neither before its switch is connected nor after, until what it held is gone and it is unfenced."""
    fencing, inventory = life.fake.controller.fencing, life.fake.controller.inventory
    await life.dies(1)
    assert life.passes(1, 1) == ROUTER, "the switch goes on by itself"
    await fencing.fence("server1")
    assert life.passes(1, 1) == set()
    inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server3")])
    life.port(1, 3)
    await life.fake.settle()
    with pytest.raises(RequestError, match="switch edge1 of server server1 is not connected"):
        await fencing.unfence("server1")
    seen = []
    session = FakeSession(life.fake, "edge1", 0x31, dict(life.fake.net._numbers["edge1"]))
    apply = session.apply

    async def watched(*change: object) -> None:
        seen.append(life.passes(1, 1))
        await apply(*change)  # type: ignore[arg-type]
        seen.append(life.passes(1, 1))

    session.apply = watched  # type: ignore[method-assign,assignment]
    life.fake.controller.connected(session)
    await life.fake.settle()
    assert seen
    assert not any(seen)
    claim = arp_request(vm_mac(1), vm_ip(1), vm_ip(2))
    assert not any(way.arrivals for way in life.fake.fabric.all_paths("edge1", vm_port(1), claim))
    with pytest.raises(
        RequestError, match="vm1 still has a port on switch edge1, and is registered elsewhere"
    ):
        await fencing.unfence("server1")
    life.port(1, 1, gone=True)
    await life.fake.settle()
    await fencing.unfence("server1")
    assert life.passes(1, 1) == set(), "it is elsewhere"
    assert life.passes(1, 3) == ROUTER
    assert not life.fake.net.fenced
    inventory.register_vms([VM.with_one_nic("vm4", vm_mac(4), "server1", addresses=(vm_ip(4),))])
    life.port(4, 1)
    await life.fake.settle()
    assert life.passes(4, 1) == ROUTER


async def test_a_fence_outlives_the_controller(life: Life) -> None:
    await life.dies(1)
    await life.fake.controller.fencing.fence("server1")
    await life.fake.controller.fencing.fence("server1")
    assert len(recent(life.fake.controller.events, "server.fenced", 10)) == 1
    store = life.fake.controller.context._store
    assert isinstance(store, MemoryStore)
    again = FakeNetwork(fabric(), lambda: 1000.0, store)
    again.fabric = life.fake.fabric
    again.controller.restore(store.load())
    await again.start()
    assert again.net.fenced == {"server1"}
    assert life.passes(1, 1) == set()
    again.controller.inventory.ports.edge_read([0x31], ["vm1"])
    await again.settle()
    await again.controller.fencing.unfence("server1")
    assert not store.load().fenced
    assert recent(again.controller.events, "server.unfenced", 10)
    with pytest.raises(RequestError, match="there is no server server9"):
        await again.controller.fencing.fence("server9")
    await again.stop()


async def test_static_addresses_go_with_a_vm_whose_server_is_dead(life: Life) -> None:
    inventory = life.fake.controller.inventory
    fixed = VM.with_one_nic("vm3", vm_mac(3), "server1", addresses=(vm_ip(3),))
    inventory.register_vms([fixed])
    await life.dies(1)
    await life.fake.controller.fencing.fence("server1")
    inventory.register_vms([VM.with_one_nic("vm3", vm_mac(3), "server3")])
    assert life.fake.net.vms["vm3"] == replace(fixed, server="server3")
    assert [held.ip for held in life.fake.net.held_by("vm3")] == [vm_ip(3)]

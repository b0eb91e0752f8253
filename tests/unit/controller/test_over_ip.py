"""The controller where VXLAN joins the leaves, one on each server: a migration, and a server that dies."""

from collections.abc import AsyncIterator

import pytest

from retinue.controller.errors import RequestError
from retinue.core.migration import MigrationState
from retinue.core.model import VM, PortStatus
from retinue.protocol.migrations import Report
from retinue.protocol.vms import VMState
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import GATEWAY_MAC, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork

ROUTER = {("leaf4", 91)}


class Life:
    """vm1 at server1, server2 and server3 beside it, each with a leaf of its own; leaf4 is the border's."""

    def __init__(self) -> None:
        self.now = 1000.0
        net = fabric(4, 0, (1, 2, 3), over_ip=True)
        self.fake = FakeNetwork(net, lambda: self.now, MemoryStore(), forward_seconds=0.0)

    async def add(self, vm: int, at: int) -> None:
        made = VM.with_one_nic(f"vm{vm}", vm_mac(vm), f"server{at}", addresses=(vm_ip(vm),))
        self.fake.controller.inventory.register_vms([made])
        self.port(vm, at)
        await self.fake.settle()

    def port(self, vm: int, at: int, *, gone: bool = False) -> None:
        port = BridgePort(0x30 + at, "br0", f"tap{vm}", vm_port(vm), PortStatus.UP, f"vm{vm}", vm_mac(vm))
        self.fake.controller.inventory.ports.changed(*([port], []) if gone else ([], [port]))

    def comes_to(self, vm: int) -> set[tuple[str, int]]:
        frame = udp_frame(self.fake.net.servers["router"].mac, GATEWAY_MAC, OUTSIDE, vm_ip(vm))
        ways = self.fake.fabric.all_paths("leaf4", 91, frame)
        return {(switch, port) for way in ways for switch, port, _ in way.arrivals}

    def gets_out(self, vm: int, at: int) -> set[tuple[str, int]]:
        frame = udp_frame(vm_mac(vm), GATEWAY_MAC, vm_ip(vm), OUTSIDE)
        ways = self.fake.fabric.all_paths(f"edge{at}", vm_port(vm), frame)
        return {(switch, port) for way in ways for switch, port, _ in way.arrivals}

    def state_of(self, vm: str) -> VMState:
        return self.fake.controller.inventory.state_of(vm)


@pytest.fixture
async def life() -> AsyncIterator[Life]:
    life = Life()
    await life.fake.start()
    await life.add(1, 1)
    yield life
    await life.fake.stop()


async def test_a_migration_goes_through_all_its_states(life: Life) -> None:
    assert life.comes_to(1) == {("edge1", vm_port(1))}
    orchestrator = life.fake.controller.orchestrator
    id = orchestrator.start("vm1", target_server="server2").id
    here, there = {("edge1", vm_port(1))}, {("edge2", vm_port(1))}
    for report, comes_to in (
        ("target_opened", here),
        ("copy_started", here),
        ("converged", there),
        ("stopped", there),
        ("resumed", there),
        ("source_freed", there),
    ):
        if report == "target_opened":
            life.port(1, 2)
        if report == "source_freed":
            life.port(1, 1, gone=True)
        orchestrator.reports.on_report(id, Report(report), life.now)
        await life.fake.settle()
        assert life.comes_to(1) >= comes_to, report
    assert life.comes_to(1) == there
    assert life.gets_out(1, 2) == ROUTER
    assert life.gets_out(1, 1) == set()
    assert orchestrator.migrations[id].state in (MigrationState.FREED, MigrationState.DONE)


async def test_a_dead_servers_leaf_is_waited_for_until_it_is_fenced(life: Life) -> None:
    for switch in ("edge3", "leaf3"):
        life.fake.sessions[switch].close("the server is dead")
    await life.fake.settle()
    await life.add(2, 2)
    assert life.state_of("vm2") is VMState.REGISTERED, "a VM at server3 could not reach it"
    await life.fake.controller.fencing.fence("server3")
    await life.add(4, 2)
    assert life.state_of("vm4") is VMState.READY


async def test_a_fenced_server_is_let_in_again_when_its_leaf_is_back(life: Life) -> None:
    fencing = life.fake.controller.fencing
    for switch in ("edge1", "leaf1"):
        life.fake.sessions[switch].close("the server is dead")
    await life.fake.settle()
    assert life.gets_out(1, 1) == ROUTER, "both go on by themselves"
    await fencing.fence("server1")
    assert life.gets_out(1, 1) == set()
    life.fake.connect("edge1")
    await life.fake.settle()
    with pytest.raises(RequestError, match="switch leaf1 of server server1 is not connected"):
        await fencing.unfence("server1")
    life.fake.connect("leaf1")
    await life.fake.settle()
    await fencing.unfence("server1")
    await life.fake.settle()
    assert life.gets_out(1, 1) == ROUTER

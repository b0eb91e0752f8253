"""What a manager may change of a registered VM, and which static addresses are doubted."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from retinue.config_file import ConfigError
from retinue.controller.config import load
from retinue.controller.errors import RequestError
from retinue.controller.inventory.settings import VMChanges
from retinue.controller.lease_changes import LeaseEnded
from retinue.core.model import IP, VM, Assignment, BindingKind, ModelError, Network, Origin, Power, Restart
from retinue.protocol.errors import ErrorCode
from retinue.protocol.vms import VMReport, VMState
from retinue_lab.network.controller_config import controller_config
from retinue_lab.topology import topology_file
from support.fabric.networks import add_vm, fabric, vm_ip, vm_mac
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

OLD, NEW = ip_address("10.1.0.50"), ip_address("10.1.0.51")


class Booked:
    """vm1 at server1 with one static address, its network complete."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.fake = FakeNetwork(fabric(), lambda: 1e6, self.store)
        self.controller = self.fake.controller
        self.net = self.controller.net

    async def start(self) -> None:
        await self.controller.start()
        for switch in self.net.switches:
            self.fake.connect(switch)
        vm = VM.with_one_nic("vm1", vm_mac(1), "server1", addresses=(OLD,))
        self.controller.inventory.register_vms([vm])
        await self.fake.settle()

    async def change(self, **wanted: object) -> VM:
        changed = await self.controller.inventory.settings.change("vm1", VMChanges(**wanted))  # type: ignore[arg-type]
        await self.fake.settle()
        return changed

    def stopped(self) -> None:
        self.controller.inventory.power.stop("vm1", hard=True, seconds=0)

    def runs(self) -> None:
        self.controller.inventory.power.on_report("vm1", VMReport.STARTED, "server1")

    @property
    def vm(self) -> VM:
        return self.net.vms["vm1"]

    @property
    def holds(self) -> set[IP]:
        return {held.ip for held in self.net.held_by("vm1")}


@pytest.fixture
async def booked() -> AsyncIterator[Booked]:
    made = Booked()
    await made.start()
    yield made
    await made.fake.stop()


async def test_addresses_change_while_the_vm_runs(booked: Booked) -> None:
    booked.runs()
    before = len(recent(booked.controller.events))
    changed = await booked.change(addresses=(NEW,))
    assert changed == booked.vm
    assert changed.nic.addresses == (NEW,)
    assert booked.holds == {NEW}
    assert booked.controller.inventory.state_of("vm1") is VMState.RUNNING
    told = recent(booked.controller.events)[before:]
    assert [str(event.type) for event in told] == ["vm.changed", "binding.removed"]
    assert told[1].data["ip"] == OLD


async def test_a_lease_of_the_vm_becomes_its_own_and_another_stays(booked: Booked) -> None:
    def leased(ip: IP) -> Assignment:
        return Assignment(ip, vm_mac(1), "vm1", BindingKind.DYNAMIC, Origin.CONTROLLER, lease_end=2e6)

    for ip in (NEW, vm_ip(1)):
        booked.net.assign(leased(ip))
    await booked.change(addresses=(NEW,))
    assert booked.net.assignments[NEW].kind is BindingKind.STATIC
    assert booked.net.assignments[vm_ip(1)] == leased(vm_ip(1))


async def test_memory_changes_while_the_vm_is_off_alone(booked: Booked) -> None:
    for state in ("registered", "running"):
        with pytest.raises(RequestError, match="its memory changes only while it is off") as refused:
            await booked.change(memory_mib=256, restart=Restart.ON_CRASH)
        assert (refused.value.code, booked.vm.restart) == (ErrorCode.RUNNING, Restart.NEVER), state
        booked.runs()
    booked.stopped()
    with pytest.raises(RequestError, match="only while it is off"):
        await booked.change(memory_mib=256)  # It has not ended yet.
    booked.controller.inventory.power.on_report("vm1", VMReport.STOPPED, "server1")
    assert (await booked.change(memory_mib=256)).memory_mib == 256
    assert (await booked.change(restart=Restart.ON_CRASH)).memory_mib == 256
    assert booked.vm.power is Power.OFF


async def test_it_outlives_the_controller(booked: Booked) -> None:
    booked.stopped()
    await booked.change(memory_mib=256, addresses=(NEW, OLD), restart=Restart.ON_CRASH)
    stored = booked.store.load()
    (vm,) = stored.vms
    assert vm == booked.vm
    assert {held.ip for held in stored.assignments} == {NEW, OLD}
    await booked.change(addresses=())
    assert booked.store.load().assignments == []


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"mac": vm_mac(2)}, "the MAC of VM vm1 does not change"),
        ({"server": "nowhere"}, "nowhere is no server that runs VMs"),
        ({"server": "dhcp"}, "dhcp is no server that runs VMs"),
        ({"addresses": (NEW, ip_address("192.0.2.1"))}, "192.0.2.1 is in no subnet"),
        ({"addresses": (NEW, vm_ip(2))}, str(vm_ip(2))),
    ],
)
async def test_what_cannot_be_changes_nothing(booked: Booked, wanted: dict[str, object], said: str) -> None:
    add_vm(booked.net, 2, at=1)
    before = booked.vm
    with pytest.raises(ModelError, match=said):
        await booked.change(restart=Restart.ON_CRASH, **wanted)
    assert (booked.vm, booked.holds) == (before, {OLD})
    assert await booked.change(mac=vm_mac(1), server="server1") == before, "the same is no change"


async def test_neither_a_vm_that_migrates_nor_one_that_nobody_registered(booked: Booked) -> None:
    booked.controller.inventory.power.on_report("vm1", VMReport.STARTED, "server1")
    booked.controller.orchestrator.start("vm1", target_server="server2", under_way=True)
    with pytest.raises(RequestError, match="is being migrated"):
        await booked.change(restart=Restart.ON_CRASH)
    booked.net.put_vm(replace(VM.with_one_nic("own", vm_mac(3), "server1"), reported=True))
    with pytest.raises(RequestError) as refused:
        await booked.controller.inventory.settings.change("own", VMChanges(memory_mib=1))
    assert refused.value.code is ErrorCode.NOT_REGISTERED


# ---- doubts ----


async def test_an_address_that_a_dhcp_server_may_give_out_is_doubted(booked: Booked) -> None:
    def doubts() -> list[str]:
        return booked.controller.inventory.settings.doubts(booked.vm)

    assert doubts() == []
    subnet = booked.net.subnets["blue"]
    booked.net.subnets["blue"] = replace(
        subnet, dhcp_pools=((IPv4Address("10.1.0.51"), IPv4Address("10.1.0.60")),)
    )
    assert doubts() == []
    await booked.change(addresses=(NEW,))
    (doubt,) = doubts()
    assert f"{NEW} is in 10.1.0.51-10.1.0.60" in doubt
    assert f"reserve it for {vm_mac(1)}" in doubt
    await booked.change(addresses=(OLD,))
    lease = Assignment(OLD, vm_mac(2), "vm2", BindingKind.DYNAMIC, Origin.CONTROLLER, lease_end=1.0)
    booked.controller.context.apply(LeaseEnded(lease))
    (doubt,) = doubts()
    assert f"{OLD} was leased to VM vm2" in doubt


def configured(folder: Path, text: str) -> Network:
    path = folder / "controller.toml"
    path.write_text(text)
    return load(path).network()


def test_the_lab_says_what_its_dhcp_server_gives_out(tmp_path: Path) -> None:
    subnets = configured(tmp_path, controller_config(topology_file.load())).subnets
    pool = IPv4Address("10.1.0.100"), IPv4Address("10.1.0.199")
    assert {s.id: s.dhcp_pools for s in subnets.values()} == {"servers": (), "blue": (pool,)}


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ("10.1.0.100", "'10.1.0.100', not FIRST-LAST"),
        ("10.1.0.9-10.1.0.8", "no range inside 10.1.0.0/24"),
        ("10.1.0.9-10.1.1.8", "no range inside 10.1.0.0/24"),
        ("10.1.0.9-2001:db8::1", "no range inside 10.1.0.0/24"),
        ("10.1.0.9-x", "'x'"),
    ],
)
def test_a_pool_is_a_range_of_its_subnet(tmp_path: Path, pool: str, said: str) -> None:
    text = controller_config(topology_file.load()).replace("10.1.0.100-10.1.0.199", pool)
    with pytest.raises((ConfigError, ModelError), match=said):
        configured(tmp_path, text)

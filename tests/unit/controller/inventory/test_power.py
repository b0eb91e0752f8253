"""Which VMs are to run: orders of managers, reports of agents, restarts of the controller."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from retinue.controller.app import Controller
from retinue.controller.errors import RequestError
from retinue.controller.inventory import power
from retinue.controller.migrations.requests import MigrationError
from retinue.core.model import VM, Ending, PortStatus, Power, Restart
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.migrations import Report
from retinue.protocol.vms import SHUTDOWN_SECONDS, VMReport, VMState
from retinue.southbound.ovsdb import BridgePort
from support import virtual_time
from support.fabric.networks import fabric, vm_mac, vm_port
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

STOPPED, STARTED = VMReport.STOPPED, VMReport.STARTED
OFF, CRASHED = Ending.OFF, Ending.CRASHED


class Life:
    """vm1 at server1, and one controller after the other."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    async def begin(self) -> None:
        clock = asyncio.get_running_loop().time
        self.fake = FakeNetwork(fabric(), lambda: 1e6 + clock(), self.store)
        self.controller.restore(self.store.load())
        await self.controller.start()
        self.controller.orchestrator.resume_all()

    async def found(self) -> None:
        """Everything finds the controller."""
        for switch in self.fake.net.switches:
            self.fake.connect(switch)
        self.port_at(1)
        await self.fake.settle()

    async def again(self) -> None:
        """The controller is killed, and started again."""
        await self.fake.stop()
        await self.begin()
        await self.found()

    async def boot(self, restart: Restart = Restart.NEVER) -> None:
        await self.begin()
        vm = VM.with_one_nic("vm1", vm_mac(1), "server1", restart=restart)
        self.controller.inventory.register_vms([vm])
        await self.found()
        assert self.state() is VMState.READY
        await self.says(STARTED)

    def port_at(self, edge: int) -> None:
        found = BridgePort(
            dpid=0x30 + edge, bridge="br0", name="tap1", number=vm_port(1), status=PortStatus.UP,
            iface_id="vm1", attached_mac=vm_mac(1),
        )  # fmt: skip
        self.controller.inventory.ports.changed((), [found])

    async def says(
        self, report: VMReport, how: Ending = OFF, server: str = "server1", reason: str = ""
    ) -> None:
        self.power.on_report("vm1", report, server, how, reason)
        await self.fake.settle()

    @property
    def controller(self) -> Controller:
        return self.fake.controller

    @property
    def power(self) -> power.PowerControl:
        return self.controller.inventory.power

    @property
    def vm(self) -> VM:
        return self.controller.net.vms["vm1"]

    def state(self) -> VMState:
        return self.controller.inventory.state_of("vm1")

    def told(self, *types: EventType) -> list[dict[str, Any]]:
        events = recent(self.controller.events, "vm.", 10_000)
        return [event.data for event in events if not types or event.type in types]

    def types(self) -> list[str]:
        return [event.type for event in recent(self.controller.events, "vm.", 10_000)]


def lived(story: Callable[[Life], Awaitable[None]], restart: Restart = Restart.NEVER) -> None:
    async def run() -> None:
        life = Life()
        await life.boot(restart)
        try:
            await story(life)
        finally:
            await life.fake.stop()

    virtual_time.run(run())


# ---- off ----


@pytest.mark.parametrize("ordered", [True, False])
def test_a_vm_that_is_off_stays_off_until_it_is_started(ordered: bool) -> None:
    async def story(life: Life) -> None:
        if ordered:
            life.power.stop("vm1", hard=False, seconds=20.0)
            (order,) = life.told(EventType.VM_STOP)
            assert (order["server"], order["hard"], order["seconds"]) == ("server1", False, 20.0)
            assert life.state() is VMState.RUNNING, "until it has ended"
        await life.says(STOPPED, OFF)
        assert life.state() is VMState.OFF
        assert life.told(EventType.VM_STOPPED)[-1]["how"] == "off"
        for _ in range(2):
            await life.again()
            assert life.state() is VMState.OFF
            assert life.types() == [], "nothing that would start it"
        life.power.start("vm1")
        await life.fake.settle()
        assert life.types() == ["vm.start", "vm.ready"]
        await life.says(STARTED)
        assert life.state() is VMState.RUNNING
        await life.again()
        assert life.state() is VMState.READY, "it is to run"

    lived(story)


def test_a_vm_that_still_shuts_down_when_the_controller_comes_back_ends_off() -> None:
    async def story(life: Life) -> None:
        life.power.stop("vm1", hard=False, seconds=60.0)
        await life.again()
        await life.says(STARTED)
        assert (life.state(), life.vm.power) == (VMState.RUNNING, Power.OFF), "it runs, and is to be off"
        await life.says(STOPPED, CRASHED)
        assert life.state() is VMState.OFF

    lived(story)


def test_a_report_that_comes_twice_is_told_once() -> None:
    async def story(life: Life) -> None:
        before = len(life.told())
        await life.says(STARTED)
        assert len(life.told()) == before
        for _ in range(2):
            await life.says(STOPPED, OFF)
        assert len(life.told(EventType.VM_STOPPED)) == 1

    lived(story)


def test_a_vm_that_somebody_starts_at_its_hypervisor_is_to_run() -> None:
    async def story(life: Life) -> None:
        await life.says(STOPPED, OFF)
        await life.says(STARTED)
        assert (life.state(), life.vm.power) == (VMState.RUNNING, Power.RUNNING)

    lived(story)


# ---- crashes ----


def test_a_vm_that_has_crashed_is_told_apart_and_not_started_by_anybodys_restart() -> None:
    async def story(life: Life) -> None:
        await life.says(STOPPED, CRASHED, reason="its QEMU has ended")
        assert (life.state(), life.vm.power_reason) == (VMState.CRASHED, "its QEMU has ended")
        told = life.told(EventType.VM_STOPPED)[-1]
        assert (told["how"], told["reason"]) == ("crashed", "its QEMU has ended")
        await asyncio.sleep(1000)
        await life.again()
        assert (life.state(), life.types()) == (VMState.CRASHED, [])
        life.power.start("vm1")
        await life.fake.settle()
        assert (life.state(), life.vm.power_reason) == (VMState.READY, "")

    lived(story)


def test_a_vm_that_is_to_be_started_again_is_and_not_for_ever() -> None:
    async def story(life: Life) -> None:
        for n in range(power.RESTARTS):
            await life.says(STOPPED, CRASHED)
            assert life.state() is VMState.CRASHED
            await asyncio.sleep(power.PAUSE_SECONDS * 2**n - 0.5)
            assert life.state() is VMState.CRASHED, "not at once"
            await asyncio.sleep(1)
            assert life.state() is VMState.READY
            await life.says(STARTED)
        await life.says(STOPPED, CRASHED)
        await asyncio.sleep(1000)
        assert (life.state(), life.vm.power) == (VMState.CRASHED, Power.CRASHED)
        # An operator's word, or a long while, and it is started again.
        life.power.start("vm1")
        await life.says(STARTED)
        await life.says(STOPPED, CRASHED)
        await asyncio.sleep(2)
        assert life.state() is VMState.READY

    lived(story, Restart.ON_CRASH)


def test_a_vm_that_crashes_now_and_then_is_always_started_again() -> None:
    async def story(life: Life) -> None:
        for _ in range(2 * power.RESTARTS):
            await life.says(STOPPED, CRASHED)
            await asyncio.sleep(power.WITHIN_SECONDS / 2)
            assert life.state() is VMState.READY
            await life.says(STARTED)

    lived(story, Restart.ON_CRASH)


def test_a_vm_that_is_switched_off_before_it_is_started_again_stays_off() -> None:
    async def story(life: Life) -> None:
        await life.says(STOPPED, CRASHED)
        life.power.stop("vm1", hard=True, seconds=0.0)
        await asyncio.sleep(100)
        assert life.state() is VMState.OFF
        assert life.told(EventType.VM_START) == []

    lived(story, Restart.ON_CRASH)


# ---- who may say so, and when ----


def test_a_server_where_the_vm_is_not_says_nothing_of_it() -> None:
    async def story(life: Life) -> None:
        await life.says(STOPPED, CRASHED, "server2")
        assert life.state() is VMState.RUNNING
        (told,) = life.told(EventType.VM_MISMATCH)
        assert (
            told["reason"]
            == "server server2 reports that it has stopped VM vm1, which is registered at server1"
        )
        await life.says(STOPPED, OFF)
        await life.says(STARTED, server="server2")
        assert life.state() is VMState.OFF

    lived(story)


def test_a_vm_that_runs_is_shown_so_at_either_end_of_its_migration() -> None:
    async def story(life: Life) -> None:
        life.controller.orchestrator.start("vm1", target_server="server2")
        for server in ("server1", "server2"):
            await life.again()
            assert life.state() is not VMState.RUNNING, "nobody has said so yet"
            await life.says(STARTED, server=server)
            assert life.state() is VMState.RUNNING

    lived(story)


def test_what_does_not_run_cannot_be_rebooted_and_what_migrates_not_be_started_anew() -> None:
    async def story(life: Life) -> None:
        life.power.reboot("vm1", 20.0)
        life.power.reset("vm1")
        assert [told["server"] for told in life.told(EventType.VM_REBOOT, EventType.VM_RESET)] == [
            "server1"
        ] * 2
        orders: list[Callable[[], object]] = [
            lambda: life.power.reboot("vm1", 20.0),
            lambda: life.power.reset("vm1"),
            lambda: life.power.start("vm1"),
        ]
        await life.says(STOPPED, OFF)
        for order in orders[:2]:
            with pytest.raises(RequestError, match="it is off; `retinue vm start vm1` starts it") as rejected:
                order()
            assert rejected.value.code is ErrorCode.NOT_RUNNING
        with pytest.raises(MigrationError, match="VM vm1 is off, and only one that runs is migrated") as off:
            life.controller.orchestrator.start("vm1", target_server="server2")
        assert off.value.code is ErrorCode.NOT_RUNNING
        life.power.start("vm1")
        life.controller.orchestrator.start("vm1", target_server="server2")
        for order in orders:
            with pytest.raises(RequestError, match="is being migrated") as rejected:
                order()
            assert rejected.value.code is ErrorCode.MIGRATION_UNDER_WAY
        with pytest.raises(RequestError, match="vm9"):
            life.power.start("vm9")

    lived(story)


async def called_off(life: Life, migration: str) -> None:
    life.controller.orchestrator.cancel(migration)
    await life.fake.settle()
    life.controller.orchestrator.reports.on_report(migration, Report.ROLLED_BACK, 1e6, "")
    await asyncio.sleep(100)
    assert life.controller.orchestrator.migrations[migration].state.ended


@pytest.mark.parametrize("restarted", [False, True])
def test_a_vm_that_is_stopped_while_it_migrates_is_switched_off_when_that_has_ended(restarted: bool) -> None:
    async def story(life: Life) -> None:
        migration = life.controller.orchestrator.start("vm1", target_server="server2", under_way=True)
        life.power.stop("vm1", True, 20.0)
        life.power.stop("vm1", False, 30.0)  # The last word counts.
        assert (life.vm.power, life.vm.power_reason) == (
            Power.OFF,
            "it is switched off when its migration has ended",
        )
        if restarted:
            await life.again()
            await life.says(STARTED)
        assert life.told(EventType.VM_STOP) == [], "not yet"
        await called_off(life, migration.id)
        (order,) = life.told(EventType.VM_STOP)
        seconds = SHUTDOWN_SECONDS if restarted else 30.0
        assert (order["server"], order["hard"], order["seconds"]) == ("server1", False, seconds)
        assert (life.vm.power, life.vm.power_reason) == (Power.OFF, "")
        await life.says(STOPPED, OFF)
        assert life.state() is VMState.OFF

    lived(story)


def test_that_order_can_be_taken_back_while_it_migrates() -> None:
    async def story(life: Life) -> None:
        migration = life.controller.orchestrator.start("vm1", target_server="server2", under_way=True)
        life.power.stop("vm1", True, 20.0)
        assert life.power.start("vm1").power is Power.RUNNING
        with pytest.raises(RequestError, match="is being migrated"):
            life.power.start("vm1")
        await called_off(life, migration.id)
        assert (life.told(EventType.VM_STOP), life.state()) == ([], VMState.RUNNING)

    lived(story)


def test_a_vm_that_nobody_registered_is_its_servers_to_start_and_stop() -> None:
    async def story() -> None:
        life = Life()
        await life.begin()
        await life.found()
        assert life.vm.reported
        with pytest.raises(RequestError, match="made by its server's own manager") as rejected:
            life.power.stop("vm1", True, 0.0)
        assert rejected.value.code is ErrorCode.NOT_REGISTERED
        await life.fake.stop()

    virtual_time.run(story())

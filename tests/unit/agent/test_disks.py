"""The disks of VMs on one server: where they are, what they are made over, and when they go."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from retinue.agent.migration import target
from retinue.agent.vms.disks import ImageAwayError, LocalDisks
from retinue.agent.vms.vm_spec import spec
from retinue.core.migration import endpoint_events as e
from retinue.core.model import DiskFormat, Power
from retinue.host.errors import HostError
from retinue.hypervisor import DiskSpec
from retinue.protocol.disks import DiskRecord
from retinue.protocol.events import ControllerEvent
from retinue.protocol.vms import VMRecord, VMState
from support.agents.world import TABLE, TwoServers, bench_up
from support.agents.world import VM as WEB
from support.virtual_time import run

IMAGE, SHARED = DiskRecord(9, image="debian"), DiskRecord(shared="/mnt/a", format=DiskFormat.QCOW2)
BASE, EMPTY = DiskRecord(base="/srv/b", format=DiskFormat.QCOW2), DiskRecord(1)
VM = VMRecord("vm1", "52:54:00:00:00:01", "server1", disks=[IMAGE, SHARED, BASE, EMPTY])


class FakeImages:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.left: list[str] = []
        self.away = False

    def base_file(self, name: str) -> Path:
        return Path("/images") / name

    async def need(self, name: str, pin: str, seconds: float) -> None:
        self.asked.append((name, pin))
        if self.away:
            raise ImageAwayError("it is being fetched")

    async def need_no_more(self, pin: str) -> None:
        self.left.append(pin)


def test_each_disk_has_its_file_on_this_server(tmp_path: Path) -> None:
    disks = LocalDisks(tmp_path, FakeImages())
    made = spec(VM, TABLE, disks.specs(VM)).disks
    assert made == (
        DiskSpec(1, tmp_path / "tap-vm1.disk1.qcow2", base=Path("/images/debian"), size=9 << 20),
        DiskSpec(2, Path("/mnt/a"), private=False, format="qcow2"),
        DiskSpec(3, tmp_path / "tap-vm1.disk3.qcow2", base=Path("/srv/b"), base_format="qcow2"),
        DiskSpec(4, tmp_path / "tap-vm1.disk4.qcow2", size=1 << 20),
    )


async def test_a_vms_files_go_and_no_others(tmp_path: Path) -> None:
    """An id may look like a file of another one."""
    images = FakeImages()
    disks = LocalDisks(tmp_path / "disks", images)
    assert not disks.has("vm1"), "there is no folder yet"
    await disks.remove("vm1")
    (tmp_path / "disks").mkdir()
    others = [
        "tap-vm1.disk1.disk1.qcow2",
        "tap-vm1.disk1.qcow2.disk2.qcow2",
        "tap-vm12.disk1.qcow2",
        "tap-vm1",
    ]
    for name in ("tap-vm1.disk1.qcow2", "tap-vm1.disk12.qcow2", "tap-vm1.disk1.qcow2.new", *others):
        (tmp_path / "disks" / name).touch()
    assert disks.has("vm1")
    await disks.remove("vm1")
    assert sorted(path.name for path in (tmp_path / "disks").iterdir()) == sorted(others)
    assert not disks.has("vm1")
    assert images.left == ["vm1", "vm1"]


async def test_no_file_is_used_but_those_in_the_folders_that_are_meant_for_it(tmp_path: Path) -> None:
    for name in ("open/inside", "openly", "secret"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "open/link").symlink_to(tmp_path / "secret")
    (tmp_path / "inwards").symlink_to(tmp_path / "open/inside")
    disks = LocalDisks(tmp_path / "disks", FakeImages(), [tmp_path / "open"])

    async def used(path: str, kind: str) -> None:
        record = DiskRecord(**{kind: str(tmp_path / path)})  # type: ignore[arg-type]
        await disks.ready(VMRecord("vm1", "m", "server1", disks=[EMPTY, record]), 1.0)

    for kind in ("base", "shared"):
        for path in ("open/inside", "open/not-there-yet", "inwards"):
            await used(path, kind)
        for path in ("secret", "openly", "open/link", "open/../secret"):
            with pytest.raises(HostError, match="in none of the folders of disk_paths"):
                await used(path, kind)


async def test_images_are_asked_for_in_the_vms_name(tmp_path: Path) -> None:
    images = FakeImages()
    await LocalDisks(tmp_path, images, [Path("/srv"), Path("/mnt")]).ready(VM, 1.0)
    assert images.asked == [("debian", "vm1")]
    images.away = True
    with pytest.raises(ImageAwayError):
        await LocalDisks(tmp_path, images, [Path("/srv"), Path("/mnt")]).ready(VM, 1.0)


# ---- in a VM's life ----

REGISTERED, READY = ControllerEvent("vm.registered", vm=WEB), ControllerEvent("vm.ready", vm=WEB)
REMOVED = ControllerEvent("vm.removed", vm=WEB)
OFF = VMRecord(WEB.id, WEB.mac, "server1", VMState.OFF, power=Power.OFF)


class FakeDisks:
    """What is needed is away so often, or comes when it is there; what is removed is noted."""

    def __init__(self, bench: TwoServers, *, target: bool = False) -> None:
        self.away = 0
        self.there = asyncio.Event()
        self.there.set()
        self.here = False
        self.waited: list[float] = []
        self.removed: list[str] = []
        dispatcher: Any = (bench.target if target else bench.source).dispatcher
        dispatcher._disks = dispatcher._lifecycle.disks = dispatcher._lifecycle._target._disks = self

    async def ready(self, vm: VMRecord, seconds: float) -> None:
        self.waited.append(seconds)
        await self.there.wait()
        if self.away:
            self.away -= 1
            raise ImageAwayError("it is being fetched")

    def has(self, vm: str) -> bool:
        return self.here

    async def remove(self, vm: str) -> None:
        self.removed.append(vm)


def test_a_start_waits_for_an_image_beside_other_orders() -> None:
    async def story() -> None:
        async with bench_up() as bench:
            FakeDisks(bench).away = 4
            await bench.after(REGISTERED)
            assert "server1: start web" not in await bench.after(READY)
            await asyncio.sleep(60)
            assert bench.world.log.count("server1: start web") == 1
            assert "server1 tells web started" in " ".join(bench.world.log)

    run(story())


async def test_a_target_is_prepared_before_its_source_hears_of_it_and_says_how_long_that_took() -> None:
    """Shareable content first, of which a machine is made that is nobody's yet; then what is the VM's own."""
    async with bench_up() as bench:
        await bench.registered()
        disks = FakeDisks(bench, target=True)
        disks.there.clear()
        opening = asyncio.create_task(bench.step("open_target"))
        await asyncio.sleep(0.05)
        so_far = bench.world.take()
        assert so_far == ["server2: plug web 52:54:00:00:00:01"], "no machine without its image"
        disks.there.set()
        assert await opening == ["server2: open web", "server2 tells migration-1 target_opened"]
        assert bench.target.rest.prepared["image_ms"] >= 40
        assert bench.target.rest.prepared["machine_ms"] >= 0
        assert bench.world.running("web") == ["server1"]


async def test_an_image_is_waited_for_so_many_times_as_long_as_the_migration_says() -> None:
    async with bench_up() as bench:
        await bench.registered()
        disks = FakeDisks(bench, target=True)
        bench.step_factor = 3.0
        await bench.step("open_target")
        assert disks.waited == [3 * target.IMAGE_SECONDS]


async def test_an_image_that_does_not_come_ends_the_migration_and_the_source_was_never_told() -> None:
    async with bench_up() as bench:
        await bench.registered()
        FakeDisks(bench, target=True).away = 1
        told = await bench.step("open_target")
        assert told[-1].startswith("server2 tells migration-1 failed") and "being fetched" in told[-1]
        assert not any(line.startswith(("server1", "server2: open")) for line in told)


def test_a_vm_that_is_off_by_the_time_its_image_is_here_is_not_started() -> None:
    async def story() -> None:
        async with bench_up() as bench:
            FakeDisks(bench).away = 4
            await bench.after(REGISTERED)
            await bench.after(READY)
            await bench.after(ControllerEvent("vm.stop", vm=OFF))
            await asyncio.sleep(60)
            assert "server1: start web" not in bench.world.log

    run(story())


@pytest.mark.parametrize("known", [True, False])
def test_a_vms_disks_go_with_it_and_not_before(known: bool) -> None:
    """Also where the agent has started after the VM had ended, and knows of its disks alone."""

    async def story() -> None:
        async with bench_up() as bench:
            disks = FakeDisks(bench)
            if known:
                await bench.registered()
                await bench.after(ControllerEvent("vm.stop", vm=WEB, hard=True))
            disks.here = True
            assert disks.removed == []
            await bench.after(REMOVED)
            assert disks.removed == ["web"]

    run(story())


@pytest.mark.parametrize("server", ["server1", "server2", "server3"])
async def test_what_an_agent_that_died_had_made_for_a_vm_that_stays_at_its_source_goes(server: str) -> None:
    """Its order to undo came to nobody; what a VM has that is registered here is never taken for that."""
    async with bench_up() as bench:
        disks = FakeDisks(bench, target=True)
        disks.here = True
        vm = VMRecord(WEB.id, WEB.mac, server, VMState.RUNNING)
        await bench.catch_up("server2", bench.migration("undone"), vms=(vm,))
        assert disks.removed == (["web"] if server == "server1" else [])


@pytest.mark.parametrize("order", [e.RollBackAtTarget("migration-1"), e.FreeSource("migration-1")])
def test_no_order_takes_the_disks_of_a_vm_that_runs_here(order: e.Order) -> None:
    async def story() -> None:
        async with bench_up() as bench:
            disks = FakeDisks(bench)
            await bench.registered()
            dispatcher: Any = bench.source.dispatcher
            await dispatcher._lifecycle.order(dispatcher.vms["web"], order, bench.migration())
            assert dispatcher.vms["web"].runs
            assert disks.removed == []

    run(story())

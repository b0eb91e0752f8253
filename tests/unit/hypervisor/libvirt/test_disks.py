"""Private disks of a VM that libvirt runs, with a libvirt in memory at each end: described, and copied."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from retinue.core.limits import MOST_DISKS
from retinue.core.migration.copying import CopyOptions, Postcopy
from retinue.hypervisor import Channel, DiskSpec, HypervisorError, VMSpec, channel_pair
from retinue.hypervisor.interface import Copying
from retinue.hypervisor.libvirt import disk_copies
from retinue.hypervisor.libvirt.disks_xml import (
    all_are_ours,
    files_of,
    private_disks,
    said_files,
    said_shared,
    with_files,
)
from retinue.hypervisor.libvirt.domain_xml import Consoles, domain_xml
from retinue.hypervisor.libvirt.order import UNSAFE
from support.agents.libvirt_world import ID, LIMIT, MEMORY, RUNS, locations, made_spec
from unit.hypervisor.libvirt.test_migration_ends import MigrationEnds, _follow

CONSOLES = Consoles(Path("/c/a"), Path("/c/b"))


def disks(server: str) -> tuple[DiskSpec, ...]:
    """As they are there: an overlay over an image, a shared file, an overlay over nothing."""
    return (
        DiskSpec(1, Path(f"/{server}/one.qcow2"), base=Path(f"/{server}/image"), size=9 << 20),
        DiskSpec(2, Path("/shared/two"), private=False, format="raw"),
        DiskSpec(3, Path(f"/{server}/three.qcow2"), size=1 << 20),
    )


def with_disks(server: str) -> VMSpec:
    return replace(made_spec(), disks=disks(server))


# ---- in XML ----


def test_a_target_is_told_of_its_own_files_and_of_nothing_else() -> None:
    xml = domain_xml(with_disks("a"), CONSOLES)
    assert private_disks(xml) == {1: ("vda", "/a/one.qcow2"), 3: ("vdc", "/a/three.qcow2")}
    there = with_files(xml, said_files(files_of(with_disks("b").private_disks)))
    assert ElementTree.canonicalize(there) == ElementTree.canonicalize(domain_xml(with_disks("b"), CONSOLES))


def test_what_a_disk_is_over_is_said_in_any_case() -> None:
    domain = ElementTree.fromstring(domain_xml(with_disks("a"), CONSOLES))
    first, shared, third = domain.findall("devices/disk")
    assert first.find("backingStore/source[@file='/a/image']") is not None
    assert first.find("backingStore/format[@type='raw']") is not None
    assert first.find("backingStore/backingStore") is not None, "and that is over nothing"
    assert shared.find("backingStore") is None
    backing = third.find("backingStore")
    assert backing is not None and len(backing) == 0
    ports = domain.findall("devices/controller[@model='pcie-root-port']")
    assert len(ports) == len(domain.findall("devices/disk")) + 1 + 3


@pytest.mark.parametrize(
    "said",
    [
        {},
        [{"number": 1}],
        [{"number": 0, "path": "/a"}],
        [{"number": 1, "path": "relative"}],
        [{"number": 1, "path": "/a b"}],
        [{"number": 1, "path": "/" + 300 * "a"}],
        [{"number": 1, "path": "/a", "more": 1}],
        [{"number": 1, "path": "/a"}] * (MOST_DISKS + 1),
    ],
)
def test_what_another_server_says_of_its_files_has_a_form(said: object) -> None:
    with pytest.raises(HypervisorError, match="where its disks are"):
        said_files(said)


def test_a_disk_that_the_target_does_not_know_is_said() -> None:
    with pytest.raises(HypervisorError, match="does not say where disk 3 is"):
        with_files(domain_xml(with_disks("a"), CONSOLES), said_files([{"number": 1, "path": "/b/one"}]))


SHARED = files_of([disk for disk in disks("b") if not disk.private])


@pytest.mark.parametrize("said", [{}, [2], [{"number": 0, "path": "/a"}], SHARED * (MOST_DISKS + 1)])
def test_what_another_server_says_of_shared_disks_has_a_form(said: object) -> None:
    with pytest.raises(HypervisorError, match="which disks it has"):
        said_shared(said)


def test_only_of_disks_of_ours_an_agents_word_is_enough() -> None:
    xml = domain_xml(with_disks("a"), CONSOLES)
    assert all_are_ours(xml, said_shared(SHARED))
    assert not all_are_ours(xml, said_shared([])), "the target has not seen that one"
    snapshot = xml.replace("/shared/two", "/shared/two.snapshot")
    assert not all_are_ours(snapshot, said_shared(SHARED)), "nor that, which a snapshot has put in its place"
    somebodys = "<disk type='file'><source file='/x'/></disk>"
    for others in (somebodys, somebodys.replace("<source", "<alias name='ua-mine'/><source")):
        assert not all_are_ours(xml.replace("<devices>", f"<devices>{others}"), said_shared(SHARED))


# ---- in a migration ----


class Bench(MigrationEnds):
    """A source and a target whose VM has disks; `prepared` is what was made ready where."""

    prepared: list[str]
    taking: "list[asyncio.Task[None]]"
    connections = 0
    broken = False

    async def open_disk(self, number: int) -> Channel:
        """As Transfer.connect_disk, and who takes it at the target."""
        if self.broken:
            raise HypervisorError("the agent of server2 cannot be reached")
        here, there = await channel_pair()
        waiting = self.there._machine(with_disks("b"))
        taking = asyncio.create_task(waiting.take_disk(number, there))
        taking.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.taking.append(taking)
        self.connections += 1
        return here

    async def migration(self, **how: Any) -> Any:
        self.ends = await channel_pair()
        waiting = await self.there.open_target(with_disks("b"))
        self.arriving = asyncio.create_task(
            self.there.run_incoming(waiting, self.ends[1], self.arrived.append)
        )
        how = {"divert": self.divert, "open_disk": self.open_disk} | how
        return await self.here.run_outgoing(self.machine, self.ends[0], self.hear, **how)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    with locations() as made:
        source, target = made.values()
        here, there = source.hypervisor(), target.hypervisor()
        prepared: list[str] = []
        for name, hypervisor in (("a", here), ("b", there)):

            async def prepare(spec: VMSpec, *, anew: bool, name: str = name) -> None:
                prepared.append(f"{name}{' anew' if anew else ''}")

            hypervisor._prepare_disks = prepare
        machine = await here.start(with_disks("a"))
        source.domain().memory = MEMORY
        following = [asyncio.create_task(_follow(hypervisor)) for hypervisor in (here, there)]
        async with asyncio.timeout(LIMIT):
            for location in (source, target):
                while not location.connection.watched():  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        bench = Bench(source, target, here, there, machine)
        bench.prepared, bench.taking = prepared, []
        yield bench
        for task in (*following, *bench.taking):
            task.cancel()
        await asyncio.gather(*following, *bench.taking, return_exceptions=True)
        for hypervisor in (here, there):
            await hypervisor.host.close()


async def test_disks_are_copied_before_the_memory_to_where_the_target_has_them(bench: Bench) -> None:
    domain, opened = bench.domain, False

    async def order() -> None:
        nonlocal opened
        opened = True
        assert domain.sent == 0

    await asyncio.wait_for(bench.migration(opened=order), LIMIT)
    came = bench.target.domain()
    assert opened and bench.prepared == ["a", "b anew"]
    assert domain.flags & disk_copies.NON_SHARED_INC
    assert domain.flags & UNSAFE, "the target's agent has seen that the shared one is the same there"
    assert (came.disks, bench.connections) == ([b"vda", b"vdc"], 2), "the private ones"
    assert bytes(came.taken[: len(MEMORY)]) == MEMORY
    assert private_disks(came.xml)[1] == ("vda", "/b/one.qcow2")
    assert (bench.source.states(), bench.target.states()) == ([], [RUNS])
    left = [p.name for one in (bench.source, bench.target) for p in one.folder.glob("*.disks")]
    assert left == [f"{ID}.disks"], "the fake QEMU's own, at the target"


async def test_a_disk_that_cannot_be_copied_leaves_the_vm_where_it_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.broken = True
    with pytest.raises(HypervisorError, match=r"its disks cannot be copied.*cannot be reached|blockdev-add"):
        await asyncio.wait_for(bench.migration(), LIMIT)
    await bench.stayed()


async def test_a_vm_that_is_to_go_by_postcopy_stays_where_it_is(bench: Bench) -> None:
    required = CopyOptions(postcopy=Postcopy.REQUIRED)
    with pytest.raises(HypervisorError, match=r"it has private disks, .*: it moves by pre-copy"):
        await asyncio.wait_for(bench.migration(divert=bench.divert, options=required), LIMIT)
    await bench.stayed()


async def test_how_much_of_the_disks_remains_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_copies, "TELL_SECONDS", 0.01)
    slow = asyncio.Event()
    open_disk = bench.open_disk

    async def late(number: int) -> Channel:
        await slow.wait()
        return await open_disk(number)

    going = asyncio.create_task(bench.migration(open_disk=late))
    async with asyncio.timeout(LIMIT):
        while not any(isinstance(event, Copying) for event in bench.events):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        slow.set()
        await going
    assert {event.copy_pass for event in bench.events if isinstance(event, Copying)} >= {0}


async def test_by_hand_a_vm_with_disks_does_not_move(bench: Bench) -> None:
    with pytest.raises(HypervisorError, match="its disks cannot be copied by this way of migrating"):
        await asyncio.wait_for(bench.migration(open_disk=None), LIMIT)
    await bench.stayed()

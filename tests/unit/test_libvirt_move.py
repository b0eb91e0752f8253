"""A move through libvirt whose memory we hold back, with a libvirt in memory and real sockets."""

import asyncio
import contextlib
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fake_libvirt import FakeDomain, FakeLibrary
from retinue.hypervisor import HypervisorError, MigrationFailed, Stopped, VMSpec, libvirt_move
from retinue.hypervisor.interface import Event
from retinue.hypervisor.libvirt_host import LibvirtHost
from retinue.hypervisor.libvirt_hypervisor import LibvirtHypervisor
from retinue.hypervisor.libvirt_move import UNBOUNDED_DOWNTIME, LibvirtMove, UnixWay

VM = "00000000-0000-4000-8000-000000000001"
MEMORY = random.Random(1).randbytes(4 << 20)
HELD = 1 << 20
RUNNING, PAUSED = 1, 3


@dataclass
class Bench:
    """A VM at its source, and a target that takes memory in and answers at the end."""

    host: LibvirtHost
    domain: FakeDomain
    move: LibvirtMove
    way: UnixWay
    taken: bytearray = field(default_factory=bytearray)
    answer: bytes = b"all of it"
    said: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def here(self) -> str:
        return "runs" if self.domain.now[0] == RUNNING else "stands still"

    async def take_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while octets := await reader.read(1 << 16):
                self.taken += octets
            writer.write(self.answer)
            await writer.drain()
        writer.close()

    async def divert(self) -> None:
        left = len(self.domain.memory) - self.domain.sent
        self.said.append(f"diverted, VM {self.here()}, {'some' if left else 'nothing'} left")

    async def drain(self) -> None:
        self.said.append(f"drained, VM {self.here()}")

    def hear(self, event: Event) -> None:
        self.events.append(event)
        self.said.append(f"{type(event).__name__}, VM {self.here()}")


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(libvirt_move, "HELD_BACK", HELD)
    with tempfile.TemporaryDirectory() as short:  # A socket's path has little room.
        async with _bench(Path(short)) as made:
            yield made


@contextlib.asynccontextmanager
async def _bench(folder: Path) -> AsyncIterator[Bench]:
    library = FakeLibrary()
    host = LibvirtHost("server1", "test:///", library)
    source, target = (LibvirtHypervisor(host, folder / name) for name in ("source", "target"))
    for name in ("source", "target"):
        (folder / name).mkdir()
    machine = await source.start(VMSpec(VM, "52:54:00:00:00:01", "tap-1", Path("/k"), Path("/i")))
    machine.domain.memory = MEMORY
    made = Bench(host, machine.domain, source.move(machine, "qemu+tcp://there/system"), target.way(VM))
    server = await asyncio.start_unix_server(made.take_in, folder / "target" / f"{VM}.memory")
    yield made
    server.close()
    await host.close()


async def test_the_vm_is_held_back_until_its_traffic_is_diverted(bench: Bench) -> None:
    await bench.move.begin()
    assert bench.domain.downtime == 0, "QEMU must not stop the VM by itself"
    result = await bench.move.run(bench.way, bench.divert, bench.hear, bench.drain)
    assert bench.said == [
        "diverted, VM runs, some left",
        "drained, VM runs",
        "Stopped, VM stands still",
    ]
    assert bytes(bench.taken) == MEMORY
    assert bench.domain.downtime == UNBOUNDED_DOWNTIME
    assert result.stopped_at <= result.resumed_at
    assert await bench.host.domain(VM) is None, "libvirt ends the source"


async def test_a_vm_that_slips_through_is_diverted_as_soon_as_it_is_seen_to_stand(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_move, "HELD_BACK", 0)
    await bench.move.begin()
    await bench.move.run(bench.way, bench.divert, bench.hear, bench.drain)
    assert bench.said[0] == "Stopped, VM stands still"
    assert bench.said[1].startswith("diverted")
    assert bytes(bench.taken) == MEMORY


async def test_without_a_divert_libvirt_does_it_all(bench: Bench) -> None:
    await bench.move.begin()
    await bench.move.run(bench.way)
    assert bytes(bench.taken) == MEMORY


async def test_a_target_that_cannot_be_opened_is_said_in_libvirts_words(bench: Bench) -> None:
    bench.domain.refuses = "internal error: no room at the target"
    with pytest.raises(HypervisorError, match="no room at the target"):
        await bench.move.begin()
    assert bench.domain.now[0] == RUNNING


def breaks_at(what: str) -> Callable[[Bench], None]:
    """Makes one of the steps fail."""

    async def fail() -> None:
        raise HypervisorError("the switches do not answer")

    def apply(bench: Bench) -> None:
        if what == "answer":
            bench.answer = b"it is broken"
        else:
            setattr(bench, what, fail)

    return apply


@pytest.mark.parametrize("what", ["divert", "drain", "answer"])
async def test_a_move_that_fails_leaves_the_vm_running_where_it_was(bench: Bench, what: str) -> None:
    breaks_at(what)(bench)
    await bench.move.begin()
    with pytest.raises(HypervisorError, match=f"VM {VM} was not moved"):
        await bench.move.run(bench.way, bench.divert, bench.hear, bench.drain)
    assert bench.domain.now[0] == RUNNING
    failed = bench.events[-1]
    assert isinstance(failed, MigrationFailed)
    assert failed.source_runs
    assert bench.domain.aborted == (what != "answer")


async def test_a_move_that_is_called_off_leaves_the_vm_running(bench: Bench) -> None:
    diverting, stuck = asyncio.Event(), asyncio.Event()

    async def divert() -> None:
        diverting.set()
        await stuck.wait()

    await bench.move.begin()
    going = asyncio.create_task(bench.move.run(bench.way, divert, bench.hear))
    await diverting.wait()
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    assert bench.domain.now[0] == RUNNING
    assert bench.domain.aborted
    assert not any(isinstance(event, Stopped) for event in bench.events)


async def test_a_move_that_was_only_begun_can_be_called_off(bench: Bench) -> None:
    await bench.move.begin()
    assert await bench.move.call_off()
    assert bench.domain.now[0] == RUNNING
    assert await bench.host.domain(VM) is bench.domain

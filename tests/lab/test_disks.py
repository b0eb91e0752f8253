"""Disks of VMs on real QEMUs: made, kept, copied while the VM writes, and whole whatever fails."""

import asyncio
import hashlib
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from qemu.qmp import QMPClient

from retinue.core.migration import copying
from retinue.core.migration.copying import CopyOptions, Postcopy
from retinue.host.errors import HostError
from retinue.hypervisor import (
    Channel,
    DiskSpec,
    Event,
    HandedOverError,
    HypervisorError,
    MigrationFailed,
    QemuHypervisor,
    QemuMachine,
    RunsElsewhere,
    RunState,
    Stopped,
    channel_pair,
)
from retinue.hypervisor.monitor import connect
from retinue.hypervisor.qemu import mirrors, outgoing
from retinue.hypervisor.qemu.outgoing import run_outgoing
from retinue_lab.guest.image import Guest, ensure_guest
from retinue_lab.guest.shell import GuestShell
from support.lab.qemu_bench import Held, QemuBench, first_of, qemu_bench
from support.lab.tools import PATIENCE, eventually, long
from support.oracles.qcow2 import content

pytestmark = [
    pytest.mark.lab,
    pytest.mark.patient,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace"),
]

MIB = 1 << 20
AGAIN_SECONDS = 2.5
"""In which QEMU's NBD client tries twice more to connect: after one second, and two."""
SIZE, WRITTEN, RATE = 32, 8, 4
"""MiB of the disk, MiB of it that the guest writes, MiB a second."""


@pytest.fixture(scope="module")
def guest() -> Guest:
    return ensure_guest(print)


@pytest.fixture
async def bench(guest: Guest) -> AsyncIterator[QemuBench]:
    async with qemu_bench(guest) as made:
        yield made


def private(bench: QemuBench) -> bytes:
    """Give the bench's VM one private disk over a base; what is in the base."""
    base = bench.folder / "base.raw"
    base.write_bytes(os.urandom(SIZE // 2 * MIB) + bytes(SIZE // 4 * MIB))
    base.chmod(0o400)
    bench.disks = (DiskSpec(1, Path(), base=base, size=SIZE * MIB),)
    return base.read_bytes()


async def scribble(shell: GuestShell, mib: int = WRITTEN, rate: int = RATE) -> None:
    command = f"diskscribble /dev/vda {mib} {rate} /tmp/disk >/tmp/complaints 2>&1 & echo $! >/tmp/pid"
    assert (await shell.run(command))[0] == 0
    await until_written(shell, 1)


async def written(shell: GuestShell) -> dict[str, int]:
    _, line = await shell.run("cat /tmp/disk")
    words = iter(line.split())
    return {word: int(next(words)) for word in words}


async def until_written(shell: GuestShell, blocks: int) -> None:
    so_far = f"[ -f /tmp/disk ] && [ $(cut -d' ' -f4 /tmp/disk) -ge {blocks} ]"
    await shell.run(f"until {so_far}; do usleep 20000; done", timeout=120)


async def ended(shell: GuestShell) -> dict[str, int]:
    await shell.run("kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid); do usleep 20000; done")
    return await written(shell)


async def digest(shell: GuestShell) -> str:
    code, line = await shell.run("echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/vda", timeout=120)
    assert code == 0
    return line.split()[0]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def _host(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv)
    assert await process.wait() == 0, argv


async def diverted(taps: object) -> bool:
    await asyncio.sleep(0.01)
    return True


async def test_a_disk_goes_there_and_back_while_the_guest_writes_it(bench: QemuBench) -> None:
    base = private(bench)
    machine, shell = await bench.boot()
    own = machine.spec.disks[0].path
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    assert await digest(shell) == sha256(base.ljust(SIZE * MIB, b"\0")), "what is in the base, then zeros"
    await scribble(shell)
    await until_written(shell, 40)
    for tap in ("tap-b", "tap-a", "tap-b"):
        target = await bench.target(tap)
        before = await written(shell)
        result = await bench.migration(machine, target, diverted)
        at_stop = content(machine.spec.disks[0].path, base)
        assert (await machine.state(), await target.state()) == (RunState.MOVED, RunState.RUNNING)
        await machine.quit()
        machine.spec.disks[0].path.unlink()
        machine, shell = target, GuestShell(target.files.shell)
        await until_written(shell, before["blocks"] + 2 * WRITTEN * 16)
        found = await written(shell)
        assert found["wrong"] == 0, found
        print(
            f"{result.total_ms:.0f} ms in all, paused {result.downtime_ms:.1f} ms, slowest write "
            f"{found['slowest']} ms; {sha256(at_stop)[:8]} at the stop",
            file=sys.stderr,
        )
    assert (await ended(shell))["wrong"] == 0
    inside = await digest(shell)
    await machine.cut_power()
    outside = content(machine.spec.disks[0].path, base)
    assert (inside, len(outside)) == (sha256(outside), SIZE * MIB)
    assert outside[WRITTEN * MIB :] == base.ljust(SIZE * MIB, b"\0")[WRITTEN * MIB :]
    assert bench.disks[0].base is not None
    assert bench.disks[0].base.read_bytes() == base, "nobody has written the base"


REQUIRED = CopyOptions(postcopy=Postcopy.REQUIRED)
MEMORY_MIB, MEMORY_RATE = 32, 300


@pytest.fixture
def no_pause_is_short_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "LEAST_PAUSE", 0.0)


async def scribble_memory(shell: GuestShell) -> None:
    command = f"scribble {MEMORY_MIB} {MEMORY_RATE} /tmp/scribbled >/dev/null 2>&1 &"
    assert (await shell.run(command))[0] == 0
    await shell.run("until [ -f /tmp/scribbled ]; do usleep 20000; done")


async def memory_is_right(shell: GuestShell) -> None:
    """All of it has been written and compared since now."""
    before = int((await shell.run("cut -d' ' -f4 /tmp/scribbled"))[1])
    enough = before + 2 * MEMORY_MIB * 256
    await shell.run(f"until [ $(cut -d' ' -f4 /tmp/scribbled) -gt {enough} ]; do usleep 50000; done", 120)
    assert (await shell.run("cut -d' ' -f6 /tmp/scribbled"))[1].strip() == "0"


@pytest.mark.usefixtures("no_pause_is_short_enough")
async def test_a_disk_and_memory_go_over_by_postcopy_while_the_guest_writes_both(bench: QemuBench) -> None:
    base = private(bench)
    machine, shell = await bench.boot()
    await scribble(shell)
    await scribble_memory(shell)
    by_postcopy = 0
    for tap in ("tap-b", "tap-a"):
        bench.events.clear()
        target = await bench.target(tap)
        await target.expect_postcopy()
        before = await written(shell)
        result = await bench.migration(machine, target, diverted, REQUIRED, 0.0)
        by_postcopy += any(isinstance(event, RunsElsewhere) for event in bench.events)
        assert await machine.state() is RunState.MOVED
        print(f"post-copy with a disk: paused {result.downtime_ms:.0f} ms", file=sys.stderr)
        await machine.quit()
        machine.spec.disks[0].path.unlink()
        machine, shell = target, GuestShell(target.files.shell)
        await until_written(shell, before["blocks"] + 2 * WRITTEN * 16)
        assert (await written(shell))["wrong"] == 0
        await memory_is_right(shell)
    assert by_postcopy, "only a guest that had no processor meanwhile has nothing left to send after its stop"
    assert (await ended(shell))["wrong"] == 0
    inside = await digest(shell)
    await machine.cut_power()
    assert inside == sha256(content(machine.spec.disks[0].path, base))


@pytest.mark.usefixtures("no_pause_is_short_enough")
@pytest.mark.parametrize("when", [long("at the stop"), "when the disks are handed over"])
async def test_a_target_that_dies_before_it_ran_by_postcopy_leaves_vm_and_disk_whole(
    bench: QemuBench, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = private(bench)
    machine, shell = await bench.boot()
    await scribble(shell)
    await scribble_memory(shell)
    target = await bench.target()
    await target.expect_postcopy()
    finish = mirrors.Mirrors.finish

    async def then_it_dies(self: mirrors.Mirrors) -> None:
        await finish(self)
        target.kill()
        await target.process.wait()

    def hear(event: Event) -> None:
        bench.events.append(event)
        if isinstance(event, Stopped) and when == "at the stop":
            target.kill()

    if when != "at the stop":
        monkeypatch.setattr(mirrors.Mirrors, "finish", then_it_dies)
    here, there = await channel_pair()
    copies = Copies(target)
    arrival = bench.hypervisor.run_incoming(target, there, bench.events.append)
    going = run_outgoing(machine, here, hear, diverted, 0.0, REQUIRED, copies, limit=60.0)
    went, came = await asyncio.gather(going, arrival, return_exceptions=True)
    await asyncio.gather(*copies.tasks, return_exceptions=True)
    assert isinstance(went, HypervisorError) and not isinstance(went, HandedOverError), went
    assert isinstance(came, HypervisorError), came
    [failed] = [event for event in bench.events if isinstance(event, MigrationFailed)]
    assert failed.source_runs
    assert await machine.state() is RunState.RUNNING
    monkeypatch.setattr(mirrors.Mirrors, "finish", finish)
    before = await written(shell)
    await until_written(shell, before["blocks"] + 2 * WRITTEN * 16)
    assert (await written(shell))["wrong"] == 0
    await memory_is_right(shell)
    assert await machine.execute("query-jobs") == []
    again = await bench.target()
    await again.expect_postcopy()
    await bench.migration(machine, again, diverted, REQUIRED, 0.0)
    shell = GuestShell(again.files.shell)
    assert (await ended(shell))["wrong"] == 0
    await memory_is_right(shell)
    inside = await digest(shell)
    await machine.quit()
    await again.cut_power()
    assert inside == sha256(content(again.spec.disks[0].path, base))


class Copies:
    """The connections of one migration's disk: to be held up, or cut."""

    def __init__(self, target: QemuMachine) -> None:
        self.target = target
        self.opened = asyncio.Event()
        self.far: list[Channel] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def __call__(self, number: int) -> Channel:
        near, far = await channel_pair()
        self.far.append(far)
        self.tasks.append(asyncio.create_task(self.target.take_disk(number, far)))
        self.opened.set()
        return near


FAILURES = [
    long("disk full"),
    long("called off at once"),
    long("called off in memory"),
    long("cut"),
    "target dies",
    long("target stalls"),
    long("no target"),
]


@pytest.mark.parametrize("how", FAILURES)
async def test_a_move_that_fails_leaves_the_disk_whole(
    bench: QemuBench, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = private(bench)
    machine, shell = await bench.boot()
    await scribble(shell)
    await until_written(shell, 2 * WRITTEN * 16)
    small = bench.folder / "small"
    if how == "disk full":
        small.mkdir()
        await _host("mount", "-t", "tmpfs", "-o", "size=6m", "none", str(small))
        bench.disks = (replace(bench.disks[0], path=small / "overlay"),)
    if how == "target stalls":
        monkeypatch.setattr(mirrors, "STALL_LIMIT", 2.0)
    if how == "no target":
        monkeypatch.setattr(mirrors, "GREETING_LIMIT", 2.0)
    try:
        target = await bench.target()
        copies, held = Copies(target), Held(machine)
        here, there = await channel_pair()
        arrival = asyncio.create_task(bench.hypervisor.run_incoming(target, there, bench.events.append))
        if how == "no target":
            os.kill(target.process.pid, signal.SIGSTOP)
        moving = asyncio.create_task(
            run_outgoing(machine, here, bench.events.append, held, open_disk=copies, limit=60.0)
        )
        match how:
            case "called off at once":
                await first_of(copies.opened, moving)
                moving.cancel()
            case "called off in memory":
                await first_of(held.reached, moving)
                moving.cancel()
            case "cut":
                await first_of(held.reached, moving)
                copies.far[0].abort()
            case "target dies":
                await first_of(held.reached, moving)
                target.kill()
            case "target stalls":
                await first_of(held.reached, moving)
                os.kill(target.process.pid, signal.SIGSTOP)
        with pytest.raises((HypervisorError, asyncio.CancelledError)) as raised:
            await moving
        if how == "disk full":
            assert "No space left on device" in str(raised.value)
        if how == "target stalls":
            assert "has not answered for 2 s" in str(raised.value)
        if how == "no target":
            assert "the target does not open it" in str(raised.value)
        if how in ("target stalls", "no target"):
            os.kill(target.process.pid, signal.SIGCONT)
        with pytest.raises(HostError):
            await arrival
        await asyncio.gather(*copies.tasks, return_exceptions=True)
    finally:
        if how == "disk full":
            await target.quit()
            await _host("umount", str(small))
    [failed] = [event for event in bench.events if isinstance(event, MigrationFailed)]
    assert failed.source_runs
    assert await machine.state() is RunState.RUNNING
    before = await written(shell)
    await until_written(shell, before["blocks"] + 2 * WRITTEN * 16)
    assert (await written(shell))["wrong"] == 0
    jobs, nodes = await machine.execute("query-jobs"), await machine.execute("query-named-block-nodes")
    assert jobs == []
    assert not [node for node in nodes if "target" in node["node-name"]]

    # And it can be moved, as if nobody had tried before.
    bench.disks = (replace(bench.disks[0], path=Path()),)
    again = await bench.target()
    await bench.migration(machine, again, diverted)
    shell = GuestShell(again.files.shell)
    before = await written(shell)
    await until_written(shell, before["blocks"] + 2 * WRITTEN * 16)
    assert (await ended(shell))["wrong"] == 0
    inside = await digest(shell)
    await machine.quit()
    await again.cut_power()
    assert inside == sha256(content(again.spec.disks[0].path, base))


async def test_a_copy_whose_agent_has_died_takes_no_other_connection_for_its_own(bench: QemuBench) -> None:
    """QEMU's NBD client connects again and again, to the same address: were it a socket's number, to whatever
    has that number by then. The next agent's connection to the monitor, and the guest's console, did."""
    base = private(bench)
    machine, shell = await bench.boot()
    await scribble(shell)
    target = await bench.target()
    copies = Copies(target)
    copying = mirrors.Mirrors(machine, copies, bench.events.append)
    await copying.start()
    await copying.until_ready()
    await copying.close()  # As when the agent dies: nobody undoes anything.

    async def broken() -> bool:
        return bool((await machine.execute("query-block-jobs"))[0]["io-status"] == "failed")

    await eventually(broken)
    # The guest's writes, several at once, do so too, if not each time.
    await machine.execute("human-monitor-command", command_line='qemu-io disk1-target "read 0 4k"')
    qmp = QMPClient()
    await connect(qmp, str(machine.files.observer))
    await asyncio.sleep(AGAIN_SECONDS)
    async with asyncio.timeout(PATIENCE):
        assert (await qmp.execute("query-status", {}))["running"]
    await qmp.disconnect()

    await machine.let_go()
    again = QemuHypervisor(bench.folder)
    left = await again.adopt(lambda vm: bench.events.append)
    [adopted] = [one for one in left.machines if one.spec.port == "tap-a"]
    bench.machines = [*left.machines, target]
    assert await adopted.state() is RunState.RUNNING
    assert await adopted.execute("query-jobs") == [], "what was left is cleared"
    before = await written(shell)
    await until_written(shell, before["blocks"] + 2 * WRITTEN * 16)
    bench.disks = (replace(bench.disks[0], path=Path()),)
    other = await bench.target()
    await bench.migration(adopted, other, diverted)
    shell = GuestShell(other.files.shell)
    assert (await ended(shell))["wrong"] == 0
    inside = await digest(shell)
    await adopted.quit()
    await other.cut_power()
    assert inside == sha256(content(other.spec.disks[0].path, base))


async def test_a_disk_on_shared_storage_has_one_writer_at_any_time(bench: QemuBench) -> None:
    shared = bench.folder / "shared.raw"
    shared.write_bytes(bytes(SIZE * MIB))
    bench.disks = (DiskSpec(1, shared, private=False, format="raw"),)
    await bench.plug("tap-c")
    machine, shell = await bench.boot()
    await scribble(shell)
    await until_written(shell, 2 * WRITTEN * 16)
    with pytest.raises(HypervisorError, match="lock"):
        await bench.hypervisor.start(bench.spec("tap-b"))
    for tap in ("tap-b", "tap-a"):
        target = await bench.target(tap)
        if tap == "tap-a":  # One that fails first: the lock stays, or comes back, where the VM runs.
            held = Held(machine)
            held.fails = True
            held.go_on.set()
            with pytest.raises(HypervisorError):
                await bench.migration(machine, target, held)
            assert await machine.state() is RunState.RUNNING
            target = await bench.target(tap)
        result = await bench.migration(machine, target, diverted)
        before = shared.stat().st_mtime_ns
        with pytest.raises(HypervisorError, match="lock"):
            await bench.hypervisor.start(bench.spec("tap-c"))
        await machine.quit()
        machine, shell = target, GuestShell(target.files.shell)
        now = await written(shell)
        await until_written(shell, now["blocks"] + 2 * WRITTEN * 16)
        assert (await written(shell))["wrong"] == 0
        assert shared.stat().st_mtime_ns > before
        print(f"shared: paused {result.downtime_ms:.1f} ms", file=sys.stderr)
    assert (await ended(shell))["wrong"] == 0
    inside = await digest(shell)
    assert inside == sha256(shared.read_bytes())


async def test_what_is_missing_or_another_vms_is_said(bench: QemuBench) -> None:
    base = bench.folder / "base.raw"
    base.write_bytes(bytes(8 * MIB))
    bench.disks = (DiskSpec(1, Path(), base=bench.folder / "nowhere", size=16 * MIB),)
    with pytest.raises(HypervisorError, match=r"disk 1: there is no file .*nowhere"):
        await bench.hypervisor.start(bench.spec())
    bench.disks = (DiskSpec(1, Path(), base=base, size=4 * MIB),)
    with pytest.raises(HypervisorError, match="it has 4 MiB, and its base more"):
        await bench.hypervisor.start(bench.spec())
    assert not bench.spec().disks[0].path.exists()
    bench.disks = (DiskSpec(1, Path(), base=base),)
    machine, _ = await bench.boot()
    await machine.cut_power()
    bench.disks = (DiskSpec(1, Path(), size=8 * MIB),)
    with pytest.raises(HypervisorError, match=r"8 MiB over .*base.raw"):
        await bench.hypervisor.start(bench.spec())


async def test_what_an_agent_leaves_that_dies_as_the_disks_are_handed_over_is_cleared_by_the_next(
    bench: QemuBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU waits for a word, the VM stopped; nobody is there to say it, nor to end the copies."""
    base = private(bench)
    machine, shell = await bench.boot()
    await scribble(shell)
    target = await bench.target()
    reached = asyncio.Event()

    async def finish(self: mirrors.Mirrors) -> None:
        reached.set()
        await asyncio.Event().wait()

    async def nothing(*arguments: object) -> None:
        pass

    with monkeypatch.context() as patched:
        patched.setattr(mirrors.Mirrors, "finish", finish)
        patched.setattr(outgoing, "as_before", nothing)
        moving = asyncio.create_task(bench.migration(machine, target, diverted))
        await first_of(reached, moving)
        assert (await machine.execute("query-migrate"))["status"] == "pre-switchover"
        moving.cancel()
        await asyncio.gather(moving, return_exceptions=True)
    assert await machine.state() is not RunState.RUNNING
    await machine.resume()
    assert await machine.state() is RunState.RUNNING
    before = await written(shell)
    await until_written(shell, before["blocks"] + 2 * WRITTEN * 16)
    assert (await written(shell))["wrong"] == 0

    again = await bench.target()
    await bench.migration(machine, again, diverted)
    shell = GuestShell(again.files.shell)
    assert (await ended(shell))["wrong"] == 0
    inside = await digest(shell)
    await again.cut_power()
    assert inside == sha256(content(again.spec.disks[0].path, base))

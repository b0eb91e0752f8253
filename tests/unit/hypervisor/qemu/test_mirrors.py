"""The copies of a source's disks, with a QEMU that has only jobs: what it is asked for, and when."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from retinue.hypervisor import Channel, Copying, DiskSpec, HypervisorError, RunState, VMSpec, channel_pair
from retinue.hypervisor.interface import Event
from retinue.hypervisor.paths import MachineFiles
from retinue.hypervisor.qemu import mirrors as mirrors_module
from retinue.hypervisor.qemu.mirrors import Mirrors

DISKS = (
    DiskSpec(1, Path("/d/one")),
    DiskSpec(2, Path("/mnt/shared"), private=False),
    DiskSpec(3, Path("/d/three")),
)


class Jobs:
    """A QEMU's jobs and nodes; `asked` has what changes something, in order."""

    def __init__(self, folder: Path) -> None:
        self.files = MachineFiles.named(folder, "tap-1")
        self.spec = VMSpec("vm1", "52:54:00:00:00:01", "tap", Path("/k"), Path("/i"), disks=DISKS)
        self.alive = True
        self.jobs: dict[str, dict[str, Any]] = {}
        self.nodes = {"disk1", "disk2", "disk3"}
        self.asked: list[str] = []
        self.mirrors: list[dict[str, Any]] = []
        self.connected: list[socket.socket] = []
        self.runs = True
        self.health: dict[str, str] = {}

    async def state(self) -> RunState:
        return RunState.RUNNING if self.runs else RunState.PAUSED

    async def resume(self) -> None:
        self.runs = True

    async def execute(self, command: str, **arguments: Any) -> Any:
        return await self.command(command, arguments)

    async def command(self, command: str, arguments: dict[str, Any]) -> Any:
        if command == "query-jobs":
            return [dict(job) for job in self.jobs.values()]
        if command == "query-block-jobs":
            return [{"device": id, "io-status": self.health.get(id, "ok")} for id in self.jobs]
        if command == "stop":
            self.runs = False
            return {}
        if command == "query-named-block-nodes":
            return [{"node-name": node} for node in sorted(self.nodes)]
        named = ("job-id", "node-name", "device", "id")
        self.asked.append(f"{command} {next(arguments[name] for name in named if name in arguments)}")
        match command:
            case "blockdev-add":
                assert arguments["node-name"] not in self.nodes, "there is one of that name"
                assert arguments["server"]["type"] == "unix", "it may be connected to again"
                end = socket.socket(socket.AF_UNIX)
                end.connect(arguments["server"]["path"])
                self.connected.append(end)
                self.nodes.add(arguments["node-name"])
            case "blockdev-del":
                self.nodes.remove(arguments["node-name"])
            case "blockdev-mirror":
                self.mirrors.append(arguments)
                self.job(arguments["job-id"], "running")
            case "block-job-cancel":
                job = self.jobs[arguments["device"]]
                assert not (arguments.get("force") and self.runs), "the guest may write just then"
                ended = job["status"] == "ready" or arguments.get("force")
                job["status"] = "concluded" if ended else job["status"]
            case "job-dismiss":
                assert self.jobs.pop(arguments["id"])["status"] == "concluded"
        return {}

    def job(self, id: str, status: str, **more: Any) -> None:
        progress = {"current-progress": 3 << 20, "total-progress": 9 << 20}
        self.jobs[id] = {"id": id, "status": status, **progress, **more}

    def all(self, status: str) -> None:
        for job in self.jobs.values():
            job["status"] = status


class Bench:
    def __init__(self, folder: Path) -> None:
        self.qemu = Jobs(folder)
        self.told: list[Event] = []
        self.opened: list[int] = []
        self.greets = True
        self.greeting = b"NBDMAGIC"
        self.far: list[Channel] = []
        self.sending: list[asyncio.Task[None]] = []
        self.mirrors = Mirrors(self.qemu, self._open, self.told.append)  # type: ignore[arg-type]

    async def _open(self, number: int) -> Channel:
        near, far = await channel_pair()
        self.opened.append(number)
        self.far.append(far)
        if self.greets:
            self.sending.append(asyncio.create_task(far.send_memory(self.greeting)))
        return near


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.mirrors.close()
    for channel in made.far:
        channel.abort()
    await asyncio.gather(*made.sending, return_exceptions=True)
    for end in made.qemu.connected:
        end.close()
    assert list(tmp_path.iterdir()) == []


async def test_private_disks_are_copied_while_the_vm_runs_and_ended_when_it_is_stopped(bench: Bench) -> None:
    qemu, mirrors = bench.qemu, bench.mirrors
    await mirrors.start()
    assert bench.opened == [1, 3], "nothing of a shared one is copied"
    for mirror in qemu.mirrors:
        assert (mirror["sync"], mirror["copy-mode"]) == ("top", "write-blocking")
    waiting = asyncio.create_task(mirrors.until_ready())
    await asyncio.sleep(0.2)
    assert not waiting.done()
    [told] = bench.told
    assert isinstance(told, Copying)
    assert (told.copy_pass, told.remaining) == (0, 2 * (6 << 20))
    qemu.jobs["disk1-mirror"]["status"] = "ready"
    await asyncio.sleep(0.2)
    assert not waiting.done(), "the other one is not the same yet"
    qemu.all("ready")
    await waiting
    watching = asyncio.create_task(mirrors.watch())
    await asyncio.sleep(0.3)
    assert not watching.done()
    del qemu.asked[:]
    await mirrors.finish()
    assert qemu.asked == ["block-job-cancel disk1-mirror", "block-job-cancel disk3-mirror"]
    assert [job["status"] for job in qemu.jobs.values()] == ["concluded"] * 2
    await watching


async def test_who_asks_for_the_end_of_the_copies_once_more_waits_for_it_too(bench: Bench) -> None:
    """QEMU may wait before the switch while they are ended for post-copy: it must not go on before."""
    await bench.mirrors.start()
    bench.qemu.all("ready")
    bench.qemu.jobs["disk3-mirror"]["status"] = "running"
    first, again = (asyncio.create_task(bench.mirrors.finish()) for _ in range(2))
    done, _ = await asyncio.wait({first, again}, timeout=0.05)
    assert not done
    assert [line for line in bench.qemu.asked if "cancel" in line] == [
        "block-job-cancel disk1-mirror",
        "block-job-cancel disk3-mirror",
    ]
    bench.qemu.all("concluded")
    await asyncio.gather(first, again)


@pytest.mark.parametrize("when", ["copying", "ready", "stopped"])
async def test_a_copy_that_fails_is_told_with_its_reason(bench: Bench, when: str) -> None:
    qemu, mirrors = bench.qemu, bench.mirrors
    await mirrors.start()
    if when != "copying":
        qemu.all("ready")
        await mirrors.until_ready()
    qemu.job("disk3-mirror", "concluded", error="No space left on device")
    step = {"copying": mirrors.until_ready, "ready": mirrors.watch, "stopped": mirrors.finish}[when]
    with pytest.raises(HypervisorError, match="disk 3 cannot be copied: No space left on device"):
        await step()


async def test_an_error_stops_a_copy_and_does_not_end_it(bench: Bench) -> None:
    await bench.mirrors.start()
    assert all(mirror["on-target-error"] == "stop" for mirror in bench.qemu.mirrors)
    bench.qemu.health["disk3-mirror"] = "nospace"
    with pytest.raises(HypervisorError, match="disk 3 cannot be copied: No space left on device"):
        await bench.mirrors.until_ready()


async def test_a_copy_that_ends_by_itself_is_no_copy(bench: Bench) -> None:
    await bench.mirrors.start()
    bench.qemu.all("ready")
    await bench.mirrors.until_ready()
    bench.qemu.all("concluded")
    with pytest.raises(HypervisorError, match="disk 1 is no longer copied"):
        await bench.mirrors.watch()
    bench.qemu.jobs.clear()
    with pytest.raises(HypervisorError, match="disk 1 is no longer copied"):
        await bench.mirrors.watch()


async def test_why_the_connection_ended_is_why_the_copy_did(bench: Bench) -> None:
    await bench.mirrors.start()
    for channel in bench.far:
        channel.abort()
    await asyncio.sleep(0.2)
    bench.qemu.job("disk1-mirror", "concluded", error="Input/output error")
    with pytest.raises(HypervisorError, match=r"disk 1 cannot be copied: the other end .* has hung up"):
        await bench.mirrors.until_ready()


@pytest.mark.parametrize("status", ["running", "ready", "concluded"])
async def test_an_undo_leaves_nothing_and_so_does_what_another_agent_has_left(
    bench: Bench, status: str
) -> None:
    qemu = bench.qemu
    await bench.mirrors.start()
    qemu.all(status)
    await bench.mirrors.undo()
    assert (qemu.jobs, qemu.nodes, qemu.runs) == ({}, {"disk1", "disk2", "disk3"}, True)
    again = Mirrors(qemu, bench._open, bench.told.append)  # type: ignore[arg-type]
    await again.start()
    qemu.all(status)
    await again.close()  # And no undo: its agent has died.
    third = Mirrors(qemu, bench._open, bench.told.append)  # type: ignore[arg-type]
    await third.start()
    assert [job["status"] for job in qemu.jobs.values()] == ["running"] * 2
    await third.close()


async def test_no_qemu_waits_for_a_target_that_says_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors_module, "GREETING_LIMIT", 0.1)
    bench.greets = False
    with pytest.raises(HypervisorError, match="disk 1 cannot be copied: the target does not open it"):
        await bench.mirrors.start()
    assert bench.qemu.asked == []


async def test_what_the_target_says_first_goes_to_qemu(bench: Bench) -> None:
    await bench.mirrors.start()
    for end in bench.qemu.connected:
        end.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(end, 100) == b"NBDMAGIC"


async def test_qemu_finds_nobody_when_it_connects_again(bench: Bench) -> None:
    """Its NBD client does when a connection has broken, as long as there is the node."""
    await bench.mirrors.start()
    for end in bench.qemu.connected:
        end.setblocking(False)
        await asyncio.get_running_loop().sock_recv(end, 100)
    for number in (1, 3):
        assert not bench.qemu.files.copy_of(number).exists()


async def test_a_socket_that_an_agent_before_has_left_is_in_nobodys_way(bench: Bench) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(bench.qemu.files.copy_of(1)))
    await bench.mirrors.start()
    assert len(bench.qemu.connected) == 2


@pytest.mark.parametrize("nbytes", [0, 1025, 1 << 20])
async def test_a_target_that_begins_with_no_greeting_is_not_listened_to(bench: Bench, nbytes: int) -> None:
    bench.greeting = bytes(nbytes)
    with pytest.raises(HypervisorError, match="disk 1 cannot be copied: the target does not open it"):
        await bench.mirrors.start()
    assert bench.qemu.connected == []


async def test_a_way_of_migrating_without_connections_for_disks_says_so(tmp_path: Path) -> None:
    mirrors = Mirrors(Jobs(tmp_path), None, lambda event: None)  # type: ignore[arg-type]
    with pytest.raises(HypervisorError, match="cannot be copied by this way"):
        await mirrors.start()

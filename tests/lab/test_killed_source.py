"""A source's agent is killed between the stop and the hand-over: the next one finds the VM, which runs on.

Real QEMUs, and an agent's half in a process of its own (support/lab/killed_source.py). That the controller
has a target closed that never ran it, and the source resume it, is told elsewhere (tests/unit/agent).
"""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from retinue.core.migration.copying import CopyOptions, Postcopy
from retinue.hypervisor import (
    Channel,
    DiskSpec,
    HandedOverError,
    HypervisorError,
    QemuHypervisor,
    QemuMachine,
    RunState,
)
from retinue.hypervisor.memory_channel import READ_BYTES
from retinue_lab.guest.image import Guest, ensure_guest
from retinue_lab.guest.shell import GuestShell
from support.lab.qemu_bench import QemuBench, qemu_bench
from support.lab.tools import PATIENCE, long

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MIB, RATE = 16, 40
SIZE = 16 << 20
TESTS = str(Path(__file__).parents[1])


@pytest.fixture(scope="module")
def guest() -> Guest:
    return ensure_guest(print)


@pytest.fixture
async def bench(guest: Guest) -> AsyncIterator[QemuBench]:
    async with qemu_bench(guest) as made:
        yield made


async def diverted(taps: object) -> bool:
    return True


async def killed_at(bench: QemuBench, source: QemuMachine, moment: str, how: Postcopy, disks: int) -> object:
    """An agent takes the machine up, migrates it, and is killed at that moment; what comes of the target."""
    await source.let_go()
    bench.machines.remove(source)
    ends = [socket.socketpair() for _ in range(1 + disks)]
    theirs = [end[1].fileno() for end in ends]
    pipe = asyncio.subprocess.PIPE
    words = (sys.executable, "-m", "support.lab.killed_source", str(bench.folder), moment, str(how))
    paths = os.pathsep.join((TESTS, *sys.path))
    agent = await asyncio.create_subprocess_exec(
        *(*words, *map(str, theirs)),
        stdin=pipe,
        stdout=pipe,
        pass_fds=theirs,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert agent.stdin is not None and agent.stdout is not None

    said = agent.stdout

    async def says(word: bytes) -> None:
        while (line := await said.readline()) != word + b"\n":
            assert line, f"the agent has ended before it was {word.decode()}"

    try:
        async with asyncio.timeout(PATIENCE):
            await says(b"adopted")
            target = await bench.target()
            if how is not Postcopy.NEVER:
                await target.expect_postcopy()
            here = [Channel(*await asyncio.open_connection(sock=end, limit=READ_BYTES)) for end, _ in ends]
            for _, other in ends:
                other.close()
            arrival = asyncio.create_task(bench.hypervisor.run_incoming(target, here[0], bench.events.append))
            taking = [
                asyncio.create_task(target.take_disk(number, end)) for number, end in enumerate(here[1:], 1)
            ]
            agent.stdin.write(b"go on\n")
            await says(b"now")
            agent.kill()
            await agent.wait()
            (came, *_) = await asyncio.gather(arrival, *taking, return_exceptions=True)
    finally:
        if agent.returncode is None:
            agent.kill()
            await agent.wait()
    return came


PRE, POST = Postcopy.NEVER, Postcopy.REQUIRED


@pytest.mark.parametrize(
    ("moment", "how", "disks"),
    [
        ("stopped", PRE, 0),
        ("sent", PRE, 0),
        long("stopped", PRE, 1),
        long("before the disks", PRE, 1),
        ("after the disks", PRE, 1),
        long("sent", PRE, 1),
        long("stopped", POST, 1),
        long("before the disks", POST, 1),
        ("after the disks", POST, 1),
    ],
)
async def test_an_agent_that_is_killed_between_stop_and_hand_over_costs_no_vm(
    bench: QemuBench, moment: str, how: Postcopy, disks: int
) -> None:
    if disks:
        bench.disks = (DiskSpec(1, Path(), size=SIZE),)
    source, shell = await bench.boot()
    assert (await shell.run(f"scribble {MIB} {RATE} /tmp/scribbled >/dev/null 2>&1 &"))[0] == 0
    if disks:
        assert (await shell.run("diskscribble /dev/vda 4 4 /tmp/disk >/dev/null 2>&1 &"))[0] == 0
        await shell.run("until [ -f /tmp/disk ]; do usleep 20000; done")
    await shell.run("until [ -f /tmp/scribbled ]; do usleep 20000; done")
    came = await killed_at(bench, source, moment, how, disks)
    assert isinstance(came, HypervisorError) and not isinstance(came, HandedOverError), came
    left = await QemuHypervisor(bench.folder).adopt(lambda vm: bench.events.append)
    [found] = left.machines
    bench.machines = [found]
    assert not left.lacking
    if await found.state() is not RunState.RUNNING:
        await found.resume()
    assert await found.state() is RunState.RUNNING
    await nothing_is_wrong(found, disks)
    bench.disks = tuple(replace(disk, path=Path()) for disk in bench.disks)
    target = await bench.target()
    if how is not Postcopy.NEVER:
        await target.expect_postcopy()
    await bench.migration(found, target, diverted, CopyOptions(postcopy=how))
    await nothing_is_wrong(target, disks)


async def nothing_is_wrong(machine: QemuMachine, disks: int) -> None:
    """The guest has written and compared all of its memory since now, and some of its disk."""
    shell = GuestShell(machine.files.shell)
    before = int((await shell.run("cut -d' ' -f4 /tmp/scribbled"))[1])
    enough = before + 2 * MIB * 256
    await shell.run(
        f"until [ $(cut -d' ' -f4 /tmp/scribbled) -gt {enough} ]; do usleep 50000; done", PATIENCE
    )
    assert (await shell.run("cut -d' ' -f6 /tmp/scribbled"))[1].strip() == "0"
    if disks:
        blocks = int((await shell.run("cut -d' ' -f4 /tmp/disk"))[1]) + 2 * 4 * 16
        await shell.run(f"until [ $(cut -d' ' -f4 /tmp/disk) -gt {blocks} ]; do usleep 50000; done", PATIENCE)
        words = (await shell.run("cat /tmp/disk"))[1].split()
        assert dict(zip(words[::2], words[1::2], strict=False))["wrong"] == "0"

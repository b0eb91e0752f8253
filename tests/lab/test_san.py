"""Storage with real ends: Linux's initiator and target in guests, through the laboratory's switches.

The initiator's VM migrates while it writes and reads its disk. What is told apart from a test with fakes
(test_storage): whether Fibre Channel itself has noticed.
"""

import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from retinue_lab.topology.topology import FORWARDER
from support.lab import fc_watch
from support.lab.programs import popen_in
from support.lab.tools import Json, LabBench, at, eventually, mac_of
from support.lab.watch import Lines

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long]

TOPOLOGY = "san"
DISK_MIB = 8
RATE_MIB = 16
"""More than goes through an emulated node: one write or read follows the other."""
BLOCK = 65536
BLOCKS = DISK_MIB * (1 << 20) // BLOCK
INITIATOR, TARGET = "vm1", "vm2"
VMS: list[Json] = [
    at(INITIATOR, "server1", "10.1.0.51"),
    at(TARGET, "server2", "10.1.0.52") | {"memory_mib": 256},
]
DISK = "/dev/sda"


def wwpn(vm: str) -> str:
    """As libfcoe makes it of the MAC."""
    return f"20:00:{mac_of(vm)}"


@pytest.fixture
async def wires(bench: LabBench) -> AsyncIterator[list[Lines]]:
    """Every uplink by which storage comes and goes, and the forwarder's port, watched for what is no data."""
    tests = Path(fc_watch.__file__).parents[2]
    program = [sys.executable, "-m", fc_watch.__name__]
    env = ["env", f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}:{tests}"]
    async with contextlib.AsyncExitStack() as stack:
        watched = []
        for node in ("server1", "server2", "server3", FORWARDER):
            nic = "eth0" if node == FORWARDER else "up0"
            lines = Lines(await popen_in(bench.lab)(node, [*env, *program, nic]))
            stack.push_async_callback(lines.close)
            await lines.until("watches")
            watched.append(lines)
        yield watched


def seen(wires: list[Lines]) -> list[str]:
    """What has been told of all wires, but for the word that they are watched."""
    return [line for wire in wires for _, line in wire.seen[1:]]


async def as_node(bench: LabBench, vm: str, *arguments: str) -> None:
    """Make the VM's guest a node of Fibre Channel; returns when it is logged in."""
    async with bench.events() as events:
        await bench.guest(vm, " ".join(["fc-node", *arguments]))
        await events.until("storage.login", lambda e: e["vm"] == vm)


async def finds_its_disk(bench: LabBench, wires: list[Lines]) -> None:
    try:
        await bench.guest(INITIATOR, f"until [ -b {DISK} ]; do usleep 50000; done")
    except AssertionError as error:
        log = (bench.lab.directory / "logs" / f"{FORWARDER}.log").read_text()
        raise AssertionError(f"no disk; the forwarder: {log}\non the wires: {seen(wires)}") from error


def content(rounds: int, blocks: int) -> bytes:
    """The disk as diskscribble leaves it after so many whole rounds, and blocks of one more."""
    found = []
    for block in range(BLOCKS):
        round = rounds + (block < blocks)
        word = ((block << 32) ^ (round * 0x9E3779B97F4A7C15)) & (1 << 64) - 1 | 1 if round else 0
        found.append(word.to_bytes(8, "little") * (BLOCK // 8))
    return b"".join(found)


async def progress(bench: LabBench) -> dict[str, int]:
    """What diskscribble says of itself."""
    words = (await bench.guest(INITIATOR, "cat /tmp/disk")).split()
    return {name: int(number) for name, number in zip(words[::2], words[1::2], strict=True)}


async def some_more(bench: LabBench, blocks: int) -> None:
    """Return when so many more blocks have been written."""
    begun = (await progress(bench))["blocks"]

    async def written() -> bool:
        return (await progress(bench))["blocks"] >= begun + blocks

    await eventually(written)


async def ended(bench: LabBench) -> dict[str, int]:
    """End diskscribble; what it says at last."""
    end = "kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid) 2> /dev/null; do usleep 50000; done"
    await bench.guest(INITIATOR, end)
    assert not await bench.guest(INITIATOR, "cat /tmp/said")
    return await progress(bench)


async def test_a_kernels_initiator_migrates_under_load_and_fibre_channel_does_not_notice(
    bench: LabBench, wires: list[Lines]
) -> None:
    await as_node(bench, TARGET, "target", str(DISK_MIB), wwpn(INITIATOR))
    await as_node(bench, INITIATOR, "initiator")
    await finds_its_disk(bench, wires)
    asked = seen(wires)
    assert any(line.startswith("logs in") for line in asked), "logins are seen, by FIP"
    assert any(line.startswith("asks 03") for line in asked), "and among ports"

    scribble = f"diskscribble {DISK} {DISK_MIB} {RATE_MIB} /tmp/disk > /tmp/said 2>&1 & echo $! > /tmp/pid"
    await bench.guest(INITIATOR, f"{scribble}; until [ -s /tmp/disk ]; do usleep 50000; done")
    await some_more(bench, BLOCKS + 1)  # From the second round on it reads, too.
    before = [len(wire.seen) for wire in wires]
    async with bench.events() as events:
        for server in ("server3", "server2", "server1"):  # Under one leaf, to another, and back.
            await bench.migration(INITIATOR, target_server=server)
            await some_more(bench, BLOCKS)
        assert not events.of("storage.login") and not events.of("storage.logout")
    trouble = [line for wire, old in zip(wires, before, strict=True) for _, line in wire.seen[old:]]
    assert not trouble, "nothing was asked for again (REC), no exchange aborted (ABTS), nobody logged in anew"

    # Where Fibre Channel does notice something, it is seen.
    bench.kill(FORWARDER, signal.SIGSTOP)
    await wires[0].until("asks 13")
    bench.kill(FORWARDER, signal.SIGCONT)
    await some_more(bench, BLOCKS)

    done = await ended(bench)
    assert done["wrong"] == 0, done
    wanted = hashlib.sha256(content(done["blocks"] // BLOCKS, done["blocks"] % BLOCKS)).hexdigest()
    read = f"dd if={DISK} bs={BLOCK} count={BLOCKS} iflag=direct 2> /dev/null | sha256sum"
    digests = {
        "as the initiator reads it": (await bench.guest(INITIATOR, read)).split()[0],
        "as the target has it": (await bench.guest(TARGET, "sha256sum < /storage/disk")).split()[0],
    }
    assert digests == dict.fromkeys(digests, wanted)

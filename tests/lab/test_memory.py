"""The memory of a VM that writes: several passes, whole contents, a pause of the wanted length."""

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest

from retinue.hypervisor import MigrationResult, QemuMachine, RunState, Stopped, monitor
from retinue_lab.guest.image import Guest
from retinue_lab.guest.shell import GuestShell, console_line
from support.lab.qemu_bench import QemuBench, qemu_bench
from support.lab.tools import long

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MIB = 32
DIVERTING = 0.01
"""Seconds that switches take to divert, about."""
LONG, MOST_TRIED = 240.0, 6


@pytest.fixture
async def bench(guest: Guest) -> AsyncIterator[QemuBench]:
    async with qemu_bench(guest) as made:
        yield made


async def diverted(taps: object) -> bool:
    await asyncio.sleep(DIVERTING)
    return True


async def written(shell: GuestShell) -> tuple[int, int]:
    """Pages written so far, and pages that were not what had been written."""
    _, line = await shell.run("cat /tmp/scribbled")
    words = dict(zip(*[iter(line.split())] * 2, strict=True))
    return int(words["pages"]), int(words["wrong"])


async def there_and_back(bench: QemuBench, source: QemuMachine) -> tuple[QemuMachine, MigrationResult]:
    other = "tap-b" if source.spec.port == "tap-a" else "tap-a"
    target = await bench.target(other)
    result = await bench.migration(source, target, diverted)
    await source.quit()
    return target, result


@pytest.mark.parametrize("rate", [long(0), 20, long(200)])
async def test_no_page_is_lost_however_much_the_vm_writes(bench: QemuBench, rate: int) -> None:
    await no_page_is_lost(bench, rate, 2)


@pytest.mark.long
@pytest.mark.parametrize("rate", [20, 200])
async def test_no_page_is_lost_in_fifty_moves(bench: QemuBench, rate: int) -> None:
    await no_page_is_lost(bench, rate, 50)


async def test_a_vm_that_writes_nothing_moves_though_qemu_stops_it_by_itself(
    bench: QemuBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU finds nothing written since its look, stops the VM before it was diverted, and answers nobody till
    its stream is read: a guest that has halted could not be moved, nor could one that was as idle."""
    monkeypatch.setattr(monitor, "COMMAND_LIMIT", LONG)
    source, shell = await bench.boot()
    await shell.run("(usleep 200000; halt -f) >/dev/null 2>&1 &")
    await console_line(source.files.serial_log, "System halted")
    stopped_before: list[bool] = []

    async def divert(taps: object) -> bool:
        stopped_before.append(any(isinstance(event, Stopped) for event in bench.events))
        return True

    # Some processor of a busy machine may take so long that there is something written after all.
    while not any(stopped_before) and len(stopped_before) < MOST_TRIED:
        bench.events.clear()
        target = await bench.target("tap-b" if source.spec.port == "tap-a" else "tap-a")
        result = await bench.migration(source, target, divert)
        assert result.downtime_ms < 1000 * LONG / 2, "nobody has waited for an answer"
        assert await target.state() is RunState.RUNNING
        await source.quit()
        source = target
    assert any(stopped_before), "that is what is tried"


async def no_page_is_lost(bench: QemuBench, rate: int, times: int) -> None:
    source, shell = await bench.boot()
    if rate:
        assert (await shell.run(f"scribble {MIB} {rate} /tmp/scribbled >/dev/null 2>&1 &"))[0] == 0
        await shell.run("until [ -f /tmp/scribbled ]; do usleep 20000; done")
    for _ in range(times):
        source, result = await there_and_back(bench, source)
        shell = GuestShell(source.files.shell)
        assert result.passes > 2, "more than the look before the copy and the look after the stop"
        if rate:
            before, _ = await written(shell)
            enough = before + 2 * MIB * 256
            await shell.run(
                f"until [ $(cut -d' ' -f4 /tmp/scribbled) -gt {enough} ]; do usleep 50000; done", timeout=120
            )
            assert (await written(shell))[1] == 0
        print(
            f"{rate} MiB/s: {result.passes - 1} passes, {result.total_ms:.0f} ms, "
            f"{result.transferred >> 20} MiB, downtime {result.downtime_ms:.1f} ms",
            file=sys.stderr,
        )

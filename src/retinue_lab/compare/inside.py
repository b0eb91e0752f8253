"""The comparison of one system, run inside a lab's sandbox.

    python -m retinue_lab.compare.inside DIRECTORY SYSTEM PROGRAM TASKS

PROGRAM is guest/steady.c for this machine, TASKS a list of `Task` as JSON. Writes a JSON object a line:
{"move": [...]} (one row for each direction), {"noise": [...]}, {"tcp": [row]}, {"trace": ...},
each with "task", the number of the task it belongs to, and before it {"begins": number}; {"failed": reason,
"task": number} ends it early, as the state of the lab is then unknown; {"error": reason} when it cannot even
begin.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from retinue_lab.compare import tcp as compare_tcp
from retinue_lab.compare.bench import Bench, Migrated, dropped, drops
from retinue_lab.compare.report.records import Figures, around, client_to_vm, vm_to_client
from retinue_lab.compare.report.summary import (
    DIRECTIONS,
    Direction,
    Family,
    MigrationRow,
    NoiseRow,
    TcpRow,
    Trace,
)
from retinue_lab.compare.systems import base, registry
from retinue_lab.compare.systems.base import System
from retinue_lab.compare.traffic import Flow, FlowRecord, Traffic
from retinue_lab.errors import LabError
from retinue_lab.processes import state
from retinue_lab.processes.processes import popen
from retinue_lab.processes.state import Directory
from retinue_lab.sandbox.handle import LabHandle

BEFORE, AFTER = 0.5, 1.2
"""Seconds of undisturbed traffic before and after each migration."""
FEW = 20
"""Requests a second while only the other direction is measured."""
STILL = 2.5
"""Seconds of a run without a migration, in the place of the migration."""
PICTURE_BEFORE_MS, PICTURE_AFTER_MS = 200.0, 300.0


class Task(msgspec.Struct, frozen=True):
    """One run: traffic without a migration ("noise"), with one ("move"), or a TCP bulk stream ("tcp")."""

    kind: Literal["noise", "move", "tcp"]
    run: int
    pps: int = 0
    size: int = 0
    directions: tuple[Direction, ...] = DIRECTIONS
    """Which carry traffic."""
    write_mib_s: int = 0
    """What the guest writes meanwhile to its memory; 0: nothing."""
    families: tuple[Family, ...] = ("ipv4",)
    nics: int = 1

    @property
    def flows(self) -> list[Flow]:
        """The streams of traffic, all at the same time: one for each family and NIC."""
        return [Flow(family, nic) for nic in range(1, self.nics + 1) for family in self.families]

    @property
    def text(self) -> str:
        match self.kind:
            case "tcp":
                return f"TCP, run {self.run}"
            case _:
                what = "no move" if self.kind == "noise" else f"move {self.run}"
                apart = "" if len(self.directions) > 1 else f" {self.directions[0]}"
                writing = f", {self.write_mib_s} MiB/s written" if self.write_mib_s else ""
                flows = f" in each of {n} flows" if (n := len(self.flows)) > 1 else ""
                return f"{self.pps}/s of {self.size} bytes{flows}{apart}{writing}, {what}"


class GuestWriter:
    """The guest's program that writes memory and verifies it (guest/files/scribble.c)."""

    MIB = 48
    FILE = "/tmp/scribbled"

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._rate = 0

    async def write(self, rate: int) -> None:
        """Have the guest write so many MiB a second from now on. Raises LabError."""
        if rate == self._rate:
            return
        await self._bench.in_guest(f"killall scribble; rm -f {self.FILE}")
        self._rate = rate
        if rate:
            await self._bench.in_guest(f"scribble {self.MIB} {rate} {self.FILE} >/dev/null 2>&1 &")
            await self._bench.in_guest(f"until [ -f {self.FILE} ]; do usleep 20000; done")
            await self._written(2)

    async def all_right(self) -> bool:
        """Whether each page, looked at after this, has what was written last."""
        await self._written(1)
        _, said = await self._bench.in_guest(f"cat {self.FILE}")
        return said.split()[-1] == "0"

    async def _written(self, rounds: int) -> None:
        """Return when all has been verified and written anew so many times."""
        enough = f"$(($(cut -d' ' -f4 {self.FILE}) + {rounds * self.MIB * 256}))"
        waiting = f"until [ $(cut -d' ' -f4 {self.FILE}) -ge $n ]; do usleep 50000; done"
        await self._bench.in_guest(f"n={enough}; {waiting}", timeout=LONGEST_ROUND * rounds)


LONGEST_ROUND = 120.0
"""Seconds for all pages once, at the slowest rate on a busy machine."""


def send(**message: Any) -> None:
    print(json.dumps(msgspec.to_builtins(message)), flush=True)


class Comparison:
    """One system's runs in one lab."""

    def __init__(self, bench: Bench, system: System, program: Path) -> None:
        self.bench = bench
        self.system = system
        self.program = program
        self.writer = GuestWriter(bench)
        self._equipped = False

    async def carry_out(self, number: int, task: Task) -> None:
        match task.kind:
            case "noise":
                await self.noise(number, task)
            case "move":
                await self.move(number, task)
            case "tcp":
                await self.tcp(number, task)

    async def traffic(self, task: Task) -> Traffic:
        # Without requests of its own the client would not know when the traffic has ended.
        requests = task.pps if "client-to-vm" in task.directions else FEW
        stream = task.pps if "vm-to-client" in task.directions else 0
        return await Traffic.start(
            popen, self.bench, self.program, task.flows, pps=requests, stream=stream, size=task.size
        )

    async def noise(self, number: int, task: Task) -> None:
        run = await self.traffic(task)
        before = processor_time()
        await asyncio.sleep(BEFORE + STILL)
        idle = idle_percent(before, processor_time())
        records = await run.finish()
        rows = [
            NoiseRow(self.system.name, direction, task.size, task.run, found, idle, *flow, len(records))
            for flow, direction, found in figures_of(task, records, 0.0)
        ]
        send(task=number, noise=rows)

    async def move(self, number: int, task: Task) -> None:
        bench = self.bench
        await self.writer.write(task.write_mib_s)
        bench.several_passes = bool(task.write_mib_s)
        dropped_before = await drops(bench)
        run = await self.traffic(task)
        try:
            before = processor_time()
            await asyncio.sleep(BEFORE)
            moved = await self.system.move(bench)
            await asyncio.sleep(AFTER)
            idle = idle_percent(before, processor_time())
        except BaseException:
            await run.abandon()
            raise
        records = await run.finish()
        lost = dropped(dropped_before, await drops(bench))
        right = await self.writer.all_right() if task.write_mib_s else None
        rows = [
            MigrationRow(
                vm=bench.vm,
                source=moved.source,
                target=moved.target,
                system=self.system.name,
                direction=direction,
                size=task.size,
                run=task.run,
                traffic=found,
                guest_pause_ms=moved.pause_ms,
                gap_minus_pause_ms=found.longest_gap_ms - moved.pause_ms,
                total_ms=moved.total_ms,
                idle_percent=idle,
                switch_drops=lost,
                guest="writing" if task.write_mib_s else "idle",
                write_mib_s=task.write_mib_s or None,
                content_right=right,
                family=flow.family,
                nic=flow.nic,
                flows=len(records),
                **moved.more,
            )
            for flow, direction, found in figures_of(task, records, moved.resumed_at)
        ]
        await self.system.after_migration(bench, moved.source, moved.target)
        found: dict[str, Any] = {"task": number, "move": rows}
        if "client-to-vm" in task.directions and not task.write_mib_s:
            dots = around(records[0].client, moved.resumed_at, PICTURE_BEFORE_MS, PICTURE_AFTER_MS)
            which = (self.system.name, task.pps, task.size, task.run)
            found["trace"] = Trace(*which, moved.pause_ms, dots, len(records))
        send(**found)

    async def tcp(self, number: int, task: Task) -> None:
        """Run 0 is without a migration."""
        bench = self.bench
        if not self._equipped:
            await compare_tcp.equip(bench)
            self._equipped = True
        async with compare_tcp.bulk(bench, self.program) as bulk:
            await asyncio.sleep(BEFORE)
            before = processor_time()
            await bulk.watch()
            await asyncio.sleep(BEFORE)
            if task.run:
                moved = await self.system.move(bench)
            else:
                await asyncio.sleep(STILL)
                moved = Migrated(bench.at, bench.at, 0.0, 0.0, 0.0)
            await asyncio.sleep(AFTER)
            idle = idle_percent(before, processor_time())
            stream = await bulk.end()
        row = TcpRow(
            system=self.system.name,
            source=moved.source,
            target=moved.target,
            run=task.run,
            tcp_survived=stream.survived,
            longest_stall_ms=stream.longest_stall_ms,
            megabits=stream.megabits,
            retransmits=stream.retransmits,
            guest_pause_ms=moved.pause_ms,
            stall_minus_pause_ms=stream.longest_stall_ms - moved.pause_ms,
            idle_percent=idle,
        )
        if task.run:
            await self.system.after_migration(bench, moved.source, moved.target)
        send(task=number, tcp=[row])


def figures_of(
    task: Task, records: Sequence[FlowRecord], resumed_at: float
) -> list[tuple[Flow, Direction, Figures]]:
    """Those of each flow and direction that was measured."""
    analyses = {"client-to-vm": client_to_vm, "vm-to-client": vm_to_client}
    return [
        (one.flow, name, analyses[name](task.pps, one.client, one.guest, resumed_at))
        for one in records
        for name in task.directions
    ]


def processor_time() -> tuple[int, int]:
    """Idle and all ticks of this machine's processors so far (proc(5), /proc/stat)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def idle_percent(before: tuple[int, int], after: tuple[int, int]) -> float:
    return round(100 * (after[0] - before[0]) / max(1, after[1] - before[1]), 1)


async def compare(where: Directory, name: str, program: Path, tasks: Sequence[Task]) -> None:
    settings = state.decode_settings(where.settings.read_bytes())
    lab = LabHandle(settings.name, where.path, 1, settings.topology)
    system = registry.by_name(name)(dual=any(len(task.flows) > 1 for task in tasks))
    bench = system.bench(lab)
    try:
        await system.before_boot(bench)
        await bench.boot()
        await system.set_up(bench)
        await base.reached(bench, 30)
        comparison = Comparison(bench, system, program)
        for number, task in enumerate(tasks):
            send(begins=number)
            try:
                await comparison.carry_out(number, task)
            except LabError as error:
                send(task=number, failed=str(error))
                return
    finally:
        await bench.close()


def main(arguments: Sequence[str]) -> int:
    directory, name, program, tasks = arguments
    try:
        decoded = msgspec.json.decode(tasks, type=list[Task])
        asyncio.run(compare(Directory(Path(directory)), name, Path(program), decoded))
    except LabError as error:
        send(error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

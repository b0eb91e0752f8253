"""Runs guest/steady.c at both ends: numbered traffic between the client and the VM, both ways at once."""

import asyncio
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from retinue_lab.compare.bench import Bench, address_of
from retinue_lab.compare.report.records import ClientRecord, GuestReport, TrafficRecordError
from retinue_lab.compare.report.summary import Family
from retinue_lab.errors import LabError
from retinue_lab.processes.processes import Popen
from retinue_lab.topology.topology import CLIENT

PORT = 7001
FLOW_LIMIT = 40.0
"""Seconds until the guest must have answered: a moved binding or a routing cache may take its time."""
END_LIMIT = 60.0

START = f"steady answer {{address}} {PORT} >{{file}}.out 2>&1 & echo $! >{{file}}.pid"
END = "kill $(cat {file}.pid); while kill -0 $(cat {file}.pid) 2>/dev/null; do usleep 20000; done"
SEEN = "cat {file}.out"
KILL = "kill -KILL $(cat {file}.pid) 2>/dev/null"


class Flow(NamedTuple):
    """Traffic to and from one address of the VM's."""

    family: Family
    nic: int
    """From 1."""


class FlowRecord(NamedTuple):
    """What both ends have seen of one."""

    flow: Flow
    client: ClientRecord
    guest: GuestReport


class Traffic:
    """All flows at the same time, made by `start`."""

    def __init__(self, runs: Sequence[tuple[Flow, "SteadyRun"]]) -> None:
        self._runs = runs

    @classmethod
    async def start(
        cls,
        popen: Popen,
        bench: Bench,
        program: Path,
        flows: Sequence[Flow],
        *,
        pps: int,
        stream: int,
        size: int,
    ) -> "Traffic":
        """Return when packets flow in each. `pps` are requests, `stream` the VM's own packets a second, of
        each flow. Raises LabError."""
        runs: list[tuple[Flow, SteadyRun]] = []
        try:
            for flow in flows:
                address = address_of(*flow)
                run = await SteadyRun.start(popen, bench, program, address, pps=pps, stream=stream, size=size)
                runs.append((flow, run))
        except BaseException:
            await cls(runs).abandon()
            raise
        return cls(runs)

    async def finish(self) -> list[FlowRecord]:
        """End one after the other. Raises LabError."""
        try:
            return [FlowRecord(flow, *await run.finish()) for flow, run in self._runs]
        except BaseException:
            await self.abandon()
            raise

    async def abandon(self) -> None:
        """End whatever still runs; the records are lost."""
        for _, run in self._runs:
            await run.abandon()


class SteadyRun:
    """One flow under way, made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process, bench: Bench, address: str, record: Path) -> None:
        self._process = process
        self._bench = bench
        self._address = address
        self._record = record

    @classmethod
    async def start(
        cls, popen: Popen, bench: Bench, program: Path, address: str, *, pps: int, stream: int, size: int
    ) -> "SteadyRun":
        """Return when packets flow. `pps` are requests, `stream` the VM's own packets a second. LabError."""
        code, output = await bench.in_guest(_words(START, address))
        if code:
            raise LabError(f"{bench.vm} cannot answer traffic: {output.strip()}")
        with tempfile.NamedTemporaryFile(prefix="retinue-steady-", delete=False) as file:
            record = Path(file.name)
        words = [address, str(PORT), str(pps), str(size), str(stream), str(record)]
        process = await popen(CLIENT, [str(program), "ask", *words])
        run = cls(process, bench, address, record)
        try:
            await run._flowing()
        except BaseException:
            await run.abandon()
            raise
        return run

    async def _flowing(self) -> None:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(FLOW_LIMIT):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise LabError(
                f"{self._bench.vm} does not answer the client at {self._address} within {FLOW_LIMIT:.0f} s"
            ) from None
        if line != b"flowing\n":
            raise LabError(f"the client's traffic program ended: {await self._complaint()}")

    async def finish(self) -> tuple[ClientRecord, GuestReport]:
        """End it, first the sending, then, when all is in, the rest. Raises LabError."""
        assert self._process.stdin is not None
        try:
            async with asyncio.timeout(END_LIMIT):
                self._process.stdin.write(b"stop\n")
                await self._process.stdin.drain()
                assert self._process.stdout is not None
                await self._process.stdout.readline()  # What waits for the guest it has taken in by then.
                code, _ = await self._bench.in_guest(_words(END, self._address), END_LIMIT)
                if code:
                    raise LabError(
                        f"{self._bench.vm} does not come to the end of its traffic at {self._address}"
                    )
                report = GuestReport.parse(await self._guest(SEEN))
                self._process.stdin.close()
                if await self._process.wait():
                    raise LabError(f"the client's traffic program failed: {await self._complaint()}")
            with self._record.open() as lines:
                return ClientRecord.parse(lines), report
        except (TimeoutError, TrafficRecordError, OSError) as error:
            why = error or "it takes too long"
            raise LabError(f"the record of traffic at {self._address} cannot be had: {why}") from error
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """End whatever still runs; the record is lost."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            with contextlib.suppress(LabError):
                await self._guest(KILL)
        self._record.unlink(missing_ok=True)

    async def _guest(self, command: str) -> str:
        _, output = await self._bench.in_guest(_words(command, self._address))
        return output

    async def _complaint(self) -> str:
        assert self._process.stderr is not None
        return (await self._process.stderr.read()).decode(errors="replace")[-300:]


def _words(command: str, address: str) -> str:
    """For the guest's shell: of the program that answers from this address."""
    return command.format(address=address, file=f"/tmp/steady-{address}")

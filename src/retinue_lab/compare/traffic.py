"""Runs guest/steady.c at both ends: numbered traffic between the client and the VM, both ways at once."""

import asyncio
import contextlib
import tempfile
from pathlib import Path

from retinue_lab.compare.bench import ADDRESS, Bench
from retinue_lab.compare.report.records import ClientRecord, GuestReport, TrafficRecordError
from retinue_lab.errors import LabError
from retinue_lab.processes.processes import Popen
from retinue_lab.topology.topology import CLIENT

PORT = 7001
FLOW_LIMIT = 40.0
"""Seconds until the guest must have answered: a moved binding or a routing cache may take its time."""
END_LIMIT = 60.0

START = f"steady answer {PORT} >/tmp/steady.out 2>&1 & echo $! >/tmp/steady.pid"
END = "kill $(cat /tmp/steady.pid); while kill -0 $(cat /tmp/steady.pid) 2>/dev/null; do usleep 20000; done"


class SteadyRun:
    """Traffic under way, made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process, bench: Bench, record: Path) -> None:
        self._process = process
        self._bench = bench
        self._record = record

    @classmethod
    async def start(
        cls, popen: Popen, bench: Bench, program: Path, *, pps: int, stream: int, size: int
    ) -> "SteadyRun":
        """Return when packets flow. `pps` are requests, `stream` the VM's own packets a second. LabError."""
        code, output = await bench.in_guest(START)
        if code:
            raise LabError(f"{bench.vm} cannot answer traffic: {output.strip()}")
        with tempfile.NamedTemporaryFile(prefix="retinue-steady-", delete=False) as file:
            record = Path(file.name)
        words = [ADDRESS, str(PORT), str(pps), str(size), str(stream), str(record)]
        process = await popen(CLIENT, [str(program), "ask", *words])
        run = cls(process, bench, record)
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
            raise LabError(f"{self._bench.vm} does not answer the client within {FLOW_LIMIT:.0f} s") from None
        if line != b"flowing\n":
            raise LabError(f"the client's traffic program ended: {await self._complaint()}")

    async def finish(self) -> tuple[ClientRecord, GuestReport]:
        """End it, first the sending, then, when all is in, the rest. Raises LabError."""
        assert self._process.stdin is not None
        try:
            async with asyncio.timeout(END_LIMIT):
                self._process.stdin.write(b"stop\n")
                await self._process.stdin.drain()
                await self._guest(END)
                report = GuestReport.parse(await self._guest("cat /tmp/steady.out"))
                self._process.stdin.close()
                if await self._process.wait():
                    raise LabError(f"the client's traffic program failed: {await self._complaint()}")
            with self._record.open() as lines:
                return ClientRecord.parse(lines), report
        except (TimeoutError, TrafficRecordError, OSError) as error:
            raise LabError(f"the traffic's record cannot be had: {error or 'it takes too long'}") from error
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """End whatever still runs; the record is lost."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            with contextlib.suppress(LabError):
                await self._guest("kill -KILL $(cat /tmp/steady.pid) 2>/dev/null")
        self._record.unlink(missing_ok=True)

    async def _guest(self, command: str) -> str:
        _, output = await self._bench.in_guest(command)
        return output

    async def _complaint(self) -> str:
        assert self._process.stderr is not None
        return (await self._process.stderr.read()).decode(errors="replace")[-300:]

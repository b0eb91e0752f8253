"""The traffic measurer as a process on one of the laboratory's nodes, from the point of view of a test."""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from retinue_lab.measure.figures import Record, Traffic, analyse
from retinue_lab.processes.processes import Popen

END_LIMIT = 60.0


class TrafficError(Exception):
    """The measuring program failed; the message has its complaint."""


class TrafficProcess:
    """A running measurement. Made by `start`."""

    def __init__(
        self, process: asyncio.subprocess.Process, folder: "tempfile.TemporaryDirectory[str]"
    ) -> None:
        self._process = process
        self._folder = folder

    @classmethod
    async def start(
        cls, popen: Popen, node: str, to: str, *, pps: int, seconds: float, tcp_rate: int = 50
    ) -> "TrafficProcess":
        """Start sending from `node`; see retinue_lab.measure.traffic for the parameters."""
        folder = tempfile.TemporaryDirectory(prefix="retinue-traffic-")
        argv = [sys.executable, "-m", "retinue_lab.measure.traffic", "udp", "--json", "--to", to]
        argv += ["--pps", str(pps), "--seconds", str(seconds), "--tcp-rate", str(tcp_rate)]
        argv += ["--save", str(Path(folder.name) / "record")]
        return cls(await popen(node, argv), folder)

    async def flowing(self, timeout: float = 10.0) -> float:
        """Wait for the first reply; returns when it came, in seconds since the epoch."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise TrafficError(f"no reply within {timeout:.0f} s") from error
        event = json.loads(line) if line else {}
        if event.get("event") != "flowing":
            raise TrafficError(
                f"no reply was seen: {line.decode(errors='replace') or await self._complaint()}"
            )
        return float(event["at"])

    async def finish(self, *, early: bool = False) -> tuple[Traffic, Record]:
        """Wait for the end, or (`early`) order it; the figures and every time stamp."""
        try:
            async with asyncio.timeout(END_LIMIT if early else None):
                _, complaint = await self._process.communicate(b"stop\n" if early else None)
        except TimeoutError as error:
            self._process.kill()
            raise TrafficError(f"no end within {END_LIMIT:.0f} s") from error
        with self._folder:
            if self._process.returncode:
                raise TrafficError(f"ended with code {self._process.returncode}: {complaint.decode()[-400:]}")
            record = Record.load(Path(self._folder.name) / "record")
        return analyse(record), record

    async def _complaint(self) -> str:
        assert self._process.stderr is not None
        return (await self._process.stderr.read()).decode(errors="replace")[-400:]

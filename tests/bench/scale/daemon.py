"""The controller as the bench runs it: a process of its own, and what it has used of the machine."""

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
STOP_LIMIT = 120.0


class DaemonError(Exception):
    """The controller ended, or did not come up; the message says why."""


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


class Daemon:
    def __init__(self, folder: Path, config: str, database: bool = True) -> None:
        self._folder = folder
        self._config = folder / "controller.toml"
        self._config.write_text(config)
        self._database = ["--database", str(folder / "controller.db")] if database else []
        self._process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> Path:
        return self._folder / "controller.log"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self, rest: int, limit: float = 60.0) -> None:
        """Return when it listens. Raises DaemonError."""
        command = [
            str(Path(sys.executable).parent / "retinue"),
            "controller",
            "run",
            "--config",
            str(self._config),
        ]
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, *self._database, stdout=log, stderr=log
            )
        end = time.monotonic() + limit
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", rest)
            except OSError:
                self.check()
                if time.monotonic() > end:
                    raise DaemonError(f"the controller does not listen after {limit:.0f} s") from None
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return

    def check(self) -> None:
        """Raises DaemonError if it has ended by itself."""
        if self._process is None or self._process.returncode is not None:
            last = self.log.read_text(errors="replace").splitlines()[-5:]
            raise DaemonError("the controller has ended: " + " | ".join(last))

    async def stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_LIMIT):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._process = None

    # ---- what it has used ----

    def cpu(self) -> float:
        """Seconds of a core."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def rss(self) -> int:
        """Bytes."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


class Others:
    """How many cores everything but the bench and its controller has used since this was made."""

    def __init__(self, daemon: Daemon | None = None) -> None:
        self._began = time.monotonic()
        self._busy = _busy()
        self._ours = time.process_time()

    def cores(self, controller: float) -> float:
        """`controller`: seconds of a core that the controller has used since."""
        took = time.monotonic() - self._began
        ours = time.process_time() - self._ours + controller
        return max(0.0, _busy() - self._busy - ours) / max(took, 1e-3)


def _busy() -> float:
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / _TICKS

"""What can be awaited in a lab's test beside the controller's events: frames on a wire, a program's lines."""

import asyncio
import contextlib
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scapy.layers.l2 import Ether

from retinue_lab.measure import sniff
from retinue_lab.measure.capture import FILE_HEADER
from retinue_lab.processes.processes import Popen

PATIENCE = 120.0
START_LIMIT = 60.0


@dataclass(frozen=True)
class Frame:
    at: float
    """When it passed, in seconds since the epoch."""
    data: bytes

    @cached_property
    def ether(self) -> Any:
        """Dissected, by scapy."""
        return Ether(self.data)

    @property
    def src(self) -> str:
        return self.data[6:12].hex(":")

    @property
    def dst(self) -> str:
        return self.data[:6].hex(":")

    @property
    def ethertype(self) -> int:
        return int.from_bytes(self.data[12:14], "big")

    def __str__(self) -> str:
        return str(self.ether.summary())


Wanted = Callable[[Frame], bool]


class Capture:
    """Frames at an interface from `start` to `close`, in order, in `frames`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.frames: list[Frame] = []
        self._marks = 0
        self._process = process
        self._arrived = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, popen: Popen, node: str, interface: str, direction: str) -> "Capture":
        """Returns when it watches. `direction` is as the interface sees it: "in", "out" or "inout"."""
        argv = [sys.executable, "-I", "-S", sniff.__file__, "--marks", interface, direction, "65535"]
        process = await popen(node, argv)
        assert process.stderr is not None
        async with asyncio.timeout(START_LIMIT):
            said = (await process.stderr.readline()).decode()
        assert said.startswith("listening on"), f"{node}: {said}"
        return cls(process)

    async def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        with contextlib.suppress(asyncio.IncompleteReadError):
            await stream.readexactly(FILE_HEADER)
            while True:
                seconds, micros, length, _ = struct.unpack("=IIII", await stream.readexactly(16))
                frame = Frame(seconds + micros / 1e6, await stream.readexactly(length))
                async with self._arrived:
                    if frame.data:
                        self.frames.append(frame)
                    else:
                        self._marks += 1
                    self._arrived.notify_all()

    def those(self, wanted: Wanted) -> list[Frame]:
        return [frame for frame in self.frames if wanted(frame)]

    async def until(self, wanted: Wanted, *, times: int = 1, timeout: float = PATIENCE) -> Frame:
        """The frame that makes it so many of the wanted ones; those that came before count too."""
        try:
            async with asyncio.timeout(timeout), self._arrived:
                await self._arrived.wait_for(lambda: len(self.those(wanted)) >= times)
        except TimeoutError:
            seen = "; ".join(map(str, self.frames[-20:])) or "nothing"
            raise AssertionError(f"not {times} such frames in {timeout:g} s, but: {seen}") from None
        return self.those(wanted)[times - 1]

    async def settle(self) -> None:
        """Return when every frame that had passed by now is in `frames`."""
        before, asked = self._marks, self._process.stdin
        assert asked is not None
        asked.write(b".")
        async with asyncio.timeout(PATIENCE), self._arrived:
            await self._arrived.wait_for(lambda: self._marks > before)

    async def close(self) -> None:
        """End the watching; every frame that had passed by now is then in `frames`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self._reader
        await self._process.wait()
        assert self._process.stderr is not None
        lost = (await self._process.stderr.read()).decode()
        assert not lost, lost


class Lines:
    """What a program prints, line by line, each with the time it was read."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.seen: list[tuple[float, str]] = []
        self._process = process
        self._arrived = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            async with self._arrived:
                self.seen.append((time.time(), line.decode().rstrip()))
                self._arrived.notify_all()

    def those(self, *texts: str) -> list[tuple[float, str]]:
        """Lines that have all these texts."""
        return [(at, line) for at, line in self.seen if all(text in line for text in texts)]

    async def until(self, *texts: str, times: int = 1, timeout: float = PATIENCE) -> float:
        """Wait for a line with all these texts, or so many of them; when the last of them came."""
        try:
            async with asyncio.timeout(timeout), self._arrived:
                await self._arrived.wait_for(lambda: len(self.those(*texts)) >= times)
        except TimeoutError:
            seen = "\n".join(line for _, line in self.seen[-20:])
            raise AssertionError(f"not {times} lines with {texts} in {timeout:g} s, but:\n{seen}") from None
        return self.those(*texts)[times - 1][0]

    async def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self._reader
        await self._process.wait()

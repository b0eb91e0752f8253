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

from retinue.lab.commands import Popen

PATIENCE = 20.0
START_LIMIT = 10.0


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


_SNIFF = """
import signal, socket, struct, sys
interface, direction = sys.argv[1:]
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
wire.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
wire.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA: the VLAN tag, which the kernel takes out
wire.bind((interface, 3))  # ETH_P_ALL
out = sys.stdout.buffer
def tell(at, frame):
    out.write(struct.pack("=dI", at, len(frame)) + frame)
    out.flush()
def take(flags=0):
    frame, told, _, sender = wire.recvmsg(65535, 256, flags)
    for _, kind, value in told:
        if kind == 35:
            seconds, nanoseconds = struct.unpack("qq", value)
        elif kind == 8 and value[0] & 0x10:
            frame = frame[:12] + struct.pack("!HH", *struct.unpack("HH", value[16:20])[::-1]) + frame[12:]
    if direction in ("both", "out" if sender[2] == socket.PACKET_OUTGOING else "in"):
        tell(seconds + nanoseconds / 1e9, frame)
def end(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, end)
tell(0, b"")
try:
    while True:
        take()
except KeyboardInterrupt:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        while True:
            take(socket.MSG_DONTWAIT)
    except BlockingIOError:
        pass
    lost = struct.unpack("II", wire.getsockopt(263, 6, 8))[1]  # SOL_PACKET, PACKET_STATISTICS
    tell(float(lost), b"")
"""


class Capture:
    """Frames at an interface from `start` to `close`, in order, in `frames`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.frames: list[Frame] = []
        self._process = process
        self._lost = 0
        self._arrived = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, popen: Popen, node: str, interface: str, direction: str) -> "Capture":
        """Returns when it watches. `direction` is as the interface sees it: "in", "out" or "both"."""
        made = cls(await popen(node, [sys.executable, "-I", "-S", "-c", _SNIFF, interface, direction]))
        async with asyncio.timeout(START_LIMIT):
            if await made._record() is None:
                assert made._process.stderr is not None
                raise AssertionError(f"{node}:{interface}: {(await made._process.stderr.read()).decode()}")
        made._reader = asyncio.create_task(made._read())
        return made

    async def _record(self) -> Frame | None:
        """What the watching program wrote next; nothing when it has ended."""
        assert self._process.stdout is not None
        try:
            at, length = struct.unpack("=dI", await self._process.stdout.readexactly(12))
            return Frame(at, await self._process.stdout.readexactly(length))
        except asyncio.IncompleteReadError:
            return None

    async def _read(self) -> None:
        while (frame := await self._record()) is not None:
            if not frame.data:
                self._lost = int(frame.at)
                continue
            async with self._arrived:
                self.frames.append(frame)
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

    async def close(self) -> None:
        """End the watching; every frame that had passed by now is then in `frames`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        assert self._reader is not None
        await self._reader
        await self._process.wait()
        assert not self._lost, f"{self._lost} frames passed faster than they could be read"


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

"""Proof that nothing was flooded: counts frames at ports where none but their own should arrive.

A port is silent when every frame it was given has one of its own MAC addresses as destination. Broadcasts,
multicasts and frames for another machine all break the silence. A `sniff` on each node does the watching;
what it writes is read here.
"""

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from retinue.core.model import mac
from retinue_lab.measure import sniff
from retinue_lab.processes.processes import Popen

START_LIMIT = 60.0
STOP_LIMIT = 60.0
SETTLE = 0.2
"""Seconds for what has already arrived to reach the watcher."""
SNAP_LENGTH = 128
FILE_HEADER, RECORD_HEADER = 24, 16
"""Bytes, of what `sniff` writes (pcap-savefile(5))."""

_ETHERTYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x8035: "RARP", 0x86DD: "IPv6", 0x88CC: "LLDP"}


class CaptureError(Exception):
    """A port could not be watched; the message says which and why."""


@dataclass(frozen=True, slots=True)
class WatchedPort:
    """An interface of a node, and the MAC addresses that frames to it may have."""

    node: str
    interface: str
    own_macs: frozenset[str] = frozenset()
    direction: str = "in"
    """"in": frames the interface takes in; "out": frames it gives out, as a tap does to its VM."""

    def __str__(self) -> str:
        return f"{self.node}:{self.interface}"


@dataclass(frozen=True, slots=True)
class Noise:
    """The frames at one port that should not have been there."""

    count: int
    kinds: dict[str, int] = field(default_factory=dict)
    """Number of frames by description: source, destination and kind of payload."""

    def __str__(self) -> str:
        return "; ".join(f"{number} x {kind}" for kind, number in self.kinds.items()) or "silence"


class PortWatch:
    """One port, watched from `start` to `stop`. `on_frame` is given each frame when it comes."""

    def __init__(self, popen: Popen, port: WatchedPort, on_frame: Callable[[bytes], None]) -> None:
        self._popen = popen
        self._port = port
        self._on_frame = on_frame
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when the port is being watched. Raises CaptureError."""
        self._process = await self._popen(self._port.node, sniff_argv(self._port))
        assert self._process.stdout is not None and self._process.stderr is not None
        output = ""
        try:
            async with asyncio.timeout(START_LIMIT):
                output = (await self._process.stderr.readline()).decode(errors="replace").strip()
        except TimeoutError:
            output = f"nothing within {START_LIMIT:.0f} s"
        if not output.startswith("listening on"):
            await self.stop()
            raise CaptureError(f"{self._port} cannot be watched: {output}")
        self._reading = asyncio.create_task(self._read(self._process.stdout))

    async def stop(self) -> None:
        """Returns when all frames that had arrived have been given. Raises CaptureError if some got lost."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            # Not SIGINT: who runs in the background of a shell was started with that one ignored.
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_LIMIT):
                if self._reading is not None:
                    await self._reading
                _, complaint = await self._process.communicate()
        except TimeoutError:
            self._process.kill()
            raise CaptureError(f"{self._port}: the watcher did not end within {STOP_LIMIT:.0f} s") from None
        # From the host, what ends by the signal is the program that entered the sandbox; the watcher behind
        # it ends well, and speaks if frames got lost.
        if self._reading is not None and (complaint or self._process.returncode not in (0, -signal.SIGTERM)):
            raise CaptureError(f"{self._port}: {complaint.decode(errors='replace').strip()}")

    async def _read(self, stream: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await stream.readexactly(FILE_HEADER)
            while True:
                header = await stream.readexactly(RECORD_HEADER)
                self._on_frame(await stream.readexactly(int.from_bytes(header[8:12], sys.byteorder)))


class SilentPorts:
    """Watches ports between `start` and `stop`. Use one object once.

    `specs` are Ports, or (node, interface, own MACs) for ports watched on the way in.
    """

    def __init__(self, popen: Popen, specs: Sequence[WatchedPort | tuple[str, str, Sequence[str]]]) -> None:
        self._frames: dict[WatchedPort, list[bytes]] = {
            spec if isinstance(spec, WatchedPort) else _port(*spec): [] for spec in specs
        }
        self._watches = [PortWatch(popen, port, frames.append) for port, frames in self._frames.items()]

    async def start(self) -> None:
        """Returns when every port is being watched."""
        started = await asyncio.gather(*(watch.start() for watch in self._watches), return_exceptions=True)
        for result in started:
            if isinstance(result, BaseException):
                await self._end()
                raise result

    async def stop(self) -> dict[str, Noise]:
        """What broke the silence, by "node:interface"; a port that stayed silent has count 0."""
        await asyncio.sleep(SETTLE)
        await self._end()
        return {str(port): noise(frames, port.own_macs) for port, frames in self._frames.items()}

    async def _end(self) -> None:
        await asyncio.gather(*(watch.stop() for watch in self._watches))


def sniff_argv(port: WatchedPort, nbytes: int = SNAP_LENGTH) -> list[str]:
    """The watcher's command line: what is for the port's own addresses is left out in the kernel already."""
    argv = [sys.executable, "-I", "-S", sniff.__file__, port.interface, port.direction, str(nbytes)]
    return [*argv, *sorted(port.own_macs)]


def noise(frames: Iterator[bytes] | Sequence[bytes], own_macs: frozenset[str]) -> Noise:
    """Count and describe the frames that have none of `own_macs` as destination."""
    kinds = Counter(describe(frame) for frame in frames if bytes.hex(frame[:6], ":") not in own_macs)
    return Noise(kinds.total(), dict(kinds.most_common()))


def describe(frame: bytes) -> str:
    ethertype = int.from_bytes(frame[12:14], "big")
    kind = _ETHERTYPES.get(ethertype, f"type {ethertype:#06x}")
    return f"{bytes.hex(frame[6:12], ':')} > {bytes.hex(frame[:6], ':')} {kind}"


def _port(node: str, interface: str, own_macs: Sequence[str]) -> WatchedPort:
    return WatchedPort(node, interface, frozenset(mac(address) for address in own_macs))

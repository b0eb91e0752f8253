"""Proof that nothing was flooded: counts frames at ports where none but their own should arrive.

A port is silent when every frame it was given has one of its own MAC addresses as destination. Broadcasts,
multicasts and frames for somebody else all break the silence. tcpdump does the watching, a file for each
port; the files are read here.
"""

import asyncio
import contextlib
import signal
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retinue.lab.commands import Popen
from retinue.model import mac

START_LIMIT = 10.0
SETTLE = 0.2
"""Seconds for what has already arrived to reach tcpdump."""
SNAP_LENGTH = 128

_ETHERTYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x8035: "RARP", 0x86DD: "IPv6", 0x88CC: "LLDP"}


class CaptureError(Exception):
    """tcpdump did not do its part; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Port:
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


class SilentPorts:
    """Watches ports between `start` and `stop`. Use one object once.

    `specs` are Ports, or (node, interface, own MACs) for ports watched on the way in.
    """

    def __init__(self, popen: Popen, specs: Sequence[Port | tuple[str, str, Sequence[str]]]) -> None:
        self._popen = popen
        self._ports = [spec if isinstance(spec, Port) else _port(*spec) for spec in specs]
        self._folder = tempfile.TemporaryDirectory(prefix="retinue-capture-")
        self._watching: dict[Port, tuple[asyncio.subprocess.Process, Path]] = {}

    async def start(self) -> None:
        """Returns when every port is being watched."""
        try:
            await asyncio.gather(*(self._watch(number, port) for number, port in enumerate(self._ports)))
        except BaseException:
            await self._end()
            self._folder.cleanup()
            raise

    async def stop(self) -> dict[str, Noise]:
        """What broke the silence, by "node:interface"; a port that stayed silent has count 0."""
        await asyncio.sleep(SETTLE)
        await self._end()
        with self._folder:
            return {
                str(port): noise(read_pcap(path), port.own_macs) for port, (_, path) in self._watching.items()
            }

    async def _watch(self, number: int, port: Port) -> None:
        path = Path(self._folder.name) / f"{number}.pcap"
        process = await self._popen(port.node, tcpdump_argv(port, path))
        self._watching[port] = (process, path)
        assert process.stderr is not None
        said: list[str] = []
        try:
            async with asyncio.timeout(START_LIMIT):
                async for line in process.stderr:
                    said.append(line.decode(errors="replace").strip())
                    if "listening on" in said[-1]:
                        return
        except TimeoutError:
            said.append(f"nothing within {START_LIMIT:.0f} s")
        raise CaptureError(f"{port}: tcpdump does not listen: {' / '.join(said)}")

    async def _end(self) -> None:
        for process, _ in self._watching.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        for process, _ in self._watching.values():
            await process.communicate()


def tcpdump_argv(port: Port, path: Path) -> list[str]:
    """Writes what is not for the port's own addresses, at once, and stays root: it may have no other user."""
    argv = ["tcpdump", "-n", "--immediate-mode", "-U", "-Z", "root", "-s", str(SNAP_LENGTH)]
    argv += ["-Q", port.direction, "-i", port.interface, "-w", str(path)]
    own = " or ".join(f"ether dst {address}" for address in sorted(port.own_macs))
    return [*argv, f"not ({own})"] if own else argv


def read_pcap(path: Path) -> Iterator[bytes]:
    """The frames of a capture file (the classic format, either order of octets)."""
    data = path.read_bytes()
    if len(data) < 24:
        raise CaptureError(f"{path}: not a capture file")
    order = "<" if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    record = struct.Struct(f"{order}IIII")
    at = 24
    while at + record.size <= len(data):
        _, _, captured, _ = record.unpack_from(data, at)
        at += record.size
        yield data[at : at + captured]
        at += captured


def noise(frames: Iterator[bytes] | Sequence[bytes], own_macs: frozenset[str]) -> Noise:
    """Count and describe the frames that have none of `own_macs` as destination."""
    kinds = Counter(describe(frame) for frame in frames if bytes.hex(frame[:6], ":") not in own_macs)
    return Noise(kinds.total(), dict(kinds.most_common()))


def describe(frame: bytes) -> str:
    ethertype = int.from_bytes(frame[12:14], "big")
    kind = _ETHERTYPES.get(ethertype, f"type {ethertype:#06x}")
    return f"{bytes.hex(frame[6:12], ':')} > {bytes.hex(frame[:6], ':')} {kind}"


def _port(node: str, interface: str, own_macs: Sequence[str]) -> Port:
    return Port(node, interface, frozenset(mac(address) for address in own_macs))

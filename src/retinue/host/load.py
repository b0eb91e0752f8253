"""What this machine has, and how much of it is in use: read from /proc and /sys, without a process's help.

What cannot be read is None, or 0 for a size: a kernel without pressure stall information, an interface that
has no speed. Shares are in hundredths of a per cent.
"""

import os
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retinue.core.placement.snapshot import WHOLE, share

WINDOW = 60.0
"""Seconds over which use is averaged: a moment says little."""
_MIB = 1 << 20
_AVG60 = re.compile(r"^some .*\bavg60=([0-9]+)\.([0-9]{2})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Load:
    cpus: int
    memory_mib: int
    memory_free_mib: int | None
    disk_free_mib: int | None
    bandwidth_mbps: int
    bandwidth_used_mbps: int
    cpu_used: int | None
    cpu_pressure: int | None
    memory_pressure: int | None
    io_pressure: int | None


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    busy: int
    total: int
    bytes: int


class LoadMeter:
    """Measures one machine, again and again; use is that of the last WINDOW, as far as it was measured."""

    def __init__(
        self,
        folder: Path,
        uplink: str,
        clock: Callable[[], float],
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
    ) -> None:
        """`folder` is on the disk that VMs would use; `uplink`: the interface to the fabric, "": unknown."""
        self._folder, self._uplink, self._clock = folder, uplink, clock
        self._proc, self._sys = proc, sys
        self._samples: deque[_Sample] = deque()

    def measure(self) -> Load:
        now = self._sample()
        self._samples.append(now)
        while len(self._samples) > 2 and now.at - self._samples[0].at > WINDOW:
            self._samples.popleft()
        first = self._samples[0]
        ticks, seconds = now.total - first.total, now.at - first.at
        used = share(now.busy - first.busy, ticks) if ticks > 0 else None
        rate = int(max(0, now.bytes - first.bytes) * 8 / seconds / 1e6) if seconds > 0 else 0
        memory = self._memory()
        return Load(
            os.cpu_count() or 0,
            memory.get("MemTotal", 0),
            memory.get("MemAvailable"),
            self._disk_free(),
            self._number(self._sys / "class/net" / self._uplink / "speed") if self._uplink else 0,
            rate,
            used,
            *(self._pressure(what) for what in ("cpu", "memory", "io")),
        )

    def _sample(self) -> _Sample:
        """The first line of /proc/stat: user nice system idle iowait irq softirq steal ... in ticks."""
        words = _text(self._proc / "stat").split("\n", 1)[0].split()[1:9]
        ticks = [int(word) for word in words if word.isdigit()]
        idle = sum(ticks[3:5])
        counters = self._sys / "class/net" / self._uplink / "statistics"
        passed = 0
        if self._uplink:
            passed = max(self._number(counters / name) for name in ("rx_bytes", "tx_bytes"))
        return _Sample(self._clock(), sum(ticks) - idle, sum(ticks), passed)

    def _memory(self) -> dict[str, int]:
        """MiB by name, of those two lines."""
        lines = re.findall(r"^(MemTotal|MemAvailable): +([0-9]+) kB", _text(self._proc / "meminfo"), re.M)
        return {name: int(kib) // 1024 for name, kib in lines}

    def _disk_free(self) -> int | None:
        try:
            found = os.statvfs(self._folder)
        except OSError:
            return None
        return found.f_bavail * found.f_frsize // _MIB

    def _pressure(self, what: str) -> int | None:
        found = _AVG60.search(_text(self._proc / "pressure" / what))
        return None if found is None else min(WHOLE, int(found[1]) * 100 + int(found[2]))

    @staticmethod
    def _number(path: Path) -> int:
        text = _text(path).strip()
        return int(text) if text.isdigit() else 0


def _text(path: Path) -> str:
    """ "" where it cannot be read: an interface without a link has no speed."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""

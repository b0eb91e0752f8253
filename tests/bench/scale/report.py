"""What the bench writes (build/bench.json) and prints: one row for each size."""

import os
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

SCHEMA = 1


class Latency(msgspec.Struct, omit_defaults=True):
    """Milliseconds from the request to the last barrier; nothing where none was measured."""

    p50_ms: float | None = None
    p99_ms: float | None = None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        if not seconds:
            return cls()
        ordered = sorted(seconds)
        last = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        return cls(round(1000 * statistics.median(ordered), 2), round(1000 * last, 2))


class Latencies(msgspec.Struct):
    add: Latency = msgspec.field(default_factory=Latency)
    remove: Latency = msgspec.field(default_factory=Latency)
    steer: Latency = msgspec.field(default_factory=Latency)
    move: Latency = msgspec.field(default_factory=Latency)


class Loaded(Latencies):
    failures: int = 0
    """Of the events that were asked for."""


class Size(msgspec.Struct):
    """The figures of one size; None: it did not come to that."""

    servers: int
    vms: int
    build_s: float | None = None
    """From the first request to the last barrier, from a controller without VMs."""
    rss_mib: float | None = None
    bytes_per_vm: int | None = None
    cpu_at_rest: float | None = None
    """Cores."""
    restart_s: float | None = None
    """From the start of the process until all switches are connected and hold what they should."""
    restart_flow_mods: int | None = None
    acks_per_s: float | None = None
    flow_mods_per_move: list[int] = []
    """The fewest and the most."""
    idle: Latencies = msgspec.field(default_factory=Latencies)
    loaded: Loaded = msgspec.field(default_factory=Loaded)


class Machine(msgspec.Struct):
    load: float = 0.0
    """The average of the last minute, at the end."""
    others_cores: float = 0.0
    """What everything but the bench and its controller used meanwhile."""


class Report(msgspec.Struct):
    schema: int = SCHEMA
    sizes: list[Size] = []
    ovn: list[dict[str, Any]] = []
    machine: Machine = msgspec.field(default_factory=Machine)


def written(report: Report) -> bytes:
    """As it is in the file."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


COLUMNS = (
    "servers, VMs", "build s", "RSS MiB", "bytes/VM", "at rest", "restart s", "sent", "ACKs/s", "mods/move",
    "add ms", "remove ms", "steer ms", "move ms", "loaded: add ms", "remove ms", "steer ms", "move ms",
    "failed",
)  # fmt: skip


def table(report: Report) -> str:
    """In Markdown; latencies are p50 / p99."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *(_row(size) for size in report.sizes)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    machine = report.machine
    lines.append(f"load {machine.load:.2f}; others used {machine.others_cores:.2f} of {os.cpu_count()} cores")
    return "\n".join(lines)


def _row(size: Size) -> tuple[str, ...]:
    moves = size.flow_mods_per_move
    return (
        f"{size.servers}, {size.vms}",
        *map(_text, (size.build_s, size.rss_mib, size.bytes_per_vm, size.cpu_at_rest)),
        *map(_text, (size.restart_s, size.restart_flow_mods, size.acks_per_s)),
        f"{moves[0]} to {moves[1]}" if moves else "",
        *_latencies(size.idle),
        *_latencies(size.loaded),
        str(size.loaded.failures),
    )


def _latencies(found: Latencies) -> Iterable[str]:
    for one in (found.add, found.remove, found.steer, found.move):
        yield "" if one.p50_ms is None else f"{one.p50_ms:.1f} / {one.p99_ms:.1f}"


def _text(figure: float | None) -> str:
    return "" if figure is None else f"{figure:g}"

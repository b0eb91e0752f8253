"""What the demonstration measured: its JSON, what it must show, and the table a person reads. Pure."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from retinue_lab.output import buffer, text_of


class TrafficFigures(msgspec.Struct, frozen=True):
    """Counts are of requests, one UDP datagram each; see measure.figures.Traffic."""

    pps: int
    sent: int
    received: int
    lost: int
    lost_after_resume: int
    """Of those sent after the VM was resumed at the target, how many got no reply."""
    duplicated: int
    reordered: int
    longest_gap_ms: float
    tcp_survived: bool
    sent_after_resume: int


class MigrationFigures(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """One migration under traffic."""

    vm: str
    source: str
    target: str
    system: Literal["retinue"]
    traffic: TrafficFigures
    guest_pause_ms: float
    """The downtime: from STOP at the source to RESUME at the target."""
    total_ms: float
    """From the order to migrate until the source was free."""
    flow_mods: int
    packet_ins: int
    control_ms: float
    """From the report of RESUME to the controller until every switch had confirmed."""
    bindings_before: list[dict[str, Any]]
    bindings_after: list[dict[str, Any]]
    switch: str
    """Where the VM's addresses must be bound now: the target's edge switch, and the port by which that
    switch itself calls the VM's tap."""
    port: int


class SpoofingFigures(msgspec.Struct, frozen=True):
    """What became of frames that one VM sent in another's name."""

    tried: int
    delivered: int
    """Spoofed frames seen at any host or at the VM they were to deceive."""
    reported: int
    """Spoofed frames that the controller has counted, and has attributed to the VM that sent them."""


class BaselineFigures(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """The same traffic and kind of migration without retinue: learning switches with static port security."""

    system: Literal["static-port-security"]
    cut_off: bool
    """No request sent after the VM was resumed was answered."""
    traffic: TrafficFigures
    source: str
    target: str
    guest_pause_ms: float
    flooded_frames: int
    """As for the migrations: what the plain switches flooded. None at all would show a blind watch."""
    restored_by_hand: bool
    """Nothing else cut the VM off: with its binding written at the target by hand it is reached again."""


class DemoReport(msgspec.Struct, frozen=True, rename={"spoofing": "forgery", "baseline": "control"}):
    """The whole result. Its JSON (build/demo.json) keeps the names of schema 1."""

    schema: Literal[1]
    versions: dict[str, str]
    moves: list[MigrationFigures]
    spoofing: SpoofingFigures
    flooded_frames: int
    """Frames that reached ports where only others' traffic could bring them, during the migrations."""
    baseline: BaselineFigures
    flooded: dict[str, str] = {}
    """What they were, by port."""


def encode(report: DemoReport) -> bytes:
    """As JSON, indented."""
    return msgspec.json.format(msgspec.json.encode(report)) + b"\n"


def decode(data: bytes) -> DemoReport:
    """Raises msgspec.ValidationError where the JSON has not the shape of a report."""
    return msgspec.json.decode(data, type=DemoReport)


# ---- what it must show ----


def unmet(report: DemoReport) -> list[str]:
    """What was expected and not seen, a sentence each; nothing when all is well."""
    return [*(text for move in report.moves for text in _unmet_of(move)), *_unmet_beside_moves(report)]


def _unmet_of(move: MigrationFigures) -> Iterator[str]:
    name = f"move {move.source} to {move.target}"
    traffic = move.traffic
    if traffic.lost:
        yield (
            f"{name}: {traffic.lost} of {traffic.sent} requests were not answered, "
            f"{traffic.lost_after_resume} of them sent after the VM was resumed"
        )
    if traffic.duplicated or traffic.reordered:
        yield f"{name}: {traffic.duplicated} requests were answered twice, {traffic.reordered} out of order"
    if not traffic.tcp_survived:
        yield f"{name}: the TCP connection broke"
    yield from _binding_troubles(move)


def _binding_troubles(move: MigrationFigures) -> Iterator[str]:
    name = f"move {move.source} to {move.target}"
    before = {row["ip"] for row in move.bindings_before}
    after = Counter(row["ip"] for row in move.bindings_after)
    if not before:
        yield f"{name}: the VM had no binding before"
    for ip in sorted(before | set(after)):
        if after[ip] != 1:
            yield f"{name}: {ip} has {after[ip]} bindings afterwards, not one"
    for row in move.bindings_after:
        if (row["switch"], row["port"]) != (move.switch, move.port):
            yield (
                f"{name}: {row['ip']} is bound to {row['switch']} port {row['port']}, "
                f"the VM is at {move.switch} port {move.port}"
            )


def _unmet_beside_moves(report: DemoReport) -> Iterator[str]:
    if not report.moves:
        yield "no migration was made"
    spoofing = report.spoofing
    if spoofing.delivered:
        yield f"{spoofing.delivered} of {spoofing.tried} spoofed frames were delivered"
    if spoofing.reported != spoofing.tried or not spoofing.tried:
        yield f"{spoofing.reported} of {spoofing.tried} spoofed frames were reported"
    if report.flooded_frames:
        ports = "; ".join(f"{port}: {what}" for port, what in report.flooded.items())
        yield f"{report.flooded_frames} frames were flooded ({ports})"
    baseline = report.baseline
    if not baseline.cut_off:
        yield "baseline: the VM was still reached after its move on plain switches"
    if not baseline.flooded_frames:
        yield "baseline: learning switches flood, but no flooded frame was seen: the watch is blind"
    if not baseline.restored_by_hand:
        yield "baseline: a binding written by hand did not bring the VM back, so something else cut it off"


# ---- the table ----


def table(report: DemoReport, *, colour: bool = False, width: int = 100) -> str:
    """The result, for somebody who has read nothing else."""
    console = buffer(colour=colour, width=width)
    pps = report.baseline.traffic.pps
    console.print(
        f"\nA client sent {pps} numbered requests a second to vm1 and held a TCP connection to it, "
        "while vm1 moved from server to server without being restarted.\n"
    )
    console.print(_moves(report))
    console.print()
    checks = Table(box=None, show_header=False, pad_edge=False)
    for good, what, text in _lines(report):
        checks.add_row(Text("ok", "green") if good else Text("FAIL", "bold red"), Text(what, "bold"), text)
    console.print(checks)
    console.print()
    missed = unmet(report)
    if missed:
        console.print(Text("Not as expected:", "bold red"))
        for text in missed:
            console.print(Text(f"  {text}", "red"))
    else:
        console.print(Text("Everything is as expected.", "bold green"))
    return text_of(console)


ROWS = (
    "requests sent",
    "requests lost",
    "lost though sent after vm1 resumed",
    "longest silence of vm1",
    "downtime of vm1",
    "TCP connection",
    "network switched over in",
    "flow entries changed",
    "vm1's address is bound to",
)


def _moves(report: DemoReport) -> Table:
    """A column for each migration: so it fits a terminal, with room to say what a figure is."""
    baseline = report.baseline
    shown = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    shown.add_column("")
    for move in report.moves:
        shown.add_column(f"retinue\n{move.source} to {move.target}", justify="right")
    shown.add_column(f"plain switches\n{baseline.source} to {baseline.target}", justify="right")
    columns = [
        *(
            (
                *_of_traffic(move.traffic, move.guest_pause_ms),
                f"{move.control_ms:.1f} ms",
                str(move.flow_mods),
                _bound(move.bindings_after),
            )
            for move in report.moves
        ),
        (*_of_traffic(baseline.traffic, baseline.guest_pause_ms), "never", "none", "its old place"),
    ]
    for name, *cells in zip(ROWS, *columns, strict=True):
        shown.add_row(name, *cells)
    return shown


def _of_traffic(traffic: TrafficFigures, pause_ms: float) -> tuple[str, ...]:
    cut_off = traffic.lost_after_resume == traffic.sent_after_resume
    return (
        str(traffic.sent),
        str(traffic.lost),
        "all" if cut_off else str(traffic.lost_after_resume),
        "to the end" if cut_off else f"{traffic.longest_gap_ms:.0f} ms",
        f"{pause_ms:.0f} ms",
        "held" if traffic.tcp_survived else "broke",
    )


def _bound(rows: list[dict[str, Any]]) -> str:
    return "\n".join(f"{row['switch']} port {row['port']}" for row in rows) or "nothing"


def _lines(report: DemoReport) -> Iterator[tuple[bool, str, str]]:
    spoofing, baseline = report.spoofing, report.baseline
    harmed = [move.traffic.lost or move.traffic.duplicated or move.traffic.reordered for move in report.moves]
    yield (
        not any(harmed) and all(move.traffic.tcp_survived for move in report.moves),
        "migrations",
        "no request was lost, doubled or out of order, TCP held",
    )
    yield (
        not any(text for move in report.moves for text in _binding_troubles(move)),
        "bindings",
        "after each migration every address is bound once, to the port where vm1 is",
    )
    yield (
        not spoofing.delivered and 0 < spoofing.tried == spoofing.reported,
        "spoofing",
        f"vm2 sent {spoofing.tried} frames as if it were vm1 (its IP, its MAC, its ARP): "
        f"{spoofing.delivered} arrived anywhere, {spoofing.reported} were reported as vm2's",
    )
    yield (
        not report.flooded_frames,
        "flooding",
        f"during the migrations {report.flooded_frames} frames came to ports they were not for "
        f"(plain switches: {baseline.flooded_frames})",
    )
    traffic = baseline.traffic
    answered = traffic.sent_after_resume - traffic.lost_after_resume
    again = "only a binding written by hand" if baseline.restored_by_hand else "not even a binding by hand"
    yield (
        baseline.cut_off and baseline.restored_by_hand,
        "baseline",
        "the same migration on learning switches with static port security: "
        f"{answered} of {traffic.sent_after_resume} later requests answered, {again} brought vm1 back",
    )

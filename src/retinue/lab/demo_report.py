"""What the demonstration measured: its JSON, what it must show, and the table a person reads. Pure."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from retinue.lab.paper import paper, written

MAX_LOST_AFTER_RESUME = 5
"""Requests that may go unanswered though they were sent after the VM ran on at its new place."""


class TrafficFigures(msgspec.Struct, frozen=True):
    """Counts are of requests, one UDP datagram each; see measure.Traffic."""

    pps: int
    sent: int
    received: int
    lost: int
    lost_after_resume: int
    """Of those sent after the VM ran on at the target, how many got no reply."""
    duplicated: int
    reordered: int
    longest_gap_ms: float
    tcp_survived: bool
    sent_after_resume: int


class MoveFigures(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    vm: str
    source: str
    target: str
    system: Literal["retinue"]
    traffic: TrafficFigures
    guest_pause_ms: float
    """How long the VM stood still: from STOP at the source to RESUME at the target."""
    total_ms: float
    """From the order to move until the source was free."""
    flow_mods: int
    packet_ins: int
    control_ms: float
    """From the controller's hearing of RESUME until every switch had confirmed."""
    bindings_before: list[dict[str, Any]]
    bindings_after: list[dict[str, Any]]
    switch: str
    """Where the VM's addresses must be bound now: the target's edge switch, and the port by which that
    switch itself calls the VM's tap."""
    port: int


class ForgeryFigures(msgspec.Struct, frozen=True):
    tried: int
    delivered: int
    """Forged frames seen at any host or at the VM they were to deceive."""
    reported: int
    """Forged frames that the controller has counted and laid at the forger's door."""


class ControlFigures(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """The same traffic and kind of move without retinue: learning switches with static port security."""

    system: Literal["static-port-security"]
    cut_off: bool
    """No request sent after the VM ran on was answered."""
    traffic: TrafficFigures
    source: str
    target: str
    guest_pause_ms: float
    flooded_frames: int
    """As for the moves: what the plain switches sent to everybody. None at all would show a blind watch."""
    restored_by_hand: bool
    """Cut off by nothing else: with its binding written at the target by hand the VM is back."""


class Report(msgspec.Struct, frozen=True):
    schema: Literal[1]
    versions: dict[str, str]
    moves: list[MoveFigures]
    forgery: ForgeryFigures
    flooded_frames: int
    """Frames that reached ports where only others' traffic could bring them, during the moves."""
    control: ControlFigures
    flooded: dict[str, str] = {}
    """What they were, by port."""


def encode(report: Report) -> bytes:
    """As JSON, indented."""
    return msgspec.json.format(msgspec.json.encode(report)) + b"\n"


def decode(data: bytes) -> Report:
    """Raises msgspec.ValidationError where the JSON has not the shape of a report."""
    return msgspec.json.decode(data, type=Report)


# ---- what it must show ----


def unmet(report: Report) -> list[str]:
    """What was expected and not seen, a sentence each; nothing when all is well."""
    return [*(text for move in report.moves for text in _unmet_of(move)), *_unmet_beside_moves(report)]


def _unmet_of(move: MoveFigures) -> Iterator[str]:
    name = f"move {move.source} to {move.target}"
    traffic = move.traffic
    if traffic.lost_after_resume > MAX_LOST_AFTER_RESUME:
        yield (
            f"{name}: {traffic.lost_after_resume} requests sent after the VM ran on were not answered, "
            f"more than {MAX_LOST_AFTER_RESUME}"
        )
    if not traffic.tcp_survived:
        yield f"{name}: the TCP connection broke"
    yield from _binding_troubles(move)


def _binding_troubles(move: MoveFigures) -> Iterator[str]:
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


def _unmet_beside_moves(report: Report) -> Iterator[str]:
    if not report.moves:
        yield "no move was made"
    forgery = report.forgery
    if forgery.delivered:
        yield f"{forgery.delivered} of {forgery.tried} forged frames were delivered"
    if forgery.reported != forgery.tried or not forgery.tried:
        yield f"{forgery.reported} of {forgery.tried} forged frames were reported"
    if report.flooded_frames:
        ports = "; ".join(f"{port}: {what}" for port, what in report.flooded.items())
        yield f"{report.flooded_frames} frames were flooded ({ports})"
    control = report.control
    if not control.cut_off:
        yield "control: the VM was still reached after its move on plain switches"
    if not control.flooded_frames:
        yield "control: learning switches flood, but no flooded frame was seen: the watch is blind"
    if not control.restored_by_hand:
        yield "control: a binding written by hand did not bring the VM back, so something else cut it off"


# ---- the table ----


def table(report: Report, *, colour: bool = False, width: int = 100) -> str:
    """The result, for somebody who has read nothing else."""
    console = paper(colour=colour, width=width)
    pps = report.control.traffic.pps
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
    return written(console)


ROWS = (
    "requests sent",
    "requests lost",
    "lost though sent after vm1 ran on",
    "longest silence of vm1",
    "vm1 stood still",
    "TCP connection",
    "network switched over in",
    "flow entries changed",
    "vm1's address is bound to",
)


def _moves(report: Report) -> Table:
    """A column for each move: so it fits a terminal, with room to say what a figure is."""
    control = report.control
    shown = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    shown.add_column("")
    for move in report.moves:
        shown.add_column(f"retinue\n{move.source} to {move.target}", justify="right")
    shown.add_column(f"plain switches\n{control.source} to {control.target}", justify="right")
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
        (*_of_traffic(control.traffic, control.guest_pause_ms), "never", "none", "its old place"),
    ]
    for name, *cells in zip(ROWS, *columns, strict=True):
        shown.add_row(name, *cells)
    return shown


def _of_traffic(traffic: TrafficFigures, pause_ms: float) -> tuple[str, ...]:
    gone = traffic.lost_after_resume == traffic.sent_after_resume
    return (
        str(traffic.sent),
        str(traffic.lost),
        "all" if gone else str(traffic.lost_after_resume),
        "to the end" if gone else f"{traffic.longest_gap_ms:.0f} ms",
        f"{pause_ms:.0f} ms",
        "held" if traffic.tcp_survived else "broke",
    )


def _bound(rows: list[dict[str, Any]]) -> str:
    return "\n".join(f"{row['switch']} port {row['port']}" for row in rows) or "nothing"


def _lines(report: Report) -> Iterator[tuple[bool, str, str]]:
    forgery, control = report.forgery, report.control
    reached = [move.traffic.lost_after_resume <= MAX_LOST_AFTER_RESUME for move in report.moves]
    yield (
        all(reached) and all(move.traffic.tcp_survived for move in report.moves),
        "moves",
        f"at most {MAX_LOST_AFTER_RESUME} requests lost once vm1 ran on, TCP held",
    )
    yield (
        not any(text for move in report.moves for text in _binding_troubles(move)),
        "bindings",
        "after each move every address is bound once, to the port where vm1 is",
    )
    yield (
        not forgery.delivered and 0 < forgery.tried == forgery.reported,
        "forgery",
        f"vm2 sent {forgery.tried} frames as if it were vm1 (its IP, its MAC, its ARP): "
        f"{forgery.delivered} arrived anywhere, {forgery.reported} were reported as vm2's",
    )
    yield (
        not report.flooded_frames,
        "flooding",
        f"during the moves {report.flooded_frames} frames came to ports they were not for "
        f"(plain switches: {control.flooded_frames})",
    )
    traffic = control.traffic
    answered = traffic.sent_after_resume - traffic.lost_after_resume
    again = "only a binding written by hand" if control.restored_by_hand else "not even a binding by hand"
    yield (
        control.cut_off and control.restored_by_hand,
        "control",
        "the same move on learning switches with static port security: "
        f"{answered} of {traffic.sent_after_resume} later requests answered, {again} brought vm1 back",
    )

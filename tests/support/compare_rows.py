"""Rows of a comparison, and a whole report of them, for tests."""

from typing import Any

from retinue_lab.compare.report import criteria, summary
from retinue_lab.compare.report.records import Figures
from retinue_lab.compare.report.summary import (
    ComparisonReport,
    ComparisonSettings,
    Direction,
    MigrationRow,
    SystemRow,
    TcpRow,
)


def figures(pps: int = 500, lost: int = 0, gap: float = 40.0, **more: Any) -> Figures:
    fields: dict[str, Any] = {"duplicated": 0, "reordered": 0, "tcp_survived": None, "cut_off": False}
    return Figures(
        pps=pps,
        sent=1000,
        received=1000 - lost,
        lost=lost,
        lost_after_resume=lost,
        longest_gap_ms=gap,
        sent_after_resume=500,
        **fields | more,
    )


def row(
    system: str = "retinue", run: int = 1, direction: Direction = "client-to-vm", size: int = 64, **more: Any
) -> MigrationRow:
    writes: dict[str, Any] = {}
    if "content_right" in more:
        right = more.pop("content_right")
        writes = {"guest": "writing", "write_mib_s": 20, "passes": 3, "content_right": right}
    if "flow" in more:
        family, nic = more.pop("flow")
        writes |= {"family": family, "nic": nic, "flows": 4}
    traffic = figures(**more)
    return MigrationRow(
        vm="vm1",
        source="server1",
        target="server2",
        system=system,
        direction=direction,
        size=size,
        run=run,
        traffic=traffic,
        guest_pause_ms=10.0,
        gap_minus_pause_ms=traffic.longest_gap_ms - 10.0,
        total_ms=900.0,
        idle_percent=50.0,
        **writes,
    )


def tcp_row(system: str = "retinue", run: int = 1, *, survived: bool = True, stall: float = 60.0) -> TcpRow:
    return TcpRow(system, "server1", "server2", run, survived, stall, 40.0, 3, 10.0, stall - 10.0, 50.0)


def full(moves: list[MigrationRow], **more: Any) -> ComparisonReport:
    fields: dict[str, Any] = {
        "systems": [SystemRow(name, True, "so") for name in dict.fromkeys(r.system for r in moves)],
        "noise": [],
        "tcp": [],
        "failures": [],
        "traces": [],
    }
    fields |= more
    judged = criteria.verdicts(moves, fields["tcp"], fields["failures"])
    return ComparisonReport(
        schema=1,
        measured_at=1.0,
        versions={"retinue": "0"},
        processors=2,
        settings=ComparisonSettings(1, [500], [64]),
        moves=moves,
        summaries=summary.summaries(moves),
        met=judged.met,
        unmet=judged.unmet,
        unjudged=judged.unjudged,
        **fields,
    )

"""A short comparison on real parts: one rate, one size, one move of each system."""

from pathlib import Path

import pytest

from retinue.lab import compare, compare_report
from retinue.lab.compare_all import SYSTEMS
from retinue.lab.compare_wanted import OURS

pytestmark = pytest.mark.lab

AVAILABLE = [system.name for system in SYSTEMS if not system().missing()]
QUICK = ["retinue", "learning-switch"]


def test_a_short_comparison(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    labs = tmp_path_factory.mktemp("labs")  # A short path: sockets in it must fit.
    monkeypatch.setenv("RETINUE_LAB_DIR", str(labs))
    output = tmp_path / "out" / "compare.json"
    said: list[str] = []
    report, complete = compare.run(compare.Wanted(QUICK, 1, [500], [64]), output, said.append)

    assert complete
    assert compare_report.decode(output.read_bytes()) == report
    assert report.failures == []
    measured = [name for name in QUICK if name in AVAILABLE]
    assert [(s.name, s.available) for s in report.systems] == [(name, name in measured) for name in QUICK]
    assert [(row.system, row.direction) for row in report.moves] == [
        (system, direction) for system in measured for direction in compare_report.DIRECTIONS
    ]
    for row in report.moves:
        assert (row.source, row.target, row.size, row.traffic.pps) == ("server1", "server2", 64, 500)
        assert row.traffic.sent_after_resume > row.traffic.lost_after_resume, "it is reached at its new place"
        assert row.guest_pause_ms > 0
        assert row.traffic.longest_gap_ms > 0
    ours = [row for row in report.moves if row.system in OURS]
    assert all(row.flow_mods and row.switch == "edge2" and row.bindings_after for row in ours)
    for system in set(OURS) & set(measured):
        assert any(text.startswith(f"{system}, ") for text in (*report.met, *report.unmet))
    assert len(report.noise) == 2 * len(measured)
    assert all(row.traffic.received > 0 for row in report.noise)
    assert {trace.system for trace in report.traces} == set(measured)
    assert all(len(trace.dots) > 100 for trace in report.traces)
    assert sum("left] " in text and "building" not in text for text in said) == 2 * len(measured)
    assert list(labs.iterdir()) == [], "the labs are gone"

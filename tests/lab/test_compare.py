"""A short comparison on real parts: one rate, one size, one move of each of two systems."""

from pathlib import Path

import pytest

from retinue.lab import compare, compare_report

pytestmark = pytest.mark.lab


def test_a_short_comparison(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    labs = tmp_path_factory.mktemp("labs")  # A short path: sockets in it must fit.
    monkeypatch.setenv("RETINUE_LAB_DIR", str(labs))
    output = tmp_path / "out" / "compare.json"
    said: list[str] = []
    wanted = compare.Wanted(["retinue", "learning-switch", "retinue-libvirt"], 1, [500], [64])
    assert compare.run(wanted, output, said.append) == 0

    report = compare_report.decode(output.read_bytes())
    assert report.failures == []
    assert [(s.name, s.available) for s in report.systems] == [
        ("retinue", True),
        ("learning-switch", True),
        ("retinue-libvirt", False),
    ]
    assert {(row.system, row.direction) for row in report.moves} == {
        (system, direction)
        for system in ("retinue", "learning-switch")
        for direction in compare_report.DIRECTIONS
    }
    for row in report.moves:
        assert (row.source, row.target, row.size, row.traffic.pps) == ("server1", "server2", 64, 500)
        assert row.traffic.sent_after_resume > row.traffic.lost_after_resume, "it is reached at its new place"
        assert row.guest_pause_ms > 0
        assert row.traffic.longest_gap_ms > 0
    ours = [row for row in report.moves if row.system == "retinue"]
    assert all(row.flow_mods and row.switch == "edge2" and row.bindings_after for row in ours)
    assert len(report.noise) == 4
    assert all(row.traffic.received > 0 for row in report.noise)
    assert {trace.system for trace in report.traces} == {"retinue", "learning-switch"}
    assert all(len(trace.dots) > 100 for trace in report.traces)
    assert "learning-switch" in said[-2]
    assert list(labs.iterdir()) == [], "the labs are gone"

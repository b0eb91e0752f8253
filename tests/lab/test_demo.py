"""The demonstration whole, on real parts: its figures."""

from pathlib import Path

import pytest

from retinue_lab.demo import report as demo_report
from retinue_lab.demo import run

pytestmark = [pytest.mark.lab, pytest.mark.alone]


def test_the_demonstration_shows_what_it_promises(traceless: None, tmp_path: Path) -> None:
    said: list[str] = []
    output = tmp_path / "build" / "demo.json"
    code = run.run(output, False, said.append)
    report = demo_report.decode(output.read_bytes())
    assert demo_report.unmet(report) == [], demo_report.table(report)
    assert code == 0
    assert [(move.source, move.target) for move in report.moves] == [
        ("server1", "server2"),
        ("server2", "server3"),
    ]
    for move in report.moves:
        assert move.traffic.pps == 1000
        assert move.traffic.sent > 2000
        assert move.traffic.sent == move.traffic.received
        assert (move.traffic.lost, move.traffic.duplicated, move.traffic.reordered) == (0, 0, 0)
        assert 0 < move.guest_pause_ms < move.total_ms
        assert move.flow_mods > 0
        assert move.packet_ins == 0
        assert [row["switch"] for row in move.bindings_before] != [move.switch]
    assert report.baseline.traffic.received > 900
    assert all(report.versions.values())
    assert any("binding table" in text for text in said)
    assert any("in a browser meanwhile: http://127.0.0.1:" in text for text in said)

"""A short comparison on real parts: one rate, one size, one move of each system."""

from pathlib import Path

import pytest

from retinue_lab.compare import run
from retinue_lab.compare.report import summary
from retinue_lab.compare.report.criteria import OURS
from retinue_lab.compare.systems.registry import SYSTEMS

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long]

AVAILABLE = [system.name for system in SYSTEMS if not system().missing()]
MORE = [
    name
    for name in ("retinue", "retinue-libvirt", "ovn-multichassis-rarp", "learning-switch")
    if name in ("retinue", "learning-switch") or name in AVAILABLE
]
"""One of each kind: ours in both forms, one that is told where the VM is, and one that learns it."""


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(["retinue", "learning-switch"], id="two"),
        pytest.param(MORE, id="more"),
    ],
)
def test_a_short_comparison(
    chosen: list[str],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labs = tmp_path_factory.mktemp("labs")  # A short path: sockets in it must fit.
    monkeypatch.setenv("RETINUE_LAB_DIR", str(labs))
    output = tmp_path / "out" / "compare.json"
    said: list[str] = []
    report, complete = run.run(run.Plan(chosen, 1, [500], [64]), output, said.append)

    assert complete
    assert summary.decode(output.read_bytes()) == report
    assert report.failures == []
    measured = [name for name in chosen if name in AVAILABLE]
    assert [(s.name, s.available) for s in report.systems] == [(name, name in measured) for name in chosen]
    assert [(row.system, row.direction) for row in report.moves] == [
        (system, direction) for system in measured for direction in summary.DIRECTIONS
    ]
    for row in report.moves:
        assert (row.source, row.target, row.size, row.traffic.pps) == ("server1", "server2", 64, 500)
        assert row.traffic.sent_after_resume > row.traffic.lost_after_resume, "it is reached at its new place"
        assert row.guest_pause_ms > 0
        assert row.traffic.longest_gap_ms > 0
    ours = [row for row in report.moves if row.system in OURS]
    assert ours
    for row in ours:
        lost = row.traffic.lost + row.traffic.answers_lost
        assert (lost, row.traffic.duplicated, row.traffic.reordered) == (0, 0, 0), row
    assert all(row.flow_mods and row.switch == "edge2" and row.bindings_after for row in ours)
    for system in set(OURS) & set(measured):
        assert any(text.startswith(f"{system}, ") for text in (*report.met, *report.unmet))
    assert len(report.noise) == 2 * len(measured)
    assert all(row.traffic.received > 0 for row in report.noise)
    assert {trace.system for trace in report.traces} == set(measured)
    assert all(len(trace.dots) > 100 for trace in report.traces)
    assert sum("left] " in text and "building" not in text for text in said) == 2 * len(measured)
    assert list(labs.iterdir()) == [], "the labs are gone"


def test_between_sites_ours_loses_nothing_and_is_shown_beside_stretched_layer_2(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There and back, so that both directions of the link are tried."""
    monkeypatch.setenv("RETINUE_LAB_DIR", str(tmp_path_factory.mktemp("labs")))
    chosen = ["retinue-domains", "stretched-layer-2"]
    report, complete = run.run(run.Plan(chosen, 2, [500], [64]), tmp_path / "compare.json", print)
    assert complete and report.failures == []
    ends = [("server1", "server3"), ("server1", "server3"), ("server3", "server1"), ("server3", "server1")]
    assert [(row.system, row.source, row.target) for row in report.moves] == [
        (system, *end) for system in chosen for end in ends
    ]
    for row in report.moves:
        assert row.traffic.sent_after_resume > row.traffic.lost_after_resume, "it is reached at its new place"
        if row.system == "retinue-domains":
            lost = row.traffic.lost + row.traffic.answers_lost
            assert (lost, row.traffic.duplicated) == (0, 0), row
    stretched = [row for row in report.moves if row.system == "stretched-layer-2"]
    assert sum(row.traffic.lost for row in stretched) > 0, "nobody tells the switches ahead"


def test_a_dual_vm_with_two_nics_is_measured_at_each_of_its_addresses(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By retinue and, where it can be had, by OVN beside it; retinue loses nothing in any of the flows."""
    monkeypatch.setenv("RETINUE_LAB_DIR", str(tmp_path_factory.mktemp("labs")))
    chosen = [name for name in ("retinue", "ovn-multichassis-rarp") if name in AVAILABLE]
    report, _ = run.run(run.Plan(chosen, 1, [125], [64], dual=True), tmp_path / "compare.json", print)
    assert report.failures == []
    flows = [(family, nic) for nic in (1, 2) for family in summary.FAMILIES]
    assert [(row.system, row.family, row.nic, row.direction) for row in report.moves] == [
        (system, *flow, direction) for system in chosen for flow in flows for direction in summary.DIRECTIONS
    ]
    assert len(report.noise) == len(report.moves)
    assert {row.flows for row in report.moves} == {row.flows for row in report.noise} == {4}
    for row in report.moves:
        assert row.traffic.sent_after_resume > row.traffic.lost_after_resume, row
        if row.system in OURS:
            lost = row.traffic.lost + row.traffic.answers_lost
            assert (lost, row.traffic.duplicated, row.traffic.reordered) == (0, 0, 0), row


def test_a_neighbour_is_reached_where_it_went_by_the_rewrite_alone(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3.10: what is sent to the MAC that was known stops at the leaf where edges do not rewrite."""
    monkeypatch.setenv("RETINUE_LAB_DIR", str(tmp_path_factory.mktemp("labs")))
    plan = run.Plan(["retinue-neighbour", "rewrite-off"], 1, [200], [64])
    report, _ = run.run(plan, tmp_path / "compare.json", print)
    assert report.failures == []
    rows = [(row.system, row.traffic) for row in report.moves]
    assert [name for name, _ in rows] == ["retinue-neighbour"] * 2 + ["rewrite-off"] * 2
    for name, traffic in rows:
        if name == "retinue-neighbour":
            assert (traffic.lost, traffic.duplicated, traffic.reordered) == (0, 0, 0)
        else:
            assert traffic.cut_off
            assert traffic.lost_after_resume > 0


def test_each_mechanism_alone_and_all_of_them(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each the VM is reached where it went; only all of them lose nothing on the way."""
    monkeypatch.setenv("RETINUE_LAB_DIR", str(tmp_path_factory.mktemp("labs")))
    chosen = [name for name in run.MECHANISMS if name not in ("retinue-neighbour", "rewrite-off")]
    report, _ = run.run(run.Plan(chosen, 2, [500], [64]), tmp_path / "compare.json", print)
    assert report.failures == []
    ways = {
        (system, direction): [
            row.traffic for row in report.moves if (row.system, row.direction) == (system, direction)
        ]
        for system in chosen
        for direction in summary.DIRECTIONS
    }
    assert all(len(moves) == 2 for moves in ways.values()), "reached again, so that it could go back"
    for (system, _), moves in ways.items():
        lost = [traffic.lost + traffic.answers_lost for traffic in moves]
        if system == "retinue":
            assert lost == [0, 0]
            assert [(traffic.duplicated, traffic.reordered) for traffic in moves] == [(0, 0)] * 2
        elif system != "told-afterwards":  # With it what the VM sends may all arrive.
            assert lost != [0, 0], system
    to_vm = {system: ways[system, "client-to-vm"] for system in chosen}
    assert all(t.lost_after_resume for t in to_vm["told-afterwards"]), "it is late by a message"
    assert all(t.lost_after_resume for t in to_vm["renewal-alone"]), "and by a renewal"
    assert not any(t.lost_after_resume for t in to_vm["told-ahead"]), "its tap has kept what came"

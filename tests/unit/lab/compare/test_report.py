"""Summaries, what was wanted, the JSON, the table and the picture of a comparison."""

import xml.etree.ElementTree as ElementTree
from typing import Any

import msgspec
import pytest

from retinue_lab.compare import run as compare
from retinue_lab.compare.report import criteria, picture, summary, table
from retinue_lab.compare.report.criteria import OURS, PEER
from retinue_lab.compare.report.records import Dot
from retinue_lab.compare.report.summary import Failure, MigrationRow, NoiseRow, Spread, SystemRow, Trace
from support.compare_rows import full, row, tcp_row

SVG = "{http://www.w3.org/2000/svg}"


def test_a_summary_has_median_least_and_most() -> None:
    moves = [row(run=n, lost=lost, gap=gap) for n, (lost, gap) in enumerate([(3, 50), (1, 90), (2, 40)], 1)]
    moves.append(row(direction="vm-to-client", lost=9, cut_off=True))
    whole, forth, back = summary.summaries(moves)
    assert (whole.direction, whole.pps, whole.size, whole.rows, whole.cut_off) == (None, None, None, 4, 1)
    assert whole.lost == Spread(2.5, 1, 9)
    assert (forth.direction, forth.pps, forth.size, forth.rows) == ("client-to-vm", 500, 64, 3)
    assert (forth.lost, forth.longest_gap_ms) == (Spread(2, 1, 3), Spread(50, 40, 90))
    assert forth.gap_minus_pause_ms == Spread(40, 30, 80)
    assert (back.direction, back.lost, back.cut_off) == ("vm-to-client", Spread(9, 9, 9), 1)


def test_a_guest_that_writes_is_summed_up_and_judged_by_itself() -> None:
    moves = [row(gap=10), row(gap=20, content_right=True), row(run=2, gap=30, content_right=False)]
    moves += [row(PEER, gap=15), row(PEER, gap=99, content_right=True)]
    kinds = [(s.system, s.guest, s.rows, s.passes.median) for s in summary.summaries(moves) if s.guest]
    assert kinds == [
        ("retinue", "idle", 1, 0),
        ("retinue", "writing", 2, 3),
        (PEER, "idle", 1, 0),
        (PEER, "writing", 1, 3),
    ]
    found = criteria.verdicts(moves)
    assert found.unmet == [
        "retinue, to VM, 500/s of 64 bytes, the guest writing: the memory was right after 1 of 2 moves"
    ]
    assert "gap, median of 2 moves, 25.0 ms: no worse than" in " ".join(found.met)
    again = criteria.merged(full(moves), full([row(gap=11, content_right=True)]), [])
    assert [(r.guest, r.traffic.longest_gap_ms) for r in again.moves if r.system == "retinue"] == [
        ("idle", 10),
        ("writing", 11),
    ]


def test_the_flows_of_a_dual_vm_are_summed_up_and_judged_each_by_itself() -> None:
    ipv4 = [row(gap=20, flow=("ipv4", 1)), row(PEER, gap=30, flow=("ipv4", 1))]
    ipv6 = [row(gap=40, lost=2, flow=("ipv6", 2)), row(PEER, gap=30, flow=("ipv6", 2))]
    moves = [row(gap=10), *ipv4, *ipv6]
    kinds = [(s.family, s.nic, s.flows, s.longest_gap_ms.median) for s in summary.summaries(moves) if s.flows]
    assert kinds[:3] == [("ipv4", 1, 1, 10), ("ipv4", 1, 4, 20), ("ipv6", 2, 4, 40)]
    found = criteria.verdicts(moves)
    assert [text.split(": ")[0] for text in found.unmet] == [
        "retinue, to VM, 500/s of 64 bytes, ipv6 at NIC 2 of 4 flows"
    ] * 2
    assert [text.split(": ")[0] for text in found.unjudged] == ["retinue, to VM, 500/s of 64 bytes"]
    shown = table.table(full(moves))
    assert ("ipv6 at NIC 2" in shown, "ipv4 at NIC 1" in shown) == (True, True)
    assert "NIC" not in table.table(full([row()]))


def test_flows_are_added_to_what_was_measured_of_one() -> None:
    one, flow = Trace("retinue", 500, 64, 1, 1.0, []), Trace("retinue", 500, 64, 1, 1.0, [], 4)
    earlier = full([row(gap=10), row(gap=20, flow=("ipv6", 2))], traces=[one])
    both = criteria.merged(earlier, full([row(gap=21, flow=("ipv6", 2))], traces=[flow]), [])
    assert [(r.flows, r.traffic.longest_gap_ms) for r in both.moves] == [(1, 10), (4, 21)]
    assert both.traces == [one, flow]
    assert "1 of 4 flows" in picture.drawn(both.traces)


@pytest.mark.parametrize("system", OURS)
def test_clean_moves_as_quick_as_the_peers_leave_nothing_unmet(system: str) -> None:
    found = criteria.verdicts([row(system, gap=40), row(PEER, gap=40, lost=20)], [tcp_row(system)])
    assert (found.unmet, found.unjudged) == ([], [])
    assert found.met == [
        f"{system}, to VM, 500/s of 64 bytes: nothing lost, doubled or reordered in 1 move",
        f"{system}, to VM, 500/s of 64 bytes: longest gap, median of 1 move, 40.0 ms: no worse than "
        f"{PEER}'s 40.0 ms of 1 move",
        f"{system}: the TCP stream survived 1 of 1 move",
    ]


@pytest.mark.parametrize("system", OURS)
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"lost": 3}, "3 lost of 1000"),
        ({"duplicated": 2}, "2 doubled of 1000"),
        ({"reordered": 1}, "1 reordered of 1000"),
        ({"answers_lost": 4}, "4 replies lost of 1000"),
    ],
)
def test_whatever_retinue_did_wrong_is_said(system: str, more: dict[str, Any], said: str) -> None:
    moves = [row(system, run=6), row(system, run=7, **more), row(PEER, gap=99)]
    found = criteria.verdicts(moves)
    (text,) = found.unmet
    assert text.startswith(f"{system}, to VM, 500/s of 64 bytes: {said} in 1 of 2 moves (run 7)")
    assert not any("nothing lost" in text for text in found.met)


@pytest.mark.parametrize("system", ["learning-switch", "libvirt-virsh", PEER])
def test_nothing_is_wanted_of_others(system: str) -> None:
    moves = [row(system, lost=9, gap=900), row(PEER, gap=10)]
    found = criteria.verdicts(moves, [tcp_row(system, survived=False)], [Failure(system, "x", "y")])
    assert found == criteria.Verdicts([], [], [])


def test_each_system_of_ours_has_lines_of_its_own() -> None:
    moves = [row("retinue", lost=1, gap=10), row("retinue-libvirt", gap=90), row(PEER, gap=50)]
    found = criteria.verdicts(moves)
    lost, slow = found.unmet
    assert lost.startswith("retinue, to VM") and "1 lost" in lost
    assert slow.startswith("retinue-libvirt, to VM") and "90.0 ms: worse than" in slow
    assert [text.split(",")[0] for text in found.met] == ["retinue", "retinue-libvirt"]


def test_medians_of_the_longest_gap_are_compared() -> None:
    peers = [row(PEER, run=n, gap=gap) for n, gap in enumerate((50, 60, 200), 1)]
    slow = [row(run=n, gap=gap) for n, gap in enumerate((55, 61, 70), 1)]
    (text,) = criteria.verdicts([*slow, *peers]).unmet
    assert "median of 3 moves, 61.0 ms: worse than" in text and "60.0 ms of 3 moves" in text
    quick = [row(run=n, gap=gap) for n, gap in enumerate((55, 60, 900), 1)]
    assert criteria.verdicts([*quick, *peers]).unmet == []


@pytest.mark.parametrize("other", [{"size": 1400}, {"pps": 2000}, {"direction": "vm-to-client"}])
def test_gaps_under_other_traffic_are_not_compared(other: dict[str, Any]) -> None:
    found = criteria.verdicts([row(gap=900, **other), row(PEER, gap=10)])
    assert found.unmet == []
    (text,) = found.unjudged
    assert "900.0 ms: not compared" in text


def test_a_broken_stream_is_unmet() -> None:
    rows = [tcp_row(run=0, survived=False), tcp_row(run=1), tcp_row(run=2, survived=False)]
    assert criteria.verdicts([], rows).unmet == ["retinue: the TCP stream survived 1 of 2 moves"]


def test_a_run_that_failed_is_unmet_for_ours_alone() -> None:
    failures = [Failure(name, "500/s", "it broke") for name in ("retinue", PEER)]
    (text,) = criteria.verdicts([], (), failures).unmet
    assert text.startswith("retinue: 500/s")


def test_a_report_is_the_same_after_its_way_through_json() -> None:
    trace = Trace("retinue", 500, 64, 1, 10.0, [Dot(-5.0, 1.0), Dot(3.0, None)])
    report = full([row(), row("learning-switch")], traces=[trace])
    assert summary.decode(summary.encode(report)) == report
    assert b'"from": "server1"' in summary.encode(report)


def test_adding_replaces_what_was_measured_again() -> None:
    earlier = full([row(lost=5), row(size=1400), row(PEER, lost=7)], failures=[Failure(PEER, "run", "why")])
    later = full([row(lost=0)])
    both = criteria.merged(earlier, later, compare.ORDER)
    assert [(r.system, r.size, r.traffic.lost) for r in both.moves] == [
        ("retinue", 1400, 0),
        ("retinue", 64, 0),
        (PEER, 64, 7),
    ]
    assert [system.name for system in both.systems] == ["retinue", PEER]
    assert (both.settings.sizes, len(both.failures)) == ([64, 1400], 1)
    assert both.summaries == summary.summaries(both.moves)


def test_systems_stand_in_the_same_order_whenever_they_were_measured() -> None:
    traces = {name: Trace(name, 500, 64, 1, 1.0, []) for name in ("learning-switch", "retinue")}
    first = full(
        [row("learning-switch")], traces=[traces["learning-switch"]], tcp=[tcp_row("learning-switch")]
    )
    then = full([row()], traces=[traces["retinue"]], tcp=[tcp_row()])
    both = criteria.merged(first, then, compare.ORDER)
    for found in (
        [system.name for system in both.systems],
        [move.system for move in both.moves],
        [trace.system for trace in both.traces],
        [stream.system for stream in both.tcp],
    ):
        assert found == ["retinue", "learning-switch"]


def test_what_was_measured_stays_when_it_is_no_more_to_be_had() -> None:
    gone = full([], systems=[SystemRow(PEER, False, "so", "not installed")])
    (system,) = criteria.merged(full([row(PEER)]), gone, compare.ORDER).systems
    assert system.available


def test_the_table_says_all_that_matters() -> None:
    moves = [row(lost=3), row("static-port-security", lost=900, gap=1500, cut_off=True)]
    systems = [SystemRow(name, True, f"how {name} is") for name in ("retinue", "static-port-security")]
    closed = SystemRow("retinue-libvirt", False, "so", "nobody has installed it")
    failed = [Failure(name, "TCP, run 3", "it broke") for name in ("retinue", "learning-switch")]
    text = table.table(full(moves, systems=[*systems, closed], tcp=[tcp_row()], failures=failed))
    assert "how static-port-security is" in text
    assert "cut off 1" in text
    assert "retinue-libvirt: not available: nobody has installed it" in text
    assert "3 lost of 1000" in text
    assert "learning-switch: TCP, run 3: it broke" in text
    assert "retinue: TCP, run 3 could not be carried out: it broke" in text
    assert text.count("it broke") == 2
    assert "survived 1 of 1 move" in text
    assert "Criteria not met" not in table.table(full([row()]))


def test_the_table_fits_a_terminal_and_cuts_nothing_short() -> None:
    """Figures as large as they get, in all columns at once."""

    def large(run: int) -> MigrationRow:
        more: dict[str, Any] = {"answers_lost": 1300 + run, "duplicated": 1400 + run, "reordered": 1500 + run}
        made = row(
            "static-port-security", run, pps=20000, size=1400, lost=12100 + run, gap=1600.0 + run, **more
        )
        return msgspec.structs.replace(
            made,
            gap_minus_pause_ms=1700.0 + run,
            guest_pause_ms=1800.0 + run,
            switch_drops=19000 + run,
            idle_percent=20.0 + run,
        )

    moves = [large(run) for run in (1, 4, 9)]
    noise = [NoiseRow(m.system, m.direction, m.size, 1, m.traffic, 3.0) for m in moves]
    streams = [tcp_row(PEER, n, stall=2100.0 + n) for n in (0, 1, 4, 9)]
    text = table.table(full(moves, noise=noise, tcp=streams))
    assert max(map(len, text.split("\n"))) <= 100
    found = set(text.replace("-", " ").split())
    for base in (12100, 1300, 1400, 1500, 1600, 1700, 1800, 19000, 20, 2100):
        assert {str(base + n) for n in (1, 4, 9)} <= found, base
    assert "…" not in text and "%" in text


def elements(svg: str, tag: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(svg).findall(f".//{SVG}{tag}")


def test_the_picture_has_a_lane_for_each_system() -> None:
    dots = [Dot(-100.0, 1.0), Dot(-5.0, None), Dot(10.0, 30.0), Dot(900.0, 1.0)]
    svg = picture.drawn([Trace(name, 500, 64, 1, 10.0, dots) for name in ("retinue", "a<b")])
    circles = [e for e in elements(svg, "circle") if float(e.get("cy", "")) > picture.TOP]
    assert len(circles) == 2 * 2, "what is outside is left out"
    lost = [e for e in elements(svg, "path") if e.get("class") == "lost"]
    assert len(lost) == 1 + 2, "one in the legend"
    texts = [text.text for text in elements(svg, "text")]
    assert {"retinue", "a<b", "1 lost, slowest reply 30 ms"} <= set(texts)
    xs = sorted(float(circle.get("cx", "")) for circle in circles)
    assert picture.LEFT < xs[0] == xs[1] < xs[2] == xs[3]
    heights = {float(circle.get("cy", "")) for circle in circles}
    assert len(heights) == 4, "a lane below the other, a late answer above a quick one"
    assert "prefers-color-scheme: dark" in svg and 'class="back"' in svg


def test_a_very_late_reply_does_not_flatten_the_others() -> None:
    traces = [Trace("retinue", 500, 64, 1, 0.0, [Dot(-1.0, 4000.0), Dot(1.0, 40.0)])]
    svg = picture.drawn(traces)
    late, soon = (float(e.get("cy", "")) for e in elements(svg, "circle")[1:])
    assert picture.TOP < late < soon < picture.TOP + picture.LANE - 10
    assert "200 ms" in [text.text for text in elements(svg, "text")]


def test_a_picture_of_nothing_says_so() -> None:
    assert "Nothing was measured" in picture.drawn([])


def test_the_picture_shows_the_run_in_the_middle() -> None:
    moves = [row(run=n, gap=gap) for n, gap in enumerate((90, 50, 70), 1)]
    traces = [Trace("retinue", 500, 64, n, 10.0, []) for n in (1, 2, 3)]
    traces.append(Trace("retinue", 2000, 64, 4, 10.0, []))
    (chosen,) = compare._typical(traces, moves)
    assert (chosen.pps, chosen.run) == (500, 3)

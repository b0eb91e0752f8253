"""Summaries, what fell short, the JSON, the table and the picture of a comparison."""

import io
import json
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retinue.cli.main import app
from retinue.lab import (
    compare,
    compare_all,
    compare_bench,
    compare_ovn,
    compare_picture,
    compare_report,
    compare_systems,
    compare_table,
    compare_tcp,
)
from retinue.lab.compare_inside import Task
from retinue.lab.compare_records import Dot, Figures
from retinue.lab.compare_report import (
    PEER,
    Direction,
    Failure,
    MoveRow,
    Report,
    Settings,
    Spread,
    SystemRow,
    Trace,
)
from retinue.lab.errors import LabError

SVG = "{http://www.w3.org/2000/svg}"


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
) -> MoveRow:
    traffic = figures(**more)
    return MoveRow(
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
    )


def full(moves: list[MoveRow], **more: Any) -> Report:
    fields: dict[str, Any] = {
        "systems": [SystemRow(name, True, "so") for name in dict.fromkeys(r.system for r in moves)],
        "noise": [],
        "tcp": [],
        "failures": [],
        "traces": [],
    }
    fields |= more
    return Report(
        schema=1,
        measured_at=1.0,
        versions={"retinue": "0"},
        processors=2,
        settings=Settings(1, [500], [64]),
        moves=moves,
        summaries=compare_report.summaries(moves),
        unmet=compare_report.unmet(moves, fields["failures"]),
        **fields,
    )


def test_a_summary_has_median_least_and_most() -> None:
    moves = [row(run=n, lost=lost, gap=gap) for n, (lost, gap) in enumerate([(3, 50), (1, 90), (2, 40)], 1)]
    moves.append(row(direction="vm-to-client", lost=9, cut_off=True))
    whole, forth, back = compare_report.summaries(moves)
    assert (whole.direction, whole.pps, whole.size, whole.rows, whole.cut_off) == (None, None, None, 4, 1)
    assert whole.lost == Spread(2.5, 1, 9)
    assert (forth.direction, forth.pps, forth.size, forth.rows) == ("client-to-vm", 500, 64, 3)
    assert (forth.lost, forth.longest_gap_ms) == (Spread(2, 1, 3), Spread(50, 40, 90))
    assert forth.gap_minus_pause_ms == Spread(40, 30, 80)
    assert (back.direction, back.lost, back.cut_off) == ("vm-to-client", Spread(9, 9, 9), 1)


def test_clean_runs_as_quick_as_the_peer_leave_nothing_unmet() -> None:
    assert compare_report.unmet([row(gap=40), row(PEER, gap=40, lost=20)]) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"lost": 3}, "3 lost"),
        ({"duplicated": 2}, "2 duplicated"),
        ({"reordered": 1}, "1 reordered"),
        ({"answers_lost": 4}, "4 lost on the way back"),
    ],
)
def test_whatever_retinue_did_wrong_is_said(more: dict[str, Any], said: str) -> None:
    (text,) = compare_report.unmet([row(run=7, **more)])
    assert said in text
    assert "run 7" in text
    assert compare_report.unmet([row("learning-switch", **more)]) == []


def test_a_longer_gap_than_the_peers_median_is_said() -> None:
    peers = [row(PEER, run=n, gap=gap) for n, gap in enumerate((50, 60, 200), 1)]
    (text,) = compare_report.unmet([row(run=1, gap=55), row(run=2, gap=61), *peers])
    assert "60 ms, in 1 of 2 runs" in text
    assert compare_report.unmet([row(gap=60), *peers]) == []
    assert compare_report.unmet([row(gap=900, size=1400), *peers]) == [], "other traffic is not compared"


def test_a_run_that_failed_is_unmet_for_retinue_alone() -> None:
    failures = [Failure(name, "500/s", "it broke") for name in ("retinue", PEER)]
    (text,) = compare_report.unmet([], failures)
    assert text.startswith("retinue: 500/s")


def test_a_report_is_the_same_after_its_way_through_json() -> None:
    trace = Trace("retinue", 500, 64, 1, 10.0, [Dot(-5.0, 1.0), Dot(3.0, None)])
    report = full([row(), row("learning-switch")], traces=[trace])
    assert compare_report.decode(compare_report.encode(report)) == report
    assert b'"from": "server1"' in compare_report.encode(report)


def test_adding_replaces_what_was_measured_again() -> None:
    earlier = full([row(lost=5), row(size=1400), row(PEER, lost=7)], failures=[Failure(PEER, "run", "why")])
    later = full([row(lost=0)])
    both = compare_report.merged(earlier, later)
    assert [(r.system, r.size, r.traffic.lost) for r in both.moves] == [
        ("retinue", 1400, 0),
        (PEER, 64, 7),
        ("retinue", 64, 0),
    ]
    assert [system.name for system in both.systems] == ["retinue", PEER]
    assert (both.settings.sizes, len(both.failures)) == ([64, 1400], 1)
    assert both.summaries == compare_report.summaries(both.moves)


def test_the_table_says_all_that_matters() -> None:
    moves = [row(lost=3), row("static-port-security", lost=900, gap=1500, cut_off=True)]
    closed = SystemRow("retinue-libvirt", False, "so", "nobody has written it")
    text = compare_table.table(full(moves, systems=[closed]))
    assert "static-port-security" in text
    assert "cut off" in text
    assert "retinue-libvirt: not available: nobody has written it" in text
    assert "3 lost of 1000" in text
    assert "…" not in text
    assert "as wanted in every run" in compare_table.table(full([row()]))


def elements(svg: str, tag: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(svg).findall(f".//{SVG}{tag}")


def test_the_picture_has_a_panel_for_each_system() -> None:
    dots = [Dot(-100.0, 1.0), Dot(-5.0, None), Dot(10.0, 30.0), Dot(900.0, 1.0)]
    traces = [Trace(name, 500, 64, 1, 10.0, dots) for name in ("retinue", "a<b")]
    svg = compare_picture.drawn(traces)
    assert len(elements(svg, "circle")) == 2 * 2, "what is outside is left out"
    strokes = [
        path for path in elements(svg, "path") if path.get("stroke") == compare_picture.COLOURS["lost"]
    ]
    assert len(strokes) == 2
    assert any("a<b: 500/s" in (text.text or "") for text in elements(svg, "text"))
    xs = sorted(float(circle.get("cx", "")) for circle in elements(svg, "circle"))
    assert xs[0] == xs[1] < xs[2] == xs[3]
    heights = {float(circle.get("cy", "")) for circle in elements(svg, "circle")}
    assert len(heights) == 4, "a panel below the other, a late answer above a quick one"


def test_a_picture_of_nothing_says_so() -> None:
    assert "Nothing was measured" in compare_picture.drawn([])


def test_each_kind_of_traffic_has_a_run_without_a_move_and_they_take_turns() -> None:
    wanted = compare.Wanted(["retinue"], 2, [500], [64, 1400], tcp_runs=1)
    assert compare.tasks(wanted) == [
        *(Task("noise", 1, 500, 64), Task("noise", 1, 500, 1400)),
        *(Task("move", 1, 500, 64), Task("move", 1, 500, 1400)),
        *(Task("move", 2, 500, 64), Task("move", 2, 500, 1400)),
        *(Task("tcp", 0), Task("tcp", 1)),
    ]


def test_at_a_high_rate_each_direction_is_measured_by_itself() -> None:
    found = compare.tasks(compare.Wanted(["retinue"], 1, [2000], [64]))
    assert [(task.kind, task.directions) for task in found] == [
        (kind, (direction,)) for kind in ("noise", "move") for direction in compare_report.DIRECTIONS
    ]


def test_a_system_that_cannot_be_had_is_listed_with_its_reason(tmp_path: Path) -> None:
    output = tmp_path / "new" / "compare.json"
    said: list[str] = []
    code = compare.run(compare.Wanted(["retinue-libvirt"]), output, said.append)
    report = compare_report.decode(output.read_bytes())
    assert code == 0
    assert [(s.name, s.available, bool(s.reason)) for s in report.systems] == [
        ("retinue-libvirt", False, True)
    ]
    assert "not available" in said[0]
    assert output.with_suffix(".svg").read_text().startswith("<svg")


def test_a_missing_program_is_named_with_its_package() -> None:
    class Odd(compare_systems.System):
        name = "odd"
        how = "not at all"
        programs = {"no-such-program-anywhere": "odd-package"}

    assert "odd-package" in Odd().missing()


def test_system_names_are_unique_and_checked() -> None:
    names = [system.name for system in compare_all.SYSTEMS]
    assert len(set(names)) == len(names)
    with pytest.raises(LabError, match="learning-switch"):
        compare_all.by_name("bridge")


def test_an_older_file_that_is_no_report_is_not_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "compare.json"
    output.write_text("{}")
    with pytest.raises(LabError, match="cannot be added to"):
        compare.run(compare.Wanted(["retinue-libvirt"]), output, print, add=True)
    assert output.read_text() == "{}"


@pytest.mark.parametrize(
    "words", [["--pps", "fast"], ["--pps", "0"], ["--sizes", "9000"], ["--systems", "x"]]
)
def test_bad_options_are_refused(words: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["lab", "compare", "--output", str(tmp_path / "out"), *words])
    assert done.exit_code != 0
    assert not (tmp_path / "out").exists()


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "compare.json"
    monkeypatch.setattr(compare, "_program", lambda say: tmp_path / "steady")

    def in_a_lab(system: Any, left: Any, program: Path, found: compare.Found, say: compare.Say) -> Any:
        found.moves.append(row(system.name))
        if system.name == "learning-switch":
            raise KeyboardInterrupt
        return [], ""

    monkeypatch.setattr(compare, "_in_a_lab", in_a_lab)
    names = ["retinue", "learning-switch", "static-port-security"]
    assert compare.run(compare.Wanted(names), output, lambda text: None) == 1
    report = compare_report.decode(output.read_bytes())
    assert [(system.name, system.available) for system in report.systems] == [
        ("retinue", True),
        ("learning-switch", True),
    ]
    assert [move.system for move in report.moves] == ["retinue", "learning-switch"]


def test_a_run_that_fails_gets_the_rest_a_new_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lab's first run fails here: three are tried, then the rest is given up, and said."""
    monkeypatch.setattr(compare, "_program", lambda say: tmp_path / "steady")
    seen: list[int] = []

    def in_a_lab(system: Any, left: list[Task], *_: Any) -> tuple[list[Task], str]:
        seen.append(len(left))
        return left, "the VM has ended"

    monkeypatch.setattr(compare, "_in_a_lab", in_a_lab)
    output = tmp_path / "compare.json"
    compare.run(compare.Wanted(["retinue"], 2, [500], [64]), output, lambda text: None)
    report = compare_report.decode(output.read_bytes())
    assert seen == [3, 2, 1]
    assert [failure.what for failure in report.failures] == [
        "500/s of 64 octets, no move",
        "500/s of 64 octets, move 1",
        "500/s of 64 octets, move 2",
    ]
    assert (report.systems[0].available, report.systems[0].reason) == (False, "the VM has ended")
    assert len(report.unmet) == 3


def test_figures_of_a_bulk_stream() -> None:
    intervals = [{"sum": {"seconds": 0.5, "bytes": 2_500_000, "retransmits": n}} for n in (1, 2)]
    said = json.dumps({"intervals": intervals, "error": "interrupt - the client has terminated"})
    found = compare_tcp.result("longest 30000000\nsilent 2000000\n", said)
    assert found == compare_tcp.Stream(30.0, True, 40.0, 3)
    dead = compare_tcp.result("longest 30000000\nsilent 1500000000\n", said)
    assert (dead.longest_stall_ms, dead.survived) == (1500.0, False)
    broken = json.dumps({"intervals": intervals, "error": "unable to write to stream socket"})
    assert not compare_tcp.result("longest 1\nsilent 1\n", broken).survived


@pytest.mark.parametrize(
    ("watched", "said"),
    [("", "{}"), ("longest 1\nsilent 1\n", "no JSON"), ("longest x\n", '{"intervals": []}')],
)
def test_a_bulk_stream_that_tells_nothing_is_an_error(watched: str, said: str) -> None:
    with pytest.raises(LabError, match="cannot be read"):
        compare_tcp.result(watched, said)


def test_libraries_are_found_in_what_ldd_says() -> None:
    listed = (
        "\tlinux-vdso.so.1 (0x00007f745e248000)\n"
        "\tlibiperf.so.0 => /lib/x86_64-linux-gnu/libiperf.so.0 (0x00007f745e200000)\n"
        "\t/lib64/ld-linux-x86-64.so.2 (0x00007f745e24a000)\n"
    )
    assert compare_tcp.libraries(listed) == [
        "/lib/x86_64-linux-gnu/libiperf.so.0",
        "/lib64/ld-linux-x86-64.so.2",
    ]


def test_links_are_followed_into_the_archive(tmp_path: Path) -> None:
    (tmp_path / "library.so.1.2").write_bytes(b"code")
    (tmp_path / "library.so.1").symlink_to("library.so.1.2")
    path = str(tmp_path / "library.so.1")
    with tarfile.open(fileobj=io.BytesIO(compare_tcp.archive([path]))) as tar:
        (member,) = tar.getmembers()
        assert (member.name, member.isreg(), member.size) == (path.lstrip("/"), True, 4)


def test_what_switches_drop_is_counted_by_port() -> None:
    said = (
        "p_raw 0      0      *:up0 * skmem:(r0,rb212992,t0,tb212992,f0,w0,o640,bl0,d7)\n"
        "p_raw 0      0      *:tap-vm1 * skmem:(r0,rb212992,t0,tb212992,f0,w0,o640,bl0,d30)\n"
        "p_raw 0      0      *:up0 * skmem:(r0,rb212992,t0,tb212992,f0,w0,o640,bl0,d2)\n"
    )
    before = compare_bench.drops_of("server1", said)
    assert before == {("server1", "up0"): 9, ("server1", "tap-vm1"): 30}
    after = {("server1", "up0"): 10, ("server2", "tap-vm1"): 4}
    assert compare_bench.dropped(before, after) == 5, "a port that is gone is not counted"


def test_ovn_is_told_of_its_missing_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for system in (compare_ovn.OvnMultichassisRarp(), compare_ovn.OvnNaive()):
        assert "ovn-central" in system.missing()
        assert "ovn-host" in system.missing()


def test_the_picture_shows_the_run_in_the_middle() -> None:
    moves = [row(run=n, gap=gap) for n, gap in enumerate((90, 50, 70), 1)]
    traces = [Trace("retinue", 500, 64, n, 10.0, []) for n in (1, 2, 3)]
    traces.append(Trace("retinue", 2000, 64, 4, 10.0, []))
    (chosen,) = compare._typical(traces, moves)
    assert (chosen.pps, chosen.run) == (500, 3)

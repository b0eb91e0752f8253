"""A comparison's course: its tasks, how far it is, labs that fail, interrupts, and the command."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from retinue.cli.main import app
from retinue_lab.compare import run, tcp
from retinue_lab.compare.inside import Task
from retinue_lab.compare.labs import Work
from retinue_lab.compare.progress import LAB_SECONDS, SECONDS, Progress, duration
from retinue_lab.compare.report import summary
from retinue_lab.compare.systems.base import System
from retinue_lab.compare.systems.own import RetinueLibvirt
from retinue_lab.compare.traffic import Flow
from retinue_lab.errors import LabError
from support.compare_rows import row


@pytest.fixture(autouse=True)
def no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither guest nor traffic program is built, and libvirt is not there."""
    monkeypatch.setattr(run, "_program", lambda say: tmp_path / "steady")
    monkeypatch.setattr(RetinueLibvirt, "missing", lambda self: "libvirt is not installed")


def quiet(text: str) -> None:
    pass


def test_each_kind_of_traffic_has_a_run_without_a_move_and_they_take_turns() -> None:
    wanted = run.Plan(["retinue"], 2, [500], [64, 1400], tcp_runs=1)
    assert run.tasks(wanted) == [
        *(Task("noise", 1, 500, 64), Task("noise", 1, 500, 1400)),
        *(Task("move", 1, 500, 64), Task("move", 1, 500, 1400)),
        *(Task("move", 2, 500, 64), Task("move", 2, 500, 1400)),
        *(Task("tcp", 0), Task("tcp", 1)),
    ]


def test_a_guest_that_writes_comes_last_under_the_lightest_traffic() -> None:
    found = run.tasks(run.Plan(["retinue"], 2, [2000, 500], [1400, 64], write_mib_s=[20]))
    assert found[-2:] == [Task("move", n, 500, 64, summary.DIRECTIONS, 20) for n in (1, 2)]
    assert not any(task.write_mib_s for task in found[:-2])


def test_a_dual_vm_has_four_flows_that_share_what_the_switches_can_do() -> None:
    one, other, last = run.tasks(run.Plan(["retinue"], 1, [250, 251], [64], dual=True))[:3]
    flows = [Flow(family, nic) for nic in (1, 2) for family in ("ipv4", "ipv6")]
    assert one.flows == other.flows == flows
    assert (one.directions, other.directions) == (summary.DIRECTIONS, summary.DIRECTIONS[:1])
    assert last.directions == summary.DIRECTIONS[1:]
    assert one.text == "250/s of 64 bytes in each of 4 flows, no move"
    assert Task("move", 1, 500, 64).flows == [Flow("ipv4", 1)]


def test_who_is_not_set_up_for_a_dual_vm_is_not_measured_with_one(tmp_path: Path) -> None:
    report, _ = run.run(run.Plan(["learning-switch"], dual=True), tmp_path / "compare.json", quiet)
    assert [(s.name, s.available) for s in report.systems] == [("learning-switch", False)]
    assert "one NIC" in report.systems[0].reason


def test_at_a_high_rate_each_direction_is_measured_by_itself() -> None:
    found = run.tasks(run.Plan(["retinue"], 1, [2000], [64]))
    assert [(task.kind, task.directions) for task in found] == [
        (kind, (direction,)) for kind in ("noise", "move") for direction in summary.DIRECTIONS
    ]


def test_a_system_that_cannot_be_had_is_listed_with_its_reason(tmp_path: Path) -> None:
    output = tmp_path / "new" / "compare.json"
    said: list[str] = []
    report, complete = run.run(run.Plan(["retinue-libvirt"]), output, said.append)
    assert summary.decode(output.read_bytes()) == report
    assert complete
    assert [(s.name, s.available, bool(s.reason)) for s in report.systems] == [
        ("retinue-libvirt", False, True)
    ]
    assert "not available" in said[0]
    assert output.with_suffix(".svg").read_text().startswith("<svg")


def test_an_older_file_that_is_no_report_is_not_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "compare.json"
    output.write_text("{}")
    with pytest.raises(LabError, match="cannot be added to"):
        run.run(run.Plan(["retinue-libvirt"]), output, print, add=True)
    assert output.read_text() == "{}"


@pytest.mark.parametrize(
    "words",
    [["--pps", "fast"], ["--pps", "0"], ["--sizes", "9000"], ["--systems", "x"], ["--dual", "--tcp", "1"]],
)
def test_bad_options_are_rejected(words: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["lab", "compare", "--output", str(tmp_path / "out"), *words])
    assert done.exit_code != 0
    assert not (tmp_path / "out").exists()


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "compare.json"

    def in_a_lab(work: Work, system: System, left: Sequence[Task]) -> Any:
        work.found.moves.append(row(system.name))
        if system.name == "learning-switch":
            raise KeyboardInterrupt
        return [], ""

    monkeypatch.setattr(Work, "in_a_lab", in_a_lab)
    names = ["retinue", "learning-switch", "static-port-security"]
    report, complete = run.run(run.Plan(names), output, quiet)
    assert not complete
    assert summary.decode(output.read_bytes()) == report
    assert [(system.name, system.available) for system in report.systems] == [
        ("retinue", True),
        ("learning-switch", True),
    ]
    assert [move.system for move in report.moves] == ["retinue", "learning-switch"]


def test_a_run_that_fails_gets_the_rest_a_new_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lab's first run fails here: three are tried, then the rest is given up, and said."""
    seen: list[int] = []
    said: list[str] = []

    def in_a_lab(work: Work, system: System, left: list[Task]) -> tuple[list[Task], str]:
        seen.append(len(left))
        return left, "the VM has ended"

    monkeypatch.setattr(Work, "in_a_lab", in_a_lab)
    wanted = run.Plan(["retinue"], 4, [500], [64])
    report, _ = run.run(wanted, tmp_path / "compare.json", said.append)
    assert seen == [5, 4, 3]
    assert [failure.what for failure in report.failures] == [
        "500/s of 64 bytes, no move",
        "500/s of 64 bytes, move 1",
        "500/s of 64 bytes, move 2",
        "the last 2 runs",
    ]
    assert (report.systems[0].available, report.systems[0].reason) == (False, "the VM has ended")
    assert len(report.unmet) == 4
    assert [text.split(",")[0] for text in said if "building" in text] == ["[1/5", "[2/5", "[3/5"]


def test_without_iperf3_the_rest_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def in_a_lab(work: Work, system: System, left: list[Task]) -> tuple[list[Task], str]:
        seen.extend(task.kind for task in left)
        return [], ""

    monkeypatch.setattr(Work, "in_a_lab", in_a_lab)
    monkeypatch.setattr(tcp, "missing", lambda: "iperf3 not found")
    wanted = run.Plan(["retinue"], 1, [500], [64], tcp_runs=1)
    report, _ = run.run(wanted, tmp_path / "compare.json", quiet)
    assert seen == ["noise", "move"]
    assert [(failure.what, failure.reason) for failure in report.failures] == [("TCP", "iperf3 not found")]


# ---- how far it is ----


TASKS = [Task("noise", 1, 500, 64), Task("move", 1, 500, 64), Task("tcp", 0)]
ALL = sum(SECONDS[task.kind] for task in TASKS)


def test_progress_counts_all_systems_tasks_and_falls_to_nothing() -> None:
    progress = Progress(["one", "two"], TASKS, 100.0)
    assert progress.seconds_left(100.0) == pytest.approx(2 * (LAB_SECONDS + ALL))
    assert progress.text(100.0).startswith("[1/6, about ")
    now = 100.0
    for system in ("one", "two"):
        now += LAB_SECONDS
        progress.lab_is_up(system)
        for task in TASKS:
            now += SECONDS[task.kind]
            progress.ended(task)
    assert progress.over == progress.total == 6
    assert progress.seconds_left(now) == pytest.approx(0)


def test_the_time_left_follows_the_pace_seen() -> None:
    slow, usual = (Progress(["one"], TASKS * 10, 0.0) for _ in range(2))
    for progress in (slow, usual):
        progress.lab_is_up("one")
        progress.ended(TASKS[1])
    took = LAB_SECONDS + SECONDS["move"]
    assert usual.seconds_left(took) == pytest.approx(10 * ALL - SECONDS["move"])
    assert slow.seconds_left(3 * took) > 1.5 * usual.seconds_left(took)


def test_what_is_given_up_takes_no_time() -> None:
    progress = Progress(["one", "two"], TASKS, 0.0)
    progress.lab_is_up("one")
    progress.given_up(TASKS)
    assert progress.seconds_left(LAB_SECONDS) == pytest.approx(LAB_SECONDS + ALL)
    assert progress.text(LAB_SECONDS).startswith("[4/6, ")
    progress.lab_is_up("one")
    assert progress.seconds_left(LAB_SECONDS) == pytest.approx(LAB_SECONDS + ALL), "a further lab is no lab"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "about 10 s"), (44, "about 40 s"), (89, "about 90 s"), (200, "about 3 min")]
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---- the command ----


def in_a_lab_of(work: Work, system: System, left: list[Task]) -> tuple[list[Task], str]:
    """A lab as it says what it does, with no lab."""
    for number, task in enumerate(left):
        work._on_message(system, left, {"begins": number})
        rows = msgspec.to_builtins([row(system.name, run=task.run)])
        work._on_message(system, left, {"task": number, "move" if task.kind == "move" else "noise": rows})
    return [], ""


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Work, "in_a_lab", in_a_lab_of)


WORDS = [
    "lab",
    "compare",
    "--systems",
    "retinue,learning-switch",
    "--runs",
    "2",
    "--pps",
    "500",
    "--tcp",
    "0",
    "--writes",
    "0",
]


@pytest.mark.usefixtures("made_up")
def test_json_is_alone_on_standard_output(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*WORDS, "--json", "--output", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "out.json").read_text())
    assert "[1/12, about" in done.stderr


@pytest.mark.usefixtures("made_up")
def test_one_sees_which_task_of_how_many_is_done_and_how_long_it_takes(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*WORDS, "--output", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    begun = [line for line in lines if line.startswith("[") and "bytes" in line]
    assert [line.split(",")[0] for line in begun] == [f"[{n}/12" for n in range(1, 13)]
    assert all("left] retinue: " in line for line in begun[:6])
    assert begun[-1].endswith("learning-switch: 500/s of 1400 bytes, move 2")
    after = lines[lines.index(begun[2]) + 1]
    assert after.startswith("    to VM 0 lost, 0 twice, longest gap 40 ms")
    assert any(str(tmp_path / "out.svg") in line for line in lines)

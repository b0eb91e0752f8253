"""Which process of `pytest -n` gets which module."""

import os
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from xdist.workermanage import WorkerController

from support.turns import Kind, Turns, rank, turn

ALONE = "import pytest\n\npytestmark = [pytest.mark.lab, pytest.mark.alone]\n"
PATIENT = "pytestmark = [pytest.mark.lab, pytest.mark.patient]\n"
MODULES = {
    "tests/lab/test_counted.py": ALONE,
    "tests/lab/test_measured.py": ALONE,
    "tests/lab/test_one.py": "",
    "tests/lab/test_two.py": "",
    "tests/lab/test_five.py": "",
    "tests/lab/test_calm.py": PATIENT,
    "tests/lab/test_idle.py": PATIENT,
    "tests/lab/test_plain.py": "pytestmark = [pytest.mark.lab, pytest.mark.no_vms]\n",
    "tests/unit/test_three.py": "",
    "tests/unit/test_four.py": "",
}
TESTS = 4
"""In each module; a process is given its next module while it still has two."""
AT_REST = 0.1
"""Seconds in which one more module would have begun."""


class Process:
    """One of pytest's, as the scheduler sees it."""

    shutting_down = False

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.given: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.given += indices

    def shutdown(self) -> None:
        self.shutting_down = True


class Run:
    """Some processes, with all modules before them."""

    def __init__(self, root: Path, number: int = 2) -> None:
        for name, text in MODULES.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        option = SimpleNamespace(loadscopereorder=False)
        config: Any = SimpleNamespace(rootpath=root, option=option, getvalue=lambda name: ["popen"] * number)
        self.scheduler = Turns(config)
        self.tests = [f"{module}::test_{number}" for module in MODULES for number in range(TESTS)]
        self.processes = [Process(f"gw{one}") for one in range(number)]
        for process in self.processes:
            self.scheduler.add_node(cast(WorkerController, process))
            self.scheduler.add_node_collection(cast(WorkerController, process), self.tests)
        self.scheduler.schedule()
        self.done = [0] * number

    def modules(self, process: int) -> list[str]:
        """Those given to a process, in its order."""
        ids = [self.tests[index] for index in self.processes[process].given]
        return list(dict.fromkeys(Path(id.split("::")[0]).stem.removeprefix("test_") for id in ids))

    def complete(self, process: int, tests: int) -> None:
        one = self.processes[process]
        for _ in range(tests):
            self.scheduler.mark_test_complete(cast(WorkerController, one), one.given[self.done[process]])
            self.done[process] += 1


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, 3)


def test_beside_what_is_alone_runs_what_is_patient_and_what_needs_no_vms(run: Run) -> None:
    assert [run.modules(one) for one in range(3)] == [["counted", "measured"], ["calm"], ["plain"]]
    run.complete(2, TESTS)
    assert run.modules(2) == ["plain", "three"]
    run.complete(1, TESTS)
    assert run.modules(1) == ["calm", "idle"]
    run.complete(1, TESTS)
    assert run.modules(1) == ["calm", "idle", "four"], "what counts packets waits"


def test_labs_that_count_are_taken_up_when_all_that_is_alone_is_done(run: Run) -> None:
    run.complete(0, 2 * TESTS)
    assert run.modules(0) == ["counted", "measured", "one"]
    run.complete(1, TESTS)
    assert run.modules(1) == ["calm", "two"]


def test_a_process_that_has_nothing_else_to_do_waits_with_a_lab(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.modules(1) == ["calm"]
    run.complete(1, 5 * TESTS)
    assert run.modules(1) == ["calm", "idle", "plain", "three", "four", "one"]


def test_two_labs_run_at_once(run: Run) -> None:
    run.complete(0, 2 * TESTS)
    run.complete(1, TESTS)
    run.complete(2, TESTS)
    assert run.modules(0) == ["counted", "measured", "one"]
    assert run.modules(1) == ["calm", "two"]
    assert run.modules(2) == ["plain", "three"]
    run.complete(0, TESTS)
    assert run.modules(0) == ["counted", "measured", "one", "five"]


@pytest.mark.parametrize(
    ("kinds", "most"),
    [
        ([Kind.COUNTS] * 3, 2),
        ([Kind.COUNTS, Kind.PATIENT, Kind.PATIENT], 2),
        ([Kind.ALONE, Kind.COUNTS], 1),
        ([Kind.ALONE, Kind.PATIENT, Kind.PATIENT], 2),
    ],
)
def test_no_more_labs_run_at_once_than_may(tmp_path: Path, kinds: list[Kind], most: int) -> None:
    at_once(tmp_path, kinds, most)


@pytest.mark.parametrize("kind", [Kind.NO_VMS, Kind.COMPUTES])
def test_who_has_no_vms_waits_for_nobody(tmp_path: Path, kind: Kind) -> None:
    at_once(tmp_path, [Kind.ALONE, *[kind] * 4], 5)


def test_what_only_computes_is_nice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "setpriority", lambda which, who, nice: asked.append(nice))
    for kind in Kind:
        rank(kind)
    assert asked == [0, 0, 0, 0, 10]


def test_each_test_is_given_once(run: Run) -> None:
    while run.scheduler.has_pending:
        for process, one in enumerate(run.processes):
            run.complete(process, min(1, len(one.given) - run.done[process]))
    assert sorted(index for one in run.processes for index in one.given) == list(range(len(run.tests)))


def at_once(folder: Path, kinds: Sequence[Kind], most: int) -> None:
    """So many of such modules run at the same time, and no more; when one ends, another begins."""
    began, ended = queue.SimpleQueue[int](), [threading.Event() for _ in kinds]

    def module(number: int) -> None:
        with turn(folder, kinds[number]):
            began.put(number)
            ended[number].wait()

    threads = [threading.Thread(target=module, args=(number,)) for number in range(len(kinds))]
    for thread in threads:
        thread.start()
    running = [began.get() for _ in range(most)]
    try:
        while len(running) < len(kinds):
            with pytest.raises(queue.Empty):
                began.get(timeout=AT_REST)
            ended[running[-most]].set()
            running.append(began.get())
    finally:
        for event in ended:
            event.set()
        for thread in threads:
            thread.join()

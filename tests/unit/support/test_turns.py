"""Which process of `pytest -n` gets which module."""

import queue
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from xdist.workermanage import WorkerController

from support.turns import Turns, turn

ALONE = "import pytest\n\npytestmark = [pytest.mark.lab, pytest.mark.alone]\n"
MODULES = {
    "tests/lab/test_counted.py": ALONE,
    "tests/lab/test_measured.py": ALONE,
    "tests/lab/test_one.py": "",
    "tests/lab/test_two.py": "",
    "tests/lab/test_five.py": "",
    "tests/lab/test_plain.py": "pytestmark = [pytest.mark.lab, pytest.mark.no_vms]\n",
    "tests/unit/test_three.py": "",
    "tests/unit/test_four.py": "",
}
TESTS = 4
"""In each module; a process is given its next module while it still has two."""


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
    return Run(tmp_path)


def test_one_process_has_all_modules_that_are_alone_and_no_vms_run_beside_them(run: Run) -> None:
    assert run.modules(0) == ["counted", "measured"]
    assert run.modules(1) == ["plain"]
    run.complete(1, 2 * TESTS)
    assert run.modules(1) == ["plain", "three", "four"]


def test_labs_are_taken_up_when_all_that_is_alone_is_done(run: Run) -> None:
    run.complete(0, 2 * TESTS)
    assert run.modules(0) == ["counted", "measured", "one"]
    run.complete(1, TESTS)
    assert run.modules(1) == ["plain", "two"]


def test_a_process_that_has_nothing_else_to_do_waits_with_a_lab(run: Run) -> None:
    run.complete(1, 3 * TESTS)
    assert run.modules(1) == ["plain", "three", "four", "one"]


def test_of_the_others_two_run_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, 3)
    run.complete(0, 2 * TESTS)
    run.complete(1, TESTS)
    run.complete(2, TESTS)
    assert run.modules(0) == ["counted", "measured", "one"]
    assert run.modules(1) == ["plain", "two"]
    assert run.modules(2) == ["three", "four"]
    run.complete(0, TESTS)
    assert run.modules(0) == ["counted", "measured", "one", "five"]


def test_a_third_lab_begins_when_one_of_two_has_ended(tmp_path: Path) -> None:
    began, ended = queue.SimpleQueue[str](), [threading.Event() for _ in range(3)]

    def lab(number: int) -> None:
        with turn(tmp_path, alone=False):
            began.put(str(number))
            ended[number].wait()

    threads = [threading.Thread(target=lab, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    first = {began.get(), began.get()}
    assert began.empty()
    for number in first:
        ended[int(number)].set()
    third = began.get()
    assert {*first, third} == {"0", "1", "2"}
    ended[int(third)].set()
    for thread in threads:
        thread.join()


def test_each_test_is_given_once(run: Run) -> None:
    while run.scheduler.has_pending:
        for process, one in enumerate(run.processes):
            run.complete(process, min(1, len(one.given) - run.done[process]))
    assert sorted([*run.processes[0].given, *run.processes[1].given]) == list(range(len(run.tests)))

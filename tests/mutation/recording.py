"""Which tests run which statement and how long they take; and of a mistake, which tests are run.

What the tests of a file run is recorded once, and kept in build/mutation/recorded while neither the file nor
anything it imports changes.
"""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path, PurePath

from mutation.copies import environment
from mutation.imports import Imports
from mutation.operators import Mutant
from mutation.record import marked
from mutation.targets import BUDGET, MODULES, TESTS, path_of

RECORDER = "tests/mutation/record.py"

MAY_FAIL = 3
"""Tests that may fail without a mistake, on a busy machine: they are left out, they would prove nothing."""

LEFT_OUT = ("test_mutation.py", "test_distributions.py")
"""Test files that read the targets, and do not run them."""

NUMBERS = "tests/unit/docs/test_numbers.py"
"""Compares constants with the pages that tell them, and runs nothing."""

FIRST = 3
"""Test files that are tried on a mistake before all others: importing many takes longer than running them."""

Stages = list[dict[str, float]]
"""Of tests with the seconds that each takes; each is run if those before have noticed nothing."""


class TroubleError(Exception):
    """Nothing can be said about the tests; the message says why."""


def file_of(test: str) -> str:
    return test.partition("::")[0]


class Record:
    """Which test runs which lines, and how long each takes."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.seconds: dict[str, float] = {}
        self._cpu: dict[str, float] = {}
        self._by_line: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
        self._by_module: defaultdict[str, set[str]] = defaultdict(set)
        self._in_file: Counter[str] = Counter()
        self._weights: dict[tuple[str, str], float] = {}

    def read(self, note: Path) -> None:
        """What the tests of one file have run. Raises TroubleError when too many tests have failed."""
        found = json.loads(note.read_text())
        self.failed += found["failed"]
        if len(self.failed) > MAY_FAIL:
            raise TroubleError(f"tests fail without any mistake: {', '.join(self.failed)}")
        for name, test in found["tests"].items():
            if name in found["failed"]:
                continue
            self.seconds[name] = test["seconds"]
            self._cpu[name] = test["cpu"]
            self._in_file[file_of(name)] += 1
            for module, lines in test["lines"].items():
                self._by_module[module].add(name)
                for line in lines:
                    self._by_line[module, line].add(name)

    def tests_for(self, mutant: Mutant, first: str = "", budget: float = BUDGET) -> Stages:
        """The tests that run the statement, the likeliest to notice first: `first`, then those of the files
        that are about the module, then of others, the quickest first, as many as `budget` seconds of a
        processor allow (which are the same on a busy machine).

        Of statements of a module or class itself, which run when it is imported: all tests of those files of
        which some test runs anything of it, and those that compare numbers with the pages.
        """
        names: set[str] = set()
        if mutant.in_function:
            for line in range(mutant.first, mutant.last + 1):
                names |= self._by_line.get((mutant.module, line), set())
        if not names:
            files = {NUMBERS, *(file_of(name) for name in self._by_module[mutant.module])}
            names = {name for name in self.seconds if file_of(name) in files}
        stages = self._stages(mutant.module, names, budget)
        if first in names:
            stages.insert(0, {first: self.seconds[first]})
        return stages

    def _stages(self, module: str, names: Collection[str], budget: float) -> Stages:
        files: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for name in sorted(names):
            files[file_of(name)][name] = self.seconds[name]
        cost = {file: sum(self._cpu[name] for name in files[file]) for file in files}

        def place(file: str) -> tuple[bool, float, float]:
            return (not is_about(file, module), -self._share(module, file), cost[file])

        likely = sorted(files, key=place)[:FIRST]
        others = sorted(files.keys() - set(likely), key=lambda file: (cost[file], file))
        chosen: list[str] = []
        for file in (*likely, *others):
            if not chosen or sum(cost[one] for one in chosen) + cost[file] <= budget:
                chosen.append(file)
        stages: Stages = [{}, {}]
        for file in chosen:
            stages[file not in likely].update(files[file])
        return [stage for stage in stages if stage]

    def _share(self, module: str, file: str) -> float:
        """Of its tests, those that run anything of the module."""
        mine = sum(file_of(name) == file for name in self._by_module[module])
        return round(mine / self._in_file[file] * self._weight(module, file), 2)

    def _weight(self, module: str, file: str) -> float:
        """A file that runs little else is about it."""
        key = (module, file)
        if key not in self._weights:
            tests = [name for name in self._by_module[module] if file_of(name) == file]
            others = sum(name in found for found in self._by_module.values() for name in tests)
            self._weights[key] = len(tests) / others if others else 0.0
        return self._weights[key]


def is_about(file: str, module: str) -> bool:
    """True for a test file that mirrors the module: tests/unit/core/test_a.py for retinue.core.a."""
    *folders, name = module.split(".")[1:]
    place = PurePath(file)
    return place.parent == PurePath("tests/unit", *folders) and place.stem == f"test_{name}"


# ---- recording ----


class Notes:
    """The notes of what the test files run: which there are already, and how the others are made."""

    def __init__(self, folder: Path, imports: Imports, files: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.digests = {
            file: imports.digest([file], [*imports.conftests(file), RECORDER], " ".join(MODULES))
            for file in files
        }
        self.place = {file: folder / f"{digest}.json" for file, digest in self.digests.items()}
        for old in set(folder.iterdir()) - set(self.place.values()):
            old.unlink()

    def missing(self) -> list[str]:
        return [file for file, note in self.place.items() if not note.exists()]

    def make(self, copy: Path, files: Sequence[str], sources: dict[str, str]) -> None:
        """Run the tests in these files, without a mistake."""
        for module in MODULES:
            (copy / path_of(module)).write_text(marked(module, sources[module]))
        where = copy / "places.json"
        where.write_text(json.dumps({file: str(self.place[file]) for file in files}))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "mutation.record"]
        env = {**environment(copy), "RETINUE_RECORD": str(where)}
        done = subprocess.run([*command, *files], cwd=copy, env=env, capture_output=True, text=True)
        for module in MODULES:
            (copy / path_of(module)).write_text(sources[module])
        lost = [file for file in files if not self.place[file].exists()]
        if lost:
            raise TroubleError(f"{lost[0]} cannot be run:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")

    def read(self) -> Record:
        record = Record()
        for note in self.place.values():
            record.read(note)
            if json.loads(note.read_text())["failed"]:
                note.unlink()  # To be tried again, another time.
        return record


def test_files(root: Path) -> list[str]:
    """Those that are run, the largest first."""
    found = [
        file for folder in TESTS for file in (root / folder).rglob("test_*.py") if file.name not in LEFT_OUT
    ]
    return [str(file.relative_to(root)) for file in sorted(found, key=lambda file: -file.stat().st_size)]


def dealt(files: Sequence[str], count: int) -> list[list[str]]:
    return [list(files[number::count]) for number in range(count)]

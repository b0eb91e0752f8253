"""Samples the mistakes, tries them on copies of the project, and prints those that no test has noticed."""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

from mutation.operators import Mutant, mutants, plain
from mutation.record import marked
from mutation.targets import JOBS, MODULES, PER_LINE, PER_MODULE, ROOT, SEED, TESTS, WANTED, path_of

HERE = Path(__file__).parent
LAST = ROOT / "build" / "mutation.json"
COPIED = ("src", "tests", "docs", "deploy", "pyproject.toml", "README.md", "Makefile", "CHANGELOG.md")


MAY_FAIL = 3
"""Tests that may fail without a mistake, on a busy machine: they are left out, they would prove nothing."""


FIRST = 3
"""Test files that are tried on a mistake before all others: importing many takes longer than running them."""


class TroubleError(Exception):
    """Nothing can be said about the tests; the message says why."""


@dataclass(frozen=True)
class Known:
    """A mistake that nobody can notice, and why."""

    module: str
    scope: str
    old: str
    new: str
    why: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.module, self.scope, plain(self.old), plain(self.new))


# ---- which mistakes ----


def source_of(module: str) -> str:
    return (ROOT / path_of(module)).read_text()


def sample(
    module: str, found: Sequence[Mutant], count: int, seed: int, per_line: int = PER_LINE
) -> list[Mutant]:
    """So many of them, always the same, and not many in one line."""
    order = list(found)
    random.Random(f"{seed} {module}").shuffle(order)
    chosen: list[Mutant] = []
    by_line: defaultdict[int, int] = defaultdict(int)
    for mutant in order:
        if len(chosen) == count:
            break
        if by_line[mutant.line] < per_line and mutant.compiles():
            by_line[mutant.line] += 1
            chosen.append(mutant)
    return sorted(chosen, key=lambda mutant: mutant.line)


def holes() -> list[Mutant]:
    """The mistakes of holes.toml. Raises TroubleError for one whose code is not there any more."""
    made: list[Mutant] = []
    for hole in tomllib.loads((HERE / "holes.toml").read_text())["hole"]:
        source = source_of(hole["module"])
        if source.count(hole["old"]) != 1:
            times = source.count(hole["old"])
            raise TroubleError(f"holes.toml, {hole['what']!r}: its code occurs {times} times, not once")
        begin = source.index(hole["old"])
        line = source.count("\n", 0, begin + len(hole["old"]) - len(hole["old"].lstrip())) + 1
        last = source.count("\n", 0, begin + len(hole["old"].rstrip())) + 1
        text = source.replace(hole["old"], hole["new"])
        old, new = plain(hole["old"]), plain(hole["new"])
        inside = source.splitlines()[line - 1].startswith(" ")
        made.append(Mutant(hole["module"], hole["what"], inside, line, last, line, text, old, new))
    return made


def known() -> list[Known]:
    return [Known(**entry) for entry in tomllib.loads((HERE / "equivalent.toml").read_text())["equivalent"]]


# ---- which tests ----


class Record:
    """Which test runs which lines, and how long each takes."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.seconds: dict[str, float] = {}
        self._by_line: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
        self._by_module: defaultdict[str, set[str]] = defaultdict(set)
        self._in_file: Counter[str] = Counter()
        self._weights: dict[tuple[str, str], float] = {}

    def read(self, file: Path) -> None:
        found = json.loads(file.read_text())
        self.failed += found["failed"]
        if len(self.failed) > MAY_FAIL:
            raise TroubleError(f"tests fail without any mistake: {', '.join(self.failed)}")
        for name, test in found["tests"].items():
            if name in self.failed:
                continue
            self.seconds[name] = test["seconds"]
            for module, lines in test["lines"].items():
                self._by_module[module].add(name)
                for line in lines:
                    self._by_line[module, line].add(name)

    def tests_for(self, mutant: Mutant) -> list[dict[str, float]]:
        """The tests that run the statement, the likeliest to notice first, in two stages.

        Of statements of a module or class itself, which run when it is imported: all tests of those files of
        which some test runs anything of it.
        """
        names: set[str] = set()
        if mutant.in_function:
            for line in range(mutant.first, mutant.last + 1):
                names |= self._by_line.get((mutant.module, line), set())
        if not names:
            files = {_file_of(name) for name in self._by_module[mutant.module]}
            names = {name for name in self.seconds if _file_of(name) in files}
        return self._stages(mutant.module, names)

    def _stages(self, module: str, names: Collection[str]) -> list[dict[str, float]]:
        """First the files that are about the module: most of their tests run it, and little else."""
        files: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for name in sorted(names):
            files[_file_of(name)][name] = self.seconds[name]
        order = sorted(files, key=lambda file: (-self._share(module, file), sum(files[file].values())))
        stages: list[dict[str, float]] = [{}, {}]
        for number, file in enumerate(order):
            stages[number >= FIRST].update(files[file])
        return [stage for stage in stages if stage]

    def _share(self, module: str, file: str) -> float:
        if not self._in_file:
            self._in_file.update(map(_file_of, self.seconds))
        mine = sum(_file_of(name) == file for name in self._by_module[module])
        return round(mine / self._in_file[file] * self._weight(module, file), 2)

    def _weight(self, module: str, file: str) -> float:
        """A file that runs little else is about it."""
        key = (module, file)
        if key not in self._weights:
            tests = [name for name in self._by_module[module] if _file_of(name) == file]
            others = sum(name in found for found in self._by_module.values() for name in tests)
            self._weights[key] = len(tests) / others if others else 0.0
        return self._weights[key]


def _file_of(test: str) -> str:
    return test.partition("::")[0]


# ---- copies of the project ----


def make_copy(folder: Path) -> Path:
    folder.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis", "*.egg-info")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    return folder


def environment(copy: Path) -> dict[str, str]:
    """For programs that run in a copy. What is compiled is kept: all that come after need it, too."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": f"{copy / 'src'}:{copy / 'tests'}"}


def record(copy: Path, files: Sequence[str]) -> Path:
    """Run the tests in these files, without a mistake; returns the note of what they run."""
    note = copy / "record.json"
    for module in MODULES:
        (copy / path_of(module)).write_text(marked(module, source_of(module)))
    env = {**environment(copy), "RETINUE_RECORD": str(note)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "mutation.record"]
    done = subprocess.run([*command, *files], cwd=copy, env=env, capture_output=True, text=True)
    if not note.exists():
        raise TroubleError(f"the tests cannot be run:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    for module in MODULES:
        (copy / path_of(module)).write_text(source_of(module))
    return note


def shares(copy: Path, count: int) -> list[list[str]]:
    """The test files, dealt out by size."""
    files = [
        file
        for folder in TESTS
        for file in (copy / folder).rglob("test_*.py")
        if file.name != "test_mutation.py"  # It reads the targets, and does not run them.
    ]
    dealt: list[list[str]] = [[] for _ in range(count)]
    for number, file in enumerate(sorted(files, key=lambda file: -file.stat().st_size)):
        dealt[number % count].append(str(file.relative_to(copy)))
    return dealt


# ---- trying ----


class Trial:
    """Tries mistakes on several copies at once."""

    def __init__(self, jobs: int, folder: Path) -> None:
        self._copies = [make_copy(folder / f"copy{number}") for number in range(jobs)]
        self._errors: list[BaseException] = []
        self.record = Record()

    def prepare(self) -> None:
        """Run all tests once; on every copy some, and then import the rest there."""
        notes: dict[int, Path] = {}
        dealt = shares(self._copies[0], len(self._copies))

        def work(number: int) -> None:
            copy = self._copies[number]
            notes[number] = record(copy, dealt[number])
            command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
            subprocess.run([*command, *TESTS], cwd=copy, env=environment(copy), capture_output=True)
            forget_compiled(copy)

        self._in_parallel(work)
        for note in notes.values():
            self.record.read(note)

    def run(self, found: Iterable[Mutant]) -> dict[Mutant, str]:
        """By mistake, the test that has noticed it, or ""."""
        waiting: Queue[Mutant] = Queue()
        for mutant in found:
            waiting.put(mutant)
        verdicts: dict[Mutant, str] = {}
        total = waiting.qsize()

        def work(number: int) -> None:
            copy = self._copies[number]
            command = [sys.executable, "-m", "mutation.worker", str(copy)]
            with subprocess.Popen(
                command, env=environment(copy), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as worker:
                assert worker.stdin is not None and worker.stdout is not None
                while True:
                    try:
                        mutant = waiting.get_nowait()
                    except Empty:
                        break
                    tests = self.record.tests_for(mutant)
                    if not tests:
                        verdicts[mutant] = ""
                        continue
                    job = {"path": path_of(mutant.module), "text": mutant.text, "stages": tests}
                    worker.stdin.write(json.dumps(job) + "\n")
                    worker.stdin.flush()
                    answer = worker.stdout.readline()
                    if not answer:
                        raise TroubleError("a worker has ended; its words are above")
                    verdicts[mutant] = json.loads(answer)["killed_by"]
                    if not verdicts[mutant]:
                        print(show(mutant), flush=True)
                    if len(verdicts) % 25 == 0:
                        print(f"  {len(verdicts)} of {total}", flush=True)
                worker.stdin.close()

        self._in_parallel(work)
        return verdicts

    def _in_parallel(self, work: Callable[[int], None]) -> None:
        def guarded(number: int) -> None:
            try:
                work(number)
            except BaseException as error:
                self._errors.append(error)

        threads = [threading.Thread(target=guarded, args=(n,)) for n in range(len(self._copies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]


def forget_compiled(copy: Path) -> None:
    """The rest is compiled once for all mistakes; of what they are made in nothing compiled may be found."""
    for module in MODULES:
        file = copy / path_of(module)
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            compiled.unlink()


# ---- the report ----


def show(mutant: Mutant) -> str:
    return f"{path_of(mutant.module)}:{mutant.line}  {mutant.scope}\n    - {mutant.old}\n    + {mutant.new}"


def report(verdicts: dict[Mutant, str], tested: Sequence[Mutant], regressions: Sequence[Mutant]) -> bool:
    """Print it; True when the tests are as good as they should be."""
    by_module: defaultdict[str, list[Mutant]] = defaultdict(list)
    for mutant in tested:
        by_module[mutant.module].append(mutant)
    for module, made in by_module.items():
        noticed = sum(bool(verdicts[mutant]) for mutant in made)
        print(f"{noticed:5} of {len(made):3}  {module}")
    alive = [mutant for mutant in tested if not verdicts[mutant]]
    if alive:
        print("\nNoticed by no test:\n")
        for mutant in alive:
            print(show(mutant))
    again = [mutant for mutant in regressions if not verdicts[mutant]]
    if again:
        print("\nOf holes.toml, noticed by no test any more:\n")
        for mutant in again:
            print(show(mutant))
    slow = sum(name.endswith("(takes too long)") for name in verdicts.values())
    good = not again
    if regressions:
        print(f"\n{len(regressions) - len(again)} of {len(regressions)} mistakes of holes.toml are noticed.")
    if tested:
        rate = 1 - len(alive) / len(tested)
        good = good and rate >= WANTED
        print(
            f"{len(tested) - len(alive)} of {len(tested)} mistakes are noticed, {rate:.1%} "
            f"(wanted: {WANTED:.0%}); {slow} of all because a test took too long."
        )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutate", description=__doc__)
    parser.add_argument("--module", action="append", choices=MODULES, help="only this one")
    parser.add_argument("--per-module", type=int, default=PER_MODULE, help="mistakes in each module")
    parser.add_argument("--all", action="store_true", help="all mistakes instead of a sample: takes hours")
    parser.add_argument("--holes", action="store_true", help="only those of holes.toml")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--json", type=Path, default=LAST, help="where all verdicts are written")
    parser.add_argument("--again", action="store_true", help="only those that no test noticed the last time")
    wanted = parser.parse_args()
    began = time.monotonic()
    modules = wanted.module or list(MODULES)
    possible = {module: mutants(module, source_of(module)) for module in MODULES}
    equivalent = known()
    there = {mutant.key for found in possible.values() for mutant in found}
    for entry in equivalent:
        if entry.key not in there:
            print(f"equivalent.toml: not to be found any more: {entry.scope}: {entry.new}", file=sys.stderr)
    skipped = {entry.key for entry in equivalent}
    chosen: list[Mutant] = []
    for module in modules:
        found = possible[module]
        count, per_line = (len(found), len(found)) if wanted.all else (wanted.per_module, PER_LINE)
        chosen += sample(module, found, count, wanted.seed, per_line)
    regressions = [mutant for mutant in holes() if mutant.module in modules]
    if not all(mutant.compiles() for mutant in regressions):
        raise TroubleError("holes.toml: the code of an entry does not compile")
    tested = [] if wanted.holes else [mutant for mutant in chosen if mutant.key not in skipped]
    if wanted.again:
        lived = {tuple(row["key"]) for row in json.loads(wanted.json.read_text()) if not row["by"]}
        tested = [mutant for mutant in tested if mutant.key in lived]
        regressions = [mutant for mutant in regressions if mutant.key in lived]
    print(
        f"{sum(map(len, possible.values()))} mistakes are possible; {len(tested)} are tried, "
        f"{len(chosen) - len(tested)} known to be no mistakes are not; and {len(regressions)} of holes.toml"
    )
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        trial = Trial(wanted.jobs, Path(folder))
        trial.prepare()
        print(f"which test runs what is known after {time.monotonic() - began:.0f} s", flush=True)
        for name in trial.record.failed:
            print(f"left out, for it fails without any mistake: {name}")
        verdicts = trial.run([*regressions, *tested])
    good = report(verdicts, tested, regressions)
    print(f"{time.monotonic() - began:.0f} s")
    wanted.json.parent.mkdir(exist_ok=True)
    wanted.json.write_text(
        json.dumps([{"key": m.key, "line": m.line, "by": by} for m, by in verdicts.items()])
    )
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TroubleError as error:
        sys.exit(f"mutation: {error}")

"""Samples the mistakes, tries them on copies of the project, and prints those that no test has noticed."""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

from mutation.copies import environment, forget_compiled, is_compiled, make_copy
from mutation.imports import Imports
from mutation.operators import Mutant, mutants, plain
from mutation.recording import Notes, Record, Stages, TroubleError, dealt, test_files
from mutation.targets import (
    BUDGET,
    BUILD,
    JOBS,
    MODULES,
    OF_HOLES,
    PER_LINE,
    PER_MODULE,
    ROOT,
    SEED,
    WANTED,
    path_of,
)
from mutation.verdicts import TOO_LONG, Verdicts

HERE = Path(__file__).parent


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


# ---- trying ----


class Trial:
    """Tries mistakes on several copies at once."""

    def __init__(self, jobs: int, folder: Path, sources: dict[str, str]) -> None:
        self._sources = sources
        self._copies = [make_copy(folder / f"copy{number}") for number in range(jobs)]
        self._errors: list[BaseException] = []
        copy = self._copies[0]
        self._files = test_files(copy)
        self._notes = Notes(BUILD / "recorded", Imports(copy), self._files)
        self.verdicts = Verdicts(BUILD / "verdicts.jsonl", self._notes.digests)
        self.record = Record()

    def prepare(self) -> None:
        """Run the tests of which it is not known what they run; then have all compiled on every copy."""
        missing = self._notes.missing()
        print(f"{len(missing)} of {len(self._files)} test files have to be run", flush=True)
        shares = dealt(missing, len(self._copies))

        def work(number: int) -> None:
            copy = self._copies[number]
            if shares[number]:
                self._notes.make(copy, shares[number], self._sources)
            fresh = [file for file in self._files if not is_compiled(copy, file)]
            if fresh:
                command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
                subprocess.run([*command, *fresh], cwd=copy, env=environment(copy), capture_output=True)
            forget_compiled(copy, MODULES)

        self._in_parallel(work)
        self.record = self._notes.read()

    def run(self, found: Mapping[Mutant, float], *, fresh: bool) -> dict[Mutant, str]:
        """By mistake, the test that has noticed it, or "". `found` has the budget of each."""
        batches: defaultdict[str, list[tuple[Mutant, Stages]]] = defaultdict(list)
        verdicts: dict[Mutant, str] = {}
        for mutant, budget in found.items():
            last = self.verdicts.last(mutant)
            stages = self.record.tests_for(mutant, (last or "").removesuffix(TOO_LONG), budget)
            if not stages:
                verdicts[mutant] = ""
            elif last is not None and not fresh and self.verdicts.holds(mutant, stages):
                verdicts[mutant] = last
            else:
                batches[mutant.module].append((mutant, stages))
        waiting: Queue[list[tuple[Mutant, Stages]]] = Queue()
        for batch in batches.values():
            waiting.put(batch)
        print(f"{len(verdicts)} of {len(found)} are known from before", flush=True)

        def work(number: int) -> None:
            copy = self._copies[number]
            command = [sys.executable, "-m", "mutation.worker", str(copy)]
            with subprocess.Popen(
                command, env=environment(copy), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as worker:
                assert worker.stdin is not None and worker.stdout is not None
                while True:
                    try:
                        batch = waiting.get_nowait()
                    except Empty:
                        break
                    mistakes = [{"text": mutant.text, "stages": stages} for mutant, stages in batch]
                    job = {"path": path_of(batch[0][0].module), "mistakes": mistakes}
                    worker.stdin.write(json.dumps(job) + "\n")
                    worker.stdin.flush()
                    for _ in batch:
                        answer = worker.stdout.readline()
                        if not answer:
                            raise TroubleError("a worker has ended; its words are above")
                        verdict = json.loads(answer)
                        mutant, stages = batch[verdict["number"]]
                        verdicts[mutant] = by = verdict["killed_by"]
                        self.verdicts.add(mutant, by, stages)
                        if not by:
                            print(show(mutant), flush=True)
                        if len(verdicts) % 25 == 0:
                            print(f"  {len(verdicts)} of {len(found)}", flush=True)
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
    slow = sum(name.endswith(TOO_LONG) for name in verdicts.values())
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
    parser.add_argument("--again", action="store_true", help="only those that no test noticed the last time")
    parser.add_argument(
        "--fresh", action="store_true", help="also those of which the verdict is known and holds"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET,
        metavar="SECONDS",
        help="of tests on each mistake, at the most",
    )
    wanted = parser.parse_args()
    began = time.monotonic()
    modules = wanted.module or list(MODULES)
    sources = {module: source_of(module) for module in MODULES}
    possible = {module: mutants(module, source) for module, source in sources.items()}
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
    print(
        f"{sum(map(len, possible.values()))} mistakes are possible; {len(tested)} are tried, "
        f"{len(chosen) - len(tested)} known to be no mistakes are not; and {len(regressions)} of holes.toml"
    )
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        trial = Trial(wanted.jobs, Path(folder), sources)
        if wanted.again:
            tested = [mutant for mutant in tested if trial.verdicts.last(mutant) == ""]
            regressions = [mutant for mutant in regressions if trial.verdicts.last(mutant) == ""]
        trial.prepare()
        print(f"which test runs what is known after {time.monotonic() - began:.0f} s", flush=True)
        for name in trial.record.failed:
            print(f"left out, for it fails without any mistake: {name}")
        budgets = dict.fromkeys(regressions, OF_HOLES) | dict.fromkeys(tested, wanted.budget)
        verdicts = trial.run(budgets, fresh=wanted.fresh)
    good = report(verdicts, tested, regressions)
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # So that the copies are removed, too.
    try:
        sys.exit(main())
    except TroubleError as error:
        sys.exit(f"mutation: {error}")

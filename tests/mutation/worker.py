"""Makes mistakes in its own copy of the project, and runs the tests that would notice.

    python -m mutation.worker COPY    a job a line on standard input, verdicts a line each on standard output

A job is {"path", "mistakes": [{"text", "stages": [{test: seconds}, ...]}, ...]}: mistakes in one file, and of
each the tests to run if those before have noticed nothing. A verdict is {"number": of the mistake in its job,
"killed_by": name}, with "" for a mistake that no test has noticed.

What everybody imports is imported once. Mistakes inside functions are tried in processes forked from one that
has imported what their likeliest tests need (see patching); whatever is not noticed so, in a process each,
which imports the changed file.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NoReturn

import pytest
from _pytest.main import pytest_runtestloop

from mutation import patching

IMPORTED_ONCE = (
    "aiohttp", "aiohttp.web", "cryptography.x509", "hypothesis", "hypothesis.strategies", "msgspec",
    "prometheus_client", "pytest_asyncio", "qemu.qmp", "rich.console", "rich.table", "structlog", "typer",
    "typer.testing",
)  # fmt: skip
FACTOR, FLOOR = 10.0, 15.0
"""A test may take this many times as long as without the mistake, and so many seconds more."""
MEMORY = 4 << 30
"""Bytes; a mistake may make something grow without end."""
ALL_FACTOR, ALL_FLOOR = 5.0, 60.0
"""The same for all tests of a stage together: a mistake may make each of them wait for something in vain."""
NOTICED, TOO_LONG = 1, 99


class Chosen:
    """Runs these tests and no others: the quicker files first, each file's in their own order."""

    def __init__(self, tests: dict[str, float], noticed_by: int) -> None:
        self._tests, self._noticed_by = tests, noticed_by
        self.files: dict[str, float] = {}
        for name, seconds in tests.items():
            file = name.partition("::")[0]
            self.files[file] = self.files.get(file, 0.3) + seconds

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if item.nodeid in self._tests]
        items[:] = sorted(chosen, key=lambda item: self.files[item.nodeid.partition("::")[0]])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        def too_long(signum: int, frame: FrameType | None) -> NoReturn:
            self._note(f"{item.nodeid} (takes too long)")
            os._exit(TOO_LONG)

        signal.signal(signal.SIGALRM, too_long)
        signal.setitimer(signal.ITIMER_REAL, FACTOR * self._tests[item.nodeid] + FLOOR)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._note(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._note(f"{report.nodeid} (cannot be imported)")

    def _note(self, name: str) -> None:
        os.write(self._noticed_by, f"{name}\n".encode())


OPTIONS = ("-q", "-x", "-p", "no:cacheprovider", "-p", "mutation.record", "--no-header", "--tb=no")


def run_tests(tests: dict[str, float], noticed_by: int) -> int:
    chosen = Chosen(tests, noticed_by)
    files = sorted(chosen.files, key=lambda name: chosen.files[name])
    return int(pytest.main([*OPTIONS, *files], plugins=[chosen]))


@dataclass(frozen=True, slots=True)
class Patch:
    """A mistake inside functions of a file, and its likeliest tests."""

    number: int
    code: dict[patching.Place, CodeType]
    tests: dict[str, float]


class Patched:
    """Of pytest: when the tests of all these mistakes are collected, each is tried in a process of its own.
    Tells, a line each, which test has noticed which.
    """

    def __init__(self, file: Path, patches: list[Patch], told: int) -> None:
        self._file, self._patches, self._told = file, patches, told

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        functions = patching.functions_of(str(self._file))
        for patch in self._patches:
            if patch.code.keys() <= functions.keys() and patch.tests.keys() <= items.keys():

                def work(noticed_by: int, patch: Patch = patch) -> int:
                    patching.put_in(patch.code, functions)
                    return _run_collected(session, patch.tests, noticed_by)

                if by := noticed(patch.tests, work):
                    line = json.dumps({"number": patch.number, "killed_by": by})
                    os.write(self._told, f"{line}\n".encode())
        return True


def _run_collected(session: pytest.Session, tests: dict[str, float], noticed_by: int) -> int:
    chosen = Chosen(tests, noticed_by)
    chosen.pytest_collection_modifyitems(session.items)
    session.config.pluginmanager.register(chosen)
    with contextlib.suppress(session.Failed, session.Interrupted):
        pytest_runtestloop(session)
    return NOTICED if session.testsfailed else 0


def judge(copy: Path, job: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """By mistake, the test that notices it; "" if none does."""
    file = copy / job["path"]
    before = file.read_text()
    mistakes = dict(enumerate(job["mistakes"]))
    patches = [
        Patch(number, code, mistake["stages"][0])
        for number, mistake in mistakes.items()
        if (code := patching.exchanged(before, mistake["text"])) is not None
    ]
    for number, by in judge_patched(file, patches):
        del mistakes[number]
        yield number, by
    for number, mistake in mistakes.items():
        file.write_text(mistake["text"])
        try:
            yield number, next(filter(None, map(judge_alone, mistake["stages"])), "")
        finally:
            file.write_text(before)


def judge_patched(file: Path, patches: list[Patch]) -> list[tuple[int, str]]:
    """Those that are noticed."""
    if not patches:
        return []
    tests = {name: seconds for patch in patches for name, seconds in patch.tests.items()}
    files = sorted({name.partition("::")[0] for name in tests})

    def work(told: int) -> int:
        return int(pytest.main([*OPTIONS, *files], plugins=[Patched(file, patches, told)]))

    limit = sum(_limit(patch.tests) for patch in patches) + ALL_FLOOR
    lines, _ = in_a_child(limit, work)
    verdicts = map(json.loads, lines)
    return [(verdict["number"], verdict["killed_by"]) for verdict in verdicts]


def judge_alone(tests: dict[str, float]) -> str:
    return noticed(tests, lambda noticed_by: run_tests(tests, noticed_by))


def noticed(tests: dict[str, float], work: Callable[[int], int]) -> str:
    """The first of these tests that fails; "" if none does."""
    names, code = in_a_child(_limit(tests), work)
    if code == pytest.ExitCode.OK:
        return ""
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise RuntimeError(f"none of the tests was found: {list(tests)[:5]}")
    if names:
        return names[0]
    killed = code == -signal.SIGKILL
    return f"{next(iter(tests))} (takes too long)" if killed else f"(pytest ended with {code})"


def _limit(tests: dict[str, float]) -> float:
    return ALL_FACTOR * sum(tests.values()) + ALL_FLOOR


def in_a_child(seconds: float, work: Callable[[int], int]) -> tuple[list[str], int]:
    """Run `work` in a process of its own group; the lines that it has written to the file it is given, and
    its exit code. After so many seconds it is killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            os.close(reading)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            nowhere = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nowhere, number)
            code = work(writing)
        finally:
            os._exit(code)
    os.close(writing)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    limit = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    limit.start()
    _, status = os.waitpid(child, 0)
    limit.cancel()
    limit.join()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # What its tests have left behind.
    with os.fdopen(reading, "rb") as told:
        return told.read().decode().splitlines(), os.waitstatus_to_exitcode(status)


def main(copy: Path, jobs: Iterable[str]) -> None:
    sys.dont_write_bytecode = True  # Else a mistake of the same size and second would be taken for the last.
    os.chdir(copy)
    for name in IMPORTED_ONCE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in jobs:
        for number, by in judge(copy, json.loads(line)):
            print(json.dumps({"number": number, "killed_by": by}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin)

"""Makes mistakes in its own copy of the project, and runs the tests that would notice.

    python -m mutation.worker COPY    a job a line on standard input, a verdict a line on standard output

A job is {"path", "text", "stages": [{test: seconds}, ...]}, of which each is run if those before have noticed
nothing; a verdict {"killed_by": name}, with "" for a mistake that
no test has noticed. What everybody imports is imported once, and each mistake is tried in a process forked
from here.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Generator, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest

IMPORTED_ONCE = (
    "aiohttp", "aiohttp.web", "cryptography.x509", "hypothesis", "hypothesis.strategies", "msgspec",
    "prometheus_client", "pytest_asyncio", "qemu.qmp", "rich.console", "rich.table", "structlog", "typer",
    "typer.testing",
)  # fmt: skip
FACTOR, FLOOR = 10.0, 15.0
"""A test may take this many times as long as without the mistake, and so many seconds more."""
MEMORY = 4 << 30
"""Bytes; a mistake may make something grow without end."""
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


def run_tests(tests: dict[str, float], noticed_by: int) -> NoReturn:
    """In a process of its own group; ends it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    chosen = Chosen(tests, noticed_by)
    files = sorted(chosen.files, key=lambda name: chosen.files[name])
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "mutation.record", "--no-header", "--tb=no"]
    code = pytest.main([*options, *files], plugins=[chosen])
    os._exit(int(code))


def judge(copy: Path, job: dict[str, Any]) -> str:
    """The test that notices the mistake; "" if none does."""
    file = copy / job["path"]
    before = file.read_text()
    file.write_text(job["text"])
    try:
        return next((found for tests in job["stages"] if (found := in_a_child(tests))), "")
    finally:
        file.write_text(before)


def in_a_child(tests: dict[str, float]) -> str:
    """The first of these tests that fails; "" if none does."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reading)
        run_tests(tests, writing)
    os.close(writing)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # What its tests have left behind.
    with os.fdopen(reading, "rb") as told:
        names = told.read().decode().splitlines()
    code = os.waitstatus_to_exitcode(status)
    if code == pytest.ExitCode.OK:
        return ""
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise RuntimeError(f"none of the tests was found: {list(tests)[:5]}")
    return names[0] if names else f"(pytest ended with {code})"


def main(copy: Path, jobs: Iterable[str]) -> None:
    sys.dont_write_bytecode = True  # Else a mistake of the same size and second would be taken for the last.
    os.chdir(copy)
    for name in IMPORTED_ONCE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in jobs:
        print(json.dumps({"killed_by": judge(copy, json.loads(line))}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin)

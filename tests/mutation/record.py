"""Which test runs which statement of the targets: `marked` makes them tell, a pytest plugin writes it down.

Statements of functions only: those of a module itself run when it is imported, before any test.
RETINUE_RECORD names a file that says, as JSON, where the note of each test file goes. Without it the plugin
does no more than have hypothesis try the same examples every time, and stop at the first that fails.
"""

import ast
import builtins
import json
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "mutation",
    derandomize=True,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile("mutation")

_HEAD = 'import builtins as _builtins\n_ran = getattr(_builtins, "retinue_ran", lambda place: None)\n'


def marked(module: str, source: str) -> str:
    """The module, with a call before each statement of a function that tells its line."""
    tree = ast.parse(source)
    blocks: dict[int, list[ast.stmt]] = {}
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]:
        for node in ast.walk(function):
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list) and not isinstance(node, ast.ClassDef):
                    blocks[id(block)] = block
    for block in blocks.values():
        block[:] = [part for statement in block for part in (_mark(module, statement.lineno), statement)]
    tree.body[1:1] = ast.parse(_HEAD).body
    return ast.unparse(ast.fix_missing_locations(tree))


def _mark(module: str, line: int) -> ast.stmt:
    return ast.parse(f"_ran(({module!r}, {line}))").body[0]


class Recorder:
    """Writes a note for each test file when its last test has ended, so that no more than one is lost."""

    def __init__(self, places: dict[str, str]) -> None:
        self._places = places
        self._ran: set[tuple[str, int]] = set()
        # At once: conftest.py, which is read before pytest_configure, imports targets.
        builtins.retinue_ran = self._ran.add  # type: ignore[attr-defined]
        self._tests: dict[str, dict[str, Any]] = {}
        self._failed: set[str] = set()
        self._not_read: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        self._ran.clear()
        began, cpu = time.perf_counter(), time.process_time()
        try:
            return (yield)
        finally:
            lines: dict[str, list[int]] = {}
            for module, number in sorted(self._ran):
                lines.setdefault(module, []).append(number)
            self._tests[item.nodeid] = {
                "seconds": time.perf_counter() - began,
                "cpu": time.process_time() - cpu,
                "lines": lines,
            }
            file = _file_of(item.nodeid)
            if nextitem is None or _file_of(nextitem.nodeid) != file:
                self._write(file)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._not_read.add(_file_of(report.nodeid))

    def pytest_sessionfinish(self) -> None:
        """Files without tests have a note, too."""
        for file in set(self._places) - self._not_read:
            self._write(file)

    def _write(self, file: str) -> None:
        place = self._places.pop(file)
        tests = {name: test for name, test in self._tests.items() if _file_of(name) == file}
        found = {"tests": tests, "failed": sorted(self._failed & tests.keys())}
        Path(f"{place}.new").write_text(json.dumps(found))
        Path(f"{place}.new").rename(place)
        self._tests.clear()


def _file_of(test: str) -> str:
    return test.partition("::")[0]


_places = os.environ.get("RETINUE_RECORD")
_recorder = None if _places is None else Recorder(json.loads(Path(_places).read_text()))


def pytest_configure(config: pytest.Config) -> None:
    if _recorder is not None:
        config.pluginmanager.register(_recorder)

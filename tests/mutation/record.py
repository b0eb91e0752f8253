"""Which test runs which statement of the targets: `marked` makes them tell, a pytest plugin writes it down.

Statements of functions only: those of a module itself run when it is imported, before any test. The note is
written, as JSON, to the file that RETINUE_RECORD names. Without it the plugin does no more than have
hypothesis try the same examples every time, and stop at the first that fails.
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
    def __init__(self) -> None:
        self._ran: set[tuple[str, int]] = set()
        # At once: conftest.py, which is read before pytest_configure, imports targets.
        builtins.retinue_ran = self._ran.add  # type: ignore[attr-defined]
        self.tests: dict[str, dict[str, Any]] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._ran.clear()
        began = time.perf_counter()
        try:
            return (yield)
        finally:
            lines: dict[str, list[int]] = {}
            for module, number in sorted(self._ran):
                lines.setdefault(module, []).append(number)
            self.tests[item.nodeid] = {"seconds": time.perf_counter() - began, "lines": lines}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        found = {"tests": self.tests, "failed": sorted(self.failed)}
        Path(os.environ["RETINUE_RECORD"]).write_text(json.dumps(found))


_recorder = Recorder() if "RETINUE_RECORD" in os.environ else None


def pytest_configure(config: pytest.Config) -> None:
    if _recorder is not None:
        config.pluginmanager.register(_recorder)

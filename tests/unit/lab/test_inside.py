"""Work inside a lab is heard as it goes, and ended when whoever hears it fails."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from retinue_lab.sandbox.inside import last_lines, work_inside


class FakeLab:
    """Runs a script where the module would run."""

    def __init__(self, directory: Path, script: str) -> None:
        self.directory = directory
        self.script = script
        self.started: list[tuple[str, list[str]]] = []
        self.process: subprocess.Popen[Any] | None = None

    def popen(self, node: str, argv: Sequence[str], **popen: Any) -> "subprocess.Popen[Any]":
        self.started.append((node, list(argv)))
        self.process = subprocess.Popen(["sh", "-c", self.script], **popen)
        return self.process


def test_what_the_work_says_is_heard_and_what_it_writes_besides_is_kept(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path, """echo '{"say": "begun"}'; echo one >&2; echo two >&2; echo '{"report": 1}'""")
    log = tmp_path / "tmp" / "work.log"
    with work_inside(lab, "retinue_lab.demo.inside", ["all"], log) as said:
        assert list(said) == [{"say": "begun"}, {"report": 1}]
    words = ["-P", "-m", "retinue_lab.demo.inside", str(tmp_path), "all"]
    assert lab.started == [("sandbox", ["env", f"TMPDIR={log.parent}", sys.executable, *words])]
    assert last_lines(log, 5) == ["one", "two"]
    assert last_lines(log, 1) == ["two"]


def test_who_leaves_early_waits_for_its_end(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path, """echo '{"report": 1}'; exit 3""")
    with work_inside(lab, "m", [], tmp_path / "tmp" / "work.log") as said:
        assert next(said) == {"report": 1}
    assert lab.process is not None and lab.process.returncode == 3


@pytest.mark.parametrize("line", ["no JSON", '{"error": "no bridge"}'])
def test_an_error_of_who_hears_it_ends_it(tmp_path: Path, line: str) -> None:
    lab = FakeLab(tmp_path, f"echo '{line}'; exec sleep 60")
    with (
        pytest.raises((ValueError, RuntimeError)),
        work_inside(lab, "m", [], tmp_path / "tmp" / "work.log") as said,
    ):
        raise RuntimeError(next(said)["error"])
    assert lab.process is not None and lab.process.returncode == -15

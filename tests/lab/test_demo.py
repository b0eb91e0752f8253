"""The demonstration whole, on real parts: its figures, and that nothing of it stays, however it ends."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue.lab import demo, demo_report
from retinue.lab.errors import LabError

pytestmark = pytest.mark.lab

COMMAND = [sys.executable, "-m", "retinue.cli.main", "lab", "demo"]


@pytest.fixture
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Labs and temporary files in folders of their own, in which nothing may be left; nor on the host."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with tempfile.TemporaryDirectory(prefix="labs-") as folder:  # short: paths of sockets are in it
        monkeypatch.setenv("RETINUE_LAB_DIR", folder)
        monkeypatch.setenv("TMPDIR", str(temporary))
        before = host()
        yield
        assert list(Path(folder).iterdir()) == []
        assert list(temporary.iterdir()) == []
        assert host() == before


def host() -> dict[str, object]:
    links = subprocess.run(["ip", "-json", "link"], capture_output=True, check=True, text=True).stdout
    return {
        "links": [link["ifname"] for link in json.loads(links)],
        "mounts": Path("/proc/self/mounts").read_text(),
    }


def test_the_demonstration_shows_what_it_promises(labs: None, tmp_path: Path) -> None:
    said: list[str] = []
    output = tmp_path / "build" / "demo.json"
    code = demo.run(output, False, said.append)
    report = demo_report.decode(output.read_bytes())
    assert demo_report.unmet(report) == [], demo_report.table(report)
    assert code == 0
    assert [(move.source, move.target) for move in report.moves] == [
        ("server1", "server2"),
        ("server2", "server3"),
    ]
    for move in report.moves:
        assert move.traffic.pps == 1000
        assert move.traffic.sent > 2000
        assert move.traffic.sent == move.traffic.received + move.traffic.lost
        assert 0 < move.guest_pause_ms < move.total_ms
        assert move.flow_mods > 0
        assert move.packet_ins == 0
        assert [row["switch"] for row in move.bindings_before] != [move.switch]
    assert report.control.traffic.received > 900
    assert all(report.versions.values())
    assert any("binding table" in text for text in said)


@pytest.mark.parametrize(
    ("at", "number"),
    [("  7 switches", signal.SIGTERM), ("Starting", signal.SIGINT), ("Moving", signal.SIGTERM)],
)
def test_interrupted_it_leaves_nothing(labs: None, at: str, number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # Where these tests run in the background of a shell, SIGINT is ignored, and would be in what they start.
    command = ["env", "--default-signal=INT", *COMMAND]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(at):
                break
        process.send_signal(number)
        assert process.wait(30) != 0


def test_a_failure_inside_is_told_and_leaves_nothing(labs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "INSIDE", "retinue.lab.nowhere")
    with pytest.raises(LabError, match=r"broke off:(?s:.*)No module named retinue.lab.nowhere"):
        demo.run(None, False, lambda text: None)

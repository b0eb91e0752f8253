"""Nothing of the demonstration stays, also where it is interrupted or fails."""

import os
import signal
import subprocess
import sys

import pytest

from retinue_lab.demo import run
from retinue_lab.errors import LabError
from support.lab.tools import long

pytestmark = [pytest.mark.lab, pytest.mark.patient]

COMMAND = [sys.executable, "-m", "retinue.cli.main", "lab", "demo"]


@pytest.mark.parametrize(
    ("at", "number"),
    [
        long("  7 switches", signal.SIGTERM),
        long("Starting", signal.SIGINT),
        ("Moving", signal.SIGTERM),
    ],
)
def test_interrupted_it_leaves_nothing(traceless: None, at: str, number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # Where these tests run in the background of a shell, SIGINT is ignored, and would be in what they start.
    command = ["env", "--default-signal=INT", *COMMAND]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(at):
                break
        process.send_signal(number)
        assert process.wait(120) != 0


def test_a_failure_inside_is_told_and_leaves_nothing(
    traceless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "INSIDE", "retinue_lab.nowhere")
    with pytest.raises(LabError, match=r"broke off:(?s:.*)No module named retinue_lab.nowhere"):
        run.run(None, False, lambda text: None)

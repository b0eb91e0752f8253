"""The agent as a program: one in its folder at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from retinue.agent.main import only_one
from retinue.host.errors import HostError

HOLDS = "import sys, time; from pathlib import Path; from retinue.agent.main import only_one\n" + (
    "with only_one(Path(sys.argv[1])): print('has it', flush=True); time.sleep(600)"
)


def test_a_second_agent_does_not_take_what_the_first_has_opened(tmp_path: Path) -> None:
    with (
        only_one(tmp_path),
        pytest.raises(HostError, match="is another agent's, which runs"),
        only_one(tmp_path),
    ):
        pass
    with only_one(tmp_path):
        pass


def test_one_that_was_killed_keeps_nobody_out(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdout.readline() == b"has it\n"
    with pytest.raises(HostError), only_one(tmp_path):
        pass
    first.kill()
    first.wait()
    first.stdout.close()
    with only_one(tmp_path):
        pass

"""What `make chaos` draws, prints and writes; its trials themselves need a laboratory."""

import json
import random
from pathlib import Path

import pytest

from chaos.__main__ import LATEST, NAMES, PATTERNS, SERVERS, STATES, Plan, Trial, line, main, save, summary
from chaos.faults import FAULTS
from retinue.core.migration import MigrationState


def test_the_same_seed_draws_the_same_trials_and_in_time_each_fault() -> None:
    first, second = random.Random(7), random.Random(7)
    plans = [Plan.drawn(first, FAULTS) for _ in range(500)]
    assert plans == [Plan.drawn(second, FAULTS) for _ in range(500)]
    assert {plan.fault for plan in plans} == set(FAULTS)
    assert {plan.pattern for plan in plans} == set(PATTERNS)
    assert {plan.vm for plan in plans} == set(NAMES)
    assert {plan.state for plan in plans} == set(STATES) <= {str(state) for state in MigrationState}
    for plan in plans:
        assert plan.target("server1") in set(SERVERS) - {"server1"}
        assert 0 <= plan.delay <= LATEST


def test_each_fault_has_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_a_violation_is_told_below_its_trial_and_counted(tmp_path: Path) -> None:
    well = Trial(1, "kill controller", "one", "copying", "copying", "done", lost=0, seconds=9.0)
    ill = Trial(2, "kill controller", "cancel", "planned", "undone", "undone", ["vm1 runs at []"], lost=7)
    assert line(well) == ("   1  kill controller in copying, one: done; 0 lost, 0 doubled, 0 reordered; 9 s")
    assert line(ill).splitlines()[1] == "      ! vm1 runs at []"
    assert "in undone (not planned)" in line(ill)
    assert summary([well, ill]).splitlines()[1].split() == ["kill", "controller", "2", "1", "3.5", "7"]
    save(tmp_path / "build" / "chaos.json", 7, [well, ill])
    written = json.loads((tmp_path / "build" / "chaos.json").read_text())
    assert (written["schema"], written["seed"]) == (1, 7)
    assert [trial["violations"] for trial in written["trials"]] == [[], ["vm1 runs at []"]]


def test_a_fault_that_is_not_there_is_told_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--fault", "earthquake"]) == 2
    assert "kill controller" in capsys.readouterr().err

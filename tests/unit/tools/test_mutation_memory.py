"""The mutation tool: which tests are run on a mistake, and what is still known after a change."""

import json
from pathlib import Path

import pytest

from mutation.imports import Imports
from mutation.operators import Mutant
from mutation.recording import Notes, Record, TroubleError, is_about
from mutation.verdicts import TOO_LONG, Verdicts

MODULE = "retinue.core.model.network"
MIRROR, OTHER, THIRD, FOURTH = (
    "tests/unit/core/model/test_network.py",
    "tests/unit/core/test_other.py",
    "tests/unit/core/test_third.py",
    "tests/property/test_fourth.py",
)


def at(line: int, *, in_function: bool = True) -> Mutant:
    return Mutant(MODULE, "f", in_function, line, line, line, "text", f"old {line}", f"new {line}")


def noted(
    folder: Path,
    tests: dict[str, tuple[float, list[int]]],
    failed: list[str] | None = None,
    busy: float = 1.0,
) -> Record:
    """A record of tests: each with its seconds, and the lines of the module that it runs. On a `busy`
    machine they took so many times as long by the clock.
    """
    record = Record()
    rows = {
        name: {"seconds": s * busy, "cpu": s, "lines": {MODULE: lines} if lines else {}}
        for name, (s, lines) in tests.items()
    }
    note = folder / "note.json"
    note.write_text(json.dumps({"tests": rows, "failed": failed or []}))
    record.read(note)
    return record


def test_the_file_that_mirrors_a_module_is_about_it() -> None:
    assert is_about(MIRROR, MODULE)
    assert not is_about("tests/unit/core/test_network.py", MODULE)
    assert not is_about("tests/unit/core/model/test_networks.py", MODULE)


def test_the_tests_that_run_the_line_are_run_and_those_about_the_module_first(tmp_path: Path) -> None:
    tests = {
        f"{OTHER}::a": (1.0, [3]),
        f"{OTHER}::b": (1.0, [4]),
        f"{MIRROR}::a": (2.0, [3, 4]),
        f"{MIRROR}::b": (2.0, []),
        f"{THIRD}::a": (3.0, [3]),
        f"{FOURTH}::a": (4.0, [3]),
    }
    record = noted(tmp_path, tests)
    first, second = record.tests_for(at(3), budget=100.0)
    assert next(iter(first)) == f"{MIRROR}::a"
    assert {**first, **second} == {name: tests[name][0] for name in tests if 3 in tests[name][1]}
    assert len(first) == 3
    assert record.tests_for(at(4), budget=100.0) == [{f"{MIRROR}::a": 2.0, f"{OTHER}::b": 1.0}]


def test_more_than_the_budget_is_not_run_but_for_the_likeliest_file(tmp_path: Path) -> None:
    tests = {f"{MIRROR}::a": (9.0, [3]), f"{OTHER}::a": (5.0, [3]), f"{THIRD}::a": (1.0, [3])}
    record = noted(tmp_path, tests)
    assert record.tests_for(at(3), budget=10.0) == [{f"{MIRROR}::a": 9.0, f"{THIRD}::a": 1.0}]
    assert record.tests_for(at(3), budget=1.0) == [{f"{MIRROR}::a": 9.0}]
    slowed = noted(tmp_path, tests, busy=7.0)
    assert slowed.tests_for(at(3), budget=10.0) == [{f"{MIRROR}::a": 63.0, f"{THIRD}::a": 7.0}]


def test_of_files_about_other_things_the_quickest_come_first(tmp_path: Path) -> None:
    others = [f"tests/unit/core/test_{letter}.py::a" for letter in "abcde"]
    tests = {name: (float(9 - number), [3]) for number, name in enumerate(others)}
    record = noted(tmp_path, tests)
    likely, rest = record.tests_for(at(3), budget=100.0)
    assert sorted(likely) == sorted(others[2:])  # all alike, but for their costs
    assert sorted(rest) == others[:2]
    assert record.tests_for(at(3), budget=27.0) == [likely, {others[1]: 8.0}]


def test_the_test_that_had_noticed_comes_before_all_others_while_it_runs_the_line(tmp_path: Path) -> None:
    record = noted(tmp_path, {f"{MIRROR}::a": (1.0, [3]), f"{OTHER}::a": (1.0, [3, 4])})
    assert record.tests_for(at(3), f"{OTHER}::a")[0] == {f"{OTHER}::a": 1.0}
    assert record.tests_for(at(3), f"{OTHER}::gone") == record.tests_for(at(3))


def test_of_what_runs_at_import_all_tests_of_files_that_run_anything_of_the_module(tmp_path: Path) -> None:
    record = noted(
        tmp_path, {f"{MIRROR}::a": (1.0, [3]), f"{MIRROR}::b": (1.0, []), f"{OTHER}::a": (1.0, [])}
    )
    assert record.tests_for(at(1, in_function=False)) == [{f"{MIRROR}::a": 1.0, f"{MIRROR}::b": 1.0}]


def test_a_test_that_fails_by_itself_proves_nothing_and_many_end_the_run(tmp_path: Path) -> None:
    names = [f"{MIRROR}::{letter}" for letter in "abcd"]
    tests = {name: (1.0, [3]) for name in names}
    assert noted(tmp_path, tests, names[:3]).tests_for(at(3)) == [{names[3]: 1.0}]
    with pytest.raises(TroubleError, match=r"tests fail without any mistake: .*::d"):
        noted(tmp_path, tests, names)


# ---- what a change concerns ----


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        place = root / (name.replace("__", "/") + ".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return root


FILES = {
    "src__retinue__a": "from retinue import b\n",
    "src__retinue__b": "import asyncio\n",
    "src__retinue__c": "x = 1\n",
    "tests__support__help": "import retinue.a\n",
    "tests__unit__test_one": "def test_it():\n    from support.help import x\n",
    "tests__unit__conftest": "y = 1\n",
    "tests__conftest": "from retinue import c\n",
}
ONE = "tests/unit/test_one.py"


def test_a_file_rests_on_all_it_imports_directly_or_not(tmp_path: Path) -> None:
    imports = Imports(tree(tmp_path, **FILES))
    assert imports.all_of(ONE) == ["src/retinue/a.py", "src/retinue/b.py", "tests/support/help.py", ONE]
    assert imports.conftests(ONE) == ["tests/unit/conftest.py", "tests/conftest.py"]


@pytest.mark.parametrize(
    ("changed", "concerned"),
    [
        ("src__retinue__b", True),
        ("tests__support__help", True),
        ("tests__unit__test_one", True),
        ("tests__conftest", True),
        ("src__retinue__c", False),
    ],
)
def test_only_what_a_change_concerns_is_recorded_again(tmp_path: Path, changed: str, concerned: bool) -> None:
    root = tree(tmp_path / "root", **FILES, tests__mutation__record="")
    folder = tmp_path / "notes"
    notes = Notes(folder, Imports(root), [ONE])
    assert notes.missing() == [ONE]
    notes.place[ONE].write_text("{}")
    assert Notes(folder, Imports(root), [ONE]).missing() == []
    tree(root, **{changed: FILES[changed] + "z = 2\n"})
    assert bool(Notes(folder, Imports(root), [ONE]).missing()) == concerned
    assert len(list(folder.iterdir())) == (not concerned)  # the old note is of no use to anybody


def test_a_verdict_holds_while_what_it_rests_on_is_the_same(tmp_path: Path) -> None:
    file, stages = tmp_path / "verdicts.jsonl", [{f"{MIRROR}::a": 1.0, f"{OTHER}::a": 1.0}]
    before = Verdicts(file, {MIRROR: "1", OTHER: "x"})
    assert before.last(at(3)) is None and not before.holds(at(3), stages)
    before.add(at(3), f"{OTHER}::a", stages)
    before.add(at(4), "", stages)
    before.add(at(5), f"{MIRROR}::a{TOO_LONG}", stages)

    same = Verdicts(file, {MIRROR: "1", OTHER: "x"})
    assert [same.last(at(line)) for line in (3, 4, 5)] == [f"{OTHER}::a", "", f"{MIRROR}::a{TOO_LONG}"]
    assert all(same.holds(at(line), stages) for line in (3, 4, 5))
    assert not same.holds(at(4), [{f"{MIRROR}::a": 1.0}])

    changed = Verdicts(file, {MIRROR: "2", OTHER: "x"})
    assert [changed.holds(at(line), stages) for line in (3, 4, 5)] == [True, False, False]


def test_the_last_verdict_counts(tmp_path: Path) -> None:
    file, stages = tmp_path / "verdicts.jsonl", [{f"{MIRROR}::a": 1.0}]
    verdicts = Verdicts(file, {MIRROR: "1"})
    for by in ("", f"{MIRROR}::a"):
        verdicts.add(at(3), by, stages)
    assert verdicts.last(at(3)) == Verdicts(file, {}).last(at(3)) == f"{MIRROR}::a"
    assert len(file.read_text().splitlines()) == 1

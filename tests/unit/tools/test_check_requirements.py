"""The check of docs/requirements.md finds each mistake, and tells it so that it can be mended."""

from pathlib import Path

import pytest

from tools.check_requirements import IDS, PAGE, check, main

TESTS = """
async def test_it() -> None: ...
def test_other() -> None: ...
def helper() -> None: ...
class TestGroup:
    def test_inside(self) -> None: ...
"""
IT = "tests/unit/test_some.py::test_it"


def page(**changed: str) -> str:
    """A page with a row for each id, those not changed shown by one test; `changed` may hold two rows."""
    rows = [changed.get(id.replace(".", "_"), row(id)) for id in IDS]
    return "\n".join(
        ["| id | requirement | shown by | state |", "|---|---|---|---|", *filter(None, rows), ""]
    )


def row(id: str, by: str = f"`{IT}`", state: str = "shown", requirement: str = "It works.") -> str:
    return f"| {id} | {requirement} | {by} | {state} |"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    (tmp_path / "tests" / "unit" / "test_some.py").write_text(TESTS)
    return tmp_path


def told(root: Path, text: str) -> list[str]:
    (root / PAGE).write_text(text)
    return check(root)


def test_a_whole_page_is_well(root: Path) -> None:
    assert len(IDS) == len(set(IDS)) == 140
    text = page(
        A1=row("A1", f"`{IT}[a-1]`, `tests/unit/test_some.py::TestGroup::test_inside`"),
        A2=row("A2", f"`{IT}`; missing: the rest", "partly"),
        B1=row("B1", "-", "not yet"),
        S5_24=row("S5.24", "Nobody has such a machine to try it on.", "out of scope"),
    )
    assert told(root, text) == []
    assert main([str(root)]) == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (page(C3=""), "C3 is missing"),
        (page(S2_10=""), "S2.10 is missing"),
        (page(C3=row("C3") + "\n" + row("C3")), "C3 stands there 2 times (lines 22, 23)"),
        (page() + 2 * f"{row('issue 1')}\n", "issue 1 has the same row 2 times (lines 143, 144): keep one"),
        (page(A1=row("A1") + "\n" + row("A11")), "A11 is no requirement that this check knows"),
        (page(A1="| A1 | It works. | shown |"), "A1 has 3 columns, not these four: id |"),
        (page(A1=row("A1", requirement="")), "A1 says in no sentence what is required"),
        (page(A1=row("A1", state="done")), "A1: state is 'done', not one of shown, partly"),
        (page(A1=row("A1", "it is plain to see")), "A1 is shown, but by no test"),
        (page(A1=row("A1", "missing: much", "partly")), "A1 is partly, but by no test"),
        (page(A1=row("A1", state="partly")), "A1 is shown partly, but not what is left"),
        (page(A1=row("A1", state="not yet")), "A1 is not yet, but names a test"),
        (page(A1=row("A1", "-", "out of scope")), "A1 is out of scope without a reason"),
    ],
)
def test_a_mistake_on_the_page_is_told(root: Path, text: str, sentence: str) -> None:
    assert any(sentence in said for said in told(root, text)), told(root, text)


@pytest.mark.parametrize(
    ("test", "sentence"),
    [
        ("tests/unit/test_some.py", "names a file, not a test"),
        ("tests/unit/test_some.py::test_its", "has no test test_its: was it renamed to test_it?"),
        ("tests/unit/test_some.py::helper", "has no test helper"),
        ("tests/unit/test_some.py::test_inside", "has no test test_inside"),
        (
            "tests/lab/test_gone.py::test_zero",
            "no file tests/lab/test_gone.py, and no test test_zero anywhere",
        ),
        (
            "tests/lab/test_gone.py::test_it",
            "test_gone.py has no test test_it: it is in tests/unit/test_some.py",
        ),
    ],
)
def test_a_test_that_does_not_exist_is_told_with_the_line(root: Path, test: str, sentence: str) -> None:
    (said,) = told(root, page(A2=row("A2", f"`{IT}`, `{test}`")))
    assert said.startswith("docs/requirements.md:4: A2: ")
    assert sentence in said


def test_every_mistake_is_told_and_the_exit_code_says_so(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / PAGE).write_text(page(A1="", B2=row("B2", "`tests/test_none.py::test_none`")))
    assert main([str(root)]) == 1
    assert [line.split(": ")[1][:2] for line in capsys.readouterr().err.splitlines()] == ["A1", "B2"]


def test_a_page_that_is_not_there_is_told(root: Path) -> None:
    (said,) = check(root)
    assert said.startswith("docs/requirements.md is missing: ")

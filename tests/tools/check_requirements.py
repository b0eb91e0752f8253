"""Check docs/requirements.md: every requirement stands there once, and every test it names exists.

    python tests/tools/check_requirements.py [ROOT]

Run by `make check`; ROOT is the repository, and this one if it is left out. Every mistake is told in a line
of its own on standard error, and the exit code is then 1. Nothing is imported or run: tests are found by
parsing their files, so the check takes a second, and needs neither root nor a laboratory.
"""

import ast
import difflib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = Path("docs/requirements.md")
STATES = ("shown", "partly", "not yet", "out of scope")
COLUMNS = ("id", "requirement", "shown by", "state")
IDS = (
    *(f"{group}{n}" for group, last in zip("ABCDEFG", (10, 7, 9, 9, 11, 6, 8), strict=True)
      for n in range(1, last + 1)),
    *(f"S{document}.{n}" for document, last in enumerate((10, 15, 16, 15, 24), 1)
      for n in range(1, last + 1)),
)  # fmt: skip
"""What the page must hold: the requirements by group, then the details of the five documents."""

_ID = re.compile(r"[A-Z]\d+(\.\d+)?")
_TEST = re.compile(r"`(tests/[^`]*)`")
_MISSING = re.compile(r"\bmissing: \S")


@dataclass(frozen=True)
class Row:
    line: int
    id: str
    requirement: str
    shown_by: str
    state: str

    @property
    def tests(self) -> list[str]:
        return _TEST.findall(self.shown_by)

    def __str__(self) -> str:
        return f"{PAGE}:{self.line}: {self.id}"


def check(root: Path) -> list[str]:
    """What is wrong with the page of this repository, a sentence each; none when all is well."""
    page = root / PAGE
    if not page.is_file():
        return [f"{PAGE} is missing: write a row for each of the {len(IDS)} requirements"]
    rows, wrong = read(page.read_text(encoding="utf-8"))
    wrong += complete(rows)
    wrong += repeated(page.read_text(encoding="utf-8"))
    for row in rows:
        wrong += consistent(row)
        wrong += [f"{row}: {told}" for test in row.tests if (told := absent(root, test))]
    return wrong


def read(text: str) -> tuple[list[Row], list[str]]:
    """The rows of tables that begin with an id, and what is wrong with those that cannot be read."""
    rows, wrong = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|"):
            continue
        cells = [
            cell.strip() for cell in re.split(r"(?<!\\)\|", line.rstrip().removeprefix("|").removesuffix("|"))
        ]
        if not _ID.fullmatch(cells[0]):
            continue
        if len(cells) == len(COLUMNS):
            rows.append(Row(number, *cells))
        else:
            wanted = " | ".join(COLUMNS)
            wrong.append(f"{PAGE}:{number}: {cells[0]} has {len(cells)} columns, not these four: {wanted}")
    return rows, wrong


def complete(rows: list[Row]) -> Iterator[str]:
    """Ids that are missing, stand there twice, or are none."""
    found = Counter(row.id for row in rows)
    for id in IDS:
        if not found[id]:
            yield f"{PAGE}: {id} is missing: add its row, with state `not yet` if no test shows it"
        elif found[id] > 1:
            lines = ", ".join(str(row.line) for row in rows if row.id == id)
            yield f"{PAGE}: {id} stands there {found[id]} times (lines {lines}): keep one row"
    for row in rows:
        if row.id not in IDS:
            yield f"{row} is no requirement that this check knows: mend the id, or add it to IDS"


def repeated(text: str) -> Iterator[str]:
    """What others have found wrong, under tables of its own, that a merge has left there twice."""
    found: dict[tuple[str, ...], list[int]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        first = tuple(cell.strip() for cell in line.split("|")[1:3])
        if line.startswith("|") and not _ID.fullmatch(first[0]) and " " in first[-1]:
            found.setdefault(first, []).append(number)
    for (id, *_), numbers in found.items():
        if len(numbers) > 1:
            lines = ", ".join(map(str, numbers))
            yield f"{PAGE}: {id} has the same row {len(numbers)} times (lines {lines}): keep one"


def consistent(row: Row) -> Iterator[str]:
    """State and evidence must fit: a test for what is shown, and in words what is not."""
    if row.state not in STATES:
        yield f"{row}: state is {row.state!r}, not one of {', '.join(STATES)}"
    if not row.requirement:
        yield f"{row} says in no sentence what is required"
    if row.state in ("shown", "partly") and not row.tests:
        yield f"{row} is {row.state}, but by no test: name one, or say `not yet`"
    if row.state == "partly" and not _MISSING.search(row.shown_by):
        yield f"{row} is shown partly, but not what is left: end the cell with `missing: ...`"
    if row.state in ("not yet", "out of scope") and row.tests:
        yield f"{row} is {row.state}, but names a test: say `partly`, or take the test out"
    if row.state == "out of scope" and len(row.shown_by) < 10:
        yield f"{row} is out of scope without a reason: give it in the column `shown by`"


def absent(root: Path, test: str) -> str:
    """Why there is no such test, with the place to look at; "" when there is one. `[...]` is left out."""
    file, *names = test.split("[", 1)[0].split("::")
    if not names:
        return f"{file} names a file, not a test: write {file}::test_..."
    wanted = "::".join(names)
    if wanted in tests_of(root / file):
        return ""
    locations = [str(path.relative_to(root)) for path in test_files(root) if wanted in tests_of(path)]
    if locations:
        return f"{file} has no test {wanted}: it is in {' and '.join(locations)}"
    if not (root / file).is_file():
        return f"there is no file {file}, and no test {wanted} anywhere in tests/"
    near = difflib.get_close_matches(wanted, tests_of(root / file), n=1)
    return f"{file} has no test {wanted}" + (f": was it renamed to {near[0]}?" if near else "")


@cache
def test_files(root: Path) -> list[Path]:
    return sorted((root / "tests").rglob("test_*.py"))


@cache
def tests_of(path: Path) -> frozenset[str]:
    """The names of a file's tests, those of a class as `Class::test`; none when there is no such file."""
    if not path.is_file():
        return frozenset()
    body = ast.parse(path.read_bytes(), str(path)).body
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    methods = {f"{node.name}::{name}" for node in classes for name in _functions(node.body)}
    return frozenset(methods | _functions(body))


def _functions(body: list[ast.stmt]) -> set[str]:
    named = (node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {name for name in named if name.startswith("test")}


def main(argv: list[str]) -> int:
    wrong = check(Path(argv[0]) if argv else Path(__file__).resolve().parents[2])
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

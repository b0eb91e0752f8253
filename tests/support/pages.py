"""The pages of the documentation as tests read them: tables by their columns, code, links, commands."""

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")),
)
"""Every page, by its path from the repository's root."""

Row = dict[str, str]


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands under a heading (its words, without #), up to the next of the same or a higher level."""
    # In a block # begins a comment: there spaces stand for it here.
    prose = re.sub(r"^```.*?^```", lambda b: " " * len(b[0]), text(page), flags=re.DOTALL | re.MULTILINE)
    found = re.search(rf"^(#+) {re.escape(heading)}$", prose, re.MULTILINE)
    assert found, f"{page} has no heading {heading!r}"
    end = re.search(rf"^#{{1,{len(found[1])}}} ", prose[found.end() :], re.MULTILINE)
    return text(page)[found.end() :][: end.start() if end else None]


def tables(markdown: str) -> list[list[Row]]:
    """Its tables, each a list of rows by column heading; a heading that is empty is called "" there."""
    found: list[list[Row]] = []
    for block in re.findall(r"(?:^\|.*\|\n)+", markdown + "\n", re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in _cells(line)] for line in block.splitlines())
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def _cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line.strip()[1:-1])


def table(page: str, heading: str, number: int = 0) -> list[Row]:
    found = tables(section(page, heading))
    assert len(found) > number, f"{page}, {heading}: there is no table {number}"
    return found[number]


def row_by_key(rows: list[Row]) -> dict[str, Row]:
    """Rows of a table of configuration keys, by key; a row may be about several keys of one table."""
    found: dict[str, Row] = {}
    for row in rows:
        names = ticked(row["key"])
        group = names[0].rpartition(".")[0]
        found |= {name if "." in name or not group else f"{group}.{name}": row for name in names}
    return found


def ticked(markdown: str) -> list[str]:
    """What stands in backticks, in order; fenced blocks are left out."""
    return re.findall(
        r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    )


def fenced(markdown: str, language: str | None = None) -> list[str]:
    """The fenced blocks, of one language if it is named."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE)
    return [body for tongue, body in found if language is None or tongue == language]


def indented(markdown: str) -> list[str]:
    """The blocks that are code by four spaces."""
    return re.findall(r"(?:^    .*\n?)+", markdown, re.MULTILINE)


def anchors(page: str) -> list[str]:
    """The names by which a page's headings can be linked to."""
    return anchors_in(text(page))


def anchors_in(markdown: str) -> list[str]:
    """As the usual Markdown renderers make them: two headings that are alike have one name here."""
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.*)$", re.sub(r"\]\([^)]*\)", "]", prose), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads]


def targets_in(markdown: str) -> list[str]:
    """Where its links lead that do not leave the docs, as they are written."""
    return [to for to in re.findall(r"\]\(([^)\s]+)\)", markdown) if not re.match(r"[a-z]+:", to)]


def links(page: str) -> list[tuple[str, str]]:
    """Links of a page to pages and files of ours: target (from the root) and anchor ("": none)."""
    found = []
    for target in targets_in(text(page)):
        path, _, anchor = target.partition("#")
        absolute = (ROOT / page).parent / path if path else ROOT / page
        found.append((str(absolute.resolve().relative_to(ROOT)), anchor))
    return found

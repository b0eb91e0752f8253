"""The source of the site: every page of ours and every page that is made, with links that hold there."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from posixpath import dirname, normpath, relpath

from docsite import commands, configuration, rest
from retinue.protocol.openapi import description
from support.pages import PAGES, ROOT, text

NAMES = {"README.md": "readme.md", "CHANGELOG.md": "changelog.md"}
"""Pages outside docs/ by their names in the site."""

MADE: dict[str, Callable[[], str]] = {
    "commands.md": commands.page,
    "rest.md": rest.page,
    "rest-types.md": rest.types_page,
    "configuration.md": configuration.page,
}
"""Pages that are made of what the code knows."""

OPENAPI = "openapi.json"
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")


def staged(page: str) -> str:
    """A page's path in the site, by that from the repository's root."""
    return NAMES.get(page) or page.removeprefix("docs/")


def site() -> dict[str, str]:
    """Every page of the site, by its path there."""
    ours = {staged(page): rewritten(page, text(page)) for page in PAGES}
    return ours | {name: make() for name, make in MADE.items()}


def write(folder: Path) -> None:
    for name, page in site().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(page, encoding="utf-8")
    (folder / OPENAPI).write_text(json.dumps(description(), indent=1, ensure_ascii=False), encoding="utf-8")


def rewritten(page: str, markdown: str) -> str:
    """With links that lead to the same pages from where it stands in the site. A file that is no page is not
    in the site: of a link to it the words are left.
    """

    def link(found: re.Match[str]) -> str:
        words, target = found.groups()
        path, hash, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return found[0]
        to = normpath(f"{dirname(page)}/{path}" if dirname(page) else path)
        if to not in PAGES:
            assert (ROOT / to).exists(), f"{page} links to {target}, which is not there"
            return str(words)
        return f"[{words}]({relpath(staged(to), dirname(staged(page)) or '.')}{hash}{anchor})"

    pieces = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        piece if piece.startswith("```") else with_borders(indented(LINK.sub(link, piece)))
        for piece in pieces
    )


def with_borders(markdown: str) -> str:
    """With tables whose code has no backslash before a border: Python-Markdown takes none in code for one."""
    return re.sub(
        r"^\|.*\|$",
        lambda row: re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), row[0]),
        markdown,
        flags=re.MULTILINE,
    )


def indented(markdown: str) -> str:
    """With what belongs to an item of a list where Python-Markdown looks for it: behind four spaces, and an
    empty line behind an item of several paragraphs. Pages have as many spaces as the item's mark is wide,
    which is what others want.
    """
    lines: list[str] = []
    width, parts = 0, False
    for line in markdown.splitlines(keepends=True):
        if (mark := re.match(r"(?:[*-]|\d+\.) +", line)) is not None:
            if parts and lines[-1].strip():
                lines.append("\n")
            width, parts = len(mark[0]), False
        elif width and line.startswith(" " * width):
            parts = parts or not lines[-1].strip()
            line = " " * 4 + line[width:]
        elif line.strip():
            width, parts = 0, False
        lines.append(line)
    return "".join(lines)

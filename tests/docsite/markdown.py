"""Text and tables written as Markdown, so that what the code says is shown as it stands there."""

import re
from collections.abc import Iterable, Sequence

SPECIAL = re.compile(r"([\\*_\[\]#])")


def prose(text: str) -> str:
    """Text in which nothing but backticks has a meaning."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return _escaped(text).replace("`", r"\`")
    return "`".join(part if i % 2 else _escaped(part) for i, part in enumerate(pieces))


def _escaped(text: str) -> str:
    return SPECIAL.sub(r"\\\1", text).replace("<", "&lt;").replace(">", "&gt;")


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def cell(text: str) -> str:
    """Markdown for a cell of a table: in one line, without a border of its own; in code there is none."""
    pieces = " ".join(text.split()).split("`")
    return "`".join(part if i % 2 else re.sub(r"(?<!\\)\|", r"\|", part) for i, part in enumerate(pieces))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["", *("| " + " | ".join(map(cell, line)) + " |" for line in lines), ""]


def fenced(lines: Iterable[str]) -> list[str]:
    return ["", "```", *lines, "```", ""]

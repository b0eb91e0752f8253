"""Sessions that pages show: what is typed, what is printed; and whether what was really printed is that."""

import re
import shlex
from dataclasses import dataclass

from support.pages import fenced

REST = "..."
"""On a line of its own: lines that are not shown. At a line's end or inside: words that are not."""


@dataclass(frozen=True)
class Step:
    typed: str
    """One command, as a shell takes it."""
    printed: tuple[str, ...]
    """The lines that are shown below it."""


def steps(markdown: str) -> list[Step]:
    """The commands of all blocks in which `$` stands before what is typed, and functions for the shell."""
    found: list[Step] = []
    for block in fenced(markdown):
        if re.match(r"\w+\(\) \{", block):
            found.append(Step(block.rstrip("\n"), ()))
        elif block.startswith("$ "):
            found += _session(block.splitlines())
    return found


def _session(lines: list[str]) -> list[Step]:
    found: list[Step] = []
    left = list(lines)
    while left:
        typed = left.pop(0).removeprefix("$ ")
        while left and not _whole(typed):
            typed += "\n" + left.pop(0)
        printed = []
        while left and not left[0].startswith("$ "):
            printed.append(left.pop(0))
        found.append(Step(typed, tuple(line for line in printed if line.strip())))
    return found


def _whole(typed: str) -> bool:
    try:
        shlex.split(typed, comments=True)
    except ValueError:
        return False
    return not typed.endswith("\\")


def missing(shown: tuple[str, ...], printed: str) -> str | None:
    """The first line that is shown and was not printed, in this order; None when all were. Numbers,
    addresses, times and the width of columns differ from run to run; shares in per cent do not.
    """
    real = iter([_alike(line) for line in printed.splitlines() if line.strip()])
    for line in shown:
        if line.strip() != REST:
            pattern = re.compile(".*".join(map(re.escape, _alike(line).split(REST))))
            if not any(pattern.fullmatch(one) for one in real):
                return line
    return None


def _alike(line: str) -> str:
    words = re.sub(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", "MAC", " ".join(line.split()))
    words = re.sub(r"\b[0-9a-f]{8}\b|\b0x[0-9a-f]+\b", "HEX", words)
    words = re.sub(r"\b(?:just now|\d+ (?:s|min) ago)\b", "AGO", words)
    return re.sub(r"\d+(?:\.\d+)*(?![\d.]*%)", "N", words)

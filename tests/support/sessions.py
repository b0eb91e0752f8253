"""Sessions that pages show: what is typed, what is printed; and whether what was really printed is that."""

import re
import shlex
from dataclasses import dataclass
from textwrap import dedent

REST = "..."
"""On a line of its own: lines that are not shown. At a line's end or inside: words that are not."""


@dataclass(frozen=True)
class Step:
    typed: str
    """One command, as a shell takes it."""
    printed: tuple[str, ...]
    """The lines that are shown below it."""


@dataclass(frozen=True)
class Block:
    """Code on a page, fenced or indented."""

    mark: str
    """Of a comment right above: why nobody types it here; "" without one."""
    body: str


MARK = re.compile(r"\s*<!-- ((?:run by|as in|not run): .+) -->$")


def blocks(markdown: str) -> list[Block]:
    found: list[Block] = []
    mark, body, fence, before = "", list[str](), False, ""
    for line in [*markdown.splitlines(), ""]:
        if line.lstrip().startswith("```"):
            if fence:
                found.append(Block(mark, "".join(f"{one}\n" for one in body)))
                mark, body = "", []
            fence = not fence
        elif fence or (line.startswith("    ") and (body or not before.strip())):
            body.append(line)
        elif body and not fence:
            found.append(Block(mark, dedent("".join(f"{one}\n" for one in body))))
            mark, body = "", []
        elif (marked := MARK.match(line)) is not None:
            mark = marked[1]
        elif line.strip():
            mark = ""
        before = line
    return found


def steps(markdown: str) -> list[Step]:
    """The commands of all blocks in which `$` stands before what is typed, and functions for the shell; but
    not of those that say why nobody does.
    """
    found: list[Step] = []
    for body in (block.body for block in blocks(markdown) if not block.mark):
        if re.match(r"\w+\(\) \{", body):
            found.append(Step(body.rstrip("\n"), ()))
        elif body.startswith("$ "):
            found += _session(body.splitlines())
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

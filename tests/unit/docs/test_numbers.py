"""Time limits, sizes and counts that pages repeat are those of the code."""

import ast
from pathlib import Path
from typing import Any

import pytest

from retinue.controller.switches.programmer import LONGEST_TIMEOUT
from retinue.core import limits
from retinue.core.lease_renewal import BACK_OFF
from retinue.core.migration.precopy import PATIENCE, WANTED_DOWNTIME
from retinue.core.snooping import pending
from retinue.host.taps import QUEUE_FRAMES
from retinue.host.timing import CACHE_LAG
from retinue.hypervisor import passes
from retinue.hypervisor.libvirt import outgoing as libvirt_outgoing
from retinue.security import authority
from support.pages import ROOT, tables, text

SRC = ROOT / "src" / "retinue"
ARCHITECTURE, OPERATORS = "docs/architecture.md", "docs/operators.md"


# ---- time limits ----


def numbers_of(file: Path) -> dict[str, float]:
    """The constants of a module that are seconds: those written with a decimal point."""
    found = {}
    for node in ast.parse(file.read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=float(number))):
                found[name] = number
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                for target, value in zip(names, values, strict=True):
                    if isinstance(value, ast.Constant) and isinstance(value.value, float):
                        found[ast.unparse(target)] = value.value
    return found


def test_every_time_limit_is_on_its_page() -> None:
    listed = {}
    for row in (row for rows in tables(text("docs/limits.md")) for row in rows if "s" in row):
        listed[row["file"].strip("`"), row["constant"].strip("`")] = row["s"]
    real = {
        (str(file.relative_to(SRC)), name): number
        for file in SRC.rglob("*.py")
        for name, number in numbers_of(file).items()
    }
    for place, shown in listed.items():
        assert place in real, f"docs/limits.md lists {place}, which is not there"
        assert shown == f"{real[place]:g}", f"{place} is {real[place]:g} s, not {shown}"
    limits = {place for place in real if place[1].endswith(("LIMIT", "TIMEOUT"))}
    assert limits <= listed.keys(), "these are not on docs/limits.md"


def test_every_other_limit_is_on_its_page() -> None:
    rows = [row for rows in tables(text("docs/limits.md")) for row in rows if "limit" in row]
    shown = {row["constant"].strip("`"): row["limit"] for row in rows}
    real = {name: value for name, value in vars(limits).items() if isinstance(value, int)}
    assert shown == {name: f"{value:,}" for name, value in real.items()}


# ---- other numbers that pages repeat ----


SENTENCES = (
    (OPERATORS, "up to {} s", f"{LONGEST_TIMEOUT:,}"),
    (OPERATORS, "hard timeout of {} s, sent again", f"{LONGEST_TIMEOUT:,}"),
    (OPERATORS, "certificates for {} days", authority.DAYS),
    (OPERATORS, "The authority is good for {} years", ("ten", authority.CA_DAYS == 3650)),
    (OPERATORS, "The tap at a migration's target holds {} frames", f"{QUEUE_FRAMES:,}"),
    (
        OPERATORS,
        "`crowded` ({} others, and one for each switch known, have not said so)",
        limits.MOST_STRANGERS,
    ),
    (
        OPERATORS,
        "`crowded` ({} others, and one for each server known, have made no request)",
        limits.MOST_STRANGERS,
    ),
    (OPERATORS, "as above ({} others in the handshake)", limits.MOST_STRANGERS),
    (ARCHITECTURE, "when {} KiB remain the agent reads no more", passes.HELD_BACK_LATER >> 10),
    (ARCHITECTURE, "held back when {} MiB remains", passes.HELD_BACK >> 20),
    (ARCHITECTURE, "`retinue move start --downtime`, {} ms unless told", f"{WANTED_DOWNTIME * 1000:g}"),
    (ARCHITECTURE, "after {} passes that do not shrink", ("three", PATIENCE == 3)),
    (ARCHITECTURE, "the queue of the target's tap ({} frames)", f"{QUEUE_FRAMES:,}"),
    (ARCHITECTURE, "and MAC within the last {} s", f"{pending.PENDING_SECONDS:g}"),
    (ARCHITECTURE, "or else {} ms after diverting is confirmed", f"{CACHE_LAG * 1000:g}"),
    (
        "docs/libvirt.md",
        "held back when {} MiB remain: `--downtime`",
        libvirt_outgoing.HELD_BACK_UNSEEN >> 20,
    ),
    ("docs/renewal.md", "again after {}", "{:g}, {:g} and {:g} s; {:g} s after".format(*BACK_OFF)),
)
"""Page, words of it, and what stands at {}: a number of the code; or words, and whether they are so."""


@pytest.mark.parametrize(("page", "words", "number"), SENTENCES)
def test_a_number_in_a_sentence_is_the_codes(page: str, words: str, number: Any) -> None:
    said, true = number if isinstance(number, tuple) else (number, True)
    assert true
    assert words.format(said) in " ".join(text(page).split())

"""What others wrote is shown at a terminal, and acts upon nothing there."""

import ast
from pathlib import Path

import pytest

from retinue.cli import output
from retinue.cli.events import line

SRC = Path(output.__file__).parent
BAD = "x\x1b]0;OWNED\x07\x1b[2K\x1b[1A\nvm9 fake row\u202e"


def test_nothing_of_it_comes_out_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(BAD)
    output.say(BAD, err=True)
    output.print_table(["ID", ">NUMBER"], [[BAD, 1], ["vm1", BAD]], empty="none")
    output.print_table(["ID"], [], empty=BAD)
    output.print_fields([("id", BAD), ("list", [BAD, BAD])])
    output.say(line({"id": 1, "at": 2.0, "type": "vm.mismatch", "vm": BAD, "reason": BAD}))
    output.print_json({"id": BAD})
    output.print_line({"id": BAD})
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert text.replace("\n", "").isprintable()
        assert "fake row" in text
    assert not any(row.lstrip().startswith("vm9") for row in (shown.out + shown.err).split("\n"))


def test_a_colour_of_ours_is_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["STATE"], [["\x1b[31mred"]], empty="")
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("at", [1e300, -1e300, float("nan"), float("inf"), 0.0, 1795232771.5])
def test_any_time_is_shown(at: float) -> None:
    assert output.clock(at)


@pytest.mark.parametrize("file", sorted(SRC.glob("*.py")), ids=lambda file: file.stem)
def test_nothing_is_printed_but_by_one_module(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Call(func=ast.Name(id="print")) | ast.Call(func=ast.Attribute(attr="echo" | "secho")):
                assert file.name == "output.py", f"{file.name}:{node.lineno}: say it by output.say"


def test_no_line_of_a_table_ends_with_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("VM", "STATE"), [("vm1", "matched"), ("vm2", "up")], "none")
    assert capsys.readouterr().out == "VM   STATE\nvm1  matched\nvm2  up\n"

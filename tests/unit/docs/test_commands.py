"""Commands that pages, `--help` and messages show are commands: the program's own parser takes them."""

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import pytest
from typer import _click as click
from typer.main import get_command

from retinue.cli.main import app
from support.pages import PAGES, ROOT, fenced, indented, text, ticked

START = re.compile(r"(?:^|(?<=[;&|] )|(?<=\$ )|(?<= -- ))(?:[A-Z_]+=\S+ )*(?:sudo )?retinue (?=[a-z-])")
"""Where a command begins, in a line that is typed."""
ENDS = {">", ">>", "<", "|", "&", "&&", ";", "..."}
FILLED_IN = "\0"
"""Stands in a message for what is filled in."""


def every(command: Any) -> Iterator[Any]:
    yield command
    for sub in getattr(command, "commands", {}).values():
        yield from every(sub)


def _program() -> Any:
    """Without what acts while it parses: --install-completion writes into the home directory."""
    program = get_command(app)
    for command in every(program):
        for parameter in command.params:
            parameter.callback = None
    return program


PROGRAM = _program()


def parse(argv: list[str]) -> None:
    """Raises what the program answers with when something is not as it should be."""
    command, context = PROGRAM, PROGRAM.make_context("retinue", list(argv))
    while hasattr(command, "commands") and (rest := [*context._protected_args, *context.args]):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def wrong(typed: str, *, whole: bool) -> str:
    """What the program has against the words behind `retinue`; "" if nothing.

    Words in capitals stand for others, and what stands in brackets may be left out. In running text, which
    does not show a command as a whole, arguments may be missing.
    """
    try:
        shown = re.sub(r"[\[\]]", "", typed) if " [-" in typed else typed
        argv = shlex.split(shown, comments=True)
    except ValueError as error:
        return str(error)
    argv = list(takewhile(lambda word: word not in ENDS, argv))
    if "--help" in argv:
        return ""
    try:
        parse(argv)
    except click.exceptions.MissingParameter as error:
        return error.format_message() if whole else ""
    except click.exceptions.BadOptionUsage as error:
        return error.format_message() if whole or argv[-1] not in error.format_message() else ""
    except click.exceptions.BadParameter as error:
        return "" if any(word.isupper() for word in argv) else error.format_message()
    except click.exceptions.NoArgsIsHelpError:
        return ""
    except click.exceptions.ClickException as error:
        return error.format_message()
    return ""


def in_block(block: str) -> Iterator[str]:
    """What stands behind `retinue` in the lines of a block."""
    for line in block.replace("\\\n", " ").splitlines():
        for begin in START.finditer(line.strip()):
            yield line.strip()[begin.end() :]


def in_running_text(words: list[str]) -> Iterator[str]:
    """What stands behind `retinue` in ticks; of `add|set` each."""
    for one in words:
        if (begin := re.match(r"(?:\$ |[A-Z_]+=\S+ )*retinue (?=[a-z-])", one)) is not None:
            said = " ".join(one[begin.end() :].split())
            several = re.search(r"\S+\|\S+", said)
            for each in several[0].split("|") if several else [""]:
                yield said.replace(several[0], each) if several else said


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_can_be_typed(page: str) -> None:
    for block in (*fenced(text(page)), *indented(text(page))):
        for typed in in_block(block):
            assert not (why := wrong(typed, whole=True)), f"{page}: retinue {typed}: {why}"
    for typed in in_running_text(ticked(text(page))):
        assert not (why := wrong(typed, whole=False)), f"{page}: retinue {typed}: {why}"


def test_the_pages_show_commands() -> None:
    """Or nothing was found, and all is well for that."""
    assert sum(len(list(in_block(block))) for page in PAGES for block in fenced(text(page))) > 50
    assert sum(len(list(in_running_text(ticked(text(page))))) for page in PAGES) > 50


def test_examples_of_help_can_be_typed() -> None:
    seen = 0
    for command in every(PROGRAM):
        for typed in in_block(command.help or ""):
            assert not (why := wrong(typed, whole=True)), f"--help: retinue {typed}: {why}"
            seen += 1
    assert seen > 100


def test_what_stands_for_something_else_is_in_capitals() -> None:
    for command in every(PROGRAM):
        context = command.make_context("retinue", [], resilient_parsing=True)
        usage = " ".join(command.collect_usage_pieces(context))
        assert usage == usage.upper(), f"{command.name}: {usage}"
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                (shown, _) = parameter.get_help_record(context)
                assert not re.search(r"<\w+", shown), f"{command.name}: {shown}"


def texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=values):
                yield "".join(str(v.value) if isinstance(v, ast.Constant) else FILLED_IN for v in values)
            case ast.Constant(value=str(said)):
                yield said


def test_what_a_message_tells_to_type_can_be_typed() -> None:
    seen = 0
    for file in sorted((ROOT / "src").rglob("*.py")):
        source = file.read_text()
        for said in texts(ast.parse(source)) if "`retinue " in source else ():
            for typed in in_running_text(ticked(said)):
                command = re.sub(rf"(?<=[a-z]){FILLED_IN}", "", typed)
                if not command.startswith(FILLED_IN):
                    filled = command.replace(FILLED_IN, "1")
                    why = wrong(filled, whole=False)
                    assert not why, f"{file.relative_to(ROOT)}: retinue {filled}: {why}"
                    seen += 1
    assert seen > 100


@pytest.mark.parametrize(
    ("typed", "whole"),
    [
        ("vm list --jsn", False),
        ("vm lst", False),
        ("agent leases", True),
        ("vm add vm1 vm2 --server s", False),
        ("move start vm1 --downtime fast", True),
        ("vm add it's --server s", True),
        ("nic set --trusted", False),
    ],
)
def test_what_cannot_be_typed_is_found(typed: str, whole: bool) -> None:
    assert wrong(typed, whole=whole)


def test_what_stands_for_something_else_is_let_be() -> None:
    assert not wrong("lab web [--port PORT]", whole=True)
    assert not wrong("move start vm1 --downtime", whole=False)
    assert not wrong("--install-completion", whole=True), "and nothing is installed"
    assert not wrong("vm list > file   # it's so", whole=True)
    assert list(in_running_text(["retinue vm add|set X"])) == ["vm add X", "vm set X"]
    assert list(in_block("$ A=b retinue vm list | cat; retinue x\nretinue-agent y")) == [
        "vm list | cat; retinue x",
        "x",
    ]

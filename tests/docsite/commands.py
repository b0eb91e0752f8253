"""The page of commands: what `--help` and the manual pages say, on one page."""

import textwrap
from collections.abc import Iterable, Iterator

from typer.main import get_command

from docsite.markdown import code, fenced, prose, table
from retinue.cli.main import app
from retinue.cli.reference import ENVIRONMENT, Paragraph, Said, nouns, said

WIDTH = 110


def page() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    program = get_command(app)
    yield "# Commands"
    yield from (
        "",
        "Made of what the commands say of themselves (`--help`, and the manual pages of `make man`).",
    )
    own = said((), program)
    yield from ("", "## retinue", *_command(own))
    yield from table(("variable", ""), ((code(name), prose(does)) for name, does in ENVIRONMENT))
    for noun in nouns(program):
        yield from ("", f"## {noun.name}")
        if noun.alone is not None:
            yield from _command(noun.alone)
            continue
        yield from _paragraphs(noun.paragraphs)
        for verb in noun.verbs:
            yield from ("", f"### {' '.join(verb.words)}", *_command(verb))


def _command(command: Said) -> Iterator[str]:
    yield from fenced(textwrap.wrap(f"{command.call} {command.usage}", WIDTH, subsequent_indent="    "))
    yield from _paragraphs(command.paragraphs)
    if command.options:
        rows = ((code(names), prose(meaning)) for names, meaning in command.options)
        yield from table(("option", ""), rows)


def _paragraphs(paragraphs: Iterable[Paragraph]) -> Iterator[str]:
    for one in paragraphs:
        if one.verbatim:
            yield from fenced(one.lines)
        else:
            yield from ("", *map(prose, one.lines))

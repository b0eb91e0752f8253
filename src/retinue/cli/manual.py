"""The manual pages, made of what `--help` knows: one of the command, one for each noun with all its verbs.

python -m retinue.cli.manual build/man
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from retinue import __version__
from retinue.cli.reference import ENVIRONMENT, Noun, Paragraph, Said, first_line, nouns, said

SECTION = 1


def pages(command: Any) -> dict[str, str]:
    """By file name: the pages of a command as typer has it, and of its nouns."""
    known = nouns(command)
    found = {_file(): "\n".join(_main_page(command, known)) + "\n"}
    for noun in known:
        found[_file(noun.name)] = "\n".join(_noun_page(noun)) + "\n"
    return found


def _file(*words: str) -> str:
    return f"{'-'.join(('retinue', *words))}.{SECTION}"


def _main_page(command: Any, known: Iterable[Noun]) -> Iterator[str]:
    yield from head("retinue", SECTION, first_line(command))
    yield from _described(said((), command))
    yield ".SH COMMANDS"
    for noun in known:
        yield from (".TP", rf".BR {_bold('retinue', noun.name)} ({SECTION})", text(noun.does))
    yield ".SH ENVIRONMENT"
    for name, meaning in ENVIRONMENT:
        yield from (".TP", rf".B {text(name)}", text(meaning))


def _noun_page(noun: Noun) -> Iterator[str]:
    yield from head(f"retinue-{noun.name}", SECTION, noun.does)
    if noun.alone is not None:
        yield from _described(noun.alone)
    else:
        yield from (".SH DESCRIPTION", *_paragraphs(noun.paragraphs), ".SH COMMANDS")
        for verb in noun.verbs:
            yield from (f".SS {_quoted(verb.call)}", _usage(verb), ".PP")
            yield from _paragraphs(verb.paragraphs)
            yield from _options(verb)
    yield from (".SH SEE ALSO", rf".BR retinue ({SECTION})")


def _described(command: Said) -> Iterator[str]:
    yield from (".SH SYNOPSIS", _usage(command), ".SH DESCRIPTION")
    yield from _paragraphs(command.paragraphs)
    yield ".SH OPTIONS"
    yield from _options(command)


def head(name: str, section: int, does: str) -> Iterator[str]:
    """How every page begins."""
    yield f'.TH {text(name.upper())} {section} "" "retinue {__version__}" "retinue"'
    yield from (".SH NAME", rf"{text(name)} \- {text(does.rstrip('.'))}")


def _usage(command: Said) -> str:
    return rf"\fB{text(command.call)}\fR {text(command.usage)}"


def _options(command: Said) -> Iterator[str]:
    for names, meaning in command.options:
        yield from (".TP", rf"\fB{text(names)}\fR", text(meaning) or r"\&")


def _paragraphs(paragraphs: Iterable[Paragraph]) -> Iterator[str]:
    for paragraph in paragraphs:
        if paragraph.verbatim:
            yield from (".PP", ".nf", *map(text, paragraph.lines), ".fi")
        else:
            yield from (".PP", *map(text, paragraph.lines))


def text(plain: str) -> str:
    """As roff prints it: a backslash, a hyphen that is one, and no line that is a request."""
    safe = plain.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return rf"\&{safe}" if safe.startswith(".") else safe


def _bold(*words: str) -> str:
    return text("-".join(words))


def _quoted(plain: str) -> str:
    return f'"{text(plain)}"'


def main(folder: Path) -> None:
    from typer.main import get_command

    from retinue.cli.main import app

    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages(get_command(app)).items():
        (folder / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

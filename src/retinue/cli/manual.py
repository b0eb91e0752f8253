"""The manual pages, made of what `--help` knows: one of the command, one for each noun with all its verbs.

python -m retinue.cli.manual build/man
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retinue import __version__

SECTION = 1
VERBATIM = "\b"
"""A paragraph of help that begins so keeps its lines: an example."""
ENVIRONMENT = (
    ("RETINUE_URL", "The controller's address, where --url is not given."),
    ("RETINUE_CA, RETINUE_CERT, RETINUE_KEY", "As --ca, --cert and --key."),
    ("RETINUE_TOKEN", "A token, instead of a certificate."),
    ("RETINUE_LAB", "The lab, where --lab is not given."),
)


def pages(command: Any) -> dict[str, str]:
    """By file name: the pages of a command as typer has it, and of its nouns."""
    nouns = {name: noun for name, noun in command.commands.items() if not noun.hidden}
    found = {_file(): "\n".join(_main_page(command, nouns)) + "\n"}
    for name, noun in nouns.items():
        found[_file(name)] = "\n".join(_noun_page(name, noun, list(nouns))) + "\n"
    return found


def _file(*words: str) -> str:
    return f"{'-'.join(('retinue', *words))}.{SECTION}"


def _main_page(command: Any, nouns: dict[str, Any]) -> Iterator[str]:
    yield from _head((), _first_line(command))
    yield from _described((), command)
    yield ".SH COMMANDS"
    for name, noun in nouns.items():
        yield from (".TP", rf".BR {_bold('retinue', name)} ({SECTION})", _text(_first_line(noun)))
    yield ".SH ENVIRONMENT"
    for name, meaning in ENVIRONMENT:
        yield from (".TP", rf".B {_text(name)}", _text(meaning))


def _noun_page(name: str, noun: Any, nouns: list[str]) -> Iterator[str]:
    verbs = getattr(noun, "commands", {})
    yield from _head((name,), _first_line(noun))
    if not verbs:
        yield from _described((name,), noun)
    else:
        yield from (".SH DESCRIPTION", *_paragraphs(noun.help or ""), ".SH COMMANDS")
        yield from _of_verbs((name,), verbs)
    yield from (".SH SEE ALSO", rf".BR retinue ({SECTION})")


def _of_verbs(words: tuple[str, ...], verbs: dict[str, Any]) -> Iterator[str]:
    for verb, command in verbs.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _of_verbs((*words, verb), command.commands)
            continue
        yield from (f".SS {_quoted(' '.join(('retinue', *words, verb)))}", _usage((*words, verb), command))
        yield ".PP"
        yield from _paragraphs(command.help or "")
        yield from _options(command)


def _described(words: tuple[str, ...], command: Any) -> Iterator[str]:
    yield from (".SH SYNOPSIS", _usage(words, command), ".SH DESCRIPTION")
    yield from _paragraphs(command.help or "")
    yield ".SH OPTIONS"
    yield from _options(command)


def _head(words: tuple[str, ...], does: str) -> Iterator[str]:
    name = "-".join(("retinue", *words))
    yield f'.TH {_text(name.upper())} {SECTION} "" "retinue {__version__}" "retinue"'
    yield from (".SH NAME", rf"{_text(name)} \- {_text(does.rstrip('.'))}")


def _usage(words: tuple[str, ...], command: Any) -> str:
    context = command.make_context("retinue", [], resilient_parsing=True)
    rest = " ".join(piece for piece in command.collect_usage_pieces(context))
    return rf"\fB{_text(' '.join(('retinue', *words)))}\fR {_text(rest)}"


def _options(command: Any) -> Iterator[str]:
    context = command.make_context("retinue", [], resilient_parsing=True)
    for parameter in command.params:
        record = None if getattr(parameter, "hidden", False) else parameter.get_help_record(context)
        if record is not None:
            yield from (".TP", rf"\fB{_text(record[0])}\fR", _text(" ".join(record[1].split())) or r"\&")


def _paragraphs(help: str) -> Iterator[str]:
    for paragraph in help.strip().split("\n\n"):
        if paragraph.startswith(VERBATIM):
            lines = paragraph.removeprefix(VERBATIM).strip("\n").split("\n")
            yield from (".PP", ".nf", *map(_text, lines), ".fi")
        else:
            yield from (".PP", _text(" ".join(paragraph.split())))


def _first_line(command: Any) -> str:
    return " ".join((command.help or "").strip().split("\n\n")[0].split())


def _text(text: str) -> str:
    """As roff prints it: a backslash, a hyphen that is one, and no line that is a request."""
    safe = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return rf"\&{safe}" if safe.startswith(".") else safe


def _bold(*words: str) -> str:
    return _text("-".join(words))


def _quoted(text: str) -> str:
    return f'"{_text(text)}"'


def main(folder: Path) -> None:
    from typer.main import get_command

    from retinue.cli.main import app

    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages(get_command(app)).items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

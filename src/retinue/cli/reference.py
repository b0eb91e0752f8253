"""What each command says of itself, as `--help` knows it: for the manual pages and the docs' site."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

VERBATIM = "\b"
"""A paragraph of help that begins so keeps its lines: an example."""
ENVIRONMENT = (
    ("RETINUE_URL", "The controller's address, where --url is not given."),
    ("RETINUE_CA, RETINUE_CERT, RETINUE_KEY", "As --ca, --cert and --key."),
    ("RETINUE_TOKEN", "A token, instead of a certificate."),
    ("RETINUE_LAB", "The lab, where --lab is not given."),
)
"""Variables that every command heeds, and their meaning."""


@dataclass(frozen=True)
class Paragraph:
    """Of a command's help: prose in one line, or lines that stay as they are."""

    lines: tuple[str, ...]
    verbatim: bool


@dataclass(frozen=True)
class Said:
    """A command: its words after `retinue`, how it is called, what it does, its options with meaning."""

    words: tuple[str, ...]
    usage: str
    paragraphs: tuple[Paragraph, ...]
    options: tuple[tuple[str, str], ...]

    @property
    def call(self) -> str:
        return " ".join(("retinue", *self.words))


@dataclass(frozen=True)
class Noun:
    """A first word, what it is for, and its verbs; without verbs it is a command itself: `alone`."""

    name: str
    does: str
    paragraphs: tuple[Paragraph, ...]
    verbs: tuple[Said, ...]
    alone: Said | None


def nouns(program: Any) -> tuple[Noun, ...]:
    """The nouns of a program as typer has it, without those that are hidden."""
    return tuple(_noun(name, found) for name, found in program.commands.items() if not found.hidden)


def _noun(name: str, command: Any) -> Noun:
    verbs = getattr(command, "commands", {})
    paragraphs = tuple(_paragraphs(command.help or ""))
    alone = None if verbs else said((name,), command)
    return Noun(name, first_line(command), paragraphs, tuple(_verbs((name,), verbs)), alone)


def _verbs(words: tuple[str, ...], verbs: dict[str, Any]) -> Iterator[Said]:
    for verb, command in verbs.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _verbs((*words, verb), command.commands)
        else:
            yield said((*words, verb), command)


def said(words: tuple[str, ...], command: Any) -> Said:
    context = command.make_context("retinue", [], resilient_parsing=True)
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    records = [record for one in shown if (record := one.get_help_record(context)) is not None]
    return Said(
        words,
        " ".join(command.collect_usage_pieces(context)),
        tuple(_paragraphs(command.help or "")),
        tuple((names, " ".join(meaning.split())) for names, meaning in records),
    )


def first_line(command: Any) -> str:
    return " ".join((command.help or "").strip().split("\n\n")[0].split())


def _paragraphs(help: str) -> Iterator[Paragraph]:
    for paragraph in help.strip().split("\n\n"):
        if paragraph.startswith(VERBATIM):
            yield Paragraph(tuple(paragraph.removeprefix(VERBATIM).strip("\n").split("\n")), True)
        else:
            yield Paragraph((" ".join(paragraph.split()),), False)

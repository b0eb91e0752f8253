"""What other packages add to the command line: found by their entry points, never imported by name.

A package offers nouns in the group `retinue.commands` (name: the noun; object: a Typer application), and in
the group `retinue.targets` a way to a controller that cannot be reached from where the command was typed
(object: an `Enter`). The laboratory, a distribution of its own (`retinue-lab`), offers one of each.
"""

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NoReturn, Protocol, cast

import typer

from retinue.cli.errors import CliError

COMMANDS = "retinue.commands"
TARGETS = "retinue.targets"
LAB = "lab"
HOW_TO_INSTALL = (
    "`pip install 'retinue[lab]'` adds it, and in a source tree `make install` or "
    "`pip install -e src/retinue_lab`"
)


class Enter(Protocol):
    """Goes to where the controller of a running lab is reached."""

    def __call__(self, lab: str | None, argv: Sequence[str], url_variable: str) -> NoReturn:
        """Become `argv`, run inside the lab, with the controller's URL there in variable `url_variable`.

        `lab` is the lab's name, None for the one that the environment names, or the default one. Raises
        CliError when no such lab runs.
        """


def commands() -> dict[str, typer.Typer]:
    """The nouns of other packages; "lab" is always among them, if only to say how it is installed."""
    found = {point.name: cast(typer.Typer, point.load()) for point in entry_points(group=COMMANDS)}
    return {LAB: _lab_is_missing(), **found}


def enter_lab() -> Enter | None:
    """The way into a running lab; None when the laboratory is not installed."""
    point = _find(TARGETS, LAB)
    return cast(Enter, point.load()) if point is not None else None


def _find(group: str, name: str) -> EntryPoint | None:
    return next(iter(entry_points(group=group, name=name)), None)


def _lab_is_missing() -> typer.Typer:
    """`retinue lab` where there is no laboratory: whatever is typed after it, it says how to get one."""
    app = typer.Typer(
        invoke_without_command=True,
        rich_markup_mode=None,
        add_completion=False,
        context_settings={"ignore_unknown_options": True, "help_option_names": []},
        help="The laboratory; it is not installed here.",
    )

    @app.callback()
    def lab(words: list[str] | None = typer.Argument(None)) -> Any:  # noqa: B008
        raise CliError(f"the laboratory is not installed: {HOW_TO_INSTALL}")

    return app

"""The command line without the laboratory's package, and what it finds when it is there."""

from importlib import metadata

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from retinue.cli import connection, main, plugins
from retinue.cli.errors import CliError, Commands


@pytest.fixture
def without_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(**select: str) -> metadata.EntryPoints:
        assert select["group"] in (plugins.COMMANDS, plugins.TARGETS)
        return metadata.EntryPoints()

    monkeypatch.setattr(plugins, "entry_points", nothing)
    for name in ("RETINUE_URL", "RETINUE_LAB", connection.INSIDE):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("words", [[], ["up"], ["up", "--name", "x"], ["--help"], ["exec", "a", "--", "-c"]])
def test_lab_commands_without_the_lab_say_how_it_is_installed(without_lab: None, words: list[str]) -> None:
    app = typer.Typer(cls=Commands)
    app.callback()(lambda: None)
    app.add_typer(plugins.commands()["lab"], name="lab")
    result = CliRunner().invoke(app, ["lab", *words])
    assert result.exit_code == 1
    assert "the laboratory is not installed" in result.stderr
    assert "pip install 'retinue[lab]'" in result.stderr


def test_help_without_the_lab(without_lab: None) -> None:
    app = typer.Typer(cls=Commands)
    app.callback()(lambda: None)
    app.add_typer(plugins.commands()["lab"], name="lab")
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "it is not installed here" in result.stdout


def test_without_the_lab_the_controller_must_be_named(without_lab: None) -> None:
    with pytest.raises(CliError, match="name one with --url or RETINUE_URL"):
        connection.Connection(None, None, as_json=False).client()


def test_the_lab_is_plugged_in() -> None:
    nouns = get_command(main.app).commands  # type: ignore[attr-defined]
    assert {"up", "down", "demo", "compare"} <= set(nouns["lab"].commands)
    assert plugins.enter_lab() is not None

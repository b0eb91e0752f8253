"""Manual pages and completion, made of what the commands say of themselves."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from retinue.cli import manual
from retinue.cli.main import app

groff = shutil.which("groff")


def verbs(group: Any, *words: str) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for name, command in group.commands.items():
        found |= verbs(command, *words, name) if hasattr(command, "commands") else {(*words, name): command}
    return found


def plain(page: str) -> str:
    """As a reader sees it."""
    return page.replace(r"\-", "-").replace(r"\(aq", "'").replace(r"\(ga", "`").replace(r"\e", "\\")


def test_every_command_and_option_is_in_a_page() -> None:
    pages = manual.pages(get_command(app))
    for words, command in verbs(get_command(app)).items():
        page = plain(pages[f"retinue-{words[0]}.1"])
        assert " ".join(("retinue", *words)) in page, words
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert parameter.opts[0] in page, (words, parameter.opts)
    for noun in get_command(app).commands:  # type: ignore[attr-defined]
        assert f"retinue-{noun} (1)" in plain(pages["retinue.1"]).replace(".BR ", ""), noun


@pytest.mark.skipif(groff is None, reason="no groff")
def test_groff_has_nothing_to_say_against_them(tmp_path: Path) -> None:
    manual.main(tmp_path)
    files = sorted(map(str, tmp_path.iterdir()))
    read = subprocess.run(
        [str(groff), "-man", "-Tutf8", "-ww", *files], capture_output=True, text=True, check=True
    )
    assert read.stderr == "" and "retinue move start vm1 --to server2" in read.stdout


def completed(*words: str) -> list[str]:
    """What a shell is told for the last of these words."""
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    asked["_RETINUE_COMPLETE"] = "complete_bash"
    program = Path(sys.executable).parent / "retinue"
    done = subprocess.run([program], env=os.environ | asked, capture_output=True, text=True)
    return done.stdout.split()


def test_words_are_completed() -> None:
    assert "binding" in completed("retinue", "bin")
    assert completed("retinue", "binding", "sp") == ["spoofing"]
    assert {"--vm", "--json"} <= set(completed("retinue", "binding", "spoofing", "--"))

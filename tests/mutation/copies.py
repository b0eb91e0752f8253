"""Copies of the project, in which mistakes are made: nothing is changed in the project itself."""

import os
import shutil
from pathlib import Path

from mutation.targets import ROOT, path_of

COPIED = ("src", "tests", "docs", "deploy", "pyproject.toml", "README.md", "Makefile", "CHANGELOG.md")


def make_copy(folder: Path) -> Path:
    """With what is compiled already, for what it was compiled from has the same times."""
    folder.mkdir()
    ignored = shutil.ignore_patterns(".hypothesis", "*.egg-info")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    return folder


def environment(copy: Path) -> dict[str, str]:
    """For programs that run in a copy. What is compiled is kept: all that come after need it, too."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": f"{copy / 'src'}:{copy / 'tests'}"}


def is_compiled(copy: Path, file: str) -> bool:
    """True for a test file that pytest has compiled, here or where it was copied from."""
    place = copy / file
    return any((place.parent / "__pycache__").glob(f"{place.stem}.*-pytest-*.pyc"))


def forget_compiled(copy: Path, modules: tuple[str, ...]) -> None:
    """The rest is compiled once for all mistakes; of what they are made in nothing compiled may be found."""
    for module in modules:
        file = copy / path_of(module)
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            compiled.unlink()

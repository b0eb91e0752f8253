"""The two distributions made from this repository: servers get nothing of the laboratory."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
BY_NAME = {"retinue": Path(), "retinue_lab": Path("src/retinue_lab")}
"""Folder of each distribution's pyproject.toml."""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Of each distribution's wheel, the files and their texts, built from a copy of the source tree."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    ignore = shutil.ignore_patterns("*.egg-info", "__pycache__", "build")
    shutil.copytree(SRC, tree / "src", ignore=ignore)
    found = {}
    for name, folder in BY_NAME.items():
        build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
        subprocess.run(
            [sys.executable, "-c", build, str(tree)], cwd=tree / folder, check=True, capture_output=True
        )
        with ZipFile(next(tree.glob(f"{name}-*.whl"))) as wheel:
            found[name] = {file: wheel.read(file).decode() for file in wheel.namelist()}
    return found


def sources(package: str) -> set[str]:
    """The package's files in the tree, as a wheel names them."""
    files = (path for path in (SRC / package).rglob("*") if path.is_file())
    left_out = ("__pycache__", "build", "retinue_lab.egg-info")
    return {
        str(path.relative_to(SRC))
        for path in files
        if path.name != "pyproject.toml" and not set(path.relative_to(SRC).parts) & set(left_out)
    }


@pytest.mark.parametrize("package", BY_NAME)
def test_a_wheel_holds_its_package_and_nothing_else(wheels: dict[str, dict[str, str]], package: str) -> None:
    own = {file for file in wheels[package] if ".dist-info/" not in file}
    assert own == sources(package)


def test_the_laboratory_is_an_extra_of_the_same_version(wheels: dict[str, dict[str, str]]) -> None:
    def told(package: str, file: str) -> str:
        return next(text for name, text in wheels[package].items() if name.endswith(f".dist-info/{file}"))

    server, lab = told("retinue", "METADATA"), told("retinue_lab", "METADATA")
    version = next(line for line in server.splitlines() if line.startswith("Version: "))
    assert version in lab.splitlines()
    number = version.removeprefix("Version: ")
    assert f'Requires-Dist: retinue-lab=={number}; extra == "lab"' in server
    assert f"Requires-Dist: retinue=={number}" in lab
    assert "[retinue.commands]" in told("retinue_lab", "entry_points.txt")
    assert "[retinue.commands]" not in told("retinue", "entry_points.txt")

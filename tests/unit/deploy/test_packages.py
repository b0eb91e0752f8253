"""The Debian packages: what is put into them, and what is not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.pages import ROOT

DEB = ROOT / "deploy/deb"
PACKAGES = ("retinue", "retinue-controller", "retinue-agent", "retinue-managers")
SCRIPTS = sorted(path for path in DEB.iterdir() if path.suffix in (".sh", ".postinst", ".prerm", ".postrm"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_reads_each_script(script: Path) -> None:
    done = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "set -e" in script.read_text()


def test_what_runs_is_locked_and_what_tests_is_left_out() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    made = subprocess.run(
        [sys.executable, DEB / "runtime_lock.py"], input=lock, capture_output=True, text=True, check=True
    ).stdout
    entries = re.split(r"^(?=[A-Za-z0-9])", made, flags=re.MULTILINE)[1:]
    names = {entry.partition("==")[0] for entry in entries}
    assert {"aiohttp", "cryptography", "msgspec", "qemu-qmp", "structlog", "typer"} <= names
    assert not names & {"pytest", "hypothesis", "schemathesis", "mypy", "ruff", "scapy"}
    assert all("--hash=sha256:" in entry and entry in lock for entry in entries)


def test_a_lock_that_lacks_something_makes_no_package() -> None:
    made = subprocess.run(
        [sys.executable, DEB / "runtime_lock.py"], input="typer==1\n", capture_output=True, text=True
    )
    assert made.returncode != 0 and "requirements.lock lacks aiohappyeyeballs" in made.stderr


@pytest.mark.long
def test_packages_are_built_and_have_what_they_should(tmp_path: Path) -> None:
    """With PyPI; the command runs from where it was unpacked."""
    subprocess.run(["sh", DEB / "build.sh", Path(sys.executable).parent], cwd=ROOT, check=True)
    built = {path.name.partition("_")[0]: path for path in (ROOT / "build/deb").glob("*.deb")}
    assert set(built) == set(PACKAGES)
    for package, path in built.items():
        subprocess.run(["dpkg-deb", "-x", path, tmp_path / package], check=True)
        said = subprocess.run(["dpkg-deb", "-I", path], capture_output=True, text=True, check=True).stdout
        assert f"Package: {package}\n" in said and "postinst" in said
    assert (tmp_path / "retinue-agent/lib/systemd/system/retinue-agent.service").exists()
    assert (tmp_path / "retinue/usr/share/man/man5/retinue-agent.toml.5.gz").exists()
    for service in ("retinue-controller", "retinue-agent"):
        assert (tmp_path / f"{service}/usr/share/man/man8/{service}.8.gz").exists()
    for service in ("retinue-mobility", "retinue-resource"):
        managers = tmp_path / "retinue-managers"
        assert (managers / f"usr/share/man/man8/{service}.8.gz").exists()
        assert (managers / f"lib/systemd/system/{service}.service").exists()
        assert (tmp_path / f"retinue/usr/share/man/man5/{service}.toml.5.gz").exists()
    site = tmp_path / "retinue/usr/lib/retinue"
    names = {path.name for path in site.iterdir()}
    assert {"retinue", "aiohttp", "msgspec"} <= names and not names & {"pytest", "hypothesis", "retinue_lab"}
    run = "import sys; sys.path.insert(0, sys.argv.pop(1)); from retinue.cli.main import app; app()"
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", run, site, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("retinue ")

"""`retinue support-dump`: what is in it, and what never is."""

import json
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retinue.cli.main import app
from retinue.cli.support import REMOVED, redacted
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from support.api_thread import serving
from support.fabric.networks import add_vm, fabric

KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----"
CONFIG = """
[listen]
rest = "127.0.0.1:8080"
[tls]
key = "/etc/retinue/controller.key"
[[token]]
name = "backup"
role = "reader"
token = "K5c0-do-not-tell"
sha256 = "9f86d081"
[other]
pasted = '''{key}'''
url = "https://anna:hush@192.0.2.9/"
"""


def populated() -> Controller:
    controller = Controller(fabric())
    add_vm(controller.net, 1, at=1)
    controller.events.publish("access.rejected", listener="rest", peer="x", reason="no")  # type: ignore[arg-type]
    return controller


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(populated, lambda controller: Api(controller, dict)) as port:
        yield f"http://127.0.0.1:{port}"


def parts(path: Path) -> dict[str, str]:
    found = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read().decode()
    return found


def test_a_dump_has_all_that_is_known_and_no_secrets(url: str, tmp_path: Path) -> None:
    config, path = tmp_path / "controller.toml", tmp_path / "dump.tar.gz"
    config.write_text(CONFIG.replace("{key}", KEY))
    made = CliRunner().invoke(
        app, ["support-dump", "--config", str(config), "--output", str(path), "--url", url]
    )
    assert made.exit_code == 0, made.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = parts(path)
    assert json.loads(found["vms.json"])["vms"][0]["id"] == "vm1"
    assert json.loads(found["status.json"])["vms"] == 1
    assert "retinue_vms 1.0" in found["metrics.txt"]
    assert "access.rejected" in found["events.jsonl"]
    assert json.loads(found["versions.json"])["packages"]["retinue"]
    assert json.loads(found["doctor.json"])
    assert json.loads(found["errors.json"]) == {}
    kept = json.loads(found["config-1-controller.toml.json"])
    assert kept["tls"]["key"] == "/etc/retinue/controller.key"
    assert kept["token"] == [{"name": "backup", "role": "reader", "token": REMOVED, "sha256": REMOVED}]
    everything = "".join(found.values())
    for secret in ("K5c0", "9f86d081", "MHcCAQEE", "hush"):
        assert secret not in everything


def test_a_file_that_is_there_is_not_overwritten(url: str, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text("mine")
    made = CliRunner().invoke(app, ["support-dump", "--output", str(path), "--url", url])
    assert made.exit_code != 0 and path.read_text() == "mine"


def test_without_a_controller_there_is_what_is_known_here(tmp_path: Path) -> None:
    path = tmp_path / "dump.tar.gz"
    made = CliRunner().invoke(app, ["support-dump", "--output", str(path), "--url", "http://127.0.0.1:9"])
    assert made.exit_code == 0 and "without status.json: no controller answers" in made.output
    assert set(parts(path)) == {"versions.json", "errors.json"}


def test_what_is_secret_is_known_by_its_name_or_its_form() -> None:
    said = {"psk": 12345, "list": [{"password": "x"}], "token": ["a", "b"], "name": "x", "empty_secret": ""}
    assert redacted(said) == {
        "psk": REMOVED, "list": [{"password": REMOVED}], "token": [REMOVED, REMOVED], "name": "x",
        "empty_secret": "",
    }  # fmt: skip
    assert redacted(f"before {KEY} after") == "before (a private key) after"
    assert redacted("-----BEGIN PRIVATE KEY-----\ncut off") == "(a private key)"
    assert redacted("ftp://a:b@c/d") == "ftp://(user)@c/d"

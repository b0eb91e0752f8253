"""[cluster] of the configuration: what it must have, and what is said otherwise."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from retinue.cli.main import app
from retinue.config_file import ConfigError
from retinue.controller.config import load

PLAIN = """\
gateway_mac = "02:00:00:00:00:01"
[listen]
plaintext = ["openflow", "ovsdb", "rest"]
[cluster]
name = "c1"
url = "https://192.0.2.1:8080"
"""
TLS = '[cluster.tls]\nca = "ca.pem"\ncertificate = "c1.pem"\nkey = "c1.key"\n'


def config(folder: Path, text: str) -> Path:
    file = folder / "controller.toml"
    file.write_text(PLAIN + text)
    return file


def test_the_database_is_named_and_its_files_are_beside_the_configuration(tmp_path: Path) -> None:
    found = load(config(tmp_path, 'database = ["ssl:192.0.2.21:6641", "unix:/run/db.sock"]\n' + TLS)).cluster
    assert found is not None and found.tls is not None
    assert found.database == ["ssl:192.0.2.21:6641", "unix:/run/db.sock"]
    assert found.tls.key == str(tmp_path / "c1.key")
    assert found.mandate_seconds == 10.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("database = []", "names no server"),
        ('database = ["ssl:192.0.2.21:6641"]', r"needs the table \[cluster.tls\]"),
        ('database = ["192.0.2.21:6641"]', "cluster.database"),
        ('database = ["pssl:192.0.2.21:6641"]', "is no ssl:HOST:PORT or unix:PATH"),
        ('database = ["tcp:192.0.2.21"]', "cluster.database"),
        ('database = ["unix:/db"]\nmandate_seconds = 0.5', "mandate_seconds"),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load(config(tmp_path, text))


def test_the_command_that_checks_it_tells_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    good = config(tmp_path, 'database = ["unix:/run/db.sock"]\n')
    said = CliRunner().invoke(app, ["controller", "check", "--config", str(good)])
    assert said.exit_code == 0
    assert "one of several controllers, c1; their database is at unix:/run/db.sock" in said.stdout
    bad = config(tmp_path, 'database = ["ssl:192.0.2.21:6641"]\n' + TLS)
    said = CliRunner().invoke(app, ["controller", "check", "--config", str(bad)])
    assert said.exit_code == 1
    assert "ca.pem: there is no such file" in said.stderr

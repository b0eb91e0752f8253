"""A site of servers that exist, and what `retinue setup make` makes of its file."""

from pathlib import Path

from typer.testing import CliRunner

from retinue.cli.main import app

SITE = """
controller = "192.0.2.10"

[[subnet]]
id = "transfer"
prefix = "10.0.0.0/24"
gateway = "10.0.0.254"

[[subnet]]
id = "blue"
prefix = "10.1.0.0/24"
gateway = "10.1.0.254"

[[server]]
id = "server1"
management = "192.0.2.11"
endpoint = "172.16.1.2"
control = "qemu+tls://server1.example/system"

[[server]]
id = "server2"
management = "192.0.2.12"
endpoint = "172.16.2.2"

[[outside]]
id = "router"
server = "server1"
interface = "eth2"
mac = "02:00:00:00:00:e1"
address = "10.0.0.1"
routes = ["0.0.0.0/0"]
"""


def site_file(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text)
    return path


def make(tmp_path: Path, text: str = SITE) -> str:
    argv = ["setup", "make", str(site_file(tmp_path, text))]
    argv += ["--output", str(tmp_path / "machines"), "--pki", str(tmp_path / "pki")]
    done = CliRunner().invoke(app, argv)
    assert done.exit_code == 0 or isinstance(done.exception, SystemExit), done.exception
    return done.output

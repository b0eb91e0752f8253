"""The units of deploy/systemd, as systemd itself judges them."""

import re
import shutil
import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from typer.main import get_command

from retinue.cli.main import app
from retinue.setup import routes
from retinue.setup.site import ServerTable
from support.pages import ROOT

UNITS = ROOT / "deploy/systemd"
MOST_EXPOSED = {
    "retinue-controller.service": 2.0,
    "retinue-agent.service": 5.0,
    "retinue-mobility.service": 2.0,
    "retinue-resource.service": 2.0,
    routes.UNIT: 2.0,
}
"""By `systemd-analyze security`: 0 is a service that may do nothing, 10 one that may do all."""
analyze = shutil.which("systemd-analyze")
pytestmark = pytest.mark.skipif(analyze is None, reason="no systemd-analyze")


def ask(*words: str) -> str:
    done = subprocess.run([str(analyze), *words], capture_output=True, text=True)
    return f"{done.stdout}{done.stderr}"


def unit_text(name: str) -> str:
    """`retinue setup` makes one; the packages have the others."""
    if name != routes.UNIT:
        return (UNITS / name).read_text()
    server = ServerTable(
        id="server1",
        management=IPv4Address("192.0.2.11"),
        endpoint=IPv4Address("172.16.1.2"),
        routes=("172.16.0.0/16",),
    )
    return routes.files(server)[name]


def test_each_is_here() -> None:
    assert {path.name for path in UNITS.glob("*.service")} | {routes.UNIT} == set(MOST_EXPOSED)


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_systemd_finds_nothing_wrong(name: str, tmp_path: Path) -> None:
    unit = tmp_path / name
    unit.write_text(unit_text(name).replace("/usr/bin/retinue", "/bin/true"))
    assert ask("verify", "--man=no", str(unit)) == ""
    unit.write_text(unit.read_text().replace("Restart=", "Restrat="))
    assert "Unknown key 'Restrat'" in ask("verify", "--man=no", str(unit))


@pytest.mark.parametrize(("name", "most"), MOST_EXPOSED.items())
def test_a_service_may_do_no_more_than_it_needs(name: str, most: float, tmp_path: Path) -> None:
    unit = tmp_path / name
    unit.write_text(unit_text(name))
    said = ask("security", "--offline=true", "--no-pager", str(unit))
    (exposed,) = re.findall(rf"Overall exposure level for {re.escape(name)}: ([0-9.]+)", said)
    assert float(exposed) < most


@pytest.mark.parametrize("name", sorted(path.name for path in UNITS.glob("*.service")))
def test_what_is_started_is_a_command(name: str) -> None:
    (line,) = re.findall(r"^ExecStart=/usr/bin/retinue (.*)$", (UNITS / name).read_text(), re.MULTILINE)
    noun, verb, *options = line.split()
    command = get_command(app).commands[noun].commands[verb]  # type: ignore[attr-defined]
    known = {word for parameter in command.params for word in parameter.opts}
    assert {word for word in options if word.startswith("--")} <= known


def test_vms_outlive_their_agents_service() -> None:
    assert re.search(r"^KillMode=process$", (UNITS / "retinue-agent.service").read_text(), re.MULTILINE)

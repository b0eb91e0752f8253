"""`retinue agent report` and `retinue vm confirm`: what they send, and what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from retinue.agent.admin_socket import SOCKET
from retinue.cli.main import app
from retinue.cli.reported import ANSWER_LIMIT
from retinue.protocol import blocking, json_lines
from retinue.protocol.routes import Route

CONFIG = """\
server = "server3"
controller = "http://192.0.2.1:8080"
listen = "127.0.0.1:0"
folder = "{folder}"
bridge = "br0"
plaintext = true
[vm]
kernel = "/k"
initrd = "/i"
"""
SAID = ("agent", "report", "vm100", "--mac", "bc:24:11:00:00:64")


def run(*args: str) -> Result:
    return CliRunner().invoke(app, args)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "agent.toml"
    path.write_text(CONFIG.format(folder=tmp_path))
    return str(path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was asked, of whom, with what; the answer has what was reported as waiting."""
    heard: list[tuple[Any, ...]] = []

    def ask(path: Path, whom: str, limit: float, **request: Any) -> dict[str, Any]:
        heard.append((path.name, whom, limit, request))
        if request["vm"] == "bad":
            raise json_lines.RequestError("VM bad is at server server1, not at server3")
        return {"waiting": request["addresses"]}

    monkeypatch.setattr(json_lines, "ask_blocking", ask)
    return heard


def test_a_report_goes_to_the_servers_agent(config: str, asked: list[tuple[Any, ...]]) -> None:
    done = run(*SAID, "--address", "10.1.0.64", "--address", "10.1.0.65", "--config", config)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "VM vm100 is reported at server server3",
        "to be confirmed by a manager: 10.1.0.64, 10.1.0.65 (retinue vm confirm vm100)",
    ]
    body = {"do": "report", "vm": "vm100", "mac": "bc:24:11:00:00:64", "gone": False}
    addresses = ["10.1.0.64", "10.1.0.65"]
    assert asked == [(SOCKET, "the agent of server3", ANSWER_LIMIT, {**body, "addresses": addresses})]
    done = run(*SAID, "--gone", "--config", config, "--json")
    assert (done.exit_code, json.loads(done.output)) == (0, {"waiting": []})
    assert asked[-1][3]["gone"] is True
    assert run(*SAID, "--gone", "--config", config).output == (
        "VM vm100 is reported to be gone at server server3\n"
    )


def test_a_refusal_is_said_as_it_is(config: str, asked: list[tuple[Any, ...]]) -> None:
    done = run("agent", "report", "bad", "--mac", "bc:24:11:00:00:64", "--config", config)
    assert done.exit_code == 1
    assert "VM bad is at server server1, not at server3" in done.output


def test_a_manager_confirms_all_or_some(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Any, ...]] = []

    def ask(self: blocking.Client, route: Route, id: str = "", **more: Any) -> dict[str, Any]:
        sent.append((route, id, more.get("body")))
        return {
            "id": id,
            "reported_addresses": ["10.1.0.64", "10.2.0.64"],
            "nics": [{"addresses": ["10.1.0.64"]}, {"addresses": ["10.2.0.64"]}],
        }

    monkeypatch.setattr(blocking.Client, "ask", ask)
    done = run("vm", "confirm", "vm100", "--url", "http://192.0.2.1:8080")
    assert done.output.splitlines() == [
        "the server of VM vm100 has reported 10.1.0.64, 10.2.0.64",
        "VM vm100 has 10.1.0.64, 10.2.0.64",
    ]
    done = run("vm", "confirm", "vm100", "--address", "10.1.0.64", "--url", "http://192.0.2.1:8080", "--json")
    assert json.loads(done.output)["id"] == "vm100"
    assert sent == [
        (Route.GET_VM, "vm100", None),
        (Route.CONFIRM_VM, "vm100", {"addresses": ["10.1.0.64", "10.2.0.64"]}),
        (Route.CONFIRM_VM, "vm100", {"addresses": ["10.1.0.64"]}),
    ]

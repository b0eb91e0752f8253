"""Every command of `retinue`, run against a lab as a user runs it (row F5)."""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from lab_tools import Bench, Json, at, cli_environment
from retinue.cli.main import app

pytestmark = pytest.mark.lab

VMS = [at("vm1", "server1")]

READING: dict[str, tuple[list[str], str]] = {
    "lab status": ([], "switches"),
    "lab list": ([], "labs"),
    "controller status": ([], "flow_mods"),
    "vm list": ([], "vms"),
    "vm show": (["vm1"], "mac"),
    "move list": ([], "moves"),
    "binding list": (["--vm", "vm1"], "bindings"),
    "server list": ([], "servers"),
    "switch list": ([], "switches"),
    "switch audit": (["edge1"], "audits"),
    "flow list": (["--switch", "edge1", "--vm", "vm1", "--table", "admit"], "flows"),
}
"""Commands that only show something: further words, and a key of the JSON they print."""

CHANGING = {"vm add", "vm remove", "move start", "move show", "move cancel", "events"}
LABS = {"lab up", "lab down", "lab exec", "lab capture"}
PKI = {f"pki {verb}" for verb in ("init", "issue", "list", "renew", "show", "token")}
ELSEWHERE = {"lab compare", "agent renew", *PKI}
"""Commands with tests of their own: of the comparison, of renewals, of certificates."""
WITHOUT_JSON = {
    *("agent run", "controller run", "controller check"),
    *("lab exec", "lab capture", "lab down", "lab demo"),
}
"""The lab itself runs controller and agents; `lab demo` has tests of its own."""

SMALL = """
gateway_mac = "00:00:de:ad:be:ef"
[[subnet]]
id = "servers"
prefix = "10.0.0.0/24"
gateway = "10.0.0.254"
[[leaf]]
id = "leaf1"
dpid = 0x11
[[server]]
id = "server1"
leaf = "leaf1"
mac = "02:00:00:00:00:01"
address = "10.0.0.11"
edge = "edge1"
dpid = 0x31
[management]
prefix = "192.0.2.0/24"
"""


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """All commands by their words, as `--help` lists them."""
    if not hasattr(group, "commands"):
        return {prefix.strip(): group}
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found |= commands(command, f"{prefix} {name}")
    return found


ALL = commands(typer.main.get_command(app))


async def shown(bench: Bench, *argv: str) -> Any:
    return json.loads(await bench.cli(*argv, "--json"))


def test_every_command_is_tried_here() -> None:
    """F5: a new command needs a line in these tests; each that shows data can show it as JSON."""
    assert {*READING, *CHANGING, *LABS, *ELSEWHERE, *WITHOUT_JSON} == set(ALL)
    with_json = {name for name, command in ALL.items() if any("--json" in p.opts for p in command.params)}
    assert with_json == set(ALL) - WITHOUT_JSON


@pytest.mark.parametrize("command", READING)
async def test_commands_that_show_something(bench: Bench, command: str) -> None:
    """F5: as JSON with what was asked for, and as text for people."""
    words, key = READING[command]
    found = await shown(bench, *command.split(), *words)
    assert found[key] not in ({}, None)
    text = await bench.cli(*command.split(), *words)
    assert len(text.splitlines()) >= 1
    assert "{" not in text.splitlines()[0]


async def test_commands_that_change_something(bench: Bench) -> None:
    """F5, B1: a VM is booked, shown, moved by server and by switch, a move is taken back, the VM removed."""
    async with bench.events() as events:
        booked = await shown(
            bench, "vm", "add", "vm2", "--server", "server2", "--address", "10.1.0.60", "--wait"
        )
        assert [(vm["id"], vm["holds"]) for vm in booked["vms"]] == [("vm2", ["10.1.0.60"])]
        await events.until("vm.started")

        moved = await shown(bench, "move", "start", "vm2", "--to", "server3", "--wait")
        assert (moved["state"], moved["source"], moved["target"]) == ("done", "server2", "server3")
        back = await shown(
            bench, "move", "start", "vm2", "--to-switch", "edge2", "--from", "server3", "--wait"
        )
        assert (back["state"], back["target"]) == ("done", "server2")
        assert (await shown(bench, "move", "show", back["id"]))["figures"]["flow_mods"] > 0

        bench.kill("server3-vswitchd", signal.SIGSTOP)
        try:
            begun = await shown(bench, "move", "start", "vm2", "--to", "server3")
            cancelled = await shown(bench, "move", "cancel", begun["id"])
            assert (cancelled["state"], cancelled["reason"]) == ("rolling back", "cancelled by the operator")
        finally:
            bench.kill("server3-vswitchd", signal.SIGCONT)
        await events.until("move.step", lambda e: e["move"]["state"] == "undone")
        assert (await shown(bench, "vm", "show", "vm2"))["server"] == "server2"

        assert (await shown(bench, "vm", "remove", "vm2"))["removed"] == "vm2"
        since = str(events.seen[1]["id"])
        told = [
            json.loads(line) for line in (await bench.cli("events", "--since", since, "--json")).splitlines()
        ]
        assert [row["id"] for row in told] == sorted(row["id"] for row in told)
        assert {"vm.ready", "vm.started", "move.step", "vm.removed"} <= {row["type"] for row in told}


async def test_frames_can_be_captured(bench: Bench, tmp_path: Path) -> None:
    """F5: a capture of any interface, without tcpdump on the node, that tcpdump and tshark read."""
    command = [sys.executable, "-P", "-m", "retinue.cli.main", "lab", "capture", "router", "out0"]
    file = tmp_path / "client.pcap"
    with file.open("wb") as written:
        capture = await asyncio.create_subprocess_exec(
            *command, env=cli_environment(bench.lab), stdout=written, stderr=asyncio.subprocess.PIPE
        )
    assert capture.stderr is not None
    async with asyncio.timeout(20):
        assert await capture.stderr.readline() == b"listening on out0\n"
        assert await bench.ping("vm1", "203.0.113.9")
        capture.terminate()
        await capture.communicate()
    reader = await asyncio.create_subprocess_exec(
        *("tshark", "-nr", str(file), "-Y", "icmp", "-T", "fields", "-e", "ip.dst"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    seen = (await reader.communicate())[0].decode().split()
    assert seen[:2] == ["203.0.113.9", await bench.address("vm1")]


async def test_a_lab_can_be_started_beside_this_one_and_ended(bench: Bench, tmp_path: Path) -> None:
    """F5: up, list, exec and down by command; the configuration it gave its controller can be checked."""
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    beside = await shown(bench, "lab", "up", "--name", "beside", "--topology", str(file), "--no-vms")
    try:
        assert list(beside["switches"]) == ["leaf1", "edge1"]
        assert (await shown(bench, "lab", "list"))["labs"] == ["beside", "rows"]
        node = await bench.cli("lab", "exec", "server1", "--name", "beside", "--", "hostname")
        assert node == "retinue-beside\n"
        config = str(bench.lab.directory.parent / "beside" / "controller.toml")
        assert "is good: 2 switches, 1 servers" in await bench.cli("controller", "check", "--config", config)
        seen: Json = await shown(bench, "switch", "list", "--lab", "beside")
        assert [row["connected"] for row in seen["switches"]] == [True, True]
    finally:
        assert "is down" in await bench.cli("lab", "down", "--name", "beside")
    assert (await shown(bench, "lab", "list"))["labs"] == ["rows"]

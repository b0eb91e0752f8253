"""Every command of `retinue`, run against a lab as a user runs it."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import typer

from retinue.cli.main import app
from retinue_lab.topology.topology import SANDBOX
from support.browser import chromium
from support.lab.small_network import SMALL
from support.lab.tools import Json, LabBench, at, cli_environment, eventually, mac_of

pytestmark = pytest.mark.lab

VMS = [at("vm1", "server1")]

SWITCHES = ["leaf1", "leaf2", "spine1", "spine2", "edge1", "edge2", "edge3"]


def ids(rows: list[Json], key: str = "id") -> list[Any]:
    return [row[key] for row in rows]


READING: dict[str, tuple[list[str], Callable[[Json], object], object, str]] = {
    "lab status": ([], lambda found: sorted(found["switches"]), sorted(SWITCHES), "edge1"),
    "lab list": ([], lambda found: found["labs"], ["rows"], "rows"),
    "controller status": ([], lambda found: found["flow_mods"] > 0 and found["pending"], {}, "flow"),
    "vm list": ([], lambda found: ids(found["vms"]), ["vm1"], "vm1"),
    "vm show": (["vm1"], lambda found: (found["id"], found["mac"]), ("vm1", mac_of("vm1")), mac_of("vm1")),
    "move list": ([], lambda found: ids(found["migrations"], "vm"), ["vm1", "vm1"], "vm1"),
    "binding list": (["--vm", "vm1"], lambda found: ids(found["bindings"], "vm"), ["vm1"], mac_of("vm1")),
    "binding spoofing": ([], lambda found: found["spoof_attempts"], [], "no spoofing attempts"),
    "server list": (
        [],
        lambda found: {row["id"]: row["vms"] for row in found["servers"] if row["edge"]},
        {"server1": ["vm1"], "server2": [], "server3": []},
        "server3",
    ),
    "server show": (
        ["server2"],
        lambda found: (found["name"], found["kind"]),
        ("server2", "server"),
        "leaf2",
    ),
    "name list": (["--kind", "vm"], lambda found: ids(found["entities"], "name"), ["vm1"], "server1"),
    "name resolve": (["vm1"], lambda found: found["locator"]["server"], "server1", "at server1, edge1:"),
    "domain rebalance": (["--dry-run"], lambda found: found["steps"], [], "imbalance"),
    "switch list": (
        [],
        lambda found: {row["id"]: row["connected"] for row in found["switches"]},
        dict.fromkeys(SWITCHES, True),
        "spine2",
    ),
    "switch audit": (
        ["edge1"],
        lambda found: [
            (row["switch"], row["entries"] > 0, row["missing"] + row["changed"] + row["foreign"])
            for row in found["audits"]
        ],
        [("edge1", True, 0)],
        "edge1",
    ),
    "link list": (
        [],
        lambda found: {(row["lower"].split(":")[0], row["state"]) for row in found["links"]},
        {("leaf1", "well"), ("leaf2", "well")},
        "spine1:spine1-leaf1",
    ),
    "switch table": (
        ["edge1"],
        lambda found: (
            "vm1" in [row["vm"] for row in found["rows"]],
            [row["mac"] for row in found["rows"] if row["shared"]],
        ),
        (True, ["00:00:de:ad:be:ef"]),
        "(any other)",
    ),
    "server routes": ([], lambda found: [row["router"] for row in found["routes"]], ["router"], "the way"),
    "binding fcoe": ([], lambda found: found["logins"], [], "Nobody is logged in."),
    "vrf list": ([], lambda found: ids(found["vrfs"]), ["default"], "default"),
    "vnet list": ([], lambda found: ids(found["vnets"]), ["default"], "default"),
    "subnet list": (
        [],
        lambda found: {row["prefix"]: row["vnet"] for row in found["subnets"]}["10.1.0.0/24"],
        "default",
        "10.1.0.254",
    ),
    "doctor": ([], lambda found: (found["state"], found["findings"]), ("ok", []), "All is as it should be."),
    "image list": ([], lambda found: found["images"], [], "There are no images."),
    "flow list": (
        ["--switch", "edge1", "--vm", "vm1", "--table", "admit"],
        lambda found: (len(found["flows"]) > 0, {row["table_name"] for row in found["flows"]}),
        (True, {"ADMIT"}),
        "ADMIT",
    ),
}
"""Commands that only show something: further words, what of the JSON they print must be what, and what
must be in the text for people."""

CHANGING = {
    *("vm add", "vm set", "vm remove", "vm start", "vm stop", "vm reboot", "vm reset"),
    *("server drain", "server undrain", "server fence", "server unfence"),
    *("move start", "move show", "move cancel", "events"),
    *("name add", "name remove", "placement explain"),
}
LABS = {"lab up", "lab down", "lab exec", "lab capture", "lab web"}
IMAGES = {f"image {verb}" for verb in ("publish", "show", "fetch", "unpin", "remove", "gc", "scrub")}
PKI = {f"pki {verb}" for verb in ("init", "issue", "list", "renew", "show", "token")}
NETWORKS = {f"{noun} {verb}" for noun in ("vnet", "subnet", "vm nic") for verb in ("add", "set", "remove")}
NETWORKS |= {"switch add", "switch set", "switch remove", "link add", "link remove", "server remove"}
NETWORKS |= {"vrf add", "vrf remove", "vrf add-router", "vrf remove-router"}
NETWORKS |= {"gateway add", "gateway set", "gateway remove", "gateway list"}
KNOWN_BY_UNITS = {*(f"pair {verb}" for verb in ("add", "list", "remove"))}
KNOWN_BY_UNITS |= {f"booking {verb}" for verb in ("add", "list", "release")}
KNOWN_BY_UNITS |= {
    "trace",
    "agent leases",
    "agent report",
    "vm confirm",
    "domain list",
    "server forget-agent",
    "support-dump",
}
KNOWN_BY_UNITS |= {"setup look", "setup make", "placement find"}
KNOWN_BY_UNITS |= {f"anchor {verb}" for verb in ("list", "show", "set", "end", "resume")}
ELSEWHERE = {"lab compare", "agent renew", "client report", *PKI, *IMAGES, *NETWORKS, *KNOWN_BY_UNITS}
"""Commands with tests of their own: of the comparison, renewals, roaming, certificates, images, networks."""
WITHOUT_JSON = {
    *(
        f"{daemon} {verb}"
        for daemon in ("agent", "controller", "mobility", "resource")
        for verb in ("run", "check")
    ),
    *("lab exec", "lab capture", "lab web", "lab down", "lab demo"),
    *("openapi", "controller schema"),  # They are JSON.
}
"""The lab itself runs controller and agents; `lab demo` has tests of its own."""


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """All commands by their words, as `--help` lists them."""
    if not hasattr(group, "commands"):
        return {prefix.strip(): group}
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found |= commands(command, f"{prefix} {name}")
    return found


ALL = commands(typer.main.get_command(app))


async def shown(bench: LabBench, *argv: str) -> Any:
    return json.loads(await bench.cli(*argv, "--json"))


def test_every_command_is_tried_here() -> None:
    """A new command needs a line in these tests; each that shows data can show it as JSON."""
    assert {*READING, *CHANGING, *LABS, *ELSEWHERE, *WITHOUT_JSON} == set(ALL)
    with_json = {name for name, command in ALL.items() if any("--json" in p.opts for p in command.params)}
    assert with_json == set(ALL) - WITHOUT_JSON


@pytest.mark.parametrize("command", READING)
async def test_commands_that_show_something(bench: LabBench, command: str) -> None:
    """As JSON with what was asked for, and as text for people."""
    words, pick, expected, text_has = READING[command]
    if command == "move list":
        for server in ("server2", "server1"):
            await bench.migration("vm1", target_server=server)
    found = await shown(bench, *command.split(), *words)
    assert pick(found) == expected, found
    text = await bench.cli(*command.split(), *words)
    assert text_has in text
    assert "{" not in text.splitlines()[0]


async def test_commands_that_change_something(bench: LabBench) -> None:
    """A VM is registered, shown, moved by server and by switch, a migration is taken back, the VM removed."""
    async with bench.events() as events:
        registered = await shown(
            bench, "vm", "add", "vm2", "--server", "server2", "--address", "10.1.0.60", "--wait"
        )
        assert [(vm["id"], vm["holds"]) for vm in registered["vms"]] == [("vm2", ["10.1.0.60"])]
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
        await events.until("migration.step", lambda e: e["migration"]["state"] == "undone")
        assert (await shown(bench, "vm", "show", "vm2"))["server"] == "server2"
        changed = await shown(bench, "vm", "set", "vm2", "--address", "10.1.0.61")
        assert changed["holds"] == ["10.1.0.61"]

        assert (await shown(bench, "vm", "remove", "vm2"))["removed"] == "vm2"
        since = str(events.seen[1]["id"])
        told = [
            json.loads(line) for line in (await bench.cli("events", "--since", since, "--json")).splitlines()
        ]
        assert [row["id"] for row in told] == sorted(row["id"] for row in told)
        assert {"vm.ready", "vm.started", "migration.step", "vm.removed"} <= {row["type"] for row in told}


async def test_a_vm_is_switched_off_on_and_anew(bench: LabBench) -> None:
    async def booted(times: int) -> None:
        async def seen() -> bool:
            return (await bench.console("vm1")).count("RETINUE READY") >= times

        await eventually(seen)

    assert (await shown(bench, "vm", "stop", "vm1", "--hard", "--wait"))["state"] == "off"
    assert (await shown(bench, "vm", "start", "vm1", "--wait"))["state"] == "running"
    await booted(1)
    assert (await shown(bench, "vm", "reset", "vm1"))["id"] == "vm1"
    await booted(2)
    assert (await shown(bench, "vm", "reboot", "vm1"))["id"] == "vm1"
    await booted(3)
    assert (await shown(bench, "vm", "stop", "vm1", "--wait"))["state"] == "off", "by its power button"
    assert "off" in await bench.cli("vm", "list")
    await bench.cli("vm", "start", "vm1", "--wait")
    await booted(1)


async def test_a_server_is_drained(bench: LabBench) -> None:
    lines = (await bench.cli("server", "drain", "server1", "--json")).splitlines()
    assert lines
    assert (await shown(bench, "vm", "show", "vm1"))["server"] in ("server2", "server3")
    said = await bench.cli("move", "start", "vm1", "--to", "server1", fails=True)
    assert "server1 is drained; `retinue server undrain server1` lets it take VMs again" in said
    assert await bench.cli("server", "undrain", "server1") == "server1 takes VMs again\n"
    await bench.cli("move", "start", "vm1", "--to", "server1", "--wait")


async def test_a_service_is_named_and_its_vm_goes_where_it_is_best(bench: LabBench) -> None:
    await shown(bench, "name", "add", "shop", "--kind", "service", "--served-by", "vm1")
    said = await bench.cli("name", "add", "server2", "--kind", "service", "--served-by", "vm1", fails=True)
    assert "server2 is the name of a server" in said
    begun = await shown(bench, "move", "start", "vm1", "--wait")
    assert (
        begun["target"] == (await shown(bench, "name", "resolve", "shop"))["locator"]["server"] != "server1"
    )
    assert (await shown(bench, "placement", "explain", begun["id"]))["same"]
    assert (await shown(bench, "name", "remove", "shop")) == {"removed": "shop"}
    assert "nothing has the name shop" in await bench.cli("name", "resolve", "shop", fails=True)
    await bench.cli("move", "start", "vm1", "--to", "server1", "--wait")


async def test_frames_can_be_captured(bench: LabBench, tmp_path: Path) -> None:
    """A capture of any interface, without tcpdump on the node, that tcpdump and tshark read."""
    command = [sys.executable, "-P", "-m", "retinue.cli.main", "lab", "capture", "router", "out0"]
    file = tmp_path / "client.pcap"
    with file.open("wb") as written:
        capture = await asyncio.create_subprocess_exec(
            *command, env=cli_environment(bench.lab), stdout=written, stderr=asyncio.subprocess.PIPE
        )
    assert capture.stderr is not None
    async with asyncio.timeout(60):
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


@contextlib.asynccontextmanager
async def in_a_browser(bench: LabBench) -> AsyncIterator[str]:
    """The address that `retinue lab web` prints, while it serves it."""
    command = [sys.executable, "-P", "-m", "retinue.cli.main", "lab", "web"]
    door = await asyncio.create_subprocess_exec(
        *command, env=cli_environment(bench.lab), stdout=asyncio.subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert door.stdout is not None
    try:
        yield (await door.stdout.readline()).decode().strip()
    finally:
        door.terminate()
        await door.communicate()


async def test_the_web_page_is_reached_from_the_host(bench: LabBench) -> None:
    """And with the token in the address one is the lab's manager."""
    async with in_a_browser(bench) as address, aiohttp.ClientSession() as http:
        url, token = address.split("/#token=")
        async with http.get(f"{url}/") as answer:
            assert answer.status == 200 and "<title>retinue</title>" in await answer.text()
        async with http.get(f"{url}/v1/vms") as answer:
            assert answer.status == 401
        async with http.get(f"{url}/web/who", headers={"Authorization": f"Bearer {token}"}) as answer:
            assert await answer.json() == {"name": "manager lab", "manages": True}


@pytest.mark.browser
async def test_a_move_is_started_by_a_click_and_seen_to_end(bench: LabBench) -> None:
    with chromium() as browser:
        async with in_a_browser(bench) as address:
            await browser.open(address)
            await browser.click('[data-key="vm vm1"]')
            await browser.choose("#target", "server2")
            await browser.click("#start-move")
            await browser.sees("dd", "done")
            await browser.sees(".timeline .paused", "VM paused")
            [migration] = (await bench.get("migrations"))["migrations"][-1:]
            assert (migration["vm"], migration["target"], migration["state"]) == ("vm1", "server2", "done")
            downtime = (migration["resumed_at"] - migration["stopped_at"]) * 1000
            await browser.sees("dd", f"{downtime:.1f} ms")
            await browser.open(f"{address.split('#')[0]}#/servers/server2")
            await browser.sees("td", "vm1")
            assert browser.said() == []
    await bench.migration("vm1", target_server="server1")


async def test_a_lab_can_be_started_beside_this_one_and_ended(bench: LabBench, tmp_path: Path) -> None:
    """Up, list, exec and down by command; the configuration it gave its controller can be checked."""
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


async def test_the_vm_of_a_dead_server_goes_on_elsewhere_and_its_return_does_no_harm(bench: LabBench) -> None:
    """Server3 hangs with all that is on it, a VM included, and comes back when the VM runs at server2."""
    address = "10.1.0.63"

    async def answers() -> bool:
        said = await bench.run("client", "sh", "-c", f"ping -c 1 -W 1 {address} || true")
        return " 0% packet loss" in said

    async with bench.events() as events:
        await bench.cli("vm", "add", "vm3", "--server", "server3", "--address", address)
        await events.until("vm.started", lambda e: e["vm"]["id"] == "vm3")
        await eventually(answers)
        running = {one.name: one.host_pid or 0 for one in bench.lab.daemons() if one.running}
        frozen = [running[f"server3-{part}"] for part in ("agent", "vswitchd", "ovsdb")]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        await bench.run(SANDBOX, "pkill", "-STOP", "-f", "guest=vm3")
        assert not await answers()

        await bench.cli("server", "fence", "server3")
        said = await bench.cli("move", "start", "vm1", "--to", "server3", fails=True)
        assert "server3 is fenced" in said
        await bench.cli("vm", "add", "vm3", "--server", "server2", "--address", address)
        await events.until("vm.started", lambda e: (e["vm"]["id"], e["server"]) == ("vm3", "server2"))
        await eventually(answers)
        (row,) = await bench.bindings("vm3")
        assert (row["ip"], row["switch"], row["active"]) == (address, "edge2", True)

        # It returns, and its VM runs there again, for as long as nobody has told it better.
        async with bench.traffic(address) as echoes:
            await bench.run(SANDBOX, "pkill", "-CONT", "-f", "guest=vm3")
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)

            async def in_order() -> bool:
                return "no longer fenced" in await bench.cli("server", "unfence", "server3", fails=None)

            await eventually(in_order)

            async def at_one_place() -> bool:
                return await bench.machines("vm3") == ["server2"]

            await eventually(at_one_place)
            await bench.unharmed(echoes)
    assert [row["switch"] for row in await bench.bindings("vm3")] == ["edge2"]
    await bench.cli("move", "start", "vm3", "--to", "server3", "--wait")
    await bench.cli("vm", "remove", "vm3")

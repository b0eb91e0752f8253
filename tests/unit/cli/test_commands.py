"""The command line: what it sends and waits for (a fake controller), what it shows (the real one's data)."""

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from retinue.cli import client, connection, events, main, nic, output
from retinue.cli.controller import _manager
from retinue.cli.main import app
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.controller.config import load
from retinue.protocol import blocking
from retinue.protocol.errors import ControllerError
from retinue.protocol.hypervisor_events import EventKind
from retinue.protocol.routes import Route
from retinue_lab.errors import LabError
from retinue_lab.measure import sniff
from retinue_lab.network.controller_config import controller_config
from retinue_lab.sandbox import handle as sandbox
from retinue_lab.topology import topology_file
from support.api_thread import serving

VM1 = {
    "id": "vm1", "mac": "52:54:00:00:00:01", "server": "server1", "also": [], "addresses": [],
    "reported": False, "state": "registered", "missing": ["switch edge1 has no port with iface-id vm1"],
    "switch": "edge1", "port": 3, "holds": ["10.1.0.100"], "migration": "",
    "spoof_attempts": 2, "subnets": {},
    "nics": [
        {"id": "vm1", "mac": "52:54:00:00:00:01", "vnet": "", "addresses": [], "enabled": True,
         "slot": 1, "port": 3, "holds": ["10.1.0.100"]},
    ],
}  # fmt: skip


class FakeController:
    """Answers by a table of routes, remembers what it was sent, and streams the events it is given."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], Any] = {}
        """Answer by method and path with query; a tuple is (status, answer), bytes are sent as they are."""
        self.after_stream: dict[tuple[str, str], Any] = {}
        """Routes that change when the first event stream is opened."""
        self.requests: list[tuple[str, str, Any]] = []
        self.ring: list[dict[str, Any]] = []
        self.come: queue.Queue[dict[str, Any] | None] = queue.Queue()
        """Events to send to who listens; None ends the stream."""
        self.last_event = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self.come.put(None)
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def happened(self, type: str, **data: Any) -> None:
        """An event that is in the ring already."""
        self.last_event += 1
        self.ring.append({"id": self.last_event, "at": 1000.0, "type": type, **data})

    def will_happen(self, type: str, **data: Any) -> None:
        """An event sent once somebody listens."""
        after = self.last_event + self.come.qsize() + 1
        self.come.put({"id": after, "at": 1000.0, "type": type, **data})

    def sent(self, method: str, path: str) -> list[Any]:
        return [body for m, p, body in self.requests if (m, p) == (method, path)]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fake.requests.append((self.command, self.path, json.loads(body) if body else None))
                if self.path.startswith("/v1/events"):
                    self.stream(int(self.path.partition("since=")[2]))
                    return
                value = fake.routes.get((self.command, self.path), (404, {"error": f"no {self.path}"}))
                if (self.command, self.path) == ("GET", "/v1/status"):
                    value = {"last_event": fake.last_event}
                status, value = value if isinstance(value, tuple) else (200, value)
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def stream(self, since: int) -> None:
                fake.routes.update(fake.after_stream)
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.chunk({"id": fake.last_event, "type": "hello"})
                for event in [e for e in fake.ring if e["id"] > since]:
                    self.chunk(event)
                while (later := fake.come.get()) is not None:
                    self.chunk(later)
                self.wfile.write(b"0\r\n\r\n")

            def chunk(self, event: dict[str, Any]) -> None:
                head = f"id: {event['id']}\n" if event["type"] != "hello" else ""
                text = f": a comment\n\n{head}event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(text), text))

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


@pytest.fixture
def fake() -> Iterator[FakeController]:
    controller = FakeController()
    yield controller
    controller.close()


@pytest.fixture
def real(tmp_path: Path) -> Iterator[str]:
    """The URL of the real interface over the default lab's network, without switches."""
    config = tmp_path / "controller.toml"
    config.write_text(controller_config(topology_file.load(None)))

    def api(controller: Controller) -> Api:
        return Api(controller, lambda: {"openflow": {"bad version": 1}})

    with serving(lambda: Controller(load(config).network()), api) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RETINUE_URL", "RETINUE_LAB", connection.INSIDE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RETINUE_LAB_DIR", str(tmp_path / "labs"))


def run(*args: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, args, input=input)


def good(*args: str, input: str | None = None) -> str:
    result = run(*args, input=input)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def bad(*args: str) -> str:
    """What a command that fails says: one sentence, on standard error only."""
    result = run(*args)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("retinue: ") and result.stderr.count("\n") == 1
    return result.stderr


# ---- what the real controller answers can be read and shown ----


def test_session_with_the_real_interface(real: str) -> None:
    at = ("--url", real)
    assert "There are no VMs" in good("vm", "list", *at)
    assert "There are no bindings" in good("binding", "list", *at)
    assert "There are no migrations" in good("move", "list", *at)
    said = good("vm", "add", "vm1", "--server", "server1", "--address", "10.1.0.50", *at)
    assert said == f"VM vm1 is registered: MAC {nic.mac_for('vm1')}, at server1 on edge1; 10.1.0.50\n"
    assert re.search(
        r"^vm1 +52:54:00:\S+ +10\.1\.0\.50 +server1 +edge1 +- +registered", good("vm", "list", *at), re.M
    )
    shown = good("vm", "show", "vm1", *at)
    assert "server server1 has not been detected at any leaf" in shown
    assert re.search(r"^IP +10\.1\.0\.50$", shown, re.M)
    assert re.search(r"^server1 .*edge1 .*missing +vm1$", good("server", "list", *at), re.M)
    assert re.search(r"^edge1 +edge +0x31 +server1 +no", good("switch", "list", *at), re.M)
    flows = good("flow", "list", "--switch", "edge1", "--table", "admit", *at)
    assert "0 ADMIT" in flows and "ARP" not in flows.split("REASON")[0]
    assert {
        row["table"] for row in json.loads(good("flow", "list", "--table", "30", "--json", *at))["flows"]
    } == {30}
    # What is for it is held: its server is not found.
    rows = good("flow", "list", "--vm", "vm1", *at).splitlines()[1:]
    assert rows and all("unplaced" in row for row in rows)
    assert "migration-1: vm1 migrates from server1 to server2" in good(
        "move", "start", "vm1", "--to", "server2", *at
    )
    assert "waits for the target server's location" in good("move", "show", "migration-1", *at)
    assert re.search(r"^migration-1 +vm1 +server1 +server2 +planned", good("move", "list", *at), re.M)
    assert "rolling back: cancelled by the operator" in good("move", "cancel", "migration-1", *at)
    said = good("events", *at)
    assert "vm.registered" in said and "migration-1 (vm1: server1 to server2, rolling back)" in said
    assert "vm.registered" not in good("events", "--type", "migration", *at)
    assert "0 of 7 connected" in good("controller", "status", *at)
    assert "openflow: bad version 1" in good("controller", "status", *at)
    counts = {"since": 5.0, "rejected": {"tls": 3, "wrong_server": 1}}
    blocking.Client(real).ask(Route.REPORT_COUNTERS, "server2", body=counts)
    shown = good("controller", "status", *at)
    assert re.search(r"^rejected by agents +server2: tls 3, server2: wrong_server 1$", shown, re.M)


def test_a_vm_has_several_nics(real: str) -> None:
    first, second = (
        "mac=52:54:00:00:00:01,address=10.1.0.50",
        "address=10.1.0.51,address=10.1.0.52,enabled=no",
    )
    said = good("vm", "add", "vm1", "--server", "server1", "--nic", first, "--nic", second, "--url", real)
    made = nic.mac_for("vm1-2")
    assert f"MAC 52:54:00:00:00:01, {made}, at" in said
    listed = good("vm", "list", "--url", real)
    row = rf"^vm1 +52:54:00:00:00:01, {made} +10.1.0.50, 10.1.0.51, 10.1.0.52 +server1"
    assert re.search(row, listed, re.M)
    shown = good("vm", "show", "vm1", "--url", real)
    assert "NIC vm1: 52:54:00:00:00:01, no port yet: 10.1.0.50\n" in shown
    assert f"NIC vm1-2: {made}, no port yet: 10.1.0.51, 10.1.0.52 (disabled)\n" in shown
    assert "switch edge1 has no port with iface-id vm1-2" in shown
    one = json.loads(good("vm", "show", "vm1", "--json", "--url", real))
    assert [(row["id"], row["mac"], row["holds"]) for row in one["nics"]] == [
        ("vm1", "52:54:00:00:00:01", ["10.1.0.50"]),
        ("vm1-2", made, ["10.1.0.51", "10.1.0.52"]),
    ]
    assert (one["mac"], one["addresses"]) == ("52:54:00:00:00:01", ["10.1.0.50"])


def test_nics_are_put_in_changed_and_taken_out(real: str) -> None:
    at = ("--url", real)
    good("vm", "add", "vm1", "--server", "server1", *at)
    said = good("vm", "nic", "add", "vm1", *at)
    assert f"NIC vm1-2: {nic.mac_for('vm1-2')}, no port yet: no address\n" in said
    good("vm", "nic", "add", "vm1", "--id", "spare", "--mac", "52:54:00:00:00:09", *at)
    said = good("vm", "nic", "set", "vm1", "spare", "--address", "10.1.0.51", *at)
    assert "NIC spare: 52:54:00:00:00:09, no port yet: 10.1.0.51\n" in said
    said = good("vm", "nic", "set", "vm1", "spare", "--disable", *at)
    assert "NIC spare: 52:54:00:00:00:09, no port yet: 10.1.0.51 (disabled)\n" in said
    said = good("vm", "nic", "set", "vm1", "spare", "--no-address", "--enable", *at)
    assert "NIC spare: 52:54:00:00:00:09, no port yet: no address\n" in said
    assert "vm1-2" not in good("vm", "nic", "remove", "vm1", "vm1-2", *at)
    assert "has no NIC vm1-2, but vm1, spare" in bad("vm", "nic", "remove", "vm1", "vm1-2", *at)
    assert "known by its first NIC" in bad("vm", "nic", "remove", "vm1", "vm1", *at)
    shown = json.loads(good("vm", "nic", "add", "vm1", "--json", *at))
    assert [(row["id"], row["slot"]) for row in shown["nics"]] == [("vm1", 1), ("spare", 3), ("vm1-2", 2)]


def test_a_trunk_is_said_nic_by_nic_and_shown(real: str) -> None:
    at = ("--url", real)
    good("vnet", "add", "shop", "--vlan", "50", *at)
    carried = ("--nic", "trunk=fw,vnet=shop")
    said = bad("vm", "add", "fw", "--server", "server1", "--nic", "", *carried, "--nic", "trunk=fw", *at)
    assert "NIC fw-3, in the trunk of fw, is known by the VLAN of its vnet, and it is in no vnet" in said
    good("vm", "add", "fw", "--server", "server1", "--nic", "", *carried, *at)
    shown = good("vm", "show", "fw", *at)
    mac = nic.mac_for("fw-2")
    assert f"NIC fw-2: {mac} in shop, VLAN 50 in the trunk of fw, no port yet: no address\n" in shown
    assert "has no port with iface-id fw" in shown and "iface-id fw-2" not in shown
    assert "a trunk has a VLAN once" in bad("vm", "nic", "add", "fw", "--trunk", "fw", "--vnet", "shop", *at)
    assert "shop keeps VLAN 50" in bad("vnet", "set", "shop", "--vlan", "51", *at)
    good("vm", "nic", "remove", "fw", "fw-2", *at)
    said = good("vm", "nic", "add", "fw", "--trunk", "fw", "--vnet", "shop", *at)
    assert f"NIC fw-2: {mac} in shop, VLAN 50 in the trunk of fw" in said
    good("vm", "nic", "add", "fw", *at)
    nics = json.loads(good("vm", "show", "fw", "--json", *at))["nics"]
    assert [(row["id"], row["slot"], row["trunk"], row["vlan"]) for row in nics] == [
        ("fw", 1, "", 0), ("fw-2", 0, "fw", 50), ("fw-3", 2, "", 0),
    ]  # fmt: skip


def test_a_nic_is_changed(real: str) -> None:
    at = ("--url", real)
    good("vm", "add", "vm1", "--server", "server1", "--mac", "52:54:00:00:00:01", *at)
    said = good(
        "vm",
        "nic",
        "set",
        "vm1",
        "--disable",
        "--rate",
        "5000",
        "--allow",
        "10.1.0.200=00:00:5e:00:01:07",
        *at,
    )
    words = "no port yet: no address, 5000 kbit/s, may take 10.1.0.200 (disabled)"
    assert said == f"NIC vm1: 52:54:00:00:00:01, {words}\n"
    (one,) = json.loads(good("vm", "show", "vm1", "--json", *at))["nics"]
    assert one["allowed"] == [{"address": "10.1.0.200", "mac": "00:00:5e:00:01:07"}]
    said = good("vm", "nic", "set", "vm1", "vm1", "--enable", "--rate", "0", "--allow", "none", *at)
    assert said == "NIC vm1: 52:54:00:00:00:01, no port yet: no address\n"
    changed = json.loads(good("vm", "nic", "set", "vm1", "--mac", "52:54:00:00:00:99", "--json", *at))
    assert changed["mac"] == "52:54:00:00:00:99"
    prefixes = ("--prefix", "10.9.0.0/28", "--prefix", "fd00:9::/64")
    said = good("vm", "nic", "set", "vm1", *prefixes, *at)
    assert said.endswith("no port yet: no address, has 10.9.0.0/28, fd00:9::/64 routed to it\n")
    assert "routed" not in good("vm", "nic", "set", "vm1", "--prefix", "none", *at)
    assert "has no NIC x" in bad("vm", "nic", "set", "vm1", "x", "--disable", *at)
    assert "not a MAC address" in bad("vm", "nic", "set", "vm1", "--mac", "x", *at)


def test_switches_and_links_are_added_changed_and_removed(real: str) -> None:
    at = ("--url", real)
    spine = ("--role", "spine", "--dpid", "0x99")
    assert "switch spine9 is there" in good("switch", "add", "spine9", *spine, *at)
    assert "is there already; `retinue switch set spine9`" in bad("switch", "add", "spine9", *spine, *at)
    assert good("switch", "set", "spine9", "--dpid", "9a", *at) == "switch spine9 is changed\n"
    ends = ("leaf1:to-spine9", "spine9:to-leaf1")
    assert "link leaf1:to-spine9 - spine9:to-leaf1 is there" in good("link", "add", *ends, *at)
    row = r"^leaf1:to-spine9 +spine9:to-leaf1 +idle +no +switch leaf1 is not connected$"
    assert re.search(row, good("link", "list", *at), re.M)
    assert "spine9 is in use by link leaf1:to-spine9" in bad("switch", "remove", "spine9", *at)
    assert good("link", "remove", ends[0], *at) == f"link {ends[0]} is removed\n"
    assert f"there is no link at {ends[0]}" in bad("link", "remove", ends[0], *at)
    edge = ("--role", "edge", "--dpid", "39", "--uplink", "eth0", "--uplink", "eth1", "--vdp")
    good("switch", "add", "edge9", *edge, *at)
    good("switch", "set", "edge9", "--no-vdp", *at)
    [shown] = (
        row for row in blocking.Client(real).ask(Route.LIST_SWITCHES)["switches"] if row["id"] == "edge9"
    )
    said = {"dpid": "0x39", "uplink": "eth0", "standby": ["eth1"], "vdp": False, "configured": False}
    assert said.items() <= shown.items()
    assert "there is no gateway group x" in bad("switch", "set", "leaf1", "--gateway-group", "x", *at)
    assert "spine1 is in use by link leaf1:leaf1-spine1" in bad("switch", "remove", "spine1", *at)
    assert "there is no switch x" in bad("switch", "set", "x", "--dpid", "1", *at)
    assert json.loads(good("switch", "remove", "edge9", "--json", *at)) == {"removed": "edge9"}
    assert good("switch", "remove", "spine9", *at) == "switch spine9 is removed\n"
    nas = {"id": "nas", "mac": "02:00:00:00:07:07", "routes": ["10.9.0.0/24"], "services": ["router"]}
    blocking.Client(real).ask(Route.REGISTER_SERVERS, body=nas)
    assert good("server", "remove", "nas", *at) == "server nas is removed\n"


def test_vnets_and_subnets_are_added_changed_and_removed(real: str) -> None:
    at = ("--url", real)
    assert "vnet shop is there" in good("vnet", "add", "shop", "--vlan", "42", *at)
    assert good("vnet", "set", "shop", "--mtu", "1400", *at) == "vnet shop is changed\n"
    green = ("--prefix", "10.2.0.0/24", "--gateway", "10.2.0.254", "--vnet", "shop", "--dhcp", "10.1.0.2")
    assert "subnet green is there" in good("subnet", "add", "green", *green, *at)
    assert "is in use by subnet green" in bad("vnet", "remove", "shop", *at)
    pools = {"dhcp_pools": ["10.2.0.100-10.2.0.199"], "dhcp": ["10.1.0.2"], "vnet": "shop"}
    api = blocking.Client(real)
    api.ask(Route.SET_SUBNET, "green", body={"prefix": "10.2.0.0/24", "gateway": "10.2.0.254", **pools})
    good("subnet", "set", "green", "--prefix", "10.2.0.0/23", *at)
    [shown] = (one for one in api.ask(Route.LIST_SUBNETS)["subnets"] if one["id"] == "green")
    assert pools.items() <= shown.items()
    row = r"^green +10\.2\.0\.0/23 +10\.2\.0\.254 +shop +42 +10\.1\.0\.2 +- +0$"
    assert re.search(row, good("subnet", "list", *at), re.M)
    assert re.search(r"^shop +default +42 +1400 +dropped[ -]+green *$", good("vnet", "list", *at), re.M)
    good("vnet", "set", "shop", "--flood", "controlled", *at)
    assert re.search(r"^shop +default +42 +1400 +controlled ", good("vnet", "list", *at), re.M)
    assert "flooding needs a VLAN" in bad("vnet", "set", "shop", "--vlan", "0", *at)
    assert "stands in the configuration file" in bad("subnet", "remove", "blue", *at)
    assert "there is no subnet x" in bad("subnet", "set", "x", "--gateway", "10.2.0.1", *at)
    assert good("subnet", "remove", "green", *at) == "subnet green is removed\n"
    assert json.loads(good("vnet", "remove", "shop", "--json", *at)) == {"removed": "shop"}


def test_vrfs_are_added_and_removed_and_a_vnet_keeps_its_own(real: str) -> None:
    at = ("--url", real)
    assert "VRF red is there" in good("vrf", "add", "red", *at)
    assert "VRF green is there" in good("vrf", "add", "green", "--tag", "7", *at)
    assert "tag 7 is VRF green's" in bad("vrf", "add", "grey", "--tag", "7", *at)
    good("vnet", "add", "reds", "--vrf", "red", *at)
    good("vnet", "set", "reds", "--mtu", "1400", *at)
    blue = ("--prefix", "10.1.0.0/24", "--gateway", "10.1.0.254", "--vnet", "reds")
    good("subnet", "add", "red1", *blue, *at)
    assert "reds cannot leave VRF red" in bad("vnet", "set", "reds", "--vrf", "green", *at)
    assert re.search(r"^red +1 +reds +- +0 *$", good("vrf", "list", *at), re.M)
    assert "VRF red is in use by vnet reds" in bad("vrf", "remove", "red", *at)
    assert "there is no VRF x; `retinue vrf list`" in bad("vrf", "remove", "x", *at)
    assert good("vrf", "remove", "green", *at) == "VRF green is removed\n"
    good("subnet", "remove", "red1", *at)
    good("vnet", "remove", "reds", *at)
    assert json.loads(good("vrf", "remove", "red", "--json", *at)) == {"removed": "red"}


def test_an_isolated_vnet_has_a_vrf_of_its_own_until_it_is_routed_again(real: str) -> None:
    at = ("--url", real)
    good("vnet", "add", "bank", "--vlan", "50", "--isolated", *at)
    assert re.search(r"^bank +bank +50 ", good("vnet", "list", *at), re.M)
    assert re.search(r"^bank +50 +bank +- +0 *$", good("vrf", "list", *at), re.M)
    good("vnet", "set", "bank", "--mtu", "1400", *at)
    assert re.search(r"^bank +bank +50 +1400 ", good("vnet", "list", *at), re.M)
    good("vnet", "set", "bank", "--routed", *at)
    assert re.search(r"^bank +default +50 +1400 ", good("vnet", "list", *at), re.M)
    good("vnet", "set", "bank", "--isolated", *at)
    good("vnet", "remove", "bank", *at)
    assert "bank" not in good("vrf", "list", *at)


def test_who_knows_no_other_domain_is_told_so(real: str) -> None:
    assert good("domain", "list", "--url", real) == "No other domain is configured.\n"
    assert json.loads(good("domain", "list", "--json", "--url", real)) == {"domains": [], "vms": []}


def test_how_managers_are_is_in_the_status() -> None:
    away = {"state": "away", "reason": "it hangs", "since": time.time() - 90, "trouble": "", "troubled": None}
    assert re.fullmatch(r"mobility away, found so \d.* ago: it hangs", _manager("mobility", away))
    unknown = {**away, "state": "not looked for yet", "reason": "", "since": None}
    assert _manager("resources", unknown) == "resources not looked for yet"


ANCHOR = {
    "vm": "web", "home": "", "domain": "b", "gateway": "gw1", "addresses": ["10.1.0.50"],
    "since": 5.0, "ended": None, "reason": "", "idle_seconds": 0.0, "until": None,
    "arrived": {"packets": 7, "bytes": 700}, "sent": {"packets": 5, "bytes": 500},
    "dropped": {"packets": 0, "bytes": 0}, "last_arrived": None, "read_at": 6.0,
}  # fmt: skip


def test_how_long_a_gateway_stands_in_is_shown_and_set(fake: FakeController, real: str) -> None:
    assert "No VM is in another domain" in good("anchor", "list", "--url", real)
    assert "there is no VM web" in bad("anchor", "end", "web", "--url", real)
    fake.routes["GET", "/v1/anchors"] = {"anchors": [ANCHOR, {**ANCHOR, "ended": 9.0, "reason": "late"}]}
    said = good("anchor", "list", "--url", fake.url)
    passed = r"7 \(700 B\) +5 \(500 B\) +0 \(0 B\)"
    assert re.search(rf"^web +here +b +gw1 +\d+ s +{passed} +- +anchored *$", said, re.M)
    assert "ended: late" in said
    fake.routes["GET", "/v1/anchors/web"] = ANCHOR
    assert re.search(r"^state +without end$", good("anchor", "show", "web", "--url", fake.url), re.M)
    route = "PUT", "/v1/anchors/web"
    fake.routes[route] = {**ANCHOR, "ended": 9.0}
    said = good("anchor", "end", "web", "--url", fake.url)
    assert said == "nothing passes gw1 for VM web, which is in domain b\n"
    fake.routes[route] = {**ANCHOR, "idle_seconds": 60.0}
    said = good("anchor", "set", "web", "--idle", "60", "--for", "0", "--url", fake.url)
    assert said == "gw1 stands in for VM web, until nothing has come for it for 60 s\n"
    good("anchor", "resume", "web", "--url", fake.url)
    assert fake.sent(*route) == [{"ended": True}, {"idle_seconds": 60.0, "seconds": 0.0}, {"ended": False}]
    assert "say what is to be set" in bad("anchor", "set", "web", "--url", fake.url)


def test_pairs_are_given_and_a_vm_takes_the_next(real: str) -> None:
    at = ("--url", real)
    one, two = "52:54:00:00:01:01", "52:54:00:00:01:02"
    assert good("pair", "add", f"{one}=10.1.0.51", f"{two}=10.1.0.52", *at) == "2 pairs are there\n"
    assert run("pair", "add", one, *at).exit_code == 2
    assert f"MAC {one} is paired with 10.1.0.51 already" in bad("pair", "add", f"{one}=10.1.0.59", *at)
    said = good("vm", "add", "shop", "--server", "server1", "--from-pool", *at)
    assert f"MAC {one}" in said and said.rstrip().endswith("10.1.0.51")
    assert re.search(rf"^ *1 +{one} +10\.1\.0\.51 +shop *$", good("pair", "list", *at), re.M)
    assert f"{one} with 10.1.0.51 is VM shop's" in bad("pair", "remove", one, *at)
    assert good("pair", "remove", two, *at) == f"the pair of {two} is gone\n"
    no = bad("vm", "add", "shop2", "--server", "server1", "--from-pool", *at)
    assert "all pairs are taken (`retinue pair add`)" in no
    assert run("vm", "add", "x", "--server", "s", "--from-pool", "--mac", one, *at).exit_code == 2
    good("vm", "remove", "shop", *at)
    assert json.loads(good("pair", "remove", one, "--json", *at)) == {"removed": one}


def test_room_is_booked_and_released(real: str) -> None:
    at = ("--url", real)
    assert good("booking", "list", *at) == "Nothing is booked.\n"
    booked = (
        "booking",
        "add",
        "web",
        "--server",
        "server2",
        "--memory",
        "512",
        "--cpus",
        "2",
        "--seconds",
        "600",
    )
    assert good(*booked, *at) == "512 MiB and 2 processors of server2 are booked for VM web, for 600 s\n"
    assert re.search(r"^web +server2 +512 +2 +\d+ *$", good("booking", "list", *at), re.M)
    assert "nothing is booked on server1 for VM web" in bad(
        "booking", "release", "web", "--server", "server1", *at
    )
    said = good("booking", "release", "web", "--server", "server2", "--json", *at)
    assert json.loads(said)["memory_mib"] == 512


def test_what_a_roaming_client_does_is_reported(real: str) -> None:
    at = ("--url", real)
    good("vm", "add", "phone1", "--server", "server1", *at)
    said = good("client", "report", "phone1", "--server", "server1", "--is", "attached", *at)
    assert said == "phone1 is reported to be attached at server1\n"
    coming = ("client", "report", "phone1", "--server", "server2", "--is")
    assert json.loads(good(*coming, "coming", "--json", *at))["migration"] == "migration-1"
    assert "none of attached, coming" in run(*coming, "elsewhere", *at).output
    assert set(client.WORDS.values()) <= set(EventKind)


def test_json_is_the_interface_s_own_data(real: str) -> None:
    good("vm", "add", "vm1", "--server", "server1", "--url", real)
    api = blocking.Client(real)
    for command, (route, *id) in (
        (("vm", "list"), (Route.LIST_VMS,)),
        (("vm", "show", "vm1"), (Route.GET_VM, "vm1")),
        (("vrf", "list"), (Route.LIST_VRFS,)),
        (("vnet", "list"), (Route.LIST_VNETS,)),
        (("subnet", "list"), (Route.LIST_SUBNETS,)),
        (("server", "list"), (Route.LIST_SERVERS,)),
        (("switch", "list"), (Route.LIST_SWITCHES,)),
        (("link", "list"), (Route.LIST_LINKS,)),
        (("switch", "table", "edge1"), (Route.GET_MAC_TABLE, "edge1")),
        (("flow", "list"), (Route.LIST_FLOWS,)),
        (("binding", "list"), (Route.LIST_BINDINGS,)),
        (("move", "list"), (Route.LIST_MIGRATIONS,)),
        (("controller", "status"), (Route.GET_STATUS,)),
    ):
        assert json.loads(good(*command, "--json", "--url", real)) == api.ask(route, *id)
    lines = [json.loads(line) for line in good("events", "--json", "--url", real).splitlines()]
    assert [event["id"] for event in lines] == list(range(1, api.last_event() + 1))
    assert "vm.registered" in {event["type"] for event in lines}


def test_every_way_to_a_prefix_is_listed_the_best_first(real: str) -> None:
    router = {"id": "access2", "mac": "02:00:00:00:02:01", "routes": ["0.0.0.0/0"], "metric": 10}
    blocking.Client(real).ask(Route.REGISTER_SERVERS, body=router)
    shown = good("server", "routes", "--url", real)
    lines = [line.split() for line in shown.splitlines()[1:]]
    ways = [["default", "0.0.0.0/0", "router", "0"], ["default", "0.0.0.0/0", "access2", "10"]]
    assert [line[:4] for line in lines] == ways
    assert [
        row["now"] for row in json.loads(good("server", "routes", "--json", "--url", real))["routes"]
    ] == [
        *("the way", "standby"),
    ]


def test_a_vrf_is_given_a_way_out_and_loses_it(real: str) -> None:
    at = ("--url", real)
    good("vrf", "add", "red", *at)
    out = ("vrf", "add-router", "red", "--router", "router", "--vlan", "100", "--route", "0.0.0.0/0")
    assert "say at which port it is" in bad(*out, *at)
    place = ("--at", "leaf2:leaf2-router")
    assert good(*out, "--address", "198.51.100.1", *place, *at) == "VRF red goes out by router, VLAN 100\n"
    assert re.search(r"^red +1 +- +router +0 *$", good("vrf", "list", *at), re.M)
    assert re.search(
        r"^red +0\.0\.0\.0/0 +router +0 +\S+\.100 +the way *$", good("server", "routes", *at), re.M
    )
    assert "VRF red is in use by router router" in bad("vrf", "remove", "red", *at)
    assert "there is no VRF x" in bad("vrf", "add-router", "x", *out[3:], *at)
    assert "there is no server r9" in bad("vrf", "remove-router", "red", "--router", "r9", *at)
    gone = ("vrf", "remove-router", "red", "--router", "router", *at)
    assert good(*gone) == "VRF red does not go out by router any more\n"
    assert "VRF red does not go out by router" in bad(*gone)
    good("vrf", "remove", "red", *at)


def test_the_controller_s_rejection_is_the_message(real: str) -> None:
    assert "there is no VM vm9" in bad("vm", "show", "vm9", "--url", real)
    assert "there is no VM vm9" in bad("move", "start", "vm9", "--to", "server2", "--url", real)
    assert "there is no switch x" in bad("flow", "list", "--switch", "x", "--url", real)
    assert "switch edge1 cannot be audited: it is not connected" in bad(
        "switch", "audit", "edge1", "--url", real
    )
    assert "there is no VM vm9" in bad("flow", "list", "--vm", "vm9", "--url", real)
    assert "not a MAC address" in bad("vm", "add", "v", "--server", "server1", "--mac", "x", "--url", real)
    assert "there is no VM a/b c" in bad("vm", "remove", "a/b c", "--url", real)


def test_flows_of_one_vm_are_asked_for(fake: FakeController) -> None:
    row = {
        "switch": "edge1", "role": "edge", "table": 30, "table_name": "DELIVER", "priority": 200,
        "match": "eth_type=0x0800,ipv4_dst=10.1.0.100", "actions": "output:3", "reason": "forward",
        "cookie": "0x5e71000000000000", "expires_at": None, "confirmed": True,
    }  # fmt: skip
    fake.routes["GET", "/v1/flows?vm=vm1"] = {"flows": [row, row | {"table": 0, "table_name": "ADMIT"}]}
    at = ("--vm", "vm1", "--table", "deliver", "--url", fake.url)
    assert re.search(r"^edge1 +30 DELIVER +200 .* confirmed$", good("flow", "list", *at), re.M)
    assert json.loads(good("flow", "list", *at, "--json")) == {"flows": [row]}


# ---- audits ----


def audited(switch: str, **found: Any) -> dict[str, Any]:
    return {
        "switch": switch,
        "entries": 30,
        "missing": 0,
        "changed": 0,
        "foreign": 0,
        "mended": True,
        **found,
    }


def test_audit_of_one_switch(fake: FakeController) -> None:
    fake.routes["POST", "/v1/switches/leaf1/audit"] = audited("leaf1", missing=2, foreign=1)
    said = good("switch", "audit", "leaf1", "--url", fake.url)
    assert re.search(r"^leaf1 +30 +2 +0 +1 +mended$", said, re.M)
    found = json.loads(good("switch", "audit", "leaf1", "--json", "--url", fake.url))
    assert found == {"audits": [audited("leaf1", missing=2, foreign=1)]}


def test_audit_of_all_goes_on_after_one_that_is_rejected(fake: FakeController) -> None:
    fake.routes["GET", "/v1/switches"] = {
        "switches": [
            {"id": name, "connected": name != "edge9"} for name in ("leaf1", "edge1", "edge9", "edge2")
        ]
    }
    fake.routes["POST", "/v1/switches/leaf1/audit"] = audited("leaf1")
    fake.routes["POST", "/v1/switches/edge1/audit"] = (409, {"error": "switch edge1 is busy"})
    fake.routes["POST", "/v1/switches/edge2/audit"] = audited("edge2", changed=1, mended=False)
    result = run("switch", "audit", "--url", fake.url)
    assert result.exit_code == 1
    assert re.search(r"^leaf1 +30 +0 +0 +0 +in order$", result.stdout, re.M)
    assert re.search(r"^edge2 +30 +0 +1 +0 +pending *$", result.stdout, re.M)
    assert result.stderr == "retinue: switch edge1 is busy\n"
    assert fake.sent("POST", "/v1/switches/edge9/audit") == []


# ---- VMs ----


def test_add_from_a_file_and_from_stdin(fake: FakeController, tmp_path: Path) -> None:
    fake.routes["POST", "/v1/vms"] = (201, {"vms": [VM1]})
    file = tmp_path / "vms.json"
    file.write_text(
        '[{"id": "vm1", "server": "server1"}, {"id": "b", "server": "s", "mac": "52:54:00:00:00:09"}]'
    )
    good("vm", "add", "--from", str(file), "--url", fake.url)
    good("vm", "add", "--from", "-", "--url", fake.url, input='{"vms": []}')
    first, second = fake.sent("POST", "/v1/vms")
    assert first == [
        {"id": "vm1", "server": "server1", "mac": nic.mac_for("vm1")},
        {"id": "b", "server": "s", "mac": "52:54:00:00:00:09"},
    ]
    assert second == []


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is not JSON"), ("[1]", "expected a list of VMs"), ('"x"', "expected a list of VMs")],
)
def test_add_from_a_bad_file(fake: FakeController, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "vms.json"
    file.write_text(text)
    assert said in bad("vm", "add", "--from", str(file), "--url", fake.url)
    assert fake.requests == []
    assert "No such file" in bad("vm", "add", "--from", str(tmp_path / "none"), "--url", fake.url)


def test_mac_is_local_unicast_and_stable() -> None:
    assert nic.mac_for("vm1") == nic.mac_for("vm1") != nic.mac_for("vm2")
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", nic.mac_for("vm1"))


def test_add_waits_until_ready(fake: FakeController) -> None:
    fake.last_event = 7
    fake.routes["POST", "/v1/vms"] = (201, {"vms": [VM1]})
    fake.routes["GET", "/v1/vms/vm1"] = VM1
    fake.after_stream["GET", "/v1/vms/vm1"] = VM1 | {"state": "ready"}
    fake.will_happen("vm.ready", vm=VM1 | {"id": "other"})
    fake.will_happen("vm.ready", vm=VM1)
    said = good("vm", "add", "vm1", "--server", "server1", "--wait", "--url", fake.url)
    assert "VM vm1 is ready" in said
    assert ("GET", "/v1/events?since=7", None) in fake.requests  # nothing since the inventory can be missed


def test_add_does_not_wait_for_what_is_ready(fake: FakeController) -> None:
    fake.routes["POST", "/v1/vms"] = (201, {"vms": [VM1]})
    fake.routes["GET", "/v1/vms/vm1"] = VM1 | {"state": "running"}
    good("vm", "add", "vm1", "--server", "server1", "--wait", "--url", fake.url)
    assert not any(path.startswith("/v1/events") for _, path, _ in fake.requests)


def test_add_says_what_is_missing_when_the_wait_is_over(fake: FakeController) -> None:
    fake.routes["POST", "/v1/vms"] = (201, {"vms": [VM1]})
    fake.routes["GET", "/v1/vms/vm1"] = VM1
    said = bad("vm", "add", "vm1", "--server", "server1", "--wait", "--timeout", "0.05", "--url", fake.url)
    assert "VM vm1 is not ready after 0.05 s: switch edge1 has no port with iface-id vm1" in said


def test_a_vm_is_added_to_be_started_again(fake: FakeController) -> None:
    fake.routes["POST", "/v1/vms"] = (201, {"vms": [VM1]})
    good("vm", "add", "vm1", "--server", "server1", "--restart", "on-crash", "--url", fake.url)
    ((sent,),) = fake.sent("POST", "/v1/vms")
    assert sent["restart"] == "on-crash"


@pytest.mark.parametrize(
    ("words", "body", "said"),
    [
        (("start",), None, "VM vm1 is to run"),
        (("stop",), {"hard": False}, "VM vm1 is to be off"),
        (("stop", "--hard"), {"hard": True}, "VM vm1 is to be off"),
        (("stop", "--seconds", "20"), {"hard": False, "seconds": 20.0}, "VM vm1 is to be off"),
        (("reboot",), {}, "VM vm1 is rebooted"),
        (("reboot", "--seconds", "20"), {"seconds": 20.0}, "VM vm1 is rebooted"),
        (("reset",), None, "VM vm1 is reset"),
    ],
)
def test_a_vm_is_switched(fake: FakeController, words: tuple[str, ...], body: Any, said: str) -> None:
    verb, *options = words
    fake.routes["POST", f"/v1/vms/vm1/{verb}"] = VM1 | {"state": "running"}
    assert good("vm", verb, "vm1", *options, "--url", fake.url).startswith(said)
    assert fake.sent("POST", f"/v1/vms/vm1/{verb}") == [body]


CHANGED = VM1 | {"memory_mib": 256, "restart": "never", "warnings": []}


@pytest.mark.parametrize(
    ("options", "body"),
    [
        (("--memory", "256"), {"memory_mib": 256}),
        (("--memory", "0", "--restart", "on-crash"), {"memory_mib": 0, "restart": "on-crash"}),
        (("--address", "10.1.0.50", "--address", "10.1.0.51"), {"addresses": ["10.1.0.50", "10.1.0.51"]}),
        (("--no-address",), {"addresses": []}),
    ],
)
def test_a_vm_is_changed(fake: FakeController, options: tuple[str, ...], body: Any) -> None:
    fake.routes["PATCH", "/v1/vms/vm1"] = CHANGED
    said = good("vm", "set", "vm1", *options, "--url", fake.url)
    assert "VM vm1 is changed: 256 MiB, no static address, restart never" in said
    assert fake.sent("PATCH", "/v1/vms/vm1") == [body]


def test_a_change_says_what(fake: FakeController) -> None:
    for options, said in (((), "say what"), (("--address", "10.1.0.50", "--no-address"), "give --address")):
        result = run("vm", "set", "vm1", *options, "--url", fake.url)
        assert (result.exit_code, fake.requests) == (2, [])
        assert said in result.output


DISKS = [
    {"size_mib": 20480, "image": "debian-12", "base": "", "shared": "", "format": "raw"},
    {"size_mib": 0, "image": "", "base": "/srv/b", "shared": "", "format": "qcow2"},
    {"size_mib": 0, "image": "", "base": "", "shared": "/mnt/a", "format": "raw"},
    {"size_mib": 1536, "image": "", "base": "", "shared": "", "format": "raw"},
]


def test_a_vm_is_added_with_disks_and_shown_with_them(fake: FakeController) -> None:
    fake.routes["POST", "/v1/vms"] = (201, {"vms": [VM1]})
    given = ("image=debian-12,size=20G", "base=/srv/b,format=qcow2", "shared=/mnt/a", "size=1536M")
    words = [word for disk in given for word in ("--disk", disk)]
    good("vm", "add", "vm1", "--server", "server1", *words, "--url", fake.url)
    said = [{key: value for key, value in disk.items() if value not in ("", 0, "raw")} for disk in DISKS]
    assert fake.sent("POST", "/v1/vms")[0][0]["disks"] == said
    fake.routes["GET", "/v1/vms/vm1"] = VM1 | {"power_reason": "", "restart": "never", "disks": DISKS}
    fake.routes["GET", "/v1/bindings?vm=vm1"] = {"bindings": []}
    shown = good("vm", "show", "vm1", "--url", fake.url)
    assert "disk 1: private, 20G, over image debian-12\n" in shown
    assert "disk 2: private, as large as its base, over /srv/b, qcow2\n" in shown
    assert "disk 3: /mnt/a, on shared storage\n" in shown
    assert "disk 4: private, 1536M, empty at first\n" in shown


def test_a_doubtful_address_is_warned_about(fake: FakeController) -> None:
    fake.routes["POST", "/v1/vms"] = (201, {"vms": [VM1 | {"warnings": ["10.1.0.50 is in a pool"]}]})
    result = run("vm", "add", "vm1", "--server", "server1", "--address", "10.1.0.50", "--url", fake.url)
    assert result.stderr == "warning: VM vm1: 10.1.0.50 is in a pool\n"


def test_a_stop_is_waited_for(fake: FakeController) -> None:
    fake.last_event = 7
    fake.routes["POST", "/v1/vms/vm1/stop"] = VM1 | {"state": "running"}
    fake.routes["GET", "/v1/vms/vm1"] = VM1 | {"state": "off"}
    fake.will_happen("vm.stopped", vm=VM1 | {"id": "other"})
    fake.will_happen("vm.stopped", vm=VM1)
    assert good("vm", "stop", "vm1", "--wait", "--url", fake.url) == "VM vm1 is off\n"
    assert ("GET", "/v1/events?since=7", None) in fake.requests
    fake.routes["POST", "/v1/vms/vm1/stop"] = VM1 | {"state": "off"}
    assert good("vm", "stop", "vm1", "--wait", "--url", fake.url) == "VM vm1 is off\n"


def test_a_start_that_comes_to_nothing_says_what_is_missing(fake: FakeController) -> None:
    fake.routes["POST", "/v1/vms/vm1/start"] = fake.routes["GET", "/v1/vms/vm1"] = VM1
    said = bad("vm", "start", "vm1", "--wait", "--timeout", "0.05", "--url", fake.url)
    assert "VM vm1 is registered after 0.05 s, and waits for: switch edge1 has no port" in said


# ---- moves ----


def migration(*states: str, **more: Any) -> dict[str, Any]:
    """A migration that has been in these states, 10 ms each."""
    steps = [{"state": state, "at": 1000 + n / 100} for n, state in enumerate(states)]
    given = {"reason": "", "stopped_at": None, "resumed_at": None, "figures": {}} | more
    ids = {"id": "migration-1", "vm": "vm1", "source": "server1", "target": "server2"}
    return ids | {"state": states[-1], "steps": steps} | given


ALL = ("planned", "matched", "admitting", "prepared", "copying", "switching", "switched", "confirmed", "done")


def test_start_sends_what_was_asked(fake: FakeController) -> None:
    fake.routes["POST", "/v1/migrations"] = (201, migration("planned"))
    good("move", "start", "vm1", "--to", "server2", "--from", "server1", "--url", fake.url)
    good("move", "start", "vm1", "--to-switch", "edge2", "--url", fake.url)
    good("move", "start", "vm1", "--url", fake.url)
    assert fake.sent("POST", "/v1/migrations") == [
        {"vm": "vm1", "target_server": "server2", "source_server": "server1"},
        {"vm": "vm1", "target_switch": "edge2"},
        {"vm": "vm1"},
    ]


STEPS = [{"vm": "vm1", "source": "server1", "target": "server2", "rule": "spread", "text": "80 -> 40"}]
PLAN = {
    "metric": "memory",
    "before": {"server1": 8000, "server2": 0}, "after": {"server1": 4000, "server2": 4000},
    "imbalance_before": 8000, "imbalance_after": 0, "left": ["vm3 should be apart"],
    "steps": STEPS,
}  # fmt: skip


def test_the_moves_of_a_plan_are_made_one_after_the_other(fake: FakeController) -> None:
    fake.routes["GET", "/v1/domain/plan?metric=memory&threshold=20"] = PLAN
    play(fake, *ALL)
    said = good("domain", "rebalance", "--url", fake.url)
    assert fake.sent("POST", "/v1/migrations") == [
        {"vm": "vm1", "target_server": "server2", "reason": "utilisation"}
    ]
    assert "migration-1: vm1 is at server2" in said and "vm3 should be apart" in said


def test_the_first_move_of_a_plan_that_cannot_be_made_ends_it(fake: FakeController) -> None:
    fake.routes["GET", "/v1/domain/plan?metric=memory&threshold=20"] = {**PLAN, "steps": STEPS * 2}
    fake.routes["POST", "/v1/migrations"] = (409, {"error": "server2 is full", "code": "no_match"})
    result = run("domain", "rebalance", "--url", fake.url)
    assert (result.exit_code, len(fake.sent("POST", "/v1/migrations"))) == (1, 1)
    assert "VM vm1 cannot be moved to server2: server2 is full" in result.stderr
    play(fake, *ALL[:4], "undone", reason="the target died")
    assert (
        "migration-1 of vm1 was undone: the target died"
        in run("domain", "rebalance", "--url", fake.url).stderr
    )


def play(fake: FakeController, *states: str, **more: Any) -> None:
    """The migration goes through these states: the first when asked, the others on the stream."""
    fake.routes["POST", "/v1/migrations"] = (201, migration(states[0]))
    fake.routes["GET", "/v1/migrations/migration-1"] = migration(states[0])
    fake.after_stream["GET", "/v1/migrations/migration-1"] = migration(*states, **more)
    for n in range(2, len(states) + 1):
        fake.will_happen(
            "migration.step", migration=migration("planned") | {"id": "migration-2", "state": "done"}
        )
        fake.will_happen("migration.step", migration=migration(*states[:n]))


PREPARED = {"image_ms": 1200, "machine_ms": 80}


def test_start_wait_draws_each_step_once(fake: FakeController) -> None:
    play(
        fake, *ALL, stopped_at=5.0, resumed_at=5.042, figures={"control_ms": 1.5, "flow_mods": 12, **PREPARED}
    )
    said = good("move", "start", "vm1", "--to", "server2", "--wait", "--url", fake.url)
    assert re.findall(r"(\d\.\d{3}) s  (\w+)", said) == [(f"0.0{n}0", state) for n, state in enumerate(ALL)]
    assert re.search(r"prepared in +80 ms, after 1200 ms for what its disks are made over", said)
    assert re.search(r"downtime +42 ms", said) and re.search(r"flow changes +12", said)


def test_the_passes_over_the_memory_are_drawn_where_they_belong(fake: FakeController) -> None:
    copying = {"vm": "vm1", "at": 1000.5, "remaining": 9 << 20, "written_a_second": 0}
    fake.will_happen("migration.copying", **copying, migration_id="migration-1", copy_pass=1)
    fake.will_happen("migration.copying", **copying, migration_id="migration-9", copy_pass=7)
    fake.will_happen(
        "migration.copying",
        **copying | {"written_a_second": 21 << 20},
        migration_id="migration-1",
        copy_pass=2,
    )
    more = copying | {"at": 1001.0, "remaining": 6 << 20, "written_a_second": 21 << 20}
    fake.will_happen("migration.copying", **more, migration_id="migration-1", copy_pass=2)
    play(fake, *ALL)
    said = good("move", "show", "migration-1", "--follow", "--url", fake.url)
    assert re.findall(r"pass \d .*", said) == [
        "pass 1        9.0 MiB to go",
        "pass 2        9.0 MiB to go; the VM writes 21.0 MiB/s",
        "pass 2        6.0 MiB to go; the VM writes 21.0 MiB/s; ends in about 1.0 s",
    ]


def test_start_can_ask_for_a_short_pause(fake: FakeController) -> None:
    fake.routes["POST", "/v1/migrations"] = (201, migration("planned"))
    good("move", "start", "vm1", "--to", "server2", "--downtime", "20", "--url", fake.url)
    (sent,) = fake.sent("POST", "/v1/migrations")
    assert sent["downtime_ms"] == 20


@pytest.mark.parametrize(
    ("option", "sent"),
    [
        ("--postcopy", {"postcopy": "required"}),
        ("--no-postcopy", {"postcopy": "never"}),
        ("--compress", {"compress": True}),
        ("--no-compress", {"compress": False}),
    ],
)
def test_start_can_say_how_memory_goes_over(fake: FakeController, option: str, sent: dict[str, Any]) -> None:
    fake.routes["POST", "/v1/migrations"] = (201, migration("planned"))
    good("move", "start", "vm1", "--to", "server2", option, "--url", fake.url)
    (body,) = fake.sent("POST", "/v1/migrations")
    assert body == {"vm": "vm1", "target_server": "server2", **sent}


@pytest.mark.parametrize(
    ("options", "nic"),
    [
        (["--mac", "52:54:00:00:00:99"], {"mac": "52:54:00:00:00:99"}),
        (
            ["--nic", "vm1-2", "--vnet", "blue", "--address", "10.2.0.5"],
            {"nic": "vm1-2", "vnet": "blue", "addresses": ["10.2.0.5"]},
        ),
    ],
)
def test_start_can_say_what_a_nic_is_to_have_at_the_target(
    fake: FakeController, options: list[str], nic: dict[str, Any]
) -> None:
    fake.routes["POST", "/v1/migrations"] = (201, migration("planned"))
    good("move", "start", "vm1", "--to", "server2", *options, "--url", fake.url)
    (body,) = fake.sent("POST", "/v1/migrations")
    assert body == {"vm": "vm1", "target_server": "server2", "nics": [nic]}


def test_what_follows_a_vm_that_runs_at_the_target_is_drawn(fake: FakeController) -> None:
    copying = {"vm": "vm1", "at": 1000.5, "remaining": 9 << 20, "written_a_second": 0, "copy_pass": 2}
    fake.will_happen("migration.copying", **copying, migration_id="migration-1", postcopy=True)
    play(fake, *ALL)
    said = good("move", "show", "migration-1", "--follow", "--url", fake.url)
    assert re.search(r"post-copy +9.0 MiB to go; the VM runs at the target", said)


def test_follow_as_json_is_a_line_a_step(fake: FakeController) -> None:
    play(fake, *ALL)
    lines = good("move", "show", "migration-1", "--follow", "--json", "--url", fake.url).splitlines()
    assert [json.loads(line)["state"] for line in lines] == list(ALL)


def test_start_wait_as_json_is_the_ended_move(fake: FakeController) -> None:
    play(fake, *ALL, figures={"flow_mods": 12})
    said = good("move", "start", "vm1", "--to", "server2", "--wait", "--json", "--url", fake.url)
    assert json.loads(said) == migration(*ALL, figures={"flow_mods": 12})


def test_undone_is_a_failure(fake: FakeController) -> None:
    play(fake, "planned", "rolling back", "undone", reason="cancelled by the operator")
    result = run("move", "show", "migration-1", "--follow", "--url", fake.url)
    assert result.exit_code == 1
    assert "undone" in result.stdout
    assert result.stderr == "retinue: migration-1 was undone, vm1 is at server1: cancelled by the operator\n"


def test_follow_of_an_ended_move_returns_at_once(fake: FakeController) -> None:
    fake.routes["GET", "/v1/migrations/migration-1"] = migration(*ALL)
    assert "done" in good("move", "show", "migration-1", "--follow", "--url", fake.url)


def test_follow_gives_up_in_time(fake: FakeController) -> None:
    fake.routes["GET", "/v1/migrations/migration-1"] = migration("planned", "matched")
    result = run("move", "show", "migration-1", "--follow", "--timeout", "0.05", "--url", fake.url)
    assert result.exit_code == 1
    assert "waiting for the VM's port at the target" in result.stderr


# ---- bindings and events ----


def test_lease_is_what_is_left(fake: FakeController, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    row = {
        "mac": "52:54:00:00:00:01", "ip": "10.1.0.100", "kind": "dynamic", "vm": "vm1", "switch": "edge1",
        "port": 3, "lease_end": now + 54.9, "vlan": 0, "port_status": "up", "trust": "untrust",
        "origin": "controller", "active": True, "vrf": "red", "confirmed": True,
    }  # fmt: skip
    data = {"bindings": [row], "spoof_attempts": 34}
    fake.routes["GET", "/v1/bindings"] = fake.routes["GET", "/v1/bindings?vm=vm1"] = data
    said = good("binding", "list", "--url", fake.url)
    assert re.search(r"vm1 +52:54:00:00:00:01 +10\.1\.0\.100 +dynamic +55 s +edge1 +3 +active", said)
    assert said.endswith("\nSpoofing attempts: 34; see `retinue binding spoofing`\n")
    assert max(map(len, said.splitlines())) <= 100
    wide = good("binding", "list", "--wide", "--url", fake.url)
    assert re.search(r"VRF +VLAN +LINK +TRUST +ORIGIN", wide)
    assert re.search(r"red +0 +up +untrust +controller", wide)
    assert "`retinue binding spoofing --vm vm1`" in good("binding", "list", "--vm", "vm1", "--url", fake.url)


def test_forgeries_are_told_by_port_and_of_one_vm_each_by_itself(fake: FakeController) -> None:
    now = time.time()
    row = {
        "kind": "arp", "switch": "edge1", "port": 3, "vm": "vm1", "claimed_mac": "52:54:00:00:00:02",
        "claimed_ip": "10.1.0.9", "count": 17, "first": now - 3000, "last": now, "id": "38db5691",
    }  # fmt: skip
    port = {
        "switch": "edge1", "port": 3, "vm": "vm1", "count": 40, "kinds": {"arp": 17, "ip": 23},
        "first": now - 3000, "last": now, "rows": 1,
    }  # fmt: skip
    data = {"ports": [port], "spoof_attempts": [row], "dropped_frames": {"edge1": 57}}
    fake.routes["GET", "/v1/spoof-attempts"] = fake.routes["GET", "/v1/spoof-attempts?vm=vm1"] = data
    said = good("binding", "spoofing", "--url", fake.url)
    assert re.search(r"vm1 +edge1 +3 +40 +arp 17, ip 23 +50 min ago +just now", said)
    assert "Spoofed frames dropped: edge1 57" in said and "10.1.0.9" not in said
    said = good("binding", "spoofing", "--vm", "vm1", "--url", fake.url)
    assert re.search(r"arp +vm1 +edge1 +3 +52:54:00:00:00:02 +10\.1\.0\.9 +17 +just now +38db5691", said)
    assert "and 23 more, of claims that were not seen for longer" in said


def test_events_ends_with_the_latest(fake: FakeController) -> None:
    for n in range(5):
        fake.happened("vm.registered", vm=VM1, edge=f"edge{n}")
    said = good("events", "--last", "2", "--url", fake.url).splitlines()
    assert [re.sub(r"\d\d:\d\d:\d\d", "T", line) for line in said] == [
        "    4  T.000  vm.registered             vm=vm1 edge=edge3",
        "    5  T.000  vm.registered             vm=vm1 edge=edge4",
    ]
    assert good("events", "--last", "0", "--url", fake.url) == ""


def test_a_listener_that_was_dropped_comes_back(fake: FakeController) -> None:
    fake.happened("vm.registered", vm=VM1)
    fake.come.put({"id": 2, "at": 1.0, "type": "vm.ready", "vm": VM1})
    fake.come.put(None)
    fake.come.put({"id": 3, "at": 1.0, "type": "vm.removed", "vm": VM1})
    stream = blocking.Client(fake.url).events(0)
    assert [next(stream)["type"] for _ in range(3)] == ["hello", "vm.registered", "vm.ready"]
    assert [next(stream)["type"] for _ in range(2)] == ["hello", "vm.removed"]
    assert [path for _, path, _ in fake.requests] == ["/v1/events?since=0", "/v1/events?since=2"]


def test_a_stream_that_ends_at_once_is_an_error(fake: FakeController) -> None:
    fake.come.put(None)
    assert "has ended the event stream" in bad("events", "--follow", "--url", fake.url)


def test_events_follow_goes_on_until_it_is_interrupted(fake: FakeController) -> None:
    fake.happened("vm.registered", vm=VM1)
    fake.will_happen("vm.ready", vm=VM1)
    command = [sys.executable, "-m", "retinue.cli.main", "events", "--follow", "--url", fake.url]
    command = ["env", "--default-signal=INT", *command]  # ignored where these tests run in the background
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "vm.registered" in process.stdout.readline()
        assert "vm.ready" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == ""


def types_of(said: str) -> list[str]:
    return [line.split()[2] for line in said.splitlines()]


def test_events_of_one_vm(fake: FakeController) -> None:
    """The last N of these, however many of others came since."""
    binding = {"vm": "vm1", "ip": "10.1.0.9", "switch": "edge1", "port": 3, "active": True}
    spoofed = {"kind": "ip", "vm": "vm1", "switch": "edge1", "port": 3, "claimed_mac": "", "claimed_ip": "x"}
    fake.happened("vm.registered", vm=VM1)
    fake.happened("port.added", vm="vm1", switch="edge1", port=3)
    fake.happened("binding.added", bindings=[binding])
    fake.happened("spoofing", spoofing={**spoofed, "count": 1})
    fake.happened("migration.step", migration=migration("planned", "matched"))
    for number in range(30):
        fake.happened("port.added", vm=f"vm1{number}", switch="edge1", port=number)
    asked = ("events", "--vm", "vm1", "--url", fake.url)
    of_it = ["vm.registered", "port.added", "binding.added", "spoofing", "migration.step"]
    assert types_of(good(*asked)) == of_it
    assert types_of(good(*asked, "--last", "2")) == of_it[-2:]
    assert types_of(good(*asked, "--type", "port")) == ["port.added"]
    assert types_of(good(*asked, "--since", "3")) == of_it[3:]


def test_who_has_lost_events_is_told_unless_all_there_is_was_asked_for(fake: FakeController) -> None:
    fake.happened("vm.registered", vm=VM1)
    fake.happened("events.lost", since=1)
    fake.happened("vm.removed", vm="vm1")
    fake.ring[-1]["at"] = time.time()
    said = good("events", "--vm", "vm1", "--since", "1", "--url", fake.url)
    assert types_of(said) == ["events.lost", "vm.removed"]
    for asked in ((), ("--since", "1h")):
        said = good("events", "--vm", "vm1", *asked, "--url", fake.url)
        assert "events.lost" not in said and "vm.removed" in said


def test_events_since_a_time(fake: FakeController) -> None:
    for age in (4000, 400, 40):
        fake.happened("vm.removed", vm=f"{age} s old")
        fake.ring[-1]["at"] = time.time() - age
    for since, count in (("1d", 3), ("1h", 2), ("2m", 1), ("30s", 0), ("2", 1), ("0", 3)):
        assert len(types_of(good("events", "--since", since, "--url", fake.url))) == count, since
    assert "neither an event's id nor a time" in run("events", "--since", "noon", "--url", fake.url).stderr


def test_an_event_about_a_place() -> None:
    said = events.line({"id": 7, "type": "server.detected", "at": "leaf1:p", "server": "s1"})
    assert "at=leaf1:p server=s1" in said


def test_what_an_event_tells_is_for_people_and_stands_in_a_column() -> None:
    told = {"vm": "vm1", "postcopy": False, "copy_pass": 1, "remaining": 133775360, "written_a_second": 0}
    copying = events.line({"id": 34, "type": "migration.copying", "at": 1.0, **told})
    assert copying.endswith(
        "migration.copying         vm=vm1 postcopy=no copy_pass=1 remaining=127.6MiB written_a_second=0.0MiB"
    )
    place = {"server": "server2", "port": 2, "addresses": ["10.1.0.100"], "trunk": True}
    updated = events.line(
        {"id": 46, "type": "mobility.profile_updated", "at": 1.0, "vm": "vm1", "locator": place}
    )
    assert updated.endswith("vm=vm1 locator=(server=server2 port=2 addresses=10.1.0.100 trunk=yes)")
    assert updated.index("vm=") == copying.index("vm=")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (VM1, "vm1"),
        (migration("planned", "matched"), "migration-1 (vm1: server1 to server2, matched)"),
        (
            [{"ip": "10.1.0.9", "vm": "vm1", "switch": "e", "port": 3, "active": False}],
            "10.1.0.9@vm1:e:3(standby)",
        ),
        ("two words", '"two words"'),
        (3, "3"),
    ],
)
def test_brief(value: Any, text: str) -> None:
    assert events.brief(value) == text


# ---- reaching the controller ----


def test_nobody_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: rejects
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert f"no controller answers at {url} (Connection refused)" in bad("vm", "list", "--url", url)


@pytest.mark.parametrize(
    "url", ["", "x", "http://", "http://h:port", "ftp://h:1", "http://h:1/v1", "http://[::"]
)
def test_not_a_url(url: str) -> None:
    with pytest.raises(ControllerError, match="is not a controller's address"):
        blocking.Client(url)


def test_what_answers_is_no_controller(fake: FakeController) -> None:
    fake.routes["GET", "/v1/vms"] = b"<html>"
    assert "is not a retinue controller" in bad("vm", "list", "--url", fake.url)
    fake.routes["GET", "/v1/vms"] = (502, b"[]")
    assert "is not a retinue controller" in bad("vm", "list", "--url", fake.url)


def test_url_from_the_environment(fake: FakeController, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.routes["GET", "/v1/vms"] = {"vms": [VM1]}
    monkeypatch.setenv("RETINUE_URL", fake.url)
    assert "vm1" in good("vm", "list")
    assert "lab other does not run" in bad("vm", "list", "--lab", "other")  # what is said goes first


def test_no_lab_and_no_url() -> None:
    said = bad("vm", "list")
    assert "start it with `retinue lab up`, or name a controller with --url or RETINUE_URL" in said


class BecameError(Exception):
    """In place of the end of this process: what it would have become."""


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, fake: FakeController) -> None:
    """A lab called default, whose controller is the fake one, and an execv that can be looked at."""

    def command(node: str, argv: list[str]) -> list[str]:
        if node not in ("sandbox", "server1"):
            raise LabError(f"there is no node {node!r}")
        return ["/enter", node, *argv]

    def execv(path: str, argv: list[str]) -> None:
        assert path == argv[0]
        raise BecameError(argv)

    handle = SimpleNamespace(
        name="default", topology=SimpleNamespace(controller_url=fake.url), command=command
    )
    monkeypatch.setattr(sandbox, "list_labs", lambda: ["default"])
    monkeypatch.setattr(sandbox, "handle", lambda name: handle)
    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(signal, "signal", lambda number, action: None)


def became(*args: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["retinue", *args])
    result = run(*args)
    assert isinstance(result.exception, BecameError), result.output
    found: list[str] = result.exception.args[0]
    return found


def test_command_goes_on_inside_the_lab_once(
    lab: None, fake: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.routes["GET", "/v1/vms"] = {"vms": [VM1]}
    argv = became("vm", "list", "--json", monkeypatch=monkeypatch)
    assert argv[:3] == ["/enter", "sandbox", "env"]
    assert argv[-6:] == [sys.executable, "-P", "-m", "retinue.cli.main", "vm", "list", "--json"][-6:]
    told = next(word for word in argv if word.startswith(connection.INSIDE)).partition("=")[2]
    monkeypatch.setenv(connection.INSIDE, told)
    assert json.loads(good("vm", "list", "--json")) == {"vms": [VM1]}


def test_url_never_enters_a_lab(lab: None, fake: FakeController) -> None:
    fake.routes["GET", "/v1/vms"] = {"vms": []}
    good("vm", "list", "--url", fake.url)


def test_another_lab_than_those_that_run(lab: None) -> None:
    assert "lab x does not run, but default does" in bad("vm", "list", "--lab", "x")


def test_lab_exec_passes_the_command_on(
    lab: None, fake: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = became("lab", "exec", "server1", "--", "ovs-vsctl", "--json", "show", monkeypatch=monkeypatch)
    assert argv[:2] == ["/enter", "server1"] and argv[-3:] == ["ovs-vsctl", "--json", "show"]
    assert f"RETINUE_URL={fake.url}" in argv
    assert "there is no node 'x'" in bad("lab", "exec", "x", "--", "true")


def test_lab_capture_watches_an_interface(
    lab: None, fake: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = became("lab", "capture", "server1", "up0", monkeypatch=monkeypatch)
    assert argv[:2] == ["/enter", "server1"]
    assert argv[-4:] == [sniff.__file__, "up0", "inout", "65535"]


def test_lab_list(lab: None) -> None:
    assert json.loads(good("lab", "list", "--json")) == {"labs": ["default"]}
    assert good("lab", "list").split() == ["LAB", "default"]


def test_labs_that_are_not_there() -> None:
    assert "there is no lab default" in bad("lab", "down")
    assert "lab x does not run" in bad("lab", "status", "--name", "x")
    assert "is no name for a lab" in bad("lab", "down", "--name", "../x")
    assert "No lab runs" in good("lab", "list")


# ---- controller check ----


def test_check(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    file.write_text(controller_config(topology_file.load(None)))
    assert "is good: 7 switches, 5 servers, 2 subnets" in good("controller", "check", "--config", str(file))
    whole = file.read_text()
    for key, value in (("migrations_kept", "0"), ("migrations_kept", '"all"'), ("audit_seconds", "-1")):
        file.write_text(f"{key} = {value}\n{whole}")
        assert f": {key}: " in bad("controller", "check", "--config", str(file))
    file.write_text(whole + '[[server]]\nid = "s9"\nmac = "x"\n')
    assert f"{file}: " in (said := bad("controller", "check", "--config", str(file))) and "MAC" in said
    assert "cannot be read: No such file" in bad("controller", "check", "--config", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ('id = "server2"', 'id = "server1"', "server server1 is given twice"),
        ('id = "server2"', 'id = "server 2"', "'server 2' cannot be a server's id"),
        ('id = "spine2"', 'id = "spine 2"', "'spine 2' cannot be a switch's id"),
        ('id = "blue"', 'id = "blü"', "cannot be a subnet's id"),
        ('id = "blue"', 'id = "servers"', "subnet servers is given twice"),
        ('"10.1.0.0/24"', '"10.1.0.0"', "subnet blue: '10.1.0.0' has no length"),
        (
            '"192.0.2.1:8080"',
            '"https://192.0.2.1:8080"',
            "listen.rest: 'https://192.0.2.1:8080' is not HOST:PORT",
        ),
        ('"192.0.2.1:6640"', '"192.0.2.1:6653"', "listen.openflow is there; give it another port"),
        ('role = "leaf"', 'role = "tor"', "[[switch]] leaf1: role: 'tor' is none of edge, leaf, spine, core"),
    ],
)
def test_a_mistake_in_a_configuration_is_said_by_names(
    tmp_path: Path, right: str, wrong: str, said: str
) -> None:
    file = tmp_path / "controller.toml"
    whole = controller_config(topology_file.load(None))
    assert right in whole
    file.write_text(whole.replace(right, wrong))
    assert said in bad("controller", "check", "--config", str(file))


def test_what_is_more_often_a_mistake_than_meant_is_noted(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    whole = controller_config(topology_file.load(None))
    file.write_text(whole)
    assert "note:" not in good("controller", "check", "--config", str(file))
    more = (
        'id = "x"\nmac = "02:00:00:00:00:77"\naddress = "10.9.0.9"\nservices = ["router"]\nat = "leaf9:x"\n'
    )
    file.write_text(f"{whole}\n[[server]]\n{more}")
    said = good("controller", "check", "--config", str(file))
    assert "note: server x: at: there is no switch leaf9 in this file" in said
    assert "note: server x: it is a router, and leads to nothing: routes" in said
    assert "note: server x: 10.9.0.9 is in no subnet of this file" in said
    file.write_text(
        'gateway_mac = "00:00:de:ad:be:ef"\n[listen]\nplaintext = ["openflow", "ovsdb", "rest"]\n'
    )
    said = good("controller", "check", "--config", str(file))
    assert "note: there is no subnet: no VM can have an address" in said


# ---- usage ----


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("vm", "add"), "--from"),
        (("vm", "add", "vm1"), "--server is missing"),
        (("vm", "add", "vm1", "--from", "f"), "--from"),
        (("vm", "add", "--from", "f", "--server", "s"), "in the file"),
        (("vm", "add", "vm1", "--server", "s", "--nic", "speed=9"), "speed=9 is none of mac="),
        (("vm", "add", "vm1", "--server", "s", "--disk", "speed=9"), "speed=9 is none of size="),
        (("vm", "add", "vm1", "--server", "s", "--disk", "size=10"), "such as 20G"),
        (("vm", "add", "vm1", "--server", "s", "--disk", "size=1G,size=2G"), "size is given twice"),
        (("vm", "add", "vm1", "--server", "s", "--disk", "image="), "image= is none of"),
        (("vm", "add", "--from", "f", "--disk", "size=1G"), "in the file"),
        (("vm", "add", "vm1", "--server", "s", "--nic", "mac"), "mac is none of mac="),
        (("vm", "add", "vm1", "--server", "s", "--nic", "mac=a,mac=b"), "mac is given twice"),
        (("vm", "add", "vm1", "--server", "s", "--nic", "enabled=perhaps"), "enabled is yes or no"),
        (("vm", "add", "vm1", "--server", "s", "--nic", "mac=a", "--mac", "b"), "inside of --nic"),
        (("vm", "nic", "set", "vm1", "vm1-2"), "say what is to be different"),
        (("vm", "nic", "set", "vm1", "n", "--address", "10.1.0.5", "--no-address"), "contradict each other"),
        (("move", "start", "vm1", "--to", "a", "--to-switch", "b"), "name the target once"),
        (("flow", "list", "--table", "nine", "--url", "http://h:1"), "30 DELIVER"),
        (("vm", "list", "--url", "http://h:1", "--lab", "x"), "not both"),
        (("nonsense",), "nonsense"),
    ],
)
def test_wrong_usage(args: tuple[str, ...], said: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert said in result.stderr and "Traceback" not in result.output


NOUNS = ("lab", "controller", "vm", "move", "binding", "vnet", "subnet", "server", "switch", "flow", "pki")


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [("events",)]
    groups: list[tuple[str, ...]] = [*((noun,) for noun in NOUNS), ("vm", "nic")]
    for group in groups:
        listed = run(*group, "--help").stdout.partition("Commands:")[2]
        found += [(*group, line.split()[0]) for line in listed.splitlines() if re.match(r"  \w", line)]
    return [command for command in found if command not in groups]


def test_every_command_has_help_with_an_example() -> None:
    found = commands()
    assert len(found) >= 22
    for command in found:
        said = good(*command, "--help")
        assert re.search(rf"Examples?:\n +retinue {' '.join(command)}\b", said), said
        assert max(map(len, said.splitlines())) <= 100


def modules_of(call: str) -> set[str]:
    """What is imported once this has been evaluated, `main` being the program."""
    program = f"import sys; from retinue.cli import main; from typer.main import get_command; {call};"
    argv = [sys.executable, "-c", f"{program} print(*sys.modules)"]
    return set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())


def test_help_imports_nothing_heavy() -> None:
    found = modules_of("list(get_command(main.app).commands.values())")
    assert found >= {where.partition(":")[0] for where in main.NOUNS.values()}
    assert not found & {"aiohttp", "asyncio", "rich", "structlog", "msgspec"}


def test_a_noun_is_imported_when_it_is_asked_for() -> None:
    found = modules_of("get_command(main.app).get_command(None, 'vm')")
    assert "retinue.cli.vm" in found
    assert not found & {"retinue.cli.controller", "retinue.cli.setup", "retinue_lab"}


def test_a_word_that_is_no_noun_is_answered_with_those_that_are_like_it() -> None:
    said = run("vmnet", "list")
    assert said.exit_code == 2
    assert "Did you mean 'vnet'" in said.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0134, "0.013 s"), (54, "54 s"), (99.9, "100 s"), (300, "5 min"), (7200, "2 h"), (400_000, "5 d")],
)
def test_span(seconds: float, text: str) -> None:
    assert output.span(seconds) == text


def test_lease_left() -> None:
    assert output.left(None) == ""
    assert output.left(time.time() - 1) == "over"


class Stand:
    """One of two controllers, as it would say of itself."""

    def __init__(self, name: str, role: str) -> None:
        self.name, self.role = name, role

    def report(self) -> dict[str, Any]:
        active = {"name": "c1", "url": "https://192.0.2.1:8080", "epoch": 3, "since": time.time() - 90}
        return {
            "name": self.name,
            "role": self.role,
            "active": active,
            "mandate_seconds": 8.2 if self.role == "active" else None,
            "heard_seconds": 0.4,
            "database": "ssl:192.0.2.21:6641",
            "switches_standing": 7,
        }

    def speaks(self) -> bool:
        return self.role == "active"

    def who_speaks(self) -> str:
        return "controller c2 is a standby: the active one is c1"


def test_of_two_controllers_it_is_said_who_is_active_and_the_active_one_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "controller.toml"
    config.write_text(controller_config(topology_file.load(None)))

    def one(stand: Stand) -> AbstractContextManager[int]:
        return serving(lambda: Controller(load(config).network()), lambda c: Api(c, dict, cluster=stand))

    with one(Stand("c2", "standby")) as standby, one(Stand("c1", "active")) as active:
        urls = [f"http://127.0.0.1:{port}" for port in (standby, active)]
        monkeypatch.setenv("RETINUE_URL", ",".join((*urls, "http://127.0.0.1:1")))
        said = good("controller", "status")
        assert re.search(r"c1 +\S+ +active +3 .* may go on for 8.2 s without the database", said)
        assert re.search(r"c2 +\S+ +standby +3 .* heard c1 0.4 s ago, 7 switches connected", said)
        assert re.search(r"http://127.0.0.1:1 +away", said)
        assert "0 of 7 connected" in said
        good("vm", "add", "vm1", "--server", "server1")
        assert "vm1" in good("vm", "list")
        rows = json.loads(good("controller", "status", "--json"))["controllers"]
        assert {row["role"] for row in rows} == {"active", "standby", "away"}
        monkeypatch.setenv("RETINUE_URL", urls[0])
        result = run("controller", "status")
        assert result.exit_code == 1
        assert "heard c1 0.4 s ago" in result.stdout
        assert "the active one is c1" in result.stderr
        assert "the active one is c1" in bad("vm", "list")


def test_the_schema_is_what_ovsdb_tool_takes(tmp_path: Path) -> None:
    said = json.loads(good("controller", "schema"))
    assert said["name"] == "Retinue"
    assert "epoch" in said["tables"]["Active"]["columns"]

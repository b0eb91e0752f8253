"""Names, profiles, chosen targets and plans at the command line, over the real interface."""

import json
import re
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from retinue.cli.main import app
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.protocol.blocking import Client
from retinue.protocol.images import HeldImage, ImagesBody, ImageState
from retinue.protocol.mobility import ServerReport, VMSize
from retinue.protocol.routes import Route
from support.api_thread import serving
from support.fabric.networks import add_vm, fabric, vm_ip, vm_mac


def controller() -> Controller:
    """Three servers of 8 GiB: vm1 and vm2 of 2 GiB each at server1, vm3 at server3."""
    net = fabric()
    for vm, at in ((1, 1), (2, 1), (3, 3)):
        add_vm(net, vm, at=at)
    made = Controller(net, clock=lambda: 1000.0)
    for number, vms in ((1, ("vm1", "vm2")), (2, ()), (3, ("vm3",))):
        sizes = [VMSize(vm, 2048) for vm in vms]
        report = ServerReport(8, 8192, 8000, cpu_used=2550, cpu_pressure=0, vms=sizes)
        made.mobility.on_report(f"server{number}", report)
        held = HeldImage("debian", "ab" * 32, ImageState.HELD, 1)
        made.images.holders.on_report(f"server{number}", ImagesBody("192.0.2.3:7800", [held]))
    return made


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("RETINUE_URL", raising=False)
    with serving(controller, lambda served: Api(served, dict)) as port:
        yield f"http://127.0.0.1:{port}"


def said(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, args)
    assert result.exit_code == code, result.output
    return result.output


def test_a_service_is_named_found_and_taken_back(url: str) -> None:
    at = ("--url", url)
    assert said("name", "add", "shop", "--kind", "service", "--served-by", "vm1", *at) == (
        "shop is a service served by vm1 at server1, edge1:10\n"
    )
    found = said("name", "resolve", "shop", *at)
    assert re.search(r"where +served by vm1 at server1, edge1:10", found)
    assert re.search(rf"addresses +{vm_ip(1)}", found)
    assert re.search(r"^shop +service +served by vm1", said("name", "list", "--kind", "service", *at), re.M)
    assert "shop is the name of a service" in said("name", "add", "shop", "--kind", "image", *at, code=1)
    assert "cannot be an image's id" in said("name", "add", "a b", "--kind", "image", *at, code=1)
    assert "one of vm, server, service, image" in said("name", "list", "--kind", "ship", *at, code=1)
    assert said("name", "remove", "shop", *at) == "nothing is said of shop any more\n"
    assert "nothing has the name shop" in said("name", "resolve", "shop", *at, code=1)


def test_a_disk_and_a_segment_are_found_by_their_names(url: str) -> None:
    at = ("--url", url)
    vm = {"id": "vm8", "mac": vm_mac(8), "server": "server1", "addresses": [str(vm_ip(8))]}
    disks = [{"size_mib": 64}, {"shared": "/srv/vm8.raw"}]
    Client(url).ask(Route.REGISTER_VMS, body={**vm, "disks": disks})
    found = said("name", "resolve", "vm8:disk1", *at)
    for field in ("kind +disk", "where +of vm8, at server1", "size +64 MiB"):
        assert re.search(field, found), found
    listed = said("name", "list", "--kind", "disk", *at)
    assert re.search(r"^vm8:disk2 +disk +of vm8, /srv/vm8.raw", listed, re.M), listed
    assert "nothing has the name vm8:disk3" in said("name", "resolve", "vm8:disk3", *at, code=1)
    assert "nothing has the name debian:9" in said("name", "resolve", "debian:9", *at, code=1)


def test_what_is_said_and_measured_of_vms_servers_and_images_is_shown(url: str) -> None:
    at = ("--url", url)
    profile = ("--os", "debian", "--version", "12", "--memory", "512", "--application", "nginx", "--pinned")
    said("name", "add", "vm1", "--kind", "vm", *profile, *at)
    shown = said("vm", "show", "vm1", *at)
    for field in ("os +debian", "version +12", "memory +512 MiB", "applications +nginx", "pinned +yes"):
        assert re.search(field, shown), field
    shown = said("server", "show", "server1", *at)
    for field in ("memory there +8192 MiB", "memory free +8000 MiB", r"processors in use +25\.50 %"):
        assert re.search(field, shown), field
    said("name", "add", "debian", "--kind", "image", "--version", "12", *at)
    assert "held by server1, server2, server3" in said("name", "resolve", "debian", *at)


def test_the_best_server_is_found_and_nothing_is_moved(url: str) -> None:
    at = ("--url", url)
    found = said("placement", "find", "vm1", *at)
    assert re.search(r"^best +server2$", found, re.M) and re.search(r"^server1 .*already there", found, re.M)
    assert re.search(r"^best +server3$", said("placement", "find", "vm1", "--to", "server3", *at), re.M)
    whole = json.loads(said("placement", "find", "vm1", "--json", *at))
    assert (whole["decision"]["target"], whole["snapshot"]["source"]) == ("server2", "server1")
    assert "there is no server server9" in said("placement", "find", "vm1", "--to", "server9", *at, code=1)
    assert "there is no VM vm99" in said("placement", "find", "vm99", *at, code=1)
    assert "already there" in said("placement", "find", "vm1", "--to", "server1", *at, code=1)
    assert json.loads(said("move", "list", "--json", *at))["migrations"] == []


def test_without_a_target_the_best_server_is_chosen_and_it_is_explained(url: str) -> None:
    at = ("--url", url)
    said("name", "add", "vm1", "--kind", "vm", "--client", str(vm_ip(3)), *at)
    begun = said("move", "start", "vm1", *at)
    assert "vm1 migrates from server1 to server3" in begun
    assert "distance decides: 80.00 against 0.00" in begun
    shown = said("move", "show", "migration-1", *at)
    assert "chosen for operator, asked by manager: server3 has" in shown
    explained = said("placement", "explain", "migration-1", *at)
    for field in ("chosen +server3", "runner-up +server2", "decided by +distance", "needs +2048 MiB, 1 proc"):
        assert re.search(field, explained), field
    assert re.search(r"^server1 .*already there: the VM is there already", explained, re.M)
    assert json.loads(said("placement", "explain", "migration-1", "--json", *at))["same"]
    said("move", "start", "vm3", "--to", "server2", *at)
    assert "named the target" in said("placement", "explain", "migration-2", *at, code=1)
    assert "there is no migration migration-9" in said("placement", "explain", "migration-9", *at, code=1)


def test_a_plan_is_shown_before_anything_is_moved(url: str) -> None:
    at = ("--url", url)
    shown = said("domain", "rebalance", "--dry-run", *at)
    assert re.search(r"^server1 +50\.00 % +25\.00 %", shown, re.M)
    assert re.search(
        r"^vm1 +server1 +server2 +spread +server1 50\.00 % -> 25\.00 %, server2 0\.00 % -> 25", shown, re.M
    )
    assert "imbalance 50.00 % -> 0.00 %" in shown
    assert "Nothing is to be moved." in said("domain", "rebalance", "--dry-run", "--threshold", "50", *at)
    plan = json.loads(said("domain", "rebalance", "--dry-run", "--metric", "cpu", "--json", *at))
    assert (plan["metric"], plan["before"]["server1"]) == ("cpu", 2500)
    assert "There are no migrations" in said("move", "list", *at)

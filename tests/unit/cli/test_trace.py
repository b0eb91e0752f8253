"""`retinue trace`: what it asks the controller, and how the answer reads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from retinue.cli import connection
from retinue.cli.main import app
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.core.snooping import SpoofingKind
from support.api_thread import serving
from support.fabric.networks import add_vm, fabric, vm_mac, vm_port


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETINUE_URL", "RETINUE_LAB", connection.INSIDE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A controller with vm1 and vm2 on server1, vm3 on server2, a forgery in its log, and no switch."""
    net = fabric()
    for number, at in ((1, 1), (2, 1), (3, 2)):
        add_vm(net, number, at)

    def controller() -> Controller:
        made = Controller(net, clock=lambda: 1000.0)
        claim = (vm_mac(1), "10.0.0.9")
        made.context.spoof_attempts.note(SpoofingKind.IP, "edge1", vm_port(1), "vm1", claim, 1000.0)
        return made

    with serving(controller, lambda controller: Api(controller, dict)) as port:
        yield f"http://127.0.0.1:{port}"


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ("trace", *args))


def said(url: str, *args: str) -> list[str]:
    result = run(*args, "--url", url)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def data(url: str, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads("\n".join(said(url, *args, "--json")))
    return found


def test_a_way_reads_from_switch_to_switch(url: str) -> None:
    lines = said(url, "--from", "vm1", "--to", "10.1.0.103", "--udp", "53")
    assert lines[0].startswith(
        "In at edge1:tap1: 52:54:00:00:00:01 > 00:00:de:ad:be:ef IPv4 10.1.0.101 > 10.1.0.103"
    )
    heads = [line.split(",")[0] for line in lines if ", in by " in line]
    assert heads == ["edge1 (edge)", "leaf1 (leaf)", "spine1 (spine)", "leaf2 (leaf)", "edge2 (edge)"]
    first = lines.index("   0 ADMIT    BOUND 150  (not confirmed by the switch)")
    assert lines[first + 1].startswith("         in_port=10, eth_src=52:54:00:00:00:01, eth_type=0x0800")
    assert lines[first + 2] == "      -> goto_table:20"
    assert "  out by up0 to leaf1:p1" in lines
    assert "Delivered: handed to vm3 at edge2:tap3." in lines
    assert lines[-1] == "This is one of 2 ways of equal cost; they all come to the same."


def test_what_ends_is_told_with_what_would_make_it_pass(url: str) -> None:
    lines = said(url, "--from", "vm1", "--src", "10.0.0.9", "--to", "203.0.113.9", "--tcp", "80")
    ends = lines.index(next(line for line in lines if line.startswith("Dropped: ")))
    assert lines[ends].startswith("Dropped: vm1 has no binding for 10.0.0.9: it holds 10.1.0.101.")
    assert lines[ends + 1] == "  To pass: send from 10.1.0.101"
    assert lines[ends + 2].startswith("           or let it have 10.0.0.9: by DHCP, or `retinue vm set vm1")


def test_a_long_entry_is_broken_where_it_may_be(url: str) -> None:
    lines = said(url, "--from", "vm1", "--to", "10.1.0.254", "--arp")
    actions = lines.index(next(line for line in lines if line.startswith("      -> move:")))
    assert all(len(line) <= 100 for line in lines[actions : actions + 3])
    assert lines[actions + 1].startswith("         ")
    assert any("meter" in line for line in said(url, "--from", "vm1", "--to", "vm3", "--arp"))


def test_notes_stand_before_the_way(url: str) -> None:
    lines = said(url, "--from", "vm1", "--to", "10.1.0.77")
    assert lines[1] == "  Note: nobody answers ARP for 10.1.0.77: a host would not even send this."


def test_a_forgery_is_asked_for_by_the_id_that_is_listed(url: str) -> None:
    listed = CliRunner().invoke(app, ["binding", "spoofing", "--vm", "vm1", "--url", url]).stdout.splitlines()
    (row,) = (line.split() for line in listed if line.startswith("ip "))
    lines = said(url, "--forgery", row[-1])
    assert lines[1].startswith("  Note: seen once; the frame is made of what the log keeps of it")
    assert any("vm1 has no binding for 10.0.0.9" in line for line in lines)


def test_live_says_which_switches_were_not_read(url: str) -> None:
    lines = said(url, "--from", "vm1", "--to", "vm2", "--live")
    assert "   0 ADMIT    BOUND 150  (not read)" in lines
    assert (
        lines[-2] == "Not read: edge1, it is not connected; of it the entries are told that it should have."
    )
    assert lines[-1] == "The switches have what they should, of all that the frame meets."


@pytest.mark.parametrize(
    ("options", "kind", "port"),
    [
        ((), "ICMP", ""),
        (("--icmp",), "ICMP", ""),
        (("--tcp", "80"), "TCP", ""),
        (("--udp", "0"), "UDP", "> 0"),
        (("--arp",), "ARP who has 10.1.0.103", ""),
    ],
)
def test_kinds_of_frames(url: str, options: tuple[str, ...], kind: str, port: str) -> None:
    found = data(url, "--from", "vm1", "--to", "vm3", *options)
    assert kind in found["summary"] and port in found["summary"]


def test_a_frame_of_a_capture(url: str, tmp_path: Path) -> None:
    """As it is copied from one: in one piece, with colons, over lines, or from a file."""
    frame = data(url, "--from", "vm1", "--to", "vm3", "--ttl", "7")["frame"]
    spaced = " ".join(frame[at : at + 4] for at in range(0, len(frame), 4))
    colons = ":".join(frame[at : at + 2] for at in range(0, len(frame), 2))
    file = tmp_path / "frame.hex"
    file.write_text(spaced.replace(" ", "\n", 3))
    for given in (frame, spaced, colons, f"@{file}"):
        assert data(url, "--at", "edge1:tap1", "--frame", given)["frame"] == frame
    assert "cannot read the frame" in run("--from", "vm1", "--frame", f"@{tmp_path}/none").stderr


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (("--from", "vm1", "--to", "vm3", "--udp", "1", "--tcp", "1"), 2, "not --udp and --tcp"),
        (("--from", "vm1", "--to", "vm3", "--udp", "65536"), 2, "less than or equal to 65535"),
        (("--from", "vm1", "--to", "vm3", "--ttl", "256"), 2, "less than or equal to 255"),
        (("--to", "vm3"), 1, "say from where"),
        (("--from", "vm9", "--to", "vm3"), 1, "there is no VM 'vm9'"),
        (("--from", "vm1", "--frame", "zz"), 1, "body cannot be used"),
        (("--from", "vm1", "--on", "server9", "--to", "vm3"), 1, "there is no server 'server9'"),
        (("--from", "vm1", "--nic", "x", "--to", "vm3"), 1, "VM vm1 has no NIC 'x', but: vm1"),
    ],
)
def test_mistakes_are_told_in_a_sentence(url: str, options: tuple[str, ...], status: int, text: str) -> None:
    result = run(*options, "--url", url)
    assert result.exit_code == status
    assert text in result.stderr


def test_others_that_end_otherwise_are_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = data(url, "--from", "vm1", "--to", "vm3")
    found["others"] = ["1 of 2 ways: spine2 has no way to 10.1.0.103"]

    class Answers:
        def ask(self, *_: object, **__: object) -> dict[str, Any]:
            return found

    monkeypatch.setattr(connection.Connection, "client", lambda self: Answers())
    last = run("--from", "vm1", "--to", "vm3").stdout.splitlines()[-1]
    assert last.startswith(
        "This is one of 2 ways of equal cost; others end otherwise: 1 of 2 ways: spine2 has"
    )

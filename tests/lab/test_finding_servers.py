"""Servers are found, on real parts: one whose network card was replaced by its agent's certificate, and by
the chassis id that lldpd says; and one that is found late, while packets to its VM wait."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from retinue.core.packets.lldp import from_leaf, lldp_frame
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import DHCP
from retinue_lab.topology.topology_file import load
from support.lab import lldpd_peer
from support.lab.foreign_vm import without_agents
from support.lab.migrating import start_agent
from support.lab.start import lab_of
from support.lab.tools import LabBench, eventually
from support.lab.watch import Capture

pytestmark = [pytest.mark.lab, pytest.mark.no_vms]

INFRA_GATEWAY = "10.0.0.254"
NEW, NEWER = "02:00:00:00:77:01", "02:00:00:00:77:02"
CHASSIS = "4c4c4544-0042-3510-8052-b4c04f4d3332"
"""A system's UUID."""
SEND = """import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
    wire.bind((sys.argv[1], 0))
    wire.send(bytes.fromhex(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    network = msgspec.structs.replace(load(), router=None, client=None)
    with lab_of(tmp_path_factory.mktemp("labs"), network, "identity") as handle:
        yield handle


async def has_another_card(bench: LabBench, server: str, mac: str) -> None:
    """From now on it has this MAC, and says nothing by the one before."""
    await bench.run(server, "ovs-vsctl", "set", "bridge", "br0", f'other_config:hwaddr="{mac}"')

    async def has_it() -> bool:
        return mac in await bench.run(server, "ip", "link", "show", "dev", "br0")

    await eventually(has_it)
    # Open vSwitch takes the port down for a moment.
    await bench.run(server, "ip", "route", "replace", "default", "via", INFRA_GATEWAY, "dev", "br0")


async def is_reached(bench: LabBench, server: str) -> None:
    """By its address, from another leaf."""
    address = (await bench.server(server))["address"]
    await bench.run(DHCP, "ping", "-c", "1", "-w", "30", address)


async def test_by_the_name_in_its_agents_certificate(bench: LabBench) -> None:
    before = (await bench.server("server2"))["mac"]
    bench.kill("server2-agent")
    await has_another_card(bench, "server2", NEW)
    async with bench.events() as events:
        await start_agent(bench, "server2")
        told = await events.until("server.identified")
    assert (told["server"], told["mac"], told["before"]) == ("server2", NEW, before)
    assert (await bench.server("server2"))["mac"] == NEW
    await is_reached(bench, "server2")


async def test_by_the_chassis_id_that_lldpd_says(bench: LabBench) -> None:
    if shutil.which("lldpd") is None:
        pytest.skip("lldpd is not installed")
    known = await bench.server("server3")
    body = {key: known[key] for key in ("id", "mac", "address", "edge")}
    await bench.post("servers", {**body, "at": known["given_at"] or "", "chassis": CHASSIS})
    bench.kill("server3-agent")
    await has_another_card(bench, "server3", NEWER)
    async with bench.events() as events:
        await bench.run("server3", sys.executable, "-I", "-S", "-c", SEND, "up0", _said_by_lldpd().hex())
        told = await events.until("server.identified")
    assert (told["server"], told["mac"], told["before"]) == ("server3", NEWER, known["mac"])
    await is_reached(bench, "server3")


def _said_by_lldpd() -> bytes:
    """The frame by which it tells the chassis id, from the NIC that the server has now."""
    ours = lldp_frame(from_leaf("leaf1", "leaf1-server3", NEW, 121), NEW)
    peer = (sys.executable, "-I", "-S", str(Path(lldpd_peer.__file__)))
    argv = ["unshare", "--net", "--mount", *peer, NEW, ours.hex(), CHASSIS, NEWER]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return bytes.fromhex(json.loads(done.stdout)["frame"])


LATE, LATE_MAC = "10.1.0.77", "52:54:00:00:08:01"
DATAGRAMS = """import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    for number in range(3):
        out.sendto(b"number %d" % number, (sys.argv[1], 9999))
"""


async def test_what_is_for_a_vm_of_a_server_that_is_found_late_waits_for_it(bench: LabBench) -> None:
    """Nobody has heard of the server when the packets are sent; when it is heard, they come, in order, once.

    Runs last: its server has no agent any more.
    """
    await without_agents(bench, "server3")
    known = await bench.server("server3")
    await bench.run("server3", "ip", "link", "set", "br0", "down")
    await bench.request("DELETE", "servers/server3")
    body = {key: known[key] for key in ("id", "mac", "address", "edge")}
    await bench.post("servers", body)
    await bench.post("vms", {"id": "late", "mac": LATE_MAC, "server": "server3", "addresses": [LATE]})
    await bench.run(
        "server3", "ovs-vsctl", "add-port", "br0", "late", "--", "set", "interface", "late", "type=internal",
        f'mac="{LATE_MAC}"', "external_ids:iface-id=late", f'external_ids:attached-mac="{LATE_MAC}"',
    )  # fmt: skip
    await bench.run("server3", "ip", "link", "set", "late", "up")

    async def is_handed_up() -> bool:
        at_edge = await bench.flows("edge3", f"nw_dst={LATE} ")
        return bool(at_edge) and bool(await bench.flows("leaf2", f"nw_dst={LATE} ", "CONTROLLER"))

    await eventually(is_handed_up)
    assert (await bench.server("server3"))["state"] == "missing"
    async with bench.capture("server3", "late", "in") as at_vm:
        await bench.run(DHCP, sys.executable, "-I", "-S", "-c", DATAGRAMS, LATE)
        await bench.run("server3", "ip", "link", "set", "br0", "up")
        await bench.run("server3", "ping", "-c", "1", "-w", "30", INFRA_GATEWAY)  # It asks for that by ARP.
        await at_vm.until(lambda f: b"number 2" in f.data)
        await bench.run(DHCP, sys.executable, "-I", "-S", "-c", DATAGRAMS, LATE)
        await at_vm.until(lambda f: len(_numbers(at_vm)) == 6)
    assert _numbers(at_vm) == [0, 1, 2, 0, 1, 2], "those that waited, and those that find their way"
    assert await bench.flows("leaf2", f"nw_dst={LATE} ", "CONTROLLER") == []


def _numbers(capture: Capture) -> list[int]:
    found = (re.search(rb"number (\d)", frame.data) for frame in capture.frames)
    return [int(one[1]) for one in found if one is not None]

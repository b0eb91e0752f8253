"""The gateway's MAC comes down from the leaf by LLDP, on real parts: a leaf of ours says it, and lldpd does.

lldpd is the judge of what we write, and writes what our edge believes, as another's leaf.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from retinue.core.packets import EtherType, parse
from retinue.core.packets.lldp import from_leaf, lldp_frame, parse_lldp
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.parts import GatewayGroupPart
from retinue_lab.topology.topology import Topology
from retinue_lab.topology.topology_file import load
from support.lab import lldpd_peer
from support.lab.start import lab_of
from support.lab.tools import LabBench, eventually

pytestmark = [pytest.mark.lab, pytest.mark.no_vms, pytest.mark.long]

RACK7, RACK9, NOBODYS = "02:00:5e:00:07:01", "02:00:5e:00:09:01", "02:00:5e:00:99:99"
OURS = lldp_frame(from_leaf("leaf1", "leaf1-server1", RACK7, 121), RACK7)
SEND = """import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
    wire.bind((sys.argv[1], 0))
    wire.send(bytes.fromhex(sys.argv[2]))
"""


@dataclass
class Other:
    """What lldpd has written, saying RACK9, and what it has read of ours."""

    frame: bytes
    neighbours: list[Any]


@pytest.fixture(scope="module")
def other() -> Other:
    if shutil.which("lldpd") is None:
        pytest.skip("lldpd is not installed")
    argv = ["unshare", "--net", "--mount", sys.executable, "-I", "-S", str(Path(lldpd_peer.__file__))]
    done = subprocess.run(
        [*argv, RACK9, OURS.hex()], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return Other(bytes.fromhex(found["frame"]), found["neighbours"])


def network() -> Topology:
    """The default laboratory; leaf1 says rack7's MAC; edge1, at leaf1, and edge2, at leaf2, are told."""
    found, replace = load(), msgspec.structs.replace
    one, two, *others = found.server
    return replace(
        found,
        gateway_group=(GatewayGroupPart(id="rack7", mac=RACK7), GatewayGroupPart(id="rack9", mac=RACK9)),
        leaf=tuple(
            replace(one_, gateway_group="rack7" if one_.id == one.leaf else "") for one_ in found.leaf
        ),
        server=(replace(one, vdp=True), replace(two, vdp=True), *others),
        dhcp=None,
        router=None,
        client=None,
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    with lab_of(tmp_path_factory.mktemp("labs"), network(), "vdp", agents=False) as handle:
        yield handle


def test_lldpd_reads_what_we_write_and_we_read_what_it_writes(other: Other) -> None:
    (ours,) = other.neighbours
    assert ours["chassis"] == "leaf1"
    told = [(t["oui"].upper(), t["subtype"], t["value"].upper()) for t in ours["tlvs"]]
    assert ("52,54,4E", "1", RACK7.upper().replace(":", ",")) in told
    read = parse_lldp(parse(other.frame).payload)
    assert (read.gateway_mac, read.evb_mode) == (RACK9, None)


async def way_up(bench: LabBench, edge: str, mac: str) -> bool:
    """The edge sends up under this gateway's MAC, and under no other."""
    entries = [flow for flow in await bench.flows(edge, "table=20") if "priority=100" in flow]
    return len(entries) == 1 and mac in entries[0]


async def says(bench: LabBench, frame: bytes, port: str = "leaf2-server2") -> None:
    """Whoever is at the fabric's end of this cable."""
    await bench.run("fabric", sys.executable, "-c", SEND, port, frame.hex())


async def test_what_another_leaf_says_is_believed_where_it_names_a_group(
    bench: LabBench, other: Other
) -> None:
    async with bench.events(since=0) as events:
        await says(bench, other.frame)
        learned = await events.until("gateway.learned", lambda e: e["server"] == "server2")
        assert (learned["group"], learned["mac"]) == ("rack9", RACK9)
        await eventually(lambda: way_up(bench, "edge2", RACK9))
        mac = bytes.fromhex(RACK9.replace(":", ""))
        await says(bench, other.frame.replace(b"RTN\x01" + mac, b"RTN\x01" + bytes.fromhex("02005e009999")))
        refused = await events.until("gateway.refused")
        assert (refused["switch"], refused["mac"]) == ("edge2", NOBODYS)
        assert await way_up(bench, "edge2", RACK9)
    assert (await bench.get("status"))["counters"]["gateway MACs refused"] == 1
    # Server 3's edge is told nothing, whoever says it.
    await says(bench, other.frame, "leaf1-server3")
    assert (await bench.server("server3"))["gateway_group"] == ""


async def test_a_leaf_of_ours_says_its_groups_mac(bench: LabBench) -> None:
    async with bench.capture("server1", "up0", "in") as wire, bench.events(since=0) as events:
        frame = await wire.until(lambda f: f.ethertype == EtherType.LLDP)
        assert parse_lldp(parse(frame.data).payload).gateway_mac == RACK7
        learned = await events.until("gateway.learned", lambda e: e["server"] == "server1")
        assert (learned["group"], learned["mac"]) == ("rack7", RACK7)
        await eventually(lambda: way_up(bench, "edge1", RACK7))
    shown = json.loads(await bench.cli("gateway", "list", "--json"))["groups"]
    assert ("rack7", RACK7, ["server1"]) in [(row["id"], row["mac"], row["servers"]) for row in shown]

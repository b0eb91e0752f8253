"""The example of US 9,515,930 on real switches, with real guests: header fields on the wires.

Five hosts in 1.1.1.0/24: H1, H2 and H3 on server A with virtual switch 1 and leaf L1, H4 and H5 on B with
virtual switch m and leaf Lm. Each guest's ARP cache is its own, and lasts: "an ARP cache is refreshed about
every four hours". What is computed of it stands in tests/unit/core/pipeline/test_us9515930.py.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import msgspec
import pytest

from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.parts import LeafPart, SubnetPart
from retinue_lab.topology.topology import Topology
from retinue_lab.topology.topology_file import load
from support.lab.frames import ARP, IP, UDP, Ether, carries, hexed
from support.lab.start import boot, lab_of
from support.lab.tools import LabBench
from support.lab.watch import Capture, Frame

pytestmark = [pytest.mark.lab, pytest.mark.patient]

GATEWAY_MAC, GATEWAY = "00:00:de:ad:be:ef", "1.1.1.254"
A_MAC, B_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
HOSTS = (1, 2, 3, 4, 5)
FOUR_HOURS = 4 * 3600


def ip(host: int) -> str:
    return f"1.1.1.{host}"


def mac(host: int) -> str:
    return f"00:00:01:01:01:{host:02x}"


def example() -> Topology:
    """The default laboratory with the document's subnet, two servers, and neither DHCP nor the outside."""
    found = load()
    blue = SubnetPart(id="example", prefix=IPv4Network("1.1.1.0/24"), gateway=IPv4Address(GATEWAY))
    a, b = found.server[:2]
    replace = msgspec.structs.replace
    return replace(
        found,
        subnet=(found.subnet[0], blue),
        leaf=(LeafPart(id="L1", dpid=0x11), LeafPart(id="Lm", dpid=0x12)),
        server=(
            replace(a, id="A", leaf="L1", edge="vswitch1", mac=A_MAC),
            replace(b, id="B", leaf="Lm", edge="vswitchm", mac=B_MAC),
        ),
        dhcp=None,
        router=None,
        client=None,
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    with lab_of(tmp_path_factory.mktemp("labs"), example(), "figures") as handle:
        servers = {host: "A" if host <= 3 else "B" for host in HOSTS}
        boot(
            handle,
            [
                {"id": f"H{host}", "mac": mac(host), "server": servers[host], "addresses": [ip(host)]}
                for host in HOSTS
            ],
        )
        yield handle


async def learn(bench: LabBench, host: int) -> dict[str, str]:
    """A guest forgets what it knows, speaks to everybody, and has this in its whole ARP cache."""
    others = [GATEWAY, *(ip(other) for other in HOSTS if other != host)]
    lasts = f"echo {FOUR_HOURS} > /proc/sys/net/ipv4/neigh/eth0/base_reachable_time"
    pings = "; ".join(f"ping -c 1 -W 5 {other} > /dev/null" for other in others)
    await bench.guest(f"H{host}", f"{lasts}; ip neigh flush dev eth0; {pings}")
    return await cache(bench, host)


async def cache(bench: LabBench, host: int) -> dict[str, str]:
    said = await bench.guest(f"H{host}", "ip neigh show dev eth0")
    rows = [line.split() for line in said.splitlines()]
    return {row[0]: row[row.index("lladdr") + 1] for row in rows if "lladdr" in row}


Head = tuple[str, str, str, str, int]
"""SMAC, DMAC, SIP, DIP, TTL."""


def head(frame: Frame) -> Head:
    packet: Any = frame.ether[IP]
    return frame.src, frame.dst, packet.src, packet.dst, packet.ttl


SEEN = (
    ("A", "up0"), ("B", "up0"),
    ("fabric", "L1-spine1"), ("fabric", "L1-spine2"), ("fabric", "Lm-spine1"), ("fabric", "Lm-spine2"),
)  # fmt: skip


class Wires:
    """Both virtual switches' uplinks, every link of the leaves, and the taps of some hosts."""

    def __init__(self, bench: LabBench, captures: dict[tuple[str, str, str], Capture]) -> None:
        self._bench, self._captures = bench, captures

    async def datagram(self, host: int, dmac: str, to: int, tap: str, text: str) -> dict[str, list[Head]]:
        """A host sends a packet to this DMAC; it comes to another's tap. Its header wherever it passed."""
        packet = IP(src=ip(host), dst=ip(to)) / UDP(sport=4000, dport=7) / text
        await self._bench.send(f"H{host}", hexed(Ether(src=mac(host), dst=dmac) / packet))

        def is_it(frame: Frame) -> bool:
            """The guest may answer it, and in the answer stands the text, too."""
            if not frame.ether.haslayer(IP) or not carries(frame.ether, text):
                return False
            seen: Any = frame.ether[IP]
            return (seen.src, seen.dst, seen.proto) == (ip(host), ip(to), 17)

        await self._captures[tap, f"tap-H{to}", "out"].until(is_it)
        await asyncio.gather(*(capture.settle() for capture in self._captures.values()))
        found: dict[str, list[Head]] = {}
        for (node, interface, direction), capture in self._captures.items():
            heads = [head(frame) for frame in capture.those(is_it)]
            if heads:
                found[f"{interface if node == 'fabric' else node + ' ' + interface} {direction}"] = heads
        return found

    def arp(self) -> list[str]:
        """ARP that a host sent or got, or that crossed the fabric."""
        macs = {mac(host) for host in HOSTS}
        return [
            f"{where}: {frame}"
            for where, capture in self._captures.items()
            for frame in capture.those(lambda f: f.ether.haslayer(ARP))
            if macs & {frame.src, frame.dst} or where[0] == "fabric"
        ]


@contextlib.asynccontextmanager
async def wires(bench: LabBench, *taps: tuple[str, int]) -> AsyncIterator[Wires]:
    """Each seen in both directions; of a host's tap what it is given."""
    locations = [(node, port, direction) for node, port in SEEN for direction in ("in", "out")]
    locations += [(server, f"tap-H{host}", "out") for server, host in taps]
    async with bench.captures(*locations) as seen:
        yield Wires(bench, dict(zip(locations, seen, strict=True)))


def crossing(found: dict[str, list[Head]], way: str) -> list[Head]:
    """What was seen on the links to spines in this direction: a flow takes one of them."""
    return [
        one for where, heads in found.items() if "-spine" in where and where.endswith(way) for one in heads
    ]


async def test_figures_1_and_2_before_the_migration(bench: LabBench) -> None:
    """The guests' whole ARP caches, and H1's packets to H2, by its switch, and to H4, by the leaves."""
    assert await learn(bench, 1) == {
        "1.1.1.254": "00:00:de:ad:be:ef",
        "1.1.1.2": "00:00:01:01:01:02",
        "1.1.1.3": "00:00:01:01:01:03",
        "1.1.1.4": "00:00:de:ad:be:ef",
        "1.1.1.5": "00:00:de:ad:be:ef",
    }
    assert await learn(bench, 4) == {
        "1.1.1.254": "00:00:de:ad:be:ef",
        "1.1.1.1": "00:00:de:ad:be:ef",
        "1.1.1.2": "00:00:de:ad:be:ef",
        "1.1.1.3": "00:00:de:ad:be:ef",
        "1.1.1.5": "00:00:01:01:01:05",
    }
    async with wires(bench, ("A", 2), ("B", 4)) as seen:
        local = await seen.datagram(1, "00:00:01:01:01:02", 2, "A", "H1 to H2 before")
        remote = await seen.datagram(1, "00:00:de:ad:be:ef", 4, "B", "H1 to H4 before")
        assert seen.arp() == [], "nobody has to ask"
    assert local == {"A tap-H2 out": [("00:00:01:01:01:01", "00:00:01:01:01:02", "1.1.1.1", "1.1.1.2", 64)]}
    ips = ("1.1.1.1", "1.1.1.4")
    assert remote["A up0 out"] == [("00:00:01:01:01:01", "00:00:de:ad:be:ef", *ips, 64)]
    assert crossing(remote, "out") == [("00:00:de:ad:be:ef", "00:00:de:ad:be:ef", *ips, 63)]
    assert crossing(remote, "in") == [("00:00:de:ad:be:ef", B_MAC, *ips, 63)]
    assert remote["B up0 in"] == [("00:00:de:ad:be:ef", B_MAC, *ips, 63)]
    assert remote["B tap-H4 out"] == [("00:00:de:ad:be:ef", "00:00:01:01:01:04", *ips, 63)]
    assert len(remote) == 5, "and it was nowhere else"


async def test_figures_3_to_5_after_it_with_every_cache_as_it_was(bench: LabBench) -> None:
    """H1 is on B. It goes on by what it knew; refreshed, what is local is local."""
    if (await bench.vm("H1"))["server"] == "B":
        await bench.migration("H1", target_server="A")
    known = {host: await learn(bench, host) for host in (1, 2, 4)}
    table = len(await bench.flows("L1"))
    async with wires(bench) as meanwhile:
        await bench.migration("H1", target_server="B")
        assert meanwhile.arp() == [], "nobody is told or asked where H1 is"
    async with wires(bench, ("A", 2), ("B", 1), ("B", 4)) as seen:
        assert {host: await cache(bench, host) for host in known} == known, "no cache has been mended"

        # Figure 3: unknown at virtual switch m, H2's MAC becomes the shared one.
        there = await seen.datagram(1, known[1][ip(2)], 2, "A", "H1 to H2 after")
        ips = ("1.1.1.1", "1.1.1.2")
        assert there["B up0 out"] == [("00:00:01:01:01:01", "00:00:de:ad:be:ef", *ips, 64)]
        assert crossing(there, "out") == [("00:00:de:ad:be:ef", "00:00:de:ad:be:ef", *ips, 63)]
        assert there["A up0 in"] == [("00:00:de:ad:be:ef", A_MAC, *ips, 63)]
        assert there["A tap-H2 out"] == [("00:00:de:ad:be:ef", "00:00:01:01:01:02", *ips, 63)]
        assert len(there) == 5, "nothing is flooded"

        # "Reverse traffic [...] will be handled in a similar manner".
        back = await seen.datagram(2, known[2][ip(1)], 1, "B", "H2 to H1 after")
        ips = ("1.1.1.2", "1.1.1.1")
        assert known[2][ip(1)] == "00:00:01:01:01:01"
        assert back["A up0 out"] == [("00:00:01:01:01:02", "00:00:de:ad:be:ef", *ips, 64)]
        assert back["B tap-H1 out"] == [("00:00:de:ad:be:ef", "00:00:01:01:01:01", *ips, 63)]
        assert len(back) == 5

        # Figure 4: to H4, which is beside it now, by the leaf: out of the uplink and back in by it.
        for host, to in ((1, 4), (4, 1)):
            turned = await seen.datagram(host, known[host][ip(to)], to, "B", f"H{host} to H{to} by the leaf")
            ips = (ip(host), ip(to))
            assert turned == {
                "B up0 out": [(mac(host), "00:00:de:ad:be:ef", *ips, 64)],
                "B up0 in": [("00:00:de:ad:be:ef", B_MAC, *ips, 63)],
                f"B tap-H{to} out": [("00:00:de:ad:be:ef", mac(to), *ips, 63)],
            }
        assert seen.arp() == [], "and nobody has asked for anything"

        # "Upon refreshing the ARP cache", and from then on "directly switched by vswitch m".
        for host, to in ((1, 4), (4, 1)):
            assert (await learn(bench, host))[ip(to)] == mac(to)
            direct = await seen.datagram(host, mac(to), to, "B", f"H{host} to H{to} directly")
            assert direct == {f"B tap-H{to} out": [(mac(host), mac(to), ip(host), ip(to), 64)]}
    assert await learn(bench, 1) == {
        "1.1.1.254": "00:00:de:ad:be:ef",
        "1.1.1.2": "00:00:de:ad:be:ef",
        "1.1.1.3": "00:00:de:ad:be:ef",
        "1.1.1.4": "00:00:01:01:01:04",
        "1.1.1.5": "00:00:01:01:01:05",
    }

    # Figure 5, and "there is no need for a leaf to store MAC addresses of remote hosts".
    switched = await bench.flows("vswitchm", "table=20")
    assert [host for host in HOSTS if any(f"dl_dst={mac(host)}" in line for line in switched)] == [1, 4, 5]
    assert any(f"set_field:{GATEWAY_MAC}->eth_dst" in line for line in switched)
    for leaf, here in (("L1", [2, 3]), ("Lm", [1, 4, 5])):
        entries = await bench.flows(leaf)
        assert [host for host in HOSTS if any(mac(host) in line for line in entries)] == []
        stored = [host for host in HOSTS if any(f"nw_dst={ip(host)} " in line for line in entries)]
        assert stored == here
    assert len(await bench.flows("L1")) < table, "what it had of H1 is gone"


async def test_every_switch_has_as_many_entries_as_before_when_h1_is_back(bench: LabBench) -> None:
    """ "so as to save memory" (US 9,323,554): where a VM has been nothing of it is left, on any switch."""
    at = {"A": "B", "B": "A"}
    home = (await bench.vm("H1"))["server"]
    before = {switch: len(entries) for switch, entries in (await bench.all_flows()).items()}
    await bench.migration("H1", target_server=at[home])
    there = {switch: len(entries) for switch, entries in (await bench.all_flows()).items()}
    assert there != before
    await bench.migration("H1", target_server=home)
    assert {switch: len(entries) for switch, entries in (await bench.all_flows()).items()} == before

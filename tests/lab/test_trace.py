"""`retinue trace` beside real Open vSwitch: its own trace, its counters, entries that somebody changed."""

import json
import re
from typing import Any

import pytest

from retinue.core.pipeline.entry import PortNo
from support.lab.frames import BROADCAST, ICMP, IP, TCP, UDP, Ether, arp, from_client, from_server, hexed
from support.lab.tools import LabBench, at, eventually, mac_of

pytestmark = [pytest.mark.lab, pytest.mark.patient]

VMS = [at("vm1", "server1"), at("vm2", "server1"), at("vm3", "server2")]
ONE, TWO, THREE = (mac_of(vm["id"]) for vm in VMS)
GROUP = "01:00:5e:00:00:fb"
GATEWAY, GATEWAY_IP, OUTSIDE = "00:00:de:ad:be:ef", "10.1.0.254", "203.0.113.9"
ROUTER, SERVER1 = "02:00:00:00:00:e1", "02:00:00:00:00:01"


@pytest.fixture
async def ips(bench: LabBench) -> list[str]:
    """The addresses of vm1, vm2 and vm3."""
    return [await bench.address(vm["id"]) for vm in VMS]


async def traced(bench: LabBench, *argv: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await bench.cli("trace", *argv, "--json"))
    return found


_MET = re.compile(r"^ *(\d+)\. .*?(?:priority (\d+)(?:, cookie (0x[0-9a-f]+))?|(No match))")


async def by_ovs(bench: LabBench, switch: str, port: int, frame: str) -> tuple[list[tuple[int, int]], str]:
    """Open vSwitch's own trace: the entries that a frame meets, by table and priority, and its actions."""
    node, bridge = bench.bridge(switch)
    number = "LOCAL" if port == PortNo.LOCAL else str(port)
    said = await bench.run(node, "ovs-appctl", "ofproto/trace", bridge, f"in_port={number}", frame)
    met = [found for line in said.splitlines() if (found := _MET.match(line)) is not None]
    (actions,) = re.findall(r"^Datapath actions: (.*)$", said, re.MULTILINE)
    return [(int(one[1]), int(one[2])) for one in met if not one[4]], actions


def frames_of_vm1(ips: list[str]) -> dict[str, str]:
    """Honest and forged, what is answered, what goes to the controller, what ends."""
    one, two, three = ips
    ether, udp = Ether(src=ONE, dst=GATEWAY), UDP(sport=4000, dport=9)
    return {
        "local": hexed(Ether(src=ONE, dst=TWO) / IP(src=one, dst=two) / udp / "x"),
        "remote": hexed(ether / IP(src=one, dst=three) / udp / "x"),
        "stale MAC": hexed(Ether(src=ONE, dst=THREE) / IP(src=one, dst=three) / TCP(sport=1, dport=80)),
        "outside": hexed(ether / IP(src=one, dst=OUTSIDE) / ICMP() / "x"),
        "hairpin": hexed(ether / IP(src=one, dst=two) / udp / "x"),
        "ping of the gateway": hexed(ether / IP(src=one, dst=GATEWAY_IP) / ICMP() / "x"),
        "ARP for the gateway": arp("who-has", ONE, one, GATEWAY_IP),
        "ARP for a neighbour": arp("who-has", ONE, one, two),
        "ARP for a remote one": arp("who-has", ONE, one, three),
        "ARP for itself": arp("who-has", ONE, one, one),
        "nobody": hexed(ether / IP(src=one, dst="10.1.0.250") / udp / "x"),
        "TTL of 1": hexed(ether / IP(src=one, dst=three, ttl=1) / udp / "x"),
        "TTL of 0": hexed(ether / IP(src=one, dst=three, ttl=0) / udp / "x"),
        "forged IP": hexed(ether / IP(src=two, dst=three) / udp / "x"),
        "forged MAC": hexed(Ether(src=TWO, dst=GATEWAY) / IP(src=one, dst=three) / udp / "x"),
        "forged ARP": arp("is-at", ONE, two, GATEWAY_IP, tha=GATEWAY),
        "broadcast": hexed(Ether(src=ONE, dst=BROADCAST) / IP(src=one, dst="10.1.0.255") / udp / "x"),
        "multicast": hexed(Ether(src=ONE, dst=GROUP) / IP(src=one, dst="224.0.0.251") / udp / "x"),
        "loopback": hexed(ether / IP(src=one, dst="127.0.0.1") / udp / "x"),
        "of another type": hexed(Ether(src=ONE, dst=GATEWAY, type=0x88B5) / ("x" * 50)),
        "DHCP": from_client(ONE, "discover"),
        "rogue DHCP": from_server("offer", src=ONE, from_ip=one, client=TWO, yiaddr=two),
        "cut off": hexed(ether / IP(src=one, dst=three) / udp / "x")[:60],
    }  # fmt: skip


async def test_every_entry_on_the_way_is_the_one_that_open_vswitch_finds(
    bench: LabBench, ips: list[str]
) -> None:
    """Hop by hop: the frame as it comes there is given to the switch's own trace."""
    one, _, three = ips
    udp = UDP(sport=4000, dport=9)
    from_router, late = Ether(src=ROUTER, dst=GATEWAY), Ether(src=GATEWAY, dst=SERVER1)
    past = Ether(src=ROUTER, dst=ONE) / IP(src=OUTSIDE, dst=one) / udp
    own = Ether(src=SERVER1, dst=GATEWAY) / IP(src="10.0.0.11", dst="10.0.0.12") / udp
    crossing = Ether(src=GATEWAY, dst=GATEWAY) / IP(src=one, dst=three) / udp
    asked = [("edge1:tap-vm1", name, frame) for name, frame in frames_of_vm1(ips).items()]
    asked += [
        ("leaf2:leaf2-router", "from outside", hexed(from_router / IP(src=OUTSIDE, dst=one) / udp / "x")),
        ("leaf2:leaf2-router", "from inside", hexed(from_router / IP(src=three, dst=one) / udp / "x")),
        ("leaf2:leaf2-router", "not routed", hexed(past)),
        ("edge1:up0", "brought", hexed(late / IP(src=OUTSIDE, dst=one) / udp / "x")),
        ("edge1:up0", "for another server", hexed(late / IP(src=OUTSIDE, dst=three) / udp / "x")),
        ("edge1:LOCAL", "of the server", hexed(own)),
        ("leaf1:leaf1-server1", "ARP of a server", arp("who-has", SERVER1, "10.0.0.11", "10.0.0.254")),
        ("spine1:spine1-leaf1", "at a spine", hexed(crossing)),
    ]  # fmt: skip
    hops, fates = 0, set()
    for place, name, frame in asked:
        found = await traced(bench, "--at", place, "--frame", frame, "--live")
        assert found["live"]["differs"] == [], name
        assert found["live"]["unread"] == {}, name
        for hop in found["live"]["hops"]:
            met, actions = await by_ovs(bench, hop["switch"], hop["in_port"], hop["frame"])
            told = [(entry["table"], entry["priority"]) for entry in hop["entries"]]
            assert told == met, f"{name} at {hop['switch']}: {told}, but Open vSwitch: {met} {actions}"
            ends_here = [e for e in found["live"]["ends"] if e["switch"] == hop["switch"]]
            to_controller = any("CONTROLLER" in entry["actions"] for entry in hop["entries"])
            goes_nowhere = not hop["sent"] and not to_controller
            # Of a time to live that runs out Open vSwitch tells a controller that wants to know (reason 2).
            dropped = actions == "drop" or actions.startswith("userspace(pid=0,controller(reason=2,")
            assert goes_nowhere == dropped, f"{name} at {hop['switch']}: {actions}"
            assert not goes_nowhere or [end["fate"] for end in ends_here] == ["dropped"]
            hops += 1
        fates |= {end["fate"] for end in found["ends"]}
    assert hops > 50
    assert fates == {"delivered", "answered", "told", "dropped"}


async def test_the_entries_of_a_trace_count_the_packets_that_are_sent(
    bench: LabBench, ips: list[str]
) -> None:
    one, _, three = ips
    frame = hexed(
        Ether(src=ONE, dst=GATEWAY) / IP(src=one, dst=three) / UDP(sport=4000, dport=9) / "count me"
    )
    argv = ("--from", "vm1", "--frame", frame, "--live")

    async def counted() -> dict[tuple[str, str], int]:
        hops = (await traced(bench, *argv))["live"]["hops"]
        return {
            (hop["switch"], entry["table_name"]): entry["packets"]
            for hop in hops
            for entry in hop["entries"]
            # Which spine a flow takes is the leaf's own choice.
            if hop["role"] != "spine" and entry["priority_name"] != "FROM_SPINE"
        }

    before = await counted()
    async with bench.capture("server2", "tap-vm3", "out") as tap:
        await bench.send("vm1", frame, times=25)
        await tap.until(lambda f: b"count me" in f.data, times=25)

    async def all_have_counted() -> bool:
        """Open vSwitch brings its counters up to date about once a second."""
        now = await counted()
        return now.keys() == before.keys() and all(now[key] >= before[key] + 25 for key in now)

    await eventually(all_have_counted)
    assert len(before) == 7


async def test_what_somebody_changed_on_a_switch_is_told(bench: LabBench, ips: list[str]) -> None:
    """An entry is taken out behind the controller's back; the audit mends it."""
    three = ips[2]
    argv = ("--from", "vm1", "--to", "vm3", "--udp", "53", "--live")
    assert (await traced(bench, *argv))["live"]["differs"] == []
    await bench.run(
        "server2", "ovs-ofctl", "-O", "OpenFlow14", "del-flows", "br0", f"table=30,ip,nw_dst={three}"
    )
    found = await traced(bench, *argv)
    assert [end["fate"] for end in found["ends"]] == ["delivered"], "so it should be"
    assert [end["fate"] for end in found["live"]["ends"]] == ["dropped"], "and so it is"
    assert any(line.startswith("edge2 lacks DELIVER VM") for line in found["live"]["differs"])
    said = await bench.cli("trace", *argv)
    assert "The switches differ from what they should have:" in said
    assert "To pass:" in said or "nobody on edge2 takes" in said
    await bench.cli("switch", "audit", "edge2")
    assert (await traced(bench, *argv))["live"]["differs"] == []
    assert await bench.ping("vm1", three)


async def test_why_was_this_dropped(bench: LabBench, ips: list[str]) -> None:
    """A forgery, found in the log by its id."""
    forged = hexed(Ether(src=ONE, dst=GATEWAY) / IP(src="10.0.0.9", dst=ips[2]) / UDP(sport=1, dport=9) / "x")
    async with bench.events() as events:
        await bench.send("vm1", forged)
        await events.until("spoofing", lambda e: e["spoofing"]["claimed_ip"] == "10.0.0.9")
    rows = json.loads(await bench.cli("binding", "spoofing", "--json"))["spoof_attempts"]
    (row,) = (row for row in rows if row["claimed_ip"] == "10.0.0.9")
    said = await bench.cli("trace", "--forgery", row["id"])
    assert f"vm1 has no binding for 10.0.0.9: it holds {ips[0]}" in said
    assert "ADMIT" in said and "SPOOFED 102" in said


async def test_both_ends_of_a_migration_are_told_while_it_is_under_way(
    bench: LabBench, ips: list[str]
) -> None:
    """In each state that is seen the trace comes to one place at least, and to the VM."""
    async with bench.events() as events:
        id = (await bench.post("migrations", {"vm": "vm1", "target_server": "server2"}))["id"]
        while True:
            found = await traced(bench, "--from", "vm3", "--to", ips[0], "--udp", "9")
            assert {end["who"] for end in found["ends"]} == {"vm1"}
            if events.of("migration.step") and (await bench.get(f"migrations/{id}"))["state"] == "done":
                break
    found = await traced(bench, "--from", "vm3", "--to", "vm1", "--udp", "9", "--live")
    assert [hop["switch"] for hop in found["live"]["hops"]] == ["edge2"]
    assert found["live"]["differs"] == []
    await bench.migration("vm1", target_server="server1")

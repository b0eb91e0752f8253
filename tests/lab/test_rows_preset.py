"""Flows set before the VM speaks, on real parts (rows D1 to D5, D7, D9, C2)."""

import contextlib
import json
import signal
from collections.abc import AsyncIterator

import pytest

from lab_frames import ARP, dhcp_type
from lab_start import running
from lab_tools import Bench, Json, RefusedError, at, eventually, mac_of
from lab_watch import Frame

pytestmark = pytest.mark.lab

VMS = [at("vm1", "server1")]
GATEWAY = "00:00:de:ad:be:ef"


# ---- D1 to D4, D7: servers ----


def box(number: int, **more: str) -> Json:
    """A machine as the manager books it, before anybody has heard of it."""
    return {
        "id": f"box{number}",
        "mac": f"02:00:00:00:01:{number:02x}",
        "address": f"10.0.0.{100 + number}",
        **more,
    }


@contextlib.asynccontextmanager
async def plugged(bench: Bench, number: int, leaf: str) -> AsyncIterator[str]:
    """A real machine with that MAC and address on a leaf's port; gives the name of its node."""
    wanted, node, port = box(number), f"box{number}", f"{leaf}-box{number}"
    inside = f"ip netns exec {node}"
    await bench.run(
        "sandbox",
        "sh",
        "-ec",
        f"""
        ip netns add {node}
        ip link add {port} netns fabric type veth peer name eth0 netns {node} address {wanted["mac"]}
        {inside} sysctl -qw net.ipv6.conf.all.disable_ipv6=1
        {inside} ip address add {wanted["address"]}/24 dev eth0
        {inside} ip link set eth0 up
        {inside} ip route add default via 10.0.0.254
        """,
    )
    up = f"ip link set {port} up; ovs-vsctl add-port {leaf} {port}"
    await bench.run("fabric", "sh", "-ec", up)
    try:
        yield node
    finally:
        await bench.run("fabric", "ovs-vsctl", "--if-exists", "del-port", leaf, port)
        await bench.run("sandbox", "ip", "netns", "del", node)


async def speaks(bench: Bench, node: str, to: str = "10.0.0.254") -> bool:
    """The machine sends an echo, and for that its kernel asks for its gateway by ARP."""
    argv = ("ip", "netns", "exec", node, "sh", "-c", f"ping -c 1 -W 5 {to} || true")
    return " 1 received" in await bench.run("sandbox", *argv)


async def states(bench: Bench) -> dict[str, Json]:
    """Rows of `server list` by id, or by MAC for those without."""
    rows = json.loads(await bench.cli("server", "list", "--json"))["servers"]
    return {row["id"] or row["mac"]: row for row in rows}


async def test_servers_given_in_bulk_are_missing_until_their_arp_is_seen(bench: Bench) -> None:
    """D1, D2, D3, D4: given, detected by its own ARP, matched, and reachable by flows for its MAC."""
    await bench.post("servers", [box(n) for n in range(1, 21)])
    shown = await states(bench)
    assert {shown[f"box{n}"]["state"] for n in range(1, 21)} == {"missing"}
    mac, address = box(1)["mac"], box(1)["address"]
    assert await bench.flows("spine1", mac) == []
    async with bench.events() as events, plugged(bench, 1, "leaf1") as node:
        assert await speaks(bench, node), "the leaf answers for the gateway"
        found = await events.until("server.detected")
        assert (found["server"], found["place"]) == ("box1", "leaf1:leaf1-box1")
        row = (await states(bench))["box1"]
        assert (row["state"], row["at"]) == ("matched", "leaf1:leaf1-box1")

        async def routed() -> bool:
            ways = [await bench.flows(s, "table=40", f"dl_dst={mac}") for s in ("leaf1", "spine1", "spine2")]
            hosts = [
                await bench.flows(s, "table=35", f"nw_dst={address}") for s in ("leaf1", "spine1", "spine2")
            ]
            return all([*ways, *hosts])

        await eventually(routed)
        assert await bench.ping("vm1", address)
        assert await speaks(bench, node, "203.0.113.9")


async def test_the_controller_asks_for_a_server_that_keeps_silent(bench: Bench) -> None:
    """D2: a machine that has sent nothing is found by the controller's own ARP once it is given."""
    async with bench.events() as events, plugged(bench, 31, "leaf2") as node:
        await bench.post("servers", box(31))
        found = await events.until("server.detected")
        assert (found["server"], found["place"]) == ("box31", "leaf2:leaf2-box31")
        assert await bench.ping("vm1", box(31)["address"])
        assert await speaks(bench, node)


async def test_a_server_nobody_gave_is_shown_as_unknown_and_matches_once_it_is_given(bench: Bench) -> None:
    """D4: detected and not given; and the order of the two does not matter."""
    mac = box(32)["mac"]
    async with bench.events() as events, plugged(bench, 32, "leaf1") as node:
        await speaks(bench, node)
        unknown = await events.until("server.unknown")
        assert (unknown["mac"], unknown["place"]) == (mac, "leaf1:leaf1-box32")
        row = (await states(bench))[mac]
        assert (row["state"], row["detected_at"]) == ("unknown", "leaf1:leaf1-box32")
        await bench.post("servers", box(32))
        await events.until("server.detected")
        shown = await states(bench)
        assert shown["box32"]["state"] == "matched"
        assert mac not in shown


async def test_a_given_place_needs_no_detection_and_one_that_differs_is_a_mismatch(bench: Bench) -> None:
    """D4, D7: the operator's word is taken as it is; a detection elsewhere is told and shown."""
    async with bench.events() as events, plugged(bench, 33, "leaf2") as node:
        await bench.post("servers", box(33, at="leaf1:leaf1-server3"))
        assert (await states(bench))["box33"]["state"] == "given"
        await speaks(bench, node)
        wrong = await events.until("server.mismatch")
        assert (wrong["given"], wrong["detected"]) == ("leaf1:leaf1-server3", "leaf2:leaf2-box33")
        row = (await states(bench))["box33"]
        assert (row["state"], row["given_at"]) == ("mismatch", "leaf1:leaf1-server3")
        assert row["detected_at"] == "leaf2:leaf2-box33"
        await bench.post("servers", box(33, at="leaf2:leaf2-box33"))
        assert (await states(bench))["box33"]["state"] == "matched"
        assert await bench.ping("vm1", box(33)["address"])


# ---- D4, D5, D9, C2: VMs ----


async def test_a_vm_starts_when_every_switch_has_confirmed_its_flows_and_not_before(bench: Bench) -> None:
    """D4, C2, D5, D9: real switches hold a static VM's flows before its QEMU runs; it needs no DHCP."""
    mac, address = mac_of("vm4"), "10.1.0.51"
    before = await packet_ins(bench)
    async with bench.events() as events:
        bench.kill("fabric-vswitchd", signal.SIGSTOP)
        try:
            await bench.post("vms", at("vm4", "server2", address))
            await events.until("port.here")

            async def waits() -> bool:
                shown = await bench.vm("vm4")
                return bool(shown["missing"] == ["its flows are not confirmed by every switch"])

            await eventually(waits)
            assert (await bench.vm("vm4"))["state"] == "booked"
            assert await bench.machines("vm4") == []
            assert await bench.flows("edge2", f"dl_dst={mac}") != [], "the edge switch runs, and has them"
        finally:
            bench.kill("fabric-vswitchd", signal.SIGCONT)
        ready = await events.until("vm.ready")
        for switch in ("edge2", "leaf2", "spine1", "spine2"):
            assert await bench.flows(switch, f"nw_dst={address}") != [], switch
        async with bench.capture("server2", "tap-vm4") as tap:
            await running(bench, events, "vm4")
            assert await bench.ping("vm4", await bench.address("vm1"))
            assert await bench.ping("vm1", address)
            assert "1 received" in await bench.run("client", "ping", "-c", "1", "-W", "5", address)
    order = [e["type"] for e in events.seen if e["type"] != "hello" and e.get("vm")]
    assert order == ["vm.booked", "port.here", "vm.ready", "vm.started"]
    assert ready["vm"]["state"] == "ready"
    assert [str(f) for f in tap.frames if dhcp_type(f.ether)] == []
    told = await packet_ins(bench) - before
    assert told <= 1 + len(tap.those(unanswered_by_the_switch)), "more than the VMs' first ARP"
    assert told <= 2


def unanswered_by_the_switch(frame: Frame) -> bool:
    """An ARP request for something else than the gateway and the VM itself."""
    arp = frame.ether.getlayer(ARP)
    return arp is not None and arp.op == 1 and arp.pdst not in ("10.1.0.254", arp.psrc)


async def packet_ins(bench: Bench) -> int:
    """How often VMs have come to the controller."""
    counters = (await bench.get("status"))["counters"]
    return sum(
        n
        for name, n in counters.items()
        if name.startswith("packet-ins ") and not name.endswith("server_arp")
    )


async def test_starting_a_vm_costs_no_more_packet_ins_than_its_dhcp_and_its_first_arp(bench: Bench) -> None:
    """D5, D9: DHCP's four messages and one ARP request; what follows passes without the controller."""
    before = await packet_ins(bench)
    async with bench.events() as events:
        await bench.post("vms", at("vm5", "server3"))
        await events.until("port.here")
        async with bench.capture("server3", "tap-vm5") as tap:
            await running(bench, events, "vm5")
            other = await bench.address("vm1")
            assert await bench.ping("vm5", other)
            reply = await tap.until(lambda f: f.ether.haslayer(ARP) and f.ether[ARP].psrc == other)
            assert reply.src == GATEWAY, "answered from what the controller holds"
            await bench.guest("vm5", f"ping -c 20 -i 0.05 {other}")
            assert "1 received" in await bench.run(
                "client", "ping", "-c", "1", "-W", "5", await bench.address("vm5")
            )
    messages = len(tap.those(lambda f: bool(dhcp_type(f.ether))))
    asked = len(tap.those(unanswered_by_the_switch))
    assert messages >= 4
    assert asked >= 1
    # The partner may have to ask for the newcomer once; the pings cost nothing.
    assert await packet_ins(bench) - before <= messages + asked + 1 < 20


async def test_what_a_vm_waits_for_is_shown(bench: Bench) -> None:
    """D4: missing is shown, for a VM whose edge switch is away, and ends when it comes back."""
    target = (await bench.run("server3", "ovs-vsctl", "get-controller", "br0")).strip()
    async with bench.events() as events:
        await bench.run("server3", "ovs-vsctl", "del-controller", "br0")
        await events.until("switch.disconnected", lambda e: e["switch"] == "edge3")
        await bench.post("vms", at("vm6", "server3", "10.1.0.52"))
        await events.until("port.here")
        shown = await bench.vm("vm6")
        assert (shown["state"], shown["missing"]) == ("booked", ["switch edge3 is not connected"])
        assert "edge3 is not connected" in await bench.cli("vm", "show", "vm6")
        assert await bench.machines("vm6") == []
        await bench.run("server3", "ovs-vsctl", "set-controller", "br0", target)
        await events.until("vm.started", lambda e: e["vm"]["id"] == "vm6")
        await bench.request("DELETE", "vms/vm6")
        await events.until("port.gone")


async def test_a_server_reports_a_vm_it_made_itself(bench: Bench) -> None:
    """D1: booked from the ids at its port, as libvirt sets them; it goes as it came, run by nobody else."""
    mac = mac_of("vm7")
    async with bench.events() as events:
        ids = ("external_ids:iface-id=vm7", f'external_ids:attached-mac="{mac}"', "external_ids:vm-id=vm7")
        port = ("add-port", "br0", "own7", "--", "set", "interface", "own7", "type=internal", *ids)
        await bench.run("server3", "ovs-vsctl", *port)
        reported = await events.until("vm.reported")
        assert (reported["vm"]["id"], reported["server"]) == ("vm7", "server3")
        await events.until("vm.ready")
        row = await bench.vm("vm7")
        assert (row["reported"], row["server"], row["mac"]) == (True, "server3", mac)
        assert await bench.flows("edge3", f"dl_dst={mac}") != []
        assert row["port"] == bench.lab.status().switches["edge3"].ports["own7"]
        assert await bench.machines("vm7") == []
        assert "tap-vm7" not in bench.lab.status().switches["edge3"].ports
        await bench.run("server3", "ovs-vsctl", "del-port", "br0", "own7")
        await events.until("vm.removed")
    assert await bench.flows("edge3", mac) == []
    with pytest.raises(RefusedError, match="no VM vm7"):
        await bench.vm("vm7")


async def test_vms_are_given_in_bulk_all_or_none(bench: Bench) -> None:
    """D1, D9: forty VMs in one message, and their flows on all switches without one packet-in.

    Runs last: the agent that would run these VMs is ended first.
    """
    bench.kill("server3-agent")
    vms = [at(f"vm{n}", "server3", f"10.1.0.{n}") for n in range(200, 240)]
    broken = [*vms, at("vm240", "nowhere", "10.1.0.240")]
    with pytest.raises(RefusedError, match="no server nowhere"):
        await bench.post("vms", broken)
    assert [vm["id"] for vm in (await bench.get("vms"))["vms"] if vm["id"] in {v["id"] for v in vms}] == []

    before = (await bench.get("status"))["counters"]
    async with bench.events() as events:
        booked = await bench.post("vms", vms)
        assert {vm["state"] for vm in booked["vms"]} == {"booked"}
        words = []
        for vm in vms:
            port = f"own{vm['id'].removeprefix('vm')}"
            words += ["--", "add-port", "br0", port, "--", "set", "interface", port, "type=internal"]
            words += [f"external_ids:iface-id={vm['id']}", f'external_ids:attached-mac="{vm["mac"]}"']
        await bench.run("server3", "ovs-vsctl", *words)
        for vm in vms:
            await events.until("vm.ready", lambda e, id=vm["id"]: e["vm"]["id"] == id)  # type: ignore[misc]
    for switch, table in (("edge3", 30), ("leaf1", 35), ("spine1", 35), ("spine2", 35)):
        for vm in vms:
            found = await bench.flows(switch, f"table={table},", f"nw_dst={vm['addresses'][0]} ")
            assert found != [], f"{switch}: {vm['id']}"
    after = (await bench.get("status"))["counters"]
    assert {k: v for k, v in after.items() if "server_arp" not in k} == {
        k: v for k, v in before.items() if "server_arp" not in k
    }

"""Flows set before the VM speaks, on real parts."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator

import aiohttp
import pytest

from retinue.protocol.client import ControllerClient
from retinue.protocol.errors import ErrorCode, RejectedError
from retinue.security.authority import Authority
from retinue.security.identity import PeerRole
from retinue_lab.network import credentials
from support.lab.agent_command import agent, as_agent
from support.lab.foreign_vm import ForeignVM, plug, without_agents
from support.lab.frames import ARP, dhcp_type
from support.lab.health import strip
from support.lab.migrating import reaches
from support.lab.other_config import controller_with
from support.lab.start import running
from support.lab.tools import Json, LabBench, at, eventually, mac_of
from support.lab.watch import Frame, Wanted

pytestmark = [pytest.mark.lab, pytest.mark.patient]

VMS = [at("vm1", "server1")]
GATEWAY = "00:00:de:ad:be:ef"
THREE = ("server1", "server2", "server3")


# ---- servers ----


def box(number: int, **more: str) -> Json:
    """A machine as the manager registers it, before anybody has heard of it."""
    return {
        "id": f"box{number}",
        "mac": f"02:00:00:00:01:{number:02x}",
        "address": f"10.0.0.{100 + number}",
        **more,
    }


@contextlib.asynccontextmanager
async def plugged(bench: LabBench, number: int, leaf: str, *, arp: str = "on") -> AsyncIterator[str]:
    """A real machine with that MAC and address on a leaf's port; gives the name of its node."""
    async with cabled(bench, number, leaf, arp=arp) as node:
        await plug_in(bench, number, leaf)
        yield node


async def plug_in(bench: LabBench, number: int, leaf: str) -> None:
    await bench.run("fabric", "ovs-vsctl", "add-port", leaf, f"{leaf}-box{number}")


@contextlib.asynccontextmanager
async def cabled(bench: LabBench, number: int, leaf: str, *, arp: str = "on") -> AsyncIterator[str]:
    """The same, whose cable ends beside the leaf, until `plug_in`.

    With `arp` "off" its kernel neither asks nor answers, and knows its gateway all the same.
    """
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
        {inside} ip link set eth0 arp {arp} up
        {inside} ip route add default via 10.0.0.254
        test {arp} = on || {inside} ip neigh replace 10.0.0.254 lladdr {GATEWAY} dev eth0
        """,
    )
    await bench.run("fabric", "ip", "link", "set", port, "up")
    try:
        yield node
    finally:
        await bench.run("fabric", "ovs-vsctl", "--if-exists", "del-port", leaf, port)
        await bench.run("sandbox", "ip", "netns", "del", node)


async def speaks(bench: LabBench, node: str, to: str = "10.0.0.254") -> bool:
    """The machine sends echoes, and for that its kernel asks for its gateway by ARP.

    Five, of which one has to be answered: its cable has just been put in, and its place is found meanwhile.
    """
    argv = ("ip", "netns", "exec", node, "sh", "-c", f"ping -c 5 -i 0.2 -W 5 {to} || true")
    return " 0 received" not in await bench.run("sandbox", *argv)


async def states(bench: LabBench) -> dict[str, Json]:
    """Rows of `server list` by id, or by MAC for those without."""
    rows = json.loads(await bench.cli("server", "list", "--json"))["servers"]
    return {row["id"] or row["mac"]: row for row in rows}


async def test_servers_given_in_bulk_are_missing_until_their_arp_is_seen(bench: LabBench) -> None:
    """Given, detected by its own ARP, matched, and reachable by flows for its MAC."""
    await bench.post("servers", [box(n) for n in range(1, 21)])
    shown = await states(bench)
    assert {shown[f"box{n}"]["state"] for n in range(1, 21)} == {"missing"}
    mac, address = box(1)["mac"], box(1)["address"]
    assert await bench.flows("spine1", mac) == []
    async with bench.events() as events, plugged(bench, 1, "leaf1") as node:
        assert await speaks(bench, node), "the leaf answers for the gateway"
        found = await events.until("server.detected")
        assert (found["server"], found["location"]) == ("box1", "leaf1:leaf1-box1")
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


async def test_the_controller_asks_for_a_server_that_keeps_silent(bench: LabBench) -> None:
    """A machine that has sent nothing is found by the controller's own ARP once it is given."""
    async with bench.events() as events, plugged(bench, 31, "leaf2") as node:
        await bench.post("servers", box(31))
        found = await events.until("server.detected")
        assert (found["server"], found["location"]) == ("box31", "leaf2:leaf2-box31")
        assert await bench.ping("vm1", box(31)["address"])
        assert await speaks(bench, node)


def asking_for(address: str) -> Wanted:
    """Picks ARP requests for an address."""

    def picks(frame: Frame) -> bool:
        arp = frame.ether.getlayer(ARP)
        return arp is not None and arp.op == 1 and arp.pdst == address

    return picks


async def test_where_a_port_comes_up_a_missing_server_is_asked_for_at_once(bench: LabBench) -> None:
    """There alone: at another port of the leaf is heard what is asked everywhere, when its time has come.

    A server that is not found is asked for again after 1, 2, 4, 8 s.
    """
    wanted = box(42)
    asks = asking_for(wanted["address"])
    async with (
        plugged(bench, 41, "leaf2"),
        cabled(bench, 42, "leaf2"),
        bench.captures(("fabric", "leaf2-box41", "out"), ("fabric", "leaf2-box42", "out")) as (other, here),
        bench.events() as events,
    ):
        await bench.post("servers", wanted)
        await other.until(asks, times=4)
        before = len(other.those(asks))
        await plug_in(bench, 42, "leaf2")
        found = await events.until("server.detected", lambda e: e["server"] == "box42")
        assert found["location"] == "leaf2:leaf2-box42"
        for capture in (other, here):
            await capture.settle()
        assert len(here.those(asks)) == len(other.those(asks)) - before + 1


@pytest.mark.long
async def test_at_a_leaf_whose_places_are_given_nobody_is_detected_or_looked_for(bench: LabBench) -> None:
    """A server that shows up elsewhere there is told, and one that nobody gave; at the other leaf they are
    found."""

    def given(config: str) -> str:
        """leaf1's places are given, in the file: of its two servers."""
        config = config.replace('id = "leaf1"\n', 'id = "leaf1"\nplaces = "given"\n')
        for server in ("server1", "server3"):
            config = config.replace(f'id = "{server}"\n', f'id = "{server}"\nat = "leaf1:leaf1-{server}"\n')
        return config

    wanted = box(45)
    asks = asking_for(wanted["address"])
    async with controller_with(bench, given), bench.events() as events:
        async with plugged(bench, 45, "leaf1") as node, bench.capture("fabric", "leaf1-box45") as wire:
            await bench.post("servers", wanted)
            await speaks(bench, node)
            told = await events.until("server.conflict", lambda e: e["server"] == "box45")
            assert (told["location"], told["known"]) == ("leaf1:leaf1-box45", None)
            assert "places at leaf1 are given" in told["reason"]
            assert (await states(bench))["box45"]["state"] == "missing"
            async with (
                plugged(bench, 46, "leaf2"),
                bench.capture("fabric", "leaf2-box46", "out") as elsewhere,
            ):
                await elsewhere.until(asks)
            await wire.settle()
            assert wire.those(asks) == [], "nobody is looked for here"
            await bench.post("servers", box(45, at="leaf1:leaf1-box45"))
            assert await speaks(bench, node)
            assert (await states(bench))["box45"]["state"] in ("given", "matched")
            assert await bench.ping("vm1", wanted["address"])
        async with plugged(bench, 47, "leaf1") as node:
            await speaks(bench, node)
            unknown = await events.until("server.unknown", lambda e: e["mac"] == box(47)["mac"])
            assert unknown["location"] == "leaf1:leaf1-box47"
        async with plugged(bench, 48, "leaf2") as node:
            await bench.post("servers", box(48))
            await speaks(bench, node)
            await events.until("server.detected", lambda e: e["server"] == "box48")


async def test_a_server_nobody_gave_is_shown_as_unknown_and_matches_once_it_is_given(bench: LabBench) -> None:
    """Detected and not given; and the order of the two does not matter."""
    mac = box(32)["mac"]
    async with bench.events() as events, plugged(bench, 32, "leaf1") as node:
        await speaks(bench, node)
        unknown = await events.until("server.unknown")
        assert (unknown["mac"], unknown["location"]) == (mac, "leaf1:leaf1-box32")
        row = (await states(bench))[mac]
        assert (row["state"], row["detected_at"]) == ("unknown", "leaf1:leaf1-box32")
        await bench.post("servers", box(32))
        await events.until("server.detected")
        shown = await states(bench)
        assert shown["box32"]["state"] == "matched"
        assert mac not in shown


async def test_a_given_place_needs_no_detection_and_one_that_differs_is_a_mismatch(bench: LabBench) -> None:
    """The operator's word is taken as it is; a detection elsewhere is told and shown."""
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


# ---- managers ----


@contextlib.asynccontextmanager
async def two_managers(bench: LabBench) -> AsyncIterator[list[ControllerClient]]:
    """Anna and Bert, each with a certificate of their own."""
    authority = Authority(credentials.folder(bench.lab.directory))
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for who in ("anna", "bert"):
            authority.issue(PeerRole.MANAGER, who, days=1)
            shown = credentials.of(bench.lab.directory, PeerRole.MANAGER, who)
            wires = aiohttp.TCPConnector(
                socket_factory=lambda _: bench.doorman.socket(), force_close=True, ssl=shown.context()
            )
            made.append(ControllerClient(bench.topology.controller_url, shown, wires))
            stack.push_async_callback(made[-1].close)
        yield made


async def test_several_managers_speak_at_once_and_of_contradicting_words_one_is_told_who_was_first(
    bench: LabBench,
) -> None:
    async with two_managers(bench) as managers:
        boxes = [[box(number) for number in range(start, start + 20)] for start in (50, 70)]
        said = [
            manager.post("/v1/servers", given) for manager, many in zip(managers, boxes, strict=True)
            for given in many
        ]  # fmt: skip
        await asyncio.gather(*said)
        known = await states(bench)
        assert {one["id"] for many in boxes for one in many} <= known.keys()

        for number in range(5):
            words = [
                manager.post("/v1/vnets", {"id": f"shop{number}", "vlan": vlan})
                for manager, vlan in zip(managers, (200 + number, 300 + number), strict=True)
            ]
            answers = await asyncio.gather(*words, return_exceptions=True)
            (told,) = (one for one in answers if isinstance(one, BaseException))
            first, vlan = ("anna", 200 + number) if answers[1] is told else ("bert", 300 + number)
            assert isinstance(told, RejectedError)
            assert f"manager {first} was first, at 20" in str(told)
            (vnet,) = (v for v in (await bench.get("vnets"))["vnets"] if v["id"] == f"shop{number}")
            assert vnet["vlan"] == vlan
            await bench.request("DELETE", f"vnets/shop{number}")

        anna, bert = managers
        started = {"vm": "vm1", "target_server": "server2"}
        async with bench.events() as events:
            migration = (await anna.post("/v1/migrations", started))["id"]
            with pytest.raises(RejectedError, match="manager anna was first"):
                await bert.post("/v1/migrations", {**started, "target_server": "server3"})
            await reaches(events, migration, "done")
        await bench.migration("vm1", target_server="server1")


# ---- VMs ----


async def test_a_vm_starts_when_every_switch_has_confirmed_its_flows_and_not_before(bench: LabBench) -> None:
    """Real switches hold a static VM's flows before its QEMU runs; it needs no DHCP."""
    mac, address = mac_of("vm4"), "10.1.0.51"
    before = await packet_ins(bench)
    async with bench.events() as events:
        bench.kill("fabric-vswitchd", signal.SIGSTOP)
        try:
            await bench.post("vms", at("vm4", "server2", address))
            await events.until("port.added")

            async def waits() -> bool:
                shown = await bench.vm("vm4")
                return bool(shown["missing"] == ["its flows are not confirmed by every switch"])

            await eventually(waits)
            assert (await bench.vm("vm4"))["state"] == "registered"
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
    assert order == ["vm.registered", "port.added", "vm.ready", "vm.started"]
    assert ready["vm"]["state"] == "ready"
    assert [str(f) for f in tap.frames if dhcp_type(f.ether)] == []
    told = await packet_ins(bench) - before
    assert told <= 1 + len(tap.those(unanswered_by_the_switch)), "more than the VMs' first ARP"
    assert told <= 2


def unanswered_by_the_switch(frame: Frame) -> bool:
    """An ARP request for something else than the gateway and the VM itself."""
    arp = frame.ether.getlayer(ARP)
    return arp is not None and arp.op == 1 and arp.pdst not in ("10.1.0.254", arp.psrc)


async def packet_ins(bench: LabBench) -> int:
    """How often VMs have come to the controller."""
    counters = (await bench.get("status"))["counters"]
    return sum(
        n
        for name, n in counters.items()
        if name.startswith("packet-ins ") and not name.endswith(("server_arp", "probe"))
    )


async def test_starting_a_vm_costs_no_more_packet_ins_than_its_dhcp_and_its_first_arp(
    bench: LabBench,
) -> None:
    """DHCP's four messages and one ARP request; what follows passes without the controller."""
    before = await packet_ins(bench)
    async with bench.events() as events:
        await bench.post("vms", at("vm5", "server3"))
        await events.until("port.added")
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


async def test_what_a_vm_waits_for_is_shown(bench: LabBench) -> None:
    """What is missing is shown, for a VM whose edge switch is away, and ends when it comes back."""
    target = (await bench.run("server3", "ovs-vsctl", "get-controller", "br0")).strip()
    async with bench.events() as events:
        await bench.run("server3", "ovs-vsctl", "del-controller", "br0")
        await events.until("switch.disconnected", lambda e: e["switch"] == "edge3")
        await bench.post("vms", at("vm6", "server3", "10.1.0.52"))
        await events.until("port.added")
        shown = await bench.vm("vm6")
        assert (shown["state"], shown["missing"]) == ("registered", ["switch edge3 is not connected"])
        assert "edge3 is not connected" in await bench.cli("vm", "show", "vm6")
        assert await bench.machines("vm6") == []
        await bench.run("server3", "ovs-vsctl", "set-controller", "br0", target)
        await events.until("vm.started", lambda e: e["vm"]["id"] == "vm6")
        await bench.request("DELETE", "vms/vm6")
        await events.until("port.removed")


async def test_a_server_reports_a_vm_it_made_itself(bench: LabBench) -> None:
    """PlacementChange from the ids at its port, as libvirt sets them; it goes as it came, run by nobody
    else."""
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
        assert await bench.flows("edge3", f"dl_src={mac}") != []
        assert row["port"] == bench.lab.status().switches["edge3"].ports["own7"]
        assert await bench.machines("vm7") == []
        assert "tap-vm7" not in bench.lab.status().switches["edge3"].ports
        await bench.run("server3", "ovs-vsctl", "del-port", "br0", "own7")
        await events.until("vm.removed")
    assert await bench.flows("edge3", mac) == []
    with pytest.raises(RejectedError, match="no VM vm7"):
        await bench.vm("vm7")


@contextlib.asynccontextmanager
async def made_by_itself(bench: LabBench, vm: str, address: str) -> AsyncIterator[str]:
    """A machine that nobody told our agents of, at a port of server3 with its id; the name of its node."""
    inside = f"ip netns exec {vm}"
    mac = mac_of(vm)
    ids = f'external_ids:iface-id={vm} external_ids:attached-mac=\\"{mac}\\"'
    await bench.run(
        "sandbox",
        "sh",
        "-ec",
        f"""
        ip netns add {vm}
        ip link add own8 netns server3 type veth peer name eth0 netns {vm} address {mac}
        {inside} sysctl -qw net.ipv6.conf.all.disable_ipv6=1
        {inside} ethtool -K eth0 tx off >/dev/null
        {inside} ip address add {address}/24 dev eth0
        {inside} ip link set eth0 up
        {inside} ip route add default via 10.1.0.254
        """,
    )
    up = f"ip link set own8 up; ovs-vsctl add-port br0 own8 -- set interface own8 {ids}"
    await bench.run("server3", "sh", "-ec", up)
    try:
        yield vm
    finally:
        await bench.run("server3", "ovs-vsctl", "--if-exists", "del-port", "br0", "own8")
        await bench.run("sandbox", "ip", "netns", "del", vm)


async def answered(bench: LabBench, node: str, to: str) -> int:
    """Of five echo requests."""
    argv = ("ip", "netns", "exec", node, "sh", "-c", f"ping -c 5 -i 0.2 -W 5 {to} || true")
    return int((await bench.run("sandbox", *argv)).split(" received")[0].split()[-1])


async def test_addresses_that_a_server_reports_wait_for_a_manager(bench: LabBench) -> None:
    """MAC, IP and physical MAC, said at the server itself; nothing passes before a manager's word."""
    address = "10.1.0.88"
    config = bench.lab.directory / "agents" / "server3" / "agent.toml"
    said = ("vm8", "--mac", mac_of("vm8"), "--config", str(config))
    async with bench.events() as events:
        told = await agent(bench.lab, "server3", "report", *said, "--address", address)
        assert (told.code, told.data) == (0, {"waiting": [address]}), told.words
        assert (await events.until("vm.reported"))["server"] == "server3"
        assert (await events.until("vm.addresses_reported"))["addresses"] == [address]
        assert (await bench.vm("vm8"))["missing"] == ["switch edge3 has no port with iface-id vm8"]
        async with made_by_itself(bench, "vm8", address) as node:
            await events.until("vm.ready", lambda e: e["vm"]["id"] == "vm8")
            assert await answered(bench, node, "10.1.0.254") == 0
            row = await bench.vm("vm8")
            assert (row["reported_addresses"], row["holds"], row["addresses"]) == ([address], [], [])
            assert await bench.bindings("vm8") == []

            # With the certificate of another server's agent nothing is said of this VM, nor as this server.
            async with as_agent(bench, "server2") as other:
                mac = {one: (await bench.server(one))["mac"] for one in ("server2", "server3")}
                for path, server_mac, status in (
                    ("server3", mac["server3"], 403),
                    ("server2", mac["server2"], 409),
                    ("server2", mac["server3"], 409),
                ):
                    body = {
                        "vm": "vm8",
                        "mac": mac_of("vm8"),
                        "server_mac": server_mac,
                        "addresses": ["10.1.0.89"],
                    }
                    async with other.post(f"/v1/servers/{path}/vm-reports", json=body) as reply:
                        assert reply.status == status, await reply.text()
                async with other.post("/v1/vms/vm8/confirm", json={}) as reply:
                    assert reply.status == 403
            assert (await bench.vm("vm8"))["reported_addresses"] == [address]
            counters = (await bench.get("status"))["counters"]
            assert counters["reports of VMs refused"] == 2

            confirmed = json.loads(await bench.cli("vm", "confirm", "vm8", "--json"))
            assert (confirmed["holds"], confirmed["reported_addresses"]) == ([address], [])
            assert [row["ip"] for row in await bench.bindings("vm8")] == [address]
            assert await answered(bench, node, "10.1.0.254") == 5
            assert await answered(bench, node, await bench.address("vm1")) == 5
        await events.until("vm.removed")
    assert await bench.bindings("vm8") == []
    assert await bench.flows("edge3", mac_of("vm8")) == []


async def test_a_vm_takes_the_next_pair_of_the_pool_and_is_reached_by_it(bench: LabBench) -> None:
    """Given once: the next VM gets the next, also by a controller that was started again meanwhile."""
    one, two = "52:54:00:00:77:01", "52:54:00:00:77:02"
    await bench.cli("pair", "add", f"{one}=10.1.0.61", f"{two}=10.1.0.62")
    async with bench.events() as events:
        first = json.loads(await bench.cli("vm", "add", "p1", "--server", "server2", "--from-pool", "--json"))
        assert (first["vms"][0]["mac"], first["vms"][0]["holds"]) == (one, ["10.1.0.61"])
        await events.until("port.added", lambda e: e["vm"] == "p1")
    bench.kill("controller", signal.SIGKILL)
    await bench.restart_controller()
    second = json.loads(await bench.cli("vm", "add", "p2", "--server", "server2", "--from-pool", "--json"))
    assert second["vms"][0]["mac"] == two
    rows = json.loads(await bench.cli("pair", "list", "--json"))["pairs"]
    assert [(row["mac"], row["vm"]) for row in rows] == [(one, "p1"), (two, "p2")]
    await bench.cli("vm", "remove", "p2")

    async with bench.events(since=0) as events:
        await running(bench, events, "p1")
    assert await bench.ping("vm1", "10.1.0.61")
    await bench.cli("vm", "remove", "p1")


@pytest.mark.long
async def test_a_server_that_sends_no_arp_is_found_by_its_first_packet(bench: LabBench) -> None:
    """Its kernel neither asks nor answers; when it is found, its packets go their way, and none goes up."""
    wanted = box(9)
    await bench.post("servers", wanted)
    async with bench.events() as events, plugged(bench, 9, "leaf1", arp="off") as node:
        inside = ("ip", "netns", "exec", node)
        assert not await bench.flows("leaf1", f"dl_dst={wanted['mac']}")
        await bench.run("sandbox", *inside, "sh", "-c", "ping -c 5 -W 1 10.0.0.254 || true")
        found = await events.until("server.detected", lambda e: e["server"] == "box9")
        assert found["location"] == "leaf1:leaf1-box9"

        async def speaks_now() -> bool:
            return await speaks(bench, node)

        await eventually(speaks_now)
        assert await bench.flows("leaf1", f"dl_src={wanted['mac']}") == []


async def test_vms_are_given_in_bulk_all_or_none(bench: LabBench) -> None:
    """Forty VMs in one message, on three servers, and their flows on all switches: no packet-in.

    Runs late: the VMs that run, and may speak at any moment, are removed first, and the agents that would run
    these are ended.
    """
    async with bench.events() as events:
        for vm in (await bench.get("vms"))["vms"]:
            await bench.request("DELETE", f"vms/{vm['id']}")
            await events.until("port.removed", lambda e, id=vm["id"]: e["vm"] == id)  # type: ignore[misc]
    for server in THREE:
        bench.kill(f"{server}-agent")
    homes = {f"vm{n}": THREE[n % 3] for n in range(200, 240)}
    vms = [at(vm, server, f"10.1.0.{vm.removeprefix('vm')}") for vm, server in homes.items()]
    broken = [*vms, at("vm240", "nowhere", "10.1.0.240")]
    with pytest.raises(RejectedError, match="no server nowhere"):
        await bench.post("vms", broken)
    assert [vm["id"] for vm in (await bench.get("vms"))["vms"] if vm["id"] in {v["id"] for v in vms}] == []

    before = (await bench.get("status"))["counters"]
    async with bench.events() as events:
        registered = await bench.post("vms", vms)
        assert {vm["state"] for vm in registered["vms"]} == {"registered"}
        for server in THREE:
            words = []
            for vm in vms:
                if vm["server"] == server:
                    port = f"own{vm['id'].removeprefix('vm')}"
                    words += ["--", "add-port", "br0", port, "--", "set", "interface", port, "type=internal"]
                    words += [f"external_ids:iface-id={vm['id']}", f'external_ids:attached-mac="{vm["mac"]}"']
            await bench.run(server, "ovs-vsctl", *words)
        for vm in vms:
            await events.until("vm.ready", lambda e, id=vm["id"]: e["vm"]["id"] == id)  # type: ignore[misc]
    held = {switch.id: await bench.flows(switch.id) for switch in bench.topology.switches}
    parts = {part.id: part for part in bench.topology.server}
    for vm in vms:
        part, (address,) = parts[vm["server"]], vm["addresses"]
        for switch, table in ((part.edge, 30), (part.leaf, 35), ("spine1", 35), ("spine2", 35)):
            ways = [
                flow for flow in held[switch] if f"table={table}," in flow and f"nw_dst={address} " in flow
            ]
            assert ways, f"{switch}: {vm['id']}"
    after = (await bench.get("status"))["counters"]

    def of_vms(counters: dict[str, int]) -> dict[str, int]:
        return {name: n for name, n in counters.items() if "server_arp" not in name and "probe" not in name}

    assert of_vms(after) == of_vms(before)


async def test_a_vm_of_others_goes_to_another_port_of_its_switch_and_then_to_another_switch(
    bench: LabBench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A real VM that QEMU alone starts and migrates; its manager says where it is.

    First, afterwards, between two hosts at one switch (US 9,323,554, table 1): its port changes, and no other
    switch. Then, ahead and by MAC, to another server (US 9,313,088, steps S201 to S205). At last to a third
    one, said afterwards. Runs last: its servers have no agents any more.
    """
    source, target, address, neighbour = "server1", "server2", "10.1.0.63", "10.1.0.2"
    await without_agents(bench, *THREE)
    given = await bench.server(source)
    hosts = [{"id": f"blade{n}", "mac": f"02:00:00:00:02:0{n}"} for n in (1, 2)]
    body = {key: given[key] for key in ("id", "mac", "address", "edge")}
    await bench.post("servers", {**body, "at": given["given_at"], "hosts": hosts})
    vm = ForeignVM("vm9", mac_of("vm9"), tmp_path_factory.mktemp("v"), f"{address}/24,10.1.0.254")
    registered = {"id": vm.name, "mac": vm.mac, "addresses": [address], "server_mac": hosts[0]["mac"]}
    async with contextlib.AsyncExitStack() as stack:
        events = await stack.enter_async_context(bench.events())
        await bench.post("vms", registered)
        places = [(source, "theirs1", "blade1"), (source, "theirs2", "blade2"), (target, "theirs", "")]
        places.append(("server3", "theirs", ""))
        for place in places:
            await plug(bench, vm, *place)
        await events.until("vm.ready", lambda e: e["vm"]["id"] == vm.name)
        first = await vm.start(bench.lab, source, "theirs1", stack, called="1")
        assert await first.booted() == address
        ports = bench.lab.status().switches["edge1"].ports
        (row,) = await bench.bindings(vm.name)
        assert (row["switch"], row["port"]) == ("edge1", ports["theirs1"])
        assert await is_reached(bench, address)

        second = await vm.start(bench.lab, source, "theirs2", stack, incoming=True, called="2")
        others, before = await bench.all_flows(but="edge1"), await bench.flows("edge1")
        # US 9,323,554, S125 to S140: they migrate it, and say so afterwards, in one message.
        await first.migrate(vm.memory)
        message = {
            "vm": vm.name,
            "target_server": "blade2",
            "source_server": "blade1",
            "after_the_fact": True,
        }
        said = await bench.post("migrations", message | {"mac": vm.mac, "ip": address})
        assert (said["source"], said["target"], said["target_host"]) == (source, source, "blade2")
        await reaches(events, said["id"], "done")
        (row,) = await bench.bindings(vm.name)
        assert (row["switch"], row["port"]) == ("edge1", ports["theirs2"])
        for switch, flows in (await bench.all_flows(but="edge1")).items():
            assert strip(flows) == strip(others[switch]), switch
        assert len(await bench.flows("edge1")) == len(before)
        assert await bench.flows("edge1", f"in_port={ports['theirs1']},") == []
        assert await is_reached(bench, address)

        # Whoever migrates it asks which server would be best; nothing is begun by that.
        known = {"memory_mib": 2048, "cpus": 4}
        rows = [{"name": one, "kind": "server", "profile": known} for one in THREE]
        rows.append({"name": vm.name, "kind": "vm", "profile": {"memory_mib": 128, "cpus": 1}})
        rows.append({"name": "shop9", "kind": "service", "profile": {"served_by": [vm.name]}})
        await bench.post("entities", rows)
        assert (await bench.get("entities/shop9"))["locator"]["server"] == source
        begun = (await bench.get("migrations"))["migrations"]
        chosen = (await bench.post(f"vms/{vm.name}/matches", {"server": target}))["decision"]
        assert (chosen["outcome"], chosen["target"]) == ("chosen", target)
        assert (await bench.get("migrations"))["migrations"] == begun
        third = await vm.start(bench.lab, target, "theirs", stack, incoming=True, called="3")
        # S201, S202: only that field; when it is answered, the switches have confirmed.
        mac = (await bench.server(target))["mac"]
        said = await rerouted(bench, vm, mac)
        assert (said["server"], said["host"]) == (target, "")
        for switch, flows in (await bench.all_flows()).items():
            here = [flow for flow in flows if f"={address} " in flow or f"={address}," in flow]
            if switch.startswith("spine"):
                assert here and all(mac in flow for flow in here), (switch, here)
            else:
                assert bool(here) is (switch in ("leaf2", "edge2")), (switch, here)
        # S203.
        await second.migrate(vm.memory)
        assert await is_reached(bench, address)
        assert (await bench.get("entities/shop9"))["locator"]["server"] == target
        # S204, S205.
        asked = await packet_ins(bench)
        words = await third.guest(f"ip neigh flush dev eth0; arping -c 1 -w 5 -I eth0 {neighbour}")
        assert f"[{GATEWAY}]" in words.lower(), words
        assert await packet_ins(bench) > asked
        # The other way round (US 9,323,554, S125 to S140): they migrate it, one message says so afterwards.
        await vm.start(bench.lab, "server3", "theirs", stack, incoming=True, called="4")
        await third.migrate(vm.memory)
        message = {"vm": vm.name, "target_switch": "edge3", "source_server": target, "after_the_fact": True}
        said = await bench.post("migrations", message | {"mac": vm.mac, "ip": address})
        await reaches(events, said["id"], "done")
        assert [(row["switch"], row["active"]) for row in await bench.bindings(vm.name)] == [("edge3", True)]
        assert not [flow for flow in await bench.flows("edge2") if f"={address} " in flow]
        assert await is_reached(bench, address)
        await bench.request("DELETE", f"vms/{vm.name}")


async def rerouted(bench: LabBench, vm: ForeignVM, server_mac: str) -> Json:
    """The manager's word, said again until the controller knows that no agent is on its way back."""
    taken: list[Json] = []

    async def is_believed() -> bool:
        try:
            taken.append(await bench.request("PATCH", f"vms/{vm.name}", {"server_mac": server_mac}))
        except RejectedError as rejected:
            assert rejected.code == ErrorCode.PARTY_AWAY, rejected
        return bool(taken)

    await eventually(is_believed)
    return taken[0]


async def is_reached(bench: LabBench, address: str) -> bool:
    return " 1 received" in await bench.run("client", "ping", "-c", "1", "-W", "10", address)

"""Bindings and their migration on real parts."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import pytest

from retinue.protocol.client import ControllerClient
from retinue.protocol.errors import RejectedError
from retinue.security.identity import PeerRole
from retinue_lab.network import credentials
from retinue_lab.topology.topology import CONTROLLER, DNS_PORT
from support.lab.agent_command import as_agent
from support.lab.frames import BROADCAST, arp, packet
from support.lab.tools import PATIENCE, Json, LabBench, Picks, at, eventually, mac_of

pytestmark = pytest.mark.lab

VMS = [at("vm1", "server1"), at("vm2", "server1"), at("vm3", "server3")]
ONE, TWO = mac_of("vm1"), mac_of("vm2")
GATEWAY = "00:00:de:ad:be:ef"
STRANGER = "52:54:00:00:00:99"


@pytest.fixture(autouse=True)
async def home(bench: LabBench) -> AsyncIterator[None]:
    """After each test vm1 is where it was."""
    yield
    if (await bench.vm("vm1"))["server"] != "server1":
        await bench.migration("vm1", target_server="server1")


# ---- the migration message, and the tables behind it ----


async def test_both_forms_of_the_migration_message_move_the_vm(bench: LabBench) -> None:
    """VM id, MAC, IP and source server id, with the target's server id, then with its switch id."""
    known = {"mac": ONE, "ip": await bench.address("vm1")}
    by_server = await bench.migration("vm1", **known, source_server="server1", target_server="server2")
    assert (by_server["source"], by_server["target"]) == ("server1", "server2")
    assert (await bench.vm("vm1"))["switch"] == "edge2"
    assert await bench.machines("vm1") == ["server2"]
    assert await bench.ping("vm1", "10.1.0.2")

    by_switch = await bench.migration("vm1", **known, source_server="server2", target_switch="edge1")
    assert (by_switch["source"], by_switch["target"]) == ("server2", "server1")
    assert (await bench.vm("vm1"))["switch"] == "edge1"
    assert await bench.machines("vm1") == ["server1"]
    assert await bench.ping("vm1", "10.1.0.2")


async def test_without_a_target_a_vm_goes_to_the_best_server_and_it_is_said_why(bench: LabBench) -> None:
    """Its client is vm3, on server3; the agents of all three servers are asked, and answer."""
    servers = ("server1", "server2", "server3")
    client = await bench.address("vm3")
    await eventually(lambda: all_have_reported(bench))
    await bench.post("entities", {"name": "vm1", "kind": "vm", "profile": {"os": "x", "clients": [client]}})
    async with bench.events() as events:
        moved = json.loads(await bench.cli("move", "start", "vm1", "--wait", "--json"))
        await events.until("migration.step", lambda e: e["migration"]["state"] == "done")
        assert events.of("mobility.booked")[0]["server"] == moved["target"]
        steps = [e["type"] for e in events.seen if e["type"].startswith("mobility.")]
        told = [step for step in steps if not step.startswith("mobility.book")]  # It ends in its own time.
        assert told == [
            *("mobility.message", "mobility.request", "mobility.match"),
            *(["mobility.answer"] * 3),
            *("mobility.decision", "mobility.initiation"),
            *("mobility.ready", "mobility.registered", "mobility.profile_updated"),
            *("mobility.double_delivery_ended", "mobility.deregistered", "mobility.released"),
        ]
        (updated,) = events.of("mobility.profile_updated")
        assert updated["locator"] == (await bench.get("entities/vm1"))["locator"]
        assert {e["server"] for e in events.of("mobility.answer")} == set(servers)
    assert (moved["state"], moved["target"]) == ("done", "server3")
    assert (moved["placement"]["runner_up"], moved["placement"]["decided_by"]) == ("server2", "distance")
    assert await bench.machines("vm1") == ["server3"]
    assert (await bench.get("entities/vm1"))["locator"]["server"] == "server3"
    assert await bench.ping("vm1", client)
    explained = await bench.cli("placement", "explain", moved["id"])
    assert "distance decides: 80.00 against 0.00" in explained
    for refused in ("server1", "already there"):
        assert refused in explained


async def all_have_reported(bench: LabBench) -> bool:
    servers = ("server1", "server2", "server3")
    rows = [(await bench.get(f"entities/{server}"))["measured"] for server in servers]
    return all(row is not None and row["memory_mib"] > 0 for row in rows) and bool(rows[0]["vms"])


async def test_room_is_booked_and_released_and_counts_where_a_vm_would_go(bench: LabBench) -> None:
    """By an operator, by the server's own agent, and by nobody else's; without its VM a booking ends."""
    await eventually(lambda: all_have_reported(bench))
    whole = json.loads(await bench.cli("name", "resolve", "server3", "--json"))["measured"]["memory_mib"]
    async with (
        bench.events() as events,
        as_agent(bench, "server3") as own,
        as_agent(bench, "server2") as other,
    ):

        async def ended(vm: str, why: str) -> None:
            found = await events.until(
                "mobility.booking_ended", lambda e: e["vm"] == vm and e["reason"] == why
            )
            assert found["server"] == "server3"

        await bench.cli("booking", "add", "web", "--server", "server3", "--memory", str(whole))
        rows = json.loads(await bench.cli("booking", "list", "--json"))["bookings"]
        assert [(row["vm"], row["server"], row["memory_mib"]) for row in rows] == [("web", "server3", whole)]
        moved = json.loads(await bench.cli("move", "start", "vm1", "--wait", "--json"))
        assert moved["target"] == "server2"
        explained = json.loads(await bench.cli("placement", "explain", moved["id"], "--json"))
        refused = {one["server"]: one["refused"][0]["filter"] for one in explained["decision"]["refused"]}
        assert refused["server3"] == "memory"

        for agent, status in ((other, 403), (own, 200)):
            async with agent.post("/v1/servers/server3/releases", json={"vm": "web"}) as answer:
                assert answer.status == status, await answer.text()
        await ended("web", "released")
        for vm, seconds in (("web", 1), ("vm4", 600)):
            body = {"vm": vm, "memory_mib": 64, "cpus": 1, "seconds": seconds}
            async with own.post("/v1/servers/server3/bookings", json=body) as answer:
                assert answer.status == 201, await answer.text()
        await ended("web", "timed out")
        await bench.post("vms", at("vm4", "server3", "10.1.0.50"))
        await ended("vm4", "arrived")
        await bench.request("DELETE", "vms/vm4")
        await events.until("port.removed", lambda e: e["vm"] == "vm4")
    assert json.loads(await bench.cli("booking", "list", "--json"))["bookings"] == []


async def test_traffic_finds_a_vm_and_a_service_by_name_wherever_they_are(bench: LabBench) -> None:
    """Debian's dnsmasq, as the resolver that a guest asks, with the zone's name pointed at the controller."""
    zone = bench.topology.zone
    controller = bench.topology.management_addresses[CONTROLLER].ip
    resolver = str((await bench.server("server3"))["address"])

    async def found(name: str) -> str:
        """Whom vm2 finds under the name, and reaches."""
        asked = f"nslookup -type=a {name}.{zone} {resolver}"
        said = await bench.guest("vm2", asked)
        (at,) = re.findall(r"^Name:.*\nAddress:? ?\d?: (\S+)", said, re.MULTILINE)
        assert await bench.ping("vm2", at)
        return str(at)

    await bench.post("entities", {"name": "web", "kind": "service", "profile": {"served_by": ["vm1"]}})
    forward = f"--server=/{zone}/{controller}#{DNS_PORT}"
    alone = f"--no-resolv --no-hosts --bind-interfaces --listen-address={resolver} --conf-file= --pid-file"
    asked = f"exec dnsmasq --no-daemon {forward} {alone} 2>&1"
    async with bench.lines("server3", "sh", "-c", asked) as said:
        await said.until("started")
        one, three = await bench.address("vm1"), await bench.address("vm3")
        assert await found("vm1") == await found("web") == one
        await bench.migration("vm1", target_server="server2")
        assert await found("vm1") == await found("web") == one
        await bench.post("entities", {"name": "db", "kind": "service", "profile": {"served_by": ["vm3"]}})
        assert await found("db") == three
        assert "NXDOMAIN" in await bench.guest("vm2", f"nslookup vm9.{zone} {resolver}", check=False)
    assert (await bench.get("status"))["counters"]["DNS questions"] >= 4


async def test_a_vm_is_online_at_its_new_switch_and_then_offline_at_its_old_one(bench: LabBench) -> None:
    """Told when both are so: looked for on both switches as soon as the first is heard."""
    address = await bench.address("vm1")
    async with bench.events() as events:
        moving = asyncio.create_task(bench.migration("vm1", target_server="server2"))
        online = await events.until("vm.online", lambda e: e["vm"] == "vm1")
        assert await bench.flows("edge2", f"nw_src={address}")
        assert await bench.flows("edge1", f"nw_src={address}") == []
        offline = await events.until("vm.offline", lambda e: e["vm"] == "vm1")
        done = await moving
        told = [e["type"] for e in events.seen if e["type"].startswith(("vm.o", "mobility.de"))]
    assert (online["server"], online["switch"]) == ("server2", "edge2")
    assert (offline["server"], offline["switch"]) == ("server1", "edge1")
    assert told == ["vm.online", "vm.offline", "mobility.deregistered"]
    assert online["migration_id"] == offline["migration_id"] == done["id"]


async def test_an_agent_that_asks_for_anothers_vm_is_refused(bench: LabBench) -> None:
    """With its own certificate; and for its own VM it is heard."""
    before = await bench.get("migrations")
    shown = credentials.of(bench.lab.directory, PeerRole.AGENT, "server3")
    connector = aiohttp.TCPConnector(
        socket_factory=lambda _: bench.doorman.socket(), force_close=True, ssl=shown.context()
    )
    async with ControllerClient(bench.topology.controller_url, shown, connector) as agent:
        for path in ("profile-queries", "migration-requests"):
            with pytest.raises(RejectedError, match="agent server3 is not authorized") as refused:
                await agent.post(f"/v1/vms/vm1/{path}", {"reason": "computing"})
            assert refused.value.status == 403
        assert (await agent.post("/v1/vms/vm3/profile-queries", {}))["vm"] == "vm3"
    assert await bench.get("migrations") == before


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"target_server": "server2", "mac": TWO}, f"has MAC {ONE}"),
        ({"target_server": "server2", "mac": "not a mac"}, "not a MAC address"),
        ({"target_server": "server2", "ip": "10.1.0.55"}, "does not hold 10.1.0.55"),
        ({"target_server": "server2", "source_server": "server3"}, "is at server1, not at server3"),
        ({"target_server": "server2", "target_switch": "edge2"}, "name the target once"),
        ({"target_server": "server1"}, "is at server1 already"),
        ({"target_server": "nowhere"}, "no server nowhere"),
        ({"target_server": "dhcp"}, "no edge switch"),
        ({"target_switch": "leaf2"}, "not the edge switch of a server"),
        ({"target_server": "server2", "vm": "vm9"}, "no VM vm9"),
    ],
)
async def test_a_migration_message_that_does_not_fit_is_rejected(
    bench: LabBench, message: Json, reason: str
) -> None:
    """What contradicts the tables starts no migration."""
    before = await bench.get("migrations")
    with pytest.raises(RejectedError, match=reason) as rejected:
        await bench.post("migrations", {"vm": "vm1", **message})
    assert rejected.value.status == 409
    assert await bench.get("migrations") == before


async def test_the_tables_of_vms_and_servers_are_shown(bench: LabBench) -> None:
    """VM to its switch and port, server to its leaf port; the same by REST and on the command line."""
    vms = {row["id"]: row for row in (await bench.get("vms"))["vms"]}
    numbers = bench.lab.status().switches
    for vm, server, edge in (("vm1", "server1", "edge1"), ("vm3", "server3", "edge3")):
        assert (vms[vm]["server"], vms[vm]["switch"]) == (server, edge)
        assert vms[vm]["port"] == numbers[edge].ports[f"tap-{vm}"]
    servers = {row["id"]: row for row in (await bench.get("servers"))["servers"]}
    for part in bench.topology.server:
        row = servers[part.id]
        assert (row["edge"], row["at"], row["state"]) == (
            part.edge,
            f"{part.leaf}:{part.leaf}-{part.id}",
            "matched",
        )
    assert servers["server3"]["vms"] == ["vm3"]
    assert json.loads(await bench.cli("vm", "list", "--json"))["vms"] == list(vms.values())
    assert json.loads(await bench.cli("server", "list", "--json"))["servers"] == list(servers.values())


async def test_a_server_moved_to_another_switch_is_noticed_and_its_vms_stay_reachable(
    bench: LabBench,
) -> None:
    """Server3's cable goes from leaf1 to leaf2 and back; its ARP tells, its VM's flows follow."""
    address = await bench.address("vm3")
    mac = bench.topology.server[2].mac
    assert await bench.ping("vm1", address)
    for old, new in (("leaf1", "leaf2"), ("leaf2", "leaf1")):
        async with bench.events() as events:
            await plug_server3(bench, old, new)
            await asyncio.to_thread(bench.lab.announce)
            moved = await events.until("server.moved")
        assert (moved["server"], moved["location"]) == ("server3", f"{new}:{new}-server3")
        assert moved["before"] == f"{old}:{old}-server3"
        assert (await bench.server("server3"))["at"] == f"{new}:{new}-server3"

        async def followed(old: str = old, new: str = new) -> bool:
            """Nothing of the old place is left, on real switches, and the new one has the ways."""
            stale = [await bench.flows(old, text) for text in (f"dl_dst={mac}", f"set_field:{mac}->eth_dst")]
            fresh = [await bench.flows(new, f"dl_dst={mac}"), await bench.flows(new, f"nw_dst={address}")]
            return not any(stale) and all(fresh)

        await eventually(followed)
        assert await bench.ping("vm1", address)
        assert await bench.ping("vm3", "203.0.113.9")


async def plug_server3(bench: LabBench, old: str, new: str) -> None:
    """Take the fabric's end of server3's cable out of one leaf and put it into another."""
    was, now = f"{old}-server3", f"{new}-server3"
    steps = (
        f"ovs-vsctl del-port {old} {was}; ip link set {was} down; ip link set {was} name {now}; "
        f"ip link set {now} up; ovs-vsctl add-port {new} {now}"
    )
    await bench.run("fabric", "sh", "-ec", steps)


# ---- during a migration ----


async def test_during_a_move_there_is_always_one_binding_and_the_target_has_it_first(bench: LabBench) -> None:
    """On the target's real switch before the VM runs there, off the source's after, never none or two."""
    address = await bench.address("vm1")
    seen: list[list[Json]] = []
    states: list[str] = []
    async with bench.flow_changes("edge2") as target, bench.flow_changes("edge1") as source:
        id = (await bench.post("migrations", {"vm": "vm1", "target_server": "server2"}))["id"]
        async with asyncio.timeout(PATIENCE):
            while not states or states[-1] not in ("done", "undone"):
                states.append((await bench.get(f"migrations/{id}"))["state"])
                seen.append(await bench.bindings("vm1"))
        stands = max([await target.until("event=ADDED", f"nw_{way}={address}") for way in ("src", "dst")])
        gone = min([await source.until("event=DELETED", f"nw_{way}={address}") for way in ("src", "dst")])
    migration = await bench.get(f"migrations/{id}")

    assert [sum(row["active"] for row in rows) for rows in seen] == [1] * len(seen)
    assert {row["ip"] for rows in seen for row in rows} == {address}
    active = [next(row["switch"] for row in rows if row["active"]) for rows in seen]
    assert active == sorted(active), "the active binding went back and forth"
    copying = [rows for state, rows in zip(states, seen, strict=True) if state == "copying"]
    assert copying, f"too fast to be watched: {states}"
    assert {(row["switch"], row["active"]) for row in copying[0]} == {("edge1", True), ("edge2", False)}

    entered = {step["state"]: step["at"] for step in migration["steps"]}
    assert entered["prepared"] < migration["stopped_at"] < migration["resumed_at"]
    assert stands < migration["resumed_at"] < gone
    assert migration["resumed_at"] < entered["switched"] < entered["confirmed"]
    assert await bench.flows("edge1", ONE) == []
    assert await bench.flows("edge1", f"nw_src={address}") == []
    assert await bench.flows("edge2", f"nw_src={address}") != []
    assert [row["switch"] for row in await bench.bindings("vm1")] == ["edge2"]


# ---- where a binding comes from, and what it has ----


async def test_a_binding_comes_from_the_controller_or_from_the_manager(bench: LabBench) -> None:
    """DHCP's, made by the controller from what the switch reports; the manager's, a static address.

    The manager registers nobody once more with another address: it is told so, and nothing changes.
    """
    async with bench.events() as events:
        await bench.post("vms", at("vm4", "server2", "10.1.0.50"))
        await events.until("vm.ready", lambda e: e["vm"]["id"] == "vm4")
        (given,) = await bench.bindings("vm4")
        (leased,) = await bench.bindings("vm1")
        assert (given["origin"], given["kind"], given["lease_end"]) == ("manager", "static", None)
        assert (leased["origin"], leased["kind"]) == ("controller", "dynamic")
        assert given["ip"] == "10.1.0.50"
        (entry,) = await bench.flows("edge2", "nw_src=10.1.0.50")
        assert "timeout" not in entry
        with pytest.raises(RejectedError, match=r"10\.1\.0\.50 is held by VM vm4"):
            await bench.post("vms", at("vm5", "server3", "10.1.0.50"))
        with pytest.raises(RejectedError) as rejected:
            await bench.post("vms", at("vm4", "server2", "10.1.0.51"))
        assert rejected.value.status == 409
        (after,) = await bench.bindings("vm4")
        assert after == {**given, "port_status": after["port_status"]}  # Its machine opens it meanwhile.
        assert await bench.flows("edge2", "10.1.0.51") == []
        await bench.request("DELETE", "vms/vm4")
        await events.until("port.removed", lambda e: e["vm"] == "vm4")
    assert await bench.bindings("vm4") == []
    assert await bench.flows("edge2", "10.1.0.50") == []


async def test_a_vm_has_other_addresses_from_its_target_on(bench: LabBench) -> None:
    """By the manager's message: its guest is reached under them, and no switch has any of the old ones."""
    old, new, mac = "10.1.0.60", "10.1.0.61", "52:54:00:00:06:99"
    async with bench.events() as events:
        await bench.post("vms", at("vm4", "server2", old))
        await events.until("vm.started", lambda e: e["vm"]["id"] == "vm4")
        was = mac_of("vm4")
        async with bench.traffic(await bench.address("vm1")) as to_another:
            started = ("move", "start", "vm4", "--to", "server3", "--mac", mac, "--address", new, "--wait")
            await bench.cli(*started)
            await bench.unharmed(to_another)
        (row,) = await bench.bindings("vm4")
        assert (row["mac"], row["ip"], row["switch"]) == (mac, new, "edge3")
        for switch in ("edge2", "edge3", "leaf1", "leaf2", "spine1", "spine2"):
            assert await bench.flows(switch, old) == await bench.flows(switch, was) == []
        assert await bench.flows("edge2", new) == [] != await bench.flows("edge3", new)
        set_up = f"ip addr flush dev eth0; ip link set eth0 down; ip link set eth0 address {mac}; "
        set_up += f"ip link set eth0 up; ip addr add {new}/24 dev eth0; ip route add default via 10.1.0.254"
        await bench.guest("vm4", set_up)
        assert await bench.ping("vm4", "10.1.0.2")
        # It goes on from there, and keeps them.
        await bench.migration("vm4", target_server="server2")
        assert await bench.ping("vm4", "10.1.0.2")
        await bench.request("DELETE", "vms/vm4")
        await events.until("port.removed", lambda e: e["vm"] == "vm4" and e["switch"] == "edge2")


async def test_a_binding_has_all_its_fields(bench: LabBench) -> None:
    """On the command line; the port's status follows the real port."""
    rows = json.loads(await bench.cli("binding", "list", "--vm", "vm2", "--json"))["bindings"]
    (row,) = rows
    (entry,) = await bench.flows("edge1", f"nw_src={row['ip']}")
    end = row.pop("lease_end")
    assert isinstance(end, float)
    assert f"in_port={row['port']}," in entry
    assert row == {
        "mac": TWO, "ip": await bench.address("vm2"), "kind": "dynamic", "vm": "vm2", "switch": "edge1",
        "port": bench.lab.status().switches["edge1"].ports["tap-vm2"], "vlan": 0, "vrf": "default",
        "port_status": "up",
        "trust": "untrust", "origin": "controller", "active": True, "confirmed": True,
    }  # fmt: skip

    async def becomes(status: str) -> None:
        async def so() -> bool:
            return bool((await bench.bindings("vm2"))[0]["port_status"] == status)

        await eventually(so)

    for change, status in (
        (("carrier", "off"), "down"),
        (("carrier", "on"), "up"),
        (("down",), "disabled"),
        (("up",), "up"),
    ):
        await bench.run("server1", "ip", "link", "set", "dev", "tap-vm2", *change)
        await becomes(status)
    assert await bench.ping("vm2", "10.1.0.2")


# ---- what the manager says of a port ----


async def test_a_disabled_port_is_shut_and_stays_so_through_a_migration(bench: LabBench) -> None:
    one = await bench.address("vm1")
    await bench.cli("vm", "nic", "set", "vm1", "--disable")
    for at_server in ("server1", "server2"):
        if at_server == "server2":
            await bench.migration("vm1", target_server="server2")
        assert not await bench.ping("vm2", one)
        (row,) = await bench.bindings("vm1")
        assert (row["port_status"], row["confirmed"]) == ("disabled", True)
    await bench.cli("vm", "nic", "set", "vm1", "--enable", "--rate", "100000")
    assert await bench.ping("vm2", one)
    assert await bench.ping("vm1", await bench.address("vm3"))
    await bench.cli("vm", "nic", "set", "vm1", "--rate", "0")


async def test_an_allowed_address_goes_to_the_guest_that_announces_it(bench: LabBench) -> None:
    """On one server and then on another, as a master of VRRP that takes over; for others it is spoofed."""
    shared = "10.1.0.200"
    for vm in ("vm1", "vm3"):
        await bench.cli("vm", "nic", "set", vm, "--allow", shared)
        await bench.guest(vm, f"ip addr add {shared}/32 dev eth0")
    async with bench.events() as events:
        await bench.send("vm2", arp("who-has", TWO, shared, shared))
        await events.until("spoofing", claiming("arp", TWO, shared))
        for vm, server, before in (("vm1", "server1", ""), ("vm3", "server3", "vm1")):
            await bench.send(vm, arp("who-has", mac_of(vm), shared, shared))
            taken = await events.until("address.taken", lambda e, vm=vm: e["vm"] == vm)  # type: ignore[misc]
            assert (taken["ip"], taken["before"]) == (shared, before)

            async def confirmed(vm: str = vm) -> bool:
                rows = [row for row in await bench.bindings(vm) if row["ip"] == shared]
                return [(row["kind"], row["confirmed"]) for row in rows] == [("allowed", True)]

            await eventually(confirmed)
            async with bench.capture(server, f"tap-{vm}", "out") as tap:
                assert await bench.ping("vm2", shared)
                await tap.until(lambda f: shared in str(f))
    for vm in ("vm1", "vm3"):
        await bench.guest(vm, f"ip addr del {shared}/32 dev eth0")
        await bench.cli("vm", "nic", "set", vm, "--allow", "none")


# ---- spoofing ----


def claiming(*claim: str) -> Picks:
    """Picks spoofing attempts of this kind, and with this claimed MAC and IP."""
    return lambda e: claim == tuple(e["spoofing"][key] for key in ("kind", "claimed_mac", "claimed_ip"))


async def dropped(bench: LabBench) -> int:
    """How many frames edge1 itself has counted as spoofed, as the controller shows it."""
    return int((await bench.get("spoof-attempts"))["dropped_frames"].get("edge1", 0))


async def attempts_of(bench: LabBench, vm: str) -> Counter[tuple[str, str, str]]:
    """How often a VM has claimed what, as the command line shows it."""
    shown = json.loads(await bench.cli("binding", "spoofing", "--json"))["spoof_attempts"]
    return Counter(
        {(r["kind"], r["claimed_mac"], r["claimed_ip"]): r["count"] for r in shown if r["vm"] == vm}
    )


async def test_spoofed_mac_ip_and_arp_are_dropped_counted_and_reported(bench: LabBench) -> None:
    """Who, where, what and how often, in the event stream and on the command line."""
    earlier = await attempts_of(bench, "vm2")
    one, two = await bench.address("vm1"), await bench.address("vm2")
    spoofed = {
        ("mac", ONE, two): packet(ONE, GATEWAY, two, "203.0.113.9"),
        ("mac", STRANGER, "10.1.0.77"): packet(STRANGER, ONE, "10.1.0.77", one),
        ("mac", ONE, one): arp("is-at", ONE, one, two),
        ("ip", TWO, one): packet(TWO, GATEWAY, one, "203.0.113.9"),
        ("ip", TWO, "10.1.0.254"): packet(TWO, ONE, "10.1.0.254", one),
        ("arp", TWO, one): arp("is-at", TWO, one, one, tha=ONE),
        ("arp", TWO, "10.1.0.254"): arp("is-at", TWO, "10.1.0.254", one, tha=ONE),
        ("arp", TWO, "10.1.0.77"): arp("who-has", TWO, "10.1.0.77", one),
        ("arp", ONE, two): arp("is-at", ONE, two, one, src=TWO, dst=BROADCAST),
    }
    payloads = {frame[24:] for frame in spoofed.values()}  # what follows the MACs, which a switch may change
    port = (await bench.vm("vm2"))["port"]
    before = await dropped(bench)
    async with (
        bench.events() as events,
        bench.capture("server1", "tap-vm2", "in") as sent,
        bench.capture("server1", "tap-vm1", "out") as neighbour,
        bench.capture("server1", "up0", "out") as uplink,
    ):
        await bench.send("vm2", *spoofed.values(), times=10)
        frames = set(spoofed.values())
        await sent.until(lambda f: f.data.hex() in frames, times=10 * len(spoofed))
        assert await bench.ping("vm2", one)
        assert await bench.ping("vm2", "10.1.0.2")
        for seen in (neighbour, uplink):
            await seen.until(lambda f: bool(f.ether.haslayer("ICMP")))
            assert [str(f) for f in seen.frames if f.data[12:].hex() in payloads] == []
        for claim in spoofed:
            row = (await events.until("spoofing", claiming(*claim)))["spoofing"]
            assert (row["vm"], row["switch"], row["port"]) == ("vm2", "edge1", port)

    counts = await attempts_of(bench, "vm2") - earlier
    assert counts == dict.fromkeys(spoofed, 10)

    async def counted() -> bool:
        return await dropped(bench) == before + 10 * len(spoofed)

    await eventually(counted)


async def test_a_flood_of_spoof_attempts_is_counted_by_the_switch_and_does_not_flood_the_controller(
    bench: LabBench,
) -> None:
    """Of a thousand spoofed frames the controller sees at most what the port's meter lets by."""
    before = await dropped(bench)
    told = (await bench.get("status"))["spoof_attempts"]
    frame = packet(STRANGER, GATEWAY, "10.1.0.78", "203.0.113.9")
    began = time.monotonic()
    async with bench.traffic(await bench.address("vm1")) as traffic:
        # In bursts, as the switch's own socket at the port holds some 250 frames only.
        burst = f"sendraw -c 100 {frame}; usleep 50000"
        await bench.guest("vm2", f"for i in $(seq 10); do {burst}; done")

        async def counted() -> bool:
            return await dropped(bench) == before + 1000

        await eventually(counted)
        seconds = time.monotonic() - began
        figures, _ = await traffic.end()
    assert 0 < (await bench.get("status"))["spoof_attempts"] - told <= 100 * (1 + seconds)
    assert figures.lost == 0


# ---- the server told anew by its MAC ----

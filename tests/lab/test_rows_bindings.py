"""Bindings and their migration on real parts (rows B1 to B6)."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from lab_frames import BROADCAST, arp, packet
from lab_tools import PATIENCE, Bench, Json, Picks, RefusedError, at, eventually, mac_of

pytestmark = pytest.mark.lab

VMS = [at("vm1", "server1"), at("vm2", "server1"), at("vm3", "server3")]
ONE, TWO = mac_of("vm1"), mac_of("vm2")
GATEWAY = "00:00:de:ad:be:ef"
STRANGER = "52:54:00:00:00:99"


@pytest.fixture(autouse=True)
async def home(bench: Bench) -> AsyncIterator[None]:
    """After each test vm1 is where it was."""
    yield
    if (await bench.vm("vm1"))["server"] != "server1":
        await bench.move("vm1", target_server="server1")


# ---- B1, B2: the migration message, and the tables behind it ----


async def test_both_forms_of_the_migration_message_move_the_vm(bench: Bench) -> None:
    """B1: VM id, MAC, IP and source server id, with the target's server id, then with its switch id."""
    known = {"mac": ONE, "ip": await bench.address("vm1")}
    by_server = await bench.move("vm1", **known, source_server="server1", target_server="server2")
    assert (by_server["source"], by_server["target"]) == ("server1", "server2")
    assert (await bench.vm("vm1"))["switch"] == "edge2"
    assert await bench.machines("vm1") == ["server2"]
    assert await bench.ping("vm1", "10.1.0.2")

    by_switch = await bench.move("vm1", **known, source_server="server2", target_switch="edge1")
    assert (by_switch["source"], by_switch["target"]) == ("server2", "server1")
    assert (await bench.vm("vm1"))["switch"] == "edge1"
    assert await bench.machines("vm1") == ["server1"]
    assert await bench.ping("vm1", "10.1.0.2")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"target_server": "server2", "mac": TWO}, f"has MAC {ONE}"),
        ({"target_server": "server2", "mac": "not a mac"}, "not a MAC address"),
        ({"target_server": "server2", "ip": "10.1.0.55"}, "does not hold 10.1.0.55"),
        ({"target_server": "server2", "source_server": "server3"}, "is at server1, not at server3"),
        ({"target_server": "server2", "target_switch": "edge2"}, "name the target once"),
        ({}, "name the target once"),
        ({"target_server": "server1"}, "is at server1 already"),
        ({"target_server": "nowhere"}, "no server nowhere"),
        ({"target_server": "dhcp"}, "no edge switch"),
        ({"target_switch": "leaf2"}, "not the edge switch of a server"),
        ({"target_server": "server2", "vm": "vm9"}, "no VM vm9"),
    ],
)
async def test_a_migration_message_that_does_not_fit_is_refused(
    bench: Bench, message: Json, reason: str
) -> None:
    """B1: what contradicts the tables starts no move."""
    before = await bench.get("moves")
    with pytest.raises(RefusedError, match=reason) as refused:
        await bench.post("moves", {"vm": "vm1", **message})
    assert refused.value.status == 409
    assert await bench.get("moves") == before


async def test_the_tables_of_vms_and_servers_are_shown(bench: Bench) -> None:
    """B2: VM to its switch and port, server to its leaf port; the same by REST and on the command line."""
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


async def test_a_server_moved_to_another_switch_is_noticed_and_its_vms_stay_reachable(bench: Bench) -> None:
    """B2, D6: server3's cable goes from leaf1 to leaf2 and back; its ARP tells, its VM's flows follow."""
    address = await bench.address("vm3")
    mac = bench.topology.server[2].mac
    assert await bench.ping("vm1", address)
    for old, new in (("leaf1", "leaf2"), ("leaf2", "leaf1")):
        async with bench.events() as events:
            await plug_server3(bench, old, new)
            await asyncio.to_thread(bench.lab.announce)
            moved = await events.until("server.moved")
        assert (moved["server"], moved["place"]) == ("server3", f"{new}:{new}-server3")
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


async def plug_server3(bench: Bench, old: str, new: str) -> None:
    """Take the fabric's end of server3's cable out of one leaf and put it into another."""
    was, now = f"{old}-server3", f"{new}-server3"
    steps = (
        f"ovs-vsctl del-port {old} {was}; ip link set {was} down; ip link set {was} name {now}; "
        f"ip link set {now} up; ovs-vsctl add-port {new} {now}"
    )
    await bench.run("fabric", "sh", "-ec", steps)


# ---- B3: during a move ----


async def test_during_a_move_there_is_always_one_binding_and_the_target_has_it_first(bench: Bench) -> None:
    """B3: on the target's real switch before the VM runs there, off the source's after, never none or two."""
    address = await bench.address("vm1")
    seen: list[list[Json]] = []
    states: list[str] = []
    async with bench.flow_changes("edge2") as target, bench.flow_changes("edge1") as source:
        id = (await bench.post("moves", {"vm": "vm1", "target_server": "server2"}))["id"]
        async with asyncio.timeout(PATIENCE):
            while not states or states[-1] not in ("done", "undone"):
                states.append((await bench.get(f"moves/{id}"))["state"])
                seen.append(await bench.bindings("vm1"))
        stands = max([await target.until("event=ADDED", f"nw_{way}={address}") for way in ("src", "dst")])
        gone = min([await source.until("event=DELETED", f"nw_{way}={address}") for way in ("src", "dst")])
    move = await bench.get(f"moves/{id}")

    assert [sum(row["active"] for row in rows) for rows in seen] == [1] * len(seen)
    assert {row["ip"] for rows in seen for row in rows} == {address}
    active = [next(row["switch"] for row in rows if row["active"]) for rows in seen]
    assert active == sorted(active), "the active binding went back and forth"
    copying = [rows for state, rows in zip(states, seen, strict=True) if state == "copying"]
    assert copying, f"too fast to be watched: {states}"
    assert {(row["switch"], row["active"]) for row in copying[0]} == {("edge1", True), ("edge2", False)}

    entered = {step["state"]: step["at"] for step in move["steps"]}
    assert entered["prepared"] < move["stopped_at"] < move["resumed_at"]
    assert stands < move["resumed_at"] < gone
    assert move["resumed_at"] < entered["switched"] < entered["confirmed"]
    assert await bench.flows("edge1", ONE) == []
    assert await bench.flows("edge1", f"nw_src={address}") == []
    assert await bench.flows("edge2", f"nw_src={address}") != []
    assert [row["switch"] for row in await bench.bindings("vm1")] == ["edge2"]


# ---- B4, B5: where a binding comes from, and what it has ----


async def test_a_binding_comes_from_the_controller_or_from_the_manager(bench: Bench) -> None:
    """B4: DHCP's, made by the controller from what the switch reports; the manager's, a static address."""
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
        with pytest.raises(RefusedError, match=r"10\.1\.0\.50 is held by VM vm4"):
            await bench.post("vms", at("vm5", "server3", "10.1.0.50"))
        await bench.request("DELETE", "vms/vm4")
        await events.until("port.gone", lambda e: e["vm"] == "vm4")
    assert await bench.bindings("vm4") == []
    assert await bench.flows("edge2", "10.1.0.50") == []


async def test_a_binding_has_all_its_fields(bench: Bench) -> None:
    """B5: on the command line; the port's status follows the real port."""
    rows = json.loads(await bench.cli("binding", "list", "--vm", "vm2", "--json"))["bindings"]
    (row,) = rows
    (entry,) = await bench.flows("edge1", f"nw_src={row['ip']}")
    end = row.pop("lease_end")
    assert isinstance(end, float)
    assert f"in_port={row['port']}," in entry
    assert row == {
        "mac": TWO, "ip": await bench.address("vm2"), "kind": "dynamic", "vm": "vm2", "switch": "edge1",
        "port": bench.lab.status().switches["edge1"].ports["tap-vm2"], "vlan": 0, "port_status": "up",
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


# ---- B6: forgery ----


def claiming(*claim: str) -> Picks:
    """Picks forgeries of this kind, and with this claimed MAC and IP."""
    return lambda e: claim == tuple(e["forgery"][key] for key in ("kind", "claimed_mac", "claimed_ip"))


async def dropped(bench: Bench) -> int:
    """How many frames edge1 itself has counted as forged, as the controller shows it."""
    return int((await bench.get("forgeries"))["dropped_frames"].get("edge1", 0))


async def test_forged_mac_ip_and_arp_are_dropped_counted_and_reported(bench: Bench) -> None:
    """B6: who, where, what and how often, in the event stream and on the command line."""
    one, two = await bench.address("vm1"), await bench.address("vm2")
    forged = {
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
    payloads = {frame[24:] for frame in forged.values()}  # what follows the MACs, which a switch may change
    port = (await bench.vm("vm2"))["port"]
    before = await dropped(bench)
    async with (
        bench.events() as events,
        bench.capture("server1", "tap-vm2", "in") as sent,
        bench.capture("server1", "tap-vm1", "out") as neighbour,
        bench.capture("server1", "up0", "out") as uplink,
    ):
        await bench.send("vm2", *forged.values(), times=10)
        frames = set(forged.values())
        await sent.until(lambda f: f.data.hex() in frames, times=10 * len(forged))
        assert await bench.ping("vm2", one)
        assert await bench.ping("vm2", "10.1.0.2")
        for seen in (neighbour, uplink):
            await seen.until(lambda f: bool(f.ether.haslayer("ICMP")))
            assert [str(f) for f in seen.frames if f.data[12:].hex() in payloads] == []
        for claim in forged:
            row = (await events.until("forgery", claiming(*claim)))["forgery"]
            assert (row["vm"], row["switch"], row["port"]) == ("vm2", "edge1", port)

    shown = json.loads(await bench.cli("binding", "list", "--json"))["forgeries"]
    counts = {(r["kind"], r["claimed_mac"], r["claimed_ip"]): r["count"] for r in shown if r["vm"] == "vm2"}
    assert counts == dict.fromkeys(forged, 10)

    async def counted() -> bool:
        return await dropped(bench) == before + 10 * len(forged)

    await eventually(counted)


async def test_a_flood_of_forgeries_is_counted_by_the_switch_and_does_not_flood_the_controller(
    bench: Bench,
) -> None:
    """B6, D9: of a thousand forged frames the controller sees at most what the port's meter lets by."""
    before = await dropped(bench)
    told = (await bench.get("status"))["forgeries"]
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
    assert 0 < (await bench.get("status"))["forgeries"] - told <= 100 * (1 + seconds)
    assert figures.lost == 0

"""Moves without loss: real VMs, packets counted."""

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from retinue.protocol.errors import RejectedError
from retinue_lab.network.agents import AGENT_PORT
from retinue_lab.network.nodes import MANAGEMENT_NIC
from retinue_lab.topology.topology import FABRIC
from support.lab.losses import lost_spans
from support.lab.migrating import (
    AT_ONCE,
    ON_ITS_WAY,
    SLOWLY,
    START,
    as_before,
    begin,
    go_home,
    held_in,
    network,
    qemu_of,
    reaches,
    sends,
    start_agent,
)
from support.lab.tls_wire import TlsRecord, tcp_streams, tls_records
from support.lab.tools import BOOT_PATIENCE, Json, LabBench, Picks, eventually, long
from support.lab.watch import Capture, Frame

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.usefixtures("home")]

VMS = START
WIRES = (MANAGEMENT_NIC, "up0")
CALM = 3.0
"""Seconds for which a rate is tried while nothing migrates."""
LATE_TRIES = 4
"""Of a test that holds a cache back for a moment, which on a busy machine becomes a long one."""
WRITTEN_MIB, MIB_A_SECOND = 32, 300
"""Memory that a guest writes over and over, faster than any pass carries away."""
BY_POSTCOPY: Json = {"vm": "vm1", "postcopy": "required", "downtime_ms": 0}
"""Also where a busy machine lets the guest write so little in a pass that pre-copy were quick enough."""


@pytest.mark.parametrize("pps", [long(200), 1000])
async def test_a_move_loses_doubles_and_reorders_nothing(bench: LabBench, pps: int) -> None:
    """From leaf to leaf, within a leaf, and back again at once."""
    async with bench.traffic(await bench.address("vm1"), pps=pps) as traffic:
        for target in ("server2", "server1", "server3"):
            migration = await bench.migration("vm1", target_server=target)
            assert migration["stopped_at"] <= migration["resumed_at"]
            assert [s["state"] for s in migration["steps"]].index("diverted") > 0
        figures = await bench.unharmed(traffic, in_order=True)
    assert figures.sent > 2 * pps


@pytest.mark.long
@pytest.mark.parametrize("pps", [long(2000), 3000])
async def test_at_several_thousand_packets_a_second_nothing_is_lost(bench: LabBench, pps: int) -> None:
    """So many requests a second, and as many replies. A machine that does not carry them while nothing
    migrates shows nothing."""
    address = await bench.address("vm1")
    async with bench.traffic(address, pps=pps) as traffic:
        await asyncio.sleep(CALM)
        calm, _ = await traffic.end()
    if calm.lost or calm.reordered or calm.longest_answer_ms > 1000 * ON_ITS_WAY:
        pytest.skip(f"too much for this machine, though nothing migrates: {calm}")
    async with bench.traffic(address, pps=pps) as traffic:
        for target in ("server2", "server1", "server3"):
            await bench.migration("vm1", target_server=target)
        figures = await bench.unharmed(traffic, in_order=True)
    print(f"{figures}, after {calm}", file=sys.stderr)
    assert figures.sent > 2 * pps
    assert figures.achieved_pps > 0.95 * pps


@pytest.mark.parametrize(
    "lags",
    [long(["server1-vswitchd"]), long(["fabric-vswitchd"]), ["server1-vswitchd", "fabric-vswitchd"]],
)
async def test_flow_caches_that_follow_their_tables_late_lose_nothing(
    bench: LabBench, lags: list[str]
) -> None:
    """On a busy switch a confirmed entry may take effect much later."""
    async with bench.traffic(await bench.address("vm1")) as traffic, bench.events() as events:
        async with bench.flow_caches_lag(*lags):
            migration = await begin(bench)
            await reaches(events, migration, "diverted")
            await asyncio.sleep(0.2)  # That is what is tried: caches so late.
        await reaches(events, migration, "done")
        await bench.unharmed(traffic)


@pytest.mark.long
async def test_what_a_late_leaf_sends_by_the_old_way_is_not_overtaken(bench: LabBench) -> None:
    """The last of it waits before the source's switch, which stands still, when the leaf follows and sends
    the first directly."""
    told: list[str] = []
    for _ in range(LATE_TRIES):
        async with bench.traffic(await bench.address("vm1"), pps=1000) as traffic, bench.events() as events:
            async with bench.flow_caches_lag("fabric-vswitchd"):
                migration = await begin(bench)
                await reaches(events, migration, "diverted")
                await asyncio.sleep(0.1)  # That is what is tried: caches so late ...
                bench.kill("server1-vswitchd", signal.SIGSTOP)
            try:
                await asyncio.sleep(0.05)  # ... and a switch that is not run for so long.
            finally:
                bench.kill("server1-vswitchd", signal.SIGCONT)
            await reaches(events, migration, "done")
            gave_up, told = told, _looked_for_too_long(bench)
            figures = await bench.unharmed(traffic, in_order=told == gave_up)
        if told == gave_up:
            assert figures.sent > 500
            return
        await go_home(bench, VMS)
    pytest.skip("the caches were held back for longer than any source looks, each time")


def _looked_for_too_long(bench: LabBench) -> list[str]:
    """What server1's agent has said of it: so late is no cache, and then what is late is overtaken."""
    log = bench.lab.directory / "logs" / "server1-agent.log"
    return [line for line in log.read_text().splitlines() if "migration.old_way_in_use" in line]


async def test_a_leaf_that_follows_later_than_its_spines_loses_nothing(bench: LabBench) -> None:
    """What the router's leaf goes on sending up a spine sends down again: to the leaf where it came from."""
    async with bench.traffic(await bench.address("vm1"), pps=500) as traffic, bench.events() as events:
        async with bench.flow_caches_lag("fabric-vswitchd"):
            migration = await begin(bench)
            await reaches(events, migration, "diverted")
            for _ in range(10):
                await forgets(bench, "in_port(spine")
        await reaches(events, migration, "done")
        figures = await bench.unharmed(traffic)
    assert figures.sent > 500


async def forgets(bench: LabBench, flows: str) -> None:
    """The fabric's switches have these flows in their cache no more, and go by their tables."""
    listed = await bench.run(FABRIC, "ovs-appctl", "dpctl/dump-flows", "-m", "--names")
    found = [line.split(",")[0] for line in listed.splitlines() if flows in line]
    command = "for flow; do ovs-appctl dpctl/del-flow netdev@ovs-netdev $flow || true; done"
    await bench.run(FABRIC, "sh", "-c", command, "sh", *found)


async def test_a_target_whose_flow_cache_still_drops_the_vms_frames_is_waited_for(bench: LabBench) -> None:
    """What came for the VM before it was admitted was dropped; a busy switch goes on dropping it."""
    address = await bench.address("vm1")
    async with bench.traffic(address) as traffic, bench.events() as events:
        async with bench.capture("server1", "up0", "in") as seen:
            frame = await seen.until(lambda frame: bool(datagrams_in([frame], address)))
        await astray(bench, frame.data, address)
        async with bench.flow_caches_lag("server2-vswitchd"):
            migration = await begin(bench)
            await reaches(events, migration, "copying")
            await asyncio.sleep(2)  # That is what is tried: a cache so late.
            assert (await bench.get(f"migrations/{migration}"))["state"] == "copying"
        await reaches(events, migration, "done")
        await bench.unharmed(traffic)


async def astray(bench: LabBench, frame: bytes, address: str) -> None:
    """Send a frame to server2, which does not know its VM, until its switch has in its cache to drop it."""
    node, bridge = bench.bridge("leaf2")
    mac = next(server.mac for server in bench.topology.server if server.id == "server2")
    sent = mac.replace(":", "") + frame[6:].hex()

    async def dropped() -> bool:
        out = f"in_port=controller packet={sent} actions=output:leaf2-server2"
        await bench.run(node, "ovs-ofctl", "-O", "OpenFlow14", "packet-out", bridge, out)
        flows = (await bench.run("server2", "ovs-appctl", "dpctl/dump-flows")).splitlines()
        return any(f"dst={address}," in flow and flow.endswith("drop") for flow in flows)

    await eventually(dropped)


async def test_a_vm_that_never_stops_writing_moves_by_postcopy_and_no_packet_is_lost(bench: LabBench) -> None:
    """It runs at its target with most of that memory still to come, and all of it is right."""
    async with (
        written(bench),
        bench.traffic(await bench.address("vm1"), pps=500) as traffic,
        bench.events() as events,
    ):
        for target in ("server2", "server1"):
            migration = str((await bench.post("migrations", {"target_server": target, **BY_POSTCOPY}))["id"])
            await events.until("migration.copying", in_postcopy(migration))
            await reaches(events, migration, "done")
            record = await bench.get(f"migrations/{migration}")
            assert record["figures"]["postcopy_remaining"] == 0
            pause = (record["resumed_at"] - record["stopped_at"]) * 1000
            print(f"post-copy: pause {pause:.0f} ms, passes {record['figures']['passes']}", file=sys.stderr)
        figures = await bench.unharmed(traffic, in_order=True)
        assert figures.sent > 500
        await nothing_is_wrong(bench)


def in_postcopy(migration: str) -> Picks:
    """Told while the VM runs at the target, with some of its memory still to come."""
    return lambda event: bool(event["postcopy"]) and event["migration_id"] == migration


@pytest.mark.long
async def test_agents_whose_connection_breaks_in_postcopy_make_another_and_the_vm_lacks_nothing(
    bench: LabBench,
) -> None:
    uptime = float(await bench.guest("vm1", "cut -d' ' -f1 /proc/uptime"))
    await sends(bench, "server1", SLOWLY)
    other_end = str(bench.topology.management_addresses["server2"].ip)
    async with written(bench), bench.events() as events:
        migration = str((await bench.post("migrations", {"target_server": "server2", **BY_POSTCOPY}))["id"])
        for _ in range(2):
            await events.until("migration.copying", in_postcopy(migration))
            await bench.run("server1", "ss", "-K", "dst", other_end, "dport", "=", str(AGENT_PORT))
        await reaches(events, migration, "done")
        record = await bench.get(f"migrations/{migration}")
        assert record["figures"]["postcopy_remaining"] == 0
        for server in ("server1", "server2"):
            log = (Path(bench.lab.directory) / "logs" / f"{server}-agent.log").read_text()
            assert log.count("migration.way_broken") == log.count("migration.goes_on") >= 1
        assert (await bench.vm("vm1"))["power"] == "running"
        assert float(await bench.guest("vm1", "cut -d' ' -f1 /proc/uptime")) > uptime
        await nothing_is_wrong(bench)


@pytest.mark.parametrize("killed", [("server1",), long(("server2",)), long(("server1", "server2"))])
async def test_an_agent_that_is_killed_in_postcopy_costs_the_vm_nothing(
    bench: LabBench, killed: tuple[str, ...]
) -> None:
    """The next one finds a QEMU that has memory to give, or lacks some, and goes on."""
    uptime = float(await bench.guest("vm1", "cut -d' ' -f1 /proc/uptime"))
    await sends(bench, "server1", SLOWLY)
    async with (
        written(bench),
        bench.traffic(await bench.address("vm1"), pps=200) as traffic,
        bench.events() as events,
    ):
        migration = str((await bench.post("migrations", {"target_server": "server2", **BY_POSTCOPY}))["id"])
        await events.until("migration.copying", in_postcopy(migration))
        before = {server: went_on(bench, server) for server in killed}
        for server in killed:
            bench.kill(f"{server}-agent")
        for server in ("server1", "server2"):  # QEMUs outlive their agents.
            await bench.run("sandbox", "kill", "-0", str(qemu_of(bench, server)))
        await eventually(partial(says_who_is_away, bench, migration, killed))
        await sends(bench, "server1", AT_ONCE)  # What is tried has happened.
        for server in killed:
            await start_agent(bench, server)
        await reaches(events, migration, "done")
        for server in killed:
            assert went_on(bench, server) == before[server] + 1
        assert (await bench.vm("vm1"))["power"] == "running"
        assert float(await bench.guest("vm1", "cut -d' ' -f1 /proc/uptime")) > uptime
        await nothing_is_wrong(bench)
        figures = await bench.unharmed(traffic, in_order=True)
        assert figures.sent > 200


@pytest.mark.long
async def test_a_source_whose_qemu_has_ended_too_has_nothing_to_give_and_the_vm_has_crashed(
    bench: LabBench,
) -> None:
    await sends(bench, "server1", SLOWLY)
    async with written(bench), bench.events() as events:
        migration = str((await bench.post("migrations", {"target_server": "server2", **BY_POSTCOPY}))["id"])
        await events.until("migration.copying", in_postcopy(migration))
        bench.kill("server1-agent")
        await bench.run("sandbox", "kill", "-KILL", str(qemu_of(bench, "server1")))
        await start_agent(bench, "server1")
        stopped = await events.until("vm.stopped", lambda event: event["vm"]["id"] == "vm1")
        assert stopped["reason"].startswith(
            "it ran by post-copy, with some of its memory still at the source: no other way to the other end"
        )
        assert (await bench.vm("vm1"))["state"] == "crashed"
        await reaches(events, migration, "done")
        assert await bench.machines("vm1") == []
        await bench.cli("vm", "start", "vm1", "--wait")
        address = await bench.address("vm1")
        await eventually(partial(bench.ping, "vm2", address), BOOT_PATIENCE)


async def says_who_is_away(bench: LabBench, migration: str, servers: Sequence[str]) -> bool:
    waits = (await bench.get(f"migrations/{migration}"))["waits_for"]
    return all(f"the agent of server {server} is away" in waits for server in servers)


def went_on(bench: LabBench, server: str) -> int:
    log = (Path(bench.lab.directory) / "logs" / f"{server}-agent.log").read_text()
    return log.count("migration.goes_on")


@contextlib.asynccontextmanager
async def written(bench: LabBench) -> AsyncIterator[None]:
    """The guest writes much of its memory over and over, and compares it."""
    await bench.guest("vm1", f"scribble {WRITTEN_MIB} {MIB_A_SECOND} /tmp/scribbled >/dev/null 2>&1 &")
    try:
        await bench.guest("vm1", "until [ -f /tmp/scribbled ]; do usleep 20000; done")
        yield
    finally:
        await bench.guest("vm1", "killall scribble; rm -f /tmp/scribbled", check=False)


async def nothing_is_wrong(bench: LabBench) -> None:
    """The guest has compared all of its memory, and written it, twice since now."""
    await written_again(bench, times=2)
    assert (await bench.guest("vm1", "cut -d' ' -f6 /tmp/scribbled")).strip() == "0"


async def written_again(bench: LabBench, times: int = 1) -> None:
    before = int(await bench.guest("vm1", "cut -d' ' -f4 /tmp/scribbled"))
    enough = before + times * WRITTEN_MIB * 256
    await bench.guest(
        "vm1", f"until [ $(cut -d' ' -f4 /tmp/scribbled) -gt {enough} ]; do usleep 50000; done", timeout=120
    )


MARKER = b"a page of this VM alone, for nobody else to read. "
WIRED_MIB = 4
"""Memory of the guest that is full of it."""


async def test_on_the_wire_a_vms_memory_is_in_records_of_tls_only(bench: LabBench) -> None:
    """What leaves the source and comes to the target while it migrates, on both of their networks."""
    await bench.guest("vm1", f"yes '{MARKER.decode()}' | head -c {WIRED_MIB}m >/tmp/marked; sync")
    wires = [(node, port, way) for node, way in (("server1", "out"), ("server2", "in")) for port in WIRES]
    async with bench.captures(*wires) as captures:
        await bench.migration("vm1", target_server="server2")
        for capture in captures:
            await capture.settle()
        frames = [frame for capture in captures for frame in capture.frames]
        away = captures[wires.index(("server1", MANAGEMENT_NIC, "out"))].frames
    assert await bench.guest("vm1", "head -c 50 /tmp/marked") == MARKER.decode()
    await bench.guest("vm1", "rm /tmp/marked")
    assert not [str(frame) for frame in frames if MARKER in frame.data]
    streams = tcp_streams(away, AGENT_PORT)
    assert streams, "the agents have spoken to each other"
    records = [record for stream in streams for record in tls_records(stream)]
    assert sum(length for kind, length in records if kind is TlsRecord.APPLICATION_DATA) > WIRED_MIB << 20


async def test_two_vms_may_change_places_at_once(bench: LabBench) -> None:
    """And nothing that either is sent meanwhile is lost, doubled or out of order."""
    async with (
        bench.traffic(await bench.address("vm1")) as to_first,
        bench.traffic(await bench.address("vm2")) as to_second,
        bench.events() as events,
    ):
        first, second = await begin(bench, "vm1", "server2"), await begin(bench, "vm2", "server1")
        await reaches(events, first, "done")
        await reaches(events, second, "done")
        figures = [await bench.unharmed(traffic, in_order=True) for traffic in (to_first, to_second)]
    assert all(of.sent > 100 for of in figures), figures
    assert await bench.machines("vm1") == ["server2"]
    assert await bench.machines("vm2") == ["server1"]
    assert await bench.ping("vm1", await bench.address("vm2"))


async def test_a_vm_on_its_way_is_not_sent_elsewhere(bench: LabBench) -> None:
    async with bench.events() as events:
        migration = await begin(bench)
        with pytest.raises(RejectedError, match=f"being migrated already: {migration}"):
            await begin(bench, to="server3")
        await reaches(events, migration, "done")
    assert await bench.machines("vm1") == ["server2"]


async def test_what_comes_while_the_vm_stands_still_is_kept_for_the_source(bench: LabBench) -> None:
    """Its target is lost while nobody runs the VM: it runs on at the source, and finds what it was sent."""
    before, pps, still = await network(bench), 500, 0.5
    async with bench.traffic(await bench.address("vm1"), pps=pps) as traffic, bench.events() as events:
        migration = await held_in(bench, events, "stopped")
        target = str(qemu_of(bench, "server2"))
        await asyncio.sleep(still)  # That is what is tried: a VM that stands still for so long.
        await bench.run("sandbox", "kill", "-9", target)
        undone = await reaches(events, migration, "undone")
        figures, record = await traffic.end()
    # Nothing is lost that was sent after it stopped; before, what came to the target between the diversion
    # and the stop.
    since = next(step["at"] for step in undone["steps"] if step["state"] == "diverted")
    spans = lost_spans(record)
    until = undone["stopped_at"] + ON_ITS_WAY
    assert all(first > since - ON_ITS_WAY for first, _, _ in spans), f"diverted {since}, lost {spans}"
    assert all(last < until for _, last, _ in spans), (
        f"diverted {since}, stopped {undone['stopped_at']}, lost {spans}"
    )

    # What comes to the source by itself while it is undone is among what was kept there.
    took = undone["steps"][-1]["at"] - undone["steps"][-2]["at"]

    async def counted() -> bool:
        told = (await bench.get(f"migrations/{migration}"))["figures"]
        return bool(abs(told.get("lost_about", 1 << 30) - figures.lost) < (still / 5 + took) * pps)

    await eventually(counted)
    assert figures.duplicated == 0
    await as_before(bench, before)


# ---- what goes along beside the VM: its mirror, and its rate ----


@contextlib.asynccontextmanager
async def mirrors(bench: LabBench, *servers: str) -> AsyncIterator[list[Capture]]:
    """What comes to a port called mirror0 of each server, which is not there otherwise."""
    for server in servers:
        add = "ovs-vsctl add-port br0 mirror0 -- set interface mirror0 type=internal"
        await bench.run(server, "sh", "-ec", f"{add}; ip link set mirror0 up")
    try:
        async with bench.captures(*((server, "mirror0", "in") for server in servers)) as found:
            yield found
    finally:
        await bench.cli("vm", "nic", "set", "vm1", "--mirror", "", "--rate", "0")
        for server in servers:
            await bench.run(server, "ovs-vsctl", "--if-exists", "del-port", "br0", "mirror0")


def datagrams(captures: list[Capture], address: str, *, to_vm: bool) -> list[Frame]:
    """Those of UDP that are from the VM, or to it, in all of the captures."""
    return [frame for capture in captures for frame in datagrams_in(capture.frames, address, to_vm=to_vm)]


def datagrams_in(frames: Iterable[Frame], address: str, *, to_vm: bool = True) -> list[Frame]:
    at, its = (30 if to_vm else 26), ip_address(address).packed
    return [
        frame
        for frame in frames
        if frame.ethertype == 0x0800 and frame.data[23] == 17 and frame.data[at : at + 4] == its
    ]


async def test_a_mirror_goes_along_and_has_each_packet_once(bench: LabBench) -> None:
    """At the source until the VM is diverted, at the target from then on, and the VM is none the worse."""
    address = await bench.address("vm1")
    async with mirrors(bench, "server1", "server2") as captures:
        await bench.cli("vm", "nic", "set", "vm1", "--mirror", "mirror0")
        async with bench.traffic(address, pps=500) as traffic:
            await bench.migration("vm1", target_server="server2")
            figures = await bench.unharmed(traffic)
        for capture in captures:
            await capture.settle()
        assert figures.sent > 500
        for to_vm in (True, False):
            seen = Counter(frame.data[42:] for frame in datagrams(captures, address, to_vm=to_vm))
            assert (len(seen), set(seen.values())) == (figures.sent, {1})
        assert [bool(datagrams([one], address, to_vm=True)) for one in captures] == [True, True]
        assert (await bench.vm("vm1"))["nics"][0]["mirror"] == "mirror0"


async def test_a_rate_holds_over_a_migration(bench: LabBench) -> None:
    """The bucket of a meter cannot be read or carried: the target's begins full. A migration costs one burst
    beyond the rate, and not a bit more."""
    address, kbits, burst = await bench.address("vm1"), 100, 1000
    async with mirrors(bench, "server1", "server2") as captures:
        await bench.cli("vm", "nic", "set", "vm1", "--mirror", "mirror0", "--rate", str(kbits))
        async with bench.traffic(address, pps=1500) as traffic:
            before = datagrams(captures, address, to_vm=True)
            await bench.migration("vm1", target_server="server2")
            await eventually(lambda: _has(captures[1], address, 100))
            figures, _ = await traffic.end()
        for capture in captures:
            await capture.settle()
        passed = datagrams(captures, address, to_vm=True)
        seconds = max(f.at for f in passed) - min(f.at for f in passed)
        bits = 8 * sum(len(frame.data) for frame in passed)
    assert before, "it flowed before it went"
    assert 0 < bits <= 1000 * (kbits * seconds + 2 * burst) * 1.05, (bits, seconds)
    assert figures.lost > figures.sent / 4, "more was sent than may pass"


async def _has(capture: Capture, address: str, number: int) -> bool:
    return len(datagrams([capture], address, to_vm=True)) >= number

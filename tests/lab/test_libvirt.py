"""Servers with libvirt: VMs moved by a person's virsh, and by us without loss."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue_lab.errors import LabError
from retinue_lab.network import libvirtd
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import load
from support.lab.losses import lost_spans, overtaken
from support.lab.start import boot, lab_of, running
from support.lab.tools import Json, LabBench, eventually, long

pytestmark = [pytest.mark.lab, pytest.mark.alone]

ONE = "00000000-0000-4000-8000-000000000001"
TWO = "00000000-0000-4000-8000-000000000002"
THREE = "00000000-0000-4000-8000-000000000003"
FOUR = "00000000-0000-4000-8000-000000000004"
SHOP = "10.2.50.1"
VMS: list[Json] = [
    {"id": ONE, "mac": "52:54:00:00:00:01", "server": "server1", "addresses": []},
    {"id": TWO, "mac": "52:54:00:00:00:02", "server": "server3", "addresses": ["10.1.0.50"]},
]
ON_ITS_WAY = 0.1
"""Seconds between the sending of a request and its arrival, at the most, and of a switch's cache: on a busy
machine a request waits for its turn in each switch."""
WRITTEN_MIB, MIB_A_SECOND = 32, 20
MUCH_A_SECOND = 300
COPYING = "migration.copying"
LINE_OF_LIBVIRT = "/run/retinue/server1/libvirt/run"


def missing() -> str:
    """Why these tests cannot run here; "" when they can."""
    try:
        libvirtd.check(load("libvirt"))
    except LabError as error:
        return str(error)
    return ""


def on_host() -> dict[str, set[str]]:
    """All files of libvirt's on this machine."""
    return {str(folder): {str(path) for path in folder.rglob("*")} for folder in libvirtd.FOLDERS.values()}


if reason := missing():
    pytest.skip(reason, allow_module_level=True)
BEFORE = on_host()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    folder = tmp_path_factory.mktemp("labs")
    with lab_of(folder, load("libvirt"), "libvirt") as handle:
        boot(handle, VMS)
        yield handle


def to(bench: LabBench, server: str) -> str:
    """The target as a person names it to virsh."""
    return f"qemu+tcp://{bench.topology.management_addresses[server].ip}/system"


async def virsh(bench: LabBench, server: str, *words: str) -> str:
    return await bench.run(server, "virsh", *words)


async def running_at(bench: LabBench, vm: str) -> list[str]:
    """The servers whose libvirt says that it runs the VM."""
    servers = [server.id for server in bench.topology.server]
    lists = await asyncio.gather(*(virsh(bench, s, "list", "--name", "--state-running") for s in servers))
    return [server for server, names in zip(servers, lists, strict=True) if vm in names.split()]


async def settled(bench: LabBench, vm: str, server: str) -> None:
    """What must hold once a VM is at a server: one binding, one place, entries and port at its edge only."""
    shown = await bench.vm(vm)
    assert (shown["server"], shown["also"], shown["state"]) == (server, [], "running")
    edges = {s.id: s.edge for s in bench.topology.server}
    assert [(b["switch"], b["active"]) for b in await bench.bindings(vm)] == [(edges[server], True)]
    assert await running_at(bench, vm) == [server]
    (address,) = shown["holds"]
    for other, edge in edges.items():
        found = await bench.flows(edge, f"nw_dst={address}", "table=30")
        assert bool(found) == (other == server), f"{edge}: {found}"


async def test_a_registered_vm_waits_paused_for_its_network_and_then_runs(bench: LabBench) -> None:
    await settled(bench, ONE, "server1")
    await settled(bench, TWO, "server3")
    port = await bench.run("server1", "ovs-vsctl", "find", "Interface", f"external_ids:iface-id={ONE}")
    assert "iface-status=active" in port and 'attached-mac="52:54:00:00:00:01"' in port
    assert await bench.ping(ONE, "10.1.0.50")


async def test_a_guest_whose_lease_is_refused_sees_its_link_go_and_come(bench: LabBench) -> None:
    config = await bench.kea("config-get")
    config.pop("hash", None)
    subnet, address = config["Dhcp4"]["subnet4"][0], await bench.address(ONE)
    subnet["reservations"] = [{"hw-address": "52:54:00:aa:aa:aa", "ip-address": address}]
    await bench.kea("config-set", config)
    changes = "cat /sys/class/net/eth0/carrier_changes"
    before = int(await bench.guest(ONE, changes))
    async with bench.events() as events:
        await bench.post(f"vms/{ONE}/renewals", {})
        await events.until("renewal.rejected", lambda e: bool(e["vm"] == ONE))
    await bench.guest(ONE, f"until [ $({changes}) -eq {before + 2} ]; do usleep 20000; done")
    subnet["reservations"] = []
    await bench.kea("config-set", config)


async def test_a_persons_virsh_moves_the_vm_and_the_network_follows(bench: LabBench) -> None:
    """Nobody told us: a migration with all its steps, made of what libvirt says. What the VM had not read
    comes to it later, but for the one packet that its QEMU still took; and what the source's edge forwards at
    that moment may be overtaken by what takes the direct way."""
    pps, (leased,) = 500, await bench.bindings(ONE)
    async with bench.events() as events:
        async with bench.traffic(await bench.address(ONE), pps=pps) as echoes:
            await virsh(bench, "server1", "migrate", "--live", ONE, to(bench, "server2"))
            last = await events.until(
                "migration.step", lambda e: e["migration"]["state"] in ("done", "undone")
            )
            renewed = await events.until("renewal.acked", lambda e: e["renewal"]["vm"] == ONE)
            traffic, record = await echoes.end()
        states = [e["migration"]["state"] for e in events.of("migration.step")]
        kinds = [(e["server"], e["kind"]) for e in events.of("hypervisor.event")]
    assert last["migration"]["state"] == "done", last["migration"]["reason"]
    assert [s for n, s in enumerate(states) if s not in states[:n] and s != "switching"] == [
        *("planned", "matched", "admitting", "prepared", "copying"),
        *("diverted", "switched", "confirmed", "freed", "done"),
    ]
    assert kinds == [
        ("server2", "incoming"),
        ("server1", "suspended"),
        ("server2", "resumed"),
        ("server1", "departed"),
    ]
    await settled(bench, ONE, "server2")
    assert traffic.duplicated == 0
    # What is lost or overtaken was sent between the VM's last moment at the source and the switches' last.
    migration = await bench.get(f"migrations/{last['migration']['id']}")
    told = next(step["at"] for step in migration["steps"] if step["state"] == "diverted")
    diverted = told + migration["figures"]["diverting_ms"] / 1000
    stopped = migration["stopped_at"]
    harmed = [*lost_spans(record), *((sent, sent, 1) for sent in overtaken(record))]
    assert all(first > stopped - ON_ITS_WAY and end < diverted + ON_ITS_WAY for first, end, _ in harmed), (
        f"stopped {stopped}, diverted {diverted}, lost or overtaken {harmed}"
    )
    assert traffic.lost <= 1, f"lost {traffic.lost}, handed on {migration['figures'].get('handed_on')}"
    # Its lease has been renewed from where it is now, though nobody told of the migration.
    (row,) = await bench.bindings(ONE)
    assert (renewed["renewal"]["server"], renewed["renewal"]["switch"]) == ("server2", "edge2")
    assert row["lease_end"] == renewed["renewal"]["lease_end"] > leased["lease_end"]
    assert (row["ip"], row["confirmed"]) == (leased["ip"], True)


async def test_a_vm_with_two_interfaces_migrates_whole_and_gets_a_third(bench: LabBench) -> None:
    """Known by the ids of its interfaces; nothing to either is lost, and the third is found by the guest."""
    nics = [{"mac": "52:54:00:00:03:01"}, {"mac": "52:54:00:00:03:02"}]
    async with bench.events() as events:
        await bench.post("vms", {"id": THREE, "server": "server1", "nics": nics})
        await running(bench, events, THREE)

    async def both_hold() -> bool:
        return len((await bench.vm(THREE))["holds"]) == 2

    await eventually(both_hold)
    addresses = [nic["holds"][0] for nic in (await bench.vm(THREE))["nics"]]
    for number, address in enumerate(addresses):
        await bench.guest(
            THREE, f"until ip -4 addr show dev eth{number} | grep -q {address}/; do usleep 20000; done"
        )
    async with bench.traffic(addresses[0]) as to_first, bench.traffic(addresses[1]) as to_second:
        await bench.migration(THREE, target_server="server2")
        for traffic in (to_first, to_second):
            await bench.unharmed(traffic)
    assert await running_at(bench, THREE) == ["server2"]
    await bench.cli("vm", "nic", "add", THREE, "--mac", "52:54:00:00:03:03")
    await bench.guest(THREE, "until [ -e /sys/class/net/eth2 ]; do usleep 20000; done")
    second = (await bench.vm(THREE))["nics"][1]["id"]
    await bench.cli("vm", "nic", "remove", THREE, second)
    await bench.guest(THREE, "while [ -e /sys/class/net/eth1 ]; do usleep 20000; done")
    await bench.request("DELETE", f"vms/{THREE}")


@pytest.mark.long
async def test_a_guests_vlans_come_with_it(bench: LabBench) -> None:
    """QEMU 7.2 would forget which ones its guest wants; the cards of our domains let all in."""
    await bench.post("vnets", [{"id": "shop", "vlan": 50}])
    shop = {"id": "shop1", "prefix": "10.2.50.0/24", "gateway": "10.2.50.254", "vnet": "shop"}
    await bench.post("subnets", [shop])
    carrier = {"mac": "52:54:00:00:04:01", "addresses": ["10.1.0.60"]}
    carried = {"mac": "52:54:00:00:04:02", "trunk": FOUR, "vnet": "shop", "addresses": [SHOP]}
    async with bench.events() as events:
        await bench.post("vms", {"id": FOUR, "server": "server1", "nics": [carrier, carried]})
        await running(bench, events, FOUR)
    await bench.guest(FOUR, f"vlan-nic eth0 50 {carried['mac']} {SHOP}/24,10.2.50.254")
    for target in ("server2", "server1"):
        assert await bench.ping(FOUR, f"-I {SHOP} 10.2.50.254"), "by its VLAN"
        await bench.migration(FOUR, target_server=target)
    assert await bench.ping(FOUR, f"-I {SHOP} 10.2.50.254"), "by its VLAN"
    for what in (f"vms/{FOUR}", "subnets/shop1", "vnets/shop"):
        await bench.request("DELETE", what)


async def test_the_vm_comes_back_and_may_go_on_at_once(bench: LabBench) -> None:
    for source, target in (("server2", "server3"), ("server3", "server1")):
        async with bench.events() as events:
            await virsh(bench, source, "migrate", "--live", ONE, to(bench, target))
            await events.until("migration.step", lambda e: e["migration"]["state"] == "done")
        await settled(bench, ONE, target)
        assert await bench.ping(ONE, "10.1.0.50")


@pytest.mark.parametrize("who", [long("a person"), "the manager"])
async def test_a_move_by_virsh_that_is_called_off_changes_nothing(bench: LabBench, who: str) -> None:
    before = await bench.flows("edge1")
    async with bench.events() as events:
        moving = asyncio.create_task(
            virsh(bench, "server1", "migrate", "--live", "--bandwidth", "1", ONE, to(bench, "server2"))
        )
        step = await events.until("migration.step", lambda e: e["migration"]["state"] == "copying")
        if who == "a person":
            await virsh(bench, "server1", "domjobabort", ONE)
        else:
            await bench.post(f"migrations/{step['migration']['id']}/cancel")
        with pytest.raises(AssertionError, match="error: "):  # Of the end that it heard first.
            await moving
        ended = await events.until("migration.step", lambda e: e["migration"]["state"] == "undone")
    assert ("server2" if who == "a person" else "cancelled") in ended["migration"]["reason"]
    await settled(bench, ONE, "server1")
    assert len(await bench.flows("edge1")) == len(before)


async def test_our_own_move_through_libvirt_loses_nothing(bench: LabBench) -> None:
    """Nothing is lost with libvirt either: memory is held back until the VM's traffic is at the target."""
    async with bench.traffic(await bench.address(ONE), pps=500) as echoes:
        await bench.migration(ONE, target_server="server2")
        traffic, _ = await echoes.end()
    assert (traffic.lost, traffic.duplicated, traffic.reordered) == (0, 0, 0)
    await settled(bench, ONE, "server2")
    await bench.migration(ONE, target_server="server1")
    await settled(bench, ONE, "server1")


@pytest.mark.long
async def test_the_memory_of_a_vm_that_writes_goes_over_whole_in_as_many_passes_as_the_wanted_pause_takes(
    bench: LabBench,
) -> None:
    """Each page is compared by the guest that has written it, and no packet of its is lost."""
    await bench.guest(ONE, f"scribble {WRITTEN_MIB} {MIB_A_SECOND} /tmp/scribbled >/dev/null 2>&1 &")
    await bench.guest(ONE, "until [ -f /tmp/scribbled ]; do usleep 20000; done")
    passes = {}
    async with bench.traffic(await bench.address(ONE), pps=500) as echoes, bench.events() as events:
        for target, wanted in (("server2", 0), ("server1", 60_000)):
            told = await bench.migration(ONE, target_server=target, downtime_ms=wanted)
            passes[wanted] = told["figures"]["passes"]
            pause = (told["resumed_at"] - told["stopped_at"]) * 1000
            print(f"{wanted} ms wanted: {passes[wanted]} passes, {pause:.0f} ms", file=sys.stderr)
        copies = [(e["copy_pass"], e["remaining"], e["written_a_second"]) for e in events.of(COPYING)]
        figures = await bench.unharmed(echoes)
    assert figures.reordered == 0
    assert passes[0] > passes[60_000] == 2
    assert max(number for number, _, _ in copies) == passes[0]
    assert all(left > 0 and (written > 0) == (number > 1) for number, left, written in copies)
    await whole(bench, ONE)
    for server in ("server1", "server2"):
        log = (bench.lab.directory / "logs" / f"{server}-agent.log").read_text()
        assert "migration.paused_before_diverted" not in log
        assert "migration.stream_not_seen" not in log


@pytest.mark.long
async def test_a_vm_that_never_stops_writing_moves_by_postcopy_and_lacks_nothing(bench: LabBench) -> None:
    """libvirt runs it at its target with much of its memory still to come; its traffic is there before."""
    command = f"scribble {WRITTEN_MIB} {MUCH_A_SECOND} /tmp/scribbled >/dev/null 2>&1 &"
    await bench.guest(ONE, command)
    await bench.guest(ONE, "until [ -f /tmp/scribbled ]; do usleep 20000; done")
    async with bench.traffic(await bench.address(ONE), pps=100) as echoes, bench.events() as events:
        for target in ("server2", "server1"):
            told = await bench.migration(ONE, target_server=target, postcopy="required", downtime_ms=0)
            pause = (told["resumed_at"] - told["stopped_at"]) * 1000
            print(f"post-copy: pause {pause:.0f} ms, passes {told['figures']['passes']}", file=sys.stderr)
            assert told["figures"]["postcopy_remaining"] == 0
        assert sum(event["postcopy"] for event in events.of(COPYING)) >= 2
        figures = await bench.unharmed(echoes)
    assert figures.reordered == 0
    await whole(bench, ONE)
    await settled(bench, ONE, "server1")


async def whole(bench: LabBench, vm: str) -> None:
    """Return when the guest has compared and written all of its memory twice since now; then it stops."""
    enough = int(await bench.guest(vm, "cut -d' ' -f4 /tmp/scribbled")) + 2 * WRITTEN_MIB * 256
    await bench.guest(
        vm, f"until [ $(cut -d' ' -f4 /tmp/scribbled) -gt {enough} ]; do usleep 50000; done", timeout=120
    )
    assert (await bench.guest(vm, "cut -d' ' -f6 /tmp/scribbled")).strip() == "0"
    await bench.guest(vm, "killall scribble")


@pytest.mark.long
async def test_a_vm_of_ours_may_be_moved_as_soon_as_it_runs(bench: LabBench) -> None:
    """Its server has told of it by then: a target's word alone would begin nothing."""
    id = "00000000-0000-4000-8000-000000000009"
    async with bench.events() as events:
        vm = {"id": id, "mac": "52:54:00:00:00:09", "server": "server1", "addresses": ["10.1.0.59"]}
        await bench.post("vms", vm)
        await events.until("vm.started", lambda e: e["vm"]["id"] == id)
        await virsh(bench, "server1", "migrate", "--live", id, to(bench, "server2"))
        await events.until(
            "migration.step", lambda e: e["migration"]["state"] == "done" and e["migration"]["vm"] == id
        )
    await bench.request("DELETE", f"vms/{id}")


async def test_a_vm_made_by_a_person_is_known_by_its_interface(bench: LabBench, tmp_path: Path) -> None:
    """No manager registered it: its port and its libvirt tell of it, and a migration of it is followed,
    too."""
    id, name = "00000000-0000-4000-8000-00000000aaaa", "somebodys"
    xml = tmp_path / "vm.xml"
    template = await virsh(bench, "server1", "dumpxml", "--migratable", ONE)
    xml.write_text(
        template.replace(f"<name>{ONE}</name>", f"<name>{name}</name>")
        .replace(ONE, id)
        .replace("52:54:00:00:00:01", "52:54:00:00:aa:aa")
        .replace("tap-", "tapx")
    )
    async with bench.events() as events:
        await virsh(bench, "server1", "create", str(xml))
        await events.until("vm.reported", lambda e: e["vm"]["id"] == id)
        await events.until("vm.started", lambda e: e["vm"]["id"] == id)
        await virsh(bench, "server1", "migrate", "--live", name, to(bench, "server2"))
        await events.until(
            "migration.step", lambda e: e["migration"]["state"] == "done" and e["migration"]["vm"] == id
        )
        assert (await bench.vm(id))["server"] == "server2"
        await bench.migration(id, target_server="server1")  # By us, though it is not ours.
        await virsh(bench, "server1", "destroy", name)
        await events.until("vm.removed", lambda e: e["vm"]["id"] == id)


async def test_the_vlan_that_a_domain_names_is_that_of_a_vnet_or_it_is_refused(
    bench: LabBench, tmp_path: Path
) -> None:
    """libvirt writes `<vlan>` on the port; nobody has registered the VM, so its NIC is in that vnet."""
    id, name = "00000000-0000-4000-8000-00000000bbbb", "tagged"
    xml = tmp_path / "vm.xml"
    template = await virsh(bench, "server1", "dumpxml", "--migratable", ONE)
    xml.write_text(
        template.replace(f"<name>{ONE}</name>", f"<name>{name}</name>")
        .replace(ONE, id)
        .replace("52:54:00:00:00:01", "52:54:00:00:bb:bb")
        .replace("tap-", "tapy")
        .replace("</interface>", "<vlan><tag id='42'/></vlan></interface>")
    )
    async with bench.events() as events:
        await virsh(bench, "server1", "create", str(xml))
        refused = await events.until("vm.mismatch", lambda e: e["vm"] == id)
        assert "its VLAN tag is 42, which is no vnet's" in refused["reason"]
        assert id not in {vm["id"] for vm in (await bench.get("vms"))["vms"]}
        await bench.cli("vnet", "add", "shop", "--vlan", "42")
        await events.until("vm.reported", lambda e: e["vm"]["id"] == id)
        assert (await bench.vm(id))["nics"][0]["vnet"] == "shop"
        await virsh(bench, "server1", "destroy", name)
        await events.until("vm.removed", lambda e: e["vm"]["id"] == id)
        await bench.cli("vnet", "remove", "shop")


async def start_agent(bench: LabBench, server: str) -> None:
    config = bench.lab.directory / "agents" / server / "agent.toml"
    argv = [sys.executable, "-m", "retinue.cli.main", "agent", "run", "--config", str(config)]
    await asyncio.to_thread(bench.lab.spawn, server, argv, log=f"{server}-agent", ready=True)


async def test_agents_that_were_away_find_the_move_nobody_told_of(bench: LabBench) -> None:
    """And the source's does not start the VM that it misses a second time."""
    for server in ("server1", "server2"):
        bench.kill(f"{server}-agent")
    async with bench.events() as events:
        await virsh(bench, "server1", "migrate", "--live", ONE, to(bench, "server2"))
        await start_agent(bench, "server1")
        assert (await bench.vm(ONE))["server"] == "server1", "nobody has told"
        assert await running_at(bench, ONE) == ["server2"]
        await start_agent(bench, "server2")
        await events.until("migration.step", lambda e: e["migration"]["state"] == "done")
    await settled(bench, ONE, "server2")
    await bench.migration(ONE, target_server="server1")


@pytest.mark.parametrize("what", [long("cancel"), "server1-agent", long("server2-agent")])
async def test_a_move_of_ours_that_comes_to_nothing(bench: LabBench, what: str) -> None:
    """Its traffic is turned to the target already; it is cancelled, or an agent dies: the VM runs on."""
    uptime = float(await bench.guest(ONE, "cut -d' ' -f1 /proc/uptime"))
    async with bench.events() as events:
        migration = await bench.post("migrations", {"vm": ONE, "target_server": "server2"})

        async def reaches(state: str) -> None:
            await events.until(
                "migration.step",
                lambda e: e["migration"]["id"] == migration["id"] and e["migration"]["state"] == state,
            )

        await reaches("copying")
        # The leaves do not confirm; the target's own switch its agent has asked, or may yet.
        bench.kill("fabric-vswitchd", signal.SIGSTOP)
        await reaches("diverted")
        try:
            if what == "cancel":
                await bench.post(f"migrations/{migration['id']}/cancel")
            else:
                bench.kill(what)
        finally:
            bench.kill("fabric-vswitchd", signal.SIGCONT)
        if what != "cancel":
            await start_agent(bench, what.removesuffix("-agent"))
        await reaches("undone")
    await settled(bench, ONE, "server1")
    assert float(await bench.guest(ONE, "cut -d' ' -f1 /proc/uptime")) > uptime


@pytest.mark.long
async def test_the_vm_of_a_dead_server_goes_on_at_another(bench: LabBench) -> None:
    """Server3 hangs and comes back, its VM running all the time: it is shut out until a person has ended
    that."""
    id, address = "00000000-0000-4000-8000-000000000008", "10.1.0.58"
    vm = {"id": id, "mac": "52:54:00:00:00:08", "server": "server3", "addresses": [address]}

    async def answers() -> bool:
        said = await bench.run("client", "sh", "-c", f"ping -c 1 -W 1 {address} || true")
        return " 0% packet loss" in said

    async with bench.events() as events:
        await bench.post("vms", vm)
        await events.until("vm.started", lambda e: (e["vm"]["id"], e["server"]) == (id, "server3"))
        await eventually(answers)
        running = {one.name: one.host_pid or 0 for one in bench.lab.daemons() if one.running}
        hanging = [pid for name, pid in running.items() if name.startswith("server3-")]
        assert {"server3-agent", "server3-vswitchd", "server3-libvirtd"} <= running.keys()
        for pid in hanging:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert not await answers()
            await bench.cli("server", "fence", "server3")
            await bench.post("vms", vm | {"server": "server2"})
            await events.until("vm.started", lambda e: (e["vm"]["id"], e["server"]) == (id, "server2"))
            await eventually(answers)
        finally:
            for pid in hanging:
                os.kill(pid, signal.SIGCONT)

        async with bench.traffic(address) as echoes:

            async def still_there() -> bool:
                said = await bench.cli("server", "unfence", "server3", fails=None)
                return f"{id} still has a port on switch edge3" in said

            await eventually(still_there)
            assert await running_at(bench, id) == ["server2", "server3"]
            await virsh(bench, "server3", "destroy", id)

            async def in_order() -> bool:
                return "no longer fenced" in await bench.cli("server", "unfence", "server3", fails=None)

            await eventually(in_order)
            await bench.unharmed(echoes)
    await settled(bench, id, "server2")
    await bench.migration(id, target_server="server3")
    await settled(bench, id, "server3")
    await bench.request("DELETE", f"vms/{id}")


async def test_nothing_of_libvirt_is_left_on_the_host(lab: LabHandle, bench: LabBench) -> None:
    """Each libvirtd writes to folders of its own: those of the host stay as they were."""
    assert on_host() == BEFORE
    assert not Path(LINE_OF_LIBVIRT).exists()
    seen = await bench.run("server1", "ls", LINE_OF_LIBVIRT)
    assert "libvirt-sock" in seen

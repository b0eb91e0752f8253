"""Servers with two uplinks on a running fabric: found, left when they fail, used again; and what waits."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.controller.api.views import links, mac_table
from retinue.core.link_watch import LinkLimits
from retinue.core.model import PortRef, VMPort
from retinue.core.model.network import Owner
from retinue.core.packets import arp_reply, arp_request, parse, parse_arp
from retinue.core.packets.lldp import Lldp, lldp_frame
from retinue.core.pipeline.entry import PortNo
from retinue.southbound.openflow.codec.messages import PortDesc, PortStatus
from retinue.southbound.openflow.codec.wire import PortReason
from support.fabric.networks import (
    GATEWAY_MAC,
    INFRA_GATEWAY,
    SECOND_UPLINK,
    UPLINK,
    add_uplink,
    add_vm,
    fabric,
    leaf_port,
    second_leaf_port,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.fakes.switch import FakeSwitch
from support.recent_events import recent

HOLD = 10.0


class Bench:
    """Three leaves, two spines; server1 is at leaf1 and leaf2, server2 at leaf2, the router at leaf3."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store, self.now = store or MemoryStore(), 1000.0
        net = fabric(3, 2, (1, 2))
        for number in (1, 2):
            add_vm(net, number, number)
        add_uplink(net, 1, 2)
        self.fake = FakeNetwork(net, lambda: self.now, self.store, link_limits=LinkLimits(hold=HOLD))
        net.uplink_places.clear()  # The cables are there; where they lead is to be found.
        net.in_use.clear()
        net.detected.pop("server1")
        self.net, self.controller = net, self.fake.controller

    async def start(self) -> None:
        await self.fake.start()
        await self.seconds(2)

    async def seconds(self, count: int, *, probes: bool = True) -> None:
        for _ in range(count):
            self.now += 1.0
            self.controller.uplinks.tick()
            await self.fake.settle()
            for _ in range(3 if probes else 0):
                for send in self.controller.link_probes.begin():
                    send()
                self.controller.link_probes.end(0.33)
                await self.fake.settle()

    def port(self, switch: str, name: str, *, up: bool) -> None:
        session = self.fake.sessions[switch]
        session.down = session.down - {name} if up else session.down | {name}
        self.status(switch, name, PortReason.MODIFY, down=not up)

    def status(self, switch: str, name: str, reason: PortReason, *, down: bool = False) -> None:
        session = self.fake.sessions[switch]
        port = PortDesc(session.ports[name], name, bytes(6), 0, int(down))
        self.controller.port_status(session, PortStatus(0, reason, port))  # type: ignore[arg-type]

    def cut(self, switch: str, port: int) -> None:
        """What this port sends vanishes."""
        self.fake.fabric.add("nowhere")
        self.fake.fabric.cables[switch, port] = ("nowhere", 0)

    def plug(self, one: tuple[str, int], other: tuple[str, int]) -> None:
        self.fake.fabric.cables[one], self.fake.fabric.cables[other] = other, one

    def comes_from_outside(self) -> list[str]:
        """Which leaf brings a packet to vm1; it comes once."""
        router = self.net.servers["router"]
        frame = udp_frame(router.mac, GATEWAY_MAC, OUTSIDE, vm_ip(1))
        found = []
        for delivery in self.fake.fabric.all_paths("leaf3", 91, frame):
            assert [(switch, port) for switch, port, _ in delivery.arrivals] == [("edge1", vm_port(1))]
            found.append(delivery.hops[-2].switch)
        return sorted(set(found))

    def goes_outside(self) -> list[str]:
        """By which leaf a packet of vm1 goes; it comes once."""
        found = []
        frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE)
        for delivery in self.fake.fabric.all_paths("edge1", vm_port(1), frame):
            assert [(switch, port) for switch, port, _ in delivery.arrivals] == [("leaf3", 91)]
            found.append(delivery.hops[1].switch)
        return sorted(set(found))

    def goes_by(self, leaf: str) -> bool:
        return self.comes_from_outside() == self.goes_outside() == [leaf]

    def told(self, kind: str) -> list[dict[str, object]]:
        return [event.data for event in recent(self.controller.events, kind, 100)]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await made.start()
    yield made
    await made.fake.stop()


async def test_where_uplinks_lead_is_found_and_the_first_is_used(bench: Bench) -> None:
    assert {str(uplink): str(at) for uplink, at in bench.net.uplink_places.items()} == {
        "edge1:up0": "leaf1:p1", "edge1:up1": "leaf2:q1",
    }  # fmt: skip
    assert bench.goes_by("leaf1")
    assert str(bench.net.location("server1")) == "leaf1:p1"
    used = bench.told("uplink.used")[-1]
    assert (used["server"], used["uplink"], used["location"]) == ("server1", "edge1:up0", "leaf1:p1")
    kept = bench.store.load()
    assert {str(one.uplink) for one in kept.uplink_places} == {"edge1:up0", "edge1:up1"}
    assert [(one.edge, one.uplink) for one in kept.uplinks_in_use] == [("edge1", "up0")]


async def test_the_mac_table_has_the_shared_mac_at_the_uplink_in_use(bench: Bench) -> None:
    assert [row["port"] for row in mac_table(bench.controller, "edge1") if row["shared"]] == [UPLINK]
    bench.port("edge1", "up0", up=False)
    await bench.fake.settle()
    assert [row["port"] for row in mac_table(bench.controller, "edge1") if row["shared"]] == [SECOND_UPLINK]


@pytest.mark.parametrize("end", ["edge1:up0", "leaf1:p1"])
async def test_a_port_that_goes_down_at_either_end_is_left_at_once(bench: Bench, end: str) -> None:
    switch, _, name = end.partition(":")
    bench.cut("edge1", UPLINK)
    bench.cut("leaf1", leaf_port(1))
    bench.port(switch, name, up=False)
    await bench.fake.settle()
    assert bench.goes_by("leaf2")
    bench.plug(("edge1", UPLINK), ("leaf1", leaf_port(1)))
    bench.port(switch, name, up=True)
    await bench.seconds(int(HOLD) - 1)
    assert bench.goes_by("leaf2"), "it has to be well for a while"
    await bench.seconds(2)
    assert bench.goes_by("leaf1")


@pytest.mark.parametrize("first", ["up0", "up1"])
async def test_both_fail_at_once_and_come_back_in_either_order(bench: Bench, first: str) -> None:
    """Nothing is to be had meanwhile; then it goes by what is back, and in the end by the preferred."""
    for name in ("up0", "up1"):
        bench.port("edge1", name, up=False)
    await bench.seconds(3, probes=False)
    bench.port("edge1", first, up=True)
    await bench.seconds(2)
    assert bench.goes_by("leaf1" if first == "up0" else "leaf2")
    bench.port("edge1", "up1" if first == "up0" else "up0", up=True)
    await bench.seconds(50)
    assert bench.goes_by("leaf1")


@pytest.mark.parametrize("ends", [(("edge1", UPLINK),), (("leaf1", leaf_port(1)),)], ids=["up", "down"])
async def test_what_vanishes_silently_is_found_by_probes(
    bench: Bench, ends: tuple[tuple[str, int], ...]
) -> None:
    await bench.seconds(2)
    for switch, port in ends:
        bench.cut(switch, port)
    await bench.seconds(1)
    assert bench.goes_by("leaf2"), "three rounds are enough"
    (lost,) = bench.told("link.lost")
    assert (lost["lower"], lost["upper"]) == ("edge1:up0", "leaf1:p1")
    row = next(row for row in links(bench.controller) if row["lower"] == "edge1:up0")
    assert (row["state"], row["carries"]) == ("lost", False)


async def test_a_leaf_whose_tables_are_gone_is_left(bench: Bench) -> None:
    await bench.seconds(2)
    bench.fake.fabric.switches["leaf1"] = FakeSwitch("leaf1")
    await bench.seconds(1)
    assert bench.goes_by("leaf2")


async def test_a_leaf_that_has_no_way_up_any_more_is_left(bench: Bench) -> None:
    for spine in (1, 2):
        bench.cut(f"spine{spine}", 1)
        bench.cut("leaf1", spine)
        bench.port("leaf1", f"s{spine}", up=False)
    await bench.fake.settle()
    assert bench.goes_by("leaf2")


async def test_a_dead_leaf_holds_up_no_migration_and_no_new_vm(bench: Bench) -> None:
    """Its session is over, too; it is corrected when it is back, before it is used again."""
    bench.cut("edge1", UPLINK)
    bench.cut("leaf1", leaf_port(1))
    bench.port("edge1", "up0", up=False)
    bench.fake.sessions["leaf1"].close("dead")
    await bench.fake.settle()
    add_vm(bench.net, 3, 1)
    await bench.controller.context.install([Owner("vm", "vm3")])
    assert bench.controller.context.is_programmed(Owner("vm", "vm3"))
    assert bench.controller.context.spared(bench.net.switches, ["server1"]) == {"leaf1"}
    # From a server with one uplink elsewhere to this one, as the steps of a migration place it.
    vm = bench.net.vms["vm2"]
    bench.net.set_vm_port("vm2", "edge1", VMPort(vm_port(2)))
    touched = bench.net.put_vm(replace(vm, server="server1"))
    context, both = bench.controller.context, ("server1", "server2")
    await context.install(touched, [], lambda switch: not context.spared([switch], both))
    assert bench.controller.context.is_programmed(Owner("vm", "vm2"))
    bench.plug(("edge1", UPLINK), ("leaf1", leaf_port(1)))
    bench.port("edge1", "up0", up=True)
    await bench.seconds(20)
    assert bench.goes_by("leaf2"), "its leaf is not connected"
    bench.fake.connect("leaf1")
    await bench.fake.settle()
    await bench.seconds(40)
    assert bench.goes_by("leaf1")


async def test_an_uplink_that_is_plugged_into_another_leaf_is_found_there(bench: Bench) -> None:
    await bench.seconds(2)
    bench.fake.sessions["leaf3"].ports["x1"] = 301
    bench.status("leaf3", "x1", PortReason.ADD)
    await bench.fake.settle()
    bench.cut("leaf2", second_leaf_port(1))
    bench.plug(("edge1", SECOND_UPLINK), ("leaf3", 301))
    await bench.seconds(3)
    assert str(bench.net.uplink_places[PortRef("edge1", "up1")]) == "leaf3:x1"
    assert bench.goes_by("leaf1")


async def test_nobody_else_says_where_it_is(bench: Bench) -> None:
    """ARP in its name from another server's port, or from a free one, tells nothing."""
    bench.controller.arp.locations.silence = 0.0
    bench.fake.sessions["leaf2"].ports["x1"] = 301
    bench.status("leaf2", "x1", PortReason.ADD)
    server = bench.net.servers["server1"]
    assert isinstance(server.address, IPv4Address)
    forged = arp_request(server.mac, server.address, INFRA_GATEWAY)
    before = dict(bench.net.uplink_places), bench.net.location("server1")
    for port in (leaf_port(2), 301):
        bench.fake.send("leaf2", port, forged)
        await bench.seconds(3)
    assert (dict(bench.net.uplink_places), bench.net.location("server1")) == before
    assert bench.goes_by("leaf1")


async def test_a_controller_that_begins_anew_goes_on_with_the_one_in_use() -> None:
    bench = Bench()
    await bench.start()
    bench.port("edge1", "up0", up=False)
    await bench.seconds(1)
    assert bench.net.in_use == {"edge1": "up1"}
    await bench.fake.stop()
    again = Bench(bench.store)
    again.controller.restore(bench.store.load())
    assert again.net.in_use == {"edge1": "up1"}
    assert str(again.net.location("server1")) == "leaf2:q1"
    await again.fake.start()
    await again.seconds(2)
    assert again.net.in_use == {"edge1": "up1"}, "it had been left: it has to be well for a while"
    await again.fake.stop()


@pytest.mark.parametrize("gone", ["server", "uplink"])
async def test_places_of_what_is_not_in_the_configuration_any_more_are_forgotten(
    bench: Bench, gone: str
) -> None:
    """Else they would be read, and left out, at each start for ever."""
    bench.cut("edge1", UPLINK)
    await bench.seconds(5)
    before = bench.store.load()
    assert (len(before.uplink_places), len(before.uplinks_in_use), len(before.lost_links)) == (2, 1, 1)
    again = Bench(bench.store)
    if gone == "server":
        again.net.remove_vm("vm1")
        again.net.remove_server("server1")
        del again.net.switches["edge1"]
    else:
        again.net.add_switch(replace(again.net.switches["edge1"], standby=()))
    again.controller.restore(replace(before, vms=[], assignments=[]))
    kept = again.store.load()
    assert (kept.uplink_places, kept.uplinks_in_use, kept.lost_links) == ([], [], [])
    assert "server1" not in {one.server for one in kept.locations}


@pytest.mark.parametrize("what", ["edge", "uplink", "leaf"])
async def test_places_of_what_is_removed_while_all_runs_are_forgotten(bench: Bench, what: str) -> None:
    """Else a place at a leaf that is no more is the server's again, and the list of links is none."""
    bench.cut("edge1", SECOND_UPLINK)
    await bench.seconds(5)
    assert set(bench.net.lost_links) == {PortRef("edge1", "up1")}
    net, given = bench.net, bench.net.servers["server1"]
    net.remove_vm("vm1")
    net.remove_vm("vm2")
    for id in ("server1", "server2"):
        net.put_server(replace(net.servers[id], edge="" if id == "server1" else "edge2"))
        net.remove_server(id)
    bench.controller.fabric._still_coming = 0.0
    for stays in ("edge1", "leaf2"):
        await bench.controller.fabric.set_switch(net.switches[stays])
    assert len(net.uplink_places) == len(bench.store.load().uplink_places) == 2
    if what == "edge":
        await bench.controller.fabric.remove_switch("edge1")
    elif what == "uplink":
        await bench.controller.fabric.set_switch(replace(net.switches["edge1"], standby=()))
    else:
        for link in [one for one in net.links if one.lower.switch == "leaf2"]:
            await bench.controller.fabric.remove_link(link.lower)
        await bench.controller.fabric.remove_switch("leaf2")
        net.put_server(given)
    left = {str(uplink) for uplink in net.uplink_places}
    assert left == ({"edge1:up0"} if what == "leaf" else set())
    assert {str(one.uplink) for one in bench.store.load().uplink_places} == left
    assert (net.lost_links, bench.store.load().lost_links) == ({}, [])
    assert bool(net.in_use) is bool(bench.store.load().uplinks_in_use) is (what == "leaf")
    assert {row["lower"] for row in links(bench.controller)} >= left
    bench.controller.uplinks.tick()
    for one in ("edge1", "leaf2"):
        bench.fake.sessions.pop(one, None)


async def test_a_server_that_repeats_its_frame_at_other_leaves_moves_nothing(bench: Bench) -> None:
    """Each time all of its entries would be computed and sent, and its place stored."""
    for leaf in ("leaf1", "leaf2", "leaf3"):
        bench.fake.sessions[leaf].ports["x1"] = 301
        bench.status(leaf, "x1", PortReason.ADD)
    await bench.fake.settle()
    bench.cut("edge1", SECOND_UPLINK)
    await bench.seconds(2)
    bench.now += 1.0
    bench.controller.uplinks.tick()
    (frame,) = [one for one, sent in bench.controller.uplinks._sent.items() if sent.at == bench.now]
    told = len(bench.told("uplink.found"))
    for _ in range(5):
        for leaf in ("leaf3", "leaf2"):
            bench.fake.send(leaf, 301, frame)
    await bench.fake.settle()
    assert str(bench.net.uplink_places[PortRef("edge1", "up1")]) == "leaf3:x1"
    assert len(bench.told("uplink.found")) == told + 1


async def test_both_cables_of_a_server_change_leaves_and_it_goes_on(bench: Bench) -> None:
    await bench.seconds(2)
    bench.plug(("edge1", UPLINK), ("leaf2", second_leaf_port(1)))
    bench.plug(("edge1", SECOND_UPLINK), ("leaf1", leaf_port(1)))
    await bench.seconds(5)
    assert {str(uplink): str(at) for uplink, at in bench.net.uplink_places.items()} == {
        "edge1:up0": "leaf2:q1", "edge1:up1": "leaf1:p1",
    }  # fmt: skip
    kept = {(str(one.uplink), str(one.at)) for one in bench.store.load().uplink_places}
    assert kept == {("edge1:up0", "leaf2:q1"), ("edge1:up1", "leaf1:p1")}
    assert bench.goes_by("leaf1")
    await bench.seconds(50)
    assert not bench.net.lost_links
    assert bench.goes_by("leaf2"), "by the preferred one"


async def test_a_server_that_is_fenced_is_shut_out_where_its_uplink_is_found_later(bench: Bench) -> None:
    bench.cut("edge1", SECOND_UPLINK)
    await bench.seconds(2)
    bench.fake.sessions["leaf3"].ports["x1"] = 301
    bench.status("leaf3", "x1", PortReason.ADD)
    await bench.controller.context.install(bench.net.fence("server1"))
    bench.plug(("edge1", SECOND_UPLINK), ("leaf3", 301))
    await bench.seconds(3)
    frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE)
    for delivery in bench.fake.fabric.all_paths("leaf3", 301, frame):
        assert not delivery.arrivals


async def test_what_was_probed_where_an_uplink_is_no_more_says_nothing(bench: Bench) -> None:
    """It is found elsewhere while a round is under way."""
    bench.cut("edge1", SECOND_UPLINK)
    await bench.seconds(0)
    for number in range(3):
        for send in bench.controller.link_probes.begin():
            send()
        if number == 2:
            touched = bench.net.find_uplink(PortRef("edge1", "up1"), PortRef("leaf3", "x9"))
            await bench.controller.context.install(touched)
        await bench.fake.settle()
        bench.controller.link_probes.end(0.33)
    assert PortRef("edge1", "up1") not in bench.net.lost_links


SERVER, NIC_MAC = "server1", "02:00:00:00:00:77"


async def says(bench: Bench, leaf: str, port: int, chassis: str) -> None:
    """LLDP as a server's NIC sends it, by that NIC's MAC; until it is decided what becomes of it."""
    bench.now += 2.0
    frame = lldp_frame(Lldp(b"\x07" + chassis.encode(), b"\x07eno1", 120), NIC_MAC)
    bench.fake.send(leaf, port, frame)
    tasks = bench.controller.context._tasks
    await asyncio.gather(*(task for task in tasks if task.get_name().startswith("MAC of server")))
    await bench.fake.settle()


async def with_chassis(bench: Bench, server: str) -> None:
    bench.controller.arp.locations.silence = 0.02
    await bench.controller.inventory.put_servers([replace(bench.net.servers[server], chassis=server)])


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("used", ["up0", "up1"])
async def test_lldp_of_its_nics_does_not_change_the_mac_of_a_server_that_answers(
    bench: Bench, used: str, answers: bool
) -> None:
    """By whichever uplink: each NIC has a MAC of its own, and the server's is that of the bridge."""
    await with_chassis(bench, SERVER)
    await bench.controller.context.install(bench.net.use_uplink("edge1", used))
    known = bench.net.servers[SERVER]

    def heard(frame: bytes) -> None:
        question = parse_arp(parse(frame).payload)
        if answers and parse(frame).dst == known.mac:
            bench.fake.send("edge1", PortNo.LOCAL, arp_reply(question, known.mac))

    bench.fake.hosts["edge1", PortNo.LOCAL] = heard
    for leaf, port in (("leaf1", leaf_port(1)), ("leaf2", second_leaf_port(1))):
        await says(bench, leaf, port, SERVER)
        assert bench.net.servers[SERVER].mac == (known.mac if answers else NIC_MAC)
        await bench.controller.inventory.put_servers([known])
    assert not bench.told("server.conflict")


async def test_at_no_port_of_its_uplinks_a_server_speaks_for_one_that_is_missing(bench: Bench) -> None:
    """Nor does anybody for one with several uplinks, where none of these is known to lead."""
    await with_chassis(bench, "server2")
    before, _ = bench.net.servers["server2"].mac, bench.net.detected.pop("server2")
    for leaf, port in (("leaf1", leaf_port(1)), ("leaf2", second_leaf_port(1))):
        await says(bench, leaf, port, "server2")
        assert bench.net.servers["server2"].mac == before
    await with_chassis(bench, SERVER)
    before = bench.net.servers[SERVER].mac
    bench.net.uplink_places.clear()
    del bench.net.detected[SERVER]
    await says(bench, "leaf2", leaf_port(2), SERVER)
    assert bench.net.servers[SERVER].mac == before
    assert len(bench.told("server.conflict")) == 3

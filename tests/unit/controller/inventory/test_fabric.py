"""Switches and links given while all runs: used when both ends are in place, gone when nobody sends by it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from retinue.controller.api.views import links as shown_links
from retinue.controller.app import Controller
from retinue.controller.changes import MigrationStepped, ServerRegistered
from retinue.controller.errors import RequestError
from retinue.controller.kinds import restore
from retinue.controller.marks import PortLeft
from retinue.controller.state import LeftPort, TakenOut
from retinue.core.link_watch import LinkLimits
from retinue.core.migration import Migration, MigrationState
from retinue.core.model import Link, ModelError, Network, Peer, PortRef, Role, Switch, VMPort
from retinue.core.model.network import Owner
from retinue.core.pipeline.underlay import underlay_of
from retinue.protocol.errors import ErrorCode
from support.fabric import growing
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork, FakeSession
from support.recent_events import recent

SPINE = Switch("spine9", Role.SPINE, 0x59)
LINKS = [growing.joined(leaf, "spine9") for leaf in ("leaf1", "leaf2")]
PORTS = {"to-leaf1": 41, "to-leaf2": 42}
TWO, THREE = {"leaf1": 2, "leaf2": 2}, {"leaf1": 3, "leaf2": 3}


class Bench:
    """Two leaves, two spines, and the cables of a third that nobody has given yet."""

    def __init__(self) -> None:
        net = fabric()
        for number in (1, 2):
            add_vm(net, number, number)
        for leaf in ("leaf1", "leaf2"):
            net.set_ports(leaf, {**net._numbers[leaf], "to-spine9": 49})
        self.net, self.store = net, MemoryStore()
        limits = LinkLimits(hold=0.0, hold_rounds=1)
        self.fake = FakeNetwork(net, lambda: 1000.0, self.store, link_limits=limits)
        self.fake.fabric.add("spine9")
        for leaf, number in zip(("leaf1", "leaf2"), PORTS.values(), strict=True):
            self.fake.fabric.cable((leaf, 49), ("spine9", number))
        self.controller = self.fake.controller
        self.fabric = self.controller.fabric
        self.fabric._still_coming = 0.0

    async def given(self) -> None:
        await self.fabric.add_switches([SPINE])
        await self.fabric.add_links(LINKS)
        await self.fake.settle()

    async def comes(self, dpid: int = SPINE.dpid) -> FakeSession:
        session = FakeSession(self.fake, "spine9", dpid, PORTS)
        self.fake.sessions["spine9"] = session
        self.controller.connected(session)
        await self.fake.settle()
        return session

    async def look(self) -> None:
        self.fabric.look()
        await self.fake.settle()

    def used(self) -> dict[str, int]:
        """By leaf: how many ways up its switch has, as programmed."""
        return {leaf: len(self.fake.fabric[leaf].groups[1].buckets) for leaf in ("leaf1", "leaf2")}

    def reasons(self) -> set[str]:
        return {row["reason"] for row in shown_links(self.controller) if row["upper"].startswith("spine9:")}


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.fake.start()
    yield bench
    await bench.fake.stop()


async def test_a_spine_is_used_when_it_is_in_place_and_not_before(bench: Bench) -> None:
    await bench.given()
    await bench.look()
    assert (bench.used(), bench.reasons()) == (TWO, {"switch spine9 is not connected"})
    session = FakeSession(bench.fake, "spine9", SPINE.dpid, PORTS, mute=True)
    bench.fake.sessions["spine9"] = session
    bench.controller.connected(session)
    await bench.fake.settle()
    await bench.look()
    assert bench.used() == TWO, "it is connected, and has confirmed nothing"
    await bench.comes()
    assert bench.used() == TWO
    await bench.look()
    assert (bench.used(), bench.reasons()) == (THREE, {""})
    told = [event.type for event in recent(bench.controller.events) if event.type.startswith("link.")]
    assert told == ["link.registered"] * 2 + ["link.used"] * 2


async def test_a_spine_to_which_nobody_sends_yet_holds_up_no_vm(bench: Bench) -> None:
    """It has come, and gone again before it was used; one that is used and away holds up what is new."""
    context = bench.controller.context

    async def is_ready(number: int) -> bool:
        vm = Owner("vm", add_vm(bench.net, number, at=1).id)
        await context.install([vm])
        assert "spine9" in (context.compiler.switches_of(vm) or ())
        return context.is_programmed(vm)

    await bench.given()
    (await bench.comes()).close("away")
    assert await is_ready(3)
    await bench.comes()
    await bench.look()
    bench.fake.sessions["spine9"].close("away")
    assert not await is_ready(4)


async def test_where_links_are_probed_a_new_one_is_used_when_its_probes_have_come_back(bench: Bench) -> None:
    bench.fabric._probed = True
    await bench.given()
    await bench.comes()
    await bench.look()
    assert (bench.used(), bench.reasons()) == (TWO, {"its probes have not come back yet"})
    crossed = {
        (leaf, 49): ("spine9", number) for leaf, number in zip(("leaf2", "leaf1"), (41, 42), strict=True)
    }
    right = dict(bench.fake.fabric.cables)
    bench.fake.fabric.cables.update({**crossed, **{end: lower for lower, end in crossed.items()}})
    for _ in range(6):
        await probed(bench)
    assert bench.used() == TWO
    assert all("comes in at" in reason for reason in bench.reasons()), bench.reasons()
    bench.fake.fabric.cables.update(right)
    for _ in range(12):
        await probed(bench)
    assert (bench.used(), bench.reasons()) == (THREE, {""})


async def probed(bench: Bench) -> None:
    for send in bench.controller.link_probes.begin():
        send()
    bench.controller.link_probes.end(1.0)
    await bench.fake.settle()
    await bench.look()


async def test_it_goes_link_by_link_and_then_itself(bench: Bench) -> None:
    await bench.given()
    session = await bench.comes()
    await bench.look()
    with pytest.raises(ModelError, match="in use by link leaf1:to-spine9, link leaf2:to-spine9"):
        await bench.fabric.remove_switch("spine9")
    for link in LINKS:
        await bench.fabric.remove_link(link.lower)
        assert bench.used() == TWO, "a spine that does not lead everywhere gets nothing"
    await bench.fabric.remove_switch("spine9")
    assert session.closed == "switch spine9 was removed"
    assert "spine9" not in bench.controller.context.installer.switches
    await bench.comes()
    assert bench.fake.sessions.pop("spine9").closed, "it is nobody's"
    stored = bench.store.load()
    assert (stored.switches, stored.laid_links) == ([], [])
    told = [event.type for event in recent(bench.controller.events) if event.type.endswith(".removed")]
    assert told == ["link.removed", "link.removed", "switch.removed"]


async def test_a_link_stays_while_one_that_sends_by_it_does_not_confirm(bench: Bench) -> None:
    await bench.given()
    await bench.comes()
    await bench.look()
    bench.fake.sessions["leaf2"].close("gone")
    with pytest.raises(RequestError, match="leaf2 has not confirmed that nothing is sent by it") as caught:
        await bench.fabric.remove_link(LINKS[0].lower)
    assert caught.value.code is ErrorCode.PARTY_AWAY
    await bench.fake.settle()
    assert LINKS[0] in bench.net.links
    assert bench.net.idle_links == set()
    bench.fake.connect("leaf2")
    await bench.fake.settle()
    assert bench.used() == THREE
    await bench.fabric.remove_link(LINKS[0].lower)
    assert LINKS[0] not in bench.net.links


async def test_what_cannot_go_stays(bench: Bench) -> None:
    for lower, said in (
        (PortRef("leaf1", "x"), "there is no link at leaf1:x"),
        (PortRef("leaf1", "to-spine9"), "there is no link at"),
    ):
        with pytest.raises(RequestError, match=said):
            await bench.fabric.remove_link(lower)
    await bench.fabric.remove_link(PortRef("leaf1", "s1"))
    assert bench.used() == {"leaf1": 1, "leaf2": 1}
    with pytest.raises(ModelError, match="the only one of leaf1, where server server1, server3 is"):
        await bench.fabric.remove_link(PortRef("leaf1", "s2"))
    with pytest.raises(ModelError, match="without it leaf1, leaf2 would have no way by"):
        await bench.fabric.remove_link(PortRef("leaf2", "s2"))
    assert bench.net.idle_links == set()
    assert bench.used() == {"leaf1": 1, "leaf2": 1}


async def test_another_controller_finds_them_as_they_were(bench: Bench) -> None:
    await bench.given()
    await bench.comes()
    net = fabric()
    restore(Controller(net).context.state, bench.store.load())
    assert net.switches["spine9"] == SPINE
    assert net.idle_links == {link.lower for link in LINKS}
    await bench.look()
    other = Controller(fabric())
    other.restore(bench.store.load())
    assert set(LINKS) <= set(other.net.links)
    assert other.net.idle_links == set()
    assert "spine9" in other.context.installer.switches


async def test_what_the_file_says_of_a_link_by_now_counts(bench: Bench) -> None:
    await bench.given()
    net = fabric()
    net.add_switch(SPINE)
    net.add_link(Link(LINKS[0].lower, PortRef("spine9", "other")))
    net.configured |= {f"link {LINKS[0].lower} - spine9:other"}
    restore(Controller(net).context.state, bench.store.load())
    assert [link.upper.port for link in net.links if link.upper.switch == "spine9"] == ["other", "to-leaf2"]
    assert net.idle_links == {LINKS[1].lower}


async def test_datapath_ids_that_were_exchanged_come_back(bench: Bench) -> None:
    first, second = (bench.net.switches[f"spine{n}"] for n in (1, 2))
    for id, dpid in (("spine1", 0x77), ("spine2", first.dpid), ("spine1", second.dpid)):
        known = bench.net.switches[id]
        changed = Switch(id, known.role, dpid)
        await bench.fabric.set_switch(changed)
    net = fabric()
    restore(Controller(net).context.state, bench.store.load())
    assert {id: net.switches[id].dpid for id in ("spine1", "spine2")} == {
        "spine1": second.dpid, "spine2": first.dpid,
    }  # fmt: skip


async def test_a_switch_that_was_replaced_is_read_and_programmed(bench: Bench) -> None:
    await bench.given()
    before = await bench.comes()
    await bench.look()
    asked: list[int] = []
    bench.fabric.read_again = asked.append
    await bench.fabric.set_switch(Switch("spine9", Role.SPINE, 0x99))
    assert (before.closed, asked) == ("spine9 is 0x99 from now on", [0x59, 0x99])
    bench.fake.fabric["spine9"].flows.clear()
    await bench.comes(0x99)
    assert bench.fake.fabric["spine9"].flows
    assert bench.controller.context.is_connected("spine9")


async def test_an_edge_is_added_before_its_server_and_its_database_is_judged_anew(bench: Bench) -> None:
    asked: list[int] = []
    bench.fabric.read_again = asked.append
    await bench.fabric.add_switches([Switch("edge9", Role.EDGE, 0x39, uplink="up0")])
    assert asked == [0x39]
    with pytest.raises(ModelError, match="server server1 runs on it"):
        await bench.fabric.set_switch(Switch("edge1", Role.EDGE, 0x31, uplink="up9"))
    with pytest.raises(ModelError, match="its datapath id may be another once no server"):
        await bench.fabric.set_switch(Switch("edge1", Role.EDGE, 0x77, uplink="up0"))
    with pytest.raises(ModelError, match="switch edge1 is in use by server server1"):
        await bench.fabric.remove_switch("edge1")
    await bench.fabric.remove_switch("edge9")
    assert "edge9" not in bench.net.switches


async def test_of_two_routers_one_is_removed_and_no_packet_out_is_lost() -> None:
    """After each change of a switch what goes out comes to one of them; at last to the one that is left."""
    net = fabric()
    add_vm(net, 1, 1)
    net.set_ports("leaf1", {**net._numbers["leaf1"], "router2": 92})
    near, far = PortRef("leaf1", "router2"), net.servers["router"]
    net.put_server(replace(far, id="router2", mac="02:00:00:00:02:01", address=None, given_at=near, metric=0))
    net.put_server(replace(far, metric=5))
    store = MemoryStore()
    fake = FakeNetwork(net, lambda: 1000.0, store)
    await fake.start()
    fake.controller.fabric._still_coming = 0.0
    frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE)
    seen: list[set[tuple[str, int]]] = []

    def check() -> None:
        for delivery in fake.fabric.all_paths("edge1", vm_port(1), frame):
            assert len(delivery.arrivals) == 1, f"lost: {delivery}"
            seen.append({(switch, port) for switch, port, _ in delivery.arrivals})

    check()
    assert seen.pop() == {("leaf1", 92)}
    fake.confirms = check
    await fake.controller.fabric.remove_server("router2")
    await fake.settle()
    assert {("leaf1", 92)} in seen
    assert seen[-1] == {("leaf2", 91)}
    assert "router2" not in net.servers
    assert not [key for key in store.rows if "router2" in key]
    told = [event.type for event in recent(fake.controller.events) if event.data.get("server") == "router2"]
    assert told[-2:] == ["router.lost", "server.removed"]
    await fake.stop()


async def test_a_server_on_which_something_runs_stays_and_its_switch_with_it(
    bench: Bench,
) -> None:
    with pytest.raises(RequestError, match="there is no server x"):
        await bench.fabric.remove_server("x")
    with pytest.raises(ModelError, match="server server1 is in use by VM vm1"):
        await bench.fabric.remove_server("server1")
    with pytest.raises(ModelError, match="switch edge3 is in use by server server3"):
        await bench.fabric.remove_switch("edge3")
    await bench.fabric.remove_server("server3")
    await bench.fabric.remove_switch("edge3")
    assert "server3" not in bench.net.detected
    bench.fake.sessions.pop("edge3")


CONFIGURED = frozenset(
    {"server dhcp", "switch spine2", "switch spine1", *(f"link {one}" for one in fabric().links)}
)


def started_anew(bench: Bench, configured: frozenset[str] = CONFIGURED) -> tuple[Network, set[str]]:
    """A controller whose file has what there was at first, and what it leaves out of that."""
    net = fabric()
    net.configured = configured
    state = Controller(net).context.state
    for gone in restore(state, bench.store.load()):
        bench.store.remove(gone)
    return net, state.taken_out


async def test_what_the_file_names_is_removed_and_does_not_come_back(bench: Bench) -> None:
    """Until the file has it no longer; then the file may have it again one day."""
    bench.net.configured = CONFIGURED
    spine2 = [one for one in bench.net.links if one.upper.switch == "spine2"]
    for link in spine2:
        await bench.fabric.remove_link(link.lower)
    await bench.fabric.remove_switch("spine2")
    await bench.fabric.remove_server("dhcp")
    left_out = {"switch spine2", "server dhcp", *(f"link {link}" for link in spine2)}
    assert bench.controller.context.state.taken_out == left_out
    net, taken_out = started_anew(bench)
    assert taken_out == left_out
    assert "spine2" not in net.switches
    assert "dhcp" not in net.servers
    assert {one.upper.switch for one in net.links} == {"spine1"}
    assert not net.idle_links
    _, taken_out = started_anew(bench, frozenset())  # Its file names nothing of it.
    assert not taken_out
    net, taken_out = started_anew(bench)
    assert not taken_out
    assert "spine2" in net.switches


async def test_what_was_removed_of_the_file_and_is_given_anew_is_there(bench: Bench) -> None:
    bench.net.configured = CONFIGURED
    spine2, links = (
        bench.net.switches["spine2"],
        [one for one in bench.net.links if one.upper.switch == "spine2"],
    )
    dhcp = bench.net.servers["dhcp"]
    for link in links:
        await bench.fabric.remove_link(link.lower)
    await bench.fabric.remove_switch("spine2")
    await bench.fabric.remove_server("dhcp")
    await bench.fabric.add_switches([spine2])
    await bench.fabric.add_links(links)
    await bench.controller.context.commit(ServerRegistered(dhcp))
    assert not bench.controller.context.state.taken_out
    net, taken_out = started_anew(bench)
    assert not taken_out
    assert net.switches["spine2"] == spine2
    assert set(links) <= set(net.links)
    assert net.servers["dhcp"] == dhcp


async def test_a_cable_that_leads_elsewhere_by_request_does_so_after_a_restart(bench: Bench) -> None:
    """To change a link is to remove it and to add another at its port: the file has the old one still."""
    bench.net.configured = CONFIGURED
    old = next(one for one in bench.net.links if one.upper.switch == "spine2")
    await bench.fabric.remove_link(old.lower)
    await bench.fabric.add_switches([SPINE])
    new = Link(old.lower, PortRef("spine9", "to-leaf1"))
    await bench.fabric.add_links([new])
    net, taken_out = started_anew(bench)
    assert (new in net.links, old in net.links, taken_out) == (True, False, {f"link {old}"})
    assert net.idle_links == {new.lower}
    net, taken_out = started_anew(bench, CONFIGURED - {f"link {old}"})
    assert not taken_out


async def test_a_cable_that_leads_elsewhere_by_the_file_is_there(bench: Bench) -> None:
    """It is another link than that which was removed by request, though at the same port of its leaf."""
    bench.net.configured = CONFIGURED
    old = next(one for one in bench.net.links if one.upper.switch == "spine2")
    await bench.fabric.remove_link(old.lower)
    net = fabric()
    net.set_idle(old.lower, idle=True)
    net.remove_link(old.lower)
    new = Link(old.lower, PortRef("spine2", "another"))
    net.add_link(new)
    net.configured = CONFIGURED - {f"link {old}"} | {f"link {new}"}
    state = Controller(net).context.state
    assert TakenOut(f"link {old}") in restore(state, bench.store.load())
    assert new in net.links
    assert not state.taken_out


async def test_a_link_of_the_file_that_is_given_anew_is_idle_over_a_restart_till_it_is_in_place(
    bench: Bench,
) -> None:
    bench.net.configured = CONFIGURED
    link = next(one for one in bench.net.links if one.upper.switch == "spine2")
    await bench.fabric.remove_link(link.lower)
    bench.fake.sessions["spine2"].close("it is exchanged")
    await bench.fabric.add_links([link])
    await bench.look()
    net, _ = started_anew(bench)
    assert net.idle_links == {link.lower}
    bench.fake.connect("spine2")
    await bench.fake.settle()
    await bench.look()
    assert not bench.net.idle_links
    net, _ = started_anew(bench)
    assert (link in net.links, net.idle_links) == (True, set())


@pytest.mark.parametrize("broken_off", [False, True])
async def test_a_link_of_the_file_whose_removal_fails_stays_the_files(bench: Bench, broken_off: bool) -> None:
    """When the file has it no longer it is not there: nothing of it was given by request."""
    bench.net.configured = CONFIGURED
    link = next(one for one in bench.net.links if one.upper.switch == "spine2")
    if broken_off:
        bench.fabric._still_coming = 60.0
        removal = asyncio.create_task(bench.fabric.remove_link(link.lower))
        await bench.fake.settle()
        assert not bench.store.load().laid_links, "nor if the controller ends now"
        removal.cancel()
        await asyncio.gather(removal, return_exceptions=True)
        await bench.look()
    else:
        bench.fake.sessions["leaf2"].close("gone")
        with pytest.raises(RequestError, match="has not confirmed"):
            await bench.fabric.remove_link(link.lower)
        await bench.fake.settle()
    assert not bench.net.idle_links
    assert not bench.store.load().laid_links


async def test_what_the_file_needs_of_what_was_taken_out_of_it_stays(bench: Bench) -> None:
    """The file has got a server at a switch that was removed: it is there, and the switch with it."""
    bench.net.configured = CONFIGURED | {"switch edge3"}
    await bench.fabric.remove_server("server3")
    await bench.fabric.remove_switch("edge3")
    bench.fake.sessions.pop("edge3")
    net, taken_out = started_anew(bench, CONFIGURED | {"switch edge3"})
    assert not taken_out
    assert "edge3" in net.switches
    assert net.servers["server3"].edge == "edge3"


async def test_a_server_that_the_file_has_got_a_domain_behind_stays(bench: Bench) -> None:
    bench.net.configured = CONFIGURED | {"server server3"}
    await bench.fabric.remove_server("server3")
    net = fabric()
    net.put_peer(Peer("west", "server3", "to-west"))
    net.configured = CONFIGURED | {"server server3"}
    controller = Controller(net)
    controller.restore(bench.store.load())
    await controller.start()
    assert "server3" in net.servers
    assert not controller.context.state.taken_out
    await controller.stop()


async def test_of_links_given_together_everything_is_told_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all of them are laid or none."""
    spines = [Switch(f"more{n}", Role.SPINE, 0x100 + n) for n in range(20)]
    await bench.fabric.add_switches(spines)
    links = [
        Link(PortRef(leaf, f"to-{s.id}"), PortRef(s.id, leaf)) for s in spines for leaf in ("leaf1", "leaf2")
    ]
    before, ways, asked = bench.net.links, dict(bench.net._ways), 0
    everything = Network.everything

    def counted(net: Network) -> frozenset[Owner]:
        nonlocal asked
        asked += 1
        return everything(net)

    monkeypatch.setattr(Network, "everything", counted)
    with pytest.raises(ModelError, match="port leaf1:to-more0 is that of link"):
        await bench.fabric.add_links([*links, links[0]])
    assert (bench.net.links, bench.net._ways, bench.net.idle_links) == (before, ways, set())
    assert not bench.net.links_at("more0")
    assert asked == 0
    await bench.fabric.add_links(links)
    assert asked == 1
    assert bench.net.links == (*before, *links)
    assert bench.net.idle_links == {link.lower for link in links}


async def test_an_edge_that_was_changed_without_its_server_is_so_after_a_restart(bench: Bench) -> None:
    """As it is said: the server is taken away, the edge changed, and the server is there again."""
    given = bench.net.servers["server3"]
    await bench.controller.context.commit(ServerRegistered(replace(given, edge="")))
    changed = Switch("edge3", Role.EDGE, 0x77, uplink="up9")
    await bench.fabric.set_switch(changed)
    await bench.controller.context.commit(ServerRegistered(given))
    net = fabric()
    restore(Controller(net).context.state, bench.store.load())
    assert net.switches["edge3"] == changed
    assert net.servers["server3"] == given


async def test_a_link_at_a_port_that_a_server_of_the_file_has_left_is_there_after_a_restart(
    bench: Bench,
) -> None:
    moved = replace(bench.net.servers["dhcp"], given_at=PortRef("leaf2", "elsewhere"))
    await bench.controller.context.commit(ServerRegistered(moved))
    await bench.fabric.add_switches([SPINE])
    link = Link(PortRef("leaf2", "dhcp"), PortRef("spine9", "to-leaf2"))
    await bench.fabric.add_links([link])
    net = fabric()
    restore(Controller(net).context.state, bench.store.load())
    assert link in net.links
    assert net.servers["dhcp"] == moved


async def test_a_new_switch_that_is_not_there_yet_holds_up_no_migration(bench: Bench) -> None:
    await bench.given()
    both = ("server1", "server2")
    assert underlay_of(bench.net).concerned(both) == {
        "edge1", "edge2", "leaf1", "leaf2", "spine1", "spine2",
    }  # fmt: skip
    placing = bench.controller.orchestrator._placing
    switches = bench.net.switches.keys()
    waited_for = placing._waited_for("migration-1", switches)
    assert switches - waited_for == {"spine9"}, "nor one that was there, and is not yet used"
    await bench.comes()
    await bench.look()
    assert "spine9" in underlay_of(bench.net).concerned(both)
    assert placing._waited_for("migration-1", switches) == switches


async def test_a_server_stays_while_a_migration_has_yet_to_end_there(bench: Bench) -> None:
    """One that is undone has no more of its VM at its target, whose agent still has something to say."""
    undone = Migration(
        "migration-1", "vm1", "server1", "server3", MigrationState.ROLLING_BACK,
        ((MigrationState.PLANNED, 1.0), (MigrationState.ROLLING_BACK, 2.0)),
    )  # fmt: skip
    bench.controller.context.apply(MigrationStepped(undone))
    with pytest.raises(ModelError, match="server3 is in use by migration-1 of VM vm1; ask again when"):
        await bench.fabric.remove_server("server3")
    done = replace(undone, state=MigrationState.UNDONE)
    bench.controller.context.apply(MigrationStepped(done))
    await bench.fabric.remove_server("server3")


async def test_of_a_removed_vm_no_port_is_left_on_a_switch_that_has_gone(bench: Bench) -> None:
    """Else a VM of that name that its server makes anew would be none of ours for ever."""
    for left in (LeftPort("vm8", "vm8", ("edge3",)), LeftPort("vm9", "vm9", ("edge2", "edge3"))):
        bench.controller.context.apply(PortLeft(left))
    await bench.fabric.remove_server("server3")
    await bench.fabric.remove_switch("edge3")
    stands = LeftPort("vm9", "vm9", ("edge2",))
    assert bench.controller.context.state.left_ports == {"vm9": stands}
    assert bench.store.load().left_ports == [stands]
    bench.fake.sessions.pop("edge3")


async def test_a_machine_in_the_place_of_another_has_none_of_its_ports(bench: Bench) -> None:
    await bench.fabric.remove_server("server3")
    bench.net.set_vm_port("vm8", "edge3", VMPort(7, "tap8"))
    await bench.fabric.set_switch(replace(bench.net.switches["edge3"], dpid=0x77))
    assert not bench.net.vm_ports.get("vm8")
    bench.fake.sessions.pop("edge3")


async def test_a_fabric_of_which_nothing_stands_in_the_file_is_there_after_a_restart() -> None:
    """Its edges are brought back before its links, by which several uplinks make sense."""
    store = MemoryStore()
    controller = Controller(Network(GATEWAY_MAC), store)
    switches = [Switch(f"leaf{n}", Role.LEAF, 0x10 + n) for n in (1, 2)] + [SPINE]
    await controller.fabric.add_switches(switches)
    await controller.fabric.add_links(LINKS)
    edge = Switch("edge1", Role.EDGE, 0x31, uplink="up0", standby=("up1",))
    await controller.fabric.add_switches([edge])
    net = Network(GATEWAY_MAC)
    restore(Controller(net).context.state, store.load())
    assert net.switches == controller.net.switches
    assert set(net.links) == set(LINKS)
    await controller.stop()

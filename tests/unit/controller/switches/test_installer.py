"""What is confirmed, what is pending, and what is sent again: the installer over fake switches."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import pairwise

import pytest

from retinue.controller.state import Stored
from retinue.controller.switches import programmer
from retinue.controller.switches.installer import InstallReport
from retinue.core.model import PortStatus, VMPort
from retinue.core.model.network import Owner
from retinue.core.pipeline.compiler import ConflictError
from retinue.core.pipeline.cookies import owner_hash, owner_hash_of
from retinue.core.pipeline.entry import Change, Entry, EntryKey, Flow, FlowKey
from retinue.core.pipeline.tables import Table
from retinue.southbound.openflow.codec.messages import FlowStats
from retinue.southbound.ovsdb import BridgePort
from support import virtual_time
from support.fabric.networks import add_vm, fabric, vm_ip, vm_mac, vm_port
from support.fakes.session import FakeNetwork, FakeSession

VM1 = Owner("vm", "vm1")
FOREVER = 10**9


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeNetwork]:
    monkeypatch.setattr(programmer, "SHORTEST_PAUSE", 0.0)
    fake = FakeNetwork(fabric(), clock=lambda: 1000.0)
    await fake.start()
    yield fake
    await fake.stop()


async def install_vm(fake: FakeNetwork) -> InstallReport:
    add_vm(fake.net, 1, at=1)
    return await fake.controller.context.install([VM1])


def stands(fake: FakeNetwork) -> bool:
    return fake.controller.context.is_programmed(VM1)


async def test_confirmed_by_every_switch(fake: FakeNetwork) -> None:
    report = await install_vm(fake)
    assert not report.missing
    assert stands(fake)


async def test_two_that_clash_hold_up_nobody_else(fake: FakeNetwork) -> None:
    """The network lets no such thing in; this is a fault made by hand."""
    context, seen = fake.controller.context, set[Owner]()
    await install_vm(fake)
    add_vm(fake.net, 2, at=1, bound=False)
    fake.net.vm_ports["vm2"]["edge1"] = VMPort(vm_port(1), "tap2")
    add_vm(fake.net, 3, at=2)
    context.after_install(seen.update)
    with pytest.raises(ConflictError):
        await context.install([VM1, Owner("vm", "vm2"), Owner("vm", "vm3")])
    assert stands(fake)
    assert context.is_programmed(Owner("vm", "vm3"))
    assert not context.is_programmed(Owner("vm", "vm2"))
    assert Owner("vm", "vm3") in seen


async def test_an_installation_counts_the_entries_it_has_sent(fake: FakeNetwork) -> None:
    before = {switch: len(session.applied) for switch, session in fake.sessions.items()}
    report = await install_vm(fake)
    sent = [
        change for switch, session in fake.sessions.items() for change in session.applied[before[switch] :]
    ]
    assert report.flow_mods == sum(change.flow_count for change in sent) > 0
    again = await fake.controller.context.install([VM1])
    assert (again.flow_mods, again.missing) == (0, set()), "all is there"


async def test_what_a_switch_refuses_is_pending_and_sent_again(fake: FakeNetwork) -> None:
    fake.sessions["spine1"].reject = FOREVER
    report = await install_vm(fake)
    assert report.missing == {"spine1"}
    assert not stands(fake)
    assert "TABLE_FULL" in fake.controller.context.installer.rejected["spine1"]
    fake.sessions["spine1"].reject = 0
    await fake.settle()
    assert stands(fake)
    assert fake.controller.context.installer.rejected == {}, "nothing is wrong any more"
    wanted = fake.controller.context.compiler.program("spine1").whole().values()
    assert fake.fabric["spine1"].flows.keys() == {one.key for one in wanted if isinstance(one, Flow)}


@pytest.mark.parametrize("steps", [2, 3])
async def test_half_of_a_change_that_a_switch_without_bundles_has_made_is_taken_back(
    fake: FakeNetwork, steps: int
) -> None:
    """It has taken so many steps, and rejected the rest; then all is as it was, and sent again as a whole."""
    edge, before = fake.sessions["edge1"], dict(fake.fabric["edge1"].flows)
    edge.takes, sent = steps, len(edge.applied)
    seen: list[bool] = []
    fake.confirms = lambda: seen.append(fake.fabric["edge1"].flows == before)
    report = await install_vm(fake)
    assert "edge1" in report.missing
    assert seen[0], "the first that it confirmed has put back what was there"
    await fake.settle()
    assert stands(fake)
    taken_back, again = edge.applied[sent], edge.applied[-1]
    assert taken_back.remove and not taken_back.add
    assert {flow.key for flow in taken_back.remove} <= {flow.key for flow in again.add}
    assert fake.fabric["edge1"].flows == flows_of(fake, "edge1")


def flows_of(fake: FakeNetwork, switch: str) -> dict[EntryKey, Entry]:
    """What the switch should hold, but for meters and groups."""
    wanted = fake.controller.context.compiler.program(switch).whole()
    return {key: entry for key, entry in wanted.items() if isinstance(entry, Flow)}


async def test_what_is_not_taken_back_is_known_to_be_there(fake: FakeNetwork) -> None:
    edge = fake.sessions["edge1"]
    edge.takes, edge.reject = 1, 1
    report = await install_vm(fake)
    assert "edge1" in report.missing
    has = fake.fabric["edge1"]
    assert fake.controller.context.installer.switches["edge1"].mirror.has_all(has.flows.keys())
    await fake.settle()
    assert stands(fake)
    assert has.flows == flows_of(fake, "edge1")


async def test_a_switch_that_comes_back_empty_and_refuses_has_confirmed_nothing(fake: FakeNetwork) -> None:
    await install_vm(fake)
    fake.sessions["edge1"].close("restarted")
    fake.fabric["edge1"].flows.clear()
    fake.fabric["edge1"]._index.clear()
    session = fake.connect("edge1")
    session.reject = FOREVER
    await fake.settle()
    assert not stands(fake)
    session.reject = 0
    await fake.settle()
    assert stands(fake)


# ---- what waits goes together ----


async def wait_at_spine1(fake: FakeNetwork, vms: range) -> list[asyncio.Task[InstallReport]]:
    """VM 1 is on its way to spine1, which confirms nothing yet; then come these, each by itself."""
    fake.sessions["spine1"].hold = asyncio.Event()
    installing = []
    for number in (1, *vms):
        add_vm(fake.net, number, at=1 + number % 3)
        work = fake.controller.context.install([Owner("vm", f"vm{number}")])
        installing.append(asyncio.create_task(work))
        await fake.settle()
    return installing


async def test_what_waits_for_a_switch_goes_to_it_as_one_change(fake: FakeNetwork) -> None:
    spine = fake.sessions["spine1"]
    before = len(spine.applied)
    installing = await wait_at_spine1(fake, range(2, 8))
    assert not any(task.done() for task in installing)
    assert not any(fake.controller.context.is_programmed(Owner("vm", f"vm{n}")) for n in range(1, 8))
    assert spine.hold is not None
    spine.hold.set()
    reports = await asyncio.gather(*installing)
    assert len(spine.applied) == before + 2, "the one that was under way, and all the others"
    assert [change.flow_count for change in spine.applied[before:]] == [1, 6]
    of_one = reports[0].flow_mods
    assert [(report.flow_mods, report.missing) for report in reports] == [(of_one, set())] * 7
    assert all(fake.controller.context.is_programmed(Owner("vm", f"vm{n}")) for n in range(1, 8))


async def test_what_is_rejected_holds_up_nothing_that_went_with_it(
    fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    spine = fake.sessions["spine1"]
    apply, rejecting = spine.apply, True

    async def without_vm3(change: Change, now: float) -> None:
        mine = [flow for flow in change.add if owner_hash_of(flow.cookie) == owner_hash(Owner("vm", "vm3"))]
        if mine and rejecting:
            spine.reject = 1
        await apply(change, now)

    monkeypatch.setattr(spine, "apply", without_vm3)
    installing = await wait_at_spine1(fake, range(2, 6))
    assert spine.hold is not None
    spine.hold.set()
    reports = await asyncio.gather(*installing)
    missing = [report.missing for report in reports]
    assert missing == [set(), set(), {"spine1"}, set(), set()]
    rejecting = False
    await fake.settle()
    assert fake.controller.context.is_programmed(Owner("vm", "vm3")), "it was sent again"


async def test_who_is_cancelled_leaves_the_others_their_turn(fake: FakeNetwork) -> None:
    installing = await wait_at_spine1(fake, range(2, 5))
    installing[0].cancel()
    hold = fake.sessions["spine1"].hold
    assert hold is not None
    hold.set()
    reports = await asyncio.gather(*installing[1:])
    assert all(not report.missing for report in reports)
    assert all(fake.controller.context.is_programmed(Owner("vm", f"vm{n}")) for n in range(2, 5))


# ---- after a start ----


@asynccontextmanager
async def restarted(fake: FakeNetwork) -> AsyncIterator[FakeNetwork]:
    """Another controller with the same switches. It knows VMs and addresses, and no VM's port.

    No switch is connected.
    """
    again = FakeNetwork(fabric(), clock=fake.controller.context.clock)
    again.fabric = fake.fabric
    net = fake.net
    again.controller.restore(Stored(vms=list(net.vms.values()), assignments=list(net.assignments.values())))
    await again.controller.start()
    yield again
    await again.stop()


def all_flows(fake: FakeNetwork) -> dict[str, dict[FlowKey, Flow]]:
    return {name: dict(fake.fabric[name].flows) for name in fake.net.switches}


async def back(fake: FakeNetwork, *switches: str) -> None:
    for switch in switches:
        fake.connect(switch)
        await fake.settle()


async def test_nothing_is_taken_from_an_edge_before_its_database_has_been_read(fake: FakeNetwork) -> None:
    """Nor does any time end that; what turns out to be wanted is left alone."""
    await install_vm(fake)
    before = all_flows(fake)
    async with restarted(fake) as again:
        await back(again, *again.net.switches)
        assert all_flows(again) == before
        assert again.controller.context.installer.pending().keys() == {"edge1"}
        again.controller.inventory.ports.changed([], [port_of_vm1()])
        again.controller.inventory.ports.edge_read([0x31], ["vm1"])
        await again.settle()
        assert stands(again)
        assert not again.controller.context.installer.pending()
        assert all_flows(again) == before
        assert not any(session.applied for session in again.sessions.values())


def port_of_vm1() -> BridgePort:
    return BridgePort(0x31, "br0", "tap1", vm_port(1), PortStatus.UP, "vm1", vm_mac(1))


async def test_a_service_stays_where_it_is_while_the_ports_of_its_vms_are_told_one_by_one(
    fake: FakeNetwork,
) -> None:
    """Else its flows went to whoever is told first, and back."""
    for number, load in ((1, 2), (2, 1)):
        vm = add_vm(fake.net, number, at=number)
        fake.net.put_vm(replace(vm, nics=(replace(vm.nic, anycast=(IPv4Address("10.9.9.9"),), load=load),)))
    await fake.controller.context.install(fake.net.everything())
    before = all_flows(fake)
    async with restarted(fake) as again:
        ports = again.controller.inventory.ports
        await back(again, *again.net.switches)
        assert all_flows(again) == before
        ports.changed([], [port_of_vm1()])
        ports.edge_read([0x31], ["vm1"])
        await again.settle()
        assert all_flows(again) == before
        ports.edge_read([0x32], [])
        await again.settle()
        assert not again.controller.context.installer.pending(), "the port of vm2 has gone meanwhile"
        wanted = again.controller.context.compiler.program("spine1").whole().items()
        flows = {key: entry for key, entry in wanted if isinstance(entry, Flow)}
        assert all_flows(again)["spine1"] == flows != before["spine1"]


async def test_what_an_edge_has_too_much_goes_when_its_database_has_been_read(fake: FakeNetwork) -> None:
    """The VM has lost its port while nobody looked."""
    await install_vm(fake)
    async with restarted(fake) as again:
        await back(again, *again.net.switches)
        again.controller.inventory.ports.edge_read([0x32])
        await again.settle()
        assert again.fabric["edge1"].flows.keys() > again.controller.context.compiler.program("edge1").keys()
        again.controller.inventory.ports.edge_read([0x31])
        await again.settle()
        assert again.fabric["edge1"].flows.keys() == again.controller.context.compiler.program("edge1").keys()
        assert again.fabric["edge1"].meters == again.fabric["edge2"].meters
        assert not again.controller.context.installer.pending()


async def test_ways_to_what_is_under_a_leaf_stay_until_the_leaf_is_back(fake: FakeNetwork) -> None:
    await install_vm(fake)
    before = all_flows(fake)
    async with restarted(fake) as again:
        ports = dict(again.net._numbers["leaf1"])
        await again.controller.context.install(again.net.set_ports("leaf1", {}))
        # A controller that was told of no port at all had nothing to take away.
        for programmer in again.controller.context.installer.switches.values():
            programmer.pending.clear()
        await back(again, "spine1", "spine2", "leaf2")
        assert all_flows(again) == before
        again.net._numbers["leaf1"] = ports
        session = FakeSession(again, "leaf1", 0x11, ports)
        again.net._numbers["leaf1"] = {}
        again.controller.connected(session)
        await again.settle()
        assert all_flows(again) == before
        assert not again.controller.context.installer.switches["spine1"].pending


async def test_what_is_known_to_be_wrong_goes_as_the_switch_is_read(fake: FakeNetwork) -> None:
    """An address given back, a VM that has left, entries of nobody: for these no database is needed."""
    vm = add_vm(fake.net, 2, at=1)
    await install_vm(fake)
    await fake.controller.context.install([Owner("vm", "vm2")])
    fake.fabric["edge1"].apply(Change(add=(Flow(Table.FORWARD, 999, ()),)))
    del fake.net.assignments[vm_ip(1)]
    fake.net.vms["vm2"] = replace(vm, server="server2")
    async with restarted(fake) as again:
        await back(again, "leaf1", "leaf2", "spine1", "spine2")
        for name in ("leaf1", "leaf2", "spine1", "spine2"):
            program = again.controller.context.compiler.program(name)
            assert again.fabric[name].flows.keys() == program.keys() - {
                key for key in program if key[0] in KINDS
            }
        await back(again, "edge1")
        left = {flow.cookie & 0xFFFF_FFFF for flow in again.fabric["edge1"].flows.values()}
        assert owner_hash(VM1) in left, "its port is not known yet"
        assert not left & {0, owner_hash(Owner("vm", "vm2"))}


KINDS = ("group", "meter")


async def test_of_a_vm_nobody_knows_nothing_is_taken_before_all_edges_are_read(fake: FakeNetwork) -> None:
    """Without a database of its own a controller is told of VMs by edges alone."""
    await install_vm(fake)
    before = all_flows(fake)
    again = FakeNetwork(fabric(), clock=lambda: 1000.0)
    again.fabric = fake.fabric
    await again.start()
    again.controller.inventory.ports.edge_read([0x31])
    await again.settle()
    assert all_flows(again)["edge1"] != before["edge1"]
    assert all_flows(again)["leaf1"] == before["leaf1"]
    again.controller.inventory.ports.edge_read([0x32, 0x33])
    await again.settle()
    assert all_flows(again)["leaf1"] != before["leaf1"]
    assert not again.controller.context.installer.pending()
    await again.stop()


async def test_of_a_vm_that_was_removed_since_nothing_is_left(fake: FakeNetwork) -> None:
    """It was known, and went, before its switch came back: no database is waited for."""
    await install_vm(fake)
    async with restarted(fake) as again:
        await again.controller.inventory.remove_vm("vm1")
        await back(again, *again.net.switches)
        program = again.controller.context.compiler.program("edge1")
        flows = {key for key in program if key[0] not in KINDS}
        assert again.fabric["edge1"].flows.keys() == flows


def test_what_is_rejected_is_sent_again_ever_more_seldom() -> None:
    """After half a second, then twice as long each time, and at last each half minute."""

    async def story() -> None:
        clock = asyncio.get_running_loop().time
        fake = FakeNetwork(fabric(), clock=clock)
        await fake.start()
        session, times = fake.sessions["spine1"], list[float]()
        apply = session.apply

        async def noted(change: Change, now: float) -> None:
            times.append(now)
            await apply(change, now)

        session.apply = noted  # type: ignore[method-assign]
        session.reject = 9
        await install_vm(fake)
        await asyncio.sleep(200.0)
        pauses = [later - sooner for sooner, later in pairwise(times)]
        assert pauses == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0])
        assert stands(fake)
        times.clear()
        session.reject = 1
        add_vm(fake.net, 2, at=2)
        await fake.controller.context.install([Owner("vm", "vm2")])
        await asyncio.sleep(10.0)
        assert times[1] - times[0] == pytest.approx(0.5), "it begins anew"
        await fake.stop()

    virtual_time.run(story())


async def test_a_switch_that_goes_while_it_is_read_is_not_taken_for_connected(fake: FakeNetwork) -> None:
    fake.sessions["edge1"].close("gone")
    installer = fake.controller.context.installer
    session = FakeSession(fake, "edge1", 0x31, {})
    read = session.read_flows

    async def and_goes(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        found = await read(cookie, cookie_mask)
        session.closed = "gone again"
        return found

    session.read_flows = and_goes  # type: ignore[method-assign]
    with pytest.raises(ConnectionError, match="it disconnected while it was being read"):
        installer.switches["edge1"].connected(session)
        await installer.switches["edge1"].read(session)
    assert not installer.switches["edge1"].is_read


async def test_a_lease_that_an_earlier_controller_has_sent_is_read(fake: FakeNetwork) -> None:
    """Of entries that this one knows nothing of, too, the end of the lease is what the switch says."""
    await install_vm(fake)
    again = FakeNetwork(fabric(), clock=lambda: 1000.0)
    add_vm(again.net, 1, at=1)
    again.fabric = fake.fabric
    await again.start()
    assert all(switch.is_read for switch in again.controller.context.installer.switches.values())
    assert again.controller.context.is_programmed(VM1)
    assert not any(session.applied for session in again.sessions.values())
    await again.stop()


async def test_an_older_answer_does_not_confirm_a_newer_change(fake: FakeNetwork) -> None:
    await install_vm(fake)
    gate = fake.sessions["edge1"].hold = asyncio.Event()
    assignment = fake.net.held_by("vm1")[0]
    first = asyncio.create_task(
        fake.controller.context.install(fake.net.assign(replace(assignment, lease_end=5000.0)))
    )
    await fake.settle()
    fake.net.assign(replace(assignment, lease_end=9000.0))
    second = asyncio.create_task(fake.controller.context.install([VM1]))
    await fake.settle()
    later = fake.sessions["edge1"].hold = asyncio.Event()
    gate.set()
    await first
    assert not stands(fake), "the second change is still to be sent"
    later.set()
    await second
    assert stands(fake)


async def test_a_switch_that_cannot_be_read_is_let_go_and_holds_up_nobody(fake: FakeNetwork) -> None:
    fake.sessions["spine1"].close("gone")
    session = fake.connect("spine1")

    async def reject() -> dict[int, object]:
        raise RuntimeError("no groups here")

    session.read_groups = reject  # type: ignore[assignment, method-assign]
    await fake.settle()
    assert "cannot be read" in session.closed
    report = await install_vm(fake)
    assert report.missing == {"spine1"}
    assert fake.controller.context.installer.pending().keys() == {"spine1"}
    fake.connect("spine1")
    await fake.settle()
    assert stands(fake)


async def test_an_entry_the_switch_ended_too_early_is_sent_again(fake: FakeNetwork) -> None:
    await install_vm(fake)
    flow = next(f for f in fake.fabric["edge1"].flows.values() if f.expires_at)
    fake.fabric["edge1"].take_out(flow.key)
    fake.controller.context.installer.switches["edge1"].flow_ended(flow.key)
    assert not stands(fake)
    await fake.settle()
    assert stands(fake)
    assert flow.key in fake.fabric["edge1"].flows


def lease_ends(fake: FakeNetwork, end: float | None) -> Flow:
    """vm1's lease ends then, as far as the controller knows; an entry of it that edge1 has."""
    flow = next(f for f in fake.fabric["edge1"].flows.values() if f.expires_at)
    fake.net.assign(replace(fake.net.held_by("vm1")[0], lease_end=end))
    return flow


@pytest.mark.parametrize("end", [1000.2, 1001.0])
async def test_an_entry_the_switch_ended_with_its_lease_is_not_put_back(
    fake: FakeNetwork, end: float
) -> None:
    """The controller's clock says 1000, and the switch's own is a little ahead."""
    await install_vm(fake)
    flow = lease_ends(fake, end)
    await fake.controller.context.install([VM1])
    fake.fabric["edge1"].take_out(flow.key)
    sent = len(fake.sessions["edge1"].applied)
    fake.controller.context.installer.switches["edge1"].flow_ended(flow.key)
    assert not fake.controller.context.installer.pending()
    await fake.settle()
    assert flow.key not in fake.fabric["edge1"].flows
    assert len(fake.sessions["edge1"].applied) == sent
    assert fake.controller.context.installer.switches["edge1"].mirror.get(flow.key) is None


@pytest.mark.parametrize("end", [1001.5, None])
async def test_an_entry_that_ended_though_its_lease_did_not_is_put_back(
    fake: FakeNetwork, end: float | None
) -> None:
    await install_vm(fake)
    flow = lease_ends(fake, end)
    await fake.controller.context.install([VM1])
    fake.fabric["edge1"].take_out(flow.key)
    fake.controller.context.installer.switches["edge1"].flow_ended(flow.key)
    assert fake.controller.context.installer.pending() == {"edge1": 1}
    await fake.settle()
    assert fake.fabric["edge1"].flows[flow.key].expires_at == end


async def test_an_entry_that_ended_and_is_not_wanted_is_forgotten(fake: FakeNetwork) -> None:
    await install_vm(fake)
    flow = next(f for f in fake.fabric["edge1"].flows.values() if f.expires_at)
    await fake.controller.context.install(fake.net.remove_vm("vm1"))
    fake.controller.context.installer.switches["edge1"].flow_ended(flow.key)
    assert not fake.controller.context.installer.pending()


async def test_a_switch_that_is_away_has_confirmed_nothing(fake: FakeNetwork) -> None:
    await install_vm(fake)
    fake.sessions["edge1"].close("gone")
    assert not stands(fake)
    key = next(iter(fake.controller.context.compiler.program("edge1")))
    assert not fake.controller.context.installer.switches["edge1"].confirmed(key)
    fake.connect("edge1")
    await fake.settle()
    assert stands(fake)
    assert fake.controller.context.installer.switches["edge1"].confirmed(key)


async def test_an_older_session_that_ends_takes_nothing_from_the_newer_one(fake: FakeNetwork) -> None:
    await install_vm(fake)
    older = fake.sessions["edge1"]
    fake.connect("edge1")
    await fake.settle()
    older.close("the switch has connected anew")
    assert stands(fake)


async def test_a_switch_that_answers_nothing_is_hung_up_on(fake: FakeNetwork) -> None:
    """It comes back and is read: what it has taken of the change, nobody knows else."""
    session = fake.sessions["spine1"]
    session.mute = True
    report = await install_vm(fake)
    assert report.missing == {"spine1"}
    assert "did not confirm a change: no answer from spine1" in session.closed
    assert fake.controller.context.installer.pending().keys() == {"spine1"}
    assert "spine1" not in fake.controller.context.installer.rejected, "it has rejected nothing"
    fake.connect("spine1")
    await fake.settle()
    assert stands(fake)


async def test_a_group_goes_with_the_last_way_up_and_comes_back(fake: FakeNetwork) -> None:
    net, installer = fake.net, fake.controller.context.installer
    ports = dict(net._numbers["leaf1"])
    before = dict(fake.fabric["leaf1"].groups)
    assert before
    alone = {name: number for name, number in ports.items() if not name.startswith("s")}
    await fake.controller.context.install(net.set_ports("leaf1", alone))
    assert not fake.fabric["leaf1"].groups
    assert not installer.switches["leaf1"].mirror.taken([("group", number) for number in before])
    report = await fake.controller.context.install(net.set_ports("leaf1", ports))
    assert not report.missing
    assert fake.fabric["leaf1"].groups == before
    assert not installer.pending(report.changed)


async def test_a_vms_meters_go_with_its_port_and_come_back(fake: FakeNetwork) -> None:
    before = dict(fake.fabric["edge1"].meters)
    for _ in range(2):
        await fake.controller.context.install(fake.net.set_vm_port("vm1", "edge1", VMPort(vm_port(1))))
        await install_vm(fake)
        assert len(fake.fabric["edge1"].meters) > len(before)
        await fake.controller.context.install(fake.net.set_vm_port("vm1", "edge1", None))
        assert fake.fabric["edge1"].meters == before
        assert not fake.controller.context.installer.pending()


async def test_a_port_that_changes_moves_the_entries(fake: FakeNetwork) -> None:
    await install_vm(fake)
    touched = fake.net.set_vm_port("vm1", "edge1", VMPort(77))
    await fake.controller.context.install(touched)
    ports = {v for flow in fake.fabric["edge1"].flows.values() for f, v, _ in flow.match if f == 0}
    assert 77 in ports
    assert vm_port(1) not in ports


async def test_who_waits_for_connected_switches_goes_on_when_the_last_one_goes(fake: FakeNetwork) -> None:
    installer = fake.controller.context.installer
    fake.sessions["edge1"].hold = asyncio.Event()
    installing = asyncio.create_task(install_vm(fake))
    await fake.settle()
    changed = {"edge1": frozenset(fake.controller.context.compiler.program("edge1"))}

    def missing() -> set[str]:
        return installer.unconfirmed(changed, VM1, (), connected_only=True)

    waiting = asyncio.create_task(installer.wait_confirmed(missing))
    await fake.settle()
    assert not waiting.done()
    fake.sessions["edge1"].close("the server lost power")
    await fake.settle()
    assert waiting.done()
    fake.sessions["edge1"].hold.set()
    await installing


async def test_a_session_that_was_replaced_while_it_was_read_counts_for_nothing(fake: FakeNetwork) -> None:
    edge1 = fake.controller.context.installer.switches["edge1"]
    fake.sessions["edge1"].close("restarted")
    first, go_on = fake.connect("edge1"), asyncio.Event()
    read = first.read_flows

    async def slowly(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        await go_on.wait()
        return await read(cookie, cookie_mask)

    first.read_flows = slowly  # type: ignore[method-assign]
    await fake.settle()
    second = fake.connect("edge1")
    go_on.set()
    await fake.settle()
    assert edge1.session is second and edge1.is_read
    assert first.closed and not second.closed
    assert not first.applied

"""A switch gets no entry before the meter or group that it names, and loses none with one that goes.

A switch rejects a change with an entry that names what it has not, and with a group or meter that is deleted
it deletes every entry that names it (OpenFlow 1.4.0, 5.6 and 7.3.4.14). Random networks, and changes of which
some are told at once and some in the smallest of batches, one upon the other, while switches take their time.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from property.test_pipeline_properties import Shape, change
from retinue.controller import context as told
from retinue.controller.context import Context, NoStore
from retinue.core.model import ModelError, Network, VMPort
from retinue.core.model.network import NOTHING, Owner, Touched
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Change, EntryKey, Flow, Group, Meter
from retinue.southbound.openflow.codec.messages import FlowStats
from support.examples import examples
from support.fabric.networks import OVER, add_vm, fabric, vm_port
from support.fakes.switch import FakeSwitch
from support.virtual_time import VirtualLoop

SERVICE = IPv4Address("10.9.9.9")


@dataclass
class Watched:
    """A session of a fake switch, and whatever became of a change but what was asked for."""

    switch: FakeSwitch
    gate: asyncio.Event
    """Until it is set the switch confirms nothing."""
    wrong: list[str] = field(default_factory=list)
    alive: bool = True
    openflow: str = "1.4"
    peer: str = "fake"

    def waited(self) -> float:
        return 0.0

    async def apply(self, change: Change, now: float) -> None:
        await self.gate.wait()
        await asyncio.sleep(0)
        had = self.switch.flows.keys()
        wanted = (had - {flow.key for flow in change.remove}) | {flow.key for flow in change.add}
        try:
            self.switch.apply(change)
        except Exception as error:
            self.wrong.append(f"rejected: {error}")
            raise
        if lost := wanted - self.switch.flows.keys():
            self.wrong.append(f"gone with what they name: {lost}")

    async def read_flows(self, cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        return [FlowStats(flow, 0, 0, 0.0, 0) for flow in self.switch.flows.values()]

    async def read_groups(self) -> dict[int, Group]:
        return dict(self.switch.groups)

    async def read_meters(self) -> dict[int, Meter]:
        return dict(self.switch.meters)

    def close(self, reason: str) -> None:
        self.wrong.append(f"closed: {reason}")


OWN = ("anycast", "rate", "second uplink", "new numbers", "removed", "a way up")
OTHERS = ("location", "also", "prefixes", "server", "ports", "add", "port", "packet size", "group", "mirror")
STEPS = st.tuples(st.sampled_from([*OWN, *OWN, *OTHERS]), st.integers(1, 2), st.integers(1, 3))


@st.composite
def small(draw: st.DrawFn) -> Shape:
    """Of two servers or three; what joins the leaves is ours."""
    leaves, over = draw(st.integers(1, 2)), draw(st.sampled_from(OVER), label="what joins the leaves")
    servers_on = tuple(draw(st.lists(st.integers(1, leaves), min_size=2, max_size=3)))
    vms_at = tuple(draw(st.lists(st.integers(1, len(servers_on)), min_size=2, max_size=3)))
    twice = draw(st.sets(st.integers(1, len(servers_on)))) if leaves > 1 and over != "tunnels" else ()
    routed, cores = draw(st.booleans(), label="routed"), draw(st.sampled_from([0, 1]), label="cores")
    return Shape(
        *(leaves, 1, servers_on, vms_at),
        routed=routed, cores=0 if twice else cores, over_ip=over == "tunnels", by_mac=over == "macs",
        twice=tuple(twice),
    )  # fmt: skip


def altered(net: Network, shape: Shape, step: tuple[str, int, int]) -> Touched:
    """One change of the network; one that makes no sense for it changes nothing."""
    what, number, location = step
    vm, edge = net.vms.get(f"vm{number}"), net.switches.get(f"edge{location}")
    try:
        match what:
            case "anycast" if vm is not None:
                nic = replace(vm.nic, anycast=() if vm.nic.anycast else (SERVICE,), load=location)
                return net.change_nic(vm.id, vm.nic, nic)
            case "second uplink" if edge is not None:
                return net.add_switch(replace(edge, standby=() if edge.standby else ("up1",)))
            case "new numbers" if vm is not None:
                port = VMPort(vm_port(number) + 100 * location, f"tap{number}")
                return net.set_vm_port(vm.nic.port_id, net.servers[vm.server].edge, port)
            case "removed" if vm is not None:
                return net.remove_vm(vm.id)
            case "a way up":
                leaf = "leaf1"
                there = {link.lower.port: int(link.lower.port[1:]) for link in net.links_at(leaf)}
                known = {port: n for port, n in net._numbers[leaf].items() if port not in there}
                return net.set_ports(
                    leaf, known | ({"other": 99} if there.keys() & net._numbers[leaf] else there)
                )
            case "anycast" | "second uplink" | "new numbers" | "removed":
                return NOTHING
            case _:
                return change(net, shape, step)
    except ModelError:
        return NOTHING


Work = Callable[[], Coroutine[Any, Any, Any]]


class World:
    """The switches of a network, and what tells them: the controller's own parts."""

    def __init__(self, net: Network, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
        """`batch`: so many owners go at once; 0: all of a change."""
        monkeypatch.setattr(told, "LARGE", 0 if batch else 1_000_000)
        monkeypatch.setattr(told, "BATCH", max(batch, 1))
        self.net = net
        self.context = Context(net, asyncio.get_running_loop().time, NoStore())
        self.sessions = {name: Watched(FakeSwitch(name), asyncio.Event()) for name in net.switches}

    async def connect(self) -> None:
        """All switches, which have nothing yet."""
        await self.context.install(self.net.everything())
        for name, session in self.sessions.items():
            session.gate.set()
            programmer = self.context.installer.switches[name]
            programmer.connected(session)  # type: ignore[arg-type]
            await programmer.read(session)  # type: ignore[arg-type]

    def is_right(self) -> None:
        for name, session in self.sessions.items():
            assert not session.wrong, f"{name}: {session.wrong}"
            wanted = self.context.compiler.program(name).whole()
            flows = {key: entry for key, entry in wanted.items() if isinstance(entry, Flow)}
            assert session.switch.flows == flows


@settings(deadline=None, max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(shape=small(), data=st.data())
def test_whatever_is_told_names_what_is_there(shape: Shape, data: st.DataObject) -> None:
    batch = data.draw(st.sampled_from([1, 2, 0]), label="owners at once")
    rated = data.draw(st.lists(st.sampled_from(["anycast", "rate"]), unique=True), label="vm1 has")
    rounds = data.draw(
        st.lists(st.lists(STEPS, min_size=1, max_size=4), min_size=2, max_size=6), label="changes"
    )

    async def scenario(monkeypatch: pytest.MonkeyPatch) -> None:
        net = shape.network()
        for what in rated:
            altered(net, shape, (what, 1, 2))
        world = World(net, monkeypatch, batch)
        await world.connect()
        names = sorted(world.sessions)
        for changes in rounds:
            slow = data.draw(st.lists(st.sampled_from(names), unique=True), label="take their time")
            for name in slow:
                world.sessions[name].gate.clear()
            work = []
            for one in changes:
                work.append(asyncio.create_task(world.context.install(altered(net, shape, one))))
                for _ in range(data.draw(st.integers(0, 30), label="meanwhile")):
                    await asyncio.sleep(0)
            for name in slow:
                world.sessions[name].gate.set()
                await asyncio.sleep(0)
            await asyncio.gather(*work)
            world.is_right()
        await world.context.stop()

    with pytest.MonkeyPatch.context() as monkeypatch, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario(monkeypatch))


def shared_by(*vms: int) -> Network:
    """Two servers; these VMs, at server1, have the anycast address, the first the least load."""
    net = fabric(1, 1, (1, 1))
    for number in (1, 2):
        nic = add_vm(net, number, 1, ports_on=(2,)).nic
        mine = replace(nic, anycast=(SERVICE,) if number in vms else (), load=number)
        net.change_nic(f"vm{number}", nic, mine)
    return net


def rated(net: Network, number: int, rate: int) -> Touched:
    nic = net.vms[f"vm{number}"].nic
    return net.change_nic(f"vm{number}", nic, replace(nic, rate=rate))


def loaded(net: Network, number: int, load: int | None) -> Touched:
    """The VM has the anycast address, with this load; None: not any more."""
    nic = net.vms[f"vm{number}"].nic
    mine = replace(nic, anycast=() if load is None else (SERVICE,), load=load or 0)
    return net.change_nic(f"vm{number}", nic, mine)


async def one_upon_the_other(
    net: Network, first: Callable[[Network], Touched], then: Callable[[Network], Touched]
) -> None:
    """While the first change waits for edge2, and edge1 has not been told of it, comes the other."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World(net, monkeypatch, 0)
        await world.connect()
        world.sessions["edge2"].gate.clear()
        # So a change of a migration goes: where the VM comes first.
        slow = asyncio.create_task(world.context.install(first(net), [{"edge2"}]))
        for _ in range(20):
            await asyncio.sleep(0)
        quick = asyncio.create_task(world.context.install(then(net), [{"edge1"}]))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not slow.done()
        assert not world.sessions["edge1"].wrong
        world.sessions["edge2"].gate.set()
        await asyncio.gather(slow, quick)
        world.is_right()
        await world.context.stop()


def test_a_meter_that_an_earlier_change_has_yet_to_bring_is_taken_along() -> None:
    net = shared_by()
    net.put_vm(replace(net.vms["vm1"], also=frozenset({"server2"})))
    asyncio.run(one_upon_the_other(net, lambda net: rated(net, 1, 5000), lambda net: loaded(net, 1, 1)))


def test_what_an_earlier_change_has_yet_to_free_of_a_meter_is_taken_along() -> None:
    """Vm2 has the lesser load from then on, so that vm1's meter is named no more; and then that goes."""
    net = shared_by(1, 2)
    for number in (1, 2):
        net.put_vm(replace(net.vms[f"vm{number}"], also=frozenset({"server2"})))
        rated(net, number, 5000)
    asyncio.run(one_upon_the_other(net, lambda net: loaded(net, 1, 9), lambda net: rated(net, 1, 0)))


def test_shared_addresses_are_looked_at_only_where_a_meter_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be hundreds, and a change of a hundred VMs has each of them on many switches."""
    net = shared_by(1, 2)
    looked_at: list[Owner] = []
    rated(net, 1, 5000)
    compiler = Compiler(net)
    compiler.update(net.everything())
    named_on = Compiler._named_on

    def noted(compiler: Compiler, owner: Owner, switch: str) -> set[EntryKey]:
        looked_at.append(owner)
        return named_on(compiler, owner, switch)

    monkeypatch.setattr(Compiler, "_named_on", noted)
    compiler.update(rated(net, 1, 6000) | rated(net, 2, 7000))
    compiler.update([Owner("vm", "vm1"), Owner("vm", "vm2")])
    assert not looked_at
    compiler.update(owner for owner in rated(net, 1, 0) if owner.kind == "vm")
    assert looked_at
    anew = Compiler(net)
    anew.update(net.everything())
    assert compiler.programs == anew.programs


def test_what_goes_in_turn_has_the_order_of_a_large_change() -> None:
    """A leaf's group of ways up, which prefixes name: a spine has come back without the leaf's only link."""

    async def scenario(monkeypatch: pytest.MonkeyPatch) -> None:
        shape = Shape(2, 1, (1, 2), (1, 2), routed=True, cores=0)
        net = shape.network()
        monkeypatch.setattr(told, "MOST_UNDER_WAY", 1)
        world = World(net, monkeypatch, 1)
        await world.connect()
        for _ in range(2):
            touched = altered(net, shape, ("a way up", 1, 1))
            assert {"prefix", "switch"} <= {owner.kind for owner in touched}
            owners = sorted(touched, key=lambda owner: owner.kind != "switch")
            await world.context.install_when_there_is_room(owners, "ports")
            world.is_right()
        await world.context.stop()

    with pytest.MonkeyPatch.context() as monkeypatch, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario(monkeypatch))

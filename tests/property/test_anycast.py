"""Anycast over random fabrics: every packet comes to one member, the nearest; nobody else may send as it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from retinue.core.model import Network, PortRef, Server
from retinue.core.model.network import Touched
from retinue.core.pipeline.underlay import Near, underlay_of
from support.examples import examples
from support.fabric.histories import Move, equals_recomputed, fresh
from support.fabric.networks import GATEWAY_MAC, OVER, add_vm, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import OUTSIDE, FabricWorld, udp_frame

SERVICE = IPv4Address("10.9.9.9")
MEMBERS = [1, 2, 3, 4, -1, -2]
"""Who may be one: VMs, and boxes."""


def put_service(net: Network, vm: int, load: int | None) -> Touched:
    """A VM, or (-N) box N, has the address, with this load; None: not any more."""
    if vm < 0:
        box = net.servers[f"box{-vm}"]
        return net.put_server(replace(box, anycast=() if load is None else (SERVICE,), load=load or 0))
    known = net.vms[f"vm{vm}"]
    nic = replace(known.nic, anycast=() if load is None else (SERVICE,), load=load or 0)
    return net.put_vm(replace(known, nics=(nic, *known.nics[1:])))


BOX_PORT = 80


def add_box(net: Network, number: int, leaf: int) -> None:
    """A machine that is no VM's server, at a port of its own."""
    name, switch = f"box{number}", f"leaf{leaf}"
    net.set_ports(switch, {**net._numbers[switch], name: BOX_PORT + number})
    at = PortRef(switch, name)
    net.put_server(Server(name, box_mac(number), IPv4Address(f"10.0.0.{200 + number}"), given_at=at))


def box_mac(number: int) -> str:
    return f"02:00:00:00:02:{number:02x}"


@dataclass
class Anycast:
    """VM N is on server `at[N]`; -N is box N, on no server (0). Members with their loads. A packet may come
    to any of `may`: server, VM."""

    world: FabricWorld
    at: dict[int, int]
    loads: dict[int, int]
    may: set[tuple[int, int]] = field(default_factory=set)
    changing: int = 0
    """The VM that is just joining or leaving: one edge has been told that it may send so, or not yet."""

    def settled(self) -> None:
        self.may = {self.member(vm) for vm in self.loads}

    def member(self, vm: int) -> tuple[int, int]:
        return self.at.get(vm, 0), vm

    def under(self, vm: int) -> str:
        """The leaf under which a member is."""
        return self.leaf(f"server{self.at[vm]}" if vm > 0 else f"box{-vm}")

    def leaf(self, server: str) -> str:
        at = self.world.net.location(server)
        assert at is not None
        return at.switch

    def door(self, server: int, vm: int) -> tuple[str, int, str]:
        """Where what is for a member comes out, and its MAC."""
        if vm < 0:
            return self.under(vm), BOX_PORT - vm, box_mac(-vm)
        return f"edge{server}", vm_port(vm), vm_mac(vm)

    def best(self, leaf: str) -> set[tuple[int, int]]:
        """Where a packet that a leaf has got may go: under the leaf, else in its pod, to the least loaded."""
        here = [vm for vm in self.loads if self.under(vm) == leaf]
        here = here or [vm for vm in self.loads if self.pod(self.under(vm)) == self.pod(leaf)]
        least = min(self.loads[vm] for vm in here or self.loads)
        return {self.member(vm) for vm in here or self.loads if self.loads[vm] == least}

    def pod(self, leaf: str) -> set[str]:
        """The spines above a leaf; none over tunnels, where all leaves are one hop from each other."""
        return {link.upper.switch for link in self.world.net.links if link.lower.switch == leaf}

    def check(self, may: Callable[[str], Collection[tuple[int, int]]] | None = None) -> None:
        """From every VM and from outside; and who is no member may not send from it."""
        router = self.world.net.servers["router"]
        assert router.given_at is not None
        sent = [
            (
                self.leaf(f"server{at}"),
                self.world.send(vm, at, udp_frame(vm_mac(vm), GATEWAY_MAC, vm_ip(vm), SERVICE)),
            )
            for vm, at in self.at.items()
        ]
        outside = udp_frame(router.mac, GATEWAY_MAC, OUTSIDE, SERVICE)
        last = router.given_at.switch
        sent.append((last, self.world.fabric.all_paths(last, 91, outside)))
        for leaf, deliveries in sent:
            allowed = self.may if may is None else may(leaf)
            assert deliveries
            for delivery in deliveries:
                assert len(delivery.arrivals) == 1, delivery
                switch, port, frame = delivery.arrivals[0]
                doors = {(at, number): mac for at, number, mac in (self.door(*one) for one in allowed)}
                assert frame[:6] == bytes.fromhex(doors[switch, port].replace(":", ""))
        for vm, at in self.at.items():
            if vm == self.changing:
                continue
            as_service = udp_frame(vm_mac(vm), GATEWAY_MAC, SERVICE, OUTSIDE)
            if vm in self.loads:
                for delivery in self.world.send(vm, at, as_service):
                    self.world.comes_once(delivery, {(last, 91)}, router.mac)
            else:
                self.world.is_reported_spoofed(vm, at, as_service)


@st.composite
def anycasts(draw: st.DrawFn, over: str = "spines") -> Anycast:
    servers = draw(st.integers(2, 4))
    on = tuple(draw(st.lists(st.integers(1, 3), min_size=servers, max_size=servers)))
    cores = draw(st.sampled_from([0, 0, 2]))
    net = fabric(3, 2, on, cores, over_ip=over == "tunnels", by_mac=over == "macs")
    at = {vm: draw(st.integers(1, servers)) for vm in range(1, 5)}
    for vm, server in at.items():
        add_vm(net, vm, server)
    for box in (1, 2):
        add_box(net, box, draw(st.integers(1, 3), label="leaf of a box"))
    loads = draw(st.dictionaries(st.sampled_from(MEMBERS), st.integers(0, 2), min_size=1, max_size=4))
    for vm, load in loads.items():
        put_service(net, vm, load)
    made = Anycast(FabricWorld(net), at, loads)
    made.settled()
    return made


@settings(deadline=None, max_examples=examples(6), suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("over", OVER)
@given(data=st.data())
def test_each_leaf_sends_to_the_nearest_and_of_those_to_the_least_loaded(
    over: str, data: st.DataObject
) -> None:
    made = data.draw(anycasts(over))
    made.check(made.best)


@settings(deadline=None, max_examples=examples(3), suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("over", OVER)
@given(data=st.data())
def test_members_join_leave_and_change_their_load_and_no_packet_is_lost(
    over: str, data: st.DataObject
) -> None:
    """After every switch: each packet comes to one that was a member before or is one after."""
    made = data.draw(anycasts(over))
    world = made.world

    def order(stage: list[str]) -> list[str]:
        return data.draw(st.permutations(stage), label="order")

    def run(touched: Touched, near: Near) -> None:
        world.apply(touched, near, each=made.check, order=order)

    others = [vm for vm in MEMBERS if vm not in made.loads]
    joins, load = data.draw(st.sampled_from(others)), data.draw(st.integers(0, 2))
    made.may.add(made.member(joins))
    made.changing = joins
    underlay, server = underlay_of(world.net), f"server{made.at.get(joins)}"
    near = underlay.order_to_withdraw(server) if joins > 0 else [underlay.near(f"box{-joins}")]
    run(put_service(world.net, joins, load), near)
    made.loads[joins], made.changing = load, 0
    made.check(made.best)
    changes, load = data.draw(st.sampled_from(sorted(made.loads))), data.draw(st.integers(0, 2))
    run(put_service(world.net, changes, load), ())
    made.loads[changes] = load
    made.check(made.best)
    leaves = data.draw(st.sampled_from(sorted(made.loads)))
    made.changing = leaves
    run(put_service(world.net, leaves, None), ())
    del made.loads[leaves]
    made.changing = 0
    made.settled()
    made.check(made.best)
    assert world.compiler.programs == fresh(world.net)


@settings(deadline=None, max_examples=examples(3), suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("over", OVER)
@given(data=st.data())
def test_a_member_migrates_and_no_packet_is_lost(over: str, data: st.DataObject) -> None:
    made = data.draw(anycasts(over))
    world, movers = made.world, [vm for vm in made.loads if vm > 0]
    assume(movers)
    mover = data.draw(st.sampled_from(sorted(movers)), label="mover")
    move = Move(world, data, f"vm{mover}", made.at[mover], made.check)
    move.plug([(world.net.vms[f"vm{mover}"].nic.port_id, mover)])
    move.admit()
    made.check(made.best)
    made.may.add((move.target, mover))
    if data.draw(st.booleans(), label="undone"):
        move.divert(stands_still=True)
        move.undo()
        made.settled()
        made.check(made.best)
        return
    move.divert(stands_still=True)
    made.at[mover] = move.target
    made.settled()
    made.check(made.best)
    move.close()
    move.end()
    made.check(made.best)


STEPS = st.lists(
    st.tuples(st.sampled_from(MEMBERS), st.none() | st.integers(0, 2), st.integers(1, 3)), max_size=12
)


@settings(deadline=None, max_examples=examples(30))
@given(steps=STEPS)
def test_incremental_equals_recomputed(steps: list[tuple[int, int | None, int]]) -> None:
    net = fabric()
    for vm in range(1, 5):
        add_vm(net, vm, 1 + vm % 3)
    for box in (1, 2):
        add_box(net, box, box)

    def change(step: tuple[int, int | None, int]) -> Touched:
        vm, load, server = step
        if vm < 0:
            touched = net.fence(f"box{-vm}") if load == 2 else net.unfence(f"box{-vm}")
            return touched | put_service(net, vm, load)
        moved = net.put_vm(replace(net.vms[f"vm{vm}"], server=f"server{server}"))
        shut = net.fence(f"server{server}") if load == 2 else net.unfence(f"server{server}")
        return moved | shut | put_service(net, vm, load)

    equals_recomputed(net, steps, change)

"""What must hold for ever, over random topologies, placements, histories and moves.

1. Incremental = recomputed: after any history the programs are those of a fresh compiler.
2. In every state, also after any single switch between two stages of an update: each honest packet reaches
   exactly the right port once, each forged one none, nothing loops, nothing is flooded.
"""

from dataclasses import dataclass, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from networks import GATEWAY_MAC, UPLINK, add_vm, fabric, holding, vm_ip, vm_mac, vm_port
from retinue.flows.compiler import Compiler
from retinue.flows.difference import difference
from retinue.flows.plan import Near, near_server
from retinue.model import VM, Network, PortRef, VMPort
from retinue.model.network import NOTHING, Touched, moved
from world import OUTSIDE, World, udp_frame


@dataclass(frozen=True)
class Shape:
    leaves: int
    spines: int
    servers_on: tuple[int, ...]
    vms_at: tuple[int, ...]

    def network(self) -> Network:
        net = fabric(self.leaves, self.spines, self.servers_on)
        for number, at in enumerate(self.vms_at, 1):
            add_vm(net, number, at)
        return net


@st.composite
def shapes(draw: st.DrawFn, vms: int = 4) -> Shape:
    leaves = draw(st.integers(1, 3))
    spines = draw(st.integers(1, 3))
    servers = draw(st.integers(2, 5))
    servers_on = tuple(draw(st.lists(st.integers(1, leaves), min_size=servers, max_size=servers)))
    vms_at = tuple(draw(st.lists(st.integers(1, servers), min_size=2, max_size=vms)))
    return Shape(leaves, spines, servers_on, vms_at)


def check(world: World, at: dict[int, int], may_arrive: dict[int, set[int]]) -> None:
    """The invariants; VM N runs on server `at[N]`, packets to it may come to its port on `may_arrive[N]`."""
    for sender, place in at.items():
        for receiver in at:
            if receiver == sender:
                continue
            for dst_mac in (GATEWAY_MAC, vm_mac(receiver)):
                world.reaches(sender, place, receiver, may_arrive[receiver], dst_mac)
            world.forges(sender, place, receiver)
        world.floods_nothing(sender, place)
        world.reaches_outside(sender, place)
        world.reaches_from_outside(sender, may_arrive[sender])
        world.services_speak_for_themselves(sender)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(shape=shapes(vms=3), data=st.data())
def test_every_state_of_a_move_is_right(shape: Shape, data: st.DataObject) -> None:
    world = World(shape.network())
    net = world.net
    at = dict(enumerate(shape.vms_at, 1))
    mover = data.draw(st.sampled_from(sorted(at)))
    source = at[mover]
    target = data.draw(st.sampled_from([n for n in range(1, len(shape.servers_on) + 1) if n != source]))
    may: dict[int, set[int]] = {vm: {place} for vm, place in at.items()}

    def run(touched: Touched, near: Near = ()) -> None:
        world.apply(
            touched, near, each=lambda: check(world, at, may), order=lambda s: data.draw(st.permutations(s))
        )
        check(world, at, may)

    check(world, at, may)
    vm = net.vms[f"vm{mover}"]
    # The port at the target appears, the VM is admitted there, and nothing changes for anybody.
    run(net.set_vm_port(vm.id, f"edge{target}", VMPort(vm_port(mover))))
    edge = {f"edge{source}"}
    back = [edge, near_server(net, f"server{source}") - edge]
    admitted = replace(vm, also=frozenset({f"server{target}"}))
    run(net.put_vm(admitted), [near_server(net, f"server{target}")])
    if data.draw(st.booleans(), label="undone"):
        run(net.put_vm(vm), back)
        assert world.compiler.programs == fresh(net)
        return
    diverted = moved(admitted, f"server{target}")
    first = [near_server(net, f"server{target}") | {f"edge{source}"}]
    if data.draw(st.booleans(), label="it stands still already"):
        may[mover] = {source, target}
        diverted = replace(diverted, forwarded_from=f"server{source}")
    if data.draw(st.booleans(), label="diverted, then undone"):
        # The source stops, its traffic is turned to the target, the copy fails, and it is turned back.
        may[mover] = {source, target}
        run(net.put_vm(diverted), first)
        if data.draw(st.booleans(), label="forwarded and copied meanwhile"):
            forward(world, mover, target, source)
            insure(world, mover, target, source)
        run(net.put_vm(vm), back)
        world.copied.clear()
        may[mover] = {source}
        check(world, at, may)
        assert world.compiler.programs == fresh(net)
        return
    # It resumes at the target; while the switches are told, its packets come to either port.
    at[mover], may[mover] = target, {source, target}
    run(net.put_vm(diverted), first)
    if data.draw(st.booleans(), label="forwarded and copied while it stood still"):
        forward(world, mover, target, source)
        insure(world, mover, target, source)
        check(world, at, may)
    else:
        may[mover] = {target}
        check(world, at, may)
    closed = replace(vm, server=f"server{target}", forwarded_from=f"server{source}")
    run(net.put_vm(closed))
    world.copied.clear()
    may[mover] = {target}
    check(world, at, may)
    # A port left behind at the source is nobody's: what it sends goes nowhere.
    world.forges(mover, target, next(n for n in at if n != mover))
    late_ones_go_on(world, mover, target, source)
    copies_end(world, mover, target, source)
    run(net.put_vm(replace(closed, forwarded_from="")), back)
    check(world, at, may)
    copies_end(world, mover, target, source)
    assert world.compiler.programs == fresh(net)


def insure(world: World, vm: int, target: int, source: int) -> None:
    """Copies of all that is delivered to the VM go back to its source: one switch is told, and all come."""
    world.copied.add(vm)
    diverted = world.net.vms[f"vm{vm}"]
    put(world, replace(diverted, copied_to=f"server{source}"), on=f"edge{target}")
    both = {(f"edge{place}", vm_port(vm)) for place in (target, source)}
    for delivery in world.from_outside(vm):
        assert {(switch, port) for switch, port, _ in delivery.arrivals} == both


def forward(world: World, vm: int, target: int, source: int) -> None:
    """Packets that still come to the source's server go on to the target: one switch is told."""
    if world.net.vms[f"vm{vm}"].forwarded_from:
        return
    put(world, replace(world.net.vms[f"vm{vm}"], forwarded_from=f"server{source}"), on=f"edge{source}")
    late_ones_go_on(world, vm, target, source)


def late_ones_go_on(world: World, vm: int, target: int, source: int) -> None:
    late = udp_frame(GATEWAY_MAC, world.net.servers[f"server{source}"].mac, OUTSIDE, vm_ip(vm))
    for delivery in world.fabric.all_paths(f"edge{source}", UPLINK, late):
        world.comes_once(delivery, {(f"edge{target}", vm_port(vm))}, vm_mac(vm))


def copies_end(world: World, vm: int, target: int, source: int) -> None:
    """A copy that a switch makes late, of what the VM has had at the target, goes nowhere from the source."""
    source_mac, target_mac = (world.net.servers[f"server{n}"].mac for n in (source, target))
    copy = udp_frame(target_mac, source_mac, OUTSIDE, vm_ip(vm))
    for delivery in world.fabric.all_paths(f"edge{source}", UPLINK, copy):
        assert not delivery.arrivals


def put(world: World, vm: VM, *, on: str) -> None:
    """A change of a VM that one switch is told, and no other."""
    keys = world.compiler.update(world.net.put_vm(vm))
    assert set(keys) == {on}
    program = world.compiler.program(on)
    world.fabric[on].apply(difference(program, world.installed[on], keys[on]))
    world.installed[on] = dict(program)


def fresh(net: Network) -> dict[str, object]:
    compiler = Compiler(net)
    compiler.update(net.everything())
    return dict(compiler.programs)


Step = tuple[str, int, int]
STEPS = st.tuples(
    st.sampled_from(["hold", "release", "remove", "add", "place", "also", "port", "no port", "server"]),
    st.integers(1, 4),
    st.integers(1, 5),
)


@settings(deadline=None, max_examples=150)
@given(shape=shapes(), steps=st.lists(STEPS, max_size=25))
def test_incremental_equals_recomputed(shape: Shape, steps: list[Step]) -> None:
    net = shape.network()
    compiler = Compiler(net)
    compiler.update(net.everything())
    for step in steps:
        compiler.update(change(net, shape, step))
        got = {switch: program for switch, program in compiler.programs.items() if program}
        assert got == fresh(net), f"after {step}"


def change(net: Network, shape: Shape, step: Step) -> Touched:
    """One change of the network; one that makes no sense for it changes nothing."""
    what, number, place = step
    place = min(place, len(shape.servers_on))
    vm = net.vms.get(f"vm{number}")
    if what == "server":
        leaf = shape.servers_on[place - 1]
        other = min(range(1, shape.leaves + 1), key=lambda n: (n == leaf, n))
        net_place = net.detected[f"server{place}"]
        ref = PortRef(f"leaf{leaf}", f"p{place}")
        return net.detect(f"server{place}", PortRef(f"leaf{other}", "s1") if net_place == ref else ref)
    if what == "add":
        if vm is not None:
            return NOTHING
        add_vm(net, number, place, bound=False)
        return net.everything()
    if vm is None:
        return NOTHING
    match what:
        case "hold":
            return net.hold(holding(number, lease_end=1000.0 * place))
        case "release":
            return net.release(vm_ip(number))
        case "remove":
            return net.remove_vm(vm.id)
        case "place":
            return net.put_vm(moved(vm, f"server{place}"))
        case "also":
            return net.put_vm(replace(vm, also=frozenset({f"server{place}"}) - {vm.server}))
        case "port":
            return net.set_vm_port(vm.id, f"edge{place}", VMPort(vm_port(number)))
        case _:
            return net.set_vm_port(vm.id, f"edge{place}", None)

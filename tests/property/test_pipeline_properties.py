"""What must hold for ever, over random topologies, placements, histories and moves.

1. Incremental = recomputed: after any history the programs are those of a fresh compiler.
2. In every state, also after any single switch between two stages of an update: each honest packet reaches
   exactly the right port once, each spoofed one none, nothing loops, nothing is flooded.
"""

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue.core.model import (
    DEFAULT_VNET,
    NIC,
    VM,
    Allowed,
    Assignment,
    BindingKind,
    ModelError,
    Network,
    Origin,
    PortRef,
    Subnet,
    VMPort,
)
from retinue.core.model.families import in_use
from retinue.core.model.network import NOTHING, Touched
from retinue.core.pipeline.compiler import Before, Compiler
from retinue.core.pipeline.diff import agrees, difference
from retinue.core.pipeline.entry import Entry, EntryKey, Program, key_of
from retinue.core.pipeline.underlay import Near, underlay_of
from support.examples import examples
from support.fabric import ipv6, prefixes
from support.fabric.histories import fresh
from support.fabric.networks import (
    GATEWAY_MAC,
    OVER,
    UPLINK,
    add_ipv6,
    add_uplink,
    add_vm,
    assignment,
    fabric,
    group,
    holding6,
    moved,
    nic_numbers,
    split,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.world import OUTSIDE, FabricWorld, udp_frame

SHARED, SHARED6, VIRTUAL = IPv4Address("10.1.0.200"), IPv6Address("fd00:1::200"), "00:00:5e:00:01:07"
"""An address of each family that several may take, and a virtual router's MAC."""


WAYS = [*OVER, "routers"]
"""What joins the leaves; in the last case they are not ours."""


@dataclass(frozen=True)
class Shape:
    leaves: int
    spines: int
    servers_on: tuple[int, ...]
    vms_at: tuple[int, ...]
    ipv6: bool = False
    """There is an IPv6 subnet, too, and each VM holds an address of it."""
    more_nics_of: tuple[int, ...] = ()
    """VMs that have another NIC; one that stands here twice has three."""
    split: bool = False
    """The VMs' addresses are in several subnets."""
    grouped: bool = False
    """Every second server is in a group with a gateway MAC of its own."""
    shared: int = 0
    """The VM that has an address which vm1 and vm2 may take; 0: there is none."""
    routed: bool = False
    """Prefixes of each family are routed to vm1, and one more to vm2."""
    narrow: bool = False
    """The VMs' vnet takes smaller packets than switches do."""
    cores: int = 0
    """With any, as many as a pod has spines at least, there are three tiers."""
    over_ip: bool = False
    """Tunnels over an IP network of others join the leaves, and there are neither spines nor cores."""
    over_routers: bool = False
    """The leaves are routers that are not ours; then there is neither IPv6 nor what else they cannot do."""
    by_mac: bool = False
    """Spines and cores forward by MAC alone."""
    twice: tuple[int, ...] = ()
    """Servers with a second uplink, to the next leaf; of those that stand here twice that is in use."""

    def network(self) -> Network:
        net = fabric(
            *(self.leaves, self.spines, self.servers_on, self.cores),
            over_ip=self.over_ip,
            over_routers=self.over_routers,
            by_mac=self.by_mac,
        )
        for number in sorted(set(self.twice)):
            add_uplink(net, number, self.servers_on[number - 1] % self.leaves + 1)
            if self.twice.count(number) > 1:
                net.use_uplink(f"edge{number}", "up1")
        if self.narrow:
            net.put_vnet(replace(DEFAULT_VNET, mtu=1400))
        if self.ipv6:
            add_ipv6(net)
        if self.split:
            split(net)
        if self.grouped:
            group(net)
        for number, at in enumerate(self.vms_at, 1):
            vm = add_vm(net, number, at, nics=1 + self.more_nics_of.count(number))
            for nic in nic_numbers(vm) if self.ipv6 else ():
                net.assign(replace(holding6(nic), vm=vm.id))
        for number in (1, 2) if self.shared else ():
            change_nic(net, "allowed", net.vms[f"vm{number}"], 2)
        for number in (1, 2) if self.routed else ():
            change_nic(net, "prefixes", net.vms[f"vm{number}"], number)
        if self.shared:
            change_nic(net, "announced", net.vms[f"vm{self.shared}"], 0)
        return net


@st.composite
def shapes(draw: st.DrawFn, vms: int = 4, more_nics: int = 2, over: str | None = None) -> Shape:
    """`over`: one of WAYS; None: whichever."""
    leaves = draw(st.integers(1, 3))
    spines = draw(st.integers(1, 3))
    servers = draw(st.integers(2, 5))
    servers_on = tuple(draw(st.lists(st.integers(1, leaves), min_size=servers, max_size=servers)))
    vms_at = tuple(draw(st.lists(st.integers(1, servers), min_size=2, max_size=vms)))
    more = draw(st.lists(st.integers(1, len(vms_at)), max_size=more_nics), label="more NICs of")
    ipv6, parts = draw(st.booleans(), label="IPv6"), draw(st.booleans(), label="split")
    grouped = draw(st.booleans(), label="gateway groups")
    shared = draw(st.integers(0, 2), label="has an address that others may take")
    routed, narrow = draw(st.booleans(), label="routed prefixes"), draw(st.booleans(), label="narrow")
    cores = draw(st.sampled_from([0, 0, spines, spines + 1]), label="cores")
    over = draw(st.sampled_from(WAYS), label="what joins the leaves") if over is None else over
    of_others = over == "routers"
    # With cores the next leaf is in the other pod.
    several = leaves > 1 and over in ("spines", "macs") and not cores
    twice = draw(st.lists(st.integers(1, servers), max_size=servers), label="servers with two uplinks")
    return Shape(
        *(leaves, spines, servers_on, vms_at, ipv6 and not of_others, tuple(more), parts),
        *(grouped and not of_others, shared, routed, narrow and not of_others),
        cores,
        over == "tunnels",
        of_others,
        over == "macs",
        tuple(twice) if several else (),
    )


def check(world: FabricWorld, at: dict[int, int], may_arrive: dict[int, set[int]]) -> None:
    """The invariants; NIC N is on server `at[N]`, packets to it may come to its port on `may_arrive[N]`.

    To another NIC of its own VM, too, and no NIC may send as that.
    """
    for sender, location in at.items():
        for receiver in at:
            if receiver == sender:
                continue
            for dst_mac in (*world.net.gateway_macs, vm_mac(receiver)):
                world.reaches(sender, location, receiver, may_arrive[receiver], dst_mac)
            world.is_no_neighbour_of_other_subnets(sender, location, receiver)
            world.spoofs(sender, location, receiver)
        world.floods_nothing(sender, location)
        world.reaches_outside(sender, location)
        world.reaches_from_outside(sender, may_arrive[sender])
        world.services_speak_for_themselves(sender)
    if in_use(world.net, 6):
        ipv6.check(world, at, may_arrive)
    for vm in world.net.vms.values():
        are_together(world, nic_numbers(vm))
    prefixes.check(world, at, may_arrive)
    for shared in (SHARED, SHARED6):
        held = world.net.assignments.get(shared)
        if held is not None:
            is_at_its_holders(world, at, may_arrive, shared, next(n for n in at if vm_mac(n) == held.mac))


def is_at_its_holders(
    world: FabricWorld,
    at: dict[int, int],
    may_arrive: dict[int, set[int]],
    shared: IPv4Address | IPv6Address,
    holder: int,
) -> None:
    """An address that several may take is found at the NIC that has it, and nobody else sends under it."""
    for sender, location in at.items():
        if sender == holder:
            continue
        if isinstance(shared, IPv4Address):
            frame = udp_frame(vm_mac(sender), GATEWAY_MAC, vm_ip(sender), shared)
            spoofed = udp_frame(vm_mac(sender), GATEWAY_MAC, shared, OUTSIDE)
        else:
            frame = ipv6.udp6_frame(vm_mac(sender), GATEWAY_MAC, ipv6.vm_ip6(sender), shared)
            spoofed = ipv6.udp6_frame(vm_mac(sender), GATEWAY_MAC, shared, ipv6.OUTSIDE6)
            vm = world.net.vm_at(f"edge{location}", vm_port(sender))
            nic = world.net.nic_at(f"edge{location}", vm_port(sender))
            assert vm is not None and nic is not None
            ipv6.announces(world, sender, location, shared, allowed=nic.may_take(shared) is not None)
        for delivery in world.send(sender, location, frame):
            world.comes(delivery, holder, may_arrive[holder])
        world.is_reported_spoofed(sender, location, spoofed)


def are_together(world: FabricWorld, nics: list[int]) -> None:
    """At no moment is one NIC of a VM found here and the other there."""
    places = [
        [{switch for switch, _, _ in delivery.arrivals} for delivery in world.from_outside(nic)]
        for nic in nics
    ]
    assert all(place == places[0] for place in places), places


@settings(deadline=None, max_examples=examples(5), suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("over", WAYS)
@given(data=st.data())
def test_every_state_of_a_move_is_right(over: str, data: st.DataObject) -> None:
    """With tunnels between the leaves it is S3.3, and S4.10; with routers that are not ours S3.1; with spines
    that know MACs alone S3.4."""
    shape = data.draw(shapes(vms=3, over=over))
    world = FabricWorld(shape.network())
    net = world.net
    at = {nic: shape.vms_at[number_of(vm) - 1] for vm in net.vms.values() for nic in nic_numbers(vm)}
    orchestrator = data.draw(st.sampled_from(sorted(n for n in at if n <= len(shape.vms_at))))
    nics = nic_numbers(net.vms[f"vm{orchestrator}"])
    source = at[orchestrator]
    target = data.draw(st.sampled_from([n for n in range(1, len(shape.servers_on) + 1) if n != source]))
    may: dict[int, set[int]] = {vm: {location} for vm, location in at.items()}

    def run(touched: Touched, near: Near = ()) -> None:
        world.apply(
            touched, near, each=lambda: check(world, at, may), order=lambda s: data.draw(st.permutations(s))
        )
        check(world, at, may)

    check(world, at, may)
    vm = net.vms[f"vm{orchestrator}"]
    # The port at the target appears, the VM is admitted there, and nothing changes for anybody.
    for nic, number in zip(vm.nics, nics, strict=True):
        run(net.set_vm_port(nic.port_id, f"edge{target}", VMPort(vm_port(number))))
    underlay = underlay_of(net)
    back = underlay.order_to_withdraw(f"server{source}")
    admitted = replace(vm, also=frozenset({f"server{target}"}))
    run(net.put_vm(admitted), [underlay.near(f"server{target}")])
    if data.draw(st.booleans(), label="undone"):
        run(net.put_vm(vm), back)
        assert world.compiler.programs == fresh(net)
        return
    diverted = moved(admitted, f"server{target}")
    first = underlay.order_to_divert(f"server{source}", f"server{target}")
    if data.draw(st.booleans(), label="it stands still already"):
        may.update({key: {source, target} for key in nics})
        diverted = replace(diverted, forwarded_from=f"server{source}")
    if data.draw(st.booleans(), label="diverted, then undone"):
        # The source stops, its traffic is turned to the target, the copy fails, and it is turned back.
        may.update({key: {source, target} for key in nics})
        run(net.put_vm(diverted), first)
        if data.draw(st.booleans(), label="forwarded and copied meanwhile"):
            forward(world, orchestrator, target, source)
            insure(world, orchestrator, target, source)
        world.copied.update(nics)
        again = underlay.order_to_return(f"server{source}", f"server{target}")
        run(
            net.put_vm(replace(admitted, forwarded_from=f"server{target}", copied_to=f"server{source}")),
            again,
        )
        late_ones_go_on(world, orchestrator, source, target)
        run(net.put_vm(vm), underlay.order_to_withdraw(f"server{target}"))
        world.copied.clear()
        may.update({key: {source} for key in nics})
        check(world, at, may)
        assert world.compiler.programs == fresh(net)
        return
    # It resumes at the target; while the switches are told, its packets come to either port.
    at.update(dict.fromkeys(nics, target))
    may.update({key: {source, target} for key in nics})
    run(net.put_vm(diverted), first)
    if data.draw(st.booleans(), label="forwarded and copied while it stood still"):
        forward(world, orchestrator, target, source)
        insure(world, orchestrator, target, source)
        check(world, at, may)
    else:
        may.update({key: {target} for key in nics})
        check(world, at, may)
    closed = replace(vm, server=f"server{target}", forwarded_from=f"server{source}")
    run(net.put_vm(closed))
    world.copied.clear()
    may.update({key: {target} for key in nics})
    check(world, at, may)
    # A port left behind at the source is nobody's: what it sends goes nowhere.
    world.spoofs(orchestrator, target, next(n for n in at if n != orchestrator))
    late_ones_go_on(world, orchestrator, target, source)
    copies_end(world, orchestrator, target, source)
    run(net.put_vm(replace(closed, forwarded_from="")), back)
    check(world, at, may)
    copies_end(world, orchestrator, target, source)
    assert world.compiler.programs == fresh(net)


@settings(deadline=None, max_examples=examples(6), suppress_health_check=[HealthCheck.too_slow])
@given(shape=shapes(vms=3, over="spines"), data=st.data())
def test_no_packet_takes_a_link_that_is_lost(shape: Shape, data: st.DataObject) -> None:
    """One spine of several loses some of its links, or all; either end has told of it, or probes have."""
    shape = replace(shape, spines=max(2, shape.spines), cores=0)
    world = FabricWorld(shape.network())
    at = {nic: shape.vms_at[number_of(vm) - 1] for vm in world.net.vms.values() for nic in nic_numbers(vm)}
    spine = data.draw(st.sampled_from(sorted({link.upper.switch for link in world.net.links})), label="spine")
    links = [link for link in world.net.links if link.upper.switch == spine]
    lost = data.draw(st.lists(st.sampled_from(links), min_size=1, unique=True), label="lost")
    told: dict[str, set[str]] = {}
    silent = data.draw(st.lists(st.sampled_from(lost), unique=True), label="found by probes")
    for link in lost:
        if link in silent:
            world.apply(world.net.lose_link(link.lower, "nothing comes in"))
            continue
        end = data.draw(st.sampled_from([link.lower, link.upper]), label="told by")
        told.setdefault(end.switch, set()).add(end.port)
    for switch, names in told.items():
        world.apply(world.net.set_ports(switch, world.net._numbers[switch], names))
    for link in lost:
        for end in (link.lower, link.upper):
            number = world.net.port_number(end)
            assert number is not None
            del world.fabric.cables[end.switch, number]  # What goes there would come out at nobody's port.
    check(world, at, {vm: {location} for vm, location in at.items()})
    assert world.compiler.programs == fresh(world.net)
    for switch in told:
        world.apply(world.net.set_ports(switch, world.net._numbers[switch]))
    for link in silent:
        world.apply(world.net.return_link(link.lower))
    assert world.compiler.programs == fresh(world.net)


def insure(world: FabricWorld, vm: int, target: int, source: int) -> None:
    """Copies of all that is delivered to the VM go back to its source: one switch is told, and all come."""
    if not underlay_of(world.net).copies:
        return
    diverted = world.net.vms[f"vm{vm}"]
    nics = nic_numbers(diverted)
    world.copied.update(nics)
    put(world, replace(diverted, copied_to=f"server{source}"), on=f"edge{target}")
    beside = [
        number
        for other in world.net.vms.values()
        if other.id != diverted.id and other.server == f"server{target}"
        for number in nic_numbers(other)
    ]
    for nic in nics:
        both = {(f"edge{location}", vm_port(nic)) for location in (target, source)}
        local = [udp_frame(vm_mac(n), vm_mac(nic), vm_ip(n), vm_ip(nic)) for n in beside]
        sent = [way for n, frame in zip(beside, local, strict=True) for way in world.send(n, target, frame)]
        for delivery in (*world.from_outside(nic), *sent):
            assert {(switch, port) for switch, port, _ in delivery.arrivals} == both


def number_of(vm: VM) -> int:
    return nic_numbers(vm)[0]


def nics_of(world: FabricWorld, vm: int) -> list[int]:
    return nic_numbers(world.net.vms[f"vm{vm}"])


def forward(world: FabricWorld, vm: int, target: int, source: int) -> None:
    """Packets that still come to the source's server go on to the target: one switch is told."""
    if world.net.vms[f"vm{vm}"].forwarded_from:
        return
    put(world, replace(world.net.vms[f"vm{vm}"], forwarded_from=f"server{source}"), on=f"edge{source}")
    late_ones_go_on(world, vm, target, source)


def late_ones_go_on(world: FabricWorld, vm: int, target: int, source: int) -> None:
    for nic in nics_of(world, vm):
        late = udp_frame(GATEWAY_MAC, world.net.servers[f"server{source}"].mac, OUTSIDE, vm_ip(nic))
        for delivery in world.fabric.all_paths(f"edge{source}", UPLINK, late):
            world.comes_once(delivery, {(f"edge{target}", vm_port(nic))}, vm_mac(nic))


def copies_end(world: FabricWorld, vm: int, target: int, source: int) -> None:
    """A copy that a switch makes late, of what the VM has had at the target, goes nowhere from the source."""
    if not underlay_of(world.net).copies:  # No switch makes one.
        return
    source_mac, target_mac = (world.net.servers[f"server{n}"].mac for n in (source, target))
    for nic in nics_of(world, vm):
        copy = udp_frame(target_mac, source_mac, OUTSIDE, vm_ip(nic))
        for delivery in world.fabric.all_paths(f"edge{source}", UPLINK, copy):
            assert not delivery.arrivals


def put(world: FabricWorld, vm: VM, *, on: str) -> None:
    """A change of a VM that one switch is told, and no other."""
    keys = world.compiler.update(world.net.put_vm(vm))
    assert set(keys) == {on}
    program = world.compiler.program(on)
    world.fabric[on].apply(difference(program, world.installed[on], keys[on]))
    world.installed[on] = dict(program)


Step = tuple[str, int, int]
STEPS = st.tuples(
    st.sampled_from(
        [
            "hold",
            "hold for ever",
            "hold IPv6",
            "hold a link-local address",
            "release",
            "release IPv6",
            "remove",
            "add",
            "location",
            "also",
            "port",
            "no port",
            "server",
            "ports",
            "no ports",
            "edge ports",
            "no edge ports",
            "spine ports",
            "no spine ports",
            "subnet",
            "no subnet",
            "other gateway",
            "disabled",
            "rate",
            "mirror",
            "trusted",
            "allowed",
            "announced",
            "prefixes",
            "new mac",
            "group",
            "packet size",
        ]
    ),
    st.integers(1, 4),
    st.integers(1, 5),
)


@settings(deadline=None, max_examples=examples(75))
@given(shape=shapes(), steps=st.lists(STEPS, max_size=25), channel=st.sampled_from((0, 100_000)))
def test_incremental_equals_recomputed(shape: Shape, steps: list[Step], channel: int) -> None:
    net = shape.network()
    net.channel_kbps = channel
    compiler = Compiler(net, recent=1)
    compiler.update(net.everything())
    installed = compiler.programs
    for step in steps:
        keys = compiler.update(change(net, shape, step))
        send(installed, compiler, keys)
        got = {switch: program for switch, program in compiler.programs.items() if program}
        assert got == fresh(net), f"after {step}"


def send(installed: dict[str, Program], compiler: Compiler, keys: Before) -> None:
    """What the difference makes of what was installed is what is wanted."""
    for switch, changed in keys.items():
        held, wanted = installed.setdefault(switch, {}), compiler.program(switch).whole()
        sent = difference(wanted, held, changed)
        added: list[Entry] = [*sent.add, *sent.groups, *sent.meters]
        held.update((key_of(entry), entry) for entry in added)
        removed: list[EntryKey] = [flow.key for flow in sent.remove]
        removed += [("group", number) for number in sent.remove_groups]
        removed += [("meter", number) for number in sent.remove_meters]
        for key in removed:
            del held[key]
        assert held.keys() == wanted.keys()
        assert all(agrees(wanted[key], held[key]) for key in wanted)


def change(net: Network, shape: Shape, step: Step) -> Touched:
    """One change of the network; one that makes no sense for it changes nothing."""
    what, number, location = step
    location = min(location, len(shape.servers_on))
    vm = net.vms.get(f"vm{number}")
    if what == "server":
        leaf = shape.servers_on[location - 1]
        other = min(range(1, shape.leaves + 1), key=lambda n: (n == leaf, n))
        ref = PortRef(f"leaf{leaf}", f"p{location}")
        net_place = net.location(f"server{location}")
        there = PortRef(f"leaf{other}", "s1") if net_place == ref else ref
        if net.over_routers:
            if any(server.given_at == there for server in net.servers.values()):
                return NOTHING  # Rejected: a port has one server.
            return net.put_server(replace(net.servers[f"server{location}"], given_at=there))
        return net.detect(f"server{location}", there)
    if what == "packet size":
        if net.over_routers:
            return NOTHING  # Rejected: they tell no sender the size of one vnet.
        return net.put_vnet(replace(net.vnets[DEFAULT_VNET.id], mtu=(0, 1280, 1400, 1500)[number - 1]))
    if what.endswith("ports"):
        return change_ports(net, what, number, location)
    if what == "group" and number == 1 and net.gateway_groups:
        second = net.gateway_groups["second"]
        return net.put_gateway_group(replace(second, default=not second.default))
    if what == "group":
        server = net.servers[f"server{location}"]
        name = "" if server.gateway_group or not net.gateway_groups else "second"
        return net.put_server(replace(server, gateway_group=name))
    if "subnet" in what or "gateway" in what:
        return change_subnets(net, what, number)
    if what == "add":
        if vm is not None:
            return NOTHING
        add_vm(net, number, location, bound=False)
        return net.everything()
    if vm is None:
        return NOTHING
    match what:
        case "disabled" | "rate" | "mirror" | "trusted" | "allowed" | "announced" | "prefixes" | "new mac":
            return change_nic(net, what, vm, location)
        case "hold":
            return net.assign(replace(assignment(number, lease_end=1000.0 * location), mac=vm.nic.mac))
        case "hold for ever":
            return net.assign(replace(assignment(number, lease_end=None), mac=vm.nic.mac))
        case "hold IPv6":
            return net.assign(replace(holding6(number, lease_end=1000.0 * location), mac=vm.nic.mac))
        case "hold a link-local address":
            held = replace(holding6(number), ip=IPv6Address(f"fe80::abcd:{number}"), mac=vm.nic.mac)
            return net.assign(held)
        case "release IPv6":
            return net.unassign(ipv6.vm_ip6(number))
        case "release":
            return net.unassign(vm_ip(number))
        case "remove":
            return net.remove_vm(vm.id)
        case "location":
            return net.put_vm(moved(vm, f"server{location}"))
        case "also":
            return net.put_vm(replace(vm, also=frozenset({f"server{location}"}) - {vm.server}))
        case "port":
            return net.set_vm_port(vm.id, f"edge{location}", VMPort(vm_port(number)))
        case _:
            return net.set_vm_port(vm.id, f"edge{location}", None)


def change_nic(net: Network, what: str, vm: VM, number: int) -> Touched:
    """A NIC is changed in place; or it takes what it and others are allowed."""
    nic = vm.nic
    changes: dict[str, NIC] = {
        "disabled": replace(nic, enabled=not nic.enabled),
        "rate": replace(nic, rate=1000 * (number - 1)),
        "mirror": replace(nic, mirror="" if nic.mirror else "mirror0"),
        "trusted": replace(nic, trusted=not nic.trusted),
        "allowed": replace(nic, allowed=() if nic.allowed else allowed(net, ["", VIRTUAL][number % 2])),
        "prefixes": replace(nic, prefixes=() if nic.prefixes else prefixes.of(number)),
        "new mac": replace(nic, mac=f"52:54:00:00:{number:02x}:{nic.mac[-2:]}"),
    }
    try:
        if what == "announced":
            touched = NOTHING
            for one in nic.allowed:
                taken = Assignment(one.ip, nic.mac, vm.id, BindingKind.ALLOWED, Origin.CONTROLLER)
                touched |= net.take(taken)
            return touched
        return net.change_nic(vm.id, nic, changes[what])
    except ModelError:
        return NOTHING


def allowed(net: Network, mac: str) -> tuple[Allowed, ...]:
    """What several NICs may take: an address of each family that there is."""
    return tuple(Allowed(ip, mac) for ip in (SHARED, SHARED6) if net.subnet_of(ip) is not None)


def change_subnets(net: Network, what: str, number: int) -> Touched:
    """A subnet comes, goes or has another gateway; one that is used stays."""
    new = Subnet(f"new{number}", IPv4Network(f"10.{5 + number}.0.0/16"), IPv4Address(f"10.{5 + number}.0.9"))
    try:
        match what:
            case "subnet":
                return net.add_subnet(new)
            case "no subnet":
                return net.remove_subnet(sorted(net.subnets)[number % len(net.subnets)])
            case _:
                old = net.subnets[sorted(net.subnets)[number % len(net.subnets)]]
                return net.add_subnet(replace(old, gateway=old.prefix.network_address + 1))
    except ModelError:
        return NOTHING


def change_ports(net: Network, what: str, number: int, location: int) -> Touched:
    """A switch tells its ports, numbered otherwise than before, some without a link; or that it has none."""
    kind = what.removeprefix("no ").removesuffix("ports").strip()
    names = sorted(name for name in net.switches if name.startswith(kind or "leaf"))
    if not names:  # No spines, over an IP network.
        return NOTHING
    switch = names[location % len(names)]
    if what.startswith("no "):
        return net.set_ports(switch, {})
    ports = [
        *(ref.port for link in net.links for ref in (link.lower, link.upper) if ref.switch == switch),
        *(at.port for name in net.servers if (at := net.location(name)) is not None and at.switch == switch),
        net.switches[switch].uplink,
        net.switches[switch].tunnel,
        "mirror0" if kind == "edge" and number % 2 else "",
    ]
    numbers = {port: 1000 * number + n for n, port in enumerate(sorted({*ports} - {""}))}
    return net.set_ports(switch, numbers, [port for port, n in numbers.items() if (n + location) % 3 == 0])

"""Tenants in routing domains of their own, over random networks, placements, moves and histories.

1. The same addresses are several tenants' at once. In every state, also after any single switch between two
   stages of an update, a packet comes to who has the address in the sender's VRF, once; nothing crosses, not
   by a gateway, a MAC or a tag; each forged one goes nowhere. What is for outside comes to the VRF's own
   router, with its tag there, and what comes from there to the VRF alone; prefixes are routed likewise.
2. Other VRFs change no entry of the default one.
3. Incremental = recomputed, while VRFs, vnets and subnets come and go.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue.core.model import (
    DEFAULT_VRF,
    Assignment,
    BindingKind,
    ModelError,
    Network,
    Origin,
    Subinterface,
    VMPort,
)
from retinue.core.model.network import NOTHING, Touched
from retinue.core.pipeline.entry import Field, Flow
from retinue.core.pipeline.tables import Table
from support.examples import examples
from support.fabric.histories import Move, equals_recomputed, fresh
from support.fabric.ipv6 import vm_ip6
from support.fabric.networks import OVER, add_ipv6, fabric, group, vm_port
from support.fabric.networks import add_vm as add_default_vm
from support.fabric.tenants import Held, Tenants, add_tenant, add_tenants, add_vm, address, is_of_a_vrf
from support.fabric.ways_out import ALL, GREEN_VLAN, RED_VLAN, ROUTER_ADDRESS, add_exits
from support.fabric.world import FabricWorld

VRFS = (DEFAULT_VRF, "red", "green")
PREFIX = IPv4Network("10.8.0.0/28")
"""Routed to a NIC of each of several VRFs."""
DELEGATED = IPv6Network("fd00:8::/60")
"""The same, leased."""


def data_of_exits(draw: st.DrawFn) -> dict[str, int]:
    """The VRFs that have a way out, and the VLAN of each at the router's port."""
    vrfs = draw(st.sampled_from([(), ("red",), ("red", "green")]), label="ways out")
    return {vrf: {"red": RED_VLAN, "green": GREEN_VLAN}[vrf] for vrf in vrfs}


@st.composite
def tenants(draw: st.DrawFn) -> Tenants:
    """Two to four VMs, the first with a NIC in two VRFs; several have the same address."""
    leaves, spines = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    servers = draw(st.integers(2, 3))
    servers_on = tuple(draw(st.lists(st.integers(1, leaves), min_size=servers, max_size=servers)))
    over = draw(st.sampled_from(OVER), label="what joins the leaves")
    net = fabric(leaves, spines, servers_on, over_ip=over == "tunnels", by_mac=over == "macs")
    ipv6 = draw(st.booleans(), label="IPv6")
    add_tenants(net, ipv6)
    if draw(st.booleans(), label="gateway groups"):
        group(net)
    out = data_of_exits(draw)
    if out:
        leaf = f"leaf{draw(st.integers(1, leaves), label='exit')}"
        add_exits(net, out, apart=draw(st.booleans(), label="a router of their own"), leaf=leaf)
    taken: set[tuple[str, object]] = set()
    nics: list[Held] = []
    at: dict[str, int] = {}
    for vm in range(1, draw(st.integers(2, 4)) + 1):
        own: list[Held] = []
        vrfs = ("red", DEFAULT_VRF) if vm == 1 else (draw(st.sampled_from(VRFS)),)
        for vrf in vrfs:
            beside = vrf != DEFAULT_VRF and draw(st.booleans(), label="in the other subnet")
            of = draw(st.integers(1, 2), label="address")
            ip = address(of, beside)
            ip6 = vm_ip6(of) if ipv6 and not beside else None
            if (vrf, ip) in taken:
                continue
            taken.add((vrf, ip))
            prefix = PREFIX if (vrf, PREFIX) not in taken and draw(st.booleans(), label="prefix") else None
            taken.add((vrf, prefix))
            delegates = ip6 is not None and (vrf, DELEGATED) not in taken
            delegated = DELEGATED if delegates and draw(st.booleans(), label="delegated") else None
            taken.add((vrf, delegated))
            own.append(Held(1 + len(nics) + len(own), f"vm{vm}", vrf, ip, ip6, prefix, delegated))
        if own:
            at[f"vm{vm}"] = draw(st.integers(1, servers), label="server")
            add_vm(net, f"vm{vm}", at[f"vm{vm}"], own)
            nics += own
    return Tenants(FabricWorld(net), nics, at, {vm: {server} for vm, server in at.items()})


@settings(deadline=None, max_examples=examples(8), suppress_health_check=[HealthCheck.too_slow])
@given(world=tenants(), data=st.data())
def test_nothing_crosses_in_any_state_of_a_move(world: Tenants, data: st.DataObject) -> None:
    net = world.world.net
    world.check()
    vm = data.draw(st.sampled_from(sorted(world.at)))
    move = Move(world.world, data, vm, world.at[vm], world.check)
    mine = [one.number for one in world.nics if one.vm == vm]
    move.plug((nic.port_id, number) for nic, number in zip(net.vms[vm].nics, mine, strict=True))
    move.admit()
    world.may_arrive[vm] = {move.source, move.target}
    # It is paused, and resumes at the target.
    world.at[vm] = move.target
    move.divert(stands_still=True)
    world.world.copied.update(mine)
    move.copy()
    move.put(move.diverted)
    world.world.copied.clear()
    world.may_arrive[vm] = {move.target}
    world.check()
    move.close()
    move.end()


@settings(deadline=None, max_examples=examples(12))
@given(
    servers_on=st.lists(st.integers(1, 2), min_size=2, max_size=3),
    vms=st.lists(st.tuples(st.integers(1, 2), st.sampled_from(["red", "green"])), max_size=3),
    ipv6=st.booleans(),
)
def test_other_vrfs_change_no_entry_of_the_default_one(
    servers_on: list[int], vms: list[tuple[int, str]], ipv6: bool
) -> None:
    net = fabric(2, 2, tuple(servers_on))
    for number in (1, 2):
        add_default_vm(net, number, number)
    if ipv6:
        add_ipv6(net)
    alone = fresh(net)
    assert not [entry for program in alone.values() for entry in program.values() if is_of_a_vrf(entry)]
    for vrf in ("red", "green"):
        add_tenant(net, vrf, ipv6)
    for number, (at, vrf) in enumerate(vms, 11):
        add_vm(net, f"vm{number}", at, [Held(number, f"vm{number}", vrf, address(number))])
    among = fresh(net)
    for switch, program in alone.items():
        assert program.items() <= among[switch].items()
    ports = {vm_port(number) for number in range(11, 11 + len(vms))}
    for switch, program in among.items():
        for key in program.keys() - alone[switch].keys():
            # What is left is what tenants' NICs may not send, and goes to the controller as it came.
            entry = program[key]
            if isinstance(entry, Flow) and not is_of_a_vrf(entry):
                at_ports = {value for field, value, _ in entry.match if field is Field.IN_PORT}
                assert entry.table == Table.ADMIT
                assert at_ports <= ports


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "vrf",
                "no vrf",
                "no vnets",
                "subnet",
                "no subnet",
                "vm",
                "no vm",
                "move",
                "port",
                "exit",
                "prefix",
                "lease",
            ]
        ),
        st.sampled_from(["red", "green"]),
        st.integers(1, 3),
    ),
    max_size=20,
)


@settings(deadline=None, max_examples=examples(40))
@given(steps=STEPS, ipv6=st.booleans(), over=st.sampled_from(OVER))
def test_incremental_equals_recomputed(steps: list[tuple[str, str, int]], ipv6: bool, over: str) -> None:
    net = fabric(over_ip=over == "tunnels", by_mac=over == "macs")
    add_default_vm(net, 1, 1)
    equals_recomputed(net, steps, lambda step: change(net, *step, ipv6))


def change(net: Network, what: str, vrf: str, number: int, ipv6: bool) -> Touched:
    id = f"{vrf}{number}"
    match what:
        case "vrf":
            return every(net, lambda: add_tenant(net, vrf, ipv6))
        case "no vrf":
            return net.remove_vrf(vrf)
        case "no vnets":
            for vnet in [one.id for one in net.vnets.values() if one.vrf == vrf]:
                net.remove_vnet(vnet)
            return NOTHING
        case "no subnet":
            return net.remove_subnet([f"{vrf}blue", f"{vrf}beside", f"{vrf}blue6"][number - 1])
        case "subnet":
            known = net.subnets.get(f"{vrf}blue")
            if known is None:
                return NOTHING
            return net.add_subnet(replace(known, gateway=known.prefix.network_address + number))
        case "vm" if vrf in net.vrfs and id not in net.vms:
            held = Held(20 + number + 10 * (vrf == "red"), id, vrf, address(number, beside=number == 3))
            return every(net, lambda: add_vm(net, id, number, [held]))
        case "no vm":
            return net.remove_vm(id)
        case "move" if id in net.vms:
            return net.put_vm(replace(net.vms[id], server=f"server{number % 3 + 1}"))
        case "port" if id in net.vms:
            nic = net.vms[id].nic
            return net.set_vm_port(nic.port_id, f"edge{number}", VMPort(200 + number))
        case "exit":
            return toggled_exit(net, vrf, 99 + number)
        case "prefix" if id in net.vms:
            old = net.vms[id].nic
            prefixes = () if old.prefixes else (IPv4Network((int(PREFIX[0]) + 16 * number, 28)),)
            return net.change_nic(id, old, replace(old, prefixes=prefixes))
        case "lease" if id in net.vms and ipv6:
            leased = IPv6Network((int(DELEGATED[0]) + (number << 68), 60))
            nic = net.vms[id].nic
            lease = Assignment(
                leased[0], nic.mac, id, BindingKind.DYNAMIC, Origin.CONTROLLER, 1e10, vrf=vrf, prefix=leased
            )
            return net.unassign(lease.key) if lease.key in net.assignments else net.assign(lease)
        case _:
            return NOTHING


def toggled_exit(net: Network, vrf: str, vlan: int) -> Touched:
    """The default VRF's router leads out of this one, too, or no more."""
    router = net.servers["router"]
    kept = tuple(one for one in router.subinterfaces if one.vrf != vrf)
    if len(kept) == len(router.subinterfaces):
        kept = (*kept, Subinterface(vrf, vlan, ALL, ROUTER_ADDRESS))
    return net.put_server(replace(router, subinterfaces=kept))


def every(net: Network, made: Callable[[], object]) -> Touched:
    """What is made in several steps touches all."""
    with suppress(ModelError):
        made()
    return net.everything()

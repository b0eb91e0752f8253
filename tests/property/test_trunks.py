"""NICs in trunks, beside others, over random networks, placements, moves and histories.

1. In every state, also after any single switch between two stages of an update: a packet comes to who has the
   address in the sender's VRF, once, with the tag that is that NIC's at its port; nothing forged, and nothing
   with another tag, comes anywhere; whoever asks hears the answer with its own tag.
2. A trunk changes no entry of anybody else's, and a VM without one has those that it had.
3. Incremental = recomputed, while trunks, vnets and subnets come and go.
"""

from dataclasses import replace
from ipaddress import IPv4Network

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue.core.model import NIC, Network, Subnet, VMPort, Vnet
from retinue.core.model.network import NOTHING, Owner, Touched
from support.examples import examples
from support.fabric.histories import Move, equals_recomputed, fresh
from support.fabric.networks import add_vm as add_default_vm
from support.fabric.networks import fabric, vm_mac, vm_port
from support.fabric.trunked import PLACES, Member, Trunked, add_places, add_vm, plug
from support.fabric.world import FabricWorld


@st.composite
def trunked(draw: st.DrawFn) -> Trunked:
    """Two or three VMs, the first with one or two VLANs in a trunk; of others they are so, too, or not."""
    leaves, spines = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    servers = draw(st.integers(2, 3))
    servers_on = tuple(draw(st.lists(st.integers(1, leaves), min_size=servers, max_size=servers)))
    net = fabric(leaves, spines, servers_on)
    ipv6 = draw(st.booleans(), label="IPv6")
    add_places(net, ipv6)
    members: list[Member] = []
    at: dict[str, int] = {}
    for number in range(1, draw(st.integers(2, 3)) + 1):
        vm, first = f"vm{number}", len(members) + 1
        least = 1 if number == 1 else 0
        places = draw(st.lists(st.sampled_from(PLACES), min_size=least, max_size=2, unique=True), label=vm)
        own = [Member(first, vm, None, first)]
        for place in places:
            in_trunk = number == 1 or draw(st.booleans(), label="in the trunk")
            mine = first + len(own)
            own.append(Member(mine, vm, place, first if in_trunk else mine, ipv6))
        at[vm] = draw(st.integers(1, servers), label="server")
        add_vm(net, vm, at[vm], own)
        members += own
    return Trunked(FabricWorld(net), members, at, {vm: {server} for vm, server in at.items()})


@settings(deadline=None, max_examples=examples(4), suppress_health_check=[HealthCheck.too_slow])
@given(world=trunked(), data=st.data())
def test_each_vlan_is_its_vnets_in_every_state_of_a_move(world: Trunked, data: st.DataObject) -> None:
    net = world.world.net
    world.check()
    move = Move(world.world, data, "vm1", world.at["vm1"], world.passes)
    plug(net, move.vm, move.target, [one for one in world.members if one.vm == "vm1"])
    move.run([Owner("vm", "vm1")])
    world.check()
    move.admit()
    world.check()
    world.may_arrive["vm1"] = {move.source, move.target}
    world.at["vm1"] = move.target
    move.divert(stands_still=True)
    world.check()
    world.copied.add("vm1")
    move.copy()
    world.check()
    move.put(move.diverted)
    world.copied.clear()
    world.may_arrive["vm1"] = {move.target}
    world.check()
    move.close()
    world.check()
    move.end()
    world.check()


@settings(deadline=None, max_examples=examples(12))
@given(places=st.lists(st.sampled_from(PLACES), min_size=1, unique=True), ipv6=st.booleans())
def test_a_trunk_changes_no_entry_of_anybody_elses(places: list, ipv6: bool) -> None:  # type: ignore[type-arg]
    net = fabric()
    for number in (1, 2):
        add_default_vm(net, number, number)
    add_places(net, ipv6)
    alone = fresh(net)
    members = [Member(20, "vm20", None, 20)]
    members += [Member(n, "vm20", place, 20, ipv6) for n, place in enumerate(places, 21)]
    add_vm(net, "vm20", 1, members)
    among = fresh(net)
    for switch, program in alone.items():
        assert program.items() <= among[switch].items()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["vm", "no vm", "nic", "no nic", "move", "subnet", "no subnet", "disable", "vnet"]),
        st.integers(0, 3),
    ),
    max_size=20,
)


@settings(deadline=None, max_examples=examples(30))
@given(steps=STEPS, ipv6=st.booleans())
def test_incremental_equals_recomputed(steps: list[tuple[str, int]], ipv6: bool) -> None:
    net = fabric()
    add_default_vm(net, 1, 1)
    add_places(net, ipv6)
    equals_recomputed(net, steps, lambda step: change(net, *step))


def change(net: Network, what: str, number: int) -> Touched:
    place, vm = PLACES[number], net.vms.get("vm20")
    match what:
        case "vm" if vm is None:
            add_vm(net, "vm20", 1, [Member(20, "vm20", None, 20), Member(21 + number, "vm20", place, 20)])
            return frozenset({Owner("vm", "vm20")})
        case "no vm":
            return net.remove_vm("vm20")
        case "nic" if vm is not None:
            new = NIC(vm_mac(30 + number), f"vm20-{number + 5}", vnet=place.vnet, slot=0, trunk="vm20")
            return net.put_vm(replace(vm, nics=(*vm.nics, new)))
        case "no nic" if vm is not None:
            left = tuple(one for one in vm.nics if one.vnet != place.vnet)
            gone = [one for one in vm.nics if one.vnet == place.vnet]
            touched = NOTHING
            for held in [held for nic in gone for held in net.assignments_of(vm, nic)]:
                touched |= net.unassign(held.key)
            return touched | net.put_vm(replace(vm, nics=left))
        case "move" if vm is not None:
            touched = net.set_vm_port("vm20", f"edge{number % 3 + 1}", VMPort(vm_port(20)))
            return touched | net.put_vm(replace(vm, server=f"server{number % 3 + 1}"))
        case "subnet":
            prefix = IPv4Network(f"10.8.{number}.0/24")
            return net.add_subnet(
                Subnet(f"more{number}", prefix, prefix.network_address + 1, vnet=place.vnet)
            )
        case "no subnet":
            return net.remove_subnet(f"more{number}")
        case "disable" if vm is not None:
            nic = vm.nics[number % len(vm.nics)]
            return net.change_nic("vm20", nic, replace(nic, enabled=not nic.enabled))
        case "vnet":
            return net.put_vnet(Vnet(place.vnet, place.vlan + 100, vrf=place.vrf))
        case _:
            return NOTHING

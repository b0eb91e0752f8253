"""Flooding inside vnets, over random networks, placements, moves and histories.

1. In every state of a move: what a NIC of a vnet that floods sends to a group comes to each other NIC of the
   vnet, once, where its VM is delivered (and, while copies are made, where these go); to nobody of another
   vnet, VRF, or of none; nothing forged is replicated, nothing comes back, nothing loops. Between two
   switches of a diversion a copy may come to both of a VM's places, and never to neither.
2. A network in which no vnet floods has the entries that it had.
3. Incremental = recomputed, while vnets begin to flood and cease.
"""

from contextlib import suppress
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue.core.model import Flood, ModelError, Network, PortRef, Subnet, VMPort
from retinue.core.model.network import NOTHING, Touched
from support.examples import examples
from support.fabric.flooded import PREFIXES, VNETS, Flooded, Member, add_vm, add_vnets
from support.fabric.histories import Move, equals_recomputed, fresh
from support.fabric.networks import OVER, add_ipv6, add_uplink, fabric
from support.fabric.world import FabricWorld


@st.composite
def flooded(draw: st.DrawFn) -> Flooded:
    """Two to five VMs with a NIC or two each, most of them in vnets that flood."""
    leaves, spines = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    servers = draw(st.integers(2, 4))
    servers_on = tuple(draw(st.lists(st.integers(1, leaves), min_size=servers, max_size=servers)))
    over = draw(st.sampled_from(OVER), label="what joins the leaves")
    net = fabric(leaves, spines, servers_on, over_ip=over == "tunnels", by_mac=over == "macs")
    if leaves > 1 and not net.over_ip:
        for number in draw(st.sets(st.integers(1, servers)), label="servers with two uplinks"):
            add_uplink(net, number, servers_on[number - 1] % leaves + 1)
    ipv6 = draw(st.booleans(), label="IPv6")
    if ipv6:
        add_ipv6(net)
    add_vnets(net, ipv6)
    members: list[Member] = []
    at: dict[str, int] = {}
    kinds = st.sampled_from(["shop", "shop", "shop", "reds", "store", "quiet", ""])
    for number in range(1, draw(st.integers(2, 5)) + 1):
        vm = f"vm{number}"
        vnets = draw(st.lists(kinds, min_size=1, max_size=2), label=f"vnets of {vm}")
        own = [Member(len(members) + i, vm, vnet) for i, vnet in enumerate(vnets, 1)]
        at[vm] = draw(st.integers(1, servers), label="server")
        add_vm(net, vm, at[vm], own)
        members += own
    gets_at = {vm: ({place}, set[int]()) for vm, place in at.items()}
    return Flooded(FabricWorld(net), members, at, gets_at, ipv6)


@settings(deadline=None, max_examples=examples(6), suppress_health_check=[HealthCheck.too_slow])
@given(world=flooded(), data=st.data())
def test_each_copy_comes_once_in_every_state_of_a_move(world: Flooded, data: st.DataObject) -> None:
    net = world.world.net
    world.check()
    vm = data.draw(st.sampled_from(sorted(world.at)))
    move = Move(world.world, data, vm, world.at[vm], world.check)
    source, target = move.source, move.target

    def comes(each: set[int], some: set[int]) -> None:
        world.gets_at[vm] = (each, some)
        world.check()

    mine = [one.number for one in world.members if one.vm == vm]
    move.plug((nic.port_id, number) for nic, number in zip(net.vms[vm].nics, mine, strict=True))
    world.check()
    move.admit()
    world.check()
    # It has run at its source; what is sent it comes to one of both or, for a moment, to both.
    world.gets_at[vm] = ({source}, {target})
    move.divert(each=Either(world, vm, source, target).check)
    comes({target}, set())
    world.gets_at[vm] = ({target}, {source})
    move.copy()
    comes({source, target}, set())
    if data.draw(st.booleans(), label="undone"):
        world.gets_at[vm] = ({source}, {target})
        move.undo()
        comes({source}, set())
        assert world.world.compiler.programs == fresh(net)
        return
    # It resumes at the target.
    world.at[vm] = target
    world.gets_at[vm] = ({target}, {source})
    move.close()
    comes({target}, set())
    move.end()


class Either:
    """While the edges of a diversion are told: a copy comes to one of the VM's places, or to both."""

    def __init__(self, world: Flooded, vm: str, *places: int) -> None:
        self._world, self._vm, self._places = world, vm, set(places)

    def check(self) -> None:
        failures = 0
        for place in self._places:
            self._world.gets_at[self._vm] = ({place}, self._places - {place})
            try:
                self._world.check()
            except AssertionError:
                failures += 1
        assert failures < len(self._places), "a copy comes to neither place"


@settings(deadline=None, max_examples=examples(5))
@given(world=flooded())
def test_without_flooding_nothing_is_left_of_it(world: Flooded) -> None:
    net = world.world.net
    for vnet in VNETS.values():
        if vnet.floods:
            world.world.apply(net.put_vnet(replace(vnet, flood=Flood.DROPPED)))
    assert world.world.compiler.programs == fresh(net)
    for program in world.world.compiler.programs.values():
        assert not [e for e in program.values() if getattr(e, "replicates", False)]
        assert not [key for key in program if key[0] == "meter" and int(key[1]) >= 7 << 15]
    for sender in world.members:
        world.world.floods_nothing(sender.number, world.at[sender.vm])


NEW = Subnet("shop", PREFIXES["shop"], PREFIXES["shop"][254], vnet="shop")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["flood", "drop", "vlan", "vm", "no vm", "move", "also", "port", "no port", "nic",
                         "off", "ports", "no ports", "subnet", "no subnet", "location", "ipv6"]),
        st.integers(1, 3),
        st.integers(1, 3),
    ),
    max_size=25,
)  # fmt: skip


@settings(deadline=None, max_examples=examples(40))
@given(steps=STEPS, over=st.sampled_from(OVER))
def test_incremental_equals_recomputed(steps: list[tuple[str, int, int]], over: str) -> None:
    net = fabric(over_ip=over == "tunnels", by_mac=over == "macs")
    add_vnets(net, ipv6=False)
    for leaf in ("leaf1", "leaf2"):
        net.set_ports(leaf, {**net._numbers[leaf], "x1": 301, "x2": 302, "x3": 303})
    equals_recomputed(net, steps, lambda step: change(net, *step))


def change(net: Network, what: str, one: int, other: int) -> Touched:
    vm, vnet = f"vm{one}", VNETS[("shop", "store", "reds")[other - 1]]
    known = net.vms.get(vm)
    match what:
        case "flood":
            return net.put_vnet(vnet)
        case "drop":
            return net.put_vnet(replace(vnet, flood=Flood.DROPPED))
        case "vlan":
            return net.put_vnet(replace(net.vnets[vnet.id], vlan=100 + one + 10 * other))
        case "vm" if known is None:
            with suppress(ModelError):  # Its port is another's, or its subnet has gone.
                add_vm(net, vm, one, [Member(one, vm, vnet.id)])
            return net.everything()
        case "no vm":
            return net.remove_vm(vm)
        case "move" if known is not None:
            return net.put_vm(replace(known, server=f"server{other}", also=frozenset()))
        case "also" if known is not None:
            return net.put_vm(replace(known, also=frozenset({f"server{other}"}) - {known.server}))
        case "port" if known is not None:
            return net.set_vm_port(known.nic.port_id, f"edge{other}", VMPort(200 + one))
        case "no port" if known is not None:
            return net.set_vm_port(known.nic.port_id, f"edge{other}", None)
        case "nic" if known is not None:
            touched = NOTHING
            for held in net.held_by(vm):
                touched |= net.unassign(held.key)
            return touched | net.put_vm(replace(known, nics=(replace(known.nic, vnet=vnet.id),)))
        case "off" if known is not None:
            return net.put_vm(replace(known, nics=(replace(known.nic, enabled=not known.nic.enabled),)))
        case "ports":
            return net.set_ports(f"edge{one}", {"up0": other})
        case "no ports":
            above = "spine1" if "spine1" in net.switches else "leaf1"
            switch = ("leaf1", "leaf2", above)[one - 1]
            return net.set_ports(switch, dict(list(net._numbers[switch].items())[other:]))
        case "subnet":
            return net.add_subnet(replace(net.subnets.get("shop") or NEW, vnet="shop"))
        case "no subnet":
            return net.remove_subnet("shop")
        case "location":
            return net.detect(f"server{one}", PortRef(f"leaf{other % 2 + 1}", f"x{one}"))
        case "ipv6":
            add_ipv6(net)
            return net.everything()
        case _:
            return NOTHING

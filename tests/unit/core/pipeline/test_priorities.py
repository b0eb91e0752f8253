"""The one table of priorities: every compiled entry is named there, and the names give the order."""

from dataclasses import replace
from itertools import pairwise

import pytest

from retinue.core.model import DEFAULT_VNET, NIC, Flood, Role, Vnet
from retinue.core.model.network import Network
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Flow
from retinue.core.pipeline.priorities import PRIORITIES, TABLE_MISS, VRF_BAND, LeafAdmit, Route, Servers
from retinue.core.pipeline.tables import Table
from support.fabric.domains import Domains, gateway_of, server_of
from support.fabric.networks import (
    add_ipv6,
    add_uplink,
    add_vm,
    fabric,
    holding6,
    moved,
    server,
    vm_ip,
    vm_mac,
)
from support.fabric.storage import add_forwarder, login
from support.fabric.tenants import add_tenants
from support.fabric.ways_out import add_exits


def diverted_network() -> Network:
    """Every kind of entry: a fenced server, one not found, a VM that serves DHCP, one with a trunk, one
    diverted, copied and forwarded, a vnet that takes less than switches; three tiers."""
    net = fabric(4, cores=2)
    net.channel_kbps = 1000
    net.put_vnet(replace(DEFAULT_VNET, mtu=1400))
    net.switches["edge1"] = replace(net.switches["edge1"], vdp=True)
    add_uplink(net, 2, 4)
    net.fence("server3")
    net.put_server(replace(server(9), edge=""))
    add_ipv6(net)
    add_vm(net, 2, 2)
    nic = net.vms["vm2"].nic
    net.change_nic("vm2", nic, replace(nic, trusted=True))
    net.put_vnet(Vnet("shop", 42, flood=Flood.CONTROLLED))
    for number in (4, 5):
        nic = add_vm(net, number, number - 3).nic
        net.unassign(vm_ip(number))
        net.change_nic(f"vm{number}", nic, replace(nic, vnet="shop"))
    net.put_vnet(Vnet("dmz", 43))
    trunk = add_vm(net, 6, 1)
    in_trunk = NIC(vm_mac(7), "vm6-2", vnet="dmz", slot=0, trunk="vm6")
    net.put_vm(replace(trunk, nics=(*trunk.nics, in_trunk)))
    vm = moved(add_vm(net, 1, 1, ports_on=(2,)), "server2")
    net.put_vm(type(vm)(vm.id, vm.nics, vm.server, vm.also, copied_to="server1", forwarded_from="server1"))
    net.assign(holding6(2))
    add_forwarder(net)
    net.log_in(login(1))
    return net


def joined_by_ip() -> Network:
    """Leaves that tunnels join, a vnet that floods, a fenced server."""
    net = fabric(over_ip=True)
    net.put_vnet(Vnet("shop", 42, flood=Flood.CONTROLLED))
    for number in (1, 2):
        vm = add_vm(net, number, number, bound=False)
        net.change_nic(vm.id, vm.nic, replace(vm.nic, vnet="shop"))
    net.fence("server2")
    add_tenants(net)
    add_exits(net, {"red": 100}, apart=True)
    return net


def by_mac() -> Network:
    """Spines that know MACs alone, and leaves whose servers are all fenced."""
    net = fabric(by_mac=True)
    for name in net.servers:
        net.fence(name)
    return net


def joined_domains() -> tuple[Network, ...]:
    """One with a guest of the other, where that is away."""
    domains = Domains(1, 1, dual=True)
    domains.add("b", "a", 1, server_of("b", 1))
    domains.add("a", "a", 1, gateway_of("a"))
    return tuple(domains.nets.values())


def compiled() -> dict[tuple[Role, Table], set[int]]:
    """Priorities in use, those of subnets' and other prefixes without the prefix length."""
    found: dict[tuple[Role, Table], set[int]] = {}
    over_others = (joined_by_ip(), fabric(2, over_routers=True))
    for net in (diverted_network(), by_mac(), *joined_domains(), *over_others):
        add_priorities(net, found)
    return found


def add_priorities(net: Network, found: dict[tuple[Role, Table], set[int]]) -> None:
    compiler = Compiler(net)
    compiler.update(net.everything())
    for switch, program in compiler.programs.items():
        for entry in program.values():
            if isinstance(entry, Flow) and entry.priority not in (TABLE_MISS, VRF_BAND + TABLE_MISS):
                in_band = entry.priority > VRF_BAND and entry.table not in (Table.ADMIT, Table.SERVERS)
                priority = entry.priority - VRF_BAND * in_band
                for base in (Route.PREFIX, Route.SIZE) if entry.table == Table.ROUTE else ():
                    priority = base if base < priority <= base + 128 else priority
                found.setdefault((net.switches[switch].role, Table(entry.table)), set()).add(priority)


def test_every_entry_has_a_named_priority_and_every_name_an_entry() -> None:
    named = {where: {int(p) for p in names} for where, names in PRIORITIES.items()}
    used = compiled()
    assert used.keys() == named.keys()
    for where, priorities in used.items():
        assert priorities <= named[where], where
    # A table that several roles have is named once; between them they use each name.
    for where, names in named.items():
        by_any = set().union(*(used[other] for other in used if PRIORITIES[other] is PRIORITIES[where]))
        assert by_any == names, where


@pytest.mark.parametrize("names", dict.fromkeys(PRIORITIES.values()), ids=lambda names: names.__name__)
def test_names_stand_in_their_order(names: type[LeafAdmit]) -> None:
    assert all(above > below > TABLE_MISS for above, below in pairwise(names))


def test_a_longer_prefix_wins_and_a_host_wins_over_every_prefix() -> None:
    assert Route.DEFAULT < Route.PREFIX
    assert Route.PREFIX + 128 < Route.HOST


def test_a_size_is_looked_at_before_all_else_and_below_the_next_band() -> None:
    assert max(other for other in Route if other != Route.SIZE) < Route.SIZE
    assert Route.SIZE + 128 < VRF_BAND


def test_a_copy_goes_up_only_from_where_it_is_let_in() -> None:
    assert LeafAdmit.COPY > LeafAdmit.TO_GATEWAY
    assert Servers.SERVER > Servers.FROM_ABOVE > Servers.UP

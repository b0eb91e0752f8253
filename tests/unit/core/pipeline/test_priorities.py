"""The one table of priorities: every compiled entry is named there, and the names give the order."""

from dataclasses import replace
from itertools import pairwise

import pytest

from retinue.core.model import Role
from retinue.core.model.network import Network
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Flow
from retinue.core.pipeline.priorities import PRIORITIES, TABLE_MISS, LeafAdmit, Route, Servers
from retinue.core.pipeline.tables import Table
from support.fabric.networks import add_ipv6, add_vm, fabric, moved


def diverted_network() -> Network:
    """Every kind of entry: a fenced server, a VM that serves DHCP, one diverted, copied and forwarded."""
    net = fabric()
    net.fence("server3")
    add_ipv6(net)
    add_vm(net, 2, 2)
    nic = net.vms["vm2"].nic
    net.change_nic("vm2", nic, replace(nic, trusted=True))
    vm = moved(add_vm(net, 1, 1, ports_on=(2,)), "server2")
    net.put_vm(type(vm)(vm.id, vm.nics, vm.server, vm.also, copied_to="server1", forwarded_from="server1"))
    return net


def compiled() -> dict[tuple[Role, Table], set[int]]:
    """Priorities in use, those of subnets' and other prefixes without the prefix length."""
    net = diverted_network()
    compiler = Compiler(net)
    compiler.update(net.everything())
    found: dict[tuple[Role, Table], set[int]] = {}
    for switch, program in compiler.programs.items():
        for entry in program.values():
            if isinstance(entry, Flow) and entry.priority != TABLE_MISS:
                prefix = entry.table == Table.ROUTE and Route.PREFIX < entry.priority <= Route.PREFIX + 128
                priority = Route.PREFIX if prefix else entry.priority
                found.setdefault((net.switches[switch].role, Table(entry.table)), set()).add(priority)
    return found


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


def test_a_copy_goes_up_only_from_where_it_is_let_in() -> None:
    assert LeafAdmit.COPY > LeafAdmit.TO_GATEWAY
    assert Servers.SERVER > Servers.FROM_SPINE > Servers.UP

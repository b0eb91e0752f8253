"""What may be judged by what has been told: each line of the table, and its opposite."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.core.model import NIC, PortRef, VMPort
from retinue.core.model.network import Network, Owner
from retinue.core.model.vrfs import DEFAULT_VRF
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import Flow, Group, Match
from retinue.core.pipeline.knowledge import Knowledge
from support.fabric import networks

EDGES = {"edge1", "edge2", "edge3"}
VM1, SERVER1, LEAF1 = Owner("vm", "vm1"), Owner("server", "server1"), Owner("switch", "leaf1")
STRANGER = Owner("vm", "nobody-knows-it")


@pytest.fixture
def net() -> Network:
    """vm1 is on server1, and its port is known there."""
    made = networks.fabric()
    networks.add_vm(made, 1, at=1)
    return made


def knowledge(net: Network, *, read: set[str] | None = None, kept: set[Owner] | None = None) -> Knowledge:
    compiler = Compiler(net)
    compiler.update(net.everything())
    return Knowledge(net, compiler, set(), set(read or ()), set(kept or ()))


def flow(owner: Owner, number: int | None = None) -> Flow:
    return Flow(20, 100, Match(), cookie=cookie(Reason.FORWARD, owner) if number is None else number)


# ---- by owner ----


def test_a_switchs_own_entries_are_known_when_it_is_here(net: Network) -> None:
    assert knowledge(net).knows(LEAF1, "leaf1")


@pytest.mark.parametrize("switch", ["edge1", "leaf1", "spine1"])
@pytest.mark.parametrize("owner", [VM1, SERVER1, LEAF1])
def test_what_is_kept_is_not_known_anywhere(net: Network, owner: Owner, switch: str) -> None:
    told = knowledge(net, read=EDGES, kept={owner})
    assert not told.knows(owner, switch)
    told.kept.clear()
    assert told.knows(owner, switch)


def test_a_server_is_known_where_its_location_is(net: Network) -> None:
    told = knowledge(net)
    assert told.knows(SERVER1, "leaf1") and told.knows(SERVER1, "spine1")
    net.put_server(
        replace(net.servers["server1"], id="server9", mac="02:00:00:00:00:99", edge="", address=None)
    )
    assert not told.knows(Owner("server", "server9"), "leaf1"), "nobody has seen it yet"
    assert told.knows(Owner("server", "server8"), "leaf1"), "there is none"


def test_a_spine_knows_a_server_once_its_leafs_ports_are_told() -> None:
    net = networks.fabric()
    net.detected["server1"] = PortRef("leaf9", "p1")
    told = knowledge(net)
    assert told.knows(SERVER1, "leaf1")
    assert not told.knows(SERVER1, "spine1")


def test_a_vm_is_known_at_its_edge_by_its_port_or_when_the_database_has_been_read(net: Network) -> None:
    told = knowledge(net)
    assert told.knows(VM1, "edge1"), "its port is there"
    net.set_vm_port("vm1", "edge1", None)
    assert not told.knows(VM1, "edge1")
    told.edges_read.add("edge2")
    assert not told.knows(VM1, "edge1"), "another's says nothing"
    told.edges_read.add("edge1")
    assert told.knows(VM1, "edge1"), "it has none"


def test_a_vm_is_known_at_its_edge_when_all_of_its_nics_ports_are(net: Network) -> None:
    vm = net.vms["vm1"]
    net.put_vm(replace(vm, nics=(*vm.nics, NIC(networks.vm_mac(17), "vm1-2", slot=2))))
    told = knowledge(net)
    assert not told.knows(VM1, "edge1"), "one of two"
    net.set_vm_port("vm1-2", "edge1", VMPort(99))
    assert told.knows(VM1, "edge1")


def test_of_two_who_are_asked_nobody_has_the_others_answers(net: Network) -> None:
    """What one controller knows is not shared with another that was made like it."""
    compiler = Compiler(net)
    one, other = Knowledge(net, compiler, set()), Knowledge(net, compiler, set())
    one.edges_read.add("edge1")
    assert other.edges_read == set()


def test_at_an_edge_where_it_is_not_there_is_nothing_of_a_vm_to_know(net: Network) -> None:
    net.set_vm_port("vm1", "edge1", None)
    told = knowledge(net)
    assert told.knows(VM1, "edge2")
    net.put_vm(replace(net.vms["vm1"], also=frozenset({"server2"})))
    assert not told.knows(VM1, "edge2"), "it may be there during its migration"


@pytest.mark.parametrize("switch", ["leaf1", "spine1"])
def test_elsewhere_a_vm_is_known_when_its_servers_are(net: Network, switch: str) -> None:
    net.set_vm_port("vm1", "edge1", None)
    told = knowledge(net)
    assert told.knows(VM1, switch), "its port does not matter here"
    del net.detected["server1"]
    assert not told.knows(VM1, switch)


def test_an_anycast_address_is_known_when_each_that_has_it_is(net: Network) -> None:
    """While one of them is not, another seems to be the nearest."""
    service = IPv4Address("10.9.9.9")
    networks.add_vm(net, 2, at=2)
    for vm in ("vm1", "vm2"):
        net.put_vm(replace(net.vms[vm], nics=(replace(net.vms[vm].nic, anycast=(service,)),)))
    owner = Owner("anycast", str(service))
    assert knowledge(net, read=EDGES).knows(owner, "leaf1")
    assert knowledge(net, read={"edge1"}).knows(owner, "edge1")
    assert not knowledge(net, read={"edge1", "edge3"}).knows(owner, "edge2")
    told = knowledge(net, read={"edge1", "edge3"})
    told.all_vms_known = True
    assert not told.knows(owner, "leaf1"), "the port of vm2 may be there, or not"
    kept = knowledge(net, read=EDGES, kept={VM1})
    assert not kept.knows(owner, "leaf1")
    assert kept.is_kept(flow(owner))


def test_a_routed_prefix_is_known_when_the_routers_are(net: Network) -> None:
    """Nobody may send as one of it there, wherever that is."""
    nic = net.vms["vm1"].nic
    prefix = IPv4Network("10.9.0.16/28")
    net.change_nic("vm1", nic, replace(nic, prefixes=(prefix,)))
    owner, told = Owner.of_prefix(prefix, DEFAULT_VRF), knowledge(net)
    assert told.knows(owner, "leaf1") and told.knows(owner, "spine1")
    net.put_server(replace(net.servers["router"], given_at=None))
    assert not told.knows(owner, "leaf1")


def test_of_a_vm_that_has_gone_all_is_known(net: Network) -> None:
    assert knowledge(net).knows(STRANGER, "edge1")


# ---- by entry ----


def test_what_is_none_of_ours_is_judged_at_once(net: Network) -> None:
    told = knowledge(net)
    assert told.may_judge(flow(VM1, 0x1234), "edge1")
    assert told.may_judge(Group(7, ()), "edge1")


def test_what_has_not_been_computed_is_not_judged(net: Network) -> None:
    told = knowledge(net, read=EDGES)
    assert told.may_judge(flow(VM1), "edge1")
    told.not_computed = {VM1}
    assert not told.may_judge(flow(VM1), "edge1")
    assert told.may_judge(flow(SERVER1), "edge1"), "another's is"


def test_what_was_never_heard_of_waits_on_an_edge_for_its_database(net: Network) -> None:
    told = knowledge(net, read={"edge2", "edge3"})
    told.all_vms_known = True
    assert not told.may_judge(flow(STRANGER), "edge1"), "whoever made its port may not be registered"
    told.edges_read.add("edge1")
    assert told.may_judge(flow(STRANGER), "edge1")


@pytest.mark.parametrize("switch", ["leaf1", "spine1"])
def test_elsewhere_it_waits_for_every_edges_or_for_the_controllers_own(net: Network, switch: str) -> None:
    told = knowledge(net, read={"edge2", "edge3"})
    assert not told.may_judge(flow(STRANGER), switch)
    told.all_vms_known = True
    assert told.may_judge(flow(STRANGER), switch)
    told.all_vms_known = False
    told.edges_read.add("edge1")
    assert told.may_judge(flow(STRANGER), switch)


def test_what_was_known_and_went_is_judged_at_once(net: Network) -> None:
    told = knowledge(net)
    net.remove_vm("vm1")
    told.compiler.update({VM1})
    assert told.may_judge(flow(VM1), "edge1")


def test_an_entry_is_kept_with_its_owner(net: Network) -> None:
    told = knowledge(net, kept={VM1})
    assert told.is_kept(flow(VM1))
    assert not told.is_kept(flow(SERVER1))
    assert not told.is_kept(Group(7, ()))
    told.kept.clear()
    assert not told.is_kept(flow(VM1))

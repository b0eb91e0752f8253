"""IPv6 on fake switches: what a VM may say from where, and what it costs in entries."""

from collections import Counter
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

import pytest

from retinue.core.model import VM, Network, Subnet
from retinue.core.model.link_local import UNSPECIFIED, link_local
from retinue.core.model.network import Owner
from retinue.core.packets import ND, RouterAdvertisement, nd_frame
from retinue.core.packets.dhcp6 import dhcp6_frame
from retinue.core.pipeline.compiler import Compiler, contribution
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.core.pipeline.edge_ipv6 import UNREAD_HEADERS
from retinue.core.pipeline.entry import Field, Flow
from retinue.core.pipeline.meters import VMMeter
from support.fabric import ipv6
from support.fabric.dhcp6 import add_dhcp6
from support.fabric.networks import (
    GATEWAY6,
    GATEWAY_MAC,
    add_ipv6,
    add_vm,
    fabric,
    holding6,
    moved,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.world import FabricWorld, tagged, udp_frame

AT = {1: 1, 2: 2, 3: 3, 4: 1}
"""vm1 on server1, vm2 on server2 (other leaf), vm3 on server3 (same leaf), vm4 on server1."""


def dual() -> Network:
    net = fabric()
    add_ipv6(net)
    for number, at in AT.items():
        add_vm(net, number, at)
        net.assign(holding6(number))
    return net


@pytest.fixture
def world() -> FabricWorld:
    return FabricWorld(dual())


def test_both_families_reach_and_no_forgery_does(world: FabricWorld) -> None:
    ipv6.check(world, AT, {number: {at} for number, at in AT.items()}, thorough=True)
    world.reaches(1, 1, to=2, locations=[2])
    world.reaches_outside(1, 1)


def test_the_hop_limit_goes_down_once(world: FabricWorld) -> None:
    frame = ipv6.udp6_frame(vm_mac(1), GATEWAY_MAC, ipv6.vm_ip6(1), ipv6.vm_ip6(2))
    for delivery in world.send(1, 1, frame):
        assert delivery.arrivals[0][2][21] == frame[21] - 1


@pytest.mark.parametrize("number", UNREAD_HEADERS)
def test_nothing_is_hidden_behind_a_header_that_a_switch_does_not_read(
    world: FabricWorld, number: int
) -> None:
    """To a neighbour on the same edge, by its MAC: so its hop limit would still be 255."""
    own, its = ipv6.vm_ip6(1), ipv6.vm_ip6(4)
    for packet in (
        ND(own, its, RouterAdvertisement(1800)).build(),
        ipv6.asks(own, its, GATEWAY_MAC, its).build(),
        ipv6.udp6(own, its, sport=547, dport=546),
    ):
        for headers in ([(number, bytes(7))], [ipv6.NOTHING_OF_NOTE, (number, bytes(7))]):
            for to in (vm_mac(4), GATEWAY_MAC):
                world.goes_nowhere(1, 1, ipv6.frame6(vm_mac(1), to, ipv6.extended(packet, *headers)))


def test_local_traffic_stays_local_by_mac(world: FabricWorld) -> None:
    frame = ipv6.udp6_frame(vm_mac(1), vm_mac(4), ipv6.vm_ip6(1), ipv6.vm_ip6(4))
    (delivery,) = world.send(1, 1, frame)
    assert [hop.switch for hop in delivery.hops] == ["edge1"]
    assert delivery.arrivals == (("edge1", vm_port(4), frame),)


@pytest.mark.parametrize("src", [ipv6.vm_local(1), ipv6.vm_ip6(1)])
@pytest.mark.parametrize(
    "dst", [ipv6.vm_local(4), ipv6.vm_local(2), ipv6.vm_ip6(4), ipv6.vm_ip6(2), ipv6.OUTSIDE6]
)
@pytest.mark.parametrize("via", [GATEWAY_MAC, vm_mac(4), vm_mac(2)])
def test_what_has_the_scope_of_the_link_goes_nowhere_and_is_no_forgery(
    world: FabricWorld, src: IPv6Address, dst: IPv6Address, via: str
) -> None:
    """A link is a VM and the gateway: what is from or to such an address stays there (RFC 4291, 2.5.6)."""
    if not (src.is_link_local or dst.is_link_local):
        return
    for delivery in world.send(1, 1, ipv6.udp6_frame(vm_mac(1), via, src, dst)):
        assert (delivery.arrivals, delivery.to_controller) == ((), ())
        assert {hop.switch for hop in delivery.hops} == {"edge1"}, "it does not even leave the server"


def test_a_vm_without_an_address_of_ipv6_may_check_one_and_say_nothing_else() -> None:
    net = dual()
    net.unassign(ipv6.vm_ip6(1))
    world = FabricWorld(net)
    world.is_reported_spoofed(1, 1, ipv6.udp6_frame(vm_mac(1), GATEWAY_MAC, ipv6.vm_ip6(1), ipv6.vm_ip6(2)))
    check = ipv6.asks(UNSPECIFIED, ipv6.vm_ip6(1), None)
    (delivery,) = world.send(1, 1, nd_frame(check, vm_mac(1)))
    assert [reason_of(c) for _, c, _, _ in delivery.to_controller] == [Reason.VM_ND]
    world.reaches(1, 1, to=2, locations=[2])


def test_an_address_ends_with_its_lease_on_the_switch() -> None:
    """And nothing of IPv4 ends with it."""
    net = dual()
    net.assign(holding6(1, lease_end=100.0))
    world = FabricWorld(net)
    ended = world.fabric["edge1"].expire(100.0)
    assert ended
    assert {flow.expires_at for flow in ended} == {100.0}
    world.is_reported_spoofed(1, 1, nd_frame(ipv6.says(ipv6.vm_ip6(1), ipv6.vm_ip6(1), vm_mac(1)), vm_mac(1)))
    world.is_reported_spoofed(1, 1, ipv6.udp6_frame(vm_mac(1), GATEWAY_MAC, ipv6.vm_ip6(1), ipv6.vm_ip6(2)))
    world.reaches(1, 1, to=2, locations=[2])


def test_questions_and_forgeries_are_metered_by_the_port(world: FabricWorld) -> None:
    """A VM's flood of solicitations or forgeries is in nobody else's way."""
    edge = world.fabric["edge1"]
    question = nd_frame(ipv6.asks(ipv6.vm_ip6(1), GATEWAY6, None), vm_mac(1))
    to_the_switch = nd_frame(ipv6.asks(ipv6.vm_ip6(1), GATEWAY6, vm_mac(1)), vm_mac(1))
    elsewhere = nd_frame(ipv6.asks(ipv6.vm_ip6(1), ipv6.vm_ip6(2), vm_mac(1)), vm_mac(1))
    forgery = nd_frame(ipv6.advertises(ipv6.GATEWAY_LOCAL, vm_mac(1)), vm_mac(1))
    asked = ((VMMeter.ARP, one) for one in (question, to_the_switch, elsewhere))
    for meter, frame in (*asked, (VMMeter.SPOOFING, forgery)):
        edge.exhausted = set()
        seen = edge.receive(frame, vm_port(1))
        assert seen.to_controller or seen.outputs
        edge.exhausted = {meter.id(vm_port(1))}
        seen = edge.receive(frame, vm_port(1))
        assert not seen.to_controller
        assert not seen.outputs
    others = nd_frame(ipv6.asks(ipv6.vm_ip6(4), GATEWAY6, None), vm_mac(4))
    assert edge.receive(others, vm_port(4)).to_controller


def flows_of(net: Network, owner: Owner) -> Counter[str]:
    found: Counter[str] = Counter()
    for switch, program in contribution(net, owner).items():
        found[switch] += sum(isinstance(entry, Flow) for entry in program.values())
    return found


def test_what_ipv6_costs() -> None:
    """Nothing without a subnet of it; with one, some entries for each NIC, and a few for each address."""
    without, net = fabric(), fabric()
    add_ipv6(net)
    for known in (without, net):
        add_vm(known, 1, 1)
    vm = Owner("vm", "vm1")
    nic = flows_of(net, vm) - flows_of(without, vm)
    assert nic == {"edge1": 24}
    with_dhcp6 = fabric()
    add_dhcp6(with_dhcp6)
    add_vm(with_dhcp6, 1, 1)
    assert flows_of(with_dhcp6, vm) - flows_of(without, vm) == {"edge1": 25}
    without.assign(holding6(1))
    assert flows_of(without, vm) - flows_of(without, vm) == {}
    before = flows_of(net, vm)
    net.assign(holding6(1))
    assert flows_of(net, vm) - before == {"edge1": 8, "leaf1": 2, "spine1": 1, "spine2": 1}


def test_a_migration_takes_the_address_along_in_the_same_changes() -> None:
    """Each switch that is told of one family is told of the other at the same time."""
    net = dual()
    net.set_vm_port("vm1", "edge2", net.vm_ports["vm1"]["edge1"])
    compiler = Compiler(net)
    compiler.update(net.everything())

    def families(vm: VM) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for switch, keys in compiler.update(net.put_vm(vm)).items():
            terms = [key[2] for key in keys if len(key) == 3]
            found[switch] = {v for term in terms for field, v, _ in term if field is Field.ETH_TYPE}
        return found

    admitted = replace(net.vms["vm1"], also=frozenset({"server2"}))
    steps = [families(admitted), families(moved(admitted, "server2"))]
    steps.append(families(replace(net.vms["vm1"], also=frozenset())))
    for step in steps:
        assert step
        assert all((0x0800 in found) == (0x86DD in found) for found in step.values()), step
    world = FabricWorld(net)
    ipv6.check(world, AT | {1: 2}, {1: {2}, 2: {2}, 3: {3}, 4: {1}})


def test_the_first_subnet_of_ipv6_at_run_time_is_as_one_from_the_start() -> None:
    """Every NIC is guarded, and every address that waited for it is forwarded."""
    net = fabric()
    add_vm(net, 1, 1)
    net.assign(holding6(1))
    compiler = Compiler(net)
    compiler.update(net.everything())
    compiler.update(net.add_subnet(Subnet("blue6", IPv6Network("fd00:1::/64"), GATEWAY6)))
    anew = Compiler(net)
    anew.update(net.everything())
    assert compiler.programs == anew.programs
    assert flows_of(net, Owner("vm", "vm1"))["leaf1"] == 4


def test_a_tagged_question_at_a_leaf_is_nobodys(world: FabricWorld) -> None:
    router = world.net.servers["router"]
    question = nd_frame(ipv6.asks(link_local(router.mac), ipv6.GATEWAY_LOCAL, router.mac), router.mac)
    asked = (question, [Reason.SERVER_ND_ANSWERED])
    for frame, told in (asked, (tagged(question, 5), []), (tagged(question, 0), [])):
        (delivery,) = world.fabric.all_paths("leaf2", 91, frame)
        assert bool(delivery.arrivals) == bool(told)
        assert [reason_of(cookie) for _, cookie, _, _ in delivery.to_controller] == told


def test_what_the_dhcpv6_server_says_to_the_relay_goes_to_the_controller_and_nothing_like_it() -> None:
    net = fabric()
    add_dhcp6(net)
    world = FabricWorld(net)
    mac = net.servers["dhcp"].mac

    def said(sport: int, dport: int) -> bytes:
        return dhcp6_frame(b"\x0d", mac, GATEWAY_MAC, link_local(mac), GATEWAY6, sport, dport)

    relayed = said(547, 547)
    for port, frame, believed in (
        (90, relayed, True),
        (90, tagged(relayed, 5), False),
        (90, tagged(relayed, 0), False),
        (91, relayed, False),  # the router's port
        (90, said(546, 547), False),
        (90, said(547, 546), False),
    ):
        (delivery,) = world.fabric.all_paths("leaf2", port, frame)
        assert not delivery.arrivals
        reasons = [reason_of(cookie) for _, cookie, _, _ in delivery.to_controller]
        assert (Reason.DHCP6_SERVER in reasons) == believed, (port, frame)


def test_ipv4_is_no_way_round(world: FabricWorld) -> None:
    """An address of one family is none of the other."""
    world.is_reported_spoofed(1, 1, udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(2), vm_ip(3)))
    mapped = IPv6Address(f"::ffff:{vm_ip(1)}")
    world.is_reported_spoofed(1, 1, ipv6.udp6_frame(vm_mac(1), GATEWAY_MAC, mapped, ipv6.vm_ip6(2)))

"""VMs that are away, and guests, each have a meter of their own at the tunnel: none uses up the others'."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.model import domains
from retinue.core.model.link_local import ALL_ROUTERS, link_local
from retinue.core.packets import ND, NDOptions, RouterSolicitation, dhcp_frame, discover, nd_frame
from retinue.core.pipeline.entry import Meter
from retinue.core.pipeline.meters import SHARE_METERS, VMMeter
from support.fabric.domains import TUNNEL, Domains, nic, server_of

EVERYBODY = "ff:ff:ff:ff:ff:ff"


def away(world: Domains, number: int) -> bytes:
    """A VM without an address of IPv4 is away from domain a; what it asks by DHCP."""
    net, its = world.nets["a"], replace(nic("a", number), addresses=())
    vm = world.add("a", "a", number, "to-b")
    touched = net.put_vm(replace(vm, nics=(its, *vm.nics[1:])))
    for held in net.held_by(vm.id):
        touched |= net.unassign(held.key)
    world.install("a", touched)
    return dhcp_frame(
        discover(its.mac, 7), its.mac, EVERYBODY, IPv4Address(0), IPv4Address("255.255.255.255"), 68, 67
    )


def handed_up(world: Domains, frame: bytes) -> int:
    return sum(len(way.to_controller) for way in world.fabric.all_paths("a-edge3", TUNNEL, frame))


def share_meters(world: Domains, switch: str) -> set[int]:
    meters = [one for one in world.installed[switch].values() if isinstance(one, Meter)]
    assert all(one.rate == VMMeter.DHCP.rate for one in meters if one.id >= SHARE_METERS)
    return {one.id for one in meters if one.id >= SHARE_METERS}


def test_who_asks_too_much_uses_up_its_own_meter_alone() -> None:
    world = Domains(1, 1)
    floods, asks = away(world, 2), away(world, 3)
    number = world.nets["a"].share_of("vm-a2")
    assert number is not None
    world.fabric["a-edge3"].exhausted.add(SHARE_METERS + number)
    assert handed_up(world, floods) == 0
    assert handed_up(world, asks) == 1


def test_the_search_for_a_router_is_of_the_same_share() -> None:
    world = Domains(1, 1, dual=True)
    frames = {}
    for number in (2, 3):
        world.add("a", "a", number, "to-b")
        mac = nic("a", number).mac
        search = RouterSolicitation(NDOptions(source_mac=mac))
        frames[number] = nd_frame(ND(link_local(mac), ALL_ROUTERS, search), mac)
    world.fabric["a-edge3"].exhausted.add(SHARE_METERS + (world.nets["a"].share_of("vm-a2") or 0))
    assert handed_up(world, frames[2]) == 0
    assert handed_up(world, frames[3]) == 1


def test_the_meter_is_there_while_the_vm_is_away_and_goes_with_it() -> None:
    world = Domains(1, 1)
    net = world.nets["a"]
    vm = world.add("a", "a", 2, server_of("a", 1))
    assert not share_meters(world, "a-edge3")
    for server, also in (("to-b", set()), (server_of("a", 1), {"to-b"}), ("to-b", set())):
        world.install("a", net.put_vm(replace(vm, server=server, also=frozenset(also))))
        assert len(share_meters(world, "a-edge3")) == 1
    world.install("a", net.put_vm(vm))
    assert not share_meters(world, "a-edge3")
    world.install("a", net.put_vm(replace(vm, server="to-b")))
    world.install("a", net.remove_vm(vm.id))
    assert not share_meters(world, "a-edge3")
    assert not net._shares and not net._share_of


def test_a_guest_has_one_at_the_gateway_to_its_home() -> None:
    world = Domains(1, 1)
    world.add("b", "a", 2, server_of("b", 1))
    world.add("b", "b", 1, server_of("b", 2))
    assert len(share_meters(world, "b-edge3")) == 1
    assert not share_meters(world, "b-edge1")


def test_two_whose_names_lead_to_one_number_have_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "crc32", lambda name: 32_767)
    world = Domains(1, 1)
    for number in (2, 3):
        world.add("a", "a", number, "to-b")
    assert share_meters(world, "a-edge3") == {SHARE_METERS + 32_767, SHARE_METERS}


def test_where_all_are_taken_the_tunnels_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "SHARES", 1)
    world = Domains(1, 1)
    away(world, 2)
    last = away(world, 3)
    assert len(share_meters(world, "a-edge3")) == 1
    assert handed_up(world, last) == 1
    world.fabric["a-edge3"].exhausted.add(VMMeter.DHCP.id(TUNNEL))
    assert handed_up(world, last) == 0

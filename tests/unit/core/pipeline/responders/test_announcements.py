"""Who takes an address that several are allowed, by what it says: of both families."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from retinue.core.model import IP, Allowed, Assignment, BindingKind, Network
from retinue.core.model.link_local import ALL_NODES, ALL_ROUTERS, UNSPECIFIED
from retinue.core.packets import (
    ARP,
    ND,
    ArpOp,
    NDOptions,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    RouterSolicitation,
)
from retinue.core.pipeline.responders.announcements import Claim, claim_of_arp, claim_of_nd, taken
from support.fabric.ipv6 import asks, says, vm_ip6
from support.fabric.networks import GATEWAY6, add_ipv6, add_vm, fabric, vm_ip, vm_mac

SHARED, SHARED6 = IPv4Address("10.1.0.200"), IPv6Address("fd00:1::200")
VIRTUAL = "00:00:5e:00:02:07"
ONE, TWO = vm_mac(1), vm_mac(2)
ANYBODY = "00:00:00:00:00:00"


@pytest.fixture
def net() -> Network:
    """vm1 and vm2 may take an address of each family; vm3 may not. vm1 has both."""
    net = fabric()
    add_ipv6(net)
    for number in (1, 2, 3):
        vm = add_vm(net, number, number)
        if number < 3:
            net.change_nic(vm.id, vm.nic, replace(vm.nic, allowed=(Allowed(SHARED), Allowed(SHARED6))))
    for ip in (SHARED, SHARED6):
        given = take(net, 1, Claim(ip, ONE, announced=False))
        assert given is not None
        net.take(given)
    return net


def take(net: Network, number: int, claim: Claim, sender: str = "") -> Assignment | None:
    vm = net.vms[f"vm{number}"]
    return taken(net, vm, vm.nic, sender or vm_mac(number), claim)


def advertisement(*, override: bool = True, solicited: bool = False, mac: str | None = TWO) -> ND:
    options = NDOptions(target_mac=mac)
    said = NeighbourAdvertisement(SHARED6, True, solicited, override, options)
    return ND(SHARED6, vm_ip6(1) if solicited else ALL_NODES, said)


@pytest.mark.parametrize(
    ("said", "claim"),
    [
        (advertisement(), Claim(SHARED6, TWO, True)),
        (says(vm_ip6(2), SHARED6, TWO), Claim(SHARED6, TWO, True)),
        (advertisement(mac=None), Claim(SHARED6, TWO, True)),
        (advertisement(mac=ONE), Claim(SHARED6, ONE, True)),
        (advertisement(override=False), Claim(SHARED6, TWO, False)),
        (advertisement(solicited=True), Claim(SHARED6, TWO, False)),
        (asks(SHARED6, GATEWAY6, TWO), Claim(SHARED6, TWO, False)),
        (asks(SHARED6, GATEWAY6, None), Claim(SHARED6, TWO, False)),
        (asks(UNSPECIFIED, SHARED6, None), Claim(SHARED6, TWO, False)),
        (ND(SHARED6, ALL_ROUTERS, RouterSolicitation()), None),
    ],
)
def test_what_neighbour_discovery_claims(said: ND, claim: Claim | None) -> None:
    assert claim_of_nd(TWO, said) == claim


def test_what_arp_claims() -> None:
    for tpa, announced in ((SHARED, True), (vm_ip(1), False)):
        said = ARP(ArpOp.REQUEST, TWO, SHARED, ANYBODY, tpa)
        assert claim_of_arp(said) == Claim(SHARED, TWO, announced)


@pytest.mark.parametrize("ip", [SHARED, SHARED6])
def test_what_another_has_goes_to_who_announces_it_and_is_allowed_it(net: Network, ip: IP) -> None:
    assert take(net, 2, Claim(ip, TWO, announced=False)) is None
    assert take(net, 3, Claim(ip, vm_mac(3), announced=True)) is None
    assert take(net, 2, Claim(ip, ONE, announced=True)) is None
    assert take(net, 2, Claim(ip, TWO, announced=True), sender=ONE) is None
    assert take(net, 1, Claim(ip, ONE, announced=True)) is None, "it has it"
    got = take(net, 2, Claim(ip, TWO, announced=True))
    assert got is not None
    assert (got.ip, got.vm, got.mac, got.kind) == (ip, "vm2", TWO, BindingKind.ALLOWED)


def test_what_nobody_has_goes_to_who_speaks_for_it_first(net: Network) -> None:
    net.unassign(SHARED6)
    assert take(net, 2, Claim(SHARED6, TWO, announced=False)) is not None
    assert take(net, 3, Claim(SHARED6, vm_mac(3), announced=False)) is None


def test_a_virtual_router_claims_under_its_mac_alone(net: Network) -> None:
    nic = net.vms["vm2"].nic
    net.change_nic("vm2", nic, replace(nic, allowed=(Allowed(SHARED6, VIRTUAL),)))
    assert take(net, 2, Claim(SHARED6, TWO, announced=True)) is None
    assert take(net, 2, Claim(SHARED6, VIRTUAL, announced=True), sender=VIRTUAL) is not None


def test_a_solicitation_names_its_sender() -> None:
    said = ND(SHARED6, ALL_NODES, NeighbourSolicitation(GATEWAY6, NDOptions(source_mac=ONE)))
    assert claim_of_nd(TWO, said) == Claim(SHARED6, ONE, announced=False)

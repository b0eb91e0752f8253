"""Who is answered what by neighbour discovery, and who hears what of the gateway."""

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

import pytest

from retinue.core.model import BindingKind, Network, Subnet
from retinue.core.model.link_local import ALL_NODES, UNSPECIFIED
from retinue.core.packets import ND, NeighbourAdvertisement, RouterAdvertisement, RouterSolicitation
from retinue.core.pipeline.responders import nd
from support.fabric.ipv6 import (
    GATEWAY_LOCAL,
    OUTSIDE6,
    asks,
    vm_ip6,
    vm_local,
)
from support.fabric.networks import GATEWAY6, GATEWAY_MAC, add_ipv6, add_vm, fabric, holding6, moved, vm_mac

SERVER6 = IPv6Address("fd00:1::b")


@pytest.fixture
def net() -> Network:
    """vm1 and vm4 on server1, vm2 on server2; server3 has an address of IPv6."""
    made = fabric()
    add_ipv6(made)
    for number, at in ((1, 1), (2, 2), (4, 1)):
        add_vm(made, number, at, ports_on=(2,) if number == 4 else ())
        made.assign(holding6(number))
    made.put_server(replace(made.servers["server3"], address=SERVER6))
    return made


def answered(net: Network, asked: ND, switch: str = "edge1", vm: int = 1) -> tuple[str, bool] | None:
    """The MAC that vm1 hears of, and whether it is a router's."""
    said = nd.answer_to_vm(net, switch, net.vms[f"vm{vm}"], asked)
    if said is None:
        return None
    assert isinstance(said.message, NeighbourAdvertisement)
    assert said.message.override
    assert said.message.target == said.src == asked.message.target  # type: ignore[union-attr]
    assert said.message.solicited == (asked.src != UNSPECIFIED)
    assert said.dst == (asked.src if asked.src != UNSPECIFIED else ALL_NODES)
    assert said.message.options.target_mac is not None
    return said.message.options.target_mac, said.message.router


@pytest.mark.parametrize("src", [vm_ip6(1), vm_local(1), UNSPECIFIED], ids=["own", "link-local", "check"])
def test_the_gateway_neighbours_here_and_elsewhere(net: Network, src: IPv6Address) -> None:
    expected = {
        GATEWAY6: (GATEWAY_MAC, True),
        GATEWAY_LOCAL: (GATEWAY_MAC, True),
        vm_ip6(4): (vm_mac(4), False),
        vm_ip6(2): (GATEWAY_MAC, False),
        SERVER6: (GATEWAY_MAC, False),
        vm_ip6(1): None,
        vm_ip6(9): None,
        vm_local(4): (GATEWAY_MAC, False) if src == UNSPECIFIED else None,
        vm_local(1): None,
        OUTSIDE6: None,
    }
    for target, answer in expected.items():
        assert answered(net, asks(src, target, None)) == answer, target


def test_a_check_of_a_link_local_address_that_another_vm_has_made_itself_is_answered(net: Network) -> None:
    """Not of its own, nor of one that nobody has: the check has no answer, and the VM may have it."""
    own, others, free = (IPv6Address(f"fe80::1234:{last}") for last in (1, 2, 3))
    net.assign(replace(holding6(1), ip=own, kind=BindingKind.SLAAC))
    net.assign(replace(holding6(2), ip=others, kind=BindingKind.SLAAC))
    assert answered(net, asks(UNSPECIFIED, others, None)) == (GATEWAY_MAC, False)
    for target in (own, free):
        assert answered(net, asks(UNSPECIFIED, target, None)) is None, target


def test_a_neighbour_that_moved_away_has_the_gateways_mac(net: Network) -> None:
    question = asks(vm_ip6(1), vm_ip6(4), vm_mac(1))
    net.put_vm(moved(net.vms["vm4"], "server2"))
    assert answered(net, question) == (GATEWAY_MAC, False)
    assert answered(net, asks(vm_ip6(2), vm_ip6(4), None), "edge2", vm=2) == (vm_mac(4), False)


def test_who_is_in_another_subnet_asks_the_gateway(net: Network) -> None:
    net.add_subnet(Subnet("red6", IPv6Network("fd00:2::/64"), IPv6Address("fd00:2::fe")))
    assert answered(net, asks(IPv6Address("fd00:2::5"), vm_ip6(2), None)) is None
    assert answered(net, asks(vm_ip6(1), IPv6Address("fd00:2::fe"), None)) == (GATEWAY_MAC, True)


def test_a_machine_at_a_leaf_finds_the_gateway_and_vms(net: Network) -> None:
    router = IPv6Address("fe80::1")
    for target, known in (
        (GATEWAY6, True), (GATEWAY_LOCAL, True), (vm_ip6(1), True), (SERVER6, True), (vm_ip6(9), False),
        (vm_local(1), False), (OUTSIDE6, False),
    ):  # fmt: skip
        said = nd.answer_to_server(net, asks(router, target, None))
        assert (said is not None) == known, target
        if said is not None:
            assert isinstance(said.message, NeighbourAdvertisement)
            assert said.message.options.target_mac == GATEWAY_MAC
            assert said.message.router == (target in (GATEWAY6, GATEWAY_LOCAL)), target
    assert nd.answer_to_server(net, asks(SERVER6, SERVER6, None)) is None
    assert nd.answer_to_server(net, asks(OUTSIDE6, vm_ip6(1), None)) is None


def test_what_is_no_solicitation_has_no_answer(net: Network) -> None:
    other = ND(vm_local(1), ALL_NODES, RouterSolicitation())
    assert nd.answer_to_vm(net, "edge1", net.vms["vm1"], other) is None
    assert nd.answer_to_server(net, other) is None


def test_the_gateway_tells_a_nic_of_the_subnets_it_has_addresses_in(net: Network) -> None:
    net.add_subnet(Subnet("red6", IPv6Network("fd00:2::/64"), IPv6Address("fd00:2::fe")))
    vm = net.vms["vm1"]
    for to, heard in ((ALL_NODES, ALL_NODES), (UNSPECIFIED, ALL_NODES), (vm_local(1), vm_local(1))):
        said = nd.advertisement(net, vm, vm.nic, GATEWAY_MAC, to)
        assert said is not None
        assert (said.src, said.dst) == (GATEWAY_LOCAL, heard)
        assert isinstance(said.message, RouterAdvertisement)
        assert said.message.options.source_mac == GATEWAY_MAC
        assert said.message.options.mtu == 1500
        (prefix,) = said.message.options.prefixes
        assert (prefix.prefix, prefix.on_link, prefix.autonomous) == (IPv6Network("fd00:1::/64"), True, False)
        assert said.message.lifetime == 30 * nd.ADVERTISED_EVERY == 9000, "the longest that RFC 4861 allows"
        assert (said.message.reachable_ms, said.message.retransmit_ms) == (3_600_000, 0)
        assert (prefix.valid, prefix.preferred) == (30 * 86400, 7 * 86400)
        assert not said.message.managed
    net.put_vnet(replace(net.vnets["default"], mtu=1400))
    said = nd.advertisement(net, vm, vm.nic, GATEWAY_MAC)
    assert said is not None and isinstance(said.message, RouterAdvertisement)
    assert said.message.options.mtu == 1400, "its vnet's"
    net.unassign(vm_ip6(1))
    assert nd.advertisement(net, vm, vm.nic, GATEWAY_MAC) is None

"""Which ARP requests the controller answers: for neighbours of the asker that no switch answers for."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.core.model import Network, Server
from retinue.core.packets import ARP, ZERO_MAC, ArpOp
from retinue.core.pipeline.responders import arp
from support.fabric.networks import GATEWAY, INFRA_GATEWAY, add_vm, fabric, server, vm_ip, vm_mac

SERVER1, SERVER2 = IPv4Address("10.0.0.11"), IPv4Address("10.0.0.12")
UNKNOWN, OUTSIDE = IPv4Address("10.1.0.77"), IPv4Address("198.51.100.9")


@pytest.fixture
def net() -> Network:
    """vm1 and vm4 on server1, vm2 on server2, vm3 on server3 without an address."""
    net = fabric()
    for number, at in ((1, 1), (2, 2), (4, 1)):
        add_vm(net, number, at)
    add_vm(net, 3, 3, bound=False)
    return net


VM1 = vm_ip(1)


def request(tpa: IPv4Address, spa: IPv4Address = VM1, sha: str = "52:54:00:00:00:01") -> ARP:
    return ARP(ArpOp.REQUEST, sha, spa, ZERO_MAC, tpa)


VM_ASKS: dict[str, tuple[ARP, bool]] = {
    "for a VM elsewhere": (request(vm_ip(2)), True),
    "for a VM elsewhere, as a probe": (request(vm_ip(2), arp.NOBODY, vm_mac(3)), True),
    "for a VM on its own switch": (request(vm_ip(4)), False),
    "for its own address": (request(vm_ip(1)), False),
    "for its own address elsewhere": (request(vm_ip(2), vm_ip(2), vm_mac(2)), False),
    "for an address that nobody has": (request(UNKNOWN), False),
    "for an address in no subnet": (request(OUTSIDE), False),
    "for a server, in its subnet": (request(SERVER2, SERVER1), True),
    "for a server, from another subnet": (request(SERVER2), False),
    "with a reply": (replace(request(vm_ip(2)), op=ArpOp.REPLY), False),
}


@pytest.mark.parametrize("name", VM_ASKS)
def test_a_vm_at_edge1_is_answered_for_neighbours_that_no_switch_answers_for(name: str, net: Network) -> None:
    message, answered = VM_ASKS[name]
    assert arp.answers_vm(net, "edge1", message) is answered


def test_nobody_is_a_neighbour_in_no_subnet(net: Network) -> None:
    net.put_server(replace(server(2), address=OUTSIDE))
    assert not arp.answers_vm(net, "edge1", request(OUTSIDE))
    assert not arp.answers_server(net, request(OUTSIDE, SERVER1, server(1).mac))


def test_a_vm_is_answered_for_one_that_has_gone_to_another_switch(net: Network) -> None:
    net.put_vm(replace(net.vms["vm4"], server="server2"))
    assert arp.answers_vm(net, "edge1", request(vm_ip(4)))
    assert not arp.answers_vm(net, "edge2", request(vm_ip(4), vm_ip(2), vm_mac(2)))


SERVER_ASKS: dict[str, tuple[ARP, bool]] = {
    "for another server": (request(SERVER2, SERVER1, server(1).mac), True),
    "for another server, as a probe": (request(SERVER2, arp.NOBODY, server(1).mac), True),
    "for its own address": (request(SERVER1, SERVER1, server(1).mac), False),
    "for its gateway, which its leaf answers for": (request(INFRA_GATEWAY, SERVER1, server(1).mac), False),
    "for another subnet's gateway": (request(GATEWAY, SERVER1, server(1).mac), False),
    "for a VM of another subnet": (request(vm_ip(1), SERVER1, server(1).mac), False),
    "for an address that nobody has": (request(IPv4Address("10.0.0.77"), SERVER1, server(1).mac), False),
    "with a reply": (replace(request(SERVER2, SERVER1, server(1).mac), op=ArpOp.REPLY), False),
}


@pytest.mark.parametrize("name", SERVER_ASKS)
def test_a_server_is_answered_for_neighbours_that_its_leaf_does_not_answer_for(
    name: str, net: Network
) -> None:
    message, answered = SERVER_ASKS[name]
    assert arp.answers_server(net, message) is answered


SERVICE, ROUTED = IPv4Address("10.9.9.9"), IPv4Address("10.8.0.3")


@pytest.mark.parametrize("spa", [SERVICE, ROUTED])
def test_a_vm_that_answers_a_neighbour_from_what_is_led_to_it_is_told_the_gateways_mac(
    net: Network, spa: IPv4Address
) -> None:
    """It has that address on its loopback; also of a neighbour on its own switch, which cannot tell it."""
    asks = request(vm_ip(2), spa), request(vm_ip(4), spa)
    assert not any(arp.answers_vm(net, "edge1", asked) for asked in asks), "it is nothing to it"
    nic = net.vms["vm1"].nic
    net.change_nic("vm1", nic, replace(nic, anycast=(SERVICE,), prefixes=(IPv4Network("10.8.0.0/28"),)))
    assert all(arp.answers_vm(net, "edge1", asked) for asked in asks)
    assert not arp.answers_vm(net, "edge1", request(UNKNOWN, spa))
    assert not arp.answers_vm(net, "edge1", request(SERVER2, spa)), "it has no address there"
    assert not arp.answers_vm(net, "edge2", request(vm_ip(1), spa, vm_mac(2))), "another's"


def test_a_server_that_answers_one_from_an_anycast_address_is_told_it(net: Network) -> None:
    asked = request(SERVER2, SERVICE, "02:00:00:00:02:01")
    box = Server("box", "02:00:00:00:02:01", IPv4Address("10.0.0.201"))
    net.put_server(box)
    assert not arp.answers_server(net, asked)
    net.put_server(replace(box, anycast=(SERVICE,)))
    assert arp.answers_server(net, asked)
    assert not arp.answers_server(net, request(vm_ip(1), SERVICE, box.mac)), "it has no address there"
    net.put_server(replace(box, anycast=(SERVICE,), address=None))
    assert not arp.answers_server(net, asked)

"""Which VMs another domain may bring, and which may go there."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

import pytest

from retinue.core.model import (
    NIC,
    VM,
    Allowed,
    Assignment,
    BindingKind,
    Disk,
    ModelError,
    Origin,
    Peer,
    Vnet,
    Vrf,
)
from retinue.core.model.domains import check_guest, check_may_leave, is_same, places
from retinue.core.model.link_local import link_local
from support.fabric.domains import Domains, gateway_of, nic, server_of

GUEST = VM("vm-a1", (nic("a", 1),), gateway_of("b"), home="a")


@pytest.mark.parametrize(
    ("guest", "why"),
    [
        (GUEST, ""),
        (replace(GUEST, home="c"), "no such domain is configured"),
        (
            replace(GUEST, nics=(replace(nic("a", 1), addresses=(IPv4Address("10.3.0.1"),)),)),
            "10.3.0.1 is not granted to that domain, which has 10.1.0.0/24",
        ),
        (
            replace(GUEST, nics=(replace(nic("a", 1), addresses=(IPv4Address("10.2.0.9"),)),)),
            "10.2.0.9 is not granted",
        ),
        (replace(GUEST, nics=(replace(nic("a", 1), addresses=()),)), "NIC 52:54:00:00:00:01 has no address"),
        (replace(GUEST, nics=(nic("a", 1), replace(nic("a", 2), slot=2))), ""),
        (replace(GUEST, nics=(nic("a", 1), nic("a", 2))), "two of its NICs are in one slot"),
        (replace(GUEST, nics=(nic("a", 1), replace(nic("b", 2), slot=2))), r"10\.2\.0\.102 is not granted"),
        (
            replace(GUEST, nics=(nic("a", 1), replace(nic("a", 2), slot=2, addresses=()))),
            "NIC 52:54:00:00:00:02 has no address",
        ),
        (replace(GUEST, nics=(replace(nic("a", 1), trusted=True),)), "is trusted"),
        (replace(GUEST, nics=(replace(nic("a", 1), vnet="blue"),)), "is in vnet"),
        (replace(GUEST, disks=(Disk(shared="/etc/shadow"),)), "has disks, which do not go"),
    ],
)
def test_a_guest_has_what_its_home_was_granted_and_no_more(guest: VM, why: str) -> None:
    net = Domains(1, 1).nets["b"]
    if not why:
        check_guest(net, guest)
        return
    with pytest.raises(ModelError, match=why):
        check_guest(net, guest)


def test_an_address_of_ipv6_is_granted_as_any_other() -> None:
    """Where no switch deals with IPv6 nothing would lead to it, and it is not taken."""
    guest = replace(GUEST, nics=(nic("a", 1, dual=True),))
    check_guest(Domains(1, 1, dual=True).nets["b"], guest)
    with pytest.raises(ModelError, match="it has fd00:a::101, and no switch here deals with IPv6"):
        check_guest(Domains(1, 1).nets["b"], guest)
    stranger = replace(nic("a", 1), addresses=(IPv6Address("fd00:c::1"),))
    with pytest.raises(ModelError, match="fd00:c::1 is not granted"):
        check_guest(Domains(1, 1, dual=True).nets["b"], replace(GUEST, nics=(stranger,)))


DELEGATED = IPv6Network("fd00:a::/72")


def held(ip: str, kind: BindingKind = BindingKind.DYNAMIC) -> Assignment:
    return Assignment(ip_address(ip), nic("a", 1).mac, "vm-a1", kind, Origin.CONTROLLER)


@pytest.mark.parametrize(
    ("holds", "why"),
    [
        (held("10.1.0.150"), ""),
        (held("fd00:a::abcd", BindingKind.SLAAC), ""),
        (held("10.2.0.150"), "10.2.0.150 is not granted"),
        (held("10.7.0.1"), "10.7.0.1 is not granted"),
        (held("fd00:b::1", BindingKind.SLAAC), "fd00:b::1 is not granted"),
        (held("fd00:a::150"), ""),
        (replace(held("fd00:a::"), prefix=DELEGATED), "fd00:a::/72 is delegated to it"),
        (held("fe80::1234", BindingKind.SLAAC), "has no address"),
        (held("10.1.0.199"), "10.1.0.199 is VM vm-b2's here"),
    ],
)
def test_what_a_guest_holds_is_its_homes_to_give_as_well(holds: Assignment, why: str) -> None:
    """Leases, and addresses that it has made itself."""
    made = Domains(1, 1, dual=True)
    made.add("b", "b", 2, server_of("b", 2))
    net = made.nets["b"]
    its = net.vms["vm-b2"]
    net.assign(replace(held("10.1.0.199"), vm=its.id, mac=its.nic.mac))
    guest = replace(GUEST, nics=(replace(nic("a", 1), addresses=()),))
    if not why:
        check_guest(net, guest, [holds])
        return
    with pytest.raises(ModelError, match=why):
        check_guest(net, guest, [holds])


def test_a_link_local_address_of_a_guest_is_nobody_elses() -> None:
    net = Domains(1, 1, dual=True).nets["b"]
    guest = replace(GUEST, nics=(nic("a", 1, dual=True),))
    check_guest(net, guest, [held("fe80::1234", BindingKind.SLAAC)])
    gateways = str(link_local(net.gateway_mac))
    with pytest.raises(ModelError, match=f"{gateways} follows from another's MAC"):
        check_guest(net, guest, [held(gateways, BindingKind.SLAAC)])


def test_an_address_of_ours_is_nobodys_grant() -> None:
    """Also where the operator has granted it by mistake, before the subnet was added."""
    net = Domains(1, 1).nets["b"]
    net.peers["a"] = replace(net.peers["a"], prefixes=(IPv4Network("10.2.0.0/16"),))
    guest = replace(GUEST, nics=(replace(nic("a", 1), addresses=(IPv4Address("10.2.0.9"),)),))
    with pytest.raises(ModelError, match=r"10\.2\.0\.9 is in our subnet blue"):
        check_guest(net, guest)


def leaving(changed: NIC, home: str = "", disks: tuple[Disk, ...] = ()) -> None:
    world = Domains(1, 1)
    net = world.nets["a"]
    vm = VM("vm-a1", (changed,), server_of("a", 1), home=home, disks=disks)
    net.put_vm(vm)
    for ip in changed.addresses:
        net.assign(net.static(vm.id, changed, ip))
    check_may_leave(net, vm, "b")


def test_a_vm_leaves_with_static_addresses_alone() -> None:
    leaving(nic("a", 1))
    leaving(nic("a", 1), home="b")
    with pytest.raises(ModelError, match="has no address, static or by a lease that goes on"):
        leaving(replace(nic("a", 1), addresses=()))
    leaving(replace(nic("a", 1), addresses=(IPv6Address("fd00::1"),)))
    with pytest.raises(ModelError, match="guest of domain c, and goes back there first"):
        leaving(nic("a", 1), home="c")
    leaving(replace(nic("a", 1), mirror="mirror0"), home="b")
    for changed in (replace(nic("a", 1), rate=1000), replace(nic("a", 1), enabled=False)):
        with pytest.raises(ModelError, match="a NIC has a rate, or is disabled"):
            leaving(changed)
        leaving(changed, home="b")
    with pytest.raises(ModelError, match="its NIC is in slot 2"):
        leaving(replace(nic("a", 1), slot=2))
    with pytest.raises(ModelError, match="do not go between domains, and disk 1 is on its server alone"):
        leaving(nic("a", 1), disks=(Disk(size_mib=1024),))
    with pytest.raises(ModelError, match="do not go between domains, and disk 1 is on this domain's storage"):
        leaving(nic("a", 1), disks=(Disk(shared="/srv/vm1"),))


PREFIX = IPv4Network("10.9.0.0/28")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"vnet": "shop"}, "is in VRF tenant, whose addresses and names are this domain's own"),
        ({"vnet": "green"}, "is in vnet green"),
        ({"allowed": (Allowed(IPv4Address("10.1.0.9")),)}, "has addresses that it may take from other NICs"),
        ({"prefixes": (PREFIX,)}, "has prefixes that are routed to it"),
        ({"anycast": (IPv4Address("10.9.0.1"),)}, "has anycast addresses"),
        ({"trusted": True}, "is trusted, as a DHCP server's"),
        ({"mac_changes": True}, "may change its MAC"),
        ({"mirror": "mirror0"}, "has its traffic copied to mirror0"),
    ],
)
def test_what_means_nothing_in_another_domain_keeps_a_vm_here(changed: dict[str, Any], why: str) -> None:
    """Each with its own sentence, which names the NIC."""
    world = Domains(1, 1)
    net, its = world.nets["a"], replace(nic("a", 1), addresses=(), **changed)
    net.put_vrf(Vrf("tenant", 7))
    net.put_vnet(Vnet("shop", vrf="tenant"))
    net.put_vnet(Vnet("green"))
    vm = VM("vm-a1", (its,), server_of("a", 1))
    net.put_vm(vm)
    with pytest.raises(ModelError, match=f"^VM vm-a1 cannot go to domain b: its NIC {its.mac} {why}, which"):
        check_may_leave(net, vm, "b")


@pytest.mark.parametrize(
    ("peer", "why"),
    [
        (Peer("c", "nobody", "tun0"), "no server with an edge switch"),
        (Peer("c", "to-b", "tun0"), "the gateway to domain b already"),
        (Peer("c", "a-server1", "up0"), "name the port"),
        (Peer("c", "a-server1", ""), "name the port"),
        (Peer("a-server2", "a-server1", "tun0"), "a server has that id"),
        (Peer("c", "a-server1", "tun0", (IPv4Network("10.2.0.0/25"),)), "granted to domain b already"),
        (Peer("c", "a-server1", "tun0", (IPv4Network("10.1.0.0/16"),)), "overlaps our subnet blue"),
    ],
)
def test_a_peer_that_cannot_be_is_refused(peer: Peer, why: str) -> None:
    net = Domains(1, 1).nets["a"]
    with pytest.raises(ModelError, match=why):
        net.put_peer(peer)
    assert peer.id not in net.peers


def test_the_gateways_table_is_the_vms() -> None:
    world = Domains(1, 1)
    world.add("a", "a", 1, gateway_of("a"))
    world.add("a", "a", 2, server_of("a", 1))
    world.add("b", "a", 1, server_of("b", 1))
    (away,), (guest,) = places(world.nets["a"]), places(world.nets["b"])
    assert (away.vm, away.home, away.domain, away.server) == ("vm-a1", "", "b", "to-b")
    assert (guest.vm, guest.home, guest.domain, guest.server) == ("vm-a1", "a", "", "b-server1")
    assert is_same(world.nets["a"].vms["vm-a1"], world.nets["b"].vms["vm-a1"])


def test_a_vm_is_the_same_by_what_is_said_of_it() -> None:
    vm = VM("vm-a1", (nic("a", 1),), gateway_of("a"))
    assert is_same(vm, replace(vm, nics=(replace(vm.nic, rate=1000, enabled=False),)))
    for other in ({"mac": "52:54:00:00:00:99"}, {"port_id": "vm-a9"}, {"addresses": ()}):
        assert not is_same(vm, replace(vm, nics=(replace(vm.nic, **other),)))
    assert not is_same(vm, replace(vm, id="vm-a9"))


def test_the_tunnel_is_the_port_of_every_vm_that_is_away() -> None:
    net = Domains(1, 1).nets["a"]
    assert net.port_of(nic("a", 7), "a-edge3") == net.tunnel_at("a-edge3")
    assert net.tunnel_at("a-edge1") is None
    touched = net.set_ports("a-edge3", {"up0": 1, "tun0": 5})
    assert {str(owner) for owner in touched} == {"switch a-edge3", "server to-b"}

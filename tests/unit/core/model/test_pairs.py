"""A pool of pairs of MAC and IP: which is next, and what can be no pair."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address

import pytest

from retinue.core.model import NIC, VM, GatewayGroup, ModelError, Network, Server, Subnet
from retinue.core.model import pairs as rules
from retinue.core.model.nic import Allowed
from retinue.core.model.pairs import AddressPair, added, next_free, user_of
from support.fabric.networks import GATEWAY, GATEWAY_MAC, add_vm, fabric, vm_mac

MACS = [f"52:54:00:00:01:{n:02x}" for n in range(1, 5)]
IPS = [IPv4Address(f"10.1.0.{50 + n}") for n in range(1, 5)]
POOL = {mac: AddressPair(mac, ip, n) for n, (mac, ip) in enumerate(zip(MACS, IPS, strict=True), 1)}

GROUP_MAC, VIRTUAL_MAC = "02:00:00:00:fe:02", "00:00:5e:00:01:07"


@pytest.fixture
def net() -> Network:
    return fabric()


def has(net: Network, vm: str, mac: str, *ips: IPv4Address) -> None:
    net.put_vm(VM.with_one_nic(vm, mac, "server1", addresses=ips))
    for nic in net.vms[vm].nics:
        for ip in ips:
            net.assign(net.static(vm, nic, ip))


def furnish(net: Network) -> None:
    """A server inside the subnet; a VM that may take an address of it; a group's gateway."""
    net.put_server(Server("inside", "02:00:00:00:77:01", IPv4Address("10.1.0.200")))
    shared = Allowed(IPv4Address("10.1.0.201"), VIRTUAL_MAC)
    net.put_vm(VM("cluster", (NIC(vm_mac(8), "cluster", allowed=(shared,)),), "server1"))
    net.put_gateway_group(GatewayGroup("site2", GROUP_MAC))


def test_the_next_is_the_first_given_of_those_that_are_free(net: Network) -> None:
    backwards = list(reversed(POOL.values()))
    assert next_free(net, backwards) == POOL[MACS[0]]
    assert next_free(net, backwards, {MACS[0], MACS[1]}) == POOL[MACS[2]]
    assert next_free(net, []) is None
    assert next_free(net, backwards, MACS) is None


def test_one_is_used_by_whoever_has_its_mac_or_its_address(net: Network) -> None:
    has(net, "vm1", MACS[0], IPS[0])
    has(net, "vm2", MACS[1])
    has(net, "vm3", vm_mac(3), IPS[2])
    assert [user_of(net, pair) for pair in POOL.values()] == ["vm1", "vm2", "vm3", ""]
    assert next_free(net, POOL.values()) == POOL[MACS[3]]
    net.remove_vm("vm1")
    assert next_free(net, POOL.values()) == POOL[MACS[0]], "it is free again"


def test_new_ones_come_behind_those_that_are_there(net: Network) -> None:
    pool = {MACS[0]: replace(POOL[MACS[0]], number=7)}
    given = [(MACS[1], IPS[1]), (MACS[0], IPS[0]), (MACS[2], IPS[2]), (MACS[1], IPS[1])]
    assert added(net, pool, given) == [
        AddressPair(MACS[1], IPS[1], 8), AddressPair(MACS[2], IPS[2], 9),
    ]  # fmt: skip
    assert added(net, {}, given[:1]) == [AddressPair(MACS[1], IPS[1], 1)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([(MACS[0], IPS[1])], f"MAC {MACS[0]} is paired with {IPS[0]} already, not with {IPS[1]}"),
        ([(MACS[1], IPS[0])], f"{IPS[0]} is paired with MAC {MACS[0]} already, not with {MACS[1]}"),
        ([(MACS[1], IPS[1]), (MACS[1], IPS[2])], "is paired with"),
        ([(MACS[1], IPS[1]), (MACS[2], IPS[1])], "is paired with"),
        ([(MACS[1], ip_address("192.0.2.1"))], "192.0.2.1 is in no subnet"),
        ([(MACS[1], IPv4Address(GATEWAY))], f"{GATEWAY} is the gateway of subnet blue"),
        ([(MACS[1], ip_address("10.1.0.200"))], "10.1.0.200 is the address of server inside"),
        ([(MACS[1], ip_address("10.1.0.201"))], "10.1.0.201 is allowed VM cluster"),
        ([(GATEWAY_MAC, IPS[1])], f"MAC {GATEWAY_MAC} is the gateway's"),
        ([(GROUP_MAC, IPS[1])], f"MAC {GROUP_MAC} is the gateway's"),
        ([("03:00:00:00:00:01", IPS[1])], "MAC 03:00:00:00:00:01 is a group address"),
        ([("02:00:00:00:00:01", IPS[1])], "MAC 02:00:00:00:00:01 belongs to server server1"),
        ([(VIRTUAL_MAC, IPS[1])], f"VM cluster may speak as MAC {VIRTUAL_MAC}"),
    ],
)
def test_what_is_no_pair_is_rejected(net: Network, given: list[tuple[str, IPv4Address]], said: str) -> None:
    furnish(net)
    with pytest.raises(ModelError, match=said):
        added(net, {MACS[0]: POOL[MACS[0]]}, given)


def test_a_pair_that_cannot_be_taken_now_stops_no_other(net: Network) -> None:
    """After it was added its address became a server's, or may be taken by a VM, or is of another network."""
    green = Subnet("green", IPv4Network("10.2.0.0/24"), IPv4Address("10.2.0.254"))
    net.add_subnet(green)
    given = [ip_address(ip) for ip in ("10.1.0.200", "10.1.0.201", "10.2.0.7", "10.1.0.203")]
    pool = {pair.mac: pair for pair in added(net, {}, zip(MACS, given, strict=True))}
    assert next_free(net, pool.values()) == pool[MACS[0]]
    furnish(net)
    net.remove_subnet("green")
    assert next_free(net, pool.values()) == pool[MACS[3]]
    net.put_vm(VM("nat", (NIC(vm_mac(9), "nat", prefixes=(green.prefix,)),), "server1"))
    assert next_free(net, pool.values()) == pool[MACS[3]]
    net.remove_vm("cluster")
    assert next_free(net, pool.values()) == pool[MACS[1]]
    assert not next_free(net, pool.values(), (MACS[1], MACS[3]))


def test_one_that_is_there_already_stays_whatever_has_come_since(net: Network) -> None:
    given = [(MACS[0], IPv4Address("10.1.0.201"))]
    (pair,) = added(net, {}, given)
    furnish(net)
    assert added(net, {pair.mac: pair}, given) == []


def test_there_are_no_more_than_so_many(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MOST_PAIRS", 3)
    assert len(added(net, {}, list(zip(MACS[:3], IPS[:3], strict=True)))) == 3
    with pytest.raises(ModelError, match="more than 3 pairs"):
        added(net, {}, list(zip(MACS, IPS, strict=True)))


def test_an_address_of_another_vrf_is_another(net: Network) -> None:
    add_vm(net, 1, at=1)
    assert user_of(net, POOL[MACS[0]]) == ""

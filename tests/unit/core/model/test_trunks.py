"""NICs that go by another one's port: what they need, and what is refused with which sentence."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.core.limits import MOST_NICS, MOST_TRUNK_NICS
from retinue.core.model import NIC, VM, Allowed, Flood, ModelError, Network, Subnet, VMPort, Vnet
from support.fabric.networks import fabric, vm_mac

CARRIER = NIC(vm_mac(1), "fw")
CARRIED = NIC(vm_mac(2), "fw-2", vnet="shop", slot=0, trunk="fw")


@pytest.fixture
def net() -> Network:
    made = fabric()
    made.put_vnet(Vnet("shop", 50))
    made.put_vnet(Vnet("dmz", 60))
    made.put_vnet(Vnet("plain"))
    made.put_vnet(Vnet("loud", 70, flood=Flood.CONTROLLED))
    made.add_subnet(Subnet("shop1", IPv4Network("10.2.50.0/24"), IPv4Address("10.2.50.254"), vnet="shop"))
    return made


def put(net: Network, *nics: NIC) -> VM:
    vm = VM("fw", nics, "server1")
    net.put_vm(vm)
    return vm


def test_a_nic_in_a_trunk_is_where_its_carrier_is_and_has_a_tag_there(net: Network) -> None:
    vm = put(net, CARRIER, CARRIED)
    assert net.port_of(CARRIED, "edge1") is None and not net.has_ports("fw", "edge1")
    net.set_vm_port("fw", "edge1", VMPort(9))
    assert net.port_of(CARRIED, "edge1") == net.port_of(CARRIER, "edge1") == VMPort(9)
    assert net.has_ports("fw", "edge1")
    assert (net.vlan_in_trunk(CARRIER), net.vlan_in_trunk(CARRIED)) == (0, 50)
    assert [net.nic_at("edge1", 9, mac) for mac in (CARRIED.mac, CARRIER.mac, vm_mac(9))] == [
        CARRIED, CARRIER, CARRIER,
    ]  # fmt: skip
    assert net.nic_at("edge1", 9) == CARRIER
    assert net.vm_at("edge1", 9) == vm


@pytest.mark.parametrize(
    ("nics", "why"),
    [
        ([CARRIED, replace(CARRIER, port_id="fw-3")], "its first NIC, by which it is known, has a port"),
        (
            [CARRIER, replace(CARRIED, trunk="fw-9")],
            "needs a NIC of that id, whose port it goes by; .* fw$",
        ),
        ([CARRIER, replace(CARRIED, trunk="fw-2")], "cannot go by a NIC that is itself in a trunk"),
        ([CARRIER, replace(CARRIED, vnet="")], "by the VLAN of its vnet, and it is in no vnet"),
        ([CARRIER, replace(CARRIED, vnet="plain")], "and vnet plain has none"),
        ([CARRIER, replace(CARRIED, vnet="loud")], "is in vnet loud, which floods; that trunks do not carry"),
        ([replace(CARRIER, vnet="shop"), CARRIED], "not the only one of vnet shop there"),
        (
            [CARRIER, CARRIED, replace(CARRIED, mac=vm_mac(3), port_id="fw-3")],
            "not the only one of vnet shop there; a trunk has a VLAN once",
        ),
        ([CARRIER, replace(CARRIED, rate=9)], "no rate of its own; that of fw holds for its whole port"),
        ([CARRIER, replace(CARRIED, trusted=True)], "cannot be a DHCP server"),
        (
            [CARRIER, replace(CARRIED, allowed=(Allowed(IPv4Address("10.2.50.9"), "00:00:5e:00:01:07"),))],
            "under its own MAC only",
        ),
        ([CARRIER, replace(CARRIED, mac=CARRIER.mac)], "MAC .* is given twice"),
    ],
)
def test_what_a_trunk_does_not_carry_is_refused_with_a_sentence(
    net: Network, nics: list[NIC], why: str
) -> None:
    with pytest.raises(ModelError, match=why):
        put(net, *nics)
    assert not net.vms


def test_a_carrier_that_is_disabled_leaves_its_vnet_to_a_tag(net: Network) -> None:
    put(net, replace(CARRIER, vnet="shop", enabled=False), CARRIED)


def test_a_vm_has_so_many_nics_with_ports_and_so_many_in_trunks(net: Network) -> None:
    ports = [replace(CARRIER, mac=vm_mac(n), port_id=f"fw-{n}" if n > 1 else "fw") for n in range(1, 10)]
    with pytest.raises(ModelError, match="has 9 network interfaces; give it between 1 and 8"):
        put(net, *ports)
    for n in range(MOST_TRUNK_NICS + 1):
        net.put_vnet(Vnet(f"v{n}", 100 + n))
    carried = [
        replace(CARRIED, mac=vm_mac(50 + n), port_id=f"fw-{50 + n}", vnet=f"v{n}")
        for n in range(MOST_TRUNK_NICS + 1)
    ]
    put(net, *ports[:MOST_NICS], *carried[:-1])
    with pytest.raises(ModelError, match="has 33 VLANs in trunks; give it 32 at the most"):
        put(net, CARRIER, *carried)


def test_a_vnet_in_a_trunk_keeps_its_vlan_and_does_not_flood(net: Network) -> None:
    put(net, CARRIER, CARRIED)
    with pytest.raises(ModelError, match="shop keeps VLAN 50: VM fw has it in a trunk, and its guest"):
        net.put_vnet(Vnet("shop", 51))
    with pytest.raises(ModelError, match="shop cannot flood: VM fw has it in a trunk"):
        net.put_vnet(Vnet("shop", 50, flood=Flood.CONTROLLED))
    net.put_vnet(Vnet("shop", 50, mtu=1400))
    net.put_vnet(Vnet("dmz", 61))
    put(net, CARRIER)
    net.put_vnet(Vnet("shop", 51))

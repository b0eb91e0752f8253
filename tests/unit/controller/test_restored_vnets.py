"""Vnets and subnets after a restart: what the database says counts, the file has the rest."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from structlog.testing import capture_logs

from retinue.controller.kinds import restore
from retinue.controller.state import State, Stored
from retinue.core.model import Flood, ModelError, Network, Subnet, Vnet, Vrf
from support.fabric.networks import fabric, vm_ip
from support.fakes.session import FakeNetwork


def test_a_configured_vnet_that_has_changed_its_vrf_is_there() -> None:
    """The subnet that the file has in it is in another one by now, as the database says."""
    net = fabric()
    net.put_vnet(Vnet("shop"))
    net.add_subnet(Subnet("green", IPv4Network("10.2.0.0/24"), IPv4Address("10.2.0.254"), vnet="shop"))
    net.configured = frozenset({"vnet shop", "vnet default", "subnet green", "subnet blue"})
    moved = replace(net.subnets["green"], vnet="default", gateway=IPv4Address("10.2.0.1"))
    restore(State(net), Stored(vrfs=[Vrf("red", 7)], vnets=[Vnet("shop", vrf="red")], subnets=[moved]))
    assert net.vnets["shop"].vrf == "red"
    assert net.subnets["green"] == moved
    assert net.subnet_of(IPv4Address("10.2.0.7")) == moved


def test_a_configured_subnet_stays_where_the_databases_does_not_fit() -> None:
    net = fabric()
    before = net.subnets["blue"]
    restore(State(net), Stored(subnets=[replace(before, vnet="gone")]))
    assert net.subnets["blue"] == before
    assert net.subnet_of(vm_ip(1)) == before


def file_of_two() -> Network:
    net = fabric()
    net.put_vnet(Vnet("a", vlan=10))
    net.put_vnet(Vnet("b", vlan=20, flood=Flood.CONTROLLED, mtu=1400))
    return net


def vlans(net: Network) -> dict[str, int]:
    return {vnet.id: vnet.vlan for vnet in net.vnets.values() if vnet.id != "default"}


def test_vlans_that_vnets_exchanged_outlive_the_controller() -> None:
    """Each is stored with the VLAN that the file gives another."""
    net = file_of_two()
    stored = [Vnet("a", vlan=20), Vnet("b", vlan=10, flood=Flood.CONTROLLED, mtu=1400)]
    restore(State(net), Stored(vnets=stored))
    assert [net.vnets[vnet.id] for vnet in stored] == stored


def test_a_new_vnet_has_the_vlan_that_a_configured_one_has_left() -> None:
    net = file_of_two()
    restore(State(net), Stored(vnets=[Vnet("a0", vlan=20), Vnet("b", vlan=30)]))
    assert vlans(net) == {"a": 10, "a0": 20, "b": 30}


def test_a_configured_vnet_stays_where_the_databases_does_not_fit() -> None:
    """The file has given its VLAN to another since; or its VRF is no more."""
    net = file_of_two()
    before = dict(net.vnets)
    restore(State(net), Stored(vnets=[Vnet("b", vlan=10)]))
    assert net.vnets == before
    restore(State(net), Stored(vnets=[Vnet("b", vlan=30, vrf="gone")]))
    assert net.vnets == before


def test_a_configured_vnet_whose_vlan_is_anothers_by_now_has_none() -> None:
    """Nor does it flood, which needs one; but it is there, for its subnets and NICs."""
    net = file_of_two()
    stored = [Vnet("a", vlan=20), Vnet("b", vlan=30, vrf="gone")]
    restore(State(net), Stored(vnets=stored))
    assert vlans(net) == {"a": 20, "b": 0}
    assert (net.vnets["b"].flood, net.vnets["b"].mtu) == (Flood.DROPPED, 1400)


async def test_a_vnet_that_says_more_than_switches_take_is_told_and_may_be_changed() -> None:
    """It was given when they took more."""
    fake = FakeNetwork(fabric(), clock=lambda: 1000.0)
    with capture_logs() as said:
        fake.controller.restore(Stored(vnets=[Vnet("shop", mtu=9000)]))
    told = {"vnet": "shop", "mtu": 9000, "counts_as": 1500, "log_level": "warning"}
    assert told | {"event": "vnet.mtu_too_large"} in said
    await fake.start()
    await fake.controller.vnets.set_vnet(Vnet("shop", vlan=42, mtu=9000))
    assert fake.net.vnets["shop"].vlan == 42
    assert fake.net.mtu_in("shop") == 1500
    with pytest.raises(ModelError, match="MTU 8999 is more than the 1500 that switches take"):
        await fake.controller.vnets.set_vnet(Vnet("shop", mtu=8999))
    await fake.controller.vnets.set_vnet(Vnet("shop", mtu=1400))
    await fake.stop()


def test_an_isolated_vnet_is_isolated_after_a_restart() -> None:
    net = fabric()
    restore(State(net), Stored(vrfs=[Vrf("bank", 50)], vnets=[Vnet("bank", 50, vrf="bank")]))
    assert net.is_isolated("bank")

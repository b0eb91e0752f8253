"""What a gateway to another domain lets through its tunnel, and what not."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.model import Flood
from retinue.core.model.network import Owner
from retinue.core.packets import Ethernet, build_udp4
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.core.pipeline.knowledge import Knowledge
from support.fabric.domains import GATEWAY_MACS, TUNNEL, Domains, gateway_of, nic, server_of


@pytest.mark.parametrize(("sport", "dport"), [(68, 67), (4000, 67), (67, 68), (67, 4000), (4000, 68)])
@pytest.mark.parametrize("domain", ["a", "b"])
def test_no_dhcp_comes_by_a_tunnel(domain: str, sport: int, dport: int) -> None:
    """A VM that is away asks no DHCP server at home; and home sends a guest no answer."""
    made = Domains(2, 1)
    made.add("a", "a", 1, gateway_of("a"))
    made.add("b", "a", 1, server_of("b", 1))
    made.add("a", "a", 2, server_of("a", 1))
    away, client = nic("a", 1), nic("a", 2)
    sender, to = (away, client) if domain == "a" else (client, away)
    src, dst = sender.addresses[0], to.addresses[0]
    assert isinstance(src, IPv4Address)
    assert isinstance(dst, IPv4Address)
    packet = build_udp4(src, dst, sport, dport, b"dhcp")
    frame = Ethernet(GATEWAY_MACS["a"] if domain == "a" else to.mac, sender.mac, 0x0800, packet).build()
    for delivery in made.fabric.all_paths(f"{domain}-edge3", TUNNEL, frame):
        assert not delivery.arrivals
        assert [reason_of(cookie) for _, cookie, _, _ in delivery.to_controller] == [Reason.ROGUE_DHCP]


def test_two_vms_that_are_away_may_be_of_a_vnet_that_floods() -> None:
    """The tunnel is the port of both: nothing is flooded there, and nothing clashes."""
    made = Domains(2, 1)
    net = made.nets["a"]
    made.install("a", net.put_vnet(replace(net.vnets["default"], vlan=42, flood=Flood.CONTROLLED)))
    for number in (1, 2):
        vm = made.add("a", "a", number, gateway_of("a"))
        changed = replace(vm, nics=tuple(replace(nic, vnet="default") for nic in vm.nics))
        made.install("a", net.put_vm(changed))
    assert not made.fabric["a-edge3"].groups


@pytest.mark.parametrize("switch", ["b-edge1", "b-edge2", "b-edge3", "b-leaf1", "b-spine1"])
def test_a_guests_entries_are_judged_when_its_gateway_is_known(switch: str) -> None:
    """A controller that has just started: what is right is not taken from a switch for want of the tunnel."""
    made = Domains(2, 1)
    net, vm = made.nets["b"], made.add("b", "a", 1, server_of("b", 1))
    told, guest = Knowledge(net, made.compilers["b"], set(), {"b-edge1"}), Owner("vm", vm.id)
    assert told.knows(guest, switch)
    net.set_ports("b-edge3", {})
    assert not told.knows(guest, switch), "neither tunnel nor uplink"
    net.set_ports("b-edge3", {"up0": 1, "tun0": 2})
    assert told.knows(guest, switch)
    net.put_server(replace(net.servers[gateway_of("b")], given_at=None))
    assert not told.knows(guest, switch), "its place"

"""The relay to DHCP servers of other subnets: which way a message goes, what the relay changes."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.core.model import Network, PortRef, Server, Service, Subnet, Vnet
from retinue.core.packets import ack, discover, renewal, request
from retinue.core.snooping import relay
from retinue.core.snooping.relay import Way, ways
from support.fabric import networks

NEAR, FAR, BEHIND = IPv4Address("10.1.0.2"), IPv4Address("10.0.0.2"), IPv4Address("198.51.100.2")
IP, MAC = networks.vm_ip(1), networks.vm_mac(1)


def relaying() -> Network:
    """The VMs' subnet is served by a DHCP server in the servers' subnet."""
    net = networks.fabric()
    net.subnets["blue"] = replace(net.subnets["blue"], dhcp=(FAR,))
    net.put_server(replace(net.servers["dhcp"], address=FAR))
    networks.add_vm(net, 1, at=1, bound=False)
    return net


@pytest.fixture
def net() -> Network:
    return relaying()


def test_to_a_server_of_another_subnet_everything_is_relayed_from_the_vms_gateway(net: Network) -> None:
    relayed = [Way(net.servers["dhcp"], networks.GATEWAY)]
    assert ways(net, "vm1", discover(MAC, 7), None, {}) == relayed
    assert ways(net, "vm1", request(MAC, 7, IP, FAR), None, {}) == relayed
    assert ways(net, "vm1", renewal(IP, MAC, 8), FAR, {}) == relayed, "a renewal, too, though it is unicast"


def test_for_a_nic_of_a_vnet_it_is_relayed_from_the_gateways_of_that(net: Network) -> None:
    """A VM without an address may be given one of any subnet, but for that."""
    net.put_vnet(Vnet("shop"))
    green = Subnet("green", IPv4Network("10.2.0.0/24"), IPv4Address("10.2.0.254"), dhcp=(FAR,), vnet="shop")
    net.add_subnet(green)
    nic = net.vms["vm1"].nic
    for vnet, gateways in (
        ("", {networks.GATEWAY, green.gateway}),
        ("shop", {green.gateway}),
        ("default", {networks.GATEWAY}),
    ):
        net.change_nic("vm1", net.vms["vm1"].nic, replace(nic, vnet=vnet))
        assert {way.giaddr for way in ways(net, "vm1", discover(MAC, 7), None, {})} == gateways


def test_a_server_of_the_vms_own_subnet_is_asked_straight() -> None:
    net = networks.fabric()
    networks.add_vm(net, 1, at=1)
    straight = [Way(net.servers["dhcp"])]
    assert ways(net, "vm1", discover(MAC, 7), None, {}) == straight
    assert ways(net, "vm1", renewal(IP, MAC, 8), NEAR, {}) == straight


def test_a_vm_of_the_servers_own_subnet_asks_it_straight(net: Network) -> None:
    own = IPv4Address("10.0.0.77")
    assert ways(net, "vm1", renewal(own, MAC, 8), FAR, {}) == [Way(net.servers["dhcp"])]


def test_a_vm_of_a_subnet_that_is_not_relayed_is_not_relayed(net: Network) -> None:
    net.subnets["servers"] = replace(net.subnets["servers"], dhcp=())
    net.put_server(replace(net.servers["dhcp"], address=IPv4Address("172.16.0.1")))
    net.subnets["blue"] = replace(net.subnets["blue"], dhcp=(IPv4Address("172.16.0.1"),))
    inside_servers = request(MAC, 7, IPv4Address("10.0.0.77"), None)
    assert ways(net, "vm1", inside_servers, None, {}) == []


def test_a_server_in_the_subnet_itself_is_relayed_to_where_it_is_listed() -> None:
    """So it hears by option 82 of which VM a message is, and by its own address, without a broadcast."""
    net = networks.fabric()
    net.subnets["blue"] = replace(net.subnets["blue"], dhcp=(NEAR,))
    networks.add_vm(net, 1, at=1, bound=False)
    relayed = [Way(net.servers["dhcp"], networks.GATEWAY)]
    for said in (discover(MAC, 7), request(MAC, 7, IP, NEAR)):
        assert ways(net, "vm1", said, None, {}) == relayed
    assert ways(net, "vm1", renewal(IP, MAC, 8), NEAR, {}) == relayed
    inside_servers = request(MAC, 7, IPv4Address("10.0.0.77"), None)
    assert ways(net, "vm1", inside_servers, None, {}) == []


def test_a_server_in_the_subnet_itself_that_another_lists_is_asked_straight() -> None:
    net = networks.fabric()
    net.subnets["servers"] = replace(net.subnets["servers"], dhcp=(NEAR,))
    networks.add_vm(net, 1, at=1)
    assert ways(net, "vm1", renewal(IP, MAC, 8), NEAR, {}) == [Way(net.servers["dhcp"])]


@pytest.mark.parametrize("first", ["IPv4", "IPv6"])
def test_of_the_addresses_a_vm_holds_only_ipv4_ones_tell_its_subnet(first: str) -> None:
    """A message without an address in it, of a VM that has IPv6, too."""
    net = relaying()
    net.subnets["servers"] = replace(net.subnets["servers"], dhcp=(IPv4Address("172.16.0.1"),))
    net.put_server(replace(net.servers["dhcp"], address=IPv4Address("172.16.0.1")))
    net.subnets["blue"] = replace(net.subnets["blue"], dhcp=(IPv4Address("172.16.0.1"),))
    networks.add_ipv6(net)
    held = [networks.assignment(1), networks.holding6(1)]
    for assignment in held if first == "IPv4" else reversed(held):
        net.assign(assignment)
    assert ways(net, "vm1", discover(MAC, 7), None, {}) == [Way(net.servers["dhcp"], networks.GATEWAY)]


def test_a_vm_without_an_address_may_be_given_one_of_any_subnet_that_is_relayed() -> None:
    net = relaying()
    far = IPv4Address("172.16.0.1")
    net.put_server(replace(net.servers["dhcp"], address=far))
    for name in ("servers", "blue"):
        net.subnets[name] = replace(net.subnets[name], dhcp=(far,))
    found = ways(net, "vm1", discover(MAC, 7), None, {})
    assert [way.giaddr for way in found] == [networks.INFRA_GATEWAY, networks.GATEWAY]


def test_what_is_addressed_to_a_server_behind_somebody_elses_relay_goes_to_that_relay() -> None:
    net = networks.fabric()
    networks.add_vm(net, 1, at=1)
    net.put_server(
        Server(
            "other", "02:00:00:00:01:03", IPv4Address("10.1.0.3"), services=frozenset({Service.DHCP}),
            given_at=PortRef("leaf1", "other"),
        )
    )  # fmt: skip
    asked = renewal(IP, MAC, 8)
    assert ways(net, "vm1", asked, BEHIND, {BEHIND: "other"}) == [Way(net.servers["other"])]
    assert ways(net, "vm1", asked, NEAR, {NEAR: "other"}) == [Way(net.servers["dhcp"])], "its own address"
    both = [Way(net.servers["dhcp"]), Way(net.servers["other"])]
    assert ways(net, "vm1", asked, BEHIND, {}) == both, "after a restart nobody knows where it is"


def test_the_relay_sets_giaddr_hops_and_option_82_last() -> None:
    """RFC 3046, 2.1: last of all options; RFC 1542, 4.1.1: one hop more."""
    told = relay.toward_server(renewal(IP, MAC, 8, b"\x01me"), networks.GATEWAY, "edge1:10", "vm1")
    assert told is not None
    assert (told.giaddr, told.hops, told.ciaddr) == (networks.GATEWAY, 1, IP)
    assert told.options[-1] == (82, b"\x01\x08edge1:10\x02\x03vm1")


def test_the_answer_loses_option_82_and_nothing_else() -> None:
    asked = relay.toward_server(renewal(IP, MAC, 8), networks.GATEWAY, "edge1:10", "vm1")
    assert asked is not None
    answer = ack(asked, IP, FAR, 600)
    assert answer.relay_agent == asked.relay_agent
    given = relay.toward_client(answer)
    assert given.relay_agent is None
    assert [o for o in answer.options if o[0] != 82] == list(given.options)
    assert replace(answer, options=given.options) == given


@pytest.mark.parametrize("hops", [0, 1, 7, 15])
def test_a_message_has_one_hop_more_by_each_relay(hops: int) -> None:
    told = relay.toward_server(replace(discover(MAC, 1), hops=hops), networks.GATEWAY, "e", "v")
    assert told is not None
    assert told.hops == hops + 1


@pytest.mark.parametrize("hops", [16, 17, 255])
def test_a_message_that_goes_round_in_circles_ends(hops: int) -> None:
    assert relay.toward_server(replace(discover(MAC, 1), hops=hops), networks.GATEWAY, "e", "v") is None


def test_a_long_name_does_not_overflow_its_suboption() -> None:
    told = relay.toward_server(discover(MAC, 1), networks.GATEWAY, "e" * 300, "v" * 300)
    assert told is not None
    option = told.relay_agent
    assert option is not None
    assert len(option) == 2 * 102


def test_only_gateways_of_relayed_subnets_are_relays(net: Network) -> None:
    assert relay.is_relay(net, networks.GATEWAY)
    assert not relay.is_relay(net, networks.INFRA_GATEWAY)
    assert not relay.is_relay(net, IPv4Address(0))

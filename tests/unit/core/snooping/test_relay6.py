"""The relay between VMs and DHCPv6 servers: which subnets a message is about, and the frames it makes."""

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

import pytest

from retinue.core.model import Network, Subnet
from retinue.core.model.link_local import link_local
from retinue.core.packets import parse
from retinue.core.packets.dhcp6 import MessageType6, Relayed6, parse_dhcp6, parse_udp6_frame
from retinue.core.snooping.dhcp6_messages import ToServers6
from retinue.core.snooping.relay6 import fault_of_envelope, handed_on, links, to_server, to_vm
from support.fabric.dhcp6 import add_dhcp6, answers, asks, leased, read_relayed
from support.fabric.ipv6 import vm_local
from support.fabric.networks import GATEWAY6, GATEWAY_MAC, OTHER_GATEWAY_MAC, add_vm, fabric, vm_mac

RED = Subnet("red6", IPv6Network("fd00:2::/64"), IPv6Address("fd00:2::fe"), dhcp6=True)
IN_RED = IPv6Address("fd00:2::1:1")
RELAY = link_local(GATEWAY_MAC)
SERVER = IPv6Address("fe80::5")
S, REQ = MessageType6.SOLICIT, MessageType6.REQUEST


@pytest.fixture
def net() -> Network:
    """Two subnets have addresses by DHCPv6, and one has not."""
    net = fabric()
    add_dhcp6(net)
    net.add_subnet(RED)
    net.add_subnet(Subnet("grey6", IPv6Network("fd00:3::/64"), IPv6Address("fd00:3::fe")))
    add_vm(net, 1, 1)
    return net


def test_a_message_is_about_the_subnet_of_its_address_or_about_all(net: Network) -> None:
    nic, blue, red = net.vms["vm1"].nic, net.subnets["blue6"], net.subnets["red6"]
    for addresses, about in (
        ((), (blue, red)),
        ((leased(1),), (blue,)),
        ((IN_RED,), (red,)),
        ((leased(1), IN_RED), (blue,)),  # it has one link
        ((IPv6Address("fd00:3::7"),), (blue, red)),  # none that is served
    ):
        assert links(net, nic, asks(S, 1, *addresses)) == about, addresses


def test_a_server_gets_the_message_in_an_envelope_by_the_gateways_address(net: Network) -> None:
    asked = ToServers6("vm1", vm_mac(1), vm_local(1), "edge1:3", asks(REQ, 1, leased(1)))
    frame = to_server(net, asked, net.subnets["red6"])
    envelope, inside = read_relayed(frame)
    assert (envelope.type, envelope.hops, envelope.link) == (MessageType6.RELAY_FORW, 0, RED.gateway)
    assert (envelope.peer, envelope.interface_id) == (vm_local(1), b"edge1:3")
    assert inside == handed_on(asked.dhcp)
    ethernet, datagram = parse_udp6_frame(frame)
    assert (ethernet.src, ethernet.dst) == (GATEWAY_MAC, "33:33:00:01:00:02")
    assert (datagram.src, datagram.dst) == (RELAY, IPv6Address("ff02::1:2"))
    assert (datagram.sport, datagram.dport) == (547, 547)


def test_a_vm_gets_the_answer_from_the_gateway_of_its_server(net: Network) -> None:
    answer = answers(asks(REQ, 1, leased(1)), leased(1))
    frame = to_vm(net, vm_mac(1), OTHER_GATEWAY_MAC, vm_local(1), answer)
    ethernet, datagram = parse_udp6_frame(frame)
    assert (ethernet.src, ethernet.dst) == (OTHER_GATEWAY_MAC, vm_mac(1)) == (parse(frame).src, vm_mac(1))
    assert (datagram.src, datagram.dst) == (RELAY, vm_local(1))
    assert (datagram.sport, datagram.dport) == (547, 546)
    assert parse_dhcp6(datagram.payload) == handed_on(answer)


@pytest.mark.parametrize(
    ("change", "dst", "fault"),
    [
        ({}, RELAY, ""),
        ({"link": RED.gateway}, RELAY, ""),
        ({}, GATEWAY6, f"DHCPv6 from {SERVER} to {GATEWAY6}, which is not the relay"),
        (
            {"type": MessageType6.RELAY_FORW},
            RELAY,
            "a DHCPv6 RELAY_FORW of 0 hops, not an answer to the relay",
        ),
        ({"hops": 1}, RELAY, "a DHCPv6 RELAY_REPL of 1 hops, not an answer to the relay"),
        ({"link": leased(1)}, RELAY, f"for a relay at {leased(1)}, which is none of ours"),
        ({"link": IPv6Address("fd00:3::fe")}, RELAY, "for a relay at fd00:3::fe, which is none of ours"),
        ({"link": IPv6Address("fd00:9::fe")}, RELAY, "for a relay at fd00:9::fe, which is none of ours"),
    ],
)
def test_what_is_an_answer_to_the_relay(
    net: Network, change: dict[str, object], dst: IPv6Address, fault: str
) -> None:
    answer = Relayed6(MessageType6.RELAY_REPL, 0, GATEWAY6, vm_local(1), b"", b"edge1:3")
    assert fault_of_envelope(net, SERVER, dst, replace(answer, **change)) == fault  # type: ignore[arg-type]

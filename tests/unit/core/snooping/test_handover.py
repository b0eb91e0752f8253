"""Frames in which DHCP messages are handed on, each field of them: who sends, who is to get it."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from retinue.core.model import Server
from retinue.core.packets import (
    BROADCAST,
    DHCP,
    FLAG_BROADCAST,
    Option,
    UDPDatagram,
    ack,
    discover,
    nak,
    parse_dhcp_frame,
    renewal,
)
from retinue.core.snooping import handover
from retinue.core.snooping.relay import MAX_HOPS, Way, toward_server
from support.fabric import networks

NOBODY, EVERYBODY = IPv4Address(0), IPv4Address("255.255.255.255")
SERVER_IP, ELSEWHERE = IPv4Address("10.0.0.2"), IPv4Address("192.0.2.7")
NET = networks.fabric()
VM = networks.add_vm(NET, 1, at=1)
MAC, IP = networks.vm_mac(1), networks.vm_ip(1)
SERVER = replace(NET.servers["dhcp"], address=SERVER_IP)
ASKS, RENEWS = discover(MAC, 7), renewal(IP, MAC, 7)

Seen = tuple[tuple[str, str], tuple[IPv4Address, IPv4Address], tuple[int, int], DHCP]
"""Source and destination: MAC, IP, UDP port; and the message."""


def seen(frame: bytes | None) -> Seen:
    assert frame is not None
    ethernet, datagram, dhcp = parse_dhcp_frame(frame)
    ips, ports = (datagram.src, datagram.dst), (datagram.sport, datagram.dport)
    return (ethernet.src, ethernet.dst), ips, ports, dhcp


# ---- to a server ----


def to_server(
    dhcp: DHCP,
    source: IPv4Address = NOBODY,
    to: IPv4Address | None = None,
    *,
    giaddr: IPv4Address | None = None,
    server: Server = SERVER,
) -> bytes | None:
    way = Way(server, giaddr)
    return handover.to_server(dhcp, way, networks.GATEWAY_MAC, source, to, "tap-vm1", "vm1")


@pytest.mark.parametrize(
    ("source", "to"), [(NOBODY, None), (NOBODY, SERVER_IP), (IP, None)], ids=["new", "no source", "to all"]
)
def test_what_is_for_everybody_or_has_no_source_is_broadcast(source: IPv4Address, to: IPv4Address) -> None:
    assert seen(to_server(ASKS, source, to)) == ((MAC, BROADCAST), (source, EVERYBODY), (68, 67), ASKS)


@pytest.mark.parametrize("to", [SERVER_IP, ELSEWHERE], ids=["the server", "one behind it"])
def test_what_is_for_one_server_goes_to_its_port(to: IPv4Address) -> None:
    assert seen(to_server(RENEWS, IP, to)) == ((MAC, SERVER.mac), (IP, to), (68, 67), RENEWS)


def test_what_only_servers_may_say_is_left_out() -> None:
    for giaddr in (None, networks.GATEWAY):
        said = replace(ASKS, yiaddr=ELSEWHERE, siaddr=ELSEWHERE)
        *_, dhcp = seen(to_server(said, giaddr=giaddr))
        assert (dhcp.yiaddr, dhcp.siaddr) == (NOBODY, NOBODY)


@pytest.mark.parametrize(("source", "to"), [(NOBODY, None), (IP, SERVER_IP)])
def test_what_is_relayed_comes_from_the_gateway(source: IPv4Address, to: IPv4Address | None) -> None:
    macs, ips, ports, dhcp = seen(to_server(RENEWS, source, to, giaddr=networks.GATEWAY))
    assert macs == (networks.GATEWAY_MAC, SERVER.mac)
    assert (ips, ports) == ((networks.GATEWAY, SERVER_IP), (67, 67))
    assert dhcp == toward_server(RENEWS, networks.GATEWAY, "tap-vm1", "vm1")
    assert dhcp.option(Option.RELAY_AGENT) == b"\x01\x07tap-vm1\x02\x03vm1"


def test_what_has_passed_too_many_relays_goes_no_further() -> None:
    assert to_server(replace(ASKS, hops=MAX_HOPS - 1), giaddr=networks.GATEWAY) is not None
    assert to_server(replace(ASKS, hops=MAX_HOPS), giaddr=networks.GATEWAY) is None


@pytest.mark.parametrize("address", [None, IPv6Address("2001:db8::2")])
def test_nothing_is_relayed_to_a_server_without_an_ipv4_address(address: IPv6Address | None) -> None:
    server = replace(SERVER, address=address)
    assert to_server(ASKS, giaddr=networks.GATEWAY, server=server) is None
    assert to_server(ASKS, server=server) is not None, "broadcast it needs none"


# ---- to a VM ----


def to_vm(answer: DHCP, dst: IPv4Address, *, relayed: bool = False, mtu: int = 1500) -> bytes:
    datagram = UDPDatagram(SERVER_IP, dst, 67, 67 if relayed else 68, b"")
    return handover.to_vm(VM.nic.mac, networks.GATEWAY_MAC, datagram, answer, mtu)


GRANTS, RENEWED = ack(ASKS, IP, SERVER_IP, 600), ack(RENEWS, IP, SERVER_IP, 600)
TO_VM = ((networks.GATEWAY_MAC, MAC), (SERVER_IP, IP), (67, 68))
TO_ALL = ((networks.GATEWAY_MAC, BROADCAST), (SERVER_IP, EVERYBODY), (67, 68))


@pytest.mark.parametrize(
    ("answer", "dst", "frame"),
    [
        (GRANTS, IP, TO_VM),
        (GRANTS, EVERYBODY, TO_ALL),
        (replace(GRANTS, flags=FLAG_BROADCAST), IP, TO_ALL),
        (RENEWED, IP, TO_VM),
        (replace(RENEWED, ciaddr=IP, yiaddr=NOBODY), IP, TO_VM),
        (replace(GRANTS, ciaddr=NOBODY, yiaddr=NOBODY), IP, TO_ALL),
        (nak(ASKS, SERVER_IP), EVERYBODY, TO_ALL),
        (replace(nak(RENEWS, SERVER_IP), ciaddr=IP), IP, TO_ALL),
    ],
)
def test_an_answer_goes_where_the_client_can_take_it(
    answer: DHCP, dst: IPv4Address, frame: tuple[object, ...]
) -> None:
    """RFC 2131, 4.1."""
    assert seen(to_vm(answer, dst)) == (*frame, answer)


@pytest.mark.parametrize(
    ("says", "mtu", "heard"),
    [
        (None, 1500, None),
        (None, 9000, None),
        (None, 1400, 1400),
        (9000, 1500, 1500),
        (1500, 1400, 1400),
        (1300, 1400, 1300),
    ],
)
def test_no_larger_packets_are_told_of_than_the_nics_network_takes(
    says: int | None, mtu: int, heard: int | None
) -> None:
    answer = GRANTS if says is None else GRANTS.with_option(Option.INTERFACE_MTU, says.to_bytes(2))
    *_, dhcp = seen(to_vm(answer, IP, mtu=mtu))
    assert isinstance(dhcp, DHCP)
    assert dhcp.option(Option.INTERFACE_MTU) == (None if heard is None else heard.to_bytes(2))
    *_, refused = seen(to_vm(nak(ASKS, SERVER_IP), EVERYBODY, mtu=1400))
    assert refused == nak(ASKS, SERVER_IP), "a refusal says nothing of it"


def test_a_client_that_has_an_address_is_answered_there() -> None:
    answer = replace(RENEWED, ciaddr=IP, yiaddr=ELSEWHERE)
    assert seen(to_vm(answer, IP))[1] == (SERVER_IP, IP)
    assert seen(to_vm(replace(answer, ciaddr=NOBODY), IP))[1] == (SERVER_IP, ELSEWHERE)


def test_an_answer_for_our_relay_comes_from_the_gateway_and_without_its_option() -> None:
    asked = toward_server(ASKS, networks.GATEWAY, "tap-vm1", "vm1")
    assert asked is not None
    echoed = (Option.RELAY_AGENT, asked.option(Option.RELAY_AGENT) or b"")
    answer = replace(ack(asked, IP, SERVER_IP, 600, (echoed,)), giaddr=networks.GATEWAY)
    macs, ips, ports, dhcp = seen(to_vm(answer, networks.GATEWAY, relayed=True))
    assert (macs, ips, ports) == ((networks.GATEWAY_MAC, MAC), (networks.GATEWAY, IP), (67, 68))
    assert dhcp == answer.without_option(Option.RELAY_AGENT)
    assert dhcp.option(Option.RELAY_AGENT) is None

"""Real Open vSwitch does with the entries of two joined domains what the fake switches do, byte by byte.

The gateways' entries above all: storage by pairs of MACs, meters by guest, DHCPv6 that is handed up.
"""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from retinue.core.model.link_local import link_local
from retinue.core.packets import BROADCAST, dhcp_frame, discover
from retinue.core.packets.dhcp6 import ALL_AGENTS_AND_SERVERS
from retinue.core.pipeline.entry import Change, Field, Flow, Group, Meter, PortNo
from support.fabric.domains import GATEWAY_MACS, TUNNEL, UPLINK, Domains, gateway_of, nic, port, server_of
from support.fabric.ipv6 import frame6, udp6, udp6_frame
from support.fabric.storage import (
    FORWARDER_MAC,
    advertisement,
    answers,
    asks,
    clears,
    keep_alive,
    solicitation,
    storage_frame,
)
from support.fabric.storage_domains import FORWARDER_AT, granted, logged_in, with_storage
from support.oracles.ovs import RealSwitch, assert_agrees

pytestmark = [pytest.mark.lab, pytest.mark.no_vms]

ITS, OTHERS, STRANGER = nic("a", 1, dual=True), nic("a", 2, dual=True), nic("b", 3, dual=True)
PORTS = {
    "a-edge3": [UPLINK, TUNNEL],
    "b-edge3": [UPLINK, TUNNEL],
    "b-edge1": [UPLINK, port(ITS), port(STRANGER)],
    "a-leaf1": [1, 101, 102, 103, FORWARDER_AT[1]],
    "b-leaf1": [1, 101, 102, 103],
}


def world() -> Domains:
    """vm-a1 and vm-a2 of domain a are guests of domain b, and vm-b3 is at home there."""
    made = with_storage(Domains(1, 1, dual=True))
    for domain in "ab":
        net = made.nets[domain]
        net.add_subnet(replace(net.subnets["blue6"], dhcp6=True))
    for number in (1, 2):
        made.add("a", "a", number, gateway_of("a"))
        made.add("b", "a", number, server_of("b", number))
        for domain in "ab":
            made.nets[domain].log_in(logged_in(domain, number))
    made.add("b", "b", 3, server_of("b", 1))
    for domain, net in made.nets.items():
        made.install(domain, net.everything())
    return made


def storage() -> Iterator[bytes]:
    macs = [granted(1), granted(2), granted(9), ITS.mac, FORWARDER_MAC]
    for src in macs:
        yield from (storage_frame(src, dst) for dst in macs if dst != src)
    yield storage_frame(granted(1), FORWARDER_MAC) + bytes(1300)
    for number in (1, 2):
        yield from (solicitation(number), asks(number), answers(number), keep_alive(number, of_port=True))
        yield clears(number)
    yield from (advertisement(), advertisement(dst=ITS.mac))


def questions() -> Iterator[bytes]:
    """DHCP and DHCPv6, by whom and to whom they may be and may not; and a packet of each family."""
    nobody, everybody = IPv4Address(0), IPv4Address("255.255.255.255")
    for one in (ITS, OTHERS, STRANGER):
        own = link_local(one.mac)
        asked = udp6(own, ALL_AGENTS_AND_SERVERS, sport=546, dport=547)
        yield frame6(one.mac, "33:33:00:01:00:02", asked)
        answered = udp6(link_local(GATEWAY_MACS["a"]), own, sport=547, dport=546)
        yield frame6(GATEWAY_MACS["a"], one.mac, answered)
        yield dhcp_frame(discover(one.mac, 7), one.mac, BROADCAST, nobody, everybody, 68, 67)
        (_, ip6), (_, to6) = one.addresses, OTHERS.addresses
        assert isinstance(ip6, IPv6Address) and isinstance(to6, IPv6Address)
        yield udp6_frame(one.mac, GATEWAY_MACS["a"], ip6, to6)


@pytest.mark.parametrize("switch", PORTS)
def test_between_domains_it_does_as_the_fake_does(switch: str) -> None:
    made = world()
    domain = switch[0]
    program = list(made.compilers[domain].program(switch).values())
    meters = [replace(m, rate=10**6, burst=10**6) for m in program if isinstance(m, Meter)]
    ours = (Field.IN_PORT, PortNo.CONTROLLER, None)
    flows = [f for f in program if isinstance(f, Flow) and ours not in f.match]
    groups = [g for g in program if isinstance(g, Group)]
    fake, seen, told = made.fabric[switch], 0, 0
    fake.apply(Change(meters=tuple(meters)))
    with RealSwitch(PORTS[switch]) as real:
        real.install([replace(f, expires_at=None) for f in flows], groups, meters)
        for number in PORTS[switch]:
            for frame in (*storage(), *questions()):
                observed = assert_agrees(real, fake, frame, number)
                seen += bool(observed.outputs)
                told += bool(observed.to_controller)
    assert seen > 1, "the frames must exercise the switch"
    assert told > 1 or switch == "b-leaf1"

"""DHCPv6 of tenants with the same prefix: who is asked, in whose name, and whose the lease is."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.model import (
    NIC,
    VM,
    ModelError,
    PortRef,
    Server,
    Service,
    VMPort,
    in_vrf,
)
from retinue.core.packets import parse
from retinue.core.packets.dhcp6 import DHCP6, MessageType6, Relayed6, parse_dhcp6, parse_udp6_frame
from retinue.core.packets.dhcp6_options import Option6
from support.fabric.dhcp6 import add_dhcp6, answers, asks, from_vm, leased, read_relayed, to_relay
from support.fabric.ipv6 import udp6_frame, vm_local
from support.fabric.networks import GATEWAY6, GATEWAY_MAC, add_vm, fabric, vm_mac, vm_port
from support.fabric.tenants import add_tenants
from support.fakes.session import FakeNetwork

S, REQ, REL = MessageType6.SOLICIT, MessageType6.REQUEST, MessageType6.RELEASE
OWN, RED, GREEN = 1, 2, 3
"""A VM of each VRF, each on the server of its number."""
SERVERS = {"dhcp": ("leaf2", 90), "reds": ("leaf1", 93)}
"""The default VRF's DHCP server, and one for red alone."""
VRF_OF = {OWN: "default", RED: "red", GREEN: "green"}


class Lab:
    """Each VRF has fd00:1::/64; both servers give VM 1's address to whoever asks."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Relayed6, DHCP6]] = []
        self.fake = FakeNetwork(fabric(), lambda: 1000.0)
        net = self.fake.net
        add_tenants(net, ipv6=True)
        add_dhcp6(net)
        net.set_ports("leaf1", net._numbers["leaf1"] | {"reds": 93})
        net.put_server(
            Server(
                "reds", "02:00:00:00:01:09", IPv4Address("10.1.0.3"), services=frozenset({Service.DHCP}),
                given_at=PortRef("leaf1", "reds"),
            )
        )  # fmt: skip
        red = net.subnets["redblue6"]
        net.add_subnet(replace(red, slaac=False, dhcp6=True, dhcp=(IPv4Address("10.1.0.3"),)))
        net.add_subnet(replace(net.subnets["blue6"], dhcp=(IPv4Address("10.1.0.2"),)))
        add_vm(net, OWN, OWN, bound=False)
        for number in (RED, GREEN):
            vnet = f"{VRF_OF[number]}net"
            net.put_vm(VM(f"vm{number}", (NIC(vm_mac(number), f"vm{number}", vnet=vnet),), f"server{number}"))
            net.set_vm_port(f"vm{number}", f"edge{number}", VMPort(vm_port(number)))
        self.silent: set[str] = set()
        for server, at in SERVERS.items():
            self.fake.hosts[at] = lambda frame, server=server: self.serve(server, frame)  # type: ignore[misc]

    def serve(self, server: str, frame: bytes) -> None:
        try:
            envelope, asked = read_relayed(frame)
        except ValueError:
            return
        self.asked.append((server, envelope, asked))
        if server not in self.silent:
            self.says(server, envelope, answers(asked, *(() if asked.type is REL else (leased(OWN),))))

    def says(self, server: str, envelope: Relayed6, answer: DHCP6) -> None:
        self.fake.send(*SERVERS[server], to_relay(envelope, answer, self.fake.net.servers[server].mac))

    async def say(self, vm: int, dhcp: DHCP6) -> None:
        self.fake.heard.clear()
        self.fake.send(f"edge{vm}", vm_port(vm), from_vm(dhcp, vm))
        await self.fake.settle()

    async def lease(self, vm: int) -> None:
        await self.say(vm, asks(S, vm))
        await self.say(vm, asks(REQ, vm, leased(OWN), xid=2))

    def told(self, vm: int) -> list[DHCP6]:
        at = (f"edge{vm}", vm_port(vm))
        frames = [frame for switch, port, frame in self.fake.heard if (switch, port) == at]
        assert all(parse(frame).vlan is None for frame in frames)
        return [parse_dhcp6(parse_udp6_frame(frame)[1].payload) for frame in frames]


@pytest.fixture
async def lab() -> Lab:
    made = Lab()
    await made.fake.start()
    return made


async def test_a_tenant_is_leased_an_address_that_another_has_by_its_own_server(lab: Lab) -> None:
    await lab.lease(OWN)
    assert {server for server, _, _ in lab.asked} == {"dhcp"}
    assert all(envelope.options == own_mac(OWN) for _, envelope, _ in lab.asked), (
        "the default VRF is not named"
    )
    lab.asked.clear()
    await lab.lease(RED)
    assert {server for server, _, _ in lab.asked} == {"reds"}
    for _, envelope, _ in lab.asked:
        assert envelope.link == GATEWAY6
        assert dict(envelope.options)[Option6.VIRTUAL_SUBNET] == b"\0red"
    net = lab.fake.net
    assert net.assignments.keys() == {leased(OWN), in_vrf("red", leased(OWN))}
    assert {held.vm for held in net.assignments.values()} == {"vm1", "vm2"}
    assert [said.type for said in lab.told(RED)] == [MessageType6.REPLY]
    # Each sends from it, as in its own VRF.
    for vm in (OWN, RED):
        frame = udp6_frame(vm_mac(vm), GATEWAY_MAC, leased(OWN), leased(7))
        sent = lab.fake.fabric.send(f"edge{vm}", vm_port(vm), frame)
        assert not sent.to_controller, "it is no forgery"
    await lab.say(RED, asks(REL, RED, leased(OWN), xid=3))
    assert net.assignments.keys() == {leased(OWN)}


def own_mac(vm: int) -> tuple[tuple[int, bytes], ...]:
    return ((Option6.CLIENT_LINK_LAYER, b"\0\1" + bytes.fromhex(vm_mac(vm).replace(":", ""))),)


async def test_a_server_that_was_not_asked_is_not_believed(lab: Lab) -> None:
    """Not even where it knows the question, and answers for the gateway's address, which both VRFs have."""
    lab.silent.add("reds")
    await lab.say(RED, asks(REQ, RED, leased(OWN), xid=2))
    ((_, envelope, asked),) = lab.asked
    lab.says("dhcp", envelope, answers(asked, leased(OWN)))
    await lab.fake.settle()
    assert not lab.fake.net.assignments
    assert not lab.told(RED)
    lab.says("reds", envelope, answers(asked, leased(OWN)))
    await lab.fake.settle()
    assert lab.fake.net.assignments.keys() == {in_vrf("red", leased(OWN))}


async def test_where_no_server_serves_a_vrf_nobody_is_asked(lab: Lab) -> None:
    await lab.say(GREEN, asks(S, GREEN))
    assert not lab.asked
    with pytest.raises(ModelError, match="in VRF green say which DHCP server"):
        lab.fake.net.add_subnet(replace(lab.fake.net.subnets["greenblue6"], slaac=False, dhcp6=True))


async def test_a_client_identifier_is_one_of_its_vrf(lab: Lab) -> None:
    """The DUID of a lease in one VRF is anybody's in another."""
    known = b"\0\2tenant"
    await lab.say(OWN, replace(asks(REQ, OWN, leased(OWN), xid=2), client_id=known))
    await lab.say(RED, replace(asks(REQ, RED, leased(OWN), xid=2), client_id=known))
    assert lab.fake.net.assignments.keys() == {leased(OWN), in_vrf("red", leased(OWN))}
    assert vm_local(RED) == lab.asked[-1][1].peer

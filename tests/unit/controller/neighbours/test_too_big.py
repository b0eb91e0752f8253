"""Packets that are larger than where they go takes: their sender hears which size does."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import UDP as UDP6
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.packet import Raw

from retinue.core.model import NIC, VM, Subnet, VMPort, Vnet
from retinue.core.packets import Ethernet, EtherType, parse
from retinue.core.pipeline.entry import Change, CheckLarger, Flow
from retinue.core.pipeline.meters import LeafMeter
from retinue.southbound.openflow.server import Rejected
from support.fabric.networks import (
    GATEWAY,
    GATEWAY6,
    GATEWAY_MAC,
    add_ipv6,
    add_vm,
    fabric,
    holding6,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.sample_frames import icmp, ipv4, udp
from support.fabric.tenants import Held, add_tenants, address, vnet_of
from support.fabric.tenants import add_vm as add_tenant_vm
from support.fakes.session import FakeNetwork, FakeSession

ANSWERED = "packets larger than where they go takes, answered"
OWN, DF = vm_ip(1), 0x4000
NARROW, NARROW6 = IPv4Address("10.7.0.5"), IPv6Address("fd00:7::5")
NARROW_MAC, NARROW_PORT = vm_mac(7), vm_port(7)
ROUTED = IPv4Network("198.51.100.0/28")
OUTSIDE = IPv4Address("203.0.113.9")


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    """vm1 in a vnet that takes all; "thin" on server2 in one that takes 1,400 bytes, a prefix behind it."""
    net = fabric()
    add_ipv6(net)
    net.put_vnet(Vnet("narrow", mtu=1400))
    net.add_subnet(Subnet("n4", IPv4Network("10.7.0.0/24"), IPv4Address("10.7.0.254"), vnet="narrow"))
    net.add_subnet(Subnet("n6", IPv6Network("fd00:7::/64"), IPv6Address("fd00:7::fe"), vnet="narrow"))
    add_vm(net, 1, at=1)
    net.assign(holding6(1))
    nic = NIC(NARROW_MAC, "thin", (NARROW, NARROW6), vnet="narrow", prefixes=(ROUTED,))
    net.put_vm(VM("thin", (nic,), "server2"))
    net.set_vm_port("thin", "edge2", VMPort(NARROW_PORT, "tap7"))
    for ip in nic.addresses:
        net.assign(net.static("thin", nic, ip))
    made = FakeNetwork(net, clock=lambda: 1000.0)
    await made.start()
    made.heard.clear()
    yield made
    await made.stop()


def packet(size: int, dst: IPv4Address = NARROW, src: IPv4Address = OWN, fragment: int = DF) -> bytes:
    """An IPv4 packet of this many bytes."""
    return ipv4(src, dst, udp(bytes(size - 28), 40000, 9), fragment=fragment)


def frame(packet: bytes, src: str = vm_mac(1)) -> bytes:
    kind = EtherType.IPV4 if packet[0] >> 4 == 4 else EtherType.IPV6
    return Ethernet(GATEWAY_MAC, src, kind, packet).build()


def packet6(size: int, dst: IPv6Address = NARROW6) -> bytes:
    return bytes(IPv6(src=str(holding6(1).ip), dst=str(dst)) / UDP6() / Raw(bytes(size - 48)))


async def test_what_is_as_large_as_the_way_takes_goes_on(fake: FakeNetwork) -> None:
    for sent in (packet(1400), packet6(1400), packet(1400, ROUTED[3])):
        fake.heard.clear()
        fake.send("edge1", vm_port(1), frame(sent))
        ((switch, port, got),) = fake.heard
        assert (switch, port, len(got)) == ("edge2", NARROW_PORT, 1414)


@pytest.mark.parametrize(("mtu", "size", "arrives"), [
    (1280, 1280, True), (1280, 1281, False), (1281, 1281, True), (1281, 1282, False),
])  # fmt: skip
async def test_the_least_that_ipv6_may_take(fake: FakeNetwork, mtu: int, size: int, arrives: bool) -> None:
    """RFC 8200, 5: every link takes 1,280 bytes; and the answer itself is no larger (RFC 4443, 2.4)."""
    await fake.controller.vnets.set_vnet(Vnet("narrow", mtu=mtu))
    fake.heard.clear()
    sent = packet6(size)
    fake.send("edge1", vm_port(1), frame(sent))
    ((switch, port, got),) = fake.heard
    if arrives:
        assert (switch, port, len(got)) == ("edge2", NARROW_PORT, 14 + size)
        return
    assert (switch, port) == ("edge1", vm_port(1))
    told = IPv6(parse(got).payload)
    assert told[ICMPv6PacketTooBig].mtu == mtu
    assert bytes(told)[48:] == sent[:1232]
    assert len(bytes(told)) == 1280


@pytest.mark.parametrize("dst", [NARROW, ROUTED[3]])
async def test_what_is_larger_is_answered_by_the_senders_gateway(fake: FakeNetwork, dst: IPv4Address) -> None:
    sent = packet(1401, dst)
    fake.send("edge1", vm_port(1), frame(sent))
    ((switch, port, got),) = fake.heard
    assert (switch, port, parse(got).dst) == ("edge1", vm_port(1), vm_mac(1))
    told = IP(parse(got).payload)
    assert (told.src, told.dst) == (str(GATEWAY), str(vm_ip(1)))
    assert (told[ICMP].type, told[ICMP].code, told[ICMP].nexthopmtu) == (3, 4, 1400)
    assert bytes(told)[28:] == sent[: len(bytes(told)) - 28]
    assert fake.controller.context.counters[ANSWERED] == 1


async def test_of_ipv6_too(fake: FakeNetwork) -> None:
    sent = packet6(1401)
    fake.send("edge1", vm_port(1), frame(sent))
    ((switch, port, got),) = fake.heard
    assert (switch, port) == ("edge1", vm_port(1))
    told = IPv6(parse(got).payload)
    assert (told.src, told.dst) == (str(GATEWAY6), str(holding6(1).ip))
    assert (told[ICMPv6PacketTooBig].mtu, told[ICMPv6PacketTooBig].code) == (1400, 0)
    assert bytes(told)[48:] == sent[:1232]


async def test_what_may_be_fragmented_arrives_in_parts(fake: FakeNetwork) -> None:
    sent = packet(1500, fragment=0)
    fake.send("edge1", vm_port(1), frame(sent))
    assert {(switch, port) for switch, port, _ in fake.heard} == {("edge2", NARROW_PORT)}
    parts = [IP(parse(got).payload) for _, _, got in fake.heard]
    assert all(len(bytes(part)) <= 1400 for part in parts)
    assert [(part.frag, int(part.flags)) for part in parts] == [(0, 1), (172, 0)]
    assert b"".join(bytes(part)[20:] for part in parts) == sent[20:]
    assert {part.ttl for part in parts} == {63}, "one hop"


async def test_an_outsider_hears_it_from_the_gateway_where_the_packet_was_to_go(fake: FakeNetwork) -> None:
    """The router's leaf is where it comes in; what is said goes out again by the router."""
    fake.send("leaf2", 91, frame(packet(1401, src=OUTSIDE), "02:00:00:00:01:01"))
    ((switch, port, got),) = fake.heard
    assert (switch, port) == ("leaf2", 91)
    told = IP(parse(got).payload)
    assert (told.src, told.dst, told[ICMP].nexthopmtu) == ("10.7.0.254", str(OUTSIDE), 1400)


async def test_the_other_way_nothing_is_in_the_way(fake: FakeNetwork) -> None:
    sent = packet(1500, dst=vm_ip(1), src=NARROW)
    fake.send("edge2", NARROW_PORT, frame(sent, NARROW_MAC))
    assert [(switch, port) for switch, port, _ in fake.heard] == [("edge1", vm_port(1))]


async def test_a_flood_of_them_stops_at_the_leaf(fake: FakeNetwork) -> None:
    for leaf in ("leaf1", "leaf2"):
        fake.fabric[leaf].exhausted.add(LeafMeter.TOO_BIG)
    fake.send("edge1", vm_port(1), frame(packet(1401)))
    assert not fake.heard


async def test_a_time_to_live_that_ends_goes_before(fake: FakeNetwork) -> None:
    sent = ipv4(vm_ip(1), NARROW, udp(bytes(1400), 1, 2), ttl=1, fragment=DF)
    fake.send("edge1", vm_port(1), frame(sent))
    ((_, _, got),) = fake.heard
    assert IP(parse(got).payload)[ICMP].type == 11


async def test_what_is_malformed_or_an_error_itself_is_not_answered(fake: FakeNetwork) -> None:
    error = ipv4(vm_ip(1), NARROW, icmp(3, bytes(1400)), fragment=DF)
    gateway, counters = fake.controller.gateway, fake.controller.context.counters
    for given in (
        frame(error),
        b"\0" * 14,
        b"",
        frame(packet(1401)[:40]),
        frame(packet(1401, fragment=0)[:40]),
    ):
        gateway.too_big("leaf1", 1, given)
    assert not fake.heard
    unanswered = sum(n for name, n in counters.items() if "takes, not answered" in name)
    assert unanswered + counters["bad IP frames"] == 5


async def test_a_tenants_packets_have_a_tag_and_are_as_large_as_others(fake: FakeNetwork) -> None:
    net = fake.net
    add_tenants(net)
    net.put_vnet(replace(net.vnets[vnet_of("red", beside=True)], mtu=1300))
    far = address(12, beside=True)
    add_tenant_vm(net, "twin", 1, [Held(11, "twin", "red", vm_ip(1))])
    add_tenant_vm(net, "beside", 2, [Held(12, "beside", "red", far)])
    await fake.controller.context.install(net.everything())
    fake.send("edge1", vm_port(11), frame(packet(1300, far), vm_mac(11)))
    assert [(switch, port) for switch, port, _ in fake.heard] == [("edge2", vm_port(12))]
    fake.heard.clear()
    fake.send("edge1", vm_port(11), frame(packet(1301, far), vm_mac(11)))
    ((switch, port, got),) = fake.heard
    assert (switch, port, parse(got).vlan) == ("edge1", vm_port(11), None)
    assert IP(parse(got).payload)[ICMP].nexthopmtu == 1300
    fake.heard.clear()
    fake.send("edge1", vm_port(1), frame(packet(1500, far)))
    assert [(switch, port) for switch, port, _ in fake.heard] == [("leaf2", 91)], "elsewhere it is outside"


async def test_a_changed_mtu_is_on_the_leaves_when_it_has_been_set(fake: FakeNetwork) -> None:
    await fake.controller.vnets.set_vnet(Vnet("narrow", mtu=1300))
    fake.send("edge1", vm_port(1), frame(packet(1301)))
    ((_, _, got),) = fake.heard
    assert IP(parse(got).payload)[ICMP].nexthopmtu == 1300
    fake.heard.clear()
    await fake.controller.vnets.set_vnet(Vnet("narrow", mtu=0))
    fake.send("edge1", vm_port(1), frame(packet(1500)))
    assert [(switch, port) for switch, port, _ in fake.heard] == [("edge2", NARROW_PORT)]


async def test_where_all_take_the_same_no_entry_looks(fake: FakeNetwork) -> None:
    before = {name: dict(switch.flows) for name, switch in fake.fabric.switches.items()}
    await fake.controller.vnets.set_vnet(Vnet("narrow", mtu=1500))
    gone = {
        (name, flow.priority)
        for name, flows in before.items()
        for key, flow in flows.items()
        if key not in fake.fabric[name].flows
    }
    assert {name for name, _ in gone} == {"leaf1", "leaf2"}
    assert {p for _, p in gone} == {1230, 1500 + 24, 1500 + 64, 1500 + 28}
    assert LeafMeter.TOO_BIG not in fake.fabric["leaf1"].meters


async def test_a_leaf_that_cannot_look_at_sizes_has_all_else(
    fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Open vSwitch before 2.12 rejects an action that it does not know, and all that comes with it."""
    apply = FakeSession.apply

    async def of_old(session: FakeSession, change: Change, now: float) -> None:
        if session.name == "leaf1" and any(isinstance(a, CheckLarger) for f in change.add for a in f.actions):
            raise Rejected(("OFPET_BAD_ACTION OFPBAC_BAD_EXP_TYPE",))
        await apply(session, change, now)

    monkeypatch.setattr(FakeSession, "apply", of_old)
    monkeypatch.setattr("retinue.controller.switches.programmer.SHORTEST_PAUSE", 0.0)
    fake.sessions["leaf1"].close("restarted")
    fake.fabric["leaf1"].flows.clear()
    fake.fabric["leaf1"]._index.clear()
    fake.connect("leaf1")
    await fake.settle()
    wanted = fake.controller.context.compiler.program("leaf1")
    assert {key for key in wanted if key not in fake.fabric["leaf1"].flows and isinstance(key[0], int)} == {
        key for key, entry in wanted.items()
        if isinstance(entry, Flow) and any(isinstance(action, CheckLarger) for action in entry.actions)
    }  # fmt: skip
    fake.send("edge1", vm_port(1), frame(packet(1500)))
    assert [(switch, port) for switch, port, _ in fake.heard] == [("edge2", NARROW_PORT)], (
        "as if nobody looked"
    )
    programmer = fake.controller.context.installer.switches["leaf1"]
    assert not programmer.pending
    monkeypatch.undo()
    fake.sessions["leaf1"].close("upgraded")
    fake.connect("leaf1")
    await fake.settle()
    assert wanted.keys() == {*fake.fabric["leaf1"].flows, *(key for key in wanted if isinstance(key[0], str))}

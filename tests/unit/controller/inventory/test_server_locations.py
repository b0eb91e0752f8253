"""Where servers are: found by their ARP, followed when they move, and not taken away by a stranger's."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Network

import msgspec
import pytest

from retinue.config_file import ConfigError
from retinue.controller.api import views
from retinue.controller.app import Controller
from retinue.controller.config import Config
from retinue.controller.counters import packet_ins
from retinue.controller.errors import RequestError
from retinue.controller.inventory.server_locations import ASKED_AT_ONCE, LONGEST_WAIT
from retinue.core.limits import MOST_TELLINGS, MOST_UNKNOWN
from retinue.core.model import GatewayGroup, ModelError, Network, PortRef, Server, Subnet, mac_to_come
from retinue.core.model.link_local import link_local
from retinue.core.model.network import Owner
from retinue.core.packets import (
    Ethernet,
    EtherType,
    arp_reply,
    arp_request,
    build_udp4,
    nd_frame,
    parse,
    parse_arp,
)
from retinue.core.packets.lldp import CHASSIS_LOCAL, Lldp, lldp_frame
from retinue.core.pipeline.cookies import Reason
from retinue.core.pipeline.entry import Field, Flow, PortNo
from retinue.core.pipeline.tables import Table
from retinue.southbound.openflow.codec.messages import PortDesc, PortStatus
from retinue.southbound.openflow.codec.wire import PortReason
from support.fabric.ipv6 import asks, vm_ip6
from support.fabric.networks import GATEWAY6, GATEWAY_MAC, INFRA_GATEWAY, fabric, leaf_port
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

ONE, TWO = "02:00:00:00:00:01", "02:00:00:00:00:02"
HOME = PortRef("leaf1", "p1")
SPARE = PortRef("leaf2", "spare")


@dataclass
class LocatedServers:
    """Server1 at leaf1, server2 at leaf2, which has a free port 77; a clock that tests turn."""

    fake: FakeNetwork
    now: float = 1000.0

    @property
    def net(self) -> Network:
        return self.fake.net

    def speak(self, switch: str, port: int, mac: str = ONE, number: int = 1) -> None:
        """ARP with this server's MAC and address comes in at a leaf's port."""
        self.fake.send(switch, port, arp_request(mac, IPv4Address(f"10.0.0.{10 + number}"), INFRA_GATEWAY))

    def answers(self, number: int, mac: str) -> None:
        """Server N answers ARP, at its own edge switch."""

        def heard(frame: bytes) -> None:
            ethernet = parse(frame)
            question = parse_arp(ethernet.payload)
            if ethernet.dst == mac and question.tpa == IPv4Address(f"10.0.0.{10 + number}"):
                self.fake.send(f"edge{number}", PortNo.LOCAL, arp_reply(question, mac))

        self.fake.hosts[f"edge{number}", PortNo.LOCAL] = heard

    def events(self, kind: str) -> list[dict[str, object]]:
        return [event.data for event in recent(self.fake.controller.events, kind, 1000)]

    async def decided(self) -> None:
        """Until no question is open."""
        tasks = self.fake.controller.context._tasks
        asked = ("place of server", "MAC of server")
        await asyncio.gather(*(t for t in tasks if t.get_name().startswith(asked)))
        await self.fake.settle()

    def asked(self, switch: str, port: int) -> list[bytes]:
        return [frame for at, number, frame in self.fake.heard if (at, number) == (switch, port)]


def network(servers_on: tuple[int, ...] = (1, 2, 1)) -> Network:
    net = fabric(servers_on=servers_on)
    net.set_ports("leaf2", {"s1": 1, "s2": 2, "p2": 102, "dhcp": 90, "router": 91, "spare": 77})
    return net


@pytest.fixture
async def bench() -> AsyncIterator[LocatedServers]:
    bench: LocatedServers
    fake = FakeNetwork(network(), clock=lambda: bench.now)
    bench = LocatedServers(fake)
    await fake.start()
    fake.controller.arp.locations.silence = 0.02
    yield bench
    await fake.stop()


# ---- a place is not taken ----


async def test_a_server_that_answers_at_its_place_stays_there(bench: LocatedServers) -> None:
    bench.answers(1, ONE)
    bench.speak("leaf2", 77)
    assert bench.net.location("server1") == HOME, "not before it was asked"
    await bench.decided()
    assert bench.net.location("server1") == HOME
    (rejected,) = bench.events("server.conflict")
    assert (rejected["server"], rejected["location"], rejected["known"]) == ("server1", str(SPARE), str(HOME))
    assert bench.fake.controller.context.counters["server locations rejected"] == 1
    assert not bench.events("server.moved")


@pytest.mark.parametrize(("port", "other"), [(102, "server2"), (90, "dhcp"), (91, "router")])
async def test_another_servers_port_is_not_its_place(bench: LocatedServers, port: int, other: str) -> None:
    """Found there or given there: the port is another's, also when the server itself is silent."""
    for _ in range(2):
        bench.speak("leaf2", port)
        await bench.decided()
        bench.now += 2
    assert bench.net.location("server1") == HOME
    rejected = bench.events("server.conflict")
    assert len(rejected) == 2
    assert other in str(rejected[0]["reason"])


async def test_a_server_not_found_yet_is_not_found_at_anothers_port(bench: LocatedServers) -> None:
    del bench.net.detected["server1"]
    bench.speak("leaf2", 102)
    assert bench.net.location("server1") is None
    assert bench.events("server.conflict")
    bench.speak("leaf1", leaf_port(1))
    assert bench.net.location("server1") == HOME


async def test_a_server_is_asked_once_a_second_however_often_another_claims_to_be_it(
    bench: LocatedServers,
) -> None:
    bench.answers(1, ONE)
    for _ in range(5):
        bench.speak("leaf2", 77)
        await bench.decided()
    assert len(bench.asked("edge1", PortNo.LOCAL)) == 1
    assert len(bench.events("server.conflict")) == 1
    bench.now += 1.5
    bench.speak("leaf2", 77)
    await bench.decided()
    assert len(bench.asked("edge1", PortNo.LOCAL)) == 2
    assert bench.net.location("server1") == HOME


# ---- a server that did move is followed ----


async def test_a_server_silent_at_its_place_has_moved(bench: LocatedServers) -> None:
    bench.speak("leaf2", 77)
    (question,) = bench.asked("edge1", PortNo.LOCAL)
    assert parse(question).dst == ONE
    assert parse_arp(parse(question).payload).tpa == IPv4Address("10.0.0.11")
    await bench.decided()
    assert bench.net.location("server1") == SPARE
    (moved,) = bench.events("server.moved")
    assert (moved["location"], moved["before"]) == (str(SPARE), str(HOME))


async def test_a_server_whose_port_or_leaf_is_gone_has_moved_at_once(bench: LocatedServers) -> None:
    session = bench.fake.sessions["leaf1"]
    session.ports = {name: number for name, number in session.ports.items() if name != "p1"}
    bench.speak("leaf2", 77)
    assert bench.net.location("server1") == SPARE
    bench.fake.sessions["leaf2"].close("no power")
    bench.fake.controller.arp.locations.seen("server1", HOME)
    assert bench.net.location("server1") == HOME


async def test_servers_whose_cables_were_exchanged_are_found(bench: LocatedServers) -> None:
    """Each is heard at the other's port, and neither answers at its own."""
    for _ in range(3):
        bench.speak("leaf2", 102, ONE, 1)
        await bench.decided()
        bench.speak("leaf1", leaf_port(1), TWO, 2)
        await bench.decided()
        bench.now += 2
    assert bench.net.location("server1") == PortRef("leaf2", "p2")
    assert bench.net.location("server2") == HOME


async def test_where_the_operator_says_it_is_a_server_is_found_at_once(bench: LocatedServers) -> None:
    await bench.fake.controller.inventory.put_servers([replace(bench.net.servers["server1"], given_at=SPARE)])
    bench.speak("leaf2", 77)
    assert bench.net.detected["server1"] == SPARE


async def test_a_place_given_to_a_server_found_elsewhere_is_a_mismatch(bench: LocatedServers) -> None:
    await bench.fake.controller.inventory.put_servers([replace(bench.net.servers["server1"], given_at=SPARE)])
    [told] = bench.events("server.mismatch")
    assert (told["given"], told["detected"]) == (str(SPARE), str(HOME))


# ---- servers are asked for ----


async def test_servers_not_found_are_asked_for_in_turn_and_ever_more_rarely() -> None:
    bench: LocatedServers
    net = network()
    missing = ASKED_AT_ONCE * 2 + 20
    for number in range(missing):
        address = IPv4Address("10.0.0.100") + number
        net.put_server(Server(f"new{number}", f"02:00:00:00:01:{number + 16:02x}", address))
    fake = FakeNetwork(net, clock=lambda: bench.now)
    bench = LocatedServers(fake)
    await fake.start()

    def asked() -> set[IPv4Address]:
        found = {parse_arp(parse(frame).payload).tpa for frame in bench.asked("leaf2", 77)}
        fake.heard.clear()
        return found

    first = asked()
    assert len(first) == ASKED_AT_ONCE, "also when all leaves come at the same time"
    bench.now += 1
    fake.controller.arp.ask_for_servers()
    second = asked()
    assert len(second) == ASKED_AT_ONCE
    assert not first & second
    fake.controller.arp.ask_for_servers()
    assert not asked(), "once in a second"
    for _ in range(300):
        bench.now += 1
        fake.controller.arp.ask_for_servers()
        assert len(asked()) <= ASKED_AT_ONCE
    rounds = []
    for _ in range(int(LONGEST_WAIT)):
        bench.now += 1
        fake.controller.arp.ask_for_servers()
        rounds.append(len(asked()))
    assert sum(rounds) == missing, "each once in the longest wait"
    fake.sessions["leaf2"].close("restarted")
    fake.connect("leaf2")
    bench.now += 1
    await fake.settle()
    assert len(asked()) == ASKED_AT_ONCE, "a leaf that is new is asked at once"
    await fake.stop()


async def test_only_ports_that_may_have_it_are_asked(bench: LocatedServers) -> None:
    del bench.net.detected["server1"]
    bench.now += 100
    bench.fake.heard.clear()
    bench.fake.controller.arp.ask_for_servers()
    ports = {(switch, port) for switch, port, _ in bench.fake.heard}
    assert ports == {("edge1", PortNo.LOCAL), ("leaf2", 77)}, "no spine, and nobody else's place"


@pytest.mark.parametrize("subnet", [True, False])
async def test_no_question_is_asked_in_nobodys_name(bench: LocatedServers, subnet: bool) -> None:
    """A request from 0.0.0.0 is a probe (RFC 5227): its sender means to use the address that it asks for."""
    asker = bench.net.subnets["servers"].gateway
    if not subnet:
        del bench.net.subnets["servers"]
        bench.net._index_subnets()
        asker = next(subnet.gateway for _, subnet in sorted(bench.net.subnets.items()))
    del bench.net.detected["server1"]
    bench.now += 100
    bench.fake.heard.clear()
    bench.fake.controller.arp.ask_for_servers()
    assert {parse_arp(parse(frame).payload).spa for _, _, frame in bench.fake.heard} == {asker}


async def test_without_any_gateway_nobody_can_ask(bench: LocatedServers) -> None:
    bench.net.subnets.clear()
    bench.net._index_subnets()
    del bench.net.detected["server1"]
    bench.now += 100
    bench.fake.heard.clear()
    bench.fake.controller.arp.ask_for_servers()
    assert not bench.fake.heard


async def test_a_port_that_invents_macs_hides_no_unknown_server(bench: LocatedServers) -> None:
    """The last ones of each port are shown; and one port's are not told at the cost of others'."""
    for number in range(3000):
        mac = f"02:00:00:01:{number >> 8:02x}:{number & 255:02x}"
        bench.speak("leaf1", leaf_port(1), mac=mac, number=89)
    bench.speak("leaf2", leaf_port(2), mac="02:00:00:02:00:01")
    unknown = bench.fake.controller.arp.unknown
    assert len(unknown) == MOST_UNKNOWN + 1
    assert unknown["02:00:00:02:00:01"] == PortRef("leaf2", "p2")
    told = bench.events("server.unknown")
    assert len(told) <= MOST_TELLINGS + 1
    assert told[-1]["mac"] == "02:00:00:02:00:01"


@pytest.mark.parametrize("by", ["ARP", "ND"])
async def test_a_host_that_nobody_registered_and_has_the_gateways_mac_is_told(
    bench: LocatedServers, by: str
) -> None:
    """And a gateway is given none that such a host has."""
    controller, net = bench.fake.controller, bench.fake.net
    if by == "ARP":
        bench.speak("leaf1", leaf_port(1), mac=net.gateway_mac, number=89)
    else:
        await controller.context.install(net.add_subnet(Subnet("b6", IPv6Network("fd00:1::/64"), GATEWAY6)))
        local = link_local(net.gateway_mac)
        question = nd_frame(asks(local, vm_ip6(1), net.gateway_mac), net.gateway_mac)
        bench.fake.send("leaf1", leaf_port(1), question)
    told = bench.events("gateway.conflict")
    assert [(event["mac"], event["location"]) for event in told] == [(net.gateway_mac, "leaf1:p1")]
    bench.speak("leaf1", leaf_port(1), mac="02:00:5e:00:07:01", number=88)
    assert len(bench.events("gateway.conflict")) == 1
    with pytest.raises(
        RequestError, match=r"a host at leaf1:p1 has the MAC 02:00:5e:00:07:01; choose another"
    ):
        await controller.vnets.add_gateway_groups([GatewayGroup("rack7", "02:00:5e:00:07:01")])
    assert "rack7" not in net.gateway_groups
    await controller.vnets.add_gateway_groups([GatewayGroup("rack7", "02:00:5e:00:07:02")])


# ---- a port that comes up ----


async def comes_up(
    bench: LocatedServers,
    switch: str,
    port: str,
    number: int,
    *,
    state: int = 0,
    reason: int = PortReason.MODIFY,
) -> list[bytes]:
    """The switch says so; what is sent out there at once."""
    bench.fake.heard.clear()
    said = PortStatus(0, reason, PortDesc(number, port, b"", 0, state))
    bench.fake.controller.port_status(bench.fake.sessions[switch], said)  # type: ignore[arg-type]
    await bench.fake.settle()
    return bench.asked(switch, number)


async def test_who_is_missing_is_asked_for_at_once_where_a_port_comes_up(bench: LocatedServers) -> None:
    del bench.net.detected["server1"]
    for _ in range(100):
        bench.now += 1
        bench.fake.controller.arp.ask_for_servers()
    bench.now += 1
    (question,) = await comes_up(bench, "leaf2", "spare", 77)
    asked = parse_arp(parse(question).payload)
    assert (asked.spa, asked.tpa) == (INFRA_GATEWAY, IPv4Address("10.0.0.11"))
    assert await comes_up(bench, "leaf2", "spare", 77) == [], "it comes and goes"
    bench.now += 1
    bench.fake.heard.clear()
    bench.fake.controller.arp.ask_for_servers()
    assert bench.asked("leaf2", 77), "and everywhere again, though its turn was a minute away"
    bench.now += 1
    assert len(await comes_up(bench, "leaf2", "spare", 77, reason=PortReason.ADD)) == 1
    bench.speak("leaf2", 77)
    assert bench.net.location("server1") == SPARE


@pytest.mark.parametrize(
    ("switch", "port", "number", "state", "reason"),
    [
        ("leaf2", "spare", 77, 1, PortReason.MODIFY),
        ("leaf2", "spare", 77, 0, PortReason.DELETE),
        ("leaf2", "p2", 102, 0, PortReason.MODIFY),
        ("leaf2", "s1", 1, 0, PortReason.MODIFY),
        ("leaf2", "leaf2", int(PortNo.LOCAL), 0, PortReason.MODIFY),
        ("spine1", "l1", 1, 0, PortReason.MODIFY),
    ],
)
async def test_nobody_is_asked_for_where_no_server_can_have_come(
    bench: LocatedServers, switch: str, port: str, number: int, state: int, reason: int
) -> None:
    """A link that is down, a port that is gone, another's place, a trunk, the switch itself, a spine."""
    del bench.net.detected["server1"]
    bench.now += 100
    assert await comes_up(bench, switch, port, number, state=state, reason=reason) == []


async def test_where_nobody_is_missing_nobody_is_asked_for(bench: LocatedServers) -> None:
    assert await comes_up(bench, "leaf2", "spare", 77) == []


# ---- a leaf whose places are given ----


@pytest.fixture
async def given() -> AsyncIterator[LocatedServers]:
    """At leaf2 places are given: server2's is p2. At leaf1 servers are found."""
    bench: LocatedServers
    net = network()
    net.switches["leaf2"] = replace(net.switches["leaf2"], given=True)
    net.put_server(replace(net.servers["server2"], given_at=PortRef("leaf2", "p2")))
    net.detected.pop("server2", None)
    fake = FakeNetwork(net, clock=lambda: bench.now)
    bench = LocatedServers(fake)
    await fake.start()
    fake.controller.arp.locations.silence = 0.02
    yield bench
    await fake.stop()


async def test_given_and_found_places_are_mixed_switch_by_switch(given: LocatedServers) -> None:
    """US 9,313,088, combination: one switch given, another detected."""
    assert str(given.net.location("server2")) == "leaf2:p2", "without a word of its own"
    assert given.net.location("server1") == HOME
    given.speak("leaf2", 102, TWO, 2)
    await given.decided()
    assert given.events("server.conflict") == []
    given.speak("leaf2", 77)
    await given.decided()
    assert given.net.location("server1") == HOME, "a server of elsewhere is not found there"
    (told,) = given.events("server.conflict")
    assert (told["server"], told["location"]) == ("server1", str(SPARE))
    assert told["reason"] == "places at leaf2 are given, and this is not server1's"
    given.speak("leaf2", 77, "02:00:00:00:00:77", 77)
    assert [event["mac"] for event in given.events("server.unknown")] == ["02:00:00:00:00:77"]


async def test_nobody_is_looked_for_where_places_are_given(given: LocatedServers) -> None:
    del given.net.detected["server1"]
    given.now += 100
    given.fake.heard.clear()
    given.fake.controller.arp.ask_for_servers()
    assert {switch for switch, _, _ in given.fake.heard} == {"edge1"}
    assert await comes_up(given, "leaf2", "spare", 77) == []


# ---- found by any frame of its own ----


def frame_of(mac: str, ethertype: int, dst: str = GATEWAY_MAC) -> bytes:
    """Some frame that is no ARP."""
    if ethertype == EtherType.IPV4:
        packet = build_udp4(IPv4Address("10.0.0.11"), IPv4Address("192.0.2.1"), 5000, 9, b"x")
        return Ethernet(dst, mac, ethertype, packet).build()
    return Ethernet(dst, mac, ethertype, bytes(46)).build()


async def lose(bench: LocatedServers, server: str) -> None:
    """It was never found."""
    del bench.net.detected[server]
    await bench.fake.controller.context.install({Owner("server", server)})
    await bench.fake.settle()


@pytest.mark.parametrize("ethertype", [EtherType.IPV4, EtherType.LLDP, EtherType.IPV6])
async def test_a_server_that_never_sends_arp_is_found_by_its_first_frame(
    bench: LocatedServers, ethertype: int
) -> None:
    """LLDP, or a packet; once: found, its frames take their way, and none of them goes up."""
    await lose(bench, "server1")
    counters = bench.fake.controller.context.counters
    to = "01:80:c2:00:00:0e" if ethertype == EtherType.LLDP else GATEWAY_MAC
    for _ in range(3):
        bench.fake.send("leaf2", 77, frame_of(ONE, ethertype, to))
        await bench.fake.settle()
    assert bench.net.location("server1") == SPARE
    (found,) = bench.events("server.detected")
    assert (found["server"], found["location"]) == ("server1", str(SPARE))
    assert counters[packet_ins(Reason.MISSING_SERVER)] == 1


CHASSIS, NEW = "4c4c4544-0042-3510-8052-b4c04f4d3332", "02:00:00:00:00:77"
"""A system's UUID, as lldpd has it with `configure system chassisid`; the MAC of a NIC that was put in."""


async def known_by_chassis(bench: LocatedServers, server: str = "server1") -> None:
    known = replace(bench.net.servers[server], chassis=CHASSIS)
    await bench.fake.controller.inventory.put_servers([known])


def lldp_of(mac: str, chassis: bytes = bytes([CHASSIS_LOCAL]) + CHASSIS.encode(), ttl: int = 120) -> bytes:
    return lldp_frame(Lldp(chassis, b"\x07eno1", ttl), mac)


async def test_a_server_with_another_nic_is_known_by_its_chassis_id(bench: LocatedServers) -> None:
    """At its own port, or anywhere while it is missing; its VMs are reached by the MAC that it has now."""
    await known_by_chassis(bench)
    bench.fake.send("leaf1", leaf_port(1), lldp_of(NEW))
    await bench.decided()
    assert (bench.net.servers["server1"].mac, bench.net.location("server1")) == (NEW, HOME)
    (told,) = bench.events("server.identified")
    assert (told["server"], told["mac"], told["before"]) == ("server1", NEW, ONE)
    assert to_mac(bench, "leaf1", NEW)
    assert not to_mac(bench, "leaf1", ONE)
    await lose(bench, "server1")
    bench.now += 1.0
    bench.fake.send("leaf2", 77, lldp_of(ONE))
    await bench.decided()
    assert (bench.net.servers["server1"].mac, bench.net.location("server1")) == (ONE, SPARE)


@pytest.mark.parametrize("at", [None, SPARE], ids=["anywhere", "at its place"])
async def test_a_server_given_without_a_mac_is_known_by_its_chassis_id_alone(
    bench: LocatedServers, at: PortRef | None
) -> None:
    """Until LLDP tells its MAC nothing is; then it is a server as any other, also for its VMs."""
    given = Server("new", mac_to_come("new"), IPv4Address("10.0.0.77"), chassis=CHASSIS, given_at=at)
    await bench.fake.controller.inventory.put_servers([given])
    (shown,) = (row for row in views.servers(bench.fake.controller) if row["id"] == "new")
    assert shown["mac"] == ""
    bench.fake.send("leaf2", 77, lldp_of(NEW))
    await bench.decided()
    assert (bench.net.servers["new"].mac, bench.net.location("new")) == (NEW, SPARE)
    (told,) = bench.events("server.identified")
    assert (told["mac"], told["before"]) == (NEW, "")
    (shown,) = (row for row in views.servers(bench.fake.controller) if row["id"] == "new")
    assert shown["mac"] == NEW
    assert to_mac(bench, "leaf2", NEW)


async def test_nobody_is_a_server_by_the_mac_that_stands_for_one_to_come(bench: LocatedServers) -> None:
    """It follows from the server's name, and no server has it: who sends by it is none, and gets no VM's
    packets; the server itself is known by its chassis id as before."""
    given = Server("new", mac_to_come("new"), IPv4Address("10.0.0.77"), chassis=CHASSIS)
    await bench.fake.controller.inventory.put_servers([given])
    other = PortRef("leaf2", "other")
    bench.net.set_ports("leaf2", {**bench.net._numbers["leaf2"], other.port: 78})
    bench.speak("leaf2", 77, mac_to_come("new"), 67)
    bench.fake.send("leaf2", 77, frame_of(mac_to_come("new"), EtherType.IPV4))
    bench.fake.send("leaf2", 77, lldp_of(mac_to_come("new")))
    await bench.decided()
    assert (bench.net.location("new"), bench.events("server.detected")) == (None, [])
    bench.fake.send("leaf2", 78, lldp_of(NEW))
    await bench.decided()
    assert (bench.net.servers["new"].mac, bench.net.location("new")) == (NEW, other)


def test_a_server_of_the_file_may_have_its_chassis_id_alone() -> None:
    def network_with(**server: str) -> Network:
        file = {"gateway_mac": GATEWAY_MAC, "server": [{"id": "new", **server}]}
        return msgspec.convert(file, Config).network()

    assert network_with(chassis=CHASSIS).servers["new"].mac == mac_to_come("new")
    with pytest.raises(ConfigError, match="give its MAC, or the LLDP chassis id"):
        network_with()


async def test_who_has_neither_mac_nor_chassis_id_is_nobody(bench: LocatedServers) -> None:
    put = bench.fake.controller.inventory.put_servers
    with pytest.raises(ModelError, match="give its MAC, or the LLDP chassis id"):
        await put([Server("new", mac_to_come("new"), IPv4Address("10.0.0.77"))])
    bench.net.put_switch(replace(bench.net.switches["leaf1"], id="leaf9", dpid=9, given=True))
    given = Server("new", mac_to_come("new"), chassis=CHASSIS, given_at=PortRef("leaf9", "p1"))
    with pytest.raises(ModelError, match="at leaf9, whose places are given, none is looked for"):
        await put([given])


async def test_a_server_with_another_nic_is_known_by_the_name_in_its_agents_certificate(
    bench: LocatedServers,
) -> None:
    """Its agent says the MAC that it has now; nothing of it is heard by the one that it had."""
    told = bench.fake.controller.own_macs.told
    assert await told("server1", ONE) == ""
    assert await told("server1", NEW) == ""
    assert (bench.net.servers["server1"].mac, bench.net.location("server1")) == (NEW, HOME)
    (said,) = bench.events("server.identified")
    assert (said["server"], said["mac"], said["before"], said["location"]) == ("server1", NEW, ONE, str(HOME))
    assert to_mac(bench, "leaf1", NEW)
    assert not to_mac(bench, "leaf1", ONE)


async def test_a_server_given_without_a_mac_has_the_one_that_its_agent_says(bench: LocatedServers) -> None:
    """One with an edge switch has an agent; it is then found by its ARP, as any other."""
    await bench.fake.controller.fabric.add_switches(
        [replace(bench.net.switches["edge1"], id="edge9", dpid=9)]
    )
    given = Server("new", mac_to_come("new"), IPv4Address("10.0.0.77"), edge="edge9")
    await bench.fake.controller.inventory.put_servers([given])
    assert await bench.fake.controller.own_macs.told("new", NEW) == ""
    bench.speak("leaf2", 77, NEW, 67)
    await bench.decided()
    assert (bench.net.servers["new"].mac, bench.net.location("new")) == (NEW, SPARE)
    assert to_mac(bench, "leaf2", NEW)


async def test_an_agents_word_is_not_taken_where_it_cannot_be_so(bench: LocatedServers) -> None:
    told = bench.fake.controller.own_macs.told
    bench.answers(1, ONE)
    assert await told("server1", NEW) == f"server server1 answers by MAC {ONE}, or was asked a moment ago"
    with pytest.raises(RequestError, match="there is no server nobody"):
        await told("nobody", NEW)
    with pytest.raises(ModelError, match=f"MAC {ONE} already belongs to server server1"):
        await told("server2", ONE)
    bench.now += 2.0
    with pytest.raises(ModelError, match="gateway"):
        await told("server2", GATEWAY_MAC)
    bench.net.put_server(replace(bench.net.servers["server2"], address=None))
    assert "nobody can ask whether it still has it" in await told("server2", NEW)
    bench.net.fenced.add("server2")
    assert await told("server2", NEW) == "server server2 is fenced"
    assert [bench.net.servers[name].mac for name in ("server1", "server2")] == [ONE, TWO]
    assert bench.events("server.identified") == []


async def test_a_server_that_cannot_be_asked_is_not_silent(
    bench: LocatedServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the controller has started: its agent is back before its leaf; or while its link is down."""
    controller = bench.fake.controller
    leaf = bench.fake.sessions["leaf1"]
    monkeypatch.setattr(leaf, "down", frozenset([HOME.port]))
    assert "is not asked whether it still has it" in await controller.own_macs.told("server1", NEW)
    monkeypatch.undo()
    at_leaf, asked = controller.context.session, controller.arp.locations.is_silent

    async def leaves_meanwhile(server: str, here: PortRef) -> bool:
        monkeypatch.setattr(
            controller.context, "session", lambda switch: None if switch == "leaf1" else at_leaf(switch)
        )
        return await asked(server, here)

    monkeypatch.setattr(controller.arp.locations, "is_silent", leaves_meanwhile)
    for _ in range(2):  # Now it leaves while it is asked, then it is away.
        assert "leaf1:p1 is down" in await controller.own_macs.told("server1", NEW)
    assert bench.net.servers["server1"].mac == ONE
    assert bench.events("server.identified") == []


async def test_what_lldp_has_taught_of_a_server_of_the_file_outlives_a_restart() -> None:
    """The file has the old NIC's MAC still, and another server of it may have been given that."""
    store, net = MemoryStore(), network()
    net.put_server(replace(net.servers["server1"], chassis=CHASSIS))
    net.configured |= {"server server1", "server server2"}
    bench = LocatedServers(FakeNetwork(net, lambda: 1000.0, store))
    await bench.fake.start()
    bench.fake.controller.arp.locations.silence = 0.02
    bench.fake.send("leaf1", leaf_port(1), lldp_of(NEW))
    await bench.decided()
    await bench.fake.stop()
    file = network()
    file.put_server(replace(file.servers["server1"], chassis=CHASSIS))
    other = Controller(file)
    other.restore(store.load())
    assert file.servers["server1"].mac == NEW
    assert file.server_of_mac(ONE) is None


def to_mac(bench: LocatedServers, switch: str, to: str) -> list[Flow]:
    term = (Field.ETH_DST, int(to.replace(":", ""), 16), None)
    flows = bench.fake.fabric[switch].flows.values()
    return [flow for flow in flows if flow.table == Table.SERVERS and term in flow.match]


@pytest.mark.parametrize(
    ("switch", "port", "frame", "reason"),
    [
        ("leaf2", 77, lldp_of(NEW), "it is at leaf1"),
        ("leaf1", leaf_port(1), lldp_of(TWO), "already"),
        ("leaf1", leaf_port(1), lldp_of(GATEWAY_MAC), "gateway"),
        ("leaf1", leaf_port(1), lldp_of(NEW, b"\x04\2\0\0\0\0\1"), ""),
        ("leaf1", leaf_port(1), lldp_of(NEW, ttl=0), ""),
    ],
    ids=["elsewhere", "another server's MAC", "the gateway's", "another id", "no longer so"],
)
async def test_a_chassis_id_is_believed_no_more_than_arp_is(
    bench: LocatedServers, switch: str, port: int, frame: bytes, reason: str
) -> None:
    await known_by_chassis(bench)
    bench.fake.send(switch, port, frame)
    await bench.decided()
    assert (bench.net.servers["server1"].mac, bench.net.location("server1")) == (ONE, HOME)
    told = bench.events("server.conflict")
    assert [reason in str(one["reason"]) for one in told] == ([True] if reason else [])


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_server_that_answers_by_its_mac_keeps_it_whoever_sends_its_lldp(
    bench: LocatedServers, is_known: bool
) -> None:
    """Its LLDP may have the MAC of a NIC, which is not that of the bridge above, by which it is reached."""
    await known_by_chassis(bench)
    bench.answers(1, ONE)
    if not is_known:
        await lose(bench, "server1")
    bench.fake.send("leaf1", leaf_port(1), lldp_of(NEW))
    await bench.decided()
    assert (bench.net.servers["server1"].mac, bench.net.location("server1")) == (ONE, HOME)
    assert not bench.events("server.identified")
    assert not bench.events("server.conflict")


async def test_a_server_is_asked_once_a_second_however_much_lldp_comes(bench: LocatedServers) -> None:
    await known_by_chassis(bench)
    for number in range(5):
        bench.fake.send("leaf1", leaf_port(1), lldp_of(f"02:00:00:00:07:0{number}"))
        await bench.decided()
    assert len(bench.events("server.identified")) == 1
    bench.now += 1.0
    bench.fake.send("leaf1", leaf_port(1), lldp_of(NEW))
    await bench.decided()
    assert len(bench.events("server.identified")) == 2


async def test_leaves_hand_up_lldp_where_a_server_is_known_by_its_chassis_id(bench: LocatedServers) -> None:
    counters = bench.fake.controller.context.counters
    bench.fake.send("leaf1", leaf_port(1), lldp_of(NEW))
    assert counters[packet_ins(Reason.MISSING_SERVER)] == 0
    await known_by_chassis(bench)
    with pytest.raises(ModelError, match="is that of server server1"):
        await known_by_chassis(bench, "server2")
    bench.fake.send("leaf2", 77, lldp_of("02:00:00:00:00:66", b"\x07somebody's"))
    assert counters[packet_ins(Reason.MISSING_SERVER)] == 1


@pytest.mark.parametrize(
    ("chassis", "text"),
    [
        (b"\x04\2\0\0\0\0\1", "02:00:00:00:00:01"),
        (b"\x07rack7", "rack7"),
        (b"\x05\1\x0a\0\0\1", "010a000001"),
    ],
)
def test_a_chassis_id_as_people_write_it(chassis: bytes, text: str) -> None:
    assert Lldp(chassis, b"\x07eno1", 120).chassis == text


async def test_one_that_is_found_is_not_found_again_by_a_frame(bench: LocatedServers) -> None:
    """No entry for it is left, so a frame with its MAC moves nothing; nor does one with a stranger's."""
    await lose(bench, "server1")
    bench.fake.send("leaf1", leaf_port(1), frame_of(ONE, EtherType.IPV4))
    await bench.fake.settle()
    assert bench.net.location("server1") == HOME
    for mac in (ONE, TWO, "02:00:00:00:00:99"):
        bench.fake.send("leaf2", 77, frame_of(mac, EtherType.IPV4))
    await bench.decided()
    assert bench.net.location("server1") == HOME
    assert bench.fake.controller.context.counters[packet_ins(Reason.MISSING_SERVER)] == 1


async def test_a_frame_is_believed_no_more_than_arp_is(bench: LocatedServers) -> None:
    """At another server's port it is rejected; from a spine it is not heard."""
    await lose(bench, "server1")
    bench.fake.send("leaf2", 102, frame_of(ONE, EtherType.IPV4))
    bench.fake.send("leaf2", 1, frame_of(ONE, EtherType.IPV4))
    await bench.decided()
    assert bench.net.location("server1") is None
    assert len(bench.events("server.conflict")) == 1


async def test_where_places_are_given_no_frame_finds_a_server(given: LocatedServers) -> None:
    await lose(given, "server1")
    given.fake.send("leaf2", 77, frame_of(ONE, EtherType.IPV4))
    await given.decided()
    assert given.net.location("server1") is None

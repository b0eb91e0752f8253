"""Where servers are: found by their ARP, followed when they move, and not taken away by a stranger's."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

import pytest

from retinue.controller.inventory.server_locations import ASKED_AT_ONCE, LONGEST_WAIT
from retinue.core.limits import MOST_TELLINGS, MOST_UNKNOWN
from retinue.core.model import Network, PortRef, Server
from retinue.core.packets import arp_reply, arp_request, parse, parse_arp
from retinue.core.pipeline.entry import PortNo
from support.fabric.networks import INFRA_GATEWAY, fabric, leaf_port
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
        await asyncio.gather(*(t for t in tasks if t.get_name().startswith("place of server")))
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

"""The zone over the wire, asked by a resolver's library: answers, refusals, transfers, limits."""

import asyncio
import contextlib
import struct
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, ip_address

import dns.asyncquery
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.xfr
import dns.zone
import pytest

from retinue.config_file import ConfigError
from retinue.controller.app import Controller
from retinue.controller.counters import Count
from retinue.controller.dns import answers
from retinue.controller.dns import server as dns_server
from retinue.controller.dns.answers import answer
from retinue.controller.dns.server import Allowance, DnsServer
from retinue.controller.dns.zone import DnsTable, Zone
from retinue.core.limits import MOST_QUESTIONS, MOST_QUESTIONS_OF_ONE
from retinue.core.model import VM, Assignment, BindingKind, Origin, Peer
from retinue.core.placement import Entity, EntityKind, Profile
from support.fabric.networks import add_vm, fabric, vm_ip, vm_mac

LOCAL = "127.0.0.1"
TABLE = DnsTable(zone="dc1.example", listen="192.0.2.1:53", transfer=["127.0.0.0/8"])
SHOP = Entity("shop", EntityKind.SERVICE, Profile(served_by=("vm9", "vm1", "vm2")))
ORIGIN = dns.name.from_text(TABLE.zone)


@dataclass
class World:
    """A controller with two VMs, its zone, and the zone's server."""

    controller: Controller
    zone: Zone
    server: DnsServer
    counters: Counter[str]
    now: list[float]
    port: int = 0

    def asks(self, name: str, type: str = "A", **flags: object) -> dns.message.Message:
        """One question over UDP, without a socket."""
        query = dns.message.make_query(f"{name}.dc1.example" if name else "dc1.example", type, **flags)  # type: ignore[arg-type]
        found = answer(query.to_wire(), self.zone)
        assert found is not None
        return dns.message.from_wire(found[0])

    async def asks_by_tcp(self, name: str, type: str = "A") -> dns.message.Message:
        query = dns.message.make_query(f"{name}.dc1.example", type)
        return await dns.asyncquery.tcp(query, LOCAL, port=self.port, timeout=30)

    async def transferred(self) -> dns.zone.Zone:
        """What a secondary server has, once it has asked."""
        found = dns.zone.Zone(ORIGIN)
        await dns.asyncquery.inbound_xfr(LOCAL, found, port=self.port, lifetime=30)
        return found

    @property
    def serial(self) -> int:
        return self.asks("", "SOA").answer[0][0].serial  # type: ignore[no-any-return]


def made(table: DnsTable = TABLE) -> World:
    controller = Controller(fabric(), clock=lambda: 1000.0)
    add_vm(controller.net, 1, at=1)
    add_vm(controller.net, 2, at=2)
    controller.entities.register([SHOP])
    now = [1000.0]
    zone = Zone(table.checked(), controller.entities, lambda: now[0])
    counters: Counter[str] = Counter()
    return World(controller, zone, DnsServer(zone, counters), counters, now)


@pytest.fixture
def world() -> World:
    return made()


@pytest.fixture
async def listening() -> AsyncIterator[World]:
    world = made()
    world.port = await world.server.start(LOCAL, 0)
    yield world
    await world.server.stop()


def texts(reply: dns.message.Message) -> list[str]:
    return [line for one in reply.answer for line in str(one).splitlines()]


# ---- what is said ----


def test_a_vm_has_the_addresses_that_it_has_now(world: World) -> None:
    reply = world.asks("vm1")
    assert texts(reply) == [f"vm1.dc1.example. 30 IN A {vm_ip(1)}"]
    assert reply.flags & dns.flags.AA
    assert not reply.flags & dns.flags.RA
    six = Assignment(ip_address("fd00:1::7"), vm_mac(1), "vm1", BindingKind.STATIC, Origin.MANAGER)
    local = replace(six, ip=ip_address("fe80::7"))
    world.controller.net.assign(six)
    world.controller.net.assign(local)
    assert texts(world.asks("vm1", "AAAA")) == ["vm1.dc1.example. 30 IN AAAA fd00:1::7"]
    assert len(texts(world.asks("vm1", "ANY"))) == 2


def test_a_name_stays_where_the_vm_goes(world: World) -> None:
    before = texts(world.asks("vm1"))
    world.controller.net.put_vm(VM.with_one_nic("vm1", vm_mac(1), "server3"))
    assert texts(world.asks("vm1")) == before


async def test_a_service_is_an_alias_of_the_vm_that_serves_it(world: World) -> None:
    alias, address = "shop.dc1.example. 30 IN CNAME vm1.dc1.example.", f"vm1.dc1.example. 30 IN A {vm_ip(1)}"
    assert texts(world.asks("shop")) == [alias, address]
    assert texts(world.asks("shop", "CNAME")) == [alias]
    assert texts(world.asks("shop", "AAAA")) == [alias]
    await world.controller.inventory.remove_vm("vm1")
    assert "vm2.dc1.example." in texts(world.asks("shop"))[0]
    await world.controller.inventory.remove_vm("vm2")
    reply = world.asks("shop")
    assert (reply.rcode(), texts(reply)) == (dns.rcode.NOERROR, [])


def test_a_vm_whose_name_no_host_can_have_is_reached_by_its_service(world: World) -> None:
    world.controller.net.put_vm(VM.with_one_nic("VM1", vm_mac(7), "server1"))
    held = Assignment(ip_address("10.1.0.77"), vm_mac(7), "VM1", BindingKind.STATIC, Origin.MANAGER)
    world.controller.net.assign(held)
    world.controller.entities.register([Entity("db", EntityKind.SERVICE, Profile(served_by=("VM1",)))])
    assert texts(world.asks("db")) == ["db.dc1.example. 30 IN A 10.1.0.77"]


def test_no_name_has_anothers_traffic_by_its_case(world: World) -> None:
    """DNS knows no case: VM1 must not be answered for vm1, nor vm1 be lost because VM1 is there."""
    world.controller.net.put_vm(VM.with_one_nic("VM1", vm_mac(7), "server1"))
    world.controller.net.put_vm(VM.with_one_nic("VM8", vm_mac(8), "server1"))
    assert texts(world.asks("VM1")) == [f"VM1.dc1.example. 30 IN A {vm_ip(1)}"]
    assert world.asks("vm8").rcode() == dns.rcode.NXDOMAIN
    held = Assignment(vm_ip(7), vm_mac(7), "VM1", BindingKind.STATIC, Origin.MANAGER)
    world.controller.net.assign(held)
    assert [found.addresses for name, found in world.zone.every() if name.labels[0].lower() == b"vm1"] == [
        (vm_ip(1),)
    ]


@pytest.mark.parametrize("name", ["vm3", "x.vm1", "vm_1", "-vm1", "1.vm1.x", "ns.ns"])
def test_what_has_no_name_is_not_there_and_so_it_may_be_kept_for_seconds(world: World, name: str) -> None:
    reply = world.asks(name)
    assert reply.rcode() == dns.rcode.NXDOMAIN
    (soa,) = reply.authority
    assert (soa.ttl, soa[0].minimum) == (5, 5)


def test_who_has_no_such_record_is_there_all_the_same(world: World) -> None:
    for type in ("AAAA", "TXT", "MX"):
        reply = world.asks("vm1", type)
        assert (reply.rcode(), texts(reply), len(reply.authority)) == (dns.rcode.NOERROR, [], 1)


def test_the_zone_says_whose_it_is(world: World) -> None:
    assert texts(world.asks("", "NS")) == ["dc1.example. 30 IN NS ns.dc1.example."]
    assert texts(world.asks("ns")) == ["ns.dc1.example. 30 IN A 192.0.2.1"]
    (soa,) = texts(world.asks("", "SOA"))
    assert soa.startswith("dc1.example. 5 IN SOA ns.dc1.example. hostmaster.dc1.example. ")
    named = made(DnsTable(zone="dc1.example", listen="0.0.0.0:53", name_servers=["a.example", "b.example"]))
    assert len(texts(named.asks("", "NS"))) == 2
    assert named.asks("ns").rcode() == dns.rcode.NXDOMAIN
    unsaid = made(DnsTable(zone="dc1.example", listen="0.0.0.0:53"))
    assert texts(unsaid.asks("ns")) == []


def test_servers_have_names_too(world: World) -> None:
    assert texts(world.asks("server1")) == ["server1.dc1.example. 30 IN A 10.0.0.11"]


# ---- what is refused ----


def test_other_zones_and_other_things_are_refused(world: World) -> None:
    def code(query: dns.message.Message) -> dns.rcode.Rcode:
        found = answer(query.to_wire(), world.zone)
        assert found is not None
        assert dns.message.from_wire(found[0]).id == query.id
        return found[1]

    assert code(dns.message.make_query("www.example", "A")) == dns.rcode.REFUSED
    assert code(dns.message.make_query("vm1.dc1.example", "A", "CH")) == dns.rcode.REFUSED
    assert code(dns.message.make_query("dc1.example", "AXFR")) == dns.rcode.REFUSED
    newer = dns.message.make_query("vm1.dc1.example", "A", use_edns=1)
    assert code(newer) == dns.rcode.BADVERS
    notify = dns.message.make_query("dc1.example", "SOA")
    notify.set_opcode(dns.opcode.NOTIFY)
    assert code(notify) == dns.rcode.NOTIMP
    update = dns.message.make_query("vm1.dc1.example", "A").to_wire()
    assert answer(update[:2] + bytes([0x28]) + update[3:], world.zone)[1] == dns.rcode.NOTIMP  # type: ignore[index]
    two = dns.message.make_query("vm1.dc1.example", "A")
    two.question.append(two.question[0])
    assert code(two) == dns.rcode.FORMERR


def test_an_answer_is_never_answered_nor_what_is_no_message(world: World) -> None:
    query = dns.message.make_query("vm1.dc1.example", "A")
    reply = dns.message.make_response(query).to_wire()
    for wire in (reply, b"", reply[:11], reply[:13], bytes(11)):
        assert answer(wire, world.zone) is None
    half = query.to_wire()[:-3]
    found = answer(half, world.zone)
    assert found is not None
    assert dns.message.from_wire(found[0]).rcode() == dns.rcode.FORMERR
    assert found[0][:2] == half[:2]


def test_an_answer_fits_what_the_asker_takes(world: World) -> None:
    for number in range(40):
        ip = ip_address(f"10.1.0.{110 + number}")
        world.controller.net.assign(Assignment(ip, vm_mac(1), "vm1", BindingKind.STATIC, Origin.MANAGER))
    for edns, most in ((None, 512), (300, 512), (1000, 1000), (9000, 1232)):
        flags = {} if edns is None else {"use_edns": 0, "payload": edns}
        query = dns.message.make_query("vm1.dc1.example", "A", **flags)  # type: ignore[arg-type]
        found = answer(query.to_wire(), world.zone)
        assert found is not None
        assert len(found[0]) <= most
        whole = not dns.message.from_wire(found[0], ignore_trailing=True).flags & dns.flags.TC
        assert whole == (most >= 1000)


@pytest.mark.parametrize(
    "table",
    [
        DnsTable(zone="a..b"),
        DnsTable(zone="x" * 64),
        DnsTable(zone="dc1.example", listen="somewhere"),
        DnsTable(zone="dc1.example", transfer=["10.0.0.1/8"]),
        DnsTable(zone="dc1.example", name_servers=["."]),
    ],
)
def test_a_table_that_cannot_be_is_refused_with_a_sentence(table: DnsTable) -> None:
    with pytest.raises(ConfigError, match=r"^dns: "):
        table.checked()


# ---- over the wire ----


async def test_both_transports_answer(listening: World) -> None:
    query = dns.message.make_query("vm1.dc1.example", "A")
    for ask in (dns.asyncquery.udp, dns.asyncquery.tcp):
        reply = await ask(query, LOCAL, port=listening.port, timeout=30)
        assert texts(reply) == [f"vm1.dc1.example. 30 IN A {vm_ip(1)}"]
    assert listening.counters == {Count.DNS_ASKED: 2}


async def test_a_secondary_has_the_whole_zone_and_learns_of_changes(listening: World) -> None:
    found = await listening.transferred()
    names = sorted(str(name) for name in found)
    assert names == ["@", "dhcp", "ns", "router", "server1", "server2", "server3", "shop", "vm1", "vm2"]

    async def looked() -> int:
        listening.now[0] += 10
        await listening.zone.look()
        return listening.serial

    first = await looked()
    assert await looked() == first, "nothing has changed"
    listening.controller.net.put_vm(VM.with_one_nic("vm5", vm_mac(5), "server1"))
    assert await looked() == first, "a VM without an address has no record"
    held = Assignment(vm_ip(5), vm_mac(5), "vm5", BindingKind.STATIC, Origin.MANAGER)
    listening.controller.net.assign(held)
    assert await looked() > first
    assert str(vm_ip(5)) in (await listening.transferred()).to_text()


async def test_a_large_zone_comes_in_many_messages(listening: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PER_MESSAGE", 2)
    whole = await listening.transferred()
    assert len(list(whole)) == 10


async def test_nobody_else_has_the_whole_zone() -> None:
    world = made(DnsTable(zone="dc1.example", transfer=["192.0.2.0/24"]))
    world.port = await world.server.start(LOCAL, 0)
    with pytest.raises(dns.xfr.TransferError):
        await world.transferred()
    assert world.counters[Count.DNS_REFUSED] == 1
    await world.server.stop()


async def test_a_flood_of_questions_is_dropped_beyond_what_is_allowed() -> None:
    allowed = Allowance()
    of_one = [allowed.take("192.0.2.1", 7.0) for _ in range(1000)]
    assert sum(of_one) == MOST_QUESTIONS_OF_ONE
    assert allowed.take("192.0.2.2", 7.9), "another host is not kept out"
    of_many = [allowed.take(f"192.0.2.{n % 250}", 7.9) for n in range(5000)]
    assert sum(of_many) + MOST_QUESTIONS_OF_ONE + 1 == MOST_QUESTIONS
    assert allowed.take("192.0.2.1", 8.0)


async def test_what_is_too_many_is_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_server, "MOST_QUESTIONS_OF_ONE", 1)
    query = dns.message.make_query("vm1.dc1.example", "A").to_wire()
    world.server._allowance._second = int(asyncio.get_running_loop().time())
    got = [world.server.over_udp(query, "192.0.2.1") for _ in range(50)]
    assert sum(one is None for one in got) == world.counters[Count.DNS_TOO_MANY] >= 40


async def test_a_connection_that_says_too_much_is_cut(listening: World) -> None:
    too_long, too_much = struct.pack("!H", 5000), struct.pack("!H", 4000) + bytes(9000)
    for bad in (too_long, too_much, bytes([0, 5, *b"abcde"])):
        reader, writer = await asyncio.open_connection(LOCAL, listening.port)
        writer.write(bad)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def test_questions_on_one_connection_are_answered_in_turn(listening: World) -> None:
    reader, writer = await asyncio.open_connection(LOCAL, listening.port)
    queries = [dns.message.make_query(f"{name}.dc1.example", "A") for name in ("vm1", "vm3", "vm2")]
    for query in queries:
        wire = query.to_wire()
        writer.write(struct.pack("!H", len(wire)) + wire)
    codes = []
    for query in queries:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        reply = dns.message.from_wire(await reader.readexactly(length))
        assert reply.id == query.id
        codes.append(reply.rcode())
    assert codes == [dns.rcode.NOERROR, dns.rcode.NXDOMAIN, dns.rcode.NOERROR]
    writer.close()


async def test_connections_are_so_many_at_most(listening: World) -> None:
    listening.server._connections.limit_to(3)
    held = [await asyncio.open_connection(LOCAL, listening.port) for _ in range(6)]
    for reader, _ in held[:3]:
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    assert texts(await listening.asks_by_tcp("vm1"))
    for _, writer in held:
        writer.close()


async def test_who_asks_costs_no_look_through_the_zone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand VMs are looked through by the server itself, some at a time, and not for each question."""

    def never() -> None:
        raise AssertionError("the zone was looked through")

    monkeypatch.setattr(world.zone, "every", never)
    for name, type in (("vm9", "A"), ("", "SOA"), ("vm1", "TXT")):
        assert world.asks(name, type)


async def test_another_domains_guest_has_no_name_here_and_serves_nothing(world: World) -> None:
    net = world.controller.net
    net.peers["b"] = Peer("b", "server3", "tun0", (IPv4Network("10.9.0.0/24"),))
    given = replace(VM.with_one_nic("wpad", vm_mac(7), "server1"), home="b")
    net.vms["wpad"] = given
    world.controller.entities.register([Entity("db", EntityKind.SERVICE, Profile(served_by=("wpad", "vm2")))])
    assert world.asks("wpad").rcode() == dns.rcode.NXDOMAIN
    assert "vm2.dc1.example." in texts(world.asks("db"))[0]

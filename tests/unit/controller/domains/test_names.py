"""One zone for the names of two domains: each controller answers for all of it."""

import asyncio
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

import dns.message
import dns.rcode
import pytest
import structlog

from retinue.config_file import ConfigError
from retinue.controller.config import load
from retinue.controller.dns.answers import answer
from retinue.controller.dns.zone import DnsTable, Zone
from retinue.controller.migrations.requests import MigrationError
from retinue.core.model import VM, ModelError
from retinue.core.placement import Entity, EntityKind, Profile
from retinue.protocol.domains import MOST_ADDRESSES_OF_A_NAME, DomainName, Names, NamesAsked
from support.fabric.domains import SUBNETS, nic, other, server_of
from support.fabric.two_controllers import VM_ID, TwoDomains

TABLE = DnsTable(zone="dc.example", listen="192.0.2.1:53", transfer=["127.0.0.1"])
OURS = str(nic("a", 1).addresses[0])


@dataclass
class OneZone:
    domains: TwoDomains
    zones: dict[str, Zone]

    def asks(self, domain: str, name: str, type: str = "A") -> list[str] | str:
        """What the domain's controller answers: addresses, or the code."""
        query = dns.message.make_query(f"{name}.dc.example", type)
        found = answer(query.to_wire(), self.zones[domain])
        assert found is not None
        said = dns.message.from_wire(found[0])
        if said.rcode() != dns.rcode.NOERROR:
            return dns.rcode.to_text(said.rcode())
        return [str(record) for rrset in said.answer for record in rrset]

    async def look(self) -> None:
        for domain in "ab":
            await self.domains.controller(domain).domains.names.look()

    def register(self, domain: str, vm: str, number: int) -> None:
        its = replace(nic(domain, number), port_id=vm)
        self.domains.controller(domain).inventory.register_vms([VM(vm, (its,), server_of(domain, 1))])


@pytest.fixture
async def zone(domains: TwoDomains) -> OneZone:
    found = {}
    for domain in "ab":
        controller = domains.controller(domain)
        peer = controller.net.peers[other(domain)]
        controller.net.peers[peer.id] = replace(peer, names=True)
        found[domain] = Zone(TABLE, controller.entities, controller.context.clock, controller.domains.names)
    made = OneZone(domains, found)
    made.register("b", "web", 2)
    return made


async def test_each_answers_for_the_names_of_both(zone: OneZone) -> None:
    shop = Entity("shop", EntityKind.SERVICE, Profile(served_by=("web",)))
    zone.domains.controller("b").entities.register([shop])
    await zone.look()
    web = str(nic("b", 2).addresses[0])
    for domain in "ab":
        assert zone.asks(domain, VM_ID) == [OURS]
        assert zone.asks(domain, "web") == [web]
        assert zone.asks(domain, "shop")[-1] == web
        assert zone.asks(domain, "nobody") == "NXDOMAIN"
    everything = [{str(name) for name, _ in zone.zones[domain].every()} for domain in "ab"]
    assert everything[0] == everything[1] >= {f"{name}.dc.example." for name in (VM_ID, "web", "shop", "ns")}


async def test_a_name_stays_where_its_vm_goes(zone: OneZone) -> None:
    """In another domain too, whoever is asked; and what is gone is gone in both."""
    await zone.domains.move("a", "b", server_of("b", 2))
    await zone.look()
    assert [zone.asks(domain, VM_ID) for domain in "ab"] == [[OURS], [OURS]]
    await zone.domains.controller("b").inventory.remove_vm("web")
    await zone.look()
    assert [zone.asks(domain, "web") for domain in "ab"] == ["NXDOMAIN", "NXDOMAIN"]


async def test_before_a_domain_is_heard_nobody_says_that_there_is_no_such_name(zone: OneZone) -> None:
    """A resolver asks another server then. What was heard stays, also while it is away."""
    assert zone.asks("a", "web") == "SERVFAIL"
    assert zone.asks("a", VM_ID) == [OURS]
    zone.domains.doors["b"].away = True
    with structlog.testing.capture_logs() as logged:
        await zone.look()
        await zone.look()
    assert [line["event"] for line in logged] == ["domain.names_not_heard"], "told once, for days"
    assert zone.asks("a", "web") == "SERVFAIL"
    assert not zone.zones["a"].is_whole
    zone.domains.doors["b"].away = False
    await zone.look()
    zone.domains.doors["b"].away = True
    await zone.look()
    assert zone.asks("a", "web") == [str(nic("b", 2).addresses[0])]


async def test_no_domain_names_what_is_not_its_own(zone: OneZone) -> None:
    """Neither a name of ours, nor an address that is not granted to it; each is told in the log."""
    b = zone.domains.controller("b").domains.names
    theirs = (IPv4Address("10.2.0.50"), IPv4Address(OURS), IPv4Address("203.0.113.5"))
    b.own = lambda: iter(
        [(VM_ID, theirs[:1]), ("mixed", theirs), ("outside", theirs[1:]), ("ns", theirs[:1])]
    )
    with structlog.testing.capture_logs() as logged:
        await zone.look()
        await zone.look()
    told = [(line["event"], line["names"]) for line in logged if line["domain"] == "b"]
    assert zone.asks("a", VM_ID) == [OURS]
    assert told == [
        ("domain.name_twice", (VM_ID,)),
        ("domain.name_not_granted", ("mixed", "outside")),
    ], "told once, as they are the same"
    assert zone.asks("a", "mixed") == ["10.2.0.50"]
    assert zone.asks("a", "outside") == "NXDOMAIN"
    assert zone.asks("a", "ns") == ["192.0.2.1"]
    assert [str(name) for name, _ in zone.zones["a"].every()].count("ns.dc.example.") == 1


async def test_what_is_known_is_not_told_again(zone: OneZone) -> None:
    names = zone.domains.controller("b").domains.names
    first = await names.answer("a", NamesAsked("dc.example"))
    assert first.names == [DomainName("web", [str(nic("b", 2).addresses[0])])]
    assert (await names.answer("a", NamesAsked("DC.example", first.version))).names is None
    zone.register("b", "db", 3)
    again = await names.answer("a", NamesAsked("dc.example", first.version))
    assert again.names is not None and len(again.names) == 2


async def test_an_image_has_no_name_that_a_host_of_the_other_domain_has(zone: OneZone) -> None:
    zone.domains.controller("a").entities.register([Entity("web", EntityKind.IMAGE, Profile())])
    await zone.look()
    assert zone.asks("a", "web") == [str(nic("b", 2).addresses[0])]


async def test_a_domain_that_says_much_costs_little(zone: OneZone) -> None:
    """Other work has its turn meanwhile, and the log has one line."""
    door = zone.domains.doors["b"]
    outside = [DomainName(f"vm-{number}", [OURS] * 100) for number in range(300)]
    turns = 0

    async def says(asked: NamesAsked) -> Names:
        return Names("1", outside)

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    door.names = says  # type: ignore[method-assign]
    working = asyncio.ensure_future(other_work())
    with structlog.testing.capture_logs() as logged:
        await zone.domains.controller("a").domains.names.look()
    working.cancel()
    assert turns >= 100
    (line,) = logged
    assert (len(line["names"]), line["all"]) == (10, 300)


async def test_one_domain_is_answered_once_at_a_time(zone: OneZone) -> None:
    names = zone.domains.controller("b").domains.names
    names.own = lambda: iter([(f"vm-{number}", (SUBNETS["b"][9],)) for number in range(500)])
    first = asyncio.ensure_future(names.answer("a", NamesAsked("dc.example")))
    await asyncio.sleep(0)
    with pytest.raises(MigrationError, match="domain a is being answered already"):
        await names.answer("a", NamesAsked("dc.example"))
    assert len((await first).names or ()) == 500
    assert len((await names.answer("a", NamesAsked("dc.example"))).names or ()) == 500


async def test_a_name_of_many_addresses_does_not_keep_the_others_back(zone: OneZone) -> None:
    b = zone.domains.controller("b").domains.names
    b.own = lambda: iter([("many", tuple(SUBNETS["b"])[:200]), ("few", (SUBNETS["b"][9],))])
    await zone.look()
    heard = zone.domains.controller("a").domains.names
    assert heard.addresses("many") == tuple(SUBNETS["b"])[:MOST_ADDRESSES_OF_A_NAME]
    assert heard.addresses("few") == (SUBNETS["b"][9],)


async def test_another_zones_names_are_not_told(zone: OneZone) -> None:
    names = zone.domains.controller("b").domains.names
    with pytest.raises(ModelError, match=r"our zone is dc\.example, not dc2\.example"):
        await names.answer("a", NamesAsked("dc2.example"))
    peers = zone.domains.controller("b").net.peers
    peers["a"] = replace(peers["a"], names=False)
    with pytest.raises(ModelError, match="names of domain a are in no zone of ours"):
        await names.answer("a", NamesAsked("dc.example"))


def test_a_domain_without_a_zone_shares_none(tmp_path: Path) -> None:
    """Nothing is served before that is mended."""
    file = tmp_path / "controller.toml"
    file.write_text(
        'gateway_mac = "02:00:00:00:00:01"\n[tls]\nca = "a"\ncertificate = "b"\nkey = "c"\n'
        '[[domain]]\nid = "b"\ngateway = "g"\ntunnel = "t"\nurl = "https://192.0.2.9:1"\n'
        'listen = "192.0.2.1:1"\nca = "d"\nnames = true\n'
    )
    with pytest.raises(ConfigError, match=r"domain b: names: they would be in no zone; add dns\.zone"):
        load(file)

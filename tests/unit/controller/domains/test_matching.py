"""A match message goes to other domains' managers, too: their best servers are compared with ours."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from retinue.controller.migrations.requests import MigrationError
from retinue.core.limits import MOST_OFFERS
from retinue.core.migration import MigrationState as S
from retinue.core.migration.record import Far
from retinue.core.model import VM
from retinue.core.placement import Entity, EntityKind, Profile, Reason, Wish, decide
from retinue.protocol.domains import Guest, GuestNIC, Match, Offer
from retinue.protocol.errors import ErrorCode
from support.fabric.domains import gateway_of, nic, server_of
from support.fabric.two_controllers import VM_ID, TwoDomains
from support.recent_events import recent

PRESSED = Wish(Reason.COMPUTING, 6000, 5000, 60)
FULL = 100
"""MiB, of which the VM has more."""


@pytest.fixture
def joined(domains: TwoDomains) -> TwoDomains:
    """Each asks the other in its matches."""
    for domain in "ab":
        peers = domains.controller(domain).net.peers
        for id, peer in peers.items():
            peers[id] = replace(peer, match=True)
    return domains


def told(domains: TwoDomains, domain: str) -> list[str]:
    events = recent(domains.controller(domain).events, "", 1000)
    wanted = ("mobility.", "domain.")
    return [event.type for event in events if event.type.startswith(wanted)]


async def test_the_best_of_both_domains_is_chosen_and_the_vm_goes_there(joined: TwoDomains) -> None:
    joined.room = {server_of("a", 2): FULL, server_of("b", 2): 16_000}
    a, b = (joined.controller(domain) for domain in "ab")
    migration = await a.mobility.migrate(VM_ID, Wish(), server_of("a", 1))
    assert (migration.target, migration.far) == (gateway_of("a"), Far("b", server_of("b", 2)))
    assert told(joined, "a")[:9] == [
        "mobility.message", "mobility.request", "mobility.match", "mobility.answer", "mobility.answer",
        "domain.said", "mobility.offer", "mobility.decision", "mobility.initiation",
    ]  # fmt: skip
    assert told(joined, "b")[:5] == [
        "domain.heard", "mobility.match", "mobility.answer", "mobility.answer", "mobility.decision",
    ]  # fmt: skip
    kept = a.mobility.explain(migration.id)[0]
    assert kept.decision == decide(kept.snapshot)
    assert [one.server for one in kept.decision.ranked] == ["b/b-server2"]
    await joined.until("a", S.DONE)
    await joined.until("b", S.DONE)
    assert b.net.vms[VM_ID].server == server_of("b", 2)


async def test_it_comes_home_the_same_way(joined: TwoDomains) -> None:
    await joined.move("a", "b", server_of("b", 1))
    joined.room = {server_of("b", 2): FULL, server_of("a", 2): 16_000}
    migration = await joined.controller("b").mobility.migrate(VM_ID, Wish())
    assert migration.far == Far("a", server_of("a", 2))
    await joined.until("a", S.DONE)
    await joined.until("b", S.DONE)
    assert joined.controller("a").net.vms[VM_ID].server == server_of("a", 2)


async def test_where_ours_is_as_good_the_vm_stays_in_its_domain(joined: TwoDomains) -> None:
    migration = await joined.controller("a").mobility.migrate(VM_ID, Wish())
    assert (migration.target, migration.far) == (server_of("a", 2), None)
    assert "match" in joined.doors["b"].said, "though the other was asked"
    ranked = joined.controller("a").mobility.explain(migration.id)[0].decision.ranked
    assert [one.server for one in ranked] == [server_of("a", 2), "b/b-server1"]


async def test_a_wish_must_be_worth_the_way_to_another_domain_too(joined: TwoDomains) -> None:
    joined.room = {server_of("a", 2): FULL}
    with pytest.raises(MigrationError, match=r"b/b-server1 would be better than a-server1 by 0\.00 % only"):
        await joined.controller("a").mobility.migrate(VM_ID, PRESSED, server_of("a", 1))
    assert not joined.controller("b").net.vms


async def test_a_guest_is_as_far_from_its_clients_as_can_be(joined: TwoDomains) -> None:
    """All they send goes by its home: with as much room elsewhere, the nearer server is at home."""
    a = joined.controller("a")
    a.entities.register([Entity(VM_ID, EntityKind.VM, Profile(clients=("10.1.0.102",)))])
    a.inventory.register_vms([VM("vm-a2", (nic("a", 2),), server_of("a", 2), memory_mib=128)])
    joined.room = {server_of("b", 1): 16_000}
    migration = await a.mobility.migrate(VM_ID, Wish())
    assert migration.target == server_of("a", 2)
    decision = a.mobility.explain(migration.id)[0].decision
    assert (decision.runner_up, decision.decided_by) == ("b/b-server1", "distance")


def away(domains: TwoDomains) -> None:
    domains.doors["b"].away = True


def full(domains: TwoDomains) -> None:
    domains.room |= {server_of("b", 1): FULL, server_of("b", 2): FULL}


def not_granted(domains: TwoDomains) -> None:
    net = domains.controller("b").net
    net.peers["a"] = replace(net.peers["a"], prefixes=())


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (away, "nobody answers"),
        (full, "no server here can take vm-a1"),
        (not_granted, "is not granted to that domain"),
    ],
)
async def test_a_domain_that_offers_nothing_says_why_and_the_vm_goes_elsewhere(
    joined: TwoDomains, why: Callable[[TwoDomains], None], reason: str
) -> None:
    why(joined)
    migration = await joined.controller("a").mobility.migrate(VM_ID, Wish())
    assert migration.target == server_of("a", 2)
    (offer,) = recent(joined.controller("a").events, "mobility.offer", 10)
    assert (offer.data["domain"], offer.data["server"]) == ("b", "")
    assert reason in offer.data["reason"]
    assert not joined.controller("b").net.vms


async def test_nobody_elsewhere_is_asked_where_that_is_not_wanted(joined: TwoDomains) -> None:
    """A server is named; the VM cannot leave; or the operator has not said that the domain is to be asked."""
    a = joined.controller("a")
    await a.mobility.migrate(VM_ID, Wish(), named=server_of("a", 2))
    await joined.until("a", S.DONE)
    its = a.net.vms[VM_ID].nic
    a.net.put_vm(replace(a.net.vms[VM_ID], nics=(replace(its, trusted=True),)))
    await a.mobility.migrate(VM_ID, Wish())
    await joined.until("a", S.DONE)
    a.net.put_vm(replace(a.net.vms[VM_ID], nics=(its,)))
    a.net.peers["b"] = replace(a.net.peers["b"], match=False)
    await a.mobility.migrate(VM_ID, Wish())
    assert "match" not in joined.doors["b"].said


async def test_a_server_that_is_called_as_a_domain_is_no_domain(domains: TwoDomains) -> None:
    """It may have been registered after the domain was configured."""
    a, server = domains.controller("a"), server_of("a", 2)
    a.net.peers[server] = replace(a.net.peers["b"], id=server)
    migration = await a.mobility.migrate(VM_ID, Wish(), named=server)
    assert (migration.target, migration.far) == (server, None)


async def test_a_server_by_a_name_that_is_none_is_not_chosen(joined: TwoDomains) -> None:
    joined.room = {server_of("a", 2): FULL}

    async def lies(_: object) -> Offer:
        return Offer("../x y", cpus=99, memory_mib=99_999)

    joined.controller("a").domains.saying.doors["b"].match = lies  # type: ignore[method-assign, assignment]
    with pytest.raises(MigrationError, match="no server can take vm-a1"):
        await joined.controller("a").mobility.migrate(VM_ID, Wish())


def asked(domains: TwoDomains, memory_mib: int, *, is_home: bool = False) -> Match:
    """By domain a, or by b of a VM that comes home."""
    nics = [
        GuestNIC(one.mac, one.port_id, list(map(str, one.addresses)), one.slot)
        for one in domains.controller("a").net.vms[VM_ID].nics
    ]
    return Match("match-1", Guest(VM_ID, nics, is_home, memory_mib))


async def test_who_is_offered_nothing_hears_of_no_server_and_what_it_has_left(domains: TwoDomains) -> None:
    """Else whoever asks for too much would be told of them all."""
    b = domains.controller("b")
    offer = await b.domains.matching.offer("a", asked(domains, 1_000_000))
    assert (offer.server, offer.reason) == ("", "no server here can take vm-a1")
    (decision,) = recent(b.events, "mobility.decision", 10)
    assert server_of("b", 1) in decision.data["reason"], "those who are at home there see it"


async def test_a_domain_has_so_many_questions_open_and_no_more(domains: TwoDomains) -> None:
    """Each goes to all agents."""
    b, wanted = domains.controller("b"), asked(domains, 128)
    offers = await asyncio.gather(
        *(b.domains.matching.offer("a", wanted) for _ in range(MOST_OFFERS + 1)), return_exceptions=True
    )
    *answered, refused = offers
    assert all(isinstance(one, Offer) and one.server for one in answered)
    assert isinstance(refused, MigrationError) and refused.code is ErrorCode.TOO_OFTEN
    assert (await b.domains.matching.offer("a", wanted)).server, "each has ended, however"


async def test_a_question_about_a_vm_changes_nothing_of_it(joined: TwoDomains) -> None:
    await joined.move("a", "b", server_of("b", 1))
    a = joined.controller("a")
    before = a.resources.size_of(VM_ID)
    await a.domains.matching.offer("b", asked(joined, 4 * before[0], is_home=True))
    assert a.resources.size_of(VM_ID) == before

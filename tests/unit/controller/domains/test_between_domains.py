"""Two controllers speak to each other of a migration: what each says, and what becomes of it."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
import structlog

from retinue.controller.changes import VMRegistered
from retinue.controller.errors import RequestError
from retinue.controller.migrations.requests import MigrationError
from retinue.core.migration import MigrationState as S
from retinue.core.migration.copying import AskedCopy, CopyOptions, Postcopy
from retinue.core.migration.record import Far
from retinue.core.model import VM, Subnet, Vnet, Vrf
from retinue.core.placement import Entity, EntityKind, Profile
from retinue.protocol.domains import SAID_BY_SOURCE, Said, Word
from support.fabric.domains import gateway_of, nic, server_of
from support.fabric.two_controllers import MEMORY_MIB, VM_ID, TwoDomains


async def test_a_vm_goes_and_comes_back(domains: TwoDomains) -> None:
    await domains.move("a", "b", server_of("b", 2))
    a, b = (domains.controller(domain).net for domain in "ab")
    assert a.vms[VM_ID].server == "to-b"
    assert (b.vms[VM_ID].server, b.vms[VM_ID].home) == (server_of("b", 2), "a")
    assert set(domains.doors["b"].said) == {"prepare", "copy_started", "converged", "stopped", "source_freed"}
    assert list(dict.fromkeys(domains.doors["a"].said)) == ["opened", "diverted", "resumed"]
    assert domains.controller("a").domains.shown()["vms"] == [
        {"vm": VM_ID, "addresses": ["10.1.0.101"], "home": "", "domain": "b", "server": "to-b"}
    ]
    await domains.move("b", "a", server_of("a", 1))
    assert a.vms[VM_ID].server == server_of("a", 1)
    await domains.fakes["b"].settle()
    assert not b.vms
    assert not b.assignments


async def test_all_nics_of_a_vm_go_and_come_back(domains: TwoDomains) -> None:
    """In one migration, each with its MAC, port, addresses and slot."""
    domains.nics = (1, 4)
    a, b = (domains.controller(domain) for domain in "ab")
    nics = (nic("a", 1), replace(nic("a", 4), slot=3))
    a.inventory.nics.add(VM_ID, nics[1])
    domains.plug("a", server_of("a", 1))
    await domains.fakes["a"].settle()
    await domains.move("a", "b", server_of("b", 2))
    assert b.net.vms[VM_ID].nics == nics
    assert {held.ip for held in b.net.held_by(VM_ID)} == {one.addresses[0] for one in nics}
    await domains.move("b", "a", server_of("a", 1))
    assert a.net.vms[VM_ID].nics == nics
    await domains.fakes["b"].settle()
    assert not b.net.vms and not b.net.assignments


async def is_as_before(domains: TwoDomains) -> None:
    await domains.fakes["b"].settle()
    assert domains.controller("a").net.vms[VM_ID].server == server_of("a", 1)
    assert not domains.controller("b").net.vms
    assert domains.runs_at == server_of("a", 1)


async def test_a_move_inside_a_domain_is_no_news_at_home(domains: TwoDomains) -> None:
    await domains.move("a", "b", server_of("b", 2))
    before = [list(door.said) for door in domains.doors.values()]
    b = domains.controller("b")
    b.orchestrator.start(VM_ID, target_server=server_of("b", 1))
    assert (await domains.until("b", S.DONE)).far is None
    assert [list(door.said) for door in domains.doors.values()] == before


async def test_what_fails_at_the_target_is_undone_by_the_source_first(domains: TwoDomains) -> None:
    domains.fails = "after diverting"
    domains.begin(server=server_of("b", 1))
    undone = await domains.until("a", S.UNDONE)
    assert "its QEMU has ended" in undone.reason
    await domains.until("b", S.UNDONE)
    said = domains.doors["b"].said
    assert said.index("converged") < said.index("roll_back")
    steps = {domain: domains.migration(domain).steps for domain in "ab"}
    rolled = {d: next(at for state, at in steps[d] if state is S.ROLLING_BACK) for d in "ab"}
    assert rolled["a"] <= rolled["b"]
    await is_as_before(domains)


async def test_without_a_mark_through_the_tunnel_nothing_is_diverted(domains: TwoDomains) -> None:
    """The tunnel is cut: the VM stays where it runs, and no traffic was sent into the tunnel."""
    domains.fakes["b"].hosts["b-edge3", 2] = lambda frame: None
    domains.begin(server=server_of("b", 1))
    undone = await domains.until("a", S.UNDONE)
    assert "domain b does not divert: no mark has come through the tunnel" in undone.reason
    assert S.DIVERTED not in [state for state, _ in undone.steps]
    await domains.until("b", S.UNDONE)
    await is_as_before(domains)


async def test_a_vm_of_a_vrf_stays_before_anything_is_changed(domains: TwoDomains) -> None:
    """Its addresses mean something in this domain's VRF alone, and a guest is in none."""
    a = domains.controller("a")
    a.net.put_vrf(Vrf("tenant", 7))
    a.net.put_vnet(Vnet("shop", vrf="tenant"))
    a.net.add_subnet(Subnet("shop", IPv4Network("10.1.0.0/24"), IPv4Address("10.1.0.254"), vnet="shop"))
    vm = VM("vm-a9", (replace(nic("a", 9), vnet="shop"),), server_of("a", 1))
    a.inventory.register_vms([vm])
    with pytest.raises(MigrationError, match=r"its NIC .* is in VRF tenant, whose addresses and names are"):
        a.orchestrator.start("vm-a9", target_server=gateway_of("a"), far=Far("b", server_of("b", 1)))
    assert not a.orchestrator.migrations
    assert not domains.doors["b"].said
    assert a.net.vms["vm-a9"] == vm


async def test_a_domain_that_is_away_takes_no_vm(domains: TwoDomains) -> None:
    domains.doors["b"].away = True
    domains.begin(server=server_of("b", 1))
    assert "nobody answers" in (await domains.until("a", S.UNDONE)).reason
    await is_as_before(domains)


async def test_a_move_can_be_cancelled_at_its_source(domains: TwoDomains) -> None:
    domains.fails = "before it converges"
    domains.begin(server=server_of("b", 1))
    await domains.until("a", S.COPYING)
    domains.controller("a").orchestrator.cancel(domains.migration("a").id)
    await domains.until("a", S.UNDONE)
    await domains.until("b", S.UNDONE)
    await is_as_before(domains)


async def test_a_guest_that_its_home_may_not_give_is_refused(domains: TwoDomains) -> None:
    net = domains.controller("b").net
    net.peers["a"] = replace(net.peers["a"], prefixes=())
    domains.begin(server=server_of("b", 1))
    assert "10.1.0.101 is not granted to that domain" in (await domains.until("a", S.UNDONE)).reason
    await is_as_before(domains)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (Said.RESUMED, "not for domain b to say"),
        (Said.DIVERTED, "not for domain b to say"),
        (Said.COPY_STARTED, "not for domain b to say"),
    ],
)
async def test_a_domain_says_of_its_own_end_only(domains: TwoDomains, said: Said, code: str) -> None:
    await domains.move("a", "b", server_of("b", 1))
    of_source = said in SAID_BY_SOURCE
    at, peer = ("a", "b") if of_source else ("b", "a")
    hearing, id = domains.controller(at).domains.hearing, domains.migration(at).id
    with pytest.raises(MigrationError, match=code.replace("domain b", f"domain {peer}")):
        await hearing.word(peer, id, Word(said, 1.0), None)


async def test_of_others_migrations_a_domain_says_nothing(domains: TwoDomains) -> None:
    a = domains.controller("a")
    inside = a.orchestrator.start(VM_ID, target_server=server_of("a", 2))
    with pytest.raises(MigrationError, match="there is no migration"):
        await a.domains.hearing.word("b", inside.id, Word(Said.FAILED, reason="because"), None)


async def test_who_is_away_is_not_moved_from_home(domains: TwoDomains) -> None:
    await domains.move("a", "b", server_of("b", 2))
    with pytest.raises(MigrationError, match="VM vm-a1 is in domain b; migrate it from there"):
        domains.controller("a").orchestrator.start(VM_ID, target_server=server_of("a", 2))
    for domain in ("a", "b", "b/server1"):
        with pytest.raises(MigrationError, match=r"is in domain b; .* by that domain's controller"):
            domains.controller("a").orchestrator.start(VM_ID, target_server=domain)


async def test_a_gateway_is_no_server_for_vms(domains: TwoDomains) -> None:
    a = domains.controller("a")
    with pytest.raises(RequestError, match="is a gateway to another domain"):
        a.inventory.register_vms([VM("vm-a2", (nic("a", 2),), "to-b")])
    assert "to-b" not in a.resources.candidates()


async def test_a_name_that_is_taken_is_refused(domains: TwoDomains) -> None:
    b = domains.controller("b")
    own = replace(nic("b", 1), port_id="other")
    b.inventory.register_vms([VM(VM_ID, (own,), server_of("b", 1))])
    domains.begin(server=server_of("b", 1))
    assert "a VM of that name is here already" in (await domains.until("a", S.UNDONE)).reason
    assert not b.net.vms[VM_ID].home


async def test_between_domains_memory_goes_over_before_the_vm_runs(domains: TwoDomains) -> None:
    """The domains do not tell each other of post-copy, so the target would not be ready for it."""
    for domain in "ab":
        domains.controller(domain).orchestrator.copy_options = CopyOptions(Postcopy.REQUIRED)
    with pytest.raises(
        MigrationError, match=r"goes between domains, .*: it is migrated by pre-copy, with --no-"
    ):
        domains.controller("a").orchestrator.start(
            VM_ID,
            target_server=gateway_of("a"),
            far=Far("b", server_of("b", 2)),
            asked=AskedCopy(Postcopy.REQUIRED),
        )
    await domains.move("a", "b", server_of("b", 2))
    assert [domains.migration(domain).postcopy for domain in "ab"] == [Postcopy.NEVER] * 2


async def test_without_a_named_server_the_other_domain_chooses_one(domains: TwoDomains) -> None:
    """It is told how much memory the VM has here, and asks its own agents."""
    domains.begin()
    await domains.until("a", S.DONE)
    await domains.until("b", S.DONE)
    chosen = domains.controller("b").net.vms[VM_ID].server
    assert chosen in (server_of("b", 1), server_of("b", 2))
    assert domains.migration("a").far == Far("b", chosen, domains.migration("b").id)


async def test_how_much_memory_a_vm_has_is_asked_of_its_agent(domains: TwoDomains) -> None:
    """Nobody has said it at home, and its agent reports it every few seconds only: it is asked when it
    counts, and the other domain is told."""
    a, b = domains.controller("a"), domains.controller("b")
    registered = a.net.vms[VM_ID]
    a.context.apply(VMRegistered(replace(registered, memory_mib=0)))
    # What a manager says of it is for placement: the guest is to run with what it runs with here.
    a.entities.register([Entity(VM_ID, EntityKind.VM, Profile(memory_mib=256))])
    await domains.move("a", "b", server_of("b", 2))
    assert b.net.vms[VM_ID].memory_mib == MEMORY_MIB
    # Home has forgotten it meanwhile, as it does by a restart: whoever has the VM says it.
    a.entities.remove(VM_ID)
    a.resources.vm_gone(VM_ID)
    await domains.move("b", "a", server_of("a", 2))
    assert a.net.vms[VM_ID].server == server_of("a", 2)


async def test_a_vm_of_which_nobody_knows_how_large_it_is_stays(domains: TwoDomains) -> None:
    a = domains.controller("a")
    a.context.apply(VMRegistered(replace(a.net.vms[VM_ID], memory_mib=0)))
    domains.memory_mib = 0
    domains.begin(server=server_of("b", 2))
    undone = await domains.until("a", S.UNDONE)
    assert "how much memory" in undone.reason
    assert "retinue name add vm-a1 --kind vm --memory" in undone.reason
    assert not domains.controller("b").net.vms


async def test_that_the_vm_runs_is_said_until_it_is_heard(domains: TwoDomains) -> None:
    """The source's controller is away when the VM resumes: nobody undoes anything, and it goes forward."""
    domains.fails = "away when it resumes"
    domains.begin(server=server_of("b", 1))
    await domains.until("b", S.CONFIRMED)
    assert domains.migration("a").state is S.DIVERTED
    domains.doors["a"].away = False
    await domains.until("a", S.DONE)
    await domains.until("b", S.DONE)
    assert domains.runs_at == server_of("b", 1)


SECRET = "payroll-db"
"""A VM of domain b, of which domain a is to learn nothing."""


@pytest.mark.parametrize("what", ["name", "MAC", "port", "no room", "no room there"])
async def test_a_refusal_tells_another_domain_no_name_of_ours(domains: TwoDomains, what: str) -> None:
    """Our own log has the whole reason, or the event of the decision."""
    its, own = nic("a", 1), replace(nic("b", 3), port_id=SECRET)
    taken = {
        "name": VM(VM_ID, (own,), server_of("b", 2)),
        "MAC": VM(SECRET, (replace(own, mac=its.mac),), server_of("b", 2)),
        "port": VM(SECRET, (replace(own, port_id=its.port_id),), server_of("b", 2)),
    }
    b = domains.controller("b")
    b.inventory.register_vms([taken.get(what, VM(SECRET, (own,), server_of("b", 2)))])
    if what not in taken:
        domains.room = {server_of("b", number): 1 for number in (1, 2)}
    with structlog.testing.capture_logs() as logged:
        domains.begin(server=server_of("b", 1) if what == "no room there" else "")
        reason = (await domains.until("a", S.UNDONE)).reason
    assert reason.startswith("domain b: ")
    assert SECRET not in reason and server_of("b", 2) not in reason
    told = [line for line in logged if line["event"] == "domain.refused"]
    if what == "name":
        assert not told, "which it knows itself"
    else:
        assert [line["domain"] for line in told] == ["a"]
        assert any(one in told[0]["reason"] for one in (SECRET, server_of("b", 2)))

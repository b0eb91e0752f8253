"""Another domain whose controller says what it should not: what it gets, and what is so afterwards."""

import asyncio
import datetime
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, x25519

from retinue.controller.content.images import signer
from retinue.controller.domains.refusals import for_peer
from retinue.controller.domains.saying import TURN_LIMIT
from retinue.controller.errors import RequestError
from retinue.controller.migrations.requests import MigrationError
from retinue.core.limits import LONGEST_DUID, MOST_PREPARES
from retinue.core.migration import MigrationState as S
from retinue.core.model import VM, ModelError
from retinue.protocol.domains import (
    Guest,
    GuestAddress,
    GuestLease6,
    GuestNIC,
    ImageAsked,
    Match,
    Prepare,
    Prepared,
    Removed,
    Said,
    Word,
)
from retinue.protocol.images import ImagesBody, SignedManifest
from retinue.protocol.migrations import Report
from support.fabric.domains import nic, server_of
from support.fabric.two_controllers import VM_ID, TwoDomains
from support.pki_files import Certificates
from support.recent_events import recent

NIC1 = nic("a", 1)
GUEST = Guest(
    "made-up", [GuestNIC("52:54:00:00:09:09", "made-up", ["10.1.0.199"])], is_home=False, memory_mib=128
)
ESCAPE = "\x1b[2J"


def prepare(number: int = 1, guest: Guest = GUEST, **more: Any) -> Prepare:
    return Prepare(f"migration-{number}", guest, "a-server1", **more)


async def refused(domains: TwoDomains, wanted: Prepare, why: str) -> None:
    b = domains.controller("b")
    before = dict(b.net.vms)
    with pytest.raises((MigrationError, ModelError), match=why):
        await b.domains.hearing.prepare("a", wanted)
    await domains.fakes["b"].settle()
    assert b.net.vms == before


async def test_it_books_only_so_many_places_at_once(domains: TwoDomains) -> None:
    """Each asks all agents. Those that are asked for meanwhile are refused, and may be asked for later."""
    b = domains.controller("b")
    waits, asked = asyncio.Event(), 0

    async def migrate(*_: object, **__: object) -> None:
        nonlocal asked
        asked += 1
        await waits.wait()
        raise MigrationError("there is no room")

    b.mobility.migrate = migrate  # type: ignore[method-assign, assignment]

    def wanted(number: int) -> Prepare:
        its = GuestNIC(f"52:54:00:00:09:{number:02x}", f"vm-{number}", [f"10.1.0.{100 + number}"])
        return prepare(number, Guest(f"vm-{number}", [its], is_home=False))

    prepare_at_b = b.domains.hearing.prepare
    work = [asyncio.create_task(prepare_at_b("a", wanted(n))) for n in range(2, MOST_PREPARES + 2)]
    await asyncio.sleep(0)
    with pytest.raises(
        MigrationError, match=f"{MOST_PREPARES} places are being looked for here for domain a"
    ):
        async with asyncio.timeout(10):
            await prepare_at_b("a", wanted(99))
    assert asked == MOST_PREPARES and len(b.net.vms) == MOST_PREPARES
    waits.set()
    await asyncio.gather(*work, return_exceptions=True)
    await domains.fakes["b"].settle()
    assert not b.net.vms


@pytest.mark.parametrize(
    "change",
    [
        {"id": f"vm{ESCAPE}"},
        {"id": "vm/../x"},
        {"id": "vm\n"},
        {"nics": [GuestNIC("52:54:00:00:09:09", f"p{ESCAPE}", ["10.1.0.199"])]},
    ],
    ids=["an escape", "a path", "a line", "a port"],
)
def test_a_name_that_is_none_is_not_read(change: dict[str, Any]) -> None:
    """It would be in events and logs before anybody has judged it."""
    body = msgspec.json.encode(prepare(guest=msgspec.structs.replace(GUEST, **change)))
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body, type=Prepare)


@pytest.mark.parametrize("name", [f"m{ESCAPE}", "x/../../v1/vms", "m\n", ""])
def test_nor_is_one_of_an_answer(name: str) -> None:
    """Which would be part of a path, and of what managers are shown."""
    for body in ({"migration": name, "server": "s"}, {"migration": "m", "server": name}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(body, Prepared)
    if name:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"said": "opened", "server": name}, Word)


async def test_of_what_it_says_why_nothing_is_more_than_text(domains: TwoDomains) -> None:
    domains.fails = "before it converges"
    domains.begin(server=server_of("b", 1))
    migration = await domains.until("a", S.COPYING)
    a = domains.controller("a")
    await a.domains.hearing.word(
        "b", migration.id, Word(Said.FAILED, reason=f"no{ESCAPE}\nforged: line"), None
    )
    undone = await domains.until("a", S.ROLLING_BACK, S.UNDONE)
    assert ESCAPE not in undone.reason and "\n" not in undone.reason and "no" in undone.reason
    await domains.until("a", S.UNDONE)


@pytest.mark.parametrize("bytes_", [0, LONGEST_DUID + 1, 1024])
async def test_a_lease_that_no_server_could_have_given_is_refused(domains: TwoDomains, bytes_: int) -> None:
    """With it no message could be made that renews it."""
    long = "ab" * bytes_
    for client, server in ((long, "ab" * 8), ("ab" * 8, long)):
        six = GuestAddress("fd00:a::9", True, 60.0, "", client, dhcp6=GuestLease6(server, 1))
        its = msgspec.structs.replace(GUEST.nics[0], held=[six])
        await refused(domains, prepare(guest=msgspec.structs.replace(GUEST, nics=[its])), "DUID of")
    four = GuestAddress("10.1.0.199", True, 60.0, "10.1.0.2", "ab" * 256)
    its = GuestNIC("52:54:00:00:09:09", "made-up", [], held=[four])
    await refused(
        domains, prepare(guest=msgspec.structs.replace(GUEST, nics=[its])), "client identifier of 256"
    )


async def test_two_domains_are_home_of_one_name_and_the_first_has_it(domains: TwoDomains) -> None:
    await domains.move("a", "b", server_of("b", 1))
    b = domains.controller("b")
    granted = (IPv4Network("10.7.0.0/24"),)
    b.net.peers["c"] = replace(b.net.peers["a"], id="c", prefixes=granted)
    its = GuestNIC("52:54:00:00:09:09", "made-up", ["10.7.0.9"])
    with pytest.raises((MigrationError, ModelError), match=f"VM {VM_ID}"):
        await b.domains.hearing.prepare("c", prepare(guest=Guest(VM_ID, [its], is_home=False)))
    b.domains.hearing.removed("c", Removed(VM_ID))
    await domains.fakes["b"].settle()
    assert b.net.vms[VM_ID].home == "a"


def of_another(domains: TwoDomains) -> Guest:
    """A VM of domain b, as if domain a brought it home, or it were a's."""
    its = nic("b", 3)
    b = domains.controller("b")
    b.inventory.register_vms([VM("vm-b3", (its,), server_of("b", 2))])
    return Guest("vm-b3", [GuestNIC(its.mac, its.port_id, [str(ip) for ip in its.addresses])], is_home=True)


@pytest.mark.parametrize("is_home", [True, False], ids=["coming home", "as its own"])
async def test_a_vm_that_never_left_is_not_brought(domains: TwoDomains, is_home: bool) -> None:
    guest = msgspec.structs.replace(of_another(domains), is_home=is_home)
    await refused(domains, prepare(guest=guest), "VM vm-b3")
    with pytest.raises(ModelError, match="VM vm-b3"):
        await domains.controller("b").domains.matching.offer("a", Match("match-1", guest))
    domains.controller("b").domains.hearing.removed("a", Removed("vm-b3"))
    await domains.fakes["b"].settle()
    assert domains.controller("b").net.vms["vm-b3"].server == server_of("b", 2)


async def test_words_of_a_migration_that_has_ended_change_nothing_also_after_a_restart(
    domains: TwoDomains,
) -> None:
    await domains.move("a", "b", server_of("b", 1))
    its = domains.migration("b").id
    await domains.kill("b")
    await domains.start_again("b")
    b = domains.controller("b")
    where = b.net.vms[VM_ID].server
    words = [Word(said, 1.0, "again") for said in (Said.STOPPED, Said.ROLL_BACK, Said.CONVERGED)]
    for word in (*words, Word(Said.SOURCE_FREED)):
        assert (await b.domains.hearing.word("a", its, word, None)).state is S.DONE
    assert b.net.vms[VM_ID].server == where and VM_ID not in domains.controller("a").net.fenced
    home = domains.controller("a").net.vms[VM_ID]
    # A place for it is asked for once more, as by a replay: it is here, and stays.
    guest = Guest(
        VM_ID, [GuestNIC(NIC1.mac, NIC1.port_id, [str(ip) for ip in NIC1.addresses])], is_home=False
    )
    await refused(domains, prepare(guest=guest), f"VM {VM_ID}")
    assert domains.controller("a").net.vms[VM_ID] == home


async def test_who_asks_for_all_names_of_images_fills_no_ring_of_events(domains: TwoDomains) -> None:
    b = domains.controller("b")
    b.net.peers["a"] = replace(b.net.peers["a"], images=True)
    before = len(recent(b.events))
    for number in range(300):
        with pytest.raises(RequestError, match="is published here"):
            b.domains.images.answer("a", ImageAsked(f"image-{number}"))
    assert len(recent(b.events)) == before


async def test_an_agent_blames_only_holders_that_there_may_be(domains: TwoDomains) -> None:
    a = domains.controller("a")
    a.net.peers["b"] = replace(a.net.peers["b"], images=True)
    blamed = {"b/server3": 2, f"b/{ESCAPE}": 1, "b/": 1, "b/x/y": 1, "c/server3": 1, "nobody": 1}
    a.images.holders.on_report(server_of("a", 1), ImagesBody("192.0.2.1:1", faults=blamed))
    assert a.images.holders.faults() == {"b/server3": 2}


@pytest.mark.parametrize(
    "certificate",
    ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
    ids=["none", "no PEM", "no certificate"],
)
def test_a_manifest_with_a_certificate_that_is_none_is_not_believed(tmp_path: Path, certificate: str) -> None:
    ca = Certificates(tmp_path).authority.ca
    signed = SignedManifest("d", 5, "0" * 64, 1, "00", certificate)
    with pytest.raises(RequestError, match="not believed"):
        signer(signed, ca)


@pytest.mark.parametrize("kind", ["ed25519", "dsa", "x25519"])
def test_nor_one_of_a_kind_that_our_authority_never_makes(tmp_path: Path, kind: str) -> None:
    ca = Certificates(tmp_path).authority.ca
    signed = SignedManifest("d", 5, "0" * 64, 1, "00", strange_certificate(kind, ca))
    with pytest.raises(RequestError, match="not believed"):
        signer(signed, ca)


def strange_certificate(kind: str, ca: Path) -> str:
    """In the name of the authority, and of a manager."""
    made: dict[str, Callable[[], Any]] = {
        "ed25519": lambda: ed25519.Ed25519PrivateKey.generate().public_key(),
        "dsa": lambda: dsa.generate_private_key(2048).public_key(),
        "x25519": lambda: x25519.X25519PrivateKey.generate().public_key(),
    }
    issuer = x509.load_pem_x509_certificate(ca.read_bytes()).subject
    key = (
        ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    )
    now = datetime.datetime.now(datetime.UTC)
    found = (
        x509.CertificateBuilder().subject_name(issuer).issuer_name(issuer).public_key(made[kind]())
        .serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, None if kind == "ed25519" else hashes.SHA256())
    )  # fmt: skip
    return found.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    "reason",
    [
        "the switch b-edge2 is away",
        "at b-server2:7800 nobody answers",
        "10.2.0.1 is in our subnet b-subnet1",
        "it is in domain c",
        "VM payroll. has it",
    ],
)
async def test_what_is_ours_is_told_in_no_form(domains: TwoDomains, reason: str) -> None:
    b = domains.controller("b")
    b.net.peers["c"] = replace(b.net.peers["a"], id="c")
    its = nic("b", 3)
    b.inventory.register_vms([VM("payroll.", (its,), server_of("b", 2))])
    b.net.subnets["b-subnet1"] = next(iter(b.net.subnets.values()))
    told = for_peer(b.context.state, "a", GUEST, "", MigrationError(reason))
    assert told == "VM made-up cannot come: something here has its name, or a MAC, port or address of it"
    theirs = "VM made-up of domain a: 10.7.0.1 is not granted to that domain, which has 10.1.0.0/24"
    assert for_peer(b.context.state, "a", GUEST, "", MigrationError(theirs)) == theirs


@pytest.mark.parametrize("said_by", ["a", "b"])
async def test_nor_in_why_a_migration_has_failed(domains: TwoDomains, said_by: str) -> None:
    """Our own operator reads it; what names nothing is told as it is."""
    domains.fails = "before it converges"
    domains.begin(server=server_of("b", 1))
    await domains.until("a", S.COPYING)
    migration = await domains.until("b", S.COPYING)
    secret = server_of(said_by, 2)
    at, reason = domains.migration(said_by), f"QEMU has ended as on {secret}: no room"
    by = {"a": at.source, "b": at.target}[said_by]
    domains.agents[said_by].tell(at.id, Report.FAILED, by, reason=reason)
    ended = {domain: await domains.until(domain, S.UNDONE) for domain in "ab"}
    assert migration.id == ended["b"].id
    there = ended["b" if said_by == "a" else "a"].reason
    assert there == f"domain {said_by}: something there is in the way: its own log says what"
    if said_by == "a":
        assert ended["a"].reason == reason


async def test_who_has_a_place_needs_no_turn_and_who_has_none_waits_for_one(domains: TwoDomains) -> None:
    """As where many VMs go there at once."""
    turns = domains.controller("b").domains.hearing._preparing
    turns["a"] = MOST_PREPARES
    domains.fails = "before it converges"
    domains.begin(server=server_of("b", 1))
    await asyncio.sleep(0.5)
    assert not domains.migration("a").state.ended and not domains.controller("b").orchestrator.migrations
    turns["a"] -= 1
    copying = await domains.until("a", S.COPYING)
    turns["a"] = MOST_PREPARES
    domains.controller("a").domains.saying._told.clear()
    domains.fails = ""
    agents = domains.agents["a"]
    agents._spawn(agents._copy(copying))
    await domains.until("b", S.DONE)
    assert domains.doors["b"].said.count("prepare") >= 3


async def test_it_waits_for_its_turn_no_longer_than_it_is_wanted(domains: TwoDomains) -> None:
    turns = domains.controller("b").domains.hearing._preparing
    turns["a"] = MOST_PREPARES
    migration = domains.begin(server=server_of("b", 1))
    await asyncio.sleep(0.1)
    a = domains.controller("a")
    now = a.context.clock()
    a.context.clock = lambda: now + TURN_LIMIT
    undone = await domains.until("a", S.UNDONE)
    assert undone.id == migration.id and "places are being looked for" in undone.reason

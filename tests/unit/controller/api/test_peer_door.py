"""The door for another domain, by real TLS: that domain's controller comes in, and nobody else."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from retinue.controller.api.peer_door import Door
from retinue.controller.api.peers import Peers
from retinue.controller.config_tables import DomainTable
from retinue.controller.domains.peer_client import PeerClient
from retinue.core.limits import LARGEST_REPORT
from retinue.core.migration import MigrationState as S
from retinue.protocol import serving
from retinue.protocol.domains import (
    PREPARE_PATH,
    Guest,
    GuestNIC,
    ImageAsked,
    Match,
    NamesAsked,
    Prepare,
    Removed,
    Said,
    Word,
)
from retinue.protocol.errors import ControllerAwayError, ControllerError, RejectedError
from retinue.security.contexts import client_context, server_context
from retinue.security.listener.rejections import Rejection
from support.fabric.domains import gateway_of, server_of
from support.fabric.two_controllers import TwoDomains, two_domains
from support.pki_files import Certificates

NIC = GuestNIC("52:54:00:00:00:01", "vm-a1", ["10.1.0.101"])
GUEST = Guest("vm-a1", [NIC], is_home=False, memory_mib=128)
PATIENCE = 30.0
TOO_MUCH = LARGEST_REPORT + 1
WANTED = Prepare("migration-1", GUEST, server_of("a", 1), server_of("b", 1))


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("a"))


@pytest.fixture(scope="module")
def b(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("b"))


@pytest.fixture
async def domains() -> AsyncIterator[TwoDomains]:
    async with two_domains() as made:
        yield made


@pytest.fixture
def door(domains: TwoDomains, a: Certificates, b: Certificates) -> Door:
    """Domain b's door for domain a."""
    context = server_context(a.authority.ca, *b.files("controller/c1"))
    return Door("a", domains.controller("b").domains, context)


@pytest.fixture
async def url(door: Door) -> AsyncIterator[str]:
    port = await door.start("127.0.0.1", 0)
    yield f"https://127.0.0.1:{port}"
    await door.stop()


def client(url: str, believes: Certificates, shows: tuple[Path, Path] | None) -> PeerClient:
    return PeerClient(url, client_context(believes.authority.ca, *(shows or ())))


async def test_the_other_controller_books_a_place(
    domains: TwoDomains, url: str, a: Certificates, b: Certificates
) -> None:
    peer = client(url, b, a.files("controller/c1"))
    try:
        offered = await peer.match(Match("match-1", GUEST))
        assert offered.server == server_of("b", 1)
        assert not domains.controller("b").net.vms, "an offer books nothing"
        with pytest.raises(RejectedError, match="names of domain a are in no zone of ours"):
            await peer.names(NamesAsked("dc.example"))
        with pytest.raises(RejectedError, match="our images are not for domain a"):
            await peer.image(ImageAsked("debian-12"))
        booked = await peer.prepare(WANTED)
        assert booked.server == server_of("b", 1)
        assert (await peer.prepare(WANTED)) == booked, "asked again, it is the same"
        vm = domains.controller("b").net.vms["vm-a1"]
        assert (vm.home, vm.server) == ("a", gateway_of("b"))
        assert (
            await peer.say(booked.migration, Word(Said.ROLL_BACK, reason="it is off"))
        ).state is S.ROLLING_BACK
        with pytest.raises(RejectedError, match="there is no migration"):
            await peer.say("migration-9", Word(Said.ROLL_BACK))
        await peer.removed(Removed("nobody"))
    finally:
        await peer.close()


@pytest.mark.parametrize("party", ["agent/server1", "manager/anna", "switch/edge1", "mobility/m1"])
async def test_of_the_other_domain_its_controller_alone_speaks(
    domains: TwoDomains, url: str, a: Certificates, b: Certificates, party: str
) -> None:
    peer = client(url, b, a.files(party))
    try:
        with pytest.raises(RejectedError, match="a controller speaks here"):
            await peer.prepare(WANTED)
    finally:
        await peer.close()
    assert not domains.controller("b").net.vms


async def test_our_own_authority_is_none_there(
    domains: TwoDomains, url: str, a: Certificates, b: Certificates
) -> None:
    """Who has a certificate of domain b does not speak for domain a; who has none, for nobody."""
    for shows in (b.files("controller/c1"), None):
        peer = client(url, b, shows)
        try:
            with pytest.raises(ControllerAwayError):
                await peer.prepare(WANTED)
        finally:
            await peer.close()
    assert not domains.controller("b").net.vms


async def test_a_body_that_is_none_changes_nothing(
    domains: TwoDomains, url: str, a: Certificates, b: Certificates
) -> None:
    peer = client(url, b, a.files("controller/c1"))
    try:
        for guest in (
            replace(GUEST, nics=[replace(NIC, addresses=["10.1.0.101"] * 17)]),
            replace(GUEST, nics=[]),
            replace(GUEST, nics=[NIC, NIC]),
            replace(GUEST, nics=[NIC] * 9),
            replace(GUEST, nics=[replace(NIC, slot=9)]),
            replace(GUEST, id=""),
            replace(GUEST, id="vm a"),
            replace(GUEST, nics=[replace(NIC, mac="nonsense")]),
            replace(GUEST, nics=[replace(NIC, port_id="p p")]),
            replace(GUEST, nics=[replace(NIC, addresses=["nonsense"])]),
            replace(GUEST, is_home=True),
        ):
            with pytest.raises(ControllerError):
                await peer.prepare(Prepare("migration-1", guest, "server1", server_of("b", 1)))
            with pytest.raises(ControllerError):
                await peer.match(Match("match-1", guest))
    finally:
        await peer.close()
    await asyncio.sleep(0)
    assert not domains.controller("b").net.vms
    assert not domains.controller("b").orchestrator.migrations


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        ("Content-Length: 50", b"{", b"408"),
        (f"Content-Length: {TOO_MUCH}", b"", b"413"),
        (
            "Transfer-Encoding: chunked",
            b"%x\r\n" % (LARGEST_REPORT + 1) + b" " * (LARGEST_REPORT + 1),
            b"413",
        ),
    ],
)
async def test_a_body_has_a_size_and_a_time(
    url: str, a: Certificates, b: Certificates, monkeypatch: pytest.MonkeyPatch, head: str, body: bytes,
    status: bytes,
) -> None:  # fmt: skip
    """Also that of a controller that is let in: the other domain is not ours."""
    monkeypatch.setattr(serving, "BODY_LIMIT", 0.2)
    host, _, port = url.removeprefix("https://").partition(":")
    context = client_context(b.authority.ca, *a.files("controller/c1"))
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(f"POST {PREPARE_PATH} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode() + body)
        assert status in await reader.readline()
    writer.close()


async def test_what_is_no_http_is_counted(url: str, door: Door, a: Certificates, b: Certificates) -> None:
    host, _, port = url.removeprefix("https://").partition(":")
    context = client_context(b.authority.ca, *a.files("controller/c1"))
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(b"\x16\x03\x01 hello?\r\n\r\n")
        assert b"400" in await reader.readline()
    assert door.rejected[Rejection.MALFORMED] == 1
    writer.close()


async def test_peers_can_be_spoken_to_before_migrations_are_taken_up(
    domains: TwoDomains, a: Certificates, b: Certificates
) -> None:
    """What a restarted controller says first is said: its own doors open later."""
    controller = domains.controller("b")
    controller.domains.saying.doors.clear()
    table = DomainTable(
        id="a", gateway=gateway_of("b"), tunnel="tun0", url="https://127.0.0.1:1", listen="127.0.0.1:0",
        ca=str(a.authority.ca),
    )  # fmt: skip
    peers = Peers([table], (b.authority.ca, *b.files("controller/c1")), controller.domains)
    try:
        assert set(controller.domains.saying.doors) == {"a"}
    finally:
        await peers.stop()

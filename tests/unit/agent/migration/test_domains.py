"""Agents of two domains: those of each come in by a door of their own, and are known by its authority."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from retinue.agent.migration.peer import Transfer, secured
from retinue.hypervisor import HypervisorError
from retinue.protocol.migrations import FarRecord
from retinue.security.credentials import Credentials
from support.pki_files import Certificates

MOVE, FAR = "migration-1", FarRecord("a", "server1", "migration-7")
"""As the target counts it, and as its far end does."""


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("a"))


@pytest.fixture(scope="module")
def b(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("b"))


def end(server: str, believes: Certificates, shows: Certificates, party: str = "") -> Transfer:
    return secured(server, Credentials(believes.authority.ca, *shows.files(party or f"agent/{server}")))


@pytest.fixture
async def target(a: Certificates, b: Certificates) -> AsyncIterator[Transfer]:
    """The agent of server2 in domain b, with a door for domain a."""
    made = end("server2", b, b)
    await made.start("127.0.0.1")
    made.domains["a"] = end("server2", a, b)
    await made.domains["a"].start("127.0.0.1")
    made.towards(FAR).expect(MOVE, FAR.server)
    yield made
    await made.close()


async def test_an_agent_of_the_other_domain_brings_its_vm(
    a: Certificates, b: Certificates, target: Transfer
) -> None:
    source = end("server1", b, a)
    here = await source.connect(target.towards(FAR).address, MOVE, "server2")
    come = await target.towards(FAR).arrival(MOVE)
    await here.send_memory(b"a page")
    assert await come.receive() == b"a page"
    await here.close()
    await come.close()


async def test_a_server_of_the_same_name_at_home_is_another(
    a: Certificates, b: Certificates, target: Transfer
) -> None:
    """server1 of domain b is not server1 of domain a, at whichever door."""
    namesake = end("server1", b, b)
    for door in (target, target.towards(FAR)):
        with pytest.raises(HypervisorError):
            await namesake.connect(door.address, MOVE, "server2")
    assert not target.towards(FAR)._expected[MOVE][1].done()


async def test_an_agent_of_the_other_domain_has_no_way_in_by_our_own_door(
    a: Certificates, b: Certificates, target: Transfer
) -> None:
    target.expect("migration-2", "server1")
    with pytest.raises(HypervisorError):
        await end("server1", b, a).connect(target.address, "migration-2", "server2")
    assert not target._expected["migration-2"][1].done()


async def test_another_server_of_that_domain_is_not_expected(
    a: Certificates, b: Certificates, target: Transfer
) -> None:
    with pytest.raises(HypervisorError):
        await end("server3", b, a).connect(target.towards(FAR).address, MOVE, "server2")


def test_a_domain_that_is_not_configured_is_refused(tmp_path: Path) -> None:
    alone = Transfer("server2")
    assert alone.towards(None) is alone
    with pytest.raises(HypervisorError, match="knows no domain a"):
        alone.towards(FAR)

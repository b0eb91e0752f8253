"""An image of another domain: its chunks come from that domain's agents, by TLS, and one copy of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from retinue.agent.content.service import FarVisitors
from retinue.agent.content.store import make_base
from retinue.agent.content.wire import Word
from retinue.agent.migration.peer import Transfer, agent_of
from retinue.core.content import CHUNK_BYTES, Patience
from retinue.core.limits import MOST_FAR
from retinue.hypervisor import HypervisorError
from retinue.hypervisor.memory_channel import Channel
from retinue.protocol.images import ImageState, SignedManifest, domain_of
from retinue.security.contexts import client_context, server_context
from retinue.security.signatures import sign
from support.agents.content import ImageAgents
from support.content import image, some_bytes
from support.pki_files import Certificates

DATA = some_bytes(24, zeros=(3, 4), tail=9)
FETCHED = len(DATA) - 2 * CHUNK_BYTES
LONG = Patience(deadline=60.0, patience=30.0)
"""Nobody is asked for a second copy because the machine is busy."""


@dataclass
class Both:
    """Domain b publishes at server1, and hands on at cache1; domain a fetches."""

    pki: dict[str, Certificates]
    agents: dict[str, ImageAgents]

    def door(self, domain: str, server: str) -> Transfer:
        """Of a server, for the other domain."""
        its, other = self.pki[domain], self.pki["b" if domain == "a" else "a"]
        files = (other.authority.ca, *its.files(f"agent/{server}"))
        connecting = client_context(*files)
        connecting.check_hostname = False
        return Transfer(server, server_context(*files), connecting, agent_of)

    async def start(self, domain: str, server: str, *, cache: bool = False) -> None:
        agents, there = self.agents[domain], "b" if domain == "a" else "a"
        service = await agents.start(server, cache=cache)
        door = agents.transfers[server].domains[there] = self.door(domain, server)
        door.visitors = service.far(there)
        await door.start("127.0.0.1")

    def manifest(
        self, name: str, data: bytes, party: str = "manager/anna", domain: str = "b"
    ) -> SignedManifest:
        """Signed by somebody of that domain."""
        found, _ = image(name, data)
        certificate, key = self.pki[domain].files(party)
        at = int(certificate.stat().st_mtime)
        signed = SignedManifest(name, found.size, found.list_digest, at)
        return SignedManifest(
            name,
            found.size,
            found.list_digest,
            at,
            sign(signed.manifest.signed, key),
            certificate.read_text(),
        )

    async def publish(self, name: str, data: bytes) -> SignedManifest:
        """In domain b, by its manager."""
        b = self.agents["b"]
        await b.publish("server1", name, data)
        signed = self.manifest(name, data)
        b.controller.published[name] = (signed, "server1")
        b.services["server1"].store.images[name].signed = signed
        return signed

    def known_in_a(self, signed: SignedManifest, holder: str = "cache1") -> None:
        a, b = self.agents["a"], self.agents["b"]
        a.controller.published[signed.name] = (signed, "b/server1")
        a.controller.more_holders = {f"b/{holder}": b.transfers[holder].domains["a"].address}

    def sent(self, domain: str, server: str) -> int:
        return self.agents[domain].services[server].serving.sent


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificates]:
    return {domain: Certificates(tmp_path_factory.mktemp(domain)) for domain in "ab"}


@pytest.fixture
async def both(pki: dict[str, Certificates], tmp_path: Path) -> AsyncIterator[Both]:
    agents = {
        domain: ImageAgents(
            tmp_path / domain, pki[domain].authority.ca, LONG, {there: pki[there].authority.ca}
        )
        for domain, there in ("ab", "ba")
    }
    made = Both(pki, agents)
    await made.start("b", "server1")
    await made.start("b", "cache1", cache=True)
    yield made
    for one in agents.values():
        await one.close()


def content(agents: ImageAgents, server: str, name: str) -> bytes:
    store = agents.services[server].store
    return make_base(store, store.images[name]).read_bytes()


@contextlib.contextmanager
def nobody_told(agents: ImageAgents, server: str) -> Iterator[None]:
    yield
    assert not agents.services[server].reports.faults


async def test_two_servers_fetch_it_and_one_copy_comes_between_the_domains(both: Both) -> None:
    """Its chunks are in domain b alone. There the cache fetches what it is asked for, as for its own."""
    signed = await both.publish("d", DATA)
    for server in ("server1", "server2"):
        await both.start("a", server)
    both.known_in_a(signed)
    a = both.agents["a"]
    for server in ("server1", "server2"):
        a.order(server, "d", base=True)
    with nobody_told(a, "server1"), nobody_told(a, "server2"):
        for server in ("server1", "server2"):
            await a.controller.until(server, "d")
            assert content(a, server, "d") == DATA
    assert FETCHED <= both.sent("b", "cache1") < 1.7 * FETCHED
    assert both.sent("b", "server1") == FETCHED, "once, to the cache"
    assert a.services["server1"].store.images["d"].origin == "b/server1"
    assert domain_of(a.services["server1"].store.images["d"].origin) == "b"


async def test_a_cache_here_brings_one_copy_and_keeps_it(both: Both) -> None:
    signed = await both.publish("d", DATA)
    await both.start("a", "cache9", cache=True)
    await both.start("a", "server1")
    both.known_in_a(signed)
    a = both.agents["a"]
    far = a.controller.more_holders
    a.controller.more_holders = {}
    get = a.controller.get

    async def only_caches_are_told(path: str) -> dict[str, object]:
        a.controller.more_holders = far if path.endswith("server=cache9") else {}
        return await get(path)

    a.controller.get = only_caches_are_told  # type: ignore[method-assign]
    async with asyncio.timeout(60):
        while "cache9" not in a.controller.reports:
            a.controller.changed.clear()
            await a.controller.changed.wait()
    a.order("server1", "d")
    held = await a.controller.until("server1", "d")
    assert held["origins"] == {"cache9": FETCHED}
    assert both.sent("b", "cache1") == FETCHED
    assert content(a, "server1", "d") == DATA


@pytest.mark.parametrize(
    ("party", "domain"),
    [("manager/eve", "a"), ("agent/cache1", "b"), ("controller/c1", "b")],
    ids=["a manager of ours", "an agent there", "the controller there"],
)
async def test_only_a_manager_of_its_own_domain_vouches_for_it(both: Both, party: str, domain: str) -> None:
    await both.publish("d", DATA)
    await both.start("a", "server1")
    both.known_in_a(both.manifest("d", DATA, party, domain))
    a = both.agents["a"]
    a.order("server1", "d")
    failed = await a.controller.until("server1", "d", ImageState.FAILED)
    assert (
        "certificate is none of this authority's" in failed["reason"] or "only a manager" in failed["reason"]
    )
    assert "d" not in a.services["server1"].store.images


async def test_of_a_domain_that_the_agent_does_not_know_it_takes_nothing(both: Both) -> None:
    signed = await both.publish("d", DATA)
    await both.start("a", "server1")
    both.known_in_a(signed)
    a = both.agents["a"]
    a.controller.published["d"] = (signed, "c/server1")
    a.order("server1", "d")
    failed = await a.controller.until("server1", "d", ImageState.FAILED)
    assert "an image of domain c, from which this agent fetches none" in failed["reason"]
    with pytest.raises(HypervisorError, match="knows no domain c"):
        await a.transfers["server1"].open_anywhere("127.0.0.1:1", "c/server1")


async def asked(both: Both, party: str, domain: str, type: Word, **hello: str) -> dict[str, object]:
    """What the cache of domain b answers at its door for domain a."""
    files = (both.pki["b"].authority.ca, *both.pki[domain].files(party))
    context = client_context(*files)
    context.check_hostname = False
    host, _, port = both.agents["b"].transfers["cache1"].domains["a"].address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    channel = Channel(reader, writer)
    try:
        async with asyncio.timeout(30):
            await channel.send_message(type, **hello)
            return await channel.receive_message()
    finally:
        channel.abort()


async def test_nobody_of_another_domain_publishes_or_gets_what_is_not_ours(both: Both) -> None:
    signed = await both.publish("d", DATA)
    agent, of_d = "agent/server1", {"image": "d", "list": signed.list_digest}
    assert (await asked(both, agent, "a", type=Word.CONTENT, **of_d))["type"] == Word.ACCEPTED
    publishes = await asked(both, "manager/eve", "a", type=Word.PUBLISH, image="d")
    assert publishes["type"] == Word.REJECTED and "nobody publishes" in str(publishes["reason"])
    assert (await asked(both, agent, "a", type=Word.PUBLISH, image="d"))["type"] == Word.REJECTED
    assert (await asked(both, "manager/eve", "a", type=Word.CONTENT, **of_d))["type"] == Word.REJECTED
    assert (await asked(both, agent, "a", type=Word.CONTENT, image="e", list="0" * 64))["type"] == Word.ABSENT
    both.agents["b"].services["cache1"].store.images["d"].origin = "c/server1"
    assert (await asked(both, agent, "a", type=Word.CONTENT, **of_d))["type"] == Word.ABSENT, (
        "of a third domain"
    )
    with pytest.raises((HypervisorError, OSError)):  # Of our own authority: at this door it is none.
        await asked(both, agent, "b", type=Word.CONTENT, **of_d)


async def test_one_domain_uses_up_its_own_connections_alone(both: Both) -> None:
    signed = await both.publish("d", DATA)
    of_d = {"image": "d", "list": signed.list_digest}
    visitors = both.agents["b"].transfers["cache1"].domains["a"].visitors
    assert isinstance(visitors, FarVisitors)
    visitors._here = MOST_FAR
    refused = await asked(both, "agent/server1", "a", type=Word.CONTENT, **of_d)
    assert refused["type"] == Word.ABSENT and f"{MOST_FAR} of that domain" in str(refused["reason"])
    visitors._here = 0


async def test_where_its_agents_fetch_is_told_where_there_is_such_a_place(both: Both) -> None:
    """A controller of an older version knows no such field."""
    service = both.agents["b"].services["cache1"]
    assert set((await service.reports.report())["doors"]) == {"a"}
    both.agents["b"].transfers["cache1"].domains.clear()
    assert "doors" not in await service.reports.report()


@pytest.mark.parametrize("name", ["", "../d", "d\x1b[2J", "d\n", "x" * 10_000])
async def test_for_what_is_no_name_nobody_is_asked(both: Both, name: str) -> None:
    """The cache there would ask its controller, and write the name to its log."""
    controller, questions = both.agents["b"].controller, list[str]()
    get = controller.get

    async def heard(path: str) -> dict[str, object]:
        questions.append(path)
        return await get(path)

    controller.get = heard  # type: ignore[method-assign]
    answer = await asked(both, "agent/server1", "a", type=Word.CONTENT, image=name, list="0" * 64)
    assert answer["type"] == Word.ABSENT and not questions

"""Who gets at a VM's memory on its way: real TLS over loopback, and everybody who should not.

Each one is rejected, counted by what it showed, and in nobody's way: the migration that is expected comes in
after.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from retinue.agent.migration import peer
from retinue.agent.migration.peer import Transfer, secured
from retinue.core.limits import MOST_STRANGERS
from retinue.host.errors import HostError
from retinue.hypervisor import Channel, ChannelError
from retinue.security.contexts import client_context, server_context
from retinue.security.credentials import Credentials
from retinue.security.listener.rejections import Rejection
from support.pki_files import Certificates

MOVE = "migration-1"
PATIENCE = 60.0


def end(pki: Certificates, server: str, party: str) -> Transfer:
    """The agent of a server, with the certificate of this party."""
    return secured(server, Credentials(pki.authority.ca, *pki.files(party)))


@pytest.fixture
async def target(pki: Certificates) -> AsyncIterator[Transfer]:
    """The agent of server2, which expects a migration from server1."""
    made = end(pki, "server2", "agent/server2")
    await made.start("127.0.0.1")
    made.expect(MOVE, "server1")
    yield made
    await made.close()


async def comes_in(pki: Certificates, target: Transfer) -> None:
    """The migration that is expected is let in, and what is sent arrives."""
    here = await end(pki, "server1", "agent/server1").connect(target.address, MOVE, "server2")
    come = await target.arrival(MOVE)
    await here.send_memory(b"a page")
    assert await come.receive() == b"a page"
    await here.close()
    await come.close()


async def test_a_disk_is_taken_from_the_sources_agent_alone_and_given_to_the_targets(
    pki: Certificates, strangers: Certificates, target: Transfer
) -> None:
    """Before the memory and after it, a connection of its own is asked as that one is."""
    taken: list[bytes | dict[str, object]] = []

    async def take(number: int, channel: Channel) -> None:
        taken.append(await channel.receive())

    target.expect(MOVE, "server1", take)
    for server, party in (("server3", "agent/server3"), ("server1", "agent/server3")):
        with pytest.raises(HostError, match="does not let the migration in"):
            await end(pki, server, party).connect_disk(target.address, MOVE, "server2", 1)
    with pytest.raises(HostError):
        await end(strangers, "server1", "agent/server1").connect_disk(target.address, MOVE, "server2", 1)
    with pytest.raises(HostError, match="is the agent of another server than server3"):
        await end(pki, "server1", "agent/server1").connect_disk(target.address, MOVE, "server3", 1)
    assert taken == []
    disk = await end(pki, "server1", "agent/server1").connect_disk(target.address, MOVE, "server2", 1)
    await disk.send_memory(b"blocks")
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ChannelError, match="hung up"):
            await disk.receive()
    await disk.close()
    assert taken == [b"blocks"]


def stranger(pki: Certificates, files: tuple[Path, Path] | None) -> ssl.SSLContext:
    """Of one who believes our authority, and shows this."""
    context = client_context(pki.authority.ca, *(files or ()))
    context.check_hostname = False
    return context


async def dial(target: Transfer, tls: ssl.SSLContext | None = None) -> Channel:
    host, _, port = target.address.rpartition(":")
    return Channel(*await asyncio.open_connection(host, int(port), ssl=tls))


async def rejected(target: Transfer, reason: str, times: int = 1) -> None:
    async with asyncio.timeout(PATIENCE):
        while target.rejected[Rejection(reason)] < times:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert target.rejected == {reason: times}


async def hung_up(channel: Channel) -> None:
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ChannelError):
            await channel.receive()
    await channel.close()


# ---- who does not get through the handshake ----


async def test_nobody_without_a_certificate(pki: Certificates, target: Transfer) -> None:
    """TLS 1.3 tells a client only afterwards: what it says in between is not heard."""
    channel = await dial(target, stranger(pki, None))
    await channel.send_message("migration", migration=MOVE, source="server1")
    await hung_up(channel)
    await rejected(target, "tls")
    await comes_in(pki, target)


@pytest.mark.parametrize("party", ["agent/server1", "agent/server2", "manager/boss"])
async def test_nobody_with_another_authoritys_certificate(
    pki: Certificates, strangers: Certificates, target: Transfer, party: str
) -> None:
    channel = await dial(target, stranger(pki, strangers.files(party)))
    await channel.send_message("migration", migration=MOVE, source="server1")
    await hung_up(channel)
    await rejected(target, "tls")
    await comes_in(pki, target)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"J\0\0\0\x02{}"], ids=["", "http", "word"])
async def test_nobody_in_plain_text(pki: Certificates, target: Transfer, sent: bytes) -> None:
    host, _, port = target.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    writer.write_eof()
    async with asyncio.timeout(PATIENCE):
        assert b"J" not in await reader.read()
    writer.close()
    await rejected(target, "tls")
    await comes_in(pki, target)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_nobody_by_an_old_tls(pki: Certificates, target: Transfer) -> None:
    context = stranger(pki, pki.files("agent/server1"))
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await dial(target, context)
    await rejected(target, "tls")
    await comes_in(pki, target)


async def test_who_is_silent_in_the_handshake_is_not_waited_for(
    pki: Certificates, target: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(peer, "HANDSHAKE_LIMIT", 0.05)
        await hung_up(await dial(target))
    await rejected(target, "tls")
    await comes_in(pki, target)


async def test_a_crowd_in_the_handshake_keeps_nobody_out(pki: Certificates, target: Transfer) -> None:
    crowd = [await dial(target) for _ in range(MOST_STRANGERS + 6)]
    await rejected(target, "crowded", 6)
    await comes_in(pki, target)
    for channel in crowd:
        await channel.close()


async def test_an_agent_that_stops_waits_for_no_handshake(pki: Certificates) -> None:
    target = end(pki, "server2", "agent/server2")
    await target.start("127.0.0.1")
    channel = await dial(target)
    # One that came later is through: so the first has been taken in.
    target.expect(MOVE, "server1")
    await comes_in(pki, target)
    async with asyncio.timeout(PATIENCE):
        await target.close()
    await hung_up(channel)
    assert target.rejected == {}


# ---- who gets through, and no further ----


@pytest.mark.parametrize(
    ("party", "reason"),
    [
        ("switch/server1", "identity"),
        ("switch/edge1", "identity"),
        ("controller/c1", "identity"),
        ("manager/server1", "identity"),
        ("reader/server1", "identity"),
        ("mobility/server1", "identity"),
        ("agent/server3", "wrong_server"),
        ("agent/server2", "wrong_server"),
        ("agent/rack3+server3+server4", "wrong_server"),
    ],
)
async def test_who_is_not_the_sources_agent_is_rejected_whatever_it_says(
    pki: Certificates, target: Transfer, party: str, reason: str
) -> None:
    """Among them an agent of another server, and the target's own certificate, shown back to it."""
    with pytest.raises(HostError, match="the agent of server2 does not let the migration in"):
        await end(pki, "server1", party).connect(target.address, MOVE, "server2")
    await rejected(target, reason)
    await comes_in(pki, target)


async def test_an_agent_that_says_who_it_is_is_rejected_as_well(pki: Certificates, target: Transfer) -> None:
    with pytest.raises(HostError, match="does not let the migration in"):
        await end(pki, "server3", "agent/server3").connect(target.address, MOVE, "server2")
    await rejected(target, "wrong_server")
    await comes_in(pki, target)


async def test_the_right_agent_with_a_move_nobody_expects(pki: Certificates, target: Transfer) -> None:
    source = end(pki, "server1", "agent/server1")
    for name in ("migration-2", "", "migration-10"):
        with pytest.raises(HostError, match="does not let the migration in"):
            await source.connect(target.address, name, "server2")
    await rejected(target, "not_expected", 3)
    await comes_in(pki, target)
    # It has come in, once; and when it is over it does not come again.
    for _ in range(2):
        with pytest.raises(HostError, match="does not let the migration in"):
            await source.connect(target.address, MOVE, "server2")
        target.forget(MOVE)
    await rejected(target, "not_expected", 5)


async def test_a_move_in_progress_is_not_disturbed_by_another_who_claims_it(
    pki: Certificates, target: Transfer
) -> None:
    here = await end(pki, "server1", "agent/server1").connect(target.address, MOVE, "server2")
    come = await target.arrival(MOVE)
    for party in ("agent/server1", "agent/server3", "switch/server1"):
        with pytest.raises(HostError, match="does not let the migration in"):
            await end(pki, "server1", party).connect(target.address, MOVE, "server2")
    await here.send_memory(b"a page")
    assert await come.receive() == b"a page"
    assert target.rejected.total() == 3
    await here.close()
    await come.close()


# ---- to whom memory is given ----


@pytest.mark.parametrize(
    ("party", "reason"),
    [
        ("agent/server3", "is the agent of another server than server2"),
        ("controller/c1", "not an agent, but controller c1"),
        ("switch/server2", "not an agent, but switch server2|cannot be reached"),
        ("manager/server2", "not an agent, but manager server2|cannot be reached"),
    ],
)
async def test_the_source_says_nothing_to_who_is_not_the_targets_agent(
    pki: Certificates, party: str, reason: str
) -> None:
    heard = await served(server_context(pki.authority.ca, *pki.files(party)), pki, reason)
    assert heard == b""


async def test_the_source_says_nothing_to_another_authoritys_agent(
    pki: Certificates, strangers: Certificates
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*strangers.files("agent/server2"))
    assert await served(context, pki, "cannot be reached") == b""


async def served(context: ssl.SSLContext, pki: Certificates, reason: str) -> bytes:
    """What an impostor at the target's address hears before the source gives up, for this reason."""
    heard = bytearray()
    ended = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read())
        writer.close()
        ended.set()

    source = end(pki, "server1", "agent/server1")
    async with await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context) as server:
        host, port = server.sockets[0].getsockname()
        with pytest.raises(HostError, match=reason):
            await source.connect(f"{host}:{port}", MOVE, "server2")
        if "cannot be reached" not in reason:
            async with asyncio.timeout(PATIENCE):
                await ended.wait()
    return bytes(heard)

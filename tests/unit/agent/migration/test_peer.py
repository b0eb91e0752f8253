"""The connection between two agents: who is let in, and who is rejected."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from retinue.agent.migration.peer import Transfer, secured
from retinue.host.errors import HostError
from retinue.hypervisor import Channel
from retinue.security.authority import Authority
from retinue.security.contexts import server_context
from retinue.security.credentials import Credentials
from retinue.security.identity import PeerRole


@pytest.fixture
async def target() -> AsyncIterator[Transfer]:
    made = Transfer("server2")
    await made.start("127.0.0.1")
    yield made
    await made.close()


async def hung_up(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(60):
        return await reader.read()


async def test_an_expected_move_is_let_in_and_both_ends_can_talk(target: Transfer) -> None:
    target.expect("migration-1", "server1")
    there = asyncio.create_task(target.arrival("migration-1"))
    here = await Transfer("server1").connect(target.address, "migration-1", "server2")
    come = await there
    await here.send_memory(b"pages")
    await here.send_message("handed_over")
    assert [await come.receive(), await come.receive()] == [b"pages", {"type": "handed_over"}]
    await come.send_message("running", at=1.5)
    assert await here.receive_message() == {"type": "running", "at": 1.5}
    assert target.rejected == {}
    await here.close()
    await come.close()


async def test_an_agent_of_a_newer_release_is_let_in_whatever_it_says_besides(target: Transfer) -> None:
    target.expect("migration-1", "server1")
    newer = Transfer("server1")
    here = await newer._connect(target.address, "migration-1", "server2", type="migrate", of_tomorrow=[1])
    come = await target.arrival("migration-1")
    await here.send_message("handed_over", of_tomorrow={})
    assert (await come.receive_message())["type"] == "handed_over"
    assert target.rejected == {}
    await here.close()
    await come.close()


async def test_moves_under_way_at_the_same_time_are_kept_apart(target: Transfer) -> None:
    for number in (1, 2):
        target.expect(f"migration-{number}", f"server{number * 10}")
    second = await Transfer("server20").connect(target.address, "migration-2", "server2")
    first = await Transfer("server10").connect(target.address, "migration-1", "server2")
    for number, here in ((1, first), (2, second)):
        await here.send_message(f"word {number}")
        come = await target.arrival(f"migration-{number}")
        assert await come.receive_message() == {"type": f"word {number}"}
        await here.close()
        await come.close()


async def test_who_brings_what_is_not_expected_is_rejected(target: Transfer) -> None:
    target.expect("migration-1", "server1")
    with pytest.raises(HostError, match="the agent of server2 does not let the migration in"):
        await Transfer("server1").connect(target.address, "migration-2", "server2")
    with pytest.raises(HostError, match="does not let"):
        await Transfer("server3").connect(target.address, "migration-1", "server2")
    assert target.rejected == {"not_expected": 1, "wrong_server": 1}
    # And neither is in the way of the one that is expected.
    await (await Transfer("server1").connect(target.address, "migration-1", "server2")).close()


async def test_a_move_comes_in_once(target: Transfer) -> None:
    target.expect("migration-1", "server1")
    first = await Transfer("server1").connect(target.address, "migration-1", "server2")
    with pytest.raises(HostError, match="does not let"):
        await Transfer("server1").connect(target.address, "migration-1", "server2")
    come = await target.arrival("migration-1")
    await first.send_message("still here")
    assert await come.receive_message() == {"type": "still here"}
    await first.close()
    await come.close()


async def test_a_move_whose_connection_is_broken_comes_in_once_more_in_place_of_that(
    target: Transfer,
) -> None:
    target.expect("migration-1", "server1")
    source = Transfer("server1")
    with pytest.raises(HostError, match="does not let"):  # It has not come in at all.
        await source.connect_again(target.address, "migration-1", "server2")
    here = await source.connect(target.address, "migration-1", "server2")
    there = await target.arrival("migration-1")
    with pytest.raises(HostError, match="does not let"):
        await Transfer("server3").connect_again(target.address, "migration-1", "server2")
    waiting = asyncio.create_task(target.another_arrival("migration-1"))
    again = await source.connect_again(target.address, "migration-1", "server2")
    come = await waiting
    async with asyncio.timeout(60):
        with pytest.raises(HostError, match="hung up"):
            await there.receive()
    await again.send_message("goes on")
    assert await come.receive_message() == {"type": "goes on"}
    unused = [await source.connect_again(target.address, "migration-1", "server2") for _ in range(2)]
    with pytest.raises(HostError, match="hung up"):
        await unused[0].receive()
    target.forget("migration-1")
    with pytest.raises(HostError, match="hung up"):
        await unused[1].receive()
    with pytest.raises(HostError, match="does not let"):
        await source.connect_again(target.address, "migration-1", "server2")
    with pytest.raises(HostError, match="is over"):
        await target.another_arrival("migration-1")
    for channel in (here, again, come, *unused):
        await channel.close()


async def test_a_move_that_had_come_in_at_the_agent_before_comes_in_once_more_and_from_nobody_else(
    target: Transfer,
) -> None:
    source = Transfer("server1")
    with pytest.raises(HostError, match="does not let"):  # Nobody has told this agent of it yet.
        await source.connect_again(target.address, "migration-1", "server2")
    target.expect_again("migration-1", "server1")
    for connect, who in ((source.connect, source), (source.connect_again, Transfer("server3"))):
        brings = connect if who is source else who.connect_again
        with pytest.raises(HostError, match="does not let"):
            await brings(target.address, "migration-1", "server2")
    for word in ("goes on", "and on"):
        here = await source.connect_again(target.address, "migration-1", "server2")
        come = await target.another_arrival("migration-1")
        await here.send_message(word)
        assert await come.receive_message() == {"type": word}
    target.forget("migration-1")
    with pytest.raises(HostError, match="does not let"):
        await source.connect_again(target.address, "migration-1", "server2")
    await here.close()
    await come.close()


async def test_a_move_that_is_off_is_not_let_in(target: Transfer) -> None:
    target.expect("migration-1", "server1")
    waiting = asyncio.create_task(target.arrival("migration-1"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    with pytest.raises(HostError, match="does not let"):
        await Transfer("server1").connect(target.address, "migration-1", "server2")
    target.forget("migration-1")
    target.forget("migration-1")
    with pytest.raises(HostError, match="does not let"):
        await Transfer("server1").connect(target.address, "migration-1", "server2")
    # Asked for anew, it comes in.
    target.expect("migration-1", "server1")
    await (await Transfer("server1").connect(target.address, "migration-1", "server2")).close()


async def test_a_move_that_is_called_off_as_it_comes_in_is_not_let_in(
    target: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.expect("migration-1", "server1")
    waiting = asyncio.create_task(target.arrival("migration-1"))
    send = Channel.send_message

    async def called_off(channel: Channel, type: str, **more: str) -> None:
        if type == "accepted":
            waiting.cancel()
            await asyncio.wait({waiting})
        await send(channel, type, **more)

    monkeypatch.setattr(Channel, "send_message", called_off)
    here = await Transfer("server1").connect(target.address, "migration-1", "server2")
    async with asyncio.timeout(60):
        with pytest.raises(HostError, match="hung up"):
            await here.receive_message()
    await here.close()
    assert target.rejected == {"called_off": 1}


async def test_a_disk_comes_by_a_connection_of_its_own_from_the_same_server(target: Transfer) -> None:
    taken: list[tuple[int, object]] = []

    async def take(number: int, channel: Channel) -> None:
        taken.append((number, await channel.receive()))

    with pytest.raises(HostError, match="does not let"):
        await Transfer("server1").connect_disk(target.address, "migration-1", "server2", 1)
    target.expect("migration-1", "server1", take)
    with pytest.raises(HostError, match="does not let"):
        await Transfer("server3").connect_disk(target.address, "migration-1", "server2", 1)
    memory = await Transfer("server1").connect(target.address, "migration-1", "server2")
    come = await target.arrival("migration-1")
    disk = await Transfer("server1").connect_disk(target.address, "migration-1", "server2", 2)
    await disk.send_memory(b"blocks")
    async with asyncio.timeout(60):
        with pytest.raises(HostError, match="hung up"):
            await disk.receive()
    assert taken == [(2, b"blocks")]
    await memory.send_message("still here")
    assert await come.receive_message() == {"type": "still here"}
    target.forget("migration-1")
    with pytest.raises(HostError, match="does not let"):
        await Transfer("server1").connect_disk(target.address, "migration-1", "server2", 1)
    assert target.rejected == {"not_expected": 2, "wrong_server": 1}
    for channel in (memory, come, disk):
        await channel.close()


async def test_a_disk_that_a_vm_does_not_have_is_not_taken(target: Transfer) -> None:
    target.expect("migration-1", "server1")
    disk = await Transfer("server1").connect_disk(target.address, "migration-1", "server2", 1)
    async with asyncio.timeout(60):
        with pytest.raises(HostError, match="hung up"):
            await disk.receive()
    assert target.rejected.total() == 1
    await disk.close()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "malformed"),
        (b"J\0\0\0\x05[1,2,", "malformed"),
        (b"J\0\0\0\x05[1,2]", "malformed"),
        (b"J\0\0\0\x02{}", "malformed"),
        (b"M\0\0\0\x01x", "malformed"),
        (b"E\0\0\0\0", "malformed"),
        (b'J\0\0\0\x13{"type": "migrate"}', "not_expected"),
        (b'J\0\0\0\x2e{"type": "come", "migration": "migration-1"}  ', "not_expected"),
        (b'J\0\0\0\x29{"type": "migrate", "migration": ["a"]}  ', "not_expected"),
        (b"W\xff\xff\xff\xff", "malformed"),
        (b"J\0\0\xff\xff" + b"[" * 0xFFFF, "malformed"),
        (b"J\0\0", "closed"),
        (b"", "closed"),
    ],
)
async def test_garbage_is_counted_and_disturbs_nobody(target: Transfer, sent: bytes, reason: str) -> None:
    target.expect("migration-1", "server1")
    host, _, port = target.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    writer.write_eof()
    assert await hung_up(reader) == b""
    writer.close()
    assert target.rejected == {reason: 1}
    await (await Transfer("server1").connect(target.address, "migration-1", "server2")).close()


async def test_what_garbage_says_does_not_make_the_count_grow(target: Transfer) -> None:
    host, _, port = target.address.rpartition(":")
    for byte in range(20):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"X\0\0\0" + bytes([byte]))
        assert await hung_up(reader) == b""
        writer.close()
    assert target.rejected == {"malformed": 20}


async def test_who_says_nothing_is_rejected_after_a_while(
    target: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.agent.migration.peer.HELLO_LIMIT", 0.01)
    host, _, port = target.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    assert await hung_up(reader) == b""
    writer.close()
    assert target.rejected == {"timeout": 1}


# ---- the source, and a target that is not as it should be ----


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:port", "127.0.0.1:70000"])
async def test_an_address_that_is_none_is_named(address: str) -> None:
    with pytest.raises(HostError, match="the agent of server2 cannot be reached at " + address):
        await Transfer("server1").connect(address, "migration-1", "server2")


async def test_a_target_that_nobody_listens_at_is_named(target: Transfer) -> None:
    await target.close()
    with pytest.raises(HostError, match=f"server2 cannot be reached at {target.address}"):
        await Transfer("server1").connect(target.address, "migration-1", "server2")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "sends what is not agreed"),
        (b"", "hung up"),
        (b'J\0\0\0\x10{"type": "go"}  ', "does not expect the migration"),
        (b'J\0\0\0\x10{"type": "go"}  ', "the agent of server2"),
        (None, "the agent of server2 says nothing"),
    ],
)
async def test_another_service_at_the_targets_address_is_no_target(
    answer: bytes | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        if answer is not None:
            writer.write(answer)
            writer.close()
        else:
            monkeypatch.setattr("retinue.agent.migration.peer.HELLO_LIMIT", 0)
            await reader.read()
            writer.close()
        ended.set()

    if answer is None:
        monkeypatch.setattr("retinue.agent.migration.peer.HELLO_LIMIT", 0.05)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        with pytest.raises(HostError, match=reason):
            await Transfer("server1").connect(f"{host}:{port}", "migration-1", "server2")
        async with asyncio.timeout(60):
            await ended.wait()  # The connection is not left open.


async def test_an_end_that_is_closed_lets_nobody_wait(target: Transfer) -> None:
    target.expect("migration-1", "server1")
    waiting = asyncio.create_task(target.arrival("migration-1"))
    await asyncio.sleep(0)
    await target.close()
    await asyncio.wait({waiting}, timeout=60)
    assert waiting.cancelled()


async def test_a_target_has_an_address_with_an_ipv6_host_in_brackets() -> None:
    target = Transfer("server2")
    await target.start("::1")
    try:
        assert target.address.startswith("[::1]:")
        target.expect("migration-1", "server1")
        here = await Transfer("server1").connect(target.address, "migration-1", "server2")
        assert isinstance(here, Channel)
        await here.close()
    finally:
        await target.close()


# ---- with certificates ----


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("pki"))


def certificate(authority: Authority, party: str) -> Credentials:
    """Of a party written ROLE/NAME, or ROLE/NAME+NAME for several names."""
    word, _, names = party.partition("/")
    role, parts = PeerRole(word), names.split("+")
    # Where it serves is not what an agent is known by.
    serves = ["192.0.2.99"] if role in (PeerRole.AGENT, PeerRole.CONTROLLER) else []
    made = authority.issue(role, parts[0], names=parts, addresses=serves, again=True)
    return Credentials(authority.ca, made.file, made.key)


def shows(authority: Authority, server: str, party: str) -> Transfer:
    """The end of a server that shows the certificate of this party."""
    return secured(server, certificate(authority, party))


@pytest.fixture
async def safe(authority: Authority) -> AsyncIterator[Transfer]:
    made = shows(authority, "server2", "agent/server2")
    await made.start("127.0.0.1")
    made.expect("migration-1", "server1")
    yield made
    await made.close()


@pytest.mark.parametrize("party", ["agent/server1", "agent/rack1+server1+server3"])
async def test_an_agent_brings_its_own_servers_vm(authority: Authority, safe: Transfer, party: str) -> None:
    here = await shows(authority, "server1", party).connect(safe.address, "migration-1", "server2")
    come = await safe.arrival("migration-1")
    await here.send_memory(bytes(1 << 20))
    await here.send_message("handed_over")
    assert len(await come.receive()) == 1 << 20
    assert await come.receive_message() == {"type": "handed_over"}
    await here.close()
    await come.close()


@pytest.mark.parametrize(
    ("party", "rejected"),
    [
        ("agent/server3", "wrong_server"),
        ("manager/server1", "identity"),
        ("switch/server1", "identity"),
    ],
)
async def test_who_says_it_is_another_is_rejected(
    authority: Authority, safe: Transfer, party: str, rejected: str
) -> None:
    with pytest.raises(HostError, match="the agent of server2 does not let the migration in"):
        await shows(authority, "server1", party).connect(safe.address, "migration-1", "server2")
    assert safe.rejected == {rejected: 1}
    here = await shows(authority, "server1", "agent/server1").connect(safe.address, "migration-1", "server2")
    await here.close()


async def test_who_shows_nothing_or_speaks_plainly_is_rejected(authority: Authority, safe: Transfer) -> None:
    unknown = Credentials(authority.ca).context()
    unknown.check_hostname = False
    nobody = Transfer("server1", connecting=unknown, servers_of=lambda _: ["server2"])
    for source in (nobody, Transfer("server1")):
        with pytest.raises(HostError):
            await source.connect(safe.address, "migration-1", "server2")
    here = await shows(authority, "server1", "agent/server1").connect(safe.address, "migration-1", "server2")
    await here.close()


async def test_a_vm_is_not_brought_to_another_server_than_its_target(
    authority: Authority, safe: Transfer
) -> None:
    source = shows(authority, "server1", "agent/server1")
    with pytest.raises(HostError, match="is the agent of another server than server4"):
        await source.connect(safe.address, "migration-1", "server4")
    controller = certificate(authority, "controller/c1")
    assert controller.ca
    assert controller.certificate
    assert controller.key
    serves = server_context(controller.ca, controller.certificate, controller.key)
    async with await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=serves
    ) as other:
        host, port = other.sockets[0].getsockname()
        with pytest.raises(HostError, match="not an agent, but controller c1"):
            await source.connect(f"{host}:{port}", "migration-1", "server2")


@pytest.mark.parametrize("address", ["127.0.0.1:22", "localhost:22", "0.0.0.0:7800", "[::1]:7800"])
async def test_a_source_does_not_knock_at_its_own_doors(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the target's report leads; and what is behind the door is told to nobody."""
    source = Transfer("server1")
    source.address = "192.0.2.4:7800"

    async def never(*_: object, **__: object) -> None:
        raise AssertionError("it has gone there")

    monkeypatch.setattr(asyncio, "open_connection", never)
    with pytest.raises(HostError) as told:
        await source.connect(address, "migration-1", "server2")
    assert str(told.value) == f"the agent of server2 cannot be reached at {address}"


async def test_a_disk_of_a_move_that_is_called_off_as_it_comes_in_is_not_taken(
    target: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.expect("migration-1", "server1")
    send = Channel.send_message

    async def called_off(channel: Channel, type: str, **more: str) -> None:
        if type == "accepted":
            target.forget("migration-1")
        await send(channel, type, **more)

    monkeypatch.setattr(Channel, "send_message", called_off)
    disk = await Transfer("server1").connect_disk(target.address, "migration-1", "server2", 1)
    async with asyncio.timeout(60):
        with pytest.raises(HostError, match="hung up"):
            await disk.receive()
    await disk.close()
    assert target.rejected == {"called_off": 1}

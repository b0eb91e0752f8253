"""A connection and the listener against peers that answer well, late, wrongly, or not at all."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from retinue.southbound.ovsdb import (
    Connection,
    ConnectionLostError,
    OvsdbError,
    OvsdbListener,
    ProtocolError,
    connect,
)
from retinue.southbound.ovsdb import client as client_module
from support import virtual_time
from support.fakes.ovsdb_peer import PATIENCE, OvsdbPeer, pair


async def test_a_call_gets_its_own_answer_whatever_the_order() -> None:
    connection, peer = await pair()
    first, second = (asyncio.create_task(connection.call("m", [n])) for n in (1, 2))
    one, two = await peer.expect("m"), await peer.expect("m")
    assert [one["params"], two["params"]] == [[1], [2]]
    peer.send({"id": two["id"], "result": "two", "error": None})
    peer.send({"id": one["id"], "result": "one", "error": None})
    assert [await first, await second] == ["one", "two"]
    connection.close()
    await peer.gone()


async def test_echo_is_answered_and_other_requests_are_rejected() -> None:
    connection, peer = await pair()
    peer.send({"method": "echo", "params": ["x", 1], "id": "echo"}, {"method": "odd", "params": [], "id": 5})
    assert await peer.read() == {"id": "echo", "result": ["x", 1], "error": None}
    assert await peer.read() == {"id": 5, "result": None, "error": "unknown method"}
    assert connection.ignored == 1
    connection.close()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("unknown database", "unknown database"),
        ({"error": "syntax error", "details": "no {"}, "syntax error: no {"),
    ],
)
async def test_an_error_reply_says_what_the_server_said(error: Any, text: str) -> None:
    connection, peer = await pair()
    call = asyncio.create_task(connection.call("m", []))
    request = await peer.expect("m")
    peer.send({"id": request["id"], "result": None, "error": error})
    with pytest.raises(OvsdbError) as caught:
        await call
    assert str(caught.value) == text
    assert connection.is_open
    connection.close()


@pytest.mark.parametrize(
    ("result", "operation"),
    [
        ([{}, {"error": "constraint violation", "details": "why"}], 1),
        ([{"error": "constraint violation", "details": "why"}, None], 0),
        ([{}, {}, {"error": "constraint violation", "details": "why"}], None),
    ],
)
async def test_a_failed_transaction_names_its_operation(result: Any, operation: int | None) -> None:
    connection, peer = await pair()
    call = asyncio.create_task(connection.transact("db", [{"op": "a"}, {"op": "b"}]))
    request = await peer.answer("transact", result)
    assert request["params"] == ["db", {"op": "a"}, {"op": "b"}]
    with pytest.raises(OvsdbError, match="constraint violation: why") as caught:
        await call
    assert caught.value.operation == operation
    connection.close()


@pytest.mark.parametrize("result", [None, {}, [{}], [{}, 3]])
async def test_a_transaction_answered_with_nonsense_closes_the_connection(result: Any) -> None:
    connection, peer = await pair()
    call = asyncio.create_task(connection.transact("db", [{"op": "a"}, {"op": "b"}]))
    await peer.answer("transact", result)
    with pytest.raises(ProtocolError):
        await call
    assert isinstance(await connection.closed(), ProtocolError)
    await peer.gone()


NONSENSE = [
    b"HTTP/1.1 200 OK\r\n",
    b'{"id":99,"result":{}}',
    b'{"id":"x","result":{}}',
    b'{"id":true,"result":{}}',
    b'{"method":"update","params":{},"id":null}',
    b'{"method":7}',
    b'{"id":1,"result":nul}',
    b'{"id":1,"result":"' + b"x" * (2 << 20),
]


@pytest.mark.parametrize("sent", NONSENSE, ids=lambda s: repr(s[:24]))
async def test_nonsense_closes_the_connection_and_fails_the_waiting_calls(sent: bytes) -> None:
    connection, peer = await pair()
    call = asyncio.create_task(connection.call("m", []))
    await peer.expect("m")
    peer.writer.write(sent)
    with pytest.raises(ProtocolError, match=r"^peer: "):
        await call
    assert not connection.is_open
    await peer.gone()
    with pytest.raises(ProtocolError):
        await connection.call("m", [])


async def test_the_full_size_is_allowed_only_after_a_valid_reply() -> None:
    connection, peer = await pair(limit=4 << 20)
    large = {"id": 2, "result": "x" * (2 << 20), "error": None}
    first = asyncio.create_task(connection.call("m", []))
    await peer.answer("m", 1)
    assert await first == 1
    second = asyncio.create_task(connection.call("m", []))
    await peer.expect("m")
    peer.send(large)
    assert await second == large["result"]
    connection.close()


async def test_a_late_answer_is_no_fault() -> None:
    connection, peer = await pair()
    with pytest.raises(TimeoutError, match=r"no answer to slow in 0\.01 s"):
        await connection.call("slow", [], 0.01)
    await peer.answer("slow", "late")
    call = asyncio.create_task(connection.call("m", []))
    await peer.answer("m", "in time")
    assert await call == "in time"
    connection.close()


async def test_the_peers_leaving_fails_the_waiting_calls() -> None:
    connection, peer = await pair()
    call = asyncio.create_task(connection.call("m", []))
    await peer.expect("m")
    peer.writer.close()
    with pytest.raises(ConnectionLostError, match="the peer closed"):
        await call
    assert isinstance(await connection.closed(), ConnectionLostError)


async def test_a_silent_peer_is_probed_then_given_up() -> None:
    connection, peer = await pair(probe=60)
    virtual_time.pass_over(61)
    before = connection._heard
    await peer.answer("echo", [])
    while connection._heard == before:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert connection.is_open
    virtual_time.pass_over(61)
    await peer.expect("echo")
    virtual_time.pass_over(61)
    async with asyncio.timeout(PATIENCE):
        assert "nothing came from the peer" in str(await connection.closed())
    await peer.gone()


async def test_a_peer_that_never_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "UNREAD_LIMIT", 1 << 20)
    connection, peer = await pair()
    text = "x" * 100_000
    for n in range(50):
        peer.send({"method": "echo", "params": [text], "id": n})
    async with asyncio.timeout(PATIENCE):
        assert "unread" in str(await connection.closed())
    peer.close()


@pytest.mark.parametrize("endpoint", ["", "tcp", "tcp:host", "tcp:host:port", "udp:h:1", "unix:", "ssl:h:1"])
async def test_an_endpoint_of_no_known_form_is_rejected(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"is not tcp:HOST:PORT|TLS needs"):
        await connect(endpoint)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"SSH-2.0-x\r\n", ProtocolError),
        (b'{"id":1,"result":7,"error":null}', ProtocolError),
        (b"", TimeoutError),
    ],
)
async def test_connecting_to_what_is_no_ovsdb_server_fails_and_says_so(
    tmp_path: Path, sent: bytes, error: type[Exception]
) -> None:
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        peer = OvsdbPeer(reader, writer)
        if not sent:
            await peer.expect("list_dbs")
            virtual_time.pass_over(61)
        await peer.gone()
        left.set()

    path = str(tmp_path / "sock")
    server = await asyncio.start_unix_server(serve, path)
    with pytest.raises(error, match=f"unix:{path}: "):
        await connect(f"unix:{path}", timeout=60)
    async with asyncio.timeout(PATIENCE):
        await left.wait()
    server.close()


# ---- the listener ----


class Served:
    """A listener whose handler makes one call and then waits until the connection ends."""

    def __init__(self, **options: Any) -> None:
        self.listener = OvsdbListener(self.handle, **options)
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.port = 0

    async def handle(self, connection: Connection) -> None:
        self.answers.put_nowait(await connection.call("get_schema", ["db"]))
        await connection.closed()

    async def dial(self) -> OvsdbPeer:
        return OvsdbPeer(*await asyncio.open_connection("127.0.0.1", self.port))

    async def good_peer(self) -> OvsdbPeer:
        peer = await self.dial()
        await peer.answer("list_dbs", ["db"])
        await peer.answer("get_schema", "schema")
        async with asyncio.timeout(PATIENCE):
            assert await self.answers.get() == "schema"
        return peer


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served(proof_timeout=60.0, unproved_limit=3, probe=None)
    served.port = await served.listener.start("127.0.0.1", 0)
    yield served
    await served.listener.stop()


async def test_a_peer_that_proves_itself_is_handed_over_and_closed_on_stop(served: Served) -> None:
    peer = await served.good_peer()
    assert (served.listener.accepted, served.listener.rejected.total()) == (1, 0)
    await served.listener.stop()
    await peer.gone()


async def test_bad_peers_are_rejected_by_reason_and_good_ones_never_notice(served: Served) -> None:
    good = await served.good_peer()
    garbage, liar, silent = [await served.dial() for _ in range(3)]
    garbage.writer.write(b"GET / HTTP/1.0\r\n\r\n")
    await liar.answer("list_dbs", {"not": "a list"})
    await garbage.gone()
    await liar.gone()
    await silent.expect("list_dbs")
    virtual_time.pass_over(61)
    await silent.gone()
    leaving = await served.dial()
    await leaving.expect("list_dbs")
    leaving.writer.close()
    await leaving.gone()
    rejecting = await served.dial()
    request = await rejecting.expect("list_dbs")
    rejecting.send({"id": request["id"], "error": "not today", "result": None})
    await rejecting.gone()
    await served.good_peer()
    assert served.listener.rejected == {"malformed": 2, "timeout": 1, "closed": 1, "error": 1}
    assert served.listener.accepted == 2
    assert not good.reader.at_eof()


async def test_of_too_many_that_prove_nothing_the_oldest_goes(served: Served) -> None:
    waiting = [await served.dial() for _ in range(3)]
    for peer in waiting:
        await peer.expect("list_dbs")
    newest = await served.dial()
    await waiting[0].gone()
    await newest.answer("list_dbs", ["db"])
    await newest.answer("get_schema", "schema")
    assert served.listener.rejected == {"crowded": 1}, "the oldest, and nobody else"


async def test_a_handler_that_fails_ends_its_own_connection_only() -> None:
    async def handle(connection: Connection) -> None:
        raise RuntimeError("handler's fault")

    listener = OvsdbListener(handle)
    port = await listener.start("127.0.0.1", 0)
    for _ in range(2):
        peer = OvsdbPeer(*await asyncio.open_connection("127.0.0.1", port))
        await peer.answer("list_dbs", [])
        await peer.gone()
    assert listener.accepted == 2
    await listener.stop()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=controller"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", "req", *options.split(), *names], check=True, capture_output=True)
    return cert, key


async def test_tls_peers_are_served_and_plain_ones_rejected(certificate: tuple[Path, Path]) -> None:
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(*certificate)
    served = Served(ssl=ours, proof_timeout=60.0)
    served.port = await served.listener.start("127.0.0.1", 0)
    plain = await served.dial()
    plain.writer.write(b'{"method":"echo","params":[],"id":"x"}')
    await plain.gone()
    theirs = ssl.create_default_context(cafile=certificate[0])
    peer = OvsdbPeer(*await asyncio.open_connection("127.0.0.1", served.port, ssl=theirs))
    await peer.answer("list_dbs", ["db"])
    await peer.answer("get_schema", "over TLS")
    assert await served.answers.get() == "over TLS"
    assert served.listener.rejected == {"tls": 1}
    await served.listener.stop()
    await peer.gone()

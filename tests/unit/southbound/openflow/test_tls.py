"""OpenFlow over TLS, both sides with certificates; whoever has none is rejected and counted."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from retinue.core.pipeline.entry import Change, Flow, Output
from retinue.southbound.openflow.server import OpenFlowServer
from support.fakes.openflow_peer import OpenFlowPeer, SwitchRecorder


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One self-signed certificate, with its key, that both sides have and believe."""
    path = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=c"
    files = ["-keyout", str(path / "key.pem"), "-out", str(path / "cert.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return path


def context(path: Path, purpose: ssl.Purpose, *, own: bool = True) -> ssl.SSLContext:
    made = ssl.create_default_context(purpose, cafile=str(path / "cert.pem"))
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    if own:
        made.load_cert_chain(path / "cert.pem", path / "key.pem")
    return made


@pytest.fixture
async def server(handler: SwitchRecorder, certificate: Path) -> AsyncIterator[OpenFlowServer]:
    made = OpenFlowServer(
        handler, hello_timeout=60.0, ssl=context(certificate, ssl.Purpose.CLIENT_AUTH), max_pending=2
    )
    yield made
    await made.stop()


async def test_switch_with_a_certificate_is_served(
    server: OpenFlowServer, handler: SwitchRecorder, certificate: Path
) -> None:
    port = await server.start("127.0.0.1", 0)
    peer, task = await OpenFlowPeer.join(port, ssl=context(certificate, ssl.Purpose.SERVER_AUTH))
    session, _ = await handler.next("connected")
    flows = tuple(Flow(1, n, (), (Output(1),)) for n in range(3000))
    await session.apply(Change(add=flows), 0.0)
    assert [m.flow for m in peer.applied] == list(flows)
    assert server.pending == 0
    peer.writer.close()
    await handler.next("disconnected")
    await task
    assert not server.rejected


async def test_switch_without_a_certificate_is_rejected(
    server: OpenFlowServer, handler: SwitchRecorder, certificate: Path
) -> None:
    port = await server.start("127.0.0.1", 0)
    without = context(certificate, ssl.Purpose.SERVER_AUTH, own=False)
    try:
        _, task = await OpenFlowPeer.join(port, ssl=without)
        await asyncio.gather(task, return_exceptions=True)
    except (ssl.SSLError, ConnectionError):  # TLS 1.2; a 1.3 client learns it when it reads.
        pass
    assert dict(server.rejected) == {"tls": 1}
    assert handler.events.empty()
    assert server.pending == 0


async def test_plain_openflow_is_rejected(server: OpenFlowServer, handler: SwitchRecorder) -> None:
    _, task = await OpenFlowPeer.join(await server.start("127.0.0.1", 0))
    await asyncio.gather(task, return_exceptions=True)
    assert dict(server.rejected) == {"tls": 1}
    assert handler.events.empty()


async def test_stranger_that_leaves_or_keeps_silent_is_rejected(
    handler: SwitchRecorder, certificate: Path
) -> None:
    server = OpenFlowServer(
        handler, hello_timeout=0.05, ssl=context(certificate, ssl.Purpose.CLIENT_AUTH), max_pending=2
    )
    port = await server.start("127.0.0.1", 0)
    silent = await OpenFlowPeer.dial(port)
    await silent.closed()
    assert dict(server.rejected) == {"tls": 1}
    await server.stop()


async def test_half_open_handshakes_are_bounded_and_end_with_the_server(
    server: OpenFlowServer, handler: SwitchRecorder, certificate: Path
) -> None:
    port = await server.start("127.0.0.1", 0)
    strangers = [await OpenFlowPeer.dial(port) for _ in range(4)]
    _, task = await OpenFlowPeer.join(port, ssl=context(certificate, ssl.Purpose.SERVER_AUTH))
    await handler.next("connected")
    assert server.rejected["crowded"] == 3
    await asyncio.gather(*(stranger.closed() for stranger in strangers[:3]))
    await server.stop()
    await strangers[3].closed()
    await task
    assert dict(server.rejected) == {"crowded": 3}

"""A server that speaks OpenFlow, and who records what becomes of its sessions; the switch is the test's."""

from collections.abc import AsyncIterator

import pytest

from retinue.southbound.openflow.server import OpenFlowServer
from support.fakes.openflow_peer import SwitchRecorder


@pytest.fixture
def handler() -> SwitchRecorder:
    return SwitchRecorder()


@pytest.fixture
async def server(handler: SwitchRecorder) -> AsyncIterator[OpenFlowServer]:
    server = OpenFlowServer(handler, hello_timeout=60.0, echo_interval=3600.0, echo_timeout=3600.0)
    yield server
    await server.stop()


@pytest.fixture
async def port(server: OpenFlowServer) -> int:
    return await server.start("127.0.0.1", 0)

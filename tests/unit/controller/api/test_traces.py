"""POST /v1/traces over HTTP: what is answered, what is rejected and how."""

import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.core.limits import LARGEST_FRAME
from support.fabric.networks import add_vm, fabric


@pytest.fixture
async def api() -> AsyncIterator[tuple[Api, str]]:
    net = fabric()
    for number, at in ((1, 1), (3, 2)):
        add_vm(net, number, at)
    controller = Controller(net, clock=lambda: 1000.0)
    await controller.start()
    api = Api(controller, dict)
    yield api, f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}"
    await api.stop()
    await controller.stop()


async def post(url: str, body: object) -> tuple[int, dict[str, object]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/traces", data=data) as answer:
        return answer.status, await answer.json()


async def test_a_trace_is_answered_and_changes_nothing(api: tuple[Api, str]) -> None:
    served, url = api
    before = served._controller.events.last_id
    status, found = await post(url, {"vm": "vm1", "to": "vm3", "kind": "udp", "port": 53, "live": True})
    assert status == 200
    assert {"at", "frame", "summary", "notes", "hops", "ends", "passes", "ways", "others"} < found.keys()
    live = found["live"]
    assert isinstance(live, dict) and {"unread", "differs"} < live.keys()
    assert served._controller.events.last_id == before


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed_body"),
        (b"[]", 400, "malformed_body"),
        ({"vm": "vm1", "to": "vm3", "secret": 1}, 400, "malformed_body"),
        ({"vm": "vm1", "frame": "00" * (LARGEST_FRAME + 1)}, 400, "malformed_body"),
        ({"vm": "vm1", "to": "vm3", "kind": "gre"}, 400, "malformed_body"),
        ({"vm": "vm9", "to": "vm3"}, 409, "unknown_vm"),
        ({"vm": "vm1", "nic": "x", "to": "vm3"}, 409, "unknown_nic"),
        ({"vm": "vm1", "server": "x", "to": "vm3"}, 409, "unknown_server"),
        ({"at": "x:1", "to": "vm3"}, 409, "unknown_switch"),
        ({"vm": "vm1"}, 409, "conflict"),
        ({"vm": "vm1", "to": "vm3", "src_mac": "zz"}, 409, "conflict"),
    ],
)
async def test_what_is_rejected(api: tuple[Api, str], body: object, status: int, code: str) -> None:
    served, url = api
    found, answer = await post(url, body)
    assert (found, answer["code"]) == (status, code)
    assert served.rejected[code] == 1


async def test_the_largest_frame_is_traced(api: tuple[Api, str]) -> None:
    _, url = api
    status, found = await post(url, {"vm": "vm1", "frame": "00" * LARGEST_FRAME})
    assert status == 200
    assert not found["passes"]

"""The way from a browser to a lab's controller: what is passed on, and from whom."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from retinue.protocol.events import EventType
from retinue.security.credentials import Credentials
from retinue_lab.errors import LabError
from retinue_lab.sandbox import web_door
from support.fabric.networks import fabric
from support.web_page import TOKENS, Served, serving

OWN = "the-doors-own-token"


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[tuple[str, Served]]:
    """Its URL, and what is behind it, where the door is a manager."""
    async with serving(fabric(), tmp_path) as served:
        ended = asyncio.Event()
        with web_door.listening() as listens:
            made = web_door.Door(served.url, Credentials(token=TOKENS["manager"]), OWN)
            serves = asyncio.create_task(made.serve(listens, ended))
            host, port = listens.getsockname()
            yield f"http://{host}:{port}", served
            ended.set()
            await serves


async def ask(
    url: str, method: str = "GET", token: str = "", **headers: str
) -> tuple[int, Mapping[str, str], bytes]:
    shown = {"Authorization": f"Bearer {token}"} if token else {}
    whole = URL(url, encoded=True)
    async with (
        aiohttp.ClientSession(headers={**shown, **headers}) as http,
        http.request(method, whole) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


async def test_files_are_passed_on_to_everybody_as_they_are(door: tuple[str, Served]) -> None:
    url, served = door
    for path in ("/", "/web/main.js"):
        status, headers, content = await ask(url + path)
        expected = await ask(served.url + path)
        assert (status, content) == (expected[0], expected[2])
        for name in ("Content-Security-Policy", "Content-Type", "ETag", "X-Content-Type-Options"):
            assert headers[name] == expected[1][name]


@pytest.mark.parametrize("token", ["", "another-token", TOKENS["manager"]])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/web/who"), ("GET", "/v1/vms"), ("POST", "/v1/servers/server1/drain"),
        ("POST", "/web/main.js"),
        ("GET", "/web/../v1/vms"), ("GET", "/web/%2e%2e/v1/vms"), ("GET", "/?x"), ("GET", "/metrics"),
    ],
)  # fmt: skip
async def test_nothing_else_is_without_the_doors_own_token(
    door: tuple[str, Served], method: str, path: str, token: str
) -> None:
    url, served = door
    assert (await ask(url + path, method, token))[0] == 401
    assert not served.controller.net.drained


async def test_with_it_one_is_who_the_door_is_whatever_page_asks(door: tuple[str, Served]) -> None:
    url, served = door
    status, _, content = await ask(f"{url}/web/who", token=OWN)
    assert (status, json.loads(content)["manages"]) == (200, True)
    status, _, _ = await ask(f"{url}/v1/servers/server1/drain", "POST", OWN, Origin=url)
    assert (status, served.controller.net.drained) == (200, {"server1"})
    status, _, content = await ask(f"{url}/v1/vms/nobody", token=OWN)
    assert (status, json.loads(content)["code"]) == (404, "unknown_vm")


async def test_events_come_through_as_they_happen(door: tuple[str, Served]) -> None:
    url, served = door
    headers = {"Authorization": f"Bearer {OWN}"}
    async with aiohttp.ClientSession(headers=headers) as http, http.get(f"{url}/v1/events") as stream:
        assert (await stream.content.readline()).strip() == b"event: hello"
        served.controller.events.publish(EventType.SERVER_DRAINED, server="server1")
        async with asyncio.timeout(60):
            while b"server.drained" not in await stream.content.readline():
                pass


async def test_a_controller_that_is_away_is_told_so() -> None:
    with socket.socket() as nobody, web_door.listening() as listens:
        nobody.bind(("127.0.0.1", 0))
        ended = asyncio.Event()
        made = web_door.Door(f"http://127.0.0.1:{nobody.getsockname()[1]}", Credentials(), OWN)
        serves = asyncio.create_task(made.serve(listens, ended))
        status, _, content = await ask(f"http://127.0.0.1:{listens.getsockname()[1]}/")
        assert (status, b"does not answer" in content) == (502, True)
        ended.set()
        await serves


def test_a_port_that_is_taken_is_not_asked_for_again_unless_any_will_do() -> None:
    with web_door.listening() as first:
        port = first.getsockname()[1]
        with pytest.raises(LabError, match=rf"cannot listen at 127\.0\.0\.1:{port}.*--port"):
            web_door.listening(port)
        with web_door.listening() as second:
            assert second.getsockname()[1] != port

"""What a client may send: how much, how long, how fast, and in which words."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retinue.controller.api.access import Access
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.core.limits import LARGEST_BODY, LARGEST_REPORT, LONGEST_REASON
from retinue.protocol import serving
from retinue.protocol.events import EventType
from retinue.security.listener import http_service
from retinue.security.tokens import Tokens
from support.fabric.networks import add_vm, fabric, vm_mac
from support.recent_events import recent

PATIENCE = 30.0
BOSS, AGENT = "the token of the manager", "the token of server1's agent"
VM = {"id": "vm1", "mac": vm_mac(1), "server": "server1"}


@dataclass
class Door:
    api: Api
    controller: Controller
    port: int

    async def ask(
        self, method: str, path: str, token: str, body: Any = None, data: Any = None
    ) -> tuple[int, dict[str, Any]]:
        url, shown = f"http://127.0.0.1:{self.port}{path}", {"Authorization": f"Bearer {token}"}
        sent = data if data is not None else None if body is None else json.dumps(body).encode()
        async with (
            aiohttp.ClientSession() as client,
            client.request(method, url, data=sent, headers=shown) as answer,
        ):
            return answer.status, await answer.json()

    async def dial(self, said: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(said)
        return reader, writer


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    file = tmp_path / "tokens.toml"
    file.touch(0o600)
    file.write_text(
        f'[[token]]\nname = "boss"\nrole = "manager"\ntoken = "{BOSS}"\n'
        f'[[token]]\nname = "server1"\nrole = "agent"\nservers = ["server1"]\ntoken = "{AGENT}"\n'
    )
    controller = Controller(fabric(), clock=lambda: 1000.0)
    await controller.start()
    api = Api(controller, dict, Access(controller, Tokens(file), open=False))
    port = await api.start("127.0.0.1", 0)
    yield Door(api, controller, port)
    await api.stop()
    await controller.stop()


# ---- bodies ----


@pytest.mark.parametrize(("token", "largest"), [(BOSS, LARGEST_BODY), (AGENT, LARGEST_REPORT)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_is_no_larger_than_its_sender_needs(
    door: Door, token: str, largest: int, chunked: bool
) -> None:
    async def in_pieces(data: bytes) -> AsyncIterator[bytes]:
        yield data

    assert (await door.ask("POST", "/v1/vms", BOSS, VM))[0] == 201
    for size, statuses in ((largest - 1, (400,)), (largest + 1, (413,))):
        body = b'{"event": "' + b"x" * (size - 13) + b'"}'
        data = in_pieces(body) if chunked else body
        status, _ = await door.ask("POST", "/v1/vms/vm1/events", token, data=data)
        assert status in statuses, size


async def test_a_body_that_does_not_come_is_not_waited_for(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "BODY_LIMIT", 0.02)
    head = f"POST /v1/vms HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {BOSS}\r\nContent-Length: 50\r\n\r\n{{"
    reader, writer = await door.dial(head.encode())
    async with asyncio.timeout(PATIENCE):
        assert b"408" in await reader.readline()
    writer.close()


@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"id":' * 10_000, b"[[],[],[]]", b'[{},{"a":[]}]'])
async def test_what_is_nested_is_no_body(door: Door, body: bytes) -> None:
    assert (await door.ask("POST", "/v1/vms", BOSS, data=body))[0] == 400


# ---- texts, numbers, ids ----


async def test_a_long_reason_is_cut(door: Door) -> None:
    assert (await door.ask("POST", "/v1/vms", BOSS, VM))[0] == 201
    status, _ = await door.ask("POST", "/v1/migrations", BOSS, {"vm": "vm1", "target_server": "server2"})
    assert status == 201
    said = {"event": "failed", "reason": "x" * (LARGEST_REPORT - 100)}
    assert (await door.ask("POST", "/v1/migrations/migration-1/events", AGENT, said))[0] == 200
    (migration,) = door.controller.orchestrator.migrations.values()
    assert len(migration.reason) == LONGEST_REASON
    assert all(len(str(event.data)) < 10_000 for event in recent(door.controller.events))


@pytest.mark.parametrize(
    "said",
    [
        {"event": "stopped", "at": 1e300},
        {"event": "stopped", "at": -1},
        {"event": "rolled_back", "frames": 1 << 70},
        {"event": "rolled_back", "frames": -1},
        {"event": "target_opened", "memory_at": "x" * 300 + ":1"},
    ],
)
async def test_numbers_have_a_range_and_addresses_a_length(door: Door, said: dict[str, object]) -> None:
    assert (await door.ask("POST", "/v1/vms", BOSS, VM))[0] == 201
    await door.ask("POST", "/v1/migrations", BOSS, {"vm": "vm1", "target_server": "server2"})
    assert (await door.ask("POST", "/v1/migrations/migration-1/events", BOSS, said))[0] == 400


@pytest.mark.parametrize("address", ["nonsense", "192.0.2.1", ":1", "192.0.2.1:70000", "a b:c"])
async def test_memory_is_taken_in_at_host_and_port(door: Door, address: str) -> None:
    assert (await door.ask("POST", "/v1/vms", BOSS, VM))[0] == 201
    await door.ask("POST", "/v1/migrations", BOSS, {"vm": "vm1", "target_server": "server2"})
    said = {"event": "target_opened", "memory_at": address}
    assert (await door.ask("POST", "/v1/migrations/migration-1/events", BOSS, said))[0] == 409


@pytest.mark.parametrize("id", ["x" * 64, "a/b", "a=b", "\x1b[31mred", "a b", "..", "ä", "process=x"])
async def test_an_id_follows_the_grammar(door: Door, id: str) -> None:
    for path, body in (
        ("/v1/vms", {**VM, "id": id}),
        ("/v1/servers", {"id": id, "mac": "02:00:00:00:00:77"}),
    ):
        status, answer = await door.ask("POST", path, BOSS, body)
        assert status == 409
        assert answer["error"].isprintable() and len(answer["error"]) < LONGEST_REASON
    assert not door.controller.net.vms


async def test_no_refusal_repeats_much_of_what_was_said(door: Door) -> None:
    for body in ({"vm": "v" * 100_000, "target_server": "s"}, {"x" * 100_000: 1}):
        status, answer = await door.ask("POST", "/v1/migrations", BOSS, body)
        assert status in (400, 409) and len(answer["error"]) <= LONGEST_REASON


@pytest.mark.parametrize("since", ["9" * 19, "9" * 4301, "-1", "1e3", "²", "x"])
async def test_a_listener_names_an_event_by_its_number(door: Door, since: str) -> None:
    assert (await door.ask("GET", f"/v1/events?since={since}", BOSS))[0] == 400


async def test_a_listener_names_types_that_there_are(door: Door) -> None:
    assert (await door.ask("GET", "/v1/events?types=vm.removed,odd", BOSS))[0] == 400
    url, shown = f"http://127.0.0.1:{door.port}", {"Authorization": f"Bearer {BOSS}"}
    async with (
        aiohttp.ClientSession(headers=shown) as client,
        client.get(f"{url}/v1/events?types=vm.removed,vm.ready") as answer,
    ):
        assert answer.status == 200
        door.controller.events.publish(EventType.PORT_REMOVED, vm="vm1", switch="edge1", port=1)
        door.controller.events.publish(EventType.VM_REMOVED, vm=add_vm(fabric(), 1, at=1))
        async with asyncio.timeout(PATIENCE):
            lines = [await answer.content.readline() for _ in range(5)]
    assert b"event: hello\n" in lines and b"event: vm.removed\n" in lines


# ---- connections ----


@pytest.mark.parametrize(
    "said", [b"", b"GET /v1/vms HTTP/1.1\r\nHost:", b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"]
)
async def test_a_connection_that_shows_nobody_is_cut_off(
    door: Door, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """Silent, half a request, or one that is answered 401."""
    monkeypatch.setattr(http_service, "FIRST_REQUEST_LIMIT", 0.02)
    reader, writer = await door.dial(said)
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionError):
            while await reader.read(4096):
                pass
    assert door.api.rejected["timeout"] == 1
    writer.close()


async def test_a_connection_whose_request_was_accepted_may_stay(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_service, "FIRST_REQUEST_LIMIT", 0.05)
    question = f"GET /v1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {AGENT}\r\n\r\n".encode()
    reader, writer = await door.dial(question)
    async with asyncio.timeout(PATIENCE):
        assert b"200" in await reader.readline()
        await asyncio.sleep(0.1)
        writer.write(question)
        while b"200 OK" not in await reader.readline():
            assert not reader.at_eof()
    assert not door.api.rejected
    writer.close()


async def test_silent_strangers_keep_nobody_out(door: Door) -> None:
    crowd = [await door.dial() for _ in range(300)]
    assert (await door.ask("GET", "/v1/status", AGENT))[0] == 200
    agents = len(door.api._controller.net.servers)
    assert door.api.rejected["crowded"] >= 300 - 256 - agents
    for _, writer in crowd:
        writer.close()

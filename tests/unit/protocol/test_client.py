"""The client of the controller's REST interface: requests, records, events."""

import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from retinue.core.migration import MigrationState
from retinue.protocol.client import ControllerClient
from retinue.protocol.errors import ControllerAwayError, ErrorCode, RecordError, RejectedError
from retinue.protocol.events import ControllerEvent
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.routes import Route
from retinue.protocol.vms import VMRecord

# ---- HTTP ----


class Web:
    """A controller on a port of its own."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.answer: web.Response | None = None
        """To every question, instead of the right one."""
        self.migrations: list[Any] = []
        self.text = 'event: hello\ndata: {"id": 3}\n\n'
        """The whole event stream."""

    async def stream(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request.query.get("since"))
        if self.answer is not None:
            return self.answer
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(self.text.encode())
        return response

    async def vms(self, _: web.Request) -> web.Response:
        shown = {"vms": [{"id": "a/b", "mac": "m", "server": "s"}], "removed": ["gone"], "fenced": ["dead"]}
        return self.answer or web.json_response(shown)

    async def under_way(self, _: web.Request) -> web.Response:
        return web.json_response({"migrations": self.migrations})

    async def told(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        peer = request.transport.get_extra_info("peername")
        body = await request.json()
        self.seen.append((request.match_info["id"], body, peer))
        if body["event"] == "odd":
            return web.json_response({"error": "a VM knows no event 'odd'", "code": "conflict"}, status=409)
        return self.answer or web.json_response({"ok": True})


@contextlib.asynccontextmanager
async def served(controller: Web) -> AsyncIterator[tuple[ControllerClient, web.AppRunner]]:
    app = web.Application()
    app.add_routes(
        [
            web.get("/v1/events", controller.stream),
            web.get("/v1/vms", controller.vms),
            web.get("/v1/migrations", controller.under_way),
            web.post("/v1/vms/{id}/events", controller.told),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    rest = ControllerClient(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    try:
        yield rest, runner
    finally:
        await rest.close()
        await runner.cleanup()


async def test_the_real_client_speaks_http_over_one_standing_connection() -> None:
    controller = Web()
    async with served(controller) as (rest, runner):
        assert [h.id async for h in rest.events(8)] == [3]
        assert [h.id async for h in rest.events(None)] == [3]
        assert controller.seen == ["8", None]
        found = await rest.vms()
        assert ([vm.id for vm in found.vms], found.removed, found.fenced) == (["a/b"], ["gone"], ["dead"])
        controller.seen.clear()
        await rest.post(Route.REPORT_VM.path("a/b"), {"event": "started"})
        with pytest.raises(RejectedError, match="knows no event 'odd'") as rejected:
            await rest.post(Route.REPORT_VM.path("a/b"), {"event": "odd"})
        assert (rejected.value.code, rejected.value.status) == (ErrorCode.CONFLICT, 409)
        (first, body, peer), (_, _, again) = controller.seen
        assert (first, body) == ("a/b", {"event": "started"})
        assert peer == again
        await runner.cleanup()
        with pytest.raises(ControllerAwayError, match="cannot be reached"):
            await rest.vms()
        with pytest.raises(ControllerAwayError, match="cannot be reached"):
            [_ async for _ in rest.events(None)]


async def test_moves_are_read_with_the_fields_an_agent_acts_on() -> None:
    controller = Web()
    controller.migrations = [
        {"id": "migration-1", "vm": "web", "source": "a", "target": "b", "state": "rolling back", "more": {}}
    ]
    async with served(controller) as (rest, _):
        assert await rest.migrations() == [
            MigrationRecord("migration-1", "web", "a", "b", MigrationState.ROLLING_BACK)
        ]
        controller.migrations = [{"id": "migration-1"}]
        with pytest.raises(RecordError, match="missing required field `vm`"):
            await rest.migrations()


async def test_of_whom_it_does_not_trust_it_reads_no_more_than_is_agreed() -> None:
    """Nor does it unpack what is sent packed, which may be as large as it likes."""
    much = json.dumps({"vms": [], "removed": ["x" * 100] * 100}).encode()
    controller = Web()
    async with served(controller) as (rest, _):
        wary = ControllerClient(rest.base, largest=1000)
        try:
            assert (await wary.vms()).removed == ["gone"]
            controller.answer = web.Response(body=much)
            with pytest.raises(ControllerAwayError, match="answers with more than 1000 bytes"):
                await wary.vms()
            controller.answer = web.Response(body=gzip.compress(much), headers={"Content-Encoding": "gzip"})
            with pytest.raises(ControllerAwayError, match="does not speak JSON"):
                await wary.vms()
            controller.answer = web.json_response({"error": "\x1b" * 150}, status=409)
            with pytest.raises(RejectedError) as rejected:
                await wary.vms()
            assert str(rejected.value).startswith(r"\x1b")
            assert len(str(rejected.value)) == 500
        finally:
            await wary.close()


@pytest.mark.parametrize(
    ("status", "text", "kind", "reason"),
    [
        (503, '{"error": "not yet"}', ControllerAwayError, "out of order: status 503"),
        (200, "<html>", ControllerAwayError, "does not speak JSON"),
        (404, "", RejectedError, "status 404"),
        (403, '{"error": "not an agent"}', RejectedError, "not an agent"),
        (400, "[1]", RejectedError, "status 400"),
        (200, '{"vms": 5}', RecordError, "no proper"),
        (200, "[]", RecordError, "no proper"),
    ],
)
async def test_an_answer_that_is_none_is_told_apart(
    status: int, text: str, kind: type[Exception], reason: str
) -> None:
    controller = Web()
    controller.answer = web.Response(status=status, text=text)
    async with served(controller) as (rest, _):
        with pytest.raises(kind, match=reason):
            await rest.vms()


async def test_a_stream_that_is_rejected_is_trouble() -> None:
    controller = Web()
    controller.answer = web.Response(status=401)
    async with served(controller) as (rest, _):
        with pytest.raises(ControllerAwayError, match="401"):
            [_ async for _ in rest.events(None)]


# ---- the event stream ----


async def read(text: str) -> list[ControllerEvent]:
    """The events that an agent has from a stream with this text."""
    controller = Web()
    controller.text = text
    async with served(controller) as (client, _):
        return [event async for event in client.events(None)]


async def test_events_are_read_from_the_stream_and_the_broken_ones_left_out() -> None:
    vm = json.dumps({"id": 7, "vm": {"id": "web", "mac": "m", "server": "s", "also": []}, "server": "s"})
    found = await read(
        'event: hello\ndata: {"id": 6, "type": "hello"}\n\n: still here\n\n'
        f"id: 7\nevent: vm.ready\ndata: {vm}\n\n"
        "event: port.here\ndata: not even read\n\n"
        "event: vm.registered\ndata: {broken\n\n"
        'event: vm.registered\ndata: {"vm": {"id": 5}}\n\n'
        "event: vm.registered\ndata: [1]\n\n"
        f"event: vm.removed\r\ndata: {vm}\r\n\r\n"
    )
    assert [(h.type, h.id) for h in found] == [("hello", 6), ("vm.ready", 7), ("vm.removed", 7)]
    assert found[1].vm == VMRecord("web", "m", "s")


async def test_data_of_several_lines_is_put_together() -> None:
    (found,) = await read('event:vm.registered\ndata: {"id":\ndata: 5,\ndata:"reason": "r"}\n\n')
    assert (found.type, found.id, found.reason) == ("vm.registered", 5, "r")


async def test_a_move_is_read_with_where_its_memory_goes() -> None:
    migration = {
        "id": "migration-1",
        "vm": "web",
        "source": "a",
        "target": "b",
        "state": "prepared",
        "steps": [],
    }
    data = json.dumps({"id": 1, "migration": {**migration, "memory_at": "192.0.2.1:7800"}})
    (found,) = await read(f"event: migration.start_copy\ndata: {data}\n\n")
    assert found.migration == MigrationRecord(
        "migration-1", "web", "a", "b", MigrationState.PREPARED, "192.0.2.1:7800"
    )


async def test_a_renewal_names_its_vm_by_id_only() -> None:
    (found,) = await read('event: vm.renew\ndata: {"id": 1, "vm": "web", "renewal": {"id": "renew-1"}}\n\n')
    assert (found.vm, found.renewal) == (None, {"id": "renew-1"})


async def test_an_event_that_is_cut_off_is_none() -> None:
    assert await read('event: hello\ndata: {"id": 6}\n') == []


async def test_of_several_controllers_the_active_one_is_asked_and_stayed_with() -> None:
    """One that is away and a standby are passed over; what a standby rejects it has not done."""
    standby, active = Web(), Web()
    standby.answer = web.json_response({"error": "ask the other one", "code": "standby"}, status=503)
    async with served(standby) as (one, _), served(active) as (other, runner):
        nobody = "http://127.0.0.1:1"
        async with ControllerClient(f"{nobody},{one.base},{other.base}") as rest:
            await rest.post(Route.REPORT_VM.path("web"), {"event": "started"})
            assert rest.base == other.base
            assert (len(standby.seen), len(active.seen)) == (1, 1)
            await rest.post(Route.REPORT_VM.path("web"), {"event": "started"})
            assert (len(standby.seen), len(active.seen)) == (1, 2)
            await runner.cleanup()
            with pytest.raises(ControllerAwayError):
                await rest.post(Route.REPORT_VM.path("web"), {"event": "started"})


async def test_what_one_controller_may_have_done_is_not_asked_of_another() -> None:
    broken, active = Web(), Web()
    broken.answer = web.json_response({"error": "out of order"}, status=500)
    async with (
        served(broken) as (one, _),
        served(active) as (other, _),
        ControllerClient(f"{one.base},{other.base}") as rest,
    ):
        with pytest.raises(ControllerAwayError, match="500"):
            await rest.post(Route.REPORT_VM.path("web"), {"event": "started"})
        assert not active.seen
        assert rest.base == other.base, "whoever asks again asks the other one"

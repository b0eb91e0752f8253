"""An agent and its controller's REST interface: events read, reports told in order and again, HTTP."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from retinue.agent.records import Happening, MoveRecord, RecordError, VMRecord
from retinue.agent.rest import ControllerAwayError, HttpRest, RefusedError, Reports, parse_events, quoted

# ---- the event stream ----


async def lines(text: str) -> AsyncIterator[bytes]:
    for line in text.splitlines(keepends=True):
        yield line.encode()


async def read(text: str) -> list[Happening]:
    return [happening async for happening in parse_events(lines(text))]


async def test_events_are_read_from_the_stream_and_the_broken_ones_left_out() -> None:
    vm = json.dumps({"id": 7, "vm": {"id": "web", "mac": "m", "server": "s", "also": []}, "server": "s"})
    found = await read(
        'event: hello\ndata: {"id": 6, "type": "hello"}\n\n: still here\n\n'
        f"id: 7\nevent: vm.ready\ndata: {vm}\n\n"
        "event: port.here\ndata: not even read\n\n"
        "event: vm.booked\ndata: {broken\n\n"
        'event: vm.booked\ndata: {"vm": {"id": 5}}\n\n'
        "event: vm.booked\ndata: [1]\n\n"
        f"event: vm.removed\r\ndata: {vm}\r\n\r\n"
    )
    assert [(h.type, h.id) for h in found] == [("hello", 6), ("vm.ready", 7), ("vm.removed", 7)]
    assert found[1].vm == VMRecord("web", "m", "s")


async def test_data_of_several_lines_is_put_together() -> None:
    (found,) = await read('event:vm.booked\ndata: {"id":\ndata: 5,\ndata:"reason": "r"}\n\n')
    assert (found.type, found.id, found.reason) == ("vm.booked", 5, "r")


async def test_a_move_is_read_with_where_its_memory_goes() -> None:
    move = {"id": "move-1", "vm": "web", "source": "a", "target": "b", "state": "prepared", "steps": []}
    data = json.dumps({"id": 1, "move": {**move, "memory_at": "192.0.2.1:7800"}})
    (found,) = await read(f"event: move.copy\ndata: {data}\n\n")
    assert found.move == MoveRecord("move-1", "web", "a", "b", "prepared", "192.0.2.1:7800")


async def test_a_renewal_names_its_vm_by_id_only() -> None:
    (found,) = await read('event: vm.renew\ndata: {"id": 1, "vm": "web", "renewal": {"id": "renew-1"}}\n\n')
    assert (found.vm, found.renewal) == (None, {"id": "renew-1"})


async def test_an_event_that_is_cut_off_is_none() -> None:
    assert await read('event: hello\ndata: {"id": 6}\n') == []


# ---- reports ----


class Controller:
    """Notes what it accepts. `script` is what it does with each report in turn; then it accepts."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.asked: list[str] = []
        self.script: list[Exception | asyncio.Event] = []

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body["event"])
        if self.script:
            match self.script.pop(0):
                case asyncio.Event() as event:
                    await event.wait()
                case Exception() as error:
                    raise error
        self.accepted.append(body["event"])
        return {}

    async def vms(self) -> list[VMRecord]:
        raise NotImplementedError

    async def moves(self) -> list[MoveRecord]:
        raise NotImplementedError

    def events(self, since: int | None) -> AsyncGenerator[Happening, None]:
        raise NotImplementedError


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    monkeypatch.setattr("retinue.agent.rest.RETRY_SECONDS", 0)
    return Controller()


@pytest.fixture
async def reports(controller: Controller) -> AsyncIterator[Reports]:
    made = Reports(controller)
    yield made
    await made.close()


def tell(reports: Reports, *events: str, subject: str = "web") -> None:
    for event in events:
        reports.tell(subject, f"/{subject}", {"event": event})


async def test_reports_about_a_subject_keep_their_order_while_the_controller_is_away(
    controller: Controller, reports: Reports
) -> None:
    controller.script = [ControllerAwayError("hung up")] * 3
    tell(reports, "copying", "stopped", "resumed")
    await asyncio.wait_for(reports.delivered(), 5)
    assert controller.accepted == ["copying", "stopped", "resumed"]
    assert controller.asked == ["copying"] * 4 + ["stopped", "resumed"]


async def test_a_refused_report_does_not_hold_up_the_next(controller: Controller, reports: Reports) -> None:
    controller.script = [RefusedError("does not fit")]
    tell(reports, "copying", "stopped")
    await asyncio.wait_for(reports.delivered(), 5)
    assert controller.accepted == ["stopped"]


async def test_a_report_that_hangs_holds_up_its_own_subject_only(
    controller: Controller, reports: Reports
) -> None:
    answered = asyncio.Event()
    controller.script = [answered]
    tell(reports, "first", "second")
    await asyncio.sleep(0)
    await asyncio.wait_for(reports.tell("db", "/db", {"event": "other"}), 5)
    assert controller.accepted == ["other"]
    answered.set()
    await asyncio.wait_for(reports.delivered(), 5)
    assert controller.accepted == ["other", "first", "second"]


async def test_a_question_is_asked_after_what_was_told_before(
    controller: Controller, reports: Reports
) -> None:
    controller.script = [ControllerAwayError("hung up"), ControllerAwayError("hung up")]
    tell(reports, "copying")
    await reports.ask("web", "/web", {"event": "converged"}, 5)
    assert controller.accepted == ["copying", "converged"]


async def test_a_question_is_asked_again_and_a_refusal_is_its_answer(
    controller: Controller, reports: Reports
) -> None:
    controller.script = [ControllerAwayError("hung up"), RefusedError("it does not fit")]
    with pytest.raises(RefusedError, match="it does not fit"):
        await reports.ask("web", "/web", {"event": "converged"}, 5)
    assert controller.asked == ["converged"] * 2


@pytest.mark.parametrize("told_before", [False, True])
async def test_a_question_that_is_not_answered_in_time_is_given_up(
    controller: Controller, reports: Reports, told_before: bool
) -> None:
    controller.script = [asyncio.Event()]
    if told_before:
        tell(reports, "copying")
    with pytest.raises(ControllerAwayError, match=r"has not answered within 0\.01 s"):
        await reports.ask("web", "/web", {"event": "converged"}, 0.01)
    assert controller.accepted == []


async def test_what_nobody_takes_is_given_up_at_the_end(controller: Controller, reports: Reports) -> None:
    controller.script = [asyncio.Event()]
    tell(reports, "first", "second")
    await asyncio.sleep(0)
    await asyncio.wait_for(reports.close(), 5)
    assert controller.accepted == []


# ---- HTTP ----


class Web:
    """A controller on a port of its own."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.answer: web.Response | None = None
        """To every question, instead of the right one."""
        self.moves: list[Any] = []

    async def stream(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request.query.get("since"))
        if self.answer is not None:
            return self.answer
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'event: hello\ndata: {"id": 3}\n\n')
        return response

    async def vms(self, _: web.Request) -> web.Response:
        return self.answer or web.json_response({"vms": [{"id": "a/b", "mac": "m", "server": "s"}]})

    async def under_way(self, _: web.Request) -> web.Response:
        return web.json_response({"moves": self.moves})

    async def told(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        peer = request.transport.get_extra_info("peername")
        body = await request.json()
        self.seen.append((request.match_info["id"], body, peer))
        if body["event"] == "odd":
            return web.json_response({"error": "a VM knows no event 'odd'"}, status=409)
        return self.answer or web.json_response({"ok": True})


@contextlib.asynccontextmanager
async def served(controller: Web) -> AsyncIterator[tuple[HttpRest, web.AppRunner]]:
    app = web.Application()
    app.add_routes(
        [
            web.get("/v1/events", controller.stream),
            web.get("/v1/vms", controller.vms),
            web.get("/v1/moves", controller.under_way),
            web.post("/v1/vms/{id}/events", controller.told),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    rest = HttpRest(f"http://127.0.0.1:{runner.addresses[0][1]}/")
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
        assert (await rest.vms())[0].id == "a/b"
        controller.seen.clear()
        await rest.post(f"/v1/vms/{quoted('a/b')}/events", {"event": "started"})
        with pytest.raises(RefusedError, match="knows no event 'odd'"):
            await rest.post("/v1/vms/a%2Fb/events", {"event": "odd"})
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
    controller.moves = [
        {"id": "move-1", "vm": "web", "source": "a", "target": "b", "state": "rolling back", "more": {}}
    ]
    async with served(controller) as (rest, _):
        assert await rest.moves() == [MoveRecord("move-1", "web", "a", "b", "rolling back")]
        controller.moves = [{"id": "move-1"}]
        with pytest.raises(RecordError, match="missing required field `vm`"):
            await rest.moves()


@pytest.mark.parametrize(
    ("status", "text", "kind", "reason"),
    [
        (503, '{"error": "not yet"}', ControllerAwayError, "out of order: status 503"),
        (200, "<html>", ControllerAwayError, "does not speak JSON"),
        (404, "", RefusedError, "status 404"),
        (403, '{"error": "not an agent"}', RefusedError, "not an agent"),
        (400, "[1]", RefusedError, "status 400"),
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


async def test_a_stream_that_is_refused_is_trouble() -> None:
    controller = Web()
    controller.answer = web.Response(status=401)
    async with served(controller) as (rest, _):
        with pytest.raises(ControllerAwayError, match="401"):
            [_ async for _ in rest.events(None)]

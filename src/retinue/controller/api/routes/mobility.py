"""Named entities, what servers have left, and the messages by which the best server for a VM is found."""

from typing import Any

import msgspec
from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.access import speaks_for
from retinue.controller.api.http import Handlers, NotFoundError, QueryError, answer, body, many
from retinue.controller.api.routes.vms import find
from retinue.controller.app import Controller
from retinue.controller.errors import RequestError, no_server
from retinue.controller.mobility.manager import MANAGER
from retinue.controller.parsing import address
from retinue.core.placement import Entity, EntityKind, Metric, Placement, Profile, Reason, Wish
from retinue.core.text import quoted
from retinue.protocol.entities import EntityBody
from retinue.protocol.errors import ErrorCode
from retinue.protocol.mobility import (
    AnswerBody,
    BookBody,
    ChooseBody,
    MobilityBody,
    ReleaseBody,
    ServerReport,
)
from retinue.protocol.routes import Route

AGENTS_REASONS = frozenset({Reason.COMPUTING, Reason.MEMORY, Reason.BANDWIDTH, Reason.CLIENTS})


def handlers(controller: Controller) -> Handlers:
    entities, mobility = controller.entities, controller.mobility

    async def all_entities(request: web.Request) -> web.Response:
        kind = _one_of(EntityKind, "kind", request.query.get("kind"))
        return answer({"entities": [entities.shown(name) for name in entities.names(kind)]})

    async def one_entity(request: web.Request) -> web.Response:
        name = request.match_info["id"]
        found = entities.shown(name)
        if found is None:
            raise NotFoundError(
                f"nothing has the name {name}; `retinue name list` shows what there is",
                ErrorCode.UNKNOWN_ENTITY,
            )
        return answer(found)

    async def register(request: web.Request) -> web.Response:
        bodies: list[EntityBody] = many(await body(request, EntityBody | list[EntityBody]))
        entities.register([_entity(given) for given in bodies])
        return answer({"entities": [entities.shown(given.name) for given in bodies]}, status=201)

    async def remove(request: web.Request) -> web.Response:
        name = request.match_info["id"]
        entities.remove(name)
        return answer({"removed": name})

    async def report(request: web.Request) -> web.Response:
        reported: ServerReport = await body(request, ServerReport)
        mobility.on_report(request.match_info["id"], reported)
        return answer({"ok": True})

    async def query(request: web.Request) -> web.Response:
        vm = request.match_info["id"]
        return answer({"vm": vm, "profile": mobility.profile_query(vm, _by(request))})

    async def ask(request: web.Request) -> web.Response:
        wanted: MobilityBody = await body(request, MobilityBody)
        wish = Wish(wanted.reason, wanted.measured, wanted.threshold, wanted.seconds)
        by = _by(request, wanted.server)
        if by != MANAGER and wanted.reason not in AGENTS_REASONS:
            raise RequestError(f"{wanted.reason} is the manager's reason, not an agent's")
        migration = await mobility.migrate(request.match_info["id"], wish, by)
        return answer(views.migration(controller, migration), status=201)

    async def choose(request: web.Request) -> web.Response:
        wanted: ChooseBody = await body(request, ChooseBody, empty=b"{}")
        vm = find(controller, request.match_info["id"]).id
        if wanted.server and wanted.server not in controller.net.servers:
            raise no_server(wanted.server)
        found = await mobility.choose(vm, named=wanted.server)
        plain: dict[str, Any] = msgspec.to_builtins(found)
        return answer({key: plain[key] for key in ("match", "snapshot", "decision")})

    async def answer_match(request: web.Request) -> web.Response:
        given: AnswerBody = await body(request, AnswerBody)
        speaks_for(request, given.server)
        mobility.on_answer(request.match_info["id"], given.server, given.report)
        return answer({"ok": True})

    async def explain(request: web.Request) -> web.Response:
        id = request.match_info["id"]
        if id not in controller.orchestrator.migrations:
            raise NotFoundError(
                f"there is no migration {id}; `retinue move list` shows those there are",
                ErrorCode.UNKNOWN_MIGRATION,
            )
        kept, again = mobility.explain(id)
        return answer({**_explained(kept), "recomputed": again, "same": again == kept.decision})

    async def plan(request: web.Request) -> web.Response:
        metric = _one_of(Metric, "metric", request.query.get("metric")) or Metric.MEMORY
        found = await mobility.plan(metric, _per_cent(request.query.get("threshold")))
        more = {"imbalance_before": found.imbalance_before, "imbalance_after": found.imbalance_after}
        return answer({**views.plain(found), **more})

    async def all_bookings(_: web.Request) -> web.Response:
        return answer({"bookings": sorted(controller.context.state.bookings.values(), key=lambda b: b.vm)})

    async def book(request: web.Request) -> web.Response:
        given: BookBody = await body(request, BookBody)
        server = request.match_info["id"]
        booked = controller.bookings.book(
            given.vm, server, given.memory_mib, given.cpus, given.seconds, by=speaks_for(request, "")
        )
        return answer(booked, status=201)

    async def release(request: web.Request) -> web.Response:
        given: ReleaseBody = await body(request, ReleaseBody)
        return answer(controller.bookings.release(given.vm, request.match_info["id"]))

    return {
        Route.LIST_ENTITIES: all_entities,
        Route.GET_ENTITY: one_entity,
        Route.REGISTER_ENTITIES: register,
        Route.REMOVE_ENTITY: remove,
        Route.REPORT_PROFILE: report,
        Route.LIST_BOOKINGS: all_bookings,
        Route.BOOK_SERVER: book,
        Route.RELEASE_BOOKING: release,
        Route.QUERY_PROFILE: query,
        Route.CHOOSE_SERVER: choose,
        Route.ASK_TO_MIGRATE: ask,
        Route.ANSWER_MATCH: answer_match,
        Route.EXPLAIN_PLACEMENT: explain,
        Route.PLAN_DOMAIN: plan,
    }


def _entity(given: EntityBody) -> Entity:
    """Raises ModelError for an address that is none, and for what the profile of its kind has not."""
    said = msgspec.structs.asdict(given.profile)
    said["clients"] = [str(address(client)) for client in given.profile.clients]
    return Entity(given.name, given.kind, msgspec.convert(said, Profile))


def _explained(kept: Placement) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(kept)
    return {**shown, "why": kept.snapshot.wish.reason.sentence}


def _by(request: web.Request, server: str = "") -> str:
    """Who asks: the server whose agent does, or the manager."""
    names = speaks_for(request, server)
    return MANAGER if names is None else ", ".join(names)


def _one_of(kind: Any, name: str, text: str | None) -> Any:
    """The member of an enumeration that a query names; None for none. Raises QueryError."""
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        raise QueryError(f"{name}={quoted(text)}: one of {', '.join(kind)}") from None


def _per_cent(text: str | None) -> int:
    """In hundredths. Raises QueryError."""
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 100):
        raise QueryError(f"threshold={quoted(text)}: not a whole number between 0 and 100")
    return int(text) * 100

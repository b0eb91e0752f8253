"""I1 over HTTP: what a manager sends, checked; what it asks, answered; what happens, streamed.

Every refusal is JSON, {"error": "..."} with the reason in words, and is counted by its kind.
"""

import asyncio
import logging
import ssl as tls
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
import structlog
from aiohttp import web

from retinue.api import counters, foreign, metrics, renewals, views
from retinue.api.access import Access, NotAllowedError, NotAuthenticatedError
from retinue.api.door import Door
from retinue.controller.config import address, port_ref
from retinue.controller.controller import Controller
from retinue.controller.moving import STEERING_LIMIT, STOPPED_LIMIT, MoveError
from retinue.flows.plan import CACHE_LAG
from retinue.model import VM, ModelError, Server, Service, mac
from retinue.moves import Booked, MoveState

log = structlog.get_logger()

LARGEST_BODY = 16 << 20
AWAITED = {"converged": (Booked.FORWARDED, STEERING_LIMIT), "stopped": (Booked.STEERED, STOPPED_LIMIT)}
"""What the answer to a word of the source waits for, and how long at the most, in seconds. While the VM runs:
that no switch gives it anything any more, neither directly nor late."""
HEARTBEAT = 15.0
"""Seconds between comments on an idle event stream, so that a dead listener is noticed."""


class VMBody(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    mac: str
    server: str
    addresses: list[str] = []


class ServerBody(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    mac: str
    address: str = ""
    edge: str = ""
    services: list[Service] = []
    at: str = ""


class MoveBody(msgspec.Struct, forbid_unknown_fields=True):
    """Row B1: VM id, MAC, IP, source server id, and target server id or target switch id."""

    vm: str
    target_server: str = ""
    target_switch: str = ""
    source_server: str = ""
    mac: str = ""
    ip: str = ""


class EventBody(msgspec.Struct, forbid_unknown_fields=True):
    """The hypervisor's word about a VM or a move; `at` in seconds since the epoch."""

    event: str
    at: float = 0.0
    server: str = ""
    reason: str = ""
    memory_at: str = ""
    frames: Annotated[int, msgspec.Meta(ge=0)] = 0
    """That had come for the VM when this end was cleared: see docs/api.md."""


class Api:
    def __init__(
        self,
        controller: Controller,
        refused_elsewhere: Callable[[], dict[str, dict[str, int]]],
        access: Access | None = None,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        """Without `access` whoever asks is a manager; `ssl` is a server context, None: plain text."""
        self._controller = controller
        self._access = access or Access(controller)
        self._ssl = ssl
        self._refused_elsewhere = refused_elsewhere
        self.refused: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self._door: Door | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which the system chooses when given 0."""
        app = web.Application(middlewares=[self._errors], client_max_size=LARGEST_BODY)
        app.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/switches", self._switches),
                web.post("/v1/switches/{id}/audit", self._audit),
                web.get("/v1/servers", self._servers),
                web.post("/v1/servers", self._put_servers),
                web.get("/v1/vms", self._vms),
                web.post("/v1/vms", self._book),
                web.get("/v1/vms/{id}", self._vm),
                web.delete("/v1/vms/{id}", self._remove),
                web.post("/v1/vms/{id}/events", self._vm_says),
                web.get("/v1/bindings", self._bindings),
                web.get("/v1/forgeries", self._forgeries),
                web.get("/v1/moves", self._moves),
                web.post("/v1/moves", self._start_move),
                web.get("/v1/moves/{id}", self._move),
                web.post("/v1/moves/{id}/events", self._move_says),
                web.post("/v1/moves/{id}/cancel", self._cancel),
                *renewals.routes(self._controller.renewals),
                *foreign.routes(self._controller.foreign),
                *counters.routes(self._controller.agent_refusals),
                web.get("/v1/flows", self._flows),
                web.get("/v1/events", self._stream),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(
            app, access_log=None, logger=_RefusalLogger(self.refused), shutdown_timeout=1.0
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self._door = Door(self._runner.server, self.refused, self._ssl)
        return await self._door.open(host, port)

    async def stop(self) -> None:
        if self._door is not None:
            await self._door.close()
        if self._runner is not None:
            await self._runner.cleanup()

    # ---- reading ----

    async def _status(self, _: web.Request) -> web.Response:
        refused = {**self._refused_elsewhere(), "rest": dict(self.refused)}
        return _json(views.status(self._controller, refused))

    async def _switches(self, _: web.Request) -> web.Response:
        return _json({"switches": views.switches(self._controller)})

    async def _servers(self, _: web.Request) -> web.Response:
        return _json({"servers": views.servers(self._controller)})

    async def _vms(self, _: web.Request) -> web.Response:
        return _json({"vms": [views.vm(self._controller, v) for v in self._controller.net.vms.values()]})

    async def _vm(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        value = self._controller.net.vms.get(name)
        if value is None:
            raise _NotFoundError(f"there is no VM {name}; `retinue vm list` shows those there are")
        return _json(views.vm(self._controller, value))

    async def _bindings(self, request: web.Request) -> web.Response:
        wanted = request.query.get("vm")
        rows = self._controller.net.bindings(None if wanted is None else [wanted])
        return _json(
            {"bindings": views.bindings(self._controller, rows), **views.forgeries(self._controller)}
        )

    async def _forgeries(self, _: web.Request) -> web.Response:
        return _json(views.forgeries(self._controller))

    async def _moves(self, _: web.Request) -> web.Response:
        found = self._controller.mover.moves.values()
        return _json({"moves": [views.move(self._controller, m) for m in found]})

    async def _move(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        value = self._controller.mover.moves.get(name)
        if value is None:
            raise _NotFoundError(f"there is no move {name}; `retinue move list` shows those there are")
        return _json(views.move(self._controller, value))

    async def _flows(self, request: web.Request) -> web.Response:
        wanted, vm = request.query.get("switch"), request.query.get("vm")
        if vm is not None and vm not in self._controller.net.vms:
            raise _NotFoundError(f"there is no VM {vm}; `retinue vm list` shows those there are")
        names = list(self._controller.net.switches) if wanted is None else [self._switch(wanted)]
        return _json({"flows": [flow for name in names for flow in views.flows(self._controller, name, vm)]})

    def _switch(self, name: str) -> str:
        if name not in self._controller.net.switches:
            raise _NotFoundError(f"there is no switch {name}; `retinue switch list` shows those there are")
        return name

    async def _metrics(self, _: web.Request) -> web.Response:
        refused = {**self._refused_elsewhere(), "rest": dict(self.refused)}
        return web.Response(body=metrics.exposition(self._controller, refused), content_type="text/plain")

    # ---- the manager's word ----

    async def _book(self, request: web.Request) -> web.Response:
        bodies: VMBody | list[VMBody] = await _body(request, VMBody | list[VMBody])
        many = bodies if isinstance(bodies, list) else [bodies]
        vms = [VM(b.id, mac(b.mac), b.server, addresses=tuple(map(address, b.addresses))) for b in many]
        if any(not v.id for v in vms):
            raise ModelError("a VM needs an id")
        booked = self._controller.book_vms(vms)
        return _json({"vms": [views.vm(self._controller, v) for v in booked]}, status=201)

    async def _remove(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        await self._controller.remove_vm(name)
        return _json({"removed": name})

    async def _vm_says(self, request: web.Request) -> web.Response:
        body: EventBody = await _body(request, EventBody)
        self._controller.vm_says(request.match_info["id"], body.event, body.server)
        return _json({"ok": True})

    async def _put_servers(self, request: web.Request) -> web.Response:
        bodies: ServerBody | list[ServerBody] = await _body(request, ServerBody | list[ServerBody])
        many = bodies if isinstance(bodies, list) else [bodies]
        await self._controller.put_servers([_server(b, self._controller) for b in many])
        return _json({"servers": [b.id for b in many]}, status=201)

    async def _audit(self, request: web.Request) -> web.Response:
        switch = self._switch(request.match_info["id"])
        return _json({"switch": switch, **views.plain(await self._controller.auditor.audit(switch))})

    async def _start_move(self, request: web.Request) -> web.Response:
        body: MoveBody = await _body(request, MoveBody)
        move = self._controller.mover.start(
            body.vm,
            target_server=body.target_server,
            target_switch=body.target_switch,
            source_server=body.source_server,
            mac=mac(body.mac) if body.mac else "",
            ip=address(body.ip) if body.ip else None,
        )
        return _json(views.move(self._controller, move), status=201)

    async def _move_says(self, request: web.Request) -> web.Response:
        body: EventBody = await _body(request, EventBody)
        name = request.match_info["id"]
        mover = self._controller.mover
        move = mover.hypervisor_says(name, body.event, body.at, body.reason, body.memory_at, body.frames)
        if move.state is MoveState.DIVERTED and body.event in AWAITED:
            # The answer is the word that the VM may go on: its traffic goes to the target already.
            steered = await mover.until_confirmed(name, *AWAITED[body.event])
            if body.event == "converged":
                if not steered:
                    raise MoveError("the switches have not confirmed in time that they steer to the target")
                # Who asks looks for itself, until nothing comes any more. Copies, which will come from the
                # target while the VM stands still, are no sign of a late switch.
                target = self._controller.net.servers[move.target]
                return _json({"state": mover.moves[name].state, "copies_from": target.mac})
            if not move.steered:
                await asyncio.sleep(CACHE_LAG)
        return _json({"state": mover.moves[name].state})

    async def _cancel(self, request: web.Request) -> web.Response:
        return _json(views.move(self._controller, self._controller.mover.cancel(request.match_info["id"])))

    # ---- the event stream ----

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events. `?since=ID` or the Last-Event-ID header: first what came after that event.

        The greeting carries the last id before the stream: nothing falls between the two.
        """
        since = request.query.get("since") or request.headers.get("Last-Event-ID")
        if since is not None and not (since.isascii() and since.isdigit()):
            raise ModelError(f"not an event id: {since!r}")
        bus = self._controller.events
        hello = views.encode({"id": bus.last_id, "type": "hello"})
        stream = bus.listen(int(since) if since is not None else None)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        await response.write(b"event: hello\ndata: " + hello + b"\n\n")
        next_event = asyncio.ensure_future(anext(stream))
        try:
            while True:
                done, _ = await asyncio.wait({next_event}, timeout=HEARTBEAT)
                if not done:
                    await response.write(b": still here\n\n")
                    continue
                event = next_event.result()
                data = views.encode(views.event(event, self._controller))
                await response.write(
                    b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, event.type.encode(), data)
                )
                next_event = asyncio.ensure_future(anext(stream))
        except (StopAsyncIteration, ConnectionError):
            pass
        finally:
            next_event.cancel()
            await asyncio.gather(next_event, return_exceptions=True)
            stream.close()
        return response

    # ---- refusals ----

    @web.middleware
    async def _errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            await self._access.check(request)
            return await handler(request)
        except NotAuthenticatedError as error:
            response = self._refuse(request, 401, "not authenticated", str(error))
            response.headers["WWW-Authenticate"] = 'Bearer realm="retinue"'
            return response
        except NotAllowedError as error:
            return self._refuse(request, 403, "not allowed", str(error))
        except _NotFoundError as error:
            return self._refuse(request, 404, "not found", str(error))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._refuse(request, 400, "bad body", f"the request's body cannot be used: {error}")
        except MoveError as error:
            return self._refuse(request, 409, "refused moves", str(error))
        except ModelError as error:
            return self._refuse(request, 409, "refused changes", str(error))
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return self._refuse(
                request, error.status, error.reason.lower(), f"{error.reason}: {request.path}"
            )

    def _refuse(self, request: web.Request, status: int, kind: str, reason: str) -> web.Response:
        self.refused[kind] += 1
        log.info("request refused", peer=request.remote, path=request.path, status=status, reason=reason)
        return _json({"error": reason}, status=status)


class _NotFoundError(Exception):
    pass


class _RefusalLogger(logging.Logger):
    """Where the HTTP library reports what is not HTTP: counted, and said in one line."""

    def __init__(self, refused: Counter[str]) -> None:
        super().__init__("retinue.rest")
        self._refused = refused

    def handle(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        reason = str(error or record.getMessage()).strip().splitlines()[:1]
        self._refused["not HTTP"] += 1
        log.warning("REST connection refused", reason=reason[0] if reason else "")


async def _body(request: web.Request, kind: Any) -> Any:
    """The request's JSON body as this kind of struct; raises msgspec.DecodeError."""
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8: {error.reason} at byte {error.start}") from error


def _server(body: ServerBody, controller: Controller) -> Server:
    old = controller.net.servers.get(body.id)
    return Server(
        id=body.id,
        mac=mac(body.mac),
        address=address(body.address) if body.address else None,
        edge=body.edge,
        services=frozenset(body.services),
        routes=old.routes if old is not None else (),
        given_at=port_ref(body.at) if body.at else None,
    )


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=views.encode(value), content_type="application/json", status=status)

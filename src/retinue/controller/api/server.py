"""The manager's REST interface: one handler for each route of protocol/routes.py, and what is rejected.

Every rejection is JSON, {"error": SENTENCE, "code": CODE} (protocol/errors.py), and is counted by its code.
"""

import ssl as tls
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import structlog
from aiohttp import web

from retinue.controller.api import metrics, routes, views
from retinue.controller.api.access import Access, NotAllowedError, NotAuthenticatedError, shown_to_page
from retinue.controller.api.http import Handler, Handlers, NotFoundError, QueryError, answer, code_of
from retinue.controller.app import Controller
from retinue.controller.migrations.orchestrator import MigrationError
from retinue.controller.migrations.words import NotTheirsError
from retinue.controller.web import WebPage
from retinue.core.limits import LARGEST_BODY
from retinue.core.model import ModelError
from retinue.core.text import cut, printable
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.routes import OF_ITSELF, Route
from retinue.security.listener.http_service import HttpService, accepted

log = structlog.get_logger()

WHO = "/web/who"
"""Of the web page alone, and no part of the interface."""
_ANSWERED_BY_STANDBY = frozenset(route.path() for route in OF_ITSELF)


class Cluster(Protocol):
    """The controllers of which this is one (see controller.leadership)."""

    def report(self) -> dict[str, Any]:
        """Who this one is, who is active, and how near a standby follows."""

    def speaks(self) -> bool:
        """True while this is the active one, and has taken over."""

    def who_speaks(self) -> str:
        """Which one that is instead, in words."""


class Api:
    """Serves the REST interface of one controller.

    `rejected_elsewhere` tells what the other listeners have rejected, for the status and the metrics.
    """

    def __init__(
        self,
        controller: Controller,
        rejected_elsewhere: Callable[[], dict[str, dict[str, int]]],
        access: Access | None = None,
        ssl: tls.SSLContext | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        """Without `access` whoever asks is a manager; `ssl` is a server context, None: plain text. `cluster`:
        None: this controller is the only one.
        """
        self._controller = controller
        self._access = access or Access(controller)
        self._cluster = cluster
        self._rejected_elsewhere = rejected_elsewhere
        self._page = WebPage()
        self.rejected: Counter[str] = Counter()
        """By ErrorCode, and what the listener in front rejects by its own reasons."""
        self._service = HttpService(
            self._app(), self.rejected, ssl, known=lambda: len(self._controller.net.servers)
        )

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which the system chooses when given 0."""
        return await self._service.start(host, port)

    async def stop(self) -> None:
        await self._service.stop()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._errors], client_max_size=LARGEST_BODY)
        handlers = self.handlers()
        for route in Route:  # A route without a handler is a KeyError: nothing half made is served.
            app.router.add_route(route.method, route.template, handlers[route])
            if route.method == "GET":
                app.router.add_head(route.template, handlers[route])
        app.router.add_get(WHO, self._who)
        self._page.add_to(app)
        return app

    def handlers(self) -> Handlers:
        return {
            Route.GET_STATUS: self._status,
            Route.GET_CLUSTER: self._which,
            Route.GET_METRICS: self._metrics,
            **routes.handlers(self._controller),
        }

    async def _status(self, _: web.Request) -> web.Response:
        return answer(views.status(self._controller, self._all_rejected()))

    async def _which(self, _: web.Request) -> web.Response:
        return answer({"role": "alone"} if self._cluster is None else self._cluster.report())

    async def _metrics(self, _: web.Request) -> web.Response:
        text = metrics.exposition(self._controller, self._all_rejected(), leads=self._leads())
        return web.Response(body=text, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _who(self, request: web.Request) -> web.Response:
        """Who has logged in, and so what the page offers."""
        return answer(shown_to_page(request))

    def _leads(self) -> bool:
        return self._cluster is None or self._cluster.speaks()

    def _all_rejected(self) -> dict[str, dict[str, int]]:
        return {**self._rejected_elsewhere(), "rest": dict(self.rejected)}

    # ---- rejections ----

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if not self._page.is_for_everybody(request):
                self._access.check(request)
                accepted(request)
                if (
                    self._cluster is not None
                    and not self._leads()
                    and request.path not in _ANSWERED_BY_STANDBY
                ):
                    return self._reject(request, 503, ErrorCode.STANDBY, self._cluster.who_speaks())
            return await handler(request)
        except NotAuthenticatedError as error:
            response = self._reject(request, 401, ErrorCode.NOT_AUTHENTICATED, str(error))
            response.headers["WWW-Authenticate"] = 'Bearer realm="retinue"'
            return response
        except (NotAllowedError, NotTheirsError) as error:
            peer = str(request.remote)
            self._controller.events.tell(
                ("rest", peer), EventType.ACCESS_REJECTED, listener="rest", peer=peer, reason=str(error)
            )
            return self._reject(request, 403, ErrorCode.NOT_ALLOWED, str(error))
        except NotFoundError as error:
            return self._reject(request, 404, error.code, str(error))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            reason = f"the request's body cannot be used: {error}"
            return self._reject(request, 400, ErrorCode.MALFORMED_BODY, reason)
        except QueryError as error:
            return self._reject(request, 400, ErrorCode.MALFORMED_REQUEST, str(error))
        except (MigrationError, ModelError) as error:
            return self._reject(request, 409, getattr(error, "code", ErrorCode.CONFLICT), str(error))
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return self._reject(request, error.status, code_of(error), f"{error.reason}: {request.path}")

    def _reject(self, request: web.Request, status: int, code: ErrorCode, reason: str) -> web.Response:
        self.rejected[code] += 1
        reason = cut(printable(reason))
        # A standby is asked again and again by who looks for the active one: nothing to tell of.
        say = log.debug if code is ErrorCode.STANDBY else log.info
        say("rest.rejected", peer=request.remote, path=request.path, code=str(code), reason=reason)
        return answer({"error": reason, "code": code}, status=status)

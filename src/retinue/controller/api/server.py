"""The manager's REST interface: one handler for each route of protocol/routes.py, and what is rejected.

Every rejection is JSON, {"error": SENTENCE, "code": CODE} (protocol/errors.py), and is counted by its code.
"""

import logging
import ssl as tls
from collections import Counter
from collections.abc import Callable

import msgspec
import structlog
from aiohttp import web

from retinue.controller.api import metrics, routes, views
from retinue.controller.api.access import Access, NotAllowedError, NotAuthenticatedError
from retinue.controller.api.http import Handler, Handlers, NotFoundError, answer
from retinue.controller.api.listener import HttpListener, accepted
from retinue.controller.app import Controller
from retinue.controller.migrations.orchestrator import MigrationError
from retinue.controller.migrations.words import NotTheirsError
from retinue.core.limits import LARGEST_BODY
from retinue.core.model import ModelError
from retinue.core.text import cut, printable
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.routes import Route
from retinue.security.listener.rejections import Rejection

log = structlog.get_logger()

_OF_HTTP = {
    404: ErrorCode.NO_SUCH_PATH,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    413: ErrorCode.BODY_TOO_LARGE,
}
"""By the status with which the HTTP library itself rejects a request."""


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
    ) -> None:
        """Without `access` whoever asks is a manager; `ssl` is a server context, None: plain text."""
        self._controller = controller
        self._access = access or Access(controller)
        self._ssl = ssl
        self._rejected_elsewhere = rejected_elsewhere
        self.rejected: Counter[str] = Counter()
        """By ErrorCode, and what the listener in front rejects by its own reasons."""
        self._runner: web.AppRunner | None = None
        self._listener: HttpListener | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which the system chooses when given 0."""
        app = web.Application(middlewares=[self._errors], client_max_size=LARGEST_BODY)
        handlers = self.handlers()
        for route in Route:  # A route without a handler is a KeyError: nothing half made is served.
            app.router.add_route(route.method, route.template, handlers[route])
            if route.method == "GET":
                app.router.add_head(route.template, handlers[route])
        self._runner = web.AppRunner(
            app, access_log=None, logger=_RejectionLogger(self.rejected), shutdown_timeout=1.0
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self._listener = HttpListener(self._runner.server, self.rejected, self._ssl)
        return await self._listener.open(host, port)

    async def stop(self) -> None:
        if self._listener is not None:
            await self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def handlers(self) -> Handlers:
        return {
            Route.GET_STATUS: self._status,
            Route.GET_METRICS: self._metrics,
            **routes.handlers(self._controller),
        }

    async def _status(self, _: web.Request) -> web.Response:
        return answer(views.status(self._controller, self._all_rejected()))

    async def _metrics(self, _: web.Request) -> web.Response:
        text = metrics.exposition(self._controller, self._all_rejected())
        return web.Response(body=text, content_type="text/plain")

    def _all_rejected(self) -> dict[str, dict[str, int]]:
        return {**self._rejected_elsewhere(), "rest": dict(self.rejected)}

    # ---- rejections ----

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._access.check(request)
            accepted(request)
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
        except (MigrationError, ModelError) as error:
            return self._reject(request, 409, getattr(error, "code", ErrorCode.CONFLICT), str(error))
        except web.HTTPException as error:
            if error.status < 400:
                raise
            code = _OF_HTTP.get(error.status, ErrorCode.MALFORMED_REQUEST)
            return self._reject(request, error.status, code, f"{error.reason}: {request.path}")

    def _reject(self, request: web.Request, status: int, code: ErrorCode, reason: str) -> web.Response:
        self.rejected[code] += 1
        reason = cut(printable(reason))
        log.info("rest.rejected", peer=request.remote, path=request.path, code=str(code), reason=reason)
        return answer({"error": reason, "code": code}, status=status)


class _RejectionLogger(logging.Logger):
    """Where the HTTP library reports what is not HTTP: counted, and logged in one line."""

    def __init__(self, rejected: Counter[str]) -> None:
        super().__init__("retinue.rest")
        self._rejected = rejected

    def handle(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        reason = str(error or record.getMessage()).strip().splitlines()[:1]
        self._rejected[Rejection.MALFORMED] += 1
        log.warning("rest.rejected", code=str(Rejection.MALFORMED), reason=reason[0] if reason else "")

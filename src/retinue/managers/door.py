"""A manager's listener for one domain: who shows a certificate of that domain's authority is let in and
speaks of that domain, each role what is its own to say."""

import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import structlog
from aiohttp import web

from retinue.core.limits import LARGEST_BODY
from retinue.core.text import cut, printable
from retinue.protocol.errors import ErrorCode
from retinue.protocol.serving import Handler, answer, code_of, read_body
from retinue.security.identity import IdentityError, PeerRole, identity_of
from retinue.security.listener.http_service import HttpService, accepted

log = structlog.get_logger()

Said = tuple[type[msgspec.Struct], PeerRole, Callable[[Any], Awaitable[msgspec.Struct]]]
"""What is said at a path: the record, whose it is to say, and what answers it."""


class RefusedError(Exception):
    """What was asked cannot be answered; the message says why."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.CONFLICT) -> None:
        super().__init__(message)
        self.code = code


class ManagerDoor:
    def __init__(self, whose: str, said: Mapping[str, Said], context: ssl.SSLContext) -> None:
        """`whose`: such as "domain a". `said`: by path."""
        self.rejected: Counter[str] = Counter()
        self._whose = whose
        app = web.Application(middlewares=[self._errors], client_max_size=LARGEST_BODY)
        for path, (kind, role, answers) in said.items():
            app.router.add_post(path, self._handler(kind, role, answers))
        self._service = HttpService(app, self.rejected, context)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port."""
        return await self._service.start(host, port)

    async def stop(self) -> None:
        await self._service.stop()

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except IdentityError as error:
            return self._reject(403, ErrorCode.NOT_ALLOWED, str(error))
        except msgspec.DecodeError as error:
            return self._reject(400, ErrorCode.MALFORMED_BODY, f"the request's body cannot be used: {error}")
        except RefusedError as error:
            return self._reject(409, error.code, str(error))
        except web.HTTPException as error:
            return self._reject(error.status, code_of(error), error.reason)

    def _handler(
        self, kind: type[msgspec.Struct], role: PeerRole, answers: Callable[[Any], Awaitable[msgspec.Struct]]
    ) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            self._check(request, role)
            accepted(request)
            # Of a newer release: what it says besides, an older manager leaves out.
            return answer(await answers(await read_body(request, kind, LARGEST_BODY, newer=True)))

        return handle

    def _check(self, request: web.Request, role: PeerRole) -> None:
        """Raises IdentityError for one who may not say this."""
        shown = request.transport.get_extra_info("peercert") if request.transport is not None else None
        identity = identity_of(shown)
        if identity is None or identity.role is not role:
            found = identity or "a stranger"
            raise IdentityError(f"a {role} of {self._whose} says this, not {found}")

    def _reject(self, status: int, code: ErrorCode, reason: str) -> web.Response:
        self.rejected[code] += 1
        reason = cut(printable(reason))
        log.info("managers.rejected", door=self._whose, code=str(code), reason=reason)
        return answer({"error": reason, "code": code}, status=status)

"""The listener for one other domain's controller: six paths, and only that domain's authority is believed.

Each peer has a door of its own: the door says which domain speaks, and none can speak for another.
"""

import ssl
from collections import Counter

import msgspec
import structlog
from aiohttp import web

from retinue.controller.api.http import Handler, answer, body, code_of
from retinue.controller.domains.domains import Domains
from retinue.controller.errors import RequestError
from retinue.controller.migrations.requests import MigrationError
from retinue.core.limits import ID, LARGEST_REPORT
from retinue.core.model import ModelError
from retinue.core.text import cut, printable
from retinue.protocol.domains import (
    IMAGES_PATH,
    MATCHES_PATH,
    NAMES_PATH,
    PREPARE_PATH,
    REMOVALS_PATH,
    WORDS_PATH,
    ImageAsked,
    Match,
    NamesAsked,
    Prepare,
    Removed,
    Word,
)
from retinue.protocol.errors import ErrorCode
from retinue.security.identity import IdentityError, PeerRole, identity_of
from retinue.security.listener.http_service import HttpService, accepted

log = structlog.get_logger()


class Door:
    """Lets in the controller of domain `peer`, and hands on what it says."""

    def __init__(self, peer: str, domains: Domains, context: ssl.SSLContext) -> None:
        self.rejected: Counter[str] = Counter()
        self._peer = peer
        self._hearing = domains.hearing
        self._matching = domains.matching
        self._names = domains.names
        self._images = domains.images
        app = web.Application(middlewares=[self._errors], client_max_size=LARGEST_REPORT)
        app.router.add_post(MATCHES_PATH, self._match)
        app.router.add_post(PREPARE_PATH, self._prepare)
        app.router.add_post(WORDS_PATH, self._word)
        app.router.add_post(REMOVALS_PATH, self._removed)
        app.router.add_post(NAMES_PATH, self._asked_for_names)
        app.router.add_post(IMAGES_PATH, self._asked_for_image)
        self._service = HttpService(app, self.rejected, context)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port."""
        return await self._service.start(host, port)

    async def stop(self) -> None:
        await self._service.stop()

    async def _match(self, request: web.Request) -> web.Response:
        wanted: Match = await body(request, Match)
        return answer(await self._matching.offer(self._peer, wanted))

    async def _prepare(self, request: web.Request) -> web.Response:
        wanted: Prepare = await body(request, Prepare)
        return answer(await self._hearing.prepare(self._peer, wanted), status=201)

    async def _word(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        if not ID.fullmatch(id):
            raise web.HTTPNotFound
        word: Word = await body(request, Word)
        return answer(await self._hearing.word(self._peer, id, word, request.remote))

    async def _removed(self, request: web.Request) -> web.Response:
        guest: Removed = await body(request, Removed)
        self._hearing.removed(self._peer, guest)
        return answer({})

    async def _asked_for_names(self, request: web.Request) -> web.Response:
        asked: NamesAsked = await body(request, NamesAsked)
        return answer(await self._names.answer(self._peer, asked))

    async def _asked_for_image(self, request: web.Request) -> web.Response:
        asked: ImageAsked = await body(request, ImageAsked)
        return answer(self._images.answer(self._peer, asked))

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            check_controller(request)
            accepted(request)
            return await handler(request)
        except IdentityError as error:
            return self._reject(403, ErrorCode.NOT_ALLOWED, str(error))
        except msgspec.DecodeError as error:
            return self._reject(400, ErrorCode.MALFORMED_BODY, f"the request's body cannot be used: {error}")
        except (MigrationError, ModelError, RequestError) as error:
            return self._reject(409, getattr(error, "code", ErrorCode.CONFLICT), str(error))
        except web.HTTPException as error:
            return self._reject(error.status, code_of(error), error.reason)

    def _reject(self, status: int, code: ErrorCode, reason: str) -> web.Response:
        self.rejected[code] += 1
        reason = cut(printable(reason))
        log.info("domain.rejected", domain=self._peer, code=str(code), reason=reason)
        return answer({"error": reason, "code": code}, status=status)


def check_controller(request: web.Request) -> None:
    """Raises IdentityError for one who is no controller, by the certificate of the peer's authority."""
    transport = request.transport
    shown = transport.get_extra_info("peercert") if transport is not None else None
    identity = identity_of(shown)
    if identity is None or identity.role is not PeerRole.CONTROLLER:
        raise IdentityError(f"a controller speaks here, and not {identity or 'nobody known'}")

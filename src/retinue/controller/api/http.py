"""What every route's handler needs: the body of a request, an answer, and "there is none"."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.access import largest_body, right_of
from retinue.protocol.errors import ErrorCode
from retinue.protocol.records import known_part
from retinue.protocol.releases import AGENT_HEADER
from retinue.protocol.routes import Right, Route

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Handlers = Mapping[Route, Handler]

BODY_LIMIT = 30.0
"""Seconds for a request's body to come in."""


_OF_HTTP = {
    404: ErrorCode.NO_SUCH_PATH,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    413: ErrorCode.BODY_TOO_LARGE,
}
"""By the status with which the HTTP library itself rejects a request."""


class NotFoundError(Exception):
    """Status 404: there is no such thing. The message says so, and where those there are can be seen."""

    def __init__(self, message: str, code: ErrorCode) -> None:
        super().__init__(message)
        self.code = code


class QueryError(Exception):
    """Status 400: a part of the query is not what it should be."""


async def body(request: web.Request, kind: Any, empty: bytes = b"") -> Any:
    """The request's JSON body as a record of this kind; `empty` stands for none. What an agent of a newer
    release says besides is left out (protocol.releases).

    Raises msgspec.DecodeError, and web.HTTPException for a body that is too large, for its sender or for the
    application, or too slow.
    """
    largest = min(largest_body(request), request.client_max_size)
    if (request.content_length or 0) > largest:
        raise web.HTTPRequestEntityTooLarge(largest, request.content_length or 0)
    try:
        async with asyncio.timeout(BODY_LIMIT):
            data = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error
    if len(data) > largest:
        raise web.HTTPRequestEntityTooLarge(largest, len(data))
    try:
        return _decoded(data or empty, kind, of_agent=_is_an_agents(request))
    except RecursionError as error:
        raise msgspec.DecodeError("it is nested too deep") from error
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8: {error.reason} at byte {error.start}") from error


def code_of(error: web.HTTPException) -> ErrorCode:
    """Of a rejection by the HTTP library."""
    return _OF_HTTP.get(error.status, ErrorCode.MALFORMED_REQUEST)


def _is_an_agents(request: web.Request) -> bool:
    """What only managers ask, and other domains' controllers say, is no report, whatever its header says."""
    return AGENT_HEADER in request.headers and right_of(request) is not Right.MANAGE


def _decoded(data: bytes, kind: Any, *, of_agent: bool) -> Any:
    """JSON knows one kind of number: where an integer is due, 5.0 is 5."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError:
        value = _whole(msgspec.json.decode(data))
        return msgspec.convert(known_part(value, kind) if of_agent else value, kind)


def _whole(value: Any) -> Any:
    """The same with an integer in the place of every number without a fraction."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_whole(one) for one in value]
        case dict():
            return {key: _whole(one) for key, one in value.items()}
        case _:
            return value


def many(found: Any) -> list[Any]:
    """A list of what may be sent one by one or in bulk."""
    return found if isinstance(found, list) else [found]


def answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=views.encode(value), content_type="application/json", status=status)

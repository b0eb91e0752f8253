"""What every route's handler needs: the body of a request, an answer, and "there is none"."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.access import largest_body
from retinue.protocol.errors import ErrorCode
from retinue.protocol.routes import Route

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Handlers = Mapping[Route, Handler]

BODY_LIMIT = 30.0
"""Seconds for a request's body to come in."""


class NotFoundError(Exception):
    """Status 404: there is no such thing. The message says so, and where those there are can be seen."""

    def __init__(self, message: str, code: ErrorCode) -> None:
        super().__init__(message)
        self.code = code


async def body(request: web.Request, kind: Any, empty: bytes = b"") -> Any:
    """The request's JSON body as a record of this kind; `empty` stands for none.

    Raises msgspec.DecodeError, and web.HTTPException for a body that is too large or too slow.
    """
    largest = largest_body(request)
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
        return msgspec.json.decode(data or empty, type=kind)
    except RecursionError as error:
        raise msgspec.DecodeError("it is nested too deep") from error
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8: {error.reason} at byte {error.start}") from error


def many(found: Any) -> list[Any]:
    """A list of what may be sent one by one or in bulk."""
    return found if isinstance(found, list) else [found]


def answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=views.encode(value), content_type="application/json", status=status)

"""What every listener of HTTP here needs, whoever's: a request's body as a record, an answer, and what it is
when the HTTP library rejects a request by itself."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from retinue.protocol.errors import ErrorCode
from retinue.protocol.records import known_part

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_LIMIT = 30.0
"""Seconds for a request's body to come in."""

_OF_HTTP = {
    404: ErrorCode.NO_SUCH_PATH,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    413: ErrorCode.BODY_TOO_LARGE,
}
"""By the status with which the HTTP library itself rejects a request."""


async def read_body(
    request: web.Request, kind: Any, largest: int, empty: bytes = b"", *, newer: bool = False
) -> Any:
    """The request's JSON body as a record of this kind; `empty` stands for none. `newer`: who sends it may be
    of a newer release, and what it says besides is left out (protocol.releases).

    Raises msgspec.DecodeError, and web.HTTPException for a body that is too large, here or for the
    application, or too slow.
    """
    largest = min(largest, request.client_max_size)
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
        return _decoded(data or empty, kind, newer=newer)
    except RecursionError as error:
        raise msgspec.DecodeError("it is nested too deep") from error
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8: {error.reason} at byte {error.start}") from error


def encode(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)


def answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=encode(value), content_type="application/json", status=status)


def code_of(error: web.HTTPException) -> ErrorCode:
    """Of a rejection by the HTTP library."""
    return _OF_HTTP.get(error.status, ErrorCode.MALFORMED_REQUEST)


def _decoded(data: bytes, kind: Any, *, newer: bool) -> Any:
    """JSON knows one kind of number: where an integer is due, 5.0 is 5."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError:
        value = _whole(msgspec.json.decode(data))
        return msgspec.convert(known_part(value, kind) if newer else value, kind)


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

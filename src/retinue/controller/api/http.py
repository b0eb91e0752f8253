"""What every route's handler needs: the body of a request, an answer, and "there is none"."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from retinue.controller.api.access import largest_body, right_of
from retinue.protocol.errors import ErrorCode
from retinue.protocol.releases import AGENT_HEADER
from retinue.protocol.routes import Right, Route
from retinue.protocol.serving import Handler, answer, code_of, read_body

Handlers = Mapping[Route, Handler]


class NotFoundError(Exception):
    """Status 404: there is no such thing. The message says so, and where those there are can be seen."""

    def __init__(self, message: str, code: ErrorCode) -> None:
        super().__init__(message)
        self.code = code


class QueryError(Exception):
    """Status 400: a part of the query is not what it should be."""


async def body(request: web.Request, kind: Any, empty: bytes = b"") -> Any:
    """The request's JSON body as a record of this kind, as its sender may send it; `empty` stands for none.
    What an agent of a newer release says besides is left out.

    Raises what `read_body` raises.
    """
    return await read_body(request, kind, largest_body(request), empty, newer=_is_an_agents(request))


def _is_an_agents(request: web.Request) -> bool:
    """What only managers ask, and other domains' controllers say, is no report, whatever its header says."""
    return AGENT_HEADER in request.headers and right_of(request) is not Right.MANAGE


def many(found: Any) -> list[Any]:
    """A list of what may be sent one by one or in bulk."""
    return found if isinstance(found, list) else [found]


__all__ = ["Handler", "Handlers", "NotFoundError", "QueryError", "answer", "body", "code_of", "many"]

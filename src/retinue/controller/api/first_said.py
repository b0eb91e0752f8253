"""What a manager says is kept as its word, and what contradicts another's is rejected with who was first."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from aiohttp import web

from retinue.controller.api.access import manager_of
from retinue.controller.app import Controller
from retinue.controller.errors import RequestError
from retinue.controller.migrations.requests import MigrationError
from retinue.protocol.errors import ErrorCode

CONTRADICTS = frozenset({ErrorCode.ALREADY_REGISTERED, ErrorCode.MIGRATION_UNDER_WAY, ErrorCode.NAME_TAKEN})


@contextmanager
def said(controller: Controller, request: web.Request, kind: str, ids: Collection[str]) -> Iterator[None]:
    """Inside the context the manager's word about these things is judged, and done."""
    try:
        yield
    except (RequestError, MigrationError) as error:
        first = controller.words.first(kind, ids) if error.code in CONTRADICTS else ""
        if first:
            error.args = (f"{error}; {first}",)
        raise
    controller.words.say(kind, ids, manager_of(request))


__all__ = ["said"]

"""Every route has a handler and a right, and docs/api.md says the same of it."""

import re
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from retinue.controller.api.access import Access, NotAuthenticatedError, right_of
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.protocol.errors import ErrorCode
from retinue.protocol.routes import Right, Route
from support.fabric.networks import fabric

PAGE = Path(__file__).parents[4] / "docs" / "api.md"


async def test_a_route_is_served_by_its_own_handler_and_nothing_else_is() -> None:
    handlers = Api(Controller(fabric(), clock=lambda: 1000.0), dict).handlers()
    assert set(handlers) == set(Route)
    assert len(set(handlers.values())) == len(handlers)


def test_reading_is_for_everybody_and_changing_is_not() -> None:
    """What changes nothing is a GET; but for a trace, whose question may be as long as a frame."""
    for route in set(Route) - {Route.TRACE_FRAME}:
        assert (route.right is Right.READ) == (route.method == "GET"), route
    assert Route.TRACE_FRAME.right is Right.READ


async def test_the_right_of_a_request_is_that_of_its_route() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    for route in Route:
        app.router.add_route(route.method, route.template, handler)
    for route in Route:
        request = make_mocked_request(route.method, route.path("a b/c" if "{id}" in route.template else ""))
        request._match_info = await app.router.resolve(request)
        assert right_of(request) is route.right, route
    unknown = (("GET", Right.READ), ("HEAD", Right.READ), ("POST", Right.MANAGE), ("PUT", Right.MANAGE))
    for method, right in unknown:
        request = make_mocked_request(method, "/v1/nothing")
        request._match_info = await app.router.resolve(request)
        assert right_of(request) is right, method


@pytest.mark.parametrize("shown", ["Bearer abc", "bearer ", "Basic YTpi"])
async def test_a_token_where_there_are_none_lets_nobody_in(shown: str) -> None:
    controller = Controller(fabric(), clock=lambda: 1000.0)
    request = make_mocked_request("GET", "/v1/vms", {"Authorization": shown})
    words = "must be: Bearer TOKEN" if shown.startswith("Basic") else "the token is not known"
    with pytest.raises(NotAuthenticatedError, match=words):
        Access(controller, open=False).check(request)
    if shown.startswith("Basic"):
        with pytest.raises(NotAuthenticatedError, match=words):
            Access(controller).check(request)
    else:
        Access(controller).check(
            request
        )  # Whoever shows nothing is a manager here, and so is who shows this.


def test_a_path_has_its_parts_quoted() -> None:
    assert Route.GET_VM.path("a b/c") == "/v1/vms/a%20b%2Fc"
    assert Route.LIST_FLOWS.path(switch="leaf 1", vm=None) == "/v1/flows?switch=leaf+1"


def test_the_page_has_every_code() -> None:
    table = re.findall(r"^\| `([a-z_]+)` \| (\d+(?:, \d+)*) \|", PAGE.read_text(), re.MULTILINE)
    assert {code for code, _ in table} == set(ErrorCode)

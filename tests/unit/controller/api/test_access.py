"""Every route has a handler and a right, and docs/api.md says the same of it."""

import re
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from retinue.controller.api.access import right_of
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
    for route in Route:
        assert (route.right is Right.READ) == (route.method == "GET"), route


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


def test_a_path_has_its_parts_quoted() -> None:
    assert Route.GET_VM.path("a b/c") == "/v1/vms/a%20b%2Fc"
    assert Route.LIST_FLOWS.path(switch="leaf 1", vm=None) == "/v1/flows?switch=leaf+1"


def test_the_page_has_every_code() -> None:
    table = re.findall(r"^\| `([a-z_]+)` \| (\d+(?:, \d+)*) \|", PAGE.read_text(), re.MULTILINE)
    assert {code for code, _ in table} == set(ErrorCode)

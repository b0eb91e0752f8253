"""Bindings, and the spoofing attempts against them."""

from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.http import Handlers, answer
from retinue.controller.app import Controller
from retinue.protocol.routes import Route


def handlers(controller: Controller) -> Handlers:
    async def bindings(request: web.Request) -> web.Response:
        vm = request.query.get("vm")
        rows = controller.net.bindings(None if vm is None else [vm])
        return answer({"bindings": views.bindings(controller, rows), **views.spoof_attempts(controller)})

    async def spoof_attempts(_: web.Request) -> web.Response:
        return answer(views.spoof_attempts(controller))

    return {Route.LIST_BINDINGS: bindings, Route.LIST_SPOOF_ATTEMPTS: spoof_attempts}

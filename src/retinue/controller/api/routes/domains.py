"""Other domains: the gateway to each, and which VMs are away, or guests."""

from aiohttp import web

from retinue.controller.api.http import Handlers, answer
from retinue.controller.app import Controller
from retinue.protocol.routes import Route


def handlers(controller: Controller) -> Handlers:
    async def all_domains(_: web.Request) -> web.Response:
        return answer(controller.domains.shown())

    return {Route.LIST_DOMAINS: all_domains}

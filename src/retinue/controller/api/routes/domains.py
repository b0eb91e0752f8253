"""Other domains: the gateway to each, which VMs are away, or guests, and what passes for them."""

from aiohttp import web

from retinue.controller.api.http import Handlers, answer, body
from retinue.controller.api.routes.vms import find
from retinue.controller.app import Controller
from retinue.protocol.mobility import AnchorValues
from retinue.protocol.routes import Route


def handlers(controller: Controller) -> Handlers:
    anchors = controller.domains.anchors

    async def all_domains(_: web.Request) -> web.Response:
        return answer(controller.domains.shown())

    async def all_anchors(_: web.Request) -> web.Response:
        return answer({"anchors": anchors.shown()})

    async def one_anchor(request: web.Request) -> web.Response:
        return answer(anchors.shown_of(find(controller, request.match_info["id"]).id))

    async def set_anchor(request: web.Request) -> web.Response:
        given: AnchorValues = await body(request, AnchorValues)
        id = find(controller, request.match_info["id"]).id
        return answer(await anchors.set(id, given.ended, given.idle_seconds, given.seconds))

    return {
        Route.LIST_DOMAINS: all_domains,
        Route.LIST_ANCHORS: all_anchors,
        Route.GET_ANCHOR: one_anchor,
        Route.SET_ANCHOR: set_anchor,
    }

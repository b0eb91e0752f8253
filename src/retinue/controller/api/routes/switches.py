"""Switches: shown, audited, and the flow entries they should hold."""

from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.http import Handlers, NotFoundError, answer
from retinue.controller.api.routes import vms
from retinue.controller.app import Controller
from retinue.protocol.errors import ErrorCode
from retinue.protocol.routes import Route


def handlers(controller: Controller) -> Handlers:
    async def all_switches(_: web.Request) -> web.Response:
        return answer({"switches": views.switches(controller)})

    async def audit(request: web.Request) -> web.Response:
        switch = _find(controller, request.match_info["id"])
        return answer({"switch": switch, **views.plain(await controller.auditor.audit(switch))})

    async def flows(request: web.Request) -> web.Response:
        switch, vm = request.query.get("switch"), request.query.get("vm")
        if vm is not None:
            vms.find(controller, vm)
        names = list(controller.net.switches) if switch is None else [_find(controller, switch)]
        return answer({"flows": [flow for name in names for flow in views.flows(controller, name, vm)]})

    return {Route.LIST_SWITCHES: all_switches, Route.AUDIT_SWITCH: audit, Route.LIST_FLOWS: flows}


def _find(controller: Controller, id: str) -> str:
    """Raises NotFoundError."""
    if id not in controller.net.switches:
        raise NotFoundError(
            f"there is no switch {id}; `retinue switch list` shows those there are", ErrorCode.UNKNOWN_SWITCH
        )
    return id

"""Bindings, and the spoofing attempts against them."""

from typing import Any

from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.http import Handlers, answer
from retinue.controller.app import Controller
from retinue.controller.storage_changes import shown
from retinue.core.model import Network
from retinue.core.model.storage import FcLogin
from retinue.protocol.routes import Route


def handlers(controller: Controller) -> Handlers:
    log = controller.context.spoof_attempts

    async def bindings(request: web.Request) -> web.Response:
        vm = request.query.get("vm")
        rows = controller.net.bindings(None if vm is None else [vm])
        attempts = log.total if vm is None else log.of_vm(vm)
        return answer({"bindings": views.bindings(controller, rows), "spoof_attempts": attempts})

    async def spoof_attempts(request: web.Request) -> web.Response:
        return answer(views.spoof_attempts(controller, request.query.get("vm")))

    async def fc_logins(request: web.Request) -> web.Response:
        vm, net = request.query.get("vm"), controller.net
        found = [login for _, login in sorted(net.fc_logins.items()) if vm in (None, login.vm)]
        return answer({"logins": [_login(net, login) for login in found]})

    return {
        Route.LIST_BINDINGS: bindings,
        Route.LIST_FC_LOGINS: fc_logins,
        Route.LIST_SPOOF_ATTEMPTS: spoof_attempts,
    }


def _login(net: Network, login: FcLogin) -> dict[str, Any]:
    """A login, and where its frames are brought."""
    vm = net.vms[login.vm]
    edge, nic = net.servers[vm.server].edge, vm.nic_with(login.nic)
    port = None if nic is None else net.port_of(nic, edge)
    return {**shown(login), "switch": edge, "port": None if port is None else port.number}

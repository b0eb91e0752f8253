"""NICs of VMs, as managers put them in, change them and take them out."""

from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.http import Handlers, answer, body
from retinue.controller.api.nics import nic_of
from retinue.controller.app import Controller
from retinue.controller.parsing import address, network
from retinue.core.model import Allowed, entity_id, mac
from retinue.core.model.nic import mirror_port
from retinue.protocol.nics import AllowedBody, NICBody, NICRemoveBody, NICSetBody
from retinue.protocol.routes import Route


def handlers(controller: Controller) -> Handlers:
    nics = controller.inventory.nics

    async def add(request: web.Request) -> web.Response:
        id, given = request.match_info["id"], await body(request, NICBody)
        slot = nics.free_slot(id, given.trunk)
        nic = nic_of(id, given, nics.free_number(id, slot), slot)
        return answer(views.vm(controller, nics.add(id, nic)), 201)

    async def set_(request: web.Request) -> web.Response:
        id, wanted = request.match_info["id"], await body(request, NICSetBody)
        vm = await controller.nics.change(
            id,
            wanted.nic,
            mac=None if wanted.mac is None else mac(wanted.mac),
            addresses=None if wanted.addresses is None else tuple(map(address, wanted.addresses)),
            vnet=entity_id(wanted.vnet, "a vnet") if wanted.vnet else wanted.vnet,
            enabled=wanted.enabled,
            trusted=wanted.trusted,
            rate=wanted.rate,
            allowed=None if wanted.allowed is None else tuple(map(_allowed, wanted.allowed)),
            prefixes=None if wanted.prefixes is None else tuple(map(network, wanted.prefixes)),
            mac_changes=wanted.mac_changes,
            anycast=None if wanted.anycast is None else tuple(map(address, wanted.anycast)),
            load=wanted.load,
            mirror=None if wanted.mirror is None else mirror_port(wanted.mirror),
        )
        return answer(views.vm(controller, vm))

    async def remove(request: web.Request) -> web.Response:
        wanted: NICRemoveBody = await body(request, NICRemoveBody)
        return answer(views.vm(controller, nics.remove(request.match_info["id"], wanted.nic)))

    return {Route.ADD_NIC: add, Route.SET_NIC: set_, Route.REMOVE_NIC: remove}


def _allowed(given: AllowedBody) -> Allowed:
    return Allowed(address(given.address), mac(given.mac) if given.mac else "")

"""VMs: registered, shown and removed by managers, reported by the agents of their servers."""

from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.access import speaks_for
from retinue.controller.api.http import Handlers, NotFoundError, answer, body, many
from retinue.controller.api.nics import nics_of
from retinue.controller.app import Controller
from retinue.controller.config import address
from retinue.controller.inventory.settings import VMChanges
from retinue.core.model import VM, entity_id, mac
from retinue.core.text import cut
from retinue.protocol.errors import ErrorCode
from retinue.protocol.routes import Route
from retinue.protocol.vms import RebootBody, StopBody, VMBody, VMChangeBody, VMReportBody


def handlers(controller: Controller) -> Handlers:
    async def all_vms(_: web.Request) -> web.Response:
        vms = [views.vm(controller, vm) for vm in controller.net.vms.values()]
        left = {"removed": controller.inventory.removed_vms(), "fenced": sorted(controller.net.fenced)}
        return answer({"vms": vms, **left})

    async def one_vm(request: web.Request) -> web.Response:
        return answer(views.vm(controller, find(controller, request.match_info["id"])))

    async def register(request: web.Request) -> web.Response:
        bodies: list[VMBody] = many(await body(request, VMBody | list[VMBody]))
        registered = controller.inventory.register_vms([_vm(given) for given in bodies])
        return answer({"vms": [views.vm(controller, vm) for vm in registered]}, status=201)

    async def change(request: web.Request) -> web.Response:
        given: VMChangeBody = await body(request, VMChangeBody)
        wanted = VMChanges(
            memory_mib=given.memory_mib,
            addresses=None if given.addresses is None else tuple(map(address, given.addresses)),
            restart=given.restart,
            mac=None if given.mac is None else mac(given.mac),
            server=given.server,
        )
        vm = await controller.inventory.settings.change(request.match_info["id"], wanted)
        return answer(views.vm(controller, vm))

    async def remove(request: web.Request) -> web.Response:
        id = request.match_info["id"]
        await controller.inventory.remove_vm(id)
        return answer({"removed": id})

    async def report(request: web.Request) -> web.Response:
        reported: VMReportBody = await body(request, VMReportBody)
        speaks_for(request, reported.server)
        controller.inventory.power.on_report(
            request.match_info["id"], reported.event, reported.server, reported.how, cut(reported.reason)
        )
        return answer({"ok": True})

    power = controller.inventory.power

    async def start(request: web.Request) -> web.Response:
        return answer(views.vm(controller, power.start(request.match_info["id"])))

    async def stop(request: web.Request) -> web.Response:
        wanted: StopBody = await body(request, StopBody, b"{}")
        vm = power.stop(request.match_info["id"], wanted.hard, wanted.seconds)
        return answer(views.vm(controller, vm))

    async def reboot(request: web.Request) -> web.Response:
        wanted: RebootBody = await body(request, RebootBody, b"{}")
        return answer(views.vm(controller, power.reboot(request.match_info["id"], wanted.seconds)))

    async def reset(request: web.Request) -> web.Response:
        return answer(views.vm(controller, power.reset(request.match_info["id"])))

    return {
        Route.LIST_VMS: all_vms,
        Route.GET_VM: one_vm,
        Route.REGISTER_VMS: register,
        Route.SET_VM: change,
        Route.REMOVE_VM: remove,
        Route.REPORT_VM: report,
        Route.START_VM: start,
        Route.STOP_VM: stop,
        Route.REBOOT_VM: reboot,
        Route.RESET_VM: reset,
    }


def find(controller: Controller, id: str) -> VM:
    """Raises NotFoundError."""
    vm = controller.net.vms.get(id)
    if vm is None:
        raise NotFoundError(
            f"there is no VM {id}; `retinue vm list` shows those there are", ErrorCode.UNKNOWN_VM
        )
    return vm


def _vm(given: VMBody) -> VM:
    id = entity_id(given.id, "a VM")
    return VM(id, nics_of(given), given.server, restart=given.restart, memory_mib=given.memory_mib)

"""VMs: registered, shown and removed by managers, reported by the agents of their servers."""

import msgspec
from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.access import speaks_for
from retinue.controller.api.first_said import said
from retinue.controller.api.http import Handlers, NotFoundError, answer, body, many
from retinue.controller.api.nics import nics_of
from retinue.controller.app import Controller
from retinue.controller.errors import RequestError
from retinue.controller.inventory.settings import VMChanges
from retinue.controller.parsing import address
from retinue.core.model import VM, Mac, entity_id, mac
from retinue.core.text import cut
from retinue.protocol.errors import ErrorCode
from retinue.protocol.routes import Route
from retinue.protocol.vm_reports import ConfirmBody
from retinue.protocol.vms import RebootBody, StopBody, VMBody, VMChangeBody, VMReportBody


def handlers(controller: Controller) -> Handlers:
    async def all_vms(_: web.Request) -> web.Response:
        vms = [views.vm(controller, vm) for vm in controller.net.vms.values()]
        left = {"removed": controller.inventory.ports.removed_vms(), "fenced": sorted(controller.net.fenced)}
        return answer({"vms": vms, **left})

    async def one_vm(request: web.Request) -> web.Response:
        return answer(views.vm(controller, find(controller, request.match_info["id"])))

    async def register(request: web.Request) -> web.Response:
        bodies: list[VMBody] = many(await body(request, VMBody | list[VMBody]))
        taken: set[Mac] = set()
        vms = [_vm(controller, given, taken) for given in bodies]
        if len(vms) == 1 and _is_said_again(controller, bodies[0], vms[0]):
            told, wanted = vms[0], VMChanges(server=vms[0].server, host=vms[0].host)
            changed = await controller.inventory.settings.change(told.id, wanted)
            return answer({"vms": [views.vm(controller, changed)]})
        with said(controller, request, "vm", [vm.id for vm in vms]):
            registered = controller.inventory.register_vms(vms)
        return answer({"vms": [views.vm(controller, vm) for vm in registered]}, status=201)

    async def change(request: web.Request) -> web.Response:
        given: VMChangeBody = await body(request, VMChangeBody)
        server, host = _place(controller, given.server or "", given.server_mac or "")
        wanted = VMChanges(
            memory_mib=given.memory_mib,
            addresses=None if given.addresses is None else tuple(map(address, given.addresses)),
            restart=given.restart,
            mac=None if given.mac is None else mac(given.mac),
            server=server or None,
            host=host,
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

    async def confirm(request: web.Request) -> web.Response:
        given: ConfirmBody = await body(request, ConfirmBody)
        addresses = tuple(map(address, given.addresses))
        vm = await controller.inventory.reports.confirm(request.match_info["id"], addresses)
        return answer(views.vm(controller, vm))

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
        Route.CONFIRM_VM: confirm,
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


def _is_said_again(controller: Controller, given: VMBody, told: VM) -> bool:
    """A VM that is known, told once more in full, with the physical MAC of another server than it is at."""
    known = controller.net.vms.get(told.id)
    if known is None or known.reported or not (given.server_mac and (given.mac or given.nics)):
        return False
    return told.nics == known.nics and (told.server, told.host) != (known.server, known.host)


def _place(controller: Controller, id: str, physical_mac: str) -> tuple[str, str]:
    """The server that is meant, by its id or by its MAC, and the host of it, if one of its hosts is.

    Both are "" where nothing is given. Raises ModelError.
    """
    if not physical_mac:
        at = controller.net.server_of_host(id)
        return (id, "") if at is None else (at.id, id)
    found = controller.net.place_of_mac(mac(physical_mac))
    if found is None:
        raise RequestError(
            f"no server has MAC {mac(physical_mac)}; `retinue server list` shows those there are",
            ErrorCode.UNKNOWN_SERVER,
        )
    server, host = found
    if id not in ("", host or server):
        whose = f"host {host} of server {server}" if host else f"server {server}"
        raise RequestError(f"{mac(physical_mac)} is the MAC of {whose}, not of {id}")
    return found


def _vm(controller: Controller, given: VMBody, taken: set[Mac]) -> VM:
    """`taken`: the pairs that VMs of this request have taken so far."""
    id = entity_id(given.id, "a VM")
    server, host = _place(controller, given.server, given.server_mac)
    if not (given.mac or given.addresses or given.nics):
        pair = controller.pairs.take(id, taken)
        taken.add(pair.mac)
        given = msgspec.structs.replace(given, mac=pair.mac, addresses=[str(pair.ip)])
    disks = tuple(disk.disk() for disk in given.disks)
    return VM(
        id, nics_of(given), server, host=host,
        restart=given.restart, memory_mib=given.memory_mib, disks=disks,
    )  # fmt: skip

"""What switches hold: audited, their MAC tables and rows, and the flow entries they should hold."""

from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.http import Handlers, NotFoundError, answer, body
from retinue.controller.api.routes import vms
from retinue.controller.app import Controller
from retinue.controller.parsing import address
from retinue.core.model import Role, mac
from retinue.core.snooping.switch_rows import SwitchRow
from retinue.protocol.errors import ErrorCode
from retinue.protocol.routes import Route
from retinue.protocol.snooping_rows import RowsBody


def handlers(controller: Controller) -> Handlers:
    async def audit(request: web.Request) -> web.Response:
        switch = _find(controller, request.match_info["id"])
        return answer({"switch": switch, **views.plain(await controller.auditor.audit(switch))})

    async def macs(request: web.Request) -> web.Response:
        switch = _find(controller, request.match_info["id"])
        if controller.net.switches[switch].role is not Role.EDGE:
            raise NotFoundError(
                f"switch {switch} is no edge: it forwards by address, and knows no VM's MAC",
                ErrorCode.UNKNOWN_SWITCH,
            )
        return answer({"switch": switch, "rows": views.mac_table(controller, switch)})

    async def report_rows(request: web.Request) -> web.Response:
        switch = _find(controller, request.match_info["id"])
        table: RowsBody = await body(request, RowsBody)
        now = controller.context.clock()
        rows = [
            SwitchRow(
                mac(row.mac), address(row.ip), row.port,
                None if row.seconds_left is None else now + row.seconds_left,
            )
            for row in table.rows
        ]  # fmt: skip
        said = await controller.switch_rows.reported(switch, rows)
        shown = [
            {"mac": row.mac, "ip": str(row.ip), "rejected": why} for row, why in zip(rows, said, strict=True)
        ]
        return answer({"switch": switch, "rows": shown})

    async def flows(request: web.Request) -> web.Response:
        switch, vm = request.query.get("switch"), request.query.get("vm")
        if vm is not None:
            vms.find(controller, vm)
        names = list(controller.net.switches) if switch is None else [_find(controller, switch)]
        return answer({"flows": [flow for name in names for flow in views.flows(controller, name, vm)]})

    return {
        Route.GET_MAC_TABLE: macs,
        Route.REPORT_ROWS: report_rows,
        Route.AUDIT_SWITCH: audit,
        Route.LIST_FLOWS: flows,
    }


def _find(controller: Controller, id: str) -> str:
    """Raises NotFoundError."""
    if id not in controller.net.switches:
        raise NotFoundError(
            f"there is no switch {id}; `retinue switch list` shows those there are", ErrorCode.UNKNOWN_SWITCH
        )
    return id

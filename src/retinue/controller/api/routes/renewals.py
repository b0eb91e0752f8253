"""Leases renewed on VMs' behalf: ordered by a manager or an agent, reported, asked about."""

from aiohttp import web

from retinue.controller.api.access import speaks_for
from retinue.controller.api.http import Handlers, QueryError, answer, body
from retinue.controller.app import Controller
from retinue.core.text import cut
from retinue.protocol.renewals import LONGEST_WAIT, RenewalReportBody, RenewBody
from retinue.protocol.routes import Route


def handlers(controller: Controller) -> Handlers:
    renewals = controller.renewals

    async def renew(request: web.Request) -> web.Response:
        wanted: RenewBody = await body(request, RenewBody, empty=b"{}")
        id, server = request.match_info["id"], wanted.server
        by = speaks_for(request, server)
        if by is not None and not server:
            # An agent renews at its own server; and nowhere else, whatever it leaves out.
            vm = controller.net.vms.get(id)
            server = next((one for one in by if vm is not None and one in (vm.server, *vm.also)), "")
        order = renewals.renew(id, server, announce=not wanted.agent, nic=wanted.nic)
        return answer(order, 201)

    async def all_renewals(_: web.Request) -> web.Response:
        return answer({"renewals": list(renewals.orders.values())})

    async def one_renewal(request: web.Request) -> web.Response:
        """With `?wait=SECONDS` when it has ended, or after that time."""
        return answer(await renewals.result(request.match_info["id"], _seconds(request.query.get("wait"))))

    async def report(request: web.Request) -> web.Response:
        reported: RenewalReportBody = await body(request, RenewalReportBody)
        return answer(renewals.on_report(request.match_info["id"], reported.event, cut(reported.reason)))

    return {
        Route.RENEW_LEASE: renew,
        Route.LIST_RENEWALS: all_renewals,
        Route.GET_RENEWAL: one_renewal,
        Route.REPORT_RENEWAL: report,
    }


def _seconds(text: str | None) -> float:
    try:
        seconds = 0.0 if text is None else float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= LONGEST_WAIT:
        raise QueryError(f"wait={text}: not a number of seconds between 0 and {LONGEST_WAIT:.0f}")
    return seconds

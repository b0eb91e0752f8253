"""Migrations: started and cancelled by managers, reported by the agents of the two servers."""

from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.access import speaks_for
from retinue.controller.api.first_said import said
from retinue.controller.api.http import Handlers, NotFoundError, answer, body
from retinue.controller.app import Controller
from retinue.controller.migrations.requests import check_memory_address, check_request
from retinue.controller.migrations.words import check_speaker
from retinue.controller.parsing import address
from retinue.core.migration import Migration
from retinue.core.migration.copying import AskedCopy
from retinue.core.migration.new_addresses import NewAddresses
from retinue.core.migration.record import Far
from retinue.core.model import entity_id, mac
from retinue.core.placement import Reason, Wish
from retinue.core.text import cut
from retinue.protocol.errors import ErrorCode
from retinue.protocol.migrations import MigrationBody, NewAddressesBody, Report, ReportAnswer, ReportBody
from retinue.protocol.routes import Route


def handlers(controller: Controller) -> Handlers:
    orchestrator = controller.orchestrator

    async def all_migrations(_: web.Request) -> web.Response:
        found = orchestrator.migrations.values()
        return answer({"migrations": [views.migration(controller, migration) for migration in found]})

    async def one_migration(request: web.Request) -> web.Response:
        id = request.match_info["id"]
        found = orchestrator.migrations.get(id)
        if found is None:
            raise NotFoundError(
                f"there is no migration {id}; `retinue move list` shows those there are",
                ErrorCode.UNKNOWN_MIGRATION,
            )
        return answer(views.migration(controller, found))

    async def start(request: web.Request) -> web.Response:
        wanted: MigrationBody = await body(request, MigrationBody)
        with said(controller, request, "migration of", [wanted.vm]):
            return await begun(wanted)

    async def begun(wanted: MigrationBody) -> web.Response:
        named = wanted.target_server or wanted.target_switch or wanted.after_the_fact
        if not named or (wanted.reason is not Reason.OPERATOR and not wanted.after_the_fact):
            return answer(views.migration(controller, await chosen(wanted)), status=201)
        return answer(views.migration(controller, started(wanted)), status=201)

    def started(wanted: MigrationBody) -> Migration:
        domain, _, server = wanted.target_server.partition("/")
        return orchestrator.start(
            wanted.vm,
            target_server=wanted.target_server,
            far=Far(domain, server) if domain in controller.net.peers else None,
            target_switch=wanted.target_switch,
            source_server=wanted.source_server,
            mac=mac(wanted.mac) if wanted.mac else "",
            ip=address(wanted.ip) if wanted.ip else None,
            wanted_downtime=wanted.downtime_ms / 1000,
            asked=AskedCopy(wanted.postcopy, wanted.compress),
            new_addresses=[_new_addresses(nic) for nic in wanted.nics],
            after_the_fact=wanted.after_the_fact,
        )

    async def chosen(wanted: MigrationBody) -> Migration:
        """Started with the target that placement chooses, or finds good enough where one is named."""
        named = wanted.target_server
        if wanted.target_switch or (named and named not in controller.net.servers):
            named = check_request(
                controller.net, wanted.vm, named, wanted.target_switch, wanted.source_server, "", None
            ).target
        return await controller.mobility.migrate(
            wanted.vm,
            Wish(wanted.reason),
            named=named,
            source_server=wanted.source_server,
            mac=mac(wanted.mac) if wanted.mac else "",
            ip=address(wanted.ip) if wanted.ip else None,
            wanted_downtime=wanted.downtime_ms / 1000,
            asked=AskedCopy(wanted.postcopy, wanted.compress),
            new_addresses=[_new_addresses(nic) for nic in wanted.nics],
        )

    async def cancel(request: web.Request) -> web.Response:
        return answer(views.migration(controller, orchestrator.cancel(request.match_info["id"])))

    async def report(request: web.Request) -> web.Response:
        reported: ReportBody = await body(request, ReportBody)
        id = request.match_info["id"]
        by = speaks_for(request, reported.server)
        if reported.event is Report.COPYING:
            figures = (reported.copy_pass, reported.remaining, reported.written_a_second)
            after = orchestrator.reports.on_copying(id, *figures, by, postcopy=reported.postcopy)
            return answer(ReportAnswer(after.state))
        if reported.event is Report.WAITED:
            waited = orchestrator.reports.on_waited
            return answer(await waited(id, reported.waiting, by, watching=reported.watching))
        if reported.memory_at:
            check_memory_address(reported.memory_at, request.remote)
        await orchestrator.reports.until_source_let_go(id, reported.event, by)
        check_speaker(orchestrator.get(id)[1], reported.event, by)
        stays = await orchestrator.far_ends.before_report(id, reported.event, cut(reported.reason))
        if stays is not None:
            return answer(ReportAnswer(stays.state))
        if reported.event is Report.TARGET_OPENED:
            orchestrator.reports.on_prepared(id, reported.image_ms, reported.machine_ms)
        orchestrator.reports.on_report(
            id, reported.event, reported.at, cut(reported.reason), reported.memory_at, reported.frames, by
        )
        how = {"watching": reported.watching, "sent": reported.sent}
        return answer(await orchestrator.reports.answer(id, reported.event, **how))

    return {
        Route.LIST_MIGRATIONS: all_migrations,
        Route.GET_MIGRATION: one_migration,
        Route.START_MIGRATION: start,
        Route.CANCEL_MIGRATION: cancel,
        Route.REPORT_MIGRATION: report,
    }


def _new_addresses(given: NewAddressesBody) -> NewAddresses:
    """Raises ModelError."""
    return NewAddresses(
        given.nic,
        mac(given.mac) if given.mac else "",
        entity_id(given.vnet, "a vnet") if given.vnet else given.vnet,
        None if given.addresses is None else tuple(str(address(ip)) for ip in given.addresses),
    )

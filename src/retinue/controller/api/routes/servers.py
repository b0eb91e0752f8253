"""Servers: registered by managers; their agents report what the hypervisor does, and whom they rejected."""

from dataclasses import fields

from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.access import manager_of
from retinue.controller.api.first_said import said
from retinue.controller.api.http import Handlers, NotFoundError, answer, body, many
from retinue.controller.app import Controller
from retinue.controller.errors import RequestError, no_server
from retinue.controller.inventory.vm_reports import Report
from retinue.controller.parsing import address, network, port_ref, subinterface
from retinue.controller.words import in_words
from retinue.core.model import IP, Host, Prefix, Server, Subinterface, entity_id, mac, mac_to_come
from retinue.protocol.hypervisor_events import HypervisorEvent
from retinue.protocol.rejections import CountersBody
from retinue.protocol.routes import Route
from retinue.protocol.servers import AgentState, ServerBody, ServerMacBody
from retinue.protocol.vm_reports import ReportedVMBody


def handlers(controller: Controller) -> Handlers:
    async def all_servers(_: web.Request) -> web.Response:
        return answer({"servers": views.servers(controller)})

    async def register(request: web.Request) -> web.Response:
        bodies: list[ServerBody] = many(await body(request, ServerBody | list[ServerBody]))
        servers = [_server(given, controller) for given in bodies]
        for server in servers:
            _check_first(controller, server, manager_of(request))
        new = [server.id for server in servers if server != controller.net.servers.get(server.id)]
        with said(controller, request, "server", new):
            await controller.inventory.put_servers(servers)
        return answer({"servers": [given.id for given in bodies]}, status=201)

    async def remove(request: web.Request) -> web.Response:
        server = request.match_info["id"]
        if server not in controller.net.servers:
            error = no_server(server)
            raise NotFoundError(str(error), error.code)
        await controller.fabric.remove_server(server)
        controller.words.forget("server", server)
        controller.entities.gone(server)
        return answer({"removed": server})

    async def drain(request: web.Request) -> web.Response:
        """Answered with the VMs that are still there: who asks migrates them. Clients go by themselves."""
        server, is_client = request.match_info["id"], controller.context.state.is_client
        controller.inventory.drain(server, drained=True)
        vms = [name for name in sorted(controller.net.vms_on(server)) if not is_client(name)]
        return answer({"server": server, "drained": True, "vms": vms})

    async def undrain(request: web.Request) -> web.Response:
        server = request.match_info["id"]
        controller.inventory.drain(server, drained=False)
        return answer({"server": server, "drained": False})

    async def fence(request: web.Request) -> web.Response:
        server = request.match_info["id"]
        await controller.fencing.fence(server)
        return answer({"server": server, "fenced": True})

    async def unfence(request: web.Request) -> web.Response:
        server = request.match_info["id"]
        await controller.fencing.unfence(server)
        return answer({"server": server, "fenced": False})

    async def forget_agent(request: web.Request) -> web.Response:
        server = request.match_info["id"]
        controller.inventory.forget_agent(server)
        return answer({"server": server, "agent": AgentState.NONE})

    async def report_event(request: web.Request) -> web.Response:
        """Answered with the migration that the event belongs to, if any."""
        event: HypervisorEvent = await body(request, HypervisorEvent)
        migration = controller.external_migrations.on_report(
            *(request.match_info["id"], event.vm, event.kind, event.at),
            *(event.vlan_filters, event.without_checksums),
        )
        if migration is None:
            return answer({"migration": "", "state": ""})
        return answer({"migration": migration.id, "state": migration.state})

    async def report_counters(request: web.Request) -> web.Response:
        counts: CountersBody = await body(request, CountersBody)
        controller.agent_rejections.on_report(request.match_info["id"], counts.since, counts.rejected)
        return answer({"ok": True})

    async def report_vm(request: web.Request) -> web.Response:
        """Answered with the addresses of the VM that no manager has confirmed."""
        given: ReportedVMBody = await body(request, ReportedVMBody)
        report = Report(
            entity_id(given.vm, "a VM"),
            mac(given.mac),
            mac(given.server_mac),
            tuple(map(address, given.addresses)),
            given.gone,
        )
        waiting = await controller.inventory.reports.on_report(request.match_info["id"], report)
        return answer({"vm": report.vm, "waiting": [str(ip) for ip in waiting]})

    async def report_mac(request: web.Request) -> web.Response:
        """Answered with why the server is not known by it, if it is not."""
        given: ServerMacBody = await body(request, ServerMacBody)
        server = request.match_info["id"]
        reason = await controller.own_macs.told(server, mac(given.mac))
        return answer({"server": server, "known": not reason, "reason": reason})

    return {
        Route.LIST_SERVERS: all_servers,
        Route.REGISTER_SERVERS: register,
        Route.REMOVE_SERVER: remove,
        Route.DRAIN_SERVER: drain,
        Route.UNDRAIN_SERVER: undrain,
        Route.FENCE_SERVER: fence,
        Route.UNFENCE_SERVER: unfence,
        Route.FORGET_AGENT: forget_agent,
        Route.REPORT_HYPERVISOR_EVENT: report_event,
        Route.REPORT_COUNTERS: report_counters,
        Route.REPORT_MADE_VM: report_vm,
        Route.REPORT_SERVER_MAC: report_mac,
    }


def _check_first(controller: Controller, server: Server, by: str) -> None:
    """Raises RequestError for a server that another manager gave, and gave otherwise."""
    known, word = controller.net.servers.get(server.id), controller.words.of("server", server.id)
    if known in (None, server) or word is None or word.by == by:
        return
    names = [one.name for one in fields(Server) if getattr(server, one.name) != getattr(known, one.name)]
    raise RequestError(
        f"server {server.id} was given otherwise ({', '.join(names)}); {in_words(word)}, and can change it"
    )


def _server(given: ServerBody, controller: Controller) -> Server:
    """MAC, routes, metric, chassis id, anycast addresses, load and subinterfaces not given it keeps."""
    known = controller.net.servers.get(given.id)
    former = mac_to_come(given.id) if known is None else known.mac
    return Server(
        id=entity_id(given.id, "a server"),
        mac=mac(given.mac) if given.mac else former,
        address=address(given.address) if given.address else None,
        edge=given.edge,
        services=frozenset(given.services),
        routes=_routes(given, known),
        metric=given.metric if given.metric is not None else known.metric if known is not None else 0,
        chassis=given.chassis if given.chassis is not None else known.chassis if known is not None else "",
        anycast=_anycast(given, known),
        load=given.load if given.load is not None else known.load if known is not None else 0,
        subinterfaces=_subinterfaces(given, known),
        given_at=port_ref(given.at) if given.at else None,
        gateway_group=given.gateway_group,
        hosts=tuple(sorted(Host(entity_id(host.id, "a host"), mac(host.mac)) for host in given.hosts)),
    )


def _routes(given: ServerBody, known: Server | None) -> tuple[Prefix, ...]:
    """Raises ModelError."""
    if given.routes is None:
        return () if known is None else known.routes
    return tuple(map(network, given.routes))


def _anycast(given: ServerBody, known: Server | None) -> tuple[IP, ...]:
    """Raises ModelError."""
    if given.anycast is None:
        return () if known is None else known.anycast
    return tuple(map(address, given.anycast))


def _subinterfaces(given: ServerBody, known: Server | None) -> tuple[Subinterface, ...]:
    """Raises ModelError."""
    if given.subinterfaces is None:
        return () if known is None else known.subinterfaces
    return tuple(subinterface(one.vrf, one.vlan, one.routes, one.address) for one in given.subinterfaces)

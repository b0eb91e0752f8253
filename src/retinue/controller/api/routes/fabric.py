"""Switches and links between them: listed, added, changed, removed."""

from ipaddress import IPv6Address

from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.first_said import said
from retinue.controller.api.http import Handlers, NotFoundError, answer, body, many
from retinue.controller.app import Controller
from retinue.controller.parsing import address, port_ref
from retinue.core.model import Link, ModelError, Role, Switch, entity_id
from retinue.protocol.errors import ErrorCode
from retinue.protocol.fabric import LinkBody, SwitchBody, SwitchValues
from retinue.protocol.routes import Route


def handlers(controller: Controller) -> Handlers:
    fabric, net = controller.fabric, controller.net

    async def all_switches(_: web.Request) -> web.Response:
        return answer({"switches": views.switches(controller)})

    async def add_switches(request: web.Request) -> web.Response:
        bodies: list[SwitchBody] = many(await body(request, SwitchBody | list[SwitchBody]))
        given = [_switch(entity_id(one.id, "a switch"), one.role, one) for one in bodies]
        ids = [one.id for one in given]
        with said(controller, request, "switch", ids):
            await fabric.add_switches(given)
        return answer({"switches": views.switches(controller, ids)}, status=201)

    async def set_switch(request: web.Request) -> web.Response:
        values: SwitchValues = await body(request, SwitchValues)
        id = _known(controller, request)
        await fabric.set_switch(_switch(id, net.switches[id].role, values))
        return answer(views.switches(controller, [_known(controller, request)])[0])

    async def remove_switch(request: web.Request) -> web.Response:
        id = _known(controller, request)
        await fabric.remove_switch(id)
        controller.words.forget("switch", id)
        return answer({"removed": id})

    async def all_links(_: web.Request) -> web.Response:
        return answer({"links": views.links(controller)})

    async def add_links(request: web.Request) -> web.Response:
        bodies: list[LinkBody] = many(await body(request, LinkBody | list[LinkBody]))
        given = [Link(port_ref(one.lower), port_ref(one.upper)) for one in bodies]
        await fabric.add_links(given)
        lower = {str(link.lower) for link in given}
        return answer(
            {"links": [row for row in views.links(controller) if row["lower"] in lower]}, status=201
        )

    async def remove_link(request: web.Request) -> web.Response:
        lower = port_ref(request.match_info["id"])
        if net.link_at(lower) is None:
            raise NotFoundError(
                f"there is no link at {lower}; `retinue link list` shows those there are",
                ErrorCode.UNKNOWN_LINK,
            )
        await fabric.remove_link(lower)
        return answer({"removed": str(lower)})

    return {
        Route.LIST_SWITCHES: all_switches,
        Route.ADD_SWITCHES: add_switches,
        Route.SET_SWITCH: set_switch,
        Route.REMOVE_SWITCH: remove_switch,
        Route.LIST_LINKS: all_links,
        Route.ADD_LINKS: add_links,
        Route.REMOVE_LINK: remove_link,
    }


def _known(controller: Controller, request: web.Request) -> str:
    id = request.match_info["id"]
    if id not in controller.net.switches:
        raise NotFoundError(
            f"there is no switch {id}; `retinue switch list` shows those there are", ErrorCode.UNKNOWN_SWITCH
        )
    return id


def _switch(id: str, role: Role, given: SwitchValues) -> Switch:
    endpoint = address(given.endpoint) if given.endpoint else None
    if isinstance(endpoint, IPv6Address):
        raise ModelError(f"switch {id}: endpoint {endpoint} is no address of IPv4")
    return Switch(
        id, role, int(given.dpid, 16), given.uplink, given.places == "given", given.tunnel, endpoint,
        vdp=given.vdp, gateway_group=given.gateway_group, standby=tuple(given.standby),
    )  # fmt: skip

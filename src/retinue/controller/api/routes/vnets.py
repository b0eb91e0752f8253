"""Gateway groups, VRFs, vnets and subnets: added, changed, shown and removed by managers."""

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import replace

from aiohttp import web

from retinue.controller.api import views
from retinue.controller.api.first_said import said
from retinue.controller.api.http import Handlers, NotFoundError, answer, body, many
from retinue.controller.app import Controller
from retinue.controller.flood_counts import FloodCounts
from retinue.controller.parsing import subnet as subnet_of
from retinue.core.model import GatewayGroup, ModelError, Network, Subnet, Vnet, Vrf, entity_id, mac
from retinue.protocol.errors import ErrorCode
from retinue.protocol.routes import Route
from retinue.protocol.servers import GatewayGroupBody, GatewayGroupValues
from retinue.protocol.vnets import SubnetBody, SubnetValues, VnetBody, VnetValues, VrfBody


def handlers(controller: Controller) -> Handlers:
    net, vnets, counts = controller.net, controller.vnets, controller.flood_counts

    async def all_groups(_: web.Request) -> web.Response:
        return answer(
            {"gateway_mac": net.gateway_mac, "groups": [_group(net, g) for g in net.gateway_groups]}
        )

    async def add_groups(request: web.Request) -> web.Response:
        bodies: list[GatewayGroupBody] = many(await body(request, GatewayGroupBody | list[GatewayGroupBody]))
        given = [GatewayGroup(entity_id(one.id, "a gateway group"), mac(one.mac)) for one in bodies]
        await vnets.add_gateway_groups(given)
        return answer({"groups": [_group(net, one.id) for one in given]}, status=201)

    async def set_group(request: web.Request) -> web.Response:
        given: GatewayGroupValues = await body(request, GatewayGroupValues)
        id = _known(request, "gateway group", net.gateway_groups, ErrorCode.UNKNOWN_GATEWAY_GROUP)
        await vnets.set_default_group(id, given.default)
        return answer(_group(net, id))

    async def remove_group(request: web.Request) -> web.Response:
        id = _known(request, "gateway group", net.gateway_groups, ErrorCode.UNKNOWN_GATEWAY_GROUP)
        await vnets.remove_gateway_group(id)
        return answer({"removed": id})

    async def all_vrfs(_: web.Request) -> web.Response:
        return answer({"vrfs": [_vrf(net, vrf) for vrf in net.vrfs.values()]})

    async def add_vrfs(request: web.Request) -> web.Response:
        bodies: list[VrfBody] = many(await body(request, VrfBody | list[VrfBody]))
        given = {entity_id(one.id, "a VRF"): one.tag for one in bodies}
        if len(given) < len(bodies):
            raise ModelError("a VRF is given twice")
        with said(controller, request, "VRF", list(given)):
            await vnets.add_vrfs(given)
        return answer({"vrfs": [_vrf(net, net.vrfs[id]) for id in given if id in net.vrfs]}, status=201)

    async def remove_vrf(request: web.Request) -> web.Response:
        id = _known(request, "VRF", net.vrfs, ErrorCode.UNKNOWN_VRF)
        await vnets.remove_vrf(id)
        controller.words.forget("VRF", id)
        return answer({"removed": id})

    async def all_vnets(_: web.Request) -> web.Response:
        return answer({"vnets": [_vnet(net, counts, vnet) for vnet in net.vnets.values()]})

    async def add_vnets(request: web.Request) -> web.Response:
        bodies: list[VnetBody] = many(await body(request, VnetBody | list[VnetBody]))
        given = [Vnet(entity_id(one.id, "a vnet"), one.vlan, one.mtu, one.vrf, one.flood) for one in bodies]
        with said(controller, request, "vnet", [one.id for one in given]):
            await vnets.add_vnets(given, {one.id for one in bodies if one.isolated})
        return answer({"vnets": [_vnet(net, counts, net.vnets[one.id]) for one in given]}, status=201)

    async def set_vnet(request: web.Request) -> web.Response:
        given: VnetValues = await body(request, VnetValues)
        id = _known(request, "vnet", net.vnets, ErrorCode.UNKNOWN_VNET)
        await vnets.set_vnet(Vnet(id, given.vlan, given.mtu, given.vrf, given.flood), given.isolated)
        return answer(_vnet(net, counts, net.vnets[id]))

    async def remove_vnet(request: web.Request) -> web.Response:
        id = _known(request, "vnet", net.vnets, ErrorCode.UNKNOWN_VNET)
        await vnets.remove_vnet(id)
        controller.words.forget("vnet", id)
        return answer({"removed": id})

    async def all_subnets(_: web.Request) -> web.Response:
        return answer({"subnets": _subnets(net, net.subnets.values())})

    async def add_subnets(request: web.Request) -> web.Response:
        bodies: list[SubnetBody] = many(await body(request, SubnetBody | list[SubnetBody]))
        given = [_read(entity_id(one.id, "a subnet"), one) for one in bodies]
        with said(controller, request, "subnet", [one.id for one in given]):
            await vnets.add_subnets(given)
        return answer({"subnets": _subnets(net, given)}, status=201)

    async def set_subnet(request: web.Request) -> web.Response:
        values: SubnetValues = await body(request, SubnetValues)
        id = _known(request, "subnet", net.subnets, ErrorCode.UNKNOWN_SUBNET)
        given = replace(_read(id, values), vlan=net.subnets[id].vlan)
        await vnets.set_subnet(given)
        [shown] = _subnets(net, [given])
        return answer(shown)

    async def remove_subnet(request: web.Request) -> web.Response:
        id = _known(request, "subnet", net.subnets, ErrorCode.UNKNOWN_SUBNET)
        await vnets.remove_subnet(id)
        controller.words.forget("subnet", id)
        return answer({"removed": id})

    return {
        Route.LIST_GATEWAY_GROUPS: all_groups,
        Route.ADD_GATEWAY_GROUPS: add_groups,
        Route.SET_GATEWAY_GROUP: set_group,
        Route.REMOVE_GATEWAY_GROUP: remove_group,
        Route.LIST_VRFS: all_vrfs,
        Route.ADD_VRFS: add_vrfs,
        Route.REMOVE_VRF: remove_vrf,
        Route.LIST_VNETS: all_vnets,
        Route.ADD_VNETS: add_vnets,
        Route.SET_VNET: set_vnet,
        Route.REMOVE_VNET: remove_vnet,
        Route.LIST_SUBNETS: all_subnets,
        Route.ADD_SUBNETS: add_subnets,
        Route.SET_SUBNET: set_subnet,
        Route.REMOVE_SUBNET: remove_subnet,
    }


def _known(
    request: web.Request,
    kind: str,
    known: Container[str],
    code: ErrorCode,
) -> str:
    id = request.match_info["id"]
    if id not in known:
        noun = kind.lower().split()[0]
        raise NotFoundError(f"there is no {kind} {id}; `retinue {noun} list` shows those there are", code)
    return id


def _read(id: str, given: SubnetValues) -> Subnet:
    return subnet_of(
        *(id, given.prefix, given.gateway, given.dhcp, given.vnet, given.dhcp_pools),
        *(given.slaac, given.dhcp6),
    )


def _group(net: Network, id: str) -> dict[str, object]:
    return {
        **views.plain(net.gateway_groups[id]),
        "servers": sorted(server.id for server in net.servers.values() if server.gateway_group == id),
        "configured": f"gateway group {id}" in net.configured,
    }


def _vrf(net: Network, vrf: Vrf) -> dict[str, object]:
    return {
        **views.plain(vrf),
        "vnets": sorted(v.id for v in net.vnets.values() if v.vrf == vrf.id),
        "routers": sorted(one.id for one in net.servers.values() if one.routes_in(vrf.id)),
        "used": sum(held.vrf == vrf.id for held in net.assignments.values()),
        "configured": f"vrf {vrf.id}" in net.configured,
    }


def _vnet(net: Network, counts: FloodCounts, vnet: Vnet) -> dict[str, object]:
    return {
        **views.plain(vnet),
        "isolated": net.is_isolated(vnet.id),
        "flooded": views.plain(counts.of(vnet.id)),
        "subnets": sorted(s.id for s in net.subnets.values() if s.vnet == vnet.id),
        "configured": f"vnet {vnet.id}" in net.configured,
    }


def _subnets(net: Network, subnets: Iterable[Subnet]) -> list[dict[str, object]]:
    held = net.assignments.values()
    used = Counter(inside.id for a in held if (inside := net.subnet_of(a.ip, a.vrf)) is not None)
    return [
        {
            **views.plain(subnet),
            "dhcp_pools": [f"{first}-{last}" for first, last in subnet.dhcp_pools],
            "vlan": net.vlan_of(subnet),
            "used": used[subnet.id],
            "configured": f"subnet {subnet.id}" in net.configured,
        }
        for subnet in subnets
    ]

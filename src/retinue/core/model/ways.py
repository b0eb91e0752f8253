"""Prefixes that are reached through routers: which one, of several to the same, is the way now."""

from retinue.core.model.addresses import IP, Prefix
from retinue.core.model.routed_prefixes import is_part
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import DEFAULT_VRF


def way_to(net: NetworkView, prefix: Prefix, vrf: str = DEFAULT_VRF) -> str:
    """The router that is the way to a prefix of a VRF; "": none is given.

    One that is there comes before one that is not, then the least metric counts, then the id. Where none is
    there, the one is it that would be, were they.
    """

    def cost(router: str) -> tuple[bool, int, str]:
        at = net.location(router)
        there = at is not None and net.port_number(at) is not None
        away = not there or router in net.lost_routers or router in net.fenced
        return away, net.servers[router].metric, router

    return min(net.routers_to.get((vrf, prefix), ()), key=cost, default="")


def router_to(net: NetworkView, ip: IP, vrf: str = DEFAULT_VRF) -> str:
    """The router by which an address outside is reached from a VRF; "": by none."""
    prefixes = (prefix for of, prefix in net.routers_to if of == vrf and ip in prefix)
    narrowest = max(prefixes, key=lambda prefix: prefix.prefixlen, default=None)
    return "" if narrowest is None else way_to(net, narrowest, vrf)


def ways_by(net: NetworkView, router: str, vrf: str = DEFAULT_VRF) -> list[Prefix]:
    """The prefixes of a VRF to which a router is the way."""
    return [prefix for prefix in net.servers[router].routes_in(vrf) if way_to(net, prefix, vrf) == router]


def wider_ways(net: NetworkView, prefix: Prefix, router: str) -> list[str]:
    """The other routers that are the way to a prefix in which this one of the default VRF is."""
    known = (one for vrf, one in net.routers_to if vrf == DEFAULT_VRF)
    wider = (one for one in known if one != prefix and is_part(prefix, one))
    return sorted({way for one in wider if (way := way_to(net, one)) != router})


def routers_beside(net: NetworkView, router: str) -> frozenset[str]:
    """Others that lead to something to which this one leads, too."""
    server = net.servers.get(router)
    ways = () if server is None else server.ways
    overlapping = (
        ids
        for (vrf, other), ids in net.routers_to.items()
        if any(vrf == of and (is_part(other, prefix) or is_part(prefix, other)) for of, prefix in ways)
    )
    return frozenset(id for ids in overlapping for id in ids) - {router}

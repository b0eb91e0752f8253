"""The table of a router that is not ours, as an adapter tells it, and the entries that it stands for.

An adapter knows prefixes and next hops: a server's address, or None for a prefix that leads nowhere.
Everybody else knows entries (see `routers`). Most of these say what any router does, and are there whenever
it is.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network

from retinue.core.model.network import Network, Owner
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import Field, Flow, SetField
from retinue.core.pipeline.matches import ip_match
from retinue.core.pipeline.priorities import Route
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay.routers import NEXT_HOP, PlainRouters

RouterTable = Mapping[IPv4Network, IPv4Address | None]
"""By prefix: the server that is the next hop; None: the prefix leads nowhere."""


def told(net: Network, flows: Iterable[Flow]) -> dict[IPv4Network, IPv4Address | None]:
    """What a router is told so that it has these entries; of most of them nothing. Raises ValueError for a
    host route without a next hop."""
    found: dict[IPv4Network, IPv4Address | None] = {}
    for flow in flows:
        prefix = _prefix_of_route(flow)
        if prefix is None:
            continue
        if flow.priority != Route.HOST:
            found[prefix] = None
        elif not _is_a_servers(net, prefix):
            found[prefix] = _next_hop(flow)
    return found


def taken_back(flows: Iterable[Flow]) -> set[IPv4Network]:
    """The prefixes that a router is to have no route of ours for, so that it has none of these entries. Where
    such a route led to does not matter: it may be nowhere that is known now."""
    return {prefix for flow in flows if (prefix := _prefix_of_route(flow)) is not None}


def entries(net: Network, router: str, table: RouterTable) -> list[Flow]:
    """The entries of a router that has this table: those, and what any router does."""
    underlay = PlainRouters(net)
    assumed = [one for one in underlay.switch_flows(net.switches[router]) if isinstance(one, Flow)]
    for server in net.servers.values():
        assumed.extend(underlay.server_flows(server).get(router, ()))
    nowhere = told(net, assumed)
    found = [flow for flow in assumed if _destination(flow) not in nowhere or _is_kept(flow, nowhere, table)]
    for prefix, next_hop in table.items():
        if next_hop is None and prefix in nowhere:
            continue
        at, mark = None if next_hop is None else net.server_of_address(next_hop), _mark(net, router, prefix)
        ways = {} if at is None else underlay.host_routes(at, _plain(prefix), mark)
        priority = Route.HOST if next_hop is not None else Route.PREFIX + prefix.prefixlen
        foreign = Flow(Table.ROUTE, priority, ip_match(dst=prefix), cookie=mark)
        found.extend(ways.get(router, [foreign]))
    return found


def _is_a_servers(net: Network, prefix: IPv4Network) -> bool:
    """The way to a server itself is the routers' own to know."""
    return prefix.prefixlen == 32 and net.server_of_address(prefix.network_address) is not None


def _is_kept(flow: Flow, nowhere: RouterTable, table: RouterTable) -> bool:
    prefix = _destination(flow)
    return bool(flow.actions) or (prefix is not None and table.get(prefix, flow) is None)


def _prefix_of_route(flow: Flow) -> IPv4Network | None:
    """Of a host route, or of a prefix that leads nowhere; None of all else."""
    to_nowhere = not flow.actions and Route.PREFIX <= flow.priority <= Route.PREFIX + 32
    return _destination(flow) if to_nowhere or flow.priority == Route.HOST else None


def _destination(flow: Flow) -> IPv4Network | None:
    """To where packets go that an entry of ROUTE is for, whichever way they came."""
    if flow.table != Table.ROUTE or any(field == Field.IN_PORT for field, _, _ in flow.match):
        return None
    for field, value, mask in flow.match:
        if field == Field.IPV4_DST:
            return IPv4Network((value, 32 if mask is None else mask.bit_count()))
    return None


def _next_hop(flow: Flow) -> IPv4Address:
    for action in flow.actions:
        if isinstance(action, SetField) and action.field == NEXT_HOP:
            return IPv4Address(action.value)
    raise ValueError(f"the route to {_destination(flow)} has no next hop")


def _plain(prefix: IPv4Network) -> IPv4Address | IPv4Network:
    return prefix.network_address if prefix.prefixlen == 32 else prefix


def _mark(net: Network, router: str, prefix: IPv4Network) -> int:
    """The cookie of a host route: a router keeps none."""
    held = net.holder(prefix.network_address) if prefix.prefixlen == 32 else None
    vm = held.vm if held is not None else next((vm for one, vm in net.routed() if one == prefix), "")
    return cookie(Reason.FORWARD, Owner("vm", vm) if vm else Owner("switch", router))

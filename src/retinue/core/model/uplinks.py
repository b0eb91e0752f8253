"""Servers whose edge has several uplinks, each to another leaf: where they lead, and which are well.

One is used at a time: a server has one location, as any other (see docs/design/058). Leaves at the others
have its entries, too; so which one is used is said by a few entries, however many VMs there are.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from enum import IntEnum
from functools import partial

from retinue.core.model.entities import Link, PortRef, Role
from retinue.core.model.links import all_upward_ports, has_carrier, is_sound, lead_on
from retinue.core.model.view import NetworkView


class Rank(IntEnum):
    """How good an uplink is; the higher the better."""

    NO_CARRIER = 0
    CARRIER = 1
    """It has a carrier at both ends, and loses frames."""
    SOUND = 2
    """It loses none; but its leaf has no way up that is sound."""
    WHOLE = 3


def has_several(net: NetworkView, server: str) -> bool:
    """True where the server's edge has several uplinks, be they found or not."""
    edge = net.switches.get(net.servers[server].edge)
    return edge is not None and bool(edge.standby)


def found_links(net: NetworkView, server: str) -> list[Link]:
    """The server's uplinks whose leaf is known, the preferred one first; none where there is one uplink."""
    edge = net.switches.get(net.servers[server].edge)
    ends = (PortRef(edge.id, name) for name in edge.uplinks) if edge is not None and edge.standby else ()
    return [Link(end, net.uplink_places[end]) for end in ends if end in net.uplink_places]


def all_found(net: NetworkView) -> list[Link]:
    """All uplinks of servers that have several."""
    return [Link(*ends) for ends in net.uplink_places.items()]


def open_links(net: NetworkView, server: str) -> list[Link]:
    """Those by which a leaf hands over what is for the server: that are sound; where none is, that have a
    carrier; where none has one, all."""
    links = found_links(net, server)
    for good in (is_sound, has_carrier):
        if found := [link for link in links if good(net, link)]:
            return found
    return links


def places(net: NetworkView, server: str) -> list[PortRef]:
    """The leaf ports where a server is; more than one only where it has several uplinks."""
    if has_several(net, server):
        return [link.upper for link in found_links(net, server)]
    at = net.location(server)
    return [] if at is None else [at]


def holders(net: NetworkView, at: PortRef) -> Iterator[str]:
    """The servers of which this leaf port is one of the `places`.

    It is asked for frames that anybody may send: no other server is looked at.
    """
    for uplink in net.uplink_places.at(at):
        server = net.server_of_edge(uplink.switch)
        if server is not None and has_several(net, server.id):
            yield server.id
    for id in net.located_at(at):
        if not has_several(net, id):
            yield id


def used_uplink(net: NetworkView, edge: str) -> str:
    """The name of the uplink by which an edge sends up; until one is found the first."""
    return net.in_use.get(edge) or net.switches[edge].uplink


def displaced(net: NetworkView, uplink: PortRef, at: PortRef) -> list[PortRef]:
    """Of which it is not known any more where they lead once this one leads to `at`: one that was known to
    lead there, for a port has one cable; and another one of the edge's that leads to this leaf, and is not
    sound: its cable was moved as well."""
    there = [other for other in net.uplink_places.at(at) if other != uplink]
    beside = (link for link in links_beside(net, uplink) if link.upper.switch == at.switch)
    return [*there, *(one.lower for one in beside if one.lower not in there and not is_sound(net, one))]


def forgotten_with(net: NetworkView, switch: str, uplinks: Collection[str] = ()) -> list[PortRef]:
    """Uplinks of which it is not known any more where they lead once a switch has gone: those of an edge, and
    those that lead to a leaf. `uplinks`: of an edge that stays, those that it still has several of."""
    own = (one for one in net.uplink_places if one.switch == switch and one.port not in uplinks)
    return [*own, *(uplink for uplink, _ in net.uplink_places.at_switch(switch))]


def links_beside(net: NetworkView, uplink: PortRef) -> list[Link]:
    """The other uplinks of its edge, as far as it is known where they lead."""
    edge = net.switches[uplink.switch]
    others = (PortRef(edge.id, name) for name in edge.uplinks if name != uplink.port)
    return [Link(other, net.uplink_places[other]) for other in others if other in net.uplink_places]


def ranks(net: NetworkView, server: str, leads: Callable[[str], bool] | None = None) -> dict[str, Rank]:
    """By the name of each uplink whose leaf is known, the preferred one first. `leads`: `links.lead_on`, for
    who asks of many."""
    leads_on = leads or partial(lead_on, net)
    return {link.lower.port: _rank(net, link, leads_on) for link in found_links(net, server)}


def _rank(net: NetworkView, link: Link, leads_on: Callable[[str], bool]) -> Rank:
    if not has_carrier(net, link):
        return Rank.NO_CARRIER
    if not is_sound(net, link):
        return Rank.CARRIER
    return Rank.WHOLE if leads_on(link.upper.switch) else Rank.SOUND


def unreached_by(net: NetworkView, servers: Iterable[str]) -> frozenset[str]:
    """Leaves from which one of these servers is not reached at the moment, and none of the others either."""
    shut: set[str] = set()
    reached: set[str] = set()
    for server in servers:
        if server not in net.servers:
            continue
        by = [link.upper.switch for link in open_links(net, server)]
        at = net.location(server)
        reached.update(by or ([] if at is None else [at.switch]))
        shut.update(link.upper.switch for link in found_links(net, server))
    return frozenset(shut - reached)


def at_switch(net: NetworkView, switch: str) -> list[str]:
    """Of the servers with several uplinks those to which an end of these at this switch belongs."""
    edges = {uplink.switch for uplink, _ in net.uplink_places.at_switch(switch)}
    if any(PortRef(switch, name) in net.uplink_places for name in net.switches[switch].uplinks):
        edges.add(switch)
    found = [server for edge in sorted(edges) if (server := net.server_of_edge(edge)) is not None]
    return [server.id for server in found]


def ways_beside(net: NetworkView, switch: str) -> dict[tuple[str, str], object]:
    """What carriers and lost links at a switch decide: of each switch its ports up, of each server that has
    several uplinks those that are open."""
    found: dict[tuple[str, str], object] = {}
    if net.switches[switch].role is not Role.EDGE:
        found |= {("switch", one): ports for one, ports in all_upward_ports(net).items()}
    return found | {("server", one): open_links(net, one) for one in at_switch(net, switch)}

"""What a network that runs rejects of switches and links that come, change or go.

Each function looks at one of them, changes nothing, and raises ModelError when it must not be so. What a
configuration file lays out is judged as a whole, by `constraints.check_tiers`.
"""

from collections.abc import Iterator

from retinue.core.limits import MOST_LINKS, MOST_SWITCHES
from retinue.core.model.addresses import ModelError
from retinue.core.model.entities import Link, PortRef, Role, Switch
from retinue.core.model.in_use import first_few
from retinue.core.model.links import links_above, parts, with_whole_ways
from retinue.core.model.uplinks import has_several
from retinue.core.model.view import NetworkView


def check_switch(net: NetworkView, switch: Switch) -> None:
    """A new switch, or what is said of a known one from now on."""
    what, known = f"switch {switch.id}", net.switches.get(switch.id)
    if switch.router or (known is not None and known.router):
        raise ModelError(
            f"{what} is a router that is not ours: only the configuration file says how one is reached"
        )
    if known is not None:
        _check_change(net, known, switch)
    elif len(net.switches) >= MOST_SWITCHES:
        raise ModelError(f"{what}: there are {MOST_SWITCHES} switches already")
    if switch.gateway_group and switch.gateway_group not in net.gateway_groups:
        raise ModelError(f"{what}: there is no gateway group {switch.gateway_group}")
    if switch.role is Role.EDGE:
        if switch.standby and (net.over_ip or net.over_routers):
            raise ModelError(f"edge {switch.id}: several uplinks are for leaves of ours that spines join")
        return
    if net.over_routers:
        raise ModelError(f"{what}: beside leaves that are routers of others there are no others of ours")
    if switch.endpoint is not None and net.spines_by_mac:
        raise ModelError(f'{what}: spines join the leaves here (spines = "mac"), and it has an endpoint')
    others = [leaf for leaf in net.with_role(Role.LEAF) if leaf.id != switch.id]
    if switch.role is not Role.LEAF and net.over_ip:
        raise ModelError(f"{what}: tunnels join the leaves here, and no {switch.role}")
    several = next((edge.id for edge in net.with_role(Role.EDGE) if edge.standby), "")
    if switch.endpoint is not None and several:
        raise ModelError(f"{what}: edge {several} has several uplinks, to leaves of ours that spines join")
    if switch.role is Role.LEAF and others and net.over_ip != (switch.endpoint is not None):
        has = "has an endpoint" if net.over_ip else "is joined by spines, and has none"
        raise ModelError(f"{what}: each leaf here {has} (tunnel, endpoint)")


def _check_change(net: NetworkView, known: Switch, switch: Switch) -> None:
    what = f"switch {switch.id}"
    if known.role is not switch.role:
        raise ModelError(f"{what} is a known {known.role}; to make it another, remove it and add it")
    if (known.tunnel, known.endpoint) != (switch.tunnel, switch.endpoint):
        raise ModelError(f"{what}: the end of its tunnels stays; to give it another, remove it and add it")
    server = net.server_of_edge(switch.id)
    if known.uplinks != switch.uplinks and server is not None:
        raise ModelError(
            f"{what}: server {server.id} runs on it, and is reached by {', '.join(known.uplinks)}; "
            "its uplinks may be others once no server has it as its edge"
        )
    found = [] if known.given or not switch.given else sorted(_found_at(net, switch.id))
    if found:
        raise ModelError(
            f"{what}: server {found[0]} was found there; say where it is (`at`) before places are given"
        )


def check_switch_removal(net: NetworkView, switch: str) -> None:
    """Nothing is at it, and nothing leads there."""
    if switch in net.switches and net.switches[switch].router:
        raise ModelError(
            f"switch {switch} is a router that is not ours: it stands in the configuration file; remove it "
            "there, and restart the controller"
        )
    users = sorted(f"link {one.lower}" for one in net.links_at(switch))
    server = net.server_of_edge(switch)
    if server is not None:
        users.append(f"server {server.id}")
    users += [f"server {id}" for id in sorted(servers_at(net, switch))]
    if users:
        raise ModelError(f"switch {switch} is in use by {first_few(users)}")


def check_link(net: NetworkView, link: Link) -> None:
    """A new link: each port has one cable. Which switches it may join `Network.add_link` knows."""
    what = f"link {link.lower} - {link.upper}"
    if len(net.links) >= MOST_LINKS:
        raise ModelError(f"{what}: there are {MOST_LINKS} links already")
    for end in (link.lower, link.upper):
        other = next((one for one in net.links_at(end.switch) if end in (one.lower, one.upper)), None)
        if other is not None:
            raise ModelError(f"{what}: port {end} is that of link {other.lower} - {other.upper}")
        server = next((id for id, at in _places(net) if at == end), "")
        if server:
            raise ModelError(f"{what}: server {server} is at {end}")


def check_link_idle(net: NetworkView, lower: PortRef) -> None:
    """A link that is used, and may go: what went over it has another way."""
    link = net.link_at(lower)
    if link is None:
        raise ModelError(f"there is no link at {lower}")
    what = f"link {link.lower} - {link.upper} cannot go"
    others = [one for one in links_above(net, lower.switch) if one.lower != lower]
    is_last = (
        all(one.lower in net.idle_links for one in others) if lower not in net.idle_links else not others
    )
    servers = sorted(servers_at(net, lower.switch)) if is_last else []
    if servers:
        raise ModelError(
            f"{what}: it is the only one of {lower.switch}, where server {first_few(servers)} is"
        )
    of_none = {lower.switch} if is_last else set()
    without_way = with_whole_ways(net) - with_whole_ways(net, lower) - of_none
    lost = sorted(one for one in without_way if net.switches[one].role is Role.LEAF)
    left = parts(net, lower)
    for part in parts(net):
        leaves = {one for one in part if net.switches[one].role is Role.LEAF} - of_none
        if leaves and not any(leaves <= one for one in left):
            lost = sorted(leaves)
    if lost:
        raise ModelError(
            f"{what}: without it {first_few(lost)} would have no way by which all others are reached; "
            "`retinue link list` shows which there are"
        )


def check_link_removal(net: NetworkView, lower: PortRef) -> None:
    """It is idle: nobody sends up by it."""
    if net.link_at(lower) is not None and lower not in net.idle_links:
        raise ModelError(f"link {lower} is used: it cannot be removed before nothing is sent by it")


def _places(net: NetworkView) -> Iterator[tuple[str, PortRef]]:
    """Servers, each with every port where it is, or was found."""
    for server in net.servers.values():
        at = (server.given_at, net.detected.get(server.id))
        yield from ((server.id, one) for one in at if one is not None)
    for uplink, place in net.uplink_places.items():
        owner = net.server_of_edge(uplink.switch)
        if owner is not None and has_several(net, owner.id):
            yield owner.id, place


def forwards(net: NetworkView, switch: str) -> bool:
    """False for one into which nothing comes: a leaf without servers, a spine to which nobody sends."""
    if net.switches[switch].role is Role.LEAF and servers_at(net, switch):
        return True
    return any(one.upper.switch == switch and one.lower not in net.idle_links for one in net.links_at(switch))


def is_unused(net: NetworkView, switch: str) -> bool:
    """True for a switch, no edge, into which nothing comes; of routers of others it is not known."""
    known = net.switches.get(switch)
    if known is None or known.role is Role.EDGE or net.over_routers:
        return False
    return not forwards(net, switch)


def servers_at(net: NetworkView, switch: str) -> set[str]:
    """The servers by whose ports something may come into a leaf, be it the uplink in use or another."""
    edges = (uplink.switch for uplink, _ in net.uplink_places.at_switch(switch))
    owners = (owner for edge in edges if (owner := net.server_of_edge(edge)) is not None)
    return net.at_leaf(switch) | {owner.id for owner in owners if has_several(net, owner.id)}


def _found_at(net: NetworkView, leaf: str) -> Iterator[str]:
    for id, at in net.detected.items():
        if at.switch == leaf and net.servers[id].given_at is None:
            yield id

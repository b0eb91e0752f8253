"""Where servers are in the fabric: at one leaf, or, with several uplinks, at a leaf for each of them.

Each leaf of a server with several uplinks knows its VMs, and only says to which server a packet goes, as
spines do. Where that is says SERVERS: by the leaf's own port to it while that is open, else it goes up, and
the spines have the leaf in use. What comes from a spine never goes back up, so nothing goes round.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from retinue.core.model import PortRef, Role, Server
from retinue.core.model.network import Network, Owner
from retinue.core.model.uplinks import found_links, has_several, open_links
from retinue.core.packets import EtherType
from retinue.core.packets.lldp import NEAREST_BRIDGE
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import CONTROLLER, Flow, Meter, Output, PortNo, match
from retinue.core.pipeline.matches import NO_TAG
from retinue.core.pipeline.meters import STRANGERS, uplink_meter
from retinue.core.pipeline.priorities import LeafAdmit, Servers
from retinue.core.pipeline.tables import Table


@dataclass(frozen=True, slots=True)
class Attached:
    """A leaf's port to a server."""

    leaf: str
    port: int
    is_open: bool
    """It leads there; False: traffic for the server goes by another leaf."""


def attached(net: Network, server: str) -> list[Attached]:
    """As far as the ports' numbers are known."""
    if not has_several(net, server):
        at = net.location(server)
        number = None if at is None else net.port_number(at)
        return [] if at is None or number is None else [Attached(at.switch, number, True)]
    links, are_open = found_links(net, server), open_links(net, server)
    return [
        Attached(link.upper.switch, number, link in are_open)
        for link in links
        if (number := net.port_number(link.upper)) is not None
    ]


def to_server(net: Network, server: Server, at: Attached, mark: int) -> Iterator[Flow]:
    """On a leaf: what is for the server goes out of its port. With several uplinks what has come in there,
    too: leaves of others have sent it back already (Route.HAIRPIN)."""
    its_own = match(eth_dst=server.mac)
    several = has_several(net, server.id)
    if several and at.is_open:
        back = match(in_port=at.port) + its_own
        yield Flow(Table.SERVERS, Servers.HAIRPIN, back, (Output(PortNo.IN_PORT),), cookie=mark)
    if at.is_open:
        # At a router's port a tag is that of a subinterface, and of another VRF than on the fabric's links.
        here = its_own + match(vlan_vid=NO_TAG) if server.subinterfaces else its_own
        yield Flow(Table.SERVERS, Servers.SERVER, here, (Output(at.port),), cookie=mark)


def probe_entries(net: Network, leaf: str) -> Iterator[Flow | Meter]:
    """On a leaf: probes of servers' uplinks go to the controller, and back, where one is known to lead; from
    any other port to the controller alone, which finds by them where it leads. Each port has a meter of its
    own: nobody's server takes another's probes away."""
    if not any(edge.standby for edge in net.with_role(Role.EDGE)):
        return
    mark = cookie(Reason.PROBE, Owner("switch", leaf))
    kind = match(vlan_vid=NO_TAG, eth_type=EtherType.LLDP, eth_dst=NEAREST_BRIDGE, eth_src=net.gateway_mac)
    yield STRANGERS
    yield Flow(Table.ADMIT, LeafAdmit.PROBE_OF_STRANGER, kind, (CONTROLLER,), meter=STRANGERS.id, cookie=mark)
    for port in dict.fromkeys(port for _, port in net.uplink_places.at_switch(leaf)):
        number = net.port_number(PortRef(leaf, port))
        if number is not None:
            meter = uplink_meter(number)
            yield meter
            there_and_back = (CONTROLLER, Output(PortNo.IN_PORT))
            here = match(in_port=number) + kind
            yield Flow(
                Table.ADMIT, LeafAdmit.PROBE_OF_UPLINK, here, there_and_back, meter=meter.id, cookie=mark
            )


def told_at_once(net: Network, server: str) -> frozenset[str]:
    """The switches that are told at one time when a server's traffic goes by another uplink from now on. The
    leaves at both know the way already, so each of these may follow when it does; and one that does not
    answer holds up no other."""
    above = frozenset(one.id for role in (Role.SPINE, Role.CORE) for one in net.with_role(role))
    return above | {net.servers[server].edge}


def leaves(places: Iterable[Attached]) -> set[str]:
    return {place.leaf for place in places}

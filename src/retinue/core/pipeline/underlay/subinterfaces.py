"""A VRF's way out: a router's subinterface, at a port of a leaf, with a VLAN tag of its own there.

On the fabric's links a packet has the tag of its VRF, at the router's port that of the subinterface. Only the
router's leaf knows both:

    ADMIT      IP with the subinterface's tag, from outside, to the gateway    tag := the VRF's, ROUTE
               from an address of the VRF's own                                reported as spoofed
               ARP with that tag                                               ARP, as it is
    ARP        for a gateway of the VRF                                        answered, with that tag
    ROUTE      to a prefix behind the router, in the VRF                       MAC := the router's, tag := the
                                                                               subinterface's, out of the port
    SERVERS    the router's MAC, with the VRF's tag: from a spine or a tunnel  the same

Every entry names the port, or has the VRF's tag in its match: what has another tag at that port meets none of
them, and is dropped; so is what comes for the router's MAC with the tag of a VRF where it is not. All other
switches hold the routes as those of any router, in the VRF's band; and since a VRF has no default way up, the
routes up as well.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv6Address

from retinue.core.model import IP, Prefix, Server, Subinterface
from retinue.core.model.families import forwarded_prefixes, forwarded_subnets, in_use
from retinue.core.model.network import Network, Owner
from retinue.core.packets import EtherType, NDType
from retinue.core.pipeline import vrfs
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import (
    CONTROLLER,
    Action,
    Field,
    FieldValue,
    Flow,
    Match,
    Output,
    PortNo,
    SetField,
    in_order,
    match,
)
from retinue.core.pipeline.matches import ANY_TAG, arp_request_for, icmpv6_match, ip_match, ip_types
from retinue.core.pipeline.meters import LeafMeter
from retinue.core.pipeline.priorities import Arp, LeafAdmit, Route, Servers
from retinue.core.pipeline.responders import arp, echo, nd, nd_answers
from retinue.core.pipeline.tables import Table

_PRESENT = ANY_TAG[1]


def leaf_flows(net: Network, server: Server, port: int) -> Iterator[Flow]:
    """On the router's leaf: what comes in by each of its subinterfaces, and what goes out by its MAC."""
    owner = Owner("server", server.id)
    mark = cookie(Reason.FORWARD, owner)
    for one in server.subinterfaces:
        tag, here = net.vrfs[one.vrf].tag, _here(one, port)
        yield from _admitted(net, one, tag, here, owner)
        yield from _asked(net, one, here, owner)
        to_router = match(eth_dst=server.mac, vlan_vid=_PRESENT | tag)
        out = (*_tag(one.vlan), Output(port))
        yield Flow(Table.SERVERS, Servers.SUBINTERFACE, to_router, out, cookie=mark)
        pings = echo.gateway_flows(net, owner, Table.ROUTE, Route.GATEWAY_ECHO, net.gateway_mac, one.vrf)
        pinged = (replace(ping, match=_and(ping.match, in_port=port)) for ping in pings)
        yield from leaving(vrfs.on_fabric(pinged, tag), PortNo.IN_PORT, one.vlan)


def _here(one: Subinterface, port: int) -> dict[str, FieldValue]:
    return {"in_port": port, "vlan_vid": _PRESENT | one.vlan}


def _admitted(
    net: Network, one: Subinterface, tag: int, here: dict[str, FieldValue], owner: Owner
) -> Iterator[Flow]:
    """As whom the router may send into the VRF: as itself, and as anybody outside it (RFC 2827)."""
    mark, into = cookie(Reason.FORWARD, owner), _tag(tag)
    to_gateway: dict[str, FieldValue] = {**here, "eth_dst": net.gateway_mac}
    if one.address is not None and in_use(net, one.address.version):
        itself = _and(ip_match(src=one.address), **to_gateway)
        yield Flow(Table.ADMIT, LeafAdmit.SERVICE_ITSELF, itself, into, goto=Table.ROUTE, cookie=mark)
    for subnet in forwarded_subnets(net.subnets_in(one.vrf)):
        yield _spoofed(subnet.prefix, to_gateway, owner)
    for kind in ip_types(net):
        packets = match(**to_gateway, eth_type=kind)
        yield Flow(Table.ADMIT, LeafAdmit.TO_GATEWAY, packets, into, goto=Table.ROUTE, cookie=mark)


def spoofed_prefix(
    net: Network, server: Server, port: int, prefix: Prefix, vrf: str, owner: Owner
) -> Iterator[Flow]:
    """Nor may it send as anybody of a prefix that is routed to a NIC there: the entry is the prefix's."""
    for one in server.subinterfaces:
        if one.vrf == vrf:
            yield _spoofed(prefix, {**_here(one, port), "eth_dst": net.gateway_mac}, owner)


def _spoofed(prefix: Prefix, to_gateway: dict[str, FieldValue], owner: Owner) -> Flow:
    return Flow(
        Table.ADMIT, LeafAdmit.SERVICE_SPOOFED, _and(ip_match(src=prefix), **to_gateway), (CONTROLLER,),
        meter=LeafMeter.SPOOFING, cookie=cookie(Reason.SPOOFED_IP, owner),
    )  # fmt: skip


def _asked(net: Network, one: Subinterface, here: dict[str, FieldValue], owner: Owner) -> Iterator[Flow]:
    """The VRF's gateways are found, and what the router says of itself the controller is told."""
    mark, told = cookie(Reason.FORWARD, owner), cookie(Reason.SERVER_ARP, owner)
    any_arp = match(**here, eth_type=EtherType.ARP)
    yield Flow(Table.ADMIT, LeafAdmit.ARP, any_arp, goto=Table.ARP, cookie=mark)
    for subnet in arp.ipv4_subnets(net, one.vrf):
        answer = (CONTROLLER, *arp.answer(subnet.gateway, net.gateway_mac))
        asked = _and(arp_request_for(subnet.gateway), **here)
        yield Flow(Table.ARP, Arp.SUBINTERFACE_GATEWAY, asked, answer, meter=LeafMeter.ARP, cookie=told)
    yield Flow(Table.ARP, Arp.SUBINTERFACE, match(**here), (CONTROLLER,), meter=LeafMeter.ARP, cookie=told)
    if not in_use(net, 6):
        return
    yield from nd_answers.leaf_flows(net, owner, nd.gateways(net, one.vrf), match(**here))
    kinds = [NDType.NEIGHBOUR_SOLICITATION, NDType.ROUTER_SOLICITATION]
    if isinstance(one.address, IPv6Address):
        kinds.append(NDType.NEIGHBOUR_ADVERTISEMENT)
    for kind in kinds:
        yield Flow(
            Table.ADMIT, LeafAdmit.ND, _and(icmpv6_match(kind), **here), (CONTROLLER,),
            meter=LeafMeter.ARP, cookie=cookie(Reason.SERVER_ND, owner),
        )  # fmt: skip


def destinations(
    net: Network, one: Subinterface, ways: Iterable[Prefix]
) -> Iterator[tuple[IP | Prefix, int]]:
    """What leads to the router in the VRF, and the priority of its routes: `ways`, and its own address."""
    for prefix in forwarded_prefixes(net, ways):
        yield prefix, Route.PREFIX + prefix.prefixlen
    if one.address is not None and in_use(net, one.address.version):
        yield one.address, Route.HOST


def leaving(flows: Iterable[Flow], port: int, vlan: int) -> Iterator[Flow]:
    """Entries of the router's leaf: what they send out of this port has the subinterface's tag there."""
    for flow in flows:
        actions: list[Action] = []
        for action in flow.actions:
            actions += (*_tag(vlan), action) if action == Output(port) else (action,)
        yield replace(flow, actions=tuple(actions))


def _tag(vlan: int) -> tuple[Action, ...]:
    """In the place of the tag that the frame has."""
    return (SetField(Field.VLAN_VID, _PRESENT | vlan),)


def _and(terms: Match, **more: FieldValue) -> Match:
    return in_order(*terms, *match(**more))

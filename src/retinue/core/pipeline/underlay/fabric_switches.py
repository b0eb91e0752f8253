"""What leaves, spines and cores hold whatever servers there are: where ARP and DHCP end, and the ways up."""

from collections.abc import Iterator
from itertools import product

from retinue.core.model import Prefix, Role, Switch
from retinue.core.model.families import forwarded_subnets, in_use
from retinue.core.model.link_local import LINK_LOCAL
from retinue.core.model.links import links_above, upward_ports
from retinue.core.model.network import Network, Owner
from retinue.core.model.packet_sizes import is_narrow_somewhere
from retinue.core.packets import EtherType
from retinue.core.packets.lldp import NEAREST_BRIDGE
from retinue.core.pipeline import vrfs
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import (
    CONTROLLER,
    Action,
    DecTtl,
    Field,
    FieldValue,
    Flow,
    Group,
    Meter,
    Output,
    PortNo,
    ToGroup,
    match,
    set_field,
)
from retinue.core.pipeline.matches import (
    CLIENT_PORT,
    CLIENT_PORT6,
    NO_TAG,
    dhcp6_match,
    dhcp_match,
    ip_match,
    ip_types,
    storage_types,
    unroutable,
)
from retinue.core.pipeline.meters import PROBES, LeafMeter, leaf_meters
from retinue.core.pipeline.priorities import TABLE_MISS, LeafAdmit, Route, Servers, SpineAdmit
from retinue.core.pipeline.responders import arp, echo, nd, too_big
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay.fabric_uplinks import probe_entries

UP_GROUP = 1
"""On a leaf the select group over its spines, on a spine that over its cores: equal cost, by flow hash."""


def leaf_flows(net: Network, leaf: Switch) -> Iterator[Flow | Group | Meter]:
    """What a leaf holds whatever servers it has."""
    owner = Owner("switch", leaf.id)
    mark = cookie(Reason.FORWARD, owner)
    for table in (Table.ADMIT, Table.ARP, Table.ROUTE, Table.SERVERS):
        yield Flow(table, TABLE_MISS, (), cookie=mark)
    yield from leaf_meters(sizes=is_narrow_somewhere(net), storage=bool(storage_types(net)))
    for port in ports_up(net, leaf.id):
        for kind in ip_types(net):
            down = match(in_port=port, vlan_vid=NO_TAG, eth_type=kind)
            from_spine = Flow(Table.ADMIT, LeafAdmit.FROM_SPINE, down, goto=Table.SERVERS, cookie=mark)
            yield from _with_and_without_tag(net, from_spine)
        for kind in storage_types(net):
            down = match(in_port=port, vlan_vid=NO_TAG, eth_type=kind)
            yield Flow(Table.ADMIT, LeafAdmit.FROM_SPINE, down, goto=Table.SERVERS, cookie=mark)
        yield Flow(Table.ADMIT, LeafAdmit.FROM_SPINE_OTHER, match(in_port=port), cookie=mark)
        yield Flow(Table.SERVERS, Servers.FROM_ABOVE, match(in_port=port), cookie=mark)
    if ports_up(net, leaf.id):
        # From a server's port none of these: what comes in there is no word about a link between switches.
        yield from _probes(net, leaf.id, LeafAdmit.PROBE)
    yield from probe_entries(net, leaf.id)
    any_arp = match(vlan_vid=NO_TAG, eth_type=EtherType.ARP)
    yield Flow(Table.ADMIT, LeafAdmit.ARP, any_arp, goto=Table.ARP, cookie=mark)
    if not leaf.given and any(server.chassis for server in net.servers.values()):
        said = match(vlan_vid=NO_TAG, eth_dst=NEAREST_BRIDGE, eth_type=EtherType.LLDP)
        yield Flow(
            Table.ADMIT, LeafAdmit.CHASSIS, said, (CONTROLLER,),
            meter=LeafMeter.ARP, cookie=cookie(Reason.MISSING_SERVER, owner),
        )  # fmt: skip
    yield Flow(
        Table.ADMIT, LeafAdmit.ROGUE_DHCP, dhcp_match(dport=CLIENT_PORT), (CONTROLLER,),
        meter=LeafMeter.SPOOFING, cookie=cookie(Reason.ROGUE_DHCP, owner),
    )  # fmt: skip
    for mac, kind in product(net.gateway_macs, ip_types(net)):
        to_gateway = match(vlan_vid=NO_TAG, eth_type=kind, eth_dst=mac)
        yield Flow(Table.ADMIT, LeafAdmit.TO_GATEWAY, to_gateway, goto=Table.ROUTE, cookie=mark)
    for_all = list(_routed_nowhere(net, owner))
    yield from for_all
    if net.has_vrfs():
        yield from vrfs.in_band([Flow(Table.ROUTE, TABLE_MISS, (), cookie=mark), *for_all])
        for kind in ip_types(net):
            # What the controller says to whom it concerns, in the VRF of the packet that it is about.
            said = match(in_port=PortNo.CONTROLLER, vlan_vid=NO_TAG, eth_type=kind, eth_dst=net.gateway_mac)
            admitted = Flow(Table.ADMIT, LeafAdmit.TO_GATEWAY, said, goto=Table.ROUTE, cookie=mark)
            yield vrfs.with_tag(admitted)
    yield from too_big.leaf_flows(net, owner)
    yield from arp.leaf_flows(net, owner)
    yield from nd.leaf_flows(net, owner)
    yield from echo.gateway_flows(net, owner, Table.ROUTE, Route.GATEWAY_ECHO, net.gateway_mac)
    if net.spines_by_mac or not ports_up(net, leaf.id):
        yield from _subnet_routes(net, (), mark)
    else:
        hop = (DecTtl(), set_field(Field.ETH_SRC, net.gateway_mac))
        yield from _routed_upward(net, (*hop, ToGroup(UP_GROUP)), mark)
    yield from _upward(net, leaf.id, mark)


def _routed_nowhere(net: Network, owner: Owner) -> Iterator[Flow]:
    """What a leaf does not route, in whichever VRF."""
    for prefix in unroutable(net):
        dropped = cookie(Reason.UNROUTABLE, owner)
        yield Flow(Table.ROUTE, Route.UNROUTABLE, ip_match(dst=prefix), cookie=dropped)
    if in_use(net, 6):
        yield Flow(
            Table.ADMIT, LeafAdmit.ROGUE_DHCP, dhcp6_match(dport=CLIENT_PORT6), (CONTROLLER,),
            meter=LeafMeter.SPOOFING, cookie=cookie(Reason.ROGUE_DHCP, owner),
        )  # fmt: skip
        from_link = ip_match(src=LINK_LOCAL)
        yield Flow(Table.ROUTE, Route.UNROUTABLE, from_link, cookie=cookie(Reason.UNROUTABLE, owner))
    for kind in ip_types(net):
        yield Flow(
            Table.ROUTE, Route.EXPIRED, match(eth_type=kind, ip_ttl=1), (CONTROLLER,),
            meter=LeafMeter.EXPIRED, cookie=cookie(Reason.EXPIRED, owner),
        )  # fmt: skip


def _with_and_without_tag(net: Network, flow: Flow) -> Iterator[Flow]:
    """An entry of ADMIT where frames of all VRFs come in; in a network of one VRF none has a tag."""
    yield flow
    if net.has_vrfs():
        yield vrfs.with_tag(flow)


def _probes(
    net: Network, switch: str, priority: int, from_below: int | None = None
) -> Iterator[Flow | Meter]:
    """Probes of links go to the controller, as far as the meter lets them: from above, and from the
    controller, to see whether the switch answers. What comes `from_below` (a priority) is sent back, too: so
    a switch above that is not connected is probed, too, and one that forwards nothing any more is found. LLDP
    of others is not: at a port with a loop behind it that would come again and again.
    """
    mark = cookie(Reason.PROBE, Owner("switch", switch))
    kind: dict[str, FieldValue] = {"vlan_vid": NO_TAG, "eth_type": EtherType.LLDP, "eth_dst": NEAREST_BRIDGE}
    yield PROBES
    for port in (*ports_up(net, switch), PortNo.CONTROLLER):
        told = match(in_port=port, **kind)
        yield Flow(Table.ADMIT, priority, told, (CONTROLLER,), meter=PROBES.id, cookie=mark)
    if from_below is not None:
        both = (CONTROLLER, Output(PortNo.IN_PORT))
        ours = match(**kind, eth_src=net.gateway_mac)
        yield Flow(Table.ADMIT, from_below, ours, both, meter=PROBES.id, cookie=mark)


def spine_flows(net: Network, spine: Switch) -> Iterator[Flow | Group | Meter]:
    """What a spine, or a core, holds whatever servers there are: untagged IP enters, to the gateway or to a
    server; from a core only to a server. What is in no pod of its own a spine sends to a core, if it has one.
    """
    mark = cookie(Reason.FORWARD, Owner("switch", spine.id))
    routes = not net.spines_by_mac
    for table in (Table.ADMIT, Table.ROUTE, Table.SERVERS) if routes else (Table.ADMIT, Table.SERVERS):
        yield Flow(table, TABLE_MISS, (), cookie=mark)
    for kind in ip_types(net):
        for mac in net.gateway_macs if routes else ():
            to_gateway = match(vlan_vid=NO_TAG, eth_type=kind, eth_dst=mac)
            routed = Flow(Table.ADMIT, SpineAdmit.TO_GATEWAY, to_gateway, goto=Table.ROUTE, cookie=mark)
            yield from _with_and_without_tag(net, routed)
        to_server = match(vlan_vid=NO_TAG, eth_type=kind)
        brought = Flow(Table.ADMIT, SpineAdmit.TO_SERVER, to_server, goto=Table.SERVERS, cookie=mark)
        yield from _with_and_without_tag(net, brought)
    for kind in storage_types(net):
        stored = match(vlan_vid=NO_TAG, eth_type=kind)
        yield Flow(Table.ADMIT, SpineAdmit.TO_SERVER, stored, goto=Table.SERVERS, cookie=mark)
    if net.has_vrfs() and routes:
        yield from vrfs.in_band([Flow(Table.ROUTE, TABLE_MISS, (), cookie=mark)])
    yield from _from_cores(net, spine.id, mark)
    yield from _probes(net, spine.id, SpineAdmit.PROBE, SpineAdmit.PROBE_FROM_BELOW)
    if routes and not ports_up(net, spine.id):
        yield from _subnet_routes(net, (), mark)  # An address nobody holds ends here.
    elif routes:
        # As it came: a leaf is the one hop of the fabric.
        yield from _routed_upward(net, (ToGroup(UP_GROUP),), mark)
    yield from _upward(net, spine.id, mark)


def _from_cores(net: Network, spine: str, mark: int) -> Iterator[Flow]:
    """A core has said to which server it goes; if that is not here, it goes nowhere."""
    for port in ports_up(net, spine):
        for kind in ip_types(net):
            down = match(in_port=port, vlan_vid=NO_TAG, eth_type=kind)
            from_core = Flow(Table.ADMIT, SpineAdmit.FROM_CORE, down, goto=Table.SERVERS, cookie=mark)
            yield from _with_and_without_tag(net, from_core)
        for kind in storage_types(net):
            down = match(in_port=port, vlan_vid=NO_TAG, eth_type=kind)
            yield Flow(Table.ADMIT, SpineAdmit.FROM_CORE, down, goto=Table.SERVERS, cookie=mark)
        yield Flow(Table.ADMIT, SpineAdmit.FROM_CORE_OTHER, match(in_port=port), cookie=mark)
        yield Flow(Table.SERVERS, Servers.FROM_ABOVE, match(in_port=port), cookie=mark)


def ports_up(net: Network, switch: str) -> list[int]:
    """Numbers of a leaf's ports that lead to spines; of a spine's that lead to cores."""
    refs = sorted(link.lower for link in links_above(net, switch))
    return [number for ref in refs if (number := net.port_number(ref)) is not None]


def ways_down(net: Network, leaf: str) -> Iterator[tuple[str, int]]:
    """Each spine and core that leads to a leaf, with the number of its port that does."""
    for role in (Role.SPINE, Role.CORE):
        for switch in net.with_role(role):
            port = net.port_down(switch.id, leaf)
            if port is not None:
                yield switch.id, port


def _upward(net: Network, switch: str, mark: int) -> Iterator[Flow | Group]:
    """What is for a server that is not here goes up: a copy (LeafAdmit.COPY), what an edge forwards, all
    where spines know MACs alone. By hash, so that one flow of packets stays on one path."""
    if not ports_up(net, switch):
        return
    yield Group(UP_GROUP, tuple((Output(port),) for port in upward_ports(net, switch)))
    for kind in (*ip_types(net), *storage_types(net)):
        yield Flow(Table.SERVERS, Servers.UP, match(eth_type=kind), (ToGroup(UP_GROUP),), cookie=mark)


def _routed_upward(net: Network, way: tuple[Action, ...], mark: int) -> Iterator[Flow]:
    """What goes to an address that is not here."""
    yield from _subnet_routes(net, way, mark)
    for kind in ip_types(net):
        yield Flow(Table.ROUTE, Route.DEFAULT, match(eth_type=kind), way, cookie=mark)


def _subnet_routes(net: Network, way: tuple[Action, ...], mark: int) -> Iterator[Flow]:
    for vrf in net.vrfs.values():
        for subnet in forwarded_subnets(net.subnets_in(vrf.id)):
            yield from inside(subnet.prefix, vrf.tag, way, mark)


def inside(prefix: Prefix, tag: int, way: tuple[Action, ...], mark: int) -> Iterator[Flow]:
    """What is inside a subnet, or routed to a VM, takes no way out of the data centre, were it the default
    route. `tag`: of the VRF."""
    route = Flow(Table.ROUTE, Route.PREFIX + prefix.prefixlen, ip_match(dst=prefix), way, cookie=mark)
    return vrfs.on_fabric([route], tag)

"""Entries of leaves and spines: IP routes to servers (seed 3), and servers' MACs to ports (seed 4)."""

from collections.abc import Iterator
from ipaddress import IPv4Address

from retinue.flows.entry import (
    Action,
    DecTtl,
    Field,
    Flow,
    Group,
    Match,
    Meter,
    Output,
    PortNo,
    ToGroup,
    match,
    set_field,
)
from retinue.flows.pipeline import (
    ARP_REQUEST,
    CONTROLLER,
    DHCP_CLIENT_PORT,
    DHCP_SERVER_PORT,
    ICMP,
    ICMP_ECHO_REQUEST,
    LEAF_ARP_METER,
    LEAF_DHCP_METER,
    LEAF_FORGERY_METER,
    LEAF_METER_RATE,
    NO_TAG,
    SPINES_GROUP,
    UDP,
    EthType,
    Priority,
    Reason,
    Table,
    arp_answer,
    cookie,
    echo_answer,
    ip_match,
)
from retinue.model import IP, Role, Server, Service, Switch
from retinue.model.network import Network, Owner


def leaf_flows(net: Network, leaf: Switch) -> Iterator[Flow | Group | Meter]:
    """What a leaf holds whatever servers it has."""
    owner = Owner("switch", leaf.id)
    mark = cookie(Reason.FORWARD, owner)
    for table in (Table.ADMIT, Table.ARP, Table.ROUTE, Table.SERVERS):
        yield Flow(table, Priority.DROP, (), cookie=mark)
    for meter in (LEAF_ARP_METER, LEAF_DHCP_METER, LEAF_FORGERY_METER):
        yield Meter(meter, LEAF_METER_RATE, LEAF_METER_RATE)
    for port in _spine_ports(net, leaf.id):
        down = match(in_port=port, vlan_vid=NO_TAG, eth_type=EthType.IPV4)
        yield Flow(Table.ADMIT, Priority.FROM_SPINE, down, goto=Table.SERVERS, cookie=mark)
        yield Flow(Table.ADMIT, Priority.FROM_SPINE_OTHER, match(in_port=port), cookie=mark)
        yield Flow(Table.SERVERS, 20, match(in_port=port), cookie=mark)
    arp = match(vlan_vid=NO_TAG, eth_type=EthType.ARP)
    yield Flow(Table.ADMIT, Priority.LEAF_ARP, arp, goto=Table.ARP, cookie=mark)
    rogue = match(eth_type=EthType.IPV4, ip_proto=UDP, udp_dst=DHCP_CLIENT_PORT)
    rogue_cookie = cookie(Reason.ROGUE_DHCP, owner)
    yield Flow(
        Table.ADMIT, Priority.LEAF_ROGUE_DHCP, rogue, (CONTROLLER,),
        meter=LEAF_FORGERY_METER, cookie=rogue_cookie,
    )  # fmt: skip
    to_gateway = match(vlan_vid=NO_TAG, eth_type=EthType.IPV4, eth_dst=net.gateway_mac)
    yield Flow(Table.ADMIT, Priority.TO_GATEWAY, to_gateway, goto=Table.ROUTE, cookie=mark)
    yield from _answers(net, owner)
    yield from _upward(net, leaf.id, mark)


def _answers(net: Network, owner: Owner) -> Iterator[Flow]:
    """ARP ends here (row C3). The controller has a copy of each question: so servers are found (D2)."""
    heard = cookie(Reason.SERVER_ARP, owner)
    for subnet in net.subnets.values():
        if subnet.gateway.version != 4:
            continue
        ask = match(eth_type=EthType.ARP, arp_op=ARP_REQUEST, arp_tpa=subnet.gateway)
        answer = (CONTROLLER, *arp_answer(subnet.gateway, net.gateway_mac))
        yield Flow(Table.ARP, 200, ask, answer, meter=LEAF_ARP_METER, cookie=heard)
        ping = ip_match(dst=subnet.gateway, ip_proto=ICMP, icmpv4_type=ICMP_ECHO_REQUEST)
        answer = echo_answer(subnet.gateway, net.gateway_mac)
        yield Flow(Table.ROUTE, Priority.ANSWER, ping, answer, cookie=cookie(Reason.FORWARD, owner))
    yield Flow(Table.ARP, 100, (), (CONTROLLER,), meter=LEAF_ARP_METER, cookie=heard)


def _upward(net: Network, leaf: str, mark: int) -> Iterator[Flow | Group]:
    """What is not here goes to a spine: by hash, so that one flow of packets stays on one path (row C4)."""
    ports = _spine_ports(net, leaf)
    if not ports:
        yield from _subnet_routes(net, (), mark)
        return
    yield Group(SPINES_GROUP, tuple((Output(port),) for port in ports))
    up = (DecTtl(), set_field(Field.ETH_SRC, net.gateway_mac), ToGroup(SPINES_GROUP))
    yield from _subnet_routes(net, up, mark)
    yield Flow(Table.ROUTE, Priority.DEFAULT, match(eth_type=EthType.IPV4), up, cookie=mark)
    # A copy for a server that is not here (Priority.COPY); what a spine sends ends here.
    yield Flow(Table.SERVERS, 10, match(eth_type=EthType.IPV4), (ToGroup(SPINES_GROUP),), cookie=mark)


def _subnet_routes(net: Network, way: tuple[Action, ...], mark: int) -> Iterator[Flow]:
    """What is inside a subnet never takes a way out of the data centre, were it the default route."""
    for subnet in net.subnets.values():
        if subnet.prefix.version == 4:
            inside = match(eth_type=EthType.IPV4, ipv4_dst=subnet.prefix)
            yield Flow(Table.ROUTE, Priority.PREFIX + subnet.prefix.prefixlen, inside, way, cookie=mark)


def spine_flows(net: Network, spine: Switch) -> Iterator[Flow]:
    mark = cookie(Reason.FORWARD, Owner("switch", spine.id))
    for table in (Table.ADMIT, Table.ROUTE, Table.SERVERS):
        yield Flow(table, Priority.DROP, (), cookie=mark)
    to_gateway = match(vlan_vid=NO_TAG, eth_type=EthType.IPV4, eth_dst=net.gateway_mac)
    yield Flow(Table.ADMIT, 100, to_gateway, goto=Table.ROUTE, cookie=mark)
    to_server = match(vlan_vid=NO_TAG, eth_type=EthType.IPV4)
    yield Flow(Table.ADMIT, 90, to_server, goto=Table.SERVERS, cookie=mark)
    yield from _subnet_routes(net, (), mark)  # An address nobody holds ends here.


def server_flows(net: Network, server: Server) -> dict[str, list[Flow]]:
    """Ways to a server's MAC (row D3), to its own address and to the prefixes behind it, on each switch."""
    at = net.place(server.id)
    port = None if at is None else net.port_number(at)
    if at is None or port is None:
        return {}
    mark = cookie(Reason.FORWARD, Owner("server", server.id))
    found: dict[str, list[Flow]] = {at.switch: []}
    here = found[at.switch]
    here.append(Flow(Table.SERVERS, 100, match(eth_dst=server.mac), (Output(port),), cookie=mark))
    if Service.DHCP in server.services:
        trusted = match(
            in_port=port, vlan_vid=NO_TAG, eth_type=EthType.IPV4, ip_proto=UDP, udp_src=DHCP_SERVER_PORT
        )
        reason = cookie(Reason.DHCP_SERVER, Owner("server", server.id))
        here.append(
            Flow(
                Table.ADMIT, Priority.TRUSTED_DHCP, trusted, (CONTROLLER,),
                meter=LEAF_DHCP_METER, cookie=reason,
            )
        )  # fmt: skip
    here.extend(_service_sources(net, server, port, mark))
    for spine in net.with_role(Role.SPINE):
        down = net.spine_port(spine.id, at.switch)
        if down is not None:
            to_it = match(eth_dst=server.mac)
            found[spine.id] = [Flow(Table.SERVERS, 100, to_it, (Output(down),), cookie=mark)]
    if server.address is not None:
        _add(found, host_routes(net, server, server.address, mark))
    for prefix in server.routes:
        if prefix.version == 4:
            inside = match(eth_type=EthType.IPV4, ipv4_dst=prefix)
            _add(found, _routes(net, server, Priority.PREFIX + prefix.prefixlen, inside, None, mark))
    return found


def _service_sources(net: Network, server: Server, port: int, mark: int) -> Iterator[Flow]:
    """As whom a router or DHCP server may send, at its port, into the fabric (RFC 2827, ingress filtering).

    Either as itself. A router also as anybody outside: those are forwarded by it, our own never are. A DHCP
    server's answers do not come this way (see TRUSTED_DHCP). Where a server also runs VMs they share its
    port, and its edge switch has seen to it.
    """
    if not server.services or server.edge:
        return
    to_gateway = match(in_port=port, eth_type=EthType.IPV4, eth_dst=net.gateway_mac)
    if isinstance(server.address, IPv4Address):
        itself = ip_match(src=server.address, in_port=port, vlan_vid=NO_TAG, eth_dst=net.gateway_mac)
        yield Flow(Table.ADMIT, Priority.SERVICE_ITSELF, itself, goto=Table.ROUTE, cookie=mark)
    forged = [to_gateway]
    if Service.ROUTER in server.services:
        prefixes = [s.prefix for s in net.subnets.values() if s.prefix.version == 4]
        forged = [
            match(in_port=port, eth_type=EthType.IPV4, eth_dst=net.gateway_mac, ipv4_src=p) for p in prefixes
        ]
    reason = cookie(Reason.FORGED_IP, Owner("server", server.id))
    for pretence in forged:
        yield Flow(
            Table.ADMIT, Priority.SERVICE_FORGED, pretence, (CONTROLLER,),
            meter=LEAF_FORGERY_METER, cookie=reason,
        )  # fmt: skip


def host_routes(net: Network, server: Server, ip: IP, mark: int) -> dict[str, list[Flow]]:
    """The way to an address on a server: its leaf to the server's port, each spine to its leaf."""
    if ip.version != 4:
        return {}
    hairpin = ip_match(dst=ip)
    return _routes(net, server, Priority.HOST, hairpin, Priority.HAIRPIN, mark)


def copy_ways(net: Network, server: Server, to: Server, ip: IP, mark: int) -> dict[str, list[Flow]]:
    """Lets copies of what one server is sent for this address into the fabric, to another server."""
    at = net.place(server.id)
    port = None if at is None else net.port_number(at)
    if at is None or port is None or ip.version != 4:
        return {}
    copied = ip_match(dst=ip, in_port=port, vlan_vid=NO_TAG, eth_dst=to.mac)
    return {at.switch: [Flow(Table.ADMIT, Priority.COPY, copied, goto=Table.SERVERS, cookie=mark)]}


def _routes(
    net: Network, server: Server, priority: int, to: Match, hairpin: int | None, mark: int
) -> dict[str, list[Flow]]:
    at = net.place(server.id)
    port = None if at is None else net.port_number(at)
    if at is None or port is None:
        return {}
    rewrite: tuple[Action, ...] = (
        DecTtl(),
        set_field(Field.ETH_SRC, net.gateway_mac),
        set_field(Field.ETH_DST, server.mac),
    )
    found = {at.switch: [Flow(Table.ROUTE, priority, to, (*rewrite, Output(port)), cookie=mark)]}
    if hairpin is not None:
        # Two VMs on one server with a stale ARP cache talk through the leaf (seed 3): back out of the port
        # the frame came in by, which a switch does only when told so by name.
        back = match(in_port=port) + to
        turn = (*rewrite, Output(PortNo.IN_PORT))
        found[at.switch].append(Flow(Table.ROUTE, hairpin, back, turn, cookie=mark))
    for spine in net.with_role(Role.SPINE):
        down = net.spine_port(spine.id, at.switch)
        if down is not None:
            way = (set_field(Field.ETH_DST, server.mac), Output(down))
            found[spine.id] = [Flow(Table.ROUTE, priority, to, way, cookie=mark)]
    return found


def _spine_ports(net: Network, leaf: str) -> list[int]:
    refs = sorted(link.leaf for link in net.links if link.leaf.switch == leaf)
    return [number for ref in refs if (number := net.port_number(ref)) is not None]


def _add(found: dict[str, list[Flow]], more: dict[str, list[Flow]]) -> None:
    for switch, flows in more.items():
        found.setdefault(switch, []).extend(flows)


def trunk_ports(net: Network, leaf: str) -> frozenset[int]:
    """Numbers of a leaf's ports that lead to spines; every other port may lead to a server."""
    return frozenset(_spine_ports(net, leaf))


__all__ = ["copy_ways", "host_routes", "leaf_flows", "server_flows", "spine_flows", "trunk_ports"]

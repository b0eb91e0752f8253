"""Entries of a gateway's edge switch, whose tunnel leads to another domain; and those a guest has elsewhere.

A gateway is an edge switch in all else. Its tunnel is the port of every VM that is away, so in the VM's home:

    from the tunnel, from the VM's MAC and address       as from the VM's own port: FORWARD, up
    from the tunnel, from the VM's MAC: by DHCP, where   to the controller, which asks the DHCP servers, and
    it has no static address, by DHCPv6, and in search   advertises the gateway, and answers through the
    of a router (IPv6)                                   tunnel
    from the fabric, to the VM                           out of the tunnel

and in the domain where the VM is a guest:

    from the tunnel, to the guest                        to its server, by the server's MAC
    from the tunnel, a DHCP server's, to the guest's     to the controller, which binds the lease here, too
    MAC
    at the guest's edge, from the guest, not answered    to the gateway, by the gateway's MAC
    here
    at the guest's edge, ARP from the guest, for         answered with our gateway's MAC
    whomever
    from the fabric, from the guest                      out of the tunnel

Of a VM whose anchor its home has ended (`unanchored`) the first and the third of its home's drop, and count
what they drop. What it asks by DHCP goes on being answered: its addresses stay its own.

Storage goes by the tunnel, too, where that is wanted (`storage`).

A guest is reached through its home alone, and answers through it alone, whoever it speaks to: one way both
before, in and after a move, so that nothing overtakes anything; what filters by source addresses outside (RFC
2827) sees them where they belong; and the domain where it is holds no route for it. To IP the fabric at home
stays the one router: nobody else takes the TTL down.

What is admitted from a tunnel is that and no more: a peer can neither send as anybody but its guests of ours,
nor to anybody but guests of its own. So no packet is sent round between two gateways: home sends into the
tunnel what is for a VM that is delivered there, and takes back only what is for one that is not.
"""

from collections.abc import Iterator
from ipaddress import IPv6Address

from retinue.core.model import IP, NIC, VM, Server
from retinue.core.model.families import dhcp6_subnets, forwarded_assignments, in_use
from retinue.core.model.network import Network, Owner
from retinue.core.packets import HOP_LIMIT, EtherType, NDType
from retinue.core.pipeline import edge_ipv6
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.edge import copies, rogue_dhcp
from retinue.core.pipeline.entry import (
    CONTROLLER,
    Action,
    Field,
    Flow,
    FlowsBySwitch,
    Match,
    Meter,
    Output,
    PortNo,
    match,
    set_field,
)
from retinue.core.pipeline.matches import (
    CLIENT_PORT,
    CLIENT_PORT6,
    NO_TAG,
    SERVER_PORT,
    SERVER_PORT6,
    dhcp6_match,
    dhcp_match,
    icmpv6_match,
    ip_match,
)
from retinue.core.pipeline.meters import VMMeter, share_meter, vm_meters
from retinue.core.pipeline.priorities import Deliver, EdgeAdmit, Forward
from retinue.core.pipeline.responders import arp, nd_answers
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import Underlay

MARK_TYPE = EtherType.EXPERIMENT
"""Of the marks that gateways send each other. Primers for a target behind the tunnel have it, too: they are
no mark that anybody waits for."""
_OF_NEIGHBOURS = (
    NDType.NEIGHBOUR_SOLICITATION,
    NDType.NEIGHBOUR_ADVERTISEMENT,
    NDType.ROUTER_SOLICITATION,
    NDType.REDIRECT,
)


def tunnel_flows(net: Network, server: Server) -> Iterator[Flow | Meter]:
    """What a gateway holds whoever is away: marks are the controller's, and DHCP does not pass.

    It would reach servers, or guests, past the controller, which alone sends and takes what is for the one VM
    (`_asked`, `_answered`).
    """
    tunnel = net.tunnel_at(server.edge) if net.peers else None
    if tunnel is None:
        return
    yield from vm_meters(tunnel.number)
    mark = match(in_port=tunnel.number, vlan_vid=NO_TAG, eth_type=MARK_TYPE)
    yield Flow(
        Table.ADMIT, EdgeAdmit.FROM_TUNNEL, mark, (CONTROLLER,),
        meter=VMMeter.ARP.id(tunnel.number), cookie=cookie(Reason.TUNNEL_MARK, Owner("server", server.id)),
    )  # fmt: skip
    for priority, dhcp in rogue_dhcp(tunnel.number):
        yield Flow(
            Table.ADMIT, priority, dhcp, (CONTROLLER,),
            meter=VMMeter.SPOOFING.id(tunnel.number),
            cookie=cookie(Reason.ROGUE_DHCP, Owner("server", server.id)),
        )  # fmt: skip
    if in_use(net, 6):
        yield from _not_by_tunnel(Owner("server", server.id), tunnel.number)


def _not_by_tunnel(owner: Owner, port: int) -> Iterator[Flow]:
    """Of IPv6: no DHCPv6 passes, also from an address that does; and who is a neighbour is answered in each
    domain by itself. A leaf would hand what asks for one to the controller, by the meter of its servers."""
    questions = dhcp6_match(dport=SERVER_PORT6, in_port=port)
    dropped = [(EdgeAdmit.ROGUE_DHCP_ANSWER, answer) for answer in edge_ipv6.dhcp6_answers(port)]
    dropped.append((EdgeAdmit.ROGUE_DHCP_QUESTION, questions))
    for kind in _OF_NEIGHBOURS:
        dropped.append((EdgeAdmit.ND_BY_TUNNEL, icmpv6_match(kind, in_port=port)))
    for priority, found in dropped:
        yield Flow(Table.ADMIT, priority, found, cookie=cookie(Reason.QUIET, owner))


def nic_flows(
    underlay: Underlay, net: Network, vm: VM, nic: NIC, at: Server, port: int
) -> Iterator[Flow | Meter]:
    """A NIC of a VM that is registered at a gateway, alone or in a migration; `port` is the tunnel."""
    anchored = vm.id not in net.unanchored
    mark = cookie(Reason.FORWARD if anchored else Reason.QUIET, Owner("vm", vm.id))
    delivered = at.id == vm.server
    marked, _, copy = copies(underlay, net, vm, at)
    uplink = net.uplink_number(at.edge)
    if not vm.home:
        yield from _asked(net, vm, nic, port)
    for to, until in _addresses(net, vm, nic):
        if not vm.home:
            from_vm = ip_match(src=to, in_port=port, vlan_vid=NO_TAG, eth_src=nic.speaks_as(to))
            onwards = Table.FORWARD if anchored else None  # Dropped there, and counted.
            yield Flow(Table.ADMIT, EdgeAdmit.BOUND, from_vm, goto=onwards, cookie=mark, expires_at=until)
        if at.id != vm.forwarded_from:
            to_vm = set_field(Field.ETH_DST, nic.speaks_as(to))
            there = (*marked, to_vm, Output(port), *copy) if anchored else ()
            yield Flow(Table.DELIVER, Deliver.VM, ip_match(dst=to), there, cookie=mark, expires_at=until)
        if not delivered and not vm.home and uplink is not None:
            yield _from_tunnel(underlay, net.servers[vm.server], to, port, uplink, mark)


def shares(net: Network, vm: VM) -> Iterator[tuple[str, Meter]]:
    """Each VM has a meter of its own at the tunnel, as it would have at a port: none uses up the others'."""
    share = net.share_of(vm.id)
    gateways = {net.peers[vm.home].gateway} if vm.home in net.peers else set(vm.locations)
    for name in sorted(gateways):
        if share is not None and net.tunnel_at(net.servers[name].edge) is not None:
            yield net.servers[name].edge, share_meter(share)


def meter_of(net: Network, vm: VM, port: int) -> int:
    """Where there are too many such VMs, some have the tunnel's together."""
    share = net.share_of(vm.id)
    return VMMeter.DHCP.id(port) if share is None else share_meter(share).id


def _asked(net: Network, vm: VM, nic: NIC, port: int) -> Iterator[Flow]:
    """What a VM that is away asks its home for, by the tunnel: a lease, and the router of IPv6."""
    owner, meter = Owner("vm", vm.id), meter_of(net, vm, port)
    if asks_by_dhcp(nic):
        asked = dhcp_match(
            sport=CLIENT_PORT, dport=SERVER_PORT, in_port=port, vlan_vid=NO_TAG, eth_src=nic.mac
        )
        yield Flow(
            Table.ADMIT, EdgeAdmit.CLIENT_DHCP, asked, (CONTROLLER,),
            meter=meter, cookie=cookie(Reason.DHCP_CLIENT, owner),
        )  # fmt: skip
    if not in_use(net, 6):
        return
    if dhcp6_subnets(net, nic.vnet):
        asked = dhcp6_match(
            sport=CLIENT_PORT6, dport=SERVER_PORT6, in_port=port, vlan_vid=NO_TAG, eth_src=nic.mac
        )
        yield Flow(
            Table.ADMIT, EdgeAdmit.CLIENT_DHCP, asked, (CONTROLLER,),
            meter=meter, cookie=cookie(Reason.DHCP6_CLIENT, owner),
        )  # fmt: skip
    search = icmpv6_match(
        NDType.ROUTER_SOLICITATION, in_port=port, vlan_vid=NO_TAG, eth_src=nic.mac, ip_ttl=HOP_LIMIT
    )
    yield Flow(
        Table.ADMIT, EdgeAdmit.SEARCH_BY_TUNNEL, search, (CONTROLLER,),
        meter=meter, cookie=cookie(Reason.VM_ND, owner),
    )  # fmt: skip


def guest_flows(underlay: Underlay, net: Network, vm: VM) -> FlowsBySwitch:
    """The way between a guest and the gateway to its home, wherever it is delivered, open, or both."""
    found: FlowsBySwitch = {}
    peer = net.peers.get(vm.home)
    home = None if peer is None else net.servers[peer.gateway]
    tunnel = None if home is None else net.tunnel_at(home.edge)
    if home is None or tunnel is None:
        return found
    mark, delivers = cookie(Reason.FORWARD, Owner("vm", vm.id)), net.servers[vm.server]
    uplink = net.uplink_number(home.edge)
    for one in vm.nics if vm.server != home.id else ():
        found.setdefault(home.edge, []).extend(_answered(net, vm, one, tunnel.number))
    for nic, ip in [(one, ip) for one in vm.nics for ip, _ in _addresses(net, vm, one)]:
        from_guest = ip_match(src=ip, eth_src=nic.speaks_as(ip))
        found.setdefault(home.edge, []).append(
            Flow(Table.DELIVER, Deliver.GUEST, from_guest, (Output(tunnel.number),), cookie=mark)
        )
        if vm.server == home.id:
            # It is not here, or not any more: what has come late is its home's again.
            late = ip_match(dst=ip, in_port=tunnel.number, vlan_vid=NO_TAG)
            back = (Output(PortNo.IN_PORT),)
            found[home.edge].append(Flow(Table.ADMIT, EdgeAdmit.FROM_TUNNEL, late, back, cookie=mark))
        elif uplink is not None:
            found[home.edge].append(_from_tunnel(underlay, delivers, ip, tunnel.number, uplink, mark))
        for name in (name for name in vm.locations if name != home.id):
            _add(found, _at_edge(underlay, net, nic, net.servers[name], home, ip, mark))
            _add(found, underlay.way_home(net.servers[name], home, ip, mark))
            # To each location, for as long as it is one: the gateway is told after its leaf.
            _add(found, underlay.copy_ways(home, net.servers[name], ip, mark))
    return found


def asks_by_dhcp(nic: NIC) -> bool:
    """Whether a NIC has its address of IPv4 from a DHCP server at its home."""
    return all(ip.version != 4 for ip in nic.addresses)


def _answered(net: Network, vm: VM, nic: NIC, tunnel: int) -> Iterator[Flow]:
    """What its home's DHCP servers say to a guest: the controller judges it as what our own say."""
    owner, meter, to = Owner("vm", vm.id), meter_of(net, vm, tunnel), {"in_port": tunnel, "vlan_vid": NO_TAG}
    answers: list[tuple[Reason, Match]] = []
    if asks_by_dhcp(nic):
        said = dhcp_match(sport=SERVER_PORT, dport=CLIENT_PORT, eth_dst=nic.mac, **to)
        answers.append((Reason.DHCP_SERVER, said))
    if in_use(net, 6):
        said = dhcp6_match(sport=SERVER_PORT6, dport=CLIENT_PORT6, eth_dst=nic.mac, **to)
        answers.append((Reason.DHCP6_SERVER, said))
    for reason, said in answers:
        yield Flow(
            Table.ADMIT, EdgeAdmit.TRUSTED_DHCP, said, (CONTROLLER,),
            meter=meter, cookie=cookie(reason, owner),
        )  # fmt: skip


def _from_tunnel(underlay: Underlay, to: Server, ip: IP, port: int, uplink: int, mark: int) -> Flow:
    there: tuple[Action, ...] = (*underlay.reach(to), Output(uplink))
    arrived = ip_match(dst=ip, in_port=port, vlan_vid=NO_TAG)
    return Flow(Table.ADMIT, EdgeAdmit.FROM_TUNNEL, arrived, there, cookie=mark)


def _at_edge(
    underlay: Underlay, net: Network, nic: NIC, at: Server, home: Server, ip: IP, mark: int
) -> FlowsBySwitch:
    """What the guest sends, and its edge does not answer, goes home; and so does whoever it asks for."""
    port = net.port_of(nic, at.edge)
    uplink = net.uplink_number(at.edge)
    if port is None or uplink is None:
        return {}
    way: tuple[Action, ...] = (*underlay.reach(home), Output(uplink))
    from_guest = ip_match(src=ip, in_port=port.number)
    found = [Flow(Table.FORWARD, Forward.GUEST, from_guest, way, cookie=mark)]
    mac, gateway_mac = nic.speaks_as(ip), net.gateway_mac_of(at)
    if isinstance(ip, IPv6Address):
        found.append(nd_answers.guest_flow(ip, mac, port.number, gateway_mac, mark))
    else:
        found.append(arp.guest_flow(ip, mac, port.number, gateway_mac, mark))
    return {at.edge: found}


def _addresses(net: Network, vm: VM, nic: NIC) -> Iterator[tuple[IP, float | None]]:
    held = forwarded_assignments(net, net.assignments_of(vm, nic))
    return ((one.ip, one.lease_end) for one in held)


def _add(found: FlowsBySwitch, more: FlowsBySwitch) -> None:
    for switch, flows in more.items():
        found.setdefault(switch, []).extend(flows)

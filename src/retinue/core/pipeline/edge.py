"""Entries of an edge switch: who may send what, and which frame goes to which VM."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from retinue.core.model import IP, NIC, VM, BindingKind, Mac, Prefix, Server, Switch
from retinue.core.model.anycast import host_prefix
from retinue.core.model.families import forwarded_assignments, forwarded_prefixes, in_use, led_to
from retinue.core.model.network import Network, Owner
from retinue.core.packets import BROADCAST, ArpOp, EtherType
from retinue.core.packets.lldp import NEAREST_BRIDGE
from retinue.core.pipeline import edge_ipv6, mirroring, trunk, uplinks, vrfs
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import (
    CONTROLLER,
    Action,
    Field,
    FieldValue,
    Flow,
    Group,
    Match,
    Meter,
    Output,
    PopVlan,
    PortNo,
    Resubmit,
    match,
    set_field,
)
from retinue.core.pipeline.matches import (
    CLIENT_PORT,
    GROUP_BIT,
    NO_TAG,
    PRIORITY_TAG,
    SERVER_PORT,
    dhcp_match,
    ip_match,
    ip_types,
    unroutable,
)
from retinue.core.pipeline.meters import EDGE_PROBES, EDGE_VDP, VMMeter, rate_meters, vm_meters
from retinue.core.pipeline.priorities import TABLE_MISS, Deliver, EdgeAdmit, Forward
from retinue.core.pipeline.responders import arp, echo, nd, nd_answers
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import Underlay


def switch_flows(net: Network, switch: Switch) -> Iterator[Flow | Group | Meter]:
    """What an edge switch holds whatever VMs it has: the way up and the gateway's own answers."""
    owner = Owner("switch", switch.id)
    gateway_mac = net.gateway_mac_of(net.server_of_edge(switch.id))
    for vrf in net.vrfs.values():
        answers = [
            *arp.edge_flows(net, owner, gateway_mac, vrf.id),
            *echo.gateway_flows(net, owner, Table.FORWARD, Forward.GATEWAY_ECHO, gateway_mac, vrf.id),
        ]
        if in_use(net, 6):
            answers += nd_answers.edge_flows(owner, nd.gateways(net, vrf.id), gateway_mac)
        yield from vrfs.at_edge(answers, vrf.tag)
    for_all = list(_for_all_vrfs(net, switch, owner, gateway_mac))
    yield from for_all
    if net.has_vrfs():
        yield from vrfs.in_band(one for one in for_all if isinstance(one, Flow))


def _for_all_vrfs(
    net: Network, switch: Switch, owner: Owner, gateway_mac: Mac
) -> Iterator[Flow | Group | Meter]:
    mark = cookie(Reason.FORWARD, owner)
    for table in (Table.ADMIT, Table.ARP, Table.FORWARD, Table.DELIVER):
        yield Flow(table, TABLE_MISS, (), cookie=mark)
    yield from edge_ipv6.switch_flows(net, owner)
    untagged = (PopVlan(), Resubmit(Table.ADMIT))
    with_priority = match(vlan_vid=PRIORITY_TAG)
    yield Flow(Table.ADMIT, EdgeAdmit.PRIORITY_TAG, with_priority, untagged, cookie=mark)
    uplink = net.uplink_number(switch.id)
    if uplink is None:
        return
    from_fabric = match(in_port=uplink, vlan_vid=PRIORITY_TAG)
    yield Flow(Table.ADMIT, EdgeAdmit.FABRIC_PRIORITY_TAG, from_fabric, cookie=mark)
    if switch.vdp:
        said = match(in_port=uplink, vlan_vid=NO_TAG, eth_type=EtherType.LLDP)
        vdp = cookie(Reason.VDP, owner)
        yield EDGE_VDP
        yield Flow(Table.ADMIT, EdgeAdmit.VDP, said, (CONTROLLER,), meter=EDGE_VDP.id, cookie=vdp)
    if switch.standby:
        yield from _probes(net, owner, uplink)
    # A unicast MAC that is not known here becomes the gateway's; a group address never does.
    yield Flow(Table.FORWARD, Forward.GROUP, match(eth_dst=GROUP_BIT), cookie=mark)
    for prefix in unroutable(net):
        dropped = cookie(Reason.UNROUTABLE, owner)
        yield Flow(Table.FORWARD, Forward.UNROUTABLE, ip_match(dst=prefix), cookie=dropped)
    rewritten = (set_field(Field.ETH_DST, gateway_mac),) if net.rewrites else ()
    to_gateway = (*rewritten, Output(uplink))
    yield Flow(Table.FORWARD, Forward.UP, (), to_gateway, cookie=mark)


def _probes(net: Network, owner: Owner, uplink: int) -> Iterator[Flow | Group | Meter]:
    """Of an edge with several uplinks: the one in use, and what of probes comes back by each, or from the
    controller, to see whether the switch answers."""
    yield Group(uplinks.UP_GROUP, ((Output(uplink),),))
    yield EDGE_PROBES
    for port in (uplink, PortNo.CONTROLLER):
        came = match(
            in_port=port, vlan_vid=NO_TAG, eth_type=EtherType.LLDP,
            eth_dst=NEAREST_BRIDGE, eth_src=net.gateway_mac,
        )  # fmt: skip
        yield Flow(
            Table.ADMIT, EdgeAdmit.PROBE, came, (CONTROLLER,),
            meter=EDGE_PROBES.id, cookie=cookie(Reason.PROBE, owner),
        )  # fmt: skip


def server_flows(underlay: Underlay, net: Network, server: Server, edge: Switch) -> Iterator[Flow]:
    """The server's own traffic, on the LOCAL port, and frames the fabric sends to the server."""
    mark = cookie(Reason.FORWARD, Owner("server", server.id))
    uplink = net.uplink_number(edge.id)
    if uplink is None:
        return
    to_server = (Output(PortNo.LOCAL),)
    for kind in ip_types(net):
        ip_from_fabric = match(in_port=uplink, **underlay.brought_to(server, kind))
        admitted = Flow(Table.ADMIT, EdgeAdmit.SERVER, ip_from_fabric, goto=Table.DELIVER, cookie=mark)
        yield admitted
        if net.has_vrfs():
            yield vrfs.with_tag(admitted)
    arp_from_server = _arp_from(PortNo.LOCAL, server.mac)
    yield Flow(Table.ADMIT, EdgeAdmit.SERVER, arp_from_server, (Output(uplink),), cookie=mark)
    arp_to_server = match(in_port=uplink, vlan_vid=NO_TAG, eth_type=EtherType.ARP, eth_dst=server.mac)
    yield Flow(Table.ADMIT, EdgeAdmit.SERVER, arp_to_server, to_server, cookie=mark)
    if server.address is None:
        return
    if underlay.asks_servers and server.address.version == 4:
        asked = match(
            in_port=uplink, vlan_vid=NO_TAG, eth_type=EtherType.ARP, eth_dst=BROADCAST,
            arp_op=ArpOp.REQUEST, arp_tpa=server.address,
        )  # fmt: skip
        yield Flow(Table.ADMIT, EdgeAdmit.SERVER, asked, to_server, cookie=mark)
    # An address of either family: a leaf drops what is not forwarded (see model.families).
    ip_from_server = ip_match(src=server.address, in_port=PortNo.LOCAL, vlan_vid=NO_TAG, eth_src=server.mac)
    yield Flow(Table.ADMIT, EdgeAdmit.SERVER, ip_from_server, goto=Table.FORWARD, cookie=mark)
    yield Flow(Table.DELIVER, Deliver.SERVER, ip_match(dst=server.address), to_server, cookie=mark)


def nic_flows(
    underlay: Underlay, net: Network, vm: VM, nic: NIC, at: Server, port: int
) -> Iterator[Flow | Meter]:
    """A VM's NIC at a port of the edge of server `at`: what the VM may send, and what reaches it."""
    tag, vlan = net.vrfs[net.vrf_of(nic)].tag, net.vlan_in_trunk(nic)
    uplink = net.uplink_number(at.edge)
    flows = vrfs.at_edge(_nic_flows(underlay, net, vm, nic, at, port), tag, uplink, vlan)
    yield from mirroring.mirrored(flows, port, mirroring.port_of(net, nic, at))
    if vlan:
        yield from vrfs.at_edge(trunk.nic_flows(net, vm, nic, at, port), tag, uplink, vlan, asker=vlan)


def _nic_flows(
    underlay: Underlay, net: Network, vm: VM, nic: NIC, at: Server, port: int
) -> Iterator[Flow | Meter]:
    """As in the default VRF, by a port of its own.

    On a migration's target before the switch-over, and on its source after it, the VM may send, and frames
    that arrive are handed to the VM, but nothing on this switch is sent there. When a source forwards,
    only copies are handed to the VM: everything else goes to the server where the VM is delivered. Copies are
    made at the one place that is not `copied_to`, and known at the other by their source.
    """
    delivered = at.id == vm.server
    owner = Owner("vm", vm.id)
    mark = cookie(Reason.FORWARD, owner)
    yield from vm_meters(port)
    yield from _without_address(owner, nic.mac, port)
    yield from edge_ipv6.nic_flows(net, vm, nic, port)
    if net.switches[at.edge].vdp:
        said = match(in_port=port, vlan_vid=NO_TAG, eth_type=EtherType.LLDP, eth_src=nic.mac)
        yield Flow(
            Table.ADMIT, EdgeAdmit.VDP, said, (CONTROLLER,),
            meter=VMMeter.SPOOFING.id(port), cookie=cookie(Reason.VDP, owner),
        )  # fmt: skip
    from_vm, to_vm, meters = rate_meters(port, (vm.nic_called(nic.plugged_as) or nic).rate)
    yield from meters
    marked, copy_of_local, copy_of_brought = copies(underlay, net, vm, at)
    held = list(forwarded_assignments(net, net.assignments_of(vm, nic)))
    yield from _announcements(net, vm, nic, port)
    yield from edge_ipv6.announcements(net, vm, nic, port)
    # By its MAC a VM is reached from its own subnet only: what comes from another is routed, by its IP.
    gateway_mac = net.gateway_mac_of(at)
    # What leaves bring comes from the fabric's own.
    known_otherwise = gateway_mac != net.gateway_mac
    as_its_gateway = (set_field(Field.ETH_SRC, gateway_mac),) if known_otherwise else ()
    own = [assignment for assignment in held if assignment.kind is not BindingKind.ALLOWED]
    for subnet in net.subnets_of(own) if delivered else ():
        neighbours = ip_match(src=subnet.prefix, eth_dst=nic.mac)
        at_once = (*marked, Output(port), *copy_of_local)
        yield Flow(Table.FORWARD, Forward.LOCAL_VM, neighbours, at_once, meter=to_vm, cookie=mark)
    destinations: list[tuple[IP | Prefix, float | None, Mac]] = []
    for assignment in held:
        ip, until, its_mac = assignment.ip, assignment.lease_end, nic.speaks_as(assignment.ip)
        if isinstance(ip, IPv6Address):
            may_send = ip if assignment.prefix is None else assignment.prefix
            yield from edge_ipv6.address_flows(owner, its_mac, port, may_send, until, from_vm)
            if assignment.prefix is None:
                yield from nd_answers.vm_address_flows(
                    net, owner, assignment, port, gateway_mac, delivered=delivered
                )
        else:
            yield from _ipv4_source(owner, its_mac, port, ip, until, from_vm)
            yield from arp.vm_address_flows(net, owner, assignment, port, gateway_mac, delivered=delivered)
        if nic.trusted and ip.version == 4:
            answers = dhcp_match(
                sport=SERVER_PORT, in_port=port, vlan_vid=NO_TAG, eth_src=its_mac, ipv4_src=ip
            )
            yield Flow(
                Table.ADMIT, EdgeAdmit.TRUSTED_DHCP, answers, (CONTROLLER,),
                meter=VMMeter.DHCP.id(port), cookie=cookie(Reason.DHCP_SERVER, owner), expires_at=until,
            )  # fmt: skip
        destinations.append((assignment.leads, until, its_mac))
    for prefix in forwarded_prefixes(net, nic.prefixes):
        yield from _prefix_source(owner, nic.mac, port, prefix, from_vm)
        destinations.append((prefix, None, nic.mac))
    for prefix in forwarded_prefixes(net, map(host_prefix, nic.anycast)):
        # What is sent to it is handed over by entries of all who have it: see `anycast`.
        yield from _prefix_source(owner, nic.mac, port, prefix, from_vm)
    for to, until, its_mac in destinations:
        from_whom = marked or as_its_gateway
        hand_over = (*from_whom, set_field(Field.ETH_DST, its_mac), Output(port), *copy_of_brought)
        if underlay.copies and at.id in (vm.forwarded_from, vm.copied_to):
            other = vm.server if not delivered else next(iter(vm.also))
            copy = ip_match(dst=to, eth_src=underlay.copy_source(net.servers[other]))
            as_from_gateway = (set_field(Field.ETH_SRC, gateway_mac), *hand_over)
            yield Flow(Table.DELIVER, Deliver.COPY, copy, as_from_gateway, cookie=mark, expires_at=until)
        if at.id != vm.forwarded_from:
            yield Flow(
                Table.DELIVER, Deliver.VM, ip_match(dst=to), hand_over, meter=to_vm, cookie=mark,
                expires_at=until,
            )  # fmt: skip


def _announcements(net: Network, vm: VM, nic: NIC, port: int) -> Iterator[Flow]:
    """What a NIC says about an address that it may take, and has not: the controller alone is told."""
    told = cookie(Reason.VM_ARP, Owner("vm", vm.id))
    has = {assignment.ip for assignment in net.assignments_of(vm, nic)}
    for one in nic.allowed:
        if one.ip not in has and one.ip.version == 4:
            announced = _arp_from(port, nic.speaks_as(one.ip), arp_spa=one.ip)
            yield Flow(
                Table.ADMIT, EdgeAdmit.BOUND, announced, (CONTROLLER,),
                meter=VMMeter.ARP.id(port), cookie=told,
            )  # fmt: skip


def forwarding_flows(underlay: Underlay, net: Network, vm: VM) -> Iterator[Flow]:
    """On the edge that forwards: what still comes there for the VM goes to the server that delivers to it.

    A copy is never sent on, it comes from that server: where the VM is not open any more, a copy ends.
    """
    mark, delivers = cookie(Reason.FORWARD, Owner("vm", vm.id)), net.servers[vm.server]
    send_on: tuple[Action, ...] = (*underlay.reach(delivers), Output(PortNo.IN_PORT))
    for to, until, vrf in led_to(net, vm):
        flows = [Flow(Table.DELIVER, Deliver.VM, ip_match(dst=to), send_on, cookie=mark, expires_at=until)]
        if underlay.copies and vm.forwarded_from not in vm.also:
            copy = ip_match(dst=to, eth_src=underlay.copy_source(delivers))
            flows.append(Flow(Table.DELIVER, Deliver.COPY, copy, cookie=mark, expires_at=until))
        yield from vrfs.at_edge(flows, net.vrfs[vrf].tag)


def _prefix_source(owner: Owner, mac: Mac, port: int, prefix: Prefix, rate: int | None) -> Iterator[Flow]:
    """The VM may send from all of this prefix. Who asks for the gateway may ask in the name of an address of
    it; nobody asks for one, since none of it is in a subnet."""
    if isinstance(prefix, IPv6Network):
        return edge_ipv6.address_flows(owner, mac, port, prefix, None, rate)
    return _ipv4_source(owner, mac, port, prefix, None, rate)


def _ipv4_source(
    owner: Owner, mac: Mac, port: int, ip: IPv4Address | IPv4Network, until: float | None, rate: int | None
) -> Iterator[Flow]:
    """The VM may send from this address, or prefix, and speak of it by ARP."""
    mark = cookie(Reason.FORWARD, owner)
    ip_from_vm = ip_match(src=ip, in_port=port, vlan_vid=NO_TAG, eth_src=mac)
    yield Flow(
        Table.ADMIT, EdgeAdmit.BOUND, ip_from_vm, goto=Table.FORWARD, meter=rate, cookie=mark,
        expires_at=until,
    )  # fmt: skip
    arp_from_vm = _arp_from(port, mac, arp_spa=ip)
    yield Flow(Table.ADMIT, EdgeAdmit.BOUND, arp_from_vm, goto=Table.ARP, cookie=mark, expires_at=until)


def _arp_from(port: int, mac: Mac, **terms: FieldValue) -> Match:
    """Untagged ARP at a port, sent by this MAC and about this MAC."""
    return match(in_port=port, vlan_vid=NO_TAG, eth_type=EtherType.ARP, eth_src=mac, arp_sha=mac, **terms)


def copies(
    underlay: Underlay, net: Network, vm: VM, at: Server
) -> tuple[tuple[Action, ...], tuple[Action, ...], tuple[Action, ...]]:
    """Actions that mark what is copied, and send the copy to the VM's other location: of frames from VMs
    here, and from the fabric.

    The latter came in by the uplink, and a switch sends nothing back there unless told so by name. A copy
    has this server's source MAC, by which the other location knows it. So has what waits here: if the
    migration is undone, what waits without that mark is what the other location has not got
    (core/migration/handing_back.py).
    """
    uplink = net.uplink_number(at.edge)
    if not underlay.copies:
        return (), (), ()
    # None into a tunnel: the other domain would send on what is not for it any more, and get a copy again.
    if vm.copied_to in ("", at.id) or uplink is None or net.peer_at(vm.copied_to) is not None:
        return (), (), ()
    mark = (set_field(Field.ETH_SRC, underlay.copy_source(at)),)
    way = underlay.reach(net.servers[vm.copied_to])
    return mark, (*way, Output(uplink)), (*way, Output(PortNo.IN_PORT))


def _without_address(owner: Owner, mac: Mac, port: int) -> Iterator[Flow]:
    """Without an assigned address a VM's packets are dropped, except DHCP and ARP probes."""
    forward, quiet = cookie(Reason.FORWARD, owner), cookie(Reason.QUIET, owner)
    client_dhcp = dhcp_match(sport=CLIENT_PORT, dport=SERVER_PORT, in_port=port, vlan_vid=NO_TAG, eth_src=mac)
    yield Flow(
        Table.ADMIT, EdgeAdmit.CLIENT_DHCP, client_dhcp, (CONTROLLER,),
        meter=VMMeter.DHCP.id(port), cookie=cookie(Reason.DHCP_CLIENT, owner),
    )  # fmt: skip
    # An ARP probe (RFC 5227: sender IP all zero) must precede the use of an address.
    probe = _arp_from(port, mac, arp_op=ArpOp.REQUEST, arp_spa=arp.NOBODY)
    yield Flow(Table.ADMIT, EdgeAdmit.BOUND, probe, goto=Table.ARP, cookie=forward)
    yield from arp.vm_requests(owner, port)
    # A hypervisor announces a VM that has arrived by RARP, with its MAC and no address. Nobody here needs to
    # be told; whoever says more than that by RARP speaks for another.
    announcement = match(
        in_port=port, vlan_vid=NO_TAG, eth_type=EtherType.RARP, eth_src=mac, arp_sha=mac, arp_spa=arp.NOBODY
    )
    yield Flow(Table.ADMIT, EdgeAdmit.RARP_ANNOUNCEMENT, announcement, cookie=quiet)
    noise = match(in_port=port, eth_src=mac)
    yield Flow(Table.ADMIT, EdgeAdmit.NOISE, noise, cookie=quiet)
    for priority, reason, spoofed in _spoofed(mac, port):
        yield Flow(
            Table.ADMIT, priority, spoofed, (CONTROLLER,),
            meter=VMMeter.SPOOFING.id(port), cookie=cookie(reason, owner),
        )  # fmt: skip


def _spoofed(mac: Mac, port: int) -> Iterator[tuple[EdgeAdmit, Reason, Match]]:
    """What a VM's port may not send, and as what it is reported."""
    for priority, dhcp in rogue_dhcp(port):
        yield priority, Reason.ROGUE_DHCP, dhcp
    for kind, reason in (
        (EtherType.IPV4, Reason.SPOOFED_IP),
        (EtherType.ARP, Reason.SPOOFED_ARP),
        (EtherType.RARP, Reason.SPOOFED_ARP),
    ):
        yield EdgeAdmit.SPOOFED, reason, match(in_port=port, eth_type=kind, eth_src=mac)
    yield EdgeAdmit.FOREIGN_MAC, Reason.SPOOFED_MAC, match(in_port=port)


def rogue_dhcp(port: int) -> Iterator[tuple[EdgeAdmit, Match]]:
    """DHCP from a port that is not for it to send: a server's message, or one past the controller."""
    # A server's message is known by either port: a client believes what comes to its own, whoever sent it.
    # Of a fragmented one the first part shows the ports (see codec.set_config); the others are no use alone.
    yield EdgeAdmit.ROGUE_DHCP, dhcp_match(sport=SERVER_PORT, in_port=port)
    yield EdgeAdmit.ROGUE_DHCP_ANSWER, dhcp_match(dport=CLIENT_PORT, in_port=port)
    # A request that is not a client's by its source port would reach the servers past the controller.
    yield EdgeAdmit.ROGUE_DHCP_QUESTION, dhcp_match(dport=SERVER_PORT, in_port=port)

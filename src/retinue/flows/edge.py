"""Entries of an edge switch: who may send what, and which frame goes to which VM."""

from collections.abc import Iterator
from ipaddress import IPv4Address

from retinue.flows.entry import Action, Field, Flow, Meter, Output, PortNo, match, set_field
from retinue.flows.pipeline import (
    ARP_REQUEST,
    CONTROLLER,
    DHCP_CLIENT_PORT,
    DHCP_SERVER_PORT,
    GROUP_BIT,
    ICMP,
    ICMP_ECHO_REQUEST,
    NO_TAG,
    UDP,
    EthType,
    Priority,
    Reason,
    Table,
    VMMeter,
    arp_answer,
    cookie,
    echo_answer,
    ip_match,
)
from retinue.model import VM, Mac, PortRef, Server, Switch
from retinue.model.network import Network, Owner

NOWHERE = IPv4Address(0)


def switch_flows(net: Network, switch: Switch) -> Iterator[Flow]:
    """What an edge switch holds whatever VMs it has: the way up (row C1) and the gateway's own answers."""
    mark = cookie(Reason.FORWARD, Owner("switch", switch.id))
    gateway_mac = net.gateway_mac
    for table in (Table.ADMIT, Table.ARP, Table.FORWARD, Table.DELIVER):
        yield Flow(table, Priority.DROP, (), cookie=mark)
    for subnet in net.subnets.values():
        if subnet.gateway.version != 4:
            continue
        ask = match(eth_type=EthType.ARP, arp_op=ARP_REQUEST, arp_tpa=subnet.gateway)
        yield Flow(Table.ARP, 200, ask, arp_answer(subnet.gateway, gateway_mac), cookie=mark)
        ping = ip_match(dst=subnet.gateway, ip_proto=ICMP, icmpv4_type=ICMP_ECHO_REQUEST)
        yield Flow(Table.FORWARD, 300, ping, echo_answer(subnet.gateway, gateway_mac), cookie=mark)
    uplink = net.port_number(PortRef(switch.id, switch.uplink))
    if uplink is None:
        return
    # Row C1: a unicast MAC that is not known here becomes the gateway's; a group address never does.
    yield Flow(Table.FORWARD, 110, match(eth_dst=GROUP_BIT), cookie=mark)
    up = (set_field(Field.ETH_DST, gateway_mac), Output(uplink))
    yield Flow(Table.FORWARD, 100, (), up, cookie=mark)


def server_flows(net: Network, server: Server, edge: Switch) -> Iterator[Flow]:
    """The server's own traffic, on the LOCAL port, and frames the fabric sends to the server."""
    mark = cookie(Reason.FORWARD, Owner("server", server.id))
    uplink = net.port_number(PortRef(edge.id, edge.uplink))
    if uplink is None:
        return
    local = Output(PortNo.LOCAL)
    from_fabric = match(in_port=uplink, vlan_vid=NO_TAG, eth_type=EthType.IPV4, eth_dst=server.mac)
    yield Flow(Table.ADMIT, 100, from_fabric, goto=Table.DELIVER, cookie=mark)
    arp_up = match(
        in_port=PortNo.LOCAL, vlan_vid=NO_TAG, eth_type=EthType.ARP, eth_src=server.mac, arp_sha=server.mac
    )
    yield Flow(Table.ADMIT, 100, arp_up, (Output(uplink),), cookie=mark)
    arp_to_it = match(in_port=uplink, vlan_vid=NO_TAG, eth_type=EthType.ARP, eth_dst=server.mac)
    yield Flow(Table.ADMIT, 100, arp_to_it, (local,), cookie=mark)
    if server.address is None:
        return
    own = ip_match(src=server.address, in_port=PortNo.LOCAL, vlan_vid=NO_TAG, eth_src=server.mac)
    yield Flow(Table.ADMIT, 100, own, goto=Table.FORWARD, cookie=mark)
    yield Flow(Table.DELIVER, 100, ip_match(dst=server.address), (local,), cookie=mark)


def vm_flows(net: Network, vm: VM, at: Server, port: int) -> Iterator[Flow | Meter]:
    """A VM at a port of the edge of server `at`: what it may send, and what reaches it.

    On a move's target before the switch-over, and on its source after it, the VM may send, and frames that
    arrive are handed to it, but nothing on this switch is steered to it. When a source forwards, only copies
    are handed to it: everything else goes to where the VM is.
    """
    edge, delivered = net.switches[at.edge], at.id == vm.server
    owner = Owner("vm", vm.id)
    mark = cookie(Reason.FORWARD, owner)
    yield from (Meter(kind.id(port), kind.rate, kind.rate) for kind in VMMeter)
    yield from _unbound(owner, vm.mac, port)
    from_here, from_fabric = _copies(net, vm, edge) if delivered else ((), ())
    if delivered:
        yield Flow(Table.FORWARD, 200, match(eth_dst=vm.mac), (Output(port), *from_here), cookie=mark)
    hand_over = (set_field(Field.ETH_DST, vm.mac), Output(port), *from_fabric)
    for holding in net.held_by(vm.id):
        ip, until = holding.ip, holding.lease_end
        if ip.version != 4:
            continue
        sent = ip_match(src=ip, in_port=port, vlan_vid=NO_TAG, eth_src=vm.mac)
        yield Flow(Table.ADMIT, Priority.BOUND, sent, goto=Table.FORWARD, cookie=mark, expires_at=until)
        said = match(
            in_port=port, vlan_vid=NO_TAG, eth_type=EthType.ARP, eth_src=vm.mac, arp_sha=vm.mac, arp_spa=ip
        )
        yield Flow(Table.ADMIT, Priority.BOUND, said, goto=Table.ARP, cookie=mark, expires_at=until)
        if at.id == vm.forwarded_from:
            copy = ip_match(dst=ip, eth_src=net.servers[vm.server].mac)
            as_usual = set_field(Field.ETH_SRC, net.gateway_mac)
            yield Flow(Table.DELIVER, 210, copy, (as_usual, *hand_over), cookie=mark, expires_at=until)
        else:
            yield Flow(Table.DELIVER, 200, ip_match(dst=ip), hand_over, cookie=mark, expires_at=until)
        # A VM asking for its own address (announcement, duplicate check) gets no answer: nobody else has it.
        own = match(in_port=port, eth_type=EthType.ARP, arp_tpa=ip)
        yield Flow(Table.ARP, 300, own, cookie=mark, expires_at=until)
        if delivered:
            # Row C3: a neighbour on this switch hears the VM's own MAC, so that local traffic stays local.
            ask = match(eth_type=EthType.ARP, arp_op=ARP_REQUEST, arp_tpa=ip)
            yield Flow(Table.ARP, 150, ask, arp_answer(ip, vm.mac), cookie=mark, expires_at=until)


def forwards(net: Network, vm: VM) -> Iterator[Flow]:
    """On the edge that forwards: what still comes there for the VM goes to where it is.

    A copy never does, it comes from there: where the VM is not open any more, it ends.
    """
    mark, there = cookie(Reason.FORWARD, Owner("vm", vm.id)), net.servers[vm.server].mac
    send_on = (set_field(Field.ETH_DST, there), Output(PortNo.IN_PORT))
    for holding in net.held_by(vm.id):
        if holding.ip.version != 4:
            continue
        still, copy, until = (
            ip_match(dst=holding.ip),
            ip_match(dst=holding.ip, eth_src=there),
            holding.lease_end,
        )
        yield Flow(Table.DELIVER, 200, still, send_on, cookie=mark, expires_at=until)
        if vm.forwarded_from not in vm.also:
            yield Flow(Table.DELIVER, 210, copy, cookie=mark, expires_at=until)


def _copies(net: Network, vm: VM, edge: Switch) -> tuple[tuple[Action, ...], tuple[Action, ...]]:
    """What sends a copy to the VM's other place: of frames from VMs here, and of frames from the fabric.

    The latter came in by the uplink, and a switch sends nothing back there unless told so by name. A copy
    has this server's MAC as its source, by which the other place knows it.
    """
    uplink = net.port_number(PortRef(edge.id, edge.uplink))
    if not vm.copied_to or uplink is None:
        return (), ()
    to_it = (
        set_field(Field.ETH_SRC, net.servers[vm.server].mac),
        set_field(Field.ETH_DST, net.servers[vm.copied_to].mac),
    )
    return (*to_it, Output(uplink)), (*to_it, Output(PortNo.IN_PORT))


def _unbound(owner: Owner, mac: Mac, port: int) -> Iterator[Flow]:
    """Row A8: without a binding a VM's packets are dropped, save DHCP and what must precede it."""
    dhcp = match(
        in_port=port, vlan_vid=NO_TAG, eth_type=EthType.IPV4, eth_src=mac, ip_proto=UDP,
        udp_src=DHCP_CLIENT_PORT, udp_dst=DHCP_SERVER_PORT,
    )  # fmt: skip
    yield Flow(
        Table.ADMIT, Priority.DHCP, dhcp, (CONTROLLER,),
        meter=VMMeter.DHCP.id(port), cookie=cookie(Reason.DHCP_CLIENT, owner),
    )  # fmt: skip
    # An ARP probe (RFC 5227: sender IP all zero) must precede the use of an address.
    probe = match(
        in_port=port, vlan_vid=NO_TAG, eth_type=EthType.ARP, eth_src=mac,
        arp_op=ARP_REQUEST, arp_sha=mac, arp_spa=NOWHERE,
    )  # fmt: skip
    yield Flow(Table.ADMIT, Priority.BOUND, probe, goto=Table.ARP, cookie=cookie(Reason.FORWARD, owner))
    ask = match(in_port=port, eth_type=EthType.ARP, arp_op=ARP_REQUEST)
    yield Flow(
        Table.ARP, 100, ask, (CONTROLLER,), meter=VMMeter.ARP.id(port), cookie=cookie(Reason.VM_ARP, owner)
    )

    def forged(priority: int, reason: Reason, **terms: int | str) -> Flow:
        found = match(in_port=port, **terms)
        marked = cookie(reason, owner)
        return Flow(
            Table.ADMIT, priority, found, (CONTROLLER,), meter=VMMeter.FORGERY.id(port), cookie=marked
        )

    # A server's message is known by either port: a client believes what comes to its own, whoever sent it.
    # Of a fragmented one the first part shows the ports (see codec.set_config); the others are no use alone.
    yield forged(
        Priority.ROGUE_DHCP, Reason.ROGUE_DHCP,
        eth_type=EthType.IPV4, ip_proto=UDP, udp_src=DHCP_SERVER_PORT,
    )  # fmt: skip
    yield forged(
        Priority.ROGUE_DHCP_ANSWER, Reason.ROGUE_DHCP,
        eth_type=EthType.IPV4, ip_proto=UDP, udp_dst=DHCP_CLIENT_PORT,
    )  # fmt: skip
    # A question that is not a client's by its source port would reach the servers past the controller.
    yield forged(
        Priority.ROGUE_DHCP_QUESTION, Reason.ROGUE_DHCP,
        eth_type=EthType.IPV4, ip_proto=UDP, udp_dst=DHCP_SERVER_PORT,
    )  # fmt: skip
    yield forged(Priority.FORGED, Reason.FORGED_IP, eth_type=EthType.IPV4, eth_src=mac)
    yield forged(Priority.FORGED, Reason.FORGED_ARP, eth_type=EthType.ARP, eth_src=mac)
    # A hypervisor announces a VM that has arrived by RARP, with its MAC and no address. Nobody here needs to
    # be told; whoever says more than that by RARP speaks for another.
    arrival = match(
        in_port=port, vlan_vid=NO_TAG, eth_type=EthType.RARP, eth_src=mac, arp_sha=mac, arp_spa=NOWHERE
    )
    yield Flow(Table.ADMIT, Priority.ARRIVAL, arrival, cookie=cookie(Reason.QUIET, owner))
    yield forged(Priority.FORGED, Reason.FORGED_ARP, eth_type=EthType.RARP, eth_src=mac)
    noise = match(in_port=port, eth_src=mac)
    yield Flow(Table.ADMIT, Priority.QUIET, noise, cookie=cookie(Reason.QUIET, owner))
    yield forged(Priority.FOREIGN, Reason.FORGED_MAC)

"""ARP: which switch answers which request, and what the controller answers of the rest.

    asked for                      by a VM, at its edge switch         by a server, at its leaf
    the gateway                    the switch: the gateway's MAC       the leaf: the gateway's MAC
    the asker's own address        nobody: nobody else has it          nobody
    a VM of its subnet, on the     the switch: the VM's own MAC        -
      same edge switch
    another known address          the controller: the gateway's MAC   the controller: the gateway's MAC
    anything, by a guest of        the switch: the gateway's MAC       -
      another domain
    anything else                  nobody                              nobody

A guest's gateway and neighbours are at its home: whoever it looks for, that way it goes. Its switch says so
by itself: as any VM, it has to find its gateway while no controller is there.

ARP is never passed on. The controller sees every ARP frame of a server: so servers are found.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address

from retinue.core.model import DEFAULT_VRF, IP, NIC, Assignment, BindingKind, Mac, Subnet
from retinue.core.model.families import forwarded_subnets
from retinue.core.model.network import Network, Owner
from retinue.core.packets import ARP, ArpOp, EtherType
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import (
    CONTROLLER,
    Action,
    Field,
    Flow,
    Output,
    PortNo,
    RegMove,
    match,
    set_field,
)
from retinue.core.pipeline.matches import arp_request_for
from retinue.core.pipeline.meters import LeafMeter, VMMeter
from retinue.core.pipeline.priorities import Arp
from retinue.core.pipeline.tables import Table

NOBODY = IPv4Address(0)
"""Sender address of an ARP probe (RFC 5227)."""


# ---- entries ----


def answer(address: IP, with_mac: Mac) -> tuple[Action, ...]:
    """Turn an ARP request into its reply, `address` is at `with_mac`, and send it back where it came from."""
    return _reply(with_mac, RegMove(Field.ARP_SPA, Field.ARP_TPA), set_field(Field.ARP_SPA, address))


def _answer_whatever(asker: IP, with_mac: Mac) -> tuple[Action, ...]:
    """The same for any address that `asker` asks for: it is at `with_mac`."""
    return _reply(with_mac, RegMove(Field.ARP_TPA, Field.ARP_SPA), set_field(Field.ARP_TPA, asker))


def _reply(with_mac: Mac, *addresses: Action) -> tuple[Action, ...]:
    """`addresses`: makes the wanted address the sender's, and the asker's the target's."""
    return (
        RegMove(Field.ETH_SRC, Field.ETH_DST),
        set_field(Field.ETH_SRC, with_mac),
        set_field(Field.ARP_OP, ArpOp.REPLY),
        RegMove(Field.ARP_SHA, Field.ARP_THA),
        set_field(Field.ARP_SHA, with_mac),
        *addresses,
        Output(PortNo.IN_PORT),
    )


def ipv4_subnets(net: Network, vrf: str = DEFAULT_VRF) -> Iterator[Subnet]:
    return (s for s in forwarded_subnets(net.subnets_in(vrf)) if s.prefix.version == 4)


def edge_flows(net: Network, owner: Owner, gateway_mac: Mac, vrf: str = DEFAULT_VRF) -> Iterator[Flow]:
    """An edge switch answers for the gateway of every subnet of a VRF."""
    for subnet in ipv4_subnets(net, vrf):
        yield Flow(
            Table.ARP, Arp.GATEWAY, arp_request_for(subnet.gateway),
            answer(subnet.gateway, gateway_mac), cookie=cookie(Reason.FORWARD, owner),
        )  # fmt: skip


def leaf_flows(net: Network, owner: Owner) -> Iterator[Flow]:
    """A leaf answers for every subnet's gateway; the controller gets all ARP, so servers are found."""
    from_server = cookie(Reason.SERVER_ARP, owner)
    for subnet in ipv4_subnets(net):
        yield Flow(
            Table.ARP, Arp.GATEWAY, arp_request_for(subnet.gateway),
            (CONTROLLER, *answer(subnet.gateway, net.gateway_mac)), meter=LeafMeter.ARP, cookie=from_server,
        )  # fmt: skip
    yield Flow(Table.ARP, Arp.TO_CONTROLLER, (), (CONTROLLER,), meter=LeafMeter.ARP, cookie=from_server)


def vm_requests(owner: Owner, port: int) -> Iterator[Flow]:
    """What the edge switch cannot answer of a VM's requests, the controller is asked."""
    request = match(in_port=port, eth_type=EtherType.ARP, arp_op=ArpOp.REQUEST)
    yield Flow(
        Table.ARP, Arp.TO_CONTROLLER, request, (CONTROLLER,),
        meter=VMMeter.ARP.id(port), cookie=cookie(Reason.VM_ARP, owner),
    )  # fmt: skip


def vm_address_flows(
    net: Network, owner: Owner, assignment: Assignment, port: int, gateway_mac: Mac, *, delivered: bool
) -> Iterator[Flow]:
    """ARP for an address of a VM at this port; when the VM is `delivered` here the switch answers for it."""
    mark, ip, until = cookie(Reason.FORWARD, owner), assignment.ip, assignment.lease_end
    # A VM asking for its own address (announcement, duplicate check) gets no answer: nobody else has it.
    own_address = match(in_port=port, eth_type=EtherType.ARP, arp_tpa=ip)
    yield Flow(Table.ARP, Arp.OWN_ADDRESS, own_address, cookie=mark, expires_at=until)
    subnet = net.subnet_of(ip, assignment.vrf)
    if delivered and subnet is not None:
        # A neighbour on this switch is answered with the VM's own MAC, so that local traffic stays local. Who
        # is of another subnet is no neighbour; of whom a probe does not say so, the controller is asked.
        asked = arp_request_for(ip, arp_spa=subnet.prefix)
        # An address that may be another's in a moment is found by the gateway: no cache has to be told.
        is_shared = assignment.kind is BindingKind.ALLOWED
        vm_answers = answer(ip, gateway_mac if is_shared else assignment.mac)
        yield Flow(Table.ARP, Arp.LOCAL_VM, asked, vm_answers, cookie=mark, expires_at=until)


def guest_flow(ip: IP, mac: Mac, port: int, gateway_mac: Mac, mark: int) -> Flow:
    """What a guest at this port asks for in the name of its address, wherever it is delivered."""
    asked = match(in_port=port, eth_type=EtherType.ARP, eth_src=mac, arp_op=ArpOp.REQUEST, arp_spa=ip)
    return Flow(Table.ARP, Arp.GUEST, asked, _answer_whatever(ip, gateway_mac), cookie=mark)


# ---- the controller's answers ----


def answers_vm(net: Network, switch: str, arp: ARP, vrf: str = DEFAULT_VRF) -> bool:
    """True when the controller answers a VM at this edge switch, a NIC in this VRF, with the gateway's MAC.

    Of a VM on the asker's own switch it answers a probe, and who asks from an address that is led to it: all
    else the switch answers with that VM's MAC, or nobody does.
    """
    assignment = net.holder(arp.tpa, vrf)
    asker = net.vm_of_mac(arp.sha)
    if asker is not None and asker.home:
        return False  # Its switch has answered, and of what it is to have nobody else is asked here.
    local = assignment is not None and net.servers[net.vms[assignment.vm].server].edge == switch
    subnet = net.subnet_of(arp.tpa, vrf)
    by_switch = local and arp.spa != NOBODY and (subnet is None or arp.spa in subnet.prefix)
    if arp.op != ArpOp.REQUEST or by_switch:
        return False
    return _asks_for_neighbour(net, arp, vrf)


def answer_to_vm(net: Network, switch: str, nic: NIC | None, arp: ARP, gateway_mac: Mac) -> Mac:
    """With which MAC the controller answers a VM's NIC at this edge switch; "": not at all.

    Of a NIC in a trunk it gets all questions but those for gateways, and answers them as the switch answers
    others: for a VM on the asker's own switch by that VM's MAC.
    """
    vrf = net.vrf_of(nic)
    if answers_vm(net, switch, arp, vrf):
        return gateway_mac
    holder, subnet, asker = net.holder(arp.tpa, vrf), net.subnet_of(arp.tpa, vrf), net.vm_of_mac(arp.sha)
    if nic is None or not nic.trunk or holder is None or subnet is None or asker is None:
        return ""
    is_neighbour = arp.op == ArpOp.REQUEST and holder.vm != asker.id and arp.spa in subnet.prefix
    if not is_neighbour or net.servers[net.vms[holder.vm].server].edge != switch:
        return ""
    return gateway_mac if holder.kind is BindingKind.ALLOWED else holder.mac


def answers_server(net: Network, arp: ARP, vrf: str = DEFAULT_VRF) -> bool:
    """True when the controller answers a server, or a router by its subinterface in a VRF, with the gateway's
    MAC; its leaf answers for gateways."""
    asks_gateway = any(subnet.gateway == arp.tpa for subnet in net.subnets_in(vrf))
    if arp.op != ArpOp.REQUEST or asks_gateway or arp.tpa == arp.spa:
        return False
    return _asks_for_neighbour(net, arp, vrf)


def _asks_for_neighbour(net: Network, arp: ARP, vrf: str) -> bool:
    """True when the wanted address is known here, in the asker's subnet, and not the asker's own."""
    subnet = net.subnet_of(arp.tpa, vrf)
    holder = net.holder(arp.tpa, vrf)
    if subnet is None or (holder is None and net.server_of_address(arp.tpa, vrf) is None):
        return False
    asker = net.vm_of_mac(arp.sha)
    if asker is not None and holder is not None and holder.vm == asker.id:
        return False
    return arp.spa == NOBODY or arp.spa in subnet.prefix or _is_led_to_neighbour(net, arp, subnet)


def _is_led_to_neighbour(net: Network, arp: ARP, subnet: Subnet) -> bool:
    """Who answers a neighbour from an anycast address, or one of a prefix that is routed to it, asks for the
    neighbour from there (Linux does, where that is an address of its own, as on the loopback)."""
    vm, server = net.vm_of_mac(arp.sha), net.server_of_mac(arp.sha)
    nic = None if vm is None else vm.nic_with(arp.sha)
    if vm is not None and nic is not None:
        led = any(arp.spa in prefix for prefix in net.prefixes_of(vm, nic))
        return led and any(held.ip in subnet.prefix for held in net.assignments_of(vm, nic))
    if server is None or server.address is None:
        return False
    return arp.spa in server.anycast and server.address in subnet.prefix

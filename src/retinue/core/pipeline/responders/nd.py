"""Neighbour discovery: who is answered what, and who is told of the gateway.

What switches answer of it by themselves, where they can, is in `nd_answers`; the controller answers the rest,
and all of it where they cannot.

    asked for                      by a VM, at its edge switch         by a machine at a leaf
    the gateway                    the gateway's MAC                   the gateway's MAC
    the asker's own address        nobody: nobody else has it          nobody
    a VM on the same edge switch   the VM's own MAC                    -
    another known address, and     the gateway's MAC                   the gateway's MAC
      one that several may take
    anything, by a guest of        the gateway's MAC                   -
      another domain
    anything else                  nobody                              nobody

A guest's gateway and neighbours are at its home, and that way all goes that it sends, whatever MAC it knows
them by. Its gateway is advertised to it by its home, through the tunnel.

The gateway is asked for by its address in a subnet, or by the link-local one that follows from its MAC. A
host that checks whether an address is free (RFC 4862, 5.4) hears, by the same rules, that it is not; and that
a link-local one is not, which nobody hears otherwise.

Neighbour discovery is never passed on. Each answer overrides what its receiver has held: a VM that moved away
has the gateway's MAC from then on.
"""

from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network

from retinue.core.model import DEFAULT_VRF, NIC, VM, BindingKind, Mac, Subnet
from retinue.core.model.families import forwarded_assignments, forwarded_subnets, in_use
from retinue.core.model.link_local import ALL_NODES, UNSPECIFIED, is_link_local, link_local, mac_of
from retinue.core.model.network import Network, Owner
from retinue.core.model.nic import TURNS
from retinue.core.packets import (
    ND,
    NDOptions,
    NDType,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    PrefixInformation,
    RouterAdvertisement,
)
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import CONTROLLER, Flow, match
from retinue.core.pipeline.matches import NO_TAG, icmpv6_match
from retinue.core.pipeline.meters import LeafMeter
from retinue.core.pipeline.priorities import TABLE_MISS, LeafAdmit
from retinue.core.pipeline.responders import nd_answers
from retinue.core.pipeline.tables import Table

ADVERTISED_EVERY = TURNS
"""Seconds between two advertisements of the gateway to a VM that does not ask."""
ROUTER_LIFETIME = 9000
"""Seconds for which a host keeps its gateway after an advertisement: as long as the protocol allows, so that
it outlives a controller that is away (RFC 4861, 6.2.1)."""
REACHABLE_MS = 3_600_000
"""Milliseconds for which a host need not ask again for a neighbour it has heard of: the longest there is,
since here every MAC leads to where its address is."""
PREFIX_VALID, PREFIX_PREFERRED = 30 * 86400, 7 * 86400
"""Seconds for which a prefix, and an address made from it, may be used (RFC 4861, 6.2.1)."""
HOPS = 64


# ---- entries ----


def leaf_flows(net: Network, owner: Owner) -> Iterator[Flow]:
    """A router or server under a leaf asks the controller, but for a gateway; what comes from spines is no
    question."""
    if not in_use(net, 6):
        return
    for kind in (NDType.NEIGHBOUR_SOLICITATION, NDType.ROUTER_SOLICITATION):
        yield Flow(
            Table.ADMIT, LeafAdmit.ND, icmpv6_match(kind, vlan_vid=NO_TAG), (CONTROLLER,),
            meter=LeafMeter.ARP, cookie=cookie(Reason.SERVER_ND, owner),
        )  # fmt: skip
    yield from nd_answers.leaf_flows(net, owner, gateways(net), match(vlan_vid=NO_TAG))
    yield Flow(Table.ANSWER, TABLE_MISS, (), cookie=cookie(Reason.FORWARD, owner))
    yield nd_answers.advertisement(owner)


# ---- the controller's answers ----


def ipv6_subnets(net: Network, vrf: str = DEFAULT_VRF) -> Iterator[Subnet]:
    return (s for s in forwarded_subnets(net.subnets_in(vrf)) if s.prefix.version == 6)


def gateways(net: Network, vrf: str = DEFAULT_VRF) -> Iterator[IPv6Address]:
    """The addresses by which the gateway is asked for: those of subnets, and its link-local one."""
    yield link_local(net.gateway_mac)
    yield from (s.gateway for s in ipv6_subnets(net, vrf) if isinstance(s.gateway, IPv6Address))


def is_gateway(net: Network, address: IPv6Address, vrf: str = DEFAULT_VRF) -> bool:
    return address in gateways(net, vrf)


def answer_to_vm(net: Network, switch: str, vm: VM, asked: ND, vrf: str = DEFAULT_VRF) -> ND | None:
    """What a VM at this edge switch hears when its NIC in this VRF asks for a neighbour; None: nothing."""
    if not isinstance(asked.message, NeighbourSolicitation):
        return None
    target, gateway_mac = asked.message.target, net.gateway_mac_of(net.server_of_edge(switch))
    if vm.home:
        # Who asks for its router must hear of one: a host that hears it is none takes another (RFC 4861,
        # 7.2.5), and which of its neighbours it is only its home knows.
        its_own = any(held.ip == target for held in net.held_by(vm.id))
        checks = asked.src == UNSPECIFIED
        return None if its_own or checks else _answer(asked, target, gateway_mac, router=True)
    if is_gateway(net, target, vrf):
        return _answer(asked, target, gateway_mac, router=True)
    if is_link_local(target):
        taken = asked.src == UNSPECIFIED and _is_anothers(net, vm, target, vrf)
        return _answer(asked, target, gateway_mac) if taken else None
    if not _is_asked_in_its_subnet(net, asked.src, target, vrf):
        return None
    holder = net.holder(target, vrf)
    if holder is not None and holder.vm == vm.id:
        return None
    if holder is not None and net.servers[net.vms[holder.vm].server].edge == switch:
        # An address that may be another's in a moment is found by the gateway: no cache has to be told.
        is_shared = holder.kind is BindingKind.ALLOWED
        return _answer(asked, target, gateway_mac if is_shared else holder.mac)
    known = holder is not None or net.server_of_address(target, vrf) is not None
    return _answer(asked, target, gateway_mac) if known else None


def answer_to_server(net: Network, asked: ND, vrf: str = DEFAULT_VRF) -> ND | None:
    """What a machine at a leaf's port hears when it asks for a neighbour in a VRF; None: nothing."""
    if not isinstance(asked.message, NeighbourSolicitation):
        return None
    target = asked.message.target
    if is_gateway(net, target, vrf):
        return _answer(asked, target, net.gateway_mac, router=True)
    known = net.holder(target, vrf) is not None or net.server_of_address(target, vrf) is not None
    if not known or target == asked.src or not _is_asked_in_its_subnet(net, asked.src, target, vrf):
        return None
    return _answer(asked, target, net.gateway_mac)


def _is_anothers(net: Network, vm: VM, target: IPv6Address, vrf: str) -> bool:
    """True for a link-local address that another VM holds, or that follows from its MAC."""
    holder, mac = net.holder(target, vrf), mac_of(target)
    by_mac = None if mac is None else net.vm_of_mac(mac)
    return (holder is not None and holder.vm != vm.id) or (by_mac is not None and by_mac.id != vm.id)


def _is_asked_in_its_subnet(
    net: Network, asker: IPv6Address, target: IPv6Address, vrf: str = DEFAULT_VRF
) -> bool:
    subnet = net.subnet_of(target, vrf)
    if subnet is None:
        return False
    return asker == UNSPECIFIED or is_link_local(asker) or asker in subnet.prefix


def _answer(asked: ND, target: IPv6Address, mac: Mac, *, router: bool = False) -> ND:
    solicited = asked.src != UNSPECIFIED
    said = NeighbourAdvertisement(target, router, solicited, override=True, options=NDOptions(target_mac=mac))
    return ND(target, asked.src if solicited else ALL_NODES, said)


# ---- the gateway's advertisements ----


def advertised_subnets(net: Network, vm: VM, nic: NIC) -> tuple[Subnet, ...]:
    """The IPv6 subnets that a NIC is told of: where it has an address, may make one or ask for one.

    A guest of another domain hears of those at its home, by its home.
    """
    if vm.home:
        return ()
    held = [a.ip for a in net.assignments_of(vm, nic)]
    return tuple(
        s
        for s in ipv6_subnets(net, net.vrf_of(nic))
        if ((s.slaac or s.dhcp6) and nic.vnet in ("", s.vnet)) or any(ip in s.prefix for ip in held)
    )


def away_to(net: Network, vm: VM, nic: NIC) -> IPv6Address | None:
    """Where a NIC in another domain is told of the gateway: to an address that is led to it, for the other
    gateway lets by nothing else. None: it has no such address."""
    held = (a.ip for a in forwarded_assignments(net, net.assignments_of(vm, nic)) if a.prefix is None)
    return next((ip for ip in held if isinstance(ip, IPv6Address)), None)


def advertisement(net: Network, vm: VM, nic: NIC, gateway_mac: Mac, to: IPv6Address = ALL_NODES) -> ND | None:
    """What the gateway says of itself, by this MAC, to a NIC; None to one that has no IPv6 subnet."""
    told = advertised_subnets(net, vm, nic)
    prefixes = tuple(
        PrefixInformation(subnet.prefix, True, subnet.slaac, PREFIX_VALID, PREFIX_PREFERRED)
        for subnet in told
        if isinstance(subnet.prefix, IPv6Network)
    )
    if not prefixes:
        return None
    options = NDOptions(source_mac=gateway_mac, mtu=net.mtu_of(nic), prefixes=prefixes)
    managed = any(subnet.dhcp6 for subnet in told)
    said = RouterAdvertisement(ROUTER_LIFETIME, HOPS, managed, reachable_ms=REACHABLE_MS, options=options)
    return ND(link_local(net.gateway_mac), ALL_NODES if to == UNSPECIFIED else to, said)

"""How large a packet each way takes: those to subnets, and to prefixes that are routed to NICs.

It is what switches and servers take, `mtu`, but where a vnet's MTU says less. To IP the fabric is one router,
and this is what that router knows of its links; what a router outside passes on, that router says itself.
"""

from collections.abc import Iterator

from retinue.core.model.addresses import IP, Prefix
from retinue.core.model.families import forwarded_prefixes, forwarded_subnets
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import DEFAULT_VRF


def narrow_ways(net: NetworkView, vrf: str = DEFAULT_VRF) -> Iterator[tuple[Prefix, int]]:
    """The prefixes of a VRF to which smaller packets go than switches take, and bytes of the largest.

    No two of them overlap. None where all take the same.
    """
    for subnet in forwarded_subnets(net.subnets_in(vrf)):
        if (mtu := net.mtu_in(subnet.vnet)) < net.mtu:
            yield subnet.prefix, mtu
    for prefix, vm in net.routed(vrf) if _has_narrow_vnet(net) else ():
        if (mtu := _mtu_behind(net, prefix, vm, vrf)) < net.mtu:
            yield from ((forwarded, mtu) for forwarded in forwarded_prefixes(net, [prefix]))


def is_narrow_somewhere(net: NetworkView) -> bool:
    return any(True for vrf in net.vrfs for _ in narrow_ways(net, vrf))


def mtu_to(net: NetworkView, ip: IP, vrf: str = DEFAULT_VRF) -> int:
    """Bytes of the largest packet that goes to an address."""
    subnet = net.subnet_of(ip, vrf)
    if subnet is not None:
        return net.mtu_in(subnet.vnet)
    routed = net.routed_to(ip, vrf)
    return net.mtu if routed is None else _mtu_behind(net, *routed, vrf)


def _has_narrow_vnet(net: NetworkView) -> bool:
    return any(net.mtu_in(vnet) < net.mtu for vnet in net.vnets)


def _mtu_behind(net: NetworkView, prefix: Prefix, vm: str, vrf: str) -> int:
    nic = net.nic_of_prefix(prefix, vm, vrf)
    return net.mtu if nic is None else net.mtu_of(nic)

"""How large a packet each way takes: those to subnets, and to prefixes that are routed to NICs.

It is what switches and servers take, `mtu`, but where a vnet's MTU says less. To IP the fabric is one router,
and this is what that router knows of its links; what a router outside passes on, that router says itself.
"""

from collections.abc import Iterator

from retinue.core.model.addresses import IP, Prefix
from retinue.core.model.anycast import members_of
from retinue.core.model.families import forwarded_subnets
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import DEFAULT_VRF


def narrow_subnets(net: NetworkView, vrf: str = DEFAULT_VRF) -> Iterator[tuple[Prefix, int]]:
    """The subnets of a VRF to which smaller packets go than switches take, and bytes of the largest."""
    for subnet in forwarded_subnets(net.subnets_in(vrf)):
        if (mtu := net.mtu_in(subnet.vnet)) < net.mtu:
            yield subnet.prefix, mtu


def is_narrow_somewhere(net: NetworkView) -> bool:
    """True where a vnet takes smaller packets than switches do, whether anything leads to it yet or not."""
    return any(net.mtu_in(vnet) < net.mtu for vnet in net.vnets)


def narrow_way(net: NetworkView, prefix: Prefix, vrf: str) -> int | None:
    """Of a prefix that is routed to a NIC: bytes of the largest packet that it takes, where that is less than
    switches take."""
    found = net.routed_to(prefix.network_address, vrf)
    mtu = net.mtu if found is None else _mtu_behind(net, *found, vrf)
    return mtu if mtu < net.mtu else None


def mtu_to(net: NetworkView, ip: IP, vrf: str = DEFAULT_VRF) -> int:
    """Bytes of the largest packet that goes to an address."""
    subnet = net.subnet_of(ip, vrf)
    if subnet is not None:
        return net.mtu_in(subnet.vnet)
    routed = net.routed_to(ip, vrf)
    return net.mtu if routed is None else _mtu_behind(net, *routed, vrf)


def _mtu_behind(net: NetworkView, prefix: Prefix, vm: str, vrf: str) -> int:
    """Of an anycast address, which the index has as one's: what all that have it take."""
    if vrf == DEFAULT_VRF and (members := members_of(net, prefix.network_address)):
        return min(net.mtu_of(nic) for _, nic in members)
    nic = net.nic_of_prefix(prefix, vm, vrf) if vm else None
    return net.mtu if nic is None else net.mtu_of(nic)

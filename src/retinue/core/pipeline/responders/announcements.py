"""What an ARP message of a VM says about an address that its NIC is allowed: whether the NIC takes it.

An address that nobody has is taken by whatever speaks for it first. One that another has is taken by an
announcement only: ARP about the address itself, as who has become master of it broadcasts.
"""

from retinue.core.model import NIC, VM, Assignment, BindingKind, Mac, Network, Origin
from retinue.core.packets import ARP


def taken(net: Network, vm: VM, nic: NIC, eth_src: Mac, arp: ARP) -> Assignment | None:
    """The assignment that the message makes; None when it makes none."""
    if nic.may_take(arp.spa) is None or not eth_src == arp.sha == nic.speaks_as(arp.spa):
        return None
    vrf = net.vrf_of(nic)
    holder = net.holder(arp.spa, vrf)
    if holder is not None and ((holder.vm, holder.mac) == (vm.id, nic.mac) or arp.spa != arp.tpa):
        return None
    return Assignment(arp.spa, nic.mac, vm.id, BindingKind.ALLOWED, Origin.CONTROLLER, vrf=vrf)

"""Addresses that a VM makes itself (SLAAC, RFC 4862): bound as it checks that they are free (RFC 6620).

First come, first served: an address that nobody holds is bound to the NIC whose check is seen. An address of
a subnet where the operator allows it (`Subnet.slaac`), or a link-local one that does not follow from a MAC
(RFC 7217). It is kept while the VM is there; of more than MOST_OWN_ADDRESSES the oldest goes, so that
temporary addresses (RFC 8981) come and go.
"""

from collections import deque
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from retinue.core.limits import MOST_OWN_ADDRESSES
from retinue.core.model import NIC, VM, Assignment, BindingKind, Mac, Origin
from retinue.core.model.families import in_use
from retinue.core.model.link_local import is_link_local, link_local, mac_of
from retinue.core.model.network import Network

NEW_SECONDS = 60.0
"""In which a NIC may have MOST_OWN_ADDRESSES new addresses: each costs entries on several switches."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A NIC gets an address; another one of its own goes for it, or none."""

    assignment: Assignment
    instead_of: Assignment | None


@dataclass
class OwnAddresses:
    """Judges checks of addresses, and remembers how many each NIC had of late."""

    _taken: dict[Mac, deque[float]] = field(default_factory=dict)
    """By NIC: when it got its last ones, the earliest first."""

    def claim(self, net: Network, vm: VM, nic: NIC, target: IPv6Address, now: float) -> Claim | None:
        """What follows from a NIC's check of an address; None: nothing. `now` is in seconds."""
        if not is_free(net, nic, target):
            return None
        if vm.home and not is_link_local(target):
            return None  # Another domain's VM has what its home has given it, and nothing of our subnets.
        if not self._take(nic.mac, now):
            return None
        own = [a for a in net.assignments_of(vm, nic) if a.kind is BindingKind.SLAAC]
        vrf = net.vrf_of(nic)
        given = Assignment(target, nic.mac, vm.id, BindingKind.SLAAC, Origin.CONTROLLER, vrf=vrf)
        return Claim(given, own[0] if len(own) >= MOST_OWN_ADDRESSES else None)

    def forget(self, known: set[Mac]) -> None:
        """Forget all NICs but these."""
        for mac in self._taken.keys() - known:
            del self._taken[mac]

    def _take(self, mac: Mac, now: float) -> bool:
        times = self._taken.setdefault(mac, deque())
        while times and not 0 <= now - times[0] < NEW_SECONDS:
            times.popleft()
        if len(times) >= MOST_OWN_ADDRESSES:
            return False
        times.append(now)
        return True


def is_free(net: Network, nic: NIC, target: IPv6Address) -> bool:
    """True for an address that a VM may make for this NIC, and that nobody has."""
    return net.holder(target, net.vrf_of(nic)) is None and may_be_own(net, nic, target)


def may_be_own(net: Network, nic: NIC, target: IPv6Address) -> bool:
    """True for an address that a VM may make for this NIC, and that follows from no other's MAC. From its own
    MAC a link-local one follows that is bound already."""
    if not in_use(net, 6):
        return False
    mac = mac_of(target)
    if mac is not None and mac != nic.mac and _is_known(net, mac):
        return False  # It would be the first choice of whoever has that MAC.
    if is_link_local(target):
        return target != link_local(net.gateway_mac) and mac != nic.mac
    vrf = net.vrf_of(nic)
    subnet = net.subnet_of(target, vrf)
    if subnet is None or not subnet.slaac or nic.vnet not in ("", subnet.vnet):
        return False
    if net.server_of_address(target, vrf) is not None:
        return False
    # The prefix with nothing behind it is for any router (RFC 4291, 2.6.1).
    return target not in (subnet.gateway, subnet.prefix.network_address)


def _is_known(net: Network, mac: Mac) -> bool:
    return net.vm_of_mac(mac) is not None or net.server_of_mac(mac) is not None

"""A pool of pairs of MAC and IP, given by a manager: a VM that is registered without either takes one.

    free       no NIC has the MAC, and nobody in the default VRF holds the address; nor has either become a
               gateway's or server's since, or one that a VM may take
    the next   of those that are free the one that was given first
    used       for as long as its VM is registered: it is written nowhere but in the VM

So a pair is one VM's at a time by the rules that make MACs and addresses so, and nothing has to be kept in
step.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from retinue.core.limits import MOST_PAIRS
from retinue.core.model.addresses import IP, Mac, ModelError
from retinue.core.model.network import Network
from retinue.core.model.vm_constraints import check_pair


@dataclass(frozen=True, slots=True)
class AddressPair:
    """One of the pool."""

    mac: Mac
    ip: IP
    number: int
    """In the order in which they were given, from 1."""


def user_of(net: Network, pair: AddressPair) -> str:
    """The VM that has it, or its MAC or address alone; "": it is free."""
    vm = net.vm_of_mac(pair.mac)
    if vm is not None:
        return vm.id
    held = net.holder(pair.ip)
    return "" if held is None else held.vm


def next_free(net: Network, pool: Collection[AddressPair], taken: Collection[Mac] = ()) -> AddressPair | None:
    """The pair that the next VM gets; `taken`: those that others get with it."""
    in_order = sorted(pool, key=lambda pair: pair.number)
    free = (pair for pair in in_order if pair.mac not in taken and not user_of(net, pair))
    return next((pair for pair in free if _can_be_taken(net, pair)), None)


def _can_be_taken(net: Network, pair: AddressPair) -> bool:
    """Something may have come since it was added."""
    try:
        check_pair(net, pair.mac, pair.ip)
    except ModelError:
        return False
    return True


def added(
    net: Network, pool: Mapping[Mac, AddressPair], given: Iterable[tuple[Mac, IP]]
) -> list[AddressPair]:
    """These pairs as they come to the pool, behind those that are there. One that is there already stays.

    Raises ModelError, and then none of them comes.
    """
    found: list[AddressPair] = []
    ips = {pair.ip: pair.mac for pair in pool.values()}
    number = max((pair.number for pair in pool.values()), default=0)
    for mac, ip in given:
        known = pool.get(mac) or next((pair for pair in found if pair.mac == mac), None)
        if known is not None and known.ip != ip:
            raise ModelError(f"MAC {mac} is paired with {known.ip} already, not with {ip}")
        if ips.get(ip, mac) != mac:
            raise ModelError(f"{ip} is paired with MAC {ips[ip]} already, not with {mac}")
        if known is None:
            check_pair(net, mac, ip)
            number += 1
            found.append(AddressPair(mac, ip, number))
            ips[ip] = mac
    if len(pool) + len(found) > MOST_PAIRS:
        raise ModelError(f"more than {MOST_PAIRS} pairs cannot be kept")
    return found


__all__ = ["AddressPair", "added", "next_free", "user_of"]

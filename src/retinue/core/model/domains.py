"""Other domains: the gateway to each, and which VMs are away, or guests.

A domain is one data-centre network with a controller of its own. In its network another domain is a place
behind a gateway: a server with an edge switch whose port `tunnel` leads to the other domain's gateway. A VM
that is away is registered at that server, as at any other, and its "port" there is the tunnel. So which name
and which address is where is read off the VMs themselves, and no second table can disagree with them:

    the VM               in its home domain               in the domain where it is
    is at home           at a server                      not known
    is away              at the gateway to that domain    at a server, `VM.home` is its home domain
    moves between them   delivered at one, open at the other, in each domain by its own migration
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from zlib import crc32

from retinue.core.model.addresses import IP, Mac, ModelError
from retinue.core.model.binding import Assignment
from retinue.core.model.entities import VM
from retinue.core.model.families import in_use
from retinue.core.model.link_local import is_link_local, mac_of
from retinue.core.model.nic import NIC
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import DEFAULT_VRF

SHARES = 32_768
"""VMs whose questions by a tunnel are each counted for themselves (see pipeline.meters)."""


@dataclass(frozen=True, slots=True)
class Place:
    """A row of the gateway's table: where a VM is that has to do with another domain."""

    vm: str
    addresses: tuple[IP, ...]
    home: str
    """Its home domain; "": this one."""
    domain: str
    """The domain where it is; "": this one."""
    server: str
    """Where its traffic is delivered here: a server, or the gateway to `domain`."""


@dataclass(frozen=True, slots=True)
class HomeAnchor:
    """By its home's gateway a VM is reached that is in another domain, and by it the VM sends: since when,
    and for how long. The same is kept where the VM is a guest, of the gateway to its home."""

    vm: str
    since: float
    """Seconds since the epoch, as all times here."""
    ended: float | None = None
    """When its home let go of it: what comes for it there is dropped, and so is what it sends."""
    why: str = ""
    """Of one that was ended."""
    idle: float = 0.0
    """Seconds without a packet for the VM after which it ends; 0: it does not for that."""
    until: float | None = None
    """When it ends in any case."""


def check_guest(net: NetworkView, vm: VM, held: Collection[Assignment] = ()) -> None:
    """Whether a VM may be a guest: by its home's grant, and as far as domains go. Raises ModelError.

    `held`: what its NICs have beside static addresses.

    A guest has only what its home may give: addresses inside the prefixes that the operator has granted to
    that domain, and none inside a subnet of this domain. So no domain can take another's address, or one of
    ours, by sending a VM.
    """
    peer = net.peers.get(vm.home)
    what = f"VM {vm.id} of domain {vm.home}"
    if peer is None:
        raise ModelError(f"{what}: no such domain is configured")
    _check_what_goes(net, vm, what)
    for nic in vm.nics:
        its = [one for one in held if one.mac == nic.mac]
        if not nic.addresses and all(is_link_local(one.ip) for one in its):
            raise ModelError(f"{what}: its NIC {nic.mac} has no address; between domains each NIC has one")
        for ip in (*nic.addresses, *(one.ip for one in its)):
            why = not_of_a_guest(net, vm.home, ip, nic.mac)
            if why:
                raise ModelError(f"{what}: {why}")
    for one in held:
        if one.prefix is not None:
            raise ModelError(f"{what}: {one.prefix} is delegated to it, which does not go between domains")
        holder = net.holder(one.ip)
        if holder is not None and holder.vm != vm.id:
            raise ModelError(f"{what}: {one.ip} is VM {holder.vm}'s here")


def not_of_a_guest(net: NetworkView, home: str, ip: IP, mac: Mac) -> str:
    """Why a NIC with this MAC, of a VM whose home is another domain, cannot have an address; "": it can."""
    peer = net.peers[home]
    if isinstance(ip, IPv6Address) and is_link_local(ip):
        # One that follows from a MAC is for whoever has that.
        return "" if mac_of(ip) in (None, mac) else f"{ip} follows from another's MAC"
    if not any(ip in prefix for prefix in peer.prefixes):
        granted = ", ".join(map(str, peer.prefixes)) or "none"
        return f"{ip} is not granted to that domain, which has {granted}"
    subnet = net.subnet_of(ip)
    if subnet is not None:
        return f"{ip} is in our subnet {subnet.id}"
    if not in_use(net, ip.version):
        return f"it has {ip}, and no switch here deals with IPv6: add a subnet of it"
    return ""


def check_may_leave(net: NetworkView, vm: VM, domain: str) -> None:
    """Whether a VM may go to another domain: with addresses on each NIC, which are static, leased or made
    by itself; and a guest only home.

    Raises ModelError.
    """
    what = f"VM {vm.id} cannot go to domain {domain}"
    if vm.home and vm.home != domain:
        raise ModelError(f"{what}: it is a guest of domain {vm.home}, and goes back there first")
    _check_what_goes(net, vm, what)
    for nic in vm.nics:
        if not vm.home and (nic.rate or not nic.enabled):
            raise ModelError(f"{what}: a NIC has a rate, or is disabled, which does not go between domains")
        if net.logins_of(nic.mac) and not net.peers[domain].storage:
            raise ModelError(
                f"{what}: its NIC {nic.mac} is logged in for storage, which does not go to that domain "
                "(`domain.storage`)"
            )
        held = net.assignments_of(vm, nic)
        if all(is_link_local(a.ip) for a in held):
            raise ModelError(f"{what}: its NIC {nic.mac} has no address, static or by a lease that goes on")
        delegated = next((a.prefix for a in held if a.prefix is not None), None)
        if delegated is not None:
            raise ModelError(f"{what}: {delegated} is delegated to it, which does not go between domains")


def _check_what_goes(net: NetworkView, vm: VM, what: str) -> None:
    """Whether a VM has what goes between domains and nothing more. Raises ModelError."""
    for number, disk in enumerate(vm.disks, 1):
        where = "on this domain's storage" if disk.shared else "on its server alone"
        raise ModelError(
            f"{what}: it has disks, which do not go between domains, and disk {number} is {where}"
        )
    if vm.nic.slot != 1:
        raise ModelError(f"{what}: its NIC is in slot {vm.nic.slot}; between domains the first is in slot 1")
    if len({nic.slot for nic in vm.nics}) < len(vm.nics):
        raise ModelError(f"{what}: two of its NICs are in one slot")
    for nic in vm.nics:
        if keeps := next((words for words, has in _of_this_domain(net, vm, nic) if has), ""):
            raise ModelError(f"{what}: its NIC {nic.mac} {keeps}, which does not go between domains")


def _of_this_domain(net: NetworkView, vm: VM, nic: NIC) -> Iterator[tuple[str, bool]]:
    """What may be said of a NIC and means nothing in another domain: in words, and whether it is said."""
    vrf = net.vrf_of(nic)
    yield f"is in VRF {vrf}, whose addresses and names are this domain's own", vrf != DEFAULT_VRF
    yield f"is in vnet {nic.vnet}", bool(nic.vnet)
    yield "has addresses that it may take from other NICs", bool(nic.allowed)
    yield "has prefixes that are routed to it", bool(nic.prefixes)
    yield "has anycast addresses", bool(nic.anycast)
    yield "is trusted, as a DHCP server's", nic.trusted
    yield "may change its MAC", nic.mac_changes
    yield f"has its traffic copied to {nic.mirror}", bool(nic.mirror) and not vm.home


def is_same(ours: VM, theirs: VM) -> bool:
    """True when another domain describes the VM as we know it: name, MACs, ports and addresses.

    What else is given of its NIC is each domain's own.
    """
    return _described(ours) == _described(theirs)


def _described(vm: VM) -> object:
    return vm.id, [(nic.mac, nic.port_id, nic.addresses, nic.slot) for nic in vm.nics]


def is_same_at_home(guest: VM, changed: VM) -> bool:
    """True when its home still knows the guest, and nothing has come that does not go between domains.

    That a NIC is disabled, has a rate or a mirror, is the affair of the domain where it is, and ends there.
    """
    return _as_at_home(guest) == _as_at_home(changed)


def _as_at_home(vm: VM) -> object:
    alone = {nic.port_id: _of_domain(nic) for nic in vm.nics}
    return _described(vm), vm.disks, alone


def _of_domain(nic: NIC) -> NIC:
    """Without what each domain says for itself, and what is only seen."""
    return replace(nic, enabled=True, rate=0, mirror="", load=0, initial_mac="")


def has_a_share(net: NetworkView, vm: VM) -> bool:
    """True for a VM that is away, a guest, or on its way: what it asks comes by a tunnel."""
    return bool(net.peers) and (bool(vm.home) or any(net.peer_at(at) is not None for at in vm.locations))


def free_share(vm: str, taken: Collection[int]) -> int | None:
    """A number for a VM that none of those has; None: all are taken.

    It follows from the VM's name where that is free: a controller that starts again finds the same, however
    it comes to know of its VMs.
    """
    if len(taken) >= SHARES:
        return None
    first = crc32(vm.encode()) % SHARES
    return next(number for n in range(SHARES) if (number := (first + n) % SHARES) not in taken)


def places(net: NetworkView) -> Iterator[Place]:
    """The gateway's table, by VM: those away and those that are guests; all others are at home."""
    found = (place_of(net, net.vms[id]) for id in sorted(net.vms))
    return (place for place in found if place is not None)


def place_of(net: NetworkView, vm: VM) -> Place | None:
    """A VM's row of that table; None: it is at home."""
    peer = net.peer_at(vm.server)
    if not vm.home and peer is None:
        return None
    addresses = tuple(held.ip for held in net.held_by(vm.id))
    return Place(vm.id, addresses, vm.home, "" if peer is None else peer.id, vm.server)

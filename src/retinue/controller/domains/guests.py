"""A VM as its domain describes it to another, and read again: with all that its NICs hold.

Of a lease it is said for how long it goes on, not when it ends: "clients and servers may not have
synchronized clocks" (RFC 2131, 3.3), and neither have two domains.
"""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

from retinue.controller.parsing import address
from retinue.core.limits import ID, LONGEST_CLIENT_ID
from retinue.core.model import (
    IP,
    NIC,
    VM,
    Assignment,
    BindingKind,
    IAKind,
    Lease6,
    Mac,
    ModelError,
    Origin,
    mac,
)
from retinue.core.model.storage import FcLogin
from retinue.core.model.view import NetworkView
from retinue.core.packets import FrameError, build_options, parse_options
from retinue.core.packets.dhcp6 import check_duid
from retinue.core.packets.dhcp6_options import build_options6, parse_options6
from retinue.protocol.domains import Guest, GuestAddress, GuestLease6, GuestLogin, GuestNIC

OF_GUESTS = (BindingKind.DYNAMIC, BindingKind.SLAAC)
"""Kinds of what is said of a NIC beside its static addresses."""


def described(net: NetworkView, vm: VM, domain: str, memory_mib: int, now: float) -> Guest:
    """What `domain` is told of it. Coming home it has what it has there: its leases are granted at home."""
    comes_home = vm.home == domain
    nics = [
        GuestNIC(
            nic.mac,
            nic.port_id,
            [str(ip) for ip in nic.addresses],
            nic.slot,
            [] if comes_home else [_held(one, now) for one in net.assignments_of(vm, nic) if _goes(one)],
            []
            if comes_home
            else [
                GuestLogin(login.mac, net.servers[login.forwarder].mac)
                for login in net.logins_of(nic.mac)
                if login.forwarder in net.servers
            ],
        )
        for nic in vm.nics
    ]
    return Guest(vm.id, nics, comes_home, memory_mib)


def _goes(held: Assignment) -> bool:
    return held.kind in OF_GUESTS


def _held(held: Assignment, now: float) -> GuestAddress:
    left = None if held.lease_end is None else max(0.0, held.lease_end - now)
    if held.kind is not BindingKind.DYNAMIC:
        return GuestAddress(str(held.ip))
    if (its := held.lease6) is not None:
        preferred = None if its.preferred_end is None else max(0.0, its.preferred_end - now)
        lease6 = GuestLease6(
            its.server.hex(), its.iaid, preferred, its.ia is IAKind.TA, build_options6(its.options).hex()
        )
        return GuestAddress(
            str(held.ip), leased=True, seconds=left, client_id=held.client_id.hex(), dhcp6=lease6
        )
    return GuestAddress(
        str(held.ip),
        leased=True,
        seconds=left,
        server="" if held.server is None else str(held.server),
        client_id=held.client_id.hex(),
        options=build_options(held.options)[:-1].hex(),
        told=build_options(held.told)[:-1].hex(),
    )


def vm_of(guest: Guest, gateway: str, home: str) -> VM:
    """The VM, as it is registered behind the gateway to the domain that describes it. Raises ModelError."""
    for name in (guest.id, *(nic.port_id for nic in guest.nics)):
        if not ID.fullmatch(name):
            raise ModelError("a VM's name, or its port's, is none")
    nics = tuple(
        NIC(mac(nic.mac), nic.port_id, tuple(map(address, nic.addresses)), slot=nic.slot)
        for nic in guest.nics
    )
    return VM(guest.id, nics, gateway, memory_mib=guest.memory_mib, home=home)


def logins_of(guest: Guest, gateway: str) -> Iterator[FcLogin]:
    """Its ports of storage, whose forwarders are behind the gateway. Raises ModelError."""
    for nic in guest.nics:
        for login in nic.logins:
            yield FcLogin(mac(login.mac), guest.id, mac(nic.mac), gateway, mac(login.forwarder))


def held_by(guest: Guest, now: float) -> Iterator[Assignment]:
    """What its NICs hold beside static addresses. Raises ModelError."""
    for nic in guest.nics:
        for held in nic.held:
            ip, its = address(held.ip), mac(nic.mac)
            if not held.leased:
                if ip.version == 4:
                    raise ModelError(f"VM {guest.id}: {ip} is no address that a VM makes itself")
                yield Assignment(ip, its, guest.id, BindingKind.SLAAC, Origin.CONTROLLER)
                continue
            yield _lease(guest, ip, its, held, now)


def _lease(guest: Guest, ip: IP, its: Mac, held: GuestAddress, now: float) -> Assignment:
    end = None if held.seconds is None else now + held.seconds
    client_id = bytes.fromhex(held.client_id)
    if held.dhcp6 is None and len(client_id) > LONGEST_CLIENT_ID:
        raise ModelError(f"VM {guest.id}: the lease of {ip}: a client identifier of {len(client_id)} bytes")
    lease = Assignment(ip, its, guest.id, BindingKind.DYNAMIC, Origin.CONTROLLER, end, client_id=client_id)
    try:
        if held.dhcp6 is None and ip.version == 4:
            options, told = (parse_options(bytes.fromhex(text)) for text in (held.options, held.told))
            return replace(lease, server=_server(held.server), options=options, told=told)
        if held.dhcp6 is not None and ip.version == 6:
            check_duid(client_id)
            return replace(lease, lease6=_lease6(held.dhcp6, now))
    except FrameError as error:
        raise ModelError(f"VM {guest.id}: the lease of {ip}: {error}") from error
    raise ModelError(f"VM {guest.id}: the lease of {ip} is of another family than it says")


def _lease6(said: GuestLease6, now: float) -> Lease6:
    """Raises FrameError."""
    server = bytes.fromhex(said.server)
    check_duid(server)
    return Lease6(
        server,
        said.iaid,
        None if said.preferred is None else now + said.preferred,
        parse_options6(bytes.fromhex(said.options)),
        IAKind.TA if said.temporary else IAKind.NA,
    )


def _server(text: str) -> IPv4Address | None:
    found = address(text) if text else None
    if found is not None and not isinstance(found, IPv4Address):
        raise ModelError(f"{found} is no DHCP server's address")
    return found

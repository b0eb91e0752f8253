"""What a VM's DHCPv6 message must be before its content counts: its sender, its way, its identifiers.

    message               client id   server id   IA
    SOLICIT               has         none        has
    REQUEST RENEW         has         has         has
    CONFIRM REBIND        has         none        has
    RELEASE DECLINE       has         has         has
    INFORMATION-REQUEST   may have    may have    none        (RFC 8415, 16)

A server drops what is otherwise. Clients ask by multicast, from a link-local address of the NIC: no server
can tell them to ask it alone, since the option by which it would is not handed on. An IA is of addresses
(IA_NA), of temporary ones (IA_TA) or of prefixes (IA_PD).
"""

from ipaddress import IPv6Address

from retinue.core.limits import MOST_DHCP6_ADDRESSES
from retinue.core.model import DEFAULT_VRF, NIC, VM, Assignment, BindingKind, IAKind
from retinue.core.model.domains import has_a_share
from retinue.core.model.families import dhcp6_subnets
from retinue.core.model.link_local import is_link_local, link_local
from retinue.core.model.network import Network
from retinue.core.packets import mac_text
from retinue.core.packets.dhcp6 import ALL_AGENTS_AND_SERVERS, MessageType6
from retinue.core.snooping.dhcp6_messages import ClientMessage6
from retinue.core.snooping.headers import another, is_anothers
from retinue.core.snooping.messages import Rejected

DUID_LLT, DUID_LL = 1, 3
"""Types of DUIDs that are made of a MAC address (RFC 8415, 11.2 and 11.4)."""
ETHERNET = 1

_NAMES_SERVER = (MessageType6.REQUEST, MessageType6.RENEW, MessageType6.RELEASE, MessageType6.DECLINE)
_HOLDS = (MessageType6.RENEW, MessageType6.RELEASE, MessageType6.DECLINE)
"""Messages about addresses that the client says it has of this server."""


def fault_of6(net: Network, vm: VM, nic: NIC, message: ClientMessage6) -> Rejected | None:
    """Why a message from this NIC's port is dropped whatever it asks; None if nothing is wrong with it."""
    return (
        _sender(net, vm, nic, message)
        or _form(vm, message)
        or _claims(net, vm, nic, message)
        or _count(net, vm, nic, message)
    )


def _sender(net: Network, vm: VM, nic: NIC, message: ClientMessage6) -> Rejected | None:
    if message.eth_src != nic.mac:
        words = f"DHCPv6 for MAC {message.eth_src} at the port of {vm.id} ({nic.mac})"
        return Rejected(words, vm.id, spoofed=True)
    if not _is_its_own(net, vm, nic, message.src):
        words = f"DHCPv6 from {message.src}, which is no link-local address of {vm.id}"
        return Rejected(words, vm.id, spoofed=True)
    if message.dst != ALL_AGENTS_AND_SERVERS:
        return Rejected(f"DHCPv6 to {message.dst}, not to {ALL_AGENTS_AND_SERVERS}", vm.id)
    if message.dhcp.type.from_server or message.dhcp.type.of_relay:
        return Rejected("a DHCPv6 server's message from a VM", vm.id, spoofed=True)
    if not vm.home and not dhcp6_subnets(net, nic.vnet):
        return Rejected("DHCPv6 where no subnet has addresses by it", vm.id)
    if has_a_share(net, vm) and any(ia.kind is IAKind.PD for ia in message.dhcp.ias):
        return Rejected("a prefix is asked for, and none is delegated between domains", vm.id)
    return None


def _is_its_own(net: Network, vm: VM, nic: NIC, ip: IPv6Address) -> bool:
    """True for the link-local address that follows from the NIC's MAC, and for one that is bound to it."""
    if not is_link_local(ip):
        return False
    return ip == link_local(nic.mac) or any(held.ip == ip for held in net.assignments_of(vm, nic))


def _form(vm: VM, message: ClientMessage6) -> Rejected | None:
    dhcp, name = message.dhcp, message.dhcp.type.name
    if dhcp.type is MessageType6.INFORMATION_REQUEST:
        return Rejected(f"{name} with an IA", vm.id) if dhcp.ias else None
    if not dhcp.client_id:
        return Rejected(f"{name} without a client identifier", vm.id)
    if bool(dhcp.server_id) != (dhcp.type in _NAMES_SERVER):
        has = "with" if dhcp.server_id else "without"
        return Rejected(f"{name} {has} a server identifier", vm.id)
    if not dhcp.ias:
        return Rejected(f"{name} without an IA", vm.id)
    return None


def _claims(net: Network, vm: VM, nic: NIC, message: ClientMessage6) -> Rejected | None:
    dhcp = message.dhcp
    owner = owner_of_duid(net, dhcp.client_id, vm, net.vrf_of(nic))
    if owner:
        # A server knows a client by it alone (RFC 8415, 11), and would give this VM the other's lease.
        return Rejected(f"the DHCPv6 client identifier (DUID) of {owner}", vm.id, spoofed=True)
    its = next((ip for ip in dhcp.addresses if is_anothers(net, ip, nic.mac)), None)
    if its is not None and dhcp.type in _HOLDS:
        return Rejected(f"{its} is held by {another(net, its, vm.id, nic.mac)}", vm.id, spoofed=True)
    return None


def _count(net: Network, vm: VM, nic: NIC, message: ClientMessage6) -> Rejected | None:
    """Each IA costs the server an address, and switches entries."""
    dhcp = message.dhcp
    leases = ((a.client_id, a.lease6) for a in leases6(net, vm, nic))
    held = {(duid, (lease.ia, lease.iaid)) for duid, lease in leases if lease is not None}
    asked = {(dhcp.client_id, ia.key) for ia in dhcp.ias}
    if len(held | asked) > MOST_DHCP6_ADDRESSES and not asked <= held:
        return Rejected(f"{vm.id} asks for more than {MOST_DHCP6_ADDRESSES} IAs by one NIC", vm.id)
    return None


def leases6(net: Network, vm: VM, nic: NIC) -> list[Assignment]:
    """What the NIC holds by DHCPv6."""
    held = net.assignments_of(vm, nic)
    return [a for a in held if a.kind is BindingKind.DYNAMIC and a.lease6 is not None]


def owner_of_duid(net: Network, duid: bytes, vm: VM, vrf: str = DEFAULT_VRF) -> str:
    """The other VM whose client identifier this is in a VRF; "" if it is nobody else's.

    All NICs of a VM have the same. One that is made of the MAC of another VM is that one's before it has a
    lease.
    """
    if not duid:
        return ""
    mac = _mac_in(duid)
    named = None if mac is None else net.vm_of_mac(mac)
    if named is not None:
        return named.id if named.id != vm.id else ""
    known = net.vms_known_as(duid, vrf, 6) - {vm.id}
    # Of a guest, as for headers.owner_of_identifier: its home's servers alone know it by that.
    return min((other for other in known if net.vms[other].home == vm.home), default="")


def _mac_in(duid: bytes) -> str | None:
    kind, hardware = int.from_bytes(duid[:2], "big"), int.from_bytes(duid[2:4], "big")
    at = {DUID_LLT: 8, DUID_LL: 4}.get(kind)
    if at is None or hardware != ETHERNET or len(duid) != at + 6:
        return None
    return mac_text(duid[at:])


__all__ = ["fault_of6", "leases6", "owner_of_duid"]

"""What a VM's DHCP message must be before its content counts: its sender, source, destination and form.

A server may read a message otherwise than we do: an option that stands twice, options in the fields `file`
and `sname`, an IP header with options. A VM may send none of that; no DHCP client needs to.
"""

from collections import Counter
from collections.abc import Collection
from ipaddress import IPv4Address

from retinue.core.model import IP, VM, Mac, Service
from retinue.core.model.domains import not_of_a_guest
from retinue.core.model.network import Network
from retinue.core.packets import BootOp, MessageType, Option
from retinue.core.snooping.messages import EVERYBODY, NO_ADDRESS, ClientMessage, Rejected

ETHERNET = 1
"""Hardware type (RFC 1700), first byte of a client identifier that is a hardware address."""


def fault_of(
    net: Network, vm: VM, message: ClientMessage, servers: Collection[IPv4Address]
) -> Rejected | None:
    """Why a message from this VM's port is dropped whatever it asks; None if nothing is wrong with it.

    `servers`: identifiers of DHCP servers besides those that are registered.
    """
    nic = net.nic_at(message.switch, message.port, message.eth_src) or vm.nic
    return (
        _sender(vm, nic.mac, message)
        or _form(vm, message)
        or _route(net, vm, message, servers)
        or _claims(net, vm, message)
    )


def source_of(net: Network, vm: VM, message: ClientMessage) -> IPv4Address | None:
    """The IP source under which the message goes to the servers: one the VM holds, or none (0.0.0.0).

    None for a source that is spoofed. A VM may renew what it holds no more, or never did as far as is known
    here, if nobody else has it: it asks as one without an address, and the server decides. Nor is it spoofing
    to give back what one holds no more.
    """
    src, asked = message.src, message.dhcp
    if src == NO_ADDRESS:
        return src
    if asked.ciaddr not in (NO_ADDRESS, src):
        return None
    vrf = net.vrf_of_mac(asked.chaddr)
    holder = net.holder(src, vrf)
    if holder is not None:
        return src if holder.mac == asked.chaddr else None
    may = asked.message_type in (MessageType.REQUEST, MessageType.RELEASE) and asked.ciaddr == src
    return NO_ADDRESS if may and _nobody_has(net, vm, src, asked.chaddr) else None


def _nobody_has(net: Network, vm: VM, ip: IPv4Address, nic: Mac) -> bool:
    """True for a host's address of a VMs' subnet that no gateway, server or VM has; of a guest's subnets only
    its home knows, which may give it what it was granted."""
    vrf = net.vrf_of_mac(nic)
    if vm.home:
        its = vm.home in net.peers and not not_of_a_guest(net, vm.home, ip, nic)
        return its and net.server_of_address(ip, vrf) is None
    subnet = net.subnet_of(ip, vrf)
    if subnet is None or ip in (subnet.gateway, subnet.prefix.network_address):
        return False
    return ip != subnet.prefix.broadcast_address and net.server_of_address(ip, vrf) is None


def _sender(vm: VM, mac: Mac, message: ClientMessage) -> Rejected | None:
    """From here on the message is known to be of the NIC that has its `chaddr`."""
    dhcp = message.dhcp
    if message.eth_src != mac or dhcp.chaddr != mac:
        claimed = dhcp.chaddr if dhcp.chaddr != mac else message.eth_src
        return Rejected(f"DHCP for MAC {claimed} at the port of {vm.id} ({mac})", vm.id, spoofed=True)
    if dhcp.op != BootOp.REQUEST or dhcp.message_type is None or dhcp.message_type.from_server:
        return Rejected("a DHCP server's message from a VM", vm.id, spoofed=True)
    if dhcp.giaddr != NO_ADDRESS:
        return Rejected("a VM may not relay DHCP (giaddr is set)", vm.id, spoofed=True)
    if dhcp.relay_agent is not None:
        # RFC 3046 section 2.1: from an untrusted circuit the option of relay agents is not believed.
        return Rejected("a VM may not speak as a DHCP relay agent (option 82)", vm.id, spoofed=True)
    return None


def _form(vm: VM, message: ClientMessage) -> Rejected | None:
    """What two readers could read in two ways."""
    codes = [code for code, _ in message.dhcp.options]
    if Option.OVERLOAD in codes:
        return Rejected("options outside the options field (option 52) from a VM", vm.id, spoofed=True)
    twice = next((code for code, times in Counter(codes).items() if times > 1), None)
    if twice is not None:
        return Rejected(f"option {twice} stands twice in a VM's message", vm.id, spoofed=True)
    if message.ip_options:
        return Rejected("a VM's DHCP message with IP options", vm.id, spoofed=True)
    return None


def _route(net: Network, vm: VM, message: ClientMessage, servers: Collection[IPv4Address]) -> Rejected | None:
    if source_of(net, vm, message) is None:
        return Rejected(f"DHCP from {message.src}, which {vm.id} does not hold", vm.id, spoofed=True)
    dst = message.dst
    if dst != EVERYBODY and dst not in servers and not _is_server(net, vm, dst):
        return Rejected(f"DHCP to {dst}, where no DHCP server is known", vm.id)
    return None


def _is_server(net: Network, vm: VM, address: IPv4Address) -> bool:
    """True for a registered DHCP server, and for the one that granted a lease of this VM."""
    server = net.server_of_address(address)
    if server is not None and Service.DHCP in server.services:
        return True
    return any(held.server == address for held in net.held_by(vm.id))


def _claims(net: Network, vm: VM, message: ClientMessage) -> Rejected | None:
    nic = message.dhcp.chaddr
    owner = owner_of_identifier(net, message.dhcp.client_id or b"", vm, nic)
    if owner:
        # A DHCP server knows a client by it (RFC 2131, 4.2), and would give this VM the other's lease.
        return Rejected(f"the DHCP client identifier of {owner}", vm.id, spoofed=True)
    if is_anothers(net, message.dhcp.ciaddr, nic):
        whose = another(net, message.dhcp.ciaddr, vm.id, nic)
        return Rejected(f"{message.dhcp.ciaddr} is held by {whose}", vm.id, spoofed=True)
    return None


def is_anothers(net: Network, ip: IP, nic: Mac) -> bool:
    """True for an address that another NIC holds, be it of another VM or of the same; or that is of a prefix
    which is routed to another VM."""
    vrf, vm = net.vrf_of_mac(nic), net.vm_of_mac(nic)
    assignment, routed = net.holder(ip, vrf), net.routed_to(ip, vrf)
    if routed is not None and (vm is None or routed[1] != vm.id):
        return True
    return assignment is not None and assignment.mac != nic


def another(net: Network, ip: IP, vm: str, nic: Mac) -> str:
    """Whose an address is that is not this NIC's, in words about its VM."""
    holder = net.holder(ip, net.vrf_of_mac(nic))
    return "another VM" if holder is None or holder.vm != vm else "another NIC of it"


def other_holder(net: Network, ip: IP, vm: str, nic: Mac) -> str:
    """Who has this address, so that the VM's NIC cannot: another VM, another NIC of it, a server or a
    gateway; "" if nobody has."""
    vrf = net.vrf_of_mac(nic)
    held = net.holder(ip, vrf)
    if held is not None and held.mac != nic:
        return held.vm if held.vm != vm else f"another NIC of it ({held.mac})"
    allowed = net.allowed_to(ip, vrf) if held is None else frozenset()
    if allowed:
        return f"{min(allowed)}, which may take it,"
    server = net.server_of_address(ip, vrf)
    if server is not None:
        return f"server {server.id}"
    subnet = net.subnet_of(ip, vrf)
    return f"the gateway of subnet {subnet.id}" if subnet is not None and subnet.gateway == ip else ""


def owner_of_identifier(net: Network, client_id: bytes, vm: VM, nic: Mac) -> str:
    """The VM, or the NIC of the same, whose client identifier this is; "" if it is nobody else's.

    A guest of another domain is known by it to that domain's DHCP servers, and to none of ours: who has
    leases there cannot take an identifier from who has them here.
    """
    if not client_id or client_id == bytes([ETHERNET]) + bytes.fromhex(nic.replace(":", "")):
        return ""
    # RFC 2132, 9.14: most clients use their hardware address, and own that before they have a lease.
    named = net.vm_of_mac(client_id[1:].hex(":")) if client_id[0] == ETHERNET else None
    if named is not None:
        return named.id if named.id != vm.id else f"another NIC of {vm.id}"
    its_other = any(held.client_id == client_id and held.mac != nic for held in net.held_by(vm.id))
    known = net.vms_known_as(client_id, net.vrf_of_mac(nic), 4) - {vm.id}
    of_another_vm = min((other for other in known if net.vms[other].home == vm.home), default="")
    return of_another_vm or (f"another NIC of {vm.id}" if its_other else "")

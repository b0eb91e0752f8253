"""What a renewal asks for: of a lease, the order that tells an agent all it has to send."""

import secrets
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from retinue.controller.errors import RequestError
from retinue.core.model import NIC, VM, Assignment, Network, VMPort
from retinue.core.model.families import is_leased
from retinue.core.packets import build_options
from retinue.core.packets.dhcp6_options import ADDRESS_BITS, build_options6
from retinue.protocol.errors import ErrorCode
from retinue.protocol.renewals import Order, RenewalOrder, RenewalOrder6


class RenewalError(RequestError):
    """The renewal cannot be; the message says why and what to do."""

    code = ErrorCode.NOT_RENEWABLE


def new_order(
    net: Network,
    vm: VM,
    nic: NIC,
    lease: Assignment | None,
    server: str,
    now: float,
    fresh_xid: Callable[[int], int],
) -> Order:
    """To have a NIC's lease renewed by the agent of `server`, which the order's fields tell all of.

    `fresh_xid` gives a transaction id of so many bits that no other renewal has. Raises RenewalError.
    """
    if server not in (vm.server, *vm.also):
        raise RenewalError(f"VM {vm.id} may not be found at {server}, but at {vm.server}")
    peer = net.peer_at(server)
    if peer is not None:
        raise RenewalError(f"VM {vm.id} is in domain {peer.id}; have its lease renewed there")
    edge = net.servers[server].edge
    port = net.port_of(nic, edge)
    if port is None:
        raise RenewalError(f"switch {edge} of {server} has no port of VM {vm.id}")
    if lease is None:
        raise RenewalError(f"VM {vm.id} has no lease to renew")
    if isinstance(lease.ip, IPv6Address):
        return _order6(net, vm, nic, lease, lease.ip, server, edge, port, now, fresh_xid(24))
    granted_by = lease.server or _only_server(net)
    if granted_by is None:
        raise RenewalError(f"it is not known which DHCP server granted {lease.ip} to VM {vm.id}")
    xid = fresh_xid(32)
    return RenewalOrder(
        # Never the same again, also after a restart: an agent may still speak of an earlier one.
        id=f"renewal-{xid:08x}",
        vm=vm.id,
        server=server,
        switch=edge,
        port=port.name,
        port_number=port.number,
        ip=lease.ip,
        mac=nic.mac,
        vlan=net.vlan_in_trunk(nic),
        xid=xid,
        dhcp_server=granted_by,
        client_id=lease.client_id.hex(),
        next_hop=net.gateway_mac,
        ordered_at=now,
        options=build_options(lease.options)[:-1].hex(),
    )


def _order6(
    net: Network,
    vm: VM,
    nic: NIC,
    lease: Assignment,
    ip: IPv6Address,
    server: str,
    edge: str,
    port: VMPort,
    now: float,
    xid: int,
) -> RenewalOrder6:
    known = lease.lease6
    assert known is not None
    return RenewalOrder6(
        id=f"renewal-{secrets.randbits(32):08x}",
        vm=vm.id,
        server=server,
        switch=edge,
        port=port.name,
        port_number=port.number,
        ip=ip,
        mac=nic.mac,
        vlan=net.vlan_in_trunk(nic),
        xid=xid,
        server_duid=known.server.hex(),
        iaid=known.iaid,
        ia=known.ia,
        prefix_length=ADDRESS_BITS if lease.prefix is None else lease.prefix.prefixlen,
        client_id=lease.client_id.hex(),
        ordered_at=now,
        options=build_options6(known.options).hex(),
    )


def _only_server(net: Network) -> IPv4Address | None:
    servers = net.dhcp_servers()
    address = servers[0].address if len(servers) == 1 else None
    return address if is_leased(address) else None

"""Entries of an edge switch for IPv6: what a VM may send from where, and the guard of neighbour discovery.

What a VM sends from an address that is bound to it comes to the table ND. There its neighbour discovery ends
(RFC 4861, 6620): a solicitation that names the NIC's own MAC comes to the table ANSWER, one that names none
is the controller's to answer; an advertisement that names an own address and the own MAC says nothing new,
and is dropped; anything else is reported. A router's messages never come from a VM (RFC 6105). What is no
neighbour discovery goes on.

The link-local address that follows from a NIC's MAC is bound to it. From there goes nothing but neighbour
discovery and a ping of the gateway, and nothing to another's: what a link is here ends at the VM's port.

A network without an IPv6 subnet has none of these entries. With one there are, at each edge, those of
`switch_flows`, for each NIC those of `nic_flows`, and for each address those of `address_flows`.
"""

from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network

from retinue.core.model import NIC, VM, Mac
from retinue.core.model.families import dhcp6_subnets, in_use
from retinue.core.model.link_local import LINK_LOCAL, MULTICAST, UNSPECIFIED, is_link_local, link_local
from retinue.core.model.network import Network, Owner
from retinue.core.packets import HOP_LIMIT, ICMPV6, EtherType, NDType
from retinue.core.packets.ipv4 import UDP
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import CONTROLLER, Field, FieldValue, Flow, Match, match
from retinue.core.pipeline.matches import (
    CLIENT_PORT6,
    NO_TAG,
    SERVER_PORT6,
    dhcp6_match,
    icmpv6_match,
    ip_match,
)
from retinue.core.pipeline.meters import VMMeter
from retinue.core.pipeline.priorities import TABLE_MISS, EdgeAdmit, Forward, Nd
from retinue.core.pipeline.responders import nd_answers
from retinue.core.pipeline.tables import Table

NO_OPTION = 0
"""What a switch sees as link-layer address in a message that has none."""
FIRST_PART, NO_TYPE = 1, 0
"""`ip_frag` of the first part of a fragmented packet; the ICMPv6 type of one whose header is not in it."""
NO_PORT = 0
"""The UDP ports, to a switch, of a packet whose UDP header is not in it."""
UNREAD = 0
"""The protocol, to a switch, of a packet whose extension headers are malformed or cut off."""
UNREAD_HEADERS = (135, 139, 140, 253, 254)
"""Extension headers behind which Open vSwitch does not look: mobility, HIP, Shim6, two for experiments. "An
unrecognized Next Header value could possibly identify an IPv6 Extension Header, and thus be leveraged to
conceal" a server's, or router's, message (RFC 7610, 4); so by default what has one is dropped."""

_FROM_ROUTERS = (NDType.ROUTER_ADVERTISEMENT, NDType.REDIRECT)
_FROM_HOSTS = (
    NDType.ROUTER_SOLICITATION,
    NDType.NEIGHBOUR_SOLICITATION,
    NDType.NEIGHBOUR_ADVERTISEMENT,
)


def switch_flows(net: Network, owner: Owner) -> Iterator[Flow]:
    """What an edge switch holds whatever VMs it has."""
    if not in_use(net, 6):
        return
    mark, quiet = cookie(Reason.FORWARD, owner), cookie(Reason.QUIET, owner)
    yield Flow(Table.ND, TABLE_MISS, (), cookie=mark)
    any_ipv6 = match(eth_type=EtherType.IPV6)
    yield Flow(Table.ND, Nd.OTHER, any_ipv6, goto=Table.FORWARD, cookie=mark)
    for header in UNREAD_HEADERS:
        hidden = match(eth_type=EtherType.IPV6, ip_proto=header)
        yield Flow(Table.ND, Nd.HIDDEN, hidden, cookie=quiet)
    yield from nd_answers.for_all_vrfs(owner)
    yield Flow(Table.FORWARD, Forward.LINK_SCOPE, ip_match(src=LINK_LOCAL), cookie=quiet)
    yield Flow(Table.FORWARD, Forward.LINK_SCOPE, ip_match(dst=LINK_LOCAL), cookie=quiet)


def nic_flows(net: Network, vm: VM, nic: NIC, port: int) -> Iterator[Flow]:
    """What holds of a NIC whatever addresses it has that are led to."""
    if not in_use(net, 6):
        return
    owner, mac = Owner("vm", vm.id), nic.mac
    for held in net.assignments_of(vm, nic):
        if isinstance(held.ip, IPv6Address) and is_link_local(held.ip):
            yield from address_flows(owner, mac, port, held.ip, held.lease_end)
    forward, quiet = cookie(Reason.FORWARD, owner), cookie(Reason.QUIET, owner)
    own = link_local(mac)
    yield Flow(Table.ADMIT, EdgeAdmit.BOUND, _from(own, mac, port), goto=Table.ND, cookie=forward)
    yield from _own_advertisements(owner, mac, port, own, None)
    for kind in (NDType.NEIGHBOUR_SOLICITATION, NDType.ROUTER_SOLICITATION):
        # A duplicate check (RFC 4862, 5.4), or a host that does not wait for its end.
        early = icmpv6_match(kind, ipv6_src=UNSPECIFIED, in_port=port, vlan_vid=NO_TAG, eth_src=mac)
        yield Flow(Table.ADMIT, EdgeAdmit.BOUND, early, goto=Table.ND, cookie=forward)
    # Nobody asks who has joined which group (MLD, also of RFC 3590), since none is forwarded.
    joins = ip_match(src=UNSPECIFIED, dst=MULTICAST, in_port=port, eth_src=mac)
    yield Flow(Table.ADMIT, EdgeAdmit.UNSPECIFIED, joins, cookie=quiet)
    limit = VMMeter.ARP.id(port)
    for asked in (*_solicitations(mac, port), *_as_virtual_routers(net, vm, nic, port)):
        # Who names a MAC may be answered by the switch, which needs the option that it is named in.
        if (Field.IPV6_ND_SLL, NO_OPTION, None) in asked or _kind(asked) != NDType.NEIGHBOUR_SOLICITATION:
            ask = cookie(Reason.VM_ND, owner)
            yield Flow(Table.ND, Nd.HONEST, asked, (CONTROLLER,), meter=limit, cookie=ask)
        else:
            yield Flow(Table.ND, Nd.HONEST, asked, goto=Table.ANSWER, meter=limit, cookie=forward)
    yield nd_answers.vm_questions(owner, port)
    yield from _dhcp6(net, vm, nic, port)
    for table, priority, reason, spoofed in _spoofed(mac, port):
        yield Flow(
            table, priority, spoofed, (CONTROLLER,),
            meter=VMMeter.SPOOFING.id(port), cookie=cookie(reason, owner),
        )  # fmt: skip


def _dhcp6(net: Network, vm: VM, nic: NIC, port: int) -> Iterator[Flow]:
    """What a client says to DHCPv6 servers goes to the controller, where a subnet has addresses by DHCPv6;
    nothing to their port goes past it. Of another domain's guest the subnets are there, and it may ask."""
    owner, to_servers = Owner("vm", vm.id), dhcp6_match(dport=SERVER_PORT6, in_port=port)
    if not vm.home and not dhcp6_subnets(net, nic.vnet):
        quiet = cookie(Reason.QUIET, owner)
        yield Flow(Table.ADMIT, EdgeAdmit.ROGUE_DHCP_QUESTION, to_servers, cookie=quiet)
        return
    asked = dhcp6_match(
        sport=CLIENT_PORT6, dport=SERVER_PORT6, in_port=port, vlan_vid=NO_TAG, eth_src=nic.mac
    )
    yield Flow(
        Table.ADMIT, EdgeAdmit.CLIENT_DHCP, asked, (CONTROLLER,),
        meter=VMMeter.DHCP.id(port), cookie=cookie(Reason.DHCP6_CLIENT, owner),
    )  # fmt: skip
    yield Flow(
        Table.ADMIT, EdgeAdmit.ROGUE_DHCP_QUESTION, to_servers, (CONTROLLER,),
        meter=VMMeter.SPOOFING.id(port), cookie=cookie(Reason.ROGUE_DHCP, owner),
    )  # fmt: skip


def announcements(net: Network, vm: VM, nic: NIC, port: int) -> Iterator[Flow]:
    """What a NIC says about an address that it may take, and has not: the controller alone is told.

    It may say so from that address; under its own MAC also from any other that is bound, or link-local.
    """
    told, limit = cookie(Reason.VM_ND, Owner("vm", vm.id)), VMMeter.ARP.id(port)
    has = {assignment.ip for assignment in net.assignments_of(vm, nic)}
    may = [one.ip for one in nic.allowed if one.ip.version == 6 and one.ip not in has]
    for ip in may if in_use(net, 6) else ():
        mac = nic.speaks_as(ip)
        from_it: dict[str, FieldValue] = {
            "in_port": port, "vlan_vid": NO_TAG, "eth_src": mac, "ipv6_src": ip,
        }  # fmt: skip
        about_it: dict[str, FieldValue] = {"ip_ttl": HOP_LIMIT, "ipv6_nd_target": ip, "ipv6_nd_tll": mac}
        announced = icmpv6_match(NDType.NEIGHBOUR_ADVERTISEMENT, **from_it, **about_it)
        asks = icmpv6_match(NDType.NEIGHBOUR_SOLICITATION, **from_it, ip_ttl=HOP_LIMIT, ipv6_nd_sll=mac)
        for said in (announced, asks):
            yield Flow(Table.ADMIT, EdgeAdmit.BOUND, said, (CONTROLLER,), meter=limit, cookie=told)
        if mac == nic.mac:
            from_another = icmpv6_match(NDType.NEIGHBOUR_ADVERTISEMENT, in_port=port, **about_it)
            yield Flow(Table.ND, Nd.HONEST, from_another, (CONTROLLER,), meter=limit, cookie=told)


def address_flows(
    owner: Owner,
    mac: Mac,
    port: int,
    ip: IPv6Address | IPv6Network,
    until: float | None,
    rate: int | None = None,
) -> Iterator[Flow]:
    """An address, or prefix, from which the VM may send, until `until`, and which it may advertise.

    `rate`: the meter of all that it sends.
    """
    mark = cookie(Reason.FORWARD, owner)
    bound = _from(ip, mac, port)
    yield Flow(Table.ADMIT, EdgeAdmit.BOUND, bound, goto=Table.ND, meter=rate, cookie=mark, expires_at=until)
    yield from _own_advertisements(owner, mac, port, ip, until)


def _from(ip: IPv6Address | IPv6Network, mac: Mac, port: int) -> Match:
    return ip_match(src=ip, in_port=port, vlan_vid=NO_TAG, eth_src=mac)


def _kind(asked: Match) -> int:
    return next(value for field, value, _ in asked if field is Field.ICMPV6_TYPE)


def _solicitations(mac: Mac, port: int) -> Iterator[Match]:
    """Questions that say no more of the asker than is so. The option of a router solicitation the controller
    checks: a switch does not see it."""
    terms = {"in_port": port, "ip_ttl": HOP_LIMIT}
    for link_layer in (mac, NO_OPTION):
        yield icmpv6_match(NDType.NEIGHBOUR_SOLICITATION, ipv6_nd_sll=link_layer, **terms)
    yield icmpv6_match(NDType.ROUTER_SOLICITATION, **terms)


def _as_virtual_routers(net: Network, vm: VM, nic: NIC, port: int) -> Iterator[Match]:
    """Questions under a MAC that goes with addresses that it has taken: from these alone (see ADMIT)."""
    held = (a.ip for a in net.assignments_of(vm, nic) if a.ip.version == 6)
    for mac in sorted({nic.speaks_as(ip) for ip in held} - {nic.mac}):
        yield icmpv6_match(
            NDType.NEIGHBOUR_SOLICITATION, in_port=port, eth_src=mac, ip_ttl=HOP_LIMIT, ipv6_nd_sll=mac
        )


def _own_advertisements(
    owner: Owner, mac: Mac, port: int, ip: IPv6Address | IPv6Network, until: float | None
) -> Iterator[Flow]:
    quiet = cookie(Reason.QUIET, owner)
    for link_layer in (mac, NO_OPTION):
        own = icmpv6_match(
            NDType.NEIGHBOUR_ADVERTISEMENT,
            in_port=port, ip_ttl=HOP_LIMIT, ipv6_nd_target=ip, ipv6_nd_tll=link_layer,
        )  # fmt: skip
        yield Flow(Table.ND, Nd.HONEST, own, cookie=quiet, expires_at=until)


def dhcp6_answers(port: int) -> Iterator[Match]:
    """What a DHCPv6 server would say, from a port that has none."""
    yield dhcp6_match(dport=CLIENT_PORT6, in_port=port)
    # RFC 7610, 5: "if the packet is a first-fragment that fails to include the entire IPv6 header chain", it
    # is dropped: its ports, by which a server's message is known, come later.
    yield match(
        eth_type=EtherType.IPV6, ip_proto=UDP, ip_frag=FIRST_PART, udp_src=NO_PORT, udp_dst=NO_PORT,
        in_port=port,
    )  # fmt: skip


def _spoofed(mac: Mac, port: int) -> Iterator[tuple[Table, int, Reason, Match]]:
    """What a VM's port may not send, and as what it is reported."""
    here = {"in_port": port, "eth_type": EtherType.IPV6}
    for kind in _FROM_ROUTERS:
        yield Table.ADMIT, EdgeAdmit.FORGED_ND, Reason.SPOOFED_ND, icmpv6_match(kind, in_port=port)
    # What a switch cannot read, a host might (RFC 7113).
    yield Table.ADMIT, EdgeAdmit.FORGED_ND, Reason.SPOOFED_ND, match(ip_proto=UNREAD, **here)
    headless = match(ip_proto=ICMPV6, ip_frag=FIRST_PART, icmpv6_type=NO_TYPE, **here)
    yield Table.ADMIT, EdgeAdmit.FORGED_ND, Reason.SPOOFED_ND, headless
    for answer in dhcp6_answers(port):
        yield Table.ADMIT, EdgeAdmit.ROGUE_DHCP_ANSWER, Reason.ROGUE_DHCP, answer
    for kind in _FROM_HOSTS:
        unbound = icmpv6_match(kind, in_port=port, eth_src=mac)
        yield Table.ADMIT, EdgeAdmit.SPOOFED_ND, Reason.SPOOFED_ND, unbound
        yield Table.ND, Nd.SPOOFED, Reason.SPOOFED_ND, icmpv6_match(kind, in_port=port)
    yield Table.ADMIT, EdgeAdmit.SPOOFED, Reason.SPOOFED_IP, match(eth_src=mac, **here)

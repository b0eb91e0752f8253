"""As whom a router or DHCP server may send, at its leaf's port, into the fabric (RFC 2827)."""

from collections.abc import Iterator
from ipaddress import IPv6Address

from retinue.core.model import Prefix, Server, Service
from retinue.core.model.families import forwarded_subnets, in_use
from retinue.core.model.network import Network, Owner
from retinue.core.packets import NDType
from retinue.core.packets.ipv4 import UDP
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import CONTROLLER, Flow, Match, match
from retinue.core.pipeline.matches import (
    CLIENT_PORT,
    NO_TAG,
    SERVER_PORT,
    SERVER_PORT6,
    dhcp6_match,
    dhcp_match,
    icmpv6_match,
    ip_match,
    ip_types,
)
from retinue.core.pipeline.meters import LeafMeter
from retinue.core.pipeline.priorities import LeafAdmit
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay.fabric_storage import forwarder_flows


def service_sources(net: Network, server: Server, port: int) -> Iterator[Flow]:
    """As whom a router or DHCP server may send, at its port, into the fabric (RFC 2827).

    Either as itself. A router also as anybody outside: a router forwards those, our own never are. A DHCP
    server's answers go to the controller instead (TRUSTED_DHCP). Where a server also runs VMs they share
    its port, and its edge switch has seen to it.
    """
    owner, gateway_mac = Owner("server", server.id), net.gateway_mac
    if Service.DHCP in server.services:
        answers = dhcp_match(sport=SERVER_PORT, in_port=port, vlan_vid=NO_TAG)
        yield Flow(
            Table.ADMIT, LeafAdmit.TRUSTED_DHCP, answers, (CONTROLLER,),
            meter=LeafMeter.DHCP, cookie=cookie(Reason.DHCP_SERVER, owner),
        )  # fmt: skip
    if Service.DHCP in server.services and in_use(net, 6):
        # To the relay, which the gateway is: a server answers no client by itself.
        relayed = dhcp6_match(sport=SERVER_PORT6, dport=SERVER_PORT6, in_port=port, vlan_vid=NO_TAG)
        yield Flow(
            Table.ADMIT, LeafAdmit.TRUSTED_DHCP, relayed, (CONTROLLER,),
            meter=LeafMeter.DHCP, cookie=cookie(Reason.DHCP6_SERVER, owner),
        )  # fmt: skip
    if not server.services or server.edge:
        return
    if Service.FORWARDER in server.services:
        yield from forwarder_flows(server, port)
    if server.address is not None and in_use(net, server.address.version):
        as_itself = ip_match(src=server.address, in_port=port, vlan_vid=NO_TAG, eth_dst=gateway_mac)
        if Service.DHCP in server.services:
            # Trust is in the place, not in the port number: a boot server answers from port 4011.
            to_client = ip_match(
                src=server.address, in_port=port, vlan_vid=NO_TAG, eth_dst=gateway_mac,
                ip_proto=UDP, udp_dst=CLIENT_PORT,
            )  # fmt: skip
            yield Flow(
                Table.ADMIT, LeafAdmit.BOOT_SERVER, to_client,
                goto=Table.ROUTE, cookie=cookie(Reason.FORWARD, owner),
            )  # fmt: skip
        yield Flow(
            Table.ADMIT, LeafAdmit.SERVICE_ITSELF, as_itself,
            goto=Table.ROUTE, cookie=cookie(Reason.FORWARD, owner),
        )  # fmt: skip
    here = _here(server, port)
    spoofed = [match(**here, eth_type=kind, eth_dst=gateway_mac) for kind in ip_types(net)]
    if _is_outside(server):
        subnets = forwarded_subnets(net.subnets_in())
        spoofed = [_from_ours(net, server, subnet.prefix, port) for subnet in subnets]
        if isinstance(server.address, IPv6Address) and in_use(net, 6):
            # It answers when it is asked whether it is there; of IPv4 the controller has all ARP.
            answers = icmpv6_match(NDType.NEIGHBOUR_ADVERTISEMENT, in_port=port, vlan_vid=NO_TAG)
            yield Flow(
                Table.ADMIT, LeafAdmit.ND, answers, (CONTROLLER,),
                meter=LeafMeter.ARP, cookie=cookie(Reason.SERVER_ND, owner),
            )  # fmt: skip
    # The gateway's MACs of groups of servers are none of theirs.
    groups, kinds = net.gateway_groups.values(), ip_types(net)
    spoofed += [match(in_port=port, eth_type=kind, eth_dst=one.mac) for one in groups for kind in kinds]
    for pretence in spoofed:
        yield _reported(pretence, owner)


def spoofed_prefix(net: Network, server: Server, port: int, prefix: Prefix, owner: Owner) -> Iterator[Flow]:
    """Nor may a router send as anybody of a prefix that is routed to a NIC: the entry is the prefix's."""
    if not server.edge and _is_outside(server):
        yield _reported(_from_ours(net, server, prefix, port), owner)


def _is_outside(server: Server) -> bool:
    """What comes from there, without a tag, is from outside, into the default VRF."""
    is_here = server.address is not None or bool(server.routes) or not server.subinterfaces
    return Service.ROUTER in server.services and is_here


def _here(server: Server, port: int) -> dict[str, int | str]:
    """What has the tag of a subinterface is judged as of its VRF."""
    return {"in_port": port, "vlan_vid": NO_TAG} if server.subinterfaces else {"in_port": port}


def _from_ours(net: Network, server: Server, prefix: Prefix, port: int) -> Match:
    return ip_match(src=prefix, dst=None, **_here(server, port), eth_dst=net.gateway_mac)


def _reported(pretence: Match, owner: Owner) -> Flow:
    return Flow(
        Table.ADMIT, LeafAdmit.SERVICE_SPOOFED, pretence, (CONTROLLER,),
        meter=LeafMeter.SPOOFING, cookie=cookie(Reason.SPOOFED_IP, owner),
    )  # fmt: skip

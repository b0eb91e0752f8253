"""ICMP echo: switches answer pings of a gateway, which operators ping first of all."""

from collections.abc import Iterator
from ipaddress import IPv6Address

from retinue.core.model import DEFAULT_VRF, IP, Mac
from retinue.core.model.families import forwarded_subnets, in_use
from retinue.core.model.link_local import link_local
from retinue.core.model.network import Network, Owner
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import Action, Field, Flow, Output, PortNo, RegMove, set_field
from retinue.core.pipeline.matches import icmpv6_match, ip_match
from retinue.core.pipeline.tables import Table

ICMP = 1
ECHO_REQUEST, ECHO_REPLY = 8, 0
ECHO_REQUEST6, ECHO_REPLY6 = 128, 129


def answer(address: IP, with_mac: Mac) -> tuple[Action, ...]:
    """Turn an ICMP echo request to `address` into its reply, and send it back where it came from."""
    if isinstance(address, IPv6Address):
        return (
            RegMove(Field.ETH_SRC, Field.ETH_DST),
            set_field(Field.ETH_SRC, with_mac),
            RegMove(Field.IPV6_SRC, Field.IPV6_DST),
            set_field(Field.IPV6_SRC, address),
            set_field(Field.ICMPV6_TYPE, ECHO_REPLY6),
            Output(PortNo.IN_PORT),
        )
    return (
        RegMove(Field.ETH_SRC, Field.ETH_DST),
        set_field(Field.ETH_SRC, with_mac),
        RegMove(Field.IPV4_SRC, Field.IPV4_DST),
        set_field(Field.IPV4_SRC, address),
        set_field(Field.ICMPV4_TYPE, ECHO_REPLY),
        Output(PortNo.IN_PORT),
    )


def gateway_flows(
    net: Network, owner: Owner, table: Table, priority: int, gateway_mac: Mac, vrf: str = DEFAULT_VRF
) -> Iterator[Flow]:
    """A switch answers for the gateway of every subnet of a VRF, in the table where packets to it pass.

    Where there is IPv6, for the gateway's link-local address, too. Fragments are not answered: the first
    would come back alone, for only it has an ICMP header.
    """
    gateways = [subnet.gateway for subnet in forwarded_subnets(net.subnets_in(vrf))]
    if in_use(net, 6):
        gateways.append(link_local(net.gateway_mac))
    for gateway in gateways:
        if gateway.version == 4:
            request = ip_match(dst=gateway, ip_proto=ICMP, icmpv4_type=ECHO_REQUEST, ip_frag=0)
        else:
            request = icmpv6_match(ECHO_REQUEST6, ipv6_dst=gateway, ip_frag=0)
        reply = answer(gateway, gateway_mac)
        yield Flow(table, priority, request, reply, cookie=cookie(Reason.FORWARD, owner))

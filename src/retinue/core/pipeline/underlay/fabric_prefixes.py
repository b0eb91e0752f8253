"""What leaves, spines and cores hold about a prefix that is routed to a NIC, wherever the NIC is.

The ways to the NIC are its VM's. These entries are there for the rest: an address of the prefix takes no way
out of the data centre, its packets' size is looked at where its vnet takes smaller ones, and no router may
send as one of it. They are the prefix's own (`Owner.of_prefix`), so that one that comes or goes is computed
alone, however many there are.
"""

from collections.abc import Callable, Iterator

from retinue.core.model import Prefix, Role, Service
from retinue.core.model.families import in_use
from retinue.core.model.links import leading_up
from retinue.core.model.network import Network, Owner
from retinue.core.model.packet_sizes import narrow_way
from retinue.core.model.vrfs import DEFAULT_VRF
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import Action, Flow, FlowsBySwitch
from retinue.core.pipeline.responders import too_big
from retinue.core.pipeline.underlay import subinterfaces
from retinue.core.pipeline.underlay.fabric_services import spoofed_prefix
from retinue.core.pipeline.underlay.fabric_switches import inside

ROLES = (Role.LEAF, Role.SPINE, Role.CORE)


def prefix_flows(
    net: Network,
    prefix: Prefix,
    vrf: str,
    up: Callable[[str], tuple[Action, ...]],
    attachment: Callable[[str], tuple[str, int] | None],
) -> FlowsBySwitch:
    """`up`: what a switch with links up does with what goes there; `attachment`: a server's leaf and port."""
    if not in_use(net, prefix.version):
        return {}
    owner, tag = Owner.of_prefix(prefix, vrf), net.vrfs[vrf].tag
    mark, with_ways_up, mtu = (
        cookie(Reason.FORWARD, owner),
        leading_up(net, net.links),
        narrow_way(net, prefix, vrf),
    )
    found: FlowsBySwitch = {}
    for switch in (one.id for role in ROLES for one in net.with_role(role)):
        found[switch] = list(inside(prefix, tag, up(switch) if switch in with_ways_up else (), mark))
    if mtu is not None:
        for leaf in net.with_role(Role.LEAF):
            found[leaf.id].extend(too_big.looked_at(prefix, mtu, net.vrfs[vrf], mark))
    for leaf_id, spoofed in _spoofed(net, prefix, vrf, owner, attachment):
        found[leaf_id].append(spoofed)
    return found


def _spoofed(
    net: Network,
    prefix: Prefix,
    vrf: str,
    owner: Owner,
    attachment: Callable[[str], tuple[str, int] | None],
) -> Iterator[tuple[str, Flow]]:
    """At each router's port, with the leaf."""
    for router in net.servers_with(Service.ROUTER):
        at = attachment(router.id)
        if at is None:
            continue
        leaf, port = at
        if vrf == DEFAULT_VRF:
            yield from ((leaf, flow) for flow in spoofed_prefix(net, router, port, prefix, owner))
        of_vrf = subinterfaces.spoofed_prefix(net, router, port, prefix, vrf, owner)
        yield from ((leaf, flow) for flow in of_vrf)

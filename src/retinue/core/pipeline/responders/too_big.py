"""Path MTU: a packet that is larger than where it goes takes is the controller's to answer, as the gateway.

    IPv4, not to be fragmented     "fragmentation needed", with the size that does (RFC 1191, 4)
    IPv4 else                      fragmented (RFC 1812, 4.2.2.7)
    IPv6                           "packet too big", with the size that does (RFC 4443, 3.2)

The leaf where a packet comes in looks at its size, before all else and once: it notes beside the frame that
it did, and what it saw (Open vSwitch's check_pkt_larger), and looks the frame up again. What is not too large
goes on as if nobody had looked. A network whose vnets all take the same has none of these entries.
"""

from collections.abc import Iterator

from retinue.core.model import Prefix
from retinue.core.model.network import Network, Owner
from retinue.core.model.packet_sizes import is_narrow_somewhere, narrow_subnets
from retinue.core.model.vrfs import Vrf
from retinue.core.pipeline import vrfs
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import CONTROLLER, CheckLarger, Field, Flow, Resubmit, SetField, match
from retinue.core.pipeline.matches import ip_match, ip_types
from retinue.core.pipeline.meters import LeafMeter
from retinue.core.pipeline.priorities import Route
from retinue.core.pipeline.tables import Table

ETHERNET, TAG = 14, 4
"""Bytes of a frame before its packet, and of a VRF's tag."""
LOOKED_AT, LARGER_BIT = 1, 1
"""In METADATA: the value that says that the size was looked at; the bit that says that it is too large."""
LARGER = LOOKED_AT | 1 << LARGER_BIT


def looked_at(prefix: Prefix, mtu: int, vrf: Vrf, mark: int) -> Iterator[Flow]:
    """On a leaf: the size of what goes to this prefix is looked at."""
    before = ETHERNET + (TAG if vrf.tag else 0)
    looks = Flow(
        Table.ROUTE, Route.SIZE + prefix.prefixlen, ip_match(dst=prefix, metadata=0),
        (
            SetField(Field.METADATA, LOOKED_AT),
            CheckLarger(before + mtu, Field.METADATA, LARGER_BIT),
            Resubmit(Table.ROUTE),
        ),
        cookie=mark,
    )  # fmt: skip
    return vrfs.on_fabric([looks], vrf.tag)


def leaf_flows(net: Network, owner: Owner) -> Iterator[Flow]:
    """Needs LeafMeter.TOO_BIG."""
    if not is_narrow_somewhere(net):
        return
    mark = cookie(Reason.FORWARD, owner)
    for vrf in net.vrfs.values():
        for prefix, mtu in narrow_subnets(net, vrf.id):
            yield from looked_at(prefix, mtu, vrf, mark)
    told = [
        Flow(
            Table.ROUTE, Route.TOO_BIG, match(eth_type=kind, metadata=LARGER), (CONTROLLER,),
            meter=LeafMeter.TOO_BIG, cookie=cookie(Reason.TOO_BIG, owner),
        )
        for kind in ip_types(net)
    ]  # fmt: skip
    yield from told
    if net.has_vrfs():
        yield from vrfs.in_band(told)

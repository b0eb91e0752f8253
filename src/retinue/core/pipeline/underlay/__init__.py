"""The underlay: how what one server sends reaches another. Edges know VMs, the underlay knows servers."""

from retinue.core.model.network import Network
from retinue.core.pipeline.underlay.base import Near, Underlay
from retinue.core.pipeline.underlay.fabric import LeafSpine
from retinue.core.pipeline.underlay.mac_spines import MacSpines
from retinue.core.pipeline.underlay.routers import PlainRouters
from retinue.core.pipeline.underlay.vxlan import VxlanMesh


def underlay_of(net: Network) -> Underlay:
    """The underlay of a network: spines of ours join its leaves, which route or know MACs alone, or tunnels
    do, or its leaves are not ours. Keeps nothing; ask whenever needed."""
    if net.over_routers:
        return PlainRouters(net)
    if net.spines_by_mac:
        return MacSpines(net)
    return VxlanMesh(net) if net.over_ip else LeafSpine(net)


__all__ = ["Near", "Underlay", "underlay_of"]

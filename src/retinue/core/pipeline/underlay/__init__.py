"""The underlay: how what one server sends reaches another. Edges know VMs, the underlay knows servers."""

from retinue.core.model.network import Network
from retinue.core.pipeline.underlay.base import Near, Underlay
from retinue.core.pipeline.underlay.fabric import LeafSpine


def underlay_of(net: Network) -> Underlay:
    """The underlay of a network: every network is a leaf-spine fabric. Keeps nothing; ask whenever needed."""
    return LeafSpine(net)


__all__ = ["Near", "Underlay", "underlay_of"]

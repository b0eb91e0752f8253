"""Where a frame has come in that a server, or a router, has sent at a leaf."""

from retinue.core.model import Network, PortRef
from retinue.core.pipeline.underlay import underlay_of


def leaf_port(net: Network, switch: str, port: int) -> PortRef | None:
    """The leaf's port; None for one that is not known, and for one to other switches: no server is there."""
    name = net.port_name(switch, port)
    if name is None or port in underlay_of(net).trunk_ports(switch):
        return None
    return PortRef(switch, name)

"""Where a frame has come in that a server, or a router, has sent at a leaf, and under whose MAC."""

from retinue.controller.context import Context
from retinue.core.model import Mac, Network, PortRef
from retinue.core.pipeline.underlay import underlay_of
from retinue.protocol.events import EventType


def leaf_port(net: Network, switch: str, port: int) -> PortRef | None:
    """The leaf's port; None for one that is not known, and for one to other switches: no server is there."""
    name = net.port_name(switch, port)
    if name is None or port in underlay_of(net).trunk_ports(switch):
        return None
    return PortRef(switch, name)


def look_for_gateways_mac(context: Context, here: PortRef, *macs: Mac) -> None:
    """Tell of a host that speaks under a MAC of the gateway's. No registered one can; and what is sent to it
    never comes there, since switches take it for the gateway's."""
    for mac in set(macs).intersection(context.net.gateway_macs):
        source = (here.switch, here.port)
        context.events.tell(source, EventType.GATEWAY_CONFLICT, mac=mac, location=str(here))

"""As whom the fabric, to IP one router, speaks to the sender of a packet that it does not pass on."""

from retinue.core.model import DEFAULT_VRF, IP
from retinue.core.model.network import Network


def speaker(net: Network, sender: IP, destination: IP, vrf: str = DEFAULT_VRF) -> IP | None:
    """The gateway by which the sender of such a packet hears of it; None: it is not answered.

    That is the gateway in the sender's subnet, as whom it knows the router; for an address of a prefix that
    is routed to a NIC the gateway of the NIC's own addresses, and nobody for one that servers alone have. To
    a sender outside it is the gateway where the packet was to go, which is an address of the router's, too
    (RFC 1812, 4.3.2.4).
    """
    subnet = net.subnet_of(sender, vrf)
    if subnet is not None:
        return subnet.gateway
    if (routed := net.routed_to(sender, vrf)) is not None:
        prefix, name = routed
        if not name:
            return None
        nic = net.nic_of_prefix(prefix, name, vrf)
        near = [] if nic is None else net.subnets_of(net.assignments_of(net.vms[name], nic))
        found = next((s for s in near if s.prefix.version == sender.version), None)
        return None if found is None else found.gateway
    there = net.subnet_of(destination, vrf)
    return None if there is None else there.gateway

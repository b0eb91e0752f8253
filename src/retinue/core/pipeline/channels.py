"""The network's part in the channel of a migration: what two servers say to each other by TCP while a VM goes
from one to the other passes a meter at each one's edge, so that memory and disks leave guests their share.

It is there for as long as a VM is at both, and follows from where VMs are: nobody makes it or takes it down.
What goes by another network than ours, such as one for management, never comes by here.
"""

from collections.abc import Iterator

from retinue.core.model import VM, Server
from retinue.core.model.network import Network, Owner
from retinue.core.packets.ipv4 import TCP
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import Flow, Meter, PortNo
from retinue.core.pipeline.matches import NO_TAG, ip_match
from retinue.core.pipeline.meters import channel_meter
from retinue.core.pipeline.priorities import EdgeAdmit
from retinue.core.pipeline.tables import Table


def server_flows(net: Network, server: Server) -> Iterator[Flow | Meter]:
    """At a server's edge: of what the server sends, that to servers with which it has a VM in common."""
    if not net.channel_kbps or server.address is None:
        return
    others = [net.servers[name] for name in sorted(_others(net, server))]
    reached = [other for other in others if _is_reached(net, server, other)]
    if not reached:
        return
    meter, mark = channel_meter(net.channel_kbps), cookie(Reason.FORWARD, Owner("server", server.id))
    yield meter
    for other in reached:
        sent = ip_match(
            src=server.address, dst=other.address, in_port=PortNo.LOCAL, vlan_vid=NO_TAG,
            eth_src=server.mac, ip_proto=TCP,
        )  # fmt: skip
        yield Flow(Table.ADMIT, EdgeAdmit.CHANNEL, sent, goto=Table.FORWARD, meter=meter.id, cookie=mark)


def _others(net: Network, server: Server) -> set[str]:
    vms: list[VM] = [net.vms[vm] for vm in net.vms_on(server.id)]
    return {other for vm in vms for other in vm.locations} - {server.id}


def _is_reached(net: Network, server: Server, other: Server) -> bool:
    """It has an address of the same family, and runs VMs: a gateway's are in another domain."""
    address, same = other.address, server.address
    if address is None or same is None or address.version != same.version:
        return False
    return bool(other.edge) and net.peer_at(other.id) is None and net.peer_at(server.id) is None

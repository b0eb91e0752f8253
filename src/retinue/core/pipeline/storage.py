"""Storage over the fabric (FCoE), on edges: who may send it, and how it gets there and back.

It is forwarded by MAC, end to end: the fabric-provided MAC of a port has its FC_ID in it, and the forwarder's
is that of its server. So nothing is rewritten on the way. What is about logins (FIP) goes through the
controller.

During a migration both places may send, so that what the VM asks last at its source and first at its target
gets out; what the forwarder sends comes to one place, the one where the VM is delivered. It is never copied:
a stale frame of an exchange whose number is used again is taken for one of that, and data is wrong without a
word. In the tap of a VM that has not arrived yet frames wait until it runs.
"""

from collections.abc import Iterator

from retinue.core.model import NIC, VM, Server, Service
from retinue.core.model.network import Network, Owner
from retinue.core.model.storage import FcLogin
from retinue.core.packets import EtherType
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import CONTROLLER, Flow, FlowsBySwitch, Match, Output, match
from retinue.core.pipeline.matches import NO_TAG, storage_types
from retinue.core.pipeline.meters import VMMeter, rate_meters
from retinue.core.pipeline.priorities import EdgeAdmit
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import Underlay


def nic_flows(net: Network, vm: VM, nic: NIC, at: Server, port: int) -> Iterator[Flow]:
    """A NIC at a port of the edge of server `at`. One in a trunk has no storage, nor has a guest here: its
    forwarder is at home."""
    edge = net.switches[at.edge]
    uplink = net.uplink_number(edge.id)
    if not storage_types(net) or uplink is None or net.vlan_in_trunk(nic) or vm.home:
        return
    owner = Owner("vm", vm.id)
    mark, logins = cookie(Reason.FORWARD, owner), list(_logins(net, nic))
    for mac in (nic.mac, *(login.mac for login, _ in logins)):
        said = match(in_port=port, vlan_vid=NO_TAG, eth_type=EtherType.FIP, eth_src=mac)
        yield Flow(
            Table.ADMIT, EdgeAdmit.FIP, said, (CONTROLLER,),
            meter=VMMeter.DHCP.id(port), cookie=cookie(Reason.FIP_NODE, owner),
        )  # fmt: skip
    from_vm, to_vm, _ = rate_meters(port, (vm.nic_called(nic.plugged_as) or nic).rate)
    for login, forwarder in logins:
        sent = _frames(port, login.mac, forwarder.mac)
        yield Flow(Table.ADMIT, EdgeAdmit.STORAGE, sent, (Output(uplink),), meter=from_vm, cookie=mark)
        brought = _frames(uplink, forwarder.mac, login.mac)
        yield Flow(Table.ADMIT, EdgeAdmit.STORAGE, brought, (Output(port),), meter=to_vm, cookie=mark)


def ways(underlay: Underlay, net: Network, vm: VM) -> Iterator[FlowsBySwitch]:
    """Through the fabric: from wherever the VM may send, to where it is delivered."""
    if vm.home:
        return
    mark = cookie(Reason.FORWARD, Owner("vm", vm.id))
    for nic in vm.nics:
        if not nic.enabled or net.vlan_in_trunk(nic):
            continue
        for login, forwarder in _logins(net, nic):
            open_at = [net.servers[name] for name in vm.locations if net.peer_at(name) is None]
            yield underlay.storage_ways(login.mac, forwarder, net.servers[vm.server], open_at, mark)


def _logins(net: Network, nic: NIC) -> Iterator[tuple[FcLogin, Server]]:
    """Those whose forwarder is still one."""
    for login in net.logins_of(nic.mac):
        forwarder = net.servers.get(login.forwarder)
        if forwarder is not None and Service.FORWARDER in forwarder.services:
            yield login, forwarder


def _frames(port: int, src: str, dst: str) -> Match:
    return match(in_port=port, vlan_vid=NO_TAG, eth_type=EtherType.FCOE, eth_src=src, eth_dst=dst)

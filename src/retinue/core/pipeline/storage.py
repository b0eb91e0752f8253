"""Storage over the fabric (FCoE), on edges: who may send it, and how it gets there and back.

It is forwarded by MAC, end to end: the fabric-provided MAC of a port has its FC_ID in it, and the forwarder's
is that of its server. So nothing is rewritten on the way. What is about logins (FIP) goes through the
controller.

During a migration both places may send, so that what the VM asks last at its source and first at its target
gets out; what the forwarder sends comes to one place, the one where the VM is delivered. It is never copied:
a stale frame of an exchange whose number is used again is taken for one of that, and data is wrong without a
word. In the tap of a VM that has not arrived yet frames wait until it runs.

Between domains the forwarder is the one at home. There the gateway is the place of a VM that is away, and its
tunnel the port. Where the VM is a guest, its frames go between its servers and the gateway.
"""

from collections.abc import Iterator

from retinue.core.model import NIC, VM, Mac, Server, Service
from retinue.core.model.network import Network, Owner
from retinue.core.model.storage import FcLogin
from retinue.core.packets import EtherType
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import CONTROLLER, Flow, FlowsBySwitch, Match, Output, match
from retinue.core.pipeline.gateway import meter_of
from retinue.core.pipeline.matches import NO_TAG, storage_types
from retinue.core.pipeline.meters import VMMeter, rate_meters
from retinue.core.pipeline.priorities import EdgeAdmit
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import Underlay


def nic_flows(net: Network, vm: VM, nic: NIC, at: Server, port: int) -> Iterator[Flow]:
    """A NIC at a port of the edge of server `at`; of a VM that is away, at the gateway's tunnel. One in a
    trunk has no storage, and between domains it goes where that is wanted."""
    edge = net.switches[at.edge]
    uplink = net.uplink_number(edge.id)
    peer = net.peers.get(vm.home) if vm.home else net.peer_at(at.id)
    if not storage_types(net) or uplink is None or net.vlan_in_trunk(nic):
        return
    if (vm.home or peer is not None) and (peer is None or not peer.storage):
        return
    at_tunnel = not vm.home and peer is not None
    owner, meter = Owner("vm", vm.id), meter_of(net, vm, port) if at_tunnel else VMMeter.DHCP.id(port)
    mark, logins = cookie(Reason.FORWARD, owner), list(_logins(net, nic))
    for mac in (nic.mac, *(login.mac for login, _ in logins)):
        said = match(in_port=port, vlan_vid=NO_TAG, eth_type=EtherType.FIP, eth_src=mac)
        yield Flow(
            Table.ADMIT, EdgeAdmit.FIP, said, (CONTROLLER,),
            meter=meter, cookie=cookie(Reason.FIP_NODE, owner),
        )  # fmt: skip
    rate = 0 if at_tunnel else (vm.nic_called(nic.plugged_as) or nic).rate
    from_vm, to_vm, _ = rate_meters(port, rate)
    for login, forwarder in logins:
        sent = _frames(port, login.mac, forwarder)
        yield Flow(Table.ADMIT, EdgeAdmit.STORAGE, sent, (Output(uplink),), meter=from_vm, cookie=mark)
        brought = _frames(uplink, forwarder, login.mac)
        yield Flow(Table.ADMIT, EdgeAdmit.STORAGE, brought, (Output(port),), meter=to_vm, cookie=mark)


def ways(underlay: Underlay, net: Network, vm: VM) -> Iterator[FlowsBySwitch]:
    """Through the fabric: from wherever the VM may send, to where it is delivered."""
    mark = cookie(Reason.FORWARD, Owner("vm", vm.id))
    for nic in vm.nics:
        if not nic.enabled or net.vlan_in_trunk(nic):
            continue
        for login, forwarder in _logins(net, nic):
            at, places = net.servers[vm.server], [net.servers[name] for name in vm.locations]
            if not vm.home:
                yield underlay.storage_ways(login.mac, forwarder, at, places, mark)
            elif vm.home in net.peers:
                yield from _guests_ways(underlay, net, vm, login, mark)


def _guests_ways(
    underlay: Underlay, net: Network, vm: VM, login: FcLogin, mark: int
) -> Iterator[FlowsBySwitch]:
    """Between the servers where a guest is and the gateway to its home. To the forwarder by who sends it:
    other guests have the same."""
    home, forwarder = net.servers[net.peers[vm.home].gateway], login.forwarder_mac
    tunnel, uplink = net.tunnel_at(home.edge), net.uplink_number(home.edge)
    places = [net.servers[name] for name in vm.locations if name != home.id]
    if not places or tunnel is None or uplink is None:
        return
    yield underlay.storage_ways(forwarder, login.mac, home, [home], mark, only_from=login.mac)
    yield underlay.storage_ways(login.mac, forwarder, net.servers[vm.server], places, mark)
    sent, brought = _frames(uplink, login.mac, forwarder), _frames(tunnel.number, forwarder, login.mac)
    # What comes late, when it has gone, ends in the fabric: sent back it might come twice.
    found = [
        Flow(Table.ADMIT, EdgeAdmit.STORAGE, sent, (Output(tunnel.number),), cookie=mark),
        Flow(Table.ADMIT, EdgeAdmit.STORAGE, brought, (Output(uplink),), cookie=mark),
    ]
    yield {home.edge: found}


def answers(net: Network, vm: VM) -> Iterator[tuple[str, Flow]]:
    """What a guest's home says of logins comes by the tunnel, and is for the controller."""
    peer = net.peers.get(vm.home)
    edge = "" if peer is None or not peer.storage else net.servers[peer.gateway].edge
    tunnel = net.tunnel_at(edge)
    if tunnel is None:
        return
    for nic in vm.nics:
        said = match(in_port=tunnel.number, vlan_vid=NO_TAG, eth_type=EtherType.FIP, eth_dst=nic.mac)
        yield edge, Flow(
            Table.ADMIT, EdgeAdmit.FIP, said, (CONTROLLER,),
            meter=meter_of(net, vm, tunnel.number),
            cookie=cookie(Reason.FIP_FORWARDER, Owner("vm", vm.id)),
        )  # fmt: skip


def _logins(net: Network, nic: NIC) -> Iterator[tuple[FcLogin, Mac]]:
    """Those whose forwarder is still one, each with its MAC; of a guest's only its home can say that."""
    for login in net.logins_of(nic.mac):
        forwarder = net.servers.get(login.forwarder)
        if login.forwarder_mac:
            yield login, login.forwarder_mac
        elif forwarder is not None and Service.FORWARDER in forwarder.services:
            yield login, forwarder.mac


def _frames(port: int, src: str, dst: str) -> Match:
    return match(in_port=port, vlan_vid=NO_TAG, eth_type=EtherType.FCOE, eth_src=src, eth_dst=dst)

"""Anycast: from each switch to the nearest of those that have the address.

For a leaf that is one on its own servers, before all that are under other leaves; a spine is equally far from
all. Of those that are equally near it is the one with the least load, then the first by name, so that all
flows of a switch go to one. Wherever a packet is brought to a server, the edge there hands it over, or sends
it on after a member that has just migrated.

A member that is on its way counts where it is delivered, and is delivered there as by its own addresses; but
no copy is made of what comes meanwhile (`edge.copies`): if the migration is undone after the stop, that is
lost, and who sent it sends it again.
"""

from collections.abc import Iterator, Sequence
from itertools import permutations

from retinue.core.model import IP, NIC, VM, Server
from retinue.core.model.anycast import members_of, serves
from retinue.core.model.families import in_use
from retinue.core.model.links import leaves_of_pod
from retinue.core.model.network import Network, Owner
from retinue.core.model.uplinks import places
from retinue.core.pipeline import mirroring, vrfs
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import Action, Field, Flow, FlowsBySwitch, Output, PortNo, set_field
from retinue.core.pipeline.matches import ip_match
from retinue.core.pipeline.meters import rate_meters
from retinue.core.pipeline.priorities import Deliver
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import Underlay

Member = tuple[VM, NIC]


def owner_of(ip: IP) -> Owner:
    return Owner("anycast", str(ip))


def address_flows(underlay: Underlay, net: Network, ip: IP) -> FlowsBySwitch:
    """The ways to an anycast address, and what hands packets to its members."""
    if not in_use(net, ip.version):
        return {}
    members = members_of(net, ip)
    mark = cookie(Reason.FORWARD, owner_of(ip))
    found = _ways(underlay, net, ip, members, mark)
    for switch, flows in _sent_on(underlay, net, ip, members, mark).items():
        found.setdefault(switch, []).extend(flows)
    for id in sorted({location for vm, _ in members for location in vm.locations}):
        server = net.servers[id]
        found.setdefault(server.edge, []).extend(_at_edge(underlay, net, ip, members, server, mark))
    return found


def _ways(underlay: Underlay, net: Network, ip: IP, members: Sequence[Member], mark: int) -> FlowsBySwitch:
    """On each switch the way to the nearest. Leaves that know all hosts look for one in their pod before the
    others."""
    here: FlowsBySwitch = {}
    near: FlowsBySwitch = {}
    far: FlowsBySwitch = {}
    serving = _serving(net, ip, members)
    # To one whose server is not found every leaf would ask the controller, instead of sending to the others.
    found = [server for server in serving if underlay.is_reachable(server)]
    for server in found or serving:
        at = {place.switch for place in places(net, server)}
        pod = leaves_of_pod(net, at) if net.leaves_know_all else set()
        for switch, flows in underlay.host_routes(net.servers[server], ip, mark).items():
            rank = here if switch in at else near if switch in pod else far
            rank.setdefault(switch, flows)
    return {switch: list(flows) for switch, flows in (far | near | here).items()}


def _serving(net: Network, ip: IP, members: Sequence[Member]) -> list[str]:
    """Where there is one, the preferred first; on a server with an edge switch it is a VM, else itself."""
    found = [(nic.load, vm.id, vm.server) for vm, nic in members if serves(net, vm, nic)]
    for id in net.serving(ip):
        if id not in net.fenced:
            found.append((net.servers[id].load, id, id))
    return [server for _, _, server in sorted(found)]


def _sent_on(underlay: Underlay, net: Network, ip: IP, members: Sequence[Member], mark: int) -> FlowsBySwitch:
    """Lets through what an edge sends on after a member that has left; several may take the same way."""
    ways = {way for vm, _ in members for way in permutations(vm.locations, 2)}
    found: FlowsBySwitch = {}
    for source, target in sorted(ways):
        let = underlay.copy_ways(net.servers[source], net.servers[target], ip, mark)
        for switch, flows in let.items():
            found.setdefault(switch, []).extend(flows)
    return found


def _at_edge(
    underlay: Underlay, net: Network, ip: IP, members: Sequence[Member], at: Server, mark: int
) -> Iterator[Flow]:
    """To one that is delivered here; else to one that is about to come; else after one that has left."""
    there = [(vm, nic) for vm, nic in members if nic.enabled and net.port_of(nic, at.edge) is not None]
    open_here = [(vm, nic) for vm, nic in there if at.id in vm.locations and at.id != vm.forwarded_from]
    for vm, nic in sorted(open_here, key=lambda one: one[0].server != at.id)[:1]:
        yield from _hand_over(net, ip, vm, nic, at, mark)
        return
    for vm, _ in members:
        if vm.forwarded_from == at.id:
            send_on: tuple[Action, ...] = (*underlay.reach(net.servers[vm.server]), Output(PortNo.IN_PORT))
            yield Flow(Table.DELIVER, Deliver.VM, ip_match(dst=ip), send_on, cookie=mark)
            return


def _hand_over(net: Network, ip: IP, vm: VM, nic: NIC, at: Server, mark: int) -> Iterator[Flow]:
    port = net.port_of(nic, at.edge)
    assert port is not None
    number = port.number
    gateway_mac = net.gateway_mac_of(at)
    # What leaves bring comes from the fabric's own.
    as_its_gateway = (set_field(Field.ETH_SRC, gateway_mac),) if gateway_mac != net.gateway_mac else ()
    _, to_vm, _ = rate_meters(number, (vm.nic_called(nic.plugged_as) or nic).rate)
    actions: tuple[Action, ...] = (*as_its_gateway, set_field(Field.ETH_DST, nic.mac), Output(number))
    flow = Flow(Table.DELIVER, Deliver.VM, ip_match(dst=ip), actions, meter=to_vm, cookie=mark)
    uplink = net.uplink_number(at.edge)
    flows = vrfs.at_edge([flow], 0, uplink, net.vlan_in_trunk(nic))
    yield from mirroring.mirrored(flows, number, mirroring.port_of(net, nic, at))

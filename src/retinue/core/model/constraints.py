"""What a network rejects of what the operator lays out: no two of its things ever want the same flow entry.

One address has one owner in its VRF: a gateway, a server or a VM; so has a prefix, and in all of them a MAC
address. Each function looks at one thing to be added, changes nothing, and raises ModelError when it must not
be added. Of VMs: `vm_constraints`.
"""

from retinue.core.limits import (
    HIGHEST_VLAN,
    LONGEST_CHASSIS,
    MOST_GATEWAY_GROUPS,
    MOST_HOSTS,
    MOST_METRIC,
    MOST_SUBNETS,
    MOST_VRFS,
)
from retinue.core.model.addresses import Mac, ModelError, mac_to_come
from retinue.core.model.anycast import check_anycast_of_server
from retinue.core.model.entities import (
    DEFAULT_VNET,
    GatewayGroup,
    Peer,
    Role,
    Server,
    Service,
    Subnet,
    Vnet,
)
from retinue.core.model.in_use import bound_to, first_few, users_of_prefix, users_of_vnet
from retinue.core.model.ownership import (
    can_be_a_machines,
    not_a_gateways,
    not_a_servers,
    not_held,
)
from retinue.core.model.routed_prefixes import (
    NO_HOSTS,
    UNROUTABLE4,
    check_server_beside,
    check_subnet_beside,
    is_part,
)
from retinue.core.model.trunks import check_vnet_in_trunks
from retinue.core.model.view import NetworkView
from retinue.core.model.vrfs import DEFAULT_VRF, Vrf


def check_tiers(net: NetworkView) -> None:
    """A leaf sends to any spine of its pod what is elsewhere: where there are cores, each must lead on.

    Or all leaves are joined by tunnels, and none by a spine.
    """
    lower = {link.lower.switch for link in net.links}
    cores = any(net.with_role(Role.CORE))
    stub = next((one.id for one in net.with_role(Role.SPINE) if cores and one.id not in lower), "")
    if stub:
        raise ModelError(f"spine {stub} leads to no core: join each spine of a pod to one at least")
    leaves = list(net.with_role(Role.LEAF))
    if net.spines_by_mac and any(leaf.router or leaf.endpoint for leaf in leaves):
        raise ModelError('spines = "mac": there are none here, what joins the leaves is not ours')
    several = next((edge.id for edge in net.with_role(Role.EDGE) if edge.standby), "")
    if several and not net.links:
        raise ModelError(f"edge {several}: several uplinks are for leaves of ours that spines join")
    if any(leaf.router for leaf in leaves):
        ours = next((leaf.id for leaf in leaves if not leaf.router), "")
        if ours or net.links:
            raise ModelError(
                f"leaf {ours or net.links[0].lower.switch}: where a leaf is a router that is not ours all "
                "are, and none has a link to a spine: how they reach each other is theirs to know"
            )
        return
    if any(leaf.endpoint for leaf in leaves):
        without = next((leaf.id for leaf in leaves if leaf.endpoint is None), "")
        if without or net.links:
            raise ModelError(
                f"leaf {without or net.links[0].lower.switch}: where tunnels join the leaves each has an "
                "endpoint, and none a link to a spine"
            )


def check_vrf(net: NetworkView, vrf: Vrf) -> None:
    known = net.vrfs.get(vrf.id)
    if known is not None and known.tag != vrf.tag:
        raise ModelError(f"VRF {vrf.id} has tag {known.tag}; to give it another, remove it and add it")
    for other in net.vrfs.values():
        if other.tag == vrf.tag and other.id != vrf.id:
            raise ModelError(f"VRF {vrf.id}: tag {vrf.tag} is VRF {other.id}'s")
    if known is None and len(net.vrfs) >= MOST_VRFS:
        raise ModelError(f"VRF {vrf.id}: there are {MOST_VRFS} VRFs already")


def check_vnet(net: NetworkView, vnet: Vnet) -> None:
    if vnet.vrf not in net.vrfs:
        raise ModelError(f"vnet {vnet.id}: there is no VRF {vnet.vrf}")
    if vnet.id == DEFAULT_VNET.id and vnet.vrf != DEFAULT_VRF:
        raise ModelError(f"vnet {vnet.id} is in VRF {DEFAULT_VRF}, as servers are; add another vnet")
    known = net.vnets.get(vnet.id)
    if known is not None and known.vrf != vnet.vrf:
        users = users_of_vnet(net, vnet.id)
        if users:
            raise ModelError(
                f"vnet {vnet.id} cannot leave VRF {known.vrf}: it is in use by {first_few(users)}"
            )
    for other in net.vnets.values():
        if vnet.vlan and other.vlan == vnet.vlan and other.id != vnet.id:
            raise ModelError(f"vnet {vnet.id}: VLAN {vnet.vlan} is vnet {other.id}'s")
    check_vnet_in_trunks(net, vnet)
    if vnet.id not in net.vnets and len(net.vnets) >= MOST_SUBNETS:
        raise ModelError(f"vnet {vnet.id}: there are {MOST_SUBNETS} vnets already")


def check_subnet(net: NetworkView, subnet: Subnet) -> None:
    if subnet.vnet not in net.vnets:
        raise ModelError(f"subnet {subnet.id}: there is no vnet {subnet.vnet}")
    if subnet.id not in net.subnets and len(net.subnets) >= MOST_SUBNETS:
        raise ModelError(f"subnet {subnet.id}: there are {MOST_SUBNETS} subnets already")
    known, vrf = net.subnets.get(subnet.id), net.vrf_of_vnet(subnet.vnet)
    if known is not None and known.vnet != subnet.vnet:
        was_in = net.vrf_of_vnet(known.vnet)
        bound = bound_to(net, known) if was_in == vrf else users_of_prefix(net, known.prefix, was_in)
        if bound:
            raise ModelError(f"subnet {subnet.id} cannot leave vnet {known.vnet}: {first_few(bound)}")
    if known is not None and known.prefix != subnet.prefix:
        left_out = sorted(
            set(users_of_prefix(net, known.prefix, vrf)) - set(users_of_prefix(net, subnet.prefix, vrf))
        )
        if left_out:
            raise ModelError(f"subnet {subnet.id} cannot become {subnet.prefix}: {first_few(left_out)}")
    for other in net.subnets_in(vrf):
        if other.id != subnet.id and other.prefix.overlaps(subnet.prefix):
            raise ModelError(f"subnets {other.id} and {subnet.id} overlap: {other.prefix}, {subnet.prefix}")
    what = f"subnet {subnet.id}"
    if any(subnet.prefix.overlaps(prefix) for prefix in NO_HOSTS if prefix.version == subnet.prefix.version):
        raise ModelError(f"{what}: {subnet.prefix} has addresses that no host can have")
    if any(is_part(subnet.prefix, beyond) for beyond in UNROUTABLE4):
        raise ModelError(f"{what}: no router forwards to {subnet.prefix}")
    if subnet.slaac and (subnet.prefix.version, subnet.prefix.prefixlen) != (6, 64):
        raise ModelError(f"{what}: VMs make their own addresses of an IPv6 /64 only, not of {subnet.prefix}")
    if subnet.dhcp6 and subnet.prefix.version != 6:
        raise ModelError(f"{what}: DHCPv6 is for addresses of IPv6, not of {subnet.prefix}")
    if subnet.dhcp6 and vrf != DEFAULT_VRF and not subnet.dhcp:
        raise ModelError(f"{what}: in VRF {vrf} say which DHCP server gives its addresses (`dhcp`)")
    if subnet.dhcp and subnet.prefix.version == 6 and not subnet.dhcp6:
        raise ModelError(f"{what}: a DHCP server of an IPv6 subnet speaks DHCPv6 (`dhcp6`)")
    check_subnet_beside(net, subnet)
    not_held(net, what, subnet.gateway, vrf)
    not_a_servers(net, what, subnet.gateway, vrf)
    for server in net.servers.values():
        if subnet.prefix in server.routes_in(vrf):
            raise ModelError(f"{what}: {subnet.prefix} is reached through server {server.id}")


def check_gateway_group(net: NetworkView, group: GatewayGroup) -> None:
    what, known = f"gateway group {group.id}", net.gateway_groups.get(group.id)
    if known == group:
        return
    if known is not None and known.mac != group.mac:
        raise ModelError(f"{what} has MAC {known.mac}; add another group, and put its servers there")
    if group.default and net.default_group not in ("", group.id):
        raise ModelError(f"{what}: servers in no group are in {net.default_group} already")
    if known is not None:
        return
    can_be_a_machines(net, what, group.mac)
    server, vm = net.place_of_mac(group.mac), net.vm_of_mac(group.mac)
    if server is not None or vm is not None:
        raise ModelError(f"{what}: MAC {group.mac} belongs to {'a server' if vm is None else 'a VM'} already")
    if speaking := net.speaking_as(group.mac):
        raise ModelError(f"{what}: VM {min(speaking)} may speak as MAC {group.mac}")
    if len(net.gateway_groups) >= MOST_GATEWAY_GROUPS:
        raise ModelError(f"{what}: there are {MOST_GATEWAY_GROUPS} groups already")


def check_peer(net: NetworkView, peer: Peer) -> None:
    what = f"domain {peer.id}"
    server = net.servers.get(peer.gateway)
    if server is None or not server.edge:
        raise ModelError(f"{what}: its gateway {peer.gateway} is no server with an edge switch")
    if peer.id in net.servers:
        raise ModelError(f"{what}: a server has that id; in `--to` nobody could tell them apart")
    if net.switches[server.edge].standby:
        raise ModelError(f"domain {peer.id}: its gateway {server.id} has one uplink, as a tunnel has one end")
    if not peer.tunnel or peer.tunnel == net.switches[server.edge].uplink:
        raise ModelError(f"{what}: name the port of {server.edge} that leads to that domain (tunnel)")
    for other in net.peers.values():
        if other.id != peer.id and other.gateway == peer.gateway:
            raise ModelError(f"{what}: {peer.gateway} is the gateway to domain {other.id} already")
        pairs = ((a, b) for a in peer.prefixes for b in other.prefixes if other.id != peer.id)
        if any(a.version == b.version and a.overlaps(b) for a, b in pairs):
            raise ModelError(f"{what}: a prefix of it is granted to domain {other.id} already")
    for subnet in net.subnets.values():
        if any(p.version == subnet.prefix.version and p.overlaps(subnet.prefix) for p in peer.prefixes):
            raise ModelError(f"{what}: a prefix of it overlaps our subnet {subnet.id}")


def check_server(net: NetworkView, server: Server) -> None:
    what = f"server {server.id}"
    if server.gateway_group and server.gateway_group not in net.gateway_groups:
        raise ModelError(f"{what}: there is no gateway group {server.gateway_group}")
    _a_machines_mac(net, what, server.mac, server.id)
    _check_hosts(net, server)
    for vrf, ip in server.addresses:
        not_held(net, what, ip, vrf)
        not_a_gateways(net, what, ip, vrf)
        not_a_servers(net, what, ip, vrf, but=server.id)
    check_server_beside(net, server)
    check_anycast_of_server(net, server)
    _check_edge(net, server)
    _check_routes(net, server)
    _check_chassis(net, server)
    _check_subinterfaces(net, server)
    _check_location(net, server)


def _a_machines_mac(net: NetworkView, what: str, mac: Mac, server: str) -> None:
    """A MAC that this server, or a host of it, may have."""
    can_be_a_machines(net, what, mac)
    place = net.place_of_mac(mac)
    if place is not None and place[0] != server:
        raise ModelError(f"{what}: MAC {mac} already belongs to server {place[0]}")
    vm = net.vm_of_mac(mac)
    if vm is not None:
        raise ModelError(f"{what}: MAC {mac} belongs to VM {vm.id}")


def _check_hosts(net: NetworkView, server: Server) -> None:
    """Whoever names a host, by its id or by its MAC, means no other, and no server."""
    if server.hosts and not server.edge:
        raise ModelError(f"server {server.id}: hosts have their ports at an edge switch, and it has none")
    if len(server.hosts) > MOST_HOSTS:
        raise ModelError(
            f"server {server.id} has {len(server.hosts)} hosts; give it {MOST_HOSTS} at the most"
        )
    macs, ids = [server.mac], [server.id]
    for host in server.hosts:
        what = f"host {host.id} of server {server.id}"
        _a_machines_mac(net, what, host.mac, server.id)
        other = net.server_of_host(host.id)
        if host.id in ids or host.id in net.servers or (other is not None and other.id != server.id):
            raise ModelError(f"{what}: a server or host has that id already")
        if host.mac in macs:
            raise ModelError(f"{what}: MAC {host.mac} is given twice")
        macs.append(host.mac)
        ids.append(host.id)
    known = net.server_of_host(server.id)
    if known is not None:
        raise ModelError(f"server {server.id}: a host of server {known.id} has that id")
    for id in sorted(net.vms_on(server.id)):
        vm = net.vms[id]
        if vm.host and vm.server == server.id and vm.host not in ids:
            raise ModelError(f"server {server.id}: VM {id} is on its host {vm.host}")


def _check_location(net: NetworkView, server: Server) -> None:
    """A leaf port belongs to one server: frames that come in there are judged by which server that is."""
    what = f"server {server.id}"
    if Service.DHCP in server.services:
        at = server.given_at or net.detected.get(server.id)
        known = None if at is None else net.dhcp_server_at(at)
        if known is not None and known.id != server.id:
            raise ModelError(
                f"{what}: {at} is the port of DHCP server {known.id}; give each a port of its own"
            )
    for other in () if server.given_at is None else net.given_at(server.given_at):
        if other != server.id:
            raise ModelError(f"{what}: {server.given_at} is given as the location of server {other} already")


def _check_edge(net: NetworkView, server: Server) -> None:
    what = f"server {server.id}"
    if not server.edge:
        vms = net.vms_on(server.id)
        if vms:
            raise ModelError(f"{what} runs VMs and needs its edge switch: {', '.join(sorted(vms))}")
        return
    if Service.CACHE in server.services:
        raise ModelError(f"{what} is a cache: it runs no VMs, and has no edge switch")
    if Service.FORWARDER in server.services:
        raise ModelError(f"{what} is an FCoE forwarder: it runs no VMs, and has no edge switch")
    edge = net.switches.get(server.edge)
    if edge is None or edge.role is not Role.EDGE:
        raise ModelError(f"{what}: {server.edge} is not a known edge switch")
    if edge.standby and server.given_at is not None:
        raise ModelError(f"{what}: where the uplinks of {edge.id} lead is found; leave out its place (`at`)")
    runs = net.server_of_edge(server.edge)
    if runs is not None and runs.id != server.id:
        raise ModelError(f"{what}: edge switch {server.edge} already runs on {runs.id}")


def _check_chassis(net: NetworkView, server: Server) -> None:
    other = net.server_of_chassis(server.chassis)
    if other is not None and other.id != server.id:
        raise ModelError(f"server {server.id}: chassis id {server.chassis} is that of server {other.id}")
    if len(server.chassis) > LONGEST_CHASSIS or not server.chassis.isprintable():
        raise ModelError(f"server {server.id}: a chassis id has up to {LONGEST_CHASSIS} printable characters")
    if server.mac != mac_to_come(server.id):
        return
    if not server.chassis and not server.edge:
        raise ModelError(
            f"server {server.id}: give its MAC, or the LLDP chassis id by which that is found; that of one "
            "with an edge switch its agent says"
        )
    at = server.given_at
    if at is not None and at.switch in net.switches and net.switches[at.switch].given:
        raise ModelError(
            f"server {server.id}: give its MAC: at {at.switch}, whose places are given, none is looked for"
        )


def _check_routes(net: NetworkView, server: Server) -> None:
    if not 0 <= server.metric <= MOST_METRIC:
        raise ModelError(f"server {server.id}: metric {server.metric} is not between 0 and {MOST_METRIC}")
    for vrf, prefix in server.ways:
        for subnet in net.subnets_in(vrf):
            if subnet.prefix == prefix:
                raise ModelError(f"server {server.id}: the route {prefix} is subnet {subnet.id}")


def _check_subinterfaces(net: NetworkView, server: Server) -> None:
    """A tag at a router's port tells one VRF, and a port one router: nothing crosses by either."""
    if not server.subinterfaces:
        return
    what = f"server {server.id}"
    if Service.ROUTER not in server.services or server.edge:
        raise ModelError(f"{what}: only a router, which runs no VMs, has subinterfaces in VRFs")
    if server.given_at is None:
        raise ModelError(f"{what} has subinterfaces in VRFs: say at which port it is (`at`)")
    vrfs, vlans = [], []
    for one in server.subinterfaces:
        if one.vrf not in net.vrfs or one.vrf == DEFAULT_VRF:
            default = f"VRF {DEFAULT_VRF} has the router's address and routes themselves"
            raise ModelError(
                f"{what}: " + (default if one.vrf == DEFAULT_VRF else f"there is no VRF {one.vrf}")
            )
        if not 1 <= one.vlan <= HIGHEST_VLAN:
            raise ModelError(
                f"{what}: VLAN {one.vlan} of its subinterface is not between 1 and {HIGHEST_VLAN}"
            )
        vrfs.append(one.vrf)
        vlans.append(one.vlan)
    if len(set(vrfs)) < len(vrfs) or len(set(vlans)) < len(vlans):
        raise ModelError(f"{what}: give it one subinterface for each VRF, each with a VLAN of its own")

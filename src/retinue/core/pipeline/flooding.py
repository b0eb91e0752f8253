"""Flooding inside a vnet (`Flood.CONTROLLED`): copies of what one NIC sends to a group for all others in it.

A NIC takes part that is *said* to be in the vnet. What it sends to a group is judged as all that it sends:
the source must be its own, and ARP, neighbour discovery, DHCP and router advertisements end where they always
do. What is left, broadcast and multicast of IP, passes a meter of the NIC; then the edge replicates it:

    edge    FORWARD   from the NIC's port: tag := the vnet's VLAN
            DELIVER   with that tag, to a group: the OpenFlow group of the vnet. Its buckets: each NIC here,
                      without the tag; the uplink, where other servers have NICs of the vnet
            ADMIT     the same from the uplink
    leaf    ADMIT     from a server: the other servers here, and one spine; from a spine: the servers here
    spine   ADMIT     the leaves that have such servers

A switch sends no copy back to the port where the frame came in, so each other switch gets one, the sender's
none; and nothing goes from a spine up again. A leaf takes such frames from the edges of the vnet's servers
alone, and an edge none from a VM with a tag: who is not in the vnet can send nothing into it.

While a VM migrates, both its edges get the copies, and a NIC does where its VM is delivered; and where copies
of all else are sent while it is paused (`edge`), by the same mark. A diversion tells the target's edge first:
for a moment a copy comes to both, and waits at the target; never to neither.
"""

from collections.abc import Iterator
from ipaddress import IPv4Network

from retinue.core.model import NIC, VM, Server, Vnet
from retinue.core.model.families import in_use
from retinue.core.model.link_local import MULTICAST
from retinue.core.model.network import Network, Owner
from retinue.core.packets import EtherType
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import (
    Action,
    EntriesBySwitch,
    Field,
    FieldValue,
    Flow,
    Group,
    Match,
    Meter,
    Output,
    PopVlan,
    PushVlan,
    SetField,
    ToGroup,
    in_order,
    match,
    set_field,
)
from retinue.core.pipeline.matches import ANY_TAG, GROUP_BIT
from retinue.core.pipeline.meters import flood_meter
from retinue.core.pipeline.priorities import VRF_BAND, Deliver, EdgeAdmit, Forward
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import Underlay

GROUPS = 1 << 12
"""The group of a vnet that floods has its VLAN plus this as number, on every switch."""
_PRESENT = ANY_TAG[1]
TO_ALL4 = IPv4Network("224.0.0.0/3")
"""Multicast, and broadcast to whoever hears it. RFC 1122, 3.3.6: "A host SHOULD silently discard a datagram
that is received via a link-layer broadcast (see Section 2.4) but does not specify an IP multicast or
broadcast destination address": none is replicated."""


def vnet_of_group(net: Network, group: int) -> Vnet | None:
    """The vnet whose group has this number."""
    return next((v for v in net.vnets.values() if v.floods and GROUPS + v.vlan == group), None)


# ---- a NIC's own ----


def nic_flows(net: Network, vm: VM, nic: NIC, port: int) -> Iterator[Flow | Meter]:
    """What a NIC at this port sends to a group of its vnet."""
    vnet = net.vnets.get(nic.vnet)
    if vnet is None or not vnet.floods:  # That of a NIC in a trunk does not (see `core.model.trunks`).
        return
    meter = flood_meter(port)
    yield meter
    tag = net.vrfs[vnet.vrf].tag
    # ADMIT has put the tag of another VRF than the default one (see `vrfs`).
    put: tuple[Action, ...] = () if tag else (PushVlan(),)
    band = VRF_BAND if tag else 0
    from_nic: dict[str, FieldValue] = {"in_port": port, "eth_dst": GROUP_BIT}
    if tag:
        from_nic["vlan_vid"] = _PRESENT | tag
    for to_all in _to_all(net, vnet):
        yield Flow(
            Table.FORWARD, band + Forward.FLOODED, match(**from_nic, **to_all),
            (*put, SetField(Field.VLAN_VID, _PRESENT | vnet.vlan)), goto=Table.DELIVER, meter=meter.id,
            cookie=cookie(Reason.FLOOD, Owner("vm", vm.id)),
        )  # fmt: skip


def _to_all(net: Network, vnet: Vnet) -> Iterator[dict[str, FieldValue]]:
    """Match terms of IP packets to a group of this vnet."""
    yield {"eth_type": EtherType.IPV4, "ipv4_dst": TO_ALL4}
    for subnet in net.subnets.values():
        if subnet.vnet == vnet.id and isinstance(subnet.prefix, IPv4Network):
            yield {"eth_type": EtherType.IPV4, "ipv4_dst": subnet.prefix.broadcast_address}
    if in_use(net, 6):
        yield {"eth_type": EtherType.IPV6, "ipv6_dst": MULTICAST}


# ---- a vnet's ----


def vnet_entries(underlay: Underlay, net: Network, vnet: Vnet) -> EntriesBySwitch:
    """The groups of a vnet that floods, on all switches, and what leads to them."""
    if not vnet.floods:
        return {}
    owner = Owner("vnet", vnet.id)
    open_at: dict[str, list[tuple[VM, NIC]]] = {}
    for vm, nic in net.members(vnet.id):
        not_behind_tunnels = (at for at in (vm.server, *vm.also) if not net.peers or net.peer_at(at) is None)
        for location in not_behind_tunnels if nic.enabled else ():
            open_at.setdefault(location, []).append((vm, nic))
    servers = [net.servers[id] for id in sorted(open_at)]
    group, with_tag = GROUPS + vnet.vlan, match(vlan_vid=_PRESENT | vnet.vlan, eth_dst=GROUP_BIT)
    mark = cookie(Reason.FLOOD, owner)
    found = underlay.flood_ways(servers, vnet.vlan, group, mark)
    for server in servers:
        uplink = net.uplink_number(server.edge)
        here = open_at[server.id]
        buckets = list(_buckets(underlay, net, here, server))
        if uplink is not None and len(servers) > 1:
            buckets.append((Output(uplink),))
        if not buckets:
            continue
        entries: list[Flow | Group] = [Group(group, tuple(buckets), replicates=True)]
        entries.append(_flow(Table.DELIVER, VRF_BAND + Deliver.FLOODED, with_tag, group, mark))
        if uplink is not None:
            from_fabric = match(in_port=uplink, vlan_vid=_PRESENT | vnet.vlan, eth_dst=GROUP_BIT)
            entries.append(_flow(Table.ADMIT, EdgeAdmit.FLOODED, from_fabric, group, mark))
            entries.extend(_own_copies(underlay, net, here, server, from_fabric, mark))
        found.setdefault(server.edge, []).extend(entries)
    return found


def _own_copies(
    underlay: Underlay, net: Network, here: list[tuple[VM, NIC]], at: Server, brought: Match, mark: int
) -> Iterator[Flow]:
    """A VM that is at two edges hears nothing of its own at the other one."""
    for vm, nic in here:
        if vm.also:
            others = list(_buckets(underlay, net, [one for one in here if one[1] != nic], at))
            # The marked ones last, since what is changed stays so.
            ordered = sorted(others, key=len)
            actions = [action for bucket in ordered for action in bucket if not isinstance(action, PopVlan)]
            take: list[Action] = [PopVlan()] if actions else []
            of_its_own = in_order(*brought, *match(eth_src=nic.mac))
            yield Flow(Table.ADMIT, EdgeAdmit.FLOODED_BY_ITSELF, of_its_own, (*take, *actions), cookie=mark)


def _flow(table: Table, priority: int, terms: Match, group: int, mark: int) -> Flow:
    return Flow(table, priority, terms, (ToGroup(group),), cookie=mark)


def _buckets(
    underlay: Underlay, net: Network, here: list[tuple[VM, NIC]], at: Server
) -> Iterator[tuple[Action, ...]]:
    """One for each NIC, of those open at this server, that gets copies from its edge."""
    for vm, nic in here:
        port = net.port_of(nic, at.edge)
        if port is None or at.id not in (vm.server, vm.copied_to):
            continue
        # What its other edge has got, too, waits here marked: see `handing_back`.
        is_copied = vm.copied_to not in ("", at.id)
        mark = (set_field(Field.ETH_SRC, underlay.copy_source(at)),) if is_copied else ()
        yield PopVlan(), *mark, Output(port.number)

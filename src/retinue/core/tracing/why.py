"""Why a frame ends at a switch, and what would make it pass.

By the entry that ended it, so there is one answer for each priority that drops or reports. What a frame
claims is then compared with what the network knows: who has which address, where, is its port open.
"""

from dataclasses import replace
from enum import IntEnum

from retinue.core.forwarding import Hop
from retinue.core.forwarding.header import read
from retinue.core.forwarding.vxlan import unwrap
from retinue.core.model import IP, PortRef, Prefix, Role, Service, mac_from_int
from retinue.core.model.network import Network
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.core.pipeline.entry import DecTtl, Field, Flow, Output, PortNo
from retinue.core.pipeline.priorities import (
    PRIORITIES,
    Answer,
    Arp,
    Deliver,
    EdgeAdmit,
    Forward,
    LeafAdmit,
    Nd,
    Route,
    Servers,
    SpineAdmit,
)
from retinue.core.pipeline.tables import Table
from retinue.core.tracing.places import at_port, place, plugged_in, port_name, servers_at
from retinue.core.tracing.who_has import (
    VLAN_ID,
    Why,
    destination,
    dst_mac,
    shut,
    source,
    src_mac,
    vrf_of,
    where_it_is,
)
from retinue.core.tracing.words import base_priority, named


def why_it_ends(net: Network, hop: Hop) -> Why:
    """Of a hop where the frame goes nowhere, or to the controller as a spoofing attempt."""
    role = net.switches[hop.switch].role
    flow = hop.matched[-1] if hop.matched else None
    if hop.in_port == net.port_number(PortRef(hop.switch, net.switches[hop.switch].tunnel)):
        wrapped = unwrap(hop.frame)
        if wrapped is None:
            return Why("what comes by a tunnel is VXLAN, and this is something else")
        hop = replace(hop, frame=wrapped.frame)
    if flow is None:
        return Why(
            f"{hop.switch} has no entry that it meets, not even the last one of a table",
            (f"see `retinue switch audit {hop.switch}`",),
        )
    if _ran_out(hop, flow):
        return Why("its time to live has run out", ("send it with a larger one",))
    if _back_where_it_came(hop, flow):
        return Why("it would go out of the port it came in by, which a switch does only when told so by name")
    names = PRIORITIES.get((role, Table(flow.table))) if flow.table in Table._value2member_map_ else None
    name = None if names is None else named(names, flow)
    if base_priority(flow) == 0:
        return _missed(net, hop, role, Table(flow.table))
    if role is Role.EDGE:
        return _edge(net, hop, flow, name)
    return _fabric(net, hop, flow, name)


def why_unplaced(net: Network, hop: Hop) -> Why:
    """Of a hop that knows whose the address is, and not where its server is."""
    return _no_route(net, hop)


# ---- what a switch does by itself ----


def _ran_out(hop: Hop, flow: Flow) -> bool:
    return DecTtl() in flow.actions and read(hop.frame).ttl <= 1


def _back_where_it_came(hop: Hop, flow: Flow) -> bool:
    ports = [action.port for action in flow.actions if isinstance(action, Output)]
    return bool(ports) and set(ports) == {hop.in_port}


# ---- no entry but the last ----


def _missed(net: Network, hop: Hop, role: Role, table: Table) -> Why:
    match role, table:
        case Role.EDGE, Table.ADMIT:
            return _not_admitted(net, hop)
        case Role.EDGE, Table.ARP | Table.ND | Table.ANSWER:
            return Why(
                "an answer nobody asked for, or a question that is none: it ends here, it is never passed on"
            )
        case Role.EDGE, Table.DELIVER:
            return _not_delivered(net, hop)
        case Role.EDGE, _:
            return Why(f"{hop.switch} has no uplink yet, and nobody here has the MAC {dst_mac(hop)}")
        case Role.LEAF, Table.ADMIT:
            gateways = ", ".join(net.gateway_macs)
            tagged = Field.VLAN_VID in read(hop.frame).fields
            why = "it has a VLAN tag" if tagged else f"it is sent to {dst_mac(hop)}"
            return Why(
                f"a leaf takes in IP to the gateway's MAC and ARP, without a tag; {why}",
                (f"send it to {gateways}, untagged",),
            )
        case _, Table.ROUTE:
            return _no_route(net, hop)
        case Role.LEAF, Table.UNWRAP | Table.WRAP:
            return Why("by a tunnel goes IP alone, in the VNI of a VRF, without a tag; this is none")
        case _, Table.SERVERS:
            return Why(f"no server that is known has the MAC {dst_mac(hop)}", _to_servers())
        case _:
            return Why(f"a {role} takes in IP alone, from below; this is something else: {dst_mac(hop)}")


def _not_admitted(net: Network, hop: Hop) -> Why:
    """An edge's ADMIT has an entry for whatever comes from a port that it knows."""
    name = port_name(net, hop.switch, hop.in_port)
    uplinks = net.switches[hop.switch].uplinks
    if name in uplinks or hop.in_port == PortNo.LOCAL:
        server = net.server_of_edge(hop.switch)
        mac = "" if server is None else server.mac
        if name in uplinks:
            return Why(f"from its leaf {hop.switch} takes IP and ARP to {mac}, its server, and nothing else")
        return Why(
            f"the server itself speaks as {mac} from its own address, untagged, and as nobody else",
            (f"see `retinue server show {server.id}`",) if server is not None else (),
        )
    found = plugged_in(net, hop.switch, hop.in_port)
    if found is None:
        return Why(
            f"no VM is known at port {name} of {hop.switch}: whatever comes from there is dropped",
            ("register the VM (`retinue vm add`), and see rejected ports in `retinue switch list --json`",),
        )
    vm, nic = found
    return shut(net, vm, nic, hop.switch) or Why(
        f"{vm.id} has a port on {hop.switch}, and is not at home there: it is on {vm.server}",
        (f"it may send there once it is migrated: `retinue move start {vm.id} --to SERVER`",),
    )


# ---- edges ----


def _edge(net: Network, hop: Hop, flow: Flow, name: IntEnum | None) -> Why:
    reason = reason_of(flow.cookie)
    if flow.table == Table.ADMIT and reason is not None and reason in _CLAIMS:
        return _forged(net, hop, reason)
    if flow.table in (Table.ND, Table.ADMIT) and reason is Reason.SPOOFED_ND:
        return _forged(net, hop, reason)
    fixed = None if name is None else _EDGE.get((type(name), name))
    if fixed is not None:
        return fixed
    if name is EdgeAdmit.NOISE:
        return _noise(hop)
    if name is Forward.UNROUTABLE or name is Forward.LINK_SCOPE:
        return _unroutable(hop)
    if (name is Deliver.VM or name is EdgeAdmit.BOUND) and net.unanchored:
        return _unanchored(net, hop, name is Deliver.VM)
    return Why(f"an entry of {hop.switch} drops it")


def _unanchored(net: Network, hop: Hop, arrives: bool) -> Why:
    ip = destination(hop.frame) if arrives else source(hop.frame)
    holder = None if ip is None else net.holder(ip)
    vm = "VM" if holder is None else holder.vm
    return Why(
        f"{vm} is in another domain, and its home stands in for it no longer",
        (f"have it do so again: `retinue anchor resume {vm}`",),
    )


_ENDS_QUIETLY: tuple[tuple[IntEnum, Why], ...] = (
    (EdgeAdmit.UNSPECIFIED, Why("who joins a group tells nobody here: no group is forwarded")),
    (EdgeAdmit.RARP_ANNOUNCEMENT, Why("a hypervisor's announcement: nobody has to be told")),
    (EdgeAdmit.FABRIC_PRIORITY_TAG, Why("from the fabric come no tags of VLAN 0")),
    (
        EdgeAdmit.ROGUE_DHCP_QUESTION,
        Why(
            "no subnet of this NIC has addresses by DHCPv6",
            ("have one: `retinue subnet set SUBNET --dhcp6`",),
        ),
    ),
    (Arp.OWN_ADDRESS, Why("it asks for its own address, and gets no answer: nobody else has it")),
    (Answer.OWN_ADDRESS, Why("it asks for its own address, and gets no answer: nobody else has it")),
    (
        Answer.UNSPECIFIED,
        Why("it asks in nobody's name and names a MAC all the same: whoever gets such drops it (RFC 4861)"),
    ),
    (Nd.HONEST, Why("it says what is known already: it ends here, and nothing is wrong")),
    (
        Forward.TRUNK_GROUP,
        Why("it is sent to a group, by a NIC in a trunk, whose vnet does not flood"),
    ),
    (
        Forward.GROUP,
        Why(
            "it is sent to a group or to everybody: nothing is flooded, in any table",
            ("send it to one address; ARP, neighbour discovery and DHCP are answered without flooding",),
        ),
    ),
)
# Members of two enumerations are the same to a dictionary where their numbers are.
_EDGE = {(type(name), name): why for name, why in _ENDS_QUIETLY}
_CLAIMS = frozenset({Reason.SPOOFED_MAC, Reason.SPOOFED_IP, Reason.SPOOFED_ARP, Reason.ROGUE_DHCP})


def _noise(hop: Hop) -> Why:
    kind = read(hop.frame).eth_type
    return Why(
        f"type {kind:#06x} is neither IP nor ARP: nothing else is passed on, nor reported",
        ("send IP",),
    )


def _unroutable(hop: Hop) -> Why:
    return Why(
        f"{source(hop.frame)} to {destination(hop.frame)} is nothing that a router may forward "
        "(RFC 1812, 5.3.7; RFC 4291, 2.5)",
        ("send between addresses of hosts",),
    )


def _forged(net: Network, hop: Hop, reason: Reason) -> Why:
    """A spoofing attempt: what the frame claims beside what is so."""
    at = place(net, hop.switch, hop.in_port, src_mac(hop))
    host = at_port(net, at)
    who = host.name or f"port {hop.in_port}"
    vlan = read(hop.frame).fields.get(Field.VLAN_VID, 0) & VLAN_ID
    if vlan != at.vlan and host.mac == src_mac(hop):
        has = f"the VLAN tag {vlan}" if vlan else "no VLAN tag"
        goes = f"VLAN {at.vlan} of its trunk" if at.vlan else "none: it is not in a trunk"
        how = f"with the tag {at.vlan}" if at.vlan else "untagged"
        return Why(f"it has {has}, and {host.mac} goes with {goes}", (f"send it {how}",))
    match reason:
        case Reason.SPOOFED_MAC:
            return Why(
                f"the frame comes from {src_mac(hop)}, and the NIC at this port, of {who}, has {host.mac}",
                (f"send from {host.mac}; a NIC of a VM that is off is given another MAC by "
                 f"`retinue vm nic set {who} --mac MAC`",),
            )  # fmt: skip
        case Reason.ROGUE_DHCP:
            return Why(
                f"it speaks DHCP as a server, or past the controller, and {who} is no DHCP server",
                (f"make it one: `retinue vm nic set {who} --trust`; it answers untagged, from port 67",),
            )
        case Reason.SPOOFED_ND:
            return Why(
                f"neighbour discovery that says of {who} what is not so, or what only a router says",
                ("it may speak for addresses that are bound to it, with its own MAC, and as no router",),
            )
        case _:
            return _no_binding(net, hop, who)


def _no_binding(net: Network, hop: Hop, who: str) -> Why:
    host = at_port(net, place(net, hop.switch, hop.in_port, src_mac(hop)))
    claimed = source(hop.frame)
    fields = read(hop.frame).fields
    if claimed is not None and claimed in _bound(net, hop):
        sha = fields.get(Field.ARP_SHA)
        if sha is not None and mac_from_int(sha) != host.mac:
            return Why(
                f"ARP that says that {claimed} is at {mac_from_int(sha)}; {who} has it at {host.mac}",
                (f"say {host.mac}",),
            )
        return Why(
            f"{who} holds {claimed}, and this is not how it is used", ("send whole IP or ARP, untagged",)
        )
    if claimed is None:
        return Why(f"it has no address that can be read, and {who} may send from its own alone")
    mine = ", ".join(map(str, _bound(net, hop))) or "no address at all"
    holder = net.holder(claimed, host.vrf)
    own = f"send from {mine}" if _bound(net, hop) else "let it ask by DHCP"
    if holder is not None:
        shared = f"or let several have {claimed} by turns: `retinue vm nic set {who} --allow {claimed}`"
        return Why(
            f"{who} has no binding for {claimed}: it holds {mine}; {holder.vm} holds it", (own, shared)
        )
    given = f"or let it have {claimed}: by DHCP, or `retinue vm set {who} --address {claimed}`"
    return Why(f"{who} has no binding for {claimed}: it holds {mine}", (own, given))


def _bound(net: Network, hop: Hop) -> list[IP | Prefix]:
    """What the NIC at this port is bound to."""
    vm, nic = net.vm_at(hop.switch, hop.in_port), net.nic_at(hop.switch, hop.in_port, src_mac(hop))
    return [] if vm is None or nic is None else [a.leads for a in net.assignments_of(vm, nic)]


def _not_delivered(net: Network, hop: Hop) -> Why:
    """The fabric has brought it here, and nobody here takes it."""
    wanted = destination(hop.frame)
    if wanted is None:
        return Why("it is no IP packet")
    found = where_it_is(net, wanted, vrf_of(net, hop))
    return Why(f"nobody on {hop.switch} takes what is for {wanted}: {found.text}", found.advice)


# ---- leaves and spines ----


def _fabric(net: Network, hop: Hop, flow: Flow, name: IntEnum | None) -> Why:
    role = net.switches[hop.switch].role
    if flow.table == Table.ADMIT and reason_of(flow.cookie) in _CLAIMS:
        return _at_leaf(net, hop, reason_of(flow.cookie) or Reason.QUIET)
    if role is Role.LEAF and name is LeafAdmit.FENCED:
        server = next((s.id for s in servers_at(net, hop.switch, hop.in_port)), "")
        return Why(
            f"the operator has said that {server or 'the server at this port'} is dead: it is shut out",
            (f"when it is well: `retinue server unfence {server or 'SERVER'}`",),
        )
    if name is SpineAdmit.FENCED:
        return Why("the operator has said that all servers at the leaf that it comes from are dead")
    if role is Role.LEAF and name is LeafAdmit.FROM_SPINE_OTHER:
        return Why(
            "it came by a tunnel from an address that no leaf of ours has"
            if net.over_ip
            else "spines send IP alone, untagged where no VRF is, and this is something else"
        )
    if name is Route.UNROUTABLE:
        return _unroutable(hop)
    if name is Servers.FROM_ABOVE:
        return Why(f"it was sent down to this {role}, and the server with {dst_mac(hop)} is not here")
    if name is SpineAdmit.FROM_CORE_OTHER:
        return Why("cores send IP alone, untagged where no VRF is, and this is something else")
    if flow.table == Table.ROUTE:
        return _no_route(net, hop)
    return Why(f"an entry of {hop.switch} drops it")


def _at_leaf(net: Network, hop: Hop, reason: Reason) -> Why:
    here = ", ".join(s.id for s in servers_at(net, hop.switch, hop.in_port)) or "nobody that is known"
    if reason is Reason.ROGUE_DHCP:
        return Why(
            f"it is for DHCP clients, and at this port is {here}: no DHCP server",
            ("name the server and its port in the controller's configuration, with the service dhcp",),
        )
    claimed = source(hop.frame)
    server = next(iter(servers_at(net, hop.switch, hop.in_port)), None)
    may = "its own address"
    if server is not None and Service.ROUTER in server.services:
        may += " and from whatever is outside our subnets"
    return Why(
        f"{here} may not send from {claimed}: from {may}, and from no other (reverse path, RFC 2827)",
        ("send from its own address, to the fabric's gateway MAC",),
    )


def _no_route(net: Network, hop: Hop) -> Why:
    wanted = destination(hop.frame)
    if wanted is None:
        return Why("it is no IP packet")
    found = where_it_is(net, wanted, vrf_of(net, hop))
    return Why(f"{hop.switch} has no way to {wanted}: {found.text}", found.advice)


def _to_servers() -> tuple[str, ...]:
    return ("`retinue server list` shows the servers' MACs",)

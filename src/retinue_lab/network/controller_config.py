"""The controller's configuration file, made from the topology."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from retinue.core.limits import VXLAN_BYTES
from retinue_lab.network import credentials, tor_routers
from retinue_lab.topology.parts import (
    Addressed,
    CachePart,
    ForwarderPart,
    GatewayPart,
    RouterPart,
    ServerPart,
)
from retinue_lab.topology.topology import (
    CONTROLLER,
    DATABASE_PORT,
    DNS_PORT,
    FORWARDER,
    OPENFLOW_PORT,
    OVSDB_PORT,
    PEER_PORT,
    REST_PORT,
    SECOND_UPLINK,
    TUNNEL,
    UPLINK,
    Topology,
    fabric_port,
    node_of,
    tunnel_port,
)

MANDATE, QUICK_MANDATE = 10.0, 6.0
"""Seconds (cluster.mandate_seconds): a cluster of databases may be without a leader for some."""
Peers = Mapping[str, tuple[Topology, Path]]
"""By domain: its network, and the file with its authority."""
NO_PEERS: Peers = {}


def controller_config(
    topology: Topology, pki: Path | None = None, others: Peers = NO_PEERS, node: str = ""
) -> str:
    """The controller's configuration file (TOML) for this network; `others`: the domains beside it.

    `pki` is the folder with its certificate; without one it speaks plain text. `node`: where it is, if there
    are several.
    """
    node = node or topology.controller
    own = topology.management_addresses[node].ip
    rewrite = "" if topology.rewrite else "rewrite = false\n"
    spines = "" if topology.spines == "ip" else f'spines = "{topology.spines}"\n'
    tables = [
        f'gateway_mac = "{topology.gateway_mac}"\nmtu = {topology.mtu}\n{rewrite}{spines}',
        _table(
            "[listen]",
            openflow=f"{own}:{OPENFLOW_PORT}",
            ovsdb=f"{own}:{OVSDB_PORT}",
            rest=f"{own}:{REST_PORT}",
            plaintext=None if pki is not None else ["openflow", "ovsdb", "rest"],
        ),
        *([] if pki is None else [_tls_table(pki, CONTROLLER if node == topology.controller else node)]),
        *([] if pki is None or not topology.databases else [_cluster_tables(topology, pki.parent, node)]),
        *([_table("[dns]", zone=topology.zone, listen=f"{own}:{DNS_PORT}")] if topology.zone else []),
        *(
            _table("[[vnet]]", id=v.id, vlan=v.vlan, flood="controlled" if v.floods else None)
            for v in topology.vnet
        ),
        *(
            _table(
                "[[subnet]]",
                id=s.id,
                prefix=str(s.prefix),
                gateway=str(s.gateway),
                vnet=s.vnet,
                dhcp=topology.relays_to(s),
                dhcp_pools=topology.pools_of(s),
            )
            for s in topology.subnet
        ),
        *(
            _table(
                "[[subnet]]",
                id=s.id,
                prefix=str(s.prefix),
                gateway=str(s.gateway),
                vnet=s.vnet,
                slaac=s.slaac,
            )
            for s in topology.subnet6
        ),
        *(_table("[[vrf]]", id=t.id, tag=t.tag) for t in topology.tenant),
        *(_table("[[vnet]]", id=t.id, vrf=t.id) for t in topology.tenant),
        *(
            _table("[[subnet]]", id=t.id, prefix=str(t.prefix), gateway=str(t.gateway), vnet=t.id)
            for t in topology.tenant
        ),
        *(_table("[[gateway_group]]", id=group.id, mac=group.mac) for group in topology.gateway_group),
        *(
            _table(
                "[[switch]]",
                id=s.id,
                role=s.role,
                dpid=hex(s.dpid),
                uplink=UPLINK if s.role == "edge" else None,
                standby=[SECOND_UPLINK] if SECOND_UPLINK in s.ports else None,
                **_tunnel_end(topology, s.id),
                **_by_vdp(topology, s.id),
            )
            for s in topology.switches
        ),
        *(
            _table("[[switch]]", id=tor.id, role="leaf", router=tor_routers.adapter(tor.id))
            for tor in topology.tor
        ),
        *(
            _table(
                "[[link]]",
                **{
                    role: f"{lower}:{fabric_port(lower, upper)}",
                    "spine" if role == "leaf" else "core": f"{upper}:{fabric_port(upper, lower)}",
                },
            )
            for role, lower, upper in topology.links
        ),
        *([_table("[vxlan]", mtu=topology.mtu + VXLAN_BYTES)] if topology.ends else []),
        *(_server_table(topology, part) for part in topology.addressed),
        *(_gateway_tables(topology, part, own, others) for part in topology.gateways),
        *([] if topology.forwarder is None else [_forwarder_table(topology.forwarder)]),
    ]
    return "\n".join(tables)


def _tunnel_end(topology: Topology, switch: str) -> dict[str, str]:
    """What is said of a leaf that an IP network joins to the others."""
    leaf = topology.tunnel_ports.get(tunnel_port(switch))
    if leaf is None or leaf.endpoint is None:
        return {}
    return {"tunnel": tunnel_port(switch), "endpoint": str(leaf.endpoint.ip)}


def _by_vdp(topology: Topology, switch: str) -> dict[str, str | bool]:
    """What is said of a leaf that tells its servers the gateway's MAC, and of an edge that is told so."""
    group = next((leaf.gateway_group for leaf in topology.leaf if leaf.id == switch), "")
    if group:
        return {"gateway_group": group}
    return {"vdp": True} if any(one.edge == switch and one.vdp for one in topology.server) else {}


def _gateway_tables(topology: Topology, part: GatewayPart, own: object, others: Peers) -> str:
    other, ca = others[part.domain]
    at = f"{part.leaf}:{fabric_port(part.leaf, part.id)}"
    return _table("[[server]]", id=part.id, mac=part.mac, edge=part.edge, at=at) + _table(
        "[[domain]]",
        id=part.domain,
        gateway=part.id,
        tunnel=TUNNEL,
        url=other.peer_url,
        listen=f"{own}:{PEER_PORT}",
        ca=str(ca),
        prefixes=[str(prefix) for prefix in other.prefixes],
        names=bool(topology.zone) and topology.zone == other.zone,
        images=True,
    )


def _cluster_tables(topology: Topology, lab: Path, node: str) -> str:
    shown = credentials.database(lab, node)
    at = [str(topology.management_addresses[one].ip) for one in topology.database_nodes]
    return _table(
        "[cluster]",
        name=node,
        url=topology.url_of(node),
        database=[f"ssl:{address}:{DATABASE_PORT}" for address in at],
        mandate_seconds=MANDATE if len(at) > 1 else QUICK_MANDATE,
    ) + _table("[cluster.tls]", ca=str(shown.ca), certificate=str(shown.certificate), key=str(shown.key))


def _tls_table(pki: Path, label: str) -> str:
    own = pki / f"{CONTROLLER}-{label}"
    return _table("[tls]", ca=f"{pki / 'ca.pem'}", certificate=f"{own}.pem", key=f"{own}.key")


def _server_table(topology: Topology, part: Addressed) -> str:
    node = node_of(part)
    service = "cache" if isinstance(part, CachePart) else node
    routes = ["0.0.0.0/0", *(["::/0"] if topology.subnet6 else [])]
    return _table(
        "[[server]]",
        id=node,
        mac=part.mac,
        address=str(part.address),
        edge=part.edge if isinstance(part, ServerPart) else None,
        services=None if isinstance(part, ServerPart) else [service],
        routes=routes if isinstance(part, RouterPart) else None,
        at=f"{part.leaf}:{fabric_port(part.leaf, node)}" if part.given or topology.tor else None,
    )


def _forwarder_table(part: ForwarderPart) -> str:
    """It has no IP address by which it could be found."""
    at = f"{part.leaf}:{fabric_port(part.leaf, FORWARDER)}"
    return _table("[[server]]", id=FORWARDER, mac=part.mac, services=["fcf"], at=at)


def _table(header: str, **keys: str | float | bool | list[str] | None) -> str:
    """A TOML table; keys that are None are left out. Every value is plain ASCII, whose JSON is TOML too."""
    lines = (f"{key} = {msgspec.json.encode(v).decode()}\n" for key, v in keys.items() if v is not None)
    return f"{header}\n{''.join(lines)}"

"""The controller's configuration file, made from the topology."""

from pathlib import Path

import msgspec

from retinue_lab.topology.topology import (
    CONTROLLER,
    OPENFLOW_PORT,
    OVSDB_PORT,
    REST_PORT,
    UPLINK,
    DhcpPart,
    RouterPart,
    ServerPart,
    Topology,
    fabric_port,
    node_of,
)


def controller_config(topology: Topology, pki: Path | None = None) -> str:
    """The controller's configuration file (TOML) for this network.

    `pki` is the folder with its certificate; without one it speaks plain text.
    """
    own = topology.management_addresses[CONTROLLER].ip
    tables = [
        f'gateway_mac = "{topology.gateway_mac}"\nmtu = {topology.mtu}\n',
        _table(
            "[listen]",
            openflow=f"{own}:{OPENFLOW_PORT}",
            ovsdb=f"{own}:{OVSDB_PORT}",
            rest=f"{own}:{REST_PORT}",
            plaintext=None if pki is not None else ["openflow", "ovsdb", "rest"],
        ),
        *([] if pki is None else [_tls_table(pki)]),
        *(
            _table(
                "[[subnet]]",
                id=s.id,
                prefix=str(s.prefix),
                gateway=str(s.gateway),
                dhcp=topology.relays_to(s),
                dhcp_pools=topology.pools_of(s),
            )
            for s in topology.subnet
        ),
        *(
            _table("[[subnet]]", id=s.id, prefix=str(s.prefix), gateway=str(s.gateway), slaac=s.slaac)
            for s in topology.subnet6
        ),
        *(_table("[[vrf]]", id=t.id, tag=t.tag) for t in topology.tenant),
        *(_table("[[vnet]]", id=t.id, vrf=t.id) for t in topology.tenant),
        *(
            _table("[[subnet]]", id=t.id, prefix=str(t.prefix), gateway=str(t.gateway), vnet=t.id)
            for t in topology.tenant
        ),
        *(
            _table(
                "[[switch]]",
                id=s.id,
                role=s.role,
                dpid=hex(s.dpid),
                uplink=UPLINK if s.role == "edge" else None,
            )
            for s in topology.switches
        ),
        *(
            _table(
                "[[link]]",
                leaf=f"{leaf.id}:{fabric_port(leaf.id, spine.id)}",
                spine=f"{spine.id}:{fabric_port(spine.id, leaf.id)}",
            )
            for leaf in topology.leaf
            for spine in topology.spine
        ),
        *(_server_table(topology, part) for part in topology.attached),
    ]
    return "\n".join(tables)


def _tls_table(pki: Path) -> str:
    own = pki / f"{CONTROLLER}-{CONTROLLER}"
    return _table("[tls]", ca=f"{pki / 'ca.pem'}", certificate=f"{own}.pem", key=f"{own}.key")


def _server_table(topology: Topology, part: ServerPart | DhcpPart | RouterPart) -> str:
    node = node_of(part)
    routes = ["0.0.0.0/0", *(["::/0"] if topology.subnet6 else [])]
    return _table(
        "[[server]]",
        id=node,
        mac=part.mac,
        address=str(part.address),
        edge=part.edge if isinstance(part, ServerPart) else None,
        services=None if isinstance(part, ServerPart) else [node],
        routes=routes if isinstance(part, RouterPart) else None,
        at=f"{part.leaf}:{fabric_port(part.leaf, node)}" if part.given else None,
    )


def _table(header: str, **keys: str | int | list[str] | None) -> str:
    """A TOML table; keys that are None are left out. Every value is plain ASCII, whose JSON is TOML too."""
    lines = (f"{key} = {msgspec.json.encode(v).decode()}\n" for key, v in keys.items() if v is not None)
    return f"{header}\n{''.join(lines)}"

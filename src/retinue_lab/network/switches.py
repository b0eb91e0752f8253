"""Open vSwitch in the lab: a database and a vswitchd of its own on each server, one pair for the fabric.

Every bridge uses the userspace datapath, forwards nothing by itself (fail-mode secure) and looks for the
controller on the management network; so does every database. Both speak TLS, with the node's certificate.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retinue.security.credentials import Credentials
from retinue_lab.processes.processes import Supervisor, run
from retinue_lab.topology.parts import GatewayPart, ServerPart
from retinue_lab.topology.topology import (
    EDGE_BRIDGE,
    OPENFLOW_PORT,
    OUTER_BRIDGE,
    OUTER_NIC,
    OVSDB_PORT,
    Bridge,
    Topology,
)

RUN = Path("/run/retinue")
"""One folder a node for its database and sockets; on the sandbox's own tmpfs."""
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
TUNNEL_END = ["type=vxlan", "options:remote_ip=flow", "options:key=flow", "options:dst_port=4789"]
"""A leaf's tunnel port: which leaf a packet goes to, and comes from, is the flow entries' to say. Its own
address is that of the route (see `keep_routes`)."""
PROBE_MS = 5000
"""Silence after which a switch asks whether the controller is alive."""
BACKOFF_MS = 1000
"""Longest pause before a switch tries the controller again."""


def env(node: str) -> dict[str, str]:
    """The environment in which ovs-vsctl, ovs-ofctl and ovs-appctl find this node's switch."""
    folder = str(RUN / node)
    return {"OVS_RUNDIR": folder, "OVS_DBDIR": folder, "OVS_LOGDIR": folder}


def nodes(topology: Topology) -> list[str]:
    """The nodes that run Open vSwitch."""
    return list(dict.fromkeys(bridge.node for bridge in topology.switches))


async def make_database() -> Path:
    """An empty database, to be copied for each node."""
    RUN.mkdir(exist_ok=True)
    path = RUN / "empty.db"
    if path.exists():
        return path
    await run(["ovsdb-tool", "create", str(path), SCHEMA])
    return path


async def start(
    supervisor: Supervisor, topology: Topology, node: str, empty: Path, own: Credentials, roomy: str
) -> None:
    """Start a node's Open vSwitch with all its bridges; return when the bridges exist.

    `own`: whom it is; `roomy`: a library to be loaded into it, see switch/roomy.c.
    """
    folder = RUN / node
    folder.mkdir()
    shutil.copy(empty, folder / "conf.db")
    socket = f"unix:{folder}/db.sock"
    common = ["--detach", "--no-chdir", "-vconsole:off", "-vsyslog:off", "-vfile:info"]
    database, switch = f"{node}-ovsdb", f"{node}-vswitchd"
    await supervisor.start_detached(
        database,
        node,
        [
            "ovsdb-server",
            f"{folder}/conf.db",
            f"--remote=punix:{folder}/db.sock",
            "--remote=db:Open_vSwitch,Open_vSwitch,manager_options",
            "--private-key=db:Open_vSwitch,SSL,private_key",
            "--certificate=db:Open_vSwitch,SSL,certificate",
            "--ca-cert=db:Open_vSwitch,SSL,ca_cert",
            f"--pidfile={folder}/ovsdb-server.pid",
            f"--log-file={supervisor.logs / database}.log",
            *common,
        ],
        folder / "ovsdb-server.pid",
        env=env(node),
    )
    await _vsctl(node, "--no-wait", "init")
    await supervisor.start_detached(
        switch,
        node,
        [
            "ovs-vswitchd",
            socket,
            f"--pidfile={folder}/ovs-vswitchd.pid",
            f"--log-file={supervisor.logs / switch}.log",
            *common,
        ],
        folder / "ovs-vswitchd.pid",
        env={**env(node), "LD_PRELOAD": roomy},
    )
    await _vsctl(node, "--timeout=30", *_configuration(topology, node, own))


def _configuration(topology: Topology, node: str, own: Credentials) -> list[str]:
    """One ovs-vsctl transaction that makes a node's certificate, bridges, ports, controllers and managers."""
    controllers = [topology.management_addresses[node].ip for node in topology.controller_nodes]
    words = ["set", "open_vswitch", ".", f"external_ids:system-id={node}", f"external_ids:hostname={node}"]
    words += [
        *("--", "set-ssl", str(own.key), str(own.certificate), str(own.ca)),
    ]
    for n, address in enumerate(controllers):
        words += ["--", f"--id=@manager{n}", "create", "manager", f'target="ssl:{address}:{OVSDB_PORT}"']
        words += [f"inactivity_probe={PROBE_MS}", f"max_backoff={BACKOFF_MS}"]
    words += ["--", "set", "open_vswitch", ".", f"manager_options={_rows('manager', len(controllers))}"]
    for bridge in topology.switches:
        if bridge.node == node:
            words += _bridge(topology, bridge, [f"ssl:{one}:{OPENFLOW_PORT}" for one in controllers])
    if node in topology.ends:
        words += _outer_bridge()
    return words


def _rows(name: str, count: int) -> str:
    """The rows @name0, @name1, ... as a set."""
    return f"[{','.join(f'@{name}{n}' for n in range(count))}]"


def _bridge(topology: Topology, bridge: Bridge, controllers: Sequence[str]) -> list[str]:
    name = bridge.bridge
    words = ["--", "add-br", name]
    for n, controller in enumerate(controllers):
        words += ["--", f"--id=@{bridge.id}-{n}", "create", "controller", f'target="{controller}"']
        words += [f"inactivity_probe={PROBE_MS}", f"max_backoff={BACKOFF_MS}", "connection_mode=out-of-band"]
    rows = _rows(f"{bridge.id}-", len(controllers))
    words += [
        *("--", "set", "bridge", name, f"controller={rows}", "datapath_type=netdev", "fail-mode=secure"),
        *("protocols=OpenFlow14", f"other_config:datapath-id={bridge.dpid:016x}"),
        "other_config:disable-in-band=true",
    ]
    if (server := _server_of(topology, bridge)) is not None:
        words.append(f'other_config:hwaddr="{server.mac}"')
    for number, port in enumerate(bridge.ports, 1):
        words += ["--", "add-port", name, port, "--", "set", "interface", port, f"ofport_request={number}"]
        if port in topology.tunnel_ports:
            words += TUNNEL_END
    return words


def _outer_bridge() -> list[str]:
    """The bridge by which tunnels' packets go out, and nothing of ours: it has no controller."""
    return [
        *("--", "add-br", OUTER_BRIDGE, "--", "set", "bridge", OUTER_BRIDGE, "datapath_type=netdev"),
        *("fail-mode=standalone", "--", "add-port", OUTER_BRIDGE, OUTER_NIC),
    ]


def _server_of(topology: Topology, bridge: Bridge) -> ServerPart | GatewayPart | None:
    machines: tuple[ServerPart | GatewayPart, ...] = (*topology.server, *topology.gateways)
    return next((s for s in machines if bridge.bridge == EDGE_BRIDGE and s.id == bridge.node), None)


async def keep_routes(topology: Topology, node: str) -> None:
    """Say the ways to other leaves' endpoints to the node's switch itself.

    In user space it asks the kernel for all routes again whenever any interface comes or goes, a VM's tap,
    too, and drops tunnels' packets meanwhile; routes that were said stay.
    """
    own = topology.ends[node].endpoint
    for leaf in topology.ends.values():
        if own is not None and leaf.endpoint is not None and leaf.endpoint != own:
            way = [str(leaf.endpoint.network), OUTER_BRIDGE, str(own.network[1])]
            await run(["ovs-appctl", "ovs/route/add", *way], node=node, env=env(node))


async def ports(node: str) -> dict[str, dict[str, int]]:
    """Port numbers by name for each bridge of a node, the LOCAL ports left out."""
    tables = [
        await _vsctl(node, "--format=json", f"--columns={columns}", "list", table)
        for table, columns in (("bridge", "name,ports"), ("port", "_uuid,name"), ("interface", "name,ofport"))
    ]
    bridges, port_rows, interface_rows = (json.loads(table)["data"] for table in tables)
    names = {row[0][1]: row[1] for row in port_rows}
    numbers = {name: number for name, number in interface_rows if isinstance(number, int) and number > 0}
    found: dict[str, dict[str, int]] = {}
    for bridge, members in bridges:
        its = sorted(names[uuid] for uuid in _uuids(members) if uuid in names)
        found[bridge] = {name: numbers[name] for name in its if name in numbers and name != bridge}
    return found


def _uuids(value: Sequence[Any]) -> list[str]:
    """The UUIDs of an OVSDB column: one of them, or a set (RFC 7047 section 5.1)."""
    return [value[1]] if value[0] == "uuid" else [uuid for _, uuid in value[1]]


async def _vsctl(node: str, *words: str) -> str:
    return await run(["ovs-vsctl", *words], node=node, env=env(node))

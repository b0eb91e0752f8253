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
from retinue_lab.topology.topology import (
    CONTROLLER,
    EDGE_BRIDGE,
    OPENFLOW_PORT,
    OVSDB_PORT,
    Bridge,
    ServerPart,
    Topology,
)

RUN = Path("/run/retinue")
"""One folder a node for its database and sockets; on the sandbox's own tmpfs."""
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
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
    """One ovs-vsctl transaction that makes a node's certificate, bridges, ports, controllers and manager."""
    controller = topology.management_addresses[CONTROLLER].ip
    words = ["set", "open_vswitch", ".", f"external_ids:system-id={node}", f"external_ids:hostname={node}"]
    words += [
        *("--", "set-ssl", str(own.key), str(own.certificate), str(own.ca)),
        *("--", "--id=@manager", "create", "manager", f'target="ssl:{controller}:{OVSDB_PORT}"'),
        *(f"inactivity_probe={PROBE_MS}", f"max_backoff={BACKOFF_MS}"),
        *("--", "set", "open_vswitch", ".", "manager_options=@manager"),
    ]
    for bridge in topology.switches:
        if bridge.node == node:
            words += _bridge(topology, bridge, f"ssl:{controller}:{OPENFLOW_PORT}")
    return words


def _bridge(topology: Topology, bridge: Bridge, controller: str) -> list[str]:
    name, row = bridge.bridge, f"@{bridge.id}"
    words = [
        *("--", "add-br", name),
        *("--", f"--id={row}", "create", "controller", f'target="{controller}"'),
        *(f"inactivity_probe={PROBE_MS}", f"max_backoff={BACKOFF_MS}", "connection_mode=out-of-band"),
        *("--", "set", "bridge", name, f"controller={row}", "datapath_type=netdev", "fail-mode=secure"),
        *("protocols=OpenFlow14", f"other_config:datapath-id={bridge.dpid:016x}"),
        "other_config:disable-in-band=true",
    ]
    if isinstance(server := _server_of(topology, bridge), ServerPart):
        words.append(f'other_config:hwaddr="{server.mac}"')
    for number, port in enumerate(bridge.ports, 1):
        words += ["--", "add-port", name, port, "--", "set", "interface", port, f"ofport_request={number}"]
    return words


def _server_of(topology: Topology, bridge: Bridge) -> ServerPart | None:
    return next((s for s in topology.server if bridge.bridge == EDGE_BRIDGE and s.id == bridge.node), None)


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

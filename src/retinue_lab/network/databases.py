"""The servers of the database that several controllers share: one, or a cluster (Raft), each on its node.

Its files are in the lab's folder, so that a server that is started again goes on with what it had.
"""

from pathlib import Path

import msgspec

from retinue.controller.store.schema import NAME, schema
from retinue_lab.network import credentials
from retinue_lab.processes.processes import Supervisor, run
from retinue_lab.topology.topology import DATABASE_PORT, RAFT_PORT, Topology

JOIN_SECONDS = 30
ELECTION_MS = 2000
"""How long members wait for a sign of their leader; ovsdb-server's own 1000 are short for a busy machine."""


def folder(lab: Path, node: str) -> Path:
    return lab / "databases" / node


async def start(supervisor: Supervisor, topology: Topology, lab: Path, node: str) -> None:
    """Start a server, or start it again. One without a file joins the cluster, which the first one makes."""
    own = folder(lab, node)
    file = own / "retinue.db"
    joins = not file.exists()
    if joins:
        own.mkdir(parents=True, exist_ok=True)
        await _make(topology, node, file)
    address = topology.management_addresses[node].ip
    shown = credentials.database(lab, node)
    await supervisor.start_detached(
        node,
        node,
        [
            "ovsdb-server",
            str(file),
            f"--remote=pssl:{DATABASE_PORT}:{address}",
            f"--remote=punix:{own}/db.sock",
            *(f"--private-key={shown.key}", f"--certificate={shown.certificate}", f"--ca-cert={shown.ca}"),
            f"--unixctl={own}/control.sock",
            f"--pidfile={own}/server.pid",
            f"--log-file={supervisor.logs / node}.log",
            *("--detach", "--no-chdir", "-vconsole:off", "-vsyslog:off", "-vfile:info"),
        ],
        own / "server.pid",
    )
    if joins:  # Until all have joined, fewer may fail.
        wait = ["ovsdb-client", f"--timeout={JOIN_SECONDS}", "wait", f"unix:{own}/db.sock", NAME, "connected"]
        await run(wait)


async def _make(topology: Topology, node: str, file: Path) -> None:
    declared = file.with_name("retinue.ovsschema")
    declared.write_bytes(msgspec.json.encode(schema()))
    if topology.databases == 1:
        await run(["ovsdb-tool", "create", str(file), str(declared)])
        return
    at = {one: f"ssl:{topology.management_addresses[one].ip}:{RAFT_PORT}" for one in topology.database_nodes}
    own, others = at.pop(node), list(at.values())
    if node == topology.database_nodes[0]:
        timer = f"--election-timer={ELECTION_MS}"
        await run(["ovsdb-tool", timer, "create-cluster", str(file), str(declared), own])
    else:
        await run(["ovsdb-tool", "join-cluster", str(file), NAME, own, *others])

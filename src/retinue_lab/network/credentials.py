"""The lab's own certificate authority, and which certificate each part of the lab has.

pki/ca.pem, ca.key                  made at `up`, removed at `down`
pki/controller-controller.pem       the controller
pki/switch-NODE.pem                 a node's Open vSwitch, for all its bridges
pki/agent-SERVER.pem                a server's agent
pki/manager-lab.pem                 commands, tests and the demonstration, which work with the lab
pki-database/                       an authority apart: servers of a shared database, and the controllers
"""

from pathlib import Path

from retinue.security.authority import Authority, PkiError
from retinue.security.credentials import Credentials
from retinue.security.identity import PeerRole
from retinue_lab.errors import LabError
from retinue_lab.topology.topology import CONTROLLER, Topology

DAYS = 90
"""A lab lives for hours; but of certificates that end within 30 days a controller warns."""
MANAGER = "lab"


def folder(lab: Path) -> Path:
    return lab / "pki"


def database_folder(lab: Path) -> Path:
    return lab / "pki-database"


def make(topology: Topology, lab: Path) -> None:
    """Make the authority and every certificate. Raises LabError."""
    addresses = topology.management_addresses

    def at(node: str) -> list[str]:
        return [str(addresses[node].ip)]

    try:
        authority = Authority.create(folder(lab), f"laboratory {topology.domain}".strip(), DAYS + 1)
        authority.issue(PeerRole.CONTROLLER, CONTROLLER, addresses=at(topology.controller), days=DAYS)
        for node in topology.controller_nodes[1:]:
            authority.issue(PeerRole.CONTROLLER, node, addresses=at(node), days=DAYS)
        if topology.databases:
            apart = Authority.create(database_folder(lab), "database", DAYS + 1)
            for node in (*topology.controller_nodes, *topology.database_nodes):
                apart.issue(PeerRole.CONTROLLER, node, addresses=at(node), days=DAYS)
        for node in dict.fromkeys(bridge.node for bridge in topology.switches):
            own = [bridge.id for bridge in topology.switches if bridge.node == node]
            authority.issue(PeerRole.SWITCH, node, names=own, days=DAYS)
        for server in topology.agents:
            authority.issue(PeerRole.AGENT, server, addresses=at(server), days=DAYS)
        authority.issue(PeerRole.MANAGER, MANAGER, days=DAYS)
    except PkiError as error:
        raise LabError(f"cannot make the lab's certificates: {error}") from error


def database(lab: Path, node: str) -> Credentials:
    """What a controller, or a server of their database, shows to the others of these."""
    return _in(database_folder(lab), PeerRole.CONTROLLER, node)


def of(lab: Path, role: PeerRole, label: str) -> Credentials:
    return _in(folder(lab), role, label)


def _in(own: Path, role: PeerRole, label: str) -> Credentials:
    return Credentials(own / "ca.pem", own / f"{role}-{label}.pem", own / f"{role}-{label}.key")


def manager(lab: Path) -> Credentials:
    return of(lab, PeerRole.MANAGER, MANAGER)


def agent(lab: Path, server: str) -> Credentials:
    return of(lab, PeerRole.AGENT, server)


def switch(lab: Path, node: str) -> Credentials:
    return of(lab, PeerRole.SWITCH, node)

"""The lab's own certificate authority, and which certificate each part of the lab has.

pki/ca.pem, ca.key                  made at `up`, removed at `down`
pki/controller-controller.pem       the controller
pki/switch-NODE.pem                 a node's Open vSwitch, for all its bridges
pki/agent-SERVER.pem                a server's agent
pki/manager-lab.pem                 commands, tests and the demonstration, which work with the lab
"""

from pathlib import Path

from retinue.security.authority import Authority, PkiError
from retinue.security.credentials import Credentials
from retinue.security.identity import PeerRole
from retinue_lab.errors import LabError
from retinue_lab.topology.topology import CONTROLLER, Topology

DAYS = 30
"""A lab lives for hours."""
MANAGER = "lab"


def folder(lab: Path) -> Path:
    return lab / "pki"


def make(topology: Topology, lab: Path) -> None:
    """Make the authority and every certificate. Raises LabError."""
    addresses = topology.management_addresses

    def at(node: str) -> list[str]:
        return [str(addresses[node].ip)]

    try:
        authority = Authority.create(folder(lab), "laboratory", DAYS + 1)
        authority.issue(PeerRole.CONTROLLER, CONTROLLER, addresses=at(CONTROLLER), days=DAYS)
        for node in dict.fromkeys(bridge.node for bridge in topology.switches):
            own = [bridge.id for bridge in topology.switches if bridge.node == node]
            authority.issue(PeerRole.SWITCH, node, names=own, days=DAYS)
        for server in topology.server:
            authority.issue(PeerRole.AGENT, server.id, addresses=at(server.id), days=DAYS)
        authority.issue(PeerRole.MANAGER, MANAGER, days=DAYS)
    except PkiError as error:
        raise LabError(f"cannot make the lab's certificates: {error}") from error


def of(lab: Path, role: PeerRole, label: str) -> Credentials:
    own = folder(lab)
    return Credentials(own / "ca.pem", own / f"{role}-{label}.pem", own / f"{role}-{label}.key")


def manager(lab: Path) -> Credentials:
    return of(lab, PeerRole.MANAGER, MANAGER)


def agent(lab: Path, server: str) -> Credentials:
    return of(lab, PeerRole.AGENT, server)


def switch(lab: Path, node: str) -> Credentials:
    return of(lab, PeerRole.SWITCH, node)

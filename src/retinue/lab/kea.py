"""The lab's DHCP server: Kea, an independent judge of our DHCP, in a node of its own."""

import os
from pathlib import Path
from typing import Any

import msgspec

from retinue.lab.errors import LabError
from retinue.lab.processes import Supervisor
from retinue.lab.topology import DHCP, Topology

RUN = Path("/run/retinue/dhcp")
READY = "DHCP4_STARTED"
"""What Kea logs when its sockets are open and its leases read."""
NIC = "eth0"


def configuration(topology: Topology, leases: Path) -> dict[str, Any]:
    """Kea's configuration: one subnet with its pool and reservations, leases kept in the file `leases`."""
    if (dhcp := topology.dhcp) is None:
        raise LabError("this topology has no DHCP server")
    subnet = topology.leased
    return {
        "Dhcp4": {
            "interfaces-config": {"interfaces": [NIC], "dhcp-socket-type": "raw"},
            "control-socket": {"socket-type": "unix", "socket-name": str(RUN / "kea.sock")},
            "lease-database": {
                "type": "memfile",
                "persist": True,
                "name": str(leases),
                "lfc-interval": 0,
            },
            # Says NAK to a client whose address it does not know, instead of nothing (row A5).
            "authoritative": True,
            "valid-lifetime": dhcp.lease_seconds,
            "renew-timer": dhcp.lease_seconds // 2,
            "rebind-timer": dhcp.lease_seconds * 7 // 8,
            "subnet4": [
                {
                    "id": 1,
                    "subnet": str(subnet.prefix),
                    "pools": [{"pool": f"{dhcp.pool[0]} - {dhcp.pool[1]}"}],
                    "option-data": [{"name": "routers", "data": str(subnet.gateway)}],
                    "reservations": [
                        {"hw-address": r.mac, "ip-address": str(r.address)} for r in dhcp.reservation
                    ],
                }
            ],
            "loggers": [
                {"name": "kea-dhcp4", "output_options": [{"output": "stdout"}], "severity": "INFO"},
            ],
        }
    }


async def start(supervisor: Supervisor, topology: Topology, folder: Path) -> None:
    """Start Kea with its lease file in `folder`; return when it serves. Its NIC must be up."""
    RUN.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    path = folder / "kea-dhcp4.json"
    path.write_bytes(
        msgspec.json.format(msgspec.json.encode(configuration(topology, folder / "leases4.csv")))
    )
    env = {"KEA_PIDFILE_DIR": str(RUN), "KEA_LOCKFILE_DIR": str(RUN), "KEA_LOGGER_DESTINATION": "stdout"}
    await supervisor.start("kea-dhcp4", DHCP, ["kea-dhcp4", "-c", os.fspath(path)], env=env, ready_line=READY)

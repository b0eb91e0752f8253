"""The lab's DHCP server, on a node of its own: a program of others to test ours against.

kea        Kea. Hears and answers by raw sockets, so it addresses frames to the client's MAC itself.
kea-udp    Kea with UDP sockets: its kernel addresses what is sent. They are bound to its own address, so it
           hears no broadcast: VMs are relayed to it, those of its own subnet, too.
dnsmasq    the small one of routers and of libvirt; the kernel, too
isc-dhcpd  ISC's older server; raw sockets to a client without address, the kernel to one that renews
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from retinue_lab.errors import LabError
from retinue_lab.processes.processes import Supervisor
from retinue_lab.topology.parts import DhcpPart
from retinue_lab.topology.topology import DHCP, Topology

RUN = Path("/run/retinue/dhcp")
NIC = "eth0"
DAEMONS = {"kea": "kea-dhcp4", "kea-udp": "kea-dhcp4", "dnsmasq": "dnsmasq", "isc-dhcpd": "dhcpd"}
"""By `[dhcp] program` of a topology: the program that runs, which is also its name in the lab."""
PACKAGES = {"kea-dhcp4": "kea-dhcp4-server", "dnsmasq": "dnsmasq-base", "dhcpd": "isc-dhcp-server"}
"""Their Debian packages."""
KEA_READY = "DHCP4_STARTED"
"""What Kea logs when its sockets are open and its leases read."""
FOLDER = "dhcp"
"""In the lab's directory: configuration and leases."""


@dataclass(frozen=True, slots=True)
class Program:
    argv: list[str]
    ready: str
    """What it prints when it serves."""
    configuration: bytes


async def start(supervisor: Supervisor, topology: Topology, directory: Path) -> None:
    """Start the DHCP server with its files in the lab's directory; return when it serves. Its NIC must be up.

    Raises LabError.
    """
    dhcp, folder = _dhcp(topology), directory / FOLDER
    RUN.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    program = program_of(topology, folder)
    (folder / "configuration").write_bytes(program.configuration)
    env = {"KEA_PIDFILE_DIR": str(RUN), "KEA_LOCKFILE_DIR": str(RUN), "KEA_LOGGER_DESTINATION": "stdout"}
    name = DAEMONS[dhcp.program]
    await supervisor.start(name, DHCP, program.argv, env=env, ready_line=program.ready)


def program_of(topology: Topology, folder: Path) -> Program:
    """How the topology's DHCP server is run. Its configuration is the file `configuration` in the folder."""
    path = os.fspath(folder / "configuration")
    match _dhcp(topology).program:
        case "dnsmasq":
            # Not a daemon: it does not try to become another user, whom the sandbox has not.
            argv = ["dnsmasq", "--no-daemon", f"--conf-file={path}"]
            text = dnsmasq_configuration(topology, folder / "dnsmasq.leases")
            return Program(argv, "DHCP, IP range", text.encode())
        case "isc-dhcpd":
            leases = folder / "dhcpd.leases"
            leases.touch()
            argv = ["dhcpd", "-4", "-d", "-f", "-cf", path, "-lf", str(leases), "-pf", str(RUN / "pid"), NIC]
            return Program(argv, "Server starting service", dhcpd_configuration(topology).encode())
        case _:
            found = msgspec.json.encode(kea_configuration(topology, folder / "leases4.csv"))
            return Program(["kea-dhcp4", "-c", path], KEA_READY, msgspec.json.format(found))


def kea_configuration(topology: Topology, leases: Path) -> dict[str, Any]:
    """One subnet with its pool and reservations, leases kept in the file `leases`."""
    dhcp, subnet = _dhcp(topology), topology.leased
    sockets = "udp" if dhcp.program == "kea-udp" else "raw"
    return {
        "Dhcp4": {
            "interfaces-config": {"interfaces": [NIC], "dhcp-socket-type": sockets},
            "control-socket": {"socket-type": "unix", "socket-name": str(RUN / "kea.sock")},
            "lease-database": {
                "type": "memfile",
                "persist": True,
                "name": str(leases),
                "lfc-interval": 0,
            },
            # Answers a client whose address it does not know by NAK, instead of nothing.
            "authoritative": True,
            "valid-lifetime": dhcp.lease_seconds,
            "renew-timer": dhcp.lease_seconds // 2,
            "rebind-timer": dhcp.lease_seconds * 7 // 8,
            "subnet4": [
                {
                    "id": 1,
                    "subnet": str(subnet.prefix),
                    "pools": [{"pool": f"{dhcp.pool[0]} - {dhcp.pool[1]}"}],
                    "option-data": [
                        {"name": "routers", "data": str(subnet.gateway)},
                        {"name": "interface-mtu", "data": str(topology.mtu)},
                    ],
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


def dnsmasq_configuration(topology: Topology, leases: Path) -> str:
    """dnsmasq takes no lease of less than two minutes: one that is shorter lasts as long."""
    dhcp, subnet = _dhcp(topology), topology.leased
    first, last = dhcp.pool
    lines = [
        "port=0",  # no DNS
        f"interface={NIC}",
        "bind-interfaces",
        "no-ping",
        "log-dhcp",
        "dhcp-authoritative",
        f"dhcp-leasefile={leases}",
        f"dhcp-range={first},{last},{subnet.prefix.netmask},{dhcp.lease_seconds}",
        f"dhcp-option=option:router,{subnet.gateway}",
        f"dhcp-option=option:mtu,{topology.mtu}",
        *(f"dhcp-host={r.mac},{r.address}" for r in dhcp.reservation),
    ]
    return "\n".join(lines) + "\n"


def dhcpd_configuration(topology: Topology) -> str:
    dhcp, subnet = _dhcp(topology), topology.leased
    first, last = dhcp.pool
    home = topology.subnet_of(dhcp.address)
    lines = [
        "authoritative;",
        "ping-check false;",
        "dhcp-cache-threshold 0;",  # Each renewal has a lease of full length.
        f"default-lease-time {dhcp.lease_seconds};",
        f"max-lease-time {dhcp.lease_seconds};",
        f"subnet {subnet.prefix.network_address} netmask {subnet.prefix.netmask} {{",
        f"  range {first} {last};",
        f"  option routers {subnet.gateway};",
        f"  option interface-mtu {topology.mtu};",
        "}",
    ]
    if home.id != subnet.id:  # It must know the network it is in.
        lines.append(f"subnet {home.prefix.network_address} netmask {home.prefix.netmask} {{ }}")
    for number, r in enumerate(dhcp.reservation, 1):
        lines.append(f"host h{number} {{ hardware ethernet {r.mac}; fixed-address {r.address}; }}")
    return "\n".join(lines) + "\n"


def _dhcp(topology: Topology) -> DhcpPart:
    if topology.dhcp is None:
        raise LabError("this topology has no DHCP server")
    return topology.dhcp

"""The agents of a laboratory, one on each server, as on servers of their own."""

import sys
from pathlib import Path

from retinue.security.credentials import Credentials
from retinue_lab.guest.image import QUICK, ensure_guest
from retinue_lab.network import credentials, libvirtd
from retinue_lab.network.switches import env
from retinue_lab.processes.processes import Supervisor
from retinue_lab.topology.topology import EDGE_BRIDGE, LIBVIRT, Topology

AGENT_PORT = 7800
NICE, NICER = ("nice", "-n", "5"), ("nice", "-n", "10")
"""Agents, which copy memory as fast as they can, yield to switches and controller, and guests to agents: on
real servers all of these have processors of their own."""


def folder(lab: Path, server: str) -> Path:
    return lab / "agents" / server


async def start(supervisor: Supervisor, topology: Topology, lab: Path, server: str) -> None:
    """Start the agent of a server, or start it again; returns when it has caught up with the controller."""
    own = folder(lab, server)
    own.mkdir(parents=True, exist_ok=True)
    config = own / "agent.toml"
    shown = credentials.agent(lab, server)
    config.write_text(agent_config(topology, own, server, shown))
    program = [*NICE, sys.executable, "-m", "retinue.cli.main", "agent", "run", "--config", str(config)]
    await supervisor.start(
        f"{server}-agent", server, program, env=env(server) | shown.environment, ready_fd=True
    )


def agent_config(topology: Topology, own: Path, server: str, shown: Credentials) -> str:
    """The agent's configuration file (TOML)."""
    guest = ensure_guest()
    runs = next(part.hypervisor for part in topology.server if part.id == server)
    return f"""\
server = "{server}"
controller = "{topology.controller_url}"
listen = "{topology.management_addresses[server].ip}:{AGENT_PORT}"
bridge = "{EDGE_BRIDGE}"
folder = "{own}"

[tls]
ca = "{shown.ca}"
certificate = "{shown.certificate}"
key = "{shown.key}"

[vm]
kernel = "{guest.kernel}"
initrd = "{guest.initrd}"
append = "{QUICK} hostname={{hostname}} ip={{ipv4}}"
append_with_ipv6 = "ip6={{ipv6}}"
append_without_ipv6 = "ipv6.disable=1"
append_each_nic = "nic{{nic}}={{ipv4}}"
{_libvirt(topology, server) if runs == LIBVIRT else _WRAPPED}"""


_WRAPPED = f"""\
wrapper = [{", ".join(f'"{word}"' for word in NICER)}]
"""


def _libvirt(topology: Topology, server: str) -> str:
    inside, outside = libvirtd.shared(server)
    return f"""
[libvirt]
uri = "{libvirtd.uri(server)}"
control = "{libvirtd.uri_from_outside(topology, server)}"
folder = "{inside}"
seen_at = "{outside}"
"""

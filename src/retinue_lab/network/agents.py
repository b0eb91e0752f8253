"""The agents of a laboratory, one on each server, as on servers of their own."""

import sys
from pathlib import Path

from retinue.security.credentials import Credentials
from retinue_lab.guest.image import CLOUD, QUICK, STORAGE, Kind, ensure_guest, ensure_late_pages
from retinue_lab.network import credentials, libvirtd
from retinue_lab.network.controller_config import NO_PEERS, Peers
from retinue_lab.network.switches import env
from retinue_lab.processes.processes import Supervisor
from retinue_lab.topology.parts import LIBVIRT
from retinue_lab.topology.topology import EDGE_BRIDGE, Topology

AGENT_PORT, DOMAIN_PORT = 7800, 7801
STORAGE_MIB = 192
"""Memory of a guest with Debian's full kernel; one that is a target has its disk in it, too."""
SHARED = "shared"
"""Folder in the lab's: files that all servers reach, for disks on shared storage."""
NICE, NICER = ("nice", "-n", "5"), ("nice", "-n", "10")
"""Agents, which copy memory as fast as they can, yield to switches and controller, and guests to agents: on
real servers all of these have processors of their own."""


def guest_kind(topology: Topology) -> Kind:
    """What its VMs' guests are made of."""
    return CLOUD if topology.forwarder is None else STORAGE


def folder(lab: Path, server: str) -> Path:
    return lab / "agents" / server


async def start(
    supervisor: Supervisor, topology: Topology, lab: Path, server: str, others: Peers = NO_PEERS
) -> None:
    """Start the agent of a server, or start it again; returns when it has caught up with the controller."""
    own = folder(lab, server)
    own.mkdir(parents=True, exist_ok=True)
    config = own / "agent.toml"
    shown = credentials.agent(lab, server)
    config.write_text(agent_config(topology, own, server, shown, others))
    program = [*NICE, sys.executable, "-m", "retinue.cli.main", "agent", "run", "--config", str(config)]
    switches_env = {} if server in {cache.id for cache in topology.cache} else env(server)
    own_env = {**switches_env, **shown.environment, "LD_PRELOAD": str(ensure_late_pages())}
    await supervisor.start(f"{server}-agent", server, program, env=own_env, ready_fd=True)


def agent_config(
    topology: Topology, own: Path, server: str, shown: Credentials, others: Peers = NO_PEERS
) -> str:
    """The agent's configuration file (TOML); `others`: the domains beside it."""
    head = f"""\
server = "{server}"
controller = "{topology.controller_url}"
listen = "{topology.management_addresses[server].ip}:{AGENT_PORT}"
folder = "{own}"
"""
    tls = f"""
[tls]
ca = "{shown.ca}"
certificate = "{shown.certificate}"
key = "{shown.key}"
"""
    domains = "".join(_domain(topology, server, id, ca) for id, (_, ca) in others.items())
    if server in {cache.id for cache in topology.cache}:
        return f"{head}{tls}\n[content]\ncache = true\n{domains}"
    guest = ensure_guest(kind=guest_kind(topology))
    memory = "" if topology.forwarder is None else f"memory_mib = {STORAGE_MIB}\n"
    runs = next(part.hypervisor for part in topology.server if part.id == server)
    return f"""\
{head}bridge = "{EDGE_BRIDGE}"
disk_paths = ["{own.parent.parent / SHARED}"]
{tls}
[vm]
kernel = "{guest.kernel}"
initrd = "{guest.initrd}"
append = "{QUICK} hostname={{hostname}} ip={{ipv4}}"
append_with_ipv6 = "ip6={{ipv6}}"
append_without_ipv6 = "ipv6.disable=1"
append_each_nic = "nic{{nic}}={{ipv4}} nic{{nic}}ip6={{ipv6}}"
{memory}{_libvirt(topology, server) if runs == LIBVIRT else _WRAPPED}\
{domains}"""


def _domain(topology: Topology, server: str, id: str, ca: Path) -> str:
    return f"""
[[domain]]
id = "{id}"
ca = "{ca}"
listen = "{topology.management_addresses[server].ip}:{DOMAIN_PORT}"
images = true
"""


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
postcopy = true
"""

"""A libvirtd on a server of the laboratory, as on a server of its own.

All servers share the sandbox's files and processes, so each libvirtd gets a mount namespace in which every
folder libvirt writes to is one of this server's, and a host name: libvirt rejects to move a VM to a host of
its own name. From the sandbox its socket is reached by the path that `socket` returns; on the node itself
virsh finds it by the environment (`retinue lab exec server1 -- virsh list`).
"""

import importlib.util
import shlex
import shutil
import sys
import uuid
from ipaddress import IPv4Interface
from pathlib import Path

from retinue_lab.errors import LabError
from retinue_lab.guest.image import ensure_late_pages
from retinue_lab.network import keepgroups
from retinue_lab.network.switches import RUN
from retinue_lab.processes import host
from retinue_lab.processes.processes import Supervisor
from retinue_lab.topology.parts import LIBVIRT, ServerPart
from retinue_lab.topology.topology import Topology

PROGRAMS = ("libvirtd", "virsh")
TCP_PORT = 16509
"""Where another server's libvirt, or a person's virsh, comes in to bring a VM."""
FOLDERS = {
    "run": Path("/run/libvirt"),
    "etc": Path("/etc/libvirt"),
    "lib": Path("/var/lib/libvirt"),
    "log": Path("/var/log/libvirt"),
    "cache": Path("/var/cache/libvirt"),
}
"""Folders libvirt writes to, by their names in the server's own folder."""
PIDFILE = "libvirtd.pid"
USER = "libvirt-qemu"
VMS = "vms"
"""Folder below the first of them, which the server's agent shares with libvirt's QEMUs."""
LOCALHOST = {"localhost": IPv4Interface("127.0.0.1")}
_NAMESPACE = uuid.UUID("6f0c2c3e-5d0b-4a4e-9b5e-2f1d3a7c8e90")
"""From it and a server's name, libvirt's id of the host."""


def folder(node: str) -> Path:
    """A server's own folder of all that libvirt writes."""
    return RUN / node / "libvirt"


def socket(node: str) -> Path:
    """The server's libvirt socket, as seen in the sandbox."""
    return folder(node) / "run" / "libvirt-sock"


def uri(node: str) -> str:
    """What to give libvirt, in the sandbox, to reach this server."""
    return f"qemu+unix:///system?socket={socket(node)}"


def shared(node: str) -> tuple[Path, Path]:
    """The folder that the agent shares with libvirt's QEMUs, as libvirt sees it and as the sandbox does."""
    return FOLDERS["run"] / VMS, folder(node) / "run" / VMS


def uri_from_outside(topology: Topology, node: str) -> str:
    """What to give another server's libvirt, or virsh on it, to reach this one."""
    return f"qemu+tcp://{topology.management_addresses[node].ip}/system"


def servers(topology: Topology) -> list[ServerPart]:
    return [server for server in topology.server if server.hypervisor == LIBVIRT]


def env(topology: Topology, node: str) -> dict[str, str]:
    """What makes virsh on a node speak to its own server; nothing on a node without libvirt."""
    return {"LIBVIRT_DEFAULT_URI": uri(node)} if node in {s.id for s in servers(topology)} else {}


def check(topology: Topology) -> None:
    """Raise LabError when the topology asks for libvirt and it is not installed."""
    if not servers(topology):
        return
    missing = [name for name in PROGRAMS if shutil.which(name, path=host.search_path()) is None]
    missing += [str(path) for path in FOLDERS.values() if path.parts[1] != "run" and not path.is_dir()]
    if importlib.util.find_spec("libvirt") is None:
        missing.append("Python's libvirt")
    if missing:
        raise LabError(
            f"for servers with libvirt {', '.join(missing)} is missing: run `make install-libvirt`"
        )


async def start(supervisor: Supervisor, topology: Topology, server: ServerPart) -> None:
    """Start a server's libvirtd; return when it takes connections. Its Open vSwitch must run."""
    own = folder(server.id)
    for name in FOLDERS:
        (own / name).mkdir(parents=True)
    (own / "run" / VMS).mkdir()
    name = f"{server.id}-libvirtd"
    address = str(topology.management_addresses[server.id].ip)
    for file, text in configuration(server.id, address, supervisor.logs / f"{name}.log").items():
        (own / "etc" / file).write_text(text)
    pidfile = own / "run" / PIDFILE
    (own / "hosts").write_text(_hosts(topology))
    script = _script(server.id, pidfile)
    # libvirtd hands it on to its QEMUs.
    own_env = {"LD_PRELOAD": str(ensure_late_pages())}
    await supervisor.start_detached(
        name, server.id, ["unshare", "--mount", "--uts", "sh", "-ec", script], pidfile, env=own_env
    )


def configuration(node: str, address: str, log: Path) -> dict[str, str]:
    """By name, the files in /etc/libvirt of a node that is reached at this address."""
    return {"qemu.conf": _qemu_conf(address), "libvirtd.conf": _libvirtd_conf(node, address, log)}


def again(node: str) -> list[str]:
    """Starts a server's libvirtd that has ended once more, as a program in the foreground."""
    script = _script(node, folder(node) / "run" / PIDFILE, "")
    return ["env", f"LD_PRELOAD={ensure_late_pages()}", "unshare", "--mount", "--uts", "sh", "-ec", script]


def _script(node: str, pidfile: Path, how: str = "--daemon") -> str:
    own = folder(node)
    program = shlex.join([sys.executable, "-I", "-S", keepgroups.__file__])
    lines = [
        "mount --make-rprivate /",
        f"hostname {node}",
        "mkdir -p /run/libvirt /run/openvswitch",
        # libvirt plugs VMs in by ovs-vsctl, which looks for its switch here.
        f"mount --bind {RUN / node} /run/openvswitch",
        # Where there is a KVM of the machine's own, VMs of the lab are emulated all the same.
        "[ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm",
        *(f"mount --bind {own / name} {path}" for name, path in FOLDERS.items()),
        # libvirt does not start without this user, though none of our VMs runs as it.
        f"(cat /etc/passwd; echo {USER}:x:0:0::/:/bin/false) > {own}/passwd",
        f"(cat /etc/group; echo {USER}:x:0:) > {own}/group",
        f"mount --bind {own}/passwd /etc/passwd",
        f"mount --bind {own}/group /etc/group",
        # libvirt resolves host names, and the sandbox has no name server.
        f"mount --bind {own}/hosts /etc/hosts",
        f"exec {program} libvirtd --listen {how} --pid-file {pidfile}",
    ]
    return "\n".join(lines)


def _hosts(topology: Topology) -> str:
    addresses = topology.management_addresses.items()
    return "".join(f"{address.ip} {node}\n" for node, address in (*addresses, *LOCALHOST.items()))


def _qemu_conf(address: str) -> str:
    """Emulated VMs as the sandbox's root, which is an ordinary user outside."""
    return f"""\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
migration_host = "{address}"
"""


def _libvirtd_conf(node: str, address: str, log: Path) -> str:
    return f"""\
host_uuid = "{uuid.uuid5(_NAMESPACE, node)}"
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
tcp_port = "{TCP_PORT}"
auth_tcp = "none"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_rw_perms = "0700"
log_outputs = "3:file:{log}"
"""

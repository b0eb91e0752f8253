"""DHCP clients of others, as VMs: a namespace each, on a cable that can be plugged in at another server.

    server1 [br0: vm-NAME] --- [plugs: bridge b-NAME] --- [NAME: eth0, its client]
    server2 [br0: vm-NAME] - - /

The client's own link stays up when the plug is changed, as a VM's does when it migrates. Debian's programs
run with their own defaults, in mounts where they can change nothing of the machine: a passwd in which the
users they would become are root (there is no other in the lab), and a folder of their own for what they keep.
"""

import json
import shlex
import time
from dataclasses import dataclass
from ipaddress import ip_address

from retinue_lab.network.nodes import OFFLOADS
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import SANDBOX
from support.lab.tools import Events, Json, LabBench

PLUGS = "plugs"
"""The namespace of the plugs."""
PROGRAMS = {
    "dhclient": """
        touch /run/own/leases
        exec dhclient -4 -d -v -lf /run/own/leases -pf /run/own/pid -cf /dev/null eth0
    """,
    "dhcpcd": """
        mount -t tmpfs own /var/lib/dhcpcd
        exec dhcpcd -4 -B -d -f /dev/null -C resolv.conf eth0
    """,
    "dhclient6": """
        echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6
        until ip -6 address show dev eth0 | grep fe80 | grep -vq tentative; do sleep 0.1; done
        touch /run/own/leases
        exec dhclient -6 -d -v -lf /run/own/leases -pf /run/own/pid -cf /dev/null eth0
    """,
    # It asks when the gateway says that there is DHCPv6.
    "dhcpcd6": """
        echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6
        mount -t tmpfs own /var/lib/dhcpcd
        exec dhcpcd -6 -B -d -f /dev/null -C resolv.conf eth0
    """,
    "networkd": """
        mount -t tmpfs own /etc/systemd/network
        printf '[Match]\\nName=eth0\\n[Network]\\nDHCP=ipv4\\nIPv6AcceptRA=no\\nLinkLocalAddressing=no\\n' \\
            > /etc/systemd/network/eth0.network
        # It waits for udev, unless /sys cannot be written to.
        mount -o remount,bind,ro /sys || test ! -w /sys
        export SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console
        exec /lib/systemd/systemd-networkd
    """,
}
"""By the client's name: how it is run, as shell text, in mounts of its own."""
_MOUNTS = """
    test ! -e /etc/resolv.conf || mount --bind /dev/null /etc/resolv.conf
    mount -t tmpfs own /run
    mkdir /run/own
    printf '%s:x:0:0::/:/bin/sh\\n' root systemd-network > /run/own/passwd
    mount --bind /run/own/passwd /etc/passwd
"""
_QUIET = "for all in all default; do echo 1 > /proc/sys/net/ipv6/conf/$all/disable_ipv6; done"


@dataclass(frozen=True)
class Client:
    """A node of this name; so is the VM called. `program` is one of PROGRAMS."""

    name: str
    program: str
    mac: str
    home: str = "server1"
    """The server at which it is plugged in at first."""


def make(lab: LabHandle, clients: list[Client]) -> None:
    """The clients' nodes and plugs, each plugged in at home, where its port says which VM it is."""
    servers = [server.id for server in lab.topology.server]
    lines = [
        f"test -e /run/netns/{PLUGS} || ip netns add {PLUGS}",
        f"ip netns exec {PLUGS} sh -c {shlex.quote(_QUIET)}",
    ]
    for client in clients:
        name, bridge = client.name, f"b-{client.name}"
        lines += [
            f"ip netns add {name}",
            f"ip netns exec {name} sh -c {shlex.quote(_QUIET)}",
            f"ip -n {PLUGS} link add {bridge} type bridge forward_delay 0",
            f"ip -n {PLUGS} link set {bridge} up",
            f"ip -n {PLUGS} link add c-{name} type veth peer name eth0 netns {name} address {client.mac}",
            f"ip -n {PLUGS} link set c-{name} master {bridge} up",
            f"ip netns exec {name} ethtool -K eth0 {OFFLOADS} > /dev/null",
            f"ip -n {name} link set lo up",
            f"ip -n {name} link set eth0 up",
        ]
        for server in servers:
            plug = f"{name}-{server[-1]}"
            lines += [
                f"ip -n {PLUGS} link add {plug} type veth peer name vm-{name} netns {server}",
                f"ip netns exec {server} ethtool -K vm-{name} {OFFLOADS} > /dev/null",
                f"ip -n {server} link set vm-{name} up",
                f"ip -n {PLUGS} link set {plug} up",
            ]
        lines.append(f"ip -n {PLUGS} link set {name}-{client.home[-1]} master {bridge}")
    done = lab.exec(SANDBOX, ["sh", "-ec", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for client in clients:
        _add_port(lab, client, client.home)


def run(lab: LabHandle, client: Client) -> None:
    """Start the client; what it says is in `logs/NAME.log` of the lab."""
    text = _MOUNTS + PROGRAMS[client.program]
    argv = ["ip", "netns", "exec", client.name, "unshare", "--mount", "sh", "-ec", text]
    lab.spawn(SANDBOX, argv, log=client.name)


def _add_port(lab: LabHandle, client: Client, server: str) -> None:
    ids = (f"external_ids:iface-id={client.name}", f'external_ids:attached-mac="{client.mac}"')
    port = f"vm-{client.name}"
    argv = ["ovs-vsctl", "add-port", "br0", port, "--", "set", "interface", port, *ids]
    lab.exec(server, argv, check=True)


async def move(bench: LabBench, events: Events, client: Client, source: str, target: str) -> Json:
    """Let it migrate, as its hypervisors would tell of it, and plug it in at the target meanwhile."""

    async def tells(server: str, kind: str) -> Json:
        body = {"vm": client.name, "kind": kind, "at": time.time()}
        return await bench.post(f"servers/{server}/hypervisor-events", body)

    async def reaches(state: str) -> Json:
        found = await events.until(
            "migration.step", lambda e: e["migration"]["id"] == id and e["migration"]["state"] == state
        )
        return dict(found)

    await tells(source, "started")
    id = (await tells(target, "incoming"))["migration"]
    _add_port(bench.lab, client, target)
    await reaches("copying")
    plugs = f"ip -n {PLUGS} link set {client.name}"
    await bench.run(SANDBOX, "sh", "-ec", f"{plugs}-{source[-1]} nomaster")
    await tells(source, "suspended")
    await reaches("diverted")
    await bench.run(SANDBOX, "sh", "-ec", f"{plugs}-{target[-1]} master b-{client.name}")
    await tells(target, "resumed")
    await bench.run(source, "ovs-vsctl", "del-port", "br0", f"vm-{client.name}")
    await tells(source, "departed")
    return await reaches("done")


async def flap(bench: LabBench, client: Client) -> None:
    """The client's link goes down and comes back."""
    link = f"ip -n {PLUGS} link set c-{client.name}"
    await bench.run(SANDBOX, "sh", "-ec", f"{link} down; sleep 0.3; {link} up")


async def addresses(bench: LabBench, client: Client, version: int = 4) -> list[str]:
    """What the client has set on its link, and is not link-local."""
    found = json.loads(
        await bench.run(SANDBOX, "ip", "-n", client.name, "-json", f"-{version}", "address", "show", "eth0")
    )
    set_there = [a for link in found for a in link.get("addr_info", ()) if a["scope"] != "link"]
    return [str(ip_address(a["local"])) for a in set_there]

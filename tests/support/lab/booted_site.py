"""A site of booted machines (support.lab.booted), as docs/setup.md has it: a controller, two servers, and the
server more that the page adds.

Beside them are a switch for management, a router between the servers' networks, and the router of the
subnets, whose cable leads to eth2 of server1. Addresses are those of the page.
"""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from retinue_lab.guest.image import QUICK
from support.lab.booted import Machine, Machines
from support.pages import section

SERVERS = {
    "server1": ("192.0.2.11", "172.16.1"),
    "server2": ("192.0.2.12", "172.16.2"),
    "server3": ("192.0.2.13", "172.16.3"),
}
"""Each with its address for management, and its network of the others' (it has the 2nd address there)."""
FIRST, MORE = ("server1", "server2"), "server3"
CONTROLLER, CONTROLLER_ADDRESS = "controller", "192.0.2.10"
MACHINES = (CONTROLLER, *SERVERS)
ROUTER = "router"

NETWORK = f"""
for node in {" ".join(MACHINES)} between {ROUTER}; do ip netns add $node; ip -n $node link set lo up; done
ip link add office type bridge forward_delay 0
ip link set office up
cable() {{
    ip link add $1 $2 type veth peer name $3 netns $4
    ip -n $4 link set $3 up
    ip netns exec $4 ethtool -K $3 rx off tx off > /dev/null
}}
management() {{
    cable to-$1 '' eth0 $1
    ip link set to-$1 master office up
    ip -n $1 address add $2/24 dev eth0
}}
underlay() {{
    cable to-$1 'netns between' eth3 $1
    ip -n between link set to-$1 up
    ip -n between address add $2.1/24 dev to-$1
    ip netns exec between ethtool -K to-$1 rx off tx off > /dev/null
}}
management {CONTROLLER} {CONTROLLER_ADDRESS}
{"".join(f"management {name} {at}; underlay {name} {net}; " for name, (at, net) in SERVERS.items())}
ip netns exec between sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
cable eth2 'netns server1' eth0 {ROUTER}
ip -n server1 link set eth2 up
ip netns exec server1 ethtool -K eth2 rx off tx off > /dev/null
ip -n {ROUTER} link set eth0 address 02:00:00:00:00:e1
ip -n {ROUTER} address add 10.0.0.1/24 dev eth0
ip -n {ROUTER} route add 10.1.0.0/24 via 10.0.0.254
"""
_THEIRS = """
ovs-vsctl add-br theirs -- set bridge theirs datapath_type=netdev -- add-port theirs eth3
ip link set theirs up
ip address add NETWORK.2/24 dev theirs
ip route add 172.16.0.0/16 via NETWORK.1
ip route add default dev eth0
"""
"""Open vSwitch in user space sends tunnels by a bridge of its own: one that was there before."""

_INTO = """#!/bin/bash
into() {
    case ${1#root@} in
        controller) leader=@controller@ ;;
        server1) leader=@server1@ ;;
        server2) leader=@server2@ ;;
        server3) leader=@server3@ ;;
        *) echo "no machine $1" >&2; exit 255 ;;
    esac
}
run="env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8"
enter() { exec nsenter --target $leader -m -u -i -n -p -C -r -w env -C "$1" $run "${@:2}"; }
"""
_TOOLS = {
    "ssh": f'{_INTO}into "$1"; shift; enter /root sh -c "$*"\n',
    "scp": f"""{_INTO}
for to; do :; done
test "$to" != "${{to%:}}" || {{ echo "scp to $to?" >&2; exit 255; }}
into "${{to%:}}"
cp -r $(for word; do test "$word" = "$to" -o "$word" = -r || echo "$word"; done) /proc/$leader/root/root/
""",
    "retinue": f'{_INTO}into controller; enter "$HERE" retinue "$@"\n',
}
"""What an operator has at hand: ssh and scp to the machines, without a network in between."""


class BootedSite:
    """The machines, and what an operator does on them."""

    def __init__(self, machines: Machines, folder: Path) -> None:
        self.machines = machines
        self.controller = machines[CONTROLLER]
        self.servers = {name: machines[name] for name in SERVERS if name in machines.by_name}
        for name, server in self.servers.items():
            server.sh(_THEIRS.replace("NETWORK", SERVERS[name][1]))
        self._tools = folder
        folder.mkdir()
        for tool, text in _TOOLS.items():
            for key, value in machines.by_name.items():
                text = text.replace(f"@{key}@", str(value.leader))
            (folder / tool).write_text(text)
            (folder / tool).chmod(0o755)

    def type(self, page: str, heading: str, here: str = ".", *, name: str = "server1") -> str:
        """The commands under a heading of a page, word by word, in a folder of the controller's machine; what
        they said. `name` stands for server1, the page's example."""
        said = [self.sh(line.replace("server1", name), here) for line in commands(page, heading)]
        assert said, f"{page} has no commands under {heading!r}"
        return "".join(said)

    def sh(self, command: str, here: str = ".") -> str:
        """A command of the operator, at work as root in a folder of the controller's machine."""
        path = f"{self._tools}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=self.controller.files / "root" / here,
            env={**os.environ, "PATH": path, "HERE": f"/root/{here}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}"
        return done.stdout

    def retinue(self, *argv: str, check: bool = True) -> str:
        """As the page has it: by the operator's certificate."""
        return self.controller.run(*self._retinue(argv), check=check)

    def until(self, *argv: str, until: str) -> str:
        """Ask the controller again until its answer has this."""
        return self.controller.eventually(*self._retinue(argv), until=until, limit=120.0)

    @staticmethod
    def _retinue(argv: Sequence[str]) -> list[str]:
        who = ("--ca", "ca.pem", "--cert", "operator.pem", "--key", "operator.key")
        where = ("env", "-C", "/root/machines/controller", "retinue")
        return [*where, *who, *argv, "--url", f"https://{CONTROLLER_ADDRESS}:8080"]

    def switches(self) -> dict[str, bool]:
        """By id, whether it is connected."""
        rows = json.loads(self.retinue("switch", "list", "--json"))["switches"]
        return {row["id"]: row["connected"] for row in rows}

    async def popen(self, node: str, argv: Sequence[str]) -> asyncio.subprocess.Process:
        """A program beside the machines, with this tree's code (retinue_lab.processes.Popen)."""
        pipe = subprocess.PIPE
        words = self.machines.outside("ip", "netns", "exec", node, *argv)
        return await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe)


def commands(page: str, heading: str) -> list[str]:
    """Under a heading, those of an operator: by itself in an indented line, or after a prompt."""
    return re.findall(r"^(?: {4}|\$ )((?:ssh|scp|retinue) .*)$", section(page, heading), re.MULTILINE)


def page_site() -> str:
    """The site's file of docs/setup.md; switches forward in user space here."""
    (toml,) = re.findall(r"^```toml\n(.*?)^```", section("docs/setup.md", "The site's file"), re.M | re.S)
    return in_user_space(toml)


def in_user_space(site: str) -> str:
    """A page's site, with the routes to other servers that Open vSwitch is told there."""
    routes = r'\1\nroutes = ["172.16.0.0/16 via \2.1"]'
    return 'datapath = "netdev"\n' + re.sub(r'^(endpoint = "(.*)\.2")$', routes, site, flags=re.MULTILINE)


def with_qemu(site: str) -> str:
    """The same, where agents run the VMs."""
    return re.sub(r"^(endpoint = .*)$", r"\1\nlibvirt = false", site, flags=re.MULTILINE)


def with_one_more(site: str) -> str:
    """The same, with the server that is added."""
    management, network = SERVERS[MORE]
    more = f'id = "{MORE}"\nmanagement = "{management}"\nendpoint = "{network}.2"\nlibvirt = false\n'
    return f'{site}\n[[server]]\n{more}routes = ["172.16.0.0/16 via {network}.1"]\n'


def give_guest(config: Path) -> None:
    """The laboratory's guest, in an agent's configuration that says which kernel VMs start with."""
    text = config.read_text()
    for old, new in (
        ('"/boot/vmlinuz"', '"/srv/guest/vmlinuz"'),
        ('"/boot/initrd.img"', '"/srv/guest/initrd"'),
        (
            'accelerator = "kvm"',
            f'accelerator = "tcg"\nappend = "{QUICK} hostname={{hostname}} ip={{ipv4}}"\n'
            'append_without_ipv6 = "ipv6.disable=1"\nwrapper = ["nice", "-n", "10"]',
        ),
    ):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)


def main_pid(machine: Machine, unit: str) -> int:
    return int(machine.run("systemctl", "show", "--property=MainPID", "--value", unit))

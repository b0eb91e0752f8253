"""keepalived, as VMs: a namespace each at a server's port, in which Debian's program runs as it was written.

Two of them share an address of each family (VRRP version 3, RFC 5798; peers by unicast where nothing is
flooded). A third one, the neighbour, has no such program.
"""

import shlex
from dataclasses import dataclass

from retinue_lab.topology.topology import SANDBOX
from support.lab import foreign_clients
from support.lab.foreign_clients import PLUGS, Client
from support.lab.tools import Json, LabBench

SHARED = ("10.1.0.200", "fd00:1::200")
INTERVAL = 0.2
"""Seconds between two advertisements; a backup waits for three of them, and a little."""
GATEWAYS = ("10.1.0.254", "fd00:1::fe")


@dataclass(frozen=True)
class Router:
    """A node of keepalived; `priority` 0: the neighbour."""

    client: Client
    number: int
    priority: int = 0

    @property
    def addresses(self) -> tuple[str, str]:
        return f"10.1.0.{self.number}", f"fd00:1::{self.number}"

    def vm(self, vnet: str = "") -> Json:
        """As the manager registers it."""
        client, addresses = self.client, [*self.addresses]
        nic = {"mac": client.mac, "vnet": vnet, "addresses": addresses}
        return {"id": client.name, "server": client.home, "nics": [nic]}


MASTER = Router(Client("lb1", "", "52:54:00:00:01:41"), 61, 150)
BACKUP = Router(Client("lb2", "", "52:54:00:00:01:42", "server2"), 62, 100)
NEIGHBOUR = Router(Client("beside", "", "52:54:00:00:01:43", "server3"), 63)
ALL = (MASTER, BACKUP, NEIGHBOUR)


async def start(bench: LabBench, vnet: str = "") -> None:
    """Register the VMs, plug them in, allow two of them the shared addresses, and start the programs.

    In a vnet, which must flood, they know of each other by multicast.
    """
    await bench.post("vms", [router.vm(vnet) for router in ALL])
    foreign_clients.make(bench.lab, [router.client for router in ALL])
    for router in ALL:
        inside = [
            "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6",
            "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_ra",
            *(f"ip address add {ip} dev eth0" for ip in _with_lengths(router)),
            *(f"ip route replace default via {ip}" for ip in GATEWAYS),
        ]
        await _in(bench, router, "\n".join(inside))
    for router, peer in ((MASTER, BACKUP), (BACKUP, MASTER)):
        allowed = [word for ip in SHARED for word in ("--allow", ip)]
        await bench.cli("vm", "nic", "set", router.client.name, *allowed)
        program = f"""
            mount -t tmpfs own /run
            printf %s {shlex.quote(_configuration(router, None if vnet else peer))} > /run/keepalived.conf
            exec keepalived --dont-fork --log-console --log-detail --vrrp --use-file /run/keepalived.conf
        """
        argv = ["ip", "netns", "exec", router.client.name, "unshare", "--mount", "sh", "-ec", program]
        bench.lab.spawn(SANDBOX, argv, log=router.client.name)


async def stop(bench: LabBench) -> None:
    for router in (MASTER, BACKUP):
        found = await bench.run(SANDBOX, "ip", "netns", "pids", router.client.name)
        for pid in found.split():
            await bench.run(SANDBOX, "sh", "-c", f"kill {pid} || true")
    for router in ALL:
        await bench.cli("vm", "remove", router.client.name)


async def plug(bench: LabBench, router: Router, state: str) -> None:
    """Its link goes "down", as if its server had died; or comes "up"."""
    await bench.run(SANDBOX, "ip", "-n", PLUGS, "link", "set", f"c-{router.client.name}", state)


async def _in(bench: LabBench, router: Router, text: str) -> None:
    await bench.run(SANDBOX, "ip", "netns", "exec", router.client.name, "sh", "-ec", text)


def _with_lengths(router: Router) -> tuple[str, str]:
    v4, v6 = router.addresses
    return f"{v4}/24", f"{v6}/64 nodad"


def _configuration(router: Router, peer: Router | None) -> str:
    instances = "".join(
        f"""
        vrrp_instance of_ipv{version} {{
            state BACKUP
            interface eth0
            virtual_router_id {version}
            priority {router.priority}
            advert_int {INTERVAL}
            {_peers(own, others)}
            virtual_ipaddress {{
                {shared} dev eth0
            }}
        }}
        """
        for version, own, others, shared in zip(
            (4, 6), router.addresses, ("", "") if peer is None else peer.addresses, SHARED, strict=True
        )
    )
    return f"global_defs {{\nvrrp_version 3\nvrrp_garp_master_delay 0\n}}\n{instances}"


def _peers(own: str, others: str) -> str:
    return f"unicast_src_ip {own}\nunicast_peer {{\n{others}\n}}" if others else ""

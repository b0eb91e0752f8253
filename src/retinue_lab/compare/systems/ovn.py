"""OVN on the lab's servers, for comparing: Debian's ovn-central and ovn-host, Geneve over the lab's fabric.

The databases and ovn-northd run on the controller's node, an ovn-controller on each server. A server's bridge
`br0`, into which the VM driver plugs, becomes its integration bridge; its uplink and address move to a bridge
of their own. The fabric's switches learn. A logical router takes the place of the lab's router, with the same
addresses, so that VM and client notice nothing; the client's cable goes into server3.
"""

import subprocess
from typing import ClassVar

from retinue_lab import baseline
from retinue_lab.compare.bench import ADDRESS, DUAL, MAC, VM, Bench
from retinue_lab.compare.hypervisor import SECOND_NIC
from retinue_lab.compare.systems.base import System
from retinue_lab.errors import LabError
from retinue_lab.network import nodes
from retinue_lab.network.switches import RUN, env
from retinue_lab.processes.processes import run
from retinue_lab.topology.parts import ServerPart
from retinue_lab.topology.topology import CLIENT, CONTROLLER, EDGE_BRIDGE, FABRIC, ROUTER, UPLINK

SCHEMAS = "/usr/share/ovn"
NORTH, SOUTH = 6641, 6642
UNDERLAY = "br-phy"
UNDERLAY_MTU = 1600
"""Room for the tunnel's headers around frames of 1500 bytes."""
CLIENT_CHASSIS = "server3"
"""The VM is never there."""
CLIENT_PORT = "out0"
OUTSIDE_MAC = "02:00:00:00:00:f1"
WAIT_SECONDS = 30


class Ovn(System):
    """What both ways to use OVN have in common."""

    programs: ClassVar[dict[str, str]] = {
        "ovn-northd": "ovn-central",
        "ovn-nbctl": "ovn-common",
        "ovn-controller": "ovn-host",
    }
    may_be_dual = True
    common: ClassVar[str] = (
        "OVN: one logical router, a logical switch each for VM and client, port security on both; Geneve. "
    )

    def versions(self) -> dict[str, str]:
        output = subprocess.run(
            ["ovn-northd", "--version"], capture_output=True, text=True, check=False
        ).stdout
        return {"ovn": output.split("\n", 1)[0].split()[-1] if output else "unknown"}

    async def set_up(self, bench: Bench) -> None:
        self._central = bench.topology.management_addresses[CONTROLLER].ip
        await baseline.make_plain(bench.lab, ())
        await self._start_central(bench)
        await _widen_fabric(bench)
        for server in bench.topology.server:
            await self._start_chassis(bench, server)
        await _plug_client_in(bench)
        await self._describe_network(bench)
        await self.pin(bench.at)

    async def pin(self, *chassis: str, strategy: str = "", wait: bool = True) -> None:
        """Say on which chassis the VM's port may be; with `wait` return when all chassis have done it."""
        words = [f"requested-chassis={','.join(chassis)}"]
        if strategy:
            words.append(f"activation-strategy={strategy}")
        waiting = [f"--timeout={WAIT_SECONDS}", "--wait=hv"] if wait else []
        commands = [part for id in self._ports for part in ("--", "lsp-set-options", id, *words)]
        await self.nbctl(*waiting, *commands[1:])

    @property
    def _ports(self) -> list[str]:
        """The VM's NICs, by the ids of their ports."""
        return [VM, SECOND_NIC] if self.dual else [VM]

    async def nbctl(self, *words: str) -> str:
        return await run(["ovn-nbctl", f"--db=tcp:{self._central}:{NORTH}", *words])

    # ---- building it ----

    async def _start_central(self, bench: Bench) -> None:
        folder = RUN / "ovn"
        folder.mkdir()
        logs = bench.lab.directory / "logs"
        environment = {"OVS_RUNDIR": str(folder), "OVN_RUNDIR": str(folder)}
        for name, port in (("nb", NORTH), ("sb", SOUTH)):
            database = folder / f"{name}.db"
            await run(["ovsdb-tool", "create", str(database), f"{SCHEMAS}/ovn-{name}.ovsschema"])
            await run(
                [
                    *("ovsdb-server", str(database), f"--remote=ptcp:{port}:{self._central}"),
                    *(f"--unixctl={folder}/{name}.ctl", *_detached(folder / name, logs / f"ovn-{name}")),
                ],
                node=CONTROLLER,
                env=environment,
            )
        await self.nbctl("init")
        await run(["ovn-sbctl", f"--db=tcp:{self._central}:{SOUTH}", "init"])
        await run(
            [
                *("ovn-northd", f"--ovnnb-db=tcp:{self._central}:{NORTH}"),
                *(f"--ovnsb-db=tcp:{self._central}:{SOUTH}", *_detached(folder / "northd", logs / "northd")),
            ],
            node=CONTROLLER,
            env=environment,
        )

    async def _start_chassis(self, bench: Bench, server: ServerPart) -> None:
        """Uplink and address go to a bridge of their own, then ovn-controller takes the VMs' bridge."""
        id, subnet = server.id, bench.topology.subnet_of(server.address)
        await bench.vsctl(
            id,
            *("--", "del-manager", "--", "del-port", EDGE_BRIDGE, UPLINK, "--", "add-br", UNDERLAY),
            *("--", "set", "bridge", UNDERLAY, "datapath_type=netdev", "fail-mode=standalone"),
            f'other_config:hwaddr="{server.mac}"',
            *("--", "add-port", UNDERLAY, UPLINK),
            *("--", "set", "bridge", EDGE_BRIDGE, "protocols=OpenFlow10,OpenFlow13,OpenFlow14,OpenFlow15"),
            *("--", "remove", "bridge", EDGE_BRIDGE, "other_config", "hwaddr"),
            *("--", "set", "open_vswitch", ".", f"external_ids:ovn-bridge={EDGE_BRIDGE}"),
            f'external_ids:ovn-remote="tcp:{self._central}:{SOUTH}"',
            *("external_ids:ovn-encap-type=geneve", f"external_ids:ovn-encap-ip={server.address}"),
            "external_ids:ovn-bridge-datapath-type=netdev",
        )
        batch = [
            f"address flush dev {EDGE_BRIDGE}",
            f"address add {server.address}/{subnet.prefix.prefixlen} dev {UNDERLAY}",
            f"link set {UNDERLAY} mtu {UNDERLAY_MTU} up",
        ]
        await run(["ip", "-batch", "-"], node=id, text="\n".join(batch) + "\n")
        folder = RUN / id
        await run(
            [
                *("ovn-controller", f"unix:{folder}/db.sock"),
                *_detached(folder / "ovn-controller", bench.lab.directory / "logs" / f"{id}-ovn-controller"),
            ],
            node=id,
            env=env(id) | {"OVN_RUNDIR": str(folder)},
        )

    async def _describe_network(self, bench: Bench) -> None:
        topology = bench.topology
        client, router = topology.client, topology.router
        if client is None or router is None:
            raise LabError("OVN is compared in a lab with a client and a router")
        blue = bench.subnet
        client_mac = (await run(["cat", "/sys/class/net/eth0/address"], node=CLIENT)).strip()
        inside = [f"{blue.gateway}/{blue.prefix.prefixlen}"]
        outside = [f"{router.outside_address}/{router.outside.prefixlen}"]
        vm_ports = [(VM, MAC, [ADDRESS])]
        outside_ips = [str(client.address)]
        if self.dual:
            assert router.outside6 is not None
            inside.append(f"{bench.subnet6.gateway}/{bench.subnet6.prefix.prefixlen}")
            outside.append(f"{router.outside_address6}/{router.outside6.prefixlen}")
            vm_ports = [(id, mac, ips) for id, (mac, *ips) in zip(self._ports, DUAL, strict=True)]
            outside_ips.append(str(client.address6))
        ports = [("blue", *port) for port in vm_ports]
        ports.append(("outside", "client", client_mac, outside_ips))
        words = ["lr-add", "router"]
        for switch, mac, addresses in (
            ("blue", topology.gateway_mac, inside),
            ("outside", OUTSIDE_MAC, outside),
        ):
            port = f"{switch}-router"
            words += [
                *("--", "ls-add", switch, "--", "lrp-add", "router", f"router-{switch}", mac, *addresses),
                *("--", "lsp-add", switch, port, "--", "lsp-set-type", port, "router"),
                *("--", "lsp-set-addresses", port, "router"),
                *("--", "lsp-set-options", port, f"router-port=router-{switch}"),
            ]
        for switch, name, mac, ips in ports:
            held = " ".join([mac, *ips])
            words += ["--", "lsp-add", switch, name]
            words += ["--", "lsp-set-addresses", name, held]
            words += ["--", "lsp-set-port-security", name, held]
        await self.nbctl(f"--timeout={WAIT_SECONDS}", "--wait=hv", *words)


def _detached(path: object, log: object) -> list[str]:
    """For a daemon that leaves the foreground when it is ready."""
    return [
        *(f"--pidfile={path}.pid", f"--log-file={log}.log", "--detach", "--no-chdir"),
        *("-vconsole:off", "-vsyslog:off", "-vfile:info"),
    ]


async def _widen_fabric(bench: Bench) -> None:
    for cable in bench.topology.cables:
        for node, nic in ((cable.a_node, cable.a), (cable.b_node, cable.b)):
            if node == FABRIC or nic == UPLINK:
                await run(["ip", "link", "set", nic, "mtu", str(UNDERLAY_MTU)], node=node)


async def _plug_client_in(bench: Bench) -> None:
    """The client's cable, till now in the router, goes into a chassis."""
    await run(["ip", "link", "set", CLIENT_PORT, "netns", CLIENT_CHASSIS], node=ROUTER)
    commands = f"ethtool -K {CLIENT_PORT} {nodes.OFFLOADS} >/dev/null; ip link set {CLIENT_PORT} up"
    await run(["sh", "-ec", commands], node=CLIENT_CHASSIS)
    await bench.vsctl(
        CLIENT_CHASSIS,
        *("add-port", EDGE_BRIDGE, CLIENT_PORT),
        *("--", "set", "interface", CLIENT_PORT, "external_ids:iface-id=client"),
    )
    await run(["ip", "neigh", "flush", "dev", "eth0"], node=CLIENT)


class OvnMultichassisRarp(Ovn):
    name = "ovn-multichassis-rarp"
    how = Ovn.common + (
        "Before a migration requested-chassis=SOURCE,TARGET with activation-strategy=rarp; at RESUME =TARGET."
    )

    async def before_migration(self, bench: Bench, source: str, target: str) -> None:
        await self.pin(source, target, strategy="rarp")

    async def at_resume(self, bench: Bench, source: str, target: str) -> None:
        await self.pin(target, wait=False)


class OvnNaive(Ovn):
    name = "ovn-naive"
    how = Ovn.common + "At RESUME requested-chassis changes from SOURCE to TARGET."

    async def before_migration(self, bench: Bench, source: str, target: str) -> None:
        await self.nbctl(f"--timeout={WAIT_SECONDS}", "--wait=hv", "sync")

    async def at_resume(self, bench: Bench, source: str, target: str) -> None:
        await self.pin(target, wait=False)

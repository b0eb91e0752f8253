"""retinue with a client that is the VM's neighbour, and the same without the rewrite at the edge.

The client is in the VM's subnet, at the edge where the VM starts, and each knows the other's own MAC. When
the VM has moved that MAC is known to neither edge (US 9,515,930): with the rewrite the packets are routed,
without it the edge sends them up as they are, and the leaf, which is nobody's neighbour, drops them.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from retinue.protocol.routes import Route
from retinue_lab.compare.bench import SERVERS, Bench, ManagedBench
from retinue_lab.compare.systems.own import Retinue
from retinue_lab.errors import LabError
from retinue_lab.network.nodes import OFFLOADS
from retinue_lab.processes.processes import run
from retinue_lab.topology.topology import CLIENT, EDGE_BRIDGE, SANDBOX, Topology

PEER, PEER_MAC, PEER_ADDRESS = "peer", "52:54:00:00:00:60", "10.1.0.60"
NIC, PORT = "beside0", "beside1"
"""The client's cable to the edge, by both ends."""
LOOKS, LOOK_SECONDS = 200, 0.1


class RetinueNeighbour(Retinue):
    name = "retinue-neighbour"
    how = (
        "As retinue; the client is in the VM's subnet, at the edge where the VM starts, and each sends to "
        "the MAC that it knew there."
    )
    may_be_dual = False

    async def set_up(self, bench: Bench) -> None:
        """The client's port is that of a VM that is switched off: nothing of ours has to run there."""
        assert isinstance(bench, ManagedBench)
        vm = {"id": PEER, "mac": PEER_MAC, "server": SERVERS[0], "addresses": [PEER_ADDRESS]}
        await bench.manager.post(Route.REGISTER_VMS.path(), vm)
        # The agent has made its port: else that might come after the client's, and be taken for the VM's.
        await _until(bench, lambda vm: vm["port"] is not None, "has no port of its own")
        await bench.manager.post(Route.STOP_VM.path(PEER), {"hard": True})
        await _until(bench, lambda vm: vm["state"] == "off", "is not switched off")
        await bench.vsctl(SERVERS[0], "--if-exists", "del-port", EDGE_BRIDGE, f"tap-{PEER}")
        await run(["ip", "-batch", "-"], node=SANDBOX, text="\n".join(_cable(bench)) + "\n")
        await run(["ip", "-batch", "-"], node=SERVERS[0], text=f"link set {PORT} up\n")
        for node, nic in ((CLIENT, NIC), (SERVERS[0], PORT)):
            await run(["sh", "-c", f"ethtool -K {nic} {OFFLOADS} > /dev/null"], node=node)
        length = bench.subnet.prefix.prefixlen
        beside = [f"address add {PEER_ADDRESS}/{length} dev {NIC}", f"link set {NIC} up"]
        await run(["ip", "-batch", "-"], node=CLIENT, text="\n".join(beside) + "\n")
        ids = [f"external_ids:{key}={value}" for key, value in (("iface-id", PEER), ("vm-id", PEER))]
        mac = f'external_ids:attached-mac="{PEER_MAC}"'
        await bench.vsctl(
            SERVERS[0], "add-port", EDGE_BRIDGE, PORT, "--", "set", "interface", PORT, *ids, mac
        )
        await _speak(bench)

    async def after_migration(self, bench: Bench, source: str, target: str) -> None:
        """What each has in its ARP cache, it asks anew: the next migration begins with what is so then."""
        await run(["ip", "neigh", "flush", "dev", NIC], node=CLIENT)
        await bench.in_guest("ip neigh flush dev eth0")
        await _speak(bench)


class RewriteOff(RetinueNeighbour):
    name = "rewrite-off"
    how = "As retinue-neighbour, but edges leave a MAC that they do not know as it is (`rewrite = false`)."

    def network(self) -> Topology:
        return msgspec.structs.replace(super().network(), rewrite=False)


def _cable(bench: Bench) -> list[str]:
    mtu = bench.topology.mtu
    return [
        f"link add {NIC} netns {CLIENT} address {PEER_MAC} mtu {mtu} "
        f"type veth peer name {PORT} netns {SERVERS[0]} mtu {mtu}"
    ]


async def _until(bench: ManagedBench, so: Callable[[dict[str, Any]], bool], not_so: str) -> None:
    for _ in range(LOOKS):
        if so(await bench.manager.get(Route.GET_VM.path(PEER))):
            return
        await asyncio.sleep(LOOK_SECONDS)
    raise LabError(f"VM {PEER}, whose port the client takes, {not_so}")


async def _speak(bench: Bench) -> None:
    """Return when the VM reaches the client, and each knows where to send."""
    for _ in range(LOOKS):
        code, _ = await bench.in_guest(f"ping -c 1 -W 1 {PEER_ADDRESS}")
        if code == 0:
            return
        await asyncio.sleep(LOOK_SECONDS)
    raise LabError(f"{bench.vm} does not reach the client beside it, {PEER_ADDRESS}")

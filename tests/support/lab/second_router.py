"""A second access router in a lab that has one: a node `router2` at leaf1, with a cable to the client.

The client is the router behind both: it answers by the second one, whichever way it was reached.
"""

import contextlib
import sys
from collections.abc import AsyncIterator

from retinue_lab.measure import arp
from retinue_lab.network.nodes import OFFLOADS
from retinue_lab.topology.topology import CLIENT, SANDBOX
from support.lab.tools import LabBench

NODE, MAC, ADDRESS = "router2", "02:00:00:00:00:e2", "10.0.0.2"
LEAF, PORT = "leaf1", "leaf1-router2"
_FAR, _OWN = "203.0.114.9", "203.0.114.1"


@contextlib.asynccontextmanager
async def running(bench: LabBench, metric: int) -> AsyncIterator[None]:
    """It leads outside, too, inside the context."""
    topology = bench.topology
    assert topology.client is not None
    subnet = topology.subnet_of(topology.addressed[0].address)
    leaf = next(one for one in topology.leaf if one.id == LEAF)
    switches = leaf.on or topology.fabric
    network = f"""
        ip netns add {NODE}
        ip link add {PORT} netns {switches} type veth peer name eth0 netns {NODE} address {MAC}
        ip link add out0 netns {NODE} type veth peer name eth1 netns {CLIENT}
        ip -n {switches} link set {PORT} up
        for end in "{NODE} eth0" "{NODE} out0" "{CLIENT} eth1" "{switches} {PORT}"; do
            set -- $end
            ip netns exec $1 ethtool -K $2 {OFFLOADS} > /dev/null
        done
        ip netns exec {NODE} sysctl -q -w net.ipv4.ip_forward=1
        ip -n {NODE} address add {ADDRESS}/{subnet.prefix.prefixlen} dev eth0
        ip -n {NODE} address add {_OWN}/24 dev out0
        ip -n {NODE} link set eth0 up
        ip -n {NODE} link set out0 up
        ip -n {NODE} route add {topology.leased.prefix} via {subnet.gateway}
        ip -n {NODE} route add {topology.client.address} via {_FAR}
        ip -n {CLIENT} address add {_FAR}/24 dev eth1
        ip -n {CLIENT} link set eth1 up
        ip -n {CLIENT} route add {topology.leased.prefix} via {_OWN}
    """
    await bench.run(SANDBOX, "sh", "-ec", network)
    await bench.run(switches, "ovs-vsctl", "add-port", LEAF, PORT)
    router = {"id": NODE, "mac": MAC, "address": ADDRESS, "services": ["router"]}
    await bench.post("servers", router | {"routes": ["0.0.0.0/0"], "metric": metric})
    ask = (sys.executable, "-I", "-S", arp.__file__, "eth0", ADDRESS, str(subnet.gateway), "40")
    await bench.run(SANDBOX, "ip", "netns", "exec", NODE, *ask)
    yield

"""A second DHCP server in a lab that has one: Kea on a node `dhcp2`, at a leaf's port of its own.

It gives addresses of the same subnet, but others than the first.
"""

import contextlib
import sys
from collections.abc import AsyncIterator

import msgspec

from retinue_lab.measure import arp
from retinue_lab.network.dhcp_server import KEA_READY, kea_configuration
from retinue_lab.network.nodes import OFFLOADS
from retinue_lab.topology.topology import FABRIC, SANDBOX
from support.lab.relay_node import program
from support.lab.tools import LabBench

NODE, MAC, ADDRESS = "dhcp2", "02:00:00:00:00:d2", "10.1.0.3"
POOL = "10.1.0.210 - 10.1.0.219"
PORT = "leaf1-dhcp2"
_RUN = "/run/retinue/dhcp2"


@contextlib.asynccontextmanager
async def running(bench: LabBench) -> AsyncIterator[None]:
    """It serves, as a trusted DHCP server of the network, inside the context."""
    subnet = bench.topology.leased
    network = f"""
        ip netns add {NODE}
        ip link add {PORT} netns {FABRIC} type veth peer name eth0 netns {NODE} address {MAC}
        ip -n {FABRIC} link set {PORT} up
        ip netns exec {NODE} ethtool -K eth0 {OFFLOADS} > /dev/null
        ip netns exec {FABRIC} ethtool -K {PORT} {OFFLOADS} > /dev/null
        ip -n {NODE} address add {ADDRESS}/{subnet.prefix.prefixlen} dev eth0
        ip -n {NODE} link set eth0 up
        ip -n {NODE} route add default via {subnet.gateway}
        mkdir -p {_RUN}
    """
    await bench.run(SANDBOX, "sh", "-ec", network)
    await bench.run(FABRIC, "ovs-vsctl", "add-port", "leaf1", PORT)
    await bench.post("servers", {"id": NODE, "mac": MAC, "address": ADDRESS, "services": ["dhcp"]})
    inside = ("ip", "netns", "exec", NODE)
    ask = (sys.executable, "-I", "-S", arp.__file__, "eth0", ADDRESS, str(subnet.gateway), "40")
    await bench.run(SANDBOX, *inside, *ask)
    folder = bench.lab.directory / NODE
    folder.mkdir()
    config = kea_configuration(bench.topology, folder / "leases4.csv")
    config["Dhcp4"]["control-socket"]["socket-name"] = f"{_RUN}/kea.sock"
    config["Dhcp4"]["subnet4"][0]["pools"] = [{"pool": POOL}]
    (folder / "kea.json").write_bytes(msgspec.json.encode(config))
    variables = [f"{key}={_RUN}" for key in ("KEA_PIDFILE_DIR", "KEA_LOCKFILE_DIR")]
    kea = ("env", *variables, "KEA_LOGGER_DESTINATION=stdout", "kea-dhcp4", "-c", str(folder / "kea.json"))
    async with program(bench, SANDBOX, *inside, *kea) as told:
        await told.until(KEA_READY)
        yield

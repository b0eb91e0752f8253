"""A relay that is not ours: ISC's dhcrelay in the DHCP server's place in the lab, Kea in a network behind.

leaf - [dhcp: dhcrelay, 10.1.0.2] - 198.51.100.0/24 - [behind: Kea, 198.51.100.2]
"""

import contextlib
import signal
from collections.abc import AsyncIterator

import msgspec

from retinue_lab.network.dhcp_server import KEA_READY, kea_configuration
from retinue_lab.topology.topology import DHCP, SANDBOX
from support.lab.programs import popen_in
from support.lab.tools import LabBench
from support.lab.watch import Lines

BEHIND = "behind"
"""The node of the DHCP server behind the relay."""
RELAY_FAR, SERVER = "198.51.100.1", "198.51.100.2"

_NETWORK = f"""
ip netns add {BEHIND}
ip link add far netns {DHCP} type veth peer name eth0 netns {BEHIND}
ip -n {DHCP} address add {RELAY_FAR}/24 dev far
ip -n {DHCP} link set far up
ip -n {BEHIND} address add {SERVER}/24 dev eth0
ip -n {BEHIND} link set eth0 up
ip -n {BEHIND} route add default via {RELAY_FAR}
mkdir -p /run/retinue/behind
for nic in "{DHCP} far" "{BEHIND} eth0"; do
    set -- $nic
    ip netns exec $1 ethtool -K $2 rx off tx off sg off tso off gso off gro off > /dev/null
done
"""


@contextlib.asynccontextmanager
async def standing_between(bench: LabBench) -> AsyncIterator[Lines]:
    """Put the relay there and move Kea behind it; what Kea says. The lab is of no other use afterwards."""
    bench.kill("kea-dhcp4", signal.SIGTERM)
    await bench.run(SANDBOX, "sh", "-ec", _NETWORK)
    folder = bench.lab.directory / "behind"
    folder.mkdir()
    config = kea_configuration(bench.topology, folder / "leases4.csv")
    config["Dhcp4"]["control-socket"]["socket-name"] = "/run/retinue/behind/kea.sock"
    config["Dhcp4"]["loggers"][0].update(severity="DEBUG", debuglevel=99)
    (folder / "kea.json").write_bytes(msgspec.json.encode(config))
    variables = [f"{key}=/run/retinue/behind" for key in ("KEA_PIDFILE_DIR", "KEA_LOCKFILE_DIR")]
    run_kea = [
        "env",
        *variables,
        "KEA_LOGGER_DESTINATION=stdout",
        "kea-dhcp4",
        "-c",
        str(folder / "kea.json"),
    ]
    async with (
        program(bench, SANDBOX, "ip", "netns", "exec", BEHIND, *run_kea) as told,
        program(
            bench, DHCP, "dhcrelay", "-4", "-d", "--no-pid", "-a", "-id", "eth0", "-iu", "far", SERVER
        ) as relay,
    ):
        await told.until(KEA_READY)
        await relay.until("Sending on")
        yield told


@contextlib.asynccontextmanager
async def program(bench: LabBench, node: str, *argv: str) -> AsyncIterator[Lines]:
    """What a program says, on both its outputs, while it runs."""
    process = await popen_in(bench.lab)(node, ["sh", "-c", 'exec "$0" "$@" 2>&1', *argv])
    lines = Lines(process)
    try:
        yield lines
    finally:
        await lines.close()

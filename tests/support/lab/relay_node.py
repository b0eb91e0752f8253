"""Two relays in a row that are not ours: ISC's dhcrelay in the DHCP server's place in the lab, another one
behind it, and Kea in a network behind that.

leaf - [dhcp: dhcrelay, 10.1.0.2] - 198.51.100.0/24 - [between: dhcrelay] - 198.51.101.0/24 - [behind: Kea]
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Sequence

import msgspec

from retinue_lab.network.dhcp_server import KEA_READY, kea_configuration
from retinue_lab.topology.topology import DHCP, SANDBOX
from support.lab.programs import popen_in
from support.lab.tools import LabBench
from support.lab.watch import Capture, Lines

BEHIND = "behind"
"""The node of the DHCP server behind the relay."""
BETWEEN = "between"
"""The node of the second relay."""
RELAY_FAR, SECOND = "198.51.100.1", "198.51.100.2"
SECOND_FAR, SERVER = "198.51.101.1", "198.51.101.2"

_RELAY = ("dhcrelay", "-4", "-d", "--no-pid")
_NETWORK = f"""
ip netns add {BETWEEN}
ip netns add {BEHIND}
ip link add far netns {DHCP} type veth peer name eth0 netns {BETWEEN}
ip link add far netns {BETWEEN} type veth peer name eth0 netns {BEHIND}
ip -n {DHCP} address add {RELAY_FAR}/24 dev far
ip -n {DHCP} link set far up
ip -n {BETWEEN} address add {SECOND}/24 dev eth0
ip -n {BETWEEN} address add {SECOND_FAR}/24 dev far
ip -n {BETWEEN} link set eth0 up
ip -n {BETWEEN} link set far up
ip -n {BETWEEN} route add default via {RELAY_FAR}
ip netns exec {BETWEEN} sysctl -qw net.ipv4.ip_forward=1
ip -n {BEHIND} address add {SERVER}/24 dev eth0
ip -n {BEHIND} link set eth0 up
ip -n {BEHIND} route add default via {SECOND_FAR}
mkdir -p /run/retinue/behind
for nic in "{DHCP} far" "{BETWEEN} eth0" "{BETWEEN} far" "{BEHIND} eth0"; do
    set -- $nic
    ip netns exec $1 ethtool -K $2 rx off tx off sg off tso off gso off gro off > /dev/null
done
"""


@contextlib.asynccontextmanager
async def standing_between(bench: LabBench) -> AsyncIterator[Lines]:
    """Put the relays there and move Kea behind it; what Kea says. The lab is of no other use afterwards."""
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
        program(bench, DHCP, *_RELAY, "-a", "-id", "eth0", "-iu", "far", SECOND) as first,
        program(
            bench, SANDBOX, "ip", "netns", "exec", BETWEEN, *_RELAY, "-id", "eth0", "-iu", "far", SERVER
        ) as second,
    ):
        await told.until(KEA_READY)
        await first.until("Sending on")
        await second.until("Sending on")
        yield told


@contextlib.asynccontextmanager
async def captured_behind(bench: LabBench) -> AsyncIterator[Capture]:
    """Frames at the DHCP server behind both."""

    async def popen(_: str, argv: Sequence[str]) -> asyncio.subprocess.Process:
        return await popen_in(bench.lab)(SANDBOX, ["ip", "netns", "exec", BEHIND, *argv])

    watch = await Capture.start(popen, BEHIND, "eth0", "inout")
    try:
        yield watch
    finally:
        await watch.close()


@contextlib.asynccontextmanager
async def program(bench: LabBench, node: str, *argv: str) -> AsyncIterator[Lines]:
    """What a program says, on both its outputs, while it runs."""
    process = await popen_in(bench.lab)(node, ["sh", "-c", 'exec "$0" "$@" 2>&1', *argv])
    lines = Lines(process)
    try:
        yield lines
    finally:
        await lines.close()

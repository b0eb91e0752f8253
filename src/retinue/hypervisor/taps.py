"""The port a VM plugs into: a tap of the server, in a bridge of its Open vSwitch.

The port carries what libvirt would write on it (`external_ids`: iface-id, attached-mac, vm-id,
iface-status), by which a controller knows whose it is. The commands are run by the caller, in the server's
network namespace.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Sequence

Run = Callable[[Sequence[str]], Awaitable[str]]
"""Runs a command on the server, returns its output, and raises where the command fails."""

QUEUE_FRAMES = 10_000
"""What a tap holds for a VM that stands still, at the least; for a busy one see `queue_for`."""
LONGEST_QUEUE = 1_000_000
WAIT_SECONDS = 0.5
"""How long a VM's frames may wait for it, to be on the safe side: some 0.1 s in a move that goes well."""

COUNT_LIMIT = 1.0
"""Seconds."""

LONGEST_NAME = 15
"""Linux: IFNAMSIZ is 16, the last octet zero."""


def queue_for(frames_a_second: float) -> int:
    """How many frames a tap must hold while its VM, that is sent so many, stands still for its move."""
    return min(LONGEST_QUEUE, max(QUEUE_FRAMES, round(2 * frames_a_second * WAIT_SECONDS)))


def tap_name(vm: str) -> str:
    """The name of a VM's tap: the same on every server, and at most 15 characters long."""
    name = f"tap-{vm}"
    if len(name) <= LONGEST_NAME and re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        return name
    return "tap-" + hashlib.sha256(vm.encode()).hexdigest()[: LONGEST_NAME - 4]


async def add_port(
    run: Run, *, bridge: str, tap: str, vm: str, mac: str, ovs_vsctl: Sequence[str] = ("ovs-vsctl",)
) -> None:
    """Make the tap and plug it into the bridge. Doing it twice is no error as long as no VM uses the tap.

    `ovs_vsctl` is the program with the options that lead to the server's database. The tap is silent: without
    IPv6 the server itself sends nothing into it.
    """
    await run(["ip", "tuntap", "add", "dev", tap, "mode", "tap"])
    quiet = f"/proc/sys/net/ipv6/conf/{tap}/disable_ipv6"
    await run(["sh", "-c", 'if [ -e "$0" ]; then echo 1 > "$0"; fi', quiet])
    await run(["ip", "link", "set", "dev", tap, "txqueuelen", str(QUEUE_FRAMES), "up"])
    await run(
        [
            *ovs_vsctl,
            *("--", "--may-exist", "add-port", bridge, tap),
            *("--", "set", "Interface", tap),
            f"external_ids:iface-id={_quoted(vm)}",
            f"external_ids:attached-mac={_quoted(mac)}",
            f"external_ids:vm-id={_quoted(vm)}",
            "external_ids:iface-status=active",
        ]
    )


async def remove_port(run: Run, *, bridge: str, tap: str, ovs_vsctl: Sequence[str] = ("ovs-vsctl",)) -> None:
    """Unplug the tap and remove it. Removing what is not there is no error. The VM must have ended."""
    await run([*ovs_vsctl, "--", "--if-exists", "del-port", bridge, tap])
    # Unlike `ip link delete`, this is content when there is no such tap.
    await run(["ip", "tuntap", "del", "dev", tap, "mode", "tap"])


async def frames_come(run: Run, tap: str) -> int:
    """How many frames have been put into a tap, whether its VM has read them or not; 0 if nobody can tell.

    A figure for people: whatever it meets on the way must not stop what it is asked for.
    """
    try:
        async with asyncio.timeout(COUNT_LIMIT):
            said = await run(["tc", "-s", "-j", "qdisc", "show", "dev", tap])
        return sum(int(queue.get("packets", 0)) for queue in json.loads(said) if queue.get("root"))
    except Exception:
        return 0


def _quoted(value: str) -> str:
    """A string as ovs-vsctl reads it (RFC 7047 names the form JSON's)."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

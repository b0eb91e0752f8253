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

from retinue.host.errors import HostError

Run = Callable[[Sequence[str]], Awaitable[str]]
"""Runs a command on the server, returns its output, and raises where the command fails."""

QUEUE_FRAMES = 10_000
"""What a tap holds for a VM that is paused, at the least; for a busy one see `queue_for`."""
LONGEST_QUEUE = 1_000_000
WAIT_SECONDS = 0.5
"""How long a VM's frames may wait for it, to be on the safe side: some 0.1 s in a migration that goes
well."""

COUNT_LIMIT = 1.0
"""Seconds."""

ALIAS = "VM port of retinue"
"""What our taps are called beside their names: a tap without a port is known by it."""
LONGEST_NAME = 15
"""Linux: IFNAMSIZ is 16, the last byte zero."""


def queue_for(frames_a_second: float) -> int:
    """How many frames a tap must hold while its VM, which is sent so many, is paused for its migration."""
    return min(LONGEST_QUEUE, max(QUEUE_FRAMES, round(2 * frames_a_second * WAIT_SECONDS)))


def tap_name(vm: str) -> str:
    """The name of a VM's tap: the same on every server, and at most 15 characters long.

    No id that fits has the name that is made of one that does not: those have a "~".
    """
    name = f"tap-{vm}"
    if len(name) <= LONGEST_NAME and re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        return name
    return "tap-" + hashlib.sha256(vm.encode()).hexdigest()[: LONGEST_NAME - 5] + "~"


async def add_port(
    run: Run,
    *,
    bridge: str,
    tap: str,
    vm: str,
    mac: str,
    nic: str = "",
    ovs_vsctl: Sequence[str] = ("ovs-vsctl",),
) -> None:
    """Make the tap and plug it into the bridge. Doing it twice is no error, also while a VM uses the tap.

    `nic` is the id of the VM's NIC that it is for ("": the VM's own). `ovs_vsctl` is the program with the
    options that lead to the server's database. The tap is silent: without
    IPv6 the server itself sends nothing into it. Raises HostError where the port is another VM's.
    """
    owner = await _owner(run, tap, ovs_vsctl)
    if owner not in ("", nic or vm):
        raise HostError(
            f"port {tap} is VM {owner}'s, so VM {nic or vm} cannot have it: give one of them another id"
        )
    there = "/proc/sys/net/ipv4/conf"  # of the network in which this is run
    # The queue of a tap in use is left as it is: a migration may have made it longer.
    make = (
        f'ip tuntap add dev "$0" mode tap && ip link set dev "$0" txqueuelen {QUEUE_FRAMES} alias "{ALIAS}"'
    )
    await run(["sh", "-c", f'[ -e "{there}/$0" ] || {{ {make}; }}', tap])
    quiet = f"/proc/sys/net/ipv6/conf/{tap}/disable_ipv6"
    await run(["sh", "-c", 'if [ -e "$0" ]; then echo 1 > "$0"; fi', quiet])
    await run(["ip", "link", "set", "dev", tap, "up"])
    await run(
        [
            *ovs_vsctl,
            *("--", "--may-exist", "add-port", bridge, tap),
            *("--", "set", "Interface", tap),
            f"external_ids:iface-id={_quoted(nic or vm)}",
            f"external_ids:attached-mac={_quoted(mac)}",
            f"external_ids:vm-id={_quoted(vm)}",
            "external_ids:iface-status=active",
        ]
    )


async def _owner(run: Run, tap: str, ovs_vsctl: Sequence[str]) -> str:
    """The NIC that a port is made for; "" where there is no such port, or it is nobody's."""
    shown = await run([*ovs_vsctl, "--", "--if-exists", "get", "Interface", tap, "external_ids:iface-id"])
    return _unquoted(shown.strip())


async def remove_port(run: Run, *, bridge: str, tap: str, ovs_vsctl: Sequence[str] = ("ovs-vsctl",)) -> None:
    """Unplug the tap and remove it. Removing what is not there is no error. The VM must have ended."""
    await run([*ovs_vsctl, "--", "--if-exists", "del-port", bridge, tap])
    # Unlike `ip link delete`, this is content when there is no such tap.
    await run(["ip", "tuntap", "del", "dev", tap, "mode", "tap"])


async def rx_frames(run: Run, tap: str) -> int:
    """How many frames have been put into a tap, whether its VM has read them or not; 0 if that is unknown.

    A figure for people: no error here may stop the migration that wants it.
    """
    try:
        async with asyncio.timeout(COUNT_LIMIT):
            shown = await run(["tc", "-s", "-j", "qdisc", "show", "dev", tap])
        return sum(int(queue.get("packets", 0)) for queue in json.loads(shown) if queue.get("root"))
    except Exception:
        return 0


def _quoted(value: str) -> str:
    """A string as ovs-vsctl reads it (RFC 7047 names the form JSON's)."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unquoted(value: str) -> str:
    """A string as ovs-vsctl prints it: quoted where it is no plain word."""
    if not value.startswith('"'):
        return value
    text = json.loads(value)
    return text if isinstance(text, str) else ""

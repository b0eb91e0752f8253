"""Routes to other servers, that Open vSwitch in user space is told.

It goes by the kernel's, which it reads again whenever an interface comes or goes, a VM's tap, too, and drops
what is for a tunnel until it has. What it is told itself stays, but only until it ends: a unit of systemd
tells it after each of its starts.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network

from retinue.setup.scripts import APPCTL, FOLDER, VSCTL, disable, if_systemd
from retinue.setup.site import Route, ServerTable, Site

SCRIPT, UNIT = "routes.sh", "retinue-routes.service"
UNITS = "/etc/systemd/system"
LONGEST_PAUSE = 64
"""Seconds between two trials of the unit: from 1 s on twice as long each time. Of Debian 12 systemd has no
`RestartSteps` yet."""

_WHY = "is what it leads to, or its router, in a network of $bridge?"
"""What Open vSwitch itself says is "Error while inserting route.", of whichever."""


def files(server: ServerTable) -> Mapping[str, str]:
    """What the server's folder has of them."""
    routes = [Route.parse(text) for text in server.routes]
    return {SCRIPT: _script(server, routes), UNIT: _UNIT} if routes else {}


def checks(site: Site, server: ServerTable) -> Iterator[str]:
    """What must be so before anything is changed: tunnels leave by a bridge of Open vSwitch itself."""
    if site.datapath != "netdev":
        return
    wrong = f"has {server.endpoint}, and is no bridge of Open vSwitch in user space, which tunnels need there"
    yield f"at=$({_interface(server)})"
    yield f'type=$({VSCTL} --if-exists get bridge "$at" datapath_type)'
    yield f'test "$type" = netdev || stop "interface $at {wrong}"'
    for text in server.routes:
        prefix = Route.parse(text).prefix
        yield f"if {_is_told(prefix)} && ! grep -qsF '{_add(prefix)} ' {FOLDER}/{SCRIPT}; then"
        yield f'    stop "Open vSwitch is told a route to {prefix} already: see ovs-appctl ovs/route/show"'
        yield "fi"


def told(server: ServerTable) -> Iterator[str]:
    """A step of setup.sh. Routes that are as they were stay told all the time."""
    own = f"{FOLDER}/{SCRIPT}"
    if not server.routes:
        yield from taken_back()
        yield "echo '    none (server.routes): tunnels lose packets whenever an interface comes or goes'"
        return
    yield f'if test -e {own} && ! cmp -s "$here/{SCRIPT}" {own}; then sh {own} del; fi'
    yield f'install -m 0755 "$here/{SCRIPT}" {own}'
    yield f"sh {own}"
    yield from if_systemd(
        f'install -m 0644 "$here/{UNIT}" {UNITS}/{UNIT}',
        "systemctl daemon-reload",
        f"systemctl enable {UNIT}",
        # One that waits to be tried again is not started by `start`.
        f"systemctl restart {UNIT}",
        otherwise=f"run {own} after each start of Open vSwitch",
    )


def taken_back() -> Iterator[str]:
    """A step of undo.sh, whatever routes setup.sh had."""
    yield from if_systemd(
        disable(UNIT),
        f"if test -e {UNITS}/{UNIT}; then rm {UNITS}/{UNIT}; systemctl daemon-reload; fi",
        otherwise="",
    )
    yield f"if test -e {FOLDER}/{SCRIPT}; then sh {FOLDER}/{SCRIPT} del; rm {FOLDER}/{SCRIPT}; fi"


def _script(server: ServerTable, routes: Sequence[Route]) -> str:
    """It knows the bridge by the endpoint's address, which the bridge may get some time after it has come."""
    adds = (
        f'{APPCTL} {_add(one.prefix)} "$bridge"{f" {one.via}" if one.via else ""}'
        f' > /dev/null || refused "{one}"'
        for one in routes
    )
    dels = (f"if {_is_told(one.prefix)}; then {APPCTL} ovs/route/del {one.prefix}; fi" for one in routes)
    missing = shlex.quote(f"retinue: no interface has {server.endpoint} yet")
    return "\n".join(
        (
            "#!/bin/sh",
            "# Tells Open vSwitch in user space the routes to other servers; with `del` takes them back.",
            "set -eu",
            f'refused() {{ echo "retinue: Open vSwitch takes no route $1: {_WHY}" >&2; exit 1; }}',
            "word=${1:-add}",
            "# By its unit: as often as it has failed, the longer it waits.",
            'if test "$word" = patiently; then',
            f"    tries=$(systemctl show --property=NRestarts --value {UNIT})",
            "    pause=1",
            f'    while test "${{tries:-0}}" -gt 1 && test "$pause" -lt {LONGEST_PAUSE}; do',
            "        pause=$((pause * 2)) tries=$((tries - 1))",
            "    done",
            '    if test "${tries:-0}" -gt 0; then sleep "$pause"; fi',
            "fi",
            'if test "$word" = del; then',
            *(f"    {line} > /dev/null" for line in dels),
            "else",
            f"    bridge=$({_interface(server)})",
            f'    test -n "$bridge" || {{ echo {missing} >&2; exit 1; }}',
            *(f"    {line}" for line in adds),
            "fi",
            "",
        )
    )


def _interface(server: ServerTable) -> str:
    """Which has the endpoint's address; "" where none has."""
    return f"ip -o -4 address show to {server.endpoint} | sed -n '1s/^[0-9]*: \\([^ ]*\\) .*/\\1/p'"


def _add(prefix: IPv4Network) -> str:
    return f"ovs/route/add {prefix}"


def _is_told(prefix: IPv4Network) -> str:
    """A condition: Open vSwitch has been told a route to it, by whomever; one with a mark is another."""
    return f'{APPCTL} ovs/route/show | grep -qF "User: {prefix} dev "'


_UNIT = f"""\
[Unit]
Description=retinue, the routes to other servers that Open vSwitch in user space is told
After=ovs-vswitchd.service
PartOf=ovs-vswitchd.service
ReloadPropagatedFrom=ovs-vswitchd.service
# When the machine has booted the bridge gets its address later.
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh {FOLDER}/{SCRIPT} patiently
ExecReload=/bin/sh {FOLDER}/{SCRIPT}
Restart=on-failure
RestartSec=1

# It asks the kernel and systemd, and speaks to Open vSwitch's control socket, which may be another user's.
CapabilityBoundingSet=CAP_DAC_OVERRIDE
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
ProtectHostname=yes
ProtectClock=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_NETLINK
IPAddressDeny=any
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=ovs-vswitchd.service
"""

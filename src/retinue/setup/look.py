"""What a machine has that a site has to know of: Open vSwitch, libvirt, interfaces and their addresses."""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from retinue.core.text import cut, printable
from retinue.setup.site import INTERFACE, NAME, Route

Run = Callable[[Sequence[str]], str]
"""What a program prints; "" where it is not there, or fails."""
LIBVIRT_SOCKET = Path("/var/run/libvirt/libvirt-sock")
_TAG = re.compile(r"^lldp\.([^=\n]+)\.vlan\.vlan-id=([0-9]{1,4})$", re.MULTILINE)
LOOK_LIMIT = 10.0
"""Seconds for one of the programs that are asked."""


@dataclass(frozen=True)
class Found:
    """Of one machine; "" and empty where there is nothing."""

    name: str
    open_vswitch: str
    """Its version."""
    bridges: dict[str, list[str]]
    """Of Open vSwitch, each with its ports."""
    in_user_space: list[str]
    """Those bridges that forward there: tunnels leave by one of them, and by routes that it is told."""
    routes: dict[str, list[str]]
    """By interface: the kernel's, as in the site's file."""
    libvirt: bool
    addresses: dict[str, list[str]]
    """By interface, of IPv4, with the prefix's length."""
    default: str
    """The interface of the default route."""
    neighbours: dict[str, str]
    """By interface: the switch and port at the other end, where LLDP tells."""
    vlans: dict[str, list[str]]
    """By interface: VLANs that the other end says it has there (LLDP), and those Linux has devices for."""

    @property
    def management(self) -> str:
        """The address that others most likely reach it by."""
        first = [
            *self.addresses.get(self.default, []),
            *(a for some in self.addresses.values() for a in some),
        ]
        return first[0].partition("/")[0] if first else ""

    def table(self) -> list[str]:
        """What goes into the site's file, with what was found as comments."""
        lines = [f"# Open vSwitch {self.open_vswitch or 'is not here: apt-get install openvswitch-switch'}"]
        for name, ports in self.bridges.items():
            where = " (in user space)" if name in self.in_user_space else ""
            lines.append(f"# bridge {name}{where}: {', '.join(ports) or 'no ports'}")
        for interface in dict.fromkeys((*self.addresses, *self.neighbours, *self.vlans)):
            its = self.addresses.get(interface) or ["no address"]
            far = f", leads to {self.neighbours[interface]}" if interface in self.neighbours else ""
            tags = f", VLAN {', '.join(self.vlans[interface])}" if interface in self.vlans else ""
            lines.append(f"# interface {interface}: {', '.join(its)}{far}{tags}")
        return [
            *lines,
            "[[server]]",
            f'id = "{self.name}"',
            f'management = "{self.management}"',
            f'endpoint = "{self.management}"   # better an address of another network: VXLAN goes there',
            f"libvirt = {str(self.libvirt).lower()}",
            *(
                f"# routes = {json.dumps(self.routes[bridge])}   # if its endpoint is at {bridge}"
                for bridge in self.in_user_space
                if self.routes.get(bridge)
            ),
        ]


def look(run: Run | None = None, libvirt: Path = LIBVIRT_SOCKET) -> Found:
    """Look at this machine; nothing is changed."""
    ask = run or _run
    version = re.search(r"\d+\.\d+\.\d+", ask(["ovs-vsctl", "--version"]))
    bridges = ask(["ovs-vsctl", "list-br"]).split()
    routes = _json(ask(["ip", "-json", "-4", "route", "show"]))
    name = socket.gethostname().partition(".")[0].lower()
    lldp = ask(["lldpctl", "-f", "keyvalue"])
    return Found(
        name if NAME.fullmatch(name) else "server1",
        version[0] if version else "",
        {bridge: ask(["ovs-vsctl", "list-ports", bridge]).split() for bridge in bridges},
        [
            one
            for one in bridges
            if ask(["ovs-vsctl", "get", "bridge", one, "datapath_type"]).strip() == "netdev"
        ],
        _routes(routes),
        libvirt.exists(),
        _addresses(_json(ask(["ip", "-json", "-4", "address", "show"]))),
        next((str(route.get("dev", "")) for route in routes if route.get("dst") == "default"), ""),
        _neighbours(lldp),
        _vlans(lldp, _json(ask(["ip", "-json", "-d", "link", "show", "type", "vlan"]))),
    )


def _addresses(links: list[dict[str, object]]) -> dict[str, list[str]]:
    found = {}
    for link in links:
        entries = link.get("addr_info")
        its = [
            f"{entry['local']}/{entry['prefixlen']}"
            for entry in (entries if isinstance(entries, list) else [])
            if entry.get("scope") == "global"
        ]
        if its:
            found[str(link.get("ifname"))] = its
    return found


def _routes(routes: list[dict[str, object]]) -> dict[str, list[str]]:
    """Of several to one prefix the kernel takes the first that it lists."""
    found: dict[str, dict[str, str]] = {}
    for route in routes:
        if "via" in route or route.get("type", "unicast") != "unicast":
            continue  # By a router of IPv6, or to be thrown away.
        to = "0.0.0.0/0" if route.get("dst") == "default" else str(route.get("dst"))
        text = f"{to if '/' in to else f'{to}/32'}" + (
            f" via {route['gateway']}" if "gateway" in route else ""
        )
        try:
            found.setdefault(str(route.get("dev", "")), {}).setdefault(to, str(Route.parse(text)))
        except ValueError:
            continue  # To nowhere, or by several ways: for whoever set it to say.
    return {interface: list(its.values()) for interface, its in found.items()}


def _neighbours(text: str) -> dict[str, str]:
    """Of lines such as `lldp.eth0.chassis.name=leaf1` and `lldp.eth0.port.ifname=swp3`."""
    pairs = dict(line.split("=", 1) for line in text.splitlines() if line.startswith("lldp.") and "=" in line)
    found = {}
    for key, value in pairs.items():
        if key.endswith(".chassis.name"):
            interface = key.removeprefix("lldp.").removesuffix(".chassis.name")
            if not INTERFACE.fullmatch(interface):
                continue  # A line of a neighbour's description, which may have several.
            port = pairs.get(f"lldp.{interface}.port.ifname") or pairs.get(f"lldp.{interface}.port.descr", "")
            # A neighbour's own words, for a terminal and a comment of TOML.
            found[interface] = printable(cut(f"{value} {port}".strip()))
    return found


def _vlans(lldp: str, links: list[dict[str, object]]) -> dict[str, list[str]]:
    """The tags of a router's subinterfaces are those that it tells of, or that somebody has tried."""
    found: dict[str, list[str]] = {}
    for interface, tag in _TAG.findall(lldp):
        if INTERFACE.fullmatch(interface):
            found.setdefault(interface, []).append(tag)
    for link in links:
        info = link.get("linkinfo")
        data = info.get("info_data") if isinstance(info, dict) else None
        if isinstance(data, dict) and "link" in link:
            # A device's name is root's to give, with any byte but / and blanks.
            below, device = (printable(cut(str(link.get(key)))) for key in ("link", "ifname"))
            found.setdefault(below, []).append(f"{data.get('id')} ({device}, of this machine)")
    return found


def _json(text: str) -> list[dict[str, object]]:
    try:
        found = json.loads(text or "[]")
    except json.JSONDecodeError:
        return []
    return found if isinstance(found, list) else []


def _run(argv: Sequence[str]) -> str:
    if shutil.which(argv[0]) is None:
        return ""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=LOOK_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""

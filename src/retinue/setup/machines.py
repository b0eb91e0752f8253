"""What each machine of a site gets: files, the script that sets it up, and the one that takes it all back.

A server gets two bridges of its own beside those it has, which stay as they are: its edge, where VMs are
plugged in, and its leaf, which VXLAN joins to the others' (docs/networks.md, "Over an IP network"). Both are
the controller's. Certificates are issued by whoever writes the files down.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from retinue.core.limits import VXLAN_BYTES
from retinue.core.model import DEFAULT_VNET
from retinue.security.identity import PeerRole
from retinue.setup import routes
from retinue.setup.scripts import FOLDER, VSCTL, disable, if_systemd, install, remove, script, step
from retinue.setup.site import CONTROLLER, OutsideTable, ServerTable, Site, dpid_of, mac_of

EDGE, LEAF = "retinue", "retinue-leaf"
"""The two bridges of a server."""
UPLINK, DOWNLINK, TUNNEL = "retinue-up", "retinue-down", "retinue-vxlan"
"""The patch from the edge to the leaf, the one back, and the end of the leaf's tunnels."""
OPENFLOW, OVSDB, REST, AGENT, VXLAN = 6653, 6640, 8080, 7800, 4789
PROBE_MS, BACKOFF_MS = 5000, 1000
ENDED = "end it yourself"


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate that a machine gets: as `FILE.pem` and `FILE.key` in its folder."""

    role: PeerRole
    name: str
    file: str
    names: tuple[str, ...] = ()
    """Whom it may speak for, if not `name`."""
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """`files`: text by name; which of them go to /etc/retinue, `setup.sh` says."""

    name: str
    files: Mapping[str, str]
    identities: tuple[Identity, ...]


def machines(site: Site) -> Iterator[Machine]:
    """The controller's first."""
    yield Machine(
        CONTROLLER,
        {
            "controller.toml": controller_config(site),
            "setup.sh": _controller_setup(),
            "undo.sh": _controller_undo(),
        },
        (
            Identity(PeerRole.CONTROLLER, CONTROLLER, "controller", addresses=(str(site.controller),)),
            Identity(PeerRole.MANAGER, "operator", "operator"),
        ),
    )
    for server in site.server:
        edge, leaf = switches_of(server)
        yield Machine(
            server.id,
            {
                "agent.toml": agent_config(site, server),
                **routes.files(server),
                "setup.sh": _server_setup(site, server),
                "undo.sh": _server_undo(site),
            },
            (
                Identity(PeerRole.AGENT, server.id, "agent", addresses=(str(server.management),)),
                Identity(PeerRole.SWITCH, edge, "switch", names=(edge, leaf)),
            ),
        )


def switches_of(server: ServerTable) -> tuple[str, str]:
    """Ids of its edge and its leaf."""
    return f"{server.id}-edge", f"{server.id}-leaf"


# ---- the controller's machine ----


def controller_config(site: Site) -> str:
    """The controller's configuration file."""
    at = site.controller
    return "\n".join(
        (
            _table("", gateway_mac=site.gateway_mac, mtu=site.vm_mtu),
            _table("[listen]", openflow=f"{at}:{OPENFLOW}", ovsdb=f"{at}:{OVSDB}", rest=f"{at}:{REST}"),
            _table("[tls]", ca="ca.pem", certificate="controller.pem", key="controller.key"),
            _table("[vxlan]", mtu=site.vm_mtu + VXLAN_BYTES),
            *(_table("[[vrf]]", id=one.id, tag=one.tag) for one in site.vrf),
            *(
                _table(
                    "[[vnet]]", id=one.id, vrf=one.vrf, vlan=one.vlan or None, isolated=one.isolated or None
                )
                for one in site.vnet
            ),
            *(
                _table(
                    "[[subnet]]", id=one.id, prefix=one.prefix, gateway=one.gateway,
                    vnet=_unless(one.vnet, DEFAULT_VNET.id), dhcp=one.dhcp, dhcp_pools=one.dhcp_pools,
                    dhcp6=one.dhcp6 or None, slaac=one.slaac or None,
                )
                for one in site.subnet
            ),
            *(table for server in site.server for table in _server_tables(server)),
            *(_outside_table(one) for one in site.outside),
        )
    )  # fmt: skip


def _unless(value: str, default: str) -> str | None:
    """A key that says what is so anyway is left out, and a file of before stays as it is."""
    return None if value == default else value


def _server_tables(server: ServerTable) -> Iterator[str]:
    edge, leaf = switches_of(server)
    yield _table("[[switch]]", id=edge, role="edge", dpid=hex(dpid_of(edge)), uplink=UPLINK)
    yield _table(
        "[[switch]]", id=leaf, role="leaf", dpid=hex(dpid_of(leaf)), tunnel=TUNNEL,
        endpoint=str(server.endpoint), places="given",
    )  # fmt: skip
    yield _table("[[server]]", id=server.id, mac=mac_of(server.id), edge=edge, at=f"{leaf}:{DOWNLINK}")


def _outside_table(one: OutsideTable) -> str:
    router = _table(
        "[[server]]", id=one.id, mac=one.mac, address=one.address, services=one.services, routes=one.routes,
        metric=one.metric or None, at=f"{one.server}-leaf:{one.interface}",
    )  # fmt: skip
    further = (
        _table("[[server.subinterface]]", vrf=sub.vrf, vlan=sub.vlan, routes=sub.routes, address=sub.address)
        for sub in one.subinterface
    )
    return "\n".join((router, *further))


def _controller_setup() -> str:
    files = ("controller.toml", "ca.pem", "controller.pem", "controller.key")
    return script(
        "Sets the controller up on this machine. undo.sh takes it back.",
        step("the configuration is read", 'retinue controller check --config "$here/controller.toml"'),
        step(f"files to {FOLDER}", *install(files, owner="retinue")),
        step("the service", *if_systemd("systemctl enable --now retinue-controller")),
    )


def _controller_undo() -> str:
    files = ("controller.toml", "ca.pem", "controller.pem", "controller.key")
    return script(
        "Takes back what setup.sh did; what the controller has kept stays in /var/lib/retinue.",
        step("the service", *if_systemd(disable("retinue-controller"), otherwise=ENDED)),
        step("files", remove(files)),
    )


# ---- a server ----


def agent_config(site: Site, server: ServerTable) -> str:
    """The configuration file of a server's agent."""
    hypervisor = (
        _table("[libvirt]", uri="qemu:///system", control=server.control or None, user="libvirt-qemu")
        if server.libvirt
        else _table("[vm]", kernel="/boot/vmlinuz", initrd="/boot/initrd.img", accelerator="kvm")
    )
    return "\n".join(
        (
            _table(
                "", server=server.id, controller=f"https://{site.controller}:{REST}",
                listen=f"{server.management}:{AGENT}", bridge=EDGE, folder="/var/lib/retinue/agent",
            ),
            hypervisor,
            _table("[tls]", ca="ca.pem", certificate="agent.pem", key="agent.key"),
        )
    )  # fmt: skip


SERVER_FILES = ("agent.toml", "ca.pem", "agent.pem", "agent.key", "switch.pem", "switch.key")


def _server_setup(site: Site, server: ServerTable) -> str:
    edge, leaf = switches_of(server)
    cables = [one for one in site.outside if one.server == server.id]
    outside = [one.interface for one in cables]
    openflow = f"ssl:{site.controller}:{OPENFLOW}"
    in_user_space = site.datapath == "netdev"
    hwaddr = f'other_config:hwaddr="{mac_of(server.id)}"'
    return script(
        f"Sets server {server.id} up: bridges {EDGE} and {LEAF}, and the agent.\n"
        "# Bridges, ports and VMs that are there stay as they are. undo.sh takes it back.",
        step("what is there", *_checks(server, outside), *routes.checks(site, server), *_tag_checks(cables)),
        step("the configuration is read", 'retinue agent check --config "$here/agent.toml"'),
        step(f"files to {FOLDER}", *install(SERVER_FILES)),
        step(
            "Open vSwitch's certificate",
            f"{VSCTL} set-ssl {FOLDER}/switch.key {FOLDER}/switch.pem {FOLDER}/ca.pem",
        ),
        step(
            "the edge and the leaf",
            _vsctl(
                *_bridge(site, EDGE, edge, hwaddr),
                *_bridge(site, LEAF, leaf),
                *_port(EDGE, UPLINK, "type=patch", f"options:peer={DOWNLINK}"),
                *_port(LEAF, DOWNLINK, "type=patch", f"options:peer={UPLINK}"),
                *_tunnel(site, server),
                *(word for interface in outside for word in _port(LEAF, interface)),
            ),
            *_controlled(EDGE, openflow),
            *_controlled(LEAF, openflow),
        ),
        *((step("the routes to other servers", *routes.told(server)),) if in_user_space else ()),
        step("its database is shown to the controller", *_manager(f"ssl:{site.controller}:{OVSDB}")),
        step("the agent", *if_systemd("systemctl enable --now retinue-agent")),
    )  # fmt: skip


def _checks(server: ServerTable, outside: Sequence[str]) -> Iterator[str]:
    """What must be so before anything is changed."""
    for program, package in (("ovs-vsctl", "openvswitch-switch"), ("retinue", "retinue-agent")):
        missing = f"{program} is not here: install the package {package}"
        yield f"command -v {program} > /dev/null || stop {shlex.quote(missing)}"
    silent = "Open vSwitch does not answer: start the service openvswitch-switch"
    yield f"{VSCTL} show > /dev/null || stop {shlex.quote(silent)}"
    nowhere = f"no interface has {server.endpoint}, the endpoint of {server.id}: is this that server?"
    yield f"ip -o address show to {server.endpoint} | grep -q . || stop {shlex.quote(nowhere)}"
    yield f"bridges=$({VSCTL} list-br)"
    for bridge in (EDGE, LEAF):
        yield f'if echo "$bridges" | grep -qxF {bridge} && test "$({_ours(bridge)})" != yes; then'
        yield f"    stop 'bridge {bridge} is there, and not made by this: give it another name'"
        yield "fi"
    for interface in map(shlex.quote, outside):
        yield f'ip link show dev {interface} > /dev/null || stop "there is no interface {interface}"'
        yield f"of=$({VSCTL} port-to-br {interface} 2> /dev/null || true)"
        yield f'test -z "$of" -o "$of" = {LEAF} || stop "interface {interface} is in bridge $of"'
    yield f"has=$({VSCTL} get-ssl)"
    yield """has=$(echo "$has" | sed -n 's/^Private key: //p')"""
    yield f'test -z "$has" -o "$has" = {FOLDER}/switch.key ||'
    yield '    stop "Open vSwitch has a certificate already ($has), and there is one for all its bridges"'


def _tag_checks(cables: Sequence[OutsideTable]) -> Iterator[str]:
    """A VLAN device of Linux on a router's cable takes its tag's frames before Open vSwitch sees them."""
    for cable in cables:
        for vlan in sorted({one.vlan for one in cable.subinterface}):
            device = f"@{cable.interface}: .* vlan protocol 802.1Q id {vlan} "
            yield f"if ip -o -d link show type vlan | grep -q {shlex.quote(device)}; then"
            taken = f"VLAN {vlan} of interface {cable.interface}, a router's, goes to a device here"
            yield f'    stop "{taken}: ip link show type vlan"'
            yield "fi"


def _ours(bridge: str) -> str:
    """Says "yes" of a bridge that setup.sh has made."""
    return f"{VSCTL} --if-exists get bridge {bridge} external_ids:retinue"


def _bridges_gone() -> Iterator[str]:
    """Where setup.sh has stopped because a bridge of this name is somebody else's, that stays."""
    yield f"bridges=$({VSCTL} list-br)"
    for bridge in (EDGE, LEAF):
        yield f'if echo "$bridges" | grep -qxF {bridge}; then'
        yield f"    ours=$({_ours(bridge)})"
        yield f'    if test "$ours" = yes; then {VSCTL} del-br {bridge}'
        yield f"    else echo '    bridge {bridge} was not made by setup.sh: it stays'; fi"
        yield "fi"


def _bridge(site: Site, name: str, switch: str, *more: str) -> Iterator[str]:
    yield from ("--may-exist", "add-br", name, "--", "set", "bridge", name)
    yield from (f"datapath_type={site.datapath}", "fail-mode=secure", "protocols=OpenFlow14")
    yield from (
        f"other_config:datapath-id={dpid_of(switch):016x}",
        "other_config:disable-in-band=true",
        *more,
    )
    yield from ("external_ids:retinue=yes", "--")


def _controlled(bridge: str, target: str) -> Iterator[str]:
    """By the controller, whose connection is not broken off where it is there already."""
    set_it = ("set-controller", bridge, target, "--", "set", "controller", bridge)
    how = ("connection_mode=out-of-band", f"inactivity_probe={PROBE_MS}", f"max_backoff={BACKOFF_MS}")
    yield f'if test "$({VSCTL} get-controller {bridge})" != {target}; then'
    yield f"    {_vsctl(*set_it, *how)}"
    yield "fi"


def _port(bridge: str, port: str, *settings: str) -> Iterator[str]:
    yield from ("--may-exist", "add-port", bridge, port)
    if settings:
        yield from ("--", "set", "interface", port, *settings)
    yield "--"


def _tunnel(site: Site, server: ServerTable) -> Iterator[str]:
    """The end of the leaf's tunnels.

    In user space it does without its own address: with it each packet is looked up in the kernel's routes,
    and dropped while these are read again, as they are whenever a tap comes or goes. Older setups had it.
    """
    anyone = ("type=vxlan", "options:remote_ip=flow", "options:key=flow", f"options:dst_port={VXLAN}")
    if site.datapath == "netdev":
        yield from _port(LEAF, TUNNEL, *anyone)
        yield from ("remove", "interface", TUNNEL, "options", "local_ip", "--")
    else:
        yield from _port(LEAF, TUNNEL, *anyone, f"options:local_ip={server.endpoint}")


def _vsctl(*words: str) -> str:
    """One transaction: all of it, or nothing."""
    parts = shlex.join(words[:-1] if words[-1] == "--" else words).replace(" -- ", " \\\n    -- ")
    return f"{VSCTL} {parts}"


def _manager(target: str) -> Iterator[str]:
    """Beside the managers that are there, which stay."""
    probe = f"inactivity_probe={PROBE_MS} max_backoff={BACKOFF_MS}"
    made = f'--id=@m create manager target=\\"{target}\\" {probe} -- add open_vswitch . manager_options @m'
    yield f"{VSCTL} get-manager | grep -qxF {target} || {VSCTL} -- {made} > /dev/null"


def _server_undo(site: Site) -> str:
    key = f"{FOLDER}/switch.key"
    managers, target = (
        f"{VSCTL} --bare --columns=_uuid find manager",
        f'target="ssl:{site.controller}:{OVSDB}"',
    )
    return script(
        "Takes back what setup.sh did: VMs that are plugged into the edge lose their network with it.",
        step("the agent", *if_systemd(disable("retinue-agent"), otherwise=ENDED)),
        # Also with the kernel's datapath: it may have been another when setup.sh was run.
        step("the routes to other servers", *routes.taken_back()),
        step("the bridges", *_bridges_gone()),
        step(
            "Open vSwitch's certificate and manager",
            f"has=$({VSCTL} get-ssl)",
            f'if echo "$has" | grep -q {key}; then {VSCTL} del-ssl; fi',
            f"rows=$({managers} {shlex.quote(target)})",
            f"for row in $rows; do {VSCTL} remove open_vswitch . manager_options $row; done",
        ),
        step("files", remove(SERVER_FILES)),
    )


def _table(header: str, **keys: object) -> str:
    """A TOML table, without keys that are None or empty. Every value is ASCII, whose JSON is TOML too."""
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in keys.items() if value not in (None, (), "")]
    return (f"{header}\n" if header else "") + "".join(lines)

"""The site's file, what is made of it for each machine, and what is found on one."""

import json
import re
import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from retinue.agent.config import load as load_agent
from retinue.config_file import ConfigError
from retinue.controller.config import load as load_controller
from retinue.setup import look as look_module
from retinue.setup.look import look
from retinue.setup.machines import machines
from retinue.setup.site import Site, dpid_of, load, mac_of
from support.site import SITE, make, site_file


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return load(site_file(tmp_path, SITE))


def test_each_machine_gets_a_folder_with_all_that_it_needs(tmp_path: Path) -> None:
    assert "copy each to its machine and run `sh setup.sh` there" in make(tmp_path)
    folder = tmp_path / "machines"
    assert sorted(path.name for path in folder.iterdir()) == ["controller", "server1", "server2"]
    net = load_controller(folder / "controller" / "controller.toml").network()
    assert set(net.switches) == {"server1-edge", "server1-leaf", "server2-edge", "server2-leaf"}
    assert net.over_ip
    assert {id: net.location(id) is not None for id in net.servers} == dict.fromkeys(net.servers, True)
    agent = load_agent(folder / "server1" / "agent.toml")
    assert (agent.server, agent.controller, agent.bridge) == ("server1", "https://192.0.2.10:8080", "retinue")
    assert agent.libvirt is not None and agent.libvirt.control == "qemu+tls://server1.example/system"
    for key in folder.rglob("*.key"):
        assert key.stat().st_mode & 0o077 == 0
    for script in folder.rglob("*.sh"):
        subprocess.run(["sh", "-n", str(script)], check=True)


def test_made_once_more_certificates_stay_and_a_new_server_changes_no_others(tmp_path: Path) -> None:
    make(tmp_path)
    folder = tmp_path / "machines"
    before = {path: path.read_bytes() for path in folder.glob("server*/*")}
    more = '[[server]]\nid = "server3"\nmanagement = "192.0.2.13"\nendpoint = "172.16.3.2"\n'
    said = make(tmp_path, SITE + more)
    assert {path: path.read_bytes() for path in before} == before
    assert "nothing new" in said
    assert (folder / "server3" / "setup.sh").exists()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('id = "server2"', 'id = "server1"', "server1 is there 2 times"),
        ('id = "server2"', 'id = "Server; rm"', "is no name of a machine"),
        ('id = "server2"', 'id = "controller"', "is no name of a machine"),
        ('endpoint = "172.16.2.2"', 'endpoint = "172.16.1.2"', "endpoint 172.16.1.2 is of 2 servers"),
        ('server = "server1"\ninter', 'server = "server9"\ninter', "which is not there"),
        ('interface = "eth2"', 'interface = "eth2; reboot"', "is no name of an interface"),
        ('controller = "192.0.2.10"', 'controller = "nobody"', "site.toml"),
        ('controller = "192.0.2.10"', 'controller = "192.0.2.10"\nmtu = 100', "mtu is "),
        (
            'endpoint = "172.16.2.2"',
            'endpoint = "172.16.2.2"\nroutes = ["10.0.0.0/8"]',
            "in user space alone",
        ),
        ('gateway = "10.1.0.254"', 'gateway = "10.2.0.254"', "10.2.0.254"),
        ('mac = "02:00:00:00:00:e1"', 'mac = "zz"', "zz"),
    ],
)
def test_what_cannot_be_is_said_with_the_file_that_says_it(
    tmp_path: Path, old: str, new: str, reason: str
) -> None:
    assert old in SITE
    said = make(tmp_path, SITE.replace(old, new, 1))
    assert reason in said


def test_without_servers_there_is_no_site(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 to 1000 servers"):
        load(site_file(tmp_path, 'controller = "192.0.2.10"\nserver = []\nsubnet = []\n'))


def test_datapath_ids_and_macs_are_made_of_names(site: Site) -> None:
    names = [f"server{number}-{part}" for number in range(1000) for part in ("edge", "leaf")]
    assert len({dpid_of(name) for name in names}) == len(names)
    assert all(0 < dpid_of(name) < 1 << 48 for name in names)
    macs = {mac_of(f"server{number}") for number in range(1000)}
    assert len(macs) == 1000 and all(mac.startswith("02:") for mac in macs)
    assert site.vm_mtu == 1450
    assert site.controller == IPv4Address("192.0.2.10")


def test_nothing_of_a_site_is_taken_for_a_command(site: Site) -> None:
    """What is written into a script has a grammar without blanks and quotes, or is quoted."""
    server = next(one for one in machines(site) if one.name == "server1")
    assert "add-port retinue-leaf eth2" in server.files["setup.sh"]
    assert "'other_config:hwaddr=\"" in server.files["setup.sh"]


WAYS = """
[[vrf]]
id = "red"
tag = 7
[[vnet]]
id = "red"
vrf = "red"
[[subnet]]
id = "tenant"
prefix = "10.5.0.0/24"
gateway = "10.5.0.254"
vnet = "red"
"""
SUBINTERFACE = (
    '[[outside.subinterface]]\nvrf = "red"\nvlan = 100\nroutes = ["0.0.0.0/0"]\naddress = "10.5.0.253"\n'
)


def test_a_routers_subinterfaces_are_ways_out_of_vrfs(tmp_path: Path) -> None:
    make(tmp_path, f"{SITE}{SUBINTERFACE}{WAYS}")
    folder = tmp_path / "machines"
    net = load_controller(folder / "controller" / "controller.toml").network()
    (way,) = net.servers["router"].subinterfaces
    assert (way.vrf, way.vlan, str(way.address)) == ("red", 100, "10.5.0.253")
    assert net.vnets[net.subnets["tenant"].vnet].vrf == "red"
    said = make(tmp_path, f"{SITE}{SUBINTERFACE}")
    assert "there is no VRF red" in said


def test_a_sites_vnet_is_isolated(tmp_path: Path) -> None:
    make(tmp_path, f'{SITE}[[vnet]]\nid = "bank"\nvlan = 50\nisolated = true\n')
    net = load_controller(tmp_path / "machines" / "controller" / "controller.toml").network()
    assert (net.is_isolated("bank"), net.vrfs["bank"].tag) == (True, 50)
    shared = '[[vnet]]\nid = "bank"\nvlan = 50\nisolated = true\n[[vnet]]\nid = "till"\nvrf = "bank"\n'
    assert "vnet bank is isolated, and another vnet is in VRF bank" in make(tmp_path, f"{SITE}{shared}")


@pytest.mark.parametrize(("device", "stops"), [("100", True), ("101", False), ("10", False)])
def test_a_vlan_device_on_a_routers_cable_is_found_before_anything_is_changed(
    tmp_path: Path, device: str, stops: bool
) -> None:
    """It would take the tag's frames before Open vSwitch sees them."""
    site = load(site_file(tmp_path, f"{SITE}{SUBINTERFACE}{WAYS}"))
    (whole,) = (one.files["setup.sh"] for one in machines(site) if one.name == "server1")
    (check,) = re.findall(r"^if ip .* type vlan .*?^fi\n", whole, re.MULTILINE | re.DOTALL)
    link = f"9: eth2.x@eth2: <BROADCAST> mtu 1500 \\    vlan protocol 802.1Q id {device} <REORDER_HDR> addr"
    script = f'set -eu\nip() {{ echo "$LINK"; }}\nstop() {{ echo "$1"; exit 1; }}\n{check}'
    done = subprocess.run(
        ["sh", "-c", script], env={"LINK": link, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert ("VLAN 100 of interface eth2" in done.stdout) is stops
    assert (done.returncode != 0) is stops, done.stderr


@pytest.mark.parametrize(("datapath", "said"), [("system", True), ("netdev", False)])
def test_in_user_space_a_tunnel_does_without_its_own_address(
    tmp_path: Path, datapath: str, said: bool
) -> None:
    """There it would drop packets whenever a tap comes or goes; that of a setup of before is taken back."""
    site = load(site_file(tmp_path, f'datapath = "{datapath}"\n{SITE}'))
    script = next(one for one in machines(site) if one.name == "server1").files["setup.sh"]
    assert ("options:local_ip=172.16.1.2" in script) is said
    assert ("remove interface retinue-vxlan options local_ip" in script) is not said


OVS_VSCTL = """#!/bin/sh
echo "$@" >> SAID
case "$*" in
    *list-br) echo theirs; echo retinue; echo retinue-leaf ;;
    *"get bridge retinue external_ids:retinue") echo yes ;;
esac
"""


def test_a_bridge_of_somebody_elses_of_the_same_name_is_not_taken_back(site: Site, tmp_path: Path) -> None:
    """Where setup.sh has stopped for it, undo.sh is what one runs next."""
    server = next(one for one in machines(site) if one.name == "server1")
    programs, said = tmp_path / "bin", tmp_path / "said"
    programs.mkdir()
    for name, text in (("ovs-vsctl", OVS_VSCTL.replace("SAID", str(said))), ("id", "#!/bin/sh\necho 0\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    script = tmp_path / "undo.sh"
    nowhere = server.files["undo.sh"].replace("/etc/retinue", str(tmp_path / "etc"))
    script.write_text(nowhere.replace("/run/systemd/system", str(tmp_path / "no-systemd")))
    path = f"{programs}:/usr/bin:/bin"
    argv = ["sh", str(script)]
    done = subprocess.run(argv, env={"PATH": path}, capture_output=True, text=True, check=True)
    assert "bridge retinue-leaf was not made by setup.sh: it stays" in done.stdout
    deleted = [line.split()[-1] for line in said.read_text().splitlines() if " del-br " in line]
    assert deleted == ["retinue"]


SAYS = {
    "ovs-vsctl --version": "ovs-vsctl (Open vSwitch) 3.1.0\nDB Schema 8.3.1\n",
    "ovs-vsctl list-br": "br0\n",
    "ovs-vsctl get bridge br0 datapath_type": "netdev\n",
    "ovs-vsctl list-ports br0": "eth1\n",
    "ip -json -4 route show": (
        '[{"dst": "172.16.0.0/16", "gateway": "172.16.1.1", "dev": "br0"},'
        '{"dst": "172.16.1.0/24", "dev": "br0", "scope": "link"}, {"dst": "172.16.9.9", "dev": "br0"},'
        '{"type": "blackhole", "dst": "172.17.0.0/16 via x", "dev": "br0"},'
        '{"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"}]'
    ),
    "ip -json -4 address show": (
        '[{"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8, "scope": "host"}]},'
        '{"ifname": "eth1", "addr_info": [{"local": "172.16.1.2", "prefixlen": 24, "scope": "global"}]},'
        '{"ifname": "eth0", "addr_info": [{"local": "192.0.2.11", "prefixlen": 24, "scope": "global"}]}]'
    ),
    "lldpctl -f keyvalue": (
        "lldp.eth1.chassis.name=tor1\nlldp.eth1.port.ifname=swp3\nlldp.eth1.via=LLDP\n"
        "lldp.eth2.chassis.name=border1\nlldp.eth2.vlan.vlan-id=100\nlldp.eth2.vlan.pvid=no\n"
        "lldp.eth2.vlan=red\nlldp.eth2.vlan.vlan-id=200\n"
    ),
    "ip -json -d link show type vlan": (
        '[{"ifname": "eth2.300", "link": "eth2",'
        ' "linkinfo": {"info_kind": "vlan", "info_data": {"id": 300}}}]'
    ),
}


def test_a_configuration_is_read_before_it_takes_the_place_of_the_one_there(site: Site) -> None:
    """With one that cannot be read the service would not come up again, at a boot, say."""
    for one in machines(site):
        setup = one.files["setup.sh"]
        service = "controller" if one.name == "controller" else "agent"
        reads = f'retinue {service} check --config "$here/{service}.toml"\n'
        assert setup.index(reads) < setup.index("install -d")


def test_a_machine_is_looked_at(tmp_path: Path) -> None:
    def says(argv: Sequence[str]) -> str:
        return SAYS[" ".join(argv)]

    found = look(says, tmp_path)
    assert (found.open_vswitch, found.bridges, found.libvirt) == ("3.1.0", {"br0": ["eth1"]}, True)
    assert (found.management, found.neighbours) == ("192.0.2.11", {"eth1": "tor1 swp3", "eth2": "border1"})
    lines = found.table()
    assert "# bridge br0 (in user space): eth1" in lines
    told = '["172.16.0.0/16 via 172.16.1.1", "172.16.1.0/24", "172.16.9.9/32"]'
    assert lines[-1] == f"# routes = {told}   # if its endpoint is at br0"
    assert "# interface eth1: 172.16.1.2/24, leads to tor1 swp3" in lines
    tags = "VLAN 100, 200, 300 (eth2.300, of this machine)"
    assert f"# interface eth2: no address, leads to border1, {tags}" in lines
    assert 'management = "192.0.2.11"' in lines and "libvirt = true" in lines


def test_the_routes_that_are_printed_are_such_as_a_sites_file_may_have(tmp_path: Path) -> None:
    """To one prefix one: the kernel's first. By a router of IPv6, or to nowhere, there is none to be told."""
    routes = [
        {"dst": "default", "gateway": "172.16.1.1", "dev": "br0", "metric": 100},
        {"dst": "default", "gateway": "172.16.1.9", "dev": "br0", "metric": 200},
        {"dst": "10.0.0.0/8", "via": {"family": "inet6", "host": "fe80::1"}, "dev": "br0"},
        {"type": "unreachable", "dst": "10.9.0.0/16", "dev": "br0"},
    ]
    said = {**SAYS, "ip -json -4 route show": json.dumps(routes)}
    lines = look(lambda argv: said[" ".join(argv)], tmp_path).table()
    assert lines[-1].startswith('# routes = ["0.0.0.0/0 via 172.16.1.1"]')


def test_what_a_neighbour_calls_itself_is_no_command_to_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLDP is anybody's on the cable."""
    program = tmp_path / "lldpctl"
    program.write_text("#!/bin/sh\nprintf 'lldp.eth1.chassis.name=tor1\\033[2J\\377\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert look_module._neighbours(look_module._run(["lldpctl"])) == {"eth1": "tor1\\x1b[2J\ufffd"}


def test_no_line_of_a_neighbours_description_is_taken_for_an_interface(tmp_path: Path) -> None:
    """A description has lines, and lldpctl prints them as they are: these would be lines of a site."""
    described = (
        "lldp.eth1.chassis.descr=a switch\nlldp.\x1b[2J.chassis.name=x\n"
        "lldp.eth9\n[[outside]]\n.vlan.vlan-id=7\nlldp.\x1b[2J.vlan.vlan-id=8\n"
    )
    found = look(lambda argv: described if argv[0] == "lldpctl" else "", tmp_path / "none")
    assert (found.neighbours, found.vlans) == ({}, {})
    assert not [line for line in found.table() if not line.isprintable() or "outside" in line]


def test_where_there_is_nothing_it_is_said(tmp_path: Path) -> None:
    found = look(lambda argv: "", tmp_path / "none")
    assert found.management == "" and not found.libvirt
    assert "apt-get install openvswitch-switch" in found.table()[0]

"""Servers that exist are set up by the scripts that `retinue setup make` writes, and taken back.

Two machines of somebody else's, with Open vSwitch and a bridge that is their own, a router between them, and
the controller's. They stand in the sandbox of a lab, whose own network takes no part.
"""

import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue_lab.sandbox import handle as sandbox
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import SANDBOX
from support.lab.small_network import SMALL

pytestmark = [pytest.mark.lab, pytest.mark.no_vms]

SITE = """
controller = "192.0.2.200"
datapath = "netdev"
gateway_mac = "00:00:de:ad:be:ef"
[[subnet]]
id = "blue"
prefix = "10.1.0.0/24"
gateway = "10.1.0.254"
[[server]]
id = "left"
management = "192.0.2.201"
endpoint = "172.16.1.2"
routes = ["172.16.0.0/16 via 172.16.1.1"]
libvirt = false
[[server]]
id = "right"
management = "192.0.2.202"
endpoint = "172.16.2.2"
libvirt = false
"""
NODES = {"ctl": "192.0.2.200", "left": "192.0.2.201", "right": "192.0.2.202"}
VMS = {"web": ("left", "52:54:00:00:00:01", "10.1.0.1"), "db": ("right", "52:54:00:00:00:02", "10.1.0.2")}
PATIENCE = 60.0

_NETWORK = """
for node in ctl left right between office web db; do ip netns add $node; ip -n $node link set lo up; done
ip -n office link add office type bridge forward_delay 0
ip -n office link set office up
management() {
    ip link add to-$1 netns office type veth peer name mgmt netns $1
    ip -n office link set to-$1 master office up
    ip -n $1 link set mgmt up
    ip -n $1 address add $2/24 dev mgmt
}
management ctl 192.0.2.200; management left 192.0.2.201; management right 192.0.2.202
ip netns exec between sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
underlay() {
    ip link add to-$1 netns between type veth peer name eth0 netns $1
    ip -n between link set to-$1 up
    ip -n between address add $2.1/24 dev to-$1
    ip -n $1 link set eth0 up
    ip netns exec $1 ethtool -K eth0 rx off tx off > /dev/null
    ip netns exec between ethtool -K to-$1 rx off tx off > /dev/null
}
underlay left 172.16.1; underlay right 172.16.2
"""
_OPEN_VSWITCH = """
run=/run/retinue/own-NODE; mkdir -p $run
export OVS_RUNDIR=$run
ovsdb-tool create $run/conf.db
ip netns exec NODE ovsdb-server $run/conf.db --remote=punix:$run/db.sock \\
    --remote=db:Open_vSwitch,Open_vSwitch,manager_options --private-key=db:Open_vSwitch,SSL,private_key \\
    --certificate=db:Open_vSwitch,SSL,certificate --ca-cert=db:Open_vSwitch,SSL,ca_cert \\
    --pidfile=$run/ovsdb-server.pid --log-file=$run/ovsdb.log --detach --no-chdir -vconsole:off -vsyslog:off
ovs-vsctl --no-wait init
ip netns exec NODE ovs-vswitchd unix:$run/db.sock --pidfile=$run/ovs-vswitchd.pid \\
    --log-file=$run/vswitchd.log --detach --no-chdir -vconsole:off -vsyslog:off
ovs-vsctl add-br theirs -- set bridge theirs datapath_type=netdev -- add-port theirs eth0
ip -n NODE link set theirs up
ip -n NODE address add ADDRESS.2/24 dev theirs
ip -n NODE route add default via ADDRESS.1
"""
_PLUG = """
ip link add tap-VM netns SERVER type veth peer name eth0 netns VM
ip -n VM link set eth0 address MAC up
ip -n VM address add IP/24 dev eth0
ip -n SERVER link set tap-VM up
ip netns exec VM ethtool -K eth0 rx off tx off > /dev/null
ip netns exec SERVER ethtool -K tap-VM rx off tx off > /dev/null
"""


class Machines:
    """Programs on the machines, and the folder where what was made for each lies."""

    def __init__(self, lab: LabHandle, folder: Path) -> None:
        self.lab = lab
        self.folder = folder

    def run(self, node: str, *argv: str, check: bool = True) -> str:
        inside = [] if node == SANDBOX else ["ip", "netns", "exec", node]
        own = [] if node == SANDBOX else ["env", f"OVS_RUNDIR=/run/retinue/own-{node}"]
        done = self.lab.exec(
            SANDBOX, [*inside, *own, *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert not check or done.returncode == 0, f"{argv} on {node}: {done.stdout}"
        return str(done.stdout)

    def script(self, machine: str, name: str, *, check: bool = True) -> str:
        """Run one of a machine's scripts there."""
        node = "ctl" if machine == "controller" else machine
        return self.run(node, "sh", str(self.folder / machine / name), check=check)

    def retinue(self, *argv: str, check: bool = True) -> str:
        own = self.folder / "controller"
        who = ["--ca", f"{own}/ca.pem", "--cert", f"{own}/operator.pem", "--key", f"{own}/operator.key"]
        words = [sys.executable, "-P", "-m", "retinue.cli.main", *who, *argv]
        return self.run("ctl", *words, "--url", "https://192.0.2.200:8080", check=check)

    def eventually(self, *argv: str, until: str) -> str:
        """Ask the controller again until its answer has this."""
        end = time.monotonic() + PATIENCE
        while until not in (said := self.retinue(*argv, check=False)):
            assert time.monotonic() < end, (
                said,
                (self.lab.directory / "logs/own-controller.log").read_text(),
            )
            time.sleep(0.2)
        return said


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    base = tmp_path_factory.mktemp("setup")
    network, site, folder = base / "small.toml", base / "site.toml", base / "machines"
    network.write_text(SMALL)
    site.write_text(SITE)
    argv = [sys.executable, "-P", "-m", "retinue.cli.main", "setup", "make", str(site)]
    argv += ["--output", str(folder), "--pki", str(base / "pki")]
    made = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "sh setup.sh" in made.stdout
    # The machines share one file system here: each has an /etc/retinue of its own, by another name.
    binaries = base / "bin"
    binaries.mkdir()
    (binaries / "retinue").write_text(f'#!/bin/sh\nexec {sys.executable} -P -m retinue.cli.main "$@"\n')
    (binaries / "retinue").chmod(0o755)
    for machine in folder.iterdir():
        for script in machine.glob("*.sh"):
            text = script.read_text().replace("/etc/retinue", f"/run/retinue/etc-{machine.name}")
            script.write_text(text.replace("set -eu\n", f"set -eu\nPATH={binaries}:$PATH\n", 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINUE_LAB_DIR", str(base))
        handle = sandbox.up("setup", network, start_controller=False, tie_to_parent=True)
        try:
            found = Machines(handle, folder)
            found.run(SANDBOX, "sh", "-ec", _NETWORK)
            for node, address in (("left", "172.16.1"), ("right", "172.16.2")):
                text = _OPEN_VSWITCH.replace("NODE", node).replace("ADDRESS", address)
                found.run(SANDBOX, "sh", "-ec", text)
            yield found
        finally:
            handle.down()


def test_servers_that_exist_are_set_up_and_vms_reach_each_other(machines: Machines) -> None:
    said = machines.script("controller", "setup.sh")
    assert "1/3 the configuration is read" in said and "4 switches, 2 servers, 1 subnets" in said
    config = "/run/retinue/etc-controller/controller.toml"
    argv = ["ip", "netns", "exec", "ctl", sys.executable, "-P", "-m", "retinue.cli.main"]
    argv += ["controller", "run", "--config", config]
    machines.lab.spawn(SANDBOX, argv, log="own-controller")
    for server in ("left", "right"):
        assert "8/8 the agent" in machines.script(server, "setup.sh")
    told = machines.run("left", "ovs-appctl", "ovs/route/show")
    assert "User: 172.16.0.0/16 dev theirs GW 172.16.1.1" in told
    for switch in ("left-edge", "left-leaf", "right-edge", "right-leaf"):
        machines.eventually("switch", "list", "--json", until=f'"id": "{switch}"')

    def connected() -> bool:
        rows = json.loads(machines.retinue("switch", "list", "--json"))["switches"]
        return len(rows) == 4 and all(row["connected"] for row in rows)

    end = time.monotonic() + PATIENCE
    while not connected():
        assert time.monotonic() < end, machines.retinue("switch", "list")
        time.sleep(0.2)
    for vm, (server, mac, ip) in VMS.items():
        machines.retinue("vm", "add", vm, "--server", server, "--mac", mac, "--address", ip)
        text = _PLUG.replace("VM", vm).replace("SERVER", server).replace("MAC", mac).replace("IP", ip)
        machines.run(SANDBOX, "sh", "-ec", text)
        plug = ("add-port", "retinue", f"tap-{vm}", "--", "set", "interface", f"tap-{vm}")
        ids = (f"external_ids:iface-id={vm}", f'external_ids:attached-mac="{mac}"')
        machines.run(server, "ovs-vsctl", *plug, *ids, "external_ids:iface-status=active")
        machines.eventually("binding", "list", "--json", until=f'"ip": "{ip}"')
    reached = ping(machines, "web", "10.1.0.2")
    assert reached, machines.run("left", "ovs-appctl", "tnl/neigh/show")


def ping(machines: Machines, vm: str, to: str) -> bool:
    """The first ones may be dropped while the next hop's MAC is asked for."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if " 1 received" in machines.run(vm, "ping", "-c", "1", "-W", "1", to, check=False):
            return True
    return False


def test_done_once_more_it_changes_nothing_and_nobody_is_cut_off(machines: Machines) -> None:
    before = machines.run("left", "ovs-vsctl", "show")
    machines.script("left", "setup.sh")
    assert machines.run("left", "ovs-vsctl", "show").split() == before.split()
    assert ping(machines, "web", "10.1.0.2")


def test_what_is_not_as_it_should_be_is_said_before_anything_is_changed(machines: Machines) -> None:
    other = machines.folder / "elsewhere"
    shutil.copytree(machines.folder / "left", other)
    before = machines.run("right", "ovs-vsctl", "show")
    said = machines.run("right", "sh", str(other / "setup.sh"), check=False)
    assert "no interface has 172.16.1.2, the endpoint of left: is this that server?" in said
    assert machines.run("right", "ovs-vsctl", "show") == before


FAILING = """#!/bin/sh
n=$(($(cat COUNT) + 1)); echo $n > COUNT
test $n != NUMBER || { echo "ovs-vsctl: as if Open vSwitch were away" >&2; exit 1; }
exec REAL "$@"
"""


class Failing:
    """An ovs-vsctl before the real one, that fails when it is called for the NUMBERth time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def script(self, machines: Machines, name: str, number: int) -> str:
        """What right's script says when its NUMBERth call fails; "" where it has come to its end before."""
        stub, count = self.folder / "ovs-vsctl", self.folder / "count"
        count.write_text("0")
        text = FAILING.replace("COUNT", str(count)).replace("NUMBER", str(number))
        stub.write_text(text.replace("REAL", str(shutil.which("ovs-vsctl"))))
        stub.chmod(0o755)
        whole = (machines.folder / "right" / name).read_text()
        (machines.folder / "right" / f"failing-{name}").write_text(
            whole.replace("set -eu\n", f"set -eu\nPATH={self.folder}:$PATH\n", 1)
        )
        said = machines.script("right", f"failing-{name}", check=False)
        return said if int(count.read_text()) >= number else ""


@pytest.mark.parametrize("name", ["setup.sh", "undo.sh"])
def test_what_fails_in_the_middle_is_told_and_taken_back_all_the_same(
    machines: Machines, tmp_path: Path, name: str
) -> None:
    failing = Failing(tmp_path / "bin")
    machines.script("right", "setup.sh")
    for number in itertools.count(1):
        if name == "setup.sh":
            machines.script("right", "undo.sh")
        else:
            machines.script("right", "setup.sh")
        said = failing.script(machines, name, number)
        if not said:
            break
        # Where setup.sh only asks whether there is something, it may go on.
        told = TOLD in said or (name == "setup.sh" and "8/8 the agent" in said)
        assert told or "nothing has been changed by this step" in said, (number, said)
        machines.script("right", "undo.sh")
        assert_nothing_left(machines)
    assert number > 4
    machines.script("right", "setup.sh")


TOLD = "has not come to its end, see above: mend that and run it once more"


def assert_nothing_left(machines: Machines) -> None:
    assert machines.run("right", "ovs-vsctl", "list-br").split() == ["theirs"]
    assert machines.run("right", "ovs-vsctl", "get-manager").split() == []
    assert machines.run("right", "ovs-vsctl", "get-ssl").split() == []
    assert machines.run("right", "ls", "/run/retinue/etc-right").split() == []


def test_it_is_taken_back_and_what_was_there_before_is_there(machines: Machines) -> None:
    assert "5/5 files" in machines.script("right", "undo.sh")
    assert_nothing_left(machines)
    machines.script("right", "undo.sh")
    machines.script("left", "undo.sh")
    assert "User:" not in machines.run("left", "ovs-appctl", "ovs/route/show")

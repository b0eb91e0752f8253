"""The sandbox with its real parts: it comes up, each node is what it should be, and nothing of it is left."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue_lab.errors import LabError
from retinue_lab.processes import state
from retinue_lab.processes.host import PACKAGES
from retinue_lab.sandbox import handle as sandbox
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import SANDBOX
from retinue_lab.topology.topology_file import DEFAULT_FILE, load
from support.lab.small_network import SMALL

pytestmark = [pytest.mark.lab, pytest.mark.no_vms]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("labs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINUE_LAB_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def lab(base: Path) -> Iterator[LabHandle]:
    handle = sandbox.up("whole", start_controller=False, tie_to_parent=True)
    yield handle
    handle.down()


@pytest.fixture
def small(base: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def output(lab: LabHandle, node: str, *argv: str) -> str:
    """What the program printed. Fails with what it said if it failed."""
    done = lab.exec(node, argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{argv} on {node}: {done.stderr}"
    return str(done.stdout)


def descendants(pid: int) -> set[int]:
    """The process and all below it."""
    found = {pid}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found |= descendants(int(child))
    return found


def wait_gone(pids: set[int], seconds: float = 60) -> set[int]:
    """Those of the processes that still run after so long."""
    left = set()
    deadline = time.monotonic() + seconds
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    left.add(pid)
            finally:
                os.close(fd)
    return left


# ---- the default network ----


def test_every_node_runs_programs_in_a_namespace_of_its_own(lab: LabHandle) -> None:
    seen = {
        node: output(lab, node, "readlink", "/proc/self/ns/net") for node in (SANDBOX, *lab.topology.nodes)
    }
    assert len(set(seen.values())) == len(lab.topology.nodes) + 1
    assert f"{Path('/proc/self/ns/net').readlink()}\n" not in seen.values()
    assert output(lab, "server1", "uname", "-n") == "retinue-whole\n"


def test_exec_gives_back_the_exit_code_and_works_where_it_is_started(
    lab: LabHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert output(lab, "client", "pwd").strip() == str(tmp_path)
    assert lab.exec("client", ["sh", "-c", "exit 7"]).returncode == 7
    with pytest.raises(LabError, match=r"no node 'nowhere'.*server1"):
        lab.exec("nowhere", ["true"])


def test_every_node_is_reached_over_the_management_network(lab: LabHandle) -> None:
    for node, address in lab.topology.management_addresses.items():
        assert "1 received" in output(lab, "controller", "ping", "-c1", "-W2", str(address.ip)), node


def test_every_bridge_is_a_real_switch_with_its_datapath_id(lab: LabHandle) -> None:
    for bridge in lab.topology.switches:
        said = output(lab, bridge.node, "ovs-ofctl", "-O", "OpenFlow14", "show", bridge.bridge)
        assert f"dpid:{bridge.dpid:016x}" in said
        for number, port in enumerate(bridge.ports, 1):
            assert f" {number}({port})" in said
        shown = output(
            *(lab, bridge.node, "ovs-vsctl", "--bare"),
            *("--columns=datapath_type,fail_mode,protocols", "list", "bridge", bridge.bridge),
        )
        assert shown.split() == ["netdev", "secure", "OpenFlow14"]
    assert "is_connected" not in output(lab, "server1", "ovs-vsctl", "show")
    target = output(lab, "server1", "ovs-vsctl", "get-controller", "br0")
    assert target == "ssl:192.0.2.1:6653\n"
    assert output(lab, "server1", "ovs-vsctl", "get-manager") == "ssl:192.0.2.1:6640\n"


def test_servers_have_a_vswitchd_and_a_database_each(lab: LabHandle) -> None:
    ids = {node: output(lab, node, "ovs-vsctl", "get", "open_vswitch", ".", "_uuid") for node in
           ("fabric", "server1", "server2", "server3")}  # fmt: skip
    assert len(set(ids.values())) == 4


def test_a_switch_has_room_for_what_comes_while_it_waits_for_the_processor(lab: LabHandle) -> None:
    allowed = int(Path("/proc/sys/net/core/rmem_max").read_text())
    ports = re.findall(r"\*:up0 .*,rb(\d+),", output(lab, "server1", "ss", "-0nmHO"))
    assert ports and all(int(nbytes) >= 2 * min(allowed, 4 << 20) for nbytes in ports)


def serve_tcp(lab: LabHandle, node: str) -> subprocess.Popen[str]:
    program = """
        import socket, sys
        with socket.create_server(("0.0.0.0", 5001)) as server:
            print("listening", flush=True)
            connection, peer = server.accept()
            with connection, connection.makefile("rb") as stream:
                print(len(stream.read()), flush=True)
    """
    server: subprocess.Popen[str] = lab.popen(
        node, [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    return server


def test_tcp_crosses_edges_and_leaf_once_flows_say_so(lab: LabHandle) -> None:
    """Whole frames, with right checksums: what offloading breaks through a userspace datapath."""
    flows = [
        *(("server1", "br0", f) for f in ("in_port=1,actions=LOCAL", "in_port=LOCAL,actions=1")),
        *(("server3", "br0", f) for f in ("in_port=1,actions=LOCAL", "in_port=LOCAL,actions=1")),
        *(("fabric", "leaf1", f) for f in ("in_port=3,actions=4", "in_port=4,actions=3")),
    ]
    for node, bridge, flow in flows:
        output(lab, node, "ovs-ofctl", "-O", "OpenFlow14", "add-flow", bridge, flow)
    try:
        with serve_tcp(lab, "server3") as server:
            connect = "import socket; s = socket.create_connection(('10.0.0.13', 5001), 5)"
            output(lab, "server1", sys.executable, "-c", f"{connect}; s.sendall(bytes(300000))")
            assert server.stdout is not None
            assert server.stdout.readline() == "300000\n"
        neighbour = output(lab, "server1", "ip", "neigh", "show", "10.0.0.13")
        assert "02:00:00:00:00:03" in neighbour, "the server's NIC answered instead of its stack"
    finally:
        for node, bridge, _ in flows:
            output(lab, node, "ovs-ofctl", "-O", "OpenFlow14", "del-flows", bridge)


def test_kea_grants_an_address_of_the_pool(lab: LabHandle) -> None:
    output(lab, "fabric", "ovs-ofctl", "-O", "OpenFlow14", "add-flow", "leaf2", "in_port=3,actions=4")
    output(lab, "fabric", "ovs-ofctl", "-O", "OpenFlow14", "add-flow", "leaf2", "in_port=4,actions=3")
    for flow in ("in_port=1,actions=LOCAL", "in_port=LOCAL,actions=1"):
        output(lab, "server2", "ovs-ofctl", "-O", "OpenFlow14", "add-flow", "br0", flow)
    try:
        client = ["busybox", "udhcpc", "-i", "br0", "-n", "-q", "-f", "-s", "/bin/true"]
        done = lab.exec("server2", client, capture_output=True, text=True, timeout=120)
        assert "lease of 10.1.0.1" in done.stderr + done.stdout
        assert "lease time 600" in done.stderr + done.stdout
        leases = (lab.directory / "dhcp" / "leases4.csv").read_text()
        assert "02:00:00:00:00:02" in leases
    finally:
        output(lab, "fabric", "ovs-ofctl", "-O", "OpenFlow14", "del-flows", "leaf2")
        output(lab, "server2", "ovs-ofctl", "-O", "OpenFlow14", "del-flows", "br0")


def test_client_reaches_the_router_and_the_router_forwards(lab: LabHandle) -> None:
    assert "1 received" in output(lab, "client", "ping", "-c1", "-W2", "203.0.113.1")
    assert output(lab, "router", "cat", "/proc/sys/net/ipv4/ip_forward") == "1\n"
    assert "10.1.0.0/24 via 10.0.0.254 dev eth0" in output(lab, "router", "ip", "route")
    assert "default via 203.0.113.1" in output(lab, "client", "ip", "route")
    assert "default via 10.0.0.254 dev br0" in output(lab, "server1", "ip", "route")


def test_servers_that_announce_themselves_are_told_who_was_answered(lab: LabHandle) -> None:
    """Server 2's own gateway stands on the router here; nobody answers the others."""
    output(lab, "fabric", "ovs-ofctl", "-O", "OpenFlow14", "add-flow", "leaf2", "in_port=3,actions=5")
    output(lab, "fabric", "ovs-ofctl", "-O", "OpenFlow14", "add-flow", "leaf2", "in_port=5,actions=3")
    for flow in ("in_port=1,actions=LOCAL", "in_port=LOCAL,actions=1"):
        output(lab, "server2", "ovs-ofctl", "-O", "OpenFlow14", "add-flow", "br0", flow)
    output(lab, "router", "ip", "address", "add", "10.0.0.254/32", "dev", "eth0")
    try:
        assert lab.announce() == {
            "server1": False,
            "server2": True,
            "server3": False,
            "dhcp": False,
            "router": False,
        }
    finally:
        output(lab, "router", "ip", "address", "del", "10.0.0.254/32", "dev", "eth0")
        output(lab, "fabric", "ovs-ofctl", "-O", "OpenFlow14", "del-flows", "leaf2")
        output(lab, "server2", "ovs-ofctl", "-O", "OpenFlow14", "del-flows", "br0")


def test_status_tells_what_stands(lab: LabHandle) -> None:
    status = lab.status()
    assert lab.daemons() == status.daemons
    assert status.name == "whole"
    assert status.init_pid == lab.init_pid
    assert status.directory == str(lab.directory)
    assert status.controller_url is None
    assert status.topology == load(DEFAULT_FILE)
    assert all(version[0].isdigit() for version in status.versions.values())
    assert set(status.versions) == {"openvswitch", "qemu", "kea"}
    assert set(status.nodes) == {SANDBOX, *lab.topology.nodes}
    server = status.nodes["server1"]
    assert set(server.interfaces) == {"mgmt0", "up0", "br0", "ovs-netdev"}
    assert set(server.addresses) == {"10.0.0.11/24", "192.0.2.3/24"}
    assert set(status.nodes["router"].addresses) == {"10.0.0.1/24", "203.0.113.1/24", "192.0.2.7/24"}
    for bridge in lab.topology.switches:
        told = status.switches[bridge.id]
        assert (told.node, told.bridge, told.dpid, told.role) == (
            *(bridge.node, bridge.bridge, bridge.dpid, bridge.role),
        )
        assert told.ports == {port: number for number, port in enumerate(bridge.ports, 1)}
    programs = {"dhcp": "kea-dhcp4", "fabric": "ovs-vswitchd", "server2": "ovs-vswitchd"}
    for node, program in programs.items():
        assert Path(f"/proc/{status.nodes[node].pid}/comm").read_text().strip() == program
    assert status.nodes["client"].pid is None
    daemons = [d for d in status.daemons if "sleep" not in d.name]
    assert len(daemons) == 9
    for daemon in daemons:
        assert daemon.running
        assert daemon.host_pid in descendants(lab.init_pid)
        assert Path(daemon.log).stat().st_size > 0
    written = state.status_of(json.loads((lab.directory / "status.json").read_bytes()))
    assert written.switches == status.switches


def test_a_taken_name_is_rejected_and_the_lab_is_found(lab: LabHandle) -> None:
    assert sandbox.list_labs() == ["whole"]
    assert sandbox.handle("whole") == lab
    with pytest.raises(LabError, match="lab whole runs already"):
        sandbox.up("whole", start_controller=False)


# ---- programs started through the lab ----


def test_a_spawned_program_is_supervised_and_can_be_killed(lab: LabHandle) -> None:
    program = "import os, time; os.write(int(os.environ['RETINUE_READY_FD']), b'ready\\n'); time.sleep(600)"
    started = lab.spawn(
        "server1", [sys.executable, "-c", program], log="sleeper", env={"COLOUR": "blue"}, ready=True
    )
    environment = Path(f"/proc/{started['host_pid']}/environ").read_text().split("\0")
    assert "COLOUR=blue" in environment
    assert f"RETINUE_LAB_STATE={lab.directory}" in environment
    assert "OVS_RUNDIR=/run/retinue/server1" in environment
    net = str(Path(f"/proc/{started['host_pid']}/ns/net").readlink())
    assert net == output(lab, "server1", "readlink", "/proc/self/ns/net").strip()
    lab.kill(started["pid"])
    lab.request(do="wait", pid=started["pid"])
    assert [d.running for d in lab.status().daemons if d.name == "sleeper"] == [False]
    assert wait_gone({started["host_pid"]}) == set()
    again = lab.spawn("server1", ["sleep", "600"], log="sleeper")
    beside = lab.spawn("server1", ["sleep", "600"], log="sleeper")
    assert (again["name"], beside["name"]) == ("sleeper", "sleeper-2")
    for one in (again, beside):
        lab.kill(one["pid"], signal.SIGKILL)
        lab.request(do="wait", pid=one["pid"])


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"do": "spawn", "node": "server1", "argv": ["sh", "-c", "echo no luck; exit 3"], "ready": True},
         "ended before it was ready: no luck"),
        ({"do": "spawn", "node": "nowhere", "argv": ["true"]}, "no node 'nowhere'"),
        ({"do": "spawn", "node": "server1", "argv": []}, "argv is empty"),
        ({"do": "spawn", "node": "server1", "argv": "true"}, r"Expected `array`, got `str` - at `\$.argv`"),
        ({"do": "spawn", "node": "sandbox", "argv": ["no-such-program"]}, "No such file.*no-such-program"),
        ({"do": "kill", "pid": 1}, "no program that this lab started runs as pid 1"),
        ({"do": "dance"}, "Invalid value 'dance'"),
        ({"do": "stop", "when": 3}, "unknown field `when`"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_answered_with_a_sentence(
    lab: LabHandle, message: dict[str, object], said: str
) -> None:
    with pytest.raises(LabError, match=said):
        lab.request(**message)  # type: ignore[arg-type]
    assert lab.status().name == "whole"


def test_a_program_run_from_the_host_ends_with_the_process_the_host_sees(lab: LabHandle) -> None:
    with lab.popen(
        "server2", ["sh", "-c", "echo started; exec sleep 600"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        inside = descendants(process.pid) - {process.pid}
        assert len(inside) == 1
        process.kill()
    assert wait_gone(inside) == set()


# ---- beginning and end ----


def alone(program: str, *arguments: str) -> None:
    """Run a test's program on a "host" of its own (network, mounts), where nobody else makes anything."""
    start = "import os, signal, sys\nfrom support.lab.left_over import host\nfrom test_sandbox import *\n"
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-c", start + textwrap.dedent(program), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[i]) for i in (0, 1))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_lab_that_ends_leaves_nothing(small: Path) -> None:
    program = """
        before = host()
        handle = sandbox.up("short", sys.argv[1], start_controller=False)
        assert host() == before, "a running lab shows on the host"
        pids = descendants(handle.init_pid)
        assert len(pids) > 5
        sandbox.down("short")
        assert wait_gone(pids, 0) == set()
        assert not handle.directory.exists()
        assert host() == before
    """
    alone(program, str(small))
    with pytest.raises(LabError, match="there is no lab short"):
        sandbox.down("short")


def test_when_the_first_process_is_killed_everything_ends(small: Path) -> None:
    program = """
        before = host()
        handle = sandbox.up("killed", sys.argv[1], start_controller=False)
        pids = descendants(handle.init_pid)
        with handle.popen("server1", ["sleep", "600"]) as visitor:
            pids |= descendants(visitor.pid)
            os.kill(handle.init_pid, signal.SIGKILL)
            assert visitor.wait(60) != 0
        assert wait_gone(pids) == set()
        assert host() == before
        os._exit(0)
    """
    alone(program, str(small))
    # Who started the first process has its lock, too, and ends a moment after it.
    patience = time.monotonic() + 60
    while "killed" in sandbox.list_labs() and time.monotonic() < patience:
        time.sleep(0.01)
    assert "killed" not in sandbox.list_labs()
    with pytest.raises(LabError, match="there is no lab killed"):
        sandbox.handle("killed")
    assert state.directory("killed").path.exists()
    sandbox.down("killed")
    assert not state.directory("killed").path.exists()


def test_two_labs_run_beside_each_other(lab: LabHandle, small: Path) -> None:
    handle = sandbox.up("second", small, start_controller=False, tie_to_parent=True)
    try:
        assert sandbox.list_labs() == ["second", "whole"]
        assert "1 received" in output(handle, "controller", "ping", "-c1", "-W2", "192.0.2.3")
        ours, theirs = (output(x, "server1", "readlink", "/proc/self/ns/net") for x in (handle, lab))
        assert ours != theirs
    finally:
        handle.down()
    assert "1 received" in output(lab, "controller", "ping", "-c1", "-W2", "192.0.2.3")


def test_a_tied_lab_ends_with_the_process_that_started_it(small: Path) -> None:
    program = f"""
        import os
        from retinue_lab.sandbox import handle as sandbox
        lab = sandbox.up("tied", {str(small)!r}, start_controller=False, tie_to_parent=True)
        print(lab.init_pid, flush=True)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert wait_gone({int(done.stdout)}) == set()


def test_a_dead_daemon_is_told(small: Path) -> None:
    handle = sandbox.up("wounded", small, start_controller=False, tie_to_parent=True)
    try:
        daemon = next(d for d in handle.status().daemons if d.name == "server1-vswitchd")
        os.kill(daemon.host_pid or 0, signal.SIGKILL)
        handle.request(do="wait", pid=daemon.pid)
        status = handle.status()
        assert {d.name: d.running for d in status.daemons} == {
            "fabric-ovsdb": True,
            "fabric-vswitchd": True,
            "server1-ovsdb": True,
            "server1-vswitchd": False,
        }
        assert status.nodes["server1"].pid is None
        assert "daemon=server1-vswitchd" in (handle.directory / "logs" / "init.log").read_text()
    finally:
        handle.down()


def test_a_failure_while_building_is_one_sentence_and_leaves_no_process(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open vSwitch's database server is there, but broken."""
    broken = tmp_path / "ovsdb-server"
    broken.write_text("#!/bin/sh\necho this one is broken >&2\nexit 5\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(LabError) as caught:
        sandbox.up("broken", small, start_controller=False)
    assert "ended with code 5: this one is broken" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "broken" not in sandbox.list_labs()
    with pytest.raises(LabError, match=r"did not come up: .*this one is broken"):
        sandbox.handle("broken")
    sandbox.down("broken")


def test_a_missing_program_is_named_with_its_package(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in PACKAGES:
        if program not in ("kea-dhcp4", "ovs-vsctl"):
            (tmp_path / program).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError) as caught:
        sandbox.up("never", small, start_controller=False)
    assert str(caught.value) == (
        "ovs-vsctl, kea-dhcp4 are missing: run `make install`, "
        "or as root `apt-get install kea-dhcp4-server openvswitch-switch`"
    )
    assert not state.directory("never").path.exists()


def test_a_user_without_namespaces_gets_one_sentence(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected = tmp_path / "unshare"
    rejected.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1\n")
    rejected.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(LabError, match=r"^this user may not make namespaces .*run the lab as root"):
        sandbox.up("rejected", small, start_controller=False)
    sandbox.down("rejected")


@pytest.mark.parametrize("name", ["", "../x", "a b", "ä"])
def test_an_unusable_name_is_rejected(base: Path, name: str) -> None:
    with pytest.raises(LabError, match="is no name for a lab"):
        sandbox.up(name)


def test_a_directory_the_sandbox_could_not_see_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETINUE_LAB_DIR", "/run/labs")
    with pytest.raises(LabError, match="/run"):
        sandbox.up("hidden")
    monkeypatch.setenv("RETINUE_LAB_DIR", "/tmp/" + "x" * 100)
    with pytest.raises(LabError, match="too long"):
        sandbox.up("long")

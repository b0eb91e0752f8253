"""The guest and QEMU behind H1, on real parts: one namespace, one Open vSwitch, two taps, one VM."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

import pytest

from retinue.hypervisor import (
    Divert,
    Event,
    Gone,
    HypervisorError,
    MigrationFailed,
    MigrationResult,
    QemuHypervisor,
    QemuMachine,
    Resumed,
    RunState,
    Started,
    Stopped,
    VMSpec,
    channel_pair,
)
from retinue.hypervisor.departure import HELD_BACK, depart
from retinue.hypervisor.taps import add_port, remove_port
from retinue.hypervisor.together import move
from retinue.lab.capture import Port, SilentPorts
from retinue.lab.guest import Guest, command_line, ensure_guest
from retinue.lab.guest_shell import GuestShell, console_line
from retinue.lab.traffic_process import TrafficProcess

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace"),
]

VM = "vm1"
MAC = "52:54:00:00:00:01"
ADDRESS = "10.1.0.50"
BRIDGE = "edge"


class Bench:
    """A network namespace with a switch in it. The namespace itself has the address 10.1.0.1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"retinue-bench-{os.getpid()}"
        self.prefix = ("ip", "netns", "exec", self.name)
        self.vsctl = ("ovs-vsctl", "--timeout=10", f"--db=unix:{folder}/db.sock")
        # They outlive who starts them; not so here, however the test ends.
        self.hypervisor = QemuHypervisor(folder, (*self.prefix, "setpriv", "--pdeathsig", "KILL"))
        self.events: list[Event] = []
        self.machines: list[QemuMachine] = []
        self.guest: Guest

    async def run(self, argv: Sequence[str]) -> str:
        process = await self.popen("", argv)
        output, complaint = await process.communicate()
        assert process.returncode == 0, f"{argv}: {complaint.decode()}"
        return output.decode()

    async def popen(self, _node: str, argv: Sequence[str]) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        env = {**os.environ, "OVS_RUNDIR": str(self.folder)}
        command = (*self.prefix, *argv)
        return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)

    async def up(self) -> None:
        folder = self.folder
        await _host("ip", "netns", "add", self.name)
        await self.run(["ip", "link", "set", "lo", "up"])
        schema = "/usr/share/openvswitch/vswitch.ovsschema"
        await self.run(["ovsdb-tool", "create", f"{folder}/conf.db", schema])
        daemon = ["--detach", "--no-chdir", "--log-file=/dev/null"]
        remote = f"--remote=punix:{folder}/db.sock"
        pid = f"--pidfile={folder}/ovsdb-server.pid"
        await self.run(["ovsdb-server", f"{folder}/conf.db", remote, pid, *daemon])
        await self.run([*self.vsctl, "--no-wait", "init"])
        pid = f"--pidfile={folder}/ovs-vswitchd.pid"
        await self.run(["ovs-vswitchd", f"unix:{folder}/db.sock", pid, *daemon])
        await self.run([*self.vsctl, "add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev"])
        await self.run(["ethtool", "-K", BRIDGE, "tx", "off"])
        await self.run(["ip", "address", "add", "10.1.0.1/24", "dev", BRIDGE])
        await self.run(["ip", "link", "set", BRIDGE, "up"])
        for tap in ("tap-a", "tap-b"):
            await self.plug(tap)

    async def plug(self, tap: str) -> None:
        await add_port(self.run, bridge=BRIDGE, tap=tap, vm=VM, mac=MAC, ovs_vsctl=self.vsctl)

    async def unplug(self, tap: str) -> None:
        await remove_port(self.run, bridge=BRIDGE, tap=tap, ovs_vsctl=self.vsctl)

    async def down(self) -> None:
        for machine in self.machines:
            await machine.quit()
        for daemon in ("ovs-vswitchd", "ovsdb-server"):
            with contextlib.suppress(FileNotFoundError):
                os.kill(int((self.folder / f"{daemon}.pid").read_text()), signal.SIGTERM)
        await _host("ip", "netns", "del", self.name)

    def spec(self, tap: str = "tap-a", ip: str = f"{ADDRESS}/24,10.1.0.1") -> VMSpec:
        return VMSpec(VM, MAC, tap, self.guest.kernel, self.guest.initrd, command_line(ip))

    async def boot(self, ip: str = f"{ADDRESS}/24,10.1.0.1") -> tuple[QemuMachine, GuestShell]:
        machine = await self.hypervisor.start(self.spec(ip=ip), self.events.append)
        self.machines.append(machine)
        await console_line(machine.files.serial_log, "RETINUE READY")
        return machine, GuestShell(machine.files.shell)

    async def target(self, tap: str = "tap-b") -> QemuMachine:
        machine = await self.hypervisor.open_target(self.spec(tap), self.events.append)
        self.machines.append(machine)
        return machine

    async def move(
        self, source: QemuMachine, target: QemuMachine, divert: Divert | None = None
    ) -> MigrationResult:
        return await move(self.hypervisor, source, self.hypervisor, target, self.events.append, divert)


class Held:
    """Called when the VM's traffic is to be diverted, waits until it may be."""

    def __init__(self, source: QemuMachine) -> None:
        self.source = source
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.fails = False
        self.remaining = -1

    async def __call__(self, taps: Collection[str]) -> bool:
        self.remaining = (await self.source.execute("query-migrate"))["ram"]["remaining"]
        self.reached.set()
        await self.go_on.wait()
        if self.fails:
            raise HypervisorError("the switches have not confirmed")
        return True


async def _host(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv)
    assert await process.wait() == 0, argv


@pytest.fixture(scope="module")
def guest() -> Guest:
    return ensure_guest(print)


@pytest.fixture
async def bench(guest: Guest) -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        made = Bench(Path(folder))
        made.guest = guest
        try:
            await made.up()
            yield made
        finally:
            await made.down()


def test_a_built_guest_is_found_again_without_building(guest: Guest) -> None:
    steps: list[str] = []
    assert ensure_guest(steps.append) == guest
    assert steps == []


async def test_a_guest_boots_obeys_and_moves_without_losing_its_stream(bench: Bench) -> None:
    began = time.monotonic()
    source, shell = await bench.boot()
    booted = time.monotonic() - began
    assert await console_line(source.files.serial_log, "RETINUE ADDRESS") == f"RETINUE ADDRESS {ADDRESS}"
    assert await shell.run("echo one; echo two >&2; exit 3") == (3, "one\ntwo\n")
    assert await shell.run("sleep 60", timeout=1) == (137, "Killed\n")
    code, routes = await shell.run("ip route; ls /proc/sys/net")
    assert code == 0
    assert "default via 10.1.0.1 dev eth0" in routes
    assert "ipv6" not in routes
    assert [type(event) for event in bench.events] == [Started]

    target = await bench.target()
    assert await target.state() is RunState.INCOMING
    traffic = await TrafficProcess.start(bench.popen, "", ADDRESS, pps=500, seconds=60)
    await traffic.flowing()
    result = await bench.move(source, target)
    stopped, resumed = bench.events[1:]
    assert isinstance(stopped, Stopped)
    assert isinstance(resumed, Resumed)
    assert stopped.at <= resumed.at == result.resumed_at
    # One look before the first pass and one after the stop: none while the guest ran.
    assert result.passes == 2
    assert (await source.state(), await target.state()) == (RunState.MOVED, RunState.RUNNING)
    await source.quit()
    assert isinstance(bench.events[-1], Gone)
    await bench.unplug("tap-a")

    # The guest is the same one, and it answers at its new port.
    code, uptime = await GuestShell(target.files.shell).run("cut -d. -f1 /proc/uptime; echo 9 >/tmp/mark")
    assert code == 0
    assert int(uptime) >= 1
    figures, record = await traffic.finish(early=True)
    answered_after = [a for a in record.arrivals if record.sent[a.sequence] > resumed.at * 1e9]
    assert len(answered_after) > 20
    assert (figures.duplicated, figures.reordered) == (0, 0)
    assert figures.tcp_survived, figures.tcp_problem

    # It moves back as well: a machine that was moved in has a past that must not be taken for the present.
    await bench.plug("tap-a")
    back = await bench.target("tap-a")
    again = await bench.move(target, back)
    assert again.passes == 2
    await target.quit()
    assert await GuestShell(back.files.shell).run("cat /tmp/mark") == (0, "9\n")
    print(
        f"\nboot to ready {booted:.2f} s; moves took {result.total_ms:.0f} and {again.total_ms:.0f} ms, "
        f"the guest stood still {result.pause_ms:.1f} and {again.pause_ms:.1f} ms; {figures}",
        file=sys.stderr,
    )


async def test_the_vm_runs_on_while_its_traffic_is_being_diverted(bench: Bench) -> None:
    """Little remains, and stays, for as long as the network needs; no look at written pages meanwhile."""
    source, shell = await bench.boot()
    for _ in range(3):
        target = await bench.target("tap-b" if source.spec.port == "tap-a" else "tap-a")
        held = Held(source)
        moving = asyncio.create_task(bench.move(source, target, held))
        await held.reached.wait()
        assert 0 < held.remaining <= HELD_BACK
        code, _ = await shell.run("sleep 0.3")
        assert (code, await source.state(), moving.done()) == (0, RunState.RUNNING, False)
        remains = (await source.execute("query-migrate"))["ram"]
        assert (remains["remaining"] > HELD_BACK // 2, remains["dirty-sync-count"]) == (True, 1)
        held.go_on.set()
        result = await moving
        assert result.passes == 2
        print(f"held at {held.remaining} octets; stood still {result.pause_ms:.1f} ms", file=sys.stderr)
        await source.quit()
        source, shell = target, GuestShell(target.files.shell)


@pytest.mark.parametrize("how", ["target dies", "called off", "too slow", "divert fails"])
async def test_a_move_that_fails_leaves_the_vm_running_where_it_was(bench: Bench, how: str) -> None:
    source, shell = await bench.boot()
    target = await bench.target()
    held = Held(source)
    here, there = await channel_pair()
    arrival = asyncio.create_task(bench.hypervisor.arrive(target, there, bench.events.append))
    limit = 3.0 if how == "too slow" else 30.0
    moving = asyncio.create_task(depart(source, here, bench.events.append, held, limit=limit))
    await held.reached.wait()
    match how:
        case "target dies":
            target.kill()
            held.go_on.set()
        case "called off":
            moving.cancel()
        case "divert fails":
            held.fails = True
            held.go_on.set()
    with pytest.raises((HypervisorError, asyncio.CancelledError)) as raised:
        await moving
    if how != "called off":
        assert isinstance(raised.value, HypervisorError)
        assert f"VM {VM} was not moved" in str(raised.value)
    with pytest.raises(HypervisorError):
        await arrival
    [failed] = [event for event in bench.events if isinstance(event, MigrationFailed)]
    assert failed.source_runs
    assert not target.alive
    assert await source.state() is RunState.RUNNING
    assert (await shell.run("echo alive"))[0] == 0
    assert await _answers(bench)

    # And it can be moved afterwards.
    second = await bench.target()
    result = await bench.move(source, second)
    assert result.passes == 2
    assert await second.state() is RunState.RUNNING


async def _answers(bench: Bench) -> bool:
    traffic = await TrafficProcess.start(bench.popen, "", ADDRESS, pps=100, seconds=0.2, tcp_rate=0)
    figures, _ = await traffic.finish()
    return figures.received > 0


async def test_dhcp_gives_an_address_and_release_takes_it_back(bench: Bench) -> None:
    conf = bench.folder / "udhcpd.conf"
    leases = bench.folder / "leases"
    leases.touch()
    conf.write_text(
        f"start 10.1.0.100\nend 10.1.0.100\ninterface {BRIDGE}\nlease_file {leases}\n"
        f"pidfile {bench.folder}/udhcpd.pid\noption subnet 255.255.255.0\noption router 10.1.0.1\n"
        "option lease 600\n"
    )
    server = await bench.popen("", ["busybox", "udhcpd", "-f", str(conf)])
    try:
        machine, shell = await bench.boot(ip="dhcp")
        line = await console_line(machine.files.serial_log, "RETINUE ADDRESS")
        assert line == "RETINUE ADDRESS 10.1.0.100"
        assert "default via 10.1.0.1" in (await shell.run("ip route"))[1]
        gone = "while ip -4 address show eth0 | grep -q inet; do usleep 20000; done"
        assert (await shell.run(f"kill -USR2 $(cat /run/udhcpc.pid); {gone}", timeout=5))[0] == 0
    finally:
        server.terminate()
        await server.communicate()


async def test_forged_frames_leave_the_guest_and_the_capture_sees_them(bench: Bench) -> None:
    _, shell = await bench.boot()
    watch = SilentPorts(
        bench.popen,
        [Port("bench", BRIDGE, frozenset({MAC})), Port("bench", "tap-b", direction="out")],
    )
    await watch.start()
    forged = "ffffffffffff 020000000666 0806 " + "00" * 46
    assert await shell.run(f"sendraw -c 3 '{forged}'") == (0, "")
    found = await watch.stop()
    kind = "02:00:00:00:06:66 > ff:ff:ff:ff:ff:ff ARP"
    assert found[f"bench:{BRIDGE}"].kinds.get(kind) == 3
    code, said = await shell.run("sendraw 12")
    assert code == 2
    assert "whole octets" in said
    # A guest may change its MAC while it runs.
    assert (await shell.run("ip link set eth0 address 02:00:00:00:00:09"))[0] == 0


async def test_a_qemu_that_cannot_start_says_why(bench: Bench) -> None:
    missing = VMSpec(VM, MAC, "tap-a", Path("/nowhere/vmlinuz"), bench.guest.initrd)
    with pytest.raises(HypervisorError, match=r"VM vm1: QEMU did not come up.*vmlinuz"):
        await bench.hypervisor.start(missing)


async def test_others_can_watch_a_vm_they_did_not_start(bench: Bench) -> None:
    machine, _ = await bench.boot()
    with socket.socket(socket.AF_UNIX) as observer:
        observer.settimeout(5)
        observer.connect(str(machine.files.observer))
        assert b'"QMP"' in observer.recv(4096)

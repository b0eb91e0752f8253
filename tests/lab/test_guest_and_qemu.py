"""The guest, and QEMU behind its interface, on real parts: one namespace, one switch, two taps, one VM."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from retinue.host.errors import HostError
from retinue.hypervisor import (
    Copying,
    Exited,
    HypervisorError,
    MigrationFailed,
    Resumed,
    RunState,
    Started,
    Stopped,
    VMSpec,
    channel_pair,
)
from retinue.hypervisor.passes import HELD_BACK_LATER
from retinue.hypervisor.qemu.outgoing import run_outgoing
from retinue_lab.guest.image import Guest, ensure_guest
from retinue_lab.guest.shell import GuestShell, console_line
from retinue_lab.measure.capture import SilentPorts, WatchedPort
from retinue_lab.measure.traffic_process import TrafficProcess
from support.lab.qemu_bench import ADDRESS, BRIDGE, MAC, VM, Held, QemuBench, first_of, qemu_bench
from support.lab.tools import long

pytestmark = [
    pytest.mark.lab,
    pytest.mark.patient,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace"),
]


@pytest.fixture
async def bench(guest: Guest) -> AsyncIterator[QemuBench]:
    async with qemu_bench(guest) as made:
        yield made


def test_a_built_guest_is_found_again_without_building(guest: Guest) -> None:
    steps: list[str] = []
    assert ensure_guest(steps.append) == guest
    assert steps == []


async def test_a_guest_boots_obeys_and_moves_without_losing_its_stream(bench: QemuBench) -> None:
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
    result = await bench.migration(source, target)
    stopped, resumed = (event for event in bench.events[1:] if not isinstance(event, Copying))
    assert isinstance(stopped, Stopped)
    assert isinstance(resumed, Resumed)
    assert stopped.at <= resumed.at == result.resumed_at
    assert (await source.state(), await target.state()) == (RunState.MOVED, RunState.RUNNING)
    await source.quit()
    assert isinstance(bench.events[-1], Exited)
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
    again = await bench.migration(target, back)
    await target.quit()
    assert await GuestShell(back.files.shell).run("cat /tmp/mark") == (0, "9\n")
    print(
        f"\nboot to ready {booted:.2f} s; moves took {result.total_ms:.0f} and {again.total_ms:.0f} ms, "
        f"the guest stood still {result.downtime_ms:.1f} and {again.downtime_ms:.1f} ms; {figures}",
        file=sys.stderr,
    )


async def test_the_vm_runs_on_while_its_traffic_is_being_diverted(bench: QemuBench) -> None:
    """Little remains, and stays, for as long as the network needs; no look at written pages meanwhile."""
    source, shell = await bench.boot()
    for _ in range(3):
        target = await bench.target("tap-b" if source.spec.port == "tap-a" else "tap-a")
        held = Held(source)
        moving = asyncio.create_task(bench.migration(source, target, held))
        await first_of(held.reached, moving)
        assert 0 < held.remaining <= HELD_BACK_LATER
        code, _ = await shell.run("sleep 0.3")
        assert (code, await source.state(), moving.done()) == (0, RunState.RUNNING, False)
        remains = (await source.execute("query-migrate"))["ram"]
        assert remains["remaining"] > 0
        held.go_on.set()
        result = await moving
        assert result.passes == remains["dirty-sync-count"] + 1, "the one look after the stop"
        print(f"held at {held.remaining} bytes; stood still {result.downtime_ms:.1f} ms", file=sys.stderr)
        await source.quit()
        source, shell = target, GuestShell(target.files.shell)


@pytest.mark.parametrize("how", ["target dies", long("called off"), long("too slow"), "divert fails"])
async def test_a_move_that_fails_leaves_the_vm_running_where_it_was(bench: QemuBench, how: str) -> None:
    source, shell = await bench.boot()
    target = await bench.target()
    held = Held(source)
    here, there = await channel_pair()
    arrival = asyncio.create_task(bench.hypervisor.run_incoming(target, there, bench.events.append))
    limit = 3.0 if how == "too slow" else 30.0
    moving = asyncio.create_task(run_outgoing(source, here, bench.events.append, held, limit=limit))
    await first_of(held.reached, moving)  # "too slow" it may be before it has come so far.
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
        assert isinstance(raised.value, HostError)
        assert f"VM {VM} was not migrated" in str(raised.value)
    with pytest.raises(HostError):
        await arrival
    [failed] = [event for event in bench.events if isinstance(event, MigrationFailed)]
    assert failed.source_runs
    assert not target.alive
    assert await source.state() is RunState.RUNNING
    assert (await shell.run("echo alive"))[0] == 0
    assert await _answers(bench)

    # And it can be moved afterwards.
    second = await bench.target()
    await bench.migration(source, second)
    assert await second.state() is RunState.RUNNING


async def _answers(bench: QemuBench) -> bool:
    traffic = await TrafficProcess.start(bench.popen, "", ADDRESS, pps=100, seconds=0.2, tcp_rate=0)
    figures, _ = await traffic.finish()
    return figures.received > 0


async def test_dhcp_gives_an_address_and_release_takes_it_back(bench: QemuBench) -> None:
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
        assert (await shell.run(f"kill -USR2 $(cat /run/udhcpc.pid); {gone}", timeout=60))[0] == 0
    finally:
        server.terminate()
        await server.communicate()


async def test_spoofed_frames_leave_the_guest_and_the_capture_sees_them(bench: QemuBench) -> None:
    _, shell = await bench.boot()
    watch = SilentPorts(
        bench.popen,
        [WatchedPort("bench", BRIDGE, frozenset({MAC})), WatchedPort("bench", "tap-b", direction="out")],
    )
    await watch.start()
    spoofed = "ffffffffffff 020000000666 0806 " + "00" * 46
    assert await shell.run(f"sendraw -c 3 '{spoofed}'") == (0, "")
    found = await watch.stop()
    kind = "02:00:00:00:06:66 > ff:ff:ff:ff:ff:ff ARP"
    assert found[f"bench:{BRIDGE}"].kinds.get(kind) == 3
    code, said = await shell.run("sendraw 12")
    assert code == 2
    assert "whole bytes" in said
    # A guest may change its MAC while it runs.
    assert (await shell.run("ip link set eth0 address 02:00:00:00:00:09"))[0] == 0


async def test_a_qemu_that_cannot_start_says_why(bench: QemuBench) -> None:
    missing = VMSpec(VM, MAC, "tap-a", Path("/nowhere/vmlinuz"), bench.guest.initrd)
    with pytest.raises(HostError, match=r"VM vm1: QEMU did not come up.*vmlinuz"):
        await bench.hypervisor.start(missing)


async def test_others_can_watch_a_vm_they_did_not_start(bench: QemuBench) -> None:
    machine, _ = await bench.boot()
    with socket.socket(socket.AF_UNIX) as observer:
        observer.settimeout(60)
        observer.connect(str(machine.files.observer))
        assert b'"QMP"' in observer.recv(4096)

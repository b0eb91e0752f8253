"""The compared systems, what they need on a machine, and what is read from their programs."""

import asyncio
import io
import json
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from retinue_lab.compare import bench as compare_bench
from retinue_lab.compare import tcp
from retinue_lab.compare.systems import base, ovn, own, registry, sites
from retinue_lab.errors import LabError
from retinue_lab.network import libvirtd
from retinue_lab.processes.state import DaemonStatus
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology import parts, topology_file


def test_a_missing_program_is_named_with_its_package() -> None:
    class Odd(base.System):
        name = "odd"
        how = "not at all"
        programs = {"no-such-program-anywhere": "odd-package"}

    assert "odd-package" in Odd().missing()


def test_system_names_are_unique_and_checked() -> None:
    names = [system.name for system in registry.SYSTEMS]
    assert len(set(names)) == len(names)
    with pytest.raises(LabError, match="learning-switch"):
        registry.by_name("bridge")


def test_libvirts_lab_is_the_others_but_for_who_runs_the_vms() -> None:
    theirs = base.LearningSwitch().network()
    ours = own.RetinueLibvirt().network()
    assert theirs == topology_file.load()
    assert {server.hypervisor for server in ours.server} == {parts.LIBVIRT}
    servers = tuple(msgspec.structs.replace(s, hypervisor=parts.QEMU) for s in ours.server)
    assert msgspec.structs.replace(ours, server=servers) == theirs


def test_between_sites_both_have_the_same_network_and_ends() -> None:
    """So the two can be compared: two domains, and the VM to and fro between a server of each."""
    ours, theirs = (system() for system in registry.SITES)
    assert ours.network() == theirs.network() == topology_file.load("domains")
    assert ours.servers == theirs.servers == ("server1", "server3")
    assert not set(registry.SITES) & set(registry.USUAL), "no other has such a link"
    assert isinstance(ours, sites.RetinueDomains)
    assert [ours.named(server) for server in ours.servers] == ["a/server1", "b/server3"]


def test_without_libvirt_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirtd, "PROGRAMS", ("no-such-libvirt",))
    for system in (own.RetinueLibvirt(), own.LibvirtVirsh()):
        assert "no-such-libvirt" in system.missing()
        assert "make install-libvirt" in system.missing()
    assert own.Retinue().missing() == ""


async def test_libvirts_guests_yield_to_the_switches(tmp_path: Path) -> None:
    """By libvirtd's priority, which they take over."""
    waiting = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
    other = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
    daemons = [
        DaemonStatus(name, "server1", process.pid, None, True, "")
        for name, process in (("server1-libvirtd", waiting), ("server1-vswitchd", other))
    ]

    class OvnLab:
        directory = tmp_path
        topology = topology_file.load()

        def status(self) -> Any:
            return SimpleNamespace(daemons=daemons)

    bench = compare_bench.Bench(cast(LabHandle, OvnLab()))
    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        await own.RetinueLibvirt().before_boot(bench)
        found = [os.getpriority(os.PRIO_PROCESS, process.pid) for process in (waiting, other)]
        assert found == [min(19, before + own.GUESTS_YIELD), before]
    finally:
        for process in (waiting, other):
            process.kill()
            await process.wait()


def record(**more: Any) -> dict[str, Any]:
    steps = [{"state": "planned", "at": 10.0}, {"state": "done", "at": 11.5}]
    figures = {"flow_mods": 38, "packet_ins": 0, "control_ms": 4.5, "bindings_before": [{"vm": "vm1"}]}
    return {
        "id": "migration-1",
        "stopped_at": 11.0,
        "resumed_at": 11.05,
        "figures": figures,
        "steps": steps,
    } | more


def test_stop_and_resume_are_those_of_the_moves_record() -> None:
    moved = own.migrated_of(record(), "server1", "server2", [{"switch": "edge2", "port": 2}])
    assert (moved.source, moved.target) == ("server1", "server2")
    assert moved.pause_ms == pytest.approx(50)
    assert moved.total_ms == pytest.approx(1500)
    assert (moved.more["flow_mods"], moved.more["switch"], moved.more["port"]) == (38, "edge2", 2)


@pytest.mark.parametrize("unknown", ["stopped_at", "resumed_at"])
def test_a_record_without_stop_or_resume_is_an_error(unknown: str) -> None:
    with pytest.raises(LabError, match="migration-1 does not say"):
        own.migrated_of(record(**{unknown: None}), "server1", "server2", [])


def test_figures_of_a_bulk_stream() -> None:
    intervals = [{"sum": {"seconds": 0.5, "bytes": 2_500_000, "retransmits": n}} for n in (1, 2)]
    said = json.dumps({"intervals": intervals, "error": "interrupt - the client has terminated"})
    found = tcp.result("longest 30000000\nsilent 2000000\n", said)
    assert found == tcp.Stream(30.0, True, 40.0, 3)
    dead = tcp.result("longest 30000000\nsilent 1500000000\n", said)
    assert (dead.longest_stall_ms, dead.survived) == (1500.0, False)
    broken = json.dumps({"intervals": intervals, "error": "unable to write to stream socket"})
    assert not tcp.result("longest 1\nsilent 1\n", broken).survived


@pytest.mark.parametrize(
    ("watched", "said"),
    [("", "{}"), ("longest 1\nsilent 1\n", "no JSON"), ("longest x\n", '{"intervals": []}')],
)
def test_a_bulk_stream_that_tells_nothing_is_an_error(watched: str, said: str) -> None:
    with pytest.raises(LabError, match="cannot be read"):
        tcp.result(watched, said)


def test_libraries_are_found_in_what_ldd_says() -> None:
    listed = (
        "\tlinux-vdso.so.1 (0x00007f745e248000)\n"
        "\tlibiperf.so.0 => /lib/x86_64-linux-gnu/libiperf.so.0 (0x00007f745e200000)\n"
        "\t/lib64/ld-linux-x86-64.so.2 (0x00007f745e24a000)\n"
    )
    assert tcp.libraries(listed) == [
        "/lib/x86_64-linux-gnu/libiperf.so.0",
        "/lib64/ld-linux-x86-64.so.2",
    ]


def test_links_are_followed_into_the_archive(tmp_path: Path) -> None:
    (tmp_path / "library.so.1.2").write_bytes(b"code")
    (tmp_path / "library.so.1").symlink_to("library.so.1.2")
    path = str(tmp_path / "library.so.1")
    with tarfile.open(fileobj=io.BytesIO(tcp.archive([path]))) as tar:
        (member,) = tar.getmembers()
        assert (member.name, member.isreg(), member.size) == (path.lstrip("/"), True, 4)


def test_what_switches_drop_is_counted_by_port() -> None:
    said = (
        "p_raw 0      0      *:up0 * skmem:(r0,rb212992,t0,tb212992,f0,w0,o640,bl0,d7)\n"
        "p_raw 0      0      *:tap-vm1 * skmem:(r0,rb212992,t0,tb212992,f0,w0,o640,bl0,d30)\n"
        "p_raw 0      0      *:up0 * skmem:(r0,rb212992,t0,tb212992,f0,w0,o640,bl0,d2)\n"
    )
    before = compare_bench.drops_of("server1", said)
    assert before == {("server1", "up0"): 9, ("server1", "tap-vm1"): 30}
    after = {("server1", "up0"): 10, ("server2", "tap-vm1"): 4}
    assert compare_bench.dropped(before, after) == 5, "a port that is gone is not counted"


def test_ovn_is_told_of_its_missing_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for system in (ovn.OvnMultichassisRarp(), ovn.OvnNaive()):
        assert "ovn-central" in system.missing()
        assert "ovn-host" in system.missing()

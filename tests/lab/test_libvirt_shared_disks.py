"""Disks of VMs that libvirt runs which stay where they are while the VM moves: a shared file, and a disk that
is reached through the network (NBD)."""

import json
from pathlib import Path

import pytest

from retinue_lab.errors import LabError
from retinue_lab.network import agents, libvirtd
from retinue_lab.topology.topology_file import load
from support.lab.disks import MIB, SIZE, all_verified, scribble, sha256, written
from support.lab.start import running
from support.lab.tools import LabBench, eventually

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long]

TOPOLOGY = "libvirt"
try:
    libvirtd.check(load(TOPOLOGY))
except LabError as error:
    pytest.skip(str(error), allow_module_level=True)

SHARED = "00000000-0000-4000-8000-000000000004"
PLAIN, BY_NBD = "00000000-0000-4000-8000-000000000005", "00000000-0000-4000-8000-00000000bdbd"
PORT = 10810


async def virsh(bench: LabBench, server: str, *words: str) -> str:
    return await bench.run(server, "virsh", *words)


def address(bench: LabBench, server: str) -> str:
    return str(bench.topology.management_addresses[server].ip)


async def moved_by_virsh(bench: LabBench, vm: str, source: str, target: str, *how: str) -> None:
    async with bench.events() as events:
        there = f"qemu+tcp://{address(bench, target)}/system"
        await virsh(bench, source, "migrate", "--live", *how, vm, there)
        await events.until(
            "migration.step", lambda e: (e["migration"]["vm"], e["migration"]["state"]) == (vm, "done")
        )


async def refused(bench: LabBench, vm: str, target: str, why: str) -> None:
    said = await bench.cli("move", "start", vm, "--to", target, "--wait", fails=True)
    assert why in said, said
    assert (await bench.vm(vm))["server"] != target
    await all_verified(bench, vm)


async def content_is(bench: LabBench, vm: str, file: Path) -> None:
    """The guest writes no more; what it has is what the file has."""
    await bench.guest(vm, "kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid); do usleep 20000; done")
    assert (await written(bench, vm))["wrong"] == 0
    inside = (await bench.guest(vm, "sync; sha256sum /dev/vda", timeout=120)).split()[0]
    assert inside == sha256(file.read_bytes())


async def test_a_shared_file_stays_where_it_is_and_no_other_is_taken_for_it(bench: LabBench) -> None:
    file = Path(bench.lab.directory) / agents.SHARED / "common.raw"
    file.parent.mkdir()
    file.write_bytes(bytes(SIZE * MIB))
    async with bench.events() as events:
        await bench.cli("vm", "add", SHARED, "--server", "server1", "--disk", f"shared={file}")
        await running(bench, events, SHARED)
    await scribble(bench, SHARED)
    await all_verified(bench, SHARED)
    # libvirt itself takes this storage for one server's own; of a move of ours agents have compared the file.
    there = f"qemu+tcp://{address(bench, 'server2')}/system"
    with pytest.raises(AssertionError, match="Migration without shared storage is unsafe"):
        await virsh(bench, "server1", "migrate", "--live", SHARED, there)
    await bench.migration(SHARED, target_server="server2")
    await all_verified(bench, SHARED)
    await moved_by_virsh(bench, SHARED, "server2", "server1", "--unsafe")
    await all_verified(bench, SHARED)
    elsewhere = file.with_name("elsewhere.raw")
    file.rename(elsewhere)
    await refused(bench, SHARED, "server2", f"there is no file {file} on this server")
    file.write_bytes(bytes(SIZE * MIB))
    await refused(bench, SHARED, "server2", f"{file} on this server is not the file that the VM has open")
    assert file.read_bytes() == bytes(SIZE * MIB)
    elsewhere.rename(file)
    await bench.migration(SHARED, target_server="server2", postcopy="required")
    await all_verified(bench, SHARED)
    await content_is(bench, SHARED, file)
    await bench.cli("vm", "remove", SHARED)


async def test_a_disk_by_nbd_moves_with_a_persons_vm_and_not_to_where_it_is_out_of_reach(
    bench: LabBench, tmp_path: Path
) -> None:
    file = tmp_path / "exported.raw"
    file.write_bytes(bytes(SIZE * MIB))
    serve(bench, file)
    async with bench.events() as events:
        await bench.cli("vm", "add", PLAIN, "--server", "server1", "--mac", "52:54:00:00:00:05")
        await running(bench, events, PLAIN)
        template = await virsh(bench, "server1", "dumpxml", "--migratable", PLAIN)
        disk = f"""\
<disk type='network' device='disk'>
  <driver name='qemu' type='raw' cache='none'/>
  <source protocol='nbd' name='common'><host name='{address(bench, "server3")}' port='{PORT}'/></source>
  <target dev='vda' bus='virtio'/>
</disk></devices>"""
        xml = tmp_path / "vm.xml"
        xml.write_text(
            template.replace(PLAIN, BY_NBD)
            .replace("52:54:00:00:00:05", "52:54:00:00:bd:bd")
            .replace("tap-", "tapn")
            .replace("</devices>", disk)
        )
        await virsh(bench, "server1", "create", str(xml))
        await events.until("vm.started", lambda e: e["vm"]["id"] == BY_NBD)

    async def booted() -> bool:
        return "RETINUE READY" in await bench.console(BY_NBD)

    await eventually(booted)
    await scribble(bench, BY_NBD)
    await all_verified(bench, BY_NBD)
    await bench.migration(BY_NBD, target_server="server2")
    await all_verified(bench, BY_NBD)
    await moved_by_virsh(bench, BY_NBD, "server2", "server1")
    await all_verified(bench, BY_NBD)
    out_of_reach = ("unreachable", f"{address(bench, 'server3')}/32")
    await bench.run("server2", "ip", "route", "add", *out_of_reach)
    try:
        await refused(bench, BY_NBD, "server2", "No route to host")
    finally:
        await bench.run("server2", "ip", "route", "del", *out_of_reach)
    await bench.migration(BY_NBD, target_server="server2")
    await all_verified(bench, BY_NBD)
    await content_is(bench, BY_NBD, file)
    await virsh(bench, "server2", "destroy", BY_NBD)
    await bench.cli("vm", "remove", PLAIN)


def serve(bench: LabBench, file: Path) -> None:
    """Export a file by NBD on server3, as storage does that several servers reach."""
    node = {"driver": "file", "node-name": "common", "filename": str(file)}
    argv = [
        *("qemu-storage-daemon", "--blockdev", json.dumps(node)),
        *("--nbd-server", f"addr.type=inet,addr.host={address(bench, 'server3')},addr.port={PORT}"),
        *("--export", "type=nbd,id=common,node-name=common,name=common,writable=on"),
    ]
    bench.lab.spawn("server3", argv, log="storage")

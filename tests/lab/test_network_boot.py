"""A VM that starts by the network (PXE), on real parts: its card's ROM (iPXE), Kea, and dnsmasq's TFTP."""

import contextlib
from pathlib import Path

import pytest

from retinue_lab.guest.image import Guest
from support.lab.foreign_vm import PXE_ROM, ForeignVM, plug, without_agents
from support.lab.frames import DHCP, IP, dhcp_type
from support.lab.relay_node import program
from support.lab.tools import Json, LabBench, mac_of
from support.lab.watch import Frame

pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.skipif(not PXE_ROM.exists(), reason="no ROM of ipxe-qemu is installed"),
]

SERVER, SCRIPT = "10.1.0.2", "start.ipxe"


def option(frame: Frame, name: str) -> object:
    options = dict(o for o in frame.ether[DHCP].options if isinstance(o, tuple) and len(o) == 2)
    return options.get(name)


async def test_a_vm_starts_by_the_network(
    bench: LabBench, guest: Guest, kea: Json, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its ROM has a lease, fetches what the DHCP server names by TFTP, and starts it; the system that it has
    started has a lease, too, and is reached."""
    root = tmp_path_factory.mktemp("tftp")
    vm = ForeignVM("pxe", mac_of("vm1"), tmp_path_factory.mktemp("v"))
    _put(root, guest, vm)
    (subnet,) = kea["Dhcp4"]["subnet4"]
    subnet |= {"next-server": SERVER, "boot-file-name": SCRIPT}
    subnet["option-data"] += [
        {"name": "tftp-server-name", "data": SERVER},
        {"name": "boot-file-name", "data": SCRIPT},
    ]
    await bench.kea("config-set", kea)
    await without_agents(bench, "server1")
    tftp = ("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=eth0")
    async with contextlib.AsyncExitStack() as stack:
        served = await stack.enter_async_context(
            program(bench, "dhcp", *tftp, "--enable-tftp", f"--tftp-root={root}", "--user=root")
        )
        await served.until("TFTP")
        events = await stack.enter_async_context(bench.events())
        await bench.post("vms", {"id": vm.name, "mac": vm.mac, "server": "server1"})
        await plug(bench, vm, "server1", "theirs")
        await events.until("vm.ready", lambda e: e["vm"]["id"] == vm.name)
        tap = await stack.enter_async_context(bench.capture("server1", "theirs"))
        first = await vm.start(bench.lab, "server1", "theirs", stack, by_network=True)
        address = await first.booted()
        acks = tap.those(lambda f: dhcp_type(f.ether) == "ack")
        assert len(acks) >= 2, "the ROM's, and the system's that it has started"
        assert option(acks[0], "boot-file-name") == SCRIPT.encode()
        fetched = tap.those(lambda f: f.ether.haslayer(IP) and f.ether[IP].src == SERVER)
        assert len(fetched) > 1000, "kernel and initrd, block by block"
        (row,) = await bench.bindings(vm.name)
        assert (row["ip"], row["confirmed"]) == (address, True)
        async with bench.traffic(address) as echoes:
            await bench.unharmed(echoes)


def _put(root: Path, guest: Guest, vm: ForeignVM) -> None:
    """What the server gives out."""
    for name, file in (("kernel", guest.kernel), ("initrd", guest.initrd)):
        (root / name).write_bytes(file.read_bytes())
    (root / SCRIPT).write_text(f"#!ipxe\nkernel kernel {vm.command_line}\ninitrd initrd\nboot\n")

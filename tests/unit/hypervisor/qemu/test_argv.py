"""The hypervisors' pure parts: QEMU's command line, taps' names, the limit that keeps a migration to one
pass."""

import asyncio
import itertools
import os
import shlex
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.host.commands import run
from retinue.host.errors import HostError
from retinue.host.taps import add_port, remove_port, tap_name
from retinue.hypervisor import Channel, ChannelError, NICSpec, VMSpec, channel_pair
from retinue.hypervisor.paths import MachineFiles
from retinue.hypervisor.qemu.argv import qemu_argv
from retinue.hypervisor.qmp_copier import downtime_limit
from retinue.hypervisor.throttle import EMPTY_PAGE, LARGEST_STEP, SMALLEST_STEP, Throttle, step_for

SPEC = VMSpec(
    "vm1", "52:54:00:00:00:01", "tap-vm1", Path("/g/vmlinuz"), Path("/g/initrd"), "quiet ip=dhcp", 96
)
FILES = MachineFiles.named(Path("/run/lab"), "vm1-1")


def option(argv: list[str], name: str) -> list[str]:
    return [value for key, value in itertools.pairwise(argv) if key == name]


def test_a_vm_has_one_interface_without_offloads_on_its_tap() -> None:
    argv = qemu_argv(SPEC, FILES, qmp_fd=7)
    device, bridge = option(argv, "-device")
    assert bridge == "pcie-pci-bridge,id=nics,addr=0x10", "where further ones are put in while it runs"
    assert device.startswith("virtio-net-pci,netdev=net0,id=nic0,mac=52:54:00:00:00:01,")
    assert ",host_mtu=1500," in device, "the guest's driver sends nothing larger"
    jumbo, _ = option(qemu_argv(replace(SPEC, mtu=9000), FILES, qmp_fd=7), "-device")
    assert jumbo == device.replace("host_mtu=1500", "host_mtu=9000")
    for offload in ("csum", "gso", "guest_csum", "host_tso4", "guest_tso6", "host_ufo"):
        assert f",{offload}=off" in device
    assert ",ctrl_vlan=off" in device, "QEMU forgets which VLANs a guest wants as it migrates"
    assert option(argv, "-netdev") == ["tap,id=net0,ifname=tap-vm1,script=no,downscript=no"]
    assert option(argv, "-append") == ["quiet ip=dhcp"]
    assert option(argv, "-m") == [f"{96 * 1024 + 8}K"], "a size that can be copied in several passes"
    assert option(argv, "-accel") == ["tcg"]
    assert option(argv, "-vga") == ["none"]


def test_further_interfaces_have_the_places_of_their_slots() -> None:
    """Whatever came and went before: a target built anew is like its source."""
    more = (
        NICSpec("vm1-2", "52:54:00:00:00:02", "tap-vm1-2", 2),
        NICSpec("other", "52:54:00:00:00:05", "tap-other", 5),
    )
    argv = qemu_argv(replace(SPEC, more_nics=more), FILES, qmp_fd=7)
    assert option(argv, "-netdev")[1:] == [
        "tap,id=net2,ifname=tap-vm1-2,script=no,downscript=no",
        "tap,id=net5,ifname=tap-other,script=no,downscript=no",
    ]
    devices = option(argv, "-device")[2:]
    assert [device.split(",")[:4] for device in devices] == [
        ["virtio-net-pci", "netdev=net2", "id=nic2", "mac=52:54:00:00:00:02"],
        ["virtio-net-pci", "netdev=net5", "id=nic5", "mac=52:54:00:00:00:05"],
    ]
    assert [device.split(",")[-2:] for device in devices] == [
        ["bus=nics", "addr=0x2"],
        ["bus=nics", "addr=0x5"],
    ]
    assert all(",guest_csum=off" in device and ",ctrl_vlan=off" in device for device in devices)
    assert replace(SPEC, more_nics=more).ports == ("tap-vm1", "tap-vm1-2", "tap-other")


def test_the_control_connection_is_inherited_and_others_have_a_socket() -> None:
    argv = qemu_argv(SPEC, FILES, qmp_fd=7)
    assert option(argv, "-chardev") == ["socket,id=control,fd=7"]
    assert option(argv, "-qmp") == ["unix:/run/lab/vm1-1.qmp,server=on,wait=off"]
    assert option(argv, "-serial") == [
        "file:/run/lab/vm1-1.console",
        "unix:/run/lab/vm1-1.shell,server=on,wait=off",
    ]


def test_a_target_differs_from_its_source_in_waiting_only() -> None:
    source = qemu_argv(SPEC, FILES, qmp_fd=7)
    assert qemu_argv(SPEC, FILES, qmp_fd=7, incoming=True) == [*source, "-incoming", "defer", "-S"]


@pytest.mark.parametrize(
    ("id", "name"), [("a,b", "guest=a,,b"), ("a=b", "guest=a=b"), ("process=x", "guest=process=x")]
)
def test_a_name_is_no_option_whatever_is_in_it(id: str, name: str) -> None:
    argv = qemu_argv(VMSpec(id, SPEC.mac, "t", SPEC.kernel, SPEC.initrd), FILES, qmp_fd=3)
    assert option(argv, "-name") == [name]


def test_a_guest_that_reboots_stays_in_its_qemu_and_one_that_is_off_waits_to_be_seen() -> None:
    argv = qemu_argv(SPEC, FILES, qmp_fd=7)
    assert "-no-reboot" not in argv
    assert "-no-shutdown" in argv


def test_a_folder_too_deep_for_sockets_is_rejected_with_its_name() -> None:
    with pytest.raises(HostError, match=r"/deep.*too long for a socket"):
        MachineFiles.named(Path("/deep" * 22), "vm1-1")


@pytest.mark.parametrize(
    ("version", "limit"), [((7, 2, 22), 0), ((8, 2, 0), 2_000_000), ((9, 0, 0), 300), ((10, 0, 2), 300)]
)
def test_the_limit_that_keeps_a_move_to_one_pass(version: tuple[int, int, int], limit: int) -> None:
    assert downtime_limit(version) == limit


def test_short_names_are_kept_and_long_ones_stay_different() -> None:
    assert tap_name("web-1") == "tap-web-1"
    long = [tap_name(f"a-very-long-name-{n}") for n in range(50)]
    assert len(set(long)) == 50


@given(st.text(min_size=1))
def test_a_tap_name_is_always_one_that_linux_takes(vm: str) -> None:
    name = tap_name(vm)
    assert len(name.encode()) <= 15
    assert not set(name) & set("/ :\n\t")
    assert name == tap_name(vm)


def test_no_id_has_the_name_that_is_made_of_another() -> None:
    long = "3b1f5d0a-77c4-4b6e-9a52-1d2f3c4b5a69"
    made = tap_name(long)
    for id in (made.removeprefix("tap-"), made.removeprefix("tap-")[:-1], "83d17de1240"):
        assert tap_name(id) != made


class FakeServer:
    """`answers`: what a command whose line contains this prints."""

    def __init__(self, **answers: str) -> None:
        self.ran: list[str] = []
        self.answers = answers

    async def __call__(self, argv: Sequence[str]) -> str:
        self.ran.append(shlex.join(argv))
        return next((text for part, text in self.answers.items() if part in self.ran[-1]), "")


@pytest.mark.parametrize("owner", ["vm9", '"3b1f5d0a-77c4-4b6e-9a52-1d2f3c4b5a69"'])
async def test_a_port_that_is_another_vms_is_not_taken_over(owner: str) -> None:
    server = FakeServer(get=f"{owner}\n")
    with pytest.raises(HostError, match=f"is VM {owner.strip(chr(34))}'s, so VM vm1 cannot have it"):
        await add_port(server, bridge="br0", tap="tap-vm1", vm="vm1", mac=SPEC.mac)
    assert len(server.ran) == 1, "nothing is changed"
    server = FakeServer(get="vm1\n")
    await add_port(server, bridge="br0", tap="tap-vm1", vm="vm1", mac=SPEC.mac)
    assert "external_ids:iface-id" in server.ran[-1]


async def test_a_port_is_plugged_in_by_one_transaction_after_its_tap_is_up() -> None:
    server = FakeServer()
    vsctl = ["ovs-vsctl", "--db=unix:/run/db.sock"]
    await add_port(server, bridge="edge1", tap="tap-vm1", vm="vm1", mac=SPEC.mac, ovs_vsctl=vsctl)
    look, *before, transaction = server.ran
    assert look.endswith("-- --if-exists get Interface tap-vm1 external_ids:iface-id")
    assert 'ip tuntap add dev "$0" mode tap' in before[0] and before[0].endswith(" tap-vm1")
    assert "txqueuelen 10000" in before[0], "only where it is made: a migration may have made it longer"
    assert before[-1] == "ip link set dev tap-vm1 up"
    words = shlex.split(transaction)
    assert words[:2] == vsctl
    assert words[2:6] == ["--", "--may-exist", "add-port", "edge1"]
    assert 'external_ids:attached-mac="52:54:00:00:00:01"' in words
    assert 'external_ids:iface-id="vm1"' in words
    assert 'external_ids:vm-id="vm1"' in words
    assert "external_ids:iface-status=active" in words


@pytest.mark.skipif(os.geteuid() != 0, reason="making a tap needs root")
async def test_a_tap_that_is_there_already_is_plugged_in_again() -> None:
    """As an agent does that starts anew. In a real network of its own; of Open vSwitch nothing is asked."""
    argv = ["unshare", "--net", "sh", "-c", "echo there; exec cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as there:  # noqa: ASYNC220
        assert there.stdout is not None and there.stdout.readline() == "there\n"

        async def inside(argv: Sequence[str]) -> str:
            return await run(["nsenter", "--target", str(there.pid), "--net", *argv])

        for _ in range(2):
            await add_port(inside, bridge="br0", tap="tap-vm1", vm="vm1", mac=SPEC.mac, ovs_vsctl=["true"])
            assert "tap-vm1" in await inside(["ip", "-o", "link"])
        for _ in range(2):
            await remove_port(inside, bridge="br0", tap="tap-vm1", ovs_vsctl=["true"])
            assert "tap-vm1" not in await inside(["ip", "-o", "link"])


async def test_a_port_is_unplugged_before_its_tap_goes() -> None:
    server = FakeServer()
    await remove_port(server, bridge="edge1", tap="tap-vm1")
    assert server.ran == [
        "ovs-vsctl -- --if-exists del-port edge1 tap-vm1",
        "ip tuntap del dev tap-vm1 mode tap",
    ]


@pytest.mark.parametrize(
    ("remaining", "step"), [(1 << 33, LARGEST_STEP), (36 << 20, 77_824), (0, SMALLEST_STEP)]
)
def test_no_step_takes_more_pages_than_may_go_though_all_of_them_were_empty(
    remaining: int, step: int
) -> None:
    held_back = 2 << 20
    assert abs(step_for(remaining, held_back) - step) < EMPTY_PAGE * 1024
    if step < LARGEST_STEP:
        assert step_for(remaining, held_back) >= SMALLEST_STEP


async def test_what_nobody_reads_cannot_be_sent() -> None:
    throttle = Throttle()
    try:
        throttle.set_window(SMALLEST_STEP)
        throttle.theirs.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += throttle.theirs.send(b"\0" * 4096)
        assert sent <= SMALLEST_STEP
        assert len(await throttle.read(sent)) == throttle.read_bytes > 0
        throttle.set_window(LARGEST_STEP)
        assert throttle.theirs.send(b"\0" * 65536) == 65536
    finally:
        throttle.close()


async def test_the_stream_ends_when_qemu_ends_it() -> None:
    throttle = Throttle()
    try:
        theirs = throttle.theirs.dup()
        throttle.release_qemu_end()
        theirs.send(b"last")
        theirs.close()
        assert (await throttle.read(100), await throttle.read(100)) == (b"last", b"")
    finally:
        throttle.close()


# ---- what the two ends of a migration say to each other ----


async def test_memory_and_words_come_through_a_channel() -> None:
    here, there = await channel_pair()
    await here.send_memory(b"pages")
    await here.send_memory(b"")
    await here.send_message("handed_over", migration="migration-1")
    assert [await there.receive() for _ in range(3)] == [
        b"pages",
        b"",
        {"type": "handed_over", "migration": "migration-1"},
    ]
    await here.close()
    with pytest.raises(ChannelError, match="hung up"):
        await there.receive()
    await there.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"X\0\0\0\1x",
        b"M\xff\xff\xff\xff",
        b"J\0\0\0\1[",
        b"J\0\0\0\2[]",
        b'J\0\0\0\x08{"a": 1}',
        b"E\0\0\0\1x",
    ],
)
async def test_what_is_not_agreed_is_rejected(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(*await asyncio.open_connection(sock=ours))
    theirs.sendall(sent)
    with pytest.raises(ChannelError, match="the other end of the migration"):
        await channel.receive()
    theirs.close()
    await channel.close()

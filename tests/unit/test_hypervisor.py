"""The pure parts of H1: QEMU's command line, names of taps, the limit that keeps a move to one pass."""

import asyncio
import itertools
import shlex
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.hypervisor import Channel, ChannelError, HypervisorError, VMSpec, channel_pair
from retinue.hypervisor.argv import Files, qemu_argv
from retinue.hypervisor.departure import downtime_limit
from retinue.hypervisor.taps import add_port, remove_port, tap_name
from retinue.hypervisor.valve import EMPTY_PAGE, LARGEST_STEP, SMALLEST_STEP, Valve, step_for

SPEC = VMSpec(
    "vm1", "52:54:00:00:00:01", "tap-vm1", Path("/g/vmlinuz"), Path("/g/initrd"), "quiet ip=dhcp", 96
)
FILES = Files.named(Path("/run/lab"), "vm1-1")


def option(argv: list[str], name: str) -> list[str]:
    return [value for key, value in itertools.pairwise(argv) if key == name]


def test_a_vm_has_one_interface_without_offloads_on_its_tap() -> None:
    argv = qemu_argv(SPEC, FILES, qmp_fd=7)
    (device,) = option(argv, "-device")
    assert device.startswith("virtio-net-pci,netdev=net0,id=nic0,mac=52:54:00:00:00:01,")
    for offload in ("csum", "gso", "guest_csum", "host_tso4", "guest_tso6", "host_ufo"):
        assert f",{offload}=off" in device
    assert option(argv, "-netdev") == ["tap,id=net0,ifname=tap-vm1,script=no,downscript=no"]
    assert option(argv, "-append") == ["quiet ip=dhcp"]
    assert option(argv, "-m") == ["96"]
    assert option(argv, "-accel") == ["tcg"]
    assert option(argv, "-vga") == ["none"]


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


def test_a_comma_in_a_name_stays_inside_its_option() -> None:
    argv = qemu_argv(VMSpec("a,b", SPEC.mac, "t", SPEC.kernel, SPEC.initrd), FILES, qmp_fd=3)
    assert option(argv, "-name") == ["a,,b"]


def test_a_folder_too_deep_for_sockets_is_refused_with_its_name() -> None:
    with pytest.raises(HypervisorError, match=r"/deep.*too long for a socket"):
        Files.named(Path("/deep" * 22), "vm1-1")


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


class FakeServer:
    def __init__(self) -> None:
        self.ran: list[str] = []

    async def __call__(self, argv: list[str] | tuple[str, ...]) -> str:
        self.ran.append(shlex.join(argv))
        return ""


async def test_a_port_is_plugged_in_by_one_transaction_after_its_tap_is_up() -> None:
    server = FakeServer()
    vsctl = ["ovs-vsctl", "--db=unix:/run/db.sock"]
    await add_port(server, bridge="edge1", tap="tap-vm1", vm="vm1", mac=SPEC.mac, ovs_vsctl=vsctl)  # type: ignore[arg-type]
    *before, transaction = server.ran
    assert before[0] == "ip tuntap add dev tap-vm1 mode tap"
    assert before[-1] == "ip link set dev tap-vm1 txqueuelen 10000 up"
    words = shlex.split(transaction)
    assert words[:2] == vsctl
    assert words[2:6] == ["--", "--may-exist", "add-port", "edge1"]
    assert 'external_ids:attached-mac="52:54:00:00:00:01"' in words
    assert 'external_ids:iface-id="vm1"' in words
    assert 'external_ids:vm-id="vm1"' in words
    assert "external_ids:iface-status=active" in words


async def test_a_port_is_unplugged_before_its_tap_goes() -> None:
    server = FakeServer()
    await remove_port(server, bridge="edge1", tap="tap-vm1")  # type: ignore[arg-type]
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
    valve = Valve()
    try:
        valve.narrow(SMALLEST_STEP)
        valve.theirs.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += valve.theirs.send(b"\0" * 4096)
        assert sent <= SMALLEST_STEP
        assert len(await valve.read(sent)) == valve.read_octets > 0
        valve.narrow(LARGEST_STEP)
        assert valve.theirs.send(b"\0" * 65536) == 65536
    finally:
        valve.close()


async def test_the_stream_ends_when_qemu_ends_it() -> None:
    valve = Valve()
    try:
        theirs = valve.theirs.dup()
        valve.handed_over()
        theirs.send(b"last")
        theirs.close()
        assert (await valve.read(100), await valve.read(100)) == (b"last", b"")
    finally:
        valve.close()


# ---- what the two ends of a move say to each other ----


async def test_memory_and_words_come_through_a_channel() -> None:
    here, there = await channel_pair()
    await here.send_memory(b"pages")
    await here.send_memory(b"")
    await here.say("yours", move="move-1")
    assert [await there.receive() for _ in range(3)] == [b"pages", b"", {"word": "yours", "move": "move-1"}]
    await here.close()
    with pytest.raises(ChannelError, match="hung up"):
        await there.receive()
    await there.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"X\0\0\0\1x",
        b"M\xff\xff\xff\xff",
        b"W\0\0\0\1[",
        b"W\0\0\0\2[]",
        b'W\0\0\0\x08{"a": 1}',
        b"E\0\0\0\1x",
    ],
)
async def test_what_is_not_agreed_is_refused(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(*await asyncio.open_connection(sock=ours))
    theirs.sendall(sent)
    with pytest.raises(ChannelError, match="the other end of the move"):
        await channel.receive()
    theirs.close()
    await channel.close()

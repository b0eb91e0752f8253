"""Whether frames wait in a tap, asked of a real one: in a network of its own, held by another process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue.host import tap_queue
from retinue.host.errors import HostError
from retinue.host.tap_queue import HeldTaps, holder_of, holders_of, queue_of, until_empty

TAP = f"tap-{os.getpid()}"  # Whoever has it open is looked for among all processes.

HOLDER = f"""
import fcntl, os, socket, struct, subprocess, sys
from pathlib import Path
TUNSETIFF, TAP, NO_INFO, ETH_P_ALL, VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x0003, 0x4000
KIND = TAP | NO_INFO | (VNET_HDR if "as QEMU" in sys.argv else 0)
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", b"{TAP}", KIND))
for silent in Path("/proc/sys/net/ipv6/conf").glob("*/disable_ipv6"):
    silent.write_text("1")  # Else the kernel itself would send into it.
subprocess.run(["ip", "link", "set", "{TAP}", "up"], check=True)
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("{TAP}", 0x88B5))
sent = 0
print("open", flush=True)
for line in sys.stdin:
    if line == "send\\n":
        wire.send(bytes(12) + bytes.fromhex("88b5") + bytes([sent]) + bytes(45))
        sent += 1
    else:
        os.read(tun, 2048)
    print("done", flush=True)
"""


class Holder:
    def __init__(self, *how: str) -> None:
        argv = ["unshare", "--net", sys.executable, "-I", "-S", "-c", HOLDER, *how]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)
        assert self._said() == "open"

    def do(self, what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        assert self._said() == "done"

    def _said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture
def holder() -> Iterator[Holder]:
    if os.geteuid() != 0:
        pytest.skip("making a tap needs root")
    made = Holder()
    yield made
    made.end()


@pytest.mark.parametrize("own", [0, 1])
def test_of_two_taps_of_one_name_that_of_this_network_is_meant(
    holder: Holder, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Holder()
    try:
        pid = (holder, other)[own].process.pid
        monkeypatch.setattr(tap_queue, "OWN_NETWORK", Path(f"/proc/{pid}/ns/net"))
        assert holder_of(TAP) == pid
    finally:
        other.end()


def test_a_tap_is_empty_when_its_holder_has_read_all(holder: Holder) -> None:
    with queue_of(holder.process.pid, TAP) as queue:
        assert queue.is_empty()
        holder.do("send")
        assert not queue.is_empty()
        holder.do("read")
        assert queue.is_empty()


async def test_one_that_does_not_read_is_not_waited_for_for_ever(
    holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.host.tap_queue.LIMIT", 0.05)
    holder.do("send")
    began = time.monotonic()
    assert not await until_empty(holder.process.pid, TAP)
    assert time.monotonic() - began >= 0.05
    holder.do("read")
    assert await until_empty(holder.process.pid, TAP)


def test_who_has_a_tap_open_is_found(holder: Holder) -> None:
    assert holder_of(TAP) == holder.process.pid
    with pytest.raises(HostError, match="no process has tap-none open"):
        holder_of("tap-none")
    assert holders_of(["tap-none", TAP]) == {TAP: holder.process.pid}


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_tap_that_is_not_open_there_cannot_be_looked_into(holder: Holder) -> None:
    with (
        pytest.raises(HostError, match="does not have tap-none open"),
        queue_of(os.getpid(), "tap-none"),
    ):
        pass
    before = open_files()
    with queue_of(holder.process.pid, TAP):
        pass
    assert open_files() == before


def test_a_process_that_has_ended_cannot_be_looked_into() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(HostError, match="cannot be looked into"), queue_of(gone.pid, TAP):
        pass


@pytest.mark.parametrize("how", [(), ("as QEMU",)], ids=["plain", "with a header before each frame"])
def test_what_waits_in_a_tap_outlives_the_process_that_has_it_open(how: tuple[str, ...]) -> None:
    """Killed or not: by a copy of its file the frames are there, in order."""
    if os.geteuid() != 0:
        pytest.skip("making a tap needs root")
    holder = Holder(*how)
    for _ in range(4):
        holder.do("send")
    held = HeldTaps(holder.process.pid, [TAP])
    holder.do("read")
    holder.end()
    assert [frame[14] for frame in held.take(2, 1 << 20)] == [1, 2], "so many, and the rest waits"
    assert held.take(9, 1) == [bytes(12) + bytes.fromhex("88b5") + bytes([3]) + bytes(45)]
    assert held.take(9, 9) == []
    held.let_go()
    with pytest.raises(HostError):
        HeldTaps(holder.process.pid, [TAP])

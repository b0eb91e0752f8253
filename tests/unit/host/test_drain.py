"""A VM that is about to stop has been given all: its taps say so, or nothing has come for long enough."""

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from retinue.host import drain as draining
from retinue.host.drain import QUIET, drain, frames_given
from retinue.host.errors import HostError
from retinue.host.timing import CACHE_LAG
from retinue.hypervisor import HypervisorError

TAPS = ("tap-a", "tap-b")
HOLDERS = {"tap-a": 7, "tap-b": 8}


class Taps:
    """What they have given their VM, and whether they empty themselves when they are asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []
        self.networks: set[int] = set()
        self.read = True
        self.seen = True
        self.given: Callable[[], int] = lambda: 0

    async def until_empty(self, pid: int, tap: str) -> bool:
        if not self.seen:
            raise HypervisorError("it cannot be looked into")
        self.asked.append((pid, tap))
        return self.read

    def frames_given(self, pid: int, tap: str) -> int:
        self.networks.add(pid)
        return self.given() if tap == "tap-b" else 0


@pytest.fixture
def taps(monkeypatch: pytest.MonkeyPatch) -> Taps:
    made = Taps()
    monkeypatch.setattr(draining, "until_empty", made.until_empty)
    monkeypatch.setattr(draining, "frames_given", made.frames_given)
    return made


async def test_each_tap_is_asked_of_the_process_that_has_it_open(taps: Taps) -> None:
    await drain(TAPS, HOLDERS)
    assert taps.asked == [(7, "tap-a"), (8, "tap-b")]
    assert not taps.networks


async def test_a_vm_that_does_not_read_is_waited_for_no_longer(taps: Taps) -> None:
    taps.read = False
    with capture_logs() as said:
        await drain(TAPS, HOLDERS)
    assert [entry["tap"] for entry in said] == list(TAPS)
    assert not taps.networks


@pytest.mark.parametrize("holders", [{}, {"tap-a": 7}])
async def test_where_a_taps_holder_is_not_known_all_are_watched(taps: Taps, holders: dict[str, int]) -> None:
    """For as long as a switch's flow cache may follow its tables, though nothing comes."""
    began = time.monotonic()
    await drain(TAPS, holders)
    assert time.monotonic() - began >= CACHE_LAG
    assert not taps.asked
    assert taps.networks == {os.getpid()}


async def test_where_a_tap_cannot_be_looked_into_it_is_watched(taps: Taps) -> None:
    taps.seen = False
    began = time.monotonic()
    with capture_logs() as said:
        await drain(TAPS, HOLDERS, network=5)
    assert time.monotonic() - began >= CACHE_LAG
    assert taps.networks == {5}
    assert [entry["error"] for entry in said] == ["it cannot be looked into"]


async def test_frames_that_come_put_the_end_off(taps: Taps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "QUIET_LIMIT", 60.0)
    came: list[float] = []

    def given() -> int:
        if len(came) < 5:
            came.append(time.monotonic())
        return len(came)

    taps.given = given
    with capture_logs() as said:
        await drain(TAPS, {})
    assert len(came) == 5
    assert time.monotonic() - came[-1] >= QUIET
    assert not said


async def test_frames_without_end_are_not_waited_for(taps: Taps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "QUIET_LIMIT", 0.05)
    taps.given = time.monotonic_ns
    began = time.monotonic()
    with capture_logs() as said:
        await drain(TAPS, {})
    assert time.monotonic() - began >= 0.05
    assert [entry["event"] for entry in said] == ["tap.not_quiet"]


async def test_a_tap_that_is_not_there_is_named() -> None:
    with pytest.raises(HostError, match="has no tap-none"):
        await drain(["tap-none"], {})


def test_what_an_interface_has_sent_is_counted_in_the_network_of_a_process() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.sendto(b"", ("127.0.0.1", 9))
    sent = Path("/sys/class/net/lo/statistics/tx_packets")
    before, given, after = int(sent.read_text()), frames_given(os.getpid(), "lo"), int(sent.read_text())
    assert 0 < before <= given <= after
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(HostError, match=f"process {gone.pid} has ended"):
        frames_given(gone.pid, "lo")


def test_a_flow_cache_is_given_a_little_more_than_it_was_seen_to_take() -> None:
    assert 0.0053 < CACHE_LAG <= 0.010

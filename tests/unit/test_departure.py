"""The source's half of a move, with a fake QEMU: what it asks for, when, and what it passes on."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from retinue.hypervisor.channel import Channel, channel_pair
from retinue.hypervisor.departure import depart
from retinue.hypervisor.interface import Event, MigrationFailed, RunState, VMSpec

RAM = 4 << 20


class FakeQemu:
    """Sends its memory as fast as it is read; when the VM stands still it answers nobody till all is read."""

    def __init__(self) -> None:
        self.spec = VMSpec("vm1", "52:54:00:00:00:01", "tap-vm1", Path("kernel"), Path("initrd"))
        self.major = 9
        self.asked: list[str] = []
        self.sent = 0
        self.before_resume: Callable[[], Awaitable[None]] | None = None
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._frames = 0
        self._runs = True
        self._end: socket.socket | None = None
        self._sending: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def events_into(self, queue: asyncio.Queue[Any]) -> Iterator[None]:
        self._events = queue
        yield

    def frames_given(self) -> int:
        self._frames += 100
        return self._frames

    async def until_quiet(self, nothing_comes: bool) -> None:
        self.asked.append("quiet")

    async def state(self) -> RunState:
        if self.before_resume is not None:
            await self.before_resume()
        return RunState.RUNNING

    async def give(self, end: socket.socket) -> str:
        self._end = end.dup()
        self._end.setblocking(False)
        return "fd:memory"

    async def execute(self, command: str, **arguments: Any) -> Any:
        self.asked.append(command)
        match command:
            case "query-version":
                return {"qemu": {"major": self.major, "minor": 2, "micro": 22}}
            case "migrate":
                self._sending = asyncio.create_task(self._send())
            case "migrate_cancel" if self._sending is not None:
                self._sending.cancel()
                self._sending = None
            case "query-migrate" if self._sending is None:
                return {"status": "cancelled"}
            case "query-migrate":
                return {
                    "status": "active",
                    "ram": {"remaining": RAM - self.sent, "transferred": 1 + self.sent},
                }
            case "stop":
                self._runs = False
                self._tell("STOP")
            case "migrate-set-parameters" if not self._runs and self._sending is not None:
                # As when the rest of the memory is smaller than what is read at a stroke.
                await asyncio.wait_for(asyncio.shield(self._sending), 5)
        return {}

    async def _send(self) -> None:
        assert self._end is not None
        loop = asyncio.get_running_loop()
        while self.sent < RAM:
            await loop.sock_sendall(self._end, bytes(4096))
            self.sent += 4096
        self._end.close()
        self._tell("MIGRATION", status="completed")

    def _tell(self, event: str, **data: str) -> None:
        stamp = {"seconds": 1000, "microseconds": 0}
        self._events.put_nowait((self, {"event": event, "data": data, "timestamp": stamp}))


async def target(channel: Channel) -> list[Any]:
    """Takes all in, and runs the VM; what it was sent, memory by its length."""
    heard: list[Any] = []
    while True:
        match await channel.receive():
            case bytes(memory):
                heard.append(len(memory))
            case {"word": "yours"}:
                await channel.say("runs", at=1000.01)
                return heard
            case word:
                heard.append(word)


@pytest.mark.parametrize(("major", "last"), [(7, "stop"), (9, "migrate-set-parameters")])
async def test_the_memory_is_read_while_qemu_is_told_to_converge(major: int, last: str) -> None:
    """A version before 8 is not told: it is content when nothing remains."""
    qemu = FakeQemu()
    qemu.major = major
    here, there = await channel_pair()
    taking = asyncio.create_task(target(there))

    async def divert(taps: Collection[str]) -> bool:
        qemu.asked.append("divert")
        assert RAM - qemu.sent > 0, "something is left to be sent until the VM stands still"
        return True

    result = await depart(qemu, here, lambda event: None, divert)  # type: ignore[arg-type]
    heard = await taking
    assert sum(size for size in heard if isinstance(size, int)) == RAM
    assert heard[-1] == 0
    assert result.pause_ms > 0
    order = [word for word in qemu.asked if word in ("divert", "quiet", "stop")]
    assert order == ["divert", "quiet", "stop"]
    assert qemu.asked[-2:] == [last, "query-migrate"]


async def test_the_target_is_told_how_much_will_wait_for_the_vm_before_it_is_diverted() -> None:
    qemu = FakeQemu()
    here, there = await channel_pair()
    taking = asyncio.create_task(target(there))
    diverted_after: list[int] = []

    async def divert(taps: Collection[str]) -> bool:
        diverted_after.append(qemu.sent)
        return True

    await depart(qemu, here, lambda event: None, divert)  # type: ignore[arg-type]
    heard = await taking
    (expected,) = (word for word in heard if isinstance(word, dict))
    assert expected["word"] == "expect"
    assert expected["frames_a_second"] > 0
    before = sum(size for size in heard[: heard.index(expected)] if isinstance(size, int))
    assert before <= diverted_after[0] < RAM


async def test_a_departure_called_off_twice_puts_the_source_in_order_all_the_same() -> None:
    qemu = FakeQemu()
    here, there = await channel_pair()
    told: list[Event] = []
    reached, slow = asyncio.Event(), asyncio.Event()

    async def divert(taps: Collection[str]) -> bool:
        reached.set()
        return await asyncio.Event().wait()

    async def recovering() -> None:
        recovery.set()
        await slow.wait()

    recovery = asyncio.Event()
    qemu.before_resume = recovering
    taking = asyncio.create_task(target(there))
    departure = asyncio.create_task(depart(qemu, here, told.append, divert))  # type: ignore[arg-type]
    await reached.wait()
    departure.cancel()
    await recovery.wait()
    departure.cancel()
    done, _ = await asyncio.wait({departure}, timeout=0.05)
    assert not done, "it is over before the source is in order"
    slow.set()
    await asyncio.wait({departure})
    assert departure.cancelled()
    assert [type(event) for event in told] == [MigrationFailed]
    taking.cancel()

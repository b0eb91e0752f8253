"""The target's half of a migration, with a QEMU that cannot take the memory in."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retinue.hypervisor import (
    Channel,
    HandedOverError,
    HypervisorError,
    RunState,
    VMSpec,
    another_way,
    ignore,
    recovering,
)
from retinue.hypervisor.memory_channel import channel_pair
from retinue.hypervisor.qemu import incoming as incoming_module
from retinue.hypervisor.qemu.incoming import run_incoming


class Unwilling:
    """A QEMU that fails at once."""

    spec = VMSpec("vm1", "52:54:00:00:00:01", "tap", Path("/k"), Path("/i"))

    def __init__(self) -> None:
        self.killed = False

    @contextlib.contextmanager
    def events_into(self, queue: Any) -> Iterator[None]:
        yield

    async def set_capability(self, name: str, on: bool) -> None:
        raise HypervisorError("it cannot")

    def kill(self, why: str) -> None:
        self.killed = True

    async def quit(self) -> None:
        pass


class DeadServer:
    """The connection to a source that is dead: a close, which TLS would have answered, waits."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.aborted = False

    async def send_message(self, type: str, **more: Any) -> None:
        self.said.append(type)

    async def close(self) -> None:
        await asyncio.Event().wait()

    def abort(self) -> None:
        self.aborted = True


async def test_a_migration_that_has_failed_waits_for_no_source_that_is_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(incoming_module, "HANG_UP_LIMIT", 0.05)
    machine, channel = Unwilling(), DeadServer()
    with pytest.raises(HypervisorError, match="it cannot"):
        async with asyncio.timeout(60):
            await run_incoming(machine, channel, ignore)  # type: ignore[arg-type]
    assert machine.killed
    assert channel.said == ["failed"]
    assert channel.aborted


class Willing(Unwilling):
    """Takes in what comes, and has been asked so often to make room."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def set_capability(self, name: str, on: bool) -> None:
        pass

    async def give(self, end: socket.socket) -> str:
        return "fd:memory"

    async def execute(self, command: str, **arguments: Any) -> Any:
        return {}

    async def make_room(self, frames_a_second: float) -> None:
        self.asked += 1


async def test_a_source_that_says_one_thing_again_and_again_is_not_obeyed_each_time() -> None:
    """Each makes a program run, or an answer."""
    machine = Willing()
    here, there = await channel_pair()
    coming = asyncio.create_task(run_incoming(machine, here, ignore))  # type: ignore[arg-type]
    for _ in range(3):
        await there.send_message("expect", frames_a_second=1000.0)
    async with asyncio.timeout(60):
        with pytest.raises(HypervisorError, match="'expect' for the second time"):
            await coming
    assert machine.asked == 1
    there.abort()


class Postcopied:
    """A QEMU that runs a VM of whose memory some is to come."""

    spec = Unwilling.spec
    vm = spec.id

    def __init__(self) -> None:
        self._events: Any = None
        self.killed = ""
        self.did: list[str] = []
        self.status = "postcopy-paused"
        self.now = RunState.PAUSED

    @contextlib.contextmanager
    def events_into(self, queue: Any) -> Iterator[None]:
        self._events = queue
        yield

    async def set_capability(self, name: str, on: bool) -> None:
        pass

    async def give(self, end: socket.socket) -> str:
        return "fd:memory"

    async def execute(self, command: str, **_: object) -> Any:
        if command == "cont":
            self.did.append("cont")
            self.now = RunState.RUNNING
            self.tells("RESUME")

    async def state(self) -> RunState:
        return self.now

    async def resume(self) -> None:
        await self.execute("cont")

    def tells(self, event: str, **data: str) -> None:
        stamp = {"seconds": 1000, "microseconds": 0}
        self._events.put_nowait((self, {"event": event, "data": data, "timestamp": stamp}))

    def write_down(self, **changes: object) -> None:
        self.did.append(f"writes {changes}")

    async def migration_status(self) -> str:
        return self.status

    async def lacks_nothing(self) -> None:
        self.did.append("lacks nothing")

    def kill(self, why: str) -> None:
        self.killed = why

    async def quit(self) -> None:
        pass


async def test_a_connection_by_which_nothing_comes_is_replaced_as_one_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cable, or a firewall that has forgotten it, ends none: the source's agent goes by the same limit."""
    monkeypatch.setattr(incoming_module, "STALL_LIMIT", 0.05)
    machine = Postcopied()
    here, there = await channel_pair()
    later, source = await channel_pair()
    into, qemu = socket.socketpair()
    into.setblocking(False)

    async def another() -> Channel:
        raise AssertionError

    async def at_target(*_: object) -> tuple[Channel, socket.socket]:
        machine.tells("MIGRATION", status="completed")
        return later, into

    monkeypatch.setattr(recovering, "at_target", at_target)
    here.again = another
    await there.send_message("handed_over", postcopy=True)
    async with asyncio.timeout(60):
        assert await run_incoming(machine, here, ignore) == 1000.0  # type: ignore[arg-type]
    assert not machine.killed
    written = "writes {'incoming': False}"
    assert machine.did == [written, "cont", written, "lacks nothing"], "what it may have run is known before"
    qemu.close()
    for channel in (here, there, later, source):
        channel.abort()


# ---- after another agent ----


def left() -> Postcopied:
    machine = Postcopied()
    machine.now = RunState.RUNNING
    return machine


async def nobody() -> Channel:
    raise HypervisorError("nobody brings it")


async def test_what_lacks_memory_when_its_agent_has_ended_gets_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By two ways, for the first breaks, too."""
    machine, ways = left(), list[Channel]()
    into = [socket.socketpair() for _ in range(2)]
    for ours, _ in into:
        ours.setblocking(False)

    async def at_target(of: object, broken: Channel, paused: asyncio.Event) -> tuple[Channel, socket.socket]:
        assert broken.again is nobody and paused.is_set()
        here, there = await channel_pair()
        here.again = nobody
        ways.append(there)
        if len(ways) == 1:
            there.abort()
        else:
            await there.send_memory(b"a page")
            await there.send_memory(b"")
            machine.tells("MIGRATION", status="completed")
        return here, into[len(ways) - 1][0]

    monkeypatch.setattr(recovering, "at_target", at_target)
    async with asyncio.timeout(60):
        await incoming_module.receive_the_rest(machine, nobody)  # type: ignore[arg-type]
    assert (len(ways), machine.killed, machine.did) == (2, "", ["lacks nothing"])
    assert into[1][1].recv(100) == b"a page"
    for _, theirs in into:
        theirs.close()


async def test_what_had_all_of_its_memory_by_the_time_it_is_looked_at_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = left()
    machine.status = "completed"

    async def at_target(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(recovering, "at_target", at_target)
    async with asyncio.timeout(60):
        await incoming_module.receive_the_rest(machine, nobody)  # type: ignore[arg-type]
    assert (machine.killed, machine.did) == ("", ["lacks nothing"])


async def test_what_was_not_told_to_run_in_time_is_told_when_all_has_come() -> None:
    """It did not answer, on a busy server say, so it was taken for one that runs: and nobody else runs it."""
    machine = left()
    machine.status, machine.now = "completed", RunState.PAUSED
    async with asyncio.timeout(60):
        await incoming_module.receive_the_rest(machine, nobody)  # type: ignore[arg-type]
    assert (machine.killed, machine.did) == ("", ["cont", "lacks nothing"])


async def test_what_nobody_brings_the_rest_to_is_ended_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = left()
    monkeypatch.setattr(another_way, "AGAIN_LIMIT", 0.05)
    with pytest.raises(HandedOverError, match=r"lacks some of its memory: .* nobody brings it"):
        await incoming_module.receive_the_rest(machine, nobody)  # type: ignore[arg-type]
    assert machine.killed.startswith(
        "it ran by post-copy, with some of its memory still at the source: no other"
    )
    assert "lacks nothing" not in machine.did


async def test_an_agent_that_is_told_to_end_leaves_what_lacks_memory_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, waiting = left(), asyncio.Event()

    async def at_target(*_: object) -> None:
        waiting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(recovering, "at_target", at_target)
    going = asyncio.create_task(incoming_module.receive_the_rest(machine, nobody))  # type: ignore[arg-type]
    await waiting.wait()
    going.cancel()
    await asyncio.wait({going})
    assert (going.cancelled(), machine.killed, machine.did) == (True, "", [])

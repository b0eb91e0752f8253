"""The target's half of a migration, with a QEMU that cannot take the memory in."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retinue.hypervisor import Channel, HypervisorError, RunState, VMSpec, ignore
from retinue.hypervisor.memory_channel import channel_pair
from retinue.hypervisor.qemu import incoming as incoming_module
from retinue.hypervisor.qemu import recovering
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


class Postcopied:
    """A QEMU that runs a VM of whose memory some is to come."""

    spec = Unwilling.spec

    def __init__(self) -> None:
        self._events: Any = None
        self.killed = ""

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
            self.tells("RESUME")

    async def state(self) -> RunState:
        return RunState.PAUSED

    def tells(self, event: str, **data: str) -> None:
        stamp = {"seconds": 1000, "microseconds": 0}
        self._events.put_nowait((self, {"event": event, "data": data, "timestamp": stamp}))

    def write_down(self, **_: object) -> None:
        pass

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
    qemu.close()
    for channel in (here, there, later, source):
        channel.abort()

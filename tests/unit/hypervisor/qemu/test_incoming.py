"""The target's half of a migration, with a QEMU that cannot take the memory in."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retinue.hypervisor import HypervisorError, VMSpec, ignore
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

"""A QEMU with an outgoing migration, as far as its source's half can tell; for a real one see tests/lab."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import RunState, VMSpec
from retinue.hypervisor.throttle import Throttle

PAGE = 4096
THRESHOLD = 25_000
"""Bytes below which it looks again where `downtime-limit` is 1 ms, at the bandwidth that it reports."""


class FakeQemu:
    """Sends its memory as fast as it is read; when the VM stands still it answers nobody till all is read.

    `written` are the bytes that the VM is found to have written at each look, as a QEMU before 8.0 looks.
    """

    def __init__(self, ram: int = 4 << 20, written: list[int] | None = None) -> None:
        self.spec = VMSpec("vm1", "52:54:00:00:00:01", "tap-vm1", Path("kernel"), Path("initrd"))
        self.vm = self.spec.id
        self.major = 7
        self.kvm = False
        """Emulated: then its memory decides, before 9.0, whether there are several passes."""
        self.ram, self.remaining, self.sent = ram, ram, 0
        self.written = written or []
        self.looks = 1
        self.devices = 0
        """Bytes of its devices' state, which go out at one stroke after the stop."""
        self.asked: list[str] = []
        self.capabilities: dict[str, bool] = {}
        self.cannot: set[str] = set()
        """Capabilities that it does not have."""
        self.kept: list[Any] = []
        self.let_wait: tuple[Throttle, ...] = ()
        """Streams that were given with the word to cancel."""
        self.postcopy = self.asked_for = False
        """The VM is stopped, for good, with memory left to send; pages were asked for."""
        self.status = "active"
        """Of its migration, while there is one."""
        self.rest_goes = asyncio.Event()
        self.rest_goes.set()
        self.limits: list[int] = []
        self.stopped_itself = False
        """Though nobody had let it go on to the end."""
        self.may_stop = False
        self.before_resume: Callable[[], Awaitable[None]] | None = None
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._frames = 0
        self._runs, self._by_hand = True, False
        self.answers_stopped = False
        """It was stopped by a command, and has not come to the end of its memory."""
        self._end: socket.socket | None = None
        self._sending: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def events_into(self, queue: asyncio.Queue[Any]) -> Iterator[None]:
        self._events = queue
        yield

    def frames_given(self) -> int:
        self._frames += 100
        return self._frames

    async def drain(self, nothing_comes: bool) -> None:
        self.asked.append("quiet")

    async def state(self) -> RunState:
        if self.before_resume is not None:
            await self.before_resume()
        return RunState.RUNNING

    async def give(self, end: socket.socket) -> str:
        self._end = end.dup()
        self._end.setblocking(False)
        return "fd:memory"

    async def set_capability(self, name: str, on: bool) -> None:
        if on and name in self.cannot:
            raise HypervisorError(f"{name} is not supported")
        self.capabilities[name] = on

    async def cancel_migration(self, *streams: Throttle) -> None:
        self.let_wait = streams
        await self.execute("migrate_cancel")

    async def migration_status(self) -> str:
        return str((await self.execute("query-migrate"))["status"])

    async def execute(self, command: str, **arguments: Any) -> Any:
        self.asked.append(command)
        if not self._runs and not (self.postcopy or self._by_hand) and self._sending is not None:
            await asyncio.shield(self._sending)  # As QEMU, which holds its big lock meanwhile.
        match command:
            case "query-version":
                return {"qemu": {"major": self.major, "minor": 2, "micro": 22}}
            case "query-kvm":
                return {"enabled": self.kvm, "present": True}
            case "query-memory-size-summary":
                return {"base-memory": self.ram}
            case "migrate" if arguments.get("resume"):
                assert self._end is not None
                self._tell("MIGRATION", status="postcopy-recover")
                self._sending = asyncio.create_task(self._send_rest(self._end))
            case "migrate":
                self._sending = asyncio.create_task(self._send())
            case "migrate-start-postcopy":
                self.postcopy = True
            case "migrate_cancel" if self._sending is not None:
                self._sending.cancel()
                self._sending = None
            case "query-migrate" if self._sending is None:
                return {"status": "cancelled"}
            case "query-migrate":
                ram = {"remaining": self.remaining, "transferred": 1 + self.sent, "mbps": 100 + self.sent % 7}
                return {"status": self.status, "ram": {**ram, "dirty-sync-count": self.looks}}
            case "stop":
                self._runs, self._by_hand = False, self.answers_stopped
                self._tell("STOP")
            case "migrate-set-parameters":
                self.limits.append(arguments["downtime_limit"])
        return {}

    async def _send(self) -> None:
        assert self._end is not None
        loop = asyncio.get_running_loop()
        while True:
            if self.postcopy:
                await self._send_rest(self._end)
                return
            if self.remaining == 0 or (self.limits[-1] and self.remaining < THRESHOLD and self._runs):
                if self._runs and self.limits[-1]:
                    self._look()
                if self.remaining < max(THRESHOLD * self.limits[-1], 1):
                    break
            await loop.sock_sendall(self._end, bytes(PAGE))
            self.sent += PAGE
            self.remaining -= PAGE
        if self._runs:
            self.stopped_itself, self._runs = not self.may_stop, False
            self._tell("STOP")
        if self.written:
            self._look()
        await loop.sock_sendall(self._end, bytes(self.remaining + self.devices))
        self.sent, self.remaining = self.sent + self.remaining + self.devices, 0
        self._end.close()
        self._tell("MIGRATION", status="completed")

    async def _send_rest(self, end: socket.socket) -> None:
        """The VM stands still here, and runs at the target, whose QEMU asks for what it needs."""
        loop = asyncio.get_running_loop()
        self.stopped_itself, self._runs = not self.may_stop, False
        self._tell("MIGRATION", status="postcopy-active")
        self._tell("STOP")
        await self.rest_goes.wait()
        self.asked_for = await loop.sock_recv(end, 100) == b"a page"
        await loop.sock_sendall(end, bytes(self.remaining))
        self.sent, self.remaining = self.sent + self.remaining, 0
        end.close()
        self._tell("MIGRATION", status="completed")

    def break_off(self) -> None:
        """Its stream has broken, in post-copy."""
        assert self._sending is not None
        self._sending.cancel()
        self._tell("MIGRATION", status="postcopy-paused")

    def complete(self) -> None:
        """All of its memory has gone over."""
        self._tell("MIGRATION", status="completed")

    def _look(self) -> None:
        self.looks += 1
        self.remaining += self.written.pop(0) if self.written else 0

    def _tell(self, event: str, **data: str) -> None:
        self.status = data.get("status", self.status)
        stamp = {"seconds": 1000, "microseconds": 0}
        self._events.put_nowait((self, {"event": event, "data": data, "timestamp": stamp}))

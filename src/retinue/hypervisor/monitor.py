"""A QEMU's monitor (QMP) that is ours: questions, files, events.

`QemuMachine` is one of a QEMU of ours; `libvirt.own_monitor` makes one beside libvirt's. What both sides of a
post-copy do when its way has broken (`recovering`, `rest_at_source`) asks no more of a QEMU than this.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError
from qemu.qmp.qmp_client import NegotiationError

from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.throttle import Throttle

COMMAND_LIMIT = 30.0
"""Seconds without an answer after which a QEMU is taken for hung: one that is slow, on a busy server, is not
to lose its migration, let alone its VM, for that."""
DISCONNECT_LIMIT = 2.0
NEGOTIATE_AGAIN = 0.02
"""Seconds between two attempts at a monitor."""
EXITED = "RETINUE_EXITED"
"""Name of the one event that is ours, not QEMU's: the process has ended."""

# The library logs the end of every connection as an error; we report each failure ourselves.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)

QMPEvent = dict[str, Any]
EventQueue = asyncio.Queue[tuple[Any, QMPEvent]]
"""With each event the Monitor, of whatever kind, that told it."""


def event_time(event: QMPEvent) -> float:
    """Seconds since the epoch, by QEMU's own clock (QMP specification, "timestamp")."""
    stamp = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6


class Monitor:
    """`vm` runs in that QEMU, or will."""

    def __init__(self, vm: str, qmp: Any, rest: Path, rest_seen: Path | None = None) -> None:
        """`rest`: where it listens for what a VM lacks, as we see it; `rest_seen`, as it does."""
        self.vm = vm
        self.rest, self.rest_seen = rest, rest_seen or rest
        self.kept: list[Throttle] = []
        """Streams that must stay open while it lives: see `qemu.postcopy`."""
        self._qmp = qmp
        self._subscribers: list[EventQueue] = []

    @property
    def alive(self) -> bool:
        raise NotImplementedError

    async def migration_status(self) -> str:
        """The state of its last migration; "none" before the first."""
        return str((await self.execute("query-migrate")).get("status", "none"))

    async def set_capability(self, name: str, on: bool) -> None:
        """Switch one of QEMU's migration capabilities on or off."""
        capability = {"capability": name, "state": on}
        await self.execute("migrate-set-capabilities", capabilities=[capability])

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command; "_" in the arguments' names stand for "-". Raises HypervisorError."""
        return await self.command(
            command, {name.replace("_", "-"): value for name, value in arguments.items()}
        )

    async def command(self, command: str, arguments: dict[str, Any], *, out_of_band: bool = False) -> Any:
        """The same, with arguments whose names are QEMU's. `out_of_band`: it answers even where nothing else
        is answered."""
        how = {"oob": True} if out_of_band else {}
        try:
            async with asyncio.timeout(COMMAND_LIMIT):
                return await self._qmp.execute(command, arguments or None, **how)
        except TimeoutError as error:
            raise self.error(f"no answer to {command} within {COMMAND_LIMIT:.0f} s") from error
        except ExecuteError as error:
            raise self.error(f"{command} was rejected: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            if not self.alive:
                raise self.error(f"{command}: QEMU has ended{self.last_words()}") from error
            raise self.error(f"{command}: {error}") from error

    async def give(self, end: socket.socket, name: str = "memory") -> str:
        """Give QEMU a socket of ours; returns what it is called in a migration. We may close it then."""
        with contextlib.suppress(QMPError, OSError):  # It has ended: who asks it for anything hears that.
            self._qmp.send_fd_scm(end.fileno())
        await self.execute("getfd", fdname=name)
        return f"fd:{name}"

    @contextlib.contextmanager
    def events_into(self, queue: EventQueue) -> Iterator[None]:
        """Put the machine's events into the queue from now on; earlier ones are left out.

        That matters to a VM that was migrated here: among its earlier events is a completed migration.
        """
        self._subscribers.append(queue)
        try:
            if not self.alive:
                queue.put_nowait((self, {"event": EXITED}))
            yield
        finally:
            self._subscribers.remove(queue)

    def publish(self, event: QMPEvent) -> None:
        for queue in self._subscribers:
            queue.put_nowait((self, event))

    def error(self, what: str) -> HypervisorError:
        return HypervisorError(f"VM {self.vm}, QEMU: {what}")

    def last_words(self) -> str:
        """What it said as it ended, as the end of a sentence."""
        return ""


async def connect(qmp: QMPClient, monitor: str) -> socket.socket:
    """Connect to the monitor of a QEMU that runs; again where it told an event just then, which the library
    takes for the answer to its first question. Returns our end. Raises QMPError, OSError, EOFError.
    """
    while True:
        ours = socket.socket(socket.AF_UNIX)
        ours.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(ours, monitor)
            await qmp.connect(ours)
            return ours
        except ConnectError as error:
            asked = error.__cause__
            if not isinstance(asked, NegotiationError) or not isinstance(asked.__cause__, AssertionError):
                raise
        except OSError:
            ours.close()
            raise
        await asyncio.sleep(NEGOTIATE_AGAIN)


async def disconnect(qmp: Any) -> None:
    """Close the connection. At the end of a QEMU the library reports its closing as an error; it is none.

    Nor is there a reason to wait for a library that does not end it.
    """
    closing = asyncio.ensure_future(qmp.disconnect())
    await asyncio.wait({closing}, timeout=DISCONNECT_LIMIT)
    if not closing.done():
        closing.cancel()
        return
    with contextlib.suppress(QMPError, OSError, EOFError):
        closing.result()

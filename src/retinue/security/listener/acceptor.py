"""Accepts the connections of one listener: so many a second, and so many in all.

asyncio's own servers accept whatever waits, and where there is no descriptor left they try again, and report
it, a thousand times a second. Here a listener has a share of the descriptors, which the other listeners
leave to it. A connection too many makes the oldest stranger go; where there are no strangers it is turned
away itself. What is more than CONNECTIONS_A_SECOND waits in the system's queue, so that who is connected has
its turn, too.
"""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable

import structlog

from retinue.core.limits import CONNECTIONS_A_SECOND
from retinue.security.listener import descriptors
from retinue.security.listener.pending import PendingConnections
from retinue.security.listener.rejections import Rejection
from retinue.socket_addresses import resolved

BACKLOG = 1024
BATCH = 16
"""Connections that are accepted before others have their turn."""
NONE_LEFT_SECONDS = 0.1
"""Pause where there is no descriptor."""
_NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = structlog.get_logger()

Reject = Callable[[str, str, str], None]
"""(peer, reason, Rejection): counts and logs a connection that is turned away."""


class Acceptor:
    """Listens at one address, and gives each connection a protocol that `make` makes.

    `part` of all descriptors are for this listener's connections. The `pending` ones are never more than
    half of those.
    """

    def __init__(
        self,
        make: Callable[[], asyncio.BaseProtocol],
        pending: PendingConnections,
        reject: Reject,
        part: float,
    ) -> None:
        self._make = make
        self._pending = pending
        self._reject = reject
        self._part = part
        self._most = 0
        self._listening: list[socket.socket] = []
        self._paused: set[asyncio.TimerHandle] = set()
        self._open: list[socket.socket] = []
        self._spare: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, host: str | None, port: int) -> int:
        """Listen; the port, which the system chooses when given 0. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._most = descriptors.share(self._part)
        self._pending.limit_to(max(1, self._most // 2))
        found = await resolved(host, port)
        try:
            for family, type, protocol, _, address in dict.fromkeys(found):
                try:
                    listening = socket.socket(family, type, protocol)
                except OSError:
                    continue  # The system has no IPv6.
                self._listening.append(listening)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listening.setblocking(False)
                listening.bind((address[0], port or self.port, *address[2:]))
                listening.listen(BACKLOG)
        except OSError:
            self.close()
            raise
        if not self._listening:
            raise OSError(errno.EADDRNOTAVAIL, f"there is no address {host}")
        self._spare = os.open(os.devnull, os.O_RDONLY)
        for listening in self._listening:
            loop.add_reader(listening.fileno(), self._accept, listening)
        return self.port

    @property
    def at(self) -> tuple[str, int]:
        """Where it listens."""
        host, port, *_ = self._listening[0].getsockname()
        return host, port

    @property
    def port(self) -> int:
        return self.at[1] if self._listening else 0

    def close(self) -> None:
        """Stop listening; connections that stand are the protocols'."""
        for pause in self._paused:
            pause.cancel()
        for listening in self._listening:
            asyncio.get_running_loop().remove_reader(listening.fileno())
            listening.close()
        self._listening.clear()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    # ---- connections coming ----

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                connection, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._not_accepted(listening, error)
                return
            self._take(connection, _name(address))
        self._pause(listening, BATCH / CONNECTIONS_A_SECOND)

    def _take(self, connection: socket.socket, peer: str) -> None:
        if len(self._open) >= self._most:
            self._open = [one for one in self._open if one.fileno() >= 0]
        if len(self._open) >= self._most and not self._pending.crowd_out():
            self._reject(peer, f"{len(self._open)} connections are open here already", Rejection.CROWDED)
            connection.close()
            return
        connection.setblocking(False)
        self._open.append(connection)
        task = asyncio.get_running_loop().create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._make, connection)
        except OSError as error:
            log.warning("listener.connection_lost", error=str(error))
            connection.close()

    def _not_accepted(self, listening: socket.socket, error: OSError) -> None:
        """Without a descriptor the connection would wait for ever: the spare one is for turning it away."""
        if error.errno in _NONE_LEFT and self._spare is not None:
            os.close(self._spare)
            self._spare = None
            with contextlib.suppress(OSError):
                connection, address = listening.accept()
                connection.close()
                self._reject(_name(address), f"{error.strerror}", Rejection.CROWDED)
            self._pending.crowd_out()
        log.error("listener.not_accepted", port=self.port, error=str(error))
        with contextlib.suppress(OSError):
            self._spare = self._spare if self._spare is not None else os.open(os.devnull, os.O_RDONLY)
        self._pause(listening, NONE_LEFT_SECONDS)

    def _pause(self, listening: socket.socket, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening.fileno())

        def go_on() -> None:
            self._paused.discard(pause)
            loop.add_reader(listening.fileno(), self._accept, listening)

        pause = loop.call_later(seconds, go_on)
        self._paused.add(pause)


def _name(address: object) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        host = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
        return f"{host}:{address[1]}"
    return str(address)

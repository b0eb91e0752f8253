"""A throttle in the memory stream of an outgoing migration: QEMU waits while nobody reads what it sends.

QEMU's own limit, `max-bandwidth`, takes effect every 100 ms, which would add to the downtime. A full socket
stops QEMU at once, and QEMU goes on at once when the socket is read again.

How far QEMU runs ahead of the reader: what the socket holds, and what QEMU has collected to be sent, 32 KiB
or 64 pieces, whichever is reached first (IO_BUF_SIZE and MAX_IOV_SIZE of its QEMUFile). In bytes that is
little, in pages it may be much: an empty page takes 9 bytes.
"""

import asyncio
import contextlib
import socket

from retinue.hypervisor.aio import close_socket

PAGE = 4096
EMPTY_PAGE = 9
"""Bytes of the stream for a page of zeros: its place with flags, and the zero."""
LARGEST_STEP, SMALLEST_STEP = 1 << 20, 1 << 15
"""Bytes read between two looks at what remains. Less than QEMU collects would not stop it any earlier."""


class Throttle:
    """Reads the stream that QEMU writes. `theirs` is QEMU's end, which is given to it, or a copy of it where
    QEMU has it from somebody else; after that call `release_qemu_end`."""

    def __init__(self, ends: tuple[socket.socket, socket.socket] | None = None) -> None:
        """`ends`: ours and QEMU's, where they are made already."""
        self._ours, self.theirs = ends or socket.socketpair()
        self._ours.setblocking(False)
        self.read_bytes = 0
        self._for_nobody: asyncio.Task[None] | None = None

    def set_window(self, nbytes: int) -> None:
        """Let the socket hold about `nbytes` at most, if it is still ours to set."""
        if self.theirs.fileno() < 0:
            return
        # The kernel doubles what it is told, to make room for its own bookkeeping (socket(7), SO_SNDBUF).
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, nbytes // 4)

    def release_qemu_end(self) -> None:
        """Close our copy of QEMU's end: from now on the stream ends when QEMU ends it."""
        self.theirs.close()

    async def read(self, nbytes: int) -> bytes:
        """Up to `nbytes` bytes, at least one; none at the end of the stream."""
        chunk = await asyncio.get_running_loop().sock_recv(self._ours, nbytes)
        self.read_bytes += len(chunk)
        return chunk

    async def readable(self) -> None:
        """Return when QEMU has written something, or has ended the stream."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()

        def is_written() -> None:
            if not written.done():
                written.set_result(None)

        loop.add_reader(self._ours, is_written)
        try:
            await written
        finally:
            loop.remove_reader(self._ours)

    async def write(self, nbytes: bytes) -> None:
        """Give QEMU what the target's answers it, if it still listens."""
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self._ours, nbytes)

    def no_more_answers(self) -> None:
        """The target has said all: QEMU finds the end."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_WR)

    async def _read_for_nobody(self) -> None:
        """Let QEMU be rid of all it sends, so that it can be told to stop."""
        with contextlib.suppress(OSError):
            while await self.read(LARGEST_STEP):
                pass

    def keep_open(self) -> None:
        """Until it is closed: read on for nobody, for a QEMU that cannot write does not answer."""
        self._for_nobody = asyncio.create_task(self._read_for_nobody(), name="read for nobody")

    def let_wait(self) -> None:
        """Read no more of what is kept open: who writes waits."""
        if self._for_nobody is not None:
            self._for_nobody.cancel()

    def close(self) -> None:
        self.let_wait()
        for end in (self._ours, self.theirs):
            close_socket(end)


def step_for(remaining: int, held_back: int) -> int:
    """How many bytes may be read before the next look, so that `held_back` bytes of RAM still remain then.

    As if all that remains were empty pages.
    """
    pages = max(0, remaining - held_back) // PAGE
    return min(LARGEST_STEP, max(SMALLEST_STEP, pages * EMPTY_PAGE))


def nobodys_end() -> socket.socket:
    """In place of QEMU's end, of which there is no copy yet."""
    none = socket.socket(socket.AF_UNIX)
    none.close()
    return none

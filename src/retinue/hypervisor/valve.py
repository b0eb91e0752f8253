"""A valve in the memory stream of a departing QEMU: what nobody reads, QEMU cannot send, so it waits.

QEMU's own brake, `max-bandwidth`, is looked at every 100 ms; a VM that stands still stands so much longer.
A socket that is full stops QEMU at once, and lets it go on at once when it is read again.

How far QEMU runs ahead of the reader: what the socket holds, and what QEMU has collected to be sent, 32 KiB
or 64 pieces, whichever is reached first (IO_BUF_SIZE and MAX_IOV_SIZE of its QEMUFile). In octets that is
little, in pages it may be much: an empty page takes 9 octets.
"""

import asyncio
import contextlib
import socket

PAGE = 4096
EMPTY_PAGE = 9
"""Octets of the stream for a page of zeros: its place with flags, and the zero."""
LARGEST_STEP, SMALLEST_STEP = 1 << 20, 1 << 15
"""Octets read between two looks at what remains. Less than QEMU collects would not stop it any earlier."""


class Valve:
    """Reads QEMU's end of the stream. `theirs` is what QEMU is given; call `handed_over` when it has it."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        self.read_octets = 0

    def narrow(self, octets: int) -> None:
        """Let the socket hold no more than about so much."""
        # The kernel doubles what it is told, to make room for its own bookkeeping (socket(7), SO_SNDBUF).
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, octets // 4)

    def handed_over(self) -> None:
        """Let go of QEMU's end: from now on the stream ends when QEMU ends it."""
        self.theirs.close()

    async def read(self, octets: int) -> bytes:
        """Up to so many, at least one; none at the end of the stream."""
        chunk = await asyncio.get_running_loop().sock_recv(self._ours, octets)
        self.read_octets += len(chunk)
        return chunk

    def close(self) -> None:
        for end in (self._ours, self.theirs):
            with contextlib.suppress(OSError):
                end.close()


def step_for(remaining: int, held_back: int) -> int:
    """How many octets may be read before the next look, so that `held_back` octets of RAM still remain then.

    As if all that remains were empty pages.
    """
    pages = max(0, remaining - held_back) // PAGE
    return min(LARGEST_STEP, max(SMALLEST_STEP, pages * EMPTY_PAGE))

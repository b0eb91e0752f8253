"""A disk's content on its way to another server: what two QEMUs say to each other, through their agents.

They speak NBD, each with a socket of its own agent; between the agents it goes in frames over a connection
like that of the memory, with the same certificates. NBD is questions and answers, so an end that is gone is
known by a question that has none.
"""

import asyncio
import contextlib
import socket

from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.memory_channel import LONGEST_MEMORY, Channel
from retinue.hypervisor.nbd_questions import NbdQuestions

STALL_LIMIT = 20.0
"""Seconds that a question may go without any answer, or an answer without its rest; a VM that writes to the
disk waits as long."""
LOOK_SECONDS = 0.5


async def relay(channel: Channel, end: socket.socket, stall_limit: float | None = None) -> None:
    """Pass on what comes from either side until one of them ends; both are closed then.

    `stall_limit` is for the side that asks. Raises HypervisorError where the far side does not answer, or
    breaks off.
    """
    end.setblocking(False)
    passing = _Relay(channel, end)
    work = [passing.out(), passing.back()]
    if stall_limit is not None:
        work.append(passing.watch(stall_limit))
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except OSError:
        pass  # The near side is gone, which is its business.
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        end.close()
        channel.abort()


class _Relay:
    def __init__(self, channel: Channel, end: socket.socket) -> None:
        self._channel, self._end = channel, end
        self._questions = NbdQuestions()
        self._waits: float | None = None
        """Since when nothing has come of what the far side owes: an answer, or the rest of one. Where the two
        do not speak as we know it, any answer is taken for a whole one."""

    async def out(self) -> None:
        loop = asyncio.get_running_loop()
        while chunk := await loop.sock_recv(self._end, LONGEST_MEMORY):
            self._questions.asked(chunk)
            if self._waits is None and (self._questions.is_owed or not self._questions.followed):
                self._waits = loop.time()
            await self._channel.send_memory(chunk)
        with contextlib.suppress(HypervisorError):
            await self._channel.send_memory(b"")

    async def back(self) -> None:
        loop = asyncio.get_running_loop()
        while chunk := await self._channel.receive():
            if not isinstance(chunk, bytes):
                raise HypervisorError("the other end sends no content of a disk where it was due")
            self._questions.answered(chunk)
            is_owed = self._questions.followed and self._questions.is_owed
            self._waits = loop.time() if is_owed else None
            await loop.sock_sendall(self._end, chunk)

    async def watch(self, limit: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(LOOK_SECONDS, limit / 4))
            if self._waits is not None and loop.time() - self._waits > limit:
                raise HypervisorError(f"the other end has not answered for {limit:.0f} s")

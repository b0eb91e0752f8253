"""What is left of a VM's memory at its source once it runs at the target, by post-copy: sent, and told of."""

import asyncio
import contextlib
import time
from typing import Any

from retinue.host.errors import HostError
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import Copying, OnEvent
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.passes import Copier
from retinue.hypervisor.throttle import Throttle

STEP = 1 << 17
"""Bytes read at a stroke of the stream: a page that the VM waits for comes after what is on its way."""
LOOK_SECONDS = 0.25
"""Between two looks at what is left."""
MOST_UNHEARD = 16
"""Messages of the target's agent that nobody has asked for: it has one to say."""
STALL_LIMIT = 120.0
"""Seconds without a byte of the rest after which it will not come: the VM has ended."""


async def send_the_rest(
    copier: Copier,
    throttle: Throttle,
    passing: "asyncio.Task[None]",
    completed: "asyncio.Future[None]",
    failed: "asyncio.Future[str]",
    copy_pass: int,
    on_event: OnEvent,
) -> None:
    """Return when the target has all of the memory of the VM, which runs there; tell how much is left.

    `passing` passes QEMU's stream on to its end; `completed` and `failed` are what the source tells of it.
    Raises HypervisorError: it will not come.
    """
    moved_at, seen, left = time.monotonic(), throttle.read_bytes, -1
    watched: set[asyncio.Future[Any]] = {completed, failed, passing}
    while not completed.done():
        await asyncio.wait(watched, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if passing.done():
            watched.discard(passing)
            passing.result()
        if failed.done() and not completed.done():
            raise HypervisorError(failed.result())
        if throttle.read_bytes != seen:
            moved_at, seen = time.monotonic(), throttle.read_bytes
        elif time.monotonic() - moved_at > STALL_LIMIT:
            raise HypervisorError(f"nothing of it has gone over for {STALL_LIMIT:.0f} s")
        with contextlib.suppress(HostError):  # A figure only; QEMU may have done with it.
            over = completed.done() or passing.done()
            left = 0 if over else (await copier.progress()).remaining
            on_event(Copying(copier.vm, time.time(), copy_pass, left, 0, postcopy=True))
    await passing
    if left:  # All of it may have gone over before anybody looked.
        on_event(Copying(copier.vm, time.time(), copy_pass, 0, 0, postcopy=True))


class Answers:
    """What comes from the target meanwhile: its QEMU's answers, for ours, and its agent's messages."""

    def __init__(self, channel: Channel, throttle: Throttle) -> None:
        self._channel = channel
        self._throttle = throttle
        self._messages: asyncio.Queue[dict[str, Any] | HostError] = asyncio.Queue()

    async def hear(self) -> None:
        """Until the other end hangs up."""
        try:
            while True:
                received = await self._channel.receive()
                if isinstance(received, dict):
                    if self._messages.qsize() >= MOST_UNHEARD:
                        raise HypervisorError("the target says more than is asked for")
                    self._messages.put_nowait(received)
                elif received:
                    await self._throttle.write(received)
        except HostError as error:
            self._messages.put_nowait(error)

    async def message(self) -> dict[str, Any]:
        """The next one. Raises ChannelError."""
        message = await self._messages.get()
        if isinstance(message, HostError):
            self._messages.put_nowait(message)
            raise message
        return message

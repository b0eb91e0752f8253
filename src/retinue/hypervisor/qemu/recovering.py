"""The way between two QEMUs breaks in the middle of post-copy: they go on by another one.

    source's agent                                   target's agent
    closes its end of QEMU's stream                  the same; both QEMUs say "postcopy-paused"
    connects once more (`Channel.again`)         >   takes it in
                                                     has QEMU listen (migrate-recover), and connects
                                                 <   "again"
    has QEMU send on (migrate, with `resume`)

Meanwhile the VM runs at the target, and stands still as soon as it touches what has not come. QEMU there may
not answer its monitor then, whose main loop waits for a page, too; but it takes this command out of band. The
two QEMUs tell each other which pages have arrived: what was on its way when the way broke is sent again.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from retinue.host.errors import HostError
from retinue.hypervisor.aio import close_socket
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.qemu.machine import QemuMachine
from retinue.hypervisor.throttle import Throttle

AGAIN_LIMIT = 30.0
"""Seconds for another way: then the VM, which lacks some of its memory, is ended."""
PAUSE_LIMIT = 20.0
"""Seconds for a QEMU to find that its stream has ended."""
AGAIN_SECONDS = 0.5
"""Between two attempts."""

log = structlog.get_logger()

T = TypeVar("T")

Again = Callable[[], Awaitable[Channel]]


async def at_source(machine: QemuMachine, broken: Channel, paused: asyncio.Event) -> tuple[Channel, Throttle]:
    """QEMU here sends on, through the throttle, to who is at the other end of the channel.

    `paused` is set while QEMU says that its stream is broken. Raises HypervisorError.
    """

    async def attempt(again: Again) -> tuple[Channel, Throttle]:
        channel = await again()
        throttle = Throttle()
        try:
            answer = await channel.receive_message()
            if answer["type"] != "again":
                raise HypervisorError(f"the target says {answer['type']!r}, not that it goes on")
            uri = await machine.give(throttle.theirs)
            await machine.execute("migrate", uri=uri, resume=True)
        except BaseException:
            throttle.close()
            channel.abort()
            raise
        throttle.release_qemu_end()
        return channel, throttle

    return await _continued(machine, broken, paused, attempt)


async def at_target(
    machine: QemuMachine, broken: Channel, paused: asyncio.Event
) -> tuple[Channel, socket.socket]:
    """QEMU here takes in what comes by the socket, from who is at the other end of the channel.

    See `at_source`.
    """

    async def attempt(again: Again) -> tuple[Channel, socket.socket]:
        channel = await again()
        into = socket.socket(socket.AF_UNIX)
        into.setblocking(False)
        try:
            machine.files.rest.unlink(missing_ok=True)
            await machine.command("migrate-recover", {"uri": f"unix:{machine.files.rest}"}, out_of_band=True)
            await asyncio.get_running_loop().sock_connect(into, str(machine.files.rest))
            await channel.send_message("again")
        except BaseException as error:
            close_socket(into)
            channel.abort()  # Its source waits for a word, and would find no other connection meanwhile.
            if isinstance(error, OSError):
                raise HypervisorError(f"QEMU does not take the rest of the memory in: {error}") from error
            raise
        finally:
            machine.files.rest.unlink(missing_ok=True)
        return channel, into

    return await _continued(machine, broken, paused, attempt)


async def _continued(
    machine: QemuMachine,
    broken: Channel,
    paused: asyncio.Event,
    attempt: Callable[[Again], Awaitable[tuple[Channel, T]]],
) -> tuple[Channel, T]:
    again, why = broken.again, "there is no other way to the other end"
    broken.abort()
    if again is None:
        raise HypervisorError(why)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(AGAIN_LIMIT):
            while True:
                async with asyncio.timeout(PAUSE_LIMIT):
                    await paused.wait()
                try:
                    channel, end = await attempt(again)
                except HostError as error:
                    why = str(error)
                    await asyncio.sleep(AGAIN_SECONDS)
                else:
                    channel.again, channel.compress = again, broken.compress
                    log.warning("migration.goes_on", vm=machine.spec.id)
                    return channel, end
    raise HypervisorError(f"no other way to the other end within {AGAIN_LIMIT:.0f} s: {why}")

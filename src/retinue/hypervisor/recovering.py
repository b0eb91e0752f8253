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
import socket
from collections.abc import Awaitable, Callable

from retinue.hypervisor.aio import close_socket
from retinue.hypervisor.another_way import another_way
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.monitor import Monitor
from retinue.hypervisor.throttle import Throttle

PAUSE_LIMIT = 20.0
"""Seconds for a QEMU to find that its stream has ended."""


async def at_source(machine: Monitor, broken: Channel, paused: asyncio.Event) -> tuple[Channel, Throttle]:
    """QEMU here sends on, through the throttle, to who is at the other end of the channel.

    `paused` is set while QEMU says that its stream is broken. Raises HypervisorError.
    """

    async def attempt(channel: Channel) -> Throttle:
        throttle = Throttle()
        try:
            answer = await channel.receive_message()
            if answer["type"] != "again":
                raise HypervisorError(f"the target says {answer['type']!r}, not that it goes on")
            uri = await machine.give(throttle.theirs)
            await machine.execute("migrate", uri=uri, resume=True)
        except BaseException:
            throttle.close()
            raise
        throttle.release_qemu_end()
        return throttle

    return await another_way(machine.vm, broken, _is_set(paused), attempt)


async def at_target(
    machine: Monitor, broken: Channel, paused: asyncio.Event
) -> tuple[Channel, socket.socket]:
    """QEMU here takes in what comes by the socket, from who is at the other end of the channel.

    See `at_source`.
    """

    async def attempt(channel: Channel) -> socket.socket:
        into = socket.socket(socket.AF_UNIX)
        into.setblocking(False)
        try:
            machine.rest.unlink(missing_ok=True)
            await machine.command("migrate-recover", {"uri": f"unix:{machine.rest_seen}"}, out_of_band=True)
            await asyncio.get_running_loop().sock_connect(into, str(machine.rest))
            await channel.send_message("again")
        except BaseException as error:
            close_socket(into)
            if isinstance(error, OSError):
                raise HypervisorError(f"QEMU does not take the rest of the memory in: {error}") from error
            raise
        finally:
            machine.rest.unlink(missing_ok=True)
        return into

    return await another_way(machine.vm, broken, _is_set(paused), attempt)


def _is_set(paused: asyncio.Event) -> Callable[[], Awaitable[object]]:
    async def until_paused() -> None:
        try:
            async with asyncio.timeout(PAUSE_LIMIT):
                await paused.wait()
        except TimeoutError:
            raise HypervisorError("its QEMU does not find that its stream has ended") from None

    return until_paused

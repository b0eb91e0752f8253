"""The agents' connection breaks in the middle of post-copy through libvirt: libvirt goes on by another one.

    source's agent                                   target's agent
    closes its end of QEMU's stream                  the same; libvirt: "post-copy failed", at both ends
    connects once more (`Channel.again`)         >   takes it in
    tells libvirt to go on with the migration        (the target's libvirt has its QEMU listen once more)
    libvirt connects to our socket: "again"      >   connects to QEMU's

A target's QEMU whose main loop waits for a page, as the devices of a busy guest make it do, does not answer
its libvirt; QEMU would take the command out of band, but libvirt (9.0) does not send it so. Then there is no
other way.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from retinue.hypervisor.aio import first_of
from retinue.hypervisor.another_way import another_way
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.libvirt.directory import Memory
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.throttle import Throttle, nobodys_end

FLAG = 1 << 19
"""VIR_MIGRATE_POSTCOPY_RESUME."""
END_LIMIT = 20.0
"""Seconds for libvirt to find that the stream has ended."""


class _AllWentOverError(Exception):
    """libvirt has ended the migration well, and needs no other way."""


class Resumed(NamedTuple):
    """A migration that goes on: libvirt's call, and the stream that it sends."""

    migration: asyncio.Task[None]
    throttle: Throttle


async def at_source(
    vm: str,
    broken: Channel,
    memory: Memory,
    migration: asyncio.Task[None],
    go_on: Callable[[], Coroutine[Any, Any, None]],
) -> tuple[Channel, Resumed] | None:
    """libvirt here sends on to who is at the other end of the channel. None: all had gone over.

    `migration` is libvirt's call, which has failed or is about to; `go_on` has libvirt go on. Raises
    HypervisorError.
    """
    latest = migration

    async def ended() -> None:
        if not latest.done():
            await asyncio.wait({latest}, timeout=END_LIMIT)
        if not latest.done():
            raise HypervisorError("libvirt does not end the migration whose stream is broken")
        if latest.exception() is None:
            raise _AllWentOverError

    async def attempt(channel: Channel) -> Resumed:
        nonlocal latest
        with memory.listen() as listener:
            latest = asyncio.create_task(go_on(), name=f"libvirt goes on with {vm}")
            accepting = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(listener))
            try:
                await first_of(accepting, latest)
                if not accepting.done():
                    raise HypervisorError("libvirt has ended the migration before it went on")
                await channel.send_message("again")
            finally:
                accepting.cancel()
                memory.clear()
        stream, _ = accepting.result()
        stream.setblocking(False)
        return Resumed(latest, Throttle((stream, nobodys_end())))

    try:
        return await another_way(vm, broken, ended, attempt)
    except _AllWentOverError:
        return None


async def at_target(vm: str, broken: Channel, memory: Memory) -> tuple[Channel, socket.socket]:
    """libvirt's QEMU here takes in what comes by the socket, from who is at the other end of the channel.

    Raises HypervisorError.
    """

    async def attempt(channel: Channel) -> socket.socket:
        said = await channel.receive_message()
        if said["type"] != "again":
            raise HypervisorError(f"the source says {said['type']!r}, not that it goes on")
        return await memory.connect()

    async def ready() -> None:
        """Its libvirt is asked by the source's, when that goes on."""

    return await another_way(vm, broken, ready, attempt)

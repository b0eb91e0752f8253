"""The target's half of a live migration: take the memory in, and run the VM once it is the target's own.

QEMU was started to wait (`-S`), so a VM that has arrived does not run by itself. It is made to when the
source has said that it is the target's; a target that fails before that says so, and the VM runs on at the
source.
"""

import asyncio
import contextlib
import socket

import structlog

from retinue.hypervisor.both import both
from retinue.hypervisor.channel import Channel
from retinue.hypervisor.interface import HandedOverError, HypervisorError, OnEvent, Resumed
from retinue.hypervisor.machine import GONE, EventQueue, QemuMachine, event_time
from retinue.hypervisor.unbroken import to_its_end

log = structlog.get_logger()


async def arrive(machine: QemuMachine, channel: Channel, on_event: OnEvent) -> float:
    """See Hypervisor.arrive."""
    heard: EventQueue = asyncio.Queue()
    ran = False
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        with machine.events_into(heard):
            capabilities = [{"capability": "events", "state": True}]
            await machine.execute("migrate-set-capabilities", capabilities=capabilities)
            with theirs:
                uri = await machine.give(theirs)
                await machine.execute("migrate-incoming", uri=uri)
            await both(_take_in(machine, channel, ours), _loaded(heard))
            ran = True
            at = await to_its_end(_run(machine, heard))  # A VM told to run is not called off any more.
    except BaseException as error:
        machine.kill()
        await to_its_end(machine.quit())
        if not ran:  # else it may have run, and the source must not run it again
            with contextlib.suppress(HypervisorError):
                await channel.say("failed", reason=str(error) or "it was called off")
        elif isinstance(error, HypervisorError):
            raise HandedOverError(f"VM {machine.spec.id} had been told to run: {error}") from error
        raise
    else:
        on_event(Resumed(machine.spec.id, at))
        try:
            await channel.say("runs", at=at)
        except HypervisorError as error:
            log.warning("the source does not hear that the VM runs", vm=machine.spec.id, error=str(error))
        return at
    finally:
        ours.close()
        await channel.close()


async def _take_in(machine: QemuMachine, channel: Channel, into: socket.socket) -> None:
    """All of the memory, and then the word that the VM is ours."""
    loop = asyncio.get_running_loop()
    while True:
        heard = await channel.receive()
        match heard:
            case b"":
                into.shutdown(socket.SHUT_WR)
            case bytes():
                try:
                    await loop.sock_sendall(into, heard)
                except OSError as error:
                    raise HypervisorError("the target does not take the memory") from error
            case {"word": "expect", "frames_a_second": int() | float() as rate}:
                await machine.make_room(rate)
            case {"word": "yours"}:
                return
            case other:
                raise HypervisorError(f"the source says {other['word']!r} in the middle of the memory")


async def _loaded(heard: EventQueue) -> None:
    while True:
        _, event = await heard.get()
        match event["event"], event.get("data", {}).get("status"):
            case "MIGRATION", "completed":
                return
            case "MIGRATION", "failed":
                raise HypervisorError("its QEMU cannot load what came")
            case name, _ if name == GONE:
                raise HypervisorError("its QEMU has ended")


async def _run(machine: QemuMachine, heard: EventQueue) -> float:
    await machine.execute("cont")
    return await _running(heard)


async def _running(heard: EventQueue) -> float:
    while True:
        _, event = await heard.get()
        if event["event"] == "RESUME":
            return event_time(event)
        if event["event"] == GONE:
            raise HypervisorError("its QEMU has ended")

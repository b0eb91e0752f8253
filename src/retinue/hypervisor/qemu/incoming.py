"""The target's half of a live migration: take the memory in, and run the VM once it is the target's own.

QEMU was started to wait (`-S`), so a VM that has arrived does not run by itself. The VM is started when the
source has handed it over; a target that fails before that says so, and the VM is resumed at the source.
"""

import asyncio
import contextlib
import socket

import structlog

from retinue.host.errors import HostError
from retinue.hypervisor.aio import both, run_to_completion
from retinue.hypervisor.errors import HandedOverError, HypervisorError
from retinue.hypervisor.interface import OnEvent, Resumed
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.qemu.machine import EXITED, EventQueue, QemuMachine, event_time

log = structlog.get_logger()


async def run_incoming(machine: QemuMachine, channel: Channel, on_event: OnEvent) -> float:
    """See Hypervisor.run_incoming."""
    events: EventQueue = asyncio.Queue()
    ran = False
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        with machine.events_into(events):
            capabilities = [{"capability": "events", "state": True}]
            await machine.execute("migrate-set-capabilities", capabilities=capabilities)
            with theirs:
                uri = await machine.give(theirs)
                await machine.execute("migrate-incoming", uri=uri)
            await both(_receive_memory(machine, channel, ours), _loaded(events))
            ran = True
            at = await run_to_completion(
                _run(machine, events)
            )  # A VM that has been told to run is not called off.
    except BaseException as error:
        machine.kill()
        await run_to_completion(machine.quit())
        if not ran:  # else it may have run, and the source must not run it again
            with contextlib.suppress(HostError):
                await channel.send_message("failed", reason=str(error) or "it was called off")
        elif isinstance(error, HostError):
            raise HandedOverError(f"VM {machine.spec.id} had been told to run: {error}") from error
        raise
    else:
        on_event(Resumed(machine.spec.id, at))
        try:
            await channel.send_message("running", at=at)
        except HostError as error:
            log.warning("migration.source_not_informed", vm=machine.spec.id, error=str(error))
        return at
    finally:
        ours.close()
        await channel.close()


async def _receive_memory(machine: QemuMachine, channel: Channel, into: socket.socket) -> None:
    """Receive all of the memory, and then the message that hands the VM over."""
    loop = asyncio.get_running_loop()
    while True:
        received = await channel.receive()
        match received:
            case b"":
                into.shutdown(socket.SHUT_WR)
            case bytes():
                try:
                    await loop.sock_sendall(into, received)
                except OSError as error:
                    raise HypervisorError("the target does not take the memory") from error
            case {"type": "expect", "frames_a_second": int() | float() as rate}:
                await machine.make_room(rate)
            case {"type": "handed_over"}:
                return
            case other:
                raise HypervisorError(f"the source says {other['type']!r} in the middle of the memory")


async def _loaded(events: EventQueue) -> None:
    while True:
        _, event = await events.get()
        match event["event"], event.get("data", {}).get("status"):
            case "MIGRATION", "completed":
                return
            case "MIGRATION", "failed":
                raise HypervisorError("its QEMU cannot load what came")
            case name, _ if name == EXITED:
                raise HypervisorError("its QEMU has ended")


async def _run(machine: QemuMachine, events: EventQueue) -> float:
    await machine.execute("cont")
    return await _running(events)


async def _running(events: EventQueue) -> float:
    while True:
        _, event = await events.get()
        if event["event"] == "RESUME":
            return event_time(event)
        if event["event"] == EXITED:
            raise HypervisorError("its QEMU has ended")

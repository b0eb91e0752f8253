"""What a migration's source hears from the target's agent: where its libvirt is, QEMU's answers, the end."""

import asyncio
import contextlib

import structlog

from retinue.core.migration.copying import Postcopy
from retinue.host.errors import HostError
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.libvirt.directory import Memory
from retinue.hypervisor.libvirt.disks_xml import DiskFiles, said_files, said_shared
from retinue.hypervisor.libvirt.migration_uri import accepted
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.throttle import Throttle

ANSWER_LIMIT = 30.0
"""Seconds for the message that says how the target's libvirt is reached."""
WHY_LIMIT = 2.0
"""Seconds for the target to take in why there is no migration; it learns of the end in any case."""

log = structlog.get_logger()


async def say_that_it_failed(channel: Channel, reason: str) -> None:
    """To the target, which would say otherwise, and maybe first, that the source has hung up."""
    with contextlib.suppress(HostError, TimeoutError):
        async with asyncio.timeout(WHY_LIMIT):
            await channel.send_message("failed", reason=reason)


class FarEnd:
    """The target of one migration, as its source hears it."""

    def __init__(self, channel: Channel, vm: str) -> None:
        self._channel = channel
        self._vm = vm
        loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[str] = loop.create_future()
        """Why the target's agent takes no part any more."""
        self.runs: asyncio.Future[float] = loop.create_future()
        """Since when the VM runs there."""
        self.files: dict[int, DiskFiles] = {}
        """By number, where the VM's private disks are there."""
        self.shared: dict[int, str] = {}
        """By number, its shared disks that are the same files there, as the target's agent has seen."""
        self.own_monitor = False
        """Its agent has a monitor of its own, and goes on past libvirt where the connection breaks."""
        self.asks_on = False
        """QEMU there has questions even when the VM runs: post-copy."""
        self.throttle: Throttle | None = None
        """To whom its answers go, once there is a stream."""
        self._end_is_due = False
        """QEMU there has said all, and QEMU here has yet to find the end."""

    def by_another_way(self, channel: Channel, throttle: Throttle) -> "FarEnd":
        """The same by another connection, in post-copy, while the VM runs there."""
        other = FarEnd(channel, self._vm)
        other.runs, other.files, other.shared = self.runs, self.files, self.shared
        other.asks_on, other.throttle, other.own_monitor = True, throttle, self.own_monitor
        return other

    async def why_lost(self, migration: "asyncio.Task[None]", limit: float) -> str:
        """Returns when the target has hung up, and libvirt here does not say in so many seconds that it has
        it all."""
        why = await asyncio.shield(self.broken)
        await asyncio.wait({migration}, timeout=limit)
        return why

    async def where_to(self, memory: Memory, own_control: str, how: Postcopy) -> tuple[str, Postcopy]:
        """How libvirt is to reach the target's, as the target's agent says it; and whether by post-copy.

        Raises HypervisorError.
        """
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                message = await self._channel.receive_message()
        except TimeoutError:
            raise HypervisorError("the target does not say how its libvirt is reached") from None
        if message["type"] != "target" or not isinstance(message.get("control"), str):
            raise HypervisorError(f"the target says {message['type']!r}, not how its libvirt is reached")
        if message.get("memory") != str(memory.inside):
            raise HypervisorError(
                f"the target takes the memory in at {message.get('memory')}, and here it is sent to "
                f"{memory.inside}: [libvirt] folder must be the same on both servers"
            )
        self.files, self.shared = said_files(message.get("disks", [])), said_shared(message.get("shared", []))
        if how is not Postcopy.NEVER and message.get("postcopy") is not True:
            if how is Postcopy.REQUIRED:
                raise HypervisorError("post-copy was asked for, and the target says that it cannot")
            log.warning("migration.by_precopy_alone", vm=self._vm, reason="the target cannot")
            how = Postcopy.NEVER
        return accepted(message["control"], own_control), how

    async def hear(self) -> None:
        """Bring the target's answers to QEMU here, and hear how it went there, until nothing more is due."""
        try:
            while (self.asks_on or not self.runs.done()) and not self.broken.done():
                match await self._channel.receive():
                    case bytes() as nbytes:
                        await self._answer(nbytes)
                    case {"type": "running", "at": float() | int() as at} as said if not self.runs.done():
                        self.own_monitor = said.get("own_monitor") is True
                        self.runs.set_result(float(at))
                        if self._end_is_due and self.throttle is not None:
                            self.throttle.no_more_answers()
                    case other:
                        why = other.get("reason", f"it says {other['type']!r}")
                        self.broken.set_result(f"the target could not take the VM in: {why}")
        except HostError as error:
            self.broken.set_result(str(error))

    async def _answer(self, nbytes: bytes) -> None:
        if self.throttle is None:
            raise HypervisorError("the target answers before it is asked")
        if nbytes:
            await self.throttle.write(nbytes)
        elif self.asks_on and not self.runs.done():
            self._end_is_due = True  # A QEMU that finds the end in post-copy takes no VM back: see `undoing`.
        else:
            self.throttle.no_more_answers()

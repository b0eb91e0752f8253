"""What a VM that somebody else migrates has not taken from its taps when it is stopped: it is handed on.

Nobody holds such a VM back, so it is stopped while packets come for it. These wait in its taps, which its
QEMU does not read while it stands still; and with its QEMU they would go. So this server's agent keeps the
taps (`HeldTaps`) as soon as libvirt tells that the VM was suspended, has the controller say when all switches
lead the VM's traffic to the target, looks whether its own does, and takes out what is there. The controller
sends it to the VM at the target: later than what has come there by then, but it is not lost.

Nothing is taken from a VM that runs here: it takes that itself. Where it runs again by the time that all is
taken, since its migration has failed, the controller is told when it knows that, and sends it here.

One frame of each tap is not there any more: a QEMU that has stopped its VM reads one, before it finds that
nobody wants it.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog

from retinue.agent.controller_link.vm_reports import VMReports
from retinue.agent.vms.local_vm import Switch
from retinue.core.limits import LARGEST_REPORT, MOST_WAITING, MOST_WAITING_BYTES
from retinue.core.migration.handing_back import in_batches, not_copied
from retinue.host.errors import HostError
from retinue.host.tap_queue import HeldTaps, holders_of
from retinue.host.timing import CACHE_LAG
from retinue.hypervisor.libvirt.connection import STATE_RUNNING, LibvirtHost
from retinue.hypervisor.libvirt.domain_xml import taps_of
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent

BACK_LIMIT = 2.0
"""Seconds for libvirt to tell that a VM which runs here was resumed."""

log = structlog.get_logger()


class Held(Protocol):
    """Taps whose frames wait (`HeldTaps`)."""

    def take(self, most: int, most_bytes: int) -> list[bytes]: ...

    def let_go(self) -> None: ...


def hold(taps: Sequence[str]) -> Held:
    """Raises HostError."""
    holders = holders_of(taps)
    if not all(tap in holders for tap in taps) or len(set(holders.values())) != 1:
        raise HostError(f"no process is seen that has {', '.join(taps) or 'its taps'} open")
    return HeldTaps(next(iter(holders.values())), taps)


class LeftInTaps:
    """Of all VMs of one server. `is_ours`: agents migrate that VM, and nothing is left when it is stopped."""

    def __init__(
        self,
        host: LibvirtHost,
        reports: VMReports,
        switch: Switch,
        is_ours: Callable[[str], bool],
        hold: Callable[[Sequence[str]], Held] = hold,
    ) -> None:
        self._host = host
        self._reports = reports
        self._switch = switch
        self._is_ours = is_ours
        self._hold = hold
        self._resumed: dict[str, asyncio.Event] = {}
        """By VM that is suspended here: set when it runs here again."""
        self._work: set[asyncio.Task[None]] = set()

    def hear(self, event: HypervisorEvent, reported: asyncio.Task[dict[str, Any]]) -> None:
        """Take in an event of libvirt, which has just been reported."""
        if event.kind is EventKind.RESUMED and event.vm in self._resumed:
            self._resumed[event.vm].set()
        if event.kind is EventKind.SUSPENDED and not self._is_ours(event.vm):
            self._resumed[event.vm] = asyncio.Event()
            work = asyncio.create_task(self._hand_on(event.vm, reported), name=f"left of {event.vm}")
            self._work.add(work)
            work.add_done_callback(self._work.discard)

    async def close(self) -> None:
        for work in self._work:
            work.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    async def _hand_on(self, vm: str, reported: asyncio.Task[dict[str, Any]]) -> None:
        resumed = self._resumed[vm]
        try:
            domain = await self._host.domain(vm)
            taps = () if domain is None else taps_of(await self._host.call(domain.XMLDesc, 0), vm)
            held = await asyncio.to_thread(self._hold, taps)
            try:
                migration = str((await reported).get("migration", ""))
                if migration:
                    await self._to_the_target(vm, migration, taps, held, resumed)
            finally:
                held.let_go()
        except HostError as error:
            log.warning("tap.not_handed_on", vm=vm, reason=str(error))
        finally:
            if self._resumed.get(vm) is resumed:
                del self._resumed[vm]

    async def _to_the_target(
        self, vm: str, migration: str, taps: Sequence[str], held: Held, resumed: asyncio.Event
    ) -> None:
        await self._reports.until_led_away(vm, migration)
        taken: list[bytes] = []
        try:
            if not await self._switch.until_bypassed(taps, ""):
                await asyncio.sleep(CACHE_LAG)
            if not await self._runs(vm):
                taken = not_copied(held.take(MOST_WAITING, MOST_WAITING_BYTES), "")
            if taken and await self._runs(vm):
                async with asyncio.timeout(BACK_LIMIT):
                    await resumed.wait()
        except TimeoutError:
            log.warning("tap.resumed_unseen", vm=vm, migration=migration)
        finally:
            *first, last = list(in_batches(taken, LARGEST_REPORT // 2)) or [[]]
            for frames in (*first, last):  # In base64 they are a third longer.
                await self._reports.hand_on(vm, migration, frames)
        log.info("tap.handed_on", vm=vm, migration=migration, frames=len(taken))

    async def _runs(self, vm: str) -> bool:
        """Raises HypervisorError where libvirt does not tell."""
        domain = await self._host.domain(vm)
        try:
            return domain is not None and (await self._host.call(domain.state))[0] == STATE_RUNNING
        except HostError:
            if await self._host.domain(vm) is not None:
                raise
            return False  # It ended meanwhile.

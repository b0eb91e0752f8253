"""What a VM that somebody else migrates has not taken from its taps when it is stopped: it is handed on.

Nobody holds such a VM back, so it is stopped while packets come for it. These wait in its taps, which its
QEMU does not read while it stands still; and with its QEMU they would go. So this server's agent keeps the
taps (`HeldTaps`) as soon as libvirt tells that the VM was suspended, has the controller say when all switches
lead the VM's traffic to the target, looks whether its own does, and takes out what is there. The controller
sends it to the VM at the target: later than what has come there by then, but it is not lost.

Nothing is taken from a VM that runs here: it takes that itself. Where it runs here again, since its migration
has failed, the controller is given what was taken when it knows that, and sends it here: also what it was
given before, which has gone with the target.

One frame of each tap is not there any more: a QEMU that has stopped its VM reads one, before it finds that
nobody wants it.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import structlog

from retinue.agent.controller_link.vm_reports import VMReports
from retinue.agent.vms.local_vm import Switch
from retinue.core.limits import LARGEST_REPORT, MOST_WAITING, MOST_WAITING_BYTES
from retinue.core.migration.handing_back import HANDED_BACK_IN, in_batches, not_copied
from retinue.host.errors import HostError
from retinue.host.tap_queue import HeldTaps, holders_of
from retinue.host.timing import CACHE_LAG
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.libvirt.connection import STATE_RUNNING, LibvirtHost
from retinue.hypervisor.libvirt.domain_xml import taps_of
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent

TOLD_LIMIT = 5.0
"""Seconds for the controller to take in that the VM was suspended. Taps that are held stand in the way of who
wants to have them anew, such as a VM that comes back."""
BACK_LIMIT = 2.0
"""Seconds for libvirt to tell that a VM which runs here was resumed, and the controller to take that in."""
STANDS_LIMIT = 60.0
"""Seconds that a VM may stand still before it runs here again, with what was taken."""
_ENDED = (EventKind.DEPARTED, EventKind.STOPPED, EventKind.FAILED)

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
        self._standing: dict[str, asyncio.Future[bool]] = {}
        """By VM that is suspended here: that it runs here again, which the controller knows; False: it has
        ended here."""
        self._work: set[asyncio.Task[None]] = set()

    def hear(self, event: HypervisorEvent, reported: asyncio.Task[dict[str, Any]]) -> None:
        """Take in an event of libvirt, whose report is on its way."""
        if event.kind is EventKind.RESUMED or event.kind in _ENDED:
            if (stands := self._standing.pop(event.vm, None)) is not None:
                reported.add_done_callback(partial(_settle, stands, event.kind is EventKind.RESUMED))
        elif event.kind is EventKind.SUSPENDED and not self._is_ours(event.vm):
            if event.vm in self._standing:
                return  # In post-copy libvirt says so twice, first without the reason.
            stands = self._standing[event.vm] = asyncio.get_running_loop().create_future()
            work = asyncio.create_task(self._hand_on(event.vm, reported, stands), name=f"left of {event.vm}")
            self._work.add(work)
            work.add_done_callback(self._work.discard)

    async def close(self) -> None:
        for work in self._work:
            work.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    async def _hand_on(
        self, vm: str, reported: asyncio.Task[dict[str, Any]], stands: "asyncio.Future[bool]"
    ) -> None:
        try:
            domain = await self._host.domain(vm)
            taps = () if domain is None else taps_of(await self._host.call(domain.XMLDesc, 0), vm)
            held = await asyncio.to_thread(self._hold, taps)
            try:
                await asyncio.wait({reported}, timeout=TOLD_LIMIT)
                if not reported.done():
                    raise HypervisorError(f"no controller is told of it within {TOLD_LIMIT:g} s")
                migration = str(reported.result().get("migration", ""))
                given = await self._to_the_target(vm, migration, taps, held, stands) if migration else []
            finally:
                held.let_go()
            if given:
                await asyncio.wait({stands}, timeout=STANDS_LIMIT)
                if stands.done() and stands.result():
                    await self._give(vm, migration, given)
                    log.info("tap.given_back", vm=vm, migration=migration, frames=len(given))
        except HostError as error:
            log.warning("tap.not_handed_on", vm=vm, reason=str(error))
        finally:
            if self._standing.get(vm) is stands:
                del self._standing[vm]

    async def _to_the_target(
        self, vm: str, migration: str, taps: Sequence[str], held: Held, stands: "asyncio.Future[bool]"
    ) -> list[bytes]:
        """Returns what the target has got."""
        await self._reports.until_led_away(vm, migration)
        taken: list[bytes] = []
        try:
            if not await self._switch.until_bypassed(taps, ""):
                await asyncio.sleep(CACHE_LAG)
            if not await self._runs(vm):
                taken = not_copied(held.take(MOST_WAITING, MOST_WAITING_BYTES), "")
            if taken and await self._runs(vm):
                await asyncio.wait({stands}, timeout=BACK_LIMIT)
                if not stands.done():
                    log.warning("tap.resumed_unseen", vm=vm, migration=migration)
        finally:
            given = await self._give(vm, migration, taken)
        log.info("tap.handed_on", vm=vm, migration=migration, frames=len(taken))
        return given

    async def _give(self, vm: str, migration: str, taken: Sequence[bytes]) -> list[bytes]:
        """Returns what was sent to the target. Where nothing was taken the controller is told that."""
        given: list[bytes] = []
        batches = list(in_batches(taken, LARGEST_REPORT // 2))  # In base64 they are a third longer.
        for frames in batches or [[]]:
            if await self._reports.hand_on(vm, migration, frames) not in HANDED_BACK_IN:
                given += frames
        return given

    async def _runs(self, vm: str) -> bool:
        """Raises HypervisorError where libvirt does not tell."""
        domain = await self._host.domain(vm)
        try:
            return domain is not None and (await self._host.call(domain.state))[0] == STATE_RUNNING
        except HostError:
            if await self._host.domain(vm) is not None:
                raise
            return False  # It ended meanwhile.


def _settle(stands: "asyncio.Future[bool]", runs: bool, _: object) -> None:
    if not stands.done():
        stands.set_result(runs)

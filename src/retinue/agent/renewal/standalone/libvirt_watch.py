"""The VMs of a server that libvirt runs for others: whose MACs and taps they have, and when a VM arrives.

libvirt has the only client of its QEMUs' monitors, so it is libvirt that is asked (compare `qemu_watch`).

    a domain runs when it is seen first          there("vm1", nics, arrived=False)
    a domain is started, or goes on              the same
    a domain runs that was brought here          there("vm1", nics, arrived=True)
    it ends, or leaves                           gone("vm1")

A domain is known by its UUID, whatever its interfaces are plugged into, and called by its name.
"""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from retinue.agent.renewal.standalone.qemu_watch import LONGEST_NAME, ForeignNIC, There
from retinue.core.model import ModelError
from retinue.core.model import mac as checked_mac
from retinue.host.errors import HostError
from retinue.hypervisor.libvirt.connection import LibvirtHost
from retinue.hypervisor.libvirt.domain_xml import macs_at_taps
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent

LONGEST_TAP = 15
"""Characters of an interface's name, as the kernel has them (IFNAMSIZ, less one)."""

log = structlog.get_logger()


def nics_of(xml: str) -> tuple[ForeignNIC, ...]:
    """What a domain's XML says of its interfaces at taps; others are left out."""
    found = []
    for mac, tap in macs_at_taps(xml):
        with contextlib.suppress(ModelError):
            if len(tap) <= LONGEST_TAP:
                found.append(ForeignNIC(checked_mac(mac.lower()), tap))
    return tuple(found)


class LibvirtWatch:
    """`host` must know its domains by their UUIDs (`domain_xml.uuids`)."""

    def __init__(self, host: LibvirtHost, there: There, gone: Callable[[str], None]) -> None:
        self._host, self._there, self._gone = host, there, gone
        self._names: dict[str, str] = {}
        """By UUID, of those that are here."""
        self._looking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """For ever. Raises LibvirtMissingError."""
        try:
            async with contextlib.aclosing(self._host.watch(self._is_back)) as events:
                async for event in events:
                    await self._take_in(event)
        finally:
            if self._looking is not None:
                self._looking.cancel()
                await asyncio.gather(self._looking, return_exceptions=True)
            await self._host.close()

    async def _take_in(self, event: HypervisorEvent) -> None:
        match event.kind:
            case EventKind.STARTED | EventKind.RESUMED:
                await self._is_here(event.vm, arrived=event.kind is EventKind.RESUMED)
            case EventKind.DEPARTED | EventKind.STOPPED | EventKind.FAILED:
                self._is_gone(event.vm)

    async def _is_here(self, uuid: str, *, arrived: bool) -> None:
        try:
            domain = await self._host.domain(uuid)
            if domain is None or not await self._host.runs(uuid):
                return
            name = str(await self._host.call(domain.name))[:LONGEST_NAME]
            nics = nics_of(await self._host.call(domain.XMLDesc, 0))
        except HostError as error:  # It has ended meanwhile, or is seen when libvirtd is back.
            log.warning("libvirt.not_followed", domain=uuid, error=str(error))
            return
        self._names[uuid] = name
        log.info("libvirt.found", vm=name, arrived=arrived)
        self._there(name, nics, arrived)

    def _is_gone(self, uuid: str) -> None:
        if (name := self._names.pop(uuid, None)) is not None:
            self._gone(name)

    def _is_back(self) -> None:
        """libvirtd is there again: what has ended meanwhile nobody has told."""
        self._looking = asyncio.create_task(self._look(), name="what libvirt still runs")

    async def _look(self) -> None:
        known = set(self._names)  # One that starts while it is looked is not among those that are found.
        with contextlib.suppress(HostError):
            still = {id for _, ids in await self._host.domains() for id in ids}
            for uuid in known - still:
                self._is_gone(uuid)


__all__ = ["LibvirtWatch", "nics_of"]

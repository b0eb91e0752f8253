"""A VM that libvirt runs on one server, or one that is incoming there."""

import asyncio
import contextlib
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from retinue.host.commands import run
from retinue.host.drain import frames_given
from retinue.host.errors import HostError
from retinue.host.taps import rx_frames
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import LINK_DOWN_SECONDS, NICSpec, RunState, VMSpec
from retinue.hypervisor.libvirt import postcopy
from retinue.hypervisor.libvirt.connection import (
    LACKS_MEMORY,
    STATE_PAUSED,
    STATE_RUNNING,
    STOPPED_FOR_POSTCOPY,
    LibvirtHost,
)
from retinue.hypervisor.libvirt.directory import Folder
from retinue.hypervisor.libvirt.disk_copies import take_disk
from retinue.hypervisor.libvirt.domain_xml import interfaces_with_link, memory_of, taps
from retinue.hypervisor.libvirt.nics import AFFECT_LIVE, set_nics
from retinue.hypervisor.libvirt.undoing import take_back
from retinue.hypervisor.memory_channel import Channel

PAUSED_MIGRATION = 2
"""virDomainPausedReason: on a source, stopped by a migration; on a target, not there yet."""
POSTCOPY_FAILED = (STATE_PAUSED, 13)
"""The same with its state: on a source, when the VM runs elsewhere, or nowhere any more."""


class LibvirtMachine:
    """A VM on one server, or one that is incoming there."""

    def __init__(self, host: LibvirtHost, spec: VMSpec, folder: Folder, *, postcopy: bool = False) -> None:
        self._host = host
        self._offers_postcopy = postcopy
        self._spec = spec
        self._folder = folder
        self.files = folder.files(spec.id)
        self.expects_postcopy = False

    @property
    def spec(self) -> VMSpec:
        return self._spec

    async def domain(self) -> Any:
        """Raises HypervisorError when libvirt has none here."""
        domain = await self._host.domain(self.spec.id)
        if domain is None:
            raise HypervisorError(f"server {self._host.name}: libvirt has no VM {self.spec.id}")
        return domain

    async def look_at_memory(self) -> None:
        """What libvirt says of one that has come here just now: others may have made it, with any."""
        # It may have ended by now, or who waits is called off too late; nothing hangs on this.
        with contextlib.suppress(HypervisorError, asyncio.CancelledError):
            xml = await self._host.call((await self.domain()).XMLDesc, 0)
            self._spec = replace(self._spec, memory_mib=memory_of(xml))

    async def state(self) -> RunState:
        state, reason = await self._host.call((await self.domain()).state)
        if state == STATE_RUNNING:
            return RunState.RUNNING
        if state == STATE_PAUSED:
            leaves = reason == PAUSED_MIGRATION or (state, reason) in LACKS_MEMORY
            return RunState.MOVED if leaves else RunState.PAUSED
        return RunState.BROKEN

    async def is_left_over(self) -> bool:
        """The VM was handed over by post-copy, which has failed: it never runs here again."""
        found = tuple(await self._host.call((await self.domain()).state))
        # Where its stream is kept open libvirt does not find that it has failed.
        return found == POSTCOPY_FAILED or (found in STOPPED_FOR_POSTCOPY and self.spec.id in self._host.kept)

    async def has_memory_to_give(self) -> bool:
        """The VM was stopped here for post-copy, and libvirt has not ended it."""
        domain = await self._host.domain(self.spec.id)
        return domain is not None and tuple(await self._host.call(domain.state)) in STOPPED_FOR_POSTCOPY

    async def resume(self) -> None:
        domain = await self.domain()
        found = tuple(await self._host.call(domain.state))
        if found in STOPPED_FOR_POSTCOPY:
            await take_back(self._host, self.spec.id)
        elif found[0] != STATE_RUNNING:
            self._host.is_ours_to_resume(self.spec.id)
            await self._host.call(domain.resume)

    async def expect_postcopy(self) -> None:
        if not self._offers_postcopy:
            raise HypervisorError(
                f"server {self._host.name} takes no VM by post-copy: its agent's configuration has no "
                "`postcopy = true` in [libvirt]"
            )
        await postcopy.check(postcopy.probe(self._folder.user))
        self.expects_postcopy = True

    def hold_frames(self) -> None:
        """Its process is libvirt's, and there is none before the source opens it."""

    async def take_disk(self, number: int, channel: Channel) -> None:
        if number not in (disk.number for disk in self.spec.private_disks):
            raise HypervisorError(f"VM {self.spec.id} has no private disk {number}")
        await take_disk(self._folder.disks(self.spec.id), channel)

    async def waiting(self) -> int:
        waiting = 0
        with contextlib.suppress(HostError):  # its taps are not in our network, or it has none
            for tap in taps(await self._host.call((await self.domain()).XMLDesc, 0)):
                waiting += max(0, await rx_frames(run, tap) - frames_given(os.getpid(), tap))
        return waiting

    async def set_nics(self, nics: Sequence[NICSpec], gone: Collection[str]) -> None:
        await set_nics(self._host, await self.domain(), self.spec.id, nics, gone)

    async def press_power(self) -> None:
        await self._host.call((await self.domain()).shutdown)

    async def reboot(self) -> None:
        await self._host.call((await self.domain()).reboot)

    async def reset(self) -> None:
        await self._host.call((await self.domain()).reset)

    async def flap_link(self) -> None:
        domain = await self.domain()
        xml = await self._host.call(domain.XMLDesc, 0)
        try:
            for interface in interfaces_with_link(xml, "down"):
                await self._host.call(domain.updateDeviceFlags, interface, AFFECT_LIVE)
            await asyncio.sleep(LINK_DOWN_SECONDS)
        finally:
            for interface in interfaces_with_link(xml, "up"):
                await self._host.call(domain.updateDeviceFlags, interface, AFFECT_LIVE)

    async def cut_power(self) -> None:
        await self.quit()

    async def quit(self) -> None:
        domain = await self._host.domain(self.spec.id)
        if domain is not None:
            try:
                await self._host.call(domain.destroy)
            except HostError:
                if await self._host.domain(self.spec.id) is not None:  # else it has ended by itself
                    raise
        self._host.let_go(self.spec.id)

    async def let_go(self) -> None:
        """libvirt keeps it."""

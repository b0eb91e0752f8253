"""The leases of a server's VMs as its agent keeps them: the book, and its file, which outlives the agent.

notes = LeaseNotes(folder / LEASES)
notes.renewed(lease, 600.0, "vm1")
await notes.written()
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

from retinue.agent.renewal import lease_file
from retinue.agent.renewal.lease_file import record_of
from retinue.core.lease_renewal import Lease
from retinue.core.lease_watch import KeptLease, LeaseBook
from retinue.core.model import Mac
from retinue.steady_clock import SteadyClock

LEASES = "leases.json"
"""Its name in the agent's folder."""
ENDED_KEPT_SECONDS = 86400.0
"""For which a lease that ran out is kept: its VM may be on its way, and the server may grant it again."""

log = structlog.get_logger()


class LeaseNotes:
    """The book of leases, and its file. What is noted is written beside the event loop, the latest of it."""

    def __init__(self, path: Path, clock: SteadyClock | None = None) -> None:
        self._path = path
        self.now = clock or SteadyClock()
        """Seconds since the epoch that pass evenly, whatever is done to the wall clock meanwhile."""
        self.book = LeaseBook()
        self._unwritten = False
        self._writing: asyncio.Task[None] | None = None
        found = lease_file.read(path)
        if found is not None:
            anchor, leases = found
            self.now.take_up(anchor)
            for kept in leases:
                self.book.keep(kept)

    # ---- what happens ----

    def seen(self, mac: Mac, frame: bytes, *, from_vm: bool, vm: str = "", ago: float = 0.0) -> None:
        """A frame that has passed at the port of this VM, so many seconds ago."""
        at = self.now() - max(0.0, ago)
        book = self.book
        if book.from_vm(mac, frame, at) if from_vm else book.to_vm(mac, frame, at, vm):
            kept = book.leases.get(mac)
            if kept is None:
                log.info("lease.ended", mac=mac, vm=vm)
            else:
                log.info("lease.learned", mac=mac, vm=vm, ip=str(kept.lease.ip), end=kept.end)
            self._changed()

    def renewed(self, lease: Lease, seconds: float, vm: str = "", ago: float = 0.0) -> None:
        """The agent has renewed it. `ago`: seconds since it asked.

        RFC 2131, 4.4.1: "The client computes the lease expiration time as the sum of the time at which the
        client sent the DHCPREQUEST message and the duration of the lease in the DHCPACK message." So the
        agent never takes a lease to be longer than its server does.
        """
        self.book.renewed(lease, seconds, self.now() - ago, vm)
        self._changed()

    def keep(self, kept: KeptLease) -> None:
        self.book.keep(kept)
        self._changed()

    def named(self, names: Mapping[Mac, str]) -> None:
        """Whose MACs these are, as the hypervisor says."""
        changed = {mac for mac, vm in names.items() if self.book.named(mac, vm)}
        if changed:
            self._changed()

    # ---- who asks ----

    def of(self, mac: Mac) -> KeptLease | None:
        return self.book.leases.get(mac)

    def seconds_left(self, mac: Mac) -> float | None:
        """Of its lease, as it was last seen here; None: it never ends, or none is known."""
        kept = self.of(mac)
        return None if kept is None or kept.end is None else max(0.0, round(kept.end - self.now(), 1))

    def of_vm(self, vm: str) -> list[KeptLease]:
        """By MAC."""
        return [kept for _, kept in sorted(self.book.leases.items()) if kept.vm == vm]

    def shown(self) -> list[dict[str, Any]]:
        """All of them, by VM and MAC, with the seconds that are left."""
        now = self.now()
        found = sorted(self.book.leases.values(), key=lambda k: (k.vm, k.lease.mac))
        return [
            {
                **msgspec.structs.asdict(record_of(kept)),
                "seconds_left": None if kept.end is None else round(kept.end - now, 1),
            }
            for kept in found
        ]

    # ---- the file ----

    def _changed(self) -> None:
        self._unwritten = True
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="leases written")

    async def _write(self) -> None:
        while self._unwritten:
            self._unwritten = False
            self.book.forget_ended(self.now() - ENDED_KEPT_SECONDS)
            leases = list(self.book.leases.values())
            await asyncio.to_thread(lease_file.write, self._path, self.now.anchor, leases)

    async def written(self) -> None:
        """Until the file has all that is noted."""
        if self._writing is not None:
            await self._writing


__all__ = ["LEASES", "LeaseNotes"]

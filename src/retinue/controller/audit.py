"""Switches that stay connected are read again from time to time: what somebody else changed there is mended.

They take turns, one at a time; one that does not answer within its turn loses it, and holds up none but
itself. While a migration of a VM that
concerns a switch is under way nothing is read from it: what a migration waits for comes first.
"""

import asyncio
from collections.abc import Callable, Iterator

import structlog

from retinue.controller.context import Context
from retinue.controller.counters import Count, entries_found
from retinue.controller.errors import RequestError
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.controller.switches.readback import Audit
from retinue.core.migration import Migration
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType

log = structlog.get_logger()

AUDIT_SECONDS = 60.0
TURN_LIMIT = 2.0
"""Seconds of a switch's turn; one that has not been read by then is read on beside the others' turns."""
ENTRIES_A_SECOND = 2000
"""That are read, in the long run: a hundredth of a core for each thousand."""
TRIES = 3
"""How often a switch is read that is being changed meanwhile."""
LONGEST_MIGRATION = 900.0
"""Seconds; more than a migration takes that goes well, each of its states as long as it may
(core/migration/states.py: LIMITS)."""


class AuditError(RequestError):
    """The switch has not been read; the message says why and what to do."""

    code = ErrorCode.NOT_AUDITED


class Auditor:
    """Reads switches in turn, has what differs mended, and records what was found."""

    def __init__(
        self, context: Context, orchestrator: MigrationOrchestrator, mended: Callable[[str], None]
    ) -> None:
        """`mended` is called when a switch has confirmed what it lacked."""
        self._context = context
        self._orchestrator = orchestrator
        self._mended = mended
        self._turn = asyncio.Lock()
        self._slow: set[str] = set()
        """Switches that did not answer within their last turn: they are read beside the others' turns."""
        self._reading: dict[str, asyncio.Lock] = {}
        """By switch: held while it is being read."""
        self._turns = 0
        self._last: dict[str, int] = {}
        """By switch: its last turn."""

    async def run(self, seconds: float) -> None:
        """Read every connected switch once in so many seconds, evenly, for ever; or in more seconds, where
        that would be more than ENTRIES_A_SECOND."""
        entries = 0
        while True:
            turn = seconds / max(1, len(self._context.installer.connected()))
            await asyncio.sleep(max(turn, entries / ENTRIES_A_SECOND))
            switch, entries = self._next(), 0
            if switch is not None:
                entries = len(self._context.compiler.program(switch))
                self._take_turn(switch)
                self._context.spawn(self._audit_in_turn(switch), f"audit of {switch}")

    def kept_from(self, switch: str) -> str:
        """Why the switch is not to be read now; "": it may be."""
        migration = self._migration_at(switch)
        return "" if migration is None else f"{migration.id} of VM {migration.vm} is under way"

    async def _audit_in_turn(self, switch: str) -> None:
        try:
            await self.audit(switch)
        except AuditError as error:
            self._context.counters[Count.AUDITS_FAILED] += 1
            log.info("audit.failed", switch=switch, reason=str(error))

    async def audit(self, switch: str) -> Audit:
        """Read a switch now, and mend what differs; what was found. Raises AuditError."""
        async with self._reading.setdefault(switch, asyncio.Lock()):
            if switch in self._slow:
                return await self._read(switch)
            async with self._turn:
                reading = asyncio.ensure_future(self._read(switch))
                try:
                    await asyncio.wait({reading}, timeout=TURN_LIMIT)
                except asyncio.CancelledError:
                    reading.cancel()
                    raise
            return await reading

    async def _read(self, switch: str) -> Audit:
        self._take_turn(switch)
        began = asyncio.get_running_loop().time()
        try:
            for _ in range(TRIES):
                found = await self._look(switch)
                if found is not None:
                    self._record(switch, found)
                    return found
        finally:
            slow = asyncio.get_running_loop().time() - began > TURN_LIMIT
            (self._slow.add if slow else self._slow.discard)(switch)
        raise AuditError(
            f"switch {switch} was changed each of the {TRIES} times it was being read; ask again"
        )

    def _take_turn(self, switch: str) -> None:
        self._turns += 1
        self._last[switch] = self._turns

    async def _look(self, switch: str) -> Audit | None:
        migration = self._migration_at(switch)
        if migration is not None:
            raise AuditError(
                f"switch {switch} is not read while {migration.id} of VM {migration.vm} is under way; "
                "ask when that has ended"
            )
        programmer = self._context.installer.switches.get(switch)
        if programmer is None:
            raise AuditError(f"switch {switch} was removed while its turn was waited for")
        try:
            return await programmer.audit(lambda: self._migration_at(switch) is None)
        except ConnectionError as error:
            raise AuditError(f"switch {switch} cannot be audited: {error}") from error

    def _next(self) -> str | None:
        """The switch that has waited longest, of those that may be read now."""
        busy = self._switches_in_migrations()
        ready = (
            name
            for name, one in self._context.installer.switches.items()
            if one.is_read and not self._is_being_read(name) and name not in busy
        )
        return min(ready, key=lambda switch: self._last.get(switch, 0), default=None)

    def _is_being_read(self, switch: str) -> bool:
        return switch in self._reading and self._reading[switch].locked()

    def _migration_at(self, switch: str) -> Migration | None:
        """A migration under way that concerns the switch."""
        return next((m for m in self._under_way() if switch in self._orchestrator.concerned(m.id)), None)

    def _switches_in_migrations(self) -> set[str]:
        return {switch for m in self._under_way() for switch in self._orchestrator.concerned(m.id)}

    def _under_way(self) -> Iterator[Migration]:
        """Without those that cannot end, which would hinder for ever."""
        now, under_way = self._context.clock(), self._orchestrator.migrations.under_way()
        return (m for m in under_way if m.steps[0][1] > now - LONGEST_MIGRATION * m.step_factor)

    def _record(self, switch: str, found: Audit) -> None:
        counters = self._context.counters
        counters[Count.AUDITS] += 1
        if not found.differing:
            return
        counts = {"missing": found.missing, "changed": found.changed, "foreign": found.foreign}
        for what, count in counts.items():
            counters[entries_found(what)] += count
        if not found.mended:
            log.error("audit.not_repaired", switch=switch, **counts)
            return
        log.warning("audit.repaired", switch=switch, **counts)
        self._context.events.publish(EventType.SWITCH_REPAIRED, switch=switch, **counts)
        self._mended(switch)

"""Switches that stay connected are read again from time to time: what somebody else changed there is mended.

They take turns, one at a time. While a move of a VM that concerns a switch is under way nothing is read from
it: what a move waits for comes first.
"""

import asyncio
from collections.abc import Callable

import structlog

from retinue.controller.context import Context
from retinue.controller.moving import Mover
from retinue.controller.readback import Audit
from retinue.model import ModelError
from retinue.moves import Move

log = structlog.get_logger()

AUDIT_SECONDS = 60.0
TRIES = 3
"""How often a switch is read that is being changed meanwhile."""
LONGEST_MOVE = 900.0
"""Seconds; more than a move takes that goes well, each of its states as long as it may (moves.LIMITS)."""


class AuditError(ModelError):
    """The switch has not been read; the message says why and what to do."""


class Auditor:
    def __init__(self, context: Context, mover: Mover, mended: Callable[[], None]) -> None:
        """`mended` is called when a switch has confirmed what it lacked."""
        self._context = context
        self._mover = mover
        self._mended = mended
        self._turn = asyncio.Lock()
        self._turns = 0
        self._last: dict[str, int] = {}
        """By switch: its last turn."""

    async def run(self, seconds: float) -> None:
        """Read every connected switch once in so many seconds, evenly, for ever."""
        while True:
            await asyncio.sleep(seconds / max(1, len(self._context.installer.sessions)))
            switch = self._next()
            if switch is None:
                continue
            try:
                await self.audit(switch)
            except AuditError as error:
                self._context.counters["audits without a result"] += 1
                log.info("a switch was not audited", switch=switch, reason=str(error))
            except Exception as error:
                self._context.failed(f"audit of {switch}", error)

    async def audit(self, switch: str) -> Audit:
        """Read a switch now, and mend what differs; what was found. Raises AuditError."""
        async with self._turn:
            self._turns += 1
            self._last[switch] = self._turns
            for _ in range(TRIES):
                found = await self._look(switch)
                if found is not None:
                    self._tell(switch, found)
                    return found
        raise AuditError(
            f"switch {switch} was changed each of the {TRIES} times it was being read; ask again"
        )

    async def _look(self, switch: str) -> Audit | None:
        move = self._move_at(switch)
        if move is not None:
            raise AuditError(
                f"switch {switch} is not read while {move.id} of VM {move.vm} is under way; "
                "ask when that has ended"
            )
        try:
            return await self._context.installer.audit(switch, lambda: self._move_at(switch) is None)
        except ConnectionError as error:
            raise AuditError(f"switch {switch} cannot be audited: {error}") from error

    def _next(self) -> str | None:
        """The switch that has waited longest, of those that may be read now."""
        ready = (switch for switch in self._context.installer.sessions if self._move_at(switch) is None)
        return min(ready, key=lambda switch: self._last.get(switch, 0), default=None)

    def _move_at(self, switch: str) -> Move | None:
        """A move under way that concerns the switch. One that cannot end does not hinder for ever."""
        since = self._context.clock() - LONGEST_MOVE
        moves = self._mover.moves.values()
        under_way = (move for move in moves if not move.state.ended and move.steps[0][1] > since)
        return next((move for move in under_way if switch in self._mover.concerned(move.id)), None)

    def _tell(self, switch: str, found: Audit) -> None:
        counters = self._context.counters
        counters["audits"] += 1
        if not found.differing:
            return
        told = {"missing": found.missing, "changed": found.changed, "foreign": found.foreign}
        for what, count in told.items():
            counters[f"entries found {what}"] += count
        if not found.mended:
            log.error("a switch held other entries than it should, and is not mended", switch=switch, **told)
            return
        log.warning("a switch held other entries than it should; mended", switch=switch, **told)
        self._context.events.publish("switch.mended", switch=switch, **told)
        self._mended()

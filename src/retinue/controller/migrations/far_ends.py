"""The other end of a migration between domains, as the orchestrator sees it (controller/domains has it)."""

from typing import Protocol

from retinue.core import migration as fsm
from retinue.core.migration import Migration
from retinue.protocol.migrations import Report


class FarEnds(Protocol):
    """Who stands in for the agents of gateways: the other end of a migration is in another domain there."""

    def ordered(self, migration: Migration, effect: fsm.Effect) -> None:
        """An effect is carried out here; at the far end it may mean something, too."""

    def stepped(self, event: fsm.Event, after: Migration) -> None:
        """A step has been made."""

    async def before_report(self, id: str, report: Report, reason: str) -> Migration | None:
        """Before a report of an agent here counts; a migration: it is to count no further. Raises
        MigrationError."""


class NoFarEnds:
    """A domain that knows no other."""

    def ordered(self, migration: Migration, effect: fsm.Effect) -> None:
        pass

    def stepped(self, event: fsm.Event, after: Migration) -> None:
        pass

    async def before_report(self, id: str, report: Report, reason: str) -> Migration | None:
        return None

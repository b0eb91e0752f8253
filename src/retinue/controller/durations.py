"""How long migrations and changes took since the controller's start, for the metrics."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from retinue.core.histogram import LONG, QUICK, Histogram
from retinue.core.migration import Migration, MigrationState


class Durations:
    def __init__(self) -> None:
        self.migration = Histogram(LONG)
        """Of those done: from the start until nothing of it is left."""
        self.downtime = Histogram(QUICK)
        """From the stop at the source to the resume at the target."""
        self.switch_over = Histogram(QUICK)
        """From the report that the VM has resumed until every switch has confirmed."""
        self.confirmation = Histogram(QUICK)
        """From a change until every switch concerned has answered the barrier behind it."""
        self.ended: Counter[str] = Counter()
        """Migrations, by the state in which they ended."""

    def migration_ended(self, migration: Migration, figures: Mapping[str, Any]) -> None:
        self.ended[migration.state] += 1
        if migration.state is not MigrationState.DONE:
            return
        self.migration.observe(migration.since() - migration.steps[0][1])
        if migration.stopped_at is not None and migration.resumed_at is not None:
            self.downtime.observe(migration.resumed_at - migration.stopped_at)
        if "control_ms" in figures:
            self.switch_over.observe(figures["control_ms"] / 1000)


__all__ = ["Durations"]

"""Migrates all VMs of a server to others, so many at once, and stops at the first that cannot be."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from retinue.cli import output
from retinue.cli.errors import CliError
from retinue.core.migration import MigrationState
from retinue.protocol.blocking import Client
from retinue.protocol.errors import RejectedError
from retinue.protocol.events import EventType
from retinue.protocol.routes import Route


@dataclass
class Drain:
    """One server, its VMs, and what has become of them."""

    controller: Client
    server: str
    at_once: int
    lines: Callable[[Any], None] | None = None
    """Prints each migration that has ended, as JSON; None: progress for people."""
    left: list[str] = field(default_factory=list)
    under_way: dict[str, str] = field(default_factory=dict)
    """By id of a migration: its VM."""
    went: int = 0
    trouble: str = ""

    def run(self) -> None:
        """Raises CliError when a VM could not be migrated, once those that are under way have ended."""
        since = self.controller.last_event()
        self.left = list(self.controller.ask(Route.DRAIN_SERVER, self.server)["vms"])
        total = len(self.left)
        self._begin()
        if self.under_way:
            for event in self.controller.events(since):
                migration = event.get("migration")
                if event["type"] == EventType.MIGRATION_STEP and isinstance(migration, dict):
                    self._step(migration, total)
                if not self.under_way:
                    break
        if self.trouble:
            raise CliError(
                f"{self.trouble}; {self.went} of {total} VMs of {self.server} have gone, "
                f"and it takes no new ones: `retinue server drain {self.server}` goes on, "
                f"`retinue server undrain {self.server}` lets it be"
            )
        if self.lines is None:
            output.say(f"{self.server} is drained: {self.went} of {total} VMs have gone")

    def _step(self, migration: dict[str, Any], total: int) -> None:
        if migration["id"] not in self.under_way or migration["state"] not in (
            MigrationState.DONE,
            MigrationState.UNDONE,
        ):
            return
        vm = self.under_way.pop(migration["id"])
        if self.lines is not None:
            self.lines(migration)
        if migration["state"] == MigrationState.UNDONE:
            self.trouble = self.trouble or f"{migration['id']} of {vm} was undone: {migration['reason']}"
        else:
            self.went += 1
            if self.lines is None:
                output.say(f"{self.went} of {total}: {vm} is at {migration['target']}")
        self._begin()

    def _begin(self) -> None:
        """Begin migrations as many as may be under way at once."""
        while self.left and len(self.under_way) < self.at_once and not self.trouble:
            vm = self.left.pop(0)
            try:
                wanted = {"vm": vm, "target_server": self._target()}
                migration = self.controller.ask(Route.START_MIGRATION, body=wanted)
            except (RejectedError, CliError) as error:
                self.trouble = f"VM {vm} cannot be migrated: {error}"
            else:
                self.under_way[migration["id"]] = vm

    def _target(self) -> str:
        """The server with the fewest VMs, those on their way there among them."""
        rows = self.controller.ask(Route.LIST_SERVERS)["servers"]
        usable = [
            row
            for row in rows
            if row["id"] not in ("", self.server) and row["edge"] and not row["fenced"] and not row["drained"]
        ]
        if not usable:
            raise CliError("there is no other server that takes VMs")
        return str(min(usable, key=lambda row: (len(row["vms"]), row["id"]))["id"])

"""A migration as a record: how far it is, since when, and what is known of it. The rules are in states.py."""

from dataclasses import dataclass
from enum import StrEnum

from retinue.core.migration.copying import Postcopy
from retinue.core.migration.new_addresses import NewAddresses
from retinue.core.migration.precopy import WANTED_DOWNTIME


class MigrationState(StrEnum):
    """How far a migration is, in order; states.py says what each waits for."""

    PLANNED = "planned"
    MATCHED = "matched"
    ADMITTING = "admitting"
    PREPARED = "prepared"
    COPYING = "copying"
    DIVERTED = "diverted"
    SWITCHING = "switching"
    SWITCHED = "switched"
    CONFIRMED = "confirmed"
    FREED = "freed"
    DONE = "done"
    ROLLING_BACK = "rolling back"
    UNDONE = "undone"

    @property
    def ended(self) -> bool:
        return self in (MigrationState.DONE, MigrationState.UNDONE)

    @property
    def may_undo(self) -> bool:
        return self in LIMITS and self not in PAST_UNDOING


LIMITS: dict[MigrationState, float] = {
    MigrationState.PLANNED: 30.0,
    MigrationState.MATCHED: 30.0,
    MigrationState.ADMITTING: 10.0,
    MigrationState.PREPARED: 30.0,
    MigrationState.COPYING: 600.0,
    MigrationState.DIVERTED: 10.0,
    MigrationState.SWITCHING: 10.0,
    MigrationState.SWITCHED: 10.0,
    MigrationState.CONFIRMED: 60.0,
    MigrationState.FREED: 10.0,
    MigrationState.ROLLING_BACK: 15.0,
}
"""Seconds a state may last; so many times as long as a migration's `step_factor` says. Rolling back is tried
again after its time, until it is done."""
PAST_UNDOING = (
    MigrationState.SWITCHING,
    MigrationState.SWITCHED,
    MigrationState.CONFIRMED,
    MigrationState.FREED,
    MigrationState.ROLLING_BACK,
)


@dataclass(frozen=True, slots=True)
class Far:
    """The other end of a migration between domains, where this domain's own end is its gateway."""

    domain: str
    server: str = ""
    """The server there; "": not chosen yet."""
    migration: str = ""
    """The migration, as that domain counts it; "": not prepared yet."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration, with the time each state was entered. Times are seconds since the epoch."""

    id: str
    vm: str
    source: str
    target: str
    state: MigrationState
    steps: tuple[tuple[MigrationState, float], ...]
    reason: str = ""
    """Why the migration was undone, or what it waits for longer than it should."""
    stopped_at: float | None = None
    resumed_at: float | None = None
    memory_at: str = ""
    """Where the target takes the VM's memory in, for the source to connect to (host:port)."""
    wanted_downtime: float = WANTED_DOWNTIME
    """Seconds that the VM should be paused for at the most, where the hypervisor can do something for it."""
    postcopy: Postcopy = Postcopy.NEVER
    compress: bool = False
    """How its memory goes over: `copying`."""
    step_factor: float = 1.0
    """So many times as long as LIMITS say each state may last."""
    diverted: bool = False
    """Every switch has confirmed that the VM's traffic goes to the target."""
    closed: bool = False
    """Rolling back: the switches confirmed that the target is closed."""
    restored: bool = False
    """Rolling back: the hypervisor said that the source runs."""
    target_closed: bool = False
    """Rolling back: the VM never ran at the target, and never will; the source may run it again."""
    far: Far | None = None
    """Between domains: what is behind the gateway that is its source or its target here."""
    new_addresses: tuple[NewAddresses, ...] = ()
    """What NICs are to have from the target on."""
    after_the_fact: bool = False
    """A manager says that the VM runs at the target already: no hypervisor is told anything, or asked."""
    source_host: str = ""
    target_host: str = ""
    """On which of the hosts at its ends' switches the VM was and, after the fact, is; "": on none that is
    known. Between two hosts at one switch both ends are its server."""

    @property
    def undone_by_time(self) -> bool:
        """True when the end of the state's time rolls back. A paused source may have been left behind: that
        the VM did not resume in time proves nothing."""
        return self.state.may_undo and not (
            self.state is MigrationState.DIVERTED and self.stopped_at is not None
        )

    @property
    def was_diverted(self) -> bool:
        """True when its traffic was ever to go to the target: an undo has to bring it back."""
        return any(state in (MigrationState.DIVERTED, MigrationState.SWITCHING) for state, _ in self.steps)

    def since(self) -> float:
        """When the present state was entered."""
        return self.steps[-1][1]

    def deadline(self, copied_at: float | None = None) -> float | None:
        """`copied_at`: when the source has last told that it copies the VM's disks."""
        since = self.since()
        if self.state is MigrationState.COPYING:
            since = max(since, copied_at or since)
        return None if self.limit is None else since + self.limit

    @property
    def limit(self) -> float | None:
        """Seconds that the present state may last; None: for ever."""
        limit = LIMITS.get(self.state)
        return None if limit is None else limit * self.step_factor

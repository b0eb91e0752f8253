"""Migrations, how their targets are chosen, and names, as answers."""

from typing import Any

import msgspec

from retinue.core.migration import MigrationState
from retinue.core.migration.copying import Postcopy
from retinue.core.placement import Decision, EntityKind, Metric, Profile, Snapshot
from retinue.core.placement.bookings import Booking
from retinue.core.placement.rebalance import Step
from retinue.protocol.answers.common import Numbers


class ShownStep(msgspec.Struct):
    state: MigrationState
    at: float


class ShownFar(msgspec.Struct):
    domain: str
    server: str
    migration: str


class ShownNewAddresses(msgspec.Struct):
    nic: str
    mac: str
    vnet: str | None
    addresses: list[str] | None


class ShownChoice(msgspec.Struct):
    """How a migration's target was chosen, in short."""

    match: str
    by: str
    reason: str
    measured: int
    threshold: int
    seconds: int
    runner_up: str
    decided_by: str
    text: str


class ShownMigration(msgspec.Struct):
    id: str
    vm: str
    source: str
    target: str
    state: MigrationState
    steps: list[ShownStep]
    reason: str
    stopped_at: float | None
    resumed_at: float | None
    memory_at: str
    wanted_downtime: float
    postcopy: Postcopy
    compress: bool
    step_factor: float
    """So many times as long as else each step may take."""
    diverted: bool
    closed: bool
    restored: bool
    target_closed: bool
    far: ShownFar | None
    new_addresses: list[ShownNewAddresses]
    """What NICs are to have from the target on."""
    after_the_fact: bool
    """A manager has said that the VM runs at the target already."""
    source_host: str
    target_host: str
    """The hosts at the ends' switches, the target's after the fact; "": none that is known."""
    figures: dict[str, Any]
    waits_for: str
    placement: ShownChoice | None
    """null: whoever started it named the target."""


class AllMigrations(msgspec.Struct):
    migrations: list[ShownMigration]


class ExplainedPlacement(msgspec.Struct):
    migration: str
    match: str
    by: str
    snapshot: Snapshot
    decision: Decision
    why: str
    recomputed: Decision
    same: bool
    """The same snapshot leads to the same decision today."""


class ChosenServer(msgspec.Struct):
    match: str
    snapshot: Snapshot
    decision: Decision


class ShownPlan(msgspec.Struct):
    metric: Metric
    steps: list[Step]
    before: Numbers
    after: Numbers
    left: list[str]
    imbalance_before: int
    imbalance_after: int


class ShownEntity(msgspec.Struct):
    name: str
    kind: EntityKind
    profile: Profile
    measured: dict[str, Any] | None
    locator: dict[str, Any]


class AllEntities(msgspec.Struct):
    entities: list[ShownEntity]


class AllBookings(msgspec.Struct):
    bookings: list[Booking]

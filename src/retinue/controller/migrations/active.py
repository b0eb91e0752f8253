"""What the controller holds of one migration beside its state: its figures, and what its way needs."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from retinue.core.limits import MOST_WAITING
from retinue.core.migration import MigrationState, PlacementChange
from retinue.core.migration.handing_back import HANDED_BACK_IN
from retinue.core.pipeline.compiler import Keys
from retinue.protocol.migrations import Report

Figures = dict[str, Any]
"""As far as known: bindings_before and bindings_after, flow_mods, packet_ins, diverting_ms (from the report
that diverts to the last switch's confirmation) and control_ms (from the report of RESUME to the last
confirmation of all). Of a VM that was stopped before it was diverted: handed_on, packets that its source had
got, and its target has. Of a migration that was undone, in packets: diverted, kept, handed_back and
lost_about, see docs/api.md."""


@dataclass
class Progress:
    """What only a migration under way needs. None of it is stored: after a restart it is as at the beginning,
    save for `recovered`."""

    packet_ins_before: int = 0
    """The count of all packet-ins when the migration began."""
    target_opened_at: str | None = None
    """Where the target takes the memory in, as its hypervisor reported ("": libvirt's business); None: not
    open yet."""
    changed: Keys = field(default_factory=dict)
    """The entries this migration has changed so far, by switch: what a step waits to see confirmed."""
    confirming: dict[PlacementChange, asyncio.Task[None]] = field(default_factory=dict)
    confirmed: dict[PlacementChange, asyncio.Event] = field(default_factory=dict)
    recovered: bool = False
    """The migration was under way when the controller started: what it changed before is not known."""
    copied_at: float | None = None
    """When the source has last told that it copies the VM's disks."""
    resumed_early: float | None = None
    """When the VM resumed at the target, as the target reports before the source has let go."""
    resumed_here: float | None = None
    """When the report of RESUME came in, by our own clock."""

    watched: bool = False
    """The source looks itself whether anything still comes by the old way..."""
    quiet: asyncio.Event = field(default_factory=asyncio.Event)
    """... and has said that nothing does, or that the VM has stopped once it was diverted: then it looks no
    more. A source whose VM has stopped before begins to look then."""

    def is_confirmed(self, change: PlacementChange) -> asyncio.Event:
        """Set when every switch concerned has confirmed this change."""
        return self.confirmed.setdefault(change, asyncio.Event())


@dataclass
class ActiveMigration:
    """One migration from its start until it is forgotten, beside its state (`State.migrations`).

    None of it is stored; what only a migration under way needs goes when it ends.
    """

    id: str
    figures: Figures = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)

    def ended(self) -> None:
        self.progress = Progress()


def count_packets(figures: Figures, report: Report, packets: int) -> None:
    """Of a migration that is undone: what was diverted to the target, and what the source got of it."""
    if report is Report.TARGET_CLOSED:
        figures["diverted"] = packets
    elif report is Report.ROLLED_BACK:
        figures["kept"] = packets
    _count_lost(figures)


def count_waited(figures: Figures, state: MigrationState, send: Callable[[int], int]) -> None:
    """What has waited where the VM is not: `send` is told how many may be sent to it, and returns how many
    are."""
    name = "handed_back" if state in HANDED_BACK_IN else "handed_on"
    figures[name] = figures.get(name, 0) + send(max(0, MOST_WAITING - figures.get(name, 0)))
    _count_lost(figures)


def _count_lost(figures: Figures) -> None:
    if "diverted" in figures:
        lost = figures["diverted"] - figures.get("kept", 0) - figures.get("handed_back", 0)
        figures["lost_about"] = max(0, lost)

"""A change of one switch's entries, applied as a whole or not at all."""

from dataclasses import dataclass

from retinue.flows.entry import Flow, Group, Meter


@dataclass(frozen=True, slots=True)
class Change:
    """What to add or overwrite, and what to remove.

    A flow in `add` replaces the one of its key; a flow in `remove` is removed by its key.
    """

    add: tuple[Flow, ...] = ()
    remove: tuple[Flow, ...] = ()
    groups: tuple[Group, ...] = ()
    remove_groups: tuple[int, ...] = ()
    meters: tuple[Meter, ...] = ()
    remove_meters: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        return not (
            self.add or self.remove or self.groups or self.remove_groups or self.meters or self.remove_meters
        )

    @property
    def flow_count(self) -> int:
        """Flow entries added, changed and removed."""
        return len(self.add) + len(self.remove)

"""Where a VM is registered at each step of its migration: delivered at one server, open at others."""

from collections.abc import Mapping
from dataclasses import replace

from retinue.core.migration.events import PlacementChange
from retinue.core.migration.record import Migration, MigrationState
from retinue.core.model import VM, Server


def placement_of(vm: VM, migration: Migration, change: PlacementChange) -> VM:
    """The VM where this change of its migration wants it: delivered at one server, open at others."""
    match change:
        case PlacementChange.ADMITTED:
            return replace(
                vm, server=migration.source, host=migration.source_host, also=vm.also | {migration.target}
            )
        case PlacementChange.DIVERTED | PlacementChange.FORWARDED | PlacementChange.COPIED:
            paused = migration.stopped_at is not None and migration.resumed_at is None
            # To divert is not to forward: the VM runs at the source, and may still wait for what comes there.
            forwards = migration.diverted and (change is not PlacementChange.DIVERTED or vm.forwarded_from)
            # Not before: in the taps of a VM that nobody has held back nothing tells a copy from what it has
            # not taken yet, and has to be handed on.
            copied = paused and (migration.diverted or change is not PlacementChange.DIVERTED)
            return replace(
                vm,
                server=migration.target,
                host=migration.target_host,
                also=frozenset({migration.source}),
                forwarded_from=migration.source if forwards or paused else "",
                copied_to=migration.source if copied else "",
            )
        case PlacementChange.SOURCE_CLOSED:
            closed = at_one_place(vm, migration.target, migration.target_host)
            return replace(closed, forwarded_from=migration.source)
        case PlacementChange.SETTLED:
            return at_one_place(vm, migration.target, migration.target_host)
        case PlacementChange.RETURNED:
            # What still comes to the target goes on to the source, until nothing comes there any more; and
            # the source takes copies for as long as the target may still make some.
            return replace(
                vm,
                server=migration.source,
                host=migration.source_host,
                also=frozenset({migration.target}),
                forwarded_from=migration.target,
                copied_to=migration.source,
            )
        case PlacementChange.TARGET_CLOSED:
            return at_one_place(vm, migration.source, migration.source_host)


_LAST_CHANGE = {
    MigrationState.PLANNED: PlacementChange.TARGET_CLOSED,
    MigrationState.MATCHED: PlacementChange.TARGET_CLOSED,
    MigrationState.ADMITTING: PlacementChange.ADMITTED,
    MigrationState.PREPARED: PlacementChange.ADMITTED,
    MigrationState.COPYING: PlacementChange.ADMITTED,
    MigrationState.DIVERTED: PlacementChange.DIVERTED,
    MigrationState.SWITCHING: PlacementChange.DIVERTED,
    MigrationState.SWITCHED: PlacementChange.SOURCE_CLOSED,
    MigrationState.CONFIRMED: PlacementChange.SOURCE_CLOSED,
    MigrationState.FREED: PlacementChange.SOURCE_CLOSED,
    MigrationState.DONE: PlacementChange.SETTLED,
    MigrationState.ROLLING_BACK: PlacementChange.TARGET_CLOSED,
    MigrationState.UNDONE: PlacementChange.TARGET_CLOSED,
}
"""By state: the change of placement that was asked for last on the way there."""


def placement(vm: VM, migration: Migration) -> VM:
    """The VM where its migration, in the state it is in, wants it: nothing else has to be remembered.

    An undo in two steps is at its first until the second is confirmed.
    """
    if migration.state is MigrationState.ROLLING_BACK and migration.was_diverted and not migration.closed:
        return placement_of(vm, migration, PlacementChange.RETURNED)
    if migration.state is MigrationState.FREED and migration.source == migration.target:
        return placement_of(vm, migration, PlacementChange.SETTLED)  # Between hosts nothing is forwarded.
    return placement_of(vm, migration, _LAST_CHANGE[migration.state])


def at_one_place(vm: VM, server: str, host: str = "") -> VM:
    """The VM delivered at this server, on this host of it ("": on none that is known), and open nowhere
    else."""
    return replace(vm, server=server, host=host, also=frozenset(), forwarded_from="", copied_to="")


def on_known_host(vm: VM, servers: Mapping[str, Server]) -> VM:
    """The VM on none where its server has that host no longer: it is at its switch all the same."""
    hosts = servers[vm.server].hosts if vm.server in servers else ()
    return vm if vm.host in ("", *(host.id for host in hosts)) else replace(vm, host="")


def runs_at(vm: VM, migration: Migration | None) -> str:
    """The server where the VM runs, as its migration's reports have it; "" while it is paused.

    Another server where the VM is open may send as the VM, but the VM does not speak there.
    """
    if migration is None or not vm.also:
        return vm.server
    if migration.resumed_at is not None:
        return migration.target
    return migration.source if migration.stopped_at is None else ""

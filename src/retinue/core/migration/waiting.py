"""What a migration waits for, in words for the operator."""

from collections.abc import Collection

from retinue.core.migration.record import Migration, MigrationState

S = MigrationState


def waits_for(
    migration: Migration,
    unconfirmed: Collection[str],
    postcopy_left: int = 0,
    away: Collection[str] = (),
) -> str:
    """What has to come next; "" for a migration that has ended.

    `unconfirmed`: switches that have yet to confirm what the migration has changed. `postcopy_left`: bytes
    of memory that the source has yet, of a VM that runs at the target. `away`: servers whose agents do not
    listen; of others than the migration's two nothing is said.
    """
    parts = [*_parties(migration)]
    if migration.state is S.CONFIRMED and postcopy_left:
        left = f"{postcopy_left / (1 << 20):.1f} MiB"
        parts = [
            f"the rest of the VM's memory, {left}, to go over from server {migration.source} (post-copy)"
        ]
    if migration.state in _OF_SWITCHES or (migration.state is S.ROLLING_BACK and not migration.closed):
        parts += [_switches(unconfirmed)]
    waits = " and ".join(parts)
    missing = [end for end in (migration.source, migration.target) if end in away]
    return "; ".join([waits, *(f"the agent of server {one} is away" for one in missing)]) if waits else ""


_OF_SWITCHES = frozenset({S.ADMITTING, S.SWITCHING, S.SWITCHED, S.FREED})
"""States that end when every switch has confirmed."""


def _switches(unconfirmed: Collection[str]) -> str:
    names = ", ".join(sorted(unconfirmed))
    return f"switches to confirm: {names}" if names else "switches to confirm"


def _parties(migration: Migration) -> list[str]:
    source, target = f"server {migration.source}", f"server {migration.target}"
    match migration.state:
        case S.PLANNED:
            return [f"{target} to be found at a leaf"]
        case S.MATCHED:
            return [f"{target} to open a port for the VM and to take its memory in"]
        case S.PREPARED:
            return [f"{source} to begin the copy"]
        case S.COPYING:
            return [f"{source} to have copied all but a little"]
        case S.DIVERTED:
            return [f"{target} to report that the VM runs there"]
        case S.CONFIRMED:
            return [f"{source} to report that nothing of the VM is left there"]
        case S.ROLLING_BACK if migration.restored:
            return []
        case S.ROLLING_BACK if migration.target_closed or migration.stopped_at is None:
            return [f"{source} to report that the VM runs there"]
        case S.ROLLING_BACK:
            return [f"{target} to report that the VM never ran there, and then {source} that it runs there"]
        case _:
            return []

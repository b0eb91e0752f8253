"""Time limits of different programs that wait for each other: which one ends first."""

from retinue.agent.controller_link.vm_reports import DIVERT_LIMIT
from retinue.agent.migration.source import COPY_ORDER_LIMIT
from retinue.controller.audit import LONGEST_MIGRATION
from retinue.controller.context import BACK_WITHIN
from retinue.controller.domains import hearing, saying
from retinue.controller.migrations.reports import DIVERTING_LIMIT
from retinue.core.migration import MigrationState
from retinue.core.migration.copying import LEAST_LIMIT, MOST_LIMIT
from retinue.core.migration.record import LIMITS
from retinue.host import drain, flow_cache, tap_queue
from retinue.hypervisor.libvirt import incoming as libvirt_incoming
from retinue.hypervisor.libvirt import outgoing as libvirt_outgoing
from retinue.hypervisor.libvirt.hypervisor import CALL_OFF_LIMIT
from retinue.hypervisor.qemu import machine, undoing


def test_the_controller_has_answered_before_the_agent_stops_waiting() -> None:
    """Also one that was started anew, and whose switches had to come back first."""
    assert LIMITS[MigrationState.DIVERTED] + BACK_WITHIN < DIVERT_LIMIT
    assert LIMITS[MigrationState.DIVERTED] > DIVERTING_LIMIT


def test_the_domain_of_the_source_gives_up_before_the_one_of_the_target() -> None:
    assert hearing.MARK_LIMIT < saying.DIVERTING_LIMIT < LIMITS[MigrationState.DIVERTED]


def test_all_that_is_waited_for_in_a_migration_fits_into_it() -> None:
    waits = DIVERT_LIMIT + flow_cache.LIMIT + max(tap_queue.LIMIT, drain.QUIET_LIMIT)
    assert waits < LEAST_LIMIT


def test_an_agent_gives_a_copy_up_before_the_controller_does() -> None:
    longest = LIMITS[MigrationState.COPYING]
    assert longest > MOST_LIMIT + max(undoing.RECOVERY_LIMIT, libvirt_outgoing.RECOVERY_LIMIT)


def test_an_opened_target_outlasts_the_states_before_the_copy() -> None:
    before = (MigrationState.MATCHED, MigrationState.ADMITTING, MigrationState.PREPARED)
    assert sum(LIMITS[state] for state in before) < COPY_ORDER_LIMIT


def test_the_targets_agent_waits_longer_for_libvirt_than_the_sources() -> None:
    assert libvirt_outgoing.OPEN_LIMIT < libvirt_incoming.OPEN_LIMIT


def test_a_source_is_resumed_before_the_rollback_is_ordered_again() -> None:
    assert machine.RESUME_LIMIT < undoing.RECOVERY_LIMIT < LIMITS[MigrationState.ROLLING_BACK]
    assert LIMITS[MigrationState.ROLLING_BACK] > libvirt_outgoing.RECOVERY_LIMIT
    assert LIMITS[MigrationState.ROLLING_BACK] > CALL_OFF_LIMIT


def test_no_audit_meets_a_migration_that_may_still_end() -> None:
    assert sum(LIMITS.values()) - LIMITS[MigrationState.ROLLING_BACK] < LONGEST_MIGRATION

"""Which VMs managers may change: those that they registered, that are here, and that do not migrate."""

from retinue.controller.errors import RequestError, no_vm
from retinue.controller.inventory.away import check_is_here
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.core.model import VM, Network
from retinue.protocol.errors import ErrorCode


def ours(
    net: Network,
    orchestrator: MigrationOrchestrator,
    id: str,
    others: str,
    until: str,
    *,
    may_migrate: bool = False,
    may_be_reported: bool = False,
) -> VM:
    """Raises RequestError for another. `others`: what the server's own manager alone does with a VM that it
    made; `until`: what is said of one that migrates."""
    vm = net.vms.get(id)
    if vm is None:
        raise no_vm(id)
    if vm.reported and not may_be_reported:
        raise RequestError(
            f"VM {id} was made by its server's own manager, which alone {others} it; register it to do so "
            "here",
            ErrorCode.NOT_REGISTERED,
        )
    migration = orchestrator.of_vm(id)
    if migration is not None and not may_migrate:
        raise RequestError(
            f"VM {id} is being migrated: {migration.id} is {migration.state}; {until}",
            ErrorCode.MIGRATION_UNDER_WAY,
        )
    check_is_here(net, vm)
    return vm

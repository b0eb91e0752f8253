"""What a migration makes true of where its VM is attached, as events (core.migration.attachment)."""

from typing import Any

from retinue.controller.context import Context
from retinue.core.migration import AttachmentStep, Migration, MigrationState, told
from retinue.core.model import VM, Network
from retinue.protocol.events import EventType

_EVENTS = {
    AttachmentStep.READY: EventType.READY,
    AttachmentStep.REGISTERED: EventType.REGISTERED,
    AttachmentStep.PROFILE_UPDATED: EventType.PROFILE_UPDATED,
    AttachmentStep.DOUBLE_DELIVERY_ENDED: EventType.DOUBLE_DELIVERY_ENDED,
    AttachmentStep.ONLINE: EventType.VM_ONLINE,
    AttachmentStep.OFFLINE: EventType.VM_OFFLINE,
    AttachmentStep.DEREGISTERED: EventType.DEREGISTERED,
    AttachmentStep.RELEASED: EventType.RELEASED,
}


def tell(context: Context, before: Migration, after: Migration) -> None:
    """Publish what this step of a migration has made true."""
    for step in told(before, after):
        server = after.target if step.at_target else after.source
        edge = context.net.servers[server].edge
        more: dict[str, Any] = {}
        vm = context.net.vms.get(after.vm)
        if step is AttachmentStep.PROFILE_UPDATED and vm is not None:
            more["locator"] = locator_of(context.net, vm, after)
        context.events.publish(
            _EVENTS[step], migration_id=after.id, vm=after.vm, server=server, switch=edge, **more
        )


def locator_of(net: Network, vm: VM, migration: Migration | None) -> dict[str, Any]:
    """Where the VM's name leads now, as plain values; `migration`: the one it is in, if any.

    It leads to the source until the target has registered the VM, though its traffic waits at the target
    before that: the VM may yet go on at the source.
    """
    waits = migration is not None and migration.state is MigrationState.DIVERTED
    server = migration.source if migration is not None and waits else vm.server
    edge = net.servers[server].edge
    port = net.port_of(vm.nic, edge)
    return {
        "server": server,
        "switch": edge,
        "port": None if port is None else port.number,
        "addresses": [str(held.ip) for held in net.held_by(vm.id) if held.prefix is None],
    }


__all__ = ["locator_of", "tell"]

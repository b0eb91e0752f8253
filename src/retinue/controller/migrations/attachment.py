"""What a migration makes true of where its VM is attached, as events (core.migration.attachment)."""

from typing import Any

from retinue.controller.context import Context
from retinue.core.migration import AttachmentStep, Migration, told
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
            more["locator"] = locator_of(context.net, vm)
        context.events.publish(
            _EVENTS[step], migration_id=after.id, vm=after.vm, server=server, switch=edge, **more
        )


def locator_of(net: Network, vm: VM) -> dict[str, Any]:
    """Where the VM's name leads now, as plain values."""
    edge = net.servers[vm.server].edge
    port = net.port_of(vm.nic, edge)
    return {
        "server": vm.server,
        "switch": edge,
        "port": None if port is None else port.number,
        "addresses": [str(held.ip) for held in net.held_by(vm.id)],
    }


__all__ = ["locator_of", "tell"]

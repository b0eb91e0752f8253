"""Bindings that DHCP makes and ends, of either family: onto the switches, into the database, told."""

from collections.abc import Callable

from retinue.controller.context import Context
from retinue.controller.lease_changes import AddressAssigned, AddressReleased
from retinue.core.model import Assignment, ModelError
from retinue.core.pipeline.underlay import underlay_of
from retinue.protocol.events import EventType


async def bind(
    context: Context, assignment: Assignment, renewed: bool, made: Callable[[Assignment], None]
) -> bool:
    """Make the binding, and call `made`; True when every switch that is connected has confirmed it."""
    try:
        touched = context.apply(AddressAssigned(assignment))
    except ModelError as error:
        # Something else took the address, or the VM went, since the effect was computed.
        context.events.publish(
            EventType.BINDING_REJECTED, vm=assignment.vm, ip=assignment.leads, reason=str(error)
        )
        return False
    made(assignment)
    vm = context.net.vms[assignment.vm]
    report = await context.install(touched, [underlay_of(context.net).near(vm.server)])
    # A switch that is away gets its entries when it comes back; one that is there and rejects is trouble.
    rejected = sorted(switch for switch in report.missing if context.is_connected(switch))
    if rejected:
        reason = f"not confirmed by {', '.join(rejected)}"
        context.events.publish(
            EventType.BINDING_UNCONFIRMED, vm=assignment.vm, ip=assignment.leads, reason=reason
        )
        return False
    kind = EventType.BINDING_RENEWED if renewed else EventType.BINDING_ADDED
    context.events.publish(kind, bindings=context.net.bindings([assignment.vm]))
    return True


async def release(context: Context, assignment: Assignment, reason: str) -> None:
    """End the binding, unless it has been renewed or given back since."""
    if context.net.assignments.get(assignment.key) != assignment:
        return
    await context.commit(AddressReleased(assignment))
    context.events.publish(EventType.BINDING_REMOVED, vm=assignment.vm, ip=assignment.leads, reason=reason)


__all__ = ["bind", "release"]

"""Addresses that VMs make themselves: bound on the switches, stored and told, as those of leases are.

Which: `core.snooping.own_addresses`.
"""

from collections.abc import Awaitable
from ipaddress import IPv6Address

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.lease_changes import AddressAssigned, AddressReleased
from retinue.controller.switches.installer import InstallReport
from retinue.core.model import NIC, VM, Assignment, ModelError
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.snooping.own_addresses import Claim, OwnAddresses, is_free
from retinue.protocol.events import EventType

REPLACED = "the VM has made newer ones"


class OwnAddressBinder:
    """Binds what VMs check, see core.snooping.own_addresses."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._rules = OwnAddresses()

    def checked(self, vm: VM, nic: NIC, target: IPv6Address) -> None:
        """A NIC checks whether an address is free; nobody has answered that it is not.

        The address is its own before this returns: whoever checks it next is answered, be it in the same
        moment.
        """
        context = self._context
        claim = self._rules.claim(context.net, vm, nic, target, context.clock())
        if claim is not None:
            self._bind(vm, claim)
        elif is_free(context.net, nic, target):
            context.counters[Count.OWN_ADDRESS_TOO_MUCH] += 1

    def forget_the_gone(self) -> None:
        """Called now and then: NICs that are no more are forgotten."""
        self._rules.forget({nic.mac for vm in self._context.net.vms.values() for nic in vm.nics})

    def _bind(self, vm: VM, claim: Claim) -> None:
        context, given, old = self._context, claim.assignment, claim.instead_of
        released = [] if old is None or context.net.assignments.get(old.key) != old else [old]
        try:
            touched = context.apply(*(AddressReleased(a) for a in released), AddressAssigned(given))
        except ModelError as error:
            reason = str(error)
            context.events.publish(EventType.BINDING_REJECTED, vm=vm.id, ip=given.ip, reason=reason)
            return
        near = underlay_of(context.net).near(context.net.vms[vm.id].server)
        installing = context.install(touched, [near])
        context.spawn(self._tell(vm, given, released, installing), f"own address of {vm.id}")

    async def _tell(
        self, vm: VM, given: Assignment, released: list[Assignment], installing: Awaitable[InstallReport]
    ) -> None:
        context, report = self._context, await installing
        for gone in released:
            context.events.publish(EventType.BINDING_REMOVED, vm=vm.id, ip=gone.ip, reason=REPLACED)
        rejected = sorted(switch for switch in report.missing if context.is_connected(switch))
        if rejected:
            reason = f"not confirmed by {', '.join(rejected)}"
            context.events.publish(EventType.BINDING_UNCONFIRMED, vm=vm.id, ip=given.ip, reason=reason)
            return
        context.events.publish(EventType.BINDING_ADDED, bindings=context.net.bindings([vm.id]))

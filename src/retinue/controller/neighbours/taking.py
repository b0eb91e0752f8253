"""Addresses that several NICs may take: whoever announces one has it, and all that leads to it with it.

Who announces is believed as far as its port is: the switch sends up only what a NIC says about an address
that it is allowed, under the MAC that goes with it. An address does not go to and fro faster than once in
CALM_SECONDS: of what is announced meanwhile the last counts, when they are over.
"""

import asyncio

from retinue.controller.context import Context
from retinue.controller.nic_changes import AddressTaken
from retinue.core.model import NIC, VM, Address, Mac, ModelError, in_vrf
from retinue.core.pipeline.responders.announcements import Claim, taken
from retinue.core.pipeline.underlay import underlay_of
from retinue.protocol.events import EventType

CALM_SECONDS = 0.5


class Taking:
    """Gives addresses to the NICs that announce them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._waits: dict[Address, tuple[str, str, Mac, Claim] | None] = {}
        """By an address that has just been taken: VM, NIC, and what it announced since, or None."""

    def heard(self, vm: VM, nic: NIC, sender: Mac, claim: Claim) -> bool:
        """True for what a NIC says about an address that it may take, and has not.

        `sender`: the source of the frame.
        """
        ip = claim.ip
        key = in_vrf(self._context.net.vrf_of(nic), ip)
        holder = self._context.net.assignments.get(key)
        has = holder is not None and (holder.vm, holder.mac) == (vm.id, nic.mac)
        if has or nic.may_take(ip) is None:
            return False
        assignment = taken(self._context.net, vm, nic, sender, claim)
        if assignment is not None and key in self._waits:
            self._waits[key] = vm.id, nic.port_id, sender, claim
        elif assignment is not None:
            change = AddressTaken(assignment, nic.port_id, "" if holder is None else holder.vm)
            try:
                touched = self._context.apply(change)
            except ModelError as error:
                data = {"vm": vm.id, "ip": ip, "reason": str(error)}
                self._context.events.tell((vm.id,), EventType.BINDING_REJECTED, **data)
                return True
            near = underlay_of(self._context.net).near(vm.server)
            self._waits[key] = None
            self._context.spawn(self._context.install(touched, [near]), f"{ip} goes to {vm.id}")
            self._context.spawn(self._calm(key), f"{ip} has been taken")
        return True

    async def _calm(self, key: Address) -> None:
        await asyncio.sleep(CALM_SECONDS)
        announced = self._waits.pop(key, None)
        if announced is None:
            return
        id, port_id, sender, claim = announced
        vm = self._context.net.vms.get(id)
        nic = None if vm is None else vm.nic_called(port_id)
        if vm is not None and nic is not None:
            self.heard(vm, nic, sender, claim)

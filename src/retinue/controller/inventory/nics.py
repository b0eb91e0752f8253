"""NICs put into and taken out of VMs that are registered, whether they run or not.

The controller's part is the network: whose port, MAC and addresses these are. The agent of the VM's server
makes and removes ports and has the hypervisor plug, by the event vm.nics, which says what the VM is to have.
What changes of a NIC that stays is `nic_settings`.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import count

from retinue.controller.changes import VMNicsChanged
from retinue.controller.context import Context
from retinue.controller.errors import RequestError
from retinue.controller.inventory.away import check_stays_as_at_home
from retinue.controller.inventory.ours import ours
from retinue.controller.lease_changes import AddressAssigned
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.controller.nic_changes import named_nic, static_assignments
from retinue.core.limits import MOST_NICS
from retinue.core.model import NIC, VM, Assignment, port_id_of
from retinue.core.model.network import Owner, Touched
from retinue.core.model.trunks import carried_by


class NicControl:
    """Changes which NICs VMs have. Methods raise RequestError or ModelError, and change nothing then."""

    def __init__(
        self,
        context: Context,
        orchestrator: MigrationOrchestrator,
        give_back: Callable[[VM, NIC], None],
        found: Callable[[NIC], Touched],
        left: Callable[[VM, NIC], None],
    ) -> None:
        """`give_back`: what to do about a NIC's leases; `found`: about the port of one that
        comes; `left`: about one that goes."""
        self._context = context
        self._net = context.net
        self._orchestrator = orchestrator
        self._give_back = give_back
        self._found = found
        self._left = left

    def free_slot(self, id: str, trunk: str = "") -> int:
        """The slot of the NIC that is put into the VM next: 0 for one in a trunk, which is no device."""
        if trunk:
            return 0
        taken = {nic.slot for nic in self.ours(id).nics}
        slot = next((slot for slot in range(1, MOST_NICS + 1) if slot not in taken), None)
        if slot is None:
            raise RequestError(f"VM {id} has {MOST_NICS} NICs already, and cannot have more")
        return slot

    def free_number(self, id: str, slot: int) -> int:
        """By which the NIC in this slot (0: of a trunk) is called, where nobody gives it an id."""
        taken = {nic.port_id for nic in self.ours(id).nics}
        return next(number for number in count(slot or 2) if port_id_of(id, number) not in taken)

    def add(self, id: str, nic: NIC) -> VM:
        """Put a NIC into a VM."""
        vm = self.ours(id)
        check_stays_as_at_home(vm, replace(vm, nics=(*vm.nics, nic)))
        return self._change(vm, (*vm.nics, nic), nic)

    def remove(self, id: str, port_id: str) -> VM:
        """Take a NIC out of a VM, with all that it holds."""
        vm = self.ours(id)
        nic = named_nic(vm, port_id)
        if nic is vm.nic:
            raise RequestError(f"VM {id} is known by its first NIC: remove the VM, and register it anew")
        if carried := carried_by(vm, nic):
            named = ", ".join(one.port_id for one in carried)
            raise RequestError(f"NIC {port_id} carries {named} in its trunk; take these out first")
        nics = tuple(one for one in vm.nics if one is not nic)
        check_stays_as_at_home(vm, replace(vm, nics=nics))
        self._left(vm, nic)
        self._give_back(vm, nic)
        return self._change(vm, nics, None, self._net.assignments_of(vm, nic))

    def _change(
        self,
        vm: VM,
        nics: tuple[NIC, ...],
        new: NIC | None,
        ended: tuple[Assignment, ...] = (),
    ) -> VM:
        wanted = replace(vm, nics=nics)
        given = (
            [] if new is None else [AddressAssigned(one) for one in static_assignments(self._net, vm.id, new)]
        )
        touched = set(self._context.apply(VMNicsChanged(wanted, vm, ended), *given))
        if new is not None:
            touched |= self._found(new)
        self._context.spawn(self._context.install(touched | {Owner("vm", vm.id)}), f"NICs of VM {vm.id}")
        return wanted

    def ours(self, id: str) -> VM:
        """A VM whose NICs may change now. Raises RequestError."""
        until = "its NICs stay as they are until that has ended"
        return ours(self._net, self._orchestrator, id, "changes", until)

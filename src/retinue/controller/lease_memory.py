"""What must be known of leases beyond those that are held, to renew them; kept in the database.

A VM that has moved *owes* a renewal until a DHCP server has answered, to the agent or to the VM itself. And
the lease of a VM that ran out last, while it moved perhaps, is no holding any more, but can be asked for.
"""

from collections import OrderedDict
from collections.abc import Collection

from retinue.controller.context import Context
from retinue.model import Holding
from retinue.store import EndedLease, Owed

KEPT = 1000
"""Ended leases that are remembered."""


class LeaseMemory:
    def __init__(self, context: Context) -> None:
        self._net, self._store = context.net, context.store
        self.owed: set[str] = set()
        """VMs."""
        self._ended: OrderedDict[str, Holding] = OrderedDict()
        """By VM, the one that ended longest ago first."""

    def restored(self, owed: Collection[Owed], ended: Collection[EndedLease]) -> None:
        """What the database has kept; after the VMs."""
        for lease in ended:
            self._ended[lease.lease.vm] = lease.lease
        self.owed |= {one.vm for one in owed}
        for vm in {*self.owed, *self._ended} - self._net.vms.keys():
            self.forget(vm)

    def owe(self, vm: str) -> None:
        self.owed.add(vm)
        self._store.put(Owed(vm))

    def settle(self, vm: str) -> None:
        if vm in self.owed:
            self.owed.remove(vm)
            self._store.remove(Owed(vm))

    def ran_out(self, lease: Holding) -> None:
        self._ended[lease.vm] = lease
        self._ended.move_to_end(lease.vm)
        self._store.put(EndedLease(lease))
        if len(self._ended) > KEPT:
            self.bound(next(iter(self._ended)))

    def bound(self, vm: str) -> None:
        """The VM has another lease, and what was before counts no more."""
        lease = self._ended.pop(vm, None)
        if lease is not None:
            self._store.remove(EndedLease(lease))

    def last_of(self, vm: str) -> Holding | None:
        """The lease the VM had last, if it has none; None also when another holds that address by now."""
        lease = self._ended.get(vm)
        return None if lease is None or lease.ip in self._net.holdings else lease

    def forget(self, vm: str) -> None:
        """There is no such VM any more."""
        self.settle(vm)
        self.bound(vm)

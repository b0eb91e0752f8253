"""What must be known of leases beyond those that are held, to renew them; kept in the database.

The renewal of a NIC whose VM has migrated is *pending* until a DHCP server has answered, be it the agent or
the VM itself. And the last lease of a NIC that ran out, during a migration perhaps, is no assignment any
more, but can be asked for.
"""

from retinue.controller.context import Context
from retinue.controller.lease_changes import EndedLeaseForgotten, LeaseEnded, RenewalPending, RenewalSettled
from retinue.core.model import IP, NIC, Assignment, Mac
from retinue.core.packets import mac_bytes
from retinue.core.snooping.headers import ETHERNET

KEPT = 1000
"""Ended leases that are remembered."""


def key_of(nic: NIC, ip: IP, client_id: bytes) -> str:
    """What a renewal that is pending is known by: the NIC's port id; of DHCPv6 with the address; of a client
    that does not go by the NIC's MAC with its identifier, since each has a lease of its own."""
    if ip.version == 6:
        return f"{nic.port_id}/{ip}"
    by_mac = client_id in (b"", bytes([ETHERNET]) + mac_bytes(nic.mac))
    return nic.port_id if by_mac else f"{nic.port_id}/{client_id.hex()}"


def nic_of(key: str) -> str:
    """The port id of the NIC whose lease it is: no id has a slash."""
    return key.partition("/")[0]


class LeaseMemory:
    """Renewals that are pending, and leases that have ended: in the state, so that they survive a restart."""

    def __init__(self, context: Context) -> None:
        self._context, self._net = context, context.net
        self._ended = context.state.ended_leases
        self.pending = context.state.pending_renewals

    def restored(self) -> None:
        """The database has been read; what it has of NICs that are no more is forgotten."""
        self._settle_what_is_gone()
        for mac in [mac for mac in self._ended if self._net.vm_of_mac(mac) is None]:
            self.bound(mac)

    def _settle_what_is_gone(self) -> None:
        for key in [key for key in self.pending if self._net.vm_of_port_id(nic_of(key)) is None]:
            self.settle(key)

    def pend(self, key: str) -> None:
        """The lease of this key (see `key_of`) is to be renewed."""
        self._context.apply(RenewalPending(key))

    def settle(self, key: str) -> None:
        """No renewal of it is pending any more."""
        if key in self.pending:
            self._context.apply(RenewalSettled(key))

    def ran_out(self, lease: Assignment) -> None:
        self._context.apply(LeaseEnded(lease))
        if len(self._ended) > KEPT:
            self.bound(next(iter(self._ended)))

    def bound(self, mac: Mac) -> None:
        """The NIC with this MAC has another lease, and what was before counts no more."""
        lease = self._ended.get(mac)
        if lease is not None:
            self._context.apply(EndedLeaseForgotten(lease))

    def last_of(self, mac: Mac) -> Assignment | None:
        """The lease the NIC had last, if it has none; None also when another holds that address by now."""
        lease = self._ended.get(mac)
        return None if lease is None or lease.key in self._net.assignments else lease

    def vm_gone(self, vm: str) -> None:
        """There is no such VM any more, and so none of its NICs."""
        self._settle_what_is_gone()
        for mac in [mac for mac, lease in self._ended.items() if lease.vm == vm]:
            self.bound(mac)

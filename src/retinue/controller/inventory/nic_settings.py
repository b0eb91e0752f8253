"""What a manager changes of a VM's NIC, wherever the VM is: it stays so through migrations and restarts."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from retinue.controller.changes import Change
from retinue.controller.context import Context
from retinue.controller.errors import RequestError, no_vm
from retinue.controller.lease_changes import AddressAssigned, AddressReleased
from retinue.controller.nic_changes import NICChanged
from retinue.core.model import IP, NIC, VM, Allowed, Assignment, BindingKind, Mac, Network, Prefix
from retinue.core.pipeline.underlay import underlay_of
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType


def with_settings(vm: VM, known: VM) -> VM:
    """A VM registered anew: what was said of its NICs, and cannot be said as it is registered, stays."""
    nics = []
    for nic in vm.nics:
        old = known.nic_called(nic.port_id)
        if old is not None:
            nic = replace(nic, rate=old.rate, allowed=old.allowed, trusted=old.trusted, prefixes=old.prefixes)
        nics.append(nic)
    return replace(vm, nics=tuple(nics))


def named_nic(vm: VM, port_id: str) -> NIC:
    """The NIC of a VM with this id; "": the first. Raises RequestError."""
    nic = vm.nic_called(port_id) if port_id else vm.nic
    if nic is None:
        has = ", ".join(one.port_id for one in vm.nics)
        raise RequestError(f"VM {vm.id} has no NIC {port_id}, but {has}", ErrorCode.UNKNOWN_NIC)
    return nic


def still_there(net: Network, vm: str) -> VM:
    """A VM of which something has been changed; it may have been removed meanwhile. Raises RequestError."""
    found = net.vms.get(vm)
    if found is None:
        raise no_vm(vm)
    return found


def static_assignments(net: Network, vm: str, nic: NIC) -> list[Assignment]:
    """Addresses the manager gives to a NIC are bindings at once."""
    return [net.static(vm, nic, ip) for ip in nic.addresses]


def replaced(net: Network, vm: VM, old: NIC, new: NIC) -> list[Change]:
    """The changes that put `new` in the place of a VM's NIC, with the static addresses that come and go.

    What a NIC holds in one VRF means nothing in another.
    """
    held, leaves = net.assignments_of(vm, old), net.vrf_of(old) != net.vrf_of(new)
    static = set() if leaves else {a.ip for a in held if a.kind is BindingKind.STATIC}
    gone = [a for a in held if leaves or (a.ip in static and a.ip not in new.addresses)]
    given = [a for a in static_assignments(net, vm.id, new) if a.ip not in static]
    changed = NICChanged(vm, old, new, tuple(a for a in held if a not in gone))
    return [*map(AddressReleased, gone), changed, *map(AddressAssigned, given)]


async def commit(context: Context, server: str, changes: Sequence[Change]) -> None:
    """Make changes of a VM of this server; told which addresses it has no longer when the switches agree."""
    await context.commit(*changes, near=[underlay_of(context.net).near(server)])
    for gone in (change.assignment for change in changes if isinstance(change, AddressReleased)):
        reason = "its manager gives it to the VM no longer"
        context.events.publish(EventType.BINDING_REMOVED, vm=gone.vm, ip=gone.ip, reason=reason)


class NICSettings:
    """Changes NICs in place."""

    def __init__(self, context: Context, ours: Callable[[str], VM]) -> None:
        """`ours`: a VM that a manager registered and that does not migrate; RequestError for another."""
        self._context = context
        self._net = context.net
        self._ours = ours

    async def change(
        self,
        vm: str,
        nic: str = "",
        *,
        mac: Mac | None = None,
        addresses: tuple[IP, ...] | None = None,
        vnet: str | None = None,
        enabled: bool | None = None,
        trusted: bool | None = None,
        rate: int | None = None,
        allowed: tuple[Allowed, ...] | None = None,
        prefixes: tuple[Prefix, ...] | None = None,
    ) -> VM:
        """Change what is given of a NIC ("": the first), and return when the switches have confirmed it.

        A MAC is changed where the NIC has no port: its guest would go on with the old one. Addresses and vnet
        are those of a VM that a manager registered and that does not migrate. Raises ModelError.
        """
        known = self._net.vms.get(vm)
        if known is None:
            raise no_vm(vm)
        old = named_nic(known, nic)
        if addresses is not None or vnet is not None:
            self._ours(vm)
        given = {
            "mac": mac, "addresses": addresses, "vnet": vnet, "enabled": enabled,
            "trusted": trusted, "rate": rate, "allowed": allowed, "prefixes": prefixes,
        }  # fmt: skip
        new = replace(old, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        if new == old:
            return known
        if new.mac != old.mac:
            self._may_have_another_mac(known, old)
        await commit(self._context, known.server, replaced(self._net, known, old, new))
        return still_there(self._net, vm)

    def _may_have_another_mac(self, vm: VM, nic: NIC) -> None:
        ports = self._net.vm_ports.get(nic.port_id)
        if ports:
            raise RequestError(
                f"VM {vm.id} has a port with MAC {nic.mac} on {', '.join(sorted(ports))}; "
                f"`retinue vm stop {vm.id}` first",
                ErrorCode.CONFLICT,
            )

"""What a manager changes of a VM's NIC, wherever the VM is: it stays so through migrations and restarts."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from retinue.controller.changes import Change
from retinue.controller.context import Context
from retinue.controller.errors import RequestError, no_vm
from retinue.controller.inventory.away import check_is_here, check_stays_as_at_home
from retinue.controller.lease_changes import AddressReleased
from retinue.controller.nic_changes import named_nic, replaced
from retinue.core.model import (
    IP,
    NIC,
    VM,
    Allowed,
    Assignment,
    BindingKind,
    Mac,
    Network,
    Power,
    Prefix,
)
from retinue.core.model.network import NOTHING, Touched
from retinue.core.pipeline.underlay import Near, underlay_of
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.vms import VMState


def with_settings(vm: VM, known: VM) -> VM:
    """A VM registered anew: what was said of its NICs, and cannot be said as it is registered, stays."""
    nics = []
    for nic in vm.nics:
        old = known.nic_called(nic.port_id)
        if old is not None:
            nic = replace(
                nic, rate=old.rate, allowed=old.allowed, trusted=old.trusted, prefixes=old.prefixes,
                mac_changes=old.mac_changes, initial_mac=old.initial_mac if nic.mac == old.mac else "",
                mirror=old.mirror, anycast=old.anycast, load=old.load,
            )  # fmt: skip
        nics.append(nic)
    return replace(vm, nics=tuple(nics))


def still_there(net: Network, vm: str) -> VM:
    """A VM of which something has been changed; it may have been removed meanwhile. Raises RequestError."""
    found = net.vms.get(vm)
    if found is None:
        raise no_vm(vm)
    return found


async def commit(
    context: Context,
    server: str,
    changes: Sequence[Change],
    then: Callable[[], Touched] = lambda: NOTHING,
    near: Near | None = None,
) -> None:
    """Make changes of a VM of this server, and what follows from them (`then`, before switches are told).

    `near`: who is told first; None: what is around the server. Told which addresses it has no longer when
    the switches agree.
    """
    touched, around = context.apply(*changes), [underlay_of(context.net).near(server)]
    await context.install(touched | then(), near=around if near is None else near)
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
        mac_changes: bool | None = None,
        mirror: str | None = None,
        anycast: tuple[IP, ...] | None = None,
        load: int | None = None,
    ) -> VM:
        """Change what is given of a NIC ("": the first), and return when the switches have confirmed it.

        A MAC is changed where the NIC has no port, or the VM is off, whose agent then makes the port anew: a
        guest that runs would go on with the old one. Addresses and vnet are those of a VM that a manager
        registered and that does not migrate. Raises ModelError.
        """
        known = self._net.vms.get(vm)
        if known is None:
            raise no_vm(vm)
        old = named_nic(known, nic)
        if addresses is not None or vnet is not None:
            self._ours(vm)
        check_is_here(self._net, known)
        given = {
            "mac": mac, "addresses": addresses, "vnet": vnet, "enabled": enabled,
            "trusted": trusted, "rate": rate, "allowed": allowed, "prefixes": prefixes,
            "mac_changes": mac_changes, "mirror": mirror, "anycast": anycast, "load": load,
        }  # fmt: skip
        new = replace(old, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        if new == old:
            return known
        wanted = tuple(new if one is old else one for one in known.nics)
        check_stays_as_at_home(known, replace(known, nics=wanted))
        left: list[Assignment] = []
        if new.mac != old.mac:
            self._may_have_another_mac(known, old)
            new = replace(new, initial_mac="")  # Its port is made anew.
            if self._net.vm_ports.get(old.plugged_as):
                # It boots, and asks as another client: what it was leased it does not use again. Addresses
                # that follow from the old MAC are those of whoever has that next.
                held = self._net.assignments_of(known, old)
                left = [one for one in held if one.kind in (BindingKind.DYNAMIC, BindingKind.SLAAC)]
        near = self._told_first(known.server, old, new)
        await commit(self._context, known.server, replaced(self._net, known, old, new, left), near=near)
        found = still_there(self._net, vm)
        if new.mac != old.mac:  # Its agent may have a port of it, made with the old one.
            self._context.events.publish(EventType.VM_NICS, vm=found, server=found.server)
        return found

    def _told_first(self, server: str, old: NIC, new: NIC) -> Near | None:
        """Of an anycast address that other NICs have no packet is to be lost: who joins is found before it is
        sent to, and who leaves until it is sent to no more."""
        if set(old.anycast) - set(new.anycast):
            return ()
        joins = set(new.anycast) - set(old.anycast)
        return underlay_of(self._net).order_to_withdraw(server) if joins else None

    def _may_have_another_mac(self, vm: VM, nic: NIC) -> None:
        if not self._net.vm_ports.get(nic.plugged_as):
            return
        self._ours(vm.id)
        runs = self._context.state.vm_states.get(vm.id) is VMState.RUNNING
        if runs or vm.power is Power.RUNNING:
            raise RequestError(
                f"VM {vm.id} is not off, and its guest would go on with MAC {nic.mac}: stop it first "
                f"(`retinue vm stop {vm.id}`), or give it another as it moves (`retinue move start {vm.id} "
                "--mac MAC`)",
                ErrorCode.CONFLICT,
            )

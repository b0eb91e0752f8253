"""Addresses that a VM's NICs have from a migration's target on: judged when it is asked for, given with the
step that closes the source."""

from collections.abc import Sequence
from dataclasses import replace

from retinue.controller.changes import Change, VMPlaced
from retinue.controller.context import Context
from retinue.controller.lease_changes import AddressReleased
from retinue.controller.migrations.requests import MigrationError
from retinue.controller.nic_changes import named_nic, replaced
from retinue.controller.state import State
from retinue.core.migration import Migration
from retinue.core.migration.new_addresses import NewAddresses, with_new_addresses
from retinue.core.model import NIC, VM, Assignment, ModelError, Network
from retinue.core.model.link_local import is_link_local
from retinue.core.model.network import Touched
from retinue.core.pipeline.underlay import Near, underlay_of
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType


def checked(state: State, vm: str, wanted: Sequence[NewAddresses], *, far: bool) -> tuple[NewAddresses, ...]:
    """With the ids of NICs filled in. Raises MigrationError, or ModelError for what could not be so now.

    `far`: in a migration between domains.
    """
    if not wanted:
        return ()
    known = state.net.vms[vm]
    if far or known.home:
        raise MigrationError(f"VM {vm} keeps its addresses between domains", ErrorCode.NOT_A_TARGET)
    named = tuple(replace(one, nic=named_nic(known, one.nic).port_id) for one in wanted)
    if len({one.nic for one in named}) < len(named):
        raise MigrationError(f"VM {vm}: one of its NICs is named twice", ErrorCode.CONFLICT)
    _try(state, changes(state.net, known, named))
    return named


def _try(state: State, wanted: Sequence[Change]) -> None:
    """Make the changes and take them back at once. Raises ModelError."""
    back = []
    try:
        for change in wanted:
            step_back = change.undo(state)
            change.apply(state)
            back.append(step_back)
    finally:
        for step_back in reversed(back):
            step_back()


def changes(net: Network, vm: VM, wanted: Sequence[NewAddresses]) -> list[Change]:
    """What makes of the VM, as it is placed, the one with the new addresses; nothing, where it has them."""
    found: list[Change] = []
    for one in wanted:
        old = vm.nic_called(one.nic)
        if old is None:
            continue  # It has been taken out of the VM since.
        new = with_new_addresses(old, one)
        if new != old:
            found += replaced(net, vm, old, new, _left_behind(net, vm, old, new))
            vm = replace(vm, nics=tuple(new if nic == old else nic for nic in vm.nics))
    return found


def _left_behind(net: Network, vm: VM, old: NIC, new: NIC) -> list[Assignment]:
    """What the NIC holds that is of no subnet of the vnet it comes to."""
    if new.vnet in ("", old.vnet):
        return []
    subnets = {s.id for s in net.subnets.values() if s.vnet == new.vnet}
    held = (a for a in net.assignments_of(vm, old) if not is_link_local(a.ip))
    return [a for a in held if (s := net.subnet_of(a.ip, a.vrf)) is None or s.id not in subnets]


def order(net: Network, migration: Migration) -> Near:
    """The source's edge gives the old rows up before the target's has the new ones: never are both there."""
    return [{net.servers[migration.source].edge}, underlay_of(net).near(migration.target)]


def close_source(context: Context, migration: Migration, closed: VM) -> Touched:
    """The VM is at its target alone (`closed`), with the addresses that it is to have there.

    What somebody else has come to have since it was asked for is not taken: then it keeps the old ones, and
    its manager is told. Raises ModelError.
    """
    net, placed = context.net, VMPlaced(closed)
    wanted = changes(net, closed, migration.new_addresses)
    try:
        touched = context.apply(placed, *wanted)
    except ModelError as error:
        told = {"migration_id": migration.id, "vm": closed.id, "reason": str(error)}
        context.events.publish(EventType.MIGRATION_ADDRESSES_KEPT, **told)
        return context.apply(placed)
    for gone in (change.assignment for change in wanted if isinstance(change, AddressReleased)):
        reason = "its manager gives it to the VM no longer"
        context.events.publish(EventType.BINDING_REMOVED, vm=gone.vm, ip=gone.leads, reason=reason)
    return touched

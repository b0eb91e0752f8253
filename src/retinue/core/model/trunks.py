"""Trunks: several VLANs into one VM by one port.

A NIC may have no port of its own, and go by that of another NIC of its VM, its *carrier*: with the VLAN of
its vnet as tag (802.1Q). It is a NIC like any other in all else. Its MAC, addresses and leases are its own,
so the guest's VLAN interface has a MAC of its own; what the carrier sends and is sent has no tag, and is of
the carrier's own vnet. A carrier that is disabled is a trunk without an untagged network.
"""

from retinue.core.model.addresses import ModelError
from retinue.core.model.entities import VM, Vnet
from retinue.core.model.nic import NIC
from retinue.core.model.view import NetworkView


def carried_by(vm: VM, carrier: NIC) -> list[NIC]:
    """The NICs of a VM that go by the port of this one."""
    return [nic for nic in vm.nics if nic.trunk == carrier.port_id]


def check_trunks(net: NetworkView, vm: VM) -> None:
    """Raises ModelError."""
    if vm.nic.trunk:
        raise ModelError(f"VM {vm.id}: its first NIC, by which it is known, has a port of its own")
    for nic in vm.nics:
        if nic.trunk:
            _check_carried(net, vm, nic)


def _check_carried(net: NetworkView, vm: VM, nic: NIC) -> None:
    what = f"VM {vm.id}: NIC {nic.port_id}, in the trunk of {nic.trunk},"
    carrier = vm.nic_called(nic.trunk)
    if carrier is None:
        has = ", ".join(one.port_id for one in vm.nics if not one.trunk)
        raise ModelError(f"{what} needs a NIC of that id, whose port it goes by; the VM has {has}")
    if carrier.trunk:
        raise ModelError(f"{what} cannot go by a NIC that is itself in a trunk; name {carrier.trunk}")
    vnet = net.vnets.get(nic.vnet)
    if vnet is None or not vnet.vlan:
        named = f"vnet {nic.vnet} has none" if nic.vnet else "it is in no vnet"
        raise ModelError(
            f"{what} is known by the VLAN of its vnet, and {named}; `retinue vnet set` gives one"
        )
    untagged = {one.vlan for one in net.vnets_of(carrier)} if carrier.enabled else set()
    others = {net.vlan_in_trunk(one) for one in carried_by(vm, carrier) if one is not nic}
    if vnet.vlan in untagged | others:
        raise ModelError(f"{what} is not the only one of vnet {vnet.id} there; a trunk has a VLAN once")
    if vnet.floods:
        raise ModelError(f"{what} is in vnet {vnet.id}, which floods; that trunks do not carry")
    if nic.mac_changes or carrier.mac_changes:
        raise ModelError(
            f"{what} keeps its MAC, as do all of the trunk: by it they are told apart; `retinue vm nic set "
            "--no-mac-changes`"
        )
    if nic.rate:
        raise ModelError(f"{what} has no rate of its own; that of {nic.trunk} holds for its whole port")
    if nic.trusted:
        raise ModelError(f"{what} cannot be a DHCP server; give it a port of its own (without a trunk)")
    if any(one.mac for one in nic.allowed):
        raise ModelError(f"{what} can be allowed addresses under its own MAC only, no virtual router's")


def check_vnet_in_trunks(net: NetworkView, vnet: Vnet) -> None:
    """A vnet that trunks carry keeps its VLAN, which guests have, and does not flood. Raises ModelError."""
    known = net.vnets.get(vnet.id)
    if known is None or (known.vlan == vnet.vlan and not vnet.floods):
        return
    carried = next((vm for vm, nic in net.members(vnet.id) if nic.trunk), None)
    if carried is None:
        return
    if known.vlan != vnet.vlan:
        raise ModelError(
            f"vnet {vnet.id} keeps VLAN {known.vlan}: VM {carried.id} has it in a trunk, and its guest knows "
            "it by that; take the NIC out first"
        )
    raise ModelError(
        f"vnet {vnet.id} cannot flood: VM {carried.id} has it in a trunk, and that carries no such"
    )

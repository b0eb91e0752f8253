"""NICs as the interface takes them in, and as it shows them."""

from typing import Any

from retinue.controller.config import address
from retinue.core.model import NIC, VM, ModelError, Network, entity_id, mac, port_id_of
from retinue.protocol.nics import NICBody
from retinue.protocol.vms import VMBody


def nics_of(given: VMBody) -> tuple[NIC, ...]:
    """A VM's NICs: those of `nics` or, in the form for one NIC, the one of `mac` and `addresses`.

    Raises ModelError.
    """
    if given.nics and (given.mac or given.addresses):
        raise ModelError(f"VM {given.id}: `mac` and `addresses` stand in `nics`, where that is given")
    if not given.nics and not given.mac:
        raise ModelError(f"VM {given.id}: `mac` is missing, or `nics`")
    bodies = given.nics or [NICBody(mac=given.mac, addresses=given.addresses)]
    return tuple(nic_of(given.id, body, number) for number, body in enumerate(bodies, 1))


def nic_of(vm: str, body: NICBody, number: int) -> NIC:
    """The VM's NIC of this number, which is its slot, too, from 1. Raises ModelError."""
    id = entity_id(body.id or port_id_of(vm, number), "a NIC")
    if number == 1 and id != vm:
        raise ModelError(f"VM {vm}: the id of its first NIC is the VM's own, not {id}")
    vnet = entity_id(body.vnet, "a vnet") if body.vnet else ""
    return NIC(mac(body.mac), id, tuple(map(address, body.addresses)), vnet, body.enabled, number)


def shown(vm: VM) -> list[dict[str, Any]]:
    """A VM's NICs by themselves."""
    return [
        {
            "id": nic.port_id,
            "mac": nic.mac,
            "vnet": nic.vnet,
            "addresses": [str(address) for address in nic.addresses],
            "enabled": nic.enabled,
            "slot": nic.slot,
            "trusted": nic.trusted,
            "rate": nic.rate,
            "allowed": [{"address": str(one.ip), "mac": one.mac} for one in nic.allowed],
            "prefixes": [str(prefix) for prefix in nic.prefixes],
        }
        for nic in vm.nics
    ]


def with_state(net: Network, vm: VM) -> list[dict[str, Any]]:
    """The same, each with its port where the VM is delivered, its network's MTU, and what it holds."""
    edge = net.servers[vm.server].edge
    ports = [net.port_of(nic, edge) for nic in vm.nics]
    return [
        row
        | {"port": None if port is None else port.number}
        | {"mtu": net.mtu_of(nic)}
        | {"holds": [str(held.ip) for held in net.assignments_of(vm, nic)]}
        for row, nic, port in zip(shown(vm), vm.nics, ports, strict=True)
    ]

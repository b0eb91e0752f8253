"""NICs as the interface takes them in, and as it shows them."""

from itertools import count
from typing import Any

from retinue.controller.parsing import address
from retinue.core.model import NIC, VM, ModelError, Network, Subnet, entity_id, mac, port_id_of
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
    slots = count(1)
    return tuple(
        nic_of(given.id, body, number, 0 if body.trunk else next(slots))
        for number, body in enumerate(bodies, 1)
    )


def nic_of(vm: str, body: NICBody, number: int, slot: int) -> NIC:
    """The VM's NIC of this number, from 1, and in this slot of its machine. Raises ModelError."""
    id = entity_id(body.id or port_id_of(vm, number), "a NIC")
    if number == 1 and id != vm:
        raise ModelError(f"VM {vm}: the id of its first NIC is the VM's own, not {id}")
    vnet = entity_id(body.vnet, "a vnet") if body.vnet else ""
    trunk = entity_id(body.trunk, "a NIC") if body.trunk else ""
    addresses = tuple(map(address, body.addresses))
    return NIC(mac(body.mac), id, addresses, vnet, body.enabled, slot, trunk=trunk)


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
            "trunk": nic.trunk,
            "mac_changes": nic.mac_changes,
            "initial_mac": nic.initial_mac,
            "mirror": nic.mirror,
            "anycast": [str(ip) for ip in nic.anycast],
            "load": nic.load,
        }
        for nic in vm.nics
    ]


def with_state(net: Network, vm: VM) -> list[dict[str, Any]]:
    """The same, each with its port where the VM is delivered, its network's MTU, and what it holds; and of
    its static addresses the subnets."""
    edge = net.servers[vm.server].edge
    ports = [net.port_of(nic, edge) for nic in vm.nics]
    return [
        row
        | {"port": None if port is None else port.number}
        | {"vlan": net.vlan_in_trunk(nic), "mtu": net.mtu_of(nic), "subnets": subnets(net, nic)}
        | {"holds": [str(held.leads) for held in net.assignments_of(vm, nic)]}
        for row, nic, port in zip(shown(vm), vm.nics, ports, strict=True)
    ]


def subnets(net: Network, nic: NIC) -> dict[str, dict[str, Any]]:
    """By each static address of a NIC: what its guest must know of the subnet."""
    found = {ip: net.subnet_of(ip, net.vrf_of(nic)) for ip in nic.addresses}
    return {str(ip): {} if subnet is None else _subnet(subnet) for ip, subnet in found.items()}


def _subnet(subnet: Subnet) -> dict[str, Any]:
    return {"prefixlen": subnet.prefix.prefixlen, "gateway": str(subnet.gateway)}

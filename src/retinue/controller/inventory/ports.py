"""All ports that switches report with a VM's port id: a set, whatever of it is the VM's port.

Two interfaces of one switch may carry the same id, by a mistake, or for a moment while one takes the place of
the other. When one of them goes, the other still stands.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from retinue.core.limits import HIGHEST_VM_PORT
from retinue.core.model import VM, ModelError, Network
from retinue.core.model.nic import is_mirror_port
from retinue.core.model.trunks import carried_by
from retinue.southbound.ovsdb.vm_ports import BridgePort

NO_MAC = "its interface has no external_ids:attached-mac"


@dataclass(frozen=True, slots=True)
class RejectedPort:
    """A port with a VM's id that is no VM's port."""

    port: BridgePort
    switch: str
    reason: str


@dataclass
class ReportedPorts:
    """The ports as last reported, by port id."""

    by_dpid: Mapping[int, str]
    """The switches of the network by datapath id."""
    _ports: dict[str, tuple[BridgePort, ...]] = field(default_factory=dict)

    def changed(self, removed: Collection[BridgePort], now: Collection[BridgePort]) -> list[tuple[str, int]]:
        """Take a report; the port ids it concerns, each with the datapath id, in order."""
        concerned: dict[tuple[str, int], None] = {}
        for port in removed:
            if port.iface_id:
                others = self._others_than(port, port.iface_id)
                if others:
                    self._ports[port.iface_id] = others
                else:
                    self._ports.pop(port.iface_id, None)
                concerned[port.iface_id, port.dpid] = None
        for port in now:
            if port.iface_id:
                self._ports[port.iface_id] = (*self._others_than(port, port.iface_id), port)
                concerned[port.iface_id, port.dpid] = None
        return list(concerned)

    def on(self, port_id: str, switch: str) -> list[BridgePort]:
        """A switch's ports with this id that have a number, the lowest first."""
        found = [port for port in self._of(port_id, switch) if port.number is not None]
        return sorted(found, key=lambda port: (port.number or 0, port.name))

    def has(self, port_id: str, switch: str) -> bool:
        """True while a port with this id stands on the switch, with or without a number."""
        return bool(self._of(port_id, switch))

    def switches(self, port_id: str) -> list[str]:
        """The switches with a port of this id."""
        found = {
            self.by_dpid[port.dpid] for port in self._ports.get(port_id, ()) if port.dpid in self.by_dpid
        }
        return sorted(found)

    def _others_than(self, port: BridgePort, port_id: str) -> tuple[BridgePort, ...]:
        return tuple(one for one in self._ports.get(port_id, ()) if one.key != port.key)

    def _of(self, port_id: str, switch: str) -> list[BridgePort]:
        ports = self._ports.get(port_id, ())
        return [port for port in ports if self.by_dpid.get(port.dpid) == switch]


def why_not(net: Network, port: BridgePort, vm: VM) -> str:
    """Why a port with a registered VM's id is not the VM's port; "" if it may be."""
    nic = vm.nic_called(port.iface_id or "") or vm.nic
    if nic.trunk:
        return f"NIC {nic.port_id} is in the trunk of {nic.trunk}, and goes by the port of that"
    if port.attached_mac and port.attached_mac not in (nic.mac, nic.initial_mac):
        return f"attached-mac is {port.attached_mac}, {vm.id} is registered with {nic.mac}"
    if vm.reported and not port.attached_mac:
        return port.problem or NO_MAC
    if unfit := unfit_for_vms(port):
        return unfit
    carried = {net.vlan_in_trunk(one) for one in carried_by(vm, nic)}
    if port.trunks and set(port.trunks) - {port.tag} != carried:
        has = f"its trunk VLANs {_listed(carried)}" if carried else "no trunk"
        return (
            f"its port is a trunk of VLANs {_listed(port.trunks)}, and the NIC has {has}; make both the same"
        )
    # libvirt writes the tag of `<vlan>` on the port; our entries go by the NIC's vnet, whatever it says.
    vnets = net.vnets_of(nic)
    if port.tag and port.tag not in {vnet.vlan for vnet in vnets}:
        whose = ", ".join(f"{v.id} ({f'VLAN {v.vlan}' if v.vlan else 'no VLAN'})" for v in vnets)
        return (
            f"its VLAN tag is {port.tag}, and the NIC is in vnet {whose}; take the tag away (of libvirt: "
            "`<vlan>`), or put the NIC into the vnet with that VLAN"
        )
    return ""


def unfit_for_vms(port: BridgePort) -> str:
    """Why its name or number is none for a VM's port: it takes copies, or would share meters with others; ""
    if it may be."""
    if is_mirror_port(port.name):
        return f"a port called {port.name} takes copies of what others send; give the VM's another name"
    if port.number is None or port.number <= HIGHEST_VM_PORT:
        return ""
    return (
        f"its number is {port.number}, and VMs' ports have one up to {HIGHEST_VM_PORT}; give it another "
        f"(`ovs-vsctl set interface {port.name} ofport_request=N`)"
    )


def vnet_of_tag(net: Network, port: BridgePort) -> str:
    """The vnet of the VLAN that an unregistered VM's port is given; "": it has none. Raises ModelError."""
    found = [vnet.id for vnet in net.vnets.values() if port.tag and vnet.vlan == port.tag]
    if port.tag and not found:
        makes = f"`retinue vnet add ID --vlan {port.tag}` makes one"
        raise ModelError(f"its VLAN tag is {port.tag}, which is no vnet's; {makes}")
    return found[0] if found else ""


def _listed(vlans: Collection[int]) -> str:
    return ", ".join(map(str, sorted(vlans)))

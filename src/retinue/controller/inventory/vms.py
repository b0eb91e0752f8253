"""What is registered and what is there: VMs and servers as managers give them, ports as switches report
them.

A VM is ready when the two agree and every switch has confirmed its flows.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from retinue.controller.changes import (
    Change,
    ServerRegistered,
    VMPortChanged,
    VMPortRemoved,
    VMRegistered,
    VMRemoved,
    VMReported,
    VMStateChanged,
)
from retinue.controller.context import Context
from retinue.controller.errors import RequestError, no_server, no_vm
from retinue.controller.inventory.nic_settings import static_assignments, with_settings
from retinue.controller.inventory.nics import NicControl
from retinue.controller.inventory.ports import RejectedPort, ReportedPorts
from retinue.controller.inventory.power import PowerControl
from retinue.controller.inventory.settings import VMSettings
from retinue.controller.lease_changes import AddressAssigned, AddressReleased
from retinue.controller.marks import LeftPortForgotten, PortLeft, ServerDrained, ServerUndrained
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.controller.state import LeftPort
from retinue.core.limits import MOST_REPORTED
from retinue.core.migration import at_one_place
from retinue.core.model import NIC, VM, Assignment, ModelError, Power, Server, VMPort
from retinue.core.model.link_local import is_link_local
from retinue.core.model.network import Owner, Touched
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.placement import EntityKind
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.vms import VMState
from retinue.southbound.ovsdb.vm_ports import BridgePort

NO_MAC = "its interface has no external_ids:attached-mac"


class Inventory:
    """Registers VMs and servers, follows the ports of VMs, and judges whether a VM is ready."""

    def __init__(
        self,
        context: Context,
        orchestrator: MigrationOrchestrator,
        by_dpid: Mapping[int, str],
        give_back: Callable[..., None] = lambda vm, nic=None: None,
    ) -> None:
        """`give_back`: what to do about the leases of a VM that the manager removes, or of one NIC of it."""
        self._context = context
        self._net = context.net
        self._events = context.events
        self._orchestrator = orchestrator
        self._reported = ReportedPorts(by_dpid)
        self.rejected_ports: dict[tuple[int, str], RejectedPort] = {}
        """Ports with a VM's id that are no VM's port, by datapath id and name."""
        self._by_dpid = by_dpid
        self._give_back = give_back
        self.name_free: Callable[[str, EntityKind], None] = lambda name, kind: None
        """Raises ModelError where something of another kind has the name."""
        self.forgotten: Callable[[str], None] = lambda vm: None
        """Called with each VM that is no more."""
        self.power = PowerControl(context, orchestrator, self.state_of)
        self.nics = NicControl(context, orchestrator, give_back, self._look_for_port, self._leave_port_of)
        self.settings = VMSettings(context, self.power.ours, self.state_of)

    # ---- requests of managers, reports of agents ----

    def register_vms(self, vms: Collection[VM]) -> list[VM]:
        """VMs given in advance, in bulk; all of them or, on a mistake, none (ModelError).

        A VM that a switch reported can be registered, too, but neither while it migrates nor with
        another MAC than it runs with: it would lose its addresses while it uses them.
        """
        if len({vm.id for vm in vms}) < len(vms):
            twice = next(vm.id for vm in vms if sum(other.id == vm.id for other in vms) > 1)
            raise ModelError(f"VM {twice} is given twice")
        vms = [self._may_be_registered(vm) for vm in vms]
        changes: list[Change] = []
        moved = [held for vm in vms for held in self._meant_elsewhere(vm)]
        changes += map(AddressReleased, moved)
        for vm in vms:
            changes.append(VMRegistered(vm))
            changes += [
                AddressAssigned(a) for nic in vm.nics for a in static_assignments(self._net, vm.id, nic)
            ]
        touched = set(self._context.apply(*changes))
        for nic in (nic for vm in vms for nic in vm.nics):
            touched |= self._look_for_port(nic)
        touched |= self._look_at_rejected()
        for held in moved:
            reason = "it is not of the vnet in which the NIC is registered"
            self._context.events.publish(EventType.BINDING_REMOVED, vm=held.vm, ip=held.ip, reason=reason)
        self._context.spawn(self._context.install(touched), "registered VMs")
        return list(vms)

    def _meant_elsewhere(self, vm: VM) -> list[Assignment]:
        """What a VM holds that is of another VRF or vnet than its NICs are in, as it is registered."""
        net, found = self._net, []
        for held in net.held_by(vm.id):
            nic = vm.nic_with(held.mac)
            if nic is None:
                continue
            subnet = net.subnet_of(held.ip, held.vrf)
            fits = not nic.vnet or is_link_local(held.ip) or (subnet is not None and subnet.vnet == nic.vnet)
            if held.vrf != net.vrf_of(nic) or not fits:
                found.append(held)
        return found

    def _look_for_port(self, nic: NIC) -> Touched:
        """The port of a NIC that has just been registered may be there already."""
        left = self._context.state.left_ports.get(nic.port_id)
        if left is not None:
            self._context.apply(LeftPortForgotten(left))
        switches = self._reported.switches(nic.port_id)
        return frozenset().union(*(self._look_at_port(nic.port_id, switch) for switch in switches))

    def _may_be_registered(self, vm: VM) -> VM:
        """The VM to register: one whose server is fenced keeps its static addresses, if none is given."""
        if vm.server in self._net.fenced:
            raise RequestError(
                f"server {vm.server} is fenced; `retinue server unfence {vm.server}` when it is well again"
            )
        self.name_free(vm.id, EntityKind.VM)
        known = self._net.vms.get(vm.id)
        if vm.server in self._net.drained and (known is None or known.server != vm.server):
            raise RequestError(
                f"server {vm.server} is drained; `retinue server undrain {vm.server}` lets it take VMs again"
            )
        if known is None:
            return vm
        dead = known.server in self._net.fenced
        if not known.reported and not dead:
            raise RequestError(
                f"VM {vm.id} is registered already, at {known.server}", ErrorCode.ALREADY_REGISTERED
            )
        migration = self._orchestrator.of_vm(vm.id)
        if migration is not None:
            raise RequestError(
                f"VM {vm.id} is being migrated: {migration.id} is {migration.state}; "
                f"register it when that has ended",
                ErrorCode.MIGRATION_UNDER_WAY,
            )
        vm = with_settings(vm, known)
        ports = self._net.vm_ports.get(known.nic.port_id)
        if dead and [nic.mac for nic in vm.nics] == [nic.mac for nic in known.nics]:
            return vm if any(nic.addresses for nic in vm.nics) else replace(vm, nics=known.nics)
        if ports and vm.nic.mac != known.nic.mac:
            raise ModelError(
                f"VM {vm.id} runs at {', '.join(sorted(ports))} with MAC {known.nic.mac}, not {vm.nic.mac}"
            )
        return vm

    def take_over(self, vm: str, server: str) -> VM:
        """A VM whose server is fenced was started at another one: it is there, with what it holds."""
        found = at_one_place(self._net.vms[vm], server)
        touched = self._context.apply(VMReported(found) if found.reported else VMRegistered(found))
        self._context.spawn(self._context.install(touched), f"{vm} outlives its server")
        return found

    async def remove_vm(self, vm: str) -> None:
        """Raises ModelError for a VM that is not there, or that migrates."""
        registered = self._net.vms.get(vm)
        if registered is None:
            raise no_vm(vm)
        migration = self._orchestrator.of_vm(vm)
        if migration is not None:
            raise RequestError(
                f"VM {vm} is being migrated: {migration.id} is {migration.state}; cancel it first",
                ErrorCode.MIGRATION_UNDER_WAY,
            )
        self._leave_port(registered)
        self._give_back(registered)
        touched = self._forget_vm(registered)
        await self._context.install(touched | self._look_at_rejected())

    def _leave_port(self, vm: VM) -> None:
        """Its ports stand, or may stand for all that is known, and say nothing more of a VM."""
        for nic in vm.nics:
            self._leave_port_of(vm, nic.port_id)

    def _leave_port_of(self, vm: VM, port_id: str) -> None:
        read = self._context.knowledge.edges_read
        edges = {self._net.servers[server].edge for server in vm.locations}
        switches = {*self._reported.switches(port_id), *self._net.vm_ports.get(port_id, ()), *(edges - read)}
        if switches:
            self._context.apply(PortLeft(LeftPort(port_id, vm.id, tuple(sorted(switches)))))

    def removed_vms(self) -> list[str]:
        """VMs that were removed, and whose ports still stand: what is left of them at a server is to go."""
        return sorted({left.vm for left in self._context.state.left_ports.values()})

    def _forget_vm(self, vm: VM) -> Touched:
        touched = self._context.apply(VMRemoved(vm, self._net.held_by(vm.id)))
        self._orchestrator.vm_gone(vm.id)
        self.forgotten(vm.id)
        return touched

    def drain(self, server: str, *, drained: bool) -> None:
        """Whether a server is to take no VM any more. Those that are there stay. Raises RequestError."""
        if server not in self._net.servers:
            raise no_server(server)
        self._context.apply(ServerDrained(server) if drained else ServerUndrained(server))

    async def put_servers(self, servers: Collection[Server]) -> None:
        """Servers given, or changed, in bulk; all or, on a mistake, none (ModelError)."""
        for server in servers:
            self.name_free(server.id, EntityKind.SERVER)
        touched = self._context.apply(*(ServerRegistered(server) for server in servers))
        near = frozenset().union(*(underlay_of(self._net).near(s.id) for s in servers))
        await self._context.install(touched, [near])

    # ---- ports of VMs, from the switches' databases ----

    def vm_ports_changed(self, removed: Collection[BridgePort], now: Collection[BridgePort]) -> None:
        """Ports with a VM's port id that were removed, and that appeared or changed."""
        touched: set[Owner] = set()
        for port in removed:
            self.rejected_ports.pop(port.key, None)
        for port in now:
            if port.problem and not port.iface_id and port.dpid in self._by_dpid:
                self._judge(port, self._by_dpid[port.dpid], "", port.problem)
        for port_id, dpid in self._reported.changed(removed, now):
            if dpid in self._by_dpid:
                touched |= self._look_at_port(port_id, self._by_dpid[dpid])
        if touched:
            touched |= self._look_at_rejected()
            self._context.spawn(self._context.install(touched), "VM ports")

    def edge_read(self, dpids: Collection[int], port_ids: Collection[str] = ()) -> None:
        """These switches' databases have been read; `port_ids` are those of the VMs' ports found there.

        A reported VM that has none where its traffic is delivered, nor anywhere, went while nobody looked;
        one that migrates is left to its migration.
        """
        switches = {self._by_dpid[dpid] for dpid in dpids if dpid in self._by_dpid}
        self._context.knowledge.edges_read |= switches
        touched: set[Owner] = set()
        for switch in switches:
            server = self._net.server_of_edge(switch)
            for name in self._net.vms_on(server.id) if server is not None else ():
                vm = self._net.vms[name]
                if vm.reported and vm.nic.port_id not in port_ids and self._is_gone(vm):
                    touched |= self._forget_vm(vm)
        for left in list(self._context.state.left_ports.values()):
            for switch in switches:
                self._no_longer_left(left.port_id, switch)
        # With nothing touched, too: what was held on these switches can be judged now.
        self._context.spawn(self._context.install(touched), "databases of switches")
        self._context.installer.look_again()

    def _is_gone(self, vm: VM) -> bool:
        read = self._net.servers[vm.server].edge in self._context.knowledge.edges_read
        migrates = self._orchestrator.of_vm(vm.id) is not None
        return read and not migrates and not self._net.vm_ports.get(vm.nic.port_id)

    # ---- which port is the VM's ----

    def _look_at_port(self, port_id: str, switch: str) -> Touched:
        """Of all ports of a switch that have this port id, one is the VM's: the one in use, or the first.

        The others, and those that are no VM's at all, are rejected with a word.
        """
        ports = self._reported.on(port_id, switch)
        known, before = self._net.vm_of_port_id(port_id), self._net.vm_ports.get(port_id, {}).get(switch)
        touched: set[Owner] = set()
        if known is None and port_id not in self._context.state.left_ports:
            known = self._register_reported(switch, ports)
            touched |= {Owner("vm", known.id)} if known is not None else set()
        usable = [port for port in ports if known is not None and _why_not(port, known) == ""]
        named = usable if known is not None else ports  # Of a removed VM a port goes when it has gone.
        chosen = next((port for port in named if before is not None and port.name == before.name), None)
        if chosen is None and usable:
            chosen = usable[0]
        vm = known.id if known is not None else port_id
        if chosen is None and before is not None:
            touched |= self._context.apply(VMPortRemoved(vm, port_id, switch, before))
        elif chosen is not None and known is not None and chosen.number is not None:
            found = VMPort(chosen.number, chosen.name, chosen.status)
            touched |= self._context.apply(VMPortChanged(vm, port_id, switch, found, before))
        if known is not None:
            for port in ports:
                twice = (
                    ""
                    if port is chosen or chosen is None
                    else f"port {chosen.name} has the same id, and is used"
                )
                self._judge(port, switch, vm, _why_not(port, known) or twice)
        return frozenset(touched | self._without_port(port_id, switch, known, gone=before is not None))

    def _without_port(self, port_id: str, switch: str, known: VM | None, *, gone: bool) -> Touched:
        """A port that has gone may have been the last of a reported VM, or of one that was removed."""
        self._no_longer_left(port_id, switch)
        if known is None or not known.reported or not gone or self._net.vm_ports.get(port_id):
            return frozenset()
        touched = self._forget_vm(known)  # Nobody registered it; it goes as it came.
        return (
            touched | self._look_at_port(port_id, switch) if self._reported.on(port_id, switch) else touched
        )

    def _no_longer_left(self, port_id: str, switch: str) -> None:
        left = self._context.state.left_ports.get(port_id)
        if left is None or switch not in left.switches or self._reported.has(port_id, switch):
            return
        switches = tuple(name for name in left.switches if name != switch)
        self._context.apply(
            PortLeft(replace(left, switches=switches)) if switches else LeftPortForgotten(left)
        )

    def _look_at_rejected(self) -> Touched:
        """What was in a port's way may have gone."""
        found = {(one.port.iface_id or "", one.switch) for one in self.rejected_ports.values()}
        return frozenset().union(*(self._look_at_port(*one) for one in sorted(found)))

    def _judge(self, port: BridgePort, switch: str, vm: str, reason: str) -> None:
        """Reject a port, told once for each reason; or, with none, no longer."""
        if not reason:
            self.rejected_ports.pop(port.key, None)
            return
        before = self.rejected_ports.get(port.key)
        self.rejected_ports[port.key] = RejectedPort(port, switch, reason)
        if before is None or before.reason != reason:
            self._mismatch(switch, port, vm, reason)

    def _check_room(self, server: str) -> None:
        """Raises ModelError where a server has reported as many VMs as it may."""
        if sum(self._net.vms[id].reported for id in self._net.vms_on(server)) >= MOST_REPORTED:
            raise ModelError(f"server {server} has {MOST_REPORTED} VMs that nobody registered already")

    def _register_reported(self, switch: str, ports: Sequence[BridgePort]) -> VM | None:
        """A server reports a VM it made, by the ids it sets on the port, as libvirt does."""
        server = self._net.server_of_edge(switch)
        for port in ports:
            reason = f"switch {switch} is not the edge of a server"
            if server is not None:
                reason = port.problem or NO_MAC
            if server is not None and port.attached_mac and port.iface_id:
                vm = VM.with_one_nic(port.iface_id, port.attached_mac, server.id, reported=True)
                try:
                    self._check_room(server.id)
                    self.name_free(vm.id, EntityKind.VM)
                    self._context.apply(VMReported(vm))
                except ModelError as error:
                    reason = str(error)
                else:
                    return vm
            self._judge(port, switch, port.iface_id or "", reason)
        return None

    def _mismatch(self, switch: str, port: BridgePort, vm: str, reason: str) -> None:
        self._events.tell(
            (switch,), EventType.VM_MISMATCH, vm=vm, switch=switch, port=port.name, reason=reason
        )

    # ---- readiness ----

    def look_at(self, owners: Collection[Owner]) -> None:
        """After an installation: VMs may be ready, migrations may go on."""
        for owner in owners:
            if owner.kind != "vm" or owner.id not in self._net.vms:
                continue
            self._orchestrator.look_again_for(owner.id)
            if self.state_of(owner.id) is VMState.REGISTERED and self._is_ready(owner):
                server = self._net.vms[owner.id].server
                self._context.apply(VMStateChanged(owner.id, VMState.READY, EventType.VM_READY, server))

    def state_of(self, vm: str) -> VMState:
        """What is known of the VM and, of one that does not run, what it is to do."""
        known = self._context.state.vm_states.get(vm, VMState.REGISTERED)
        registered = self._net.vms.get(vm)
        if known is VMState.RUNNING or registered is None or registered.power is Power.RUNNING:
            return known
        return VMState.OFF if registered.power is Power.OFF else VMState.CRASHED

    def _is_ready(self, owner: Owner) -> bool:
        """Given and detected match, and every switch has confirmed the VM's flows."""
        vm = self._net.vms[owner.id]
        edge = self._net.servers[vm.server].edge
        return (
            underlay_of(self._net).is_reachable(vm.server)
            and self._net.has_ports(vm.id, edge)
            and self._context.is_connected(edge)
            and self._context.is_programmed(owner)
        )

    def missing_for(self, vm: VM) -> list[str]:
        """What a VM that is not ready waits for, in sentences for the operator."""
        edge = self._net.servers[vm.server].edge
        found = []
        if not underlay_of(self._net).is_reachable(vm.server):
            found.append(f"server {vm.server} has not been detected at any leaf")
        without = (nic for nic in vm.nics if self._net.port_of(nic, edge) is None)
        found += [f"switch {edge} has no port with iface-id {nic.port_id}" for nic in without]
        if not self._context.is_connected(edge):
            found.append(f"switch {edge} is not connected")
        if not found and not self._context.is_programmed(Owner("vm", vm.id)):
            found.append("its flows are not confirmed by every switch")
        return found


def _why_not(port: BridgePort, vm: VM) -> str:
    """Why a port with a registered VM's id is not the VM's port; "" if it may be."""
    nic = vm.nic_called(port.iface_id or "") or vm.nic
    if port.attached_mac and port.attached_mac != nic.mac:
        return f"attached-mac is {port.attached_mac}, {vm.id} is registered with {nic.mac}"
    if vm.reported and not port.attached_mac:
        return port.problem or NO_MAC
    return ""

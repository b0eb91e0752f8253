"""Ports of VMs, followed: which of those that switches report is whose, and what comes of it.

Whoever makes a port gives it an id; the VM that is registered with it has it. A port of nobody's id registers
the VM it names, as libvirt's do.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from retinue.controller.changes import VMPortChanged, VMPortRemoved, VMReported
from retinue.controller.context import Context
from retinue.controller.inventory.ports import (
    NO_MAC,
    RejectedPort,
    ReportedPorts,
    unfit_for_vms,
    vnet_of_tag,
    why_not,
)
from retinue.controller.marks import LeftPortForgotten, PortLeft, left_elsewhere
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.controller.nic_changes import NICChanged
from retinue.controller.state import LeftPort
from retinue.core.limits import MOST_REPORTED
from retinue.core.model import NIC, VM, ModelError, VMPort
from retinue.core.model.network import Owner, Touched
from retinue.core.placement import EntityKind
from retinue.protocol.events import EventType
from retinue.southbound.ovsdb.vm_ports import BridgePort


class VMPorts:
    """The ports of VMs as the switches' databases have them, the VM's own told from those that are none."""

    def __init__(
        self,
        context: Context,
        orchestrator: MigrationOrchestrator,
        by_dpid: Mapping[int, str],
        name_free: Callable[[str, EntityKind], None],
        forget_vm: Callable[[VM], Touched],
    ) -> None:
        """`name_free` raises ModelError where something of another kind has the name; `forget_vm`: a VM that
        nobody registered has gone."""
        self._context = context
        self._net = context.net
        self._orchestrator = orchestrator
        self._by_dpid = by_dpid
        self._name_free = name_free
        self._forget_vm = forget_vm
        self._reported = ReportedPorts(by_dpid)
        self.rejected: dict[tuple[int, str], RejectedPort] = {}
        """Ports with a VM's id that are no VM's port, by datapath id and name."""

    # ---- from the switches' databases ----

    def changed(self, removed: Collection[BridgePort], now: Collection[BridgePort]) -> None:
        """Ports with a VM's port id that were removed, and that appeared or changed."""
        touched: set[Owner] = set()
        for port in removed:
            self.rejected.pop(port.key, None)
        for port in now:
            if port.problem and not port.iface_id and port.dpid in self._by_dpid:
                self._judge(port, self._by_dpid[port.dpid], "", port.problem)
        for port_id, dpid in self._reported.changed(removed, now):
            if dpid in self._by_dpid:
                touched |= self._look_at_port(port_id, self._by_dpid[dpid])
        if touched:
            touched |= self.look_at_rejected()
            if any(owner.kind == "vm" and self._orchestrator.of_vm(owner.id) for owner in touched):
                self._context.spawn(self._context.install(touched), "VM ports")  # A migration waits for it.
            else:
                self._context.install_in_turn(touched, "VM ports")

    def edge_read(self, dpids: Collection[int], port_ids: Collection[str] = ()) -> None:
        """These switches' databases have been read; `port_ids` are those of the VMs' ports found there.

        A reported VM that has none where its traffic is delivered, nor anywhere, went while nobody looked;
        one that migrates is left to its migration.
        """
        switches = {self._by_dpid[dpid] for dpid in dpids if dpid in self._by_dpid}
        self._context.knowledge.edges_read |= switches
        touched: set[Owner] = set()
        for switch in switches:
            touched |= self._net.ports_are_told(switch)
            server = self._net.server_of_edge(switch)
            for name in self._net.vms_on(server.id) if server is not None else ():
                vm = self._net.vms[name]
                if vm.reported and vm.nic.port_id not in port_ids and self.is_gone(vm):
                    touched |= self._forget_vm(vm)
        for left in list(self._context.state.left_ports.values()):
            for switch in switches:
                self._no_longer_left(left.port_id, switch)
        # With nothing touched, too: what was held on these switches can be judged now.
        self._context.spawn(self._context.install(touched), "databases of switches")
        self._context.installer.look_again()

    def is_gone(self, vm: VM) -> bool:
        """A reported VM has no port where its switch has been read, and no migration to leave it to.

        One that is in another domain has its port there, and goes when that domain says so.
        """
        read = self._net.servers[vm.server].edge in self._context.knowledge.edges_read
        there = self._net.peer_at(vm.server) is not None or self._net.vm_ports.get(vm.nic.port_id)
        return read and not self.migrates(vm) and not there

    def migrates(self, vm: VM) -> bool:
        return self._orchestrator.of_vm(vm.id) is not None

    # ---- which port is the VM's ----

    def _look_at_port(self, port_id: str, switch: str) -> Touched:
        """Of all ports of a switch that have this port id, one is the VM's: the one in use, or the first; of
        those of the VM's host, where that has one.

        The others, and those that are no VM's at all, are rejected with a word.
        """
        ports = self._reported.on(port_id, switch)
        known, before = self._net.vm_of_port_id(port_id), self._net.vm_ports.get(port_id, {}).get(switch)
        touched: set[Owner] = set()
        if known is None and port_id not in self._context.state.left_ports:
            known = self._register_reported(switch, ports)
            touched |= {Owner("vm", known.id)} if known is not None else set()
        usable = [port for port in ports if known is not None and why_not(self._net, port, known) == ""]
        named = usable if known is not None else ports  # Of a removed VM a port goes when it has gone.
        host = "" if known is None else self._host_at(known, switch)
        of_host = [port for port in usable if port.host == host]
        if host and of_host:
            named = usable = of_host
        chosen = next((port for port in named if before is not None and port.name == before.name), None)
        if chosen is None and usable:
            chosen = usable[0]
        vm = known.id if known is not None else port_id
        if chosen is None and before is not None:
            touched |= self._context.apply(VMPortRemoved(vm, port_id, switch, before))
            touched |= self._made_anew(vm, port_id)
        elif chosen is not None and known is not None and chosen.number is not None:
            found = VMPort(chosen.number, chosen.name, chosen.status)
            touched |= self._context.apply(VMPortChanged(vm, port_id, switch, found, before))
        if known is not None:
            for port in ports:
                twice = (
                    ""
                    if port is chosen or chosen is None or port.host != chosen.host
                    else f"port {chosen.name} has the same id, and is used"
                )
                self._judge(port, switch, vm, why_not(self._net, port, known) or twice)
        return frozenset(touched | self._without_port(port_id, switch, known, gone=before is not None))

    def _host_at(self, vm: VM, switch: str) -> str:
        """On which of the hosts at this switch the VM is, or will be by the migration that it is in."""
        migration = self._orchestrator.of_vm(vm.id)
        if migration is None:
            return vm.host
        is_target = switch == self._net.servers[migration.target].edge
        return migration.target_host if is_target else migration.source_host

    def _made_anew(self, vm: str, port_id: str) -> Touched:
        """Of a NIC without a port: one that has had another MAC since that was made gets the next with it."""
        known = self._net.vms.get(vm)
        nic = None if known is None else known.nic_called(port_id)
        if known is None or nic is None or not nic.initial_mac or self._net.vm_ports.get(port_id):
            return frozenset()
        held = self._net.assignments_of(known, nic)
        return self._context.apply(NICChanged(known, nic, replace(nic, initial_mac=""), held))

    def look_at_vnet(self, vnet: str) -> None:
        """The vnet is new, or has changed: ports with a VLAN tag may agree with it now, or no longer."""
        touched = set(self.look_at_rejected())
        for vm, nic in list(self._net.members(vnet)):
            for switch in self._reported.switches(nic.port_id):
                if vm.id in self._net.vms:
                    touched |= self._look_at_port(nic.port_id, switch)
        if touched:
            self._context.spawn(self._context.install(touched), f"ports of vnet {vnet}")

    def _without_port(self, port_id: str, switch: str, known: VM | None, *, gone: bool) -> Touched:
        """A port that has gone may have been the last of a reported VM, or of one that was removed."""
        self._no_longer_left(port_id, switch)
        if known is None or not known.reported or not gone or self._net.vm_ports.get(port_id):
            return frozenset()
        if self._net.peer_at(known.server) is not None:
            return frozenset()  # It has gone to another domain.
        touched = self._forget_vm(known)  # Nobody registered it; it goes as it came.
        return (
            touched | self._look_at_port(port_id, switch) if self._reported.on(port_id, switch) else touched
        )

    def _no_longer_left(self, port_id: str, switch: str) -> None:
        left = self._context.state.left_ports.get(port_id)
        if left is None or switch not in left.switches or self._reported.has(port_id, switch):
            return
        self._context.apply(left_elsewhere(left, switch))

    def look_at_rejected(self) -> Touched:
        """What was in a port's way may have gone."""
        found = {(one.port.iface_id or "", one.switch) for one in self.rejected.values()}
        return frozenset().union(*(self._look_at_port(*one) for one in sorted(found)))

    def _judge(self, port: BridgePort, switch: str, vm: str, reason: str) -> None:
        """Reject a port, told once for each reason; or, with none, no longer."""
        if not reason:
            self.rejected.pop(port.key, None)
            return
        before = self.rejected.get(port.key)
        self.rejected[port.key] = RejectedPort(port, switch, reason)
        if before is None or before.reason != reason:
            self._mismatch(switch, port, vm, reason)

    def _check_room(self, server: str) -> None:
        """Raises ModelError where a server has reported as many VMs as it may."""
        if sum(self._net.vms[id].reported for id in self._net.vms_on(server)) >= MOST_REPORTED:
            raise ModelError(f"server {server} has {MOST_REPORTED} VMs that nobody registered already")

    def check_not_removed(self, vm: VM) -> None:
        """Raises ModelError for a VM that was removed while a port of it may stand: by a port of its own it
        does not come back either."""
        if vm.nic.port_id in self._context.state.left_ports or vm.id in self.removed_vms():
            raise ModelError(
                f"VM {vm.id} was removed, and a port of it may still stand: take that away, or register the "
                "VM (retinue vm add)"
            )

    def register_reported(self, vm: VM) -> Touched:
        """A VM that its server reports, and no manager has registered. Raises ModelError."""
        self._check_room(vm.server)
        self._name_free(vm.id, EntityKind.CLIENT)  # Of one that roams the manager may have said so before.
        return self._context.apply(VMReported(vm))

    def as_plugged(self, vm: VM) -> VM:
        """A VM with one NIC as its port has it, if that stands at its server's edge: in the vnet of its tag.
        Raises ModelError for a port that no VM can have."""
        for port in self._reported.on(vm.nic.port_id, self._net.servers[vm.server].edge):
            vm = self._by_port(vm, port)
        return vm

    def _by_port(self, vm: VM, port: BridgePort) -> VM:
        if unfit := unfit_for_vms(port):
            raise ModelError(unfit)
        return replace(vm, nics=(replace(vm.nic, vnet=vnet_of_tag(self._net, port)),))

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
                    vm = self._by_port(vm, port)
                    self.register_reported(vm)
                except ModelError as error:
                    reason = str(error)
                else:
                    return vm
            self._judge(port, switch, port.iface_id or "", reason)
        return None

    def _mismatch(self, switch: str, port: BridgePort, vm: str, reason: str) -> None:
        self._context.events.tell(
            (switch,), EventType.VM_MISMATCH, vm=vm, switch=switch, port=port.name, reason=reason
        )

    # ---- VMs that come and go ----

    def look_for(self, nic: NIC) -> Touched:
        """The port of a NIC that has just been registered may be there already."""
        left = self._context.state.left_ports.get(nic.port_id)
        if left is not None:
            self._context.apply(LeftPortForgotten(left))
        switches = self._reported.switches(nic.port_id)
        return frozenset().union(*(self._look_at_port(nic.port_id, switch) for switch in switches))

    def leave_all(self, vm: VM) -> None:
        """Its ports stand, or may stand for all that is known, and say nothing more of a VM."""
        for nic in vm.nics:
            if not nic.trunk:
                self.leave(vm, nic.port_id)

    def leave(self, vm: VM, port_id: str) -> None:
        """A NIC has been taken out of the VM: its port is no NIC's."""
        read = self._context.knowledge.edges_read
        edges = {self._net.servers[server].edge for server in vm.locations}
        switches = {*self._reported.switches(port_id), *self._net.vm_ports.get(port_id, ()), *(edges - read)}
        if switches:
            self._context.apply(PortLeft(LeftPort(port_id, vm.id, tuple(sorted(switches)))))

    def removed_vms(self) -> list[str]:
        """VMs that were removed, and whose ports still stand: what is left of them at a server is to go."""
        return sorted({left.vm for left in self._context.state.left_ports.values()})

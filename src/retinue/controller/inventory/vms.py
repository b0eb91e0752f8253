"""What is registered: VMs and servers as managers give them. What is there are the ports, in vm_ports.py.

A VM is ready when the two agree and every switch has confirmed its flows.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from retinue.controller.changes import (
    Change,
    ServerRegistered,
    VMRegistered,
    VMRemoved,
    VMReported,
    VMStateChanged,
)
from retinue.controller.context import Context
from retinue.controller.errors import RequestError, no_server, no_vm
from retinue.controller.inventory.away import check_is_here, check_stays_as_at_home
from retinue.controller.inventory.disks import as_it_outlives_its_server, check_images
from retinue.controller.inventory.nic_settings import with_settings
from retinue.controller.inventory.nics import NicControl
from retinue.controller.inventory.ours import ours
from retinue.controller.inventory.power import PowerControl
from retinue.controller.inventory.settings import VMSettings
from retinue.controller.inventory.vm_ports import VMPorts
from retinue.controller.inventory.vm_reports import VMReports
from retinue.controller.inventory.vnets import check_gateway
from retinue.controller.lease_changes import AddressAssigned, AddressReleased
from retinue.controller.marks import (
    AgentForgotten,
    GuestRemoved,
    ServerDrained,
    ServerUndrained,
)
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.controller.nic_changes import static_assignments
from retinue.controller.storage_changes import FcLoggedOut
from retinue.core.migration import at_one_place
from retinue.core.model import NIC, VM, Assignment, ModelError, Power, Server
from retinue.core.model.families import dhcp6_subnets
from retinue.core.model.link_local import is_link_local
from retinue.core.model.network import Owner, Touched
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.placement import EntityKind
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.vms import VMState


class Inventory:
    """Registers VMs and servers, and judges whether a VM is ready."""

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
        self._orchestrator = orchestrator
        self._give_back = give_back
        self.name_free: Callable[[str, EntityKind], None] = lambda name, kind: None
        """Raises ModelError where something of another kind has the name."""
        self.forgotten: Callable[[str], None] = lambda vm: None
        """Called with each VM that is no more."""
        self.ports = VMPorts(
            context, orchestrator, by_dpid, lambda name, kind: self.name_free(name, kind), self.forget_vm
        )
        self.power = PowerControl(context, orchestrator, self.state_of)
        self.nics = NicControl(context, orchestrator, give_back, self.ports.look_for, self._nic_left)
        self.reports = VMReports(context, self.ports, self._at_one_place, self.forget_vm)
        self.settings = VMSettings(context, self.power.ours, self.state_of, self.ports.look_for)
        orchestrator.look_for_ports = self._look_for_ports

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
            touched |= self.ports.look_for(nic)
        touched |= self.ports.look_at_rejected()
        for held in moved:
            reason = "it is not of the vnet in which the NIC is registered"
            self._context.events.publish(EventType.BINDING_REMOVED, vm=held.vm, ip=held.leads, reason=reason)
        self._context.spawn(self._context.install(touched), "registered VMs")
        return list(vms)

    def _look_for_ports(self, id: str) -> None:
        """The VM is, or will be, on another host, whose ports may be there already."""
        touched = frozenset().union(*(self.ports.look_for(nic) for nic in self._net.vms[id].nics))
        self._context.spawn(self._context.install(touched), f"ports of VM {id}")

    def _nic_left(self, vm: VM, nic: NIC) -> None:
        """A NIC is to be taken out of the VM: nothing is held for it, and its port is no NIC's."""
        self.reports.nic_gone(nic.port_id)
        if not nic.trunk:
            self.ports.leave(vm, nic.port_id)

    def _at_one_place(self, id: str) -> VM:
        """A VM, whoever made it, that is here and does not migrate. Raises RequestError."""
        until = "confirm it when that has ended"
        return ours(self._net, self._orchestrator, id, "changes", until, may_be_reported=True)

    def _meant_elsewhere(self, vm: VM) -> list[Assignment]:
        """What a VM holds that is of another VRF or vnet than its NICs are in, as it is registered."""
        net, found = self._net, []
        for held in net.held_by(vm.id):
            nic = vm.nic_with(held.mac)
            if nic is None:
                continue
            subnet = net.subnet_of(held.ip, held.vrf)
            fits = not nic.vnet or is_link_local(held.ip) or (subnet is not None and subnet.vnet == nic.vnet)
            fits = fits or (held.prefix is not None and bool(dhcp6_subnets(net, nic.vnet)))
            if held.vrf != net.vrf_of(nic) or not fits:
                found.append(held)
        return found

    def _may_be_registered(self, vm: VM) -> VM:
        """The VM to register: one whose server is fenced keeps its static addresses, if none is given."""
        if vm.server in self._net.fenced:
            raise RequestError(
                f"server {vm.server} is fenced; `retinue server unfence {vm.server}` when it is well again"
            )
        if self._net.peer_at(vm.server) is not None:
            raise RequestError(f"server {vm.server} is a gateway to another domain, it cannot run VMs")
        self.name_free(vm.id, EntityKind.VM)
        check_images(vm, self._context.state.images)
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
        check_is_here(self._net, known)
        migration = self._orchestrator.of_vm(vm.id)
        if migration is not None:
            raise RequestError(
                f"VM {vm.id} is being migrated: {migration.id} is {migration.state}; "
                f"register it when that has ended",
                ErrorCode.MIGRATION_UNDER_WAY,
            )
        vm = replace(with_settings(vm, known), home=known.home)
        if known.home and not any(nic.addresses for nic in vm.nics):
            vm = replace(vm, nics=known.nics)
        check_stays_as_at_home(known, vm)
        vm = as_it_outlives_its_server(vm, known) if dead else vm
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
        """Raises ModelError for a VM that is not there, that migrates, or that is in another domain."""
        registered = self._net.vms.get(vm)
        if registered is None:
            raise no_vm(vm)
        migration = self._orchestrator.of_vm(vm)
        if migration is not None:
            raise RequestError(
                f"VM {vm} is being migrated: {migration.id} is {migration.state}; cancel it first",
                ErrorCode.MIGRATION_UNDER_WAY,
            )
        check_is_here(self._net, registered)
        self.ports.leave_all(registered)
        self._give_back(registered)
        touched = self._forget(registered, GuestRemoved if registered.home else VMRemoved)
        await self._context.install(touched | self.ports.look_at_rejected())

    def forget_vm(self, vm: VM) -> Touched:
        """It is no more, and nothing is remembered of it; what is to be installed."""
        return self._forget(vm, VMRemoved)

    def _forget(self, vm: VM, change: type[VMRemoved]) -> Touched:
        logins = [login for nic in vm.nics for login in self._net.logins_of(nic.mac)]
        touched = self._context.apply(*(FcLoggedOut(login, "the VM is here no more") for login in logins))
        touched |= self._context.apply(change(vm, self._net.held_by(vm.id)))
        self._orchestrator.vm_gone(vm.id)
        self.forgotten(vm.id)
        self.reports.vm_gone(vm)
        return touched

    def drain(self, server: str, *, drained: bool) -> None:
        """Whether a server is to take no VM any more. Those that are there stay. Raises RequestError."""
        if server not in self._net.servers:
            raise no_server(server)
        self._context.apply(ServerDrained(server) if drained else ServerUndrained(server))

    def forget_agent(self, server: str) -> None:
        """The operator took the agent away from this server for good: managers say where its VMs are.

        Raises RequestError.
        """
        if server not in self._net.servers:
            raise no_server(server)
        if self._context.agents.listens(server):
            raise RequestError(f"the agent of server {server} listens: stop it there first")
        self._context.apply(AgentForgotten(server))

    async def put_servers(self, servers: Collection[Server]) -> None:
        """Servers given, or changed, in bulk; all or, on a mistake, none (ModelError)."""
        for server in servers:
            self.name_free(server.id, EntityKind.SERVER)
            check_gateway(self._context, server)
        touched = self._context.apply(*(ServerRegistered(server) for server in servers))
        near = frozenset().union(*(underlay_of(self._net).near(s.id) for s in servers))
        await self._context.install(touched, [near])

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
            at = self._net.location(vm.server)
            found.append(
                f"server {vm.server} has not been detected at any leaf"
                if at is None
                else f"port {at.port} of {at.switch}, to server {vm.server}, has no link or is not set up"
            )
        without = (nic for nic in vm.nics if not nic.trunk and self._net.port_of(nic, edge) is None)
        found += [f"switch {edge} has no port with iface-id {nic.port_id}" for nic in without]
        if not self._context.is_connected(edge):
            found.append(f"switch {edge} is not connected")
        if not found and not self._context.is_programmed(Owner("vm", vm.id)):
            found.append("its flows are not confirmed by every switch")
        return found

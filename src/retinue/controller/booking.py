"""What is booked and what is there: VMs and servers as the manager gives them, ports as switches tell them.

A VM is ready when the two agree and every switch has confirmed its flows (row D4).
"""

from collections.abc import Collection, Mapping
from enum import StrEnum

from retinue.controller.context import Context
from retinue.controller.moving import Mover
from retinue.flows.plan import near_server
from retinue.model import VM, BindingKind, Holding, ModelError, Origin, Server, VMPort
from retinue.model.network import Owner, Touched
from retinue.ovsdb.switch_view import BridgePort


class VMState(StrEnum):
    BOOKED = "booked"
    """Known; its port, its server's place or a switch's confirmation is missing."""
    READY = "ready"
    """Every switch has confirmed its flows: it may start (row D4)."""
    RUNNING = "running"
    """The hypervisor says it runs."""


class Booking:
    """The controller's ledger of VMs; `Controller` hands on to it what the manager and the switches say."""

    def __init__(self, context: Context, mover: Mover, by_dpid: Mapping[int, str]) -> None:
        self._context = context
        self._net = context.net
        self._events = context.events
        self._mover = mover
        self.vm_states: dict[str, VMState] = {}
        self.unbooked_ports: dict[tuple[int, str], BridgePort] = {}
        """VM ports reported by switches for which no VM could be booked, with dpid and name."""
        self._removed: set[str] = set()
        """VMs the manager took away whose port still stands: not to be booked again by its report."""
        self._edges_read: set[str] = set()
        """Switches whose databases have been read since the start."""
        self._by_dpid = by_dpid

    # ---- I1: the manager ----

    def book_vms(self, vms: Collection[VM]) -> list[VM]:
        """Rows D1 and D4: VMs given in advance, in bulk; all of them or, on a mistake, none (ModelError).

        A VM that a switch reported can be booked, too, but neither while it is being moved nor with another
        MAC than it runs with: it would lose its addresses while it uses them.
        """
        if len({vm.id for vm in vms}) < len(vms):
            twice = next(vm.id for vm in vms if sum(other.id == vm.id for other in vms) > 1)
            raise ModelError(f"VM {twice} is given twice")
        for vm in vms:
            self._may_be_booked(vm)
        before = [(vm.id, self._net.vms.get(vm.id), self._net.held_by(vm.id)) for vm in vms]
        touched: set[Owner] = set()
        try:
            for vm in vms:
                touched |= self._net.put_vm(vm)
                touched |= self._hold_static(vm)
        except ModelError:
            self._take_back(before)
            raise
        for vm in vms:
            self._context.store.put(vm)
            for holding in self._net.held_by(vm.id):
                self._context.store.put(holding)
            self.vm_states[vm.id] = VMState.BOOKED
            self._removed.discard(vm.id)
            self._events.publish("vm.booked", vm=vm, server=vm.server, edge=self._net.servers[vm.server].edge)
        for port in list(self.unbooked_ports.values()):
            self.unbooked_ports.pop((port.dpid, port.name))
            touched |= self._vm_port_here(port)
        self._context.spawn(self._context.install(touched), "booked VMs")
        return list(vms)

    def _may_be_booked(self, vm: VM) -> None:
        known = self._net.vms.get(vm.id)
        if known is None:
            return
        if not known.reported:
            raise ModelError(f"VM {vm.id} is booked already, at {known.server}")
        move = self._mover.of_vm(vm.id)
        if move is not None:
            raise ModelError(
                f"VM {vm.id} is being moved: {move.id} is {move.state}; book it when that has ended"
            )
        ports = self._net.vm_ports.get(vm.id)
        if ports and vm.mac != known.mac:
            raise ModelError(
                f"VM {vm.id} runs at {', '.join(sorted(ports))} with MAC {known.mac}, not {vm.mac}"
            )

    def _take_back(self, before: Collection[tuple[str, VM | None, tuple[Holding, ...]]]) -> None:
        """Make these VMs, and what they hold, what they were; none of it has reached a switch.

        What came is taken away first, then the last change undone first: a MAC or address may have gone from
        one to another.
        """
        for name, old, held in before:
            if old is None:
                self._net.remove_vm(name)
            for holding in set(self._net.held_by(name)) - set(held):
                self._net.release(holding.ip)
        for _, old, held in reversed(list(before)):
            if old is not None:
                self._net.put_vm(old)
            for holding in held:
                self._net.hold(holding)

    def _hold_static(self, vm: VM) -> Touched:
        """Row B4: addresses the manager gives are bindings at once."""
        touched: set[Owner] = set()
        for address in vm.addresses:
            if self._net.subnet_of(address) is None:
                raise ModelError(f"VM {vm.id}: {address} is in no subnet of the fabric")
            touched |= self._net.hold(Holding(address, vm.mac, vm.id, BindingKind.STATIC, Origin.MANAGER))
        return frozenset(touched)

    async def remove_vm(self, vm: str) -> None:
        """Raises ModelError for a VM that is not there, or is being moved."""
        booked = self._net.vms.get(vm)
        if booked is None:
            raise ModelError(f"there is no VM {vm}; `retinue vm list` shows those there are")
        move = self._mover.of_vm(vm)
        if move is not None:
            raise ModelError(f"VM {vm} is being moved: {move.id} is {move.state}; cancel it first")
        if self._net.vm_ports.get(vm):
            self._removed.add(vm)
        await self._context.install(self._forget_vm(booked))

    def _forget_vm(self, vm: VM) -> Touched:
        for holding in self._net.held_by(vm.id):
            self._context.store.remove(holding)
        touched = self._net.remove_vm(vm.id)
        self._context.store.remove(vm)
        self.vm_states.pop(vm.id, None)
        self._mover.vm_gone(vm.id)
        self._events.publish("vm.removed", vm=vm)
        return touched

    def vm_says(self, vm: str, event: str, server: str) -> None:
        """The hypervisor's word about a VM: started or stopped. Raises ModelError."""
        if vm not in self._net.vms:
            raise ModelError(f"there is no VM {vm}; `retinue vm list` shows those there are")
        if event not in ("started", "stopped"):
            raise ModelError(f"a VM knows no event {event!r} (started, stopped)")
        self.vm_states[vm] = VMState.RUNNING if event == "started" else VMState.READY
        self._events.publish(f"vm.{event}", vm=self._net.vms[vm], server=server)

    async def put_servers(self, servers: Collection[Server]) -> None:
        """Rows D1, D6, D7: servers given, or changed, in bulk; all or, on a mistake, none (ModelError)."""
        before = {server.id: self._net.servers.get(server.id) for server in servers}
        touched: set[Owner] = set()
        try:
            for server in servers:
                touched |= self._net.put_server(server)
        except ModelError:
            for name, old in before.items():
                if old is None:
                    self._net.remove_server(name)
            for old in reversed(before.values()):
                if old is not None:
                    self._net.put_server(old)
            raise
        for server in servers:
            self._context.store.put(server)
            self._events.publish("server.booked", server=server)
            detected = self._net.detected.get(server.id)
            if server.given_at is not None and detected not in (None, server.given_at):
                self._events.publish(
                    "server.mismatch", server=server.id, given=str(server.given_at), detected=str(detected)
                )
        near = frozenset().union(*(near_server(self._net, s.id) for s in servers))
        await self._context.install(touched, [near])

    # ---- ports of VMs, from the switches' databases ----

    def vm_ports_changed(self, gone: Collection[BridgePort], now: Collection[BridgePort]) -> None:
        """Ports with a VM's id that went away, and that appeared or changed."""
        touched: set[Owner] = set()
        for port in gone:
            touched |= self._vm_port_gone(port)
        for port in now:
            touched |= self._vm_port_here(port)
        if touched:
            self._context.spawn(self._context.install(touched), "VM ports")

    def edge_read(self, dpids: Collection[int], vms: Collection[str] = ()) -> None:
        """These switches' databases have been read, and their ports told; `vms` have a port there.

        A reported VM that has none where it may be, nor anywhere, went while nobody looked.
        """
        switches = {self._by_dpid[dpid] for dpid in dpids if dpid in self._by_dpid}
        self._edges_read |= switches
        touched: set[Owner] = set()
        for switch in switches:
            server = self._net.server_of_edge(switch)
            for name in self._net.vms_on(server.id) if server is not None else ():
                vm = self._net.vms[name]
                if vm.reported and name not in vms and self._is_gone(vm):
                    touched |= self._forget_vm(vm)
        if touched:
            self._context.spawn(self._context.install(touched), "VMs that went")

    def _is_gone(self, vm: VM) -> bool:
        edges = {self._net.servers[place].edge for place in (vm.server, *vm.also)}
        moving = self._mover.of_vm(vm.id) is not None
        return edges <= self._edges_read and not moving and not self._net.vm_ports.get(vm.id)

    def _vm_port_gone(self, port: BridgePort) -> Touched:
        self.unbooked_ports.pop((port.dpid, port.name), None)
        switch = self._by_dpid.get(port.dpid)
        vm = port.iface_id or ""
        at = self._net.vm_ports.get(vm, {}).get(switch or "")
        if switch is None or at is None or at.name != port.name:
            return frozenset()
        touched = self._net.set_vm_port(vm, switch, None)
        self._events.publish("port.gone", vm=vm, switch=switch, port=at.number)
        if not self._net.vm_ports[vm]:
            self._removed.discard(vm)
            booked = self._net.vms.get(vm)
            if booked is not None and booked.reported:
                touched |= self._forget_vm(booked)  # Nobody booked it; it goes as it came.
        return touched

    def _vm_port_here(self, port: BridgePort) -> Touched:
        switch = self._by_dpid.get(port.dpid)
        if switch is None or not port.iface_id or port.number is None:
            return frozenset()
        vm = port.iface_id
        booked = self._net.vms.get(vm)
        if booked is None:
            booked = self._book_reported(switch, port)
        if booked is None or (port.attached_mac and port.attached_mac != booked.mac):
            if booked is not None:
                reason = f"attached-mac is {port.attached_mac}, {vm} is booked with {booked.mac}"
                self._events.publish("vm.mismatch", vm=vm, switch=switch, port=port.name, reason=reason)
            self.unbooked_ports[port.dpid, port.name] = port
            return frozenset()
        before = self._net.vm_ports.get(vm, {}).get(switch)
        touched = self._net.set_vm_port(vm, switch, VMPort(port.number, port.name, port.status))
        if touched and (before is None or before.number != port.number):
            self._events.publish("port.here", vm=vm, switch=switch, port=port.number)
        return touched | {Owner("vm", vm)} if touched else touched

    def _book_reported(self, switch: str, port: BridgePort) -> VM | None:
        """Row D1: a server reports a VM it made, by the ids it sets on the port, as libvirt does."""
        server = self._net.server_of_edge(switch)
        if server is None or not port.attached_mac or not port.iface_id or port.iface_id in self._removed:
            return None
        vm = VM(port.iface_id, port.attached_mac, server.id, reported=True)
        try:
            self._net.put_vm(vm)
        except ModelError as error:
            self._events.publish("vm.mismatch", vm=vm.id, switch=switch, port=port.name, reason=str(error))
            return None
        self._context.store.put(vm)
        self.vm_states[vm.id] = VMState.BOOKED
        self._events.publish("vm.reported", vm=vm, server=server.id)
        return vm

    # ---- readiness ----

    def look_at(self, owners: Collection[Owner]) -> None:
        """After an installation: VMs may be ready, moves may go on."""
        for owner in owners:
            if owner.kind != "vm" or owner.id not in self._net.vms:
                continue
            self._mover.look_again_for(owner.id)
            if self.vm_states.get(owner.id, VMState.BOOKED) is VMState.BOOKED and self._is_ready(owner):
                self.vm_states[owner.id] = VMState.READY
                vm = self._net.vms[owner.id]
                self._events.publish("vm.ready", vm=vm, server=vm.server)

    def _is_ready(self, owner: Owner) -> bool:
        """Given and detected match (row D4), and every switch has confirmed the VM's flows."""
        vm = self._net.vms[owner.id]
        edge = self._net.servers[vm.server].edge
        return (
            self._net.place(vm.server) is not None
            and edge in self._net.vm_ports.get(vm.id, {})
            and edge in self._context.sessions
            and self._context.stands(owner)
        )

    def missing_for(self, vm: VM) -> list[str]:
        """In words, what a VM that is not ready waits for (row D4: missing is shown)."""
        edge = self._net.servers[vm.server].edge
        found = []
        if self._net.place(vm.server) is None:
            found.append(f"server {vm.server} has not been detected at any leaf")
        if edge not in self._net.vm_ports.get(vm.id, {}):
            found.append(f"switch {edge} has no port with iface-id {vm.id}")
        if edge not in self._context.sessions:
            found.append(f"switch {edge} is not connected")
        if not found and not self._context.stands(Owner("vm", vm.id)):
            found.append("its flows are not confirmed by every switch")
        return found

"""DHCP on its way through the controller: judged by core.snooping, handed on or relayed."""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.leases import binder, rejections
from retinue.controller.leases.renewals import Renewals
from retinue.controller.leases.unanswered import Unanswered
from retinue.core.migration import runs_at as where_runs
from retinue.core.model import NIC, VM, Assignment, BindingKind, Mac, Role, Server, Service
from retinue.core.model.families import is_leased
from retinue.core.packets import (
    DHCP,
    SERVER_PORT,
    Ethernet,
    FrameError,
    UDPDatagram,
    build_dhcp,
    parse,
    parse_dhcp_frame,
    release,
)
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.snooping import (
    Bind,
    ClientMessage,
    Disagreement,
    Effect,
    Recorded,
    Rejected,
    Release,
    ServerMessage,
    Snooper,
    Suspicious,
    ToAgent,
    ToServers,
    ToVM,
    handover,
    relay,
)
from retinue.core.snooping.dhcp6_rules import Snooper6
from retinue.core.snooping.dhcp_rules import LEASES_PER_NIC
from retinue.core.snooping.messages import EVERYBODY, NO_ADDRESS, ToldOtherwise
from retinue.core.snooping.spoofing import claims_of
from retinue.protocol.events import EventType


@dataclass(frozen=True, slots=True)
class InFlightMessage:
    """A DHCP message on its way, and where it came in."""

    switch: str
    port: int
    ethernet: Ethernet
    datagram: UDPDatagram
    dhcp: DHCP

    @property
    def circuit(self) -> str:
        """Where it came in, as a relay says it."""
        return f"{self.switch}:{self.port}"

    @property
    def server_named(self) -> IPv4Address | None:
        """The server that it is for; None: all of them."""
        return None if self.datagram.dst == EVERYBODY else self.datagram.dst

    def as_client(self, *, runs_here: bool) -> ClientMessage:
        """As the snooper is told of one from a VM's port."""
        datagram = self.datagram
        return ClientMessage(
            self.switch, self.port, self.ethernet.src, self.dhcp,
            datagram.src, datagram.dst, bool(datagram.options), runs_here,
        )  # fmt: skip


class DhcpPath:
    """Takes DHCP messages from the switches, lets the snooper judge them, and carries out what it decides."""

    def __init__(self, context: Context, warm_up: float = 0.0, leases_per_nic: int = LEASES_PER_NIC) -> None:
        """`warm_up`: see Renewals; `leases_per_nic`: of IPv4."""
        self._context = context
        self._snooper = Snooper(context.net, leases_per_nic)
        self.snooper6 = Snooper6(context.net)
        self.renewals = Renewals(context, self._snooper, self.snooper6, warm_up=warm_up)
        self.unanswered = Unanswered()
        self._shares = relay.Shares()
        self._of_guests = relay.Shares(relay.HOME_RATE, relay.HOME_BURST)

    # ---- frames ----

    def from_vm(self, switch: str, port: int, frame: bytes) -> None:
        """A frame from a VM's port to the DHCP servers' UDP port."""
        message = self._parse(switch, port, frame, f"{switch} port {port}")
        if message is None:
            return
        seen = message.as_client(runs_here=self.runs_at(switch, port, message.ethernet.src))
        if (vm := self._context.net.vm_at(switch, port, message.ethernet.src)) is not None:
            self.unanswered.asked(vm.id, message.dhcp.message_type, self._context.clock())
        self._act(self._snooper.client(seen, self._context.clock()), message, f"{switch} port {port}")

    def runs_at(self, switch: str, port: int, mac: Mac = "") -> bool:
        """True where the VM of this port runs, unlike where it is only open for its migration; `mac`: see
        Network.vm_at."""
        net = self._context.net
        vm, server = net.vm_at(switch, port, mac), net.server_of_edge(switch)
        if vm is None or server is None:
            return False
        migration = self._context.state.migrations.of_vm(vm.id) if vm.also else None
        return where_runs(vm, migration) == server.id

    def from_server(self, switch: str, port: int, frame: bytes, waited: float = 0.0) -> None:
        """A frame from the port of a trusted DHCP server, or of a relay before one.

        It was received `waited` seconds ago, and a lease counts from then: however late an ACK is worked on,
        the VM has its address no longer than its DHCP server means it to.
        """
        server = self.server_at(switch, port)
        if server is None:
            self._context.counters[Count.DHCP_FROM_UNKNOWN_SERVER] += 1
            return
        message = self._parse(switch, port, frame, f"DHCP server {server.id}")
        if message is None:
            return
        dhcp = message.dhcp
        if message.datagram.dport == SERVER_PORT and not relay.is_relay(self._context.net, dhcp.giaddr):
            self._tell([Rejected(f"for a relay at {dhcp.giaddr}, which is none of ours")], message)
            return
        peer = self._context.net.peer_at(server.id)
        said = ServerMessage(server.id, dhcp, message.datagram.src, "" if peer is None else peer.id)
        self._act(self._snooper.server(said, self._context.clock() - waited), message, server.id)

    async def expire(self) -> None:
        """End the leases that have run out."""
        for effect in self._snooper.expire(self._context.clock()):
            if isinstance(effect, Release):
                self.renewals.lease_ended(effect.assignment)
                await self.release(effect.assignment, effect.reason)

    def next_end(self) -> float | None:
        return self._snooper.next_end()

    # ---- effects ----

    def _act(self, effects: Sequence[Effect], message: InFlightMessage, where: str) -> None:
        self._tell(effects, message)
        self._context.spawn(self._carry_out(effects, message), f"DHCP from {where}")

    async def _carry_out(self, effects: Iterable[Effect], message: InFlightMessage) -> None:
        """In order. What is handed to the VM goes out after the binding before it is confirmed; a
        binding that is not keeps the ACK back, and the VM, hearing nothing, asks again.
        """
        confirmed = True
        for effect in effects:
            match effect:
                case Bind(assignment, renewed):
                    confirmed = await self.bind(assignment, renewed)
                case Release(assignment, reason):
                    await self.release(assignment, reason)
                case Recorded():
                    self.renewals.recorded(effect)
                case ToServers(vm, source):
                    self._send(vm, message.dhcp, source, message.server_named, message.circuit)
                case Disagreement():
                    self._disagreed(effect)
                case ToldOtherwise(vm, ip, reason):
                    self._context.events.publish(EventType.LEASE_DIFFERS, vm=vm, ip=ip, reason=reason)
                case ToVM(vm) if confirmed:
                    self._to_vm(vm, message)
                case ToVM():
                    self._context.counters[Count.DHCP_UNCONFIRMED] += 1
                case ToAgent():
                    dhcp = message.dhcp
                    self.renewals.answered(effect, build_dhcp(dhcp), dhcp.lease_time, confirmed)
                case Rejected() | Suspicious():
                    pass

    async def bind(self, assignment: Assignment, renewed: bool) -> bool:
        """Make the binding; True when every switch that is connected has confirmed it."""
        confirmed = await binder.bind(self._context, assignment, renewed, self.renewals.bound)
        if confirmed:
            self.renewals.confirmed(assignment)
        return confirmed

    async def release(self, assignment: Assignment, reason: str) -> None:
        await binder.release(self._context, assignment, reason)

    def _on_behalf(self, vm: VM, dhcp: DHCP, source: IPv4Address) -> None:
        """A message of ours in the VM's name, to the server that it names."""
        self._send(vm.id, dhcp, source, dhcp.server_id, f"{self._context.net.servers[vm.server].edge}:")

    def _send(self, vm: str, dhcp: DHCP, source: IPv4Address, to: IPv4Address | None, circuit: str) -> None:
        """To every DHCP server of the place (`to` is None), or to one; relayed where need be."""
        context, net = self._context, self._context.net
        asker = net.vms.get(vm)
        if asker is not None and asker.home:
            self._send_home(asker, dhcp, source, to)
            return
        found = list(relay.ways(net, vm, dhcp, to, self._snooper.identifiers))
        if not self._shares.take(vm, len(found), context.clock()):
            context.counters[Count.DHCP_TOO_MUCH] += 1
            return
        reached = False
        for way in found:
            at = underlay_of(net).attachment(way.server.id) if way.server.id in net.servers else None
            at = at or net.port_of_server(way.server)
            if at is None:
                continue
            frame = handover.to_server(dhcp, way, net.gateway_mac, source, to, circuit, vm)
            if frame is None:
                context.counters[Count.DHCP_TOO_MANY_RELAYS] += 1
            else:
                reached |= context.send_frame(*at, frame)
        if not reached:
            context.counters[Count.DHCP_NO_SERVER] += 1

    def _send_home(self, vm: VM, dhcp: DHCP, source: IPv4Address, to: IPv4Address | None) -> None:
        """A guest's DHCP servers are at its home, where it goes on as what a VM there has asked."""
        context, net = self._context, self._context.net
        tunnel = net.tunnel_to(vm.home)
        if tunnel is None:
            context.counters[Count.DHCP_NO_SERVER] += 1
            return
        if not self._of_guests.spend(vm.id, 1, context.clock()):
            context.counters[Count.ASKED_HOME_TOO_MUCH] += 1
            return
        way = relay.Way(net.servers[net.peers[vm.home].gateway])
        frame = handover.to_server(dhcp, way, net.gateway_mac, source, to, "", vm.id)
        if frame is None or not context.send_frame(*tunnel, frame):
            context.counters[Count.DHCP_NO_SERVER] += 1

    def _to_vm(self, vm: str, message: InFlightMessage) -> None:
        net = self._context.net
        self.unanswered.answered(vm)
        registered = net.vms.get(vm)
        nic = None if registered is None else registered.nic_with(message.dhcp.chaddr)
        if registered is None or nic is None:
            return
        edge = net.servers[registered.server].edge
        port = net.port_of(nic, edge)
        if port is not None:
            gateway_mac = net.gateway_mac_of(net.servers[registered.server])
            frame = handover.to_vm(nic.mac, gateway_mac, message.datagram, message.dhcp, net.mtu_of(nic))
            if net.is_tunnel(edge, port.number):
                # The other gateway knows by the MAC whom it is for.
                frame = replace(parse(frame), dst=nic.mac).build()
            self._context.send_to_nic(edge, port.number, nic, frame)

    def _disagreed(self, found: Disagreement) -> None:
        """The server is to give this VM another address; the operator is to mend what is behind it."""
        context = self._context
        context.events.publish(EventType.BINDING_REJECTED, vm=found.vm, ip=found.ip, reason=found.reason)
        vm = context.net.vms.get(found.vm)
        if vm is not None:
            self._on_behalf(vm, found.decline, NO_ADDRESS)

    # ---- VMs that are removed ----

    def give_back(self, vm: VM, nic: NIC | None = None) -> None:
        """The manager removes a VM, or a NIC of it: what DHCP servers have leased to it, they may lease to
        others.

        To be called while the VM still holds it: RELEASE comes from the address that it is about.
        """
        net = self._context.net
        if nic is None:
            self.unanswered.answered(vm.id)
        for held in net.held_by(vm.id) if nic is None else net.assignments_of(vm, nic):
            if held.kind is BindingKind.DYNAMIC and held.server is not None and is_leased(held.ip):
                said = release(held.ip, held.mac, secrets.randbits(32), held.server, held.client_id or None)
                self._on_behalf(vm, said, held.ip)

    # ---- rejections ----

    def _parse(self, switch: str, port: int, frame: bytes, where: str) -> InFlightMessage | None:
        try:
            return InFlightMessage(switch, port, *parse_dhcp_frame(frame))
        except FrameError as error:
            self._context.reject_frame("DHCP", where, error)
            return None

    def _tell(self, effects: Iterable[Effect], message: InFlightMessage) -> None:
        claim = claims_of(message.dhcp, message.datagram.src)
        rejections.tell(self._context, effects, (message.switch, message.port), claim)

    def server_at(self, switch: str, port: int) -> Server | None:
        net = self._context.net
        if net.is_tunnel(switch, port):
            return net.server_of_edge(switch)
        if net.switches[switch].role is Role.EDGE:
            return net.trusted_at(switch, port)
        attachment = underlay_of(net).attachment
        servers = net.servers_with(Service.DHCP)
        return next((server for server in servers if attachment(server.id) == (switch, port)), None)

"""DHCPv6 on its way through the controller: judged by core.snooping, handed on in a relay's envelope."""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from itertools import groupby

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.leases import rejections
from retinue.controller.leases.dhcp import DhcpPath
from retinue.core.model import NIC, VM, Assignment, IAKind, Lease6, Mac, Role, Service
from retinue.core.model.link_local import link_local
from retinue.core.packets import FrameError
from retinue.core.packets.dhcp6 import (
    DHCP6,
    MessageType6,
    parse_dhcp6,
    parse_relayed6,
    parse_udp6_frame,
)
from retinue.core.packets.dhcp6_options import ADDRESS_BITS, FOREVER6, IA, IAAddress
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.snooping import Bind, Recorded, Rejected, Release, Suspicious, ToAgent, relay
from retinue.core.snooping import relay6 as envelopes
from retinue.core.snooping.dhcp6_headers import leases6
from retinue.core.snooping.dhcp6_messages import ClientMessage6, Effect6, ServerMessage6, ToServers6, ToVM6


@dataclass(frozen=True, slots=True)
class _Arrival:
    """Where a message came in, as whose, and what it says."""

    switch: str
    port: int
    claim: tuple[Mac, str]
    dhcp: DHCP6


class Dhcp6Path:
    """Takes DHCPv6 messages from the switches, has them judged, and carries out what the snooper decides."""

    def __init__(self, context: Context, dhcp: DhcpPath) -> None:
        self._context = context
        self._dhcp = dhcp
        self._snooper = dhcp.snooper6
        self._shares = relay.Shares()
        self._of_guests = relay.Shares(relay.HOME_RATE, relay.HOME_BURST)

    # ---- frames ----

    def from_vm(self, switch: str, port: int, frame: bytes) -> None:
        """A frame from a VM's port to the DHCPv6 servers' UDP port."""
        where = f"{switch} port {port}"
        try:
            ethernet, datagram = parse_udp6_frame(frame)
            dhcp = parse_dhcp6(datagram.payload)
        except FrameError as error:
            self._context.reject_frame("DHCPv6", where, error)
            return
        seen = ClientMessage6(
            switch, port, ethernet.src, datagram.src, datagram.dst, dhcp,
            runs_here=self._dhcp.runs_at(switch, port, ethernet.src),
        )  # fmt: skip
        claimed = dhcp.addresses[0] if dhcp.addresses else datagram.src
        arrival = _Arrival(switch, port, (ethernet.src, str(claimed)), dhcp)
        self._act(self._snooper.client(seen, self._context.clock()), arrival, where)

    def from_server(self, switch: str, port: int, frame: bytes, waited: float = 0.0) -> None:
        """A frame from the port of a trusted DHCP server to the relay; `waited`: as DhcpPath's."""
        net, server = self._context.net, self._dhcp.server_at(switch, port)
        peer = net.peer_at(server.id) if server is not None and net.is_tunnel(switch, port) else None
        # At an edge there is no DHCPv6 server, but a guest's home.
        if server is None or (net.switches[switch].role is Role.EDGE and peer is None):
            self._context.counters[Count.DHCP_FROM_UNKNOWN_SERVER] += 1
            return
        try:
            ethernet, datagram = parse_udp6_frame(frame)
            if peer is not None:
                envelope = envelopes.of_home(datagram.dst, datagram.payload)
            else:
                envelope = parse_relayed6(datagram.payload)
            dhcp = parse_dhcp6(envelope.message)
        except FrameError as error:
            self._context.reject_frame("DHCPv6", f"DHCP server {server.id}", error)
            return
        arrival = _Arrival(switch, port, (ethernet.src, str(datagram.src)), dhcp)
        if peer is None:
            fault = envelopes.fault_of_envelope(net, datagram.src, datagram.dst, envelope)
            if fault:
                self._tell([Rejected(fault)], arrival)
                return
        said = ServerMessage6(server.id, envelope, dhcp, "" if peer is None else peer.id)
        self._act(self._snooper.server(said, self._context.clock() - waited), arrival, server.id)

    def expire(self) -> None:
        """Called now and then: what has waited too long for an answer is forgotten."""
        self._snooper.expire(self._context.clock())

    # ---- effects ----

    def _act(self, effects: Sequence[Effect6], arrival: _Arrival, where: str) -> None:
        self._tell(effects, arrival)
        self._context.spawn(self._carry_out(effects, arrival.dhcp), f"DHCPv6 from {where}")

    async def _carry_out(self, effects: Iterable[Effect6], dhcp: DHCP6) -> None:
        """In order. What is handed to the VM goes out after the bindings before it are confirmed; one that is
        not keeps the REPLY back, and the VM, hearing nothing, asks again.
        """
        confirmed = True
        for effect in effects:
            match effect:
                case Bind(assignment, renewed):
                    confirmed &= await self._dhcp.bind(assignment, renewed)
                case Release(assignment, reason):
                    await self._dhcp.release(assignment, reason)
                case Recorded():
                    self._dhcp.renewals.recorded(effect)
                case ToServers6():
                    self._send(effect)
                case ToVM6() if confirmed:
                    self._to_vm(effect)
                case ToVM6():
                    self._context.counters[Count.DHCP_UNCONFIRMED] += 1
                case ToAgent():
                    self._dhcp.renewals.answered(effect, dhcp.build(), _seconds(dhcp), confirmed)
                case Rejected() | Suspicious():
                    pass

    def _send(self, asked: ToServers6) -> None:
        """To every DHCP server that serves it, in an envelope for each subnet that it may be about."""
        context, net = self._context, self._context.net
        vm = net.vms.get(asked.vm)
        nic = None if vm is None else vm.nic_with(asked.nic)
        if vm is None or nic is None:
            return
        if vm.home:
            self._send_home(vm, asked)
            return
        servers = net.servers_with(Service.DHCP)
        about = envelopes.links(net, nic, asked.dhcp)
        ways = [(server, link) for server in servers for link in about if envelopes.serves(server, link)]
        if not self._shares.take(asked.vm, len(ways), context.clock()):
            context.counters[Count.DHCP_TOO_MUCH] += 1
            return
        reached = False
        for server, link in ways:
            at = underlay_of(net).attachment(server.id)
            if at is None:
                continue
            try:
                reached |= context.send_frame(*at, envelopes.to_server(net, asked, link))
            except FrameError as error:
                context.reject_frame("DHCPv6", asked.circuit, error)
                return
        if not reached:
            context.counters[Count.DHCP_NO_SERVER] += 1

    def _send_home(self, vm: VM, asked: ToServers6) -> None:
        """A guest's DHCP servers are at its home, which hears it as at a port of its own."""
        context = self._context
        tunnel = context.net.tunnel_to(vm.home)
        if tunnel is None:
            context.counters[Count.DHCP_NO_SERVER] += 1
            return
        if not self._of_guests.spend(vm.id, 1, context.clock()):
            context.counters[Count.ASKED_HOME_TOO_MUCH] += 1
            return
        try:
            frame = envelopes.from_guest(asked)
        except FrameError as error:
            context.reject_frame("DHCPv6", asked.circuit, error)
            return
        if not context.send_frame(*tunnel, frame):
            context.counters[Count.DHCP_NO_SERVER] += 1

    def _to_vm(self, said: ToVM6) -> None:
        net = self._context.net
        vm = net.vms.get(said.vm)
        nic = None if vm is None else vm.nic_with(said.nic)
        if vm is None or nic is None:
            return
        at = net.servers[vm.server]
        port = net.port_of(nic, at.edge)
        if port is None:
            return
        try:
            frame = envelopes.to_vm(net, nic.mac, net.gateway_mac_of(at), said.peer, said.dhcp)
        except FrameError as error:
            self._context.reject_frame("DHCPv6", f"the answer to {said.vm}", error)
            return
        self._context.send_to_nic(at.edge, port.number, nic, frame)

    # ---- VMs that are removed ----

    def give_back(self, vm: VM, nic: NIC | None = None) -> None:
        """As DhcpPath.give_back."""
        for its in vm.nics if nic is None else (nic,):
            for said in _releases(leases6(self._context.net, vm, its)):
                edge = self._context.net.servers[vm.server].edge
                self._send(ToServers6(vm.id, its.mac, link_local(its.mac), f"{edge}:", said))

    # ---- rejections ----

    def _tell(self, effects: Iterable[Effect6], arrival: _Arrival) -> None:
        rejections.tell(self._context, effects, (arrival.switch, arrival.port), arrival.claim)


def _seconds(dhcp: DHCP6) -> float | None:
    """The valid lifetime that a REPLY to the agent grants; None without an end."""
    valid = [address.valid for ia in dhcp.ias for address in ia.addresses]
    return None if not valid or FOREVER6 in valid else float(min(valid))


def _releases(held: list[Assignment]) -> list[DHCP6]:
    """What is said to each server to give these leases back."""

    def parties(lease: Assignment) -> tuple[bytes, bytes]:
        return lease.client_id, _of(lease).server

    return [
        DHCP6(
            MessageType6.RELEASE, secrets.randbits(24), client_id, server,
            tuple(IA(iaid, tuple(_named(lease) for lease in leases), kind=kind)
                  for (kind, iaid), leases in groupby(sorted(its, key=_ia), _ia)),
        )
        for (client_id, server), its in groupby(sorted(held, key=parties), parties)
    ]  # fmt: skip


def _named(lease: Assignment) -> IAAddress:
    assert isinstance(lease.ip, IPv6Address)
    length = ADDRESS_BITS if lease.prefix is None else lease.prefix.prefixlen
    return IAAddress(lease.ip, length=length)


def _of(lease: Assignment) -> Lease6:
    assert lease.lease6 is not None
    return lease.lease6


def _ia(lease: Assignment) -> tuple[IAKind, int]:
    return _of(lease).ia, _of(lease).iaid

"""DHCP on its way through the controller: snooped, judged by `bindings.snooping`, handed on or relayed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from retinue.bindings import (
    Bind,
    ClientMessage,
    Effect,
    ForgeryKind,
    Recorded,
    Refused,
    Release,
    ServerMessage,
    Snooper,
    Suspect,
    ToAgent,
    ToServers,
    ToVM,
    relay,
)
from retinue.bindings.forgery import claims_of
from retinue.bindings.snooping import NO_ADDRESS
from retinue.controller.context import Context
from retinue.controller.renewals import Renewals
from retinue.flows.plan import near_server
from retinue.model import Holding, ModelError, Server, Service
from retinue.packets import (
    BROADCAST,
    CLIENT_PORT,
    DHCP,
    FLAG_BROADCAST,
    SERVER_PORT,
    Ethernet,
    FrameError,
    MessageType,
    UDPDatagram,
    dhcp_frame,
    mac_bytes,
    parse_dhcp_frame,
)

EVERYBODY = IPv4Address("255.255.255.255")


@dataclass(frozen=True, slots=True)
class Passing:
    """A DHCP message on its way, and where it came in."""

    switch: str
    port: int
    ethernet: Ethernet
    datagram: UDPDatagram
    dhcp: DHCP
    frame: bytes


class DhcpPath:
    def __init__(self, context: Context, warm_up: float = 0.0) -> None:
        """`warm_up`: see Renewals."""
        self._context = context
        self._snooper = Snooper(context.net)
        self.renewals = Renewals(context, self._snooper, warm_up=warm_up)
        self._heard_at: dict[IPv4Address, str] = {}
        """Server identifiers, and the DHCP server (or the relay before it) by whose port each speaks."""

    # ---- frames ----

    def from_vm(self, switch: str, port: int, frame: bytes) -> None:
        """A frame from a VM's port to the DHCP servers' UDP port."""
        passing = self._parse(switch, port, frame, f"{switch} port {port}")
        if passing is None:
            return
        message = ClientMessage(switch, port, passing.ethernet.src, passing.dhcp)
        self._act(self._snooper.client(message, self._context.clock()), passing, f"{switch} port {port}")

    def from_server(self, switch: str, port: int, frame: bytes) -> None:
        """A frame from the port of a trusted DHCP server, or of a relay before one."""
        server = self._server_at(switch, port)
        if server is None:
            self._context.counters["DHCP dropped: no DHCP server is known at that port"] += 1
            return
        passing = self._parse(switch, port, frame, f"DHCP server {server.id}")
        if passing is None:
            return
        dhcp = passing.dhcp
        if passing.datagram.dport == SERVER_PORT and not relay.is_relay(self._context.net, dhcp.giaddr):
            self._refused(Refused(f"for a relay at {dhcp.giaddr}, which is none of ours"), passing)
            return
        effects = self._snooper.server(ServerMessage(server.id, dhcp), self._context.clock())
        if dhcp.server_id is not None and not any(isinstance(e, Refused) for e in effects):
            self._heard_at[dhcp.server_id] = server.id
        self._act(effects, passing, server.id)

    async def expire(self) -> None:
        """End the leases that have run out."""
        for effect in self._snooper.expire(self._context.clock()):
            if isinstance(effect, Release):
                self.renewals.lease_ended(effect.holding)
                await self.release(effect.holding, effect.reason)

    def next_end(self) -> float | None:
        return self._snooper.next_end()

    # ---- effects ----

    def _act(self, effects: Sequence[Effect], passing: Passing, where: str) -> None:
        for effect in effects:
            if isinstance(effect, Refused):
                self._refused(effect, passing)
            elif isinstance(effect, Suspect):
                self._forged(effect.vm, effect.reason, passing)
        self._context.spawn(self._carry_out(effects, passing), f"DHCP from {where}")

    async def _carry_out(self, effects: Iterable[Effect], passing: Passing) -> None:
        """In order. What is handed to the VM goes out after the binding before it is confirmed (row B3); a
        binding that is not keeps the ACK back, and the VM, hearing nothing, asks again.
        """
        stands = True
        for effect in effects:
            match effect:
                case Bind(holding, renewed):
                    stands = await self.bind(holding, renewed)
                case Release(holding, reason):
                    await self.release(holding, reason)
                case Recorded():
                    self.renewals.recorded(effect)
                case ToServers(vm):
                    self._to_servers(vm, passing)
                case ToVM(vm) if stands:
                    self._to_vm(vm, passing)
                case ToVM():
                    self._context.counters["DHCP kept back: the binding is not confirmed"] += 1
                case ToAgent():
                    self.renewals.answered(effect, passing.dhcp, stands)
                case Refused() | Suspect():
                    pass

    async def bind(self, holding: Holding, renewed: bool) -> bool:
        """Make the binding; True when every switch that is connected has confirmed it."""
        context = self._context
        try:
            touched = context.net.hold(holding)
        except ModelError as error:
            # Something else took the address, or the VM went, since the effect was computed.
            context.events.publish("binding.refused", vm=holding.vm, ip=holding.ip, reason=str(error))
            return False
        context.store.put(holding)
        self.renewals.bound(holding)
        vm = context.net.vms[holding.vm]
        report = await context.install(touched, [near_server(context.net, vm.server)])
        # A switch that is away gets its entries when it comes back; one that is there and refuses is trouble.
        refused = sorted(report.missing & context.sessions.keys())
        if refused:
            reason = f"not confirmed by {', '.join(refused)}"
            context.events.publish("binding.unconfirmed", vm=holding.vm, ip=holding.ip, reason=reason)
            return False
        self.renewals.stands(holding)
        kind = "binding.renewed" if renewed else "binding.added"
        context.events.publish(kind, bindings=context.net.bindings([holding.vm]))
        return True

    async def release(self, holding: Holding, reason: str) -> None:
        context = self._context
        if context.net.holdings.get(holding.ip) != holding:
            return  # Renewed or given back since the effect was computed.
        touched = context.net.release(holding.ip)
        context.store.remove(holding)
        await context.install(touched)
        context.events.publish("binding.removed", vm=holding.vm, ip=holding.ip, reason=reason)

    def _to_servers(self, vm: str, passing: Passing) -> None:
        """To every DHCP server of the place, or to the one the client speaks to; relayed where need be."""
        net = self._context.net
        unicast = passing.ethernet.dst != BROADCAST
        to = passing.datagram.dst if unicast else None
        reached = False
        for way in relay.ways(net, vm, passing.dhcp, to, self._heard_at):
            at = net.place(way.server.id)
            port = None if at is None else net.port_number(at)
            if at is None or port is None:
                continue
            if way.giaddr is not None:
                sent = self._relayed(vm, passing, way.server, way.giaddr)
            elif unicast:
                sent = mac_bytes(way.server.mac) + passing.frame[6:]
            else:
                sent = passing.frame
            if sent is not None:
                reached |= self._context.send_frame(at.switch, port, sent)
        if not reached:
            self._context.counters["DHCP dropped: no DHCP server to be reached"] += 1

    def _relayed(self, vm: str, passing: Passing, server: Server, giaddr: IPv4Address) -> bytes | None:
        """The frame by which the relay, the VMs' gateway, hands a VM's message to a server elsewhere."""
        circuit = f"{passing.switch}:{passing.port}"
        dhcp = relay.toward_server(passing.dhcp, giaddr, circuit, vm)
        if dhcp is None or not isinstance(server.address, IPv4Address):
            self._context.counters["DHCP dropped: too many relays"] += 1
            return None
        return dhcp_frame(
            dhcp, self._context.net.gateway_mac, server.mac, giaddr, server.address, SERVER_PORT, SERVER_PORT
        )

    def _to_vm(self, vm: str, passing: Passing) -> None:
        net = self._context.net
        booked = net.vms.get(vm)
        if booked is None:
            return
        edge = net.servers[booked.server].edge
        port = net.vm_ports.get(vm, {}).get(edge)
        if port is None:
            return
        frame = passing.frame
        if passing.datagram.dport == SERVER_PORT:
            frame = self._from_relay(passing.dhcp)
        self._context.send_frame(edge, port.number, frame)

    def _from_relay(self, answer: DHCP) -> bytes:
        """A server's answer to the relay as the VM gets it.

        RFC 2131, 4.1: to yiaddr at chaddr, or by broadcast if the client asked for that; a NAK is broadcast,
        and a client that has an address already is answered there.
        """
        dhcp = relay.toward_client(answer)
        told = dhcp.ciaddr if dhcp.ciaddr != NO_ADDRESS else dhcp.yiaddr
        broadcast = dhcp.flags & FLAG_BROADCAST or told == NO_ADDRESS or dhcp.message_type is MessageType.NAK
        return dhcp_frame(
            dhcp,
            eth_src=self._context.net.gateway_mac,
            eth_dst=BROADCAST if broadcast else dhcp.chaddr,
            ip_src=dhcp.giaddr,
            ip_dst=EVERYBODY if broadcast else told,
            sport=SERVER_PORT,
            dport=CLIENT_PORT,
        )

    # ---- refusals ----

    def _parse(self, switch: str, port: int, frame: bytes, where: str) -> Passing | None:
        try:
            return Passing(switch, port, *parse_dhcp_frame(frame), frame)
        except FrameError as error:
            self._context.refuse_frame("DHCP", where, error)
            return None

    def _refused(self, refused: Refused, passing: Passing) -> None:
        context, switch, port = self._context, passing.switch, passing.port
        context.counters["DHCP refused"] += 1
        context.events.publish("dhcp.refused", switch=switch, port=port, vm=refused.vm, reason=refused.reason)
        if refused.forged:
            self._forged(refused.vm, refused.reason, passing)

    def _forged(self, vm: str, reason: str, passing: Passing) -> None:
        context, claims = self._context, claims_of(passing.dhcp)
        row = context.forgeries.note(
            ForgeryKind.DHCP, passing.switch, passing.port, vm, claims, context.clock()
        )
        context.events.publish("forgery", forgery=row, reason=reason)

    def _server_at(self, switch: str, port: int) -> Server | None:
        net = self._context.net
        for server in net.servers_with(Service.DHCP):
            at = net.place(server.id)
            if at is not None and at.switch == switch and net.port_number(at) == port:
                return server
        return None

"""DHCP on its way through the controller: snooped, judged by `bindings.snooping`, handed on."""

from collections.abc import Iterable

from retinue.bindings import (
    Bind,
    ClientMessage,
    Effect,
    ForgeryKind,
    Refused,
    Release,
    ServerMessage,
    Snooper,
    ToServers,
    ToVM,
)
from retinue.bindings.forgery import claims_of
from retinue.controller.context import Context
from retinue.flows.plan import near_server
from retinue.model import Holding, ModelError, Server, Service
from retinue.packets import BROADCAST, Ethernet, FrameError, UDPDatagram, mac_bytes, parse_dhcp_frame
from retinue.packets.dhcp import DHCP


class DhcpPath:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._snooper = Snooper(context.net)

    # ---- frames ----

    def from_vm(self, switch: str, port: int, frame: bytes) -> None:
        """A frame from a VM's port to the DHCP servers' UDP port."""
        parsed = self._parse(frame, f"{switch} port {port}")
        if parsed is None:
            return
        ethernet, datagram, dhcp = parsed
        message = ClientMessage(switch, port, ethernet.src, dhcp)
        effects = self._snooper.client(message, self._context.clock())
        for effect in effects:
            if isinstance(effect, Refused):
                self._refused(effect, switch, port, dhcp)
        self._context.spawn(self._carry_out(effects, frame, datagram), f"DHCP from {switch} port {port}")

    def from_server(self, switch: str, port: int, frame: bytes) -> None:
        """A frame from the port of a trusted DHCP server."""
        server = self._server_at(switch, port)
        if server is None:
            self._context.counters["DHCP dropped: no DHCP server is known at that port"] += 1
            return
        parsed = self._parse(frame, f"DHCP server {server.id}")
        if parsed is None:
            return
        _, datagram, dhcp = parsed
        effects = self._snooper.server(ServerMessage(server.id, dhcp), self._context.clock())
        for effect in effects:
            if isinstance(effect, Refused):
                self._refused(effect, switch, port, dhcp)
        self._context.spawn(self._carry_out(effects, frame, datagram), f"DHCP from {server.id}")

    async def expire(self) -> None:
        """End the leases that have run out."""
        effects = self._snooper.expire(self._context.clock())
        await self._carry_out(effects, b"", None)

    def next_end(self) -> float | None:
        return self._snooper.next_end()

    # ---- effects ----

    async def _carry_out(self, effects: Iterable[Effect], frame: bytes, datagram: UDPDatagram | None) -> None:
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
                case ToServers():
                    self._to_servers(frame, datagram)
                case ToVM(vm) if stands:
                    self._to_vm(vm, frame)
                case ToVM():
                    self._context.counters["DHCP kept back: the binding is not confirmed"] += 1
                case Refused():
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
        vm = context.net.vms[holding.vm]
        report = await context.install(touched, near_server(context.net, vm.server))
        # A switch that is away gets its entries when it comes back; one that is there and refuses is trouble.
        refused = sorted(report.missing & context.sessions.keys())
        if refused:
            reason = f"not confirmed by {', '.join(refused)}"
            context.events.publish("binding.unconfirmed", vm=holding.vm, ip=holding.ip, reason=reason)
            return False
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

    def _to_servers(self, frame: bytes, datagram: UDPDatagram | None) -> None:
        """To every DHCP server of the place, or to the one the client speaks to."""
        net = self._context.net
        reached = False
        for server in net.servers_with(Service.DHCP):
            at = net.place(server.id)
            port = None if at is None else net.port_number(at)
            if at is None or port is None:
                continue
            unicast = frame[:6] != mac_bytes(BROADCAST)
            if unicast and datagram is not None and server.address != datagram.dst:
                continue
            sent = mac_bytes(server.mac) + frame[6:] if unicast else frame
            reached |= self._context.send_frame(at.switch, port, sent)
        if not reached:
            self._context.counters["DHCP dropped: no DHCP server to be reached"] += 1

    def _to_vm(self, vm: str, frame: bytes) -> None:
        net = self._context.net
        booked = net.vms.get(vm)
        if booked is None:
            return
        edge = net.servers[booked.server].edge
        port = net.vm_ports.get(vm, {}).get(edge)
        if port is not None:
            self._context.send_frame(edge, port.number, frame)

    # ---- refusals ----

    def _parse(self, frame: bytes, where: str) -> tuple[Ethernet, UDPDatagram, DHCP] | None:
        try:
            return parse_dhcp_frame(frame)
        except FrameError as error:
            self._context.refuse_frame("DHCP", where, error)
            return None

    def _refused(self, refused: Refused, switch: str, port: int, dhcp: DHCP) -> None:
        context = self._context
        context.counters["DHCP refused"] += 1
        context.events.publish("dhcp.refused", switch=switch, port=port, vm=refused.vm, reason=refused.reason)
        if refused.forged:
            now = context.clock()
            row = context.forgeries.note(ForgeryKind.DHCP, switch, port, refused.vm, claims_of(dhcp), now)
            context.events.publish("forgery", forgery=row, reason=refused.reason)

    def _server_at(self, switch: str, port: int) -> Server | None:
        net = self._context.net
        for server in net.servers_with(Service.DHCP):
            at = net.place(server.id)
            if at is not None and at.switch == switch and net.port_number(at) == port:
                return server
        return None

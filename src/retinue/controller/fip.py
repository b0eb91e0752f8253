"""FIP through the controller: what VMs and FCoE forwarders say to each other about logins.

All of it comes here, from edges and from forwarders' ports, and is handed on as `core.snooping.fip_rules`
says. A grant is handed on when every switch that is connected has confirmed that the port's frames may pass.
What a forwarder says to all nodes comes to those that have been heard lately.
"""

from collections.abc import Iterator
from dataclasses import replace

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.storage_changes import FcLoggedIn, FcLoggedOut, shown
from retinue.core.model import NIC, VM, Mac, ModelError, Server
from retinue.core.model.addresses import is_multicast
from retinue.core.model.storage import FcLogin
from retinue.core.packets import Ethernet, FrameError, parse
from retinue.core.packets.fip import ALL_ENODES, ALL_FORWARDERS, Fip, parse_fip
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.snooping.fip_rules import SILENCE_SECONDS, FipRules, Granted, Passed, Rejected
from retinue.core.snooping.relay import HOME_BURST, HOME_RATE, Shares
from retinue.protocol.events import EventType

PROTOCOL = "FIP"


class FipPath:
    """Hands FIP on, and keeps the logins."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._rules = FipRules()
        self._of_guests = Shares(HOME_RATE, HOME_BURST)
        self._heard: dict[Mac, float] = {}
        """By NIC: when it said something last; of one that is logged in since before, when we began."""

    # ---- frames ----

    def from_vm(self, switch: str, port: int, frame: bytes) -> None:
        """A VM's NIC says something."""
        net, where = self._context.net, f"{switch} port {port}"
        parsed = self._parse(frame, where)
        if parsed is None:
            return
        ethernet, said = parsed
        login = net.fc_logins.get(ethernet.src)
        node = ethernet.src if login is None else login.nic  # By a tunnel it says who it is.
        vm, nic = net.vm_at(switch, port, node), net.nic_at(switch, port, node)
        if vm is None or nic is None:
            return
        forwarders = self._forwarders(vm, ethernet.dst)
        now = self._context.clock()
        try:
            verdict = self._rules.from_node(
                nic.mac, ethernet.src, ethernet.dst, said, net.logins_of(nic.mac), forwarders, now
            )
        except FrameError as error:
            verdict = Rejected(str(error))
        if not isinstance(verdict, Passed):
            self._reject(where, verdict)
            return
        self._heard[nic.mac] = now
        if vm.home:
            self._send_home(vm, frame)
            return
        for mac, id in forwarders.items():
            if verdict.to in (mac, ALL_FORWARDERS):
                self._to_forwarder(net.servers[id], frame)

    def _forwarders(self, vm: VM, asked: Mac) -> dict[Mac, str]:
        """To whom a VM may speak, by MAC; of a guest's its home alone knows which there are."""
        net = self._context.net
        if not vm.home:
            return {one.mac: one.id for one in net.forwarders()}
        return {} if is_multicast(asked) else {asked: net.peers[vm.home].gateway}

    def from_forwarder(self, switch: str, port: int, frame: bytes) -> None:
        """It comes in at a leaf's port where a forwarder is known to be, or by a guest's home's tunnel."""
        net, where = self._context.net, f"{switch} port {port}"
        by_tunnel = net.is_tunnel(switch, port)
        parsed = self._parse(frame, where)
        server = net.server_of_edge(switch) if by_tunnel else net.forwarder_at(switch, port)
        if parsed is None or server is None:
            return
        ethernet, said = parsed
        if ethernet.dst == ALL_FORWARDERS:
            return  # Between forwarders: they are not joined by us.
        vm = net.vm_of_mac(ethernet.dst)
        peer = net.peer_at(server.id) if by_tunnel else None
        if vm is not None and vm.home != ("" if peer is None else peer.id):
            self._reject(where, Rejected(f"VM {vm.id} has its storage from its home"))
            return
        logins = net.logins_of(ethernet.dst)
        try:
            verdict = self._rules.from_forwarder(
                server.id, ethernet.src, ethernet.dst, said, "" if vm is None else vm.id, logins,
                self._context.clock(),
            )  # fmt: skip
        except FrameError as error:
            verdict = Rejected(str(error))
        match verdict:
            case Rejected():
                self._reject(where, verdict)
            case Granted(login):
                if peer is not None:
                    login = replace(login, forwarder_mac=ethernet.src)
                self._context.spawn(self._grant(login, frame, where), f"storage login of VM {login.vm}")
            case Passed(to, ended):
                for nic, its in self._nodes(to):
                    self._to_nic(nic, its, frame)
                for login in ended:
                    self._end(login, "logged out" if said.service is not None else "its links were cleared")

    def _nodes(self, to: Mac) -> Iterator[tuple[VM, NIC]]:
        net = self._context.net
        for mac in list(self._heard) if to == ALL_ENODES else [to]:
            vm = net.vm_of_mac(mac)
            nic = None if vm is None else vm.nic_with(mac)
            if vm is not None and nic is not None and not (vm.home and to == ALL_ENODES):
                yield vm, nic

    async def _grant(self, login: FcLogin, frame: bytes, where: str) -> None:
        context = self._context
        try:
            touched = context.apply(FcLoggedIn(login))
        except ModelError as error:
            self._reject(where, Rejected(str(error)))
            return
        vm = context.net.vms[login.vm]
        report = await context.install(touched, [underlay_of(context.net).near(vm.server)])
        if any(context.is_connected(switch) for switch in report.missing):
            return  # The node asks again.
        context.events.publish(EventType.STORAGE_LOGIN, **shown(login))
        for its, nic in self._nodes(login.nic):
            self._to_nic(its, nic, frame)

    # ---- the end of logins ----

    def _end(self, login: FcLogin, reason: str) -> None:
        if self._context.net.fc_logins.get(login.mac) == login:
            touched = self._context.apply(FcLoggedOut(login, reason))
            self._context.spawn(self._context.install(touched), f"storage logout of VM {login.vm}")

    def look(self) -> None:
        """Logins of nodes that say nothing any more end; nodes without any are forgotten.

        A guest whose place is booked speaks where it still runs, for as long as it is copied.
        """
        now, net = self._context.clock(), self._context.net
        for login in list(net.fc_logins.values()):
            vm = net.vms[login.vm]
            if vm.home and net.peer_at(vm.server) is not None:
                self._heard[login.nic] = now
            elif now - self._heard.setdefault(login.nic, now) >= SILENCE_SECONDS:
                self._end(login, "the node is silent")
        for mac in [mac for mac, at in self._heard.items() if now - at >= SILENCE_SECONDS]:
            del self._heard[mac]
            self._rules.forget(mac)

    def give_back(self, vm: VM, nic: NIC | None = None) -> None:
        """The manager removes a VM, or a NIC of it."""
        for its in vm.nics if nic is None else (nic,):
            for login in self._context.net.logins_of(its.mac):
                self._end(login, "removed")
            self._heard.pop(its.mac, None)
            self._rules.forget(its.mac)

    # ---- sending ----

    def _to_forwarder(self, server: Server, frame: bytes) -> None:
        at = underlay_of(self._context.net).attachment(server.id)
        if at is not None:
            self._context.send_frame(*at, frame)

    def _to_nic(self, vm: VM, nic: NIC, frame: bytes) -> None:
        net = self._context.net
        edge = net.servers[vm.server].edge
        port = net.port_of(nic, edge)
        if port is None or not nic.enabled:
            return
        if net.is_tunnel(edge, port.number):
            if vm.home:
                return  # It is not here.
            # The other gateway knows by the MAC whom it is for.
            frame = replace(parse(frame), dst=nic.mac).build()
        self._context.send_frame(edge, port.number, frame)

    def _send_home(self, vm: VM, frame: bytes) -> None:
        """A guest's forwarders are at its home, which hears it as at a port of its own."""
        context = self._context
        tunnel = context.net.tunnel_to(vm.home)
        if tunnel is None:
            return
        if self._of_guests.spend(vm.id, 1, context.clock()):
            context.send_frame(*tunnel, frame)
        else:
            context.counters[Count.ASKED_HOME_TOO_MUCH] += 1

    def _parse(self, frame: bytes, where: str) -> tuple[Ethernet, Fip] | None:
        try:
            ethernet = parse(frame)
            return ethernet, parse_fip(ethernet.payload)
        except FrameError as error:
            self._context.reject_frame(PROTOCOL, where, error)
            return None

    def _reject(self, where: str, why: object) -> None:
        reason = why.reason if isinstance(why, Rejected) else str(why)
        self._context.reject_frame(PROTOCOL, where, FrameError(reason))

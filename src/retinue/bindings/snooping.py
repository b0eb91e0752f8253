"""DHCP snooping: a VM's exchange with a DHCP server makes, renews and ends its binding (rows A6, A8, A9).

A binding comes from the server's ACK, never from the VM's request (row A6): the request only records who
asked, from which port. A message is believed by where it came in: a VM speaks for itself at its own port, a
server only at a port of a trusted DHCP server. What does not fit is refused with its reason, and changes
nothing.

    from the VM            condition                                 effect
    DISCOVER REQUEST       its own MAC at its own port               recorded, to the servers
    INFORM
    RELEASE                ciaddr is held by this VM                 binding ends, to the servers
    DECLINE                the address is not another VM's           binding ends, to the servers
    from a server
    OFFER                  somebody asked with this xid and MAC      to the VM
    ACK                    the same, and nobody else holds it        binding, then (confirmed) to the VM
    NAK                    the same                                  binding asked for ends, to the VM
    time
    lease end              -                                         binding ends
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from math import isinf

from retinue.model import BindingKind, Holding, Mac, Origin
from retinue.model.network import Network
from retinue.packets import DHCP, BootOp, MessageType

NO_ADDRESS = IPv4Address(0)
PENDING_SECONDS = 60.0
"""How long an unanswered question is remembered."""
PENDING_PER_VM = 8


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """A DHCP message a VM's port sent to the servers' UDP port."""

    switch: str
    port: int
    eth_src: Mac
    dhcp: DHCP


@dataclass(frozen=True, slots=True)
class ServerMessage:
    """A DHCP message that came in at the port of a trusted DHCP server."""

    server: str
    dhcp: DHCP


@dataclass(frozen=True, slots=True)
class Bind:
    """This VM holds this address now. A renewal is a Bind with a later lease end."""

    holding: Holding
    renewed: bool


@dataclass(frozen=True, slots=True)
class Release:
    """The binding of this address ends."""

    holding: Holding
    reason: str


@dataclass(frozen=True, slots=True)
class ToServers:
    """Hand the message on to the DHCP servers."""

    vm: str


@dataclass(frozen=True, slots=True)
class ToVM:
    """Hand the message on to the VM, once the effects before this one are confirmed by the switches."""

    vm: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The message is dropped. `forged` tells an attempt on another's address from a mere misfit."""

    reason: str
    vm: str = ""
    forged: bool = False


Effect = Bind | Release | ToServers | ToVM | Refused


@dataclass(frozen=True, slots=True)
class _Question:
    vm: str
    kind: MessageType
    wanted: IPv4Address | None
    at: float


@dataclass
class Snooper:
    """The table's rules over a network's holdings. Its own memory is only the questions not yet answered.

    Methods read the network and return effects; applying them is the caller's part.
    """

    net: Network
    _asked: dict[tuple[int, Mac], _Question] = field(default_factory=dict)

    def client(self, message: ClientMessage, now: float) -> list[Effect]:
        dhcp = message.dhcp
        vm = self.net.vm_at(message.switch, message.port)
        if vm is None:
            return [Refused(f"no VM is known at port {message.port} of {message.switch}")]
        if message.eth_src != vm.mac or dhcp.chaddr != vm.mac:
            claimed = dhcp.chaddr if dhcp.chaddr != vm.mac else message.eth_src
            return [Refused(f"DHCP for MAC {claimed} at the port of {vm.id} ({vm.mac})", vm.id, forged=True)]
        if dhcp.op != BootOp.REQUEST or dhcp.message_type is None or dhcp.message_type.from_server:
            return [Refused("a DHCP server's message from a VM", vm.id, forged=True)]
        if dhcp.giaddr != NO_ADDRESS:
            return [Refused("a VM may not relay DHCP (giaddr is set)", vm.id, forged=True)]
        if dhcp.relay_agent is not None:
            # RFC 3046 section 2.1: from an untrusted circuit the option of relay agents is not believed.
            return [Refused("a VM may not speak as a DHCP relay agent (option 82)", vm.id, forged=True)]
        if self._is_anothers(dhcp.ciaddr, vm.id):
            return [Refused(f"{dhcp.ciaddr} is held by another VM", vm.id, forged=True)]
        match dhcp.message_type:
            case MessageType.RELEASE:
                return self._given_back(vm.id, dhcp.ciaddr, "released by the VM")
            case MessageType.DECLINE:
                return self._given_back(vm.id, dhcp.requested_address or NO_ADDRESS, "declined by the VM")
            case kind:
                self._remember(vm.id, dhcp, kind, now)
                return [ToServers(vm.id)]

    def server(self, message: ServerMessage, now: float) -> list[Effect]:
        dhcp = message.dhcp
        if dhcp.op != BootOp.REPLY or dhcp.message_type is None or not dhcp.message_type.from_server:
            return [Refused(f"not a DHCP server's message, though it came from {message.server}")]
        question = self._asked.get((dhcp.xid, dhcp.chaddr))
        if question is None or question.vm not in self.net.vms or now - question.at > PENDING_SECONDS:
            return [Refused(f"no VM asked (transaction {dhcp.xid:#x}, MAC {dhcp.chaddr})")]
        match dhcp.message_type:
            case MessageType.ACK:
                return self._acknowledged(question, dhcp, now)
            case MessageType.NAK:
                del self._asked[dhcp.xid, dhcp.chaddr]
                ended = [
                    Release(h, f"refused by DHCP server {message.server}")
                    for h in self._leases(question.vm)
                    if question.wanted in (None, h.ip)
                ]
                return [*ended, ToVM(question.vm)]
            case _:
                return [ToVM(question.vm)]

    def expire(self, now: float) -> list[Effect]:
        """End what has run out: leases, and questions nobody answered."""
        for key in [k for k, q in self._asked.items() if now - q.at > PENDING_SECONDS]:
            del self._asked[key]
        return [
            Release(h, "the lease ended")
            for h in self.net.holdings.values()
            if h.lease_end is not None and h.lease_end <= now
        ]

    def next_end(self) -> float | None:
        """When the next lease ends."""
        return min((h.lease_end for h in self.net.holdings.values() if h.lease_end is not None), default=None)

    def _acknowledged(self, question: _Question, dhcp: DHCP, now: float) -> list[Effect]:
        del self._asked[dhcp.xid, dhcp.chaddr]
        ip, seconds = dhcp.yiaddr, dhcp.lease_time
        if question.kind is MessageType.INFORM:
            return [ToVM(question.vm)]
        if ip == NO_ADDRESS or seconds is None:
            return [Refused("an ACK without an address or a lease time", question.vm)]
        if self._is_anothers(ip, question.vm):
            other = self.net.holdings[ip].vm
            return [
                Refused(f"the DHCP server granted {ip} to {question.vm}, but {other} holds it", question.vm)
            ]
        before = self.net.holdings.get(ip)
        if before is not None and before.kind is BindingKind.STATIC:
            return [ToVM(question.vm)]  # The manager's word stands; the lease adds nothing to it.
        holding = Holding(
            ip=ip,
            mac=dhcp.chaddr,
            vm=question.vm,
            kind=BindingKind.DYNAMIC,
            origin=Origin.CONTROLLER,
            lease_end=None if isinf(seconds) else now + seconds,
        )
        replaced = [Release(h, f"replaced by {ip}") for h in self._leases(question.vm) if h.ip != ip]
        return [*replaced, Bind(holding, renewed=before is not None), ToVM(question.vm)]

    def _given_back(self, vm: str, ip: IPv4Address, reason: str) -> list[Effect]:
        holding = self.net.holdings.get(ip)
        if holding is None or holding.vm != vm or holding.kind is BindingKind.STATIC:
            return [Refused(f"{ip} is not leased to {vm}, nothing to give back", vm)]
        return [Release(holding, reason), ToServers(vm)]

    def _remember(self, vm: str, dhcp: DHCP, kind: MessageType, now: float) -> None:
        mine = [key for key, question in self._asked.items() if question.vm == vm]
        for key in mine[: max(0, len(mine) - PENDING_PER_VM + 1)]:
            del self._asked[key]
        wanted = dhcp.requested_address or (dhcp.ciaddr if dhcp.ciaddr != NO_ADDRESS else None)
        self._asked[dhcp.xid, dhcp.chaddr] = _Question(vm, kind, wanted, now)

    def _is_anothers(self, ip: IPv4Address, vm: str) -> bool:
        holding = self.net.holdings.get(ip)
        return holding is not None and holding.vm != vm

    def _leases(self, vm: str) -> Iterator[Holding]:
        return (h for h in self.net.held_by(vm) if h.kind is BindingKind.DYNAMIC)

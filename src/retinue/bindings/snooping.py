"""DHCP snooping: a VM's exchange with a DHCP server makes, renews and ends its binding (rows A6, A8, A9).

A binding comes from the server's ACK, never from the VM's request (row A6): the request only records who
asked, from which port. A message is believed by where it came in: a VM speaks for itself at its own port, a
server only at a port of a trusted DHCP server. What does not fit is refused with its reason, and changes
nothing.

    from the VM            condition                                 effect
    DISCOVER REQUEST       its own MAC at its own port               recorded, to the servers
    INFORM                 the address asked for is another's        also told as forgery
    RELEASE                ciaddr is held by this VM                 binding ends, to the servers
    DECLINE                the address is not another VM's           binding ends, to the servers
    the agent's renewal    announced, at the announced switch        port recorded, to the servers
    from a server
    OFFER                  somebody asked with this xid and MAC      to the VM
    ACK                    the same, and nobody else holds it        binding, then (confirmed) to the VM
    NAK                    the same                                  binding asked for ends, to the VM
    time
    lease end              -                                         binding ends

A renewal on a VM's behalf (seed 1) comes in at the VM's port like the VM's own messages. It is told from them
by its transaction id, which is announced before (`announce`): its answer goes to the agent, never to the VM.
Only what was announced is taken for one (row F3), and only at the switch it was announced for. It moves no
binding: where a VM may be found is the manager's and the moves' to say.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from math import isinf

from retinue.model import VM, BindingKind, Holding, Mac, Origin
from retinue.model.network import Network
from retinue.packets import DHCP, BootOp, MessageType

NO_ADDRESS = IPv4Address(0)
PENDING_SECONDS = 60.0
"""How long an unanswered question is remembered."""
PENDING_PER_VM = 8
ETHERNET = 1
"""Hardware type (RFC 1700), first octet of a client identifier that is a hardware address."""


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
class Recorded:
    """The agent's renewal came in at this port of the VM (row A3)."""

    vm: str
    xid: int
    switch: str
    port: int


@dataclass(frozen=True, slots=True)
class ToAgent:
    """The answer to the agent's renewal, once the effects before this one are confirmed; not for the VM.

    `refusal` is why there is no renewed lease; "" with an ACK.
    """

    vm: str
    xid: int
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The message is dropped. `forged` tells an attempt on another's address from a mere misfit."""

    reason: str
    vm: str = ""
    forged: bool = False


@dataclass(frozen=True, slots=True)
class Suspect:
    """The message is handed on, for the DHCP server must say no; but it asks for what another VM holds."""

    reason: str
    vm: str


Effect = Bind | Release | ToServers | ToVM | Recorded | ToAgent | Refused | Suspect

_Key = tuple[int, Mac]
"""Transaction id and hardware address."""


@dataclass(frozen=True, slots=True)
class _Question:
    vm: str
    kind: MessageType
    wanted: IPv4Address | None
    client_id: bytes
    at: float
    by_agent: bool = False


@dataclass(slots=True)
class _Announced:
    """A renewal by the agent. Once `closed` it takes no more, but is known for what it was."""

    vm: str
    ip: IPv4Address
    switch: str
    at: float
    closed: bool = False


@dataclass
class Snooper:
    """The table's rules over a network's holdings. Its own memory is only the questions not yet answered.

    Methods read the network and return effects; applying them is the caller's part.
    """

    net: Network
    _asked: dict[_Key, _Question] = field(default_factory=dict)
    _announced: dict[_Key, _Announced] = field(default_factory=dict)

    def announce(self, vm: str, mac: Mac, ip: IPv4Address, xid: int, switch: str, now: float) -> None:
        """The agent will renew this address for its VM, from the VM's port on this switch."""
        for key in [k for k, a in self._announced.items() if a.closed and now - a.at > PENDING_SECONDS]:
            del self._announced[key]
        self._announced[xid, mac] = _Announced(vm, ip, switch, now)

    def withdraw(self, mac: Mac, xid: int, now: float) -> None:
        """That renewal has ended, one way or another. What still comes of it is dropped without a word."""
        announced = self._announced.get((xid, mac))
        if announced is not None:
            announced.closed, announced.at = True, now
        self._asked.pop((xid, mac), None)

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
        owner = self._owner_of_id(dhcp.client_id or b"", vm)
        if owner:
            # A DHCP server knows a client by it (RFC 2131, 4.2), and would give this VM the other's lease.
            return [Refused(f"the DHCP client identifier of {owner}", vm.id, forged=True)]
        if self._is_anothers(dhcp.ciaddr, vm.id):
            return [Refused(f"{dhcp.ciaddr} is held by another VM", vm.id, forged=True)]
        match dhcp.message_type:
            case MessageType.RELEASE:
                return self._given_back(vm.id, dhcp.ciaddr, "released by the VM")
            case MessageType.DECLINE:
                return self._given_back(vm.id, dhcp.requested_address or NO_ADDRESS, "declined by the VM")
            case kind if (announced := self._announced.get((dhcp.xid, dhcp.chaddr))) is not None:
                return self._on_behalf(announced, message, kind, now)
            case kind:
                self._remember(vm.id, dhcp, kind, now)
                wanted = dhcp.requested_address
                if wanted is not None and self._is_anothers(wanted, vm.id):
                    return [Suspect(f"asks for {wanted}, which another VM holds", vm.id), ToServers(vm.id)]
                return [ToServers(vm.id)]

    def server(self, message: ServerMessage, now: float) -> list[Effect]:
        dhcp = message.dhcp
        if dhcp.op != BootOp.REPLY or dhcp.message_type is None or not dhcp.message_type.from_server:
            return [Refused(f"not a DHCP server's message, though it came from {message.server}")]
        question = self._asked.get((dhcp.xid, dhcp.chaddr))
        announced = self._announced.get((dhcp.xid, dhcp.chaddr))
        if announced is not None and announced.closed:
            return []  # A second answer, to a request that was sent again.
        if question is None or question.vm not in self.net.vms or now - question.at > PENDING_SECONDS:
            return [Refused(f"no VM asked (transaction {dhcp.xid:#x}, MAC {dhcp.chaddr})")]
        match dhcp.message_type:
            case MessageType.ACK:
                return self._acknowledged(question, dhcp, now)
            case MessageType.NAK:
                del self._asked[dhcp.xid, dhcp.chaddr]
                reason = f"refused by DHCP server {message.server}"
                ended = [
                    Release(h, reason) for h in self._leases(question.vm) if question.wanted in (None, h.ip)
                ]
                words = reason + (f": {dhcp.message}" if dhcp.message else "")
                return [*ended, self._hand_on(question, dhcp, words)]
            case _ if question.by_agent:
                return [Refused("an offer to a renewal", question.vm)]
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
        why = self._why_not(question, ip, seconds)
        if why:
            refused = Refused(why, question.vm)
            return [refused, self._hand_on(question, dhcp, why)] if question.by_agent else [refused]
        assert seconds is not None
        before = self.net.holdings.get(ip)
        if before is not None and before.kind is BindingKind.STATIC:
            # The manager's word stands; the lease adds nothing to it.
            return [self._hand_on(question, dhcp)]
        holding = Holding(
            ip=ip,
            mac=dhcp.chaddr,
            vm=question.vm,
            kind=BindingKind.DYNAMIC,
            origin=Origin.CONTROLLER,
            lease_end=None if isinf(seconds) else now + seconds,
            server=dhcp.server_id,
            client_id=question.client_id,
        )
        replaced = [Release(h, f"replaced by {ip}") for h in self._leases(question.vm) if h.ip != ip]
        return [*replaced, Bind(holding, renewed=before is not None), self._hand_on(question, dhcp)]

    def _why_not(self, question: _Question, ip: IPv4Address, seconds: float | None) -> str:
        """Why an ACK makes no binding; "" when it does."""
        if ip == NO_ADDRESS or seconds is None:
            return "an ACK without an address or a lease time"
        if self._is_anothers(ip, question.vm):
            other = self.net.holdings[ip].vm
            return f"the DHCP server granted {ip} to {question.vm}, but {other} holds it"
        if question.by_agent and ip != question.wanted:
            return f"the DHCP server answered the renewal of {question.wanted} with {ip}"
        return ""

    def _on_behalf(
        self, announced: _Announced, message: ClientMessage, kind: MessageType, now: float
    ) -> list[Effect]:
        """A message with the transaction id of an announced renewal, from the VM's port and MAC."""
        dhcp, vm = message.dhcp, announced.vm
        if message.switch != announced.switch:
            reason = f"the renewal announced at {announced.switch} came in at {message.switch}"
            return [Refused(reason, vm, forged=True)]
        renews = (dhcp.requested_address, dhcp.server_id) == (None, None) and dhcp.ciaddr == announced.ip
        if kind is not MessageType.REQUEST or not renews:
            return [Refused(f"not the renewal of {announced.ip} that was announced", vm, forged=True)]
        if announced.closed:
            return []
        self._asked[dhcp.xid, dhcp.chaddr] = _Question(
            vm, kind, announced.ip, dhcp.client_id or b"", now, by_agent=True
        )
        return [Recorded(vm, dhcp.xid, message.switch, message.port), ToServers(vm)]

    def _hand_on(self, question: _Question, dhcp: DHCP, refusal: str = "") -> Effect:
        """To whoever asked."""
        if not question.by_agent:
            return ToVM(question.vm)
        announced = self._announced.get((dhcp.xid, dhcp.chaddr))
        if announced is not None:
            announced.closed = True
        return ToAgent(question.vm, dhcp.xid, refusal)

    def _given_back(self, vm: str, ip: IPv4Address, reason: str) -> list[Effect]:
        holding = self.net.holdings.get(ip)
        if holding is None or holding.vm != vm or holding.kind is BindingKind.STATIC:
            forged = self._is_anothers(ip, vm)
            return [Refused(f"{ip} is not leased to {vm}, nothing to give back", vm, forged)]
        return [Release(holding, reason), ToServers(vm)]

    def _remember(self, vm: str, dhcp: DHCP, kind: MessageType, now: float) -> None:
        # The agent's question is not among them: a VM cannot push it out.
        mine = [key for key, question in self._asked.items() if question.vm == vm and not question.by_agent]
        for key in mine[: max(0, len(mine) - PENDING_PER_VM + 1)]:
            del self._asked[key]
        wanted = dhcp.requested_address or (dhcp.ciaddr if dhcp.ciaddr != NO_ADDRESS else None)
        self._asked[dhcp.xid, dhcp.chaddr] = _Question(vm, kind, wanted, dhcp.client_id or b"", now)

    def _is_anothers(self, ip: IPv4Address, vm: str) -> bool:
        holding = self.net.holdings.get(ip)
        return holding is not None and holding.vm != vm

    def _owner_of_id(self, client_id: bytes, vm: VM) -> str:
        """The other VM whose client identifier this is; "" if there is none."""
        if not client_id or client_id == _id_of(vm.mac):
            return ""
        # RFC 2132, 9.14: most clients use their hardware address, and own that before they have a lease.
        named = self.net.vm_of_mac(client_id[1:].hex(":")) if client_id[0] == ETHERNET else None
        if named is not None and named.id != vm.id:
            return named.id
        held = self.net.holdings.values()
        return next((h.vm for h in held if h.client_id == client_id and h.vm != vm.id), "")

    def _leases(self, vm: str) -> Iterator[Holding]:
        return (h for h in self.net.held_by(vm) if h.kind is BindingKind.DYNAMIC)


def _id_of(mac: Mac) -> bytes:
    """The client identifier made of a hardware address."""
    return bytes([ETHERNET]) + bytes.fromhex(mac.replace(":", ""))

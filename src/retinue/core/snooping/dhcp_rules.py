"""DHCP snooping: a VM's exchange with a DHCP server makes, renews and ends its binding.

A binding comes from the server's ACK, never from the VM's request: the request only records which VM
sent it, at which port. A message is trusted by the port where it came in: a VM's at the VM's own port, a
server's only at the port of a trusted DHCP server. What does not fit is rejected with its reason, and changes
nothing.

    from the VM            condition                                 effect
    any                    see `headers`: sender, source,            -
                           destination, form, client identifier
    DISCOVER REQUEST       -                                         recorded, to the servers
    INFORM                 the address requested is another's        also reported as spoofing
    RELEASE                ciaddr is held by this VM                 binding ends, to the servers
    DECLINE                the address is not another VM's;          binding ends, to the servers
                           one in a minute
    the agent's renewal    announced, at the announced switch        port recorded, to the servers
    from a server          an answer fits a question: see `questions`;  -
                           it is of the domain that is the VM's home
    OFFER                  nobody else holds the address             to the VM
    ACK                    the same                                  binding, then (confirmed) to the VM
    ACK to the agent       other DNS or WINS servers than the VM     also told to the operator, once
                           was told
    NAK to the VM          -                                         binding requested ends, to the VM
    NAK to the agent       -                                         to the agent; the binding stays
    OFFER, ACK             another has the address                   the server is told by a DECLINE
    time
    lease end              -                                         binding ends

RELEASE, DECLINE, a NAK and an ACK of another address count only from where the VM runs, or in answer to what
came from there: a server where the VM is merely open, for a migration, can only renew what there is.

A renewal that an agent sends on a VM's behalf comes in at the VM's port like the VM's own messages. The
transaction id, announced before (`announced`), tells them apart: the answer goes to the agent, never to the
VM. Only what was announced counts as a renewal by the agent, and only at the switch it was announced for. A
renewal moves no binding: where a VM may be found is up to the manager and the migrations. Nor does it end
one: the VM has asked nothing, and a NAK to the agent would take away what the VM has till its lease ends.

To a DHCP server a client is its identifier (RFC 2131, 4.2), so a NIC may hold several leases, one for each
that its guest uses; what ends or replaces one leaves the others alone. Where there would be too many, as of a
guest that has another identifier with each start, the one that ends first is replaced.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from math import inf, isinf

from retinue.core.model import DEFAULT_VRF, VM, Assignment, BindingKind, Mac, Origin, Service
from retinue.core.model.domains import not_of_a_guest
from retinue.core.model.network import Network
from retinue.core.packets import (
    DHCP,
    BootOp,
    MessageType,
    decline,
    kept_options,
    name_servers,
)
from retinue.core.snooping.announced import Announced, AnnouncedRenewals
from retinue.core.snooping.headers import another, fault_of, is_anothers, other_holder, source_of
from retinue.core.snooping.messages import (
    EVERYBODY,
    NO_ADDRESS,
    Bind,
    ClientMessage,
    Disagreement,
    Effect,
    Recorded,
    Rejected,
    Release,
    ServerMessage,
    Suspicious,
    ToAgent,
    ToServers,
    ToVM,
)
from retinue.core.snooping.questions import Question, Questions
from retinue.core.snooping.renewed import compared, renewed

DECLINE_SECONDS = 60.0
"""A VM may decline one address in this time: each is one less that the server can give."""
DISAGREEMENT_SECONDS = 60.0
"""How often a server is told that an address it grants is another VM's."""
DISAGREEMENTS_KEPT = 1000
IDENTIFIERS_KEPT = 1000
LEASES_PER_NIC = 2
"""Leases that one NIC may hold, where nobody says how many: those of a boot loader and of what it starts."""


@dataclass
class Snooper:
    """The rules of DHCP snooping over a network's assignments; it remembers only what is under way.

    Methods read the network and return effects; applying them is the caller's part.
    """

    net: Network
    most_leases: int = LEASES_PER_NIC
    """Leases that one NIC may hold."""
    identifiers: dict[IPv4Address, str] = field(default_factory=dict)
    """Server identifiers, and the DHCP server (or the relay before it) by whose port each speaks."""
    questions: Questions = field(default_factory=Questions)
    announced: AnnouncedRenewals[IPv4Address] = field(default_factory=AnnouncedRenewals)
    _declined: dict[str, float] = field(default_factory=dict)
    """By VM: when it declined an address last, if that is not long ago."""
    _disagreements: dict[tuple[str, IPv4Address], float] = field(default_factory=dict)
    """By VM and address that a server grants though another has it: when the server was told last."""

    def withdraw(self, mac: Mac, xid: int, now: float) -> None:
        """The announced renewal with this transaction id has ended, one way or another."""
        self.announced.withdraw(xid, mac, now)
        self.questions.withdraw(mac, xid)

    # ---- from a VM ----

    def client(self, message: ClientMessage, now: float) -> list[Effect]:
        dhcp = message.dhcp
        vm = self.net.vm_at(message.switch, message.port, message.eth_src)
        if vm is None:
            return [Rejected(f"no VM is known at port {message.port} of {message.switch}")]
        announced = self.announced.find(dhcp.xid, dhcp.chaddr)
        to_announced = announced is not None and message.dst == announced.server
        fault = fault_of(self.net, vm, message, (message.dst,) if to_announced else self.identifiers)
        if fault is not None:
            return [fault]
        match dhcp.message_type:
            case MessageType.RELEASE:
                return self._given_back(vm, message, dhcp.ciaddr, "released by the VM")
            case MessageType.DECLINE:
                return self._declines(vm, message, now)
            case _ if announced is not None:
                return self._on_behalf(vm, announced, message, now)
            case kind:
                assert kind is not None
                question = self._question(vm.id, message, kind, now)
                self.questions.ask(question)
                return [*self._suspicion(vm, question), self._to_servers(vm, message)]

    def _question(
        self, vm: str, message: ClientMessage, kind: MessageType, now: float, *, by_agent: bool = False
    ) -> Question:
        sent_to = message.dst if message.dst != EVERYBODY else None
        question = Question(
            vm, message.dhcp, kind, now, message.dhcp.server_id or sent_to,
            by_agent=by_agent, runs_here=message.runs_here,
        )  # fmt: skip
        held = None if question.wanted is None else self._held(question.wanted, message.dhcp.chaddr)
        if held is not None and held.mac == message.dhcp.chaddr:
            question = replace(question, granted_by=held.server)
        return question

    def _suspicion(self, vm: VM, question: Question) -> list[Effect]:
        """It asks for what another VM holds, though no server has offered or granted it that."""
        wanted, nic = question.asked.requested_address, question.asked.chaddr
        if wanted is None or not is_anothers(self.net, wanted, nic):
            return []
        if (vm.id, wanted) in self._disagreements or self.questions.was_offered(nic, wanted):
            return []
        return [Suspicious(f"asks for {wanted}, which {another(self.net, wanted, vm.id, nic)} holds", vm.id)]

    def _declines(self, vm: VM, message: ClientMessage, now: float) -> list[Effect]:
        address = message.dhcp.requested_address or NO_ADDRESS
        effects = self._given_back(vm, message, address, "declined by the VM")
        if isinstance(effects[0], Rejected):
            return effects
        last = self._declined.get(vm.id)
        if last is not None and now - last < DECLINE_SECONDS:
            words = f"{vm.id} declines {address}, {now - last:.0f} s after another: one in a minute is enough"
            return [Rejected(words, vm.id, spoofed=True)]
        self._declined[vm.id] = now
        return effects

    def _given_back(self, vm: VM, message: ClientMessage, ip: IPv4Address, reason: str) -> list[Effect]:
        nic = message.dhcp.chaddr
        assignment = self._held(ip, nic)
        if assignment is None or assignment.mac != nic or assignment.kind is not BindingKind.DYNAMIC:
            spoofed = is_anothers(self.net, ip, nic)
            return [Rejected(f"{ip} is not leased to {vm.id}, nothing to give back", vm.id, spoofed)]
        if not message.runs_here:
            words = f"{ip} is given back at {message.switch}, where {vm.id} does not run"
            return [Rejected(words, vm.id, spoofed=True)]
        return [Release(assignment, reason), self._to_servers(vm, message)]

    def _to_servers(self, vm: VM, message: ClientMessage) -> ToServers:
        return ToServers(vm.id, source_of(self.net, vm, message) or NO_ADDRESS)

    def _on_behalf(
        self, sender: VM, announced: Announced[IPv4Address], message: ClientMessage, now: float
    ) -> list[Effect]:
        """A message with the transaction id of an announced renewal, from the VM's port and MAC."""
        dhcp, vm = message.dhcp, announced.vm
        if message.switch != announced.switch:
            reason = f"the renewal announced at {announced.switch} came in at {message.switch}"
            return [Rejected(reason, vm, spoofed=True)]
        renews = (dhcp.requested_address, dhcp.server_id) == (None, None) and dhcp.ciaddr == announced.ip
        if dhcp.message_type is not MessageType.REQUEST or not renews:
            return [Rejected(f"not the renewal of {announced.ip} that was announced", vm, spoofed=True)]
        if announced.closed:
            return []
        self.questions.ask(self._question(vm, message, MessageType.REQUEST, now, by_agent=True))
        recorded = Recorded(vm, dhcp.xid, message.switch, message.port)
        return [recorded, self._to_servers(sender, message)]

    # ---- from a server ----

    def server(self, message: ServerMessage, now: float) -> list[Effect]:
        dhcp = message.dhcp
        fault = self._fault_of_server(message)
        if fault:
            return [Rejected(fault)]
        announced = self.announced.find(dhcp.xid, dhcp.chaddr)
        if announced is not None and announced.closed:
            return []  # A second answer, to a request that was sent again.
        question = self.questions.answered_by(dhcp, now)
        if question is None or question.vm not in self.net.vms:
            return [Rejected(f"no VM asked (transaction {dhcp.xid:#x}, MAC {dhcp.chaddr})")]
        if strange := self._not_its_domains(question, message):
            return [Rejected(strange, question.vm)]
        if not message.domain:
            self._heard(message)
        match dhcp.message_type:
            case MessageType.ACK:
                return self._acknowledged(question, dhcp, now)
            case MessageType.NAK:
                return self._refused(question, message)
            case _:
                return self._offered(question, dhcp, now)

    def _fault_of_server(self, message: ServerMessage) -> str:
        """Why a server's message is none; "" if nothing is wrong with it."""
        dhcp = message.dhcp
        if dhcp.op != BootOp.REPLY or dhcp.message_type is None or not dhcp.message_type.from_server:
            return f"not a DHCP server's message, though it came from {message.server}"
        speaker = next((s for s in self.net.dhcp_servers() if s.id == message.server), None)
        itself = speaker is not None and speaker.address == message.src
        vrf = DEFAULT_VRF if speaker is None else self.net.vrf_of_server(speaker)
        # By the relay a server of the default VRF serves others, too; a VM that is one does not.
        relayed = vrf == DEFAULT_VRF and message.server in self.net.servers
        if vrf != self.net.vrf_of_mac(dhcp.chaddr) and not relayed:
            return f"DHCP server {message.server} of VRF {vrf} speaks to a NIC of another VRF"
        if message.src is not None and self.net.holder(message.src, vrf) is not None and not itself:
            return f"DHCP server {message.server} speaks from {message.src}, which a VM holds"
        named = None if dhcp.server_id is None else self.net.server_of_address(dhcp.server_id, vrf)
        if named is not None and named.id != message.server and Service.DHCP in named.services:
            return f"DHCP server {message.server} speaks for DHCP server {named.id}"
        return ""

    def _not_its_domains(self, question: Question, message: ServerMessage) -> str:
        """Why a server of this domain has no say in the asker's; "" where it is its own, and gives it what
        its home may."""
        home, ip = self.net.vms[question.vm].home, message.dhcp.yiaddr
        if home != message.domain:
            of = f"domain {message.domain}" if message.domain else "this domain"
            return f"{question.vm} has its leases from its home, and a DHCP server of {of} answers"
        if not home or ip == NO_ADDRESS:
            return ""
        why = not_of_a_guest(self.net, home, ip, question.nic)
        return f"domain {home} leases {ip} to {question.vm}: {why}" if why else ""

    def _heard(self, message: ServerMessage) -> None:
        """This server identifier speaks by that server's port."""
        identifier = message.dhcp.server_id
        if identifier is not None:
            self.identifiers[identifier] = message.server
            if len(self.identifiers) > IDENTIFIERS_KEPT:
                del self.identifiers[next(iter(self.identifiers))]

    def _offered(self, question: Question, dhcp: DHCP, now: float) -> list[Effect]:
        ip = dhcp.yiaddr
        if holder := other_holder(self.net, ip, question.vm, dhcp.chaddr):
            return self._disagree(question, dhcp, holder, now)
        self.questions.offered(question, (ip,))
        return [ToVM(question.vm)]

    def _refused(self, question: Question, message: ServerMessage) -> list[Effect]:
        """A NAK."""
        vm, dhcp = question.vm, message.dhcp
        reason = f"rejected by DHCP server {message.server}"
        words = reason + (f": {dhcp.message}" if dhcp.message else "")
        if question.by_agent:
            held = self._held(question.wanted or NO_ADDRESS, dhcp.chaddr)
            stays = "; the VM keeps its address until the lease ends" if held is not None else ""
            self.questions.forget(question)
            return [self._hand_on(question, dhcp, words + stays)]
        if not question.runs_here:
            return [Rejected(f"a NAK to what came from where {vm} does not run", vm)]
        self.questions.forget(question)
        leases = self._leases(vm, dhcp.chaddr)
        its = (h for h in leases if h.client_id == question.client_id)
        ended = [Release(h, reason) for h in its if question.wanted in (None, h.ip)]
        return [*ended, self._hand_on(question, dhcp)]

    def _acknowledged(self, question: Question, dhcp: DHCP, now: float) -> list[Effect]:
        if question.kind is MessageType.INFORM:
            self.questions.forget(question)
            return [ToVM(question.vm)]
        ip, seconds = dhcp.yiaddr, dhcp.lease_time
        if holder := other_holder(self.net, ip, question.vm, dhcp.chaddr):
            return self._disagree(question, dhcp, holder, now)
        before = self._held(ip, dhcp.chaddr)
        replaced = self._replaced(question, ip, is_new=before is None)
        why = self._why_not(question, ip, seconds, replaced)
        if why:
            rejected = Rejected(why, question.vm)
            return [rejected, self._hand_on(question, dhcp, why)] if question.by_agent else [rejected]
        assert seconds is not None
        self.questions.forget(question)
        if before is not None and before.kind is not BindingKind.DYNAMIC:
            # A static assignment has precedence; the lease adds nothing to it.
            return [self._hand_on(question, dhcp)]
        granted = Assignment(
            ip=ip,
            mac=dhcp.chaddr,
            vm=question.vm,
            kind=BindingKind.DYNAMIC,
            origin=Origin.CONTROLLER,
            lease_end=None if isinf(seconds) else now + seconds,
            server=dhcp.server_id,
            client_id=question.client_id,
            options=kept_options(question.asked),
            told=() if question.by_agent else name_servers(dhcp),
            vrf=self.net.vrf_of_mac(dhcp.chaddr),
        )
        differs: list[Effect] = []
        if before is not None:
            granted = renewed(before, granted, question)
            if question.by_agent:
                granted, differs = compared(before, granted, name_servers(dhcp))
        ended = [Release(h, f"replaced by {ip}") for h in replaced]
        return [*ended, Bind(granted, renewed=before is not None), *differs, self._hand_on(question, dhcp)]

    def _replaced(self, question: Question, ip: IPv4Address, *, is_new: bool) -> list[Assignment]:
        """The leases that end as the NIC gets this one: of the same client, and those that are too many."""
        others = [h for h in self._leases(question.vm, question.nic) if h.ip != ip]
        same = [h for h in others if h.client_id == question.client_id]
        left = sorted((h for h in others if h not in same), key=lambda h: h.lease_end or inf)
        too_many = len(left) + 1 - self.most_leases if is_new else 0
        return [*same, *left[: max(0, too_many)]]

    def _why_not(
        self, question: Question, ip: IPv4Address, seconds: float | None, replaced: list[Assignment]
    ) -> str:
        """Why an ACK makes no binding; "" when it does."""
        if ip == NO_ADDRESS or seconds is None:
            return "an ACK without an address or a lease time"
        if question.by_agent and ip != question.wanted:
            return f"the DHCP server answered the renewal of {question.wanted} with {ip}"
        if replaced and not question.runs_here:
            return f"{ip} would replace {replaced[0].ip}, asked for where {question.vm} does not run"
        held = {lease.ip for lease in self._leases(question.vm, question.nic)}
        if held and ip not in held and not question.runs_here:
            return f"{ip} would be one more lease, asked for where {question.vm} does not run"
        return ""

    def _disagree(self, question: Question, dhcp: DHCP, holder: str, now: float) -> list[Effect]:
        """A server gives to a VM what another holds. Neither need have done wrong."""
        ip, vm = dhcp.yiaddr, question.vm
        verb = "offers" if dhcp.message_type is MessageType.OFFER else "granted"
        why = f"the DHCP server {verb} {ip} to {vm}, but {holder} holds it"
        effects: list[Effect] = [Rejected(why, vm)]
        last = self._disagreements.pop((vm, ip), None)
        due = last is None or now - last >= DISAGREEMENT_SECONDS
        if due and dhcp.server_id is not None:
            said = decline(dhcp.chaddr, dhcp.xid, ip, dhcp.server_id, question.client_id or None)
            effects.append(Disagreement(vm, ip, said, why))
        self._disagreements[vm, ip] = now if due or last is None else last
        if len(self._disagreements) > DISAGREEMENTS_KEPT:
            del self._disagreements[next(iter(self._disagreements))]
        if question.by_agent:
            effects.append(self._hand_on(question, dhcp, why))
        return effects

    def _hand_on(self, question: Question, dhcp: DHCP, rejection: str = "") -> Effect:
        """To the VM or the agent, whichever sent the request."""
        if not question.by_agent:
            return ToVM(question.vm)
        self.announced.answered(dhcp.xid, dhcp.chaddr)
        return ToAgent(question.vm, dhcp.xid, rejection)

    def _held(self, ip: IPv4Address, nic: Mac) -> Assignment | None:
        """Who holds this address in the VRF of the NIC with this MAC."""
        return self.net.holder(ip, self.net.vrf_of_mac(nic))

    def _leases(self, vm: str, mac: Mac) -> Iterator[Assignment]:
        """What DHCP servers have granted to the VM's NIC that has this MAC."""
        held = self.net.held_by(vm)
        return (a for a in held if a.kind is BindingKind.DYNAMIC and a.mac == mac and a.lease6 is None)

    # ---- time ----

    def expire(self, now: float) -> list[Effect]:
        """End what has run out: leases, and requests without an answer."""
        self.questions.expire(now)
        self._declined = {vm: at for vm, at in self._declined.items() if now - at < DECLINE_SECONDS}
        return [Release(lease, "the lease ended") for lease in self.net.leases_ended(now)]

    def next_end(self) -> float | None:
        """When the next lease ends."""
        return self.net.next_lease_end()

"""DHCPv6 snooping (RFC 8415, 7513): a VM's exchange with a server makes, renews and ends its bindings.

The same as `dhcp_rules`, of addresses of IA_NAs and IA_TAs, and of prefixes of IA_PDs, which are routed
to the NIC as those are that its manager gives it (`routed_prefixes`). A binding comes from the server's
REPLY, never from the VM's request. A message is trusted by the port where it came in. What does not fit is
rejected with its reason, and changes nothing.

    from the VM                    condition                             effect
    any                            see `dhcp6_headers`                   -
    SOLICIT REQUEST CONFIRM        an address named is another's         also reported as spoofing
    RENEW REBIND, INFORMATION-REQUEST   -                                recorded, to the servers
    RELEASE                        the addresses are leased to its NIC;  bindings end, to the servers
                                   with a prefix, one in a minute
    DECLINE                        the same; one in a minute             bindings end, to the servers
    the agent's renewal            announced, at the announced switch    port recorded, to the servers
    from a server                  an answer fits a question: see `dhcp6_questions`
    ADVERTISE                      nobody else holds the addresses       to the VM
    REPLY                          the same; all in subnets of DHCPv6;   bindings, then (confirmed) to the VM
                                   a prefix is nobody's, in no part
                                   (of a guest, and of its home's
                                   server, as its home may give)
      an address with valid = 0    it is the NIC's                       its binding ends
      the agent's renewal          the address is renewed                binding, to the agent
    RECONFIGURE                    -                                     dropped
    time
    valid lifetime is over         -                                     binding ends

What ends a binding counts only from where the VM runs, or in answer to what came from there. A REPLY that
says of an IA that the server has no such binding ends nothing: the VM has its address until the lease ends.
"""

from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address, IPv6Network

from retinue.core.limits import MOST_DHCP6_ADDRESSES
from retinue.core.model import (
    IP,
    NIC,
    VM,
    Assignment,
    BindingKind,
    IAKind,
    Lease6,
    Mac,
    ModelError,
    Origin,
)
from retinue.core.model.domains import has_a_share, not_of_a_guest
from retinue.core.model.families import dhcp6_subnets
from retinue.core.model.network import Network
from retinue.core.model.routed_prefixes import check_delegated
from retinue.core.packets.dhcp6 import DHCP6, MessageType6, options_of_lease
from retinue.core.packets.dhcp6_options import FOREVER6
from retinue.core.snooping.announced import Announced, AnnouncedRenewals
from retinue.core.snooping.dhcp6_headers import fault_of6, leases6
from retinue.core.snooping.dhcp6_messages import ClientMessage6, Effect6, ServerMessage6, ToServers6, ToVM6
from retinue.core.snooping.dhcp6_questions import Question6, Questions6
from retinue.core.snooping.headers import another, is_anothers, other_holder
from retinue.core.snooping.messages import Bind, Recorded, Rejected, Release, Suspicious, ToAgent
from retinue.core.snooping.relay6 import link_of
from retinue.core.snooping.renewed import no_shorter

DECLINE_SECONDS = 60.0
"""A VM may decline once in this time: each address is one less that the server can give. So often it may give
a prefix back, too: each that comes or goes costs every leaf, spine and router its entries anew."""
DECLINES_REMEMBERED = 1000

_ASKS = (MessageType6.SOLICIT, MessageType6.REQUEST)
_GETS = (*_ASKS, MessageType6.RENEW, MessageType6.REBIND)
"""Messages whose REPLY grants addresses."""


@dataclass
class Snooper6:
    """The rules over a network's assignments; it remembers only what is under way.

    Methods read the network and return effects; applying them is the caller's part.
    """

    net: Network
    questions: Questions6 = field(default_factory=Questions6)
    announced: AnnouncedRenewals[IPv6Address] = field(default_factory=AnnouncedRenewals)
    _declined: dict[str, float] = field(default_factory=dict)
    """By VM: when it declined, or gave a prefix back, last."""

    def withdraw(self, mac: Mac, xid: int, now: float) -> None:
        """The announced renewal with this transaction id has ended, one way or another."""
        self.announced.withdraw(xid, mac, now)
        self.questions.withdraw(mac, xid)

    def expire(self, now: float) -> None:
        """Forget what has waited too long. Leases that have run out: Snooper.expire."""
        self.questions.expire(now)

    # ---- from a VM ----

    def client(self, message: ClientMessage6, now: float) -> list[Effect6]:
        vm = self.net.vm_at(message.switch, message.port, message.eth_src)
        nic = self.net.nic_at(message.switch, message.port, message.eth_src)
        if vm is None or nic is None:
            return [Rejected(f"no VM is known at port {message.port} of {message.switch}")]
        fault = fault_of6(self.net, vm, nic, message)
        if fault is not None:
            return [fault]
        dhcp = message.dhcp
        announced = self.announced.find(dhcp.xid, nic.mac)
        if announced is not None:
            return self._on_behalf(nic, announced, message, now)
        before: list[Effect6] = []
        if dhcp.type in (MessageType6.RELEASE, MessageType6.DECLINE):
            before = self._given_back(vm, nic, message, now)
            if isinstance(before[0], Rejected):
                return before
        else:
            before = self._suspicion(vm, nic, dhcp)
        return [*before, self._ask(vm, nic, message, now)]

    def _ask(
        self, vm: VM, nic: NIC, message: ClientMessage6, now: float, *, by_agent: bool = False
    ) -> ToServers6:
        dhcp, peer, circuit = message.dhcp, message.src, message.circuit
        self.questions.ask(Question6(vm.id, nic.mac, dhcp, peer, circuit, now, by_agent, message.runs_here))
        return ToServers6(vm.id, nic.mac, peer, circuit, dhcp)

    def _suspicion(self, vm: VM, nic: NIC, dhcp: DHCP6) -> list[Effect6]:
        """It names what another holds, though no server has offered it that."""
        for ip in dhcp.addresses:
            if is_anothers(self.net, ip, nic.mac) and not self.questions.was_offered(nic.mac, ip):
                return [
                    Suspicious(f"asks for {ip}, which {another(self.net, ip, vm.id, nic.mac)} holds", vm.id)
                ]
        return []

    def _given_back(self, vm: VM, nic: NIC, message: ClientMessage6, now: float) -> list[Effect6]:
        dhcp = message.dhcp
        held = {a.ip: a for a in leases6(self.net, vm, nic) if a.client_id == dhcp.client_id}
        not_its = next((ip for ip in dhcp.addresses if ip not in held), None)
        if not_its is not None or not dhcp.addresses:
            return [Rejected(f"{not_its or 'nothing'} is not leased to {vm.id}, nothing to give back", vm.id)]
        if not message.runs_here:
            words = f"{dhcp.addresses[0]} is given back at {message.switch}, where {vm.id} does not run"
            return [Rejected(words, vm.id, spoofed=True)]
        releases = dhcp.type is MessageType6.RELEASE
        how = "released by the VM" if releases else "declined by the VM"
        ends: list[Effect6] = [Release(held[ip], how) for ip in dhcp.addresses]
        if releases and all(held[ip].prefix is None for ip in dhcp.addresses):
            return ends
        last = self._declined.pop(vm.id, None)
        if last is not None and now - last < DECLINE_SECONDS:
            self._declined[vm.id] = last
            does = f"gives {dhcp.addresses[0]} back" if releases else f"declines {dhcp.addresses[0]}"
            words = f"{vm.id} {does}, {now - last:.0f} s after another: one in a minute is enough"
            return [Rejected(words, vm.id, spoofed=not releases)]
        self._declined[vm.id] = now
        if len(self._declined) > DECLINES_REMEMBERED:
            del self._declined[next(iter(self._declined))]
        return ends

    def _on_behalf(
        self, nic: NIC, announced: Announced[IPv6Address], message: ClientMessage6, now: float
    ) -> list[Effect6]:
        """A message with the transaction id of an announced renewal, from the VM's port and MAC."""
        dhcp, vm = message.dhcp, announced.vm
        if message.switch != announced.switch:
            reason = f"the renewal announced at {announced.switch} came in at {message.switch}"
            return [Rejected(reason, vm, spoofed=True)]
        if dhcp.type is not MessageType6.RENEW or dhcp.addresses != (announced.ip,):
            return [Rejected(f"not the renewal of {announced.ip} that was announced", vm, spoofed=True)]
        if announced.closed:
            return []
        sender = self.net.vms[vm]
        asked = self._ask(sender, nic, message, now, by_agent=True)
        return [Recorded(vm, dhcp.xid, message.switch, message.port), asked]

    # ---- from a server ----

    def server(self, message: ServerMessage6, now: float) -> list[Effect6]:
        dhcp = message.dhcp
        if not dhcp.type.from_server or dhcp.type is MessageType6.RECONFIGURE:
            return [Rejected(f"a DHCPv6 {dhcp.type.name} from {message.server}, which is no answer")]
        of_home = bool(message.domain)
        question = self.questions.answered_by(message.envelope, dhcp, now, of_home=of_home)
        vm = None if question is None else self.net.vms.get(question.vm)
        nic = None if question is None or vm is None else vm.nic_with(question.nic)
        if question is None or vm is None or nic is None:
            if self.announced.has_ended(dhcp.xid):
                return []  # A second answer, to a request that was sent again.
            peer = message.envelope.peer
            return [Rejected(f"no VM asked (transaction {dhcp.xid:#x}, {dhcp.type.name} for {peer})")]
        if vm.home != message.domain:
            of = f"domain {message.domain}" if message.domain else "this domain"
            words = f"{vm.id} has its leases from its home, and a DHCP server of {of} answers"
            return [Rejected(words, vm.id)]
        known = vm.home or link_of(self.net, nic, message.server, message.envelope.link)
        if not known:
            where = f"for {vm.id} at the relay {message.envelope.link}"
            return [
                Rejected(f"a DHCPv6 {dhcp.type.name} {where}, from {message.server}, which was not asked")
            ]
        if dhcp.type is MessageType6.ADVERTISE:
            return self._offered(question, dhcp)
        self.questions.forget(question)
        if question.asked.type not in _GETS:
            return [self._hand_on(question, dhcp)]
        return self._granted(question, vm, nic, dhcp, now)

    def _offered(self, question: Question6, dhcp: DHCP6) -> list[Effect6]:
        for ip in dhcp.addresses:
            if holder := other_holder(self.net, ip, question.vm, question.nic):
                words = f"the DHCPv6 server offers {ip} to {question.vm}, but {holder} holds it"
                return [Rejected(words, question.vm)]
        self.questions.offered(question, dhcp.addresses)
        return [self._hand_on(question, dhcp)]

    def _granted(self, question: Question6, vm: VM, nic: NIC, dhcp: DHCP6, now: float) -> list[Effect6]:
        """A REPLY that grants, or extends, or says why not."""
        granted = self._assignments(question, dhcp, now)
        ended = self._ended(question, vm, nic, dhcp, {lease.ip for lease in granted})
        why_not = self._why_not(question, vm, nic, dhcp, granted, ended)
        if why_not:
            rejection: list[Effect6] = [Rejected(why_not, question.vm)]
            return [*rejection, self._hand_on(question, dhcp, why_not)] if question.by_agent else rejection
        binds: list[Effect6] = []
        for lease in granted:
            before = self.net.assignments.get(lease.key)
            if before is None:
                binds.append(Bind(lease, renewed=False))
            elif before.lease6 is not None:  # Another kind has precedence; the lease adds nothing to it.
                binds.append(Bind(_renewed(before, lease, question), renewed=True))
        return [*ended, *binds, self._hand_on(question, dhcp)]

    def _assignments(self, question: Question6, dhcp: DHCP6, now: float) -> list[Assignment]:
        options, vrf = options_of_lease(question.asked), self.net.vrf_of_mac(question.nic)
        return [
            Assignment(
                address.ip, question.nic, question.vm, BindingKind.DYNAMIC, Origin.CONTROLLER,
                lease_end=_end(now, address.valid), client_id=dhcp.client_id, vrf=vrf,
                lease6=Lease6(dhcp.server_id, ia.iaid, _end(now, address.preferred), options, ia.kind),
                prefix=IPv6Network((address.ip, address.length)) if ia.kind is IAKind.PD else None,
            )
            for ia in dhcp.ias
            for address in ia.addresses
            if address.valid
        ]  # fmt: skip

    def _ended(self, question: Question6, vm: VM, nic: NIC, dhcp: DHCP6, granted: set[IP]) -> list[Release]:
        """What the NIC had, and the server takes back; and what a client that began anew has given up."""
        if question.by_agent:
            return []
        held = {a.ip: a for a in leases6(self.net, vm, nic) if a.client_id == dhcp.client_id}
        withdrawn = [ip for ia in dhcp.ias for a in ia.addresses if not a.valid and (ip := a.ip) in held]
        found = [Release(held[ip], "taken back by the DHCPv6 server") for ip in withdrawn]
        if question.asked.type not in _ASKS:
            return found
        anew = {ia.key for ia in dhcp.ias if any(address.valid for address in ia.addresses)}
        for lease in held.values():
            assert lease.lease6 is not None
            key = (lease.lease6.ia, lease.lease6.iaid)
            if key in anew and lease.ip not in granted and lease.ip not in withdrawn:
                found.append(Release(lease, f"replaced by {min(granted, key=int)}"))
        return found

    def _why_not(
        self,
        question: Question6,
        vm: VM,
        nic: NIC,
        dhcp: DHCP6,
        granted: list[Assignment],
        ended: list[Release],
    ) -> str:
        """Why a REPLY makes no binding, and is handed on to nobody; "" where nothing is wrong with it."""
        who = question.vm
        for ia in dhcp.ias:
            for address in ia.addresses:
                if holder := other_holder(self.net, address.ip, who, question.nic):
                    return f"the DHCPv6 server granted {address.ip} to {who}, but {holder} holds it"
                if address.preferred > address.valid:
                    # RFC 8415, 21.6: the client "MUST discard any addresses for which the preferred lifetime
                    # is greater than the valid lifetime".
                    return f"the DHCPv6 server granted {address.ip} preferred for longer than valid"
                if vm.home and (why_not := not_of_a_guest(self.net, vm.home, address.ip, nic.mac)):
                    return f"domain {vm.home} leases {address.ip} to {who}: {why_not}"
        served = dhcp6_subnets(self.net, nic.vnet)
        for lease in granted:
            if lease.prefix is not None:
                if why_not := self._not_delegated(vm, lease):
                    return f"the DHCPv6 server delegated {lease.prefix}: {why_not}"
            elif not vm.home and not any(lease.ip in subnet.prefix for subnet in served):
                return f"the DHCPv6 server granted {lease.ip}, which is in no subnet of DHCPv6 for {who}"
        if question.by_agent and question.asked.addresses[0] not in {lease.ip for lease in granted}:
            statuses = [status for status in (dhcp.status, *(ia.status for ia in dhcp.ias)) if status]
            words = "; ".join(f"status {status.code} {status.message}".strip() for status in statuses)
            return f"the DHCPv6 server does not renew {question.asked.addresses[0]}" + (
                f": {words}" if words else ""
            )
        if ended and not question.runs_here:
            return f"{ended[0].assignment.ip} would end, asked for where {who} does not run"
        kept = {lease.ip for lease in leases6(self.net, vm, nic)} - {
            release.assignment.ip for release in ended
        }
        if len(kept | {lease.ip for lease in granted}) > MOST_DHCP6_ADDRESSES:
            return f"{who} would have more than {MOST_DHCP6_ADDRESSES} leases of DHCPv6 by one NIC"
        return ""

    def _not_delegated(self, vm: VM, lease: Assignment) -> str:
        """Why a prefix cannot be routed to the NIC; "" where it can."""
        if has_a_share(self.net, vm):
            return f"{vm.id} goes to another domain, where none goes"
        try:
            check_delegated(self.net, lease)
        except ModelError as error:
            return str(error)
        return ""

    def _hand_on(self, question: Question6, dhcp: DHCP6, rejection: str = "") -> Effect6:
        """To the VM or the agent, whichever sent the request."""
        if not question.by_agent:
            return ToVM6(question.vm, question.nic, question.peer, dhcp)
        self.announced.answered(dhcp.xid, question.nic)
        return ToAgent(question.vm, dhcp.xid, rejection)


def _end(now: float, seconds: int) -> float | None:
    return None if seconds == FOREVER6 else now + seconds


def _renewed(before: Assignment, granted: Assignment, question: Question6) -> Assignment:
    """A lease that is held already, renewed. What the VM itself said, and where it runs, counts for more."""
    assert before.lease6 is not None and granted.lease6 is not None
    if question.by_agent:
        granted = replace(granted, lease6=replace(granted.lease6, options=before.lease6.options))
    return granted if question.runs_here else no_shorter(before, granted)

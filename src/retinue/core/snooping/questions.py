"""Questions of VMs to DHCP servers that await an answer, and which answer fits which question.

    question                    the answer that fits                    it comes from
    DISCOVER                    OFFER                                   any server
    DISCOVER, rapid commit      ACK with rapid commit (RFC 4039)        any server
    REQUEST                     ACK of the address asked for, NAK       the server chosen
    INFORM                      ACK without an address                  the server asked

The server chosen is the one that the request names (option 54) or is sent to. A request that is for whoever
hears it, as in the states INIT-REBOOT and REBINDING, takes an ACK of any server; but a NAK only of the one
that has granted the lease, if one is held: another may just not know of it (RFC 2131, 4.3.2).

What does not fit has no effect, and a question stays until it is answered: neither another question with the
same transaction id nor a foreign answer takes its place.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from retinue.core.model import Mac
from retinue.core.packets import DHCP, MessageType, Option
from retinue.core.snooping.messages import NO_ADDRESS

PENDING_SECONDS = 60.0
"""How long a request without an answer is remembered."""
PENDING_PER_VM = 8
OFFERS_KEPT = 4
"""Addresses offered to one question that are remembered."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a VM, or the agent on its behalf, has asked."""

    vm: str
    asked: DHCP
    kind: MessageType
    at: float
    server: IPv4Address | None = None
    """The server chosen; None: whoever hears it."""
    granted_by: IPv4Address | None = None
    """The server that granted the lease of the address asked for, if it is held."""
    by_agent: bool = False
    runs_here: bool = True
    """It came from where the VM runs."""
    offered: tuple[IPv4Address, ...] = ()
    """What servers have offered in answer to it."""

    @property
    def wanted(self) -> IPv4Address | None:
        """The address it is about."""
        named = self.asked.requested_address
        return named or (self.asked.ciaddr if self.asked.ciaddr != NO_ADDRESS else None)

    @property
    def client_id(self) -> bytes:
        return self.asked.client_id or b""

    def repeats(self, other: "Question") -> bool:
        """True if it is that question, asked again."""
        return self._key() == other._key()

    def _key(self) -> tuple[object, ...]:
        return self.asked.xid, self.kind, self.wanted, self.server, self.by_agent, self.runs_here

    def is_answered_by(self, answer: DHCP) -> bool:
        """See the table above."""
        chosen = self.server in (None, answer.server_id)
        match self.kind, answer.message_type:
            case MessageType.DISCOVER, MessageType.OFFER:
                return True
            case MessageType.DISCOVER, MessageType.ACK:
                return None not in (
                    self.asked.option(Option.RAPID_COMMIT),
                    answer.option(Option.RAPID_COMMIT),
                )
            case MessageType.REQUEST, MessageType.ACK:
                # The agent is told of whatever its server answers; what it gives is looked at by the rules.
                fits = self.by_agent or self.wanted in (None, answer.yiaddr) or answer.yiaddr == NO_ADDRESS
                return chosen and fits
            case MessageType.REQUEST, MessageType.NAK:
                return chosen and self.granted_by in (None, answer.server_id)
            case MessageType.INFORM, MessageType.ACK:
                return chosen and answer.yiaddr == NO_ADDRESS
            case _:
                return False


@dataclass
class Questions:
    """Those that await an answer, by the hardware address that asks; a few of each VM, none for long."""

    _of: dict[Mac, list[Question]] = field(default_factory=dict)

    def ask(self, question: Question) -> None:
        """Remember it; the VM's oldest goes when it has too many. The agent's does not count, nor does what
        came from where the VM does not run: that has a share of its own."""
        mine = self._of.setdefault(question.asked.chaddr, [])
        again = next((q for q in mine if q.repeats(question)), None)
        if again is not None:
            mine.remove(again)
            question = replace(question, offered=again.offered)
        own = [q for q in mine if not q.by_agent and q.runs_here == question.runs_here]
        if not question.by_agent and len(own) >= PENDING_PER_VM:
            mine.remove(own[0])
        mine.append(question)

    def answered_by(self, answer: DHCP, now: float) -> Question | None:
        """The question that this answer fits. One without an address is rather for an INFORM; of two alike
        the one counts that came from where the VM runs."""
        fitting = [
            q
            for q in self._of.get(answer.chaddr, ())
            if q.asked.xid == answer.xid and now - q.at <= PENDING_SECONDS and q.is_answered_by(answer)
        ]
        return min(fitting, key=lambda q: (q.kind is not MessageType.INFORM, not q.runs_here), default=None)

    def offered(self, question: Question, ip: IPv4Address) -> None:
        """A server has offered this address."""
        mine = self._of.get(question.asked.chaddr, [])
        if question in mine and ip not in question.offered:
            offers = (*question.offered, ip)[-OFFERS_KEPT:]
            mine[mine.index(question)] = replace(question, offered=offers)

    def was_offered(self, mac: Mac, ip: IPv4Address) -> bool:
        """True if a server has offered this address to this client just now."""
        return any(ip in q.offered for q in self._of.get(mac, ()))

    def forget(self, question: Question) -> None:
        """It is answered."""
        self._keep(
            question.asked.chaddr, [q for q in self._of.get(question.asked.chaddr, ()) if q != question]
        )

    def withdraw(self, mac: Mac, xid: int) -> None:
        """The agent's renewal with this transaction id has ended."""
        mine = self._of.get(mac, ())
        self._keep(mac, [q for q in mine if not (q.by_agent and q.asked.xid == xid)])

    def expire(self, now: float) -> None:
        """Forget those that have waited too long."""
        for mac in list(self._of):
            self._keep(mac, [q for q in self._of[mac] if now - q.at <= PENDING_SECONDS])

    def _keep(self, mac: Mac, questions: list[Question]) -> None:
        if questions:
            self._of[mac] = questions
        else:
            self._of.pop(mac, None)

    def __iter__(self) -> Iterator[Question]:
        return (question for mine in self._of.values() for question in mine)

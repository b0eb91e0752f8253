"""Questions of VMs to DHCPv6 servers that await an answer, and which answer fits which question.

    question                                    the answer that fits
    SOLICIT                                     ADVERTISE
    SOLICIT, rapid commit                       also REPLY with rapid commit (RFC 8415, 18.2.1)
    any other                                   REPLY

An answer has the question's transaction and client identifiers, is for the address that has asked, by the
port where it asked, comes from the server that the question names, if it names one, and is about no IA that
was not asked for. What does not fit has no effect.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address

from retinue.core.model import Mac
from retinue.core.packets.dhcp6 import DHCP6, MessageType6, Relayed6
from retinue.core.packets.dhcp6_options import Option6
from retinue.core.snooping.questions import OFFERS_KEPT, PENDING_PER_VM, PENDING_SECONDS


@dataclass(frozen=True, slots=True)
class Question6:
    """What a VM, or the agent on its behalf, has asked."""

    vm: str
    nic: Mac
    asked: DHCP6
    peer: IPv6Address
    circuit: str
    at: float
    by_agent: bool = False
    runs_here: bool = True
    """It came from where the VM runs."""
    offered: tuple[IPv6Address, ...] = ()
    """What servers have offered in answer to it."""

    def repeats(self, other: "Question6") -> bool:
        """True if it is that question, asked again."""
        return self._key() == other._key()

    def _key(self) -> tuple[object, ...]:
        asked = self.asked
        return asked.xid, asked.type, asked.client_id, asked.server_id, self.circuit, self.by_agent

    def is_answered_by(self, envelope: Relayed6, answer: DHCP6) -> bool:
        """See the table above."""
        asked = self.asked
        if (answer.xid, answer.client_id) != (asked.xid, asked.client_id):
            return False
        if (envelope.peer, envelope.interface_id) != (self.peer, self.circuit.encode()):
            return False
        if not answer.server_id or asked.server_id not in (b"", answer.server_id):
            return False
        if not {ia.iaid for ia in answer.ias} <= {ia.iaid for ia in asked.ias}:
            return False
        if asked.type is not MessageType6.SOLICIT:
            return answer.type is MessageType6.REPLY
        rapid = all(said.option(Option6.RAPID_COMMIT) is not None for said in (asked, answer))
        return answer.type is MessageType6.ADVERTISE or (answer.type is MessageType6.REPLY and rapid)


@dataclass
class Questions6:
    """Those that await an answer, by the NIC that asks; a few of each, none for long."""

    _of: dict[Mac, list[Question6]] = field(default_factory=dict)

    def ask(self, question: Question6) -> None:
        """Remember it; the NIC's oldest goes when it has too many. The agent's does not count, nor does what
        came from where the VM does not run: that has a share of its own."""
        mine = self._of.setdefault(question.nic, [])
        again = next((q for q in mine if q.repeats(question)), None)
        if again is not None:
            mine.remove(again)
            question = replace(question, offered=again.offered)
        own = [q for q in mine if not q.by_agent and q.runs_here == question.runs_here]
        if not question.by_agent and len(own) >= PENDING_PER_VM:
            mine.remove(own[0])
        mine.append(question)

    def answered_by(self, envelope: Relayed6, answer: DHCP6, now: float) -> Question6 | None:
        """The question that this answer fits."""
        fitting = (q for q in self if now - q.at <= PENDING_SECONDS and q.is_answered_by(envelope, answer))
        return next(fitting, None)

    def offered(self, question: Question6, ips: tuple[IPv6Address, ...]) -> None:
        """A server has offered these addresses."""
        mine = self._of.get(question.nic, [])
        if question in mine:
            offers = tuple(dict.fromkeys((*question.offered, *ips)))[-OFFERS_KEPT:]
            mine[mine.index(question)] = replace(question, offered=offers)

    def was_offered(self, nic: Mac, ip: IPv6Address) -> bool:
        """True if a server has offered this address to this NIC just now."""
        return any(ip in q.offered for q in self._of.get(nic, ()))

    def forget(self, question: Question6) -> None:
        """It is answered."""
        self._keep(question.nic, [q for q in self._of.get(question.nic, ()) if q != question])

    def withdraw(self, nic: Mac, xid: int) -> None:
        """The agent's renewal with this transaction id has ended."""
        mine = self._of.get(nic, ())
        self._keep(nic, [q for q in mine if not (q.by_agent and q.asked.xid == xid)])

    def expire(self, now: float) -> None:
        """Forget those that have waited too long."""
        for nic in list(self._of):
            self._keep(nic, [q for q in self._of[nic] if now - q.at <= PENDING_SECONDS])

    def _keep(self, nic: Mac, questions: list[Question6]) -> None:
        if questions:
            self._of[nic] = questions
        else:
            self._of.pop(nic, None)

    def __iter__(self) -> Iterator[Question6]:
        return (question for mine in self._of.values() for question in mine)

"""Questions of VMs to DHCPv6 servers that await an answer, and which answer fits which question.

    question                                    the answer that fits
    SOLICIT                                     ADVERTISE
    SOLICIT, rapid commit                       also REPLY with rapid commit (RFC 8415, 18.2.1)
    any other                                   REPLY

An answer has the question's transaction and client identifiers, is for the address that has asked, by the
port where it asked, comes from the server that the question names, if it names one, and is about no IA that
was not asked for. What does not fit has no effect.
"""

from dataclasses import dataclass, replace
from ipaddress import IPv6Address

from retinue.core.model import Mac
from retinue.core.packets.dhcp6 import DHCP6, MessageType6, Relayed6
from retinue.core.packets.dhcp6_options import Option6
from retinue.core.snooping.pending import PendingQuestions


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

    @property
    def xid(self) -> int:
        return self.asked.xid

    def repeats(self, other: "Question6") -> bool:
        """True if it is that question, asked again."""
        return self._key() == other._key()

    def with_offers(self, offers: tuple[IPv6Address, ...]) -> "Question6":
        return replace(self, offered=offers)

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
        if not {ia.key for ia in answer.ias} <= {ia.key for ia in asked.ias}:
            return False
        if asked.type is not MessageType6.SOLICIT:
            return answer.type is MessageType6.REPLY
        rapid = all(said.option(Option6.RAPID_COMMIT) is not None for said in (asked, answer))
        return answer.type is MessageType6.ADVERTISE or (answer.type is MessageType6.REPLY and rapid)


class Questions6(PendingQuestions[Question6]):
    """Those that await an answer, by the NIC that asks."""

    def answered_by(
        self, envelope: Relayed6, answer: DHCP6, now: float, *, of_home: bool = False
    ) -> Question6 | None:
        """The question that this answer fits. `of_home`: a guest's home says it, which does not know by which
        port the guest has asked."""
        for asked in self.with_xid(answer.xid, now):
            said = replace(envelope, interface_id=asked.circuit.encode()) if of_home else envelope
            if asked.is_answered_by(said, answer):
                return asked
        return None

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

from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from retinue.core.model import Mac
from retinue.core.packets import DHCP, MessageType, Option
from retinue.core.snooping.messages import NO_ADDRESS
from retinue.core.snooping.pending import PendingQuestions


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
    def nic(self) -> Mac:
        return self.asked.chaddr

    @property
    def xid(self) -> int:
        return self.asked.xid

    @property
    def client_id(self) -> bytes:
        return self.asked.client_id or b""

    def repeats(self, other: "Question") -> bool:
        """True if it is that question, asked again."""
        return self._key() == other._key()

    def with_offers(self, offers: tuple[IPv4Address, ...]) -> "Question":
        return replace(self, offered=offers)

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


class Questions(PendingQuestions[Question]):
    """Those that await an answer, by the hardware address that asks."""

    def answered_by(self, answer: DHCP, now: float) -> Question | None:
        """The question that this answer fits. One without an address is rather for an INFORM; of two alike
        the one counts that came from where the VM runs."""
        mine = self.of(answer.chaddr, now)
        fitting = [q for q in mine if q.asked.xid == answer.xid and q.is_answered_by(answer)]
        return min(fitting, key=lambda q: (q.kind is not MessageType.INFORM, not q.runs_here), default=None)

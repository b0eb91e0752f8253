"""Questions of VMs to DHCP servers, of either family, that are not answered yet: a few of each NIC."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

from retinue.core.model import IP, Mac

PENDING_SECONDS = 60.0
"""How long a request without an answer is remembered."""
PENDING_PER_VM = 8
OFFERS_KEPT = 4
"""Addresses offered to one question that are remembered."""


class PendingQuestion(Protocol):
    """What a VM, or the agent on its behalf, has asked."""

    @property
    def nic(self) -> Mac: ...
    @property
    def xid(self) -> int: ...
    @property
    def at(self) -> float: ...
    @property
    def by_agent(self) -> bool: ...
    @property
    def runs_here(self) -> bool: ...
    @property
    def offered(self) -> tuple[Any, ...]: ...
    def repeats(self, other: Any) -> bool: ...
    def with_offers(self, offers: tuple[Any, ...]) -> Self: ...


Q = TypeVar("Q", bound=PendingQuestion)


@dataclass
class PendingQuestions(Generic[Q]):
    """Those that await an answer, by the NIC that asks."""

    _of: dict[Mac, list[Q]] = field(default_factory=dict)
    _asking: dict[int, dict[Mac, None]] = field(default_factory=dict)
    """By transaction id: the NICs that have such a question."""

    def ask(self, question: Q) -> None:
        """Remember it; the NIC's oldest goes when it has too many. The agent's does not count, nor does what
        came from where the VM does not run: that has a share of its own."""
        mine = list(self._of.get(question.nic, ()))
        again = next((q for q in mine if q.repeats(question)), None)
        if again is not None:
            mine.remove(again)
            question = question.with_offers(again.offered)
        own = [q for q in mine if not q.by_agent and q.runs_here == question.runs_here]
        if not question.by_agent and len(own) >= PENDING_PER_VM:
            mine.remove(own[0])
        self._keep(question.nic, [*mine, question])

    def of(self, nic: Mac, now: float) -> Iterator[Q]:
        """Those of one NIC that have not waited too long."""
        return (q for q in self._of.get(nic, ()) if now - q.at <= PENDING_SECONDS)

    def with_xid(self, xid: int, now: float) -> Iterator[Q]:
        """Those of all NICs with this transaction id that have not waited too long."""
        return (q for nic in self._asking.get(xid, ()) for q in self.of(nic, now) if q.xid == xid)

    def offered(self, question: Q, ips: Iterable[IP]) -> None:
        """A server has offered these addresses."""
        mine = self._of.get(question.nic, [])
        if question in mine:
            offers = tuple(dict.fromkeys((*question.offered, *ips)))[-OFFERS_KEPT:]
            mine[mine.index(question)] = question.with_offers(offers)

    def was_offered(self, nic: Mac, ip: IP) -> bool:
        """True if a server has offered this address to this NIC just now."""
        return any(ip in q.offered for q in self._of.get(nic, ()))

    def forget(self, question: Q) -> None:
        """It is answered."""
        self._keep(question.nic, [q for q in self._of.get(question.nic, ()) if q != question])

    def withdraw(self, nic: Mac, xid: int) -> None:
        """The agent's renewal with this transaction id has ended."""
        mine = self._of.get(nic, ())
        self._keep(nic, [q for q in mine if not (q.by_agent and q.xid == xid)])

    def expire(self, now: float) -> None:
        """Forget those that have waited too long."""
        for nic in list(self._of):
            self._keep(nic, list(self.of(nic, now)))

    def _keep(self, nic: Mac, questions: list[Q]) -> None:
        for question in self._of.pop(nic, ()):
            asking = self._asking.get(question.xid, {})
            asking.pop(nic, None)
            if not asking:
                self._asking.pop(question.xid, None)
        if questions:
            self._of[nic] = questions
        for question in questions:
            self._asking.setdefault(question.xid, {})[nic] = None

    def __iter__(self) -> Iterator[Q]:
        return (question for mine in self._of.values() for question in mine)

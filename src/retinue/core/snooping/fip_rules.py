"""FIP snooping: what nodes may say, what forwarders may grant, and what follows for the logins.

    a node says                           what becomes of it
    solicitation, keep-alive, VLAN        handed on, to the forwarder it names or to all
    question to log in, or out            handed on, and remembered: an answer is awaited
    anything that a forwarder says        rejected: a rogue forwarder
    with another's MAC in it              rejected

    a forwarder says, at its own port     what becomes of it
    advertisement, VLAN answer            handed on, to all nodes or to the one that it is for
    yes, to a question to log in          a login, once it is confirmed that frames may pass; then handed on
    yes, to a question to log out         handed on, and the login ends
    no                                    handed on
    an answer that nobody asked for       rejected
    virtual links are cleared             handed on, and the logins that it names end: all where it names none

Who a node is, the switch has seen to: its frames come from the NIC's MAC, at its port. What it says of itself
inside is checked here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from retinue.core.model import Mac
from retinue.core.model.storage import FcLogin, is_granted_mac
from retinue.core.packets.ethernet import ZERO_MAC
from retinue.core.packets.fip import (
    ALL_ENODES,
    ALL_FORWARDERS,
    CLEAR_LINKS,
    FLAG_FORWARDER,
    KEEP_ALIVE,
    REPLY,
    REQUEST,
    SOLICITATION,
    Command,
    Descriptor,
    Fip,
    LinkService,
    Operation,
)

ANSWER_SECONDS = 20.0
"""For which an answer counts: libfc asks again after 20 (R_A_TOV and twice E_D_TOV)."""
MOST_AWAITED = 8
"""Questions of one NIC that wait for their answers."""
SILENCE_SECONDS = 225.0
"""After which a login ends whose node has said nothing: 2.5 keep-alives of a VN_Port, each 90 s (FC-BB-5,
7.8.7.13)."""

FROM_NODES = frozenset(
    {
        (Operation.DISCOVERY, SOLICITATION),
        (Operation.LINK_SERVICE, REQUEST),
        (Operation.CONTROL, KEEP_ALIVE),
        (Operation.VLAN, REQUEST),
    }
)
ASKS: Mapping[int, Descriptor] = {
    Command.FLOGI: Descriptor.FLOGI,
    Command.FDISC: Descriptor.FDISC,
    Command.LOGO: Descriptor.LOGO,
}


@dataclass(frozen=True, slots=True)
class Passed:
    """Hand it on to whom it is for, by its MAC. `ended`: the logins that end with it."""

    to: Mac
    ended: tuple[FcLogin, ...] = ()


@dataclass(frozen=True, slots=True)
class Granted:
    """A forwarder has granted this login; hand it on to the NIC when frames may pass."""

    login: FcLogin


@dataclass(frozen=True, slots=True)
class Rejected:
    reason: str


Verdict = Passed | Granted | Rejected


@dataclass(frozen=True, slots=True)
class _Question:
    kind: Descriptor
    forwarder: Mac
    s_id: int
    at: float


@dataclass
class FipRules:
    """The questions that wait for an answer, by NIC and exchange."""

    _asked: dict[Mac, dict[int, _Question]] = field(default_factory=dict)

    def forget(self, nic: Mac) -> None:
        """The NIC is no more."""
        self._asked.pop(nic, None)

    # ---- nodes ----

    def from_node(
        self,
        nic: Mac,
        src: Mac,
        dst: Mac,
        said: Fip,
        logins: Collection[FcLogin],
        forwarders: Mapping[Mac, str],
        now: float,
    ) -> Verdict:
        """A NIC says this. `logins`: the NIC's; `forwarders`: MAC and id of each. Raises FrameError."""
        own = {login.mac for login in logins}
        kind = (said.operation, said.subcode)
        if kind not in FROM_NODES or said.flags & FLAG_FORWARDER:
            return Rejected("only a forwarder says this")
        if src != nic and (src not in own or kind != (Operation.CONTROL, KEEP_ALIVE)):
            return Rejected(f"it comes from {src}, where {nic} is right")
        if dst != ALL_FORWARDERS and dst not in forwarders:
            return Rejected(f"{dst} is no forwarder")
        if said.mac is not None and said.mac not in (nic, ZERO_MAC, *own):
            return Rejected(f"it names {said.mac}, which is not its own")
        if not set(said.ports) <= own:
            return Rejected("it names a port that is not logged in")
        if said.operation == Operation.LINK_SERVICE:
            return self._asks(nic, dst, said.service, logins, now)
        return Passed(dst)

    def _asks(
        self, nic: Mac, dst: Mac, asked: LinkService | None, logins: Collection[FcLogin], now: float
    ) -> Verdict:
        if asked is None or ASKS.get(asked.command) != asked.kind:
            return Rejected("it asks for nothing that is known")
        if dst == ALL_FORWARDERS:
            return Rejected("a login is asked of one forwarder")
        if asked.kind is Descriptor.LOGO and asked.s_id not in {login.fc_id for login in logins}:
            return Rejected(f"{asked.s_id:06x} is not logged in here")
        waiting = self._asked.setdefault(nic, {})
        for exchange in [one for one, known in waiting.items() if now - known.at > ANSWER_SECONDS]:
            del waiting[exchange]
        if asked.exchange not in waiting and len(waiting) >= MOST_AWAITED:
            return Rejected("too many questions wait for their answers")
        waiting[asked.exchange] = _Question(asked.kind, dst, asked.s_id, now)
        return Passed(dst)

    # ---- forwarders ----

    def from_forwarder(
        self, id: str, mac: Mac, dst: Mac, said: Fip, vm: str, logins: Collection[FcLogin], now: float
    ) -> Verdict:
        """The forwarder with this id and MAC says this, at its own port, to a NIC of a VM, or to all.
        `logins`: those of the NIC. Raises FrameError."""
        if dst == ALL_ENODES:
            if said.operation != Operation.DISCOVERY:
                return Rejected("this is for one node, and not for all")
            return Passed(dst)
        # Those at a guest's home are all behind one gateway.
        here = [one for one in logins if one.forwarder == id and one.forwarder_mac in ("", mac)]
        if (said.operation, said.subcode) == (Operation.CONTROL, CLEAR_LINKS):
            named = set(said.ports)
            return Passed(dst, tuple(one for one in here if not named or one.mac in named))
        if said.operation != Operation.LINK_SERVICE:
            return Passed(dst)
        answer = said.service
        if answer is None or said.subcode != REPLY:
            return Rejected("it answers nothing")
        question = self._asked.get(dst, {}).pop(answer.exchange, None)
        if question is None or (question.kind, question.forwarder) != (answer.kind, mac):
            return Rejected("nobody has asked for this")
        if now - question.at > ANSWER_SECONDS:
            return Rejected("it comes too late")
        if answer.command != Command.ACCEPT:
            return Passed(dst)
        if answer.kind is Descriptor.LOGO:
            return Passed(dst, tuple(one for one in here if one.fc_id == question.s_id))
        if said.mac is None or not is_granted_mac(said.mac, answer.d_id):
            return Rejected(f"{said.mac} is not FC-MAP and {answer.d_id:06x}")
        return Granted(FcLogin(said.mac, vm, dst, id))


__all__ = ["SILENCE_SECONDS", "FipRules", "Granted", "Passed", "Rejected", "Verdict"]

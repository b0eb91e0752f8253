"""FIP snooping, as dialogues: what a node or a forwarder says, and what follows."""

import pytest

from retinue.core.model.storage import FcLogin
from retinue.core.packets import parse
from retinue.core.packets.fip import (
    ALL_ENODES,
    ALL_FORWARDERS,
    KEEP_ALIVE,
    Command,
    Descriptor,
    Fip,
    Operation,
    mac_descriptor,
    parse_fip,
    vn_port_descriptor,
)
from retinue.core.snooping.fip_rules import (
    ANSWER_SECONDS,
    MOST_AWAITED,
    FipRules,
    Granted,
    Passed,
    Rejected,
    Verdict,
)
from support.fabric.networks import vm_mac
from support.fabric.storage import (
    FORWARDER,
    FORWARDER_MAC,
    advertisement,
    answers,
    asks,
    clears,
    fip_frame,
    granted_mac,
    keep_alive,
    login,
    solicitation,
)

FORWARDERS = {FORWARDER_MAC: FORWARDER, "02:00:00:00:0f:02": "fcf2"}
LOGO, FDISC = Descriptor.LOGO, Descriptor.FDISC


class Dialogue:
    """VM 1 and the forwarder."""

    def __init__(self) -> None:
        self.rules = FipRules()
        self.logins: list[FcLogin] = []

    def node(self, frame: bytes, now: float = 0.0) -> Verdict:
        ethernet = parse(frame)
        said = parse_fip(ethernet.payload)
        return self.rules.from_node(vm_mac(1), ethernet.src, ethernet.dst, said, self.logins, FORWARDERS, now)

    def forwarder(self, frame: bytes, now: float = 0.0, id: str = FORWARDER) -> Verdict:
        ethernet = parse(frame)
        said = parse_fip(ethernet.payload)
        return self.rules.from_forwarder(id, ethernet.src, ethernet.dst, said, "vm1", self.logins, now)


@pytest.fixture
def it() -> Dialogue:
    return Dialogue()


def why(verdict: Verdict) -> str:
    assert isinstance(verdict, Rejected), verdict
    return verdict.reason


def test_a_node_finds_a_forwarder_and_logs_in(it: Dialogue) -> None:
    assert it.node(solicitation(1)) == Passed(ALL_FORWARDERS)
    assert it.forwarder(advertisement(vm_mac(1))) == Passed(vm_mac(1))
    assert it.forwarder(advertisement()) == Passed(ALL_ENODES)
    assert it.node(asks(1), 1.0) == Passed(FORWARDER_MAC)
    assert it.forwarder(answers(1), 2.0) == Granted(login(1))
    it.logins.append(login(1))
    assert it.node(keep_alive(1)) == Passed(FORWARDER_MAC)
    assert it.node(keep_alive(1, of_port=True)) == Passed(FORWARDER_MAC)


def test_a_second_port_is_asked_for_by_the_one_that_is_logged_in(it: Dialogue) -> None:
    it.logins.append(login(1))
    it.node(asks(1, FDISC, 5))
    other = "0e:fc:00:01:01:99"
    assert it.forwarder(answers(1, FDISC, 5, mac=other)) == Granted(login(1, other))


def test_a_node_logs_out_when_the_forwarder_says_so(it: Dialogue) -> None:
    it.logins += [login(1), login(1, "0e:fc:00:01:01:99")]
    assert it.node(asks(1, LOGO, 3)) == Passed(FORWARDER_MAC)
    assert it.forwarder(answers(1, LOGO, 3)) == Passed(vm_mac(1), (login(1),)), "and of no other port"


def test_a_refusal_is_handed_on_and_grants_nothing(it: Dialogue) -> None:
    it.node(asks(1))
    assert it.forwarder(answers(1, command=Command.REJECT)) == Passed(vm_mac(1))
    assert why(it.forwarder(answers(1))) == "nobody has asked for this", "the question is answered"


def test_cleared_links_end_the_logins_that_are_named_or_all(it: Dialogue) -> None:
    other, elsewhere = login(1, "0e:fc:00:01:01:99"), FcLogin("0e:fc:00:02:01:01", "vm1", vm_mac(1), "fcf2")
    it.logins += [login(1), other, elsewhere]
    assert it.forwarder(clears(1, other.mac)) == Passed(vm_mac(1), (other,))
    assert it.forwarder(clears(1)) == Passed(vm_mac(1), (login(1), other)), "not those of another's"
    assert it.forwarder(clears(1, elsewhere.mac)) == Passed(vm_mac(1), ())


def test_forwarders_at_a_guests_home_end_their_own_logins_alone(it: Dialogue) -> None:
    """All are behind one gateway, and known by their MACs; those of two fabrics may grant one FC_ID."""
    its = FcLogin(granted_mac(1), "vm1", vm_mac(1), "to-home", FORWARDER_MAC)
    anothers = FcLogin("0e:fc:01:01:01:01", "vm1", vm_mac(1), "to-home", "02:00:00:00:0f:02")
    assert anothers.fc_id == its.fc_id
    it.logins += [its, anothers]
    assert it.forwarder(clears(1), id="to-home") == Passed(vm_mac(1), (its,))
    it.node(asks(1, LOGO, 3))
    assert it.forwarder(answers(1, LOGO, 3), id="to-home") == Passed(vm_mac(1), (its,))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answers(1, exchange=2), "nobody has asked"),
        (answers(2), "nobody has asked"),
        (answers(1, FDISC), "nobody has asked"),
        (answers(1, src="02:00:00:00:0f:02"), "nobody has asked"),
        (answers(1, mac="0e:fd:00:01:01:01"), "is not FC-MAP and"),
        (answers(1, mac="52:54:00:01:01:01"), "is not FC-MAP and"),
        (answers(1, mac="0e:fc:00:00:00:01"), "is not FC-MAP and"),
        (answers(1, mac="0e:fc:00:ff:ff:fe"), "is not FC-MAP and"),
        (fip_frame(FORWARDER_MAC, vm_mac(1), Fip(2, 2)), "it answers nothing"),
        (fip_frame(FORWARDER_MAC, ALL_ENODES, Fip(2, 2)), "for one node"),
    ],
)
def test_what_is_no_answer_grants_nothing(it: Dialogue, answer: bytes, reason: str) -> None:
    it.node(asks(1))
    assert reason in why(it.forwarder(answer))


def test_an_answer_that_comes_too_late_grants_nothing(it: Dialogue) -> None:
    it.node(asks(1), 5.0)
    assert "too late" in why(it.forwarder(answers(1), 5.1 + ANSWER_SECONDS))


def says(operation: int, subcode: int, *named: tuple[int, bytes], flags: int = 0x8000) -> bytes:
    return fip_frame(vm_mac(1), FORWARDER_MAC, Fip(operation, subcode, flags, named))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (advertisement(src=vm_mac(1)), "only a forwarder"),
        (answers(1, src=vm_mac(1)), "only a forwarder"),
        (clears(2, src=vm_mac(1)), "only a forwarder"),
        (says(1, 1, flags=0x8001), "only a forwarder"),
        (says(5, 1), "only a forwarder"),
        (solicitation(2), f"it comes from {vm_mac(2)}"),
        (fip_frame(granted_mac(1), FORWARDER_MAC, Fip(1, 1)), "it comes from"),
        (fip_frame(vm_mac(1), vm_mac(2), Fip(1, 1)), "is no forwarder"),
        (says(1, 1, mac_descriptor(vm_mac(2))), "which is not its own"),
        (says(Operation.CONTROL, KEEP_ALIVE, vn_port_descriptor(granted_mac(2))), "not logged in"),
        (says(2, 1), "nothing that is known"),
        (asks(1, dst=ALL_FORWARDERS), "asked of one forwarder"),
        (fip_frame(vm_mac(1), FORWARDER_MAC, parse_fip(parse(asks(2, LOGO)).payload)), "not its own"),
    ],
)
def test_what_a_node_may_not_say(it: Dialogue, frame: bytes, reason: str) -> None:
    it.logins.append(login(1))
    assert reason in why(it.node(frame))


def test_nobody_logs_another_out(it: Dialogue) -> None:
    """LOGO with its own MAC and another's FC_ID."""
    it.logins.append(login(1))
    service = dict(parse_fip(parse(asks(2, LOGO)).payload).descriptors)[LOGO]
    assert "010102 is not logged in here" in why(it.node(says(2, 1, (LOGO, service))))


def test_so_many_questions_wait_and_no_more(it: Dialogue) -> None:
    for exchange in range(MOST_AWAITED):
        assert it.node(asks(1, exchange=exchange)) == Passed(FORWARDER_MAC)
    assert "too many" in why(it.node(asks(1, exchange=99)))
    assert it.node(asks(1, exchange=0)) == Passed(FORWARDER_MAC), "the same again"
    assert it.node(asks(1, exchange=99), ANSWER_SECONDS + 0.1) == Passed(FORWARDER_MAC)


def test_a_nic_that_is_gone_has_asked_for_nothing(it: Dialogue) -> None:
    it.node(asks(1))
    it.rules.forget(vm_mac(1))
    assert why(it.forwarder(answers(1))) == "nobody has asked for this"

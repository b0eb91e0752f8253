"""Which answer fits which question: what does not fit changes nothing, and leaves the question open."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

import pytest

from retinue.core.model import Assignment, BindingKind, Origin
from retinue.core.packets import DHCP, MessageType, Option, ack, discover, nak, offer, renewal, request
from retinue.core.snooping import ClientMessage, Effect, Rejected, Release, ServerMessage, Snooper, ToVM
from retinue.core.snooping.questions import Question, Questions
from support.fabric import networks

CHOSEN, OTHER = IPv4Address("10.1.0.2"), IPv4Address("10.1.0.3")
EVERYBODY, NOBODY = IPv4Address("255.255.255.255"), IPv4Address(0)
MAC, IP, ELSE = networks.vm_mac(1), networks.vm_ip(1), IPv4Address("10.1.0.77")
HELD = Assignment(IP, MAC, "vm1", BindingKind.DYNAMIC, Origin.CONTROLLER, 1600.0, CHOSEN)


def inform() -> DHCP:
    said = renewal(IP, MAC, 7).without_option(Option.MESSAGE_TYPE)
    return said.with_option(Option.MESSAGE_TYPE, bytes([MessageType.INFORM]))


DISCOVER = discover(MAC, 7)
RAPID = discover(MAC, 7).with_option(Option.RAPID_COMMIT, b"")
SELECTING = request(MAC, 7, IP, CHOSEN)
INIT_REBOOT = request(MAC, 7, IP, None)
RENEWING = REBINDING = renewal(IP, MAC, 7)

QUESTIONS: dict[str, tuple[DHCP, IPv4Address, IPv4Address]] = {
    "DISCOVER": (DISCOVER, EVERYBODY, IPv4Address(0)),
    "rapid DISCOVER": (RAPID, EVERYBODY, IPv4Address(0)),
    "SELECTING": (SELECTING, EVERYBODY, IPv4Address(0)),
    "INIT-REBOOT": (INIT_REBOOT, EVERYBODY, IPv4Address(0)),
    "RENEWING": (RENEWING, CHOSEN, IP),
    "REBINDING": (REBINDING, EVERYBODY, IP),
    "INFORM": (inform(), EVERYBODY, IP),
}


def informed(to: DHCP, server: IPv4Address) -> DHCP:
    return replace(ack(to, IPv4Address(0), server, 600).without_option(Option.LEASE_TIME), ciaddr=IP)


ANSWERS: dict[str, Callable[[DHCP, IPv4Address], DHCP]] = {
    "OFFER": lambda to, server: offer(to, IP, server, 600),
    "ACK": lambda to, server: ack(to, IP, server, 600),
    "ACK of another address": lambda to, server: ack(to, ELSE, server, 600),
    "rapid ACK": lambda to, server: ack(to, IP, server, 600, ((Option.RAPID_COMMIT, b""),)),
    "NAK": nak,
    "ACK of no address": informed,
}

FITS = {
    ("DISCOVER", "OFFER", CHOSEN): "to the VM",
    ("DISCOVER", "OFFER", OTHER): "to the VM",
    ("rapid DISCOVER", "OFFER", CHOSEN): "to the VM",
    ("rapid DISCOVER", "OFFER", OTHER): "to the VM",
    ("rapid DISCOVER", "rapid ACK", CHOSEN): "bind",
    ("rapid DISCOVER", "rapid ACK", OTHER): "bind",
    ("SELECTING", "ACK", CHOSEN): "bind",
    ("SELECTING", "rapid ACK", CHOSEN): "bind",
    ("SELECTING", "NAK", CHOSEN): "end",
    ("INIT-REBOOT", "ACK", CHOSEN): "bind",
    ("INIT-REBOOT", "ACK", OTHER): "bind",
    ("INIT-REBOOT", "rapid ACK", CHOSEN): "bind",
    ("INIT-REBOOT", "rapid ACK", OTHER): "bind",
    ("INIT-REBOOT", "NAK", CHOSEN): "end",
    ("RENEWING", "ACK", CHOSEN): "bind",
    ("RENEWING", "rapid ACK", CHOSEN): "bind",
    ("RENEWING", "NAK", CHOSEN): "end",
    ("REBINDING", "ACK", CHOSEN): "bind",
    ("REBINDING", "ACK", OTHER): "bind",
    ("REBINDING", "rapid ACK", CHOSEN): "bind",
    ("REBINDING", "rapid ACK", OTHER): "bind",
    ("REBINDING", "NAK", CHOSEN): "end",
    ("INFORM", "ACK of no address", CHOSEN): "to the VM",
    ("INFORM", "ACK of no address", OTHER): "to the VM",
}
"""All that has an effect, for a VM that holds a lease of CHOSEN; every other pair has none."""


@dataclass
class Told:
    """A snooper whose vm1 holds a lease, and has asked."""

    snooper: Snooper

    def asks(self, dhcp: DHCP, dst: IPv4Address = EVERYBODY, src: IPv4Address = NOBODY) -> None:
        said = ClientMessage("edge1", networks.vm_port(1), MAC, dhcp, src, dst)
        assert self.snooper.client(said, 1000.0)[-1:] != [], dhcp

    def hears(self, dhcp: DHCP) -> list[Effect]:
        return self.snooper.server(ServerMessage("dhcp", dhcp), 1000.1)


def told(*, held: bool = True) -> Told:
    net = networks.fabric()
    networks.add_vm(net, 1, at=1, bound=False)
    if held:
        net.assign(HELD)
    return Told(Snooper(net))


def names(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


@pytest.mark.parametrize("server", [CHOSEN, OTHER], ids=["chosen", "other"])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("asked", QUESTIONS)
def test_an_answer_must_fit_the_question(asked: str, answer: str, server: IPv4Address) -> None:
    vm = told()
    dhcp, dst, src = QUESTIONS[asked]
    vm.asks(dhcp, dst, src)
    open_before = list(vm.snooper.questions)
    effects = vm.hears(ANSWERS[answer](dhcp, server))
    match FITS.get((asked, answer, server)):
        case "bind":
            assert names(effects) == ["Bind", "ToVM"]
        case "to the VM":
            assert effects == [ToVM("vm1")]
        case "end":
            assert effects == [Release(HELD, "rejected by DHCP server dhcp"), ToVM("vm1")]
        case _:
            assert names(effects) == ["Rejected"]
            assert list(vm.snooper.questions) == open_before, "the question is open still"


@pytest.mark.parametrize("server", [CHOSEN, OTHER], ids=["chosen", "other"])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("asked", ["SELECTING", "RENEWING"])
def test_what_does_not_fit_does_not_stand_in_the_way_of_what_does(
    asked: str, answer: str, server: IPv4Address
) -> None:
    vm = told()
    dhcp, dst, src = QUESTIONS[asked]
    vm.asks(dhcp, dst, src)
    if (asked, answer, server) not in FITS:
        vm.hears(ANSWERS[answer](dhcp, server))
        assert names(vm.hears(ack(dhcp, IP, CHOSEN, 600))) == ["Bind", "ToVM"]


@pytest.mark.parametrize("second", [q for q in QUESTIONS if q != "SELECTING"])
def test_a_second_question_with_the_same_transaction_takes_no_ones_place(second: str) -> None:
    vm = told()
    vm.asks(SELECTING)
    vm.asks(*QUESTIONS[second])
    assert names(vm.hears(ack(SELECTING, IP, CHOSEN, 600))) == ["Bind", "ToVM"]


def test_an_inform_and_a_request_each_have_their_own_answer() -> None:
    vm = told()
    vm.asks(SELECTING)
    vm.asks(inform(), src=IP)
    assert vm.hears(informed(inform(), CHOSEN)) == [ToVM("vm1")]
    assert names(vm.hears(ack(SELECTING, IP, CHOSEN, 600))) == ["Bind", "ToVM"]


def test_a_vm_that_holds_nothing_hears_anybodys_nak() -> None:
    """It asks for an address that it had elsewhere, or long ago: whoever serves this place may say no."""
    for server in (CHOSEN, OTHER):
        vm = told(held=False)
        vm.asks(INIT_REBOOT)
        assert vm.hears(nak(INIT_REBOOT, server)) == [ToVM("vm1")]


def test_the_nak_of_a_server_that_was_not_chosen_ends_nothing_also_where_nothing_is_held() -> None:
    vm = told(held=False)
    vm.asks(SELECTING)
    assert names(vm.hears(nak(SELECTING, OTHER))) == ["Rejected"]
    assert names(vm.hears(ack(SELECTING, IP, CHOSEN, 600))) == ["Bind", "ToVM"]


def test_another_vm_holding_what_it_asks_for_says_nothing_of_who_may_answer() -> None:
    vm = told(held=False)
    networks.add_vm(vm.snooper.net, 2, at=1, bound=False)
    vm.snooper.net.assign(replace(HELD, mac=networks.vm_mac(2), vm="vm2"))
    vm.asks(INIT_REBOOT)
    assert vm.hears(nak(INIT_REBOOT, OTHER)) == [ToVM("vm1")]


def test_a_request_asked_again_is_one_question() -> None:
    vm = told()
    for _ in range(20):
        vm.asks(SELECTING)
    assert len(list(vm.snooper.questions)) == 1


def test_a_dhcp_server_speaks_for_no_other() -> None:
    vm = told()
    net = vm.snooper.net
    net.put_server(
        replace(net.servers["dhcp"], id="second", mac="02:00:00:00:01:03", address=OTHER, given_at=None)
    )
    vm.asks(SELECTING)
    (rejected,) = vm.snooper.server(ServerMessage("second", ack(SELECTING, IP, CHOSEN, 600)), 1000.1)
    assert rejected == Rejected("DHCP server second speaks for DHCP server dhcp")
    (rejected,) = vm.snooper.server(ServerMessage("dhcp", ack(SELECTING, IP, CHOSEN, 600), IP), 1000.1)
    assert rejected == Rejected(f"DHCP server dhcp speaks from {IP}, which a VM holds")


# ---- what is remembered ----


def question(dhcp: DHCP, *, by_agent: bool = False) -> Question:
    return Question("vm1", dhcp, MessageType.REQUEST, 1000.0, CHOSEN, by_agent=by_agent)


def asked(*those: Question) -> Questions:
    questions = Questions()
    for one in those:
        questions.ask(one)
    return questions


def test_one_question_is_answered_and_the_others_stay() -> None:
    first, second = question(SELECTING), question(request(MAC, 8, IP, CHOSEN))
    questions = asked(first, second)
    questions.forget(first)
    assert list(questions) == [second]
    questions.forget(second)
    assert list(questions) == []


def test_the_agents_renewal_is_withdrawn_and_not_what_the_vm_asked_by_the_same_number() -> None:
    vms, agents = question(SELECTING), question(SELECTING, by_agent=True)
    others = question(request(MAC, 8, IP, CHOSEN), by_agent=True)
    questions = asked(vms, agents, others)
    questions.withdraw(MAC, 7)
    assert list(questions) == [vms, others]


def test_the_last_four_offers_to_a_question_are_remembered() -> None:
    questions = asked(question(DISCOVER))
    ips = [IPv4Address(f"10.1.0.{n}") for n in range(1, 6)]
    for ip in (*ips, ips[-1]):
        (now,) = questions
        questions.offered(now, (ip,))
    assert [questions.was_offered(MAC, ip) for ip in ips] == [False, True, True, True, True]
    assert not questions.was_offered(networks.vm_mac(2), ips[-1])


def test_of_two_alike_the_one_from_where_the_vm_runs_is_answered() -> None:
    here = question(SELECTING)
    elsewhere = replace(here, runs_here=False)
    for order in ((here, elsewhere), (elsewhere, here)):
        found = asked(*order).answered_by(ack(SELECTING, IP, CHOSEN, 600), 1000.1)
        assert found is not None
        assert found.runs_here


def test_a_question_waits_a_minute_and_is_forgotten() -> None:
    old, new = question(SELECTING), replace(question(request(MAC, 8, IP, CHOSEN)), at=1000.1)
    questions = asked(old, new)
    assert questions.answered_by(ack(SELECTING, IP, CHOSEN, 600), 1060.0) == old
    assert questions.answered_by(ack(SELECTING, IP, CHOSEN, 600), 1060.01) is None
    questions.expire(1060.0)
    assert list(questions) == [old, new]
    questions.expire(1060.05)
    assert list(questions) == [new]

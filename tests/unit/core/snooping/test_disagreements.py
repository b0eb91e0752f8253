"""A DHCP server and the network disagree: who has an address, how many addresses a VM may decline."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.model import BindingKind, Network
from retinue.core.packets import DHCP, ack, decline, discover, offer, renewal, request
from retinue.core.snooping import (
    Bind,
    ClientMessage,
    Disagreement,
    Effect,
    Rejected,
    Release,
    ServerMessage,
    Snooper,
    Suspicious,
    ToAgent,
    ToServers,
    ToVM,
    relay,
)
from support.fabric import networks

SERVER = IPv4Address("10.1.0.2")
MAC, IP, TAKEN = networks.vm_mac(1), networks.vm_ip(1), networks.vm_ip(2)
WHY = f"the DHCP server granted {TAKEN} to vm1, but vm2 holds it"


@pytest.fixture
def net() -> Network:
    """vm2 has a static address that the DHCP server takes for its own."""
    net = networks.fabric()
    networks.add_vm(net, 1, at=1, bound=False)
    networks.add_vm(net, 2, at=1, bound=False)
    net.assign(replace(networks.assignment(2), kind=BindingKind.STATIC, lease_end=None))
    return net


def ask(snooper: Snooper, dhcp: DHCP, now: float) -> list[Effect]:
    return snooper.client(ClientMessage("edge1", networks.vm_port(1), MAC, dhcp), now)


def hear(snooper: Snooper, dhcp: DHCP, now: float) -> list[Effect]:
    return snooper.server(ServerMessage("dhcp", dhcp), now)


def test_an_offer_of_what_another_holds_is_kept_back_and_the_server_told_once_a_minute(net: Network) -> None:
    snooper, told = Snooper(net), []
    for second in range(0, 130, 10):
        asked = discover(MAC, second, client_id=b"\0me")
        assert ask(snooper, asked, second) == [ToServers("vm1")]
        rejected, *more = hear(snooper, offer(asked, TAKEN, SERVER, 600), second)
        assert isinstance(rejected, Rejected) and not rejected.spoofed
        told += [(second, effect) for effect in more]
    assert [second for second, _ in told] == [0, 60, 120]
    first = told[0][1]
    assert isinstance(first, Disagreement)
    assert first.decline == decline(MAC, 0, TAKEN, SERVER, b"\0me")
    assert (first.vm, first.ip) == ("vm1", TAKEN)


def test_a_grant_of_what_another_holds_binds_nothing_and_is_no_forgery(net: Network) -> None:
    """The VM only takes what it is given; it is not suspected for asking again."""
    snooper = Snooper(net)
    asked = request(MAC, 7, TAKEN, SERVER)
    assert ask(snooper, asked, 0.0)[:-1] == [Suspicious(f"asks for {TAKEN}, which another VM holds", "vm1")]
    rejected, told = hear(snooper, ack(asked, TAKEN, SERVER, 600), 0.1)
    assert rejected == Rejected(WHY, "vm1")
    assert told == Disagreement("vm1", TAKEN, decline(MAC, 7, TAKEN, SERVER), WHY)
    for again in (request(MAC, 8, TAKEN, SERVER), discover(MAC, 9, TAKEN)):
        assert ask(snooper, again, 5.0) == [ToServers("vm1")]
    assert hear(snooper, ack(request(MAC, 8, TAKEN, SERVER), TAKEN, SERVER, 600), 5.1) == [rejected]


@pytest.mark.parametrize(
    ("ip", "holder"),
    [
        ("10.1.0.254", "the gateway of subnet blue"),
        ("10.1.0.2", "server dhcp"),
        ("10.0.0.11", "server server1"),
    ],
)
def test_a_gateways_or_servers_address_is_no_vms_either(net: Network, ip: str, holder: str) -> None:
    snooper, address = Snooper(net), IPv4Address(ip)
    asked = request(MAC, 7, address, SERVER)
    ask(snooper, asked, 0.0)
    why = f"the DHCP server granted {ip} to vm1, but {holder} holds it"
    assert hear(snooper, ack(asked, address, SERVER, 600), 0.1) == [
        Rejected(why, "vm1"),
        Disagreement("vm1", address, decline(MAC, 7, address, SERVER), why),
    ]


def test_a_vm_that_was_offered_what_another_got_meanwhile_is_not_suspected(net: Network) -> None:
    snooper = Snooper(net)
    free = networks.vm_ip(3)
    asked = discover(MAC, 7)
    ask(snooper, asked, 0.0)
    assert hear(snooper, offer(asked, free, SERVER, 600), 0.1) == [ToVM("vm1")]
    networks.add_vm(net, 3, at=1)
    assert ask(snooper, request(MAC, 7, free, SERVER), 0.2) == [ToServers("vm1")]
    assert isinstance(ask(snooper, request(MAC, 7, TAKEN, SERVER), 0.3)[0], Suspicious), "it was offered that"


def test_the_agent_hears_of_it_as_well(net: Network) -> None:
    snooper = Snooper(net)
    snooper.announced.announce("vm1", MAC, TAKEN, 8, "edge1", 0.0)
    net.unassign(TAKEN)
    asked = renewal(TAKEN, MAC, 8)
    ask(snooper, asked, 0.1)
    net.assign(replace(networks.assignment(2), kind=BindingKind.STATIC, lease_end=None))
    effects = hear(snooper, ack(asked, TAKEN, SERVER, 600), 0.2)
    assert [type(effect) for effect in effects] == [Rejected, Disagreement, ToAgent]


def test_what_is_remembered_of_disagreements_is_bounded(net: Network) -> None:
    snooper = Snooper(net)
    for number in range(1100):
        ip = IPv4Address(int(IPv4Address("10.1.0.0")) + number)
        net.assignments[ip] = replace(networks.assignment(2), ip=ip)
        asked = discover(MAC, number)
        ask(snooper, asked, 0.0)
        hear(snooper, offer(asked, ip, SERVER, 600), 0.0)
    assert len(snooper._disagreements) == 1000


# ---- DECLINE ----


def bound(snooper: Snooper, now: float) -> None:
    asked = request(MAC, int(now), IP, SERVER)
    ask(snooper, asked, now)
    bind, _ = hear(snooper, ack(asked, IP, SERVER, 600), now)
    assert isinstance(bind, Bind)
    snooper.net.assign(bind.assignment)


def test_one_address_a_minute_may_be_declined(net: Network) -> None:
    """Each is one less for the others, for a day perhaps; who declines more is after that."""
    snooper, passed = Snooper(net), []
    for second in range(0, 125, 5):
        bound(snooper, second)
        effects = ask(snooper, decline(MAC, second, IP, SERVER), second + 1.0)
        if isinstance(effects[0], Release):
            net.unassign(IP)
            passed.append(second)
        else:
            (rejected,) = effects
            assert isinstance(rejected, Rejected) and rejected.spoofed
            assert "one in a minute is enough" in rejected.reason
    assert passed == [0, 60, 120]
    snooper.expire(200.0)
    assert not snooper._declined


def test_what_was_not_passed_on_does_not_count(net: Network) -> None:
    snooper = Snooper(net)
    assert isinstance(ask(snooper, decline(MAC, 1, networks.vm_ip(9), SERVER), 0.0)[0], Rejected)
    bound(snooper, 1.0)
    assert isinstance(ask(snooper, decline(MAC, 2, IP, SERVER), 2.0)[0], Release)


# ---- messages that go several ways ----


def test_a_vms_questions_are_not_multiplied_without_end() -> None:
    """With 50 relayed subnets a question is 50 messages; a VM has 20 a second, as without relays."""
    shares = relay.Shares()
    gone = sum(50 for tick in range(1000) if shares.take("vm1", 50, 100.0 + tick / 20))
    assert 900 <= gone <= 1050, "in 50 s"
    assert shares.take("vm2", 50, 150.0), "another VM has its own"
    assert shares.take("vm2", 1, 150.0), "and what goes one way is not held up by what went many"
    assert not shares.take("vm2", 2, 150.0)
    assert shares.take("vm2", 2, 151.7)


def test_shares_are_remembered_for_so_many_vms() -> None:
    shares = relay.Shares()
    for number in range(1100):
        shares.take(f"vm{number}", 2, 1.0)
    assert len(shares._left) == 1000

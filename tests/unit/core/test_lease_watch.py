"""What an agent learns of a lease from the VM's own DHCP, as dialogues: frames in, leases kept."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core import lease_watch
from retinue.core.lease_renewal import Lease
from retinue.core.lease_watch import KeptLease, LeaseBook
from retinue.core.packets import (
    BROADCAST,
    DHCP,
    ack,
    decline,
    dhcp_frame,
    discover,
    nak,
    offer,
    release,
    renewal,
    request,
)

SERVER, IP, MAC = IPv4Address("10.9.0.2"), IPv4Address("10.9.0.100"), "52:54:00:00:09:01"
OTHER_MAC, VIA = "52:54:00:00:09:02", "02:00:00:00:09:02"
CLIENT_ID = b"\x01RTNU"
NOBODY = IPv4Address(0)


def asks(dhcp: DHCP) -> bytes:
    return dhcp_frame(dhcp, MAC, BROADCAST, NOBODY, IPv4Address("255.255.255.255"), 68, 67)


def answers(dhcp: DHCP) -> bytes:
    return dhcp_frame(dhcp, VIA, MAC, SERVER, IP, 67, 68)


ASKED = replace(
    request(MAC, 7, IP, SERVER, CLIENT_ID),
    options=(*request(MAC, 7, IP, SERVER, CLIENT_ID).options, (60, b"x")),
)


def booted(now: float = 100.0, seconds: float = 600) -> LeaseBook:
    book = LeaseBook()
    assert not book.from_vm(MAC, asks(discover(MAC, 7, None, CLIENT_ID)), now - 2)
    assert not book.to_vm(MAC, answers(offer(discover(MAC, 7), IP, SERVER, 600)), now - 2)
    assert not book.from_vm(MAC, asks(ASKED), now - 1)
    assert book.to_vm(MAC, answers(ack(ASKED, IP, SERVER, seconds)), now, "vm1")
    return book


def test_a_lease_is_learned_from_the_ack_with_all_that_a_renewal_needs() -> None:
    lease = Lease(IP, MAC, SERVER, CLIENT_ID, VIA, ((60, b"x"),))
    assert booted().leases == {MAC: KeptLease(lease, 700.0, "vm1")}
    assert booted(seconds=float("inf")).leases[MAC].end is None


def test_its_end_counts_from_when_the_ack_was_received() -> None:
    book = booted(now=100.0)
    again = renewal(IP, MAC, 8, CLIENT_ID)
    book.from_vm(MAC, asks(again), 350.0)
    assert book.to_vm(MAC, answers(ack(again, IP, SERVER, 600)), 350.5, "vm1")
    assert book.leases[MAC].end == 950.5
    assert book.leases[MAC].lease.options == (), "what the VM said last is what counts"


def test_a_request_alone_is_no_lease_and_an_answer_nobody_asked_for_neither() -> None:
    book = LeaseBook()
    assert not book.to_vm(MAC, answers(ack(ASKED, IP, SERVER, 600)), 1.0)
    book.from_vm(MAC, asks(ASKED), 2.0)
    assert book.leases == {}
    assert not book.to_vm(MAC, answers(replace(ack(ASKED, IP, SERVER, 600), xid=8)), 3.0)
    assert not book.to_vm(MAC, answers(replace(ack(ASKED, IP, SERVER, 600), chaddr=OTHER_MAC)), 3.0)
    assert not book.to_vm(MAC, asks(ASKED), 3.0), "it is a question, no answer"
    assert book.to_vm(MAC, answers(ack(ASKED, IP, SERVER, 600)), 62.0)
    assert not book.to_vm(MAC, answers(ack(ASKED, IP, SERVER, 900)), 62.0), "one answer to a question"


def test_an_answer_comes_in_a_minute_or_is_none() -> None:
    book = LeaseBook()
    book.from_vm(MAC, asks(ASKED), 0.0)
    assert not book.to_vm(MAC, answers(ack(ASKED, IP, SERVER, 600)), 60.5)


@pytest.mark.parametrize("left_out", [51, 54])
def test_an_ack_without_lease_time_or_server_is_no_lease(left_out: int) -> None:
    book = LeaseBook()
    book.from_vm(MAC, asks(ASKED), 0.0)
    whole = ack(ASKED, IP, SERVER, 600)
    bad = replace(whole, options=tuple(o for o in whole.options if o[0] != left_out))
    assert not book.to_vm(MAC, answers(bad), 1.0)
    assert not book.to_vm(MAC, answers(replace(whole, yiaddr=NOBODY)), 1.0)
    assert book.leases == {}


def test_the_vm_gives_back_what_it_has_and_nothing_else() -> None:
    other = IPv4Address("10.9.0.101")
    for ends in (release(IP, MAC, 9, SERVER, CLIENT_ID), decline(MAC, 9, IP, SERVER, CLIENT_ID)):
        book = booted()
        for not_its in (release(other, MAC, 9, SERVER), decline(MAC, 9, other, SERVER)):
            assert not book.from_vm(MAC, asks(not_its), 200.0)
        assert not book.from_vm(OTHER_MAC, asks(ends), 200.0), "another VM's port"
        assert MAC in book.leases
        assert book.from_vm(MAC, asks(ends), 200.0)
        assert book.leases == {}


def test_a_nak_ends_the_lease_that_was_asked_for() -> None:
    book = booted()
    about_another = request(MAC, 9, IPv4Address("10.9.0.101"), SERVER, CLIENT_ID)
    book.from_vm(MAC, asks(about_another), 200.0)
    assert not book.to_vm(MAC, answers(nak(about_another, SERVER)), 201.0)
    assert MAC in book.leases
    for asked in (renewal(IP, MAC, 10, CLIENT_ID), request(MAC, 11, IP, None, CLIENT_ID)):
        book = booted()
        book.from_vm(MAC, asks(asked), 200.0)
        assert book.to_vm(MAC, answers(nak(asked, SERVER)), 201.0)
        assert book.leases == {}


def test_the_agents_renewal_and_what_a_peer_says_are_kept() -> None:
    book = booted()
    lease = book.leases[MAC].lease
    book.renewed(lease, 900, 400.0)
    assert book.leases[MAC] == KeptLease(lease, 1300.0, "vm1"), "its name is known"
    book.renewed(lease, float("inf"), 400.0, "vm2")
    assert book.leases[MAC] == KeptLease(lease, None, "vm2")


def test_a_vm_is_named_and_forgotten() -> None:
    book = booted()
    assert book.named(MAC, "web") and book.leases[MAC].vm == "web"
    assert not book.named(MAC, "web")
    assert not book.named(OTHER_MAC, "x")
    assert book.forget(MAC) and not book.forget(MAC)


def test_what_ended_long_ago_is_forgotten() -> None:
    book = booted(now=100.0, seconds=600)
    book.forget_ended(700.0)
    assert MAC in book.leases
    book.forget_ended(700.1)
    assert book.leases == {}
    book = booted(seconds=float("inf"))
    book.forget_ended(1e12)
    assert MAC in book.leases


def test_it_remembers_no_more_than_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    book = LeaseBook()
    for xid in range(lease_watch.QUESTIONS_KEPT + 1):
        book.from_vm(MAC, asks(replace(ASKED, xid=xid)), 0.0)
    assert not book.to_vm(MAC, answers(replace(ack(ASKED, IP, SERVER, 600), xid=0)), 1.0), "the oldest went"
    assert book.to_vm(MAC, answers(replace(ack(ASKED, IP, SERVER, 600), xid=1)), 1.0)
    monkeypatch.setattr(lease_watch, "LEASES_KEPT", 2)
    for n, end in ((2, 50.0), (3, None)):
        mac = f"52:54:00:00:09:0{n}"
        book.keep(KeptLease(Lease(IP, mac, SERVER), end))
    assert list(book.leases) == [MAC, "52:54:00:00:09:03"], "the one that ends first went"


def test_what_is_no_dhcp_changes_nothing() -> None:
    book = booted()
    for junk in (b"", b"x" * 400, asks(ASKED)[:60]):
        assert not book.from_vm(MAC, junk, 1.0)
        assert not book.to_vm(MAC, junk, 1.0)
    assert MAC in book.leases

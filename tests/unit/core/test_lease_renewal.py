"""One renewal as the agent lives it, as dialogues: times and messages in, effects out."""

import math
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.lease_renewal import (
    BACK_OFF,
    Acked,
    AnswerReceived,
    ControllerVerdict,
    Effect,
    Lease,
    NotRenewed,
    Renewal,
    RenewalState,
    Send,
    Wait,
    Waited,
    begin,
    request_frame,
    step,
)
from retinue.core.packets import DHCP, MessageType, Options, ack, nak, offer, parse_dhcp_frame, renewal

SERVER, OTHER = IPv4Address("10.1.0.2"), IPv4Address("10.1.0.3")
IP = IPv4Address("10.1.0.101")
MAC = "52:54:00:00:00:01"
GATEWAY = "00:00:de:ad:be:ef"
XID = 0x1234ABCD
LEASE = Lease(IP, MAC, SERVER, client_id=b"\x01RTNU01", next_hop=GATEWAY)


def started(now: float = 100.0) -> Renewal:
    this, effects = begin(LEASE, XID, now)
    assert [type(e) for e in effects] == [Send, Wait]
    return this


def sent(effects: list[Effect]) -> DHCP:
    (frame,) = (e.frame for e in effects if isinstance(e, Send))
    return parse_dhcp_frame(frame)[2]


def asked(this: Renewal) -> DHCP:
    assert isinstance(this.lease, Lease)
    return renewal(this.lease.ip, this.lease.mac, this.xid, this.lease.client_id)


def test_the_request_is_a_unicast_renewal_by_rfc_2131_table_5() -> None:
    """The request, field by field, against RFC 2131."""
    ethernet, datagram, dhcp = parse_dhcp_frame(request_frame(LEASE, XID, secs=3))
    assert (ethernet.src, ethernet.dst, ethernet.vlan) == (MAC, GATEWAY, None)
    assert (datagram.src, datagram.dst, datagram.sport, datagram.dport) == (IP, SERVER, 68, 67)
    assert (dhcp.op, dhcp.htype, dhcp.hlen, dhcp.hops, dhcp.xid, dhcp.secs, dhcp.flags) == (
        1, 1, 6, 0, XID, 3, 0,
    )  # fmt: skip
    nobody = IPv4Address(0)
    assert (dhcp.ciaddr, dhcp.yiaddr, dhcp.siaddr, dhcp.giaddr) == (IP, nobody, nobody, nobody)
    assert (dhcp.chaddr, dhcp.message_type) == (MAC, MessageType.REQUEST)
    assert {code for code, _ in dhcp.options} == {53, 55, 61}, "neither option 50 nor 54"
    assert dhcp.option(55) == bytes([51, 6, 44])
    assert dhcp.client_id == LEASE.client_id


def test_a_vm_that_used_no_client_id_is_given_none() -> None:
    frame = request_frame(replace(LEASE, client_id=b""), XID)
    assert {code for code, _ in parse_dhcp_frame(frame)[2].options} == {53, 55}


def test_secs_does_not_overflow_its_two_bytes() -> None:
    assert parse_dhcp_frame(request_frame(LEASE, XID, secs=70_000))[2].secs == 0xFFFF


@pytest.mark.parametrize(("seconds", "granted"), [(600, 600), (math.inf, math.inf)])
def test_an_ack_ends_it_with_the_lease_time(seconds: float, granted: float) -> None:
    this = started()
    this, effects = step(this, AnswerReceived(ack(asked(this), IP, SERVER, seconds)), 100.2)
    assert effects == [Acked(granted)]
    assert (this.state, this.lease_seconds) == (RenewalState.ACKED, granted)
    assert step(this, AnswerReceived(nak(asked(this), SERVER)), 100.3) == (this, [])
    assert step(this, Waited(), 999.0) == (this, [])


def test_a_nak_ends_it_with_the_servers_words() -> None:
    this = started()
    this, effects = step(this, AnswerReceived(nak(asked(this), SERVER, "wrong network")), 100.2)
    assert effects == [NotRenewed("rejected by DHCP server 10.1.0.2: wrong network")]
    assert (this.state, this.reason) == (
        RenewalState.REJECTED,
        "rejected by DHCP server 10.1.0.2: wrong network",
    )


def test_silence_is_asked_again_with_back_off_and_then_reported() -> None:
    """Asked again after 1, 2, 4, 8 seconds; one transaction id throughout; `secs` grows."""
    now = 100.0
    this, effects = begin(LEASE, XID, now)
    told: list[tuple[float, int]] = []
    for wait in BACK_OFF:
        message = sent(effects)
        assert message.xid == XID
        told.append((now, message.secs))
        assert Wait(now + wait) in effects
        early, nothing = step(this, Waited(), now + wait - 0.01)
        assert (early, nothing) == (this, [Wait(now + wait)]), "not before its time"
        now += wait
        this, effects = step(this, Waited(), now)
    assert told == [(100.0, 0), (101.0, 1), (103.0, 3), (107.0, 7)]
    assert effects == [NotRenewed("DHCP server 10.1.0.2 did not answer 4 requests in 15 s")]
    assert (this.state, this.sent) == (RenewalState.SILENT, 4)
    assert effects == [NotRenewed(this.reason)]


def test_an_answer_to_a_later_request_counts() -> None:
    this = started()
    this, _ = step(this, Waited(), 101.0)
    this, effects = step(this, AnswerReceived(ack(asked(this), IP, SERVER, 600)), 101.5)
    assert effects == [Acked(600)]


def test_what_is_not_its_answer_changes_nothing() -> None:
    this = started()
    good = ack(asked(this), IP, SERVER, 600)
    strangers = [
        replace(good, xid=XID + 1),
        replace(good, chaddr="52:54:00:00:00:02"),
        ack(asked(this), IP, OTHER, 600),
        good.without_option(54),
        offer(asked(this), IP, SERVER, 600),
        asked(this),
    ]
    for message in strangers:
        assert step(this, AnswerReceived(message), 100.1) == (this, [])


def test_an_ack_that_grants_something_else_is_no_renewal() -> None:
    for message, words in (
        (ack(asked(started()), OTHER, SERVER, 600), "acknowledged 10.1.0.3, not 10.1.0.101"),
        (ack(asked(started()), IP, SERVER, 600).without_option(51), "without a lease time"),
    ):
        this, (effect,) = step(started(), AnswerReceived(message), 100.1)
        assert isinstance(effect, NotRenewed)
        assert words in effect.reason
        assert this.reason == effect.reason
        assert this.state is RenewalState.REJECTED


def test_the_controllers_word_on_the_answer_ends_it() -> None:
    this, effects = step(started(), ControllerVerdict(600), 100.1)
    assert (this.state, this.lease_seconds, effects) == (RenewalState.ACKED, 600, [Acked(600)])
    this, effects = step(started(), ControllerVerdict(None), 100.1)
    assert effects == [Acked(math.inf)]
    this, effects = step(started(), ControllerVerdict(None, "rejected by DHCP server dhcp"), 100.1)
    assert (this.state, effects) == (RenewalState.REJECTED, [NotRenewed("rejected by DHCP server dhcp")])
    assert this.reason == "rejected by DHCP server dhcp"


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ((), [51, 6, 44]),
        (((55, bytes([1, 3, 6, 12])),), [1, 3, 6, 12, 51, 44]),
        (((55, bytes([44, 6, 51])),), [44, 6, 51]),
        (((60, b"x"), (55, bytes([1])), (12, b"vm1"), (55, bytes([3]))), [1, 3, 51, 6, 44]),
    ],
)
def test_it_asks_for_what_the_vm_asked_for_and_for_lease_time_and_name_servers(
    said: Options, asked: list[int]
) -> None:
    """One list, the VM's own first; the other options are where they were, as they were."""
    sends = parse_dhcp_frame(request_frame(replace(LEASE, options=said), XID))[2]
    assert [value for code, value in sends.options if code == 55] == [bytes(asked)]
    own = [option for option in sends.options if option[0] not in (53, 55, 61)]
    assert own == [option for option in said if option[0] != 55]

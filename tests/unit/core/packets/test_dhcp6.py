"""DHCPv6 read and made: against scapy, and what is no message."""

from ipaddress import IPv6Address

import pytest
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_RelayForward,
    DHCP6_Reply,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptElapsedTime,
    DHCP6OptIA_NA,
    DHCP6OptIA_PD,
    DHCP6OptIA_TA,
    DHCP6OptIAAddress,
    DHCP6OptIAPrefix,
    DHCP6OptIfaceId,
    DHCP6OptOptReq,
    DHCP6OptRapidCommit,
    DHCP6OptReconfAccept,
    DHCP6OptRelayMsg,
    DHCP6OptServerId,
    DHCP6OptStatusCode,
)

from retinue.core.limits import LARGEST_DHCP6, LONGEST_DUID, MOST_DHCP6_ADDRESSES, MOST_DHCP6_OPTIONS
from retinue.core.model import IAKind
from retinue.core.packets import FrameError, build_ipv6
from retinue.core.packets.dhcp6 import (
    DHCP6,
    MessageType6,
    Relayed6,
    kept_options6,
    options_of_lease,
    parse_dhcp6,
    parse_relayed6,
    renew6,
)
from retinue.core.packets.dhcp6_options import IA, IAAddress, Option6, Status
from retinue.core.packets.udp6 import parse_udp6

MAC = "52:54:00:00:00:01"
DUID = bytes(DUID_LL(lladdr=MAC))
IP, LINK, PEER = (IPv6Address(text) for text in ("fd00:1::100", "fd00:1::fe", "fe80::1"))


def test_what_scapy_makes_is_read() -> None:
    made = (
        DHCP6_Solicit(trid=0xABCDEF)
        / DHCP6OptClientId(duid=DUID_LL(lladdr=MAC))
        / DHCP6OptIA_NA(iaid=7, T1=1, T2=2, ianaopts=[DHCP6OptIAAddress(addr=str(IP), preflft=3, validlft=4)])
        / DHCP6OptElapsedTime(elapsedtime=9)
        / DHCP6OptRapidCommit()
        / DHCP6OptReconfAccept()
        / DHCP6OptOptReq(reqopts=[23, 24])
    )
    read = parse_dhcp6(bytes(made))
    assert (read.type, read.xid, read.client_id, read.server_id) == (
        MessageType6.SOLICIT,
        0xABCDEF,
        DUID,
        b"",
    )
    assert read.ias == (IA(7, (IAAddress(IP, 3, 4),), 1, 2),)
    assert read.addresses == (IP,)
    assert [code for code, _ in read.options] == [8, 14, 20, 6]
    assert [code for code, _ in kept_options6(read)] == [8, 14, 6], "nobody wakes it to ask"
    assert options_of_lease(read) == ((6, bytes((0, 23, 0, 24))),)


def test_what_is_too_much_is_not_kept_with_a_lease() -> None:
    said = DHCP6(MessageType6.REQUEST, 1, options=((16, bytes(1000)), (15, bytes(20)), (6, bytes(16))))
    assert options_of_lease(said) == ((16, bytes(1000)), (6, bytes(16)))


def test_what_is_made_scapy_reads() -> None:
    status = Status(0, "all fine")
    reply = DHCP6(MessageType6.REPLY, 0x123456, DUID, b"\0\2server", (IA(7, (IAAddress(IP, 3, 4, status),)),))
    inside = DHCP6_Reply(reply.build())
    assert inside.trid == 0x123456
    assert bytes(inside[DHCP6OptClientId].duid) == DUID
    assert bytes(inside[DHCP6OptServerId].duid) == b"\0\2server"
    (address,) = inside[DHCP6OptIA_NA].ianaopts
    assert (address.addr, address.preflft, address.validlft) == (str(IP), 3, 4)
    assert address.iaaddropts[0][DHCP6OptStatusCode].statusmsg == b"all fine"
    envelope = Relayed6(MessageType6.RELAY_FORW, 0, LINK, PEER, reply.build(), b"edge1:5")
    outside = DHCP6_RelayForward(envelope.build())
    assert (outside.linkaddr, outside.peeraddr, outside.hopcount) == (str(LINK), str(PEER), 0)
    assert outside[DHCP6OptIfaceId].ifaceid == b"edge1:5"
    assert bytes(outside[DHCP6OptRelayMsg].message) == reply.build()


def test_prefixes_and_temporary_addresses_are_as_scapy_has_them() -> None:
    prefix = DHCP6OptIAPrefix(prefix="fd00:8::", plen=60, preflft=3, validlft=4)
    made = (
        DHCP6_Solicit(trid=1)
        / DHCP6OptIA_PD(iaid=7, T1=1, T2=2, iapdopt=[prefix])
        / DHCP6OptIA_TA(iaid=7, iataopts=[DHCP6OptIAAddress(addr=str(IP), preflft=5, validlft=6)])
    )
    read = parse_dhcp6(bytes(made))
    assert read.ias == (
        IA(7, (IAAddress(IPv6Address("fd00:8::"), 3, 4, length=60),), 1, 2, kind=IAKind.PD),
        IA(7, (IAAddress(IP, 5, 6),), kind=IAKind.TA),
    )
    again = DHCP6_Solicit(read.build())
    (option,) = again[DHCP6OptIA_PD].iapdopt
    assert (option.prefix, option.plen, option.preflft, option.validlft) == ("fd00:8::", 60, 3, 4)
    (address,) = again[DHCP6OptIA_TA].iataopts
    assert (address.addr, address.validlft) == (str(IP), 6)


def test_what_is_beyond_a_prefix_s_length_is_nothing() -> None:
    beyond = IA(7, (IAAddress(IPv6Address("fd00:8::7"), length=60),), kind=IAKind.PD)
    (read,) = parse_dhcp6(DHCP6(MessageType6.SOLICIT, 1, ias=(beyond,)).build()).ias
    assert read.addresses == (IAAddress(IPv6Address("fd00:8::"), length=60),)


def test_a_renewal_has_both_identifiers_and_says_how_long_it_asks() -> None:
    made = renew6(5, DUID, b"srv", IA(7, (IAAddress(IP),)), ((6, b"\0\x17"),), elapsed=1.5)
    assert made.option(Option6.ELAPSED_TIME) == (150).to_bytes(2, "big")
    assert parse_dhcp6(made.build()) == made
    assert renew6(5, DUID, b"srv", IA(7), elapsed=1e9).option(Option6.ELAPSED_TIME) == b"\xff\xff"


def option(code: int, content: bytes, length: int | None = None) -> bytes:
    return code.to_bytes(2, "big") + (len(content) if length is None else length).to_bytes(2, "big") + content


SOLICIT = b"\x01abc"
ADDRESS = option(5, IP.packed + bytes(8))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "of 0 bytes"),
        (SOLICIT + bytes(LARGEST_DHCP6), "not between"),
        (b"\x0eabc", "type 14"),
        (b"\x01ab", "shorter than its header"),
        (b"\x0c" + bytes(40), "a relay's message"),
        (SOLICIT + b"\0\1\0", "cut off"),
        (SOLICIT + option(6, b"a", 2), "1 are left"),
        (SOLICIT + option(6, b"") * (MOST_DHCP6_OPTIONS + 1), "more than"),
        (SOLICIT + option(1, DUID) * 2, "there 2 times"),
        (SOLICIT + option(1, b"ab"), "DUID of 2 bytes"),
        (SOLICIT + option(1, b""), "DUID of 0 bytes"),
        (SOLICIT + option(2, bytes(LONGEST_DUID + 1)), "DUID of 131"),
        (SOLICIT + option(9, b""), "option of relays"),
        (SOLICIT + option(18, b"x"), "option of relays"),
        (SOLICIT + option(13, b"a"), "status of 1"),
        (SOLICIT + option(3, bytes(11)), "IA_NA of 11"),
        (SOLICIT + option(3, bytes(12)) * 2, "same IAID"),
        (SOLICIT + option(4, bytes(3)), "IA_TA of 3"),
        (SOLICIT + option(25, bytes(11)), "IA_PD of 11"),
        (SOLICIT + option(25, bytes(12) + option(26, bytes(24))), "prefix of 24"),
        (SOLICIT + option(25, bytes(12) + option(26, bytes(8) + b"\x81" + bytes(16))), "prefix of 129 bits"),
        (SOLICIT + option(3, bytes(12) + option(5, bytes(23))), "address of 23"),
        (SOLICIT + option(3, bytes(12) + ADDRESS * 2), "there twice"),
        (SOLICIT + option(3, bytes(12) + ADDRESS) + option(3, b"\1" + bytes(11) + ADDRESS), "there twice"),
        (SOLICIT + option(3, bytes(12) + option(13, b"\0\0") * 2), "there 2 times"),
        (
            SOLICIT
            + option(3, bytes(12) + b"".join(option(5, bytes((*bytes(15), n, *bytes(8)))) for n in range(9))),
            f"more than {MOST_DHCP6_ADDRESSES}",
        ),
        (
            SOLICIT + b"".join(option(3, bytes((n,)) + bytes(11)) for n in range(MOST_DHCP6_ADDRESSES + 1)),
            f"more than {MOST_DHCP6_ADDRESSES}",
        ),
    ],
)  # fmt: skip
def test_what_is_no_message(data: bytes, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        parse_dhcp6(data)


ENVELOPE = LINK.packed + PEER.packed


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (SOLICIT, "not a relay's"),
        (b"\x0c\0" + ENVELOPE[:-1], "shorter than 34"),
        (b"\x0c\x09" + ENVELOPE + option(9, SOLICIT), "passed 9 relays"),
        (b"\x0d\0" + ENVELOPE, "without a message"),
        (b"\x0d\0" + ENVELOPE + option(9, SOLICIT) * 2, "there 2 times"),
        (b"\x0d\0" + ENVELOPE + option(9, SOLICIT) + option(18, b"a") * 2, "there 2 times"),
    ],
)
def test_what_is_no_envelope(data: bytes, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        parse_relayed6(data)


def test_an_envelopes_hop_count_is_a_byte() -> None:
    for hops in (0, 255):
        assert Relayed6(MessageType6.RELAY_FORW, hops, LINK, PEER, SOLICIT).build()[:2] == bytes((12, hops))
    for hops in (-1, 256):
        with pytest.raises(FrameError, match=f"hop count {hops} out of range"):
            Relayed6(MessageType6.RELAY_FORW, hops, LINK, PEER, SOLICIT).build()


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (build_ipv6(PEER, LINK, 17, bytes(7)), "shorter than its header"),
        (build_ipv6(PEER, LINK, 17, bytes(4) + b"\0\x09" + bytes(2)), "UDP length 9"),
        (build_ipv6(PEER, LINK, 6, bytes(20)), "not UDP"),
        (build_ipv6(PEER, LINK, 60, b"\x11\0" + bytes(6) + bytes(4) + b"\0\x08\0\0"), "extension headers 60"),
    ],
)
def test_what_is_no_datagram(packet: bytes, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        parse_udp6(packet)

"""DHCPv4 messages: what each says (RFC 2131), how options are read, and each way to be malformed."""

import math
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.packets import (
    BROADCAST,
    CLIENT_PORT,
    DHCP,
    FLAG_BROADCAST,
    SERVER_PORT,
    Ethernet,
    FrameError,
    MessageType,
    Option,
    ack,
    build_dhcp,
    build_options,
    build_udp4,
    decline,
    dhcp_frame,
    discover,
    nak,
    offer,
    parse_dhcp,
    parse_dhcp_frame,
    parse_options,
    release,
    renewal,
    request,
    summarize,
)

VM = "52:54:00:00:00:01"
IP, SERVER, RELAY, NONE = (IPv4Address(x) for x in ("10.0.0.5", "10.9.0.2", "10.0.0.1", "0.0.0.0"))
XID = 0x12345678
BROADCAST_IP = IPv4Address("255.255.255.255")


def read(message: DHCP) -> DHCP:
    return parse_dhcp(build_dhcp(message))


class TestWhatAClientSays:
    def test_discover(self) -> None:
        m = read(discover(VM, XID))
        assert (m.op, m.xid, m.chaddr, m.message_type) == (1, XID, VM, MessageType.DISCOVER)
        assert (m.ciaddr, m.requested_address, m.server_id) == (NONE, None, None)

    def test_request_of_an_offer(self) -> None:
        m = read(request(VM, XID, IP, SERVER, client_id=b"\x01abc"))
        assert (m.message_type, m.ciaddr) == (MessageType.REQUEST, NONE)
        assert (m.requested_address, m.server_id, m.client_id) == (IP, SERVER, b"\x01abc")

    def test_renewal_has_neither_requested_address_nor_server(self) -> None:
        """RFC 2131 section 4.3.2, RENEWING: both options MUST NOT be filled in, ciaddr MUST be."""
        m = read(renewal(IP, VM, XID))
        assert (m.op, m.htype, m.hlen, m.hops, m.xid) == (1, 1, 6, 0, XID)
        assert (m.message_type, m.ciaddr, m.chaddr) == (MessageType.REQUEST, IP, VM)
        assert (m.option(Option.REQUESTED_ADDRESS), m.option(Option.SERVER_ID)) == (None, None)

    def test_release(self) -> None:
        m = read(release(IP, VM, XID, SERVER))
        assert (m.message_type, m.ciaddr, m.server_id) == (MessageType.RELEASE, IP, SERVER)
        assert m.requested_address is None

    def test_decline(self) -> None:
        m = read(decline(VM, XID, IP, SERVER))
        assert (m.message_type, m.ciaddr) == (MessageType.DECLINE, NONE)
        assert (m.requested_address, m.server_id) == (IP, SERVER)


class TestWhatAServerAnswers:
    def test_offer(self) -> None:
        asked = replace(discover(VM, XID, client_id=b"\x01me"), flags=FLAG_BROADCAST, giaddr=RELAY, secs=9)
        m = read(offer(asked, IP, SERVER, 3600, ((Option.ROUTER, RELAY.packed),)))
        assert (m.op, m.message_type, m.xid, m.chaddr) == (2, MessageType.OFFER, XID, VM)
        assert (m.yiaddr, m.server_id, m.lease_time, m.ciaddr) == (IP, SERVER, 3600, NONE)
        assert (m.flags, m.giaddr, m.secs) == (FLAG_BROADCAST, RELAY, 0)
        assert (m.client_id, m.option(Option.ROUTER)) == (b"\x01me", RELAY.packed)

    def test_ack_of_a_renewal_keeps_ciaddr(self) -> None:
        m = read(ack(renewal(IP, VM, XID), IP, SERVER, 60))
        assert (m.message_type, m.ciaddr, m.yiaddr, m.lease_time) == (MessageType.ACK, IP, IP, 60)

    def test_relay_information_comes_back_last(self) -> None:
        asked = renewal(IP, VM, XID, client_id=b"me").with_option(Option.RELAY_AGENT, b"\x01\x02p3")
        m = read(ack(asked, IP, SERVER, 60))
        assert m.options[-1] == (Option.RELAY_AGENT, b"\x01\x02p3")
        assert m.relay_agent == b"\x01\x02p3"

    def test_nak(self) -> None:
        m = read(nak(renewal(IP, VM, XID), SERVER, "no such lease"))
        assert (m.op, m.message_type, m.server_id, m.message) == (2, MessageType.NAK, SERVER, "no such lease")
        assert (m.ciaddr, m.yiaddr, m.lease_time, m.flags) == (NONE, NONE, None, 0)

    def test_nak_through_a_relay_is_broadcast(self) -> None:
        assert nak(replace(renewal(IP, VM, XID), giaddr=RELAY), SERVER).flags == FLAG_BROADCAST

    def test_lease_for_ever(self) -> None:
        m = ack(renewal(IP, VM, XID), IP, SERVER, math.inf)
        assert m.option(Option.LEASE_TIME) == b"\xff\xff\xff\xff"
        assert read(m).lease_time == math.inf

    @pytest.mark.parametrize("seconds", [-1, 2**32])
    def test_lease_out_of_range(self, seconds: float) -> None:
        with pytest.raises(FrameError, match="does not fit"):
            offer(discover(VM, XID), IP, SERVER, seconds)


class TestOptions:
    def test_padding_and_what_follows_the_end_are_not_options(self) -> None:
        assert parse_options(bytes((0, 0, 12, 2, 65, 66, 0, 255, 53, 1, 1))) == ((12, b"AB"),)

    def test_a_field_without_end_is_read_to_its_last_byte(self) -> None:
        assert parse_options(bytes((12, 1, 65))) == ((12, b"A"),)

    @pytest.mark.parametrize(
        ("field", "says"),
        [
            (bytes((12,)), "option 12 has no length"),
            (bytes((0, 12)), "option 12 has no length"),
            (bytes((12, 3, 65, 66)), "option 12 of 3 bytes runs past the end"),
        ],
    )
    def test_overrun(self, field: bytes, says: str) -> None:
        with pytest.raises(FrameError, match=says):
            parse_options(field)

    @pytest.mark.parametrize("code", [0, 255, -1])
    def test_numbers_that_are_no_options(self, code: int) -> None:
        with pytest.raises(FrameError, match="between 1 and 254"):
            build_options(((code, b""),))

    def test_repeats_are_joined_in_order(self) -> None:
        m = replace(discover(VM, XID), options=((12, b"a"), (6, b"dns!"), (12, b""), (12, b"b")))
        assert read(m).option(Option.HOST_NAME) == b"ab"

    def test_value_over_255_bytes_is_split(self) -> None:
        long = bytes(range(256)) * 2
        m = read(discover(VM, XID).with_option(43, long))
        assert [len(v) for code, v in m.options if code == 43] == [255, 255, 2]
        assert m.option(43) == long

    def test_with_option_replaces_and_puts_last(self) -> None:
        m = request(VM, XID, IP, SERVER).with_option(Option.REQUESTED_ADDRESS, RELAY.packed)
        assert (m.requested_address, m.options[-1][0]) == (RELAY, Option.REQUESTED_ADDRESS)
        assert m.without_option(Option.REQUESTED_ADDRESS).requested_address is None

    @pytest.mark.parametrize(("overload", "names"), [(1, b"F"), (2, b"S"), (3, b"FS")])
    def test_overload(self, overload: int, names: bytes) -> None:
        """RFC 2132 section 9.3: 1 file, 2 sname, 3 both; file is read first (RFC 3396 section 5)."""
        m = replace(
            discover(VM, XID).with_option(Option.OVERLOAD, bytes((overload,))),
            file=bytes((12, 1, 70, 255)).ljust(128, b"\0"),
            sname=bytes((12, 1, 83, 255)).ljust(64, b"\0"),
        )
        assert read(m).option(Option.HOST_NAME) == names

    def test_without_overload_the_fields_are_names(self) -> None:
        m = replace(discover(VM, XID), file=bytes((12, 1, 70, 255)).ljust(128, b"\0"))
        assert read(m).option(Option.HOST_NAME) is None

    def test_message_type_may_stand_in_the_file_field(self) -> None:
        m = replace(
            discover(VM, XID),
            options=((Option.OVERLOAD, b"\1"),),
            file=bytes((53, 1, 3, 255)).ljust(128, b"\0"),
        )
        assert read(m).message_type is MessageType.REQUEST


class TestMalformed:
    good = build_dhcp(discover(VM, XID))

    def test_padded_to_300_bytes(self) -> None:
        assert len(self.good) == 300

    def test_cut_short(self) -> None:
        with pytest.raises(FrameError, match="239 bytes: shorter than its fixed part of 240"):
            parse_dhcp(self.good[:239])

    def test_bootp_without_options_has_no_message_type(self) -> None:
        assert parse_dhcp(self.good[:240]).message_type is None

    @pytest.mark.parametrize(
        ("at", "value", "says"),
        [
            (0, 3, "op 3 is neither"),
            (1, 6, "hardware type 6"),
            (2, 16, "address length 16"),
            (236, 98, "magic cookie is 62825363"),
            (242, 9, "message type 9 is unknown"),
            (242, 0, "message type 0 is unknown"),
            (242, 5, "ACK with op 1"),
            (0, 2, "DISCOVER with op 2"),
        ],
    )
    def test_wrong_byte(self, at: int, value: int, says: str) -> None:
        payload = bytearray(self.good)
        payload[at] = value
        with pytest.raises(FrameError, match=says):
            parse_dhcp(bytes(payload))

    @pytest.mark.parametrize(
        ("option", "says"),
        [
            ((53, b"\1\1"), r"option 53 has 2 bytes, not 1"),
            ((50, b"\1"), "option 50 has 1 bytes, not 4"),
            ((54, bytes(5)), "option 54 has 5 bytes, not 4"),
            ((51, b""), "option 51 has 0 bytes, not 4"),
            ((52, b"\4"), "overload"),
            ((52, b""), "overload"),
        ],
    )
    def test_option_of_wrong_size(self, option: tuple[int, bytes], says: str) -> None:
        with pytest.raises(FrameError, match=says):
            read(discover(VM, XID).with_option(*option))

    @pytest.mark.parametrize("again", [(53, b"\3"), (54, SERVER.packed), (50, IP.packed), (51, bytes(4))])
    def test_fixed_option_given_twice_is_rejected(self, again: tuple[int, bytes]) -> None:
        """Two answers to one question: a server could believe the one, and a snooper the other."""
        m = offer(discover(VM, XID), IP, SERVER, 60).with_option(50, IP.packed)
        with pytest.raises(FrameError, match=f"option {again[0]} has"):
            read(replace(m, options=(*m.options, again)))

    def test_overrun_in_an_overloaded_field(self) -> None:
        m = replace(
            discover(VM, XID).with_option(Option.OVERLOAD, b"\2"), sname=bytes((12, 63)).ljust(64, b"\0")
        )
        with pytest.raises(FrameError, match="sname field: option 12 of 63 bytes"):
            read(m)

    @pytest.mark.parametrize(
        "changed",
        [
            replace(discover(VM, XID), xid=2**32),
            replace(discover(VM, XID), hops=256),
            replace(discover(VM, XID), sname=bytes(65)),
            replace(discover(VM, XID), file=bytes(129)),
            replace(discover(VM, XID), chaddr="nothing"),
        ],
    )
    def test_values_no_message_can_carry(self, changed: DHCP) -> None:
        with pytest.raises(FrameError):
            build_dhcp(changed)


class TestFrame:
    def test_discover_from_nowhere_to_everyone(self) -> None:
        frame = dhcp_frame(discover(VM, XID), VM, BROADCAST, NONE, BROADCAST_IP, CLIENT_PORT, SERVER_PORT)
        ethernet, datagram, message = parse_dhcp_frame(frame)
        assert (ethernet.dst, ethernet.src, ethernet.ethertype, ethernet.vlan) == (
            BROADCAST,
            VM,
            0x0800,
            None,
        )
        assert (datagram.src, datagram.dst) == (NONE, BROADCAST_IP)
        assert (datagram.sport, datagram.dport) == (68, 67)
        assert message == discover(VM, XID)
        assert "DHCP DISCOVER of 52:54:00:00:00:01" in summarize(frame)

    def test_not_ipv4(self) -> None:
        with pytest.raises(FrameError, match="no DHCP in it"):
            parse_dhcp_frame(Ethernet(BROADCAST, VM, 0x0806, bytes(400)).build())

    def test_not_a_dhcp_port(self) -> None:
        packet = build_udp4(IP, SERVER, 68, 53, build_dhcp(discover(VM, XID)))
        with pytest.raises(FrameError, match="port 53 is not DHCP's"):
            parse_dhcp_frame(Ethernet(BROADCAST, VM, 0x0800, packet).build())

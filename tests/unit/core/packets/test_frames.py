"""Ethernet, ARP and UDP frames: known bytes, and each way to be malformed."""

from ipaddress import IPv4Address

import pytest

from retinue.core.packets import (
    ARP,
    BROADCAST,
    ZERO_MAC,
    ArpOp,
    Ethernet,
    EtherType,
    FrameError,
    arp_reply,
    arp_request,
    build_udp4,
    checksum,
    parse,
    parse_arp,
    parse_udp4,
    summarize,
)

VM = "52:54:00:00:00:01"
GATEWAY = "00:00:de:ad:be:ef"
A, B, NOBODY = IPv4Address("10.0.0.5"), IPv4Address("10.0.0.1"), IPv4Address(0)


class TestEthernet:
    def test_known_bytes(self) -> None:
        frame = Ethernet(BROADCAST, VM, 0x88B5, b"hello").build()
        assert frame == bytes.fromhex("ffffffffffff52540000000188b5") + b"hello" + bytes(41)

    def test_tagged_known_bytes(self) -> None:
        frame = Ethernet(BROADCAST, VM, 0x88B5, bytes(42), vlan=100).build()
        assert frame[:18] == bytes.fromhex("ffffffffffff5254000000018100006488b5")

    def test_priority_bits_of_the_tag_are_not_part_of_the_vlan_id(self) -> None:
        frame = bytes.fromhex("ffffffffffff5254000000018100e0640800")
        assert parse(frame) == Ethernet(BROADCAST, VM, 0x0800, b"", vlan=100)

    def test_header_alone_is_a_frame(self) -> None:
        assert parse(bytes.fromhex("ffffffffffff5254000000010806")).payload == b""

    @pytest.mark.parametrize("size", [0, 1, 13])
    def test_short(self, size: int) -> None:
        with pytest.raises(FrameError, match=f"{size} bytes: shorter than its header of 14"):
            parse(bytes(size))

    def test_ends_in_the_tag(self) -> None:
        with pytest.raises(FrameError, match="ends within its VLAN tag"):
            parse(bytes.fromhex("ffffffffffff5254000000018100006408"))

    @pytest.mark.parametrize(
        ("frame", "says"),
        [
            (Ethernet(BROADCAST, VM, 0x10000, b""), "does not fit 16 bits"),
            (Ethernet(BROADCAST, VM, 0x0800, b"", vlan=4096), "VLAN id 4096"),
            (Ethernet(BROADCAST, VM, 0x0800, b"", vlan=-1), "VLAN id -1"),
            (Ethernet("ff:ff", VM, 0x0800, b""), "not a MAC address: 'ff:ff'"),
            (Ethernet(BROADCAST, "here", 0x0800, b""), "not a MAC address: 'here'"),
        ],
    )
    def test_values_no_frame_can_carry(self, frame: Ethernet, says: str) -> None:
        with pytest.raises(FrameError, match=says):
            frame.build()


class TestArp:
    def test_request_known_bytes(self) -> None:
        assert arp_request(VM, A, B) == (
            bytes.fromhex("ffffffffffff5254000000010806")
            + bytes.fromhex("00010800060400015254000000010a0000050000000000000a000001")
            + bytes(18)
        )

    def test_request_to_one(self) -> None:
        assert parse(arp_request(VM, A, B, dst=GATEWAY)).dst == GATEWAY

    def test_reply_goes_to_the_asker(self) -> None:
        frame = parse(arp_reply(ARP(ArpOp.REQUEST, VM, A, ZERO_MAC, B), GATEWAY))
        assert (frame.dst, frame.src) == (VM, GATEWAY)
        assert parse_arp(frame.payload) == ARP(ArpOp.REPLY, GATEWAY, B, VM, A)

    @pytest.mark.parametrize(
        ("op", "spa", "tpa", "probe", "announcement"),
        [
            (1, A, B, False, False),
            (1, NOBODY, A, True, False),
            (1, A, A, False, True),
            (2, A, A, False, True),
            (2, NOBODY, A, False, False),
            (1, NOBODY, NOBODY, True, False),
        ],
    )
    def test_probe_and_announcement(
        self, op: int, spa: IPv4Address, tpa: IPv4Address, probe: bool, announcement: bool
    ) -> None:
        arp = ARP(op, VM, spa, ZERO_MAC, tpa)
        assert (arp.is_probe, arp.is_announcement) == (probe, announcement)

    def test_short(self) -> None:
        with pytest.raises(FrameError, match="27 bytes: shorter than 28"):
            parse_arp(ARP(1, VM, A, ZERO_MAC, B).build()[:27])

    @pytest.mark.parametrize(
        ("at", "value", "says"),
        [
            (1, 6, "hardware type 6"),
            (4, 8, "address length 8: not Ethernet"),
            (3, 1, "protocol 0x0801"),
            (5, 16, "address length 16: not IPv4"),
        ],
    )
    def test_of_other_networks(self, at: int, value: int, says: str) -> None:
        body = bytearray(ARP(1, VM, A, ZERO_MAC, B).build())
        body[at] = value
        with pytest.raises(FrameError, match=says):
            parse_arp(bytes(body))

    def test_op_out_of_range(self) -> None:
        with pytest.raises(FrameError, match="operation 65536"):
            ARP(65536, VM, A, ZERO_MAC, B).build()


def fixed(packet: bytes | bytearray) -> bytes:
    """The packet with a right IP header checksum again."""
    changed = bytearray(packet)
    changed[10:12] = b"\0\0"
    changed[10:12] = checksum(bytes(changed[: (changed[0] & 15) * 4])).to_bytes(2, "big")
    return bytes(changed)


class TestUdp:
    packet = build_udp4(A, B, 68, 67, b"payload")

    def test_checksum_of_the_rfc(self) -> None:
        assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2  # RFC 1071 section 3

    def test_computed_zero_is_sent_as_ones(self) -> None:
        """RFC 768: an all-zero transmitted checksum means that the sender made none."""
        plain = build_udp4(NOBODY, NOBODY, 0, 0, b"\0\0")
        rest = int.from_bytes(plain[26:28], "big")
        assert build_udp4(NOBODY, NOBODY, 0, 0, rest.to_bytes(2, "big"))[26:28] == b"\xff\xff"

    def test_padding_is_ignored(self) -> None:
        assert parse_udp4(self.packet + bytes(11)).payload == b"payload"

    def test_ip_options_are_skipped(self) -> None:
        packet = bytearray(self.packet[:20] + bytes((1, 1, 1, 0)) + self.packet[20:])
        packet[0] = 0x46
        packet[3] += 4
        assert parse_udp4(fixed(packet)).payload == b"payload"

    def test_udp_checksum_is_not_asked_for(self) -> None:
        packet = bytearray(self.packet)
        packet[26] ^= 1
        assert parse_udp4(bytes(packet)).payload == b"payload"

    @pytest.mark.parametrize(
        ("at", "value", "says"),
        [
            (0, 0x65, "IP version 6"),
            (0, 0x44, "header length 16"),
            (0, 0x4F, "header length 60"),
            (3, 19, "header length 20 is not between 20 and the total length 19"),
            (3, 36, "total length 36, but the frame carries 35"),
            (3, 27, "UDP of 7 bytes"),
            (3, 34, "UDP length 15, but IPv4 carries 14"),
            (6, 0x20, "fragment"),
            (7, 0x01, "fragment"),
            (9, 6, "protocol 6, not UDP"),
            (25, 16, "UDP length 16, but IPv4 carries 15"),
        ],
    )
    def test_malformed(self, at: int, value: int, says: str) -> None:
        packet = bytearray(self.packet)
        packet[at] = value
        with pytest.raises(FrameError, match=says):
            parse_udp4(fixed(packet))

    def test_wrong_header_checksum(self) -> None:
        packet = bytearray(self.packet)
        packet[8] -= 1
        with pytest.raises(FrameError, match="header checksum is wrong"):
            parse_udp4(bytes(packet))

    def test_short(self) -> None:
        with pytest.raises(FrameError, match="IPv4 of 19 bytes"):
            parse_udp4(self.packet[:19])

    @pytest.mark.parametrize(("sport", "dport", "ttl"), [(65536, 1, 64), (1, -1, 64), (1, 1, 256)])
    def test_numbers_out_of_range(self, sport: int, dport: int, ttl: int) -> None:
        with pytest.raises(FrameError, match="out of range"):
            build_udp4(A, B, sport, dport, b"", ttl)

    def test_payload_too_long(self) -> None:
        with pytest.raises(FrameError, match="do not fit"):
            build_udp4(A, B, 1, 2, bytes(65508))


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (arp_request(VM, A, B), f"{VM} > {BROADCAST} ARP who has 10.0.0.1, says 10.0.0.5 at {VM}"),
        (arp_request(VM, NOBODY, A), f"ARP probe for 10.0.0.5 by {VM}"),
        (arp_request(VM, A, A), f"ARP announcement: 10.0.0.5 is at {VM}"),
        (arp_reply(ARP(1, VM, A, ZERO_MAC, B), GATEWAY), f"ARP 10.0.0.1 is at {GATEWAY}, to 10.0.0.5"),
        (Ethernet(GATEWAY, VM, EtherType.ARP, ARP(3, VM, A, VM, B).build()).build(), "ARP operation 3 from"),
        (Ethernet(GATEWAY, VM, 0x0800, build_udp4(A, B, 5, 6, b"xy"), 7).build(), "VLAN 7 IPv4 10.0.0.5 > "),
        (Ethernet(GATEWAY, VM, 0x0800, build_udp4(A, B, 5, 6, b"xy")).build(), "UDP 5 > 6, 2 bytes"),
        (
            Ethernet(GATEWAY, VM, 0x86DD, bytes((96, 0, 0, 0, 0, 0, 58, 1)) + bytes(32)).build(),
            "IPv6 :: > :: ICMPv6",
        ),
        (Ethernet(GATEWAY, VM, 0x88B5, b"").build(), "type 0x88b5, 46 bytes"),
        (Ethernet(GATEWAY, VM, 0x88CC, b"").build(), "LLDP"),
        (Ethernet(GATEWAY, VM, 40, b"").build(), "802.3"),
        (Ethernet(GATEWAY, VM, 0x0800, b"").build(), "malformed: IP"),
        (b"\0", "shorter than its header"),
    ],
)
def test_summary(frame: bytes, says: str) -> None:
    assert says in summarize(frame)

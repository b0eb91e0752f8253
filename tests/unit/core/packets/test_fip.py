"""FIP: what Linux's libfcoe says is read as it is meant, and what is damaged is rejected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.packets import FrameError
from retinue.core.packets.fip import (
    ADVERTISEMENT,
    FLAG_FORWARDER,
    MOST_DESCRIPTORS,
    REPLY,
    REQUEST,
    SOLICITATION,
    Command,
    Descriptor,
    Fip,
    LinkService,
    Operation,
    mac_descriptor,
    parse_fip,
    vn_port_descriptor,
)

NODE, FORWARDER, GRANTED = "52:54:00:00:00:02", "c2:f2:84:8e:9e:73", "0e:fc:00:01:01:01"
# As captured on a wire with Linux 6.1, after the EtherType.
SAID_BY_LINUX = "1000 0001 0001 0006 8000 0202 5254 0000 0002 0403 0000 1000 5254 0000 0002 0601 086e"
ADVERTISED = (
    "1000 0001 0002 000c 8007 0101 0080 0202 c2f2 848e 9e73 0403 0000 1000 aabb cc00 0001 "
    "0504 0000 000e fc00 1000 aabb cc00 0001 0c02 0000 0000 1f40"
)
ASKED = "1000 0002 0001 0026 8000 0724 0000 22ff fffe 0000 0000 0129 0000 0000 0000 0001 ffff 0000 0000 0400"
ANSWERED = (
    "1000 0002 0002 0026 8000 0724 0000 2301 0101 00ff fffe 0199 0000 0000 0000 0001 ffff 0000 0000 0200"
)


def linux(text: str, mac: str = "") -> bytes:
    """The captured bytes; of a link service the parameters are left out, and the MAC descriptor follows."""
    found = bytes.fromhex(text)
    if not mac:
        return found
    return found.ljust(10 + 0x24 * 4, b"\0") + bytes.fromhex("0202" + mac.replace(":", ""))


def test_what_a_node_of_linux_says_is_read() -> None:
    said = parse_fip(linux(SAID_BY_LINUX))
    assert (said.operation, said.subcode, said.mac) == (Operation.DISCOVERY, SOLICITATION, NODE)
    assert [kind for kind, _ in said.descriptors] == [Descriptor.MAC, Descriptor.NAME, 6]
    assert said.service is None and said.ports == ()
    assert said.build() == linux(SAID_BY_LINUX)
    asked = parse_fip(linux(ASKED, "00:00:00:00:00:00"))
    assert (asked.operation, asked.subcode) == (Operation.LINK_SERVICE, REQUEST)
    assert asked.service == LinkService(Descriptor.FLOGI, Command.FLOGI, 0xFFFFFE, 0, 1)


def test_what_a_forwarder_says_is_read() -> None:
    said = parse_fip(linux(ADVERTISED) + bytes(900))  # Padded, to try the way's MTU.
    assert (said.operation, said.subcode, said.mac) == (Operation.DISCOVERY, ADVERTISEMENT, FORWARDER)
    assert said.flags & FLAG_FORWARDER
    answer = parse_fip(linux(ANSWERED, GRANTED))
    assert (answer.subcode, answer.mac) == (REPLY, GRANTED)
    assert answer.service == LinkService(Descriptor.FLOGI, Command.ACCEPT, 0x010101, 0xFFFFFE, 1)


def test_what_is_built_is_read() -> None:
    service = LinkService(Descriptor.LOGO, Command.LOGO, 0xFFFFFE, 0x010102, 77)
    ports = (vn_port_descriptor(GRANTED), vn_port_descriptor("0e:fc:00:01:01:02"))
    made = Fip(2, 1, 0x8000, ((Descriptor.LOGO, service.build()), mac_descriptor(NODE), *ports))
    read = parse_fip(made.build() + bytes(7))
    assert (read.service, read.mac) == (service, NODE)
    assert read.ports == (GRANTED, "0e:fc:00:01:01:02")


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (b"", "shorter than its header"),
        (bytes(10), "version 0"),
        (linux(SAID_BY_LINUX)[:-1], "are there"),
        (bytes.fromhex("1000 0001 0001 0001 8000 0200 0000"), "does not fit"),
        (bytes.fromhex("1000 0001 0001 0001 8000 0202 0000"), "does not fit"),
        (bytes.fromhex("1000 0001 0001 0001 8000 0201 0000"), "without a MAC"),
        (Fip(1, 1, 0, ((99, b""),) * (MOST_DESCRIPTORS + 1)).build(), "too many"),
    ],
)
def test_what_is_damaged_is_rejected(damaged: bytes, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        parse_fip(damaged)


def test_a_link_service_or_port_that_is_cut_off_is_rejected() -> None:
    with pytest.raises(FrameError, match="cut off"):
        _ = parse_fip(Fip(2, 1, 0, ((Descriptor.FLOGI, bytes(22)),)).build()).service
    with pytest.raises(FrameError, match="cut off"):
        _ = parse_fip(Fip(3, 2, 0, ((Descriptor.VN_PORT, b"\0\0"),)).build()).ports
    with pytest.raises(FrameError, match="too long"):
        Fip(1, 1, 0, ((13, bytes(1020)),)).build()


@given(st.binary(max_size=200), st.sampled_from([b"", linux(ASKED, GRANTED)[:60]]))
def test_whatever_comes_is_read_or_rejected(tail: bytes, head: bytes) -> None:
    try:
        said = parse_fip(head + tail)
        _ = said.service, said.ports, said.mac
    except FrameError:
        return
    assert len(said.descriptors) <= MOST_DESCRIPTORS

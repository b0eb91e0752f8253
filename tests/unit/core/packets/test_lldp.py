"""LLDP: what a leaf says of the gateway, as we and scapy read it; what is damaged or contradicts itself."""

from collections.abc import Callable

import pytest
from scapy.contrib.lldp import (
    LLDPDUChassisID,
    LLDPDUEndOfLLDPDU,
    LLDPDUGenericOrganisationSpecific,
    LLDPDUPortID,
    LLDPDUSystemName,
    LLDPDUTimeToLive,
)
from scapy.layers.l2 import Ether

from retinue.core.limits import MOST_TLVS
from retinue.core.packets import FrameError, parse
from retinue.core.packets.lldp import (
    EVB_OUI,
    EVB_SUBTYPE,
    GATEWAY_OUI,
    GATEWAY_SUBTYPE,
    NEAREST_BRIDGE,
    EvbMode,
    Lldp,
    Organizational,
    from_leaf,
    lldp_frame,
    parse_lldp,
    probe_frame,
)

MAC = "00:00:de:ad:be:ef"
SAID = from_leaf("leaf1", "leaf1-server1", MAC, 121)
GATEWAY = Organizational(GATEWAY_OUI, GATEWAY_SUBTYPE, bytes.fromhex("0000deadbeef"))
HEAD = Lldp(b"\x07leaf1", b"\x07p1", 121).build()[:-2]


def test_what_a_leaf_says_is_read_back() -> None:
    read = parse_lldp(parse(lldp_frame(SAID, MAC)).payload)
    assert read == SAID, "padding after the end is no part of it"
    assert (read.gateway_mac, read.evb_mode, read.ttl) == (MAC, EvbMode.BRIDGE, 121)
    assert parse(lldp_frame(SAID, MAC)).dst == NEAREST_BRIDGE


def test_scapy_reads_what_we_write() -> None:
    frame = Ether(lldp_frame(SAID, MAC))
    assert frame.type == 0x88CC
    assert frame[LLDPDUChassisID].id == b"leaf1"
    assert frame[LLDPDUTimeToLive].ttl == 121
    evb = frame[LLDPDUGenericOrganisationSpecific]
    own = evb.payload[LLDPDUGenericOrganisationSpecific]
    assert (evb.org_code, evb.subtype) == (0x0080C2, 0x0D)
    assert (own.org_code, own.subtype, own.data) == (0x52544E, 1, bytes.fromhex("0000deadbeef"))


def test_we_read_what_scapy_writes() -> None:
    said = (
        Ether(dst=NEAREST_BRIDGE, src="02:00:00:00:00:01")
        / LLDPDUChassisID(subtype=4, id="02:00:00:00:00:01")
        / LLDPDUPortID(subtype=5, id=b"swp1")
        / LLDPDUTimeToLive(ttl=120)
        / LLDPDUSystemName(system_name=b"tor")
        / LLDPDUGenericOrganisationSpecific(org_code=0x52544E, subtype=1, data=bytes.fromhex("02005e000701"))
        / LLDPDUEndOfLLDPDU()
    )
    read = parse_lldp(parse(bytes(said)).payload)
    assert (read.gateway_mac, read.evb_mode, read.ttl) == ("02:00:5e:00:07:01", None, 120)
    assert (read.chassis_id, read.port_id) == (b"\x04" + bytes.fromhex("020000000001"), b"\x05swp1")


def test_of_nothing_said_there_is_nothing() -> None:
    other = Organizational(b"\x00\x12\x0f", 1, b"\x00\x00\x00\x00\x00")
    read = parse_lldp(Lldp(b"\x07a", b"\x07b", 1, (other,)).build())
    assert (read.gateway_mac, read.evb_mode) == (None, None)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "does not begin with"),
        (b"\0\0", "does not begin with"),
        (HEAD[:-1], "ends within a TLV of type 3"),
        (HEAD + b"\xfe", "within the header"),
        (HEAD + b"\xfe\x09\x52", "ends within a TLV of type 127"),
        (HEAD + b"\0\x01\0", "has a value"),
        (HEAD + b"\xfe\x03\x52\x54\x4e", "without its OUI and subtype"),
        (HEAD + HEAD[:8], "twice"),
        (HEAD[8:] + HEAD[:8], "does not begin with"),
        (b"\x02\x01\x07" + HEAD[8:], "chassis id of 1 bytes"),
        (HEAD[:-4] + b"\x06\x01\x09", "time to live of 1 bytes"),
        (HEAD + b"\x0a\x00" * MOST_TLVS, "more than"),
    ],
)
def test_what_is_damaged_is_no_lldp(data: bytes, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        parse_lldp(data)


def with_(*own: Organizational) -> Lldp:
    return parse_lldp(Lldp(b"\x07a", b"\x07b", 1, own).build())


@pytest.mark.parametrize("info", [b"", bytes(5), bytes(7), bytes(6), b"\x01\0\0\0\0\x01", b"\xff" * 6])
def test_what_is_no_gateways_mac(info: bytes) -> None:
    with pytest.raises(FrameError, match="gateway"):
        _ = with_(Organizational(GATEWAY_OUI, GATEWAY_SUBTYPE, info)).gateway_mac


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (with_(GATEWAY, GATEWAY), lambda one: one.gateway_mac),
        (with_(Organizational(EVB_OUI, EVB_SUBTYPE, bytes(4))), lambda one: one.evb_mode),
        (with_(*[Organizational(EVB_OUI, EVB_SUBTYPE, bytes(5))] * 2), lambda one: one.evb_mode),
    ],
)
def test_what_contradicts_itself(said: Lldp, what: Callable[[Lldp], object]) -> None:
    with pytest.raises(FrameError):
        what(said)


def test_what_does_not_fit_is_not_written() -> None:
    for wrong in (Lldp(bytes(600), b"\x07b", 1), Lldp(b"\x07a", b"\x07b", 1 << 16)):
        with pytest.raises(FrameError):
            wrong.build()


def test_a_probe_tells_nobody_how_another_one_looks() -> None:
    """Servers see those of their own uplinks, and count as well as the controller does."""
    secret = bytes(range(100, 116))
    seen = probe_frame("edge1", "up0", secret, 7, "00:00:de:ad:be:ef")
    assert secret not in seen
    assert seen == probe_frame("edge1", "up0", secret, 7, "00:00:de:ad:be:ef")
    for switch, port, number in (("edge2", "up0", 7), ("edge1", "up1", 7), ("edge1", "up0", 8)):
        other = probe_frame(switch, port, secret, number, "00:00:de:ad:be:ef")
        assert len(other) == len(seen)
        guessed = seen.replace(b"edge1", switch.encode()).replace(b"up0", port.encode())
        assert other != guessed.replace((7).to_bytes(8, "big"), number.to_bytes(8, "big"))
    assert seen != probe_frame("edge1", "up0", bytes(16), 7, "00:00:de:ad:be:ef")

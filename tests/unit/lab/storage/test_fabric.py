"""The laboratory's forwarder: logins, names, and frames that go on."""

import contextlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.packets import FrameError, mac_bytes, parse
from retinue.core.packets.fip import ALL_ENODES, ALL_FORWARDERS, Operation, parse_fip
from retinue.core.snooping.fip_rules import FipRules, Granted, Passed
from retinue_lab.storage import fabric as module
from retinue_lab.storage.fabric import LONGEST, SCR, Fabric
from retinue_lab.storage.frames import (
    ACCEPT,
    DIRECTORY,
    FABRIC_CONTROLLER,
    NOT_THERE,
    UNSUPPORTED,
    FcFrame,
    RCtl,
    Type,
    parse_storage,
    registered_change,
)
from support.fabric.storage import FORWARDER, FORWARDER_MAC

ONE, TWO = "52:54:00:00:00:01", "52:54:00:00:00:02"
FIRST, SECOND = 0x010101, 0x010102
RFT_ID, GPN_FT, GID_FT, GPN_ID, GNN_ID, RSPN_ID, GA_NXT = (
    *(0x0217, 0x0172, 0x0171, 0x0112, 0x0113, 0x0218, 0x0100),
)  # fmt: skip
# What Linux 6.1 says, after the EtherType; {mac} is the node's. Some of the login's parameters are 0 here.
SOLICITATION = "1000 0001 0001 0006 8000 0202 {mac} 0403 0000 1000 {mac} 0601 086e"
LOGIN = (
    "1000 0002 0001 0026 8000 0724 0000 22ff fffe 0000 0000 0129 0000 0000 0000 0001 ffff 0000 0000 "
    "0400 0000 2020 000a 8000 0840 0000 0000 0000 0000 2000 {mac} 1000 {mac}"
)


def fip(node: str, text: str, dst: str = FORWARDER_MAC) -> bytes:
    return (
        mac_bytes(dst) + mac_bytes(node) + b"\x89\x14" + bytes.fromhex(text.format(mac=node.replace(":", "")))
    )


def login(node: str) -> bytes:
    """Padded to what its descriptors are told to have, with a MAC descriptor of zeros."""
    return fip(node, LOGIN)[:].ljust(14 + 10 + 0x24 * 4, b"\0") + b"\x02\x02" + bytes(6)


def logout(node: str, fc_id: int) -> bytes:
    asked = FcFrame(RCtl.LINK_REQUEST, 0xFFFFFE, fc_id, Type.LINK_SERVICE, 1, b"\x05\0\0\0" + bytes(12))
    body = asked.build()
    words = (2 + 2 + len(body)) // 4
    head = bytes.fromhex("1000 0002 0001") + words.to_bytes(2, "big") + b"\x80\0"
    return fip(node, "") + head + bytes([9, words, 0, 0]) + body


def from_port(fc_id: int, asked: FcFrame) -> bytes:
    return asked.on_wire(f"0e:fc:00:{fc_id.to_bytes(3, 'big').hex(':')}", FORWARDER_MAC)


def asks(fc_id: int, to: int, data: bytes) -> bytes:
    return from_port(fc_id, FcFrame(RCtl.LINK_REQUEST, to, fc_id, Type.LINK_SERVICE, 7, data))


def names(fc_id: int, command: int, about: int, service: int = 0xFC) -> bytes:
    preamble = b"\x01\0\0\0" + bytes([service, 2, 0, 0]) + command.to_bytes(2, "big") + bytes(6)
    data = preamble + about.to_bytes(4, "big")
    return from_port(fc_id, FcFrame(RCtl.REQUEST_DATA, DIRECTORY, fc_id, Type.COMMON_TRANSPORT, 9, data))


def told(answers: list[bytes]) -> bytes:
    """What the name server answers, after its preamble; None as one byte is a reject."""
    (answer,) = (parse_storage(frame) for frame in answers)
    assert (answer.r_ctl, answer.exchange) == (RCtl.ANSWER_DATA, 9)
    return answer.data[8:10] + answer.data[16:]


@pytest.fixture
def fabric() -> Fabric:
    """With both nodes logged in."""
    made = Fabric(FORWARDER_MAC)
    made.received(login(ONE))
    made.received(login(TWO))
    return made


def test_who_asks_is_told_by_the_longest_frame_and_all_by_a_short_one() -> None:
    fabric = Fabric(FORWARDER_MAC)
    (found,) = fabric.received(fip(ONE, SOLICITATION, ALL_FORWARDERS))
    assert (parse(found).dst, parse(found).src, len(found)) == (ONE, FORWARDER_MAC, LONGEST)
    said = parse_fip(parse(found).payload)
    assert (said.operation, said.subcode, said.flags, said.mac) == (1, 2, 0x8007, FORWARDER_MAC)
    to_all = fabric.advertisement()
    assert parse(to_all).dst == ALL_ENODES and len(to_all) < 100
    assert parse_fip(parse(to_all).payload).flags == 0x8005


def test_the_controllers_rules_take_its_grants_for_what_they_are() -> None:
    """Each node gets an address of its own, and the same again."""
    fabric, rules = Fabric(FORWARDER_MAC), FipRules()
    for node, mac in ((ONE, "0e:fc:00:01:01:01"), (TWO, "0e:fc:00:01:01:02"), (ONE, "0e:fc:00:01:01:01")):
        asked = login(node)
        said = parse_fip(parse(asked).payload)
        passed = rules.from_node(node, node, FORWARDER_MAC, said, (), {FORWARDER_MAC: FORWARDER}, 0.0)
        assert passed == Passed(FORWARDER_MAC)
        (answer,) = fabric.received(asked)
        verdict = rules.from_forwarder(
            FORWARDER, FORWARDER_MAC, node, parse_fip(parse(answer).payload), "vm", (), 1.0
        )
        assert isinstance(verdict, Granted) and verdict.login.mac == mac
    assert fabric.ports[FIRST].wwpn.hex(":") == f"20:00:{ONE}"


def test_addresses_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PORTS", 1)
    fabric = Fabric(FORWARDER_MAC)
    assert fabric.received(login(ONE))
    with pytest.raises(FrameError, match="no address is left"):
        fabric.received(login(TWO))
    assert fabric.received(login(ONE)), "that one has its own"


def test_a_frame_goes_on_to_the_port_it_is_for_with_other_macs_and_no_more(fabric: Fabric) -> None:
    sent = from_port(FIRST, FcFrame(0x06, SECOND, FIRST, 0x08, 5, b"command " * 4))
    assert fabric.received(sent) == [mac_bytes("0e:fc:00:01:01:02") + mac_bytes(FORWARDER_MAC) + sent[12:]]


def test_a_frame_in_anothers_name_goes_nowhere(fabric: Fabric) -> None:
    frame = FcFrame(0x06, SECOND, FIRST, 0x08, 5, b"")
    for src, dst in (("0e:fc:00:01:01:02", FORWARDER_MAC), ("0e:fc:00:01:01:01", TWO)):
        with pytest.raises(FrameError, match="not the MAC of port 010101"):
            fabric.received(frame.on_wire(src, dst))
    fabric.received(logout(ONE, FIRST))
    with pytest.raises(FrameError, match="not the MAC of port 010101"):
        fabric.received(from_port(FIRST, frame))


def test_link_services_of_the_fabric_are_answered(fabric: Fabric) -> None:
    for command, wanted in (
        (0x03, b"\x02"),
        (SCR, ACCEPT),
        (0x05, ACCEPT),
        (0x10, ACCEPT),
        (0x52, UNSUPPORTED),
    ):
        (answer,) = fabric.received(asks(FIRST, FABRIC_CONTROLLER, bytes([command]) + bytes(115)))
        found = parse_storage(answer)
        assert (found.r_ctl, found.d_id, found.s_id) == (RCtl.LINK_ANSWER, FIRST, FABRIC_CONTROLLER)
        assert found.exchange == 7 and found.data.startswith(wanted)
        assert parse(answer).dst == "0e:fc:00:01:01:01"
    (answer,) = fabric.received(asks(FIRST, DIRECTORY, b"\x03" + bytes(115)))
    assert len(parse_storage(answer).data) == 116, "service parameters"
    with pytest.raises(FrameError, match="not the MAC of port 010109"):
        fabric.received(asks(0x010109, DIRECTORY, b"\x03" + bytes(115)))


def test_nobody_answers_for_a_port_that_is_not_there(fabric: Fabric) -> None:
    fabric.received(logout(TWO, SECOND))
    (answer,) = fabric.received(asks(FIRST, SECOND, b"\x03" + bytes(115)))
    found = parse_storage(answer)
    assert (found.r_ctl, found.s_id, found.data) == (RCtl.LINK_ANSWER, SECOND, NOT_THERE)
    assert fabric.received(from_port(FIRST, FcFrame(0x06, SECOND, FIRST, 0x08, 5, bytes(32)))) == []


def test_the_name_server_knows_who_has_registered(fabric: Fabric) -> None:
    reject, accept = b"\x80\x01", b"\x80\x02"
    assert told(fabric.received(names(FIRST, GPN_FT, 0x08))) == reject, "nobody yet"
    for port in (FIRST, SECOND):
        assert told(fabric.received(names(port, RFT_ID, port))) == accept
    one, two = (bytes.fromhex("2000" + node.replace(":", "")) for node in (ONE, TWO))
    listed = b"\0\x01\x01\x01" + bytes(4) + one + b"\x80\x01\x01\x02" + bytes(4) + two
    assert told(fabric.received(names(FIRST, GPN_FT, 0x08))) == accept + listed
    assert told(fabric.received(names(FIRST, GID_FT, 0x08))) == accept + bytes.fromhex("00010101 80010102")
    assert told(fabric.received(names(FIRST, GPN_ID, SECOND))) == accept + two
    assert told(fabric.received(names(FIRST, GNN_ID, SECOND))) == accept + b"\x10" + two[1:]
    assert told(fabric.received(names(FIRST, GPN_ID, 0x010109))) == reject
    assert told(fabric.received(names(FIRST, RSPN_ID, FIRST))) == accept
    assert told(fabric.received(names(FIRST, GA_NXT, FIRST))) == reject
    assert told(fabric.received(names(FIRST, RFT_ID, FIRST, service=0xFA))) == reject, "of another service"
    with pytest.raises(FrameError, match="cut off"):
        cut = FcFrame(RCtl.REQUEST_DATA, DIRECTORY, FIRST, Type.COMMON_TRANSPORT, 9, b"\x01\0\0\0")
        fabric.received(from_port(FIRST, cut))


def test_those_that_wish_are_told_who_came_and_who_went(fabric: Fabric) -> None:
    fabric.received(asks(FIRST, FABRIC_CONTROLLER, bytes([SCR]) + bytes(7)))
    assert len(fabric.received(names(FIRST, RFT_ID, FIRST))) == 1, "not of itself"
    _, change = fabric.received(names(SECOND, RFT_ID, SECOND))
    found = parse_storage(change)
    assert (found.d_id, found.s_id, found.data) == (FIRST, FABRIC_CONTROLLER, registered_change(SECOND))
    assert len(fabric.received(names(SECOND, RFT_ID, SECOND))) == 1, "nothing new"
    change, answer = fabric.received(logout(TWO, SECOND))
    assert parse_storage(change).data == registered_change(SECOND)
    assert parse_fip(parse(answer).payload).operation == Operation.LINK_SERVICE
    assert fabric.received(logout(TWO, SECOND)) == []
    assert fabric.received(login(TWO))
    assert len(fabric.received(names(SECOND, RFT_ID, SECOND))) == 2, "it has come again"


def test_what_is_for_others_is_left(fabric: Fabric) -> None:
    assert fabric.received(mac_bytes(FORWARDER_MAC) + mac_bytes(ONE) + b"\x08\0" + bytes(46)) == []


@given(st.binary(max_size=200), st.sampled_from([b"\x89\x06", b"\x89\x14"]))
def test_what_is_damaged_is_rejected(data: bytes, ethertype: bytes) -> None:
    fabric = Fabric(FORWARDER_MAC)
    fabric.received(login(ONE))
    for head in (b"", mac_bytes(FORWARDER_MAC) + mac_bytes("0e:fc:00:01:01:01") + ethertype):
        with contextlib.suppress(FrameError):
            fabric.received(head + data)


def test_the_check_sequence_is_behind_header_and_data(fabric: Fabric) -> None:
    (answer,) = fabric.received(names(FIRST, RFT_ID, FIRST))
    body, check = answer[28:-8], answer[-8:-4]
    assert check == zlib.crc32(body).to_bytes(4, "little")

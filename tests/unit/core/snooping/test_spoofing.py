"""The log of spoofing attempts: what is one row, what is read of a frame, and what is forgotten first."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from retinue.core.model.link_local import ALL_NODES
from retinue.core.packets import ND, NDOptions, NeighbourAdvertisement, nd_frame
from retinue.core.snooping import SpoofingLog
from retinue.core.snooping.spoofing import (
    MAX_ROWS,
    MOST_ROWS_OF_A_PORT,
    SpoofAttempt,
    SpoofingKind,
    interpret,
)
from support.fabric import ipv6
from support.fabric.networks import GATEWAY_MAC, vm_ip, vm_mac
from support.fabric.world import udp_frame

KIND, OTHER = list(SpoofingKind)[:2]
CLAIM = (vm_mac(2), str(vm_ip(2)))


def test_the_same_once_more_is_counted_and_anything_else_is_another_row() -> None:
    log = SpoofingLog()
    first = log.note(KIND, "edge1", 10, "vm1", CLAIM, 5.0)
    assert first == SpoofAttempt(KIND, "edge1", 10, "vm1", *CLAIM, count=1, first=5.0, last=5.0)
    again = log.note(KIND, "edge1", 10, "vm7", CLAIM, 8.0)
    assert again == SpoofAttempt(KIND, "edge1", 10, "vm7", *CLAIM, count=2, first=5.0, last=8.0)
    for other in (
        (OTHER, "edge1", 10, "vm7", CLAIM), (KIND, "edge2", 10, "vm7", CLAIM),
        (KIND, "edge1", 11, "vm7", CLAIM),
        (KIND, "edge1", 10, "vm7", (vm_mac(3), CLAIM[1])), (KIND, "edge1", 10, "vm7", (CLAIM[0], "")),
    ):  # fmt: skip
        assert log.note(*other, 9.0).count == 1
    assert (len(log.rows()), log.total) == (6, 7)
    assert (log.of_vm("vm7"), log.of_vm("vm1")) == (7, 0)


def test_what_was_not_seen_for_longest_is_forgotten_and_still_counted() -> None:
    log = SpoofingLog()
    for number in range(MAX_ROWS):
        log.note(KIND, "edge1", number, "vm1", CLAIM, 1.0)
    log.note(KIND, "edge1", 0, "vm1", CLAIM, 2.0)
    assert len(log.rows()) == MAX_ROWS
    log.note(KIND, "edge2", 0, "vm1", CLAIM, 3.0)
    ports = {row.port for row in log.rows() if row.switch == "edge1"}
    assert (len(log.rows()), 0 in ports, 1 in ports) == (MAX_ROWS, True, False)
    assert log.total == MAX_ROWS + 2


def test_a_port_pushes_out_its_own_rows_and_nobody_elses() -> None:
    """A VM that invents an address for each frame does not hide what another has done."""
    log = SpoofingLog()
    log.note(KIND, "edge1", 1, "vm1", CLAIM, 1.0)
    for number in range(3 * MOST_ROWS_OF_A_PORT):
        log.note(KIND, "edge1", 2, "vm2", (vm_mac(2), f"10.9.{number // 250}.{number % 250}"), 2.0 + number)
    assert [row.vm for row in log.rows("vm1")] == ["vm1"]
    assert len(log.rows("vm2")) == MOST_ROWS_OF_A_PORT
    assert log.rows("vm2")[-1].last == 1.0 + 3 * MOST_ROWS_OF_A_PORT
    one, two = log.ports()
    assert (one.vm, one.count, one.rows) == ("vm1", 1, 1)
    assert (two.vm, two.count, two.rows) == ("vm2", 3 * MOST_ROWS_OF_A_PORT, MOST_ROWS_OF_A_PORT)
    assert (two.kinds, two.first) == ({KIND: two.count}, 2.0)
    assert log.of_vm("vm2") == two.count and log.ports("vm1") == [one]


def test_many_ports_share_the_log() -> None:
    """Whoever has most gives way."""
    log = SpoofingLog()
    log.note(KIND, "edge9", 9, "quiet", CLAIM, 0.0)
    for port in range(MAX_ROWS // MOST_ROWS_OF_A_PORT + 10):
        for number in range(MOST_ROWS_OF_A_PORT):
            log.note(KIND, "edge1", port, f"vm{port}", (vm_mac(2), f"10.9.0.{number}"), 1.0 + number)
    kept = [port.rows for port in log.ports()]
    assert sum(kept) == len(log.rows()) == MAX_ROWS
    assert [row.vm for row in log.rows("quiet")] == ["quiet"]
    assert min(kept[1:]) >= MOST_ROWS_OF_A_PORT // 2


IPV4 = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(2), vm_ip(3))
IPV6 = ipv6.udp6_frame(vm_mac(1), GATEWAY_MAC, ipv6.vm_ip6(2), ipv6.vm_ip6(3))

QUESTION = nd_frame(ipv6.asks(ipv6.vm_ip6(2), ipv6.vm_ip6(3), vm_mac(4)), vm_mac(1))


def advertisement(mac: str | None) -> bytes:
    said = NeighbourAdvertisement(
        ipv6.vm_ip6(2), router=False, solicited=False, override=True, options=NDOptions(target_mac=mac)
    )
    return nd_frame(ND(ipv6.vm_ip6(3), ALL_NODES, said), vm_mac(1))


@pytest.mark.parametrize(
    ("frame", "claims"),
    [
        (IPV4, (vm_mac(1), str(vm_ip(2)))),
        (IPV4[: 14 + 20], (vm_mac(1), str(vm_ip(2)))),
        (IPV4[: 14 + 19], (vm_mac(1), "")),
        (IPV6, (vm_mac(1), str(ipv6.vm_ip6(2)))),
        (IPV6[: 14 + 40], (vm_mac(1), str(ipv6.vm_ip6(2)))),
        (IPV6[: 14 + 39], (vm_mac(1), "")),
        (advertisement(vm_mac(4)), (vm_mac(4), str(ipv6.vm_ip6(2)))),
        (advertisement(None), (vm_mac(1), str(ipv6.vm_ip6(2)))),
        (QUESTION, (vm_mac(4), str(ipv6.vm_ip6(2)))),
        (IPV4[:10], ("", "")),
        (b"", ("", "")),
        (IPV4[:12] + b"\x08\x06" + b"short", (vm_mac(1), "")),
        (IPV4[:12] + b"\x12\x34" + IPV4[14:], (vm_mac(1), "")),
    ],
)  # fmt: skip
def test_what_a_frame_claims_as_far_as_it_can_be_read(frame: bytes, claims: tuple[str, str]) -> None:
    assert interpret(frame) == claims
    assert not claims[1] or (IPv4Address if "." in claims[1] else IPv6Address)(claims[1])

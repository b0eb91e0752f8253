"""Addresses of IPv6 that follow from MACs, and back; numbers by hand (RFC 4291, appendix A; RFC 2464, 7)."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from retinue.core.model.link_local import group_mac, is_link_local, link_local, mac_of, solicited_node

MAC = "34:56:78:9a:bc:de"


def test_an_address_follows_from_a_mac_and_the_mac_from_the_address() -> None:
    assert link_local(MAC) == IPv6Address("fe80::3656:78ff:fe9a:bcde")
    assert link_local("02:00:00:00:00:01") == IPv6Address("fe80::ff:fe00:1")
    assert mac_of(IPv6Address("fe80::3656:78ff:fe9a:bcde")) == MAC
    assert mac_of(IPv6Address("2001:db8:1:ffff:3656:78ff:fe9a:bcde")) == MAC, "whatever its network is"


@pytest.mark.parametrize(
    "address",
    ["fe80::3656:78ff:fe9b:bcde", "fe80::3656:78fe:fe9a:bcde", "fe80::3656:78ff:ff9a:bcde", "fe80::1", "::"],
)
def test_of_other_identifiers_no_mac_follows_that_is_another_addresss(address: str) -> None:
    found = mac_of(IPv6Address(address))
    assert found != MAC
    assert (
        found is None or int(link_local(found)) & (1 << 64) - 1 == int(IPv6Address(address)) & (1 << 64) - 1
    )


def test_groups() -> None:
    assert solicited_node(IPv6Address("2001:db8::1:2ab:cdef")) == IPv6Address("ff02::1:ffab:cdef")
    assert group_mac(IPv6Address("ff02::1:ffab:cdef")) == "33:33:ff:ab:cd:ef"


def test_link_local_is_fe80_and_nothing_else() -> None:
    for address, its in (("fe80::1", True), ("febf::1", True), ("fec0::1", False), ("fd00::1", False)):
        assert is_link_local(IPv6Address(address)) == its, address
    assert not is_link_local(IPv4Address("169.254.0.1"))

"""IPv6 addresses that everybody can work out: link-local ones, groups, and the MACs of groups.

A NIC's link-local address follows from its MAC (RFC 4291, appendix A), and so does the gateway's: it need not
be registered, and two NICs never have the same.
"""

from ipaddress import IPv6Address, IPv6Network

from retinue.core.model.addresses import IP, Mac, mac_from_int, mac_to_int

UNSPECIFIED = IPv6Address(0)
"""Source of who has no address yet (RFC 4291, 2.5.2)."""
LINK_LOCAL = IPv6Network("fe80::/10")
MULTICAST = IPv6Network("ff00::/8")
ALL_NODES = IPv6Address("ff02::1")
ALL_ROUTERS = IPv6Address("ff02::2")

_UNIVERSAL = 1 << 57
"""The bit of an interface identifier that a MAC has the other way round (RFC 4291, appendix A)."""
_IDENTIFIER = (1 << 64) - 1
_SOLICITED = int(IPv6Address("ff02::1:ff00:0"))


def link_local(mac: Mac) -> IPv6Address:
    """The link-local address that follows from a MAC: fe80::, and its modified EUI-64."""
    number = mac_to_int(mac)
    identifier = (number >> 24) << 40 | 0xFFFE << 24 | number & 0xFF_FFFF
    return IPv6Address(int(LINK_LOCAL.network_address) | identifier ^ _UNIVERSAL)


def mac_of(address: IPv6Address) -> Mac | None:
    """The MAC that the last 64 bits of an address follow from; None where they were chosen otherwise."""
    identifier = int(address) & _IDENTIFIER
    mac = mac_from_int((identifier ^ _UNIVERSAL) >> 40 << 24 | identifier & 0xFF_FFFF)
    return mac if int(link_local(mac)) & _IDENTIFIER == identifier else None


def is_link_local(address: IP) -> bool:
    return isinstance(address, IPv6Address) and address in LINK_LOCAL


def solicited_node(address: IPv6Address) -> IPv6Address:
    """The group in which an address's holder is asked for (RFC 4291, 2.7.1)."""
    return IPv6Address(_SOLICITED | int(address) & 0xFF_FFFF)


def group_mac(group: IPv6Address) -> Mac:
    """The MAC to which a multicast packet is sent (RFC 2464, 7)."""
    return mac_from_int(0x3333 << 32 | int(group) & 0xFFFF_FFFF)


__all__ = [
    "ALL_NODES",
    "ALL_ROUTERS",
    "LINK_LOCAL",
    "MULTICAST",
    "UNSPECIFIED",
    "group_mac",
    "is_link_local",
    "link_local",
    "mac_of",
    "solicited_node",
]

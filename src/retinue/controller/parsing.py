"""Ports, addresses, prefixes and subnets from what people write, in the configuration file or by REST."""

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

from retinue.core.model import IP, ModelError, PortRef, Subinterface, Subnet
from retinue.core.text import quoted


def port_ref(text: str) -> PortRef:
    """Read "leaf1:leaf1-spine1"; raises ModelError."""
    switch, _, port = text.partition(":")
    if not switch or not port:
        raise ModelError(f"not a port: {quoted(text)} (expected SWITCH:PORT, such as leaf1:leaf1-spine1)")
    return PortRef(switch, port)


def address(text: str) -> IP:
    """Read an IP address; raises ModelError."""
    try:
        if "%" in text:
            raise ValueError("an address with a zone")  # Only its own host knows what the zone's name means.
        return ip_address(text)
    except ValueError as error:
        raise ModelError(f"not an IP address: {quoted(text)}") from error


def network(text: str) -> IPv4Network | IPv6Network:
    """Read a prefix such as 10.1.0.0/24; raises ModelError."""
    try:
        if "%" in text:
            raise ValueError(f"{quoted(text)} has a zone")
        return ip_network(text)
    except ValueError as error:
        raise ModelError(f"not an IP prefix: {error}") from error


def subnet(
    id: str,
    prefix: str,
    gateway: str,
    dhcp: Collection[str],
    vnet: str,
    pools: Collection[str] = (),
    slaac: bool = False,
    dhcp6: bool = False,
) -> Subnet:
    """A subnet from what people write, here or by REST; raises ModelError."""
    at = address(gateway)
    servers: list[IPv4Address] = []
    for text in dhcp:
        server = address(text)
        if not isinstance(server, IPv4Address):
            raise ModelError(
                f"subnet {id}: a DHCP server is named by its IPv4 address, not by {quoted(text)}"
            )
        servers.append(server)
    inside = network(prefix)
    if "/" not in prefix:
        raise ModelError(f"subnet {id}: {quoted(prefix)} has no length, as 10.1.0.0/24 has")
    ranges = tuple(_pool(id, inside, text) for text in pools)
    return Subnet(id, inside, at, dhcp=tuple(servers), dhcp_pools=ranges, vnet=vnet, slaac=slaac, dhcp6=dhcp6)


def subinterface(vrf: str, vlan: int, routes: Collection[str], own: str) -> Subinterface:
    """A router's interface in a VRF; raises ModelError."""
    return Subinterface(vrf, vlan, tuple(map(network, routes)), address(own) if own else None)


def _pool(subnet: str, prefix: IPv4Network | IPv6Network, text: str) -> tuple[IP, IP]:
    first, dash, last = text.partition("-")
    if not dash:
        raise ModelError(f"subnet {subnet}: dhcp_pools has {quoted(text)}, not FIRST-LAST")
    ends = address(first.strip()), address(last.strip())
    if ends[0] not in prefix or ends[1] not in prefix or int(ends[0]) > int(ends[1]):
        raise ModelError(f"subnet {subnet}: the pool {quoted(text)} is no range inside {prefix}")
    return ends

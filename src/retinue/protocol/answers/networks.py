"""Gateway groups, VRFs, vnets, subnets and pairs, as answers."""

import msgspec

from retinue.core.model import Flood


class ShownGatewayGroup(msgspec.Struct):
    id: str
    mac: str
    default: bool
    servers: list[str]
    configured: bool


class GatewayGroups(msgspec.Struct):
    groups: list[ShownGatewayGroup]


class AllGatewayGroups(GatewayGroups):
    gateway_mac: str


class ShownVrf(msgspec.Struct):
    id: str
    tag: int
    vnets: list[str]
    routers: list[str]
    """Those that are its way out."""
    used: int
    configured: bool


class AllVrfs(msgspec.Struct):
    vrfs: list[ShownVrf]


class FloodedFrames(msgspec.Struct):
    frames: int
    dropped: int


class ShownVnet(msgspec.Struct):
    id: str
    vlan: int
    mtu: int
    vrf: str
    isolated: bool
    """Alone in a VRF, whose tag is its VLAN."""
    flood: Flood
    flooded: FloodedFrames
    subnets: list[str]
    configured: bool


class AllVnets(msgspec.Struct):
    vnets: list[ShownVnet]


class ShownSubnet(msgspec.Struct):
    id: str
    prefix: str
    gateway: str
    vlan: int
    dhcp: list[str]
    dhcp_pools: list[str]
    vnet: str
    slaac: bool
    dhcp6: bool
    used: int
    configured: bool


class AllSubnets(msgspec.Struct):
    subnets: list[ShownSubnet]


class ShownPair(msgspec.Struct):
    mac: str
    ip: str
    number: int
    vm: str
    """Who has it; "": nobody."""


class AllPairs(msgspec.Struct):
    pairs: list[ShownPair]

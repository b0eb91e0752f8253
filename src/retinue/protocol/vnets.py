"""VRFs, vnets and subnets as managers give them."""

from typing import Annotated

import msgspec

from retinue.core.limits import HIGHEST_VLAN, MOST_MTU, MOST_RELAYED
from retinue.core.model import DEFAULT_VNET, DEFAULT_VRF, Flood


class VrfBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One VRF of POST /v1/vrfs."""

    id: str
    tag: Annotated[int, msgspec.Meta(ge=0, le=HIGHEST_VLAN)] = 0
    """0: a free one."""


class VnetValues(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """PUT /v1/vnets/{id}: all there is to say of a vnet."""

    vlan: Annotated[int, msgspec.Meta(ge=0, le=HIGHEST_VLAN)] = 0
    """0: none."""
    mtu: Annotated[int, msgspec.Meta(ge=0, le=MOST_MTU)] = 0
    """0: nobody has said."""
    vrf: str = DEFAULT_VRF
    isolated: bool = False
    """It gets a VRF of its own, whose tag is its VLAN."""
    flood: Flood = Flood.DROPPED
    """What becomes of broadcast and multicast in it."""


class VnetBody(VnetValues, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One vnet of POST /v1/vnets."""

    id: str


class SubnetValues(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """PUT /v1/subnets/{id}: all there is to say of a subnet."""

    prefix: str
    gateway: str
    vnet: str = DEFAULT_VNET.id
    dhcp: Annotated[list[str], msgspec.Meta(max_length=MOST_RELAYED)] = []
    """DHCP servers of other subnets, to which the messages of this one's VMs are relayed."""
    dhcp_pools: Annotated[list[str], msgspec.Meta(max_length=MOST_RELAYED)] = []
    """FIRST-LAST: addresses that DHCP servers give out."""
    slaac: bool = False
    """Of IPv6: VMs may make their own addresses."""
    dhcp6: bool = False
    """Of IPv6: VMs get addresses by DHCPv6."""


class SubnetBody(SubnetValues, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One subnet of POST /v1/subnets."""

    id: str


__all__ = ["SubnetBody", "SubnetValues", "VnetBody", "VnetValues", "VrfBody"]

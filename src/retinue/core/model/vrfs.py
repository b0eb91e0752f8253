"""Routing domains (VRFs): addresses mean something inside one of them only, and nothing passes between them.

A vnet is in one, so a NIC is, and each address that it holds. Servers, routers and whatever is outside are in
the default one, which is always there. Another one has a way out by a router's subinterface in it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from retinue.core.limits import HIGHEST_VLAN
from retinue.core.model.addresses import IP, ModelError, Prefix

DEFAULT_VRF = "default"
"""The VRF of vnets for which no other is named."""


@dataclass(frozen=True, slots=True)
class Vrf:
    """A routing domain, and the VLAN tag by which the fabric's own links tell its packets from others'."""

    id: str
    tag: int
    """0, no tag: the default one's. Nothing outside the fabric's switches ever sees it."""

    def __post_init__(self) -> None:
        if self.id == DEFAULT_VRF and self.tag:
            raise ModelError(f"VRF {self.id} has no tag: its packets travel without one")
        if self.id != DEFAULT_VRF and not 1 <= self.tag <= HIGHEST_VLAN:
            raise ModelError(f"VRF {self.id}: tag {self.tag} is not between 1 and {HIGHEST_VLAN}")


@dataclass(frozen=True, slots=True, order=True)
class Subinterface:
    """A router's interface in a VRF (802.1Q, "VRF-lite"): what has this tag at its port is of that VRF."""

    vrf: str
    vlan: int
    """The tag at the router's port; the one on the fabric's links is the VRF's own."""
    routes: tuple[Prefix, ...] = ()
    """Prefixes reached through it, in that VRF."""
    address: IP | None = None
    """The router's own address there."""


class InVrf(NamedTuple):
    """An address of another VRF than the default one."""

    vrf: str
    ip: IP

    def __str__(self) -> str:
        """As one writes an address with its zone (RFC 4007, 11)."""
        return f"{self.ip}%{self.vrf}"


Address = IP | InVrf
"""What names an address among those of all VRFs; one of the default VRF is named by itself."""


def free_tag(taken: Collection[int]) -> int:
    """The lowest tag that no VRF has. Raises ModelError when there is none."""
    for tag in range(1, HIGHEST_VLAN + 1):
        if tag not in taken:
            return tag
    raise ModelError("every tag is some VRF's")


def in_vrf(vrf: str, ip: IP) -> Address:
    """The one place where an address and its VRF become a key."""
    return ip if vrf == DEFAULT_VRF else InVrf(vrf, ip)

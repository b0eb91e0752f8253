"""Switches, and links between them, as managers give them."""

from typing import Annotated, Literal

import msgspec

from retinue.core.limits import LONGEST_ID, LONGEST_PORT_NAME, MOST_STANDBY
from retinue.core.model import Role

PortName = Annotated[str, msgspec.Meta(max_length=LONGEST_PORT_NAME, pattern=r"^[!-~]*$")]
End = Annotated[str, msgspec.Meta(max_length=LONGEST_ID + 1 + LONGEST_PORT_NAME, pattern=r"^[!-~]*$")]
"""SWITCH:PORT."""
Dpid = Annotated[str, msgspec.Meta(pattern=r"^(0x)?[0-9a-fA-F]{1,16}$")]
"""Hexadecimal."""
Places = Literal["detected", "given"]


class SwitchValues(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """PUT /v1/switches/{id}: all there is to say of a switch; what it is for stays."""

    dpid: Dpid
    uplink: PortName = ""
    """Of an edge: its port to its leaf."""
    standby: Annotated[list[PortName], msgspec.Meta(max_length=MOST_STANDBY)] = []
    """Of an edge: further ports, each to another leaf."""
    places: Places = "detected"
    """Of a leaf: whether servers are found there, or all given."""
    tunnel: PortName = ""
    """Of a leaf that VXLAN joins to the others: the port, and its address on the network between them."""
    endpoint: str = ""
    vdp: bool = False
    """Of an edge: what its leaf says by LLDP is which gateway group its server is in."""
    gateway_group: str = ""
    """Of a leaf: the group whose MAC it says to its servers by LLDP."""


class SwitchBody(SwitchValues, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One switch of POST /v1/switches."""

    id: str
    role: Role


class LinkBody(msgspec.Struct, forbid_unknown_fields=True):
    """One link of POST /v1/links: SWITCH:PORT of a leaf and a spine, or of a spine and a core."""

    lower: End
    upper: End


__all__ = ["LinkBody", "Places", "SwitchBody", "SwitchValues"]

"""A server as managers register it, and as the controller shows where it is."""

from enum import StrEnum
from typing import Annotated

import msgspec

from retinue.core.limits import HIGHEST_VLAN, MOST_HOSTS, MOST_LOAD, MOST_METRIC, MOST_PREFIXES, MOST_VRFS
from retinue.core.model import Service


class ServerState(StrEnum):
    """Whether the place a server was found at is the one that was given for it."""

    MATCHED = "matched"
    """Found where it was given, or found and not given."""
    GIVEN = "given"
    """Not found yet: believed to be where it was given."""
    MISMATCH = "mismatch"
    """Found elsewhere than it was given."""
    MISSING = "missing"
    """Neither given nor found."""
    UNKNOWN = "unknown"
    """Found, but not registered."""


class AgentState(StrEnum):
    """Whether the server's agent follows the controller's events."""

    LISTENING = "listening"
    AWAY = "away"
    """It has once, and does so no longer."""
    NONE = "none"
    """None was ever heard of."""


class HostBody(msgspec.Struct, forbid_unknown_fields=True):
    """One of several machines at the edge switch of a server."""

    id: str
    mac: str


class SubinterfaceBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A router's interface in a VRF: what has this tag at its port is of that VRF."""

    vrf: str
    vlan: Annotated[int, msgspec.Meta(ge=1, le=HIGHEST_VLAN)]
    routes: Annotated[list[str], msgspec.Meta(max_length=MOST_PREFIXES)] = []
    """Prefixes reached through it, in the VRF."""
    address: str = ""
    """The router's own there."""


class ServerBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One server of POST /v1/servers."""

    id: str
    mac: str = ""
    """"": it stays; of a new one that is known by its chassis id LLDP tells it."""
    address: str = ""
    edge: str = ""
    """The edge switch of a server that runs VMs."""
    services: list[Service] = []
    at: str = ""
    """SWITCH:PORT of the leaf it is at; left out, it is found by ARP."""
    gateway_group: str = ""
    """"": its VMs know the gateway by the fabric's own MAC."""
    routes: Annotated[list[str], msgspec.Meta(max_length=MOST_PREFIXES)] | None = None
    """Prefixes reached through it; null: those it has."""
    metric: Annotated[int, msgspec.Meta(ge=0, le=MOST_METRIC)] | None = None
    """Of several routers to one prefix that are there, the one with the least is the way; null: it stays."""
    chassis: str | None = None
    """Its LLDP chassis id, by which it is known when its MAC is another; null: it stays."""
    anycast: Annotated[list[str], msgspec.Meta(max_length=MOST_PREFIXES)] | None = None
    """Addresses of services that it has itself, with others; null: it stays."""
    load: Annotated[int, msgspec.Meta(ge=0, le=MOST_LOAD)] | None = None
    """Of those of a service that are equally near the one with the least is sent to; null: it stays."""
    subinterfaces: Annotated[list[SubinterfaceBody], msgspec.Meta(max_length=MOST_VRFS)] | None = None
    """Of a router: its ways out of other VRFs than the default one; null: those it has."""
    hosts: Annotated[list[HostBody], msgspec.Meta(max_length=MOST_HOSTS)] = []
    """Machines that have ports of VMs at the edge switch."""


class GatewayGroupValues(msgspec.Struct, forbid_unknown_fields=True):
    """PUT /v1/gateway-groups/{id}."""

    default: bool
    """Servers that are in no group are in this one."""


class GatewayGroupBody(msgspec.Struct, forbid_unknown_fields=True):
    """One group of POST /v1/gateway-groups."""

    id: str
    mac: str


class ServerMacBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/servers/{id}/mac: what the server's MAC is, says its agent."""

    mac: str

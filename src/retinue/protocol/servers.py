"""A server as managers register it, and as the controller shows where it is."""

from enum import StrEnum

import msgspec

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


class ServerBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One server of POST /v1/servers."""

    id: str
    mac: str
    address: str = ""
    edge: str = ""
    """The edge switch of a server that runs VMs."""
    services: list[Service] = []
    at: str = ""
    """SWITCH:PORT of the leaf it is at; left out, it is found by ARP."""
    gateway_group: str = ""
    """Of the configuration file's; "": its VMs know the gateway by the fabric's own MAC."""

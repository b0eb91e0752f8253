"""What is asked of POST /v1/traces: which frame, from where, and of which entries."""

from typing import Annotated

import msgspec

from retinue.core.limits import HIGHEST_VLAN, LARGEST_FRAME, LONGEST_ADDRESS
from retinue.core.tracing import Kind

Word = Annotated[str, msgspec.Meta(max_length=LONGEST_ADDRESS)]


class TraceBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One of `vm`, `at` and `forgery` says from where; a `frame`, or `to` with what is beside it, what is
    sent."""

    vm: Word = ""
    """A VM sends it: from its first NIC, or from `nic`; where it is delivered, or on `server`."""
    nic: Word = ""
    server: Word = ""
    at: Word = ""
    """It comes in at a port: SWITCH:PORT, the port by its name or number."""
    vlan: Annotated[int, msgspec.Meta(ge=0, le=HIGHEST_VLAN)] = 0
    """There with this tag: a router's, from its subinterface in a VRF."""
    forgery: Word = ""
    """A row of the spoofing log, by its id: the frame as it claimed to be."""
    frame: Annotated[str, msgspec.Meta(max_length=2 * LARGEST_FRAME, pattern="^([0-9A-Fa-f]{2})*$")] = ""
    """The frame itself, in hexadecimal."""
    to: Word = ""
    """An address, or a VM's id: its first address."""
    kind: Kind = Kind.ICMP
    port: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)] = 0
    """To which port, of UDP and TCP."""
    src: Word = ""
    """From which address; "": one that the sender has."""
    src_mac: Word = ""
    dst_mac: Word = ""
    """"": as the sender's ARP would find it."""
    ttl: Annotated[int, msgspec.Meta(ge=0, le=0xFF)] = 64
    live: bool = False
    """Read the entries back from the switches, and tell where they differ from those they should have."""

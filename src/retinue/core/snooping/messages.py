"""What the snooper is told, and what it decides: DHCP messages as they came in, and effects."""

from dataclasses import dataclass
from ipaddress import IPv4Address

from retinue.core.model import IP, Assignment, Mac
from retinue.core.packets import DHCP

NO_ADDRESS = IPv4Address(0)
EVERYBODY = IPv4Address("255.255.255.255")


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """A DHCP message a VM's port sent to the servers' UDP port."""

    switch: str
    port: int
    eth_src: Mac
    dhcp: DHCP
    src: IPv4Address = NO_ADDRESS
    """IP source and destination of the datagram that carried it."""
    dst: IPv4Address = EVERYBODY
    ip_options: bool = False
    """Its IP header has options."""
    runs_here: bool = True
    """The VM runs at this switch's server. Where it is only open, for a migration, it may ask, but neither
    give its lease back nor change it."""


@dataclass(frozen=True, slots=True)
class ServerMessage:
    """A DHCP message that came in at the port of a trusted DHCP server."""

    server: str
    dhcp: DHCP
    src: IPv4Address | None = None
    """IP source of the datagram that carried it; None: not to be judged."""
    domain: str = ""
    """It came by the tunnel from this domain, of a DHCP server there; "": of one here."""


# ---- effects ----


@dataclass(frozen=True, slots=True)
class Bind:
    """This VM holds this address now. A renewal is a Bind with a later lease end."""

    assignment: Assignment
    renewed: bool


@dataclass(frozen=True, slots=True)
class Release:
    """The binding of this address ends."""

    assignment: Assignment
    reason: str


@dataclass(frozen=True, slots=True)
class ToServers:
    """Hand the message on to the DHCP servers, from this IP source (see `headers.source_of`)."""

    vm: str
    source: IPv4Address = NO_ADDRESS


@dataclass(frozen=True, slots=True)
class ToVM:
    """Hand the message on to the VM, once the effects before this one are confirmed by the switches."""

    vm: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """The request of the agent's renewal came in at this port of the VM."""

    vm: str
    xid: int
    switch: str
    port: int


@dataclass(frozen=True, slots=True)
class ToAgent:
    """The answer to the agent's renewal, once the effects before this one are confirmed; not for the VM.

    `rejection` is why there is no renewed lease; "" with an ACK.
    """

    vm: str
    xid: int
    rejection: str = ""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A DHCP server grants this VM an address that another VM holds: tell the server, and the operator.

    `decline` is what the server is to be told. At most once a minute for each VM and address.
    """

    vm: str
    ip: IPv4Address
    decline: DHCP
    reason: str


@dataclass(frozen=True, slots=True)
class ToldOtherwise:
    """An ACK to a renewal on the VM's behalf names other DNS or WINS servers than the VM was told: the
    operator is to know, as the VM never sees that ACK. Once for each change."""

    vm: str
    ip: IP
    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The message is dropped. `spoofed`: it was an attempt on another's address, not a mere mistake."""

    reason: str
    vm: str = ""
    spoofed: bool = False


@dataclass(frozen=True, slots=True)
class Suspicious:
    """The message is handed on, for the DHCP server must reject it; but it requests another VM's address."""

    reason: str
    vm: str


Effect = (
    Bind
    | Release
    | ToServers
    | ToVM
    | Recorded
    | ToAgent
    | Disagreement
    | ToldOtherwise
    | Rejected
    | Suspicious
)

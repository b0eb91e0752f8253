"""What the rules of DHCPv6 are told, and what they decide besides the effects of `messages`."""

from dataclasses import dataclass
from ipaddress import IPv6Address

from retinue.core.model import Mac
from retinue.core.packets.dhcp6 import DHCP6, Relayed6
from retinue.core.snooping.messages import Bind, Recorded, Rejected, Release, Suspicious, ToAgent


@dataclass(frozen=True, slots=True)
class ClientMessage6:
    """A DHCPv6 message that a VM's port sent to the servers' UDP port."""

    switch: str
    port: int
    eth_src: Mac
    src: IPv6Address
    dst: IPv6Address
    dhcp: DHCP6
    runs_here: bool = True
    """As of `messages.ClientMessage`."""

    @property
    def circuit(self) -> str:
        """Where it came in, as a relay says it."""
        return f"{self.switch}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServerMessage6:
    """What came in at the port of a trusted DHCP server: a relay's envelope, and the message inside.

    What a guest's home says comes as it is handed to the guest, by the tunnel: the envelope says then which
    of its addresses it is for, and where that asked is not said.
    """

    server: str
    envelope: Relayed6
    dhcp: DHCP6
    domain: str = ""
    """Whose server it is; "": this domain's."""


@dataclass(frozen=True, slots=True)
class ToServers6:
    """Hand a NIC's message on to the DHCP servers, in an envelope that names its sender and the port."""

    vm: str
    nic: Mac
    peer: IPv6Address
    circuit: str
    dhcp: DHCP6


@dataclass(frozen=True, slots=True)
class ToVM6:
    """Hand the answer on to a NIC, once the effects before this one are confirmed by the switches."""

    vm: str
    nic: Mac
    peer: IPv6Address
    dhcp: DHCP6


Effect6 = Bind | Release | ToServers6 | ToVM6 | Recorded | ToAgent | Rejected | Suspicious

__all__ = ["ClientMessage6", "Effect6", "ServerMessage6", "ToServers6", "ToVM6"]

"""A server is known by its LLDP chassis id where its MAC is another than was registered: its NIC was
replaced.

    the chassis id    comes from              and the server's place is      verdict
    is no server's    anybody                                                Nothing
    is a server's     that server's MAC                                      Nothing: it is found by its MAC
    is a server's     another MAC             not known, or this port        Becomes: that is its MAC, unless
                                                                             it answers by the one it has
    is a server's     another MAC             elsewhere                      Mistaken: one of two is not it

A chassis id proves as little as ARP does. So it is believed where ARP from an unknown MAC would be: at a
place that is no other server's, of a server that is missing, or at a port whose traffic is the server's
anyway; of one with several uplinks only at such a port. Whether the MAC may be a server's at all the network
judges as it is put there.
"""

from dataclasses import dataclass

from retinue.core.model import Mac, PortRef
from retinue.core.model.network import Network
from retinue.core.model.uplinks import has_several, holders, places
from retinue.core.packets import EtherType, parse
from retinue.core.packets.lldp import NEAREST_BRIDGE, parse_lldp


@dataclass(frozen=True, slots=True)
class Nothing:
    """There is nothing to do."""


@dataclass(frozen=True, slots=True)
class Becomes:
    """The server has this MAC now, if it does not answer by the one that is known."""

    server: str
    mac: Mac


@dataclass(frozen=True, slots=True)
class Mistaken:
    server: str
    reason: str


Verdict = Nothing | Becomes | Mistaken


def judge(net: Network, here: PortRef, frame: bytes) -> Verdict:
    """Of a frame that came in at a leaf's port. Raises FrameError for a damaged one."""
    ethernet = parse(frame)
    if not net.has_chassis:
        return Nothing()
    if ethernet.ethertype != EtherType.LLDP or ethernet.dst != NEAREST_BRIDGE:
        return Nothing()
    said = parse_lldp(ethernet.payload)
    server = net.server_of_chassis(said.chassis) if said.ttl else None
    if server is None or server.mac == ethernet.src:
        return Nothing()
    known = places(net, server.id)
    # Where one with several uplinks is no frame of its own tells (see docs/design/058).
    if here not in known and (known or has_several(net, server.id)):
        at = " and ".join(map(str, known)) or "no place that is known"
        return Mistaken(server.id, f"its chassis id came in from {ethernet.src}, and it is at {at}")
    other = next((id for id in holders(net, here) if id != server.id), None)
    if other is not None:
        return Mistaken(server.id, f"its chassis id came in from {ethernet.src}, and server {other} is there")
    return Becomes(server.id, ethernet.src)

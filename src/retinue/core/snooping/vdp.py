"""What becomes of an LLDPDU that an edge has taken in: the gateway's MAC comes down from the leaf.

    came in by                    says                                  verdict
    any port                      nothing of a gateway                  Nothing
    a port that is no uplink      of a gateway                          Refused: only the leaf is above us
    the uplink of an edge that    the MAC that its server's VMs know    Nothing
    is to be told (`Switch.vdp`)  that of another group, or of none     Joins: the server goes there
                                  a MAC that no gateway of ours has     Refused
                                  that its sender is no bridge          Refused

The MAC itself is not taken: it names a group of those that the operator has given, or the fabric's own, whose
MACs all leaves and spines take (see `Network.gateway_macs`). So nobody can have an edge send to a MAC of his.
"""

from dataclasses import dataclass

from retinue.core.model import Mac, PortRef
from retinue.core.model.network import Network
from retinue.core.packets import FrameError, parse
from retinue.core.packets.lldp import NEAREST_BRIDGE, EvbMode, parse_lldp


@dataclass(frozen=True, slots=True)
class Nothing:
    """There is nothing to do."""


@dataclass(frozen=True, slots=True)
class Joins:
    """The server is in this gateway group from now on; "": in none."""

    server: str
    group: str
    mac: Mac


@dataclass(frozen=True, slots=True)
class Refused:
    mac: Mac
    reason: str


Verdict = Nothing | Joins | Refused


def judge(net: Network, switch: str, port: int, frame: bytes) -> Verdict:
    """Raises FrameError for a frame that is no LLDP, or damaged."""
    ethernet = parse(frame)
    if ethernet.dst != NEAREST_BRIDGE:
        raise FrameError(f"LLDP for {ethernet.dst}, which may be from beyond the cable: not {NEAREST_BRIDGE}")
    said = parse_lldp(ethernet.payload)
    mac = said.gateway_mac
    if mac is None or not said.ttl:
        return Nothing()
    edge, server = net.switches[switch], net.server_of_edge(switch)
    uplinks = [net.port_number(PortRef(switch, name)) for name in edge.uplinks]
    if server is None or not edge.vdp or port not in uplinks:
        return Refused(mac, f"it came by port {port} of {switch}, and only the uplink leads to the leaf")
    if said.evb_mode == EvbMode.STATION:
        return Refused(mac, "its sender says that it is an EVB station, and only a bridge is above us")
    group = group_of(net, mac)
    if group is None:
        return Refused(mac, f"no gateway of ours has it; `retinue gateway add NAME --mac {mac}` makes one")
    return Nothing() if group == server.gateway_group else Joins(server.id, group, mac)


def group_of(net: Network, mac: Mac) -> str | None:
    """The gateway group that has this MAC, "" for the fabric's own; None: no gateway of ours has it."""
    if mac == net.gateway_mac:
        return ""
    return next((group.id for group in net.gateway_groups.values() if group.mac == mac), None)

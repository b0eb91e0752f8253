"""A NIC's mirror (SPAN, port mirroring): copies of its traffic, out of another port of the switch it is at.

There is no entry for it. Those that let a frame of the NIC's in, and those that hand one to it, output it
once more: to a port whose name is the same on every server, so the mirror is wherever the VM's entries are,
before the VM is. A copy is as the frame is at the NIC's own port, tag and MACs; what a meter drops has none.

No copy can come back, or go on. What a port that takes copies sends has no entry at all; its name is of a
kind that no uplink, tunnel or VM's port has (`model.nic.mirror_port`), and uplinks, tunnels to other domains
and the bridge itself (LOCAL) get no copy whatever they are called. While a VM is copied or forwarded in a
migration, each frame is mirrored where the VM is delivered, and nowhere else: not where a copy waits.

Not mirrored is what never was the VM's traffic to others: what is dropped, what the switch or the controller
answers (ARP, neighbour discovery, DHCP), and what a vnet that floods sends to a group.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from retinue.core.model import NIC, PortRef, Server
from retinue.core.model.network import Network
from retinue.core.pipeline.entry import Field, Flow, Group, Match, Meter, Output, PortNo
from retinue.core.pipeline.priorities import VRF_BAND, Deliver, EdgeAdmit, Forward
from retinue.core.pipeline.tables import Table

E = TypeVar("E", bound=Flow | Group | Meter)
_TO_VM = frozenset({(Table.FORWARD, Forward.LOCAL_VM), (Table.DELIVER, Deliver.VM)})


def port_of(net: Network, nic: NIC, at: Server) -> int | None:
    """The number of the port that takes the NIC's copies on the edge of this server; None: there is none."""
    if not nic.mirror:
        return None
    number = net.port_number(PortRef(at.edge, nic.mirror))
    lead_on = {*net.switches[at.edge].uplinks, *(p.tunnel for p in net.peers.values() if p.gateway == at.id)}
    if number is None or number > PortNo.MAX:  # LOCAL is the server itself.
        return None
    return None if any(number == net.port_number(PortRef(at.edge, name)) for name in lead_on) else number


def mirrored(entries: Iterable[E], port: int, mirror: int | None) -> Iterator[E]:
    """The entries of a NIC at `port`, as they are sent to the switch, with copies to the port `mirror`."""
    for entry in entries:
        if mirror is None or not isinstance(entry, Flow):
            yield entry
        elif _lets_in(entry, port):
            yield replace(entry, actions=(Output(mirror), *entry.actions))
        elif (entry.table, entry.priority % VRF_BAND) in _TO_VM and Output(port) in entry.actions:
            after = entry.actions.index(Output(port)) + 1
            actions = (*entry.actions[:after], Output(mirror), *entry.actions[after:])
            yield replace(entry, actions=actions)
        else:
            yield entry


def _lets_in(entry: Flow, port: int) -> bool:
    admits = entry.table == Table.ADMIT and entry.priority == EdgeAdmit.BOUND and entry.goto is not None
    return admits and _in_port(entry.match) == port


def _in_port(match: Match) -> int | None:
    return next((value for field, value, _ in match if field is Field.IN_PORT), None)

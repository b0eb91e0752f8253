"""NICs that go by another one's port, with a VLAN tag (see `core.model.trunks`), and their carrier's silence.

An edge knows whose a frame is by the port and the tag. What it admits loses the tag and is as from any other
NIC from there on; what it hands to the VM gets it (`vrfs.at_edge`). A frame with a tag that is none of the
trunk's, or with another MAC than goes with its tag, is dropped, counted and reported as spoofed.

What a switch answers at once to whoever asks has no tag, so for such a NIC it has answers of its own, of ARP
and pings for each gateway of its VRF. All else that it asks for by ARP is the controller's to answer. Answers
of neighbour discovery get the tag in their second pass.
"""

from collections.abc import Iterator
from dataclasses import replace

from retinue.core.model import NIC, VM, Server
from retinue.core.model.families import in_use
from retinue.core.model.network import Network, Owner
from retinue.core.model.trunks import carried_by
from retinue.core.packets import ArpOp, EtherType
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import CONTROLLER, Flow, Match, in_order, match
from retinue.core.pipeline.matches import GROUP_BIT
from retinue.core.pipeline.meters import VMMeter
from retinue.core.pipeline.priorities import Answer, Arp, EdgeAdmit, Forward
from retinue.core.pipeline.responders import arp, echo, nd_answers
from retinue.core.pipeline.tables import Table


def nic_flows(net: Network, vm: VM, nic: NIC, at: Server, port: int) -> Iterator[Flow]:
    """What a NIC in a trunk needs beside the entries of every NIC, as in the default VRF without a trunk."""
    owner, vrf, gateway_mac = Owner("vm", vm.id), net.vrf_of(nic), net.gateway_mac_of(at)
    for answer in arp.edge_flows(net, owner, gateway_mac, vrf):
        yield replace(answer, priority=Arp.TRUNK_GATEWAY, match=_from(nic, port, answer.match))
    pings = echo.gateway_flows(net, owner, Table.FORWARD, Forward.TRUNK_ECHO, gateway_mac, vrf)
    for answer in pings:
        yield replace(answer, match=_from(nic, port, answer.match))
    if in_use(net, 6):
        told = nd_answers.advertisement(owner)
        to_it = in_order(*told.match, *match(in_port=port, eth_dst=nic.mac))
        yield replace(told, priority=Answer.ADVERTISEMENT_IN_TRUNK, match=to_it)
    asked = match(in_port=port, eth_type=EtherType.ARP, eth_src=nic.mac, arp_op=ArpOp.REQUEST)
    yield Flow(
        Table.ARP, Arp.TRUNK, asked, (CONTROLLER,),
        meter=VMMeter.ARP.id(port), cookie=cookie(Reason.VM_ARP, owner),
    )  # fmt: skip
    # The vnet of its carrier may flood: that is not its own.
    to_all = match(in_port=port, eth_src=nic.mac, eth_dst=GROUP_BIT)
    yield Flow(Table.FORWARD, Forward.TRUNK_GROUP, to_all, cookie=cookie(Reason.FORWARD, owner))


def disabled_flows(vm: VM, nic: NIC, port: int) -> Iterator[Flow]:
    """A NIC that the operator has shut, at a port where others are not: nobody is told of what it sends."""
    if nic.trunk or carried_by(vm, nic):
        quiet = cookie(Reason.QUIET, Owner("vm", vm.id))
        yield Flow(Table.ADMIT, EdgeAdmit.NOISE, match(in_port=port, eth_src=nic.mac), cookie=quiet)


def _from(nic: NIC, port: int, terms: Match) -> Match:
    return in_order(*terms, *match(in_port=port, eth_src=nic.mac))

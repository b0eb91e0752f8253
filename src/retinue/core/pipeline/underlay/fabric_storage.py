"""Storage (FCoE) through leaves, spines and cores: by MAC, to forwarders and back."""

from collections.abc import Collection, Iterator

from retinue.core.model import Mac, Server
from retinue.core.model.network import Network, Owner
from retinue.core.packets import EtherType
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import CONTROLLER, Flow, FlowsBySwitch, Match, Output, match
from retinue.core.pipeline.matches import NO_TAG
from retinue.core.pipeline.meters import LeafMeter
from retinue.core.pipeline.priorities import LeafAdmit, Servers
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay.fabric_switches import ways_down
from retinue.core.pipeline.underlay.fabric_uplinks import Attached


def forwarder_flows(server: Server, port: int) -> Iterator[Flow]:
    """What a forwarder may send at its port of a leaf: storage to whom it likes; and FIP, which the
    controller looks at."""
    owner = Owner("server", server.id)
    said = match(in_port=port, vlan_vid=NO_TAG, eth_type=EtherType.FIP, eth_src=server.mac)
    yield Flow(
        Table.ADMIT, LeafAdmit.STORAGE, said, (CONTROLLER,),
        meter=LeafMeter.FIP, cookie=cookie(Reason.FIP_FORWARDER, owner),
    )  # fmt: skip
    sent = match(in_port=port, vlan_vid=NO_TAG, eth_type=EtherType.FCOE, eth_src=server.mac)
    mark = cookie(Reason.FORWARD, owner)
    yield Flow(Table.ADMIT, LeafAdmit.STORAGE, sent, goto=Table.SERVERS, cookie=mark)


def to_storage_port(mac: Mac, only_from: Mac) -> Match:
    """What is for the port, on its way: from anybody, or from this MAC only."""
    to_port = match(eth_type=EtherType.FCOE, eth_dst=mac)
    return match(eth_type=EtherType.FCOE, eth_src=only_from, eth_dst=mac) if only_from else to_port


def storage_ways(
    net: Network,
    mac: Mac,
    forwarder: Mac,
    delivered: Collection[Attached],
    at: tuple[str, int] | None,
    open_at: Collection[Attached],
    mark: int,
    only_from: Mac = "",
) -> FlowsBySwitch:
    """As Underlay.storage_ways: where it is delivered, by which leaf others send there, and who may send."""
    found: FlowsBySwitch = {}
    for place in open_at:
        sent = match(
            in_port=place.port, vlan_vid=NO_TAG, eth_type=EtherType.FCOE, eth_src=mac, eth_dst=forwarder
        )
        admitted = Flow(Table.ADMIT, LeafAdmit.STORAGE, sent, goto=Table.SERVERS, cookie=mark)
        found.setdefault(place.leaf, []).append(admitted)
    to_port = to_storage_port(mac, only_from)
    here = [(place.leaf, place.port) for place in delivered if place.is_open]
    for switch, number in (*here, *(ways_down(net, at[0]) if at is not None else ())):
        way = Flow(Table.SERVERS, Servers.SERVER, to_port, (Output(number),), cookie=mark)
        found.setdefault(switch, []).append(way)
    return found

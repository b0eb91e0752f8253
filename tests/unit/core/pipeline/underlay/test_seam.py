"""Edges ask the underlay how another server is reached: with another underlay they write other frames."""

from dataclasses import replace

from retinue.core.model import Mac, Server
from retinue.core.pipeline import edge
from retinue.core.pipeline.entry import Field, Flow, SetField, match, set_field
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay.fabric import LeafSpine
from support.fabric.networks import add_vm, fabric, vm_port

TO_TUNNEL, FROM_TUNNEL = "0a:00:00:00:00:01", "0a:00:00:00:00:02"


class Tunnelled(LeafSpine):
    """An underlay that addresses and knows servers otherwise than by their MAC."""

    def reach(self, server: Server) -> tuple[SetField, ...]:
        return (set_field(Field.ETH_DST, TO_TUNNEL),)

    def brought_to(self, server: Server, ip_type: int) -> dict[str, int | str]:
        return {"eth_dst": FROM_TUNNEL}

    def copy_source(self, server: Server) -> Mac:
        return FROM_TUNNEL


def test_an_edge_addresses_and_knows_frames_as_the_underlay_says() -> None:
    net = fabric()
    vm = replace(add_vm(net, 1, 1, ports_on=(2,)), server="server2", also=frozenset({"server1"}))
    underlay = Tunnelled(net)
    copying = replace(vm, copied_to="server1")
    nic = edge.nic_flows(underlay, net, copying, vm.nic, net.servers["server2"], vm_port(1))
    delivering = [f for f in nic if isinstance(f, Flow) and f.table == Table.DELIVER]
    assert all(set_field(Field.ETH_DST, TO_TUNNEL) in f.actions for f in delivering)
    assert all(set_field(Field.ETH_SRC, FROM_TUNNEL) in f.actions for f in delivering)
    assert delivering

    forwarding = [*edge.forwarding_flows(underlay, net, replace(vm, forwarded_from="server1"))]
    assert [f.actions[0] for f in forwarding] == [set_field(Field.ETH_DST, TO_TUNNEL)]

    brought = edge.server_flows(underlay, net, net.servers["server1"], net.switches["edge1"])
    to_deliver = [f.match for f in brought if f.goto == Table.DELIVER]
    assert to_deliver == [match(in_port=1, eth_dst=FROM_TUNNEL)]

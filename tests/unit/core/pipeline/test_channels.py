"""The network's part in the channel of a migration: there while a VM is at two servers, and only then."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from retinue.core.model import VM, Network, Peer
from retinue.core.model.network import Touched
from retinue.core.packets import Ethernet
from retinue.core.packets.ipv4 import TCP, UDP, build_ipv4
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Flow, Meter, PortNo
from retinue.core.pipeline.meters import CHANNEL
from retinue.core.pipeline.priorities import EdgeAdmit
from retinue.core.pipeline.tables import Table
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric
from support.fabric.world import FabricWorld

KBPS = 50_000
STATES: dict[str, tuple[dict[str, Any], bool]] = {
    "at its server": ({}, False),
    "admitted at the target": ({"also": frozenset({"server2"})}, True),
    "diverted": ({"server": "server2", "also": frozenset({"server1"})}, True),
    "closed, forwarded": ({"server": "server2", "forwarded_from": "server1"}, True),
    "at the target": ({"server": "server2"}, False),
}


def network() -> tuple[Network, VM]:
    net = fabric()
    net.channel_kbps = KBPS
    return net, add_vm(net, 1, 1, ports_on=(2,))


def metered(net: Network, edge: str, program: Compiler) -> Iterator[tuple[int, int]]:
    """The last bytes of the addresses between which TCP is metered at an edge."""
    for entry in program.program(edge).values():
        if isinstance(entry, Flow) and (entry.table, entry.priority) == (Table.ADMIT, EdgeAdmit.CHANNEL):
            assert (entry.meter, entry.goto) == (CHANNEL, Table.FORWARD)
            fields = {name.name: value for name, value, _ in entry.match}
            assert (fields["IP_PROTO"], fields["IN_PORT"]) == (TCP, PortNo.LOCAL)
            yield fields["IPV4_SRC"] & 0xFF, fields["IPV4_DST"] & 0xFF


def fresh(net: Network) -> Compiler:
    made = Compiler(net)
    made.update(net.everything())
    return made


def test_it_is_there_while_the_vm_is_at_both_and_goes_by_itself() -> None:
    net, vm = network()
    compiler = fresh(net)

    def change(touched: Touched) -> None:
        compiler.update(touched)
        assert compiler.programs == fresh(net).programs

    for state, (where, metering) in STATES.items():
        change(net.put_vm(replace(vm, **where)))
        assert list(metered(net, "edge1", compiler)) == ([(11, 12)] if metering else []), state
        assert list(metered(net, "edge2", compiler)) == ([(12, 11)] if metering else []), state
        assert not list(metered(net, "edge3", compiler))
        meters = [compiler.program(edge).get(("meter", CHANNEL)) for edge in ("edge1", "edge2")]
        wanted = Meter(CHANNEL, KBPS, KBPS // 5, kilobits=True)
        assert meters == [wanted if metering else None] * 2, state


def test_several_vms_between_two_servers_share_it_and_the_last_takes_it_along() -> None:
    net, vm = network()
    both = [vm, add_vm(net, 4, 2, ports_on=(1,))]
    compiler = fresh(net)
    for at, other in zip(both, ("server2", "server1"), strict=True):
        compiler.update(net.put_vm(replace(at, also=frozenset({other}))))
        assert list(metered(net, "edge1", compiler)) == [(11, 12)]
    for one, left in ((both[0], [(11, 12)]), (both[1], [])):
        compiler.update(net.remove_vm(one.id))
        assert list(metered(net, "edge1", compiler)) == left
    assert compiler.programs == fresh(net).programs


def test_a_server_that_gets_another_address_is_known_by_it() -> None:
    net, vm = network()
    net.put_vm(replace(vm, also=frozenset({"server2"})))
    compiler = fresh(net)
    compiler.update(net.put_server(replace(net.servers["server2"], address=IPv4Address("10.0.0.77"))))
    assert list(metered(net, "edge1", compiler)) == [(11, 77)]
    assert compiler.programs == fresh(net).programs
    compiler.update(net.put_server(replace(net.servers["server2"], address=None)))
    assert not list(metered(net, "edge1", compiler))


def test_without_a_rate_and_towards_another_domain_there_is_none() -> None:
    net, vm = network()
    net.channel_kbps = 0
    net.put_vm(replace(vm, also=frozenset({"server2"})))
    assert not list(metered(net, "edge1", fresh(net)))
    net, vm = network()
    net.put_peer(Peer("b", "server2", "tap1"))
    net.put_vm(replace(vm, also=frozenset({"server2"})))
    assert not list(metered(net, "edge1", fresh(net)))


@pytest.mark.parametrize(("protocol", "by"), [(TCP, EdgeAdmit.CHANNEL), (UDP, EdgeAdmit.SERVER)])
def test_tcp_between_the_two_arrives_by_the_meter_and_all_else_as_ever(protocol: int, by: int) -> None:
    net, vm = network()
    net.put_vm(replace(vm, also=frozenset({"server2"})))
    world = FabricWorld(net)
    one, two = net.servers["server1"].address, net.servers["server2"].address
    assert isinstance(one, IPv4Address) and isinstance(two, IPv4Address)
    payload = build_ipv4(one, two, protocol, bytes(32))
    frame = Ethernet(GATEWAY_MAC, net.servers["server1"].mac, 0x0800, payload).build()
    delivery = world.fabric.send("edge1", PortNo.LOCAL, frame)
    assert [(switch, port) for switch, port, _ in delivery.arrivals] == [("edge2", PortNo.LOCAL)]
    assert delivery.hops[0].matched[0].priority == by

"""The reply a switch makes of a ping to a gateway: addresses exchanged, the gateway's MAC as its source."""

from retinue.core.model.link_local import link_local
from retinue.core.model.network import Owner
from retinue.core.packets import build_icmpv6
from retinue.core.pipeline.entry import Field, Output, PortNo, RegMove, SetField, match
from retinue.core.pipeline.priorities import Forward, Route
from retinue.core.pipeline.responders import echo
from retinue.core.pipeline.tables import Table
from support.fabric.ipv6 import GATEWAY_LOCAL, OUTSIDE6, frame6, vm_ip6, vm_local
from support.fabric.networks import (
    GATEWAY,
    GATEWAY6,
    GATEWAY_MAC,
    INFRA_GATEWAY,
    add_ipv6,
    add_vm,
    fabric,
    holding6,
    vm_mac,
    vm_port,
)
from support.fabric.world import FabricWorld


def test_a_reply_goes_back_to_the_sender_from_the_gateway() -> None:
    moves = [a for a in echo.answer(GATEWAY, GATEWAY_MAC) if isinstance(a, RegMove)]
    sets = {a.field: a.value for a in echo.answer(GATEWAY, GATEWAY_MAC) if isinstance(a, SetField)}
    assert moves == [
        RegMove(Field.ETH_SRC, Field.ETH_DST),
        RegMove(Field.IPV4_SRC, Field.IPV4_DST),
    ]
    assert sets == {Field.ETH_SRC: 0xDEADBEEF, Field.IPV4_SRC: int(GATEWAY), Field.ICMPV4_TYPE: 0}
    assert echo.answer(GATEWAY, GATEWAY_MAC)[-1] == Output(PortNo.IN_PORT)


def test_every_gateway_that_is_forwarded_to_is_answered_for() -> None:
    net = fabric()
    add_ipv6(net)
    for table, priority in ((Table.FORWARD, Forward.GATEWAY_ECHO), (Table.ROUTE, Route.GATEWAY_ECHO)):
        flows = list(echo.gateway_flows(net, Owner("switch", "edge1"), table, priority, net.gateway_mac))
        assert [(f.table, f.priority) for f in flows] == [(table, priority)] * 4
        assert [f.match for f in flows] == [
            *(
                match(eth_type=0x0800, ip_proto=1, icmpv4_type=8, ipv4_dst=gateway, ip_frag=0)
                for gateway in (INFRA_GATEWAY, GATEWAY)
            ),
            *(
                match(eth_type=0x86DD, ip_proto=58, icmpv6_type=128, ipv6_dst=gateway, ip_frag=0)
                for gateway in (GATEWAY6, link_local(GATEWAY_MAC))
            ),
        ]


def test_a_ping_of_ipv6_is_answered_by_the_first_switch() -> None:
    """From an own address and from a link-local one, to the gateway's address and its link-local one."""
    net = fabric()
    add_ipv6(net)
    add_vm(net, 1, 1)
    net.assign(holding6(1))
    world = FabricWorld(net)
    for src in (vm_ip6(1), vm_local(1)):
        for gateway in (GATEWAY6, GATEWAY_LOCAL):
            asked = build_icmpv6(src, gateway, bytes((128, 0, 0, 0, 0, 7, 0, 1)) + b"ping")
            reply = build_icmpv6(gateway, src, bytes((129, 0, 0, 0, 0, 7, 0, 1)) + b"ping")
            (delivery,) = world.send(1, 1, frame6(vm_mac(1), GATEWAY_MAC, asked))
            assert delivery.arrivals == (("edge1", vm_port(1), frame6(GATEWAY_MAC, vm_mac(1), reply)),)
    router = net.servers["router"]
    asked = build_icmpv6(OUTSIDE6, GATEWAY6, bytes((128, 0, 0, 0, 0, 7, 0, 1)))
    (delivery,) = world.fabric.all_paths("leaf2", 91, frame6(router.mac, GATEWAY_MAC, asked))
    assert [(switch, port) for switch, port, _ in delivery.arrivals] == [("leaf2", 91)]

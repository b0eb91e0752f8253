"""The numbers of meters: each is one's own, and one that Open vSwitch has."""

from collections import Counter

from retinue.core.limits import HIGHEST_VM_PORT
from retinue.core.model import Peer, VMPort
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Flow, Meter
from retinue.core.pipeline.meters import (
    LeafMeter,
    flood_meter,
    port_of_flood_meter,
    rate_meters,
    vm_meters,
)
from retinue.core.pipeline.priorities import LeafAdmit
from support.fabric.networks import add_uplink, fabric

METERS_OF_OPEN_VSWITCH = 1 << 18


def test_no_two_ports_share_a_meter() -> None:
    """Of all ports that a VM may have, from the first to the last."""
    found = Counter(int(kind) for kind in LeafMeter)
    for port in range(1, HIGHEST_VM_PORT + 1):
        flooding = flood_meter(port)
        assert port_of_flood_meter(flooding.id) == port
        found.update(meter.id for meter in (*vm_meters(port), *rate_meters(port, 1000)[2], flooding))
    assert found.most_common(1)[0][1] == 1
    assert max(found) < METERS_OF_OPEN_VSWITCH
    assert all(port_of_flood_meter(id) is None for id in found if id <= flood_meter(0).id)


def test_nor_does_a_tunnel_to_another_domain() -> None:
    net = fabric()
    net.put_peer(Peer("west", "server3", "to-west"))
    net.set_ports("edge3", {"to-west": HIGHEST_VM_PORT})
    assert net.tunnel_at("edge3") == VMPort(HIGHEST_VM_PORT, "to-west")
    net.set_ports("edge3", {"to-west": HIGHEST_VM_PORT + 1})
    assert net.tunnel_at("edge3") is None


def test_what_finds_uplinks_takes_nothing_from_others_arp() -> None:
    """Where uplinks lead is found by frames that a server sends: each kind of them has a meter of its own."""
    net = fabric(2, 1, (1, 2))
    add_uplink(net, 1, 2)
    compiler = Compiler(net)
    compiler.update(net.everything())
    for leaf in ("leaf1", "leaf2"):
        program = compiler.program(leaf).whole()
        flows = [entry for entry in program.values() if isinstance(entry, Flow) and entry.meter]
        probes = [f for f in flows if f.priority in (LeafAdmit.PROBE_OF_STRANGER, LeafAdmit.PROBE_OF_UPLINK)]
        assert len({flow.meter for flow in probes}) == len(probes) == 2
        assert {flow.meter for flow in probes}.isdisjoint(f.meter for f in flows if f not in probes)
        assert {flow.meter for flow in flows} <= {e.id for e in program.values() if isinstance(e, Meter)}

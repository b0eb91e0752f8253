"""A NIC's mirror: copies of what it sends and gets in every state of a migration, and nothing else."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from retinue.core.model import ModelError, Network, Peer
from retinue.core.model.nic import mirror_port
from retinue.core.packets import arp_request
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import PortNo
from retinue.core.pipeline.mirroring import port_of
from retinue.core.tracing.ends import ends_of
from support.fabric.networks import (
    GATEWAY,
    GATEWAY_MAC,
    UPLINK,
    add_ipv6,
    add_vm,
    assignment,
    fabric,
    holding6,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.tenants import add_tenants, vnet_of
from support.fabric.world import OUTSIDE, FabricWorld, udp_frame

MIRROR = 300
STATES: dict[str, dict[str, object]] = {
    "at its server": {},
    "admitted at the target": {"also": frozenset({"server2"})},
    "diverted": {"server": "server2", "also": frozenset({"server1"})},
    "diverted, copied and forwarded": {
        "server": "server2", "also": frozenset({"server1"}),
        "copied_to": "server1", "forwarded_from": "server1",
    },
    "closed, forwarded": {"server": "server2", "forwarded_from": "server1"},
    "at the target": {"server": "server2"},
    "undone, forwarded back": {
        "also": frozenset({"server2"}), "forwarded_from": "server2", "copied_to": "server1",
    },
}  # fmt: skip


def network(mirror: str, state: str, ports: str = "mirror0") -> Network:
    """vm1 goes from server1 to server2, where vm2 is; vm4 is beside vm1; each edge has such a port."""
    net = fabric()
    add_ipv6(net)
    add_vm(net, 1, 1, ports_on=(2,))
    for number, at in ((2, 2), (3, 3), (4, 1)):
        add_vm(net, number, at)
    net.assign(holding6(1))
    for edge in ("edge1", "edge2", "edge3"):
        net.set_ports(edge, {"up0": UPLINK, ports: MIRROR})
    vm = net.vms["vm1"]
    net.change_nic("vm1", vm.nic, replace(vm.nic, mirror=mirror))
    net.put_vm(replace(net.vms["vm1"], **STATES[state]))  # type: ignore[arg-type]
    return net


def frames() -> Iterator[bytes]:
    """To and from each VM, honest and not, by the gateway and by MACs; and questions."""
    macs = [vm_mac(n) for n in (1, 2, 3, 4)]
    for src, dst in product(macs, [GATEWAY_MAC, *macs]):
        for own, to in product((1, 2, 4), (vm_ip(1), vm_ip(2), vm_ip(4), OUTSIDE)):
            if src == dst:  # A switch sends nothing back, though an entry and its copy may say so.
                continue
            yield udp_frame(src, dst, vm_ip(own), to)
        yield arp_request(src, vm_ip(1), GATEWAY)
        yield arp_request(src, vm_ip(1), vm_ip(4))


@pytest.mark.parametrize("state", STATES)
def test_a_mirror_takes_a_copy_of_each_frame_once_and_changes_nothing(state: str) -> None:
    """Every frame into every port: without the copies all is as on a network without a mirror; and these are
    what comes out of the VM's port where it is delivered, and what is let in there."""
    plain, with_mirror = (FabricWorld(network(mirror, state)) for mirror in ("", "mirror0"))
    vm = with_mirror.net.vms["vm1"]
    delivers = with_mirror.net.servers[vm.server].edge
    copies_seen = 0
    for edge, port in product(("edge1", "edge2"), (UPLINK, vm_port(1), vm_port(2), vm_port(4), MIRROR)):
        for frame in frames():
            before, after = (world.fabric.all_paths(edge, port, frame) for world in (plain, with_mirror))
            assert len(before) == len(after)
            for one, other in zip(before, after, strict=True):
                kept = [a for a in other.arrivals if a[1] != MIRROR]
                copied = sorted((a[0], a[2]) for a in other.arrivals if a[1] == MIRROR)
                assert (kept, other.to_controller) == (list(one.arrivals), one.to_controller)
                answered = len(one.hops) == 1 and [a[:2] for a in one.arrivals] == [(edge, port)]
                got = [
                    (switch, data)
                    for switch, out, data in kept
                    if (switch, out) == (delivers, vm_port(1)) and not answered
                ]
                sent = one.hops[0].matched[0] if port == vm_port(1) and one.hops[0].matched else None
                lets_in = [] if sent is None or sent.goto is None else [(edge, frame)]
                assert copied == sorted([*got, *lets_in]), (state, edge, port, frame.hex())
                copies_seen += len(copied)
                if port == MIRROR:
                    assert not other.arrivals and not other.to_controller, "it lets nothing in"
    assert copies_seen > 20


@pytest.mark.parametrize("state", STATES)
def test_no_entry_is_more(state: str) -> None:
    counts = []
    for mirror in ("", "mirror0"):
        compiler = Compiler(net := network(mirror, state))
        compiler.update(net.everything())
        counts.append({switch: len(compiler.program(switch)) for switch in net.switches})
    assert counts[0] == counts[1]


def test_a_trace_tells_the_copy_from_who_has_the_packet() -> None:
    net = network("mirror0", "at its server")
    delivery = FabricWorld(net).send(1, 1, udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(4)))[0]
    joined = {("edge1", UPLINK)}
    told = [(end.who, end.text) for end in ends_of(net, joined, delivery) if end.switch == "edge1"]
    assert ("", "a copy goes out of edge1:mirror0, a mirror") in told
    assert any(who == "vm4" for who, _ in told)


def test_a_port_that_comes_later_or_goes_is_followed() -> None:
    net = network("mirror0", "at its server", ports="other0")
    world = FabricWorld(net)
    to_vm2 = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(2))

    def copies() -> set[int]:
        return {sum(a[1] == MIRROR for a in one.arrivals) for one in world.send(1, 1, to_vm2)}

    assert copies() == {0}, "without the port nothing is copied, and nothing lost"
    world.reaches(1, 1, 2, [2])
    world.apply(net.set_ports("edge1", {"up0": UPLINK, "mirror0": MIRROR}))
    assert copies() == {1}
    assert net.set_ports("edge1", {"up0": UPLINK, "mirror0": MIRROR, "eth7": 9}) == frozenset()
    world.apply(net.set_ports("edge1", {"up0": UPLINK}))
    assert copies() == {0}


def test_what_the_uplink_has_is_no_mirror() -> None:
    """A port by such a name that is the uplink all the same gets no copy: it would come to the VM twice."""
    net = network("mirror0", "at its server", ports="other0")
    net.switches["edge1"] = replace(net.switches["edge1"], uplink="mirror0")
    net.set_ports("edge1", {"mirror0": UPLINK})
    FabricWorld(net).reaches(1, 1, 2, [2])


@pytest.mark.parametrize("tunnel", ["mirror0", "tun0"], ids=["a tunnel to another domain", "LOCAL"])
def test_what_leads_to_another_domain_or_into_the_server_is_no_mirror(tunnel: str) -> None:
    number = MIRROR if tunnel == "mirror0" else PortNo.LOCAL
    net = network("mirror0", "at its server", ports="other0")
    net.put_peer(Peer("elsewhere", "server1", tunnel))
    net.set_ports("edge1", {"up0": UPLINK, "mirror0": number})
    vm = net.vms["vm1"]
    assert port_of(net, vm.nic, net.servers["server1"]) is None
    net.put_peer(Peer("elsewhere", "server3", "tun0"))
    net.set_ports("edge1", {"up0": UPLINK, "mirror0": MIRROR})
    assert port_of(net, vm.nic, net.servers["server1"]) == MIRROR, "another server's tunnel is not in its way"


def test_a_tenants_copy_is_as_at_its_own_port() -> None:
    """In a VRF a frame has a tag on its way, and none at the VM: nor has the copy, either way."""
    net = fabric()
    add_tenants(net)
    for number, at in ((1, 1), (2, 2)):
        add_vm(net, number, at, bound=False)
        vm = net.vms[f"vm{number}"]
        net.change_nic(vm.id, vm.nic, replace(vm.nic, vnet=vnet_of("red"), mirror="mirror0"))
        net.assign(replace(assignment(number), vrf="red"))
        net.set_ports(f"edge{at}", {"up0": UPLINK, "mirror0": MIRROR})
    sent = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(2))
    for delivery in FabricWorld(net).send(1, 1, sent):
        (came,) = [a[2] for a in delivery.arrivals if a[1] == vm_port(2)]
        assert [a for a in delivery.arrivals if a[1] == MIRROR] == [
            ("edge1", MIRROR, sent), ("edge2", MIRROR, came),
        ]  # fmt: skip


@pytest.mark.parametrize("name", ["mirror", "mirror0", "mirror-a.b_c", ""])
def test_names_of_mirrors(name: str) -> None:
    assert mirror_port(name) == name


@pytest.mark.parametrize("name", ["up0", "tap-vm2", "mirror/0", "mirror0123456789", "Mirror", " mirror"])
def test_other_ports_take_no_copies(name: str) -> None:
    with pytest.raises(ModelError, match=re.escape(f"{name}") + ".* takes no copies"):
        mirror_port(name)

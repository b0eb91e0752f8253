"""A prefix that is routed to a NIC, on fake switches: to it, from it, from nobody else, and what it costs."""

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest

from retinue.core.model import Assignment, Network, Vnet
from retinue.core.model.anycast import host_prefix
from retinue.core.model.entities import DEFAULT_VNET
from retinue.core.model.network import Owner, Touched
from retinue.core.model.packet_sizes import narrow_way
from retinue.core.model.vrfs import DEFAULT_VRF
from retinue.core.pipeline import compiler
from retinue.core.pipeline.compiler import Compiler, contribution
from retinue.core.pipeline.contributions import Contribution
from retinue.core.pipeline.entry import Flow, Meter
from support.fabric import prefixes
from support.fabric.histories import equals_recomputed
from support.fabric.networks import (
    GATEWAY_MAC,
    add_ipv6,
    add_vm,
    assignment,
    fabric,
    holding6,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.world import FabricWorld, udp_frame

AT = {1: 1, 2: 2, 3: 3, 4: 1}
MAY = {number: {at} for number, at in AT.items()}


def routed() -> Network:
    net = fabric()
    add_ipv6(net)
    for number, at in AT.items():
        vm = add_vm(net, number, at)
        net.assign(holding6(number))
        if number < 3:
            net.change_nic(vm.id, vm.nic, replace(vm.nic, prefixes=prefixes.of(number)))
    return net


@pytest.fixture
def world() -> FabricWorld:
    return FabricWorld(routed())


def test_it_leads_to_its_nic_and_nobody_else_sends_from_it(world: FabricWorld) -> None:
    prefixes.check(world, AT, MAY)
    assert len(list(prefixes.held(world))) == 4


def test_what_is_taken_back_leads_nowhere(world: FabricWorld) -> None:
    nic = world.net.vms["vm1"].nic
    world.apply(world.net.change_nic("vm1", nic, replace(nic, prefixes=())))
    ip = prefixes.of(1)[0][5]
    world.is_reported_spoofed(1, 1, prefixes.udp(vm_mac(1), GATEWAY_MAC, ip, vm_ip(2)))
    for delivery in world.send(2, 2, prefixes.udp(vm_mac(2), GATEWAY_MAC, vm_ip(2), ip)):
        assert [(switch, port) for switch, port, _ in delivery.arrivals] == [("leaf2", 91)], (
            "but to the router"
        )
    prefixes.check(world, AT, MAY)


def test_the_rate_of_the_nic_holds_for_it(world: FabricWorld) -> None:
    nic = world.net.vms["vm1"].nic
    world.apply(world.net.change_nic("vm1", nic, replace(nic, rate=1000)))
    meters = {e.id for e in world.compiler.program("edge1").values() if isinstance(e, Meter) and e.kilobits}
    world.fabric["edge1"].exhausted = meters
    ip = prefixes.of(1)[0][5]
    for sender, frame in (
        (1, prefixes.udp(vm_mac(1), GATEWAY_MAC, ip, vm_ip(2))),
        (2, prefixes.udp(vm_mac(2), GATEWAY_MAC, vm_ip(2), ip)),
    ):
        world.goes_nowhere(sender, AT[sender], frame)


def test_a_late_one_is_forwarded_and_copies_are_known() -> None:
    """In the middle of a migration from server1 to server2: to the source still, and copied back to it."""
    net = routed()
    net.set_vm_port("vm1", "edge2", net.vm_ports["vm1"]["edge1"])
    vm = net.vms["vm1"]
    both = {("edge1", vm_port(1)), ("edge2", vm_port(1))}
    ip = prefixes.of(1)[0][5]
    moved = replace(vm, server="server2", also=frozenset({"server1"}), copied_to="server1")
    net.put_vm(replace(moved, forwarded_from="server1"))
    world = FabricWorld(net)
    late = udp_frame(GATEWAY_MAC, net.servers["server1"].mac, vm_ip(3), ip)  # type: ignore[arg-type]
    for delivery in world.fabric.all_paths("edge1", 1, late):
        assert {(switch, port) for switch, port, _ in delivery.arrivals} == both


def test_what_a_prefix_costs() -> None:
    net = fabric()
    add_ipv6(net)
    vm = add_vm(net, 1, 1)
    found = [flows(net)]
    for number, prefix in enumerate(prefixes.of(1), 1):
        nic = net.vms[vm.id].nic
        net.change_nic(vm.id, nic, replace(nic, prefixes=prefixes.of(1)[:number]))
        found.append(flows(net))
        assert net.routed_to(prefix[1]) is not None
    assert found[1] - found[0] == {"edge1": 3, "leaf1": 2, "spine1": 1, "spine2": 1}
    assert found[2] - found[1] == {"edge1": 4, "leaf1": 2, "spine1": 1, "spine2": 1}


@pytest.mark.parametrize("others", [0, 40])
def test_a_delegated_prefix_is_computed_alone_however_many_there_are(
    others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in entries, with those of its VM."""
    net = fabric()
    add_ipv6(net)
    for number in (1, 2):
        add_vm(net, number, number)
    for number in range(others):
        net.assign(delegated(2, number))
    kept = Compiler(net)
    kept.update(net.everything())
    computed: list[int] = []
    compute = compiler.contribution

    def counted(net: Network, owner: Owner) -> Contribution:
        found = compute(net, owner)
        computed.append(sum(map(len, found.values())))
        return found

    monkeypatch.setattr(compiler, "contribution", counted)
    lease, of_vm, of_prefix = delegated(1, others), 57, 5
    changed = kept.update(net.assign(lease))
    assert sum(computed) == of_vm + of_prefix
    leaves, spines = {"leaf1", "leaf2"}, {"spine1", "spine2"}
    assert changed.keys() == leaves | spines | {"edge1"}
    assert {switch: len(keys) for switch, keys in changed.items() if switch in spines} == dict.fromkeys(
        spines, 2
    )
    kept.update(net.unassign(lease.key))
    assert sum(computed) == 2 * of_vm - 8 + of_prefix, "without what is gone"


def delegated(number: int, prefix: int) -> Assignment:
    of = IPv6Network((int(IPv6Address("fd00:a::")) + (prefix << 64), 64))
    return replace(assignment(number), ip=of.network_address, prefix=of)


def test_its_packets_are_as_large_as_the_subnets_of_its_nic_say() -> None:
    """Of a NIC of which no vnet is said: these go to another vnet, and its prefixes follow."""
    net, sizes = routed(), list[int | None]()
    nic, prefix = net.vms["vm1"].nic, prefixes.of(1)[0]
    net.put_vnet(Vnet("narrow", mtu=1300))
    net.change_nic("vm1", nic, replace(nic, addresses=(vm_ip(1),)))

    def put_into(vnet: str) -> Touched:
        touched = net.add_subnet(replace(net.subnets["blue"], vnet=vnet))
        sizes.append(narrow_way(net, prefix, DEFAULT_VRF))
        return touched

    equals_recomputed(net, ["narrow", DEFAULT_VNET.id], put_into)
    assert sizes == [1300, None]


def test_an_anycast_address_takes_what_each_takes_that_has_it() -> None:
    """Whichever of them changed last."""
    net, ip, sizes = fabric(), IPv4Address("10.9.9.9"), list[int | None]()
    net.put_vnet(Vnet("narrow", mtu=1300))
    for number, vnet in ((1, "narrow"), (2, "")):
        nic = add_vm(net, number, number, bound=False).nic
        net.change_nic(f"vm{number}", nic, replace(nic, anycast=(ip,), vnet=vnet))

    def change(vm: str) -> Touched:
        touched = net.put_vm(replace(net.vms[vm], restart="on-crash"))  # type: ignore[arg-type]
        sizes.append(narrow_way(net, host_prefix(ip), DEFAULT_VRF))
        return touched

    equals_recomputed(net, ["vm1", "vm2"], change)
    assert sizes == [1300, 1300]


def flows(net: Network) -> Counter[str]:
    found: Counter[str] = Counter()
    for switch, program in contribution(net, Owner("vm", "vm1")).items():
        found[switch] += sum(isinstance(entry, Flow) for entry in program.values())
    return found


def test_a_subnet_that_takes_smaller_packets_from_now_on_changes_what_is_routed_beside_it() -> None:
    """Of a NIC that is in no vnet its address says which it is in."""
    net = fabric()
    nic = add_vm(net, 1, 1).nic
    net.put_vnet(Vnet("narrow", mtu=1400))
    net.change_nic("vm1", nic, replace(nic, prefixes=prefixes.of(1)[:1], addresses=(vm_ip(1),)))
    subnet = next(one for one in net.subnets.values() if vm_ip(1) in one.prefix)
    vnets = ["narrow", subnet.vnet]
    equals_recomputed(net, vnets, lambda vnet: net.add_subnet(replace(subnet, vnet=vnet)))

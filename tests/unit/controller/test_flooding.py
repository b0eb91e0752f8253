"""A vnet that floods, with the controller: on and off while all runs, kept over its restart, judged then."""

from dataclasses import replace

import pytest

from retinue.controller.state import Stored
from retinue.core.model import Flood, ModelError, PortStatus, VMPort
from retinue.core.pipeline.entry import Group
from retinue.core.pipeline.flooding import GROUPS
from retinue.southbound.ovsdb import BridgePort
from support.fabric.flooded import GROUP_MAC, MDNS, VNETS, Member, add_vm, add_vnets
from support.fabric.networks import fabric, vm_port
from support.fabric.world import udp_frame
from support.fakes.session import FakeNetwork

SHOP, GROUP = VNETS["shop"], GROUPS + VNETS["shop"].vlan
ONE, TWO = Member(1, "vm1", "shop"), Member(2, "vm2", "shop")
FRAME = udp_frame(ONE.mac, GROUP_MAC, ONE.ip, MDNS)


async def network() -> FakeNetwork:
    """vm1 on server1 and vm2 on server2."""
    net = fabric()
    add_vnets(net, ipv6=False)
    for at, one in enumerate((ONE, TWO), 1):
        add_vm(net, one.vm, at, [one])
    fake = FakeNetwork(net, lambda: 1000.0)
    await fake.start()
    return fake


def heard(fake: FakeNetwork) -> list[tuple[str, int]]:
    fake.heard.clear()
    fake.send("edge1", vm_port(1), FRAME)
    return [(switch, port) for switch, port, _ in fake.heard]


def groups(fake: FakeNetwork) -> dict[str, Group]:
    return {name: held.groups[GROUP] for name, held in fake.fabric.switches.items() if GROUP in held.groups}


async def test_it_is_switched_on_and_off_while_all_runs() -> None:
    fake = await network()
    assert heard(fake) == [("edge2", vm_port(2))]
    await fake.controller.vnets.set_vnet(replace(SHOP, flood=Flood.DROPPED))
    assert (heard(fake), groups(fake)) == ([], {})
    await fake.controller.vnets.set_vnet(SHOP)
    assert heard(fake) == [("edge2", vm_port(2))]
    with pytest.raises(ModelError, match="needs a VLAN"):
        await fake.controller.vnets.set_vnet(replace(SHOP, vlan=0))
    await fake.controller.vnets.set_vnet(replace(SHOP, vlan=50))
    assert heard(fake) == [("edge2", vm_port(2))]
    assert groups(fake) == {}, "those of the VLAN that it had are gone"
    await fake.stop()


async def test_a_nic_that_is_put_into_the_vnet_hears_from_then_on() -> None:
    fake = await network()
    quiet = Member(3, "vm3", "quiet")
    add_vm(fake.net, "vm3", 3, [quiet])
    await fake.controller.context.install(fake.net.everything())
    assert heard(fake) == [("edge2", vm_port(2))]
    vm = fake.net.vms["vm3"]
    touched = fake.net.unassign(quiet.ip) | fake.net.put_vm(replace(vm, nics=(replace(vm.nic, vnet="shop"),)))
    await fake.controller.context.install(touched)
    assert sorted(heard(fake)) == [("edge2", vm_port(2)), ("edge3", vm_port(3))]
    await fake.stop()


async def test_a_restart_of_the_controller_takes_no_bucket_and_sends_nothing() -> None:
    """The ports of its NICs are told edge by edge: until then each group stays as it is."""
    fake = await network()
    before = groups(fake)
    net = fabric()
    add_vnets(net, ipv6=False)
    again = FakeNetwork(net, lambda: 1000.0)
    again.fabric = fake.fabric
    held = list(fake.net.assignments.values())
    again.controller.restore(Stored(vms=list(fake.net.vms.values()), assignments=held))
    await again.controller.start()
    for switch in again.net.switches:
        again.connect(switch)
        await again.settle()
        assert groups(again) == before
    for at, one in enumerate((ONE, TWO), 1):
        port = BridgePort(0x30 + at, "br0", f"tap{at}", vm_port(at), PortStatus.UP, one.vm, one.mac)
        again.controller.inventory.ports.changed([], [port])
        again.controller.inventory.ports.edge_read([0x30 + at], [one.vm])
        await again.settle()
        assert groups(again) == before
        assert heard(again) == [("edge2", vm_port(2))]
    assert not any(session.applied for session in again.sessions.values())
    assert not again.controller.context.installer.pending()
    await again.stop()
    await fake.stop()


async def test_a_port_that_went_meanwhile_is_taken_out_when_the_edge_has_been_read() -> None:
    fake = await network()
    fake.net.set_vm_port("vm1", "edge3", VMPort(vm_port(1)))
    net = fabric()
    add_vnets(net, ipv6=False)
    again = FakeNetwork(net, lambda: 1000.0)
    again.fabric = fake.fabric
    again.controller.restore(Stored(vms=list(fake.net.vms.values())))
    await again.controller.start()
    for switch in again.net.switches:
        again.connect(switch)
    await again.settle()
    assert len(groups(again)["edge2"].buckets) == 2, "the NIC's and the uplink's"
    again.controller.inventory.ports.edge_read([0x32])
    await again.settle()
    assert len(groups(again)["edge2"].buckets) == 1
    assert len(groups(again)["edge1"].buckets) == 2, "that edge has not been read"
    await again.stop()
    await fake.stop()

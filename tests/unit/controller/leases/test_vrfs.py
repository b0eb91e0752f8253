"""A tenant's lease over the whole controller: relayed, bound in its VRF beside another's, and kept."""

from dataclasses import replace
from ipaddress import IPv4Address

from retinue.controller.app import Controller
from retinue.core.model import NIC, VM, Vnet, Vrf, in_vrf
from retinue.core.packets import DHCP, arp_request, dhcp_frame, discover, parse, parse_arp, request
from support.fabric.dhcp_lab import SERVER, SERVER_AT, DhcpLab, dhcp_lab
from support.fabric.networks import GATEWAY, GATEWAY_MAC, fabric, vm_ip, vm_mac, vm_port
from support.fabric.tenants import add_tenants
from support.fabric.world import udp_frame
from support.fakes.memory_store import MemoryStore
from support.recent_events import recent

TENANT = 2
"""A VM of the VRF red on server2."""
OTHERS = vm_ip(1)


async def tenants(store: MemoryStore | None = None) -> DhcpLab:
    net = fabric()
    add_tenants(net)
    net.add_subnet(replace(net.subnets["redblue"], dhcp=(SERVER,)))
    lab = await dhcp_lab(net, store)

    def says(asked: DHCP) -> DHCP | None:
        reply = lab.granted(asked)
        if reply is None or asked.giaddr != GATEWAY:
            return reply
        mac, relayed = lab.fake.net.servers["dhcp"].mac, replace(reply, giaddr=GATEWAY)
        back = dhcp_frame(relayed, mac, GATEWAY_MAC, SERVER, GATEWAY, 67, 67)
        lab.fake.send(*SERVER_AT, back)
        return None

    lab.says = says
    await lab.add(1)
    await lab.boot(1)
    red = VM(f"vm{TENANT}", (NIC(vm_mac(TENANT), f"vm{TENANT}", vnet="rednet"),), "server2")
    lab.controller.inventory.register_vms([red])
    await lab.plug(TENANT, TENANT)
    return lab


async def boots(lab: DhcpLab, ip: IPv4Address = OTHERS) -> None:
    """The tenant's VM asks, and is granted this address."""
    lab.grants[vm_mac(TENANT)] = ip
    await lab.say(TENANT, discover(vm_mac(TENANT), 7))
    await lab.say(TENANT, request(vm_mac(TENANT), 7, ip, SERVER))


async def test_a_tenant_is_leased_an_address_that_another_has() -> None:
    store = MemoryStore()
    lab = await tenants(store)
    await boots(lab)
    asked = [heard[2] for heard in lab.served if heard[2].chaddr == vm_mac(TENANT)]
    assert {(dhcp.giaddr, dhcp.hops) for dhcp in asked} == {(GATEWAY, 1)}
    assert all(dhcp.relay_agent is not None and b"\x97\x04\x00red" in dhcp.relay_agent for dhcp in asked)
    assert [heard[2].yiaddr for heard in lab.heard_by(TENANT)] == [vm_ip(1), vm_ip(1)]
    assert all(heard[2].relay_agent is None for heard in lab.heard_by(TENANT))
    rows = {(row.vrf, row.ip, row.vm) for row in lab.fake.net.bindings()}
    assert rows == {("default", vm_ip(1), "vm1"), ("red", vm_ip(1), f"vm{TENANT}")}
    kept = store.load()
    assert {(held.vrf, held.ip) for held in kept.assignments} == {("default", vm_ip(1)), ("red", vm_ip(1))}
    await lab.fake.stop()
    net = fabric()
    add_tenants(net)
    again = Controller(net, store, clock=lambda: 1001.0)
    again.restore(kept)
    assert net.assignments.keys() == {vm_ip(1), in_vrf("red", vm_ip(1))}


async def test_what_a_tenant_gives_back_is_its_own() -> None:
    lab = await tenants()
    await boots(lab)
    await lab.controller.inventory.remove_vm(f"vm{TENANT}")
    await lab.fake.settle()
    assert [held.vm for held in lab.fake.net.assignments.values()] == ["vm1"]
    await lab.fake.stop()


async def test_a_tenant_is_told_of_its_own_neighbours() -> None:
    """vm1 has the address that is asked for, the tenant's VRF has nobody with it; then somebody."""
    lab = await tenants()
    await boots(lab, vm_ip(9))
    fake = lab.fake
    fake.heard.clear()
    ask = arp_request(vm_mac(TENANT), vm_ip(9), vm_ip(1))
    fake.send("edge2", vm_port(TENANT), ask)
    await fake.settle()
    assert not fake.heard
    third = VM("vm3", (NIC(vm_mac(3), "vm3", (vm_ip(1),), vnet="rednet"),), "server3")
    lab.controller.inventory.register_vms([third])
    await lab.plug(3, 3)
    fake.send("edge2", vm_port(TENANT), ask)
    await fake.settle()
    [(switch, port, answer)] = fake.heard
    assert (switch, port, parse_arp(parse(answer).payload).sha) == ("edge2", vm_port(TENANT), GATEWAY_MAC)
    fake.heard.clear()
    fake.send("edge2", vm_port(TENANT), udp_frame(vm_mac(TENANT), GATEWAY_MAC, vm_ip(9), vm_ip(1)))
    assert [(switch, port) for switch, port, _ in fake.heard] == [("edge3", vm_port(3))]
    await fake.stop()


async def test_a_vnet_that_is_empty_may_change_its_vrf() -> None:
    lab = await tenants()
    await lab.controller.vnets.add_vnets([Vnet("new", vrf="red")])
    await lab.controller.vnets.set_vnet(Vnet("new", vrf="green"))
    assert lab.fake.net.vnets["new"].vrf == "green"
    await lab.fake.stop()


async def test_a_vm_that_is_registered_into_a_vrf_leaves_its_lease_behind() -> None:
    """What it may send as in one VRF it may not in another."""
    lab = await tenants()
    net = lab.fake.net
    vm = net.vms["vm1"]
    net.put_vm(replace(vm, reported=True))
    lab.controller.inventory.register_vms([replace(vm, nics=(replace(vm.nic, vnet="rednet"),))])
    await lab.fake.settle()
    assert not net.held_by("vm1")
    [gone] = [event.data for event in recent(lab.controller.events) if event.type == "binding.removed"]
    assert (gone["vm"], gone["ip"]) == ("vm1", vm_ip(1))
    frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(TENANT))
    assert not lab.fake.fabric.send("edge1", vm_port(1), frame).arrivals
    await lab.fake.stop()


async def test_a_vrf_whose_tag_the_file_gives_to_another_gets_a_free_one() -> None:
    """Nobody outside sees it; all that is in the VRF would be lost."""
    store = MemoryStore()
    controller = Controller(fabric(), store, clock=lambda: 1001.0)
    await controller.vnets.add_vrfs({"blue": 0, "gold": 0})
    net = fabric()
    net.put_vrf(Vrf("red", 1))
    Controller(net, store, clock=lambda: 1001.0).restore(store.load())
    assert {vrf.id: vrf.tag for vrf in net.vrfs.values()} == {"default": 0, "red": 1, "blue": 3, "gold": 2}

"""The networks on which it is proved; the moments in which each of them may be are those of `moments`."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from prove.moments import Case
from retinue.core.model import (
    DEFAULT_VNET,
    DEFAULT_VRF,
    NIC,
    VM,
    Allowed,
    Assignment,
    BindingKind,
    Flood,
    Network,
    Origin,
    PortRef,
    Server,
    Subnet,
    VMPort,
    Vnet,
    Vrf,
    port_id_of,
)
from support.fabric.ipv6 import vm_ip6
from support.fabric.networks import (
    add_ipv6,
    add_uplink,
    add_vm,
    fabric,
    group,
    holding6,
    nic_numbers,
    split,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.tenants import BESIDE, Held, add_tenant
from support.fabric.tenants import add_vm as add_tenants_vm
from support.fabric.ways_out import RED_VLAN, add_exits

SHARED, VIRTUAL = IPv4Address("10.1.0.200"), "00:00:5e:00:01:07"
"""An address that several may take, and a virtual router's MAC."""
SERVICE = IPv4Address("10.9.9.9")


def small() -> Case:
    """One leaf, no spine; IPv4, one subnet."""
    net = fabric(1, 0, (1, 1))
    add_vm(net, 1, 1)
    add_vm(net, 2, 2)
    return Case(net, "vm1", "server2")


def tiers() -> Case:
    """Two pods of a leaf and a spine, and a core between them; IPv4; a VM moves to the other pod."""
    net = fabric(2, 1, (1, 2), cores=1)
    add_vm(net, 1, 1)
    add_vm(net, 2, 2)
    return Case(net, "vm1", "server2")


def macs() -> Case:
    """Two leaves and a spine that knows MACs alone; IPv4; a VM moves to under the other leaf."""
    net = fabric(2, 1, (1, 2), by_mac=True)
    add_vm(net, 1, 1)
    add_vm(net, 2, 2)
    return Case(net, "vm1", "server2")


def dual() -> Case:
    """Two leaves and a spine; both families; a VM with two NICs moves to under another leaf."""
    net = fabric(2, 1, (1, 2))
    add_ipv6(net)
    for number, at, nics in ((1, 1, 2), (2, 1, 1), (3, 2, 1)):
        vm = add_vm(net, number, at, nics=nics)
        for nic in nic_numbers(vm):
            net.assign(replace(holding6(nic), vm=vm.id))
    return Case(net, "vm1", "server2")


def vnets() -> Case:
    """Two vnets of several subnets and both families, of which one takes smaller packets, groups of servers
    with gateways of their own, an address that two VMs may take with a virtual router's MAC, a trusted NIC;
    two spines. A VM moves under the same leaf."""
    net = fabric(2, 2, (1, 1, 2))
    net.put_vnet(Vnet("shop", 42, mtu=1400))
    add_ipv6(net)
    net.add_subnet(
        Subnet("shop6", IPv6Network("fd00:2::/64"), IPv6Address("fd00:2::fe"), vnet="shop", slaac=True)
    )
    split(net)
    net.add_subnet(replace(net.subnets["second"], vnet="shop"))
    group(net)
    for number, at in ((1, 1), (4, 1), (2, 2), (5, 3)):
        add_vm(net, number, at)
        held = holding6(number)
        if number in (4, 5):  # Those whose IPv4 addresses are in the subnet "second".
            held = replace(held, ip=IPv6Address(f"fd00:2::{100 + number}"))
        net.assign(held)
    for number in (1, 2):
        nic = net.vms[f"vm{number}"].nic
        net.change_nic(
            f"vm{number}", nic, replace(nic, allowed=(Allowed(SHARED, VIRTUAL),), trusted=number == 2)
        )
    mac = net.vms["vm1"].nic.mac
    net.take(Assignment(SHARED, mac, "vm1", BindingKind.ALLOWED, Origin.CONTROLLER))
    local = replace(holding6(4), ip=IPv6Address("fe80::abcd:4"))  # A link-local address of its own.
    net.assign(local)
    return Case(net, "vm1", "server2")


def far() -> Case:
    """As `vnets`, but the VM moves to under another leaf, and into another group of servers."""
    return replace(vnets(), vm="vm2", target="server3")


def tenants() -> Case:
    """A VRF with the addresses of the default one, and a subnet of its own; a VM with a NIC in each moves to
    under another leaf."""
    net = fabric(2, 1, (1, 2))
    add_tenant(net, "red")
    for number, at in ((2, 1), (3, 2)):
        add_vm(net, number, at)
    add_tenants_vm(net, "vm1", 1, [Held(1, "vm1", "red", vm_ip(2)), Held(17, "vm1", DEFAULT_VRF, vm_ip(1))])
    add_tenants_vm(net, "vm4", 1, [Held(4, "vm4", "red", vm_ip(3))])
    add_tenants_vm(net, "vm5", 2, [Held(5, "vm5", "red", BESIDE[7])])
    return Case(net, "vm1", "server2")


def vxlan() -> Case:
    """As `tenants`, but VXLAN joins the leaves, over an IP network of others: one for each server, and one
    with router and DHCP server."""
    net = fabric(3, 0, (1, 2), over_ip=True)
    add_tenant(net, "red")
    for number, at in ((2, 1), (3, 2)):
        add_vm(net, number, at)
    add_tenants_vm(net, "vm1", 1, [Held(1, "vm1", "red", vm_ip(2)), Held(17, "vm1", DEFAULT_VRF, vm_ip(1))])
    add_tenants_vm(net, "vm4", 1, [Held(4, "vm4", "red", vm_ip(3))])
    return Case(net, "vm1", "server2")


def routed() -> Case:
    """Prefixes of both families are routed to a NIC that moves; one leaf, no spine."""
    return _with_prefixes(fabric(1, 0, (1, 1)))


def _with_prefixes(net: Network) -> Case:
    add_ipv6(net)
    for number, at in ((1, 1), (2, 2)):
        add_vm(net, number, at)
        net.assign(holding6(number))
    nic = net.vms["vm1"].nic
    prefixes = (IPv4Network("10.9.0.0/28"), IPv6Network("fd00:9::/64"))
    net.change_nic("vm1", nic, replace(nic, prefixes=prefixes))
    return Case(net, "vm1", "server2")


def narrow() -> Case:
    """As `routed`, with two leaves and a spine, but the VMs' vnet takes smaller packets than the switches."""
    return _narrow(fabric(2, 1, (1, 2)))


def narrow_over_ip() -> Case:
    """As `narrow`, with VXLAN between three leaves."""
    return _narrow(fabric(3, 0, (1, 2), over_ip=True))


def _narrow(net: Network) -> Case:
    net.put_vnet(replace(DEFAULT_VNET, mtu=1400))
    return _with_prefixes(net)


def uplinks() -> Case:
    """Two servers with two uplinks each, to the same two leaves, in turn; a spine, and a leaf with one server
    and the router. Both families. The first server's traffic goes by its other uplink; the VM moves between
    the two."""
    net = fabric(3, 1, (1, 2, 3))
    add_ipv6(net)
    for server, other in ((1, 2), (2, 1)):
        add_uplink(net, server, other)
    for number in (1, 2, 3):
        add_vm(net, number, number)
        net.assign(holding6(number))
    return Case(net, "vm1", "server2", "server1")


def flooded_uplinks() -> Case:
    """A vnet that floods, of IPv4, and one of a VRF; a server with two uplinks, whose traffic goes by the
    other, and where the VM is that moves."""
    net = fabric(2, 1, (1, 2))
    add_uplink(net, 1, 2)
    _add_flooding(net, ipv6=False)
    return Case(net, "vm1", "server2", "server1")


def ways_out() -> Case:
    """A VRF with a router of its own, by a VLAN at a leaf's port, with DHCPv6; a prefix of each family is
    routed to the NIC that moves, and one delegated to it. The default VRF has the same addresses, and its own
    way out."""
    net = fabric(2, 1, (1, 2))
    add_tenant(net, "red", ipv6=True)
    add_ipv6(net)
    dhcp = IPv4Address("10.1.0.2")
    net.add_subnet(replace(net.subnets["redblue6"], slaac=False, dhcp6=True, dhcp=(dhcp,)))
    net.add_subnet(replace(net.subnets["blue6"], dhcp6=True))
    add_exits(net, {"red": RED_VLAN}, apart=True)
    add_vm(net, 2, 1)
    net.assign(holding6(2))
    delegated = IPv6Network("fd00:8::/60")
    held = Held(1, "vm1", "red", vm_ip(2), vm_ip6(2), IPv4Network("10.8.0.0/28"), delegated)
    vm = add_tenants_vm(net, "vm1", 1, [held])
    prefixes = (*vm.nic.prefixes, IPv6Network("fd00:9::/64"))
    net.change_nic("vm1", vm.nic, replace(vm.nic, prefixes=prefixes))
    add_tenants_vm(net, "vm4", 2, [Held(4, "vm4", "red", vm_ip(3), vm_ip6(3))])
    return Case(net, "vm1", "server2")


def flooded() -> Case:
    """A vnet that floods, of both families, and one of a VRF whose tag is that vnet's VLAN; the VM that moves
    has a NIC in each."""
    net = fabric(2, 1, (1, 2))
    _add_flooding(net, ipv6=True)
    return Case(net, "vm1", "server2")


def flooded_over_ip() -> Case:
    """As `flooded`, of IPv4, with VXLAN between the leaves."""
    net = fabric(3, 0, (1, 2), over_ip=True)
    _add_flooding(net, ipv6=False)
    return Case(net, "vm1", "server2")


def isolated() -> Case:
    """Two vnets with the same addresses, each isolated, and each floods: its VLAN is the tag of its VRF."""
    net = fabric(2, 1, (1, 2))
    for vnet in (Vnet("shop", 42, flood=Flood.CONTROLLED), Vnet("reds", 43, flood=Flood.CONTROLLED)):
        vrf, alone = vnet.isolated()
        net.put_vrf(vrf)
        net.put_vnet(alone)
    _add_vms_of_both(net, ipv6=False)
    return Case(net, "vm1", "server2")


def service() -> Case:
    """An anycast address of a VM that moves to under the other leaf, and of a machine there without VMs."""
    net = fabric(2, 1, (1, 2))
    for number, at in ((1, 1), (2, 2), (3, 1)):
        add_vm(net, number, at)
    nic = net.vms["vm1"].nic
    net.change_nic("vm1", nic, replace(nic, anycast=(SERVICE,)))
    net.set_ports("leaf2", {**net._numbers["leaf2"], "box": 80})
    box = Server("box", "02:00:00:00:02:01", IPv4Address("10.0.0.201"), anycast=(SERVICE,), load=1)
    net.put_server(replace(box, given_at=PortRef("leaf2", "box")))
    return Case(net, "vm1", "server2")


def _add_flooding(net: Network, *, ipv6: bool) -> None:
    net.put_vrf(Vrf("red", 42))
    net.put_vnet(Vnet("shop", 42, flood=Flood.CONTROLLED))
    net.put_vnet(Vnet("reds", 43, vrf="red", flood=Flood.CONTROLLED))
    _add_vms_of_both(net, ipv6=ipv6)


def _add_vms_of_both(net: Network, *, ipv6: bool) -> None:
    prefix = IPv4Network("10.2.0.0/24")
    for id in ("shop", "reds"):
        net.add_subnet(Subnet(id, prefix, prefix[254], vnet=id))
    if ipv6:
        net.add_subnet(Subnet("shop6", IPv6Network("fd00:2::/64"), IPv6Address("fd00:2::fe"), vnet="shop"))
    add_vm(net, 5, 1)
    for id, at, held in (
        ("vm1", 1, {1: "shop", 17: "reds"}),
        ("vm2", 1, {2: "shop"}),
        ("vm3", 2, {3: "shop"}),
        ("vm4", 2, {4: "reds"}),
    ):
        numbers = list(held)
        nics = tuple(
            NIC(vm_mac(n), port_id_of(id, slot), vnet=held[n], slot=slot) for slot, n in enumerate(numbers, 1)
        )
        net.put_vm(VM(id, nics, f"server{at}"))
        for nic, n in zip(nics, numbers, strict=True):
            net.set_vm_port(nic.port_id, f"edge{at}", VMPort(vm_port(n)))
            net.assign(replace(net.static(id, nic, prefix[100 + n]), vrf=net.vrf_of(nic)))
            if ipv6 and nic.vnet == "shop":
                net.assign(net.static(id, nic, IPv6Address(f"fd00:2::{100 + n}")))


NETWORKS: dict[str, Callable[[], Case]] = {
    "small": small,
    "tiers": tiers,
    "macs": macs,
    "dual": dual,
    "vnets": vnets,
    "far": far,
    "tenants": tenants,
    "routed": routed,
    "narrow": narrow,
    "narrow_over_ip": narrow_over_ip,
    "uplinks": uplinks,
    "flooded_uplinks": flooded_uplinks,
    "vxlan": vxlan,
    "ways_out": ways_out,
    "flooded": flooded,
    "flooded_over_ip": flooded_over_ip,
    "isolated": isolated,
    "service": service,
}

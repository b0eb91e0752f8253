"""The networks on which it is proved, and the moments in which each of them may be.

A moment is either settled, all switches have what they should; or a stage of a change: the switches of the
stages before have it, those of later ones have not, and of the switches of this stage each may or may not.
The changes are those of a migration, as the controller makes them and in its order
(`controller/migrations/placing.py`).
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from prove.reach import End
from retinue.core.migration import PlacementChange
from retinue.core.migration.placement import placement_of
from retinue.core.migration.record import Migration, MigrationState
from retinue.core.model import (
    DEFAULT_VRF,
    NIC,
    VM,
    Allowed,
    Assignment,
    BindingKind,
    Flood,
    Network,
    Origin,
    Subnet,
    VMPort,
    Vnet,
    Vrf,
    port_id_of,
)
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Program
from retinue.core.pipeline.underlay import Near, underlay_of
from support.fabric.ipv6 import vm_ip6
from support.fabric.networks import (
    UPLINK,
    add_ipv6,
    add_vm,
    fabric,
    group,
    holding6,
    nic_numbers,
    split,
    tunnel_ends,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.tenants import BESIDE, Held, add_tenant
from support.fabric.tenants import add_vm as add_tenants_vm
from support.fabric.ways_out import RED_VLAN, add_exits

SHARED, VIRTUAL = IPv4Address("10.1.0.200"), "00:00:5e:00:01:07"
"""An address that several may take, and a virtual router's MAC."""


@dataclass(frozen=True)
class Moment:
    """What the switches may hold, and what is to become of frames meanwhile."""

    name: str
    net: Network
    programs: dict[str, tuple[Program, ...]]
    cables: dict[End, End]
    tunnels: dict[int, End]
    """By its address on the IP network that joins leaves: each tunnel's end."""
    places: dict[str, frozenset[str]]
    """By NIC: the servers at which a frame for it may arrive; at one of them."""
    brought: dict[str, dict[str, frozenset[str]]] = field(default_factory=dict)
    """By NIC, and by server to which the fabric may still bring a frame for it: where that one may arrive."""
    copied: frozenset[str] = frozenset()
    """NICs whose frames may arrive at each of these servers, once at each."""
    everywhere: bool = False
    """What is copied does arrive at each of them."""
    senders: dict[str, frozenset[str]] = field(default_factory=dict)
    """By NIC: the servers from which its VM's honest frames must arrive."""
    open: dict[str, frozenset[str]] = field(default_factory=dict)
    """By NIC: the servers where its port may be open; at any other its port is nobody's."""


@dataclass
class Case:
    """A network, and the VM that is migrated in it."""

    net: Network
    vm: str = ""
    target: str = ""
    programs: dict[str, Program] = field(default_factory=dict)

    def settle(self) -> None:
        compiler = Compiler(self.net)
        compiler.update(self.net.everything())
        self.programs = {switch: dict(compiler.program(switch)) for switch in self.net.switches}


def cables(net: Network) -> dict[End, End]:
    """By each end of a cable: the other."""
    found: dict[End, End] = {}
    pairs: list[tuple[End, End]] = []
    for link in net.links:
        leaf, spine = net.port_number(link.lower), net.port_number(link.upper)
        assert leaf is not None and spine is not None
        pairs.append(((link.lower.switch, leaf), (link.upper.switch, spine)))
    for server in net.servers.values():
        at = net.location(server.id)
        if server.edge and at is not None:
            port = net.port_number(at)
            assert port is not None
            pairs.append(((server.edge, UPLINK), (at.switch, port)))
    for one, other in pairs:
        found[one], found[other] = other, one
    return found


# ---- moments ----


def moments(case: Case) -> Iterator[Moment]:
    """The network as it is, and every moment of the VM's migration: done, and undone at each of its steps."""
    case.settle()
    yield settled(case, "at rest")
    if not case.vm:
        return
    for step in migration(case):
        yield from step


def settled(case: Case, name: str) -> Moment:
    net = deepcopy(case.net)
    places: dict[str, frozenset[str]] = {}
    copied: set[str] = set()
    senders: dict[str, frozenset[str]] = {}
    brought: dict[str, dict[str, frozenset[str]]] = {}
    for vm in net.vms.values():
        copies = {vm.copied_to} - {"", vm.server}
        for nic in vm.nics:
            places[nic.port_id] = frozenset({vm.server, *copies})
            senders[nic.port_id] = frozenset({vm.server, *vm.also})
            here = {server: frozenset({server}) for server in vm.also}
            sent_on = {vm.forwarded_from} - {""}
            brought[nic.port_id] = here | dict.fromkeys({vm.server, *sent_on}, places[nic.port_id])
            if copies:
                copied.add(nic.port_id)
    held: dict[str, tuple[Program, ...]] = {s: (program,) for s, program in case.programs.items()}
    both = frozenset(copied)
    joined = {int(address): end for end, address in tunnel_ends(net)}
    return Moment(name, net, held, cables(net), joined, places, brought, both, True, senders, senders)


def changing(case: Case, name: str, near: Near, change: Callable[[Network], object]) -> Iterator[Moment]:
    """Make a change: a moment for each stage in which switches are told, and the one after."""
    before = settled(case, name)
    old = dict(case.programs)
    change(case.net)
    case.settle()
    after = settled(case, name)
    changed = {
        switch: {k for k in {*old[switch], *new} if old[switch].get(k) != new.get(k)}
        for switch, new in case.programs.items()
    }
    stages = underlay_of(case.net).stages({s: keys for s, keys in changed.items() if keys}, near)
    for number, stage in enumerate(stages, 1):
        done = {switch for earlier in stages[: number - 1] for switch in earlier}
        yield Moment(
            f"{name}: stage {number} ({', '.join(stage)})",
            after.net,
            {
                switch: (old[switch], new) if switch in stage else (new if switch in done else old[switch],)
                for switch, new in case.programs.items()
            },
            before.cables,
            before.tunnels,
            {nic: before.places[nic] | after.places[nic] for nic in after.places},
            {nic: _either(before.brought[nic], after.brought[nic]) for nic in after.brought},
            before.copied | after.copied | _may_be_copied(before.net) | _may_be_copied(after.net),
            False,
            {nic: before.senders[nic] & after.senders[nic] for nic in after.senders},
            {nic: before.senders[nic] | after.senders[nic] for nic in after.senders},
        )
    yield replace(after, name=f"{name}: done")


def _either(before: dict[str, frozenset[str]], after: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """What is promised both before and after."""
    return {server: before[server] | after[server] for server in before.keys() & after.keys()}


def _may_be_copied(net: Network) -> frozenset[str]:
    return frozenset(nic.port_id for vm in net.vms.values() if vm.copied_to for nic in vm.nics)


def migration(case: Case) -> Iterator[Iterator[Moment]]:
    """The steps of the VM's migration. What is undone starts again from where it was."""
    vm = case.net.vms[case.vm]
    underlay = underlay_of(case.net)
    source, target = vm.server, case.target
    steps = ((MigrationState.DIVERTED, 0.0),)
    runs = Migration("migration-1", vm.id, source, target, MigrationState.DIVERTED, steps)
    paused = replace(runs, stopped_at=1.0, diverted=True)
    resumed = replace(paused, resumed_at=2.0)

    def placed(as_of: Migration, change: PlacementChange, near: Near, how: str = "") -> Iterator[Moment]:
        name = f"{change.name.lower()}{how}"
        return changing(case, name, near, lambda net: net.put_vm(placement_of(net.vms[vm.id], as_of, change)))

    edge = case.net.servers[target].edge
    ports = [(nic.port_id, VMPort(vm_port(n))) for nic, n in zip(vm.nics, nic_numbers(vm), strict=True)]
    yield changing(
        case, "a port at the target", (), lambda net: [net.set_vm_port(id, edge, port) for id, port in ports]
    )
    divert = underlay.order_to_divert(source, target)
    give_back = underlay.order_to_return(source, target)
    withdraw = underlay.order_to_withdraw
    yield placed(runs, PlacementChange.ADMITTED, [underlay.near(target)])
    admitted = deepcopy(case)
    yield placed(runs, PlacementChange.TARGET_CLOSED, withdraw(target), " (undone before it is diverted)")
    # Who cannot be held back is diverted while it stands still already.
    _go_back(case, admitted)
    yield placed(replace(paused, diverted=False), PlacementChange.DIVERTED, divert, " (paused already)")
    _go_back(case, admitted)
    yield placed(runs, PlacementChange.DIVERTED, divert)
    yield placed(replace(runs, diverted=True), PlacementChange.FORWARDED, divert)
    yield placed(paused, PlacementChange.COPIED, divert)
    copied = deepcopy(case)
    yield placed(paused, PlacementChange.RETURNED, give_back)
    yield placed(paused, PlacementChange.TARGET_CLOSED, withdraw(target), " (undone)")
    _go_back(case, copied)
    yield placed(resumed, PlacementChange.SOURCE_CLOSED, ())
    yield placed(resumed, PlacementChange.SETTLED, withdraw(source))


def _go_back(case: Case, to: Case) -> None:
    case.net, case.programs = deepcopy(to.net), dict(to.programs)


# ---- networks ----


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
    net = fabric(1, 0, (1, 1))
    add_ipv6(net)
    for number, at in ((1, 1), (2, 2)):
        add_vm(net, number, at)
        net.assign(holding6(number))
    nic = net.vms["vm1"].nic
    prefixes = (IPv4Network("10.9.0.0/28"), IPv6Network("fd00:9::/64"))
    net.change_nic("vm1", nic, replace(nic, prefixes=prefixes))
    return Case(net, "vm1", "server2")


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


def _add_flooding(net: Network, *, ipv6: bool) -> None:
    net.put_vrf(Vrf("red", 42))
    net.put_vnet(Vnet("shop", 42, flood=Flood.CONTROLLED))
    net.put_vnet(Vnet("reds", 43, vrf="red", flood=Flood.CONTROLLED))
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
    "dual": dual,
    "vnets": vnets,
    "far": far,
    "tenants": tenants,
    "routed": routed,
    "vxlan": vxlan,
    "ways_out": ways_out,
    "flooded": flooded,
    "flooded_over_ip": flooded_over_ip,
}

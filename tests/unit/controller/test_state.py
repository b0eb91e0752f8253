"""What outlives a controller: one list, which leaves nothing out, and changes that are stored as they say."""

from collections import UserDict, deque
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any, get_args

import pytest
from msgspec.structs import replace as replaced

from retinue.controller import (
    changes,
    fabric_changes,
    lease_changes,
    link_changes,
    marks,
    nic_changes,
    pair_changes,
    router_changes,
    storage_changes,
    uplink_changes,
    vnet_changes,
    words,
)
from retinue.controller.app import Controller
from retinue.controller.changes import Change, DerivedChange
from retinue.controller.context import Context
from retinue.controller.domains import anchors
from retinue.controller.kinds import CONFIGURED, DERIVED, KIND_OF, KINDS, restore
from retinue.controller.mobility import bookings
from retinue.controller.mobility import changes as mobility
from retinue.controller.state import (
    Image,
    LeftPort,
    RemovedGuest,
    ServerLocation,
    State,
    Storable,
    Stored,
    UplinkPlace,
    Word,
)
from retinue.controller.store.schema import TABLES
from retinue.core.migration import MigrationState, begin
from retinue.core.model import (
    NIC,
    VM,
    Allowed,
    Assignment,
    BindingKind,
    GatewayGroup,
    Link,
    ModelError,
    Network,
    Origin,
    PortRef,
    Power,
    Role,
    Server,
    Service,
    Subnet,
    Switch,
    VMPort,
    Vnet,
    Vrf,
)
from retinue.core.model.at_ports import AtPorts
from retinue.core.model.domains import HomeAnchor
from retinue.core.model.network import Owner
from retinue.core.model.pairs import AddressPair
from retinue.core.placement import (
    Entity,
    EntityKind,
    Need,
    Placement,
    Profile,
    ServerState,
    Snapshot,
    decide,
)
from retinue.core.placement.bookings import Booking
from retinue.protocol.events import EventType
from retinue.protocol.images import SignedManifest
from retinue.protocol.vms import VMState
from retinue.steady_clock import ClockAnchor
from support.fabric.networks import assignment, fabric, server, vm_mac, vm_port
from support.fabric.storage import FORWARDER, FORWARDER_MAC, login
from support.fakes.memory_store import MemoryStore

# ---- the list ----


def test_each_container_of_the_controller_is_kept_or_configured_or_derived() -> None:
    """A new dictionary of whatever outlives one event: it is put into one of the lists, with a reason."""
    kept = {kind.held for kind in KINDS}
    derived = [name for names in DERIVED.values() for name in names]
    listed = [*kept, *CONFIGURED, *derived]
    assert len(listed) == len(set(listed))
    assert set(_containers(Controller(fabric()), set())) == set(listed)


def _containers(thing: object, seen: set[int]) -> Iterator[str]:
    """Class and attribute of each mutable container in the controller's objects, each container once."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    for name, value in _attributes(thing).items():
        if isinstance(value, dict | UserDict | AtPorts | set | list | deque):
            index = isinstance(thing, Network) and name.startswith("_")
            if id(value) not in seen and not index:
                yield f"{type(thing).__name__}.{name}"
            seen.add(id(value))
            for one in value.values() if isinstance(value, dict | UserDict) and not index else ():
                if _is_ours(one):
                    yield from _containers(one, seen)
        elif _is_ours(value):
            yield from _containers(value, seen)


def _is_ours(value: object) -> bool:
    return type(value).__module__.startswith("retinue.") and hasattr(value, "__dict__")


def _attributes(thing: object) -> dict[str, Any]:
    if is_dataclass(thing):
        return {each.name: getattr(thing, each.name) for each in fields(thing)}
    # The state first: others hold parts of it, which are named after it.
    return dict(sorted(vars(thing).items(), key=lambda item: not isinstance(item[1], State | Context)))


def test_the_database_has_a_table_for_each_kind_and_no_other() -> None:
    assert [kind.table for kind in KINDS] == sorted((kind.table for kind in KINDS), key=_restored_at)
    assert {kind.table for kind in KINDS} == set(TABLES)
    assert {kind.type for kind in KINDS} == set(get_args(Storable))
    assert {kind.stored for kind in KINDS} == {each.name for each in fields(Stored)} - {"faults"}
    assert all(kind.key in TABLES[kind.table] for kind in KINDS)


def _restored_at(table: str) -> int:
    """Servers before their places and VMs; VMs before what they hold and before their migrations."""
    order = [
        *(
            "TakenOut",
            "GatewayGroup",
            "Switch",
            "LaidLink",
            "Vrf",
            "Vnet",
            "Subnet",
            "Server",
            "ServerLocation",
            "UplinkPlace",
            "UplinkInUse",
            "VM",
            "Assignment",
            "FcLogin",
            "EndedLease",
            "PendingRenewal",
            "Migration",
        ),
        *(
            "FencedServer",
            "DrainedServer",
            "LostRouter",
            "LostLink",
            "AgentAt",
            "LeftPort",
            "RemovedGuest",
            "ClockAnchor",
            "Image",
            "Entity",
            "Placement",
        ),
        *("AddressPair", "Word", "Booking", "HomeAnchor"),
    ]
    return order.index(table)


# ---- the changes ----


VM1, VM2 = (VM.with_one_nic(f"vm{n}", vm_mac(n), "server1") for n in (1, 2))
TWO_NICS = replace(VM1, nics=(*VM1.nics, NIC(vm_mac(17), "vm1-2", slot=2)))
SECONDS_ADDRESS = replace(assignment(17), vm="vm1")
GUEST, GUEST2 = (replace(VM.with_one_nic(f"guest{n}", vm_mac(n), "server1"), home="b") for n in (8, 9))
VM5 = VM.with_one_nic("vm5", vm_mac(5), "server1")
UP1 = PortRef("edge3", "up1")
SHARED = IPv4Address("10.1.0.200")
SHARING = replace(VM5, nics=(replace(VM5.nic, allowed=(Allowed(SHARED),)),))
RENAMED = replace(VM5, nics=(replace(SHARING.nic, mac=vm_mac(6), enabled=False, rate=7),))
TAKEN = Assignment(SHARED, vm_mac(5), "vm5", BindingKind.ALLOWED, Origin.CONTROLLER)
HERE, THERE = PortRef("leaf1", "p9"), PortRef("leaf2", "p9")
COPYING = replace(begin("migration-2", "vm1", "server1", "server2", 5.0), state=MigrationState.COPYING)
ENDED = replace(begin("migration-1", "vm2", "server1", "server2", 5.0), state=MigrationState.DONE)
SPINE3 = Switch("spine3", Role.SPINE, 0x53)
LINK3, LINK4 = (Link(PortRef("leaf1", f"x{n}"), PortRef("spine3", f"y{n}")) for n in (3, 4))
GREEN = Subnet("green", IPv4Network("10.2.0.0/24"), IPv4Address("10.2.0.254"), vnet="shop")
IMAGE = SignedManifest("debian-12", 5, "ab" * 32, 7, "c0ffee", "PEM")
SHOP = Entity("shop", EntityKind.SERVICE, Profile(served_by=("vm1", "vm2")))
ASKED = Snapshot(Need("vm2", 512, 1), "server1", (ServerState("server1"), ServerState("server2")))
CHOSEN = Placement("migration-1", "match-1", "manager", ASKED, decide(ASKED))
STORY: tuple[Change, ...] = (
    vnet_changes.VnetRegistered(Vnet("shop", vlan=42)),
    vnet_changes.VnetRegistered(Vnet("shop", vlan=43, mtu=1400)),
    vnet_changes.GatewayGroupRegistered(GatewayGroup("rack", "00:00:de:ad:00:07")),
    vnet_changes.GatewayGroupRegistered(GatewayGroup("shelf", "00:00:de:ad:00:08")),
    vnet_changes.GatewayGroupRemoved(GatewayGroup("shelf", "00:00:de:ad:00:08")),
    vnet_changes.VrfRegistered(Vrf("red", 7)),
    vnet_changes.VrfRegistered(Vrf("grey", 8)),
    vnet_changes.VrfRemoved(Vrf("grey", 8)),
    vnet_changes.VnetRegistered(Vnet("reds", vrf="red")),
    vnet_changes.VnetRegistered(Vnet("dull")),
    vnet_changes.VnetRemoved(Vnet("dull")),
    vnet_changes.SubnetRegistered(GREEN),
    vnet_changes.SubnetRegistered(
        replace(GREEN, id="red", prefix=IPv4Network("10.3.0.0/24"), gateway=IPv4Address("10.3.0.1"))
    ),
    vnet_changes.SubnetRegistered(replace(GREEN, gateway=IPv4Address("10.2.0.1"))),
    vnet_changes.SubnetRemoved(
        replace(GREEN, id="red", prefix=IPv4Network("10.3.0.0/24"), gateway=IPv4Address("10.3.0.1"))
    ),
    fabric_changes.SwitchRegistered(SPINE3),
    fabric_changes.SwitchRegistered(replace(SPINE3, id="spine4", dpid=0x54)),
    fabric_changes.SwitchRegistered(replace(SPINE3, dpid=1 << 63)),
    fabric_changes.SwitchRemoved(replace(SPINE3, id="spine4", dpid=0x54), configured=True),
    fabric_changes.LinksRegistered((LINK3, LINK4)),
    fabric_changes.LinkUsed(LINK3),
    fabric_changes.LinkLeft(LINK3),
    fabric_changes.LinkRemoved(LINK4),
    changes.ServerRegistered(replace(server(1), id="old", mac="02:00:00:00:00:97", address=None, edge="")),
    changes.ServerLocated("old", PortRef("leaf1", "p8"), None),
    marks.ServerFenced("old"),
    marks.AgentHeard("old"),
    fabric_changes.ServerRemoved(
        replace(server(1), id="old", mac="02:00:00:00:00:97", address=None, edge="")
    ),
    changes.ServerRegistered(replace(server(1), id="new", mac="02:00:00:00:00:99", address=None, edge="")),
    changes.ServerRegistered(
        replace(server(1), id="new", mac="02:00:00:00:00:99", address=None, edge="", gateway_group="rack")
    ),
    changes.ServerLocated("new", HERE, None),
    changes.ServerLocated("new", THERE, HERE),
    changes.SwitchPortsChanged("edge1", {"up0": 1, "tap1": vm_port(1)}),
    changes.VMRegistered(VM1),
    changes.VMReported(replace(VM2, reported=True)),
    changes.VMPortChanged("vm1", "vm1", "edge1", VMPort(vm_port(1), "tap1"), None),
    changes.VMPortChanged("vm2", "vm2", "edge1", VMPort(vm_port(2), "tap2"), None),
    changes.VMPortRemoved("vm2", "vm2", "edge1", VMPort(vm_port(2), "tap2")),
    changes.VMStateChanged("vm1", VMState.READY, EventType.VM_READY, "server1"),
    changes.VMPowerChanged(replace(VM1, power=Power.OFF), EventType.VM_STOP, {"hard": True}),
    changes.VMPowerChanged(replace(VM1, power=Power.CRASHED, power_reason="it ended"), None, {}),
    changes.VMPowerChanged(VM1, EventType.VM_START, {}),
    changes.VMChanged(replace(VM1, memory_mib=256)),
    lease_changes.AddressAssigned(assignment(1)),
    changes.ServerRegistered(
        Server(FORWARDER, FORWARDER_MAC, services=frozenset({Service.FORWARDER}), given_at=None)
    ),
    storage_changes.FcLoggedIn(login(1)),
    storage_changes.FcLoggedIn(login(1, "0e:fc:00:01:01:99")),
    storage_changes.FcLoggedOut(login(1), "logged out"),
    storage_changes.FcLoggedOut(login(1, "0e:fc:00:01:01:99"), "the node is silent"),
    lease_changes.AddressAssigned(assignment(2)),
    lease_changes.AddressReleased(assignment(2)),
    changes.VMNicsChanged(TWO_NICS, VM1),
    lease_changes.AddressAssigned(SECONDS_ADDRESS),
    changes.VMNicsChanged(VM1, TWO_NICS, (SECONDS_ADDRESS,)),
    lease_changes.LeaseEnded(assignment(2)),
    lease_changes.LeaseEnded(assignment(1)),
    lease_changes.EndedLeaseForgotten(assignment(1)),
    lease_changes.RenewalPending("vm1"),
    lease_changes.RenewalPending("vm2"),
    lease_changes.RenewalSettled("vm2"),
    changes.MigrationStepped(ENDED),
    changes.MigrationForgotten(ENDED),
    changes.TargetAwaitsSource(COPYING),
    changes.MigrationStepped(replace(COPYING, memory_at="192.0.2.1:7")),
    changes.VMPlaced(replace(VM1, also=frozenset({"server2"}), memory_mib=256)),
    changes.VMRegistered(replace(VM2, id="vm3", nics=VM.with_one_nic("vm3", vm_mac(3), "server1").nics)),
    lease_changes.AddressAssigned(assignment(3)),
    changes.VMRegistered(VM5),
    changes.VMRemoved(VM.with_one_nic("vm3", vm_mac(3), "server1"), (assignment(3),)),
    nic_changes.NICChanged(SHARING, VM5.nic, SHARING.nic, ()),
    nic_changes.AddressTaken(TAKEN, "vm5", ""),
    nic_changes.NICChanged(SHARING, SHARING.nic, RENAMED.nic, (TAKEN,)),
    nic_changes.NICChanged(
        RENAMED, RENAMED.nic, replace(RENAMED.nic, allowed=()), (replace(TAKEN, mac=vm_mac(6)),)
    ),
    marks.PortLeft(LeftPort("vm3", "vm3", ("edge1", "edge2"))),
    marks.PortLeft(LeftPort("vm3", "vm3", ("edge1",))),
    marks.PortLeft(LeftPort("vm4", "vm4", ("edge1",))),
    marks.LeftPortForgotten(LeftPort("vm4", "vm4", ("edge1",))),
    changes.VMRegistered(GUEST),
    marks.GuestRemoved(GUEST, ()),
    changes.VMRegistered(GUEST2),
    marks.GuestRemoved(GUEST2, ()),
    marks.GuestRemovalHeard(RemovedGuest(GUEST2.id, "b")),
    marks.ClockAnchored(ClockAnchor("this", 7.0)),
    marks.ClockAnchored(ClockAnchor("another", 8.0)),
    marks.ServerFenced("server1"),
    marks.ServerFenced("server2"),
    marks.ServerUnfenced("server2"),
    marks.ServerDrained("server1"),
    marks.ServerDrained("server2"),
    marks.ServerUndrained("server2"),
    router_changes.RouterLost("router", "its port has no link"),
    router_changes.RouterLost("server2", "it has not answered for 3 s"),
    router_changes.RouterReturned("server2"),
    link_changes.LinkLost(PortRef("leaf1", "s1"), PortRef("spine1", "l1"), "nothing comes in"),
    uplink_changes.UplinkFound("server3", PortRef("edge3", "up0"), PortRef("leaf1", "p3"), ()),
    uplink_changes.UplinkFound("server3", UP1, PortRef("leaf2", "q3"), ()),
    uplink_changes.UplinkUsed("server3", "edge3", "up1", ""),
    uplink_changes.PlacesGone((UplinkPlace(PortRef("edge9", "up1"), PortRef("leaf1", "q9")),)),
    link_changes.LinkLost(UP1, PortRef("leaf2", "q3"), "nothing comes in"),
    uplink_changes.UplinkUsed("server3", "edge3", "up0", "up1"),
    uplink_changes.UplinkFound("server3", PortRef("edge3", "up0"), PortRef("leaf2", "q3"), (UP1,)),
    uplink_changes.UplinkFound("server3", UP1, PortRef("leaf1", "p3"), ()),
    link_changes.LinkLost(PortRef("leaf2", "s1"), PortRef("spine1", "l2"), "some does not come in"),
    link_changes.LinkReturned(PortRef("leaf2", "s1"), PortRef("spine1", "l2")),
    marks.AgentHeard("server1"),
    marks.AgentHeard("server2"),
    marks.AgentForgotten("server2"),
    marks.ImagePublished(Image(IMAGE, "server1", "anna")),
    marks.ImagePublished(Image(replaced(IMAGE, name="other"), "server2", "anna")),
    marks.ImageRemoved(Image(replaced(IMAGE, name="other"), "server2", "anna")),
    mobility.EntityRegistered(Entity("vm1", EntityKind.VM, Profile(os="debian", memory_mib=512))),
    mobility.EntityRegistered(SHOP),
    mobility.EntityRegistered(replace(SHOP, profile=Profile(served_by=("vm1",), version="2"))),
    mobility.EntityRegistered(Entity("debian", EntityKind.IMAGE, Profile(version="12"))),
    mobility.EntityRemoved(Entity("debian", EntityKind.IMAGE, Profile(version="12"))),
    mobility.PlacementKept(CHOSEN),
    mobility.PlacementKept(replace(CHOSEN, migration="migration-2", match="match-10")),
    mobility.PlacementKept(replace(CHOSEN, migration="migration-3", match="match-9")),
    mobility.PlacementForgotten(replace(CHOSEN, migration="migration-3", match="match-9")),
    pair_changes.PairAdded(AddressPair("52:54:00:00:01:01", IPv4Address("10.1.0.51"), 1)),
    pair_changes.PairAdded(AddressPair("52:54:00:00:01:02", IPv4Address("10.1.0.52"), 2)),
    bookings.BookingMade(Booking("web", "server1", 512, 2, 300.0)),
    bookings.BookingMade(Booking("db", "server2", 0, 0, 301.5)),
    bookings.BookingEnded(Booking("db", "server2", 0, 0, 301.5)),
    anchors.AnchorSet(HomeAnchor("vm1", 7.0, idle=60.0, until=99.0), "begun", "b"),
    anchors.AnchorSet(HomeAnchor("vm5", 7.5), "begun", "b"),
    anchors.AnchorSet(HomeAnchor("vm1", 7.0, 8.0, "a manager's word", 60.0, 99.0), "ended", "b"),
    anchors.AnchorGone(HomeAnchor("vm5", 7.5)),
    words.WordKept(Word("vm web", "manager anna", 7.0)),
    words.WordKept(Word("vm db", "manager bert", 8.0)),
    words.WordForgotten(Word("vm db", "manager bert", 8.0)),
    pair_changes.PairRemoved(AddressPair("52:54:00:00:01:01", IPv4Address("10.1.0.51"), 1)),
)


def network() -> Network:
    """As `fabric`; the edge of server3 has two uplinks, and the file has a fourth spine."""
    net = fabric()
    net.configured = frozenset({"switch spine4"})
    net.add_switch(replace(net.switches["edge3"], standby=("up1",)))
    net.detected.pop("server3")  # By ARP no such server is found.
    return net


def _kinds_of_change() -> set[type[Change]]:
    modules = (
        changes,
        lease_changes,
        marks,
        nic_changes,
        link_changes,
        uplink_changes,
        router_changes,
        vnet_changes,
        fabric_changes,
        pair_changes,
        words,
        mobility,
        bookings,
        anchors,
        storage_changes,
    )
    every = [value for module in modules for value in vars(module).values()]
    found = {each for each in every if isinstance(each, type) and issubclass(each, Change)}
    return {each for each in found - {Change, DerivedChange} if not each.__name__.startswith("_")}


def test_each_change_is_stored_or_derived_and_the_story_has_them_all() -> None:
    assert {type(change) for change in STORY} == _kinds_of_change()
    for change in STORY:
        stored = {type(value) for value in (*change.kept(), *change.dropped())}
        assert stored <= set(KIND_OF)
        assert bool(stored) is not isinstance(change, DerivedChange), change
    assert {type(value) for change in STORY for value in change.kept()} == set(KIND_OF)


def _held(state: State) -> dict[str, Any]:
    """What each kind of state is at the moment."""
    owners = {"Network": state.net, "State": state}
    return {kind.held: getattr(owners[kind.held.split(".")[0]], kind.held.split(".")[1]) for kind in KINDS}


async def test_after_any_change_the_database_brings_back_what_was_known() -> None:
    store = MemoryStore()
    context = Context(network(), lambda: 1000.0, store)
    for value in context.net.servers.values():
        store.put(value)
    for name, at in context.net.detected.items():
        store.put(ServerLocation(name, at))
    for change in STORY:
        context.apply(change)
        again = State(network())
        restore(again, store.load())
        if isinstance(change, changes.MigrationStepped | changes.TargetAwaitsSource):
            continue  # The VM is placed as its migration wants it before the controller has asked for it.
        assert _held(again) == _held(context.state), change


def test_what_cannot_all_be_made_is_not_made_at_all() -> None:
    """Nor stored, nor published."""
    store, net = MemoryStore(), network()
    context = Context(net, lambda: 1000.0, store)
    context.apply(changes.VMRegistered(VM1))
    context.apply(changes.VMStateChanged("vm1", VMState.RUNNING, EventType.VM_STARTED, "server1"))
    context.apply(lease_changes.AddressAssigned(assignment(1)))
    before, rows, told = dict(net.vms), dict(store.rows), context.events.last_id
    taken = replace(assignment(1), vm="vm3", mac=vm_mac(3))
    with pytest.raises(ModelError, match=r"10\.1\.0\.101"):
        context.apply(
            changes.VMRegistered(replace(VM1, server="server2")),
            changes.VMRegistered(VM.with_one_nic("vm3", vm_mac(3), "server1")),
            lease_changes.AddressAssigned(assignment(1, lease_end=7.0)),
            lease_changes.AddressAssigned(taken),
        )
    assert (net.vms, store.rows, context.events.last_id) == (before, rows, told)
    assert net.assignments == {assignment(1).ip: assignment(1)}
    assert context.state.vm_states == {"vm1": VMState.RUNNING}


def test_a_change_that_cannot_be_undone_is_not_made_with_others() -> None:
    context = Context(network(), lambda: 1000.0, MemoryStore())
    with pytest.raises(TypeError, match="a RenewalPending cannot be undone"):
        context.apply(changes.VMRegistered(VM1), lease_changes.RenewalPending("vm1"))
    assert not context.net.vms


def test_what_does_not_take_place_is_neither_stored_nor_published() -> None:
    """A port has one DHCP server at most, the first."""
    store, net = MemoryStore(), network()
    context = Context(net, lambda: 1000.0, store)
    at = net.servers["dhcp"].given_at
    assert at is not None
    second = replace(net.servers["dhcp"], id="second", mac="02:00:00:00:00:98", address=None, given_at=None)
    context.apply(changes.ServerRegistered(second))
    rows, told = dict(store.rows), context.events.last_id
    assert context.apply(changes.ServerLocated("second", at, None)) == frozenset()
    assert (store.rows, context.events.last_id) == (rows, told)


async def test_what_was_changed_and_not_installed_is_known() -> None:
    context = Context(network(), lambda: 1000.0, MemoryStore())
    touched = context.apply(changes.VMRegistered(VM1))
    assert context.not_installed == touched == {Owner("vm", "vm1")}
    await context.install(touched)
    assert not context.not_installed
    await context.commit(lease_changes.AddressAssigned(assignment(1)))
    assert not context.not_installed


def test_the_lease_that_ended_last_is_the_last() -> None:
    context = Context(network(), lambda: 1000.0, MemoryStore())
    for number in (1, 2, 1):
        context.apply(lease_changes.LeaseEnded(assignment(number)))
    assert list(context.state.ended_leases) == [vm_mac(2), vm_mac(1)]


def test_a_subnet_that_was_added_with_one_that_cannot_be_is_gone_again() -> None:
    """Though a server has an address of it by then."""
    context = Context(network(), lambda: 1000.0, MemoryStore())
    context.net.put_server(Server("s9", "02:00:00:00:00:99", IPv4Address("10.5.0.7")))
    first = Subnet("a", IPv4Network("10.5.0.0/24"), IPv4Address("10.5.0.254"))
    second = Subnet("b", IPv4Network("10.5.0.0/16"), IPv4Address("10.5.1.254"))
    with pytest.raises(ModelError, match="overlap"):
        context.apply(vnet_changes.SubnetRegistered(first), vnet_changes.SubnetRegistered(second))
    assert "a" not in context.net.subnets
    assert context.net.subnet_of(IPv4Address("10.5.0.7")) is None

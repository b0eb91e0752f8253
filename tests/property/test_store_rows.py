"""Every value the store keeps comes back as it was."""

from dataclasses import fields, replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.controller.state import (
    AgentAt,
    DrainedServer,
    EndedLease,
    FencedServer,
    Image,
    LaidLink,
    LeftPort,
    LostLink,
    LostRouter,
    PendingRenewal,
    ServerLocation,
    Storable,
    Stored,
    TakenOut,
    UplinkInUse,
    UplinkPlace,
    Word,
)
from retinue.controller.store.rows import key_of, read_row, sort_in, to_row
from retinue.controller.store.schema import KEYS, TABLES
from retinue.core.limits import LARGEST_COUNT, MOST_DISK_MIB, MOST_LOAD, MOST_MEMORY_MIB
from retinue.core.migration import Migration, MigrationState
from retinue.core.model import (
    DEFAULT_VRF,
    NIC,
    VM,
    Allowed,
    Assignment,
    BindingKind,
    Disk,
    DiskFormat,
    Flood,
    Host,
    Lease6,
    Link,
    Origin,
    PortRef,
    Role,
    Server,
    Service,
    Subinterface,
    Subnet,
    Switch,
    Vnet,
    Vrf,
    mac_from_int,
)
from retinue.core.model.domains import HomeAnchor
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
from retinue.protocol.images import SignedManifest
from retinue.steady_clock import ClockAnchor

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
macs = st.integers(0, 2**48 - 1).map(mac_from_int)
times = st.none() | st.floats(0, 4e9)
refs = st.builds(PortRef, names, names)
prefixes = st.one_of(st.ip_addresses(), st.sampled_from(["10.0.0.0/8", "2001:db8::/32"])).map(str)

subinterfaces = st.builds(
    Subinterface,
    vrf=names,
    vlan=st.integers(1, 4094),
    routes=st.lists(prefixes.map(ip_network), max_size=2).map(tuple),
    address=st.none() | st.ip_addresses(),
)
servers = st.builds(
    Server,
    id=names,
    mac=macs,
    address=st.none() | st.ip_addresses(),
    edge=names,
    services=st.frozensets(st.sampled_from(Service)),
    routes=st.lists(prefixes.map(ip_network), max_size=3).map(tuple),
    chassis=st.sampled_from(["", "rack7", "02:00:00:00:00:01"]),
    anycast=st.lists(st.ip_addresses(), max_size=3).map(tuple),
    load=st.integers(0, MOST_LOAD),
    given_at=st.none() | refs,
    gateway_group=names,
    hosts=st.lists(st.builds(Host, names, macs), max_size=3, unique_by=lambda host: host.id).map(
        lambda found: tuple(sorted(found))
    ),
    subinterfaces=st.lists(subinterfaces, max_size=2).map(tuple),
)
vrf_ids = st.just(DEFAULT_VRF) | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)
nics = st.builds(
    NIC,
    mac=macs,
    port_id=names,
    addresses=st.lists(st.ip_addresses(), max_size=2, unique=True).map(tuple),
    vnet=names,
    enabled=st.booleans(),
    slot=st.integers(0, 8),
    rate=st.integers(0, 10**9),
    trusted=st.booleans(),
    trunk=names,
    mirror=st.sampled_from(["", "mirror", "mirror0"]),
    prefixes=st.lists(
        st.builds(lambda ip: ip_network((ip, ip.max_prefixlen - 4), strict=False), st.ip_addresses()),
        max_size=2,
    ).map(tuple),
    anycast=st.lists(st.ip_addresses(), max_size=2).map(tuple),
    load=st.integers(0, 10**9),
    allowed=st.lists(st.builds(Allowed, st.ip_addresses(), macs | st.just("")), max_size=2).map(tuple),
)


disks = (
    st.builds(Disk, size_mib=st.integers(1, MOST_DISK_MIB), image=st.just("") | st.just("debian-12"))
    | st.builds(Disk, base=st.just("/srv/base"), format=st.sampled_from(DiskFormat))
    | st.builds(Disk, shared=st.just("/mnt/nfs/disk"), format=st.sampled_from(DiskFormat))
)


def are_a_vms(found: list[NIC]) -> bool:
    """No two of them have the same of anything."""
    addresses = [address for nic in found for address in nic.addresses]
    return all(
        len(set(values)) == len(values)
        for values in ([nic.mac for nic in found], [nic.port_id for nic in found], addresses)
    )


def with_a_port(found: list[NIC]) -> tuple[NIC, ...]:
    """The first of a VM's NICs is in no trunk."""
    first, *others = found
    return replace(first, trunk=""), *others


vms = st.builds(
    VM,
    id=names,
    nics=st.lists(nics, min_size=1, max_size=3).filter(are_a_vms).map(with_a_port),
    server=names,
    memory_mib=st.integers(0, MOST_MEMORY_MIB),
    disks=st.lists(disks, max_size=2).map(tuple),
    home=st.sampled_from(["", "b"]),
    host=names,
    reported=st.booleans(),
)
assignments = st.builds(
    Assignment,
    ip=st.ip_addresses(),
    mac=macs,
    vm=names,
    kind=st.sampled_from(BindingKind),
    origin=st.sampled_from(Origin),
    lease_end=times,
    server=st.none() | st.ip_addresses(v=4),
    client_id=st.binary(max_size=20),
    options=st.lists(st.tuples(st.integers(1, 254), st.binary(max_size=255)), max_size=4).map(tuple),
    told=st.lists(st.tuples(st.integers(1, 254), st.binary(max_size=255)), max_size=4).map(tuple),
    told_since=st.lists(st.tuples(st.integers(1, 254), st.binary(max_size=255)), max_size=4).map(tuple),
    vrf=vrf_ids,
    lease6=st.none()
    | st.builds(
        Lease6,
        server=st.binary(max_size=130),
        iaid=st.integers(0, 0xFFFFFFFF),
        preferred_end=times,
        options=st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=300)), max_size=2).map(tuple),
    ),
)
migrations = st.builds(
    Migration,
    id=names,
    vm=names,
    source=names,
    target=names,
    state=st.sampled_from(MigrationState),
    steps=st.lists(st.tuples(st.sampled_from(MigrationState), st.floats(0, 4e9)), max_size=4).map(tuple),
    reason=names,
    stopped_at=times,
    resumed_at=times,
)
subnets = st.builds(
    lambda id, prefix, vlan, dhcp, pools, vnet, flag: Subnet(
        id, prefix, prefix.network_address, vlan, dhcp, pools, vnet, flag, not flag
    ),
    names,
    prefixes.map(ip_network),
    st.integers(0, 4094),
    st.lists(st.ip_addresses(v=4), max_size=3).map(tuple),
    st.lists(st.tuples(st.ip_addresses(), st.ip_addresses()), max_size=2).map(tuple),
    names,
    st.booleans(),
)
signed = st.builds(
    SignedManifest,
    name=names,
    size=st.integers(1, 1 << 38),
    list_digest=names,
    published_at=st.integers(0, 1 << 32),
    signature=names,
    certificate=names,
)
words = st.lists(names, max_size=3).map(tuple)
sizes = st.integers(0, LARGEST_COUNT)
profiles = st.builds(
    Profile, names, names, words, sizes, sizes, sizes, sizes, words, names, names, st.booleans()
)


def placement(migration: str, vm: str, server: str) -> Placement:
    servers = (ServerState(server, cpus=2, memory_mib=2), ServerState("source"))
    asked = Snapshot(Need(vm, 1, 1), "source", servers)
    return Placement(migration, "match-1", "manager", asked, decide(asked))


switches = st.one_of(
    st.builds(
        Switch,
        names.filter(bool),
        st.just(Role.EDGE),
        st.integers(1, 2**64 - 1),
        uplink=st.just("up"),
        standby=st.lists(names.filter(lambda name: name != "up"), unique=True, max_size=3).map(tuple),
        vdp=st.booleans(),
    ),
    st.builds(
        Switch,
        names.filter(bool),
        st.just(Role.LEAF),
        st.integers(1, 2**64 - 1),
        given=st.booleans(),
        tunnel=names.filter(bool),
        endpoint=st.ip_addresses(v=4),
        gateway_group=names,
    ),
    st.builds(Switch, names.filter(bool), st.just(Role.CORE), st.integers(1, 2**64 - 1)),
)

anything: st.SearchStrategy[Storable] = st.one_of(
    subnets,
    st.builds(
        HomeAnchor,
        names,
        st.floats(0, 4e9),
        st.none() | st.floats(0, 4e9),
        names,
        st.floats(0, 4e9),
        st.none() | st.floats(0, 4e9),
    ),
    st.builds(Booking, names, names, sizes, sizes, st.floats(0, 4e9)),
    st.builds(Word, names, names, st.floats(0, 4e9)),
    st.builds(AddressPair, macs, st.ip_addresses(), st.integers(1, 100_000)),
    st.builds(Vrf, names.filter(lambda id: id != DEFAULT_VRF), st.integers(1, 4094)),
    st.builds(
        Vnet,
        *(names, st.integers(1, 4094), st.just(0) | st.integers(1280, 9216), vrf_ids),
        st.sampled_from(Flood),
    ),
    st.builds(Vnet, names),
    servers,
    vms,
    assignments,
    st.builds(EndedLease, assignments),
    st.builds(PendingRenewal, names),
    st.builds(Image, signed, names, names),
    st.builds(FencedServer, names),
    st.builds(TakenOut, names),
    st.builds(LostRouter, names, st.text(max_size=40)),
    st.builds(
        LaidLink,
        st.builds(Link, st.builds(PortRef, vrf_ids, names), st.builds(PortRef, vrf_ids, names)),
        st.booleans(),
    ),
    switches,
    st.builds(LostLink, st.builds(PortRef, vrf_ids, names), st.text(max_size=40)),
    st.builds(UplinkPlace, st.builds(PortRef, vrf_ids, names), refs),
    st.builds(UplinkInUse, names, names),
    st.builds(Entity, names, st.just(EntityKind.VM), profiles),
    st.builds(placement, names, names, names),
    st.builds(DrainedServer, names),
    st.builds(AgentAt, names),
    st.builds(ClockAnchor, names, st.floats(0, 4e9)),
    st.builds(LeftPort, names, names, st.sets(names, max_size=3).map(lambda found: tuple(sorted(found)))),
    st.builds(ServerLocation, server=names, at=refs),
    migrations,
)


@given(anything)
def test_a_value_survives_its_row(value: Storable) -> None:
    table, key = key_of(value)
    row = to_row(value)
    assert set(row) == set(TABLES[table])
    assert row[KEYS[table]] == key
    assert read_row(table, row) == value


@given(anything)
def test_a_value_is_sorted_in_once(value: Storable) -> None:
    sort_in(stored := Stored(), value)
    assert [kept for kind in fields(stored) for kept in getattr(stored, kind.name)] == [value]


def test_what_is_not_kept_is_rejected() -> None:
    with pytest.raises(TypeError, match="PortRef is not kept"):
        key_of(PortRef("a", "b"))  # type: ignore[arg-type]


GOOD = to_row(VM.with_one_nic("v", "52:54:00:00:00:01", "s"))
OLD = GOOD | {"nics": ["map", []]}
"""As a file has it that is older than the column."""


@pytest.mark.parametrize(
    "row",
    [
        {},
        OLD | {"mac": "odd"},
        OLD | {"addresses": ["map", [[0, "1.2.3"]]]},
        GOOD | {"reported": "yes"},
        GOOD | {"nics": ["map", [[0, "{}"]]]},
        GOOD | {"nics": ["map", [[0, '{"mac": "odd", "port_id": "v"}']]]},
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_read_says_why(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a row of VM cannot be read: "):
        read_row("VM", row)


def test_a_row_without_nics_has_the_one_of_its_mac_and_addresses() -> None:
    vm = VM.with_one_nic("v", "52:54:00:00:00:01", "s", addresses=(ip_address("10.1.0.5"),))
    assert read_row("VM", to_row(vm) | {"nics": ["map", []]}) == vm

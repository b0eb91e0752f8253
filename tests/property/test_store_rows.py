"""Every value the store keeps comes back as it was."""

from dataclasses import fields
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.model import VM, BindingKind, Holding, Origin, PortRef, Server, Service, mac_from_int
from retinue.moves import Move, MoveState
from retinue.store.rows import EndedLease, Owed, Place, Storable, Stored, key_of, read_row, sort_in, to_row
from retinue.store.schema import KEYS, TABLES

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
macs = st.integers(0, 2**48 - 1).map(mac_from_int)
times = st.none() | st.floats(0, 4e9)
refs = st.builds(PortRef, names, names)
prefixes = st.one_of(st.ip_addresses(), st.sampled_from(["10.0.0.0/8", "2001:db8::/32"])).map(str)

servers = st.builds(
    Server,
    id=names,
    mac=macs,
    address=st.none() | st.ip_addresses(),
    edge=names,
    services=st.frozensets(st.sampled_from(Service)),
    routes=st.lists(prefixes.map(ip_network), max_size=3).map(tuple),
    given_at=st.none() | refs,
)
vms = st.builds(
    VM,
    id=names,
    mac=macs,
    server=names,
    also=st.frozensets(names, max_size=3),
    addresses=st.lists(st.ip_addresses(), max_size=3).map(tuple),
    reported=st.booleans(),
)
holdings = st.builds(
    Holding,
    ip=st.ip_addresses(),
    mac=macs,
    vm=names,
    kind=st.sampled_from(BindingKind),
    origin=st.sampled_from(Origin),
    lease_end=times,
    server=st.none() | st.ip_addresses(v=4),
    client_id=st.binary(max_size=20),
)
moves = st.builds(
    Move,
    id=names,
    vm=names,
    source=names,
    target=names,
    state=st.sampled_from(MoveState),
    steps=st.lists(st.tuples(st.sampled_from(MoveState), st.floats(0, 4e9)), max_size=4).map(tuple),
    reason=names,
    stopped_at=times,
    resumed_at=times,
)
anything: st.SearchStrategy[Storable] = st.one_of(
    servers,
    vms,
    holdings,
    st.builds(EndedLease, holdings),
    st.builds(Owed, names),
    st.builds(Place, server=names, at=refs),
    moves,
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


def test_what_is_not_kept_is_refused() -> None:
    with pytest.raises(TypeError, match="PortRef is not kept"):
        key_of(PortRef("a", "b"))  # type: ignore[arg-type]


GOOD = to_row(VM("v", "52:54:00:00:00:01", "s"))


@pytest.mark.parametrize(
    "row",
    [{}, GOOD | {"mac": "odd"}, GOOD | {"addresses": ["map", [[0, "1.2.3"]]]}, GOOD | {"reported": "yes"},
     GOOD | {"also": ["set", 1]}],
)  # fmt: skip
def test_a_row_that_cannot_be_read_says_why(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a row of VM cannot be read: "):
        read_row("VM", row)

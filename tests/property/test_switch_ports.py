"""Ports of a switch, read where its database says that something changed, are those that all of it has."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from retinue.southbound.ovsdb import UUID
from retinue.southbound.ovsdb.replica import RowChange, Tables
from retinue.southbound.ovsdb.vm_ports import Ports, ports_by_bridge, touched_by

NUMBERS = range(6)


def uid(n: int) -> UUID:
    return UUID(f"{n:08x}-0000-0000-0000-000000000000")


def interface(n: int, number: int, vm: str) -> dict[str, Any]:
    ids = {"iface-id": vm} if vm else {}
    return {"name": f"tap{n}", "ofport": number, "link_state": "up", "admin_state": "up", "external_ids": ids}


@st.composite
def databases(draw: st.DrawFn) -> Tables:
    """Two bridges, either of which may be another; ports of one interface or more, that come, go, change."""
    rows: Tables = {"Open_vSwitch": {}, "Bridge": {}, "Port": {}, "Interface": {}}
    at: dict[int, list[UUID]] = {0: [], 1: []}
    for n in draw(st.sets(st.sampled_from(NUMBERS))):
        rows["Interface"][uid(n)] = interface(n, draw(st.integers(1, 2)), draw(st.sampled_from(["", "vm1"])))
        port = draw(st.sampled_from((n, n, max(0, n - 1))))  # Now and then two are one port.
        known = rows["Port"].get(uid(100 + port), {"interfaces": ()})
        members = (*known["interfaces"], uid(n))  # type: ignore[misc]
        rows["Port"][uid(100 + port)] = {
            "name": f"port{port}", "interfaces": members, "tag": draw(st.integers(0, 1)), "trunks": (),
        }  # fmt: skip
    for port_row in rows["Port"]:
        at[draw(st.integers(0, 1))].append(port_row)
    for bridge, ports in at.items():
        datapath = draw(st.sampled_from((None, f"{0xA0 + bridge:016x}", f"{0xB0 + bridge:016x}")))
        name = draw(st.sampled_from(("br", "other")))
        if draw(st.integers(0, 5)):
            rows["Bridge"][uid(200 + bridge)] = {"name": name, "datapath_id": datapath, "ports": tuple(ports)}
    return rows


def changes(old: Tables, new: Tables) -> list[RowChange]:
    """As a replica tells them."""
    return [
        RowChange(table, uuid, old[table].get(uuid), new[table].get(uuid))
        for table in new
        for uuid in {**old[table], **new[table]}
        if old[table].get(uuid) != new[table].get(uuid)
    ]


@given(st.lists(databases(), min_size=2, max_size=5))
def test_ports_read_where_something_changed_are_all_that_there_are(history: list[Tables]) -> None:
    known: dict[int, Ports] = ports_by_bridge(history[0])
    for before, now in pairwise(history):
        touched = touched_by(changes(before, now))
        # Of a bridge that has gone the ports stay known, as the watch over databases keeps them.
        read = ports_by_bridge(now) if touched is None else ports_by_bridge(now, known, touched)
        assert read == ports_by_bridge(now)
        known |= read

"""Ports of a switch as read from the rows of its database."""

from typing import Any

import pytest

from retinue.core.limits import LONGEST_ID, LONGEST_REASON
from retinue.core.model import PortStatus
from retinue.southbound.ovsdb import UUID, BridgePort, bridges, diff, interfaces, ovs_version
from retinue.southbound.ovsdb.replica import Tables
from retinue.southbound.ovsdb.vm_ports import Bridge


def uid(n: int) -> UUID:
    return UUID(f"{n:08x}-0000-0000-0000-000000000000")


def interface(name: str, ofport: int | None = 1, **columns: Any) -> dict[str, Any]:
    return {
        "name": name,
        "ofport": ofport,
        "link_state": "up",
        "admin_state": "up",
        "external_ids": {},
    } | columns


def switch(*ports: list[dict[str, Any]], datapath: str | None = "00000000000000a1") -> Tables:
    """One bridge "br"; each port has the given interfaces and the first one's name."""
    rows: Tables = {"Open_vSwitch": {uid(1): {"ovs_version": "3.1.0", "bridges": (uid(2),)}}}
    rows |= {"Bridge": {}, "Port": {}, "Interface": {}}
    for n, members in enumerate(ports):
        ids = tuple(uid(1000 + 10 * n + m) for m in range(len(members)))
        rows["Interface"] |= dict(zip(ids, members, strict=True))
        rows["Port"][uid(100 + n)] = {"name": f"{members[0]['name']}", "interfaces": ids}
    rows["Bridge"][uid(2)] = {"name": "br", "datapath_id": datapath, "ports": tuple(rows["Port"])}
    return rows


def port(name: str, number: int | None = 1, status: PortStatus = PortStatus.UP, **rest: Any) -> BridgePort:
    return BridgePort(dpid=0xA1, bridge="br", name=name, number=number, status=status, **rest)


def test_a_vms_port_has_the_keys_libvirt_sets() -> None:
    ids = {"iface-id": "i1", "attached-mac": "52:54:00:AA:00:01", "vm-id": "v1", "iface-status": "active"}
    tables = switch([interface("vnet0", 5, external_ids=ids)])
    assert interfaces(tables) == [
        port("vnet0", 5, iface_id="i1", attached_mac="52:54:00:aa:00:01", vm_id="v1")
    ]
    assert bridges(tables) == [Bridge("br", 0xA1, ("vnet0",))]
    assert ovs_version(tables) == "3.1.0"


def test_status_and_number_as_the_switch_tells_them() -> None:
    found = interfaces(
        switch(
            [interface("a", admin_state="down", link_state="down")],
            [interface("b", link_state="down")],
            [interface("c", -1, link_state=None, admin_state=None)],
            [interface("d", None)],
            [interface("e", 65534)],
        )
    )
    assert [(p.name, p.number, p.status) for p in found] == [
        ("a", 1, PortStatus.DISABLED),
        ("b", 1, PortStatus.DOWN),
        ("c", None, PortStatus.UP),
        ("d", None, PortStatus.UP),
        ("e", 65534, PortStatus.UP),
    ]


def test_each_interface_of_a_bond_is_a_port_and_names_the_bond() -> None:
    found = interfaces(switch([interface("eth0", 1), interface("eth1", 2)], [interface("vnet0", 3)]))
    assert [(p.name, p.number, p.bond) for p in found] == [
        ("eth0", 1, "eth0"),
        ("eth1", 2, "eth0"),
        ("vnet0", 3, None),
    ]


def test_a_bridge_that_is_not_made_yet_has_no_ports_but_is_listed() -> None:
    for datapath in (None, "", "zz", "0000000000000000"):
        tables = switch([interface("a")], datapath=datapath)
        assert interfaces(tables) == []
        assert bridges(tables) == [Bridge("br", None, ("a",))]


def test_a_bad_mac_is_told_and_harms_no_other_port() -> None:
    bad, good = interfaces(
        switch([interface("a", external_ids={"attached-mac": "52:54", "vm-id": "v"})], [interface("b")])
    )
    assert bad.attached_mac is None
    assert bad.vm_id == "v"
    assert "external_ids:attached-mac of interface 'a': not a MAC address: '52:54'" in bad.problem
    assert good.problem == ""


def test_rows_that_are_referred_to_but_not_here_are_passed_over() -> None:
    tables = switch([interface("a")], [interface("b")])
    del tables["Interface"][uid(1000)]
    assert [p.name for p in interfaces(tables)] == ["b"]
    tables["Port"].clear()
    assert interfaces(tables) == []


def test_the_difference_of_two_views() -> None:
    old = [port("a"), port("b"), port("c")]
    new = [port("b", 2), port("c"), port("d")]
    found = diff(old, new)
    assert found.added == (port("d"),)
    assert found.removed == (port("a"),)
    assert found.changed == ((port("b"), port("b", 2)),)
    assert found
    assert not diff(old, old)


@pytest.mark.parametrize(
    "id",
    [
        "x" * 9_000_000,
        "x\x1b]0;OWNED\x07\x1b[2K\x1b[1A\nvm9 fake row",
        "a/../b",
        "a=b,process=x",
        "\u202eabc",
    ],
)
def test_an_id_that_is_none_makes_no_vms_port(id: str) -> None:
    """Whoever has the switch writes what he likes into its database."""
    ids = {"iface-id": id, "attached-mac": "52:54:00:00:00:01"}
    bad, good = interfaces(
        switch([interface("a", external_ids=ids)], [interface("b", external_ids={**ids, "iface-id": "vm1"})])
    )
    assert (bad.iface_id, good.iface_id, good.problem) == (None, "vm1", "")
    assert "cannot be a VM's id" in bad.problem
    assert bad.problem.isprintable() and len(bad.problem) < LONGEST_REASON


def test_names_and_numbers_have_a_range() -> None:
    ids = {"iface-id": "vm1", "vm-id": "v" * 1000}
    for name in ("x" * 10_000, "tap\x1b[1A", "a b", "\ud800"):
        (port,) = interfaces(switch([interface(name, external_ids=ids)]))
        assert port.iface_id is None and "cannot be a port's name" in port.problem
        assert (
            port.name.isprintable() and len(port.name) < LONGEST_REASON and len(port.problem) < LONGEST_REASON
        )
        assert len(port.vm_id or "") <= LONGEST_ID
    for number in (-1, 0, 0xFFFFFF01, 1 << 70):
        (port,) = interfaces(switch([interface("tap1", number, external_ids=ids)]))
        assert port.number is None

"""What a switch's own database says of its ports: who is plugged in where, and whether the link is up.

Works on the tables of a `Replica` of the database "Open_vSwitch" with `COLUMNS`, and changes nothing. A port
is known by the keys libvirt and QEMU scripts set on its interface (external_ids: iface-id, attached-mac,
vm-id), and ours (host); names and OpenFlow numbers differ from host to host.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from retinue.core.limits import HIGHEST_VLAN, LARGEST_PORT_NUMBER, LONGEST_ID, PORT_NAME
from retinue.core.model import Mac, ModelError, PortStatus, entity_id, mac
from retinue.core.text import cut, quoted
from retinue.southbound.ovsdb.replica import RowChange, Tables
from retinue.southbound.ovsdb.values import UUID, Row, Value

DATABASE = "Open_vSwitch"
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "Open_vSwitch": ("bridges", "ovs_version"),
    "Bridge": ("name", "datapath_id", "ports"),
    "Port": ("name", "interfaces", "tag", "trunks"),
    "Interface": ("name", "ofport", "link_state", "admin_state", "external_ids"),
}


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge: one switch, by its datapath id."""

    name: str
    dpid: int | None
    """OpenFlow datapath id; None until the switch has made the bridge."""
    ports: tuple[str, ...]
    """Names of its ports, sorted; a bond is one port."""


@dataclass(frozen=True, slots=True)
class BridgePort:
    """One interface of a bridge, which is what OpenFlow calls a port."""

    dpid: int
    bridge: str
    name: str
    number: int | None
    """OpenFlow port number; None while it has none (the device is missing, or not yet opened)."""
    status: PortStatus
    iface_id: str | None = None
    attached_mac: Mac | None = None
    vm_id: str | None = None
    bond: str | None = None
    """Name of the OVS port it belongs to together with other interfaces; None when it is alone."""
    tag: int = 0
    """The VLAN that its OVS port is given, as libvirt does for `<vlan>`; 0: none."""
    trunks: tuple[int, ...] = ()
    """The VLANs that it is said to carry as a trunk."""
    host: str = ""
    """The machine whose port it is, where several share the switch; "" where nobody says so."""
    problem: str = ""
    """What is wrong with its entries, for the operator; "" if nothing is."""

    @property
    def key(self) -> tuple[int, str]:
        return self.dpid, self.name


@dataclass(frozen=True, slots=True)
class PortsDiff:
    """What became different between two readings of the ports."""

    added: tuple[BridgePort, ...]
    removed: tuple[BridgePort, ...]
    changed: tuple[tuple[BridgePort, BridgePort], ...]
    """Old and new of each."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def ovs_version(tables: Tables) -> str:
    """Version of Open vSwitch, "" while it has not been written."""
    return cut(next((_text(row["ovs_version"]) for row in tables["Open_vSwitch"].values()), ""), LONGEST_ID)


def bridges(tables: Tables) -> list[Bridge]:
    """Every bridge, by name."""
    found = [
        Bridge(
            name=_text(row["name"]),
            dpid=_dpid(row["datapath_id"]),
            ports=tuple(sorted(_text(port["name"]) for _, port in _referred(tables, "Port", row["ports"]))),
        )
        for row in tables["Bridge"].values()
    ]
    return sorted(found, key=lambda b: b.name)


def datapath_ids(tables: Tables) -> list[int]:
    """Of the bridges that have one."""
    ids = (_dpid(row["datapath_id"]) for row in tables["Bridge"].values())
    return [dpid for dpid in ids if dpid is not None]


def interfaces(tables: Tables) -> list[BridgePort]:
    """Every interface of every bridge that has a datapath id, by datapath id and name."""
    found = (port for ports in ports_by_bridge(tables).values() for port in ports.values())
    return sorted(found, key=lambda p: p.key)


Ports = dict[UUID, BridgePort]
"""Of one bridge, by the row of the interface."""


def ports_by_bridge(
    tables: Tables, known: Mapping[int, Ports] | None = None, touched: Container[UUID] = frozenset()
) -> dict[int, Ports]:
    """Every interface of every bridge that has a datapath id, by that id.

    A bridge without one is not yet made, its ports appear when it is. Each interface of a bond is listed.
    What is `known` of an interface that was not `touched` is not read anew.
    """
    found: dict[int, Ports] = {}
    for bridge in tables["Bridge"].values():
        dpid = _dpid(bridge["datapath_id"])
        if dpid is None:
            continue
        ports, before = found.setdefault(dpid, {}), {} if known is None else known.get(dpid, {})
        for _, port in _referred(tables, "Port", bridge["ports"]):
            members = dict(_referred(tables, "Interface", port["interfaces"]))
            for uuid, row in members.items():
                has = None if uuid in touched else before.get(uuid)
                ports[uuid] = has or _bridge_port(dpid, bridge, port, row, bonded=len(members) > 1)
    return found


def touched_by(changes: Iterable[RowChange]) -> frozenset[UUID] | None:
    """The interfaces that may be others by these changes; None: all."""
    found: set[UUID] = set()
    for change in changes:
        if change.table == "Interface":
            found.add(change.uuid)
        elif change.table == "Port":
            rows = (row for row in (change.old, change.new) if row is not None)
            found.update(uuid for row in rows for uuid in _uuids(row["interfaces"]))
        elif change.table == "Bridge" and _which(change.old) != _which(change.new):
            return None
    return frozenset(found)


def _which(bridge: Row | None) -> object:
    return None if bridge is None else (bridge["name"], bridge["datapath_id"])


def diff(old: Iterable[BridgePort], new: Iterable[BridgePort]) -> PortsDiff:
    """What changed from one list of ports to another; a port is the same by datapath id and name."""
    before, after = {p.key: p for p in old}, {p.key: p for p in new}
    return PortsDiff(
        added=tuple(p for key, p in after.items() if key not in before),
        removed=tuple(p for key, p in before.items() if key not in after),
        changed=tuple((before[key], p) for key, p in after.items() if key in before and before[key] != p),
    )


def _bridge_port(dpid: int, bridge: Row, port: Row, row: Row, *, bonded: bool) -> BridgePort:
    """What the row of an interface says, and that of its port, as far as it follows the grammar: one whose id
    or name does not is no VM's."""
    ids = row["external_ids"] if isinstance(row["external_ids"], dict) else {}
    attached, iface_id, name = ids.get("attached-mac"), _text(ids.get("iface-id")), _text(row["name"])
    address, problem = None, ""
    if attached is not None:
        try:
            address = mac(str(attached))
        except ModelError as e:
            problem = f"external_ids:attached-mac of interface {quoted(name)}: {e}"
    try:
        if iface_id:
            entity_id(iface_id, "a VM")
            if not PORT_NAME.fullmatch(name):
                raise ModelError(f"{quoted(name)} cannot be a port's name: visible ASCII, up to {LONGEST_ID}")
    except ModelError as e:
        iface_id, problem = "", f"external_ids:iface-id of interface {quoted(name)}: {e}"
    host = _text(ids.get("host"))
    try:
        if host:
            entity_id(host, "a host")
    except ModelError as e:
        host, problem = "", f"external_ids:host of interface {quoted(name)}: {e}"
    return BridgePort(
        dpid=dpid,
        bridge=cut(_text(bridge["name"]), LONGEST_ID),
        name=name if PORT_NAME.fullmatch(name) else quoted(name),
        number=_number(row["ofport"]),
        status=_status(row),
        iface_id=iface_id or None,
        attached_mac=address,
        vm_id=cut(_text(ids.get("vm-id")), LONGEST_ID) or None,
        bond=_text(port["name"]) if bonded else None,
        tag=_vlan(port.get("tag")),
        trunks=tuple(map(_vlan, trunks)) if isinstance(trunks := port.get("trunks"), tuple) else (),
        host=host,
        problem=problem,
    )


def _status(row: Row) -> PortStatus:
    if row["admin_state"] == "down":
        return PortStatus.DISABLED
    return PortStatus.DOWN if row["link_state"] == "down" else PortStatus.UP


def _number(ofport: Value) -> int | None:
    """-1 stands for an interface that could not be made (ovs-vswitchd.conf.db(5))."""
    return ofport if isinstance(ofport, int) and 0 < ofport <= LARGEST_PORT_NUMBER else None


def _vlan(value: Value) -> int:
    return value if isinstance(value, int) and 0 <= value <= HIGHEST_VLAN else 0


def _dpid(text: Value) -> int | None:
    try:
        return int(_text(text), 16) or None
    except ValueError:
        return None


def _referred(tables: Tables, table: str, uuids: Value) -> Iterable[tuple[UUID, Row]]:
    rows = tables[table]
    return ((uuid, rows[uuid]) for uuid in _uuids(uuids) if uuid in rows)


def _uuids(value: Value) -> list[UUID]:
    return [one for one in value if isinstance(one, UUID)] if isinstance(value, tuple) else []


def _text(value: Value) -> str:
    return value if isinstance(value, str) else ""

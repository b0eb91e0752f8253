"""What a switch's own database says of its ports: who is plugged in where, and whether the link is up.

Works on the tables of a `Replica` of the database "Open_vSwitch" with `COLUMNS`, and changes nothing. A port
is known by the keys libvirt and QEMU scripts set on its interface (external_ids: iface-id, attached-mac,
vm-id), and ours (host); names and OpenFlow numbers differ from host to host.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from retinue.core.limits import HIGHEST_VLAN, LARGEST_PORT_NUMBER, LONGEST_ID, PORT_NAME
from retinue.core.model import Mac, ModelError, PortStatus, entity_id, mac
from retinue.core.text import cut, quoted
from retinue.southbound.ovsdb.replica import Tables
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
            ports=tuple(sorted(_text(port["name"]) for port in _referred(tables, "Port", row["ports"]))),
        )
        for row in tables["Bridge"].values()
    ]
    return sorted(found, key=lambda b: b.name)


def interfaces(tables: Tables) -> list[BridgePort]:
    """Every interface of every bridge that has a datapath id, by datapath id and name.

    A bridge without one is not yet made, its ports appear when it is. Each interface of a bond is listed.
    """
    found = []
    for bridge in tables["Bridge"].values():
        dpid = _dpid(bridge["datapath_id"])
        if dpid is None:
            continue
        for port in _referred(tables, "Port", bridge["ports"]):
            members = list(_referred(tables, "Interface", port["interfaces"]))
            bond = _text(port["name"]) if len(members) > 1 else None
            tag, trunks = _vlan(port.get("tag")), port.get("trunks")
            carries = tuple(map(_vlan, trunks)) if isinstance(trunks, tuple) else ()
            name = _text(bridge["name"])
            found += [_bridge_port(dpid, name, row, bond, tag, carries) for row in members]
    return sorted(found, key=lambda p: p.key)


def diff(old: Iterable[BridgePort], new: Iterable[BridgePort]) -> PortsDiff:
    """What changed from one list of ports to another; a port is the same by datapath id and name."""
    before, after = {p.key: p for p in old}, {p.key: p for p in new}
    return PortsDiff(
        added=tuple(p for key, p in after.items() if key not in before),
        removed=tuple(p for key, p in before.items() if key not in after),
        changed=tuple((before[key], p) for key, p in after.items() if key in before and before[key] != p),
    )


def _bridge_port(
    dpid: int, bridge: str, row: Row, bond: str | None, tag: int, trunks: tuple[int, ...]
) -> BridgePort:
    """What the row says, as far as it follows the grammar: a port whose id or name does not is no VM's."""
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
        bridge=cut(bridge, LONGEST_ID),
        name=name if PORT_NAME.fullmatch(name) else quoted(name),
        number=_number(row["ofport"]),
        status=_status(row),
        iface_id=iface_id or None,
        attached_mac=address,
        vm_id=cut(_text(ids.get("vm-id")), LONGEST_ID) or None,
        bond=bond,
        tag=tag,
        trunks=trunks,
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


def _referred(tables: Tables, table: str, uuids: Value) -> Iterable[Row]:
    for uuid in uuids if isinstance(uuids, tuple) else ():
        row = tables[table].get(uuid) if isinstance(uuid, UUID) else None
        if row is not None:
            yield row


def _text(value: Value) -> str:
    return value if isinstance(value, str) else ""

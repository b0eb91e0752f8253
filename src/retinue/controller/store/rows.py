"""Values of the model to rows of the database and back."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Network, ip_address, ip_network
from typing import Any

import msgspec

from retinue.controller.kinds import KIND_OF
from retinue.controller.state import (
    CLOCK,
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
    RemovedGuest,
    ServerLocation,
    Storable,
    Stored,
    TakenOut,
    UplinkInUse,
    UplinkPlace,
    Word,
)
from retinue.controller.store import disk_documents, subinterface_documents
from retinue.controller.store.nic_documents import from_document, to_document
from retinue.controller.store.schema import TYPES
from retinue.core.migration import Migration
from retinue.core.model import (
    DEFAULT_VRF,
    IP,
    NIC,
    VM,
    Assignment,
    BindingKind,
    Flood,
    GatewayGroup,
    Host,
    Lease6,
    Link,
    Origin,
    PortRef,
    Power,
    Restart,
    Role,
    Server,
    Service,
    Subnet,
    Switch,
    Vnet,
    Vrf,
    mac,
)
from retinue.core.model.domains import HomeAnchor
from retinue.core.model.pairs import AddressPair
from retinue.core.model.storage import FcLogin
from retinue.core.packets import build_options, parse_options
from retinue.core.placement import Entity, Placement
from retinue.core.placement.bookings import Booking
from retinue.protocol.images import SignedManifest
from retinue.southbound.ovsdb import ProtocolError
from retinue.southbound.ovsdb.values import Value, row_to_wire
from retinue.steady_clock import ClockAnchor

Key = tuple[str, str]
"""Table, and the value of its key column."""


def key_of(value: Storable) -> Key:
    """Where the value is kept. Raises TypeError for what is not kept."""
    kind = KIND_OF.get(type(value))
    if kind is None:
        raise TypeError(f"{type(value).__name__} is not kept in the database")
    return kind.table, kind.key_of(value)


def sort_in(stored: Stored, value: Storable) -> None:
    """Add a value to those of its kind."""
    getattr(stored, KIND_OF[type(value)].stored).append(value)


def to_row(value: Storable) -> dict[str, Any]:
    """Its row, every column of it, as it stands on the wire. Raises ValueError for what cannot be kept."""
    return row_to_wire(_columns(value))


def _columns(value: Storable) -> dict[str, Value]:
    match value:
        case GatewayGroup():
            return {"id": value.id, "mac": value.mac, "is_default": value.default}
        case Switch():
            return {
                "id": value.id,
                "role": value.role,
                "dpid": f"{value.dpid:#x}",
                "uplinks": _listed(value.uplinks),
                "given": value.given,
                "tunnel": value.tunnel,
                "endpoint": None if value.endpoint is None else str(value.endpoint),
                "vdp": value.vdp,
                "gateway_group": value.gateway_group,
            }
        case LaidLink():
            ends = {"lower": str(value.link.lower), "upper": str(value.link.upper)}
            return {**ends, "idle": value.idle}
        case Vrf():
            return {"id": value.id, "tag": value.tag}
        case Vnet():
            return {
                "id": value.id,
                "vlan": value.vlan,
                "mtu": value.mtu,
                "vrf": value.vrf,
                "flood": value.flood,
            }
        case Subnet():
            return {
                "id": value.id,
                "prefix": str(value.prefix),
                "gateway": str(value.gateway),
                "vlan": value.vlan,
                "dhcp": _listed(value.dhcp),
                "dhcp_pools": _listed(tuple(f"{first}-{last}" for first, last in value.dhcp_pools)),
                "vnet": value.vnet,
                "slaac": value.slaac,
                "dhcp6": value.dhcp6,
            }
        case Server():
            return {
                "id": value.id,
                "mac": value.mac,
                "address": None if value.address is None else str(value.address),
                "edge": value.edge,
                "services": tuple(sorted(value.services)),
                "routes": _listed(value.routes),
                "given_at": {} if value.given_at is None else {value.given_at.switch: value.given_at.port},
                "gateway_group": value.gateway_group,
                "hosts": {host.id: host.mac for host in value.hosts},
                "metric": value.metric,
                "chassis": value.chassis,
                "anycast": _listed(value.anycast),
                "load": value.load,
                "subinterfaces": _listed(tuple(map(subinterface_documents.to_document, value.subinterfaces))),
            }
        case VM():
            return {
                "id": value.id,
                "mac": value.nic.mac,
                "server": value.server,
                "addresses": _listed(value.nic.addresses),
                "nics": _listed(tuple(to_document(nic) for nic in value.nics)),
                "reported": value.reported,
                "power": value.power,
                "power_reason": value.power_reason,
                "restart": value.restart,
                "memory_mib": value.memory_mib,
                "disks": _listed(tuple(disk_documents.to_document(disk) for disk in value.disks)),
                "home": value.home,
                "host": value.host,
            }
        case Assignment():
            return {
                "ip": str(value.key),
                "mac": value.mac,
                "vm": value.vm,
                "kind": value.kind,
                "origin": value.origin,
                "lease_end": None if value.lease_end is None else float(value.lease_end),
                "server": None if value.server is None else str(value.server),
                "client_id": value.client_id.hex(),
                "options": build_options(value.options)[:-1].hex(),
                "told": build_options(value.told)[:-1].hex(),
                "told_since": build_options(value.told_since)[:-1].hex(),
                "lease6": "" if value.lease6 is None else msgspec.json.encode(value.lease6).decode(),
                "prefix": "" if value.prefix is None else str(value.prefix),
            }
        case EndedLease():
            return _columns(value.lease)
        case PendingRenewal():
            return {"vm": value.nic}
        case ServerLocation():
            return {"server": value.server, "switch": value.at.switch, "port": value.at.port}
        case ClockAnchor():
            return {"name": CLOCK, "boot": value.boot, "began": float(value.began)}
        case LostRouter():
            return {"server": value.server, "reason": value.reason}
        case LostLink():
            return {"lower": str(value.lower), "reason": value.reason}
        case UplinkPlace():
            return {"uplink": str(value.uplink), "switch": value.at.switch, "port": value.at.port}
        case UplinkInUse():
            return {"edge": value.edge, "uplink": value.uplink}
        case TakenOut():
            return {"what": value.what}
        case FencedServer() | DrainedServer() | AgentAt():
            return {"server": value.server}
        case Booking():
            return {
                "vm": value.vm,
                "server": value.server,
                "memory_mib": value.memory_mib,
                "cpus": value.cpus,
                "until": float(value.until),
            }
        case HomeAnchor():
            return {
                "vm": value.vm,
                "since": float(value.since),
                "ended": value.ended,
                "why": value.why,
                "idle": float(value.idle),
                "until": value.until,
            }
        case Word():
            return {"about": value.about, "by": value.by, "at": float(value.at)}
        case AddressPair():
            return {"mac": value.mac, "ip": str(value.ip), "number": value.number}
        case FcLogin():
            return {
                "mac": value.mac,
                "vm": value.vm,
                "nic": value.nic,
                "forwarder": value.forwarder,
                "forwarder_mac": value.forwarder_mac,
            }
        case LeftPort():
            return {"port_id": value.port_id, "vm": value.vm, "switches": value.switches}
        case RemovedGuest():
            return {"key": value.key, "vm": value.vm, "home": value.home}
        case Image():
            document = msgspec.json.encode(value.signed).decode()
            return {
                "name": value.name,
                "origin": value.origin,
                "publisher": value.publisher,
                "document": document,
            }
        case Migration():
            document = msgspec.json.encode(value).decode()
            return {"id": value.id, "vm": value.vm, "state": value.state, "document": document}
        case Entity():
            document = msgspec.json.encode(value).decode()
            return {"name": value.name, "kind": value.kind, "document": document}
        case Placement():
            return {"migration": value.migration, "document": msgspec.json.encode(value).decode()}


def _listed(values: tuple[object, ...]) -> Value:
    return {index: str(value) for index, value in enumerate(values)}


def read_row(table: str, wire: Mapping[str, Any]) -> Storable:
    """The value kept in a row. Raises ValueError that says what is wrong with it."""
    try:
        row: dict[str, Any] = {name: kind.read(wire[name]) for name, kind in TYPES[table].items()}
        return _value(table, row)
    except (ValueError, KeyError, TypeError, ProtocolError, msgspec.MsgspecError) as e:
        raise ValueError(f"a row of {table} cannot be read: {e!r} in {dict(wire)!r:.300}") from e


def _value(table: str, row: dict[str, Any]) -> Storable:
    match table:
        case "GatewayGroup":
            return GatewayGroup(row["id"], mac(row["mac"]), row["is_default"])
        case "Switch":
            uplink, *standby = _in_order(row["uplinks"])
            return Switch(
                id=row["id"],
                role=Role(row["role"]),
                dpid=int(row["dpid"], 16),
                uplink=uplink,
                given=row["given"],
                tunnel=row["tunnel"],
                endpoint=None if row["endpoint"] is None else IPv4Address(row["endpoint"]),
                vdp=row["vdp"],
                gateway_group=row["gateway_group"],
                standby=tuple(standby),
            )
        case "LaidLink":
            return LaidLink(Link(_port_ref(row["lower"]), _port_ref(row["upper"])), row["idle"])
        case "Vrf":
            return Vrf(row["id"], row["tag"])
        case "Vnet":
            # Empty in a row of a file that had no such column.
            flood = Flood(row["flood"] or Flood.DROPPED)
            return Vnet(row["id"], row["vlan"], row["mtu"], row["vrf"] or DEFAULT_VRF, flood)
        case "Subnet":
            return Subnet(
                id=row["id"],
                prefix=ip_network(row["prefix"]),
                gateway=ip_address(row["gateway"]),
                vlan=row["vlan"],
                dhcp=tuple(IPv4Address(server) for server in _in_order(row["dhcp"])),
                dhcp_pools=tuple(map(_pool, _in_order(row["dhcp_pools"]))),
                vnet=row["vnet"],
                slaac=row["slaac"],
                dhcp6=row["dhcp6"],
            )
        case "Server":
            return Server(
                id=row["id"],
                mac=mac(row["mac"]),
                address=None if row["address"] is None else ip_address(row["address"]),
                edge=row["edge"],
                services=frozenset(Service(s) for s in row["services"]),
                routes=tuple(ip_network(prefix) for prefix in _in_order(row["routes"])),
                given_at=next((PortRef(*at) for at in row["given_at"].items()), None),
                gateway_group=row["gateway_group"],
                hosts=tuple(Host(id, mac(address)) for id, address in sorted(row["hosts"].items())),
                metric=row["metric"],
                chassis=row["chassis"],
                anycast=tuple(map(ip_address, _in_order(row["anycast"]))),
                load=row["load"],
                subinterfaces=tuple(
                    map(subinterface_documents.from_document, _in_order(row["subinterfaces"]))
                ),
            )
        case "VM":
            return VM(
                id=row["id"],
                nics=_nics(row),
                server=row["server"],
                reported=row["reported"],
                # Empty in a row of a file that had no such column.
                power=Power(row["power"] or Power.RUNNING),
                power_reason=row["power_reason"],
                restart=Restart(row["restart"] or Restart.NEVER),
                memory_mib=row["memory_mib"],
                disks=tuple(map(disk_documents.from_document, _in_order(row["disks"]))),
                home=row["home"],
                host=row["host"],
            )
        case "Assignment":
            return _assignment(row)
        case "EndedLease":
            return EndedLease(_assignment(row))
        case "PendingRenewal":
            return PendingRenewal(row["vm"])
        case "ServerLocation":
            return ServerLocation(row["server"], PortRef(row["switch"], row["port"]))
        case "ClockAnchor":
            return ClockAnchor(row["boot"], row["began"])
        case "TakenOut":
            return TakenOut(row["what"])
        case "FencedServer":
            return FencedServer(row["server"])
        case "LostRouter":
            return LostRouter(row["server"], row["reason"])
        case "LostLink":
            return LostLink(_port_ref(row["lower"]), row["reason"])
        case "UplinkPlace":
            return UplinkPlace(_port_ref(row["uplink"]), PortRef(row["switch"], row["port"]))
        case "UplinkInUse":
            return UplinkInUse(row["edge"], row["uplink"])
        case "DrainedServer":
            return DrainedServer(row["server"])
        case "AgentAt":
            return AgentAt(row["server"])
        case "Booking":
            return Booking(row["vm"], row["server"], row["memory_mib"], row["cpus"], row["until"])
        case "HomeAnchor":
            return HomeAnchor(row["vm"], row["since"], row["ended"], row["why"], row["idle"], row["until"])
        case "Word":
            return Word(row["about"], row["by"], row["at"])
        case "AddressPair":
            return AddressPair(mac(row["mac"]), ip_address(row["ip"]), row["number"])
        case "FcLogin":
            return FcLogin(
                mac(row["mac"]), row["vm"], mac(row["nic"]), row["forwarder"], row["forwarder_mac"]
            )
        case "LeftPort":
            return LeftPort(row["port_id"], row["vm"], tuple(sorted(row["switches"])))
        case "RemovedGuest":
            return RemovedGuest(row["vm"], row["home"])
        case "Image":
            signed = msgspec.json.decode(row["document"], type=SignedManifest)
            return Image(signed, row["origin"], row["publisher"])
        case "Migration":
            return msgspec.json.decode(row["document"], type=Migration)
        case "Entity":
            return msgspec.json.decode(row["document"], type=Entity)
        case "Placement":
            return msgspec.json.decode(row["document"], type=Placement)
        case _:
            raise KeyError(table)


def _port_ref(text: str) -> PortRef:
    switch, _, port = text.partition(":")
    return PortRef(switch, port)


def _pool(text: str) -> tuple[IP, IP]:
    first, _, last = text.partition("-")
    return ip_address(first), ip_address(last)


def _nics(row: dict[str, Any]) -> tuple[NIC, ...]:
    if row["nics"]:
        return tuple(from_document(text) for text in _in_order(row["nics"]))
    addresses = tuple(ip_address(a) for a in _in_order(row["addresses"]))
    return (NIC(mac(row["mac"]), row["id"], addresses),)


def _assignment(row: dict[str, Any]) -> Assignment:
    ip, _, vrf = row["ip"].partition("%")
    return Assignment(
        ip=ip_address(ip),
        mac=mac(row["mac"]),
        vm=row["vm"],
        kind=BindingKind(row["kind"]),
        origin=Origin(row["origin"]),
        lease_end=row["lease_end"],
        server=None if row["server"] is None else IPv4Address(row["server"]),
        client_id=bytes.fromhex(row["client_id"]),
        options=parse_options(bytes.fromhex(row["options"])),
        told=parse_options(bytes.fromhex(row["told"])),
        told_since=parse_options(bytes.fromhex(row["told_since"])),
        vrf=vrf or DEFAULT_VRF,
        lease6=msgspec.json.decode(row["lease6"], type=Lease6) if row["lease6"] else None,
        prefix=IPv6Network(row["prefix"]) if row["prefix"] else None,
    )


def _in_order(values: dict[int, str]) -> list[str]:
    return [values[index] for index in sorted(values)]

"""OVSDB (RFC 7047) on asyncio: connections both ways, replicas, and a switch's ports read from one."""

from retinue.southbound.ovsdb.client import Connection, ConnectionLostError, OvsdbError, connect
from retinue.southbound.ovsdb.listener import OvsdbListener, RejectedError
from retinue.southbound.ovsdb.replica import Replica, RowChange
from retinue.southbound.ovsdb.values import UUID, NamedUUID
from retinue.southbound.ovsdb.vm_ports import BridgePort, PortsDiff, bridges, diff, interfaces, ovs_version
from retinue.southbound.ovsdb.wire import ProtocolError

__all__ = [
    "UUID",
    "BridgePort",
    "Connection",
    "ConnectionLostError",
    "NamedUUID",
    "OvsdbError",
    "OvsdbListener",
    "PortsDiff",
    "ProtocolError",
    "RejectedError",
    "Replica",
    "RowChange",
    "bridges",
    "connect",
    "diff",
    "interfaces",
    "ovs_version",
]

"""OVSDB (RFC 7047) on asyncio: connections both ways, replicas, and a switch's ports read from one."""

from retinue.ovsdb.client import Connection, ConnectionLostError, OvsdbError, connect
from retinue.ovsdb.listener import OvsdbListener, RefusedError
from retinue.ovsdb.replica import Replica, RowChange
from retinue.ovsdb.switch_view import BridgePort, PortsDiff, bridges, diff, interfaces, ovs_version
from retinue.ovsdb.values import UUID, NamedUUID
from retinue.ovsdb.wire import ProtocolError

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
    "RefusedError",
    "Replica",
    "RowChange",
    "bridges",
    "connect",
    "diff",
    "interfaces",
    "ovs_version",
]

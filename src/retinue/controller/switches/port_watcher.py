"""Watches the databases of the switches that dial in, and tells the controller which VM ports came and went.

A switch's ports do not go because its database was out of reach: what was last seen holds until the
database, when it is back, shows otherwise.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import structlog

from retinue.security.listener.rejections import Rejection
from retinue.southbound.ovsdb import (
    UUID,
    BridgePort,
    Connection,
    RejectedError,
    Replica,
    RowChange,
    diff,
    ovs_version,
)
from retinue.southbound.ovsdb.vm_ports import (
    COLUMNS,
    DATABASE,
    Ports,
    datapath_ids,
    ports_by_bridge,
    touched_by,
)

log = structlog.get_logger()

Changed = Callable[[list[BridgePort], list[BridgePort]], None]
"""Called with the ports that were removed, and those that appeared or changed."""
Read = Callable[[list[int], list[str]], None]
"""Called after a connection's first reading, with the datapath ids read and the port ids found there."""
Admits = Callable[[Mapping[str, Any] | None, Collection[int], str], str]
"""(certificate, datapath ids, peer) -> why its holder may not speak for these switches; "" when it may."""


class PortWatch:
    """Follows the databases of switches, each by its newest connection, and reports ports that change."""

    def __init__(
        self, changed: Changed, read: Read, admits: Admits = lambda certificate, dpids, peer: ""
    ) -> None:
        self._changed = changed
        self._read = read
        self._admits = admits
        self._ports: dict[int, Ports] = {}
        self._followed: dict[int, Connection] = {}
        """By datapath id, the connection that is believed: the newest."""
        self.versions: dict[int, str] = {}
        """Open vSwitch's version by datapath id."""

    async def follow(self, connection: Connection) -> None:
        """Follow one switch's database until its connection ends (a handler for OvsdbListener).

        Raises RejectedError as soon as the database shows a switch that its certificate does not name;
        nothing of it is believed then.
        """

        def update(changes: list[RowChange] | None = None) -> None:
            dpids = datapath_ids(replica.tables)
            if connection.is_open and self._allowed(connection, dpids):
                first = any(self._followed.get(dpid) is not connection for dpid in dpids)
                self._take_over(connection, dpids)
                self._update(replica, None if first or changes is None else touched_by(changes))

        replica = Replica(DATABASE, COLUMNS, update)
        if self._allowed(connection, ()):
            await replica.start(connection)
            update()
        if not connection.is_open:
            await self._ended(connection)
            return
        dpids = datapath_ids(replica.tables)
        ports = (port for dpid in dpids for port in self._ports[dpid].values())
        self._read(dpids, [port.iface_id for port in ports if port.iface_id])
        await self._ended(connection)

    def read_again(self, dpid: int) -> None:
        """Whose switch this is has changed: the database that shows it connects again, and is judged anew.
        What it has shown counts no longer: it may have gone before that."""
        went = _of_vms(self._ports.pop(dpid, {}).values())
        if went:
            self._changed(went, [])
        former = self._followed.pop(dpid, None)
        if former is not None:
            former.close(f"whose switch {dpid:#x} is has changed: its database is read anew")

    def _take_over(self, connection: Connection, dpids: Collection[int]) -> None:
        """A switch has one database: the older connection ends, and reads anew when it comes back."""
        for dpid in dpids:
            former = self._followed.get(dpid)
            self._followed[dpid] = connection
            if former is not None and former is not connection:
                former.close(f"the database of switch {dpid:#x} has connected again, from {connection.name}")

    async def _ended(self, connection: Connection) -> None:
        try:
            reason = await connection.closed()
        finally:
            self._followed = {dpid: one for dpid, one in self._followed.items() if one is not connection}
        if isinstance(reason, RejectedError):
            raise reason

    def _allowed(self, connection: Connection, dpids: Collection[int]) -> bool:
        reason = self._admits(connection.certificate, dpids, connection.name)
        if reason:
            connection.close(RejectedError(Rejection.IDENTITY, reason))
        return not reason

    def _update(self, replica: Replica, touched: frozenset[UUID] | None) -> None:
        """`touched`: the interfaces that may be others than before; None: nothing is known of before.

        A server tells of each VM by itself, so what was not touched is not read anew; and the port that a row
        shows unchanged stays the object that it was, since others have it, too.
        """
        found = ports_by_bridge(replica.tables, None if touched is None else self._ports, touched or ())
        version = ovs_version(replica.tables)
        went: list[BridgePort] = []
        came: list[BridgePort] = []
        for dpid, ports in found.items():
            self.versions[dpid] = version
            before = self._ports.get(dpid, {})
            for uuid, port in ports.items():
                has = before.get(uuid)
                if has is not None and has is not port and has == port:
                    ports[uuid] = has
            self._ports[dpid] = ports
            difference = diff(_others(before, ports), _others(ports, before))
            went += difference.removed
            came += difference.added
            for old, new in difference.changed:
                if old.iface_id != new.iface_id or new.number is None:
                    went.append(old)
                came.append(new)
        if went or came:
            self._changed(_of_vms(went), _of_vms(came))
        for port in came:
            if port.problem:
                log.warning("port.unusable", port=port.name, problem=port.problem)


def _others(ports: Ports, than: Ports) -> list[BridgePort]:
    return [port for uuid, port in ports.items() if than.get(uuid) is not port]


def _of_vms(ports: Iterable[BridgePort]) -> list[BridgePort]:
    """And those that would be, were their ids such as VMs have."""
    return [port for port in ports if port.iface_id or port.problem]

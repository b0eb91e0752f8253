"""Watches the databases of the switches that dial in, and tells the controller which VM ports came and went.

A switch's ports do not go because its database was out of reach: what was last seen holds until the
database, when it is back, shows otherwise.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import structlog

from retinue.security.listener.rejections import Rejection
from retinue.southbound.ovsdb import (
    BridgePort,
    Connection,
    RejectedError,
    Replica,
    RowChange,
    bridges,
    diff,
    interfaces,
    ovs_version,
)
from retinue.southbound.ovsdb.vm_ports import COLUMNS, DATABASE

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
        self._ports: dict[int, list[BridgePort]] = {}
        self._followed: dict[int, Connection] = {}
        """By datapath id, the connection that is believed: the newest."""
        self.versions: dict[int, str] = {}
        """Open vSwitch's version by datapath id."""

    async def follow(self, connection: Connection) -> None:
        """Follow one switch's database until its connection ends (a handler for OvsdbListener).

        Raises RejectedError as soon as the database shows a switch that its certificate does not name;
        nothing of it is believed then.
        """

        def update(_: list[RowChange] | None = None) -> None:
            if connection.is_open and self._allowed(connection, _dpids(replica)):
                self._take_over(connection, _dpids(replica))
                self._update(replica)

        replica = Replica(DATABASE, COLUMNS, update)
        if self._allowed(connection, ()):
            await replica.start(connection)
            update()
        if not connection.is_open:
            await self._ended(connection)
            return
        dpids = _dpids(replica)
        self._read(dpids, [port.iface_id for dpid in dpids for port in self._ports[dpid] if port.iface_id])
        await self._ended(connection)

    def read_again(self, dpid: int) -> None:
        """Whose switch this is has changed: the database that shows it connects again, and is judged anew.
        What it has shown counts no longer: it may have gone before that."""
        went = _of_vms(self._ports.pop(dpid, []))
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

    def _update(self, replica: Replica) -> None:
        found: dict[int, list[BridgePort]] = {dpid: [] for dpid in _dpids(replica)}
        for port in interfaces(replica.tables):
            found[port.dpid].append(port)
        version = ovs_version(replica.tables)
        went: list[BridgePort] = []
        came: list[BridgePort] = []
        for dpid, ports in found.items():
            self.versions[dpid] = version
            before = self._ports.get(dpid, [])
            difference = diff(before, ports)
            same = {port.key: port for port in before}
            # Of those that did not change the former ones are kept: others have these, too.
            self._ports[dpid] = [has if (has := same.get(port.key)) == port else port for port in ports]
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


def _dpids(replica: Replica) -> list[int]:
    return [bridge.dpid for bridge in bridges(replica.tables) if bridge.dpid is not None]


def _of_vms(ports: Iterable[BridgePort]) -> list[BridgePort]:
    """And those that would be, were their ids such as VMs have."""
    return [port for port in ports if port.iface_id or port.problem]

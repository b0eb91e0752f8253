"""All ports that switches report with a VM's port id: a set, whatever of it is the VM's port.

Two interfaces of one switch may carry the same id, by a mistake, or for a moment while one takes the place of
the other. When one of them goes, the other still stands.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from retinue.southbound.ovsdb.vm_ports import BridgePort


@dataclass(frozen=True, slots=True)
class RejectedPort:
    """A port with a VM's id that is no VM's port."""

    port: BridgePort
    switch: str
    reason: str


@dataclass
class ReportedPorts:
    """The ports as last reported, by port id."""

    by_dpid: Mapping[int, str]
    """The switches of the network by datapath id."""
    _ports: dict[str, dict[tuple[int, str], BridgePort]] = field(default_factory=dict)

    def changed(self, removed: Collection[BridgePort], now: Collection[BridgePort]) -> list[tuple[str, int]]:
        """Take a report; the port ids it concerns, each with the datapath id, in order."""
        concerned: dict[tuple[str, int], None] = {}
        for port in removed:
            if port.iface_id:
                same = self._ports.get(port.iface_id, {})
                same.pop(port.key, None)
                if not same:
                    self._ports.pop(port.iface_id, None)
                concerned[port.iface_id, port.dpid] = None
        for port in now:
            if port.iface_id:
                self._ports.setdefault(port.iface_id, {})[port.key] = port
                concerned[port.iface_id, port.dpid] = None
        return list(concerned)

    def on(self, port_id: str, switch: str) -> list[BridgePort]:
        """A switch's ports with this id that have a number, the lowest first."""
        found = [port for port in self._of(port_id, switch) if port.number is not None]
        return sorted(found, key=lambda port: (port.number or 0, port.name))

    def has(self, port_id: str, switch: str) -> bool:
        """True while a port with this id stands on the switch, with or without a number."""
        return bool(self._of(port_id, switch))

    def switches(self, port_id: str) -> list[str]:
        """The switches with a port of this id."""
        found = {
            self.by_dpid[port.dpid]
            for port in self._ports.get(port_id, {}).values()
            if port.dpid in self.by_dpid
        }
        return sorted(found)

    def _of(self, port_id: str, switch: str) -> list[BridgePort]:
        ports = self._ports.get(port_id, {}).values()
        return [port for port in ports if self.by_dpid.get(port.dpid) == switch]

"""NICs whose guests may give them another MAC: the one that is seen at the port takes the place of the old.

What a port sends under another MAC than its NIC's is dropped, and comes to the controller as a spoofed frame.
Of a NIC that may change its MAC (virtualisation calls it "MAC address changes") it is none, if the MAC is
nobody else's: the NIC's rows are replaced in place, and what the guest sends next goes through.
"""

from retinue.controller.context import Context
from retinue.controller.nic_changes import replaced
from retinue.core.model import NIC, VM, ModelError, mac
from retinue.core.packets import EtherType, FrameError, parse
from retinue.core.pipeline.underlay import underlay_of
from retinue.protocol.events import EventType

CALM_SECONDS = 10.0
"""A NIC's MAC changes once in this time: a guest that sends under two makes no more work than this."""
HEEDED = frozenset({EtherType.IPV4, EtherType.ARP, EtherType.IPV6})
"""What a guest speaks. Its hypervisor's announcements (RARP) are of the MAC that the machine has, and at an
access port nobody tags."""


class MacChanges:
    """Follows the MACs of NICs that may change them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._changed: dict[str, float] = {}
        """By port id: when its MAC was changed last."""

    def seen(self, switch: str, port: int, frame: bytes) -> bool:
        """A frame came in under another MAC than its port's; True when that is the NIC's from now on."""
        net, now = self._context.net, self._context.clock()
        vm, nic = net.vm_at(switch, port), net.nic_at(switch, port)
        if vm is None or nic is None or not self._may(vm, nic, switch):
            return False
        try:
            ethernet = parse(frame)
            if ethernet.vlan is not None or ethernet.ethertype not in HEEDED:
                return False
            new = nic.with_mac(mac(ethernet.src))
        except (FrameError, ModelError):
            return False
        self._changed = {id: at for id, at in self._changed.items() if 0 <= now - at < CALM_SECONDS}
        if nic.port_id in self._changed:
            return False
        try:
            touched = self._context.apply(*replaced(net, vm, nic, new))
        except ModelError:
            return False  # It is somebody else's: an attempt like any other.
        self._changed[nic.port_id] = now
        told = {"vm": vm.id, "nic": nic.port_id, "mac": new.mac, "before": nic.mac}
        self._context.events.publish(EventType.MAC_CHANGED, **told)
        near = underlay_of(net).near(vm.server)
        self._context.spawn(self._context.install(touched, [near]), f"{nic.port_id} has MAC {new.mac}")
        return True

    def _may(self, vm: VM, nic: NIC, switch: str) -> bool:
        """It may, and speaks from where it is; during a migration it is left as it is."""
        here = self._context.net.server_of_edge(switch)
        settled = not vm.also and not vm.forwarded_from and not vm.home
        return nic.mac_changes and nic.enabled and settled and here is not None and here.id == vm.server

"""Meters: how much of what switches hand to the controller passes, so that nobody can flood it."""

from enum import IntEnum

from retinue.core.pipeline.entry import Meter


class VMMeter(IntEnum):
    """What a VM's port may send to the controller, each with a meter of its own: no VM can starve another."""

    DHCP = 0
    ARP = 1
    SPOOFING = 2

    @property
    def rate(self) -> int:
        """Frames a second, and the size of a burst."""
        return (20, 50, 100)[self]

    def id(self, port: int) -> int:
        """The meter's number for a port of an edge switch."""
        return port * 4 + self + 16


SHORTEST_BURST = 1000
"""Kilobits: some large frames at once, whatever the rate."""


def rate_meters(port: int, rate: int) -> tuple[int | None, int | None, list[Meter]]:
    """The meters of a port's rate (kilobits a second): the number of each direction's, from and to the VM.

    None, and no meters, without a rate. A burst is what the rate lets through in a fifth of a second.
    """
    if not rate:
        return None, None, []
    burst = max(rate // 5, SHORTEST_BURST)
    numbers = port * 4 + 19, RATE_TO_VM + port
    return *numbers, [Meter(number, rate, burst, kilobits=True) for number in numbers]


RATE_TO_VM = 3 << 16
"""Meters to VMs are numbered from here, above those of HIGHEST_VM_PORT; Open vSwitch has some up to 2^18."""

SHARE_METERS = 5 << 15
"""Those of VMs that are away, and of guests, are numbered from here, below those of RATE_TO_VM."""


def share_meter(share: int) -> Meter:
    """Of what one such VM asks, or is answered, by the tunnel: as much as at a port of its own."""
    rate = VMMeter.DHCP.rate
    return Meter(SHARE_METERS + share, rate, rate)


FLOOD_RATE = 200
"""Frames a second, and the size of a burst, that one NIC may send to the group of a vnet that floods."""
FLOOD_METERS = 7 << 15
"""Their meters are numbered from here, above those of RATE_TO_VM: each has room for HIGHEST_VM_PORT."""


def flood_meter(port: int) -> Meter:
    return Meter(FLOOD_METERS + port, FLOOD_RATE, FLOOD_RATE)


def port_of_flood_meter(meter: int) -> int | None:
    """Whose meter it is; None for another kind."""
    return meter - FLOOD_METERS if meter > FLOOD_METERS else None


class LeafMeter(IntEnum):
    """What a leaf may send to the controller; the member is the meter's number."""

    ARP = 1
    DHCP = 2
    SPOOFING = 3
    EXPIRED = 4
    TOO_BIG = 5
    """Where there is a way that takes less than others."""
    UNPLACED = 7
    """To VMs at a server whose place is not known."""
    FIP = 6
    """Where there is an FCoE forwarder."""


EDGE_VDP = Meter(1, 10, 10)
"""What an edge's uplink may send to the controller of LLDP; its number is below those of VMs' ports."""

PROBES = Meter(8, 4000, 4000)
"""What a leaf, spine or core may send to the controller of probes: what is sent in all of them, and of the
marks of migrations, which look the same. Its number is beyond those of LeafMeter."""

EDGE_PROBES = Meter(2, 400, 400)
"""What an edge with several uplinks may send of them; its number is below those of VMs' ports, too."""
CHANNEL = 3
"""The number of an edge's meter for the memory and disks of VMs that leave its server, or come to it."""
UPLINK_METERS = 1 << 16
"""Meters of a leaf for probes of servers' uplinks are numbered from here, by port."""


def uplink_meter(port: int) -> Meter:
    """Of the probes of one uplink: more than is ever sent of them."""
    return Meter(UPLINK_METERS + port, 200, 200)


LEAF_RATE = 500
"""Frames a second, and the size of a burst, of each LeafMeter."""

STRANGERS = Meter(9, LEAF_RATE, LEAF_RATE)
"""Of the same from ports where no uplink is known to lead. What a server sends of these takes nothing away
from others' ARP, by which servers with one uplink are found."""


def channel_meter(kbps: int) -> Meter:
    """Of one server to all others together."""
    return Meter(CHANNEL, kbps, max(kbps // 5, SHORTEST_BURST), kilobits=True)


def vm_meters(port: int) -> list[Meter]:
    return [Meter(kind.id(port), kind.rate, kind.rate) for kind in VMMeter]


def leaf_meters(*, sizes: bool, storage: bool) -> list[Meter]:
    """`sizes`: there is a way that takes less than others; `storage`: there is an FCoE forwarder."""
    unused = {kind for kind, used in ((LeafMeter.TOO_BIG, sizes), (LeafMeter.FIP, storage)) if not used}
    return [Meter(kind, LEAF_RATE, LEAF_RATE) for kind in LeafMeter if kind not in unused]

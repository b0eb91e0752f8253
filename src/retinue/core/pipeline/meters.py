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
"""Meters to VMs are numbered from here, above those of 49,147 ports; Open vSwitch has numbers up to 2^18."""


class LeafMeter(IntEnum):
    """What a leaf may send to the controller; the member is the meter's number."""

    ARP = 1
    DHCP = 2
    SPOOFING = 3
    EXPIRED = 4


LEAF_RATE = 500
"""Frames a second, and the size of a burst, of each LeafMeter."""


def vm_meters(port: int) -> list[Meter]:
    return [Meter(kind.id(port), kind.rate, kind.rate) for kind in VMMeter]


def leaf_meters() -> list[Meter]:
    return [Meter(kind, LEAF_RATE, LEAF_RATE) for kind in LeafMeter]

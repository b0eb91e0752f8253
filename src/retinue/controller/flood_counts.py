"""What NICs have sent into vnets that flood, and what of it their meters have dropped: by vnet, since the
controller's start, from the switches' own counters."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.switches.readback import SwitchSession
from retinue.core.model import Network, Role
from retinue.core.pipeline.meters import port_of_flood_meter
from retinue.southbound.openflow.codec.messages import MeterStats


@dataclass(slots=True)
class Flooded:
    """Frames of one vnet."""

    frames: int = 0
    """That its NICs have sent to groups, with those that were dropped."""
    dropped: int = 0
    """Of these: a NIC sent more than its meter lets through."""


class FloodCounts:
    """The sums, by vnet."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._net: Network = context.net
        self._sums: defaultdict[str, Flooded] = defaultdict(Flooded)
        self._before: dict[str, dict[int, MeterStats]] = {}
        """By switch and meter: what was read last."""

    def of(self, vnet: str) -> Flooded:
        return self._sums.get(vnet, Flooded())

    async def read(self, switch: str, session: SwitchSession) -> None:
        """Ask an edge for its counts; nothing where no vnet floods. Raises what the session raises."""
        known = self._net.switches.get(switch)  # It may have been removed since it was asked for the rest.
        is_edge = known is not None and known.role is Role.EDGE
        if is_edge and any(vnet.floods for vnet in self._net.vnets.values()):
            self.add(switch, await session.read_meter_stats())

    def add(self, switch: str, found: Iterable[MeterStats]) -> None:
        """What a switch has counted by now."""
        before, now = self._before.get(switch, {}), {stats.id: stats for stats in found}
        self._before[switch] = now
        for stats in now.values():
            port = port_of_flood_meter(stats.id)
            nic = None if port is None else self._net.nic_at(switch, port)
            if nic is None:
                continue
            last = before.get(stats.id)
            if last is None or stats.frames < last.frames:
                # Made anew, it counts from nothing; the sums never go down.
                last = MeterStats(stats.id, 0, 0)
            frames, dropped = stats.frames - last.frames, max(0, stats.dropped - last.dropped)
            self._sums[nic.vnet].frames += frames
            self._sums[nic.vnet].dropped += dropped
            self._context.counters[Count.FLOODED] += max(0, frames - dropped)
            self._context.counters[Count.FLOOD_TOO_MUCH] += dropped

"""Switches that take changes as real ones do, and fabrics of them; what they do with frames is the product's.

switch = FakeSwitch("leaf1")
switch.apply(change)                       # rejects what a switch rejects, all of it or nothing
result = switch.receive(frame, in_port=1)
result.outputs                             # ((2, b"..."),)

fabric = FakeFabric([leaf1, spine1])
fabric.cable(("leaf1", 9), ("spine1", 1))
for delivery in fabric.all_paths("leaf1", 1, frame):   # every choice of every select group
    delivery.arrivals                      # where it left the fabric
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from retinue.core.forwarding.fabric import Delivery, End, Fabric, Hop, Loop
from retinue.core.forwarding.switch import (
    AmbiguousMatch,
    Choose,
    Result,
    SwitchTables,
    every_choice,
    first,
)
from retinue.core.pipeline.entry import Change, Flow, ToGroup
from support.fakes.entry_checks import BadEntry, check_flow, check_group

__all__ = [
    "AmbiguousMatch",
    "BadEntry",
    "Choose",
    "Delivery",
    "FakeFabric",
    "FakeSwitch",
    "Hop",
    "Loop",
    "Result",
    "every_choice",
    "first",
]


@dataclass
class FakeSwitch(SwitchTables):
    def apply(self, change: Change) -> None:
        """Make the change as one bundle. Raises BadEntry, and changes nothing, if a switch rejects any of it.

        A flow that names a removed group or meter goes with it (OpenFlow 1.4 sections 5.6 and 7.3.4.14).
        """
        for group in change.groups:
            check_group(group)
        groups = (self.groups.keys() | {g.id for g in change.groups}) - set(change.remove_groups)
        meters = (self.meters.keys() | {m.id for m in change.meters}) - set(change.remove_meters)
        for flow in change.add:
            check_flow(flow, groups, meters)
        self.put((*change.groups, *change.meters))
        for flow in change.remove:
            self.take_out(flow.key)
        for flow in change.add:
            self.take_out(flow.key)
            self.put((flow,))
        for number in change.remove_groups:
            self.groups.pop(number, None)
        for number in change.remove_meters:
            self.meters.pop(number, None)
        if change.remove_groups or change.remove_meters:
            for flow in [flow for flow in self.flows.values() if not self._complete(flow)]:
                self.take_out(flow.key)

    def expire(self, now: float) -> tuple[Flow, ...]:
        """Remove the entries whose time is over; returns them."""
        ended = tuple(f for f in self.flows.values() if f.expires_at is not None and f.expires_at <= now)
        for flow in ended:
            self.take_out(flow.key)
        return ended

    def _complete(self, flow: Flow) -> bool:
        named = {action.group for action in flow.actions if isinstance(action, ToGroup)}
        return named <= self.groups.keys() and (flow.meter is None or flow.meter in self.meters)


class FakeFabric(Fabric[FakeSwitch]):
    """Switches joined by cables; hosts are at the ports without one."""

    switches: dict[str, FakeSwitch]
    cables: dict[End, End]
    addresses: dict[IPv4Address, End]

    def __init__(self, switches: Iterable[FakeSwitch] = ()) -> None:
        super().__init__({switch.name: switch for switch in switches}, {}, {})

    def __getitem__(self, name: str) -> FakeSwitch:
        return self.switches[name]

    def add(self, name: str) -> FakeSwitch:
        return self.switches.setdefault(name, FakeSwitch(name))

    def tunnel(self, end: End, address: IPv4Address) -> None:
        """The port is a tunnel's end, with this address on the IP network that joins all such ends."""
        self.switches[end[0]].tunnels[end[1]] = address
        self.addresses[address] = end

    def cable(self, one: End, other: End) -> None:
        """Join two ports. Raises ValueError if one of them has a cable, or is no known switch's."""
        for end in (one, other):
            if end in self.cables or end[0] not in self.switches:
                raise ValueError(f"{end} has a cable already, or there is no such switch")
        if one == other:
            raise ValueError(f"{one} cannot be joined to itself")
        self.cables[one] = other
        self.cables[other] = one

"""A switch, and a fabric of switches, that run our entries on frames: OpenFlow 1.4 as Open vSwitch runs it.

    switch = FakeSwitch("leaf1")
    switch.apply(change)                       # rejects what a switch rejects, all of it or nothing
    result = switch.receive(frame, in_port=1)
    result.outputs                             # ((2, b"..."),)

    fabric = FakeFabric([leaf1, spine1])
    fabric.cable(("leaf1", 9), ("spine1", 1))
    for delivery in fabric.all_paths("leaf1", 1, frame):   # every choice of every select group
        delivery.arrivals                      # where it left the fabric

Two things no real switch tells: `AmbiguousMatch` (two entries of one priority match and differ: which of them
wins is the switch's whim) and `Loop`. A frame that matches nothing is dropped. Meters let everything pass,
save those in `FakeSwitch.exhausted`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from retinue.core.pipeline.entry import (
    Action,
    Change,
    DecTtl,
    Field,
    Flow,
    FlowKey,
    Group,
    Meter,
    Output,
    PopVlan,
    PortNo,
    PushVlan,
    RegMove,
    Resubmit,
    SetField,
    ToGroup,
)
from support.fakes.entry_checks import BadEntry, check_flow, check_group
from support.fakes.header import IPV4, IPV6, Packet

__all__ = [
    "AmbiguousMatch",
    "BadEntry",
    "Choose",
    "Delivery",
    "FakeFabric",
    "FakeSwitch",
    "Loop",
    "Result",
    "every_choice",
    "first",
]

Choose = Callable[[int], int]
"""Takes the number of a select group's buckets, returns the one to use."""

T = TypeVar("T")


def first(_buckets: int) -> int:
    return 0


def every_choice(run: Callable[[Choose], T]) -> Iterator[T]:
    """Run again and again, until each way to choose buckets was gone once."""
    waiting: list[list[int]] = [[]]
    while waiting:
        plan = waiting.pop()
        taken: list[int] = []

        def choose(buckets: int, plan: list[int] = plan, taken: list[int] = taken) -> int:
            if len(taken) < len(plan):
                taken.append(plan[len(taken)])
            else:
                waiting.extend([*taken, other] for other in range(1, buckets))
                taken.append(0)
            return taken[-1]

        yield run(choose)


class AmbiguousMatch(Exception):  # noqa: N818
    """Two entries of one table and priority match a frame and would do different things to it."""


class Loop(Exception):  # noqa: N818
    """A frame goes through more switches than any path has."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a switch did with one frame."""

    outputs: tuple[tuple[int, bytes], ...] = ()
    """Port and frame, in the order they were sent."""
    to_controller: tuple[tuple[int, int, bytes], ...] = ()
    """Cookie of the entry, port the frame came in by, and the frame as it was at that point."""
    matched: tuple[Flow, ...] = ()
    """The entries it passed, one a table."""


Shape = tuple[tuple[Field, int | None], ...]
"""The fields and masks of a match; entries of one shape are found by one look-up."""


@dataclass
class FakeSwitch:
    name: str
    flows: dict[FlowKey, Flow] = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    meters: dict[int, Meter] = field(default_factory=dict)
    exhausted: set[int] = field(default_factory=set)
    """Meters that drop everything now."""
    _index: dict[int, dict[int, dict[Shape, dict[tuple[int, ...], Flow]]]] = field(default_factory=dict)
    """Table, priority, shape, values."""

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
        self.groups.update((group.id, group) for group in change.groups)
        self.meters.update((meter.id, meter) for meter in change.meters)
        for flow in change.remove:
            self._remove(flow.key)
        for flow in change.add:
            self._remove(flow.key)
            self._add(flow)
        for number in change.remove_groups:
            self.groups.pop(number, None)
        for number in change.remove_meters:
            self.meters.pop(number, None)
        if change.remove_groups or change.remove_meters:
            for flow in [flow for flow in self.flows.values() if not self._complete(flow)]:
                self._remove(flow.key)

    def expire(self, now: float) -> tuple[Flow, ...]:
        """Remove the entries whose time is over; returns them."""
        ended = tuple(f for f in self.flows.values() if f.expires_at is not None and f.expires_at <= now)
        for flow in ended:
            self._remove(flow.key)
        return ended

    def receive(self, frame: bytes, in_port: int, choose: Choose = first) -> Result:
        """Run the tables on a frame that came in by a port. Raises AmbiguousMatch."""
        if len(frame) < 14:
            return Result()
        run = _Run(self, Packet(frame, in_port), choose)
        run.table(0)
        return run.result()

    def packet_out(
        self,
        frame: bytes,
        actions: Iterable[Action],
        in_port: int = PortNo.CONTROLLER,
        choose: Choose = first,
    ) -> Result:
        """Run the actions of a packet-out. They pass no table, unless they send the frame there."""
        run = _Run(self, Packet(frame, in_port), choose)
        run.actions(run.packet, actions, cookie=0)
        return run.result()

    def lookup(self, table: int, fields: dict[Field, int]) -> Flow | None:
        """The entry of this table that the frame matches; None on a miss. Raises AmbiguousMatch."""
        at = self._index.get(table, {})
        for priority in sorted(at, reverse=True):
            found = [
                flow
                for shape, entries in at[priority].items()
                if (flow := entries.get(_values(shape, fields))) is not None
            ]
            if found:
                for other in found[1:]:
                    if _outcome(other) != _outcome(found[0]):
                        raise AmbiguousMatch(f"{self.name}: {found[0]} and {other} both match")
                return found[0]
        return None

    def _add(self, flow: Flow) -> None:
        self.flows[flow.key] = flow
        shape = tuple((name, mask) for name, _, mask in flow.match)
        entries = self._index.setdefault(flow.table, {}).setdefault(flow.priority, {}).setdefault(shape, {})
        entries[tuple(value for _, value, _ in flow.match)] = flow

    def _remove(self, key: FlowKey) -> None:
        if self.flows.pop(key, None) is None:
            return
        table, priority, match = key
        priorities = self._index[table]
        shapes = priorities[priority]
        shape = tuple((name, mask) for name, _, mask in match)
        del shapes[shape][tuple(value for _, value, _ in match)]
        if not shapes[shape]:
            del shapes[shape]
        if not shapes:
            del priorities[priority]

    def _complete(self, flow: Flow) -> bool:
        named = {action.group for action in flow.actions if isinstance(action, ToGroup)}
        return named <= self.groups.keys() and (flow.meter is None or flow.meter in self.meters)


def _values(shape: Shape, fields: dict[Field, int]) -> tuple[int, ...]:
    return tuple(fields.get(name, 0) & (-1 if mask is None else mask) for name, mask in shape)


def _outcome(flow: Flow) -> tuple[object, ...]:
    told = any(isinstance(action, Output) and action.port == PortNo.CONTROLLER for action in flow.actions)
    return (flow.actions, flow.goto, flow.meter, flow.cookie if told else None)


class _Run:
    """One frame's way through one switch."""

    def __init__(self, switch: FakeSwitch, packet: Packet, choose: Choose) -> None:
        self.switch, self.packet, self.choose = switch, packet, choose
        self.outputs: list[tuple[int, bytes]] = []
        self.to_controller: list[tuple[int, int, bytes]] = []
        self.matched: list[Flow] = []

    def result(self) -> Result:
        return Result(tuple(self.outputs), tuple(self.to_controller), tuple(self.matched))

    def table(self, number: int | None) -> None:
        while number is not None:
            flow = self.switch.lookup(number, self.packet.fields)
            if flow is None:
                return
            self.matched.append(flow)
            if flow.meter in self.switch.exhausted:
                return
            if not self.actions(self.packet, flow.actions, flow.cookie):
                return
            number = flow.goto

    def actions(self, packet: Packet, actions: Iterable[Action], cookie: int) -> bool:
        """Run the actions in order; False if the frame ended here, its TTL run out."""
        for action in actions:
            match action:
                case Output(port):
                    self.output(packet, port, cookie)
                case SetField(name, value):
                    packet.fields[name] = value
                case RegMove(source, target):
                    packet.fields[target] = packet.fields.get(source, 0)
                case DecTtl() if packet.base.eth_type in (IPV4, IPV6):
                    if packet.ttl <= 1:
                        return False
                    packet.ttl -= 1
                    packet.fields[Field.IP_TTL] = packet.ttl
                case PushVlan():
                    packet.push_vlan()
                case PopVlan():
                    packet.pop_vlan()
                case Resubmit(number):
                    self.table(number)
                case ToGroup(number):
                    buckets = self.switch.groups[number].buckets
                    if buckets:
                        packet.recirculate()
                        bucket = buckets[self.choose(len(buckets))]
                        # A bucket works on a copy: what it changes, later actions do not see.
                        self.actions(packet.copy(), _as_action_set(bucket), cookie)
        return True

    def output(self, packet: Packet, port: int, cookie: int) -> None:
        if port == PortNo.CONTROLLER:
            self.to_controller.append((cookie, packet.in_port, packet.sent()))
        elif port == PortNo.TABLE:
            self.table(0)
        elif port == PortNo.IN_PORT:
            self.outputs.append((packet.in_port, packet.sent()))
        elif port != packet.in_port:
            self.outputs.append((port, packet.sent()))


def _as_action_set(bucket: tuple[Action, ...]) -> list[Action]:
    """A bucket is an action set: whatever order it is written in, TTL, then changes, then the last output."""
    outputs = [action for action in bucket if isinstance(action, Output)]
    if not outputs:
        return []
    ttl: list[Action] = [action for action in bucket if isinstance(action, DecTtl)]
    changes: list[Action] = [action for action in bucket if isinstance(action, SetField | RegMove)]
    return [*ttl[:1], *changes, outputs[-1]]


# ---- many switches ----

End = tuple[str, int]
"""A switch's name and one of its ports."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A frame came into a switch."""

    switch: str
    in_port: int
    matched: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one frame."""

    arrivals: tuple[tuple[str, int, bytes], ...] = ()
    """Switch, port and frame, wherever it left by a port without a cable."""
    to_controller: tuple[tuple[str, int, int, bytes], ...] = ()
    """Switch, cookie, in port and frame."""
    hops: tuple[Hop, ...] = ()


class FakeFabric:
    """Switches joined by cables; hosts are at the ports without one."""

    max_hops = 16

    def __init__(self, switches: Iterable[FakeSwitch] = ()) -> None:
        self.switches = {switch.name: switch for switch in switches}
        self.cables: dict[End, End] = {}

    def __getitem__(self, name: str) -> FakeSwitch:
        return self.switches[name]

    def add(self, name: str) -> FakeSwitch:
        return self.switches.setdefault(name, FakeSwitch(name))

    def cable(self, one: End, other: End) -> None:
        """Join two ports. Raises ValueError if one of them has a cable, or is no known switch's."""
        for end in (one, other):
            if end in self.cables or end[0] not in self.switches:
                raise ValueError(f"{end} has a cable already, or there is no such switch")
        if one == other:
            raise ValueError(f"{one} cannot be joined to itself")
        self.cables[one] = other
        self.cables[other] = one

    def send(self, switch: str, port: int, frame: bytes, choose: Choose = first) -> Delivery:
        """Send a frame into a switch's port, as a host there. Raises Loop and AmbiguousMatch."""
        result = self.switches[switch].receive(frame, port, choose)
        return self._follow(switch, result, choose, [Hop(switch, port, result.matched)])

    def packet_out(
        self, switch: str, frame: bytes, actions: Iterable[Action], choose: Choose = first
    ) -> Delivery:
        """Let a switch run a packet-out, and follow what it sends. Raises Loop and AmbiguousMatch."""
        result = self.switches[switch].packet_out(frame, actions, choose=choose)
        return self._follow(switch, result, choose, [])

    def all_paths(self, switch: str, port: int, frame: bytes) -> list[Delivery]:
        """What becomes of the frame for each way the select groups could choose, each outcome once."""
        return list(dict.fromkeys(every_choice(lambda choose: self.send(switch, port, frame, choose))))

    def _follow(self, switch: str, result: Result, choose: Choose, hops: list[Hop]) -> Delivery:
        arrivals: list[tuple[str, int, bytes]] = []
        told: list[tuple[str, int, int, bytes]] = []
        waiting = deque([(switch, result, 1)])
        while waiting:
            name, result, depth = waiting.popleft()
            told.extend((name, *copy) for copy in result.to_controller)
            for port, frame in result.outputs:
                peer = self.cables.get((name, port))
                if peer is None:
                    arrivals.append((name, port, frame))
                    continue
                if depth >= self.max_hops:
                    raise Loop(" > ".join(f"{hop.switch}:{hop.in_port}" for hop in hops))
                onward = self.switches[peer[0]].receive(frame, peer[1], choose)
                hops.append(Hop(*peer, onward.matched))
                waiting.append((peer[0], onward, depth + 1))
        return Delivery(tuple(arrivals), tuple(told), tuple(hops))

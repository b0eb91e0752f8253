"""One switch that runs entries on frames: OpenFlow 1.4 as Open vSwitch runs it.

    tables = SwitchTables("leaf1")
    tables.put(entries)
    tables.receive(frame, in_port=1).outputs      # ((2, b"..."),)

A frame that matches nothing is dropped. Meters let everything pass, save those in `exhausted`.
`AmbiguousMatch` no real switch tells: two entries of one priority match and differ, and which of them wins is
the switch's whim.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TypeVar

from retinue.core.forwarding.header import IPV4, IPV6, Packet
from retinue.core.forwarding.vxlan import unwrap, wrap
from retinue.core.pipeline.entry import (
    Action,
    CheckLarger,
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
class SwitchTables:
    name: str
    flows: dict[FlowKey, Flow] = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    meters: dict[int, Meter] = field(default_factory=dict)
    exhausted: set[int] = field(default_factory=set)
    """Meters that drop everything now."""
    tunnels: dict[int, IPv4Address] = field(default_factory=dict)
    """Its own address at each port that is a tunnel's end: frames are in VXLAN there."""
    _index: dict[int, dict[int, dict[Shape, dict[tuple[int, ...], Flow]]]] = field(default_factory=dict)
    """Table, priority, shape, values; of the tables that a frame has come to."""

    def put(self, entries: Iterable[Flow | Group | Meter]) -> None:
        """Have these entries, too. They are taken as they are: what a switch rejects is not looked for."""
        for entry in entries:
            match entry:
                case Flow():
                    self.flows[entry.key] = entry
                    self._note(entry)
                case Group():
                    self.groups[entry.id] = entry
                case Meter():
                    self.meters[entry.id] = entry

    def take_out(self, key: FlowKey) -> None:
        """Remove a flow entry, if it is there."""
        if self.flows.pop(key, None) is None or key[0] not in self._index:
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

    def receive(self, frame: bytes, in_port: int, choose: Choose = first) -> Result:
        """Run the tables on a frame that came in by a port. Raises AmbiguousMatch."""
        if len(frame) < 14:
            return Result()
        packet = self._taken_in(frame, in_port)
        if packet is None:
            return Result()
        run = _Run(self, packet, choose)
        run.table(0)
        return run.result()

    def _taken_in(self, frame: bytes, in_port: int) -> Packet | None:
        """The frame as the tables see it; None for one that a tunnel's end does not take."""
        own = self.tunnels.get(in_port)
        if own is None:
            return Packet(frame, in_port)
        came = unwrap(frame)
        if came is None or came.dst != own:
            return None
        packet = Packet(came.frame, in_port)
        packet.fields[Field.TUN_SRC], packet.fields[Field.TUN_DST] = int(came.src), int(came.dst)
        packet.fields[Field.TUNNEL_ID] = came.vni
        return packet

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
        if table not in self._index:
            self._index[table] = {}
            for known in self.flows.values():
                if known.table == table:
                    self._note(known)
        at = self._index[table]
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

    def _note(self, flow: Flow) -> None:
        if flow.table not in self._index:
            return
        # A list is made faster than a generator is run, and a spine has tens of thousands of entries.
        shape = tuple([(name, mask) for name, _, mask in flow.match])
        entries = self._index[flow.table].setdefault(flow.priority, {}).setdefault(shape, {})
        entries[tuple([value for _, value, _ in flow.match])] = flow


def _values(shape: Shape, fields: dict[Field, int]) -> tuple[int, ...]:
    return tuple(fields.get(name, 0) & (-1 if mask is None else mask) for name, mask in shape)


def _outcome(flow: Flow) -> tuple[object, ...]:
    told = any(isinstance(action, Output) and action.port == PortNo.CONTROLLER for action in flow.actions)
    return (flow.actions, flow.goto, flow.meter, flow.cookie if told else None)


class _Run:
    """One frame's way through one switch."""

    def __init__(self, switch: SwitchTables, packet: Packet, choose: Choose) -> None:
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
                case CheckLarger(size, name, bit):
                    rest = packet.fields.get(name, 0) & ~(1 << bit)
                    packet.fields[name] = rest | (len(packet.sent()) > size) << bit
                case PushVlan():
                    packet.push_vlan()
                case PopVlan():
                    packet.pop_vlan()
                case Resubmit(number):
                    self.table(number)
                case ToGroup(number):
                    buckets = self.switch.groups[number].buckets
                    if self.switch.groups[number].replicates:
                        for bucket in buckets:
                            self.actions(packet.copy(), _as_action_set(bucket), cookie)
                    elif buckets:
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
            self.put_out(packet, packet.in_port)
        elif port != packet.in_port:
            self.put_out(packet, port)

    def put_out(self, packet: Packet, port: int) -> None:
        """By a tunnel's end a frame goes in VXLAN; one that is for no address there goes nowhere."""
        own, fields = self.switch.tunnels.get(port), packet.fields
        if own is None:
            self.outputs.append((port, packet.sent()))
        elif to := fields.get(Field.TUN_DST, 0):
            wrapped = wrap(own, IPv4Address(to), fields.get(Field.TUNNEL_ID, 0), packet.sent())
            self.outputs.append((port, wrapped))


def _as_action_set(bucket: tuple[Action, ...]) -> list[Action]:
    """A bucket is an action set: in whatever order: the tag off, TTL, changes, output."""
    outputs = [action for action in bucket if isinstance(action, Output)]
    if not outputs:
        return []
    tag: list[Action] = [action for action in bucket if isinstance(action, PopVlan)]
    ttl: list[Action] = [action for action in bucket if isinstance(action, DecTtl)]
    changes: list[Action] = [action for action in bucket if isinstance(action, SetField | RegMove)]
    return [*tag[:1], *ttl[:1], *changes, outputs[-1]]

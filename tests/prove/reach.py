"""Every way that frames may go which come in at a port: symbolic execution of the switches' entries.

What a switch does is what `core/forwarding/switch.py` does, with unknowns in place of bytes: of a table the
entry of the highest priority that matches; its actions in order; then the next table. Where an entry may
match or not, the frame goes both ways, each with the condition under which it does. A select group may choose
any bucket, a group that replicates takes all of them.

While a change is on its way some switches have it and others have not: such a switch has two programs, and a
fate is followed for each. Which it is, is chosen when the first frame comes to the switch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import z3

from prove.terms import (
    SIZE,
    TAGGED,
    UNKNOWN,
    Fields,
    Known,
    Sent,
    Value,
    all_of,
    anything,
    bits_of,
    learn,
    not_all_of,
    possible,
    undecided,
)
from retinue.core.pipeline.entry import (
    Action,
    CheckLarger,
    DecTtl,
    Field,
    Flow,
    Group,
    Output,
    PopVlan,
    PortNo,
    Program,
    PushVlan,
    RegMove,
    Resubmit,
    SetField,
    ToGroup,
)
from retinue.core.pipeline.responders.too_big import ETHERNET, TAG
from retinue.core.pipeline.tables import Table

MAX_HOPS = 32
"""Switches that a frame may go through. The longest way there is has 19, in three tiers: brought to where
a VM was, sent on to where it is, and copied back."""

ROUND = f"it has gone through {MAX_HOPS} switches, and goes on"
TIE = "two entries of one priority match, and do not do the same"

End = tuple[str, int]
"""A switch and one of its ports."""


NO_TUNNELS: Mapping[int, End] = {}
ON_A_CABLE: Fields = {Field.METADATA: 0, Field.TUNNEL_ID: 0, Field.TUN_SRC: 0, Field.TUN_DST: 0}
"""What is beside a frame that has come by a cable."""


class UndecidedError(Exception):
    """The solver cannot say whether there is such a frame: nothing is proved."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A frame came to a switch, and passed these entries there."""

    switch: str
    in_port: int
    flows: tuple[Flow, ...] = ()


@dataclass(frozen=True, slots=True)
class Emission:
    """A switch has sent a frame out of a port."""

    switch: str
    port: int
    fields: Fields
    hops: tuple[Hop, ...]

    @property
    def flow(self) -> Flow:
        """The entry that sent it."""
        return self.hops[-1].flows[-1]


@dataclass(frozen=True, slots=True)
class Told:
    """The controller was handed a frame, by the last entry of the last hop."""

    fields: Fields
    hops: tuple[Hop, ...]

    @property
    def metered(self) -> bool:
        *before, last = self.hops[-1].flows
        if last.table == Table.ANSWER:  # By the table ND, on its way there.
            last = before[-1]
        return last.meter is not None


@dataclass(frozen=True, slots=True)
class _OnItsWay:
    """A frame before a table of a switch."""

    switch: str
    table: int
    fields: Fields
    hops: tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of all frames that meet the same conditions: those the explorer's solver has at the
    moment."""

    at: End
    known: Known = field(default_factory=dict)
    sent: tuple[Emission, ...] = ()
    """All that any switch has sent, on to another or to a host."""
    arrived: tuple[Emission, ...] = ()
    """Of these what came to ports without a cable."""
    told: tuple[Told, ...] = ()
    which: Mapping[str, int] = field(default_factory=dict)
    """By switch: which of its programs it had."""
    trouble: str = ""
    """Why it was not followed to its end: it went round, or two entries were equally right."""
    hops: tuple[Hop, ...] = ()
    """The hops of the frame that was in trouble, or that ended last."""
    rival: Flow | None = None
    """The entry that matches as well as the last one of these."""
    _waiting: tuple[_OnItsWay, ...] = ()


@dataclass(slots=True)
class _Outcome:
    """One of the things that an entry's actions may do."""

    conditions: list[z3.BoolRef]
    fields: dict[Field, Value]
    outputs: list[tuple[int, Fields]] = field(default_factory=list)
    ended: bool = False
    resubmitted: int | None = None
    """The table in which the frame is looked up next, as the entry's last action says."""

    def copy(self) -> "_Outcome":
        return _Outcome(list(self.conditions), dict(self.fields), list(self.outputs), self.ended)


class _Table:
    """The entries of a table, the highest priority first, with those that another might tie with."""

    def __init__(self, flows: Iterable[Flow]) -> None:
        self.flows = sorted(flows, key=lambda flow: (-flow.priority, flow.match))
        by_priority: dict[int, list[Flow]] = {}
        for flow in self.flows:
            by_priority.setdefault(flow.priority, []).append(flow)
        self._same = by_priority

    def rivals(self, flow: Flow) -> list[Flow]:
        """Other entries of its priority that do something else and may match the same frame."""
        return [
            other
            for other in self._same[flow.priority]
            if other is not flow and _outcome(other) != _outcome(flow) and _overlap(flow, other)
        ]


def _outcome(flow: Flow) -> tuple[object, ...]:
    return flow.actions, flow.goto, flow.meter


def _overlap(one: Flow, other: Flow) -> bool:
    terms = {name: (value, -1 if mask is None else mask) for name, value, mask in one.match}
    for name, value, mask in other.match:
        if name in terms and (terms[name][0] ^ value) & terms[name][1] & (-1 if mask is None else mask):
            return False
    return True


class Explorer:
    """Follows frames through switches. `programs`: by switch, the programs of which it has one."""

    def __init__(
        self,
        programs: Mapping[str, Sequence[Program]],
        cables: Mapping[End, End],
        tunnels: Mapping[int, End] = NO_TUNNELS,
    ) -> None:
        """`tunnels`: by its address on the IP network that joins all of them, each tunnel's end."""
        self.programs = programs
        self.cables = cables
        self.tunnels = tunnels
        self._addresses = {end: address for address, end in tunnels.items()}
        self.checks = 0
        """Questions to the solver so far."""
        self._solver = z3.Solver()
        self._solver.add(*possible())
        self._tables: dict[tuple[str, int, int], _Table] = {}
        self._groups: dict[tuple[str, int, int], Group] = {}
        for switch, versions in programs.items():
            for number, program in enumerate(versions):
                self._read(switch, number, program)
        self._here: dict[tuple[str, int, int, int], list[Flow]] = {}
        self._rivals: dict[tuple[str, int, Flow], list[Flow]] = {}

    def _read(self, switch: str, number: int, program: Program) -> None:
        tables: dict[int, list[Flow]] = {}
        for entry in program.values():
            if isinstance(entry, Flow):
                tables.setdefault(entry.table, []).append(entry)
            elif isinstance(entry, Group):
                self._groups[switch, number, entry.id] = entry
        for table, flows in tables.items():
            self._tables[switch, number, table] = _Table(flows)

    # ---- questions about the fate that is at hand ----

    def example(self, *conditions: z3.BoolRef) -> z3.ModelRef | None:
        """A frame of the present fate that meets these conditions, too; None: there is none."""
        return self._solver.model() if self.is_possible(*conditions) else None

    def is_possible(self, *conditions: z3.BoolRef) -> bool:
        """True when there is a frame of the present fate that meets these conditions, too."""
        self.checks += 1
        found = self._solver.check(*conditions)
        if found == z3.unknown:
            raise UndecidedError(self._solver.reason_unknown())
        return bool(found == z3.sat)

    # ---- the ways ----

    def fates(self, at: End, beside: Fields = ON_A_CABLE) -> Iterator[Fate]:
        """What becomes of frames that come in at a port; `beside`: what the port knows of them.

        Every frame has one of the fates, or several where switches choose. Questions about a fate are asked
        before the next one is taken.
        """
        first = _OnItsWay(at[0], 0, {**anything(at[1]), **beside}, (Hop(*at),))
        yield from self._follow(Fate(at, _waiting=(first,)))

    def _follow(self, fate: Fate) -> Iterator[Fate]:
        if not fate._waiting or fate.trouble:
            yield fate
            return
        frame, switch = fate._waiting[0], fate._waiting[0].switch
        if switch not in fate.which:
            for number in range(len(self.programs[switch])):
                yield from self._follow(replace(fate, which={**fate.which, switch: number}))
            return
        rest = replace(fate, _waiting=fate._waiting[1:], hops=frame.hops)
        key = (switch, fate.which[switch], frame.table)
        self._solver.push()
        try:
            narrowed = False  # Conditions were added since it was known that there are such frames.
            for flow in self._entries(*key, frame.fields):
                bits = bits_of(flow.match, frame.fields)
                left = None if bits is None else undecided(bits, fate.known)
                if bits is None or left is None:
                    continue
                if not left:
                    if not narrowed or self.is_possible():
                        yield from self._pass(rest, frame, key, flow)
                    return
                self._solver.push()
                try:
                    self._solver.add(all_of(left))
                    found = self.is_possible()
                    if found:
                        yield from self._pass(replace(rest, known=learn(left, fate.known)), frame, key, flow)
                finally:
                    self._solver.pop()
                if found:
                    self._solver.add(not_all_of(left))
                    narrowed = True
            if not narrowed or self.is_possible():
                yield from self._follow(rest)  # No entry: dropped.
        finally:
            self._solver.pop()

    def _entries(self, switch: str, number: int, table: int, fields: Fields) -> list[Flow]:
        """Those of a table that ask for no other port than the one the frame came in by."""
        port = fields[Field.IN_PORT]
        assert isinstance(port, int)
        key = (switch, number, table, port)
        if key not in self._here:
            found = self._tables.get(key[:3])
            flows = [] if found is None else found.flows
            self._here[key] = [f for f in flows if _in_port(f) in (None, port)]
        return self._here[key]

    def _pass(self, fate: Fate, frame: _OnItsWay, key: tuple[str, int, int], flow: Flow) -> Iterator[Fate]:
        """The entry matches: whatever may come of it."""
        last = frame.hops[-1]
        hops = (*frame.hops[:-1], replace(last, flows=(*last.flows, flow)))
        if (key[0], key[1], flow) not in self._rivals:
            self._rivals[key[0], key[1], flow] = self._tables[key].rivals(flow)
        for rival in self._rivals[key[0], key[1], flow]:
            bits = bits_of(rival.match, frame.fields)
            if bits is not None and self.is_possible(all_of(bits)):
                self._solver.push()
                self._solver.add(all_of(bits))
                yield replace(fate, trouble=TIE, hops=hops, rival=rival)
                self._solver.pop()
                return
        resubmits = [action for action in flow.actions if isinstance(action, Resubmit)]
        assert not resubmits or (resubmits == [flow.actions[-1]] and flow.goto is None), "looked up twice"
        seen = dict(frame.fields)
        seen.update((name, tag) for name, tag, mask in flow.match if name is Field.VLAN_VID and mask is None)
        outcomes = self._act(flow.actions, [_Outcome([], seen)], key[:2])
        for outcome in outcomes:
            if not outcome.conditions:
                yield from self._follow(self._after(fate, frame, flow, hops, outcome))
                continue
            self._solver.push()
            try:
                self._solver.add(*outcome.conditions)
                if self.is_possible():
                    yield from self._follow(self._after(fate, frame, flow, hops, outcome))
            finally:
                self._solver.pop()

    def _after(
        self, fate: Fate, frame: _OnItsWay, flow: Flow, hops: tuple[Hop, ...], outcome: _Outcome
    ) -> Fate:
        """What was sent goes on, and so does the frame, where the entry says so."""
        sent, arrived, told, waiting = [*fate.sent], [*fate.arrived], [*fate.told], [*fate._waiting]
        trouble = ""
        for port, fields in outcome.outputs:
            if port == PortNo.CONTROLLER:
                told.append(Told(fields, hops))
                continue
            emission = Emission(frame.switch, port, fields, hops)
            own = self._addresses.get((frame.switch, port))
            peer, beside = self.cables.get((frame.switch, port)), ON_A_CABLE
            if own is not None:
                to = fields[Field.TUN_DST]
                assert isinstance(to, int)
                peer = self.tunnels.get(to)
                beside = {**ON_A_CABLE, Field.TUN_SRC: own, Field.TUN_DST: to}
                beside[Field.TUNNEL_ID] = fields[Field.TUNNEL_ID]
                if peer is None:
                    continue  # The IP network has nobody with that address.
            sent.append(emission)
            if peer is None:
                arrived.append(emission)
            elif len(hops) >= MAX_HOPS:
                trouble = ROUND
            else:
                there = {**fields, **beside, Field.IN_PORT: peer[1]}
                waiting.append(_OnItsWay(peer[0], 0, there, (*hops, Hop(*peer))))
        table = flow.goto if outcome.resubmitted is None else outcome.resubmitted
        if table is not None and not outcome.ended:
            waiting.insert(0, _OnItsWay(frame.switch, table, outcome.fields, hops))
        return replace(
            fate, sent=tuple(sent), arrived=tuple(arrived), told=tuple(told), _waiting=tuple(waiting),
            trouble=trouble, hops=hops,
        )  # fmt: skip

    # ---- actions ----

    def _act(
        self, actions: Iterable[Action], outcomes: list[_Outcome], program: tuple[str, int]
    ) -> list[_Outcome]:
        """Run the actions in order, on each outcome that there is so far."""
        for action in actions:
            going = [outcome for outcome in outcomes if not outcome.ended]
            ended = [outcome for outcome in outcomes if outcome.ended]
            outcomes = [*ended, *(after for outcome in going for after in self._do(action, outcome, program))]
        return outcomes

    def _do(self, action: Action, outcome: _Outcome, program: tuple[str, int]) -> list[_Outcome]:
        fields = outcome.fields
        match action:
            case Output(port):
                in_port = fields[Field.IN_PORT]
                assert isinstance(in_port, int)
                if port == PortNo.IN_PORT:
                    outcome.outputs.append((in_port, dict(fields)))
                elif port != in_port:  # Nothing goes back where it came from, unless told so by name.
                    outcome.outputs.append((port, dict(fields)))
            case SetField(name, value):
                fields[name] = value
            case RegMove(source, target):
                fields[target] = fields[source]
            case PushVlan():
                assert fields[Field.VLAN_VID] == 0, "no frame of ours ever has two tags"
                fields[Field.VLAN_VID] = TAGGED
            case PopVlan():
                fields[Field.VLAN_VID] = 0
            case Resubmit(table):
                outcome.resubmitted = table
            case DecTtl():
                return _time_goes(outcome)
            case CheckLarger():
                return _of_either_size(action, outcome)
            case ToGroup(number):
                group = self._groups[(*program, number)]
                if group.replicates:
                    for bucket in group.buckets:
                        outcome = self._bucket(bucket, outcome, program)
                    return [outcome]
                return [self._bucket(bucket, outcome, program) for bucket in group.buckets] or [outcome]
        return [outcome]

    def _bucket(self, bucket: tuple[Action, ...], outcome: _Outcome, program: tuple[str, int]) -> _Outcome:
        """A bucket works on a copy: what it changes, later actions do not see."""
        assert all(isinstance(action, SetField | RegMove | PopVlan | Output) for action in bucket)
        (done,) = self._act(bucket, [outcome.copy()], program)
        done.fields = dict(outcome.fields)
        return done


def _time_goes(outcome: _Outcome) -> list[_Outcome]:
    """A frame whose time to live ends here is dropped; any other has one less."""
    held = outcome.fields[Field.IP_TTL]
    assert isinstance(held, Sent), "no entry sets a time to live"
    sent = UNKNOWN[Field.IP_TTL]
    over, goes_on = outcome.copy(), outcome.copy()
    over.ended = True
    over.conditions.append(z3.ULE(sent, held.minus + 1))
    goes_on.conditions.append(z3.UGT(sent, held.minus + 1))
    goes_on.fields[Field.IP_TTL] = Sent(Field.IP_TTL, held.minus + 1)
    return [over, goes_on]


def _of_either_size(check: CheckLarger, outcome: _Outcome) -> list[_Outcome]:
    """A frame that is larger than this, and one that is not; its packet is as large as it was sent."""
    held, tag = outcome.fields[check.field], outcome.fields[Field.VLAN_VID]
    assert isinstance(held, int), "the answer is kept beside the frame"
    most = check.size - ETHERNET - (TAG if isinstance(tag, int) and tag else 0)
    found = [outcome.copy(), outcome.copy()]
    for is_larger, one in enumerate(found):
        one.fields[check.field] = held & ~(1 << check.bit) | is_larger << check.bit
        one.conditions.append(z3.UGT(SIZE, most) if is_larger else z3.ULE(SIZE, most))
    return found


def _in_port(flow: Flow) -> int | None:
    return next((value for name, value, _ in flow.match if name is Field.IN_PORT), None)

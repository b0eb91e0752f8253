"""A frame's way through the network, hop by hop, as the switches' entries have it; where it ends, and why.

    trace(net, entries_of, place, frame)

Pure: the entries are given, the program that a switch should hold or what has been read from it. Every choice
of every select group is tried; one way is told, and what others come to if they come to something else.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from retinue.core.forwarding import (
    AmbiguousMatch,
    CannotRunError,
    Delivery,
    Fabric,
    Hop,
    Loop,
    SwitchTables,
    every_choice,
)
from retinue.core.model import Role
from retinue.core.model.network import Network
from retinue.core.packets import summarize
from retinue.core.pipeline.entry import Flow, Group, Meter
from retinue.core.tracing.ends import Ending, Fate, ends_of
from retinue.core.tracing.places import Joined, Place, joined, port_name
from retinue.core.tracing.words import Entry, entry_words

MOST_WAYS = 64
"""Ways through the fabric that are tried: more than a leaf has spines."""

Entries = Iterable[Flow | Group | Meter]


@dataclass(frozen=True, slots=True)
class Sent:
    """What a switch has sent on: by which port, whither, and what it is then."""

    port: str
    to: str
    frame: str


@dataclass(frozen=True, slots=True)
class Passed:
    """One switch on a frame's way."""

    switch: str
    role: Role
    port: str
    """By which it came in."""
    in_port: int
    """The same by its number."""
    frame: str
    """As it came, in short."""
    data: bytes
    """And byte for byte."""
    entries: tuple[Entry, ...]
    sent: tuple[Sent, ...]
    matched: tuple[Flow, ...] = ()
    """The entries themselves, in the same order."""


@dataclass(frozen=True, slots=True)
class Trace:
    at: Place
    frame: bytes
    hops: tuple[Passed, ...]
    ends: tuple[Ending, ...]
    ways: int = 1
    """Equal-cost ways that there are."""
    others: tuple[str, ...] = ()
    """What other ways come to, where it is something else."""

    @property
    def passes(self) -> bool:
        """True when somebody gets it, or an answer to it."""
        return any(end.fate is not Fate.DROPPED for end in self.ends)


class _Tables(dict[str, SwitchTables]):
    """Switches with their entries, each made when a frame comes to it."""

    def __init__(self, entries_of: Callable[[str], Entries], ways: Joined) -> None:
        super().__init__()
        self._entries_of, self._ways = entries_of, ways

    def __missing__(self, name: str) -> SwitchTables:
        made = self[name] = SwitchTables(name, tunnels=self._ways.tunnels_of(name))
        made.put(self._entries_of(name))
        return made


@dataclass(frozen=True, slots=True)
class Ways:
    """What becomes of a frame, yet to be told in words."""

    deliveries: tuple[Delivery, ...]
    """One for each way through the fabric."""
    tables: Mapping[str, SwitchTables]
    joined: Joined
    trouble: str = ""
    """Why there are none."""


def trace(net: Network, entries_of: Callable[[str], Entries], at: Place, frame: bytes) -> Trace:
    """What becomes of a frame that comes in at a place."""
    return tell(net, at, frame, follow(entries_of, joined(net), at, frame))


def follow(entries_of: Callable[[str], Entries], ways: Joined, at: Place, frame: bytes) -> Ways:
    """The part that takes time, with many entries; it knows of the network what joins switches."""
    switches: Mapping[str, SwitchTables] = _Tables(entries_of, ways)
    fabric = Fabric(switches, ways.cables, ways.addresses)
    try:
        return Ways(tuple(islice(_deliveries(fabric, at, frame), MOST_WAYS)), switches, ways)
    except Loop as error:
        return Ways((), switches, ways, f"it goes round: {error}")
    except (AmbiguousMatch, CannotRunError) as error:
        return Ways((), switches, ways, f"what becomes of it nobody can tell: {error}")


def tell(net: Network, at: Place, frame: bytes, ways: Ways) -> Trace:
    """What has been followed, in words."""
    if ways.trouble:
        return Trace(at, frame, (), (Ending(Fate.DROPPED, at.switch, "", "", ways.trouble),))
    first, *rest = ways.deliveries
    hops = tuple(_passed(net, ways, hop) for hop in first.hops)
    ends = ends_of(net, ways.joined, first)
    come_to = _come_to(ends)
    found = (ends_of(net, ways.joined, other) for other in rest)
    differ = Counter("; ".join(end.text for end in other) for other in found if _come_to(other) != come_to)
    others = tuple(f"{count} of {len(ways.deliveries)} ways: {text}" for text, count in differ.items())
    return Trace(at, frame, hops, ends, len(ways.deliveries), others)


def _deliveries(fabric: Fabric[SwitchTables], at: Place, frame: bytes) -> Iterator[Delivery]:
    """One for each way, the same outcome by the same switches once."""
    seen = set()
    for delivery in every_choice(lambda choose: fabric.send(at.switch, at.port, frame, choose)):
        if delivery not in seen:
            seen.add(delivery)
            yield delivery


def _come_to(ends: Iterable[Ending]) -> set[tuple[Fate, str]]:
    """Who gets what: it is the same whichever spine a way goes by."""
    return {(end.fate, end.who) for end in ends}


def _passed(net: Network, ways: Ways, hop: Hop) -> Passed:
    role = net.switches[hop.switch].role
    fabric = Fabric(ways.tables, ways.joined.cables, ways.joined.addresses)
    sent = []
    for port, frame in hop.result.outputs:
        peer = fabric.peer_of(hop.switch, port, frame)
        to = "" if peer is None else f"{peer[0]}:{port_name(net, *peer)}"
        sent.append(Sent(port_name(net, hop.switch, port), to, summarize(frame)))
    meters = ways.tables[hop.switch].meters
    return Passed(
        hop.switch,
        role,
        port_name(net, hop.switch, hop.in_port),
        hop.in_port,
        summarize(hop.frame),
        hop.frame,
        tuple(entry_words(role, f, None if f.meter is None else meters.get(f.meter)) for f in hop.matched),
        tuple(sent),
        hop.matched,
    )

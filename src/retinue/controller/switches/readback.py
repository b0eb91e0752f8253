"""What a switch holds, read back from it: flow entries, groups and meters, by the keys the compiler has."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from retinue.core.pipeline.entry import Change, Entry, EntryKey, Flow, Group, Meter
from retinue.southbound.openflow.codec.messages import FlowStats, MeterStats

AT_ONCE = 500
"""Entries looked at before others have their turn: about a millisecond."""

T = TypeVar("T")


class SwitchSession(Protocol):
    """What the controller needs of a switch's session (southbound.openflow.session has the real one)."""

    dpid: int
    peer: str
    openflow: str
    """The version of OpenFlow that is spoken: "1.4", or "1.3", which has no bundles; "" with a router of
    others.
    """
    ports: dict[str, int]
    """Port numbers by name, as they are now."""
    down: frozenset[str]
    """Of these ports, those that have no link."""

    def packet_out(self, frame: bytes, port: int) -> None: ...
    async def apply(self, change: Change, now: float) -> None: ...
    async def read_flows(self, cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]: ...
    async def read_packets(self, cookie: int = 0, cookie_mask: int = 0) -> int: ...
    async def read_groups(self) -> dict[int, Group]: ...
    async def read_meters(self) -> dict[int, Meter]: ...
    async def read_meter_stats(self) -> list[MeterStats]: ...
    def close(self, reason: str) -> None: ...

    @property
    def alive(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Audit:
    """What a switch was found to hold (flow entries, groups and meters), beside what it should."""

    entries: int
    missing: int = 0
    changed: int = 0
    """Those that are there, and not as they should be."""
    foreign: int = 0
    mended: bool = True
    """The switch has confirmed that it holds what it should; else that is still waited for."""

    @property
    def differing(self) -> int:
        return self.missing + self.changed + self.foreign


async def entries_of(session: SwitchSession, now: float) -> dict[EntryKey, Entry]:
    """Everything the switch holds. Raises what the session raises."""
    found: dict[EntryKey, Entry] = {("group", n): g for n, g in (await session.read_groups()).items()}
    found.update({("meter", n): m for n, m in (await session.read_meters()).items()})
    async for part in in_parts(await session.read_flows()):
        found.update((stats.flow.key, with_end(stats, now)) for stats in part)
    return found


async def in_parts(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """A long list piece by piece; others have their turn in between."""
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]
        await asyncio.sleep(0)


def with_end(stats: FlowStats, now: float) -> Flow:
    if not stats.hard_timeout:
        return stats.flow
    return replace(stats.flow, expires_at=now + stats.hard_timeout - stats.duration_s)

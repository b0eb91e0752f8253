"""Frames dropped as spoofed: one sum of each switch is asked for, and entries are read where it changed."""

import asyncio
from collections import Counter

import pytest

from retinue.controller import spoof_counts
from retinue.core.pipeline.cookies import Reason, reason_of
from retinue.southbound.openflow.codec.messages import FlowStats
from support.fabric.networks import add_vm, fabric
from support.fakes.session import FakeNetwork, FakeSession


class Edge:
    """Counts for the entries of one fake switch, and how often it was asked."""

    def __init__(self, fake: FakeNetwork, name: str) -> None:
        self.session: FakeSession = fake.sessions[name]
        self._flows = fake.fabric[name].flows
        self.packets: Counter[Reason] = Counter()
        self.asked: Counter[str] = Counter()
        self.session.read_flows = self._read  # type: ignore[method-assign]
        self.session.read_packets = self._sum  # type: ignore[method-assign]

    async def _read(self, cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        self.asked["read"] += 1
        return self._found()

    async def _sum(self, cookie: int = 0, cookie_mask: int = 0) -> int:
        self.asked["sum"] += 1
        return sum(stats.packets for stats in self._found())

    def _found(self) -> list[FlowStats]:
        """The count is the first entry's of each reason."""
        left, found = Counter(self.packets), []
        for flow in self._flows.values():
            reason = reason_of(flow.cookie)
            if reason is not None:
                found.append(FlowStats(flow, left.pop(reason, 0), 0, 0.0, 0))
        return found


async def network() -> FakeNetwork:
    fake = FakeNetwork(fabric(), clock=lambda: 1000.0)
    await fake.start()
    add_vm(fake.net, 1, at=1)
    await fake.controller.context.install(fake.net.everything())
    return fake


async def count(fake: FakeNetwork) -> int:
    """A second has passed; how many switches were asked."""
    begun = fake.controller.spoof_counts.begin()
    await asyncio.gather(*begun)
    return len(begun)


async def test_entries_are_read_only_where_the_sum_has_changed() -> None:
    fake = await network()
    edge = Edge(fake, "edge1")
    for _ in range(3):
        await count(fake)
    assert edge.asked == {"sum": 3}
    edge.packets[Reason.SPOOFED_IP] = 5
    for _ in range(3):
        await count(fake)
    assert edge.asked == {"sum": 6, "read": 1}
    assert fake.controller.spoof_counts.frames == {("edge1", Reason.SPOOFED_IP): 5}
    edge.packets[Reason.SPOOFED_MAC] = 2
    await count(fake)
    assert fake.controller.spoof_counts.frames["edge1", Reason.SPOOFED_MAC] == 2
    assert fake.controller.spoof_counts.frames["edge1", Reason.SPOOFED_IP] == 5
    await fake.stop()


async def test_a_count_that_begins_anew_is_added_to_the_sum() -> None:
    fake = await network()
    edge = Edge(fake, "edge1")
    for packets in (7, 0, 4):
        edge.packets[Reason.SPOOFED_IP] = packets
        await count(fake)
    assert fake.controller.spoof_counts.frames["edge1", Reason.SPOOFED_IP] == 11
    await fake.stop()


async def test_many_switches_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spines are not asked: they have no such entries."""
    monkeypatch.setattr(spoof_counts, "ASKED_A_SECOND", 2)
    fake = await network()
    edges = [Edge(fake, name) for name in ("edge1", "edge2", "edge3", "leaf1", "leaf2")]
    for second in range(5):
        assert await count(fake) == 2
        asked = [edge.asked["sum"] for edge in edges]
        assert sum(asked) == 2 * (second + 1)
        assert max(asked) - min(asked) <= 1
    await fake.stop()


async def test_a_switch_that_does_not_answer_is_asked_once_and_holds_up_nobody() -> None:
    fake = await network()
    answers = asyncio.Event()
    silent, other = Edge(fake, "edge1"), Edge(fake, "edge2")

    async def never(cookie: int = 0, cookie_mask: int = 0) -> int:
        silent.asked["sum"] += 1
        await answers.wait()
        return 0

    silent.session.read_packets = never  # type: ignore[method-assign]
    first = fake.controller.spoof_counts.begin()
    await fake.settle()
    fake.controller.spoof_counts.begin()
    await fake.settle()
    assert (silent.asked["sum"], other.asked["sum"]) == (1, 2)
    answers.set()
    await asyncio.gather(*first)
    await fake.stop()

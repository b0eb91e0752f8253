"""Probes on a running fabric: links that lose frames one way, both, or a share, and what follows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import cycle

import pytest

from retinue.controller.api.views import links
from retinue.controller.counters import Count
from retinue.controller.kinds import restore
from retinue.controller.neighbours import link_probes
from retinue.core.forwarding.fabric import End
from retinue.core.link_watch import LinkLimits
from retinue.core.model import Link
from retinue.core.packets import parse
from retinue.core.packets.lldp import parse_lldp, probe_frame
from retinue.southbound.openflow.codec.messages import PortDesc, PortStatus
from retinue.southbound.openflow.codec.wire import PortReason
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.fakes.switch import FakeSwitch
from support.recent_events import recent

Lost = Callable[[bytes], bool]
"""Whether the next frame is."""
ROUND = 0.2
"""Seconds."""
LIMITS = LinkLimits(hold=2.0)


class Bench:
    """Two leaves, two spines; frames that leave by some ports do not always arrive."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        net = fabric()
        for number in (1, 2):
            add_vm(net, number, number)
        self.fake = FakeNetwork(net, lambda: 1000.0, self.store, link_limits=LIMITS)
        self.probes = self.fake.controller.link_probes
        self.losing: dict[End, Lost] = {}
        self.sent = 0
        peer_of = self.fake.fabric.peer_of

        def peer_or_none(switch: str, port: int, frame: bytes) -> End | None:
            self.sent += 1
            lost = self.losing.get((switch, port))
            vanishes = lost is not None and lost(frame)
            return ("nowhere", 0) if vanishes else peer_of(switch, port, frame)

        self.fake.fabric.add("nowhere")
        self.fake.fabric.peer_of = peer_or_none  # type: ignore[method-assign]

    def link(self, leaf: str = "leaf1", spine: str = "spine1") -> Link:
        return next(
            one for one in self.fake.net.links if (one.lower.switch, one.upper.switch) == (leaf, spine)
        )

    def ends(self) -> tuple[End, End]:
        """Of the link between leaf1 and spine1: as what leaves by it is known."""
        found = []
        for end in (self.link().lower, self.link().upper):
            number = self.fake.net.port_number(end)
            assert number is not None
            found.append((end.switch, number))
        return found[0], found[1]

    async def rounds(self, count: int) -> None:
        for _ in range(count):
            for send in self.probes.begin():
                send()
            self.probes.end(ROUND)
            await self.fake.settle()

    def used(self) -> dict[str, int]:
        """By leaf: how many ways up its switch has, as programmed."""
        return {leaf: len(self.fake.fabric[leaf].groups[1].buckets) for leaf in ("leaf1", "leaf2")}

    def told(self) -> list[tuple[str, str]]:
        found = recent(self.fake.controller.events, "link.", 100)
        return [(event.type, event.data["lower"]) for event in found]


BOTH, ONE = {"leaf1": 2, "leaf2": 2}, {"leaf1": 1, "leaf2": 1}


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await made.fake.start()
    yield made
    await made.fake.stop()


def always(frame: bytes) -> bool:
    return True


@pytest.mark.parametrize("ends", [(0,), (1,), (0, 1)])
async def test_what_vanishes_one_way_or_both_goes_by_the_other_spine(
    bench: Bench, ends: tuple[int, ...]
) -> None:
    await bench.rounds(5)
    for end in ends:
        bench.losing[bench.ends()[end]] = always
    await bench.rounds(2)
    assert bench.used() == BOTH
    await bench.rounds(1)
    assert bench.used() == ONE
    lower = str(bench.link().lower)
    assert bench.told() == [("link.lost", lower)]
    assert [str(one.lower) for one in bench.store.load().lost_links] == [lower]
    await bench.rounds(30)
    bench.losing.clear()
    await bench.rounds(10)
    assert bench.used() == ONE, "it has to be well for a while"
    await bench.rounds(3)
    assert bench.used() == BOTH
    assert bench.told() == [("link.lost", lower), ("link.returned", lower)]
    assert not bench.store.load().lost_links


async def test_a_share_that_vanishes_is_found(bench: Bench) -> None:
    count = 0

    def every_fifth(frame: bytes) -> bool:
        nonlocal count
        count += 1
        return count % 5 == 0

    await bench.rounds(5)
    bench.losing[bench.ends()[1]] = every_fifth
    await bench.rounds(10)
    (told,) = recent(bench.fake.controller.events, "link.lost", 5)
    assert f"that {bench.link().upper} has sent" in told.data["reason"]
    assert bench.used() == ONE


async def test_a_link_that_loses_long_frames_only_is_found(bench: Bench) -> None:
    """As one whose MTU is too small: probes are as short as frames can be, and as long."""
    await bench.rounds(5)
    bench.losing[bench.ends()[0]] = lambda frame: len(frame) > 1400
    await bench.rounds(5)
    assert bench.used() == ONE


@pytest.mark.parametrize("leaf", ["leaf1", "leaf2"])
async def test_a_switch_that_does_not_answer_in_time_says_nothing_of_its_links(
    bench: Bench, leaf: str
) -> None:
    """Its probes are not sent, and neither does it send up what it is to send up itself."""
    session = bench.fake.sessions[leaf]
    await bench.rounds(3)
    sends, session.packet_out = session.packet_out, lambda *_: None  # type: ignore[method-assign]
    await bench.rounds(30)
    assert bench.used() == BOTH
    assert not bench.told()
    session.packet_out = sends  # type: ignore[method-assign]
    await bench.rounds(3)
    assert not bench.told()


async def test_a_spine_that_is_away_is_used_as_long_as_it_forwards(bench: Bench) -> None:
    """It sends probes back without a controller; when it does not, it is left out."""
    bench.fake.sessions["spine1"].close("its management is dead")
    await bench.rounds(30)
    assert bench.used() == BOTH
    bench.fake.fabric.switches["spine1"] = FakeSwitch("spine1")
    await bench.rounds(3)
    assert bench.used() == ONE
    assert len(bench.told()) == 2


async def test_a_spine_that_comes_back_empty_is_used_when_it_has_been_well_for_a_while(bench: Bench) -> None:
    """It has been started anew: nothing is concluded before it has its entries."""
    bench.fake.sessions["spine1"].close("it ends")
    bench.fake.fabric.switches["spine1"] = FakeSwitch("spine1")
    await bench.rounds(3)
    again = bench.fake.connect("spine1")
    again.hold = asyncio.Event()
    await bench.rounds(30)
    assert bench.used() == ONE
    again.hold.set()
    await bench.rounds(10)
    assert bench.used() == ONE
    await bench.rounds(5)
    assert bench.used() == BOTH


async def test_one_that_has_just_connected_is_not_lost_for_want_of_entries(bench: Bench) -> None:
    bench.fake.sessions["spine1"].close("for a moment")
    bench.fake.fabric.switches["spine1"] = FakeSwitch("spine1")
    again = bench.fake.connect("spine1")
    again.hold = asyncio.Event()
    await bench.rounds(30)
    again.hold.set()
    await bench.rounds(5)
    assert not bench.told()


async def test_a_port_that_has_another_number_is_not_lost_for_want_of_entries(bench: Bench) -> None:
    """What comes back there goes nowhere until the leaf has been told."""
    await bench.rounds(3)
    session, lower, cables = bench.fake.sessions["leaf1"], bench.link().lower, bench.fake.fabric.cables
    end, other = bench.ends()
    session.hold = asyncio.Event()
    session.ports = {**session.ports, lower.port: 77}
    cables["leaf1", 77], cables[other] = cables.pop(end), ("leaf1", 77)
    port = PortDesc(77, lower.port, bytes(6), 0, 0)
    bench.fake.controller.port_status(session, PortStatus(0, PortReason.MODIFY, port))  # type: ignore[arg-type]
    await bench.rounds(10)
    assert not bench.told()
    session.hold.set()
    await bench.rounds(5)
    assert not bench.told()


async def test_what_could_not_be_changed_is_changed_in_the_next_round(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*changes: object) -> None:
        raise OSError("the database is away")

    await bench.rounds(1)
    bench.losing[bench.ends()[0]] = always
    await bench.rounds(2)
    with monkeypatch.context() as patched:
        patched.setattr(bench.fake.controller.context, "apply", fails)
        with pytest.raises(OSError):
            await bench.rounds(1)
    await bench.rounds(1)
    assert bench.used() == ONE
    assert bench.told() == [("link.lost", str(bench.link().lower))]


async def test_a_spine_that_forwards_nothing_any_more_is_found(bench: Bench) -> None:
    """It speaks with the controller: nothing else shows that it is dead."""
    for leaf in ("leaf1", "leaf2"):
        number = bench.fake.net.port_number(bench.link(leaf).upper)
        assert number is not None
        bench.losing["spine1", number] = always
    await bench.rounds(3)
    assert len(bench.told()) == 2
    assert bench.used() == ONE


async def test_only_what_was_sent_counts_and_only_once(bench: Bench) -> None:
    """Whoever is at the cable may send what he has seen, or makes himself: it makes up for nothing."""
    lower, _ = bench.ends()
    number = bench.fake.net.port_number(bench.link().upper)
    assert number is not None
    seen: list[bytes] = []
    heard = bench.probes.heard
    bench.probes.heard = lambda *at: (seen.append(at[2]), heard(*at))[1]  # type: ignore[method-assign, func-returns-value]
    await bench.rounds(1)
    bench.probes.heard = heard  # type: ignore[method-assign]
    bench.losing[lower] = always
    for at in range(3):
        for frame in (*seen, probe_frame("leaf1", "s1", bytes(16), at, GATEWAY_MAC), b"\1\x80\xc2\0\0\x0e"):
            bench.fake.send("spine1", number, frame.ljust(60, b"\0"))
        await bench.rounds(1)
    assert bench.told() == [("link.lost", str(bench.link().lower))]
    assert bench.fake.controller.context.counters["probes of links not ours"] >= 3
    assert parse_lldp(parse(seen[0]).payload).ttl == 0, "an LLDPDU that whoever hears it forgets"


async def test_lldp_of_others_is_not_sent_back(bench: Bench) -> None:
    """A leaf's own lldpd would be its own neighbour; between two ends that send it back it would stay."""
    number = bench.fake.net.port_number(bench.link().upper)
    assert number is not None
    before = bench.sent
    bench.fake.send("spine1", number, probe_frame("tor", "swp1", bytes(16), 1, "52:54:00:00:00:99"))
    assert bench.sent == before


async def test_a_link_that_lost_frames_before_a_restart_is_not_used_until_it_is_well(bench: Bench) -> None:
    bench.losing[bench.ends()[0]] = always
    await bench.rounds(3)
    again = Bench(bench.store)
    restore(again.fake.controller.context.state, bench.store.load())
    again.fake.controller.link_probes.forget = lambda: None  # type: ignore[method-assign]
    await again.fake.start()
    assert again.used() == ONE
    await again.rounds(8)
    assert again.used() == ONE
    await again.rounds(6)
    assert again.used() == BOTH
    await again.fake.stop()


async def test_where_links_are_not_probed_none_stays_lost(bench: Bench) -> None:
    bench.losing[bench.ends()[0]] = always
    await bench.rounds(3)
    again = Bench(bench.store)
    restore(again.fake.controller.context.state, bench.store.load())
    await again.fake.start()
    assert again.used() == BOTH
    assert not bench.store.load().lost_links
    await again.fake.stop()


async def test_a_cable_that_leads_elsewhere_is_named(bench: Bench) -> None:
    """Two cables of spine1 were put in crosswise: all comes back, from the other leaf's port."""
    cables = bench.fake.fabric.cables
    ours = [bench.fake.net.port_number(bench.link(leaf).upper) for leaf in ("leaf1", "leaf2")]
    one, other = (("spine1", number) for number in ours if number is not None)
    leaf1, leaf2 = cables[one], cables[other]
    cables.update({one: leaf2, leaf2: one, other: leaf1, leaf1: other})
    await bench.rounds(4)
    told = recent(bench.fake.controller.events, "link.lost", 5)
    assert sorted(event.data["reason"] for event in told) == [
        f"what {bench.link(leaf).lower} sends comes in at {bench.link(wrong).upper}, "
        f"and not at {bench.link(leaf).upper}"
        for leaf, wrong in (("leaf1", "leaf2"), ("leaf2", "leaf1"))
    ]
    assert bench.used() == ONE


async def test_one_that_comes_several_times_counts_once(bench: Bench) -> None:
    """A link that loses some and doubles others loses some."""
    fates = cycle((True, False))
    twice: list[bytes] = []
    heard = bench.probes.heard

    def hears(switch: str, port: int, frame: bytes) -> None:
        heard(switch, port, frame)
        twice.append(frame)
        heard(switch, port, frame)

    bench.probes.heard = hears  # type: ignore[method-assign]
    bench.losing[bench.ends()[0]] = lambda frame: next(fates)
    await bench.rounds(10)
    assert twice
    assert bench.used() == ONE


async def test_the_two_ends_of_a_link_tell_in_any_order(bench: Bench) -> None:
    """Each has a connection of its own: what came back may be told before that it came there."""
    heard, later = bench.probes.heard, list[tuple[str, int, bytes]]()

    def hears(switch: str, port: int, frame: bytes) -> None:
        if switch.startswith("spine"):
            later.append((switch, port, frame))
            return
        heard(switch, port, frame)
        while later:
            heard(*later.pop())

    bench.probes.heard = hears  # type: ignore[method-assign]
    used = bench.used()
    await bench.rounds(10)
    assert bench.fake.controller.context.counters[Count.PROBES_NOT_OURS] == 0
    assert bench.used() == used


async def test_what_is_sent_has_a_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One probe each way and one frame for each switch; more only for few links at a time."""
    await bench.rounds(1)
    before = bench.sent
    await bench.rounds(1)
    assert bench.sent - before == 2 * 4
    for switch in bench.fake.fabric.switches:
        for port in range(20):
            bench.losing[switch, port] = always
    monkeypatch.setattr(link_probes, "MOST_SUSPECTS", 2)
    await bench.rounds(1)
    before = bench.sent
    await bench.rounds(1)
    assert bench.sent - before == 2 + 2 * LIMITS.burst


async def test_links_are_shown_as_they_are(bench: Bench) -> None:
    lower = str(bench.link().lower)

    def shown() -> dict[str, object]:
        return next(row for row in links(bench.fake.controller) if row["lower"] == lower)

    ends = {"lower": lower, "upper": (upper := str(bench.link().upper)), "configured": False}
    assert shown() == {**ends, "state": "unknown", "reason": "", "carries": True}
    await bench.rounds(1)
    assert shown()["state"] == "well"
    bench.losing[bench.ends()[0]] = always
    await bench.rounds(3)
    why = f"nothing that {lower} sends comes in at {upper}"
    assert shown() == {**ends, "state": "lost", "reason": why, "carries": False}
    bench.losing.clear()
    await bench.rounds(4)
    assert shown()["state"] == "returning"
    session = bench.fake.sessions["leaf1"]
    session.down = frozenset({bench.link().lower.port})
    port = PortDesc(session.ports[bench.link().lower.port], bench.link().lower.port, bytes(6), 0, 1)
    bench.fake.controller.port_status(session, PortStatus(0, PortReason.MODIFY, port))  # type: ignore[arg-type]
    await bench.rounds(1)
    assert shown()["state"] == "no carrier"

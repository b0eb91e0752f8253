"""Home is the anchor of a VM that is in another domain: what passes, for how long, and how that ends."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import pytest

from retinue.controller.api import views
from retinue.controller.app import Controller
from retinue.controller.errors import RequestError
from retinue.core.migration import MigrationState as S
from retinue.core.model import VM, Network, Peer
from retinue.core.model.domains import HomeAnchor, Place, places
from retinue.core.pipeline.entry import Flow, FlowKey, match
from retinue.core.pipeline.priorities import Deliver, EdgeAdmit
from retinue.core.pipeline.tables import Table
from retinue.protocol.events import EventType
from retinue.protocol.traces import TraceBody
from retinue.southbound.openflow.codec.messages import FlowStats
from support.fabric.domains import gateway_of, nic, server_of
from support.fabric.two_controllers import VM_ID, TwoDomains
from support.fakes.session import FakeSession
from support.recent_events import recent

TO, FROM = (Table.DELIVER, Deliver.VM), (Table.ADMIT, EdgeAdmit.BOUND)
LATE, GUEST = (Table.ADMIT, EdgeAdmit.FROM_TUNNEL), (Table.DELIVER, Deliver.GUEST)
RUNNING = (S.PREPARED, S.COPYING)


@dataclass
class Gateway:
    """What the switch of a domain's gateway has counted, by table and priority."""

    session: FakeSession
    packets: dict[tuple[int, int], int] = field(default_factory=dict)
    reads: int = 0

    async def read_flows(self, cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        self.reads += 1
        found = await type(self.session).read_flows(self.session, cookie, cookie_mask)
        return [self._counted(stats.flow.key, stats) for stats in found]

    def _counted(self, key: FlowKey, stats: FlowStats) -> FlowStats:
        packets = self.packets.get((key[0], key[1]), 0)
        return FlowStats(stats.flow, packets, 100 * packets, 0.0, 0)


@pytest.fixture
def gateways(domains: TwoDomains, monkeypatch: pytest.MonkeyPatch) -> dict[str, Gateway]:
    made = {}
    for domain in "ab":
        session = domains.fakes[domain].sessions[f"{domain}-edge3"]
        made[domain] = Gateway(session)
        monkeypatch.setattr(session, "read_flows", made[domain].read_flows)
    return made


async def looked(domains: TwoDomains, domain: str) -> dict[str, object]:
    """What is shown of the VM when its gateway has been read."""
    anchors = domains.controller(domain).domains.anchors
    anchors._next.clear()
    await anchors.look()
    await domains.fakes[domain].settle()
    (row,) = anchors.shown()
    return row


def passes(domains: TwoDomains) -> tuple[bool, bool]:
    """Whether home's gateway lets something through for the VM: to it, and from it."""
    flows = domains.fakes["a"].fabric["a-edge3"].flows.values()
    found = {way: [f for f in flows if (f.table, f.priority) == way] for way in (TO, FROM)}
    assert len(found[TO]) == len(found[FROM]) == 1
    return bool(found[TO][0].actions), found[FROM][0].goto is not None


def told(controller: Controller) -> list[tuple[str, str]]:
    return [
        (event.data["state"], event.data["reason"]) for event in recent(controller.events, EventType.ANCHOR)
    ]


async def test_what_passes_is_counted_at_both_ends(domains: TwoDomains, gateways: dict[str, Gateway]) -> None:
    await domains.move("a", "b", server_of("b", 1))
    await domains.fakes["a"].settle()
    a, b = (domains.controller(domain).domains.anchors for domain in "ab")
    (at_home,), (there,) = a.shown(), b.shown()
    assert (at_home["home"], at_home["domain"], at_home["gateway"]) == ("", "b", "to-b")
    assert (there["home"], there["domain"], there["gateway"]) == ("a", "", "to-a")
    assert at_home["read_at"] is None and at_home["arrived"] == {"packets": 0, "bytes": 0}
    gateways["a"].packets = {TO: 7, FROM: 5}
    gateways["b"].packets = {LATE: 7, GUEST: 5}
    for domain in "ab":
        row = await looked(domains, domain)
        assert row["arrived"] == {"packets": 7, "bytes": 700}
        assert row["sent"] == {"packets": 5, "bytes": 500}
        assert row["last_arrived"] is not None and row["read_at"] is not None
    gateways["a"].packets[TO] = 2  # The entry was made anew.
    assert (await looked(domains, "a"))["arrived"] == {"packets": 9, "bytes": 900}


async def test_nothing_is_read_while_nobody_is_away(
    domains: TwoDomains, gateways: dict[str, Gateway]
) -> None:
    await domains.controller("a").domains.anchors.look()
    await domains.fakes["a"].settle()
    reads = [gateways["a"].reads]
    await domains.move("a", "b", server_of("b", 1))
    await looked(domains, "a")
    reads.append(gateways["a"].reads)
    assert reads == [0, 1]
    await domains.controller("a").domains.anchors.look()
    await domains.fakes["a"].settle()
    assert gateways["a"].reads == 1, "more entries than so many a second were read"


async def test_one_that_is_ended_lets_nothing_through_and_counts_it(
    domains: TwoDomains, gateways: dict[str, Gateway]
) -> None:
    await domains.move("a", "b", server_of("b", 1))
    anchors = domains.controller("a").domains.anchors
    assert passes(domains) == (True, True)
    gateways["a"].packets = {TO: 3}
    await looked(domains, "a")
    row = await anchors.set(VM_ID, ended=True)
    assert row["ended"] is not None and row["reason"] == "a manager's word"
    assert passes(domains) == (False, False)
    gateways["a"].packets = {TO: 4, FROM: 2}
    row = await looked(domains, "a")
    assert (row["arrived"], row["dropped"]) == (
        {"packets": 3, "bytes": 300},
        {"packets": 3, "bytes": 300},
    )
    assert (await anchors.set(VM_ID, ended=False))["ended"] is None
    assert passes(domains) == (True, True)
    assert [state for state, _ in told(domains.controller("a"))] == ["begun", "ended", "resumed"]


async def test_a_trace_tells_that_it_was_ended(domains: TwoDomains) -> None:
    a = domains.controller("a")
    sender = VM("vm-a5", (nic("a", 5),), server_of("a", 2))
    a.inventory.register_vms([sender])
    domains.plug("a", server_of("a", 2), 5)
    await domains.move("a", "b", server_of("b", 1))
    await domains.fakes["a"].settle()
    (to,) = nic("a", 1).addresses
    assert (await a.tracer.answer(TraceBody(vm="vm-a5", to=str(to))))["passes"]
    await a.domains.anchors.set(VM_ID, ended=True)
    found = await a.tracer.answer(TraceBody(vm="vm-a5", to=str(to)))
    (end,) = views.plain(found["ends"])
    assert (found["passes"], end["fate"]) == (False, "dropped")
    assert "vm-a1 is in another domain, and its home stands in for it no longer" in end["text"]
    assert end["advice"] == ("have it do so again: `retinue anchor resume vm-a1`",)


async def test_it_comes_home_all_the_same_and_what_was_ended_is_forgotten(
    domains: TwoDomains, gateways: dict[str, Gateway]
) -> None:
    await domains.move("a", "b", server_of("b", 1))
    a = domains.controller("a")
    await a.domains.anchors.set(VM_ID, ended=True, idle=5)
    await domains.move("b", "a", server_of("a", 2))
    await domains.fakes["a"].settle()
    assert a.net.vms[VM_ID].server == server_of("a", 2)
    assert not a.net.unanchored and not a.context.state.home_anchors
    await domains.fakes["b"].settle()
    assert not domains.controller("b").context.state.home_anchors
    await domains.move("a", "b", server_of("b", 1))
    await domains.fakes["a"].settle()
    assert passes(domains) == (True, True)
    (row,) = a.domains.anchors.shown()
    assert (row["ended"], row["idle_seconds"]) == (None, 0.0)


async def test_it_ends_by_itself_when_nothing_comes_any_more(
    domains: TwoDomains, gateways: dict[str, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = domains.controller("a")
    peer = a.net.peers["b"]
    monkeypatch.setitem(a.net.peers, "b", Peer(peer.id, peer.gateway, peer.tunnel, anchor_idle=60.0))
    later = at_will(a, monkeypatch)
    await domains.move("a", "b", server_of("b", 1))
    gateways["a"].packets = {TO: 1}
    await looked(domains, "a")
    later(50.0)
    gateways["a"].packets[TO] += 1
    assert (await looked(domains, "a"))["ended"] is None
    later(50.0)
    assert (await looked(domains, "a"))["ended"] is None
    later(20.0)
    gateways["a"].packets[FROM] = 10  # What it sends keeps nothing.
    row = await looked(domains, "a")
    assert row["reason"] == "nothing has come for it for 60 s"
    await domains.fakes["a"].settle()
    assert passes(domains) == (False, False)
    await a.domains.anchors.set(VM_ID, ended=False)
    later(50.0)
    assert (await looked(domains, "a"))["ended"] is None


async def test_a_gateway_that_does_not_answer_ends_nothing(
    domains: TwoDomains, gateways: dict[str, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = domains.controller("a")
    later = at_will(a, monkeypatch)
    await domains.move("a", "b", server_of("b", 1))
    await a.domains.anchors.set(VM_ID, idle=1.0)

    async def silent(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        raise TimeoutError("no answer")

    monkeypatch.setattr(gateways["a"].session, "read_flows", silent)
    later(100.0)
    row = await looked(domains, "a")
    assert (row["ended"], row["read_at"]) == (None, None)
    assert a.context.counters["packets by gateways not counted: no answer"] == 1


async def test_its_time_may_be_set(
    domains: TwoDomains, gateways: dict[str, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = domains.controller("a")
    later = at_will(a, monkeypatch)
    await domains.move("a", "b", server_of("b", 1))
    await a.domains.anchors.set(VM_ID, seconds=10)
    later(9.0)
    assert (await looked(domains, "a"))["ended"] is None
    later(2.0)
    assert (await looked(domains, "a"))["reason"] == "its time is over"
    row = await a.domains.anchors.set(VM_ID, ended=False)
    assert (row["ended"], row["until"]) == (None, None)
    assert (await looked(domains, "a"))["ended"] is None


async def test_what_cannot_be_is_refused(domains: TwoDomains) -> None:
    a, b = (domains.controller(domain) for domain in "ab")
    with pytest.raises(RequestError, match="VM vm-a1 is at home, and no guest"):
        await a.domains.anchors.set(VM_ID, ended=True)
    with pytest.raises(RequestError, match="there is no VM nobody"):
        await a.domains.anchors.set("nobody", ended=True)
    await domains.move("a", "b", server_of("b", 1))
    with pytest.raises(RequestError, match="its anchor is its home's, domain a; ask there"):
        await b.domains.anchors.set(VM_ID, ended=True)
    domains.fails = "before it converges"
    domains.begin("a", server_of("a", 1))
    await domains.until("a", *RUNNING)
    with pytest.raises(RequestError, match="is being migrated"):
        await a.domains.anchors.set(VM_ID, ended=True)
    assert not a.net.unanchored


async def test_a_controller_that_starts_anew_knows_what_was_ended(domains: TwoDomains) -> None:
    await domains.move("a", "b", server_of("b", 1))
    (before,) = domains.controller("a").domains.anchors.shown()
    await domains.controller("a").domains.anchors.set(VM_ID, ended=True, idle=60.0)
    await domains.kill("a")
    await domains.start_again("a")
    a = domains.controller("a")
    assert a.net.vms[VM_ID].server == gateway_of("a")
    (row,) = a.domains.anchors.shown()
    assert (row["since"], row["idle_seconds"]) == (before["since"], 60.0)
    assert passes(domains) == (False, False)
    await domains.move("b", "a", server_of("a", 1))
    await domains.fakes["a"].settle()
    assert not domains.stores["a"].load().home_anchors


async def test_of_a_vm_that_is_no_more_nothing_is_left_after_a_start(domains: TwoDomains) -> None:
    """As where a crash came between the two that the database was to forget."""
    await domains.kill("a")
    domains.stores["a"].put(HomeAnchor("gone", 1.0))
    await domains.start_again("a")
    await domains.fakes["a"].settle()
    assert not domains.stores["a"].load().home_anchors


async def test_what_came_before_a_start_is_not_counted_anew(
    domains: TwoDomains, gateways: dict[str, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway's entries are there still, with all that they have counted."""
    await domains.move("a", "b", server_of("b", 1))
    gateways["a"].packets = {TO: 7, FROM: 5}
    assert (await looked(domains, "a"))["arrived"] == {"packets": 7, "bytes": 700}
    await domains.kill("a")
    await domains.start_again("a")
    session = domains.fakes["a"].sessions["a-edge3"]
    gateway = Gateway(session, gateways["a"].packets)
    monkeypatch.setattr(session, "read_flows", gateway.read_flows)
    row = await looked(domains, "a")
    nothing = {"packets": 0, "bytes": 0}
    assert (row["arrived"], row["sent"], row["last_arrived"]) == (nothing, nothing, None)
    assert row["read_at"] is not None
    gateway.packets[TO] += 2
    row = await looked(domains, "a")
    assert row["arrived"] == {"packets": 2, "bytes": 200} and row["last_arrived"] is not None


async def test_of_a_vm_that_goes_no_other_is_looked_at(
    domains: TwoDomains, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or thousands that are removed would each cost as much as all of them."""
    await domains.move("a", "b", server_of("b", 1))
    a = domains.controller("a")
    (before,) = a.domains.anchors.shown()
    asked: list[Network] = []

    def whole_table(net: Network) -> Iterator[Place]:
        asked.append(net)
        return places(net)

    monkeypatch.setattr("retinue.controller.domains.anchors.places", whole_table)
    for number in (5, 6):
        vm = VM(f"vm-a{number}", (nic("a", number),), server_of("a", 2))
        a.inventory.register_vms([vm])
        await a.inventory.remove_vm(vm.id)
    a.domains.anchors.look_at(VM_ID)
    assert not asked
    assert a.domains.anchors.shown() == [before] and asked


async def test_of_one_that_is_removed_nothing_is_kept(domains: TwoDomains) -> None:
    await domains.move("a", "b", server_of("b", 1))
    await domains.controller("a").domains.anchors.set(VM_ID, ended=True)
    await domains.controller("b").inventory.remove_vm(VM_ID)
    for domain in "ab":
        await domains.fakes[domain].settle()
        controller = domains.controller(domain)
        assert VM_ID not in controller.net.vms
        assert not controller.context.state.home_anchors and not controller.net.unanchored


def at_will(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The controller's clock goes on by what the answer is called with, too."""
    clock, ahead = controller.context.clock, [0.0]
    monkeypatch.setattr(controller.context, "clock", lambda: clock() + ahead[0])

    def later(seconds: float) -> None:
        ahead[0] += seconds

    return later


async def test_one_that_was_ended_stays_so_when_the_way_home_comes_to_nothing(domains: TwoDomains) -> None:
    await domains.move("a", "b", server_of("b", 1))
    a = domains.controller("a")
    await a.domains.anchors.set(VM_ID, ended=True)
    domains.fails = "after diverting"
    domains.begin("a", server_of("a", 2))
    await domains.until("a", S.UNDONE)
    await domains.until("b", S.UNDONE)
    await domains.fakes["a"].settle()
    assert a.net.vms[VM_ID].server == gateway_of("a")
    (row,) = a.domains.anchors.shown()
    assert row["ended"] is not None
    assert passes(domains) == (False, False)
    await a.domains.anchors.set(VM_ID, ended=False)
    assert passes(domains) == (True, True)


async def test_the_controller_may_die_when_it_has_said_that_it_is_ended(domains: TwoDomains) -> None:
    """Before a switch has heard it: what is stored counts."""
    await domains.move("a", "b", server_of("b", 1))
    ended = asyncio.ensure_future(domains.controller("a").domains.anchors.set(VM_ID, ended=True))
    await asyncio.sleep(0)
    await domains.kill("a")
    ended.cancel()
    await domains.start_again("a")
    assert passes(domains) == (False, False)
    await domains.move("b", "a", server_of("a", 1))
    await domains.fakes["a"].settle()
    assert not domains.controller("a").net.unanchored


async def test_what_a_gateway_says_that_is_no_ours_counts_for_nobody(
    domains: TwoDomains, gateways: dict[str, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A switch is whatever its server's administrator has made of it: tables that there are not, entries of
    addresses that no VM there has, counts that go down."""
    await domains.move("a", "b", server_of("b", 1))
    gateways["a"].packets = {TO: 5}
    await looked(domains, "a")
    real = gateways["a"].read_flows

    async def lies(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        strange = Flow(99, 200, match(eth_type=0x800, ipv4_dst=IPv4Address("10.1.0.101")))
        stranger = Flow(Table.DELIVER, Deliver.VM, match(eth_type=0x800, ipv4_dst=IPv4Address("10.9.9.9")))
        bare = Flow(Table.DELIVER, Deliver.VM, match(eth_type=0x800))
        more = [FlowStats(flow, 1 << 60, 1 << 60, 0.0, 0) for flow in (strange, stranger, bare)]
        return [*more, *await real(cookie, cookie_mask)]

    gateways["a"].packets = {TO: 3}
    monkeypatch.setattr(gateways["a"].session, "read_flows", lies)
    assert (await looked(domains, "a"))["arrived"] == {"packets": 8, "bytes": 800}

"""The session with a router's adapter: what is confirmed, what is not, and what ends it."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from retinue.core.model import Network
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.diff import difference
from retinue.core.pipeline.entry import Flow, Program, key_of
from retinue.core.pipeline.underlay import underlay_of
from retinue.southbound.routers import keeper
from retinue.southbound.routers.keeper import RouterKeeper
from retinue.southbound.routers.link import RouterError, RouterLink
from retinue.southbound.routers.session import RouterSession, table_of
from support.fabric.networks import add_vm, fabric
from support.fakes import router_adapter

ROUTER = "leaf1"
ADAPTER = [sys.executable, str(Path(router_adapter.__file__))]
Started = Callable[..., Awaitable[RouterSession]]


def with_fault(fault: str, mac: str = "00:00:de:ad:be:ef") -> list[str]:
    return ["env", f"FAULT={fault}", f"PORT_MAC={mac}", *ADAPTER]


@dataclass
class Routed:
    net: Network = field(default_factory=lambda: fabric(1, 0, (1, 1), over_routers=True))
    compiler: Compiler = field(init=False)

    def __post_init__(self) -> None:
        add_vm(self.net, 1, 1)
        self.compiler = Compiler(self.net)
        self.compiler.update(self.net.everything())

    @property
    def wanted(self) -> Program:
        return self.compiler.program(ROUTER).whole()

    def change(self, installed: Program):  # type: ignore[no-untyped-def]
        return difference(self.wanted, installed, {*self.wanted, *installed})


@pytest.fixture
def routed() -> Routed:
    return Routed()


@pytest.fixture
async def started(routed: Routed) -> AsyncIterator[Started]:
    links: list[RouterLink] = []

    async def start(fault: str = "", gone: Callable[[str], None] = lambda reason: None) -> RouterSession:
        link = await RouterLink.start(with_fault(fault), ROUTER)
        links.append(link)
        return RouterSession(routed.net, ROUTER, link, await link.look(), gone)

    yield start
    for link in links:
        await link.closed()


async def held(session: RouterSession) -> Program:
    return {key_of(stats.flow): stats.flow for stats in await session.read_flows()}


async def test_what_is_told_is_confirmed_by_what_the_router_holds(routed: Routed, started: Started) -> None:
    session = await started()
    assert session.ports["p1"] == 101
    assert session.down == {"p3"}
    change = routed.change(await held(session))
    assert {flow.match for flow in change.add if isinstance(flow, Flow)}
    await session.apply(change, 0.0)
    assert await held(session) == routed.wanted
    assert routed.change(await held(session)).empty
    again = await started()
    assert await held(again) != routed.wanted, "of an adapter that is started anew it is not assumed"


async def test_what_is_taken_back_is_gone(routed: Routed, started: Started) -> None:
    session = await started()
    await session.apply(routed.change(await held(session)), 0.0)
    before = dict(routed.wanted)
    routed.compiler.update(routed.net.remove_vm("vm1"))
    await session.apply(difference(routed.wanted, before, {*before}), 0.0)
    assert await held(session) == routed.wanted


async def test_a_route_that_leads_to_no_server_is_taken_back(routed: Routed, started: Started) -> None:
    session = await started()
    await session.apply(routed.change(await held(session)), 0.0)
    stray = IPv4Network("10.1.0.250/32")
    await session._link.change({stray: IPv4Address("192.0.2.77")}, [])
    change = routed.change(await held(session))
    assert not change.empty
    await session.apply(change, 0.0)
    assert await held(session) == routed.wanted
    assert stray not in table_of((await session._link.look()).routes)


async def test_a_router_that_does_not_hold_what_it_was_told_has_not_confirmed(
    routed: Routed, started: Started
) -> None:
    session = await started("forgets")
    change = routed.change(await held(session))
    with pytest.raises(RouterError, match=r"was told 10.* and has no 10"):
        await session.apply(change, 0.0)


async def test_what_the_adapter_says_of_a_change_is_told(routed: Routed, started: Started) -> None:
    session = await started("refuses")
    change = routed.change(await held(session))
    with pytest.raises(RouterError, match="router leaf1: no room in the table"):
        await session.apply(change, 0.0)


async def test_a_change_that_an_adapter_died_over_is_not_known(routed: Routed, started: Started) -> None:
    session = await started("dies")
    change = routed.change(await held(session))
    await session.apply(change, 0.0)
    with pytest.raises(ConnectionError, match="has ended"):
        await session.read_flows()
        await session.read_flows()


async def test_who_answers_otherwise_than_agreed_is_ended(routed: Routed) -> None:
    link = await RouterLink.start(with_fault("babble"), ROUTER)
    with pytest.raises(ConnectionError, match="said what is no answer"):
        await link.look()
    await link.closed()
    assert not link.alive


async def test_who_does_not_answer_is_ended(routed: Routed) -> None:
    link = await RouterLink.start(with_fault("dumb"), ROUTER)
    with pytest.raises(TimeoutError, match="did not answer"):
        await link.look(0.05)
    await link.closed()
    with pytest.raises(ConnectionError, match="has ended"):
        await link.look()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (with_fault("no forwarding"), "does not forward: sysctl -w"),
        (with_fault("strict p1"), "sysctl -w net.ipv4.conf.p1.rp_filter=2"),  # VMs are there.
        (with_fault("strict p4"), "sysctl -w net.ipv4.conf.p4.rp_filter=2"),  # To another router.
    ],
)
async def test_a_router_that_would_not_route_what_edges_send_is_none(
    routed: Routed, command: list[str], why: str
) -> None:
    link = await RouterLink.start(command, ROUTER)
    first = await link.look()
    with pytest.raises(RouterError, match=why):
        RouterSession(routed.net, ROUTER, link, first, print)
    await link.closed()


@pytest.mark.parametrize(
    ("fault", "port", "help"),
    [
        ("strict p2", "p2", "sysctl -w net.ipv4.conf.p2.rp_filter=2"),
        ("mac p2", "p2", "ip link set p2 address 00:00:de:ad:be:ef"),
        ("mac p1", "p1", "ip link set p1 address 00:00:de:ad:be:ef"),
    ],
)
async def test_a_port_that_is_not_set_up_costs_its_server_alone(
    routed: Routed, started: Started, fault: str, port: str, help: str
) -> None:
    with capture_logs() as said:
        session = await started(fault)
        await session.look()
    warned = [one for one in said if one["event"] == "router.port_unfit"]
    assert [help in one["error"] for one in warned] == [True], "once"
    assert session.down == {"p3", port}
    await session.apply(routed.change(await held(session)), 0.0)
    routed.net.set_ports(ROUTER, session.ports, session.down)
    reached = {one for one in ("server1", "server2") if underlay_of(routed.net).is_reachable(one)}
    assert reached == {"server1", "server2"} - {"server" + port[1:]}


async def test_a_strict_port_without_a_link_costs_nothing(started: Started) -> None:
    assert (await started("strict p3")).alive


async def test_a_table_that_somebody_else_has_changed_is_noticed(routed: Routed, started: Started) -> None:
    session = await started("others write")
    await session.read_flows()
    with pytest.raises(RouterError, match="was changed by somebody else"):
        await session.look()


def test_what_is_no_table_is_no_table() -> None:
    assert table_of({"10.1.0.1/32": "10.0.0.1", "10.1.0.0/24": None}) == {
        IPv4Network("10.1.0.1/32"): IPv4Address("10.0.0.1"),
        IPv4Network("10.1.0.0/24"): None,
    }
    for wrong in ({"10.1.0.1/24": None}, {"x": None}, {"10.1.0.1/32": "x"}, {"10.1.0.1/40": None}):
        with pytest.raises(ConnectionError, match="no route"):
            table_of(wrong)


@dataclass
class Told:
    """What a handler is told; the keeper's word is awaited by `until`."""

    seen: list[str] = field(default_factory=list)
    sessions: list[RouterSession] = field(default_factory=list)
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    def connected(self, session: RouterSession) -> None:
        self.sessions.append(session)
        self._note("connected")

    def disconnected(self, session: RouterSession, reason: str) -> None:
        self._note(reason)

    def router_ports(self, session: RouterSession) -> None:
        self._note("ports")

    def _note(self, what: str) -> None:
        self.seen.append(what)
        self._told = asyncio.ensure_future(self._notify())

    async def _notify(self) -> None:
        async with self.moved:
            self.moved.notify_all()

    async def until(self, fits: Callable[[list[str]], bool]) -> None:
        async with asyncio.timeout(60), self.moved:
            await self.moved.wait_for(lambda: fits(self.seen))


async def test_an_adapter_that_ends_is_started_again(routed: Routed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(keeper, "LOOK_SECONDS", 0.01)
    told = Told()
    kept = RouterKeeper(routed.net, {ROUTER: with_fault("dies")}, told)
    kept.start()
    await told.until(lambda seen: seen == ["connected"])
    await told.sessions[0].apply(routed.change({}), 0.0)
    await told.until(lambda seen: seen.count("connected") == 2)
    assert "has ended" in told.seen[1]
    assert not told.sessions[0].alive
    await kept.stop()
    assert told.seen[-1] == "the controller stops"


async def test_a_command_that_is_none_is_tried_again(
    routed: Routed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(keeper, "AGAIN_SECONDS", 0.01)
    told, command = Told(), tmp_path / "adapter"
    kept = RouterKeeper(routed.net, {ROUTER: [str(command), *with_fault("")]}, told)
    kept.start()
    await asyncio.sleep(0.05)
    assert told.seen == []
    command.symlink_to("/usr/bin/env")
    await told.until(lambda seen: seen == ["connected"])
    await kept.stop()


async def test_whatever_goes_wrong_with_a_router_it_is_tried_again(
    routed: Routed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "AGAIN_SECONDS", 0.0)

    class Surprised(Told):
        def connected(self, session: RouterSession) -> None:
            super().connected(session)
            if len(self.sessions) == 1:
                raise KeyError("what nobody expected")

    told = Surprised()
    kept = RouterKeeper(routed.net, {ROUTER: with_fault("")}, told)
    kept.start()
    await told.until(lambda seen: seen.count("connected") == 2)
    await kept.stop()

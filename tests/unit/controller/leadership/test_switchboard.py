"""What a standby says to switches, how the active one takes them over, what one that was overtaken says."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from retinue.controller.leadership.mandate import Mandate
from retinue.controller.leadership.switchboard import Switchboard
from retinue.core.pipeline.entry import Change, Flow, Output, match
from retinue.southbound.openflow.codec import encode, messages
from retinue.southbound.openflow.codec.wire import ControllerRole, MessageType, PortReason
from retinue.southbound.openflow.server import OpenFlowServer
from support.fakes.openflow_peer import OpenFlowPeer, SwitchRecorder, message, packet_in, port_status

FLOW = Flow(1, 10, match(in_port=1), (Output(2),))


class Stage:
    """One controller, with a clock of the test's, and a switch that keeps roles as Open vSwitch does."""

    def __init__(self) -> None:
        self.now = 100.0
        self.mandate = Mandate(10.0, lambda: self.now)
        self.looks = 0
        self.handler = SwitchRecorder()
        self.board = Switchboard(self.handler, self.mandate, self._look)
        self.server = OpenFlowServer(
            self.board, hello_timeout=60.0, echo_interval=3600.0, echo_timeout=3600.0, mandate=self.mandate
        )
        self.known = -1
        """The generation id that the switch knows; -1: none, as after a restart."""
        self.peers: list[OpenFlowPeer] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.port = 0

    def _look(self) -> None:
        self.looks += 1

    async def switch(self) -> OpenFlowPeer:
        peer = await OpenFlowPeer.dial(self.port)
        peer.answer = self._roles
        self.peers.append(peer)
        self.tasks.append(asyncio.create_task(peer.play()))
        return peer

    def _roles(self, peer: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if not isinstance(what, messages.Other) or what.type != MessageType.ROLE_REQUEST:
            return False
        _, generation = struct.unpack("!I4xQ", what.body)
        if generation < self.known:
            peer.say(encode.error(what.xid, 11, 0))
        else:
            self.known = generation
            peer.say(message(MessageType.ROLE_REPLY, what.xid, what.body))
        return True

    async def standing(self, count: int = 1) -> None:
        await until(lambda: self.board.standing == count)


def roles(peer: OpenFlowPeer) -> list[tuple[int, int]]:
    """The roles that a switch was asked for, with the generation ids."""
    asked = (m for m in peer.heard if isinstance(m, messages.Other) and m.type == MessageType.ROLE_REQUEST)
    return [struct.unpack("!I4xQ", m.body) for m in asked]


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage()
    made.port = await made.server.start("127.0.0.1", 0)
    yield made
    await made.board.stop()
    await made.server.stop()
    for peer in made.peers:
        peer.writer.close()
    await asyncio.gather(*made.tasks)


async def test_the_first_word_of_a_standby_is_that_it_is_one_and_nothing_else_follows(stage: Stage) -> None:
    stage.mandate.saw(7)
    peer = await stage.switch()
    await stage.standing()
    kinds = [m.type for m in peer.heard if isinstance(m, messages.Other)]
    assert kinds[:2] == [MessageType.ROLE_REQUEST, MessageType.SET_CONFIG]
    assert roles(peer) == [(ControllerRole.SLAVE, 7)]
    peer.say(packet_in(b"frame", 1))
    peer.say(port_status(PortReason.ADD, 7, "tap7"))
    peer.say(encode.echo_request(9))
    await until(lambda: any(isinstance(m, messages.EchoReply) for m in peer.heard))
    assert stage.handler.events.empty(), "a standby's controller hears of nothing"


async def test_the_active_one_is_the_master_of_a_switch_before_it_speaks_to_it(stage: Stage) -> None:
    peer = await stage.switch()
    await stage.standing()
    stage.mandate.renew(8, stage.now)
    stage.board.activate(8)
    session, _ = await stage.handler.next("connected")
    assert roles(peer) == [(ControllerRole.SLAVE, 0), (ControllerRole.MASTER, 8)]
    await session.apply(Change(add=(FLOW,)), 0)
    assert len(peer.applied) == 1
    late = await stage.switch()
    await until(lambda: len(roles(late)) == 2)
    assert roles(late) == [(ControllerRole.SLAVE, 8), (ControllerRole.MASTER, 8)]


async def test_without_a_mandate_not_one_word_gets_out(stage: Stage) -> None:
    """As a process finds that was stopped: the clock has gone on, and nobody has been asked yet."""
    peer = await stage.switch()
    await stage.standing()
    stage.mandate.renew(8, stage.now)
    stage.board.activate(8)
    session, _ = await stage.handler.next("connected")
    before = len(peer.heard)
    stage.now += 10.0
    with pytest.raises(ConnectionError, match="not the active one"):
        await session.apply(Change(add=(FLOW,)), 0)
    session.packet_out(b"x" * 60, 1)
    await stage.handler.next("disconnected")
    again = await stage.switch()  # As one that was restarted, and has forgotten every generation id.
    stage.known = -1
    await stage.standing()
    assert roles(again) == [(ControllerRole.SLAVE, 8)], "it is not asked to take this one for its master"
    assert (len(peer.heard), peer.applied, again.applied) == (before, [], [])
    stage.mandate.renew(8, stage.now)
    await until(lambda: len(roles(again)) == 2)


async def test_a_bundle_that_is_being_sent_ends_with_the_mandate(stage: Stage) -> None:
    peer = await stage.switch()
    await stage.standing()
    stage.mandate.renew(8, stage.now)
    stage.board.activate(8)
    session, _ = await stage.handler.next("connected")
    heard = peer.answer

    def slow(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.Other) and what.type == MessageType.BARRIER_REQUEST:
            stage.now += 10.0  # Between the entries and the commit.
        return heard(p, what, raw)

    peer.answer = slow
    more = tuple(Flow(1, 10 + n, match(in_port=1), (Output(2),)) for n in range(3))
    with pytest.raises(ConnectionError):
        await session.apply(Change(add=more), 0)
    assert peer.applied == []


async def test_a_switch_that_has_a_later_master_is_let_go_and_the_database_is_looked_at(stage: Stage) -> None:
    peer = await stage.switch()
    await stage.standing()
    stage.known = 9
    stage.mandate.renew(8, stage.now)
    stage.board.activate(8)
    await until(lambda: stage.looks == 1)
    assert stage.handler.events.empty()
    stage.known = 8
    peer = await stage.switch()
    session, _ = await stage.handler.next("connected")
    peer.say(message(MessageType.ROLE_STATUS, 0, struct.pack("!IB3xQ", ControllerRole.SLAVE, 0, 9)))
    _, reason = await stage.handler.next("disconnected")
    assert "another controller is its master" in reason
    assert not session.alive
    assert stage.looks == 2


def test_a_mandate_counts_from_the_asking_and_by_a_clock_that_goes_on() -> None:
    now = 50.0
    mandate = Mandate(10.0, lambda: now)
    assert not mandate.holds()
    now = 58.0
    mandate.renew(3, 50.0)
    assert (mandate.holds(), mandate.left, mandate.epoch) == (True, 2.0, 3)
    now = 60.0
    assert not mandate.holds()
    mandate.renew(3, 59.0)
    assert mandate.holds()
    mandate.end()
    assert not mandate.holds()
    mandate.saw(2)
    assert mandate.epoch == 3, "an epoch that is read late is no step back"

"""OpenFlow sessions against a switch whose every word is the test's."""

import asyncio
import gc
import struct
import time
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from retinue.core.pipeline.entry import Change, Flow, Group, Meter, Output, match
from retinue.southbound.openflow import apply, connection
from retinue.southbound.openflow import session as switch
from retinue.southbound.openflow.codec import encode, messages, wire
from retinue.southbound.openflow.codec.wire import BundleStep, MessageType, MultipartType
from retinue.southbound.openflow.server import OpenFlowServer, Rejected, Session
from support import virtual_time
from support.fakes.openflow_peer import (
    Answer,
    OpenFlowPeer,
    SwitchRecorder,
    features,
    message,
    multipart,
    packet_in,
    port_desc,
    port_status,
)

FLOWS = tuple(Flow(1, 10, match(in_port=n), (Output(n + 1),)) for n in range(1, 6))


@pytest.fixture
async def joined(handler: SwitchRecorder, port: int) -> AsyncIterator[tuple[OpenFlowPeer, Session]]:
    peer, task = await OpenFlowPeer.join(port)
    session, _ = await handler.next("connected")
    peer.heard.clear()
    yield peer, session
    peer.writer.close()
    await task


# ---- coming and going ----


async def test_a_session_that_has_ended_leaves_nothing_for_the_collector(
    server: OpenFlowServer, handler: SwitchRecorder, port: int
) -> None:
    """The controller's collector does not look at old objects (controller.collector)."""
    peer, task = await OpenFlowPeer.join(port)
    session, _ = await handler.next("connected")
    left = weakref.ref(session), weakref.ref(session._connection)
    gc.disable()
    try:
        peer.writer.close()
        await task
        assert (await handler.next("disconnected"))[1]
        del session
        handler.events = asyncio.Queue()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [one() for one in left] == [None, None]
    finally:
        gc.enable()


async def test_all_switches_that_are_known_may_come_at_once(handler: SwitchRecorder) -> None:
    """None is crowded out, though none of them has shown yet which switch it is."""
    known = 8
    server = OpenFlowServer(handler, hello_timeout=60.0, max_pending=2, known=lambda: known)
    port = await server.start("127.0.0.1", 0)
    silent = [await OpenFlowPeer.dial(port) for _ in range(known + 2)]
    for peer in silent:
        await peer.reader.readexactly(16)
    assert server.pending == len(silent)
    assert not server.rejected
    silent.append(await OpenFlowPeer.dial(port))
    await silent[0].closed()
    assert server.rejected == {"crowded": 1}
    for peer in silent[1:]:
        peer.writer.close()
    await server.stop()


async def test_switch_is_known_with_its_ports(
    joined: tuple[OpenFlowPeer, Session], server: OpenFlowServer
) -> None:
    _, session = joined
    assert (session.dpid, session.n_tables, session.ports) == (0x31, 254, {"up0": 1, "tap0": 2})
    assert session.peer.startswith("127.0.0.1:")
    assert server.sessions == {0x31: session}
    assert server.pending == 0


async def test_frames_that_miss_come_whole(handler: SwitchRecorder, port: int) -> None:
    peer, task = await OpenFlowPeer.join(port)
    await handler.next("connected")
    configs = [
        m.body for m in peer.heard if isinstance(m, messages.Other) and m.type == MessageType.SET_CONFIG
    ]
    assert configs == [b"\x00\x03\xff\xff"], "and the first fragment of a datagram shows its ports"
    peer.writer.close()
    await task


async def test_ports_come_in_many_parts(handler: SwitchRecorder, port: int) -> None:
    def in_two_parts(peer: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if not (isinstance(what, messages.Other) and what.type == MessageType.MULTIPART_REQUEST):
            return False
        peer.say(multipart(what.xid, MultipartType.PORT_DESC, port_desc(1, "a"), more=True))
        peer.say(multipart(what.xid, MultipartType.PORT_DESC, port_desc(2, "b")))
        return True

    peer = await OpenFlowPeer.dial(port)
    peer.answer = in_two_parts
    task = asyncio.create_task(peer.play())
    session, _ = await handler.next("connected")
    assert session.ports == {"a": 1, "b": 2}
    peer.writer.close()
    await task


async def test_ports_follow_the_switch(joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder) -> None:
    peer, session = joined
    peer.say(port_status(wire.PortReason.ADD, 7, "tap7"))
    await handler.next("port_status")
    assert session.ports == {"up0": 1, "tap0": 2, "tap7": 7}
    peer.say(port_status(wire.PortReason.MODIFY, 7, "renamed"))
    await handler.next("port_status")
    assert session.ports == {"up0": 1, "tap0": 2, "renamed": 7}
    peer.say(port_status(wire.PortReason.DELETE, 1, "up0"))
    await handler.next("port_status")
    assert session.ports == {"tap0": 2, "renamed": 7}


async def test_how_long_a_message_has_waited_is_told_also_when_nobody_could_read(
    joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder
) -> None:
    """What stands still for a third of a second receives nothing; the kernel does, and says when."""
    peer, session = joined
    peer.say(packet_in(b"in time", 2))
    await peer.writer.drain()
    time.sleep(0.3)  # noqa: ASYNC251
    await handler.next("packet_in")
    assert session.waited() >= 0.2


async def test_what_comes_before_the_handshake_is_through_is_not_lost(
    handler: SwitchRecorder, port: int
) -> None:
    def hasty(peer: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.Other) and what.type == MessageType.FEATURES_REQUEST:
            peer.say(packet_in(b"early", 2))
        return False

    peer = await OpenFlowPeer.dial(port)
    peer.answer = hasty
    task = asyncio.create_task(peer.play())
    await handler.next("connected")
    _, told = await handler.next("packet_in")
    assert (told.frame, told.in_port) == (b"early", 2)
    peer.writer.close()
    await task


async def test_end_of_the_connection_is_told_once(
    joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder, server: OpenFlowServer
) -> None:
    peer, session = joined
    peer.writer.close()
    gone, reason = await handler.next("disconnected")
    assert gone is session
    assert "closed the connection" in reason
    assert not session.alive
    assert server.sessions == {}
    session.close("again")
    assert handler.events.empty()


async def test_switch_that_comes_again_replaces_its_former_self(
    joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder, server: OpenFlowServer, port: int
) -> None:
    _, first = joined
    peer, task = await OpenFlowPeer.join(port)
    gone, reason = await handler.next("disconnected")
    assert gone is first
    assert "connected again" in reason
    second, _ = await handler.next("connected")
    assert server.sessions == {0x31: second}
    await second.barrier()
    peer.writer.close()
    await task


async def test_stop_ends_sessions_and_half_open_connections(
    joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder, server: OpenFlowServer, port: int
) -> None:
    stranger = await OpenFlowPeer.dial(port)
    await stranger.reader.readexactly(16)  # Our HELLO: the server has it.
    await server.stop()
    _, reason = await handler.next("disconnected")
    assert reason == "the controller stops"
    await stranger.closed()
    assert not server.rejected
    with pytest.raises(ConnectionError):
        await OpenFlowPeer.dial(port)


# ---- whoever is no switch ----


REJECTED = {
    "http": (b"GET / HTTP/1.1\r\n\r\n", "version"),
    "old version": (struct.pack("!BBHI", 1, 0, 8, 1), "version"),
    "newer alone": (struct.pack("!BBHIHHI", 6, 0, 16, 1, 1, 8, 1 << 6), "version"),
    "no length": (struct.pack("!BBHI", 5, 0, 3, 1), "length"),
    "too long": (struct.pack("!BBHI", 5, 0, 60000, 1), "length"),
    "no hello": (features(1, 5), "handshake"),
    "auxiliary": (encode.hello(1) + features(2, 5, auxiliary=1), "handshake"),
    "no id": (encode.hello(1) + features(2, 0), "handshake"),
    "features twice": (encode.hello(1) + features(2, 5) + features(2, 5), "handshake"),
    "error": (encode.hello(1) + encode.error(2, 1, 1), "handshake"),
    "damaged": (encode.hello(1) + message(MessageType.FEATURES_REPLY, 2, b"abc"), "malformed"),
}


@pytest.mark.parametrize(("words", "kind"), REJECTED.values(), ids=REJECTED.keys())
async def test_stranger_is_rejected_and_switches_do_not_notice(
    words: bytes,
    kind: str,
    joined: tuple[OpenFlowPeer, Session],
    handler: SwitchRecorder,
    server: OpenFlowServer,
    port: int,
) -> None:
    _, session = joined
    stranger = await OpenFlowPeer.dial(port)
    stranger.say(words)
    await stranger.closed()
    assert dict(server.rejected) == {kind: 1}
    await session.barrier()
    assert handler.events.empty()
    assert server.pending == 0


async def test_stranger_that_leaves_is_counted(server: OpenFlowServer, port: int) -> None:
    for words in (b"", encode.hello(1)[:5]):
        stranger = await OpenFlowPeer.dial(port)
        stranger.say(words)
        stranger.writer.write_eof()
        await stranger.closed()
    assert dict(server.rejected) == {"closed": 1, "truncated": 1}


@pytest.mark.parametrize(
    "words",
    [b"", encode.hello(1)[:5], encode.hello(1), encode.hello(1) + features(2, 9)],
    ids=["nothing", "half a message", "hello alone", "no ports"],
)
async def test_silence_before_the_handshake_is_through_ends_it(handler: SwitchRecorder, words: bytes) -> None:
    server = OpenFlowServer(handler, hello_timeout=0.05)
    stranger = await OpenFlowPeer.dial(await server.start("127.0.0.1", 0))
    stranger.say(words)
    await stranger.closed()
    assert dict(server.rejected) == {"timeout": 1}
    await server.stop()


async def test_garbage_in_a_session_ends_that_session_only(
    joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder, server: OpenFlowServer, port: int
) -> None:
    peer, session = joined
    other, task = await OpenFlowPeer.join(port, dpid=0x32)
    second, _ = await handler.next("connected")
    waiting = asyncio.create_task(_never_answered(other, second))
    peer.say(b"\x01\x01\xff\xff" + bytes(12))  # What Open vSwitch 3.1 says to a bad monitor request.
    gone, reason = await handler.next("disconnected")
    assert gone is session
    assert "version 0x01" in reason
    assert dict(server.rejected) == {"version": 1}
    other.answer = lambda p, what, raw: False
    await second.barrier()
    waiting.cancel()
    other.writer.close()
    await task


async def _never_answered(peer: OpenFlowPeer, session: Session) -> None:
    peer.answer = lambda p, what, raw: True
    await session.barrier(timeout=60)


async def test_half_open_connections_are_bounded_and_a_switch_still_gets_in(handler: SwitchRecorder) -> None:
    server = OpenFlowServer(handler, hello_timeout=60.0, max_pending=3)
    port = await server.start("127.0.0.1", 0)
    strangers = []
    for _ in range(5):
        stranger = await OpenFlowPeer.dial(port)
        await stranger.reader.readexactly(16)
        strangers.append(stranger)
    assert server.pending == 3
    _, task = await OpenFlowPeer.join(port)
    await handler.next("connected")
    assert dict(server.rejected) == {"crowded": 3}
    await asyncio.gather(*(stranger.closed() for stranger in strangers[:3]))
    await server.stop()
    await task


# ---- signs of life ----


async def test_quiet_switch_is_asked_and_kept(handler: SwitchRecorder) -> None:
    server = OpenFlowServer(handler, echo_interval=0.02, echo_timeout=60.0)
    peer, task = await OpenFlowPeer.join(await server.start("127.0.0.1", 0))
    asked = asyncio.Event()

    def listen(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.EchoRequest):
            asked.set()
        return False

    peer.answer = listen
    session, _ = await handler.next("connected")
    await asyncio.wait_for(asked.wait(), 60)
    await session.barrier()
    await server.stop()
    await task


@pytest.mark.parametrize("drip", [False, True], ids=["nothing", "half a message"])
async def test_switch_that_falls_silent_is_cut_off(handler: SwitchRecorder, drip: bool) -> None:
    server = OpenFlowServer(handler, echo_interval=0.02, echo_timeout=0.1)
    peer, task = await OpenFlowPeer.join(await server.start("127.0.0.1", 0))
    session, _ = await handler.next("connected")
    peer.answer = lambda p, what, raw: True
    if drip:
        peer.say(packet_in(b"never whole", 1)[:-3])
    _, reason = await handler.next("disconnected")
    assert "no message for" in reason
    assert dict(server.rejected) == {"timeout": 1}
    assert not session.alive
    await task
    await server.stop()


async def test_echo_is_answered_with_its_own_bytes(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, _ = joined
    heard = asyncio.get_running_loop().create_future()

    def listen(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.EchoReply):
            heard.set_result(what)
        return False

    peer.answer = listen
    peer.say(encode.echo_request(77, b"are you there"))
    assert await asyncio.wait_for(heard, 60) == messages.EchoReply(77, b"are you there")


# ---- the handler ----


async def test_events_reach_the_handler_and_are_counted(
    joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder
) -> None:
    peer, session = joined
    peer.say(packet_in(b"frame", 2))
    _, told = await handler.next("packet_in")
    assert (told.frame, told.in_port) == (b"frame", 2)
    removed = struct.pack("!QHBBIIHHQQ", 5, 10, 1, 1, 60, 0, 0, 60, 3, 4) + bytes.fromhex("0001000400000000")
    peer.say(message(MessageType.FLOW_REMOVED, 0, removed))
    _, told = await handler.next("flow_removed")
    assert (told.key, told.reason) == ((1, 10, ()), wire.FlowRemovedReason.HARD_TIMEOUT)
    peer.say(encode.error(0x7FFFFFFF, 1, 12))
    _, told = await handler.next("error")
    assert told.text == "OFPET_BAD_REQUEST OFPBRC_BAD_PACKET"
    assert (session.packet_ins, session.errors) == (1, 1)


async def test_exception_in_the_handler_ends_nothing(
    joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder
) -> None:
    peer, session = joined
    handler.fail_on = {"packet_in", "port_status", "disconnected"}
    peer.say(packet_in(b"one", 1) + packet_in(b"two", 1) + port_status(0, 9, "tap9"))
    for kind in ("packet_in", "packet_in", "port_status"):
        await handler.next(kind)
    await session.barrier()
    assert session.handler_errors == 3
    assert session.ports["tap9"] == 9


async def test_message_nobody_asked_for_is_ignored(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined
    peer.say(message(MessageType.EXPERIMENTER, 1, bytes(8)) + message(30, 0, bytes(16)))
    peer.say(message(MessageType.BARRIER_REPLY, 0x7FFFFFFF))
    await session.barrier()


# ---- changes ----


async def test_one_flow_is_one_message_and_a_barrier_in_one_write(
    joined: tuple[OpenFlowPeer, Session],
) -> None:
    peer, session = joined
    before = peer.reads
    await session.apply(Change(add=FLOWS[:1]), 0.0)
    assert [type(m).__name__ for m in peer.heard] == ["FlowMod", "Other"]
    assert [m.flow for m in peer.applied] == list(FLOWS[:1])
    assert peer.reads == before + 1
    assert session.flow_mods_sent == 1


async def test_several_flows_are_one_atomic_bundle_in_two_writes(
    joined: tuple[OpenFlowPeer, Session],
) -> None:
    peer, session = joined
    before = peer.reads
    await session.apply(Change(add=FLOWS[:3], remove=FLOWS[3:]), 0.0)
    kinds = [type(m).__name__ for m in peer.heard]
    assert kinds == ["BundleControl", *["BundleAdd"] * 5, "Other", "BundleControl", "Other"]
    assert {m.flags for m in peer.heard if isinstance(m, messages.BundleControl | messages.BundleAdd)} == {3}
    commands = [(m.command, m.flow.key) for m in peer.applied]
    assert commands == [
        *((wire.FlowCommand.ADD, flow.key) for flow in FLOWS[:3]),
        *((wire.FlowCommand.DELETE_STRICT, flow.key) for flow in FLOWS[3:]),
    ]
    assert peer.reads == before + 2
    assert session.flow_mods_sent == 5


async def test_bundled_messages_carry_the_transaction_id_of_their_envelope(
    joined: tuple[OpenFlowPeer, Session],
) -> None:
    peer, session = joined
    await session.apply(Change(add=FLOWS), 0.0)
    envelopes = [m for m in peer.heard if isinstance(m, messages.BundleAdd)]
    assert [m.message[4:8] for m in envelopes] == [m.xid.to_bytes(4) for m in envelopes]
    assert len({m.xid for m in envelopes}) == len(FLOWS)


async def test_expiring_flow_gets_the_time_that_is_left(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined
    await session.apply(Change(add=(Flow(1, 2, (), expires_at=1060.5),)), 1000.0)
    assert (peer.applied[0].hard_timeout, peer.applied[0].flags) == (61, wire.FlowFlag.SEND_FLOW_REMOVED)


async def test_meters_and_groups_go_in_the_order_flows_need_them(
    joined: tuple[OpenFlowPeer, Session],
) -> None:
    peer, session = joined
    group, meter = Group(7, ((Output(1),),)), Meter(3, 100, 10)
    await session.apply(Change(add=FLOWS[:1], groups=(group,), meters=(meter,)), 0.0)
    kinds = [(type(m).__name__, m.command) for m in peer.applied]
    assert kinds == [("MeterMod", 0), ("GroupMod", 0), ("FlowMod", 0)]
    peer.applied.clear()
    await session.apply(Change(groups=(group,), meters=(meter,)), 0.0)  # The session knows them: modify.
    assert [(type(m).__name__, m.command) for m in peer.applied] == [("MeterMod", 1), ("GroupMod", 1)]
    peer.applied.clear()
    await session.apply(Change(remove=FLOWS[:1], remove_groups=(7,), remove_meters=(3,)), 0.0)
    kinds = [(type(m).__name__, m.command) for m in peer.applied]
    assert kinds == [("FlowMod", 4), ("GroupMod", 2), ("MeterMod", 2)]
    peer.applied.clear()
    await session.apply(Change(groups=(group,), meters=(meter,)), 0.0)
    assert [m.command for m in peer.applied] == [0, 0]


async def test_groups_and_meters_the_switch_had_before_are_modified(
    joined: tuple[OpenFlowPeer, Session],
) -> None:
    peer, session = joined

    def holds(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.Other) and what.type == MessageType.MULTIPART_REQUEST:
            kind = int.from_bytes(what.body[:2])
            group = struct.pack("!HBxI", 8, 2, 7)  # Of a kind that ours never are: still there.
            meter = struct.pack("!HHIHHII4x", 24, 4, 3, 1, 16, 1, 1)
            p.say(multipart(what.xid, kind, group if kind == MultipartType.GROUP_DESC else meter))
            return True
        return False

    peer.answer = holds
    await session.apply(Change(groups=(Group(7, ()),), meters=(Meter(3, 1, 1),)), 0.0)
    assert [m.command for m in peer.applied] == [wire.ModCommand.MODIFY] * 2
    assert await session.read_groups() == {}
    assert await session.read_meters() == {}


async def test_empty_change_sends_nothing(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined
    await session.apply(Change(), 0.0)
    await session.barrier()
    assert len(peer.heard) == 1


async def test_flow_rejected_while_staging_discards_the_bundle(
    joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder
) -> None:
    peer, session = joined

    def reject(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.BundleAdd) and b"\x00\x00\x00\x03" in what.message[60:]:
            p.say(encode.error(what.xid, 4, 9, raw[:64]))
            return True
        return False

    peer.answer = reject
    with pytest.raises(Rejected) as caught:
        await session.apply(Change(add=FLOWS), 0.0)
    assert caught.value.errors[0].startswith("add flow (table 1, priority 10, in_port=2)")
    assert "OFPBMC_BAD_PREREQ" in str(caught.value)
    await session.barrier()
    assert peer.applied == []
    steps = [m.step for m in peer.heard if isinstance(m, messages.BundleControl)]
    assert steps == [BundleStep.OPEN_REQUEST, BundleStep.DISCARD_REQUEST]
    peer.answer = lambda p, what, raw: False
    await session.apply(Change(add=FLOWS), 0.0)
    assert len(peer.applied) == len(FLOWS)
    assert handler.events.empty()
    assert session.flow_mods_sent == len(FLOWS)


async def test_commit_rejected_names_the_flow(
    joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder
) -> None:
    peer, session = joined

    def reject(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.BundleControl) and what.step == BundleStep.COMMIT_REQUEST:
            third = [m for m in p.heard if isinstance(m, messages.BundleAdd)][2]
            p.say(encode.error(third.xid, 5, 1, third.message[:64]) + encode.error(what.xid, 17, 13))
            return True
        return False

    peer.answer = reject
    with pytest.raises(Rejected) as caught:
        await session.apply(Change(add=FLOWS[:2], remove=FLOWS[2:]), 0.0)
    assert caught.value.errors == (
        "remove flow (table 1, priority 10, in_port=3): OFPET_FLOW_MOD_FAILED OFPFMFC_TABLE_FULL",
        "the whole bundle: OFPET_BUNDLE_FAILED OFPBFC_MSG_FAILED",
    )
    assert session.errors == 2
    assert handler.events.empty()


async def test_commit_that_is_not_confirmed_is_no_success(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined
    peer.answer = lambda p, what, raw: (
        isinstance(what, messages.BundleControl) and what.step == BundleStep.COMMIT_REQUEST
    )
    with pytest.raises(Rejected, match="did not confirm"):
        await session.apply(Change(add=FLOWS), 0.0)


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        (Change(add=FLOWS[:1]), messages.FlowMod, "add flow (table 1"),
        (Change(add=FLOWS, meters=(Meter(3, 1, 1),)), messages.MeterMod, "meter 3: "),
        (Change(remove_meters=(4,)), messages.MeterMod, "remove meter 4: "),
        (Change(add=FLOWS), messages.BundleControl, "opening the bundle: "),
    ],
    ids=["single flow", "meter", "meter removed", "opening"],
)
async def test_rejection_says_what_was_rejected(
    change: Change, kind: type[Any], text: str, joined: tuple[OpenFlowPeer, Session]
) -> None:
    peer, session = joined

    def reject(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, kind):
            p.say(encode.error(what.xid, 1, 5, raw[:64]))
        return isinstance(what, kind | messages.BundleAdd)

    peer.answer = reject
    with pytest.raises(Rejected) as caught:
        await session.apply(change, 0.0)
    assert caught.value.errors[0].startswith(text)
    assert "OFPBRC_EPERM" in caught.value.errors[0]
    assert peer.applied == []


async def test_discarding_a_bundle_that_never_was_bothers_nobody(
    joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder
) -> None:
    peer, session = joined

    def full(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.BundleControl):
            p.say(encode.error(what.xid, 17, 5 if what.step == BundleStep.OPEN_REQUEST else 2))
        return isinstance(what, messages.BundleControl | messages.BundleAdd)

    peer.answer = full
    with pytest.raises(Rejected, match="opening the bundle: OFPET_BUNDLE_FAILED OFPBFC_OUT_OF_BUNDLES"):
        await session.apply(Change(add=FLOWS), 0.0)
    await session.barrier()
    assert session.errors == 2
    assert handler.events.empty()


async def test_after_a_rejection_groups_and_meters_are_looked_up_again(
    joined: tuple[OpenFlowPeer, Session],
) -> None:
    peer, session = joined
    group = Group(7, ((Output(1),),))
    await session.apply(Change(groups=(group,)), 0.0)

    def reject(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.GroupMod):
            p.say(encode.error(what.xid, 6, 8))  # The switch has lost it.
        return isinstance(what, messages.GroupMod)

    peer.answer = reject
    with pytest.raises(Rejected, match="group 7: OFPET_GROUP_MOD_FAILED OFPGMFC_UNKNOWN_GROUP"):
        await session.apply(Change(groups=(group,)), 0.0)
    peer.answer = lambda p, what, raw: False
    peer.applied.clear()
    await session.apply(Change(groups=(group,)), 0.0)
    assert [m.command for m in peer.applied] == [wire.ModCommand.ADD]


async def test_entry_that_cannot_be_sent_leaves_the_session_as_it_was(
    joined: tuple[OpenFlowPeer, Session],
) -> None:
    peer, session = joined
    for change in (Change(add=(*FLOWS, Flow(999, 0, ()))), Change(add=(Flow(999, 0, ()),))):
        with pytest.raises(ValueError, match="flow-mod"):
            await session.apply(change, 0.0)
    await session.apply(Change(add=FLOWS), 0.0)
    assert [m.flow for m in peer.applied] == list(FLOWS)


async def test_changes_queue_one_behind_the_other(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined
    await asyncio.gather(*(session.apply(Change(add=(f, f)), 0.0) for f in FLOWS))
    assert [m.flow for m in peer.applied] == [f for flow in FLOWS for f in (flow, flow)]
    open_bundles = 0
    for heard in peer.heard:
        if isinstance(heard, messages.BundleControl):
            open_bundles += 1 if heard.step == BundleStep.OPEN_REQUEST else -1
            assert 0 <= open_bundles <= 1


async def test_large_change_is_sent_whole(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined
    many = tuple(Flow(1, 10, match(eth_dst=n)) for n in range(1, 3001))
    await session.apply(Change(add=many), 0.0)
    assert [m.flow for m in peer.applied] == list(many)


async def test_frames_go_out_while_a_large_change_is_sent(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined
    many = tuple(Flow(1, 10, match(eth_dst=n)) for n in range(1, 20001))
    task = asyncio.create_task(session.apply(Change(add=many), 0.0))
    await asyncio.sleep(0)
    session.packet_out(b"frame", 2)
    await task
    kinds = [type(m).__name__ for m in peer.heard]
    assert kinds.index("PacketOut") < kinds.index("Other")


# ---- answers that do not come ----


async def test_a_switch_that_is_far_has_the_time_that_it_was_given(handler: SwitchRecorder) -> None:
    server = OpenFlowServer(handler, hello_timeout=60.0, answer_timeout=30.0, echo_interval=3600.0)
    peer, played = await OpenFlowPeer.join(await server.start("127.0.0.1", 0))
    session, _ = await handler.next("connected")
    staged = asyncio.Event()
    peer.answer = _holds_barriers(staged)
    task = asyncio.create_task(session.apply(Change(add=FLOWS), 0.0))
    await asyncio.wait_for(staged.wait(), 60)
    virtual_time.pass_over(29)
    await asyncio.sleep(0)
    assert not task.done()
    virtual_time.pass_over(2)
    with pytest.raises(TimeoutError, match=r"within 30\.0 s"):
        await task
    await server.stop()
    await played


async def test_change_without_answer_times_out_and_the_bundle_is_discarded(
    joined: tuple[OpenFlowPeer, Session],
) -> None:
    peer, session = joined
    staged = asyncio.Event()
    peer.answer = _holds_barriers(staged)
    task = asyncio.create_task(session.apply(Change(add=FLOWS), 0.0, timeout=60))
    await asyncio.wait_for(staged.wait(), 60)
    virtual_time.pass_over(61)
    with pytest.raises(TimeoutError, match="0x31 did not confirm a change of 5 flows"):
        await task
    peer.answer = lambda p, what, raw: False
    await session.barrier()
    steps = [m.step for m in peer.heard if isinstance(m, messages.BundleControl)]
    assert steps == [BundleStep.OPEN_REQUEST, BundleStep.DISCARD_REQUEST]
    assert peer.applied == []
    await session.apply(Change(add=FLOWS), 0.0)


def _holds_barriers(heard: asyncio.Event) -> Answer:
    """A switch that does not answer what asks it for nothing else; `heard` is set when it is asked."""

    def hold(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.Other):
            heard.set()
        return isinstance(what, messages.Other)

    return hold


async def test_change_given_up_is_discarded(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined
    staged = asyncio.Event()
    peer.answer = _holds_barriers(staged)
    task = asyncio.create_task(session.apply(Change(add=FLOWS), 0.0))
    await asyncio.wait_for(staged.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    peer.answer = lambda p, what, raw: False
    await session.barrier()
    assert peer.applied == []
    assert BundleStep.DISCARD_REQUEST in [m.step for m in peer.heard if isinstance(m, messages.BundleControl)]


async def test_change_fails_when_the_session_ends(
    joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder
) -> None:
    peer, session = joined

    def leave(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        p.writer.close()
        return True

    peer.answer = leave
    with pytest.raises(ConnectionError, match="closed the connection"):
        await session.apply(Change(add=FLOWS), 0.0)
    with pytest.raises(ConnectionError):
        await session.apply(Change(add=FLOWS), 0.0)
    with pytest.raises(ConnectionError):
        await session.read_flows()


async def test_everybody_who_waits_is_told_of_the_end(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined
    peer.answer = lambda p, what, raw: True
    waiting = [
        asyncio.create_task(session.barrier()),
        asyncio.create_task(session.apply(Change(add=FLOWS), 0.0)),
        asyncio.create_task(session.apply(Change(add=FLOWS), 0.0)),
        asyncio.create_task(session.read_flows()),
    ]
    await asyncio.sleep(0)
    session.close("enough")
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(r) for r in results] == [ConnectionError] * 4
    assert "enough" in str(results[0])


async def test_question_without_answer_times_out(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined
    peer.answer = lambda p, what, raw: True
    with pytest.raises(TimeoutError, match="asked for its flows"):
        await session.read_flows(timeout=0.05)
    with pytest.raises(TimeoutError, match="asked for a barrier"):
        await session.barrier(timeout=0.05)


# ---- questions ----


async def test_flows_are_read_from_all_parts_by_cookie(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined
    asked = []

    def rows(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.Other) and what.type == MessageType.MULTIPART_REQUEST:
            asked.append(struct.unpack_from("!QQ", what.body, 24))
            for n, flow in enumerate(FLOWS[:3]):
                entry = encode.flow_add(1, flow, 0.0)[48:]
                row = struct.pack("!HBxIIHHHHH2xQQQ", 48 + len(entry), 1, 9, 0, 10, 0, 0, 0, 0, 0, n, 7)
                p.say(multipart(what.xid, MultipartType.FLOW, row + entry, more=n < 2))
            return True
        return False

    peer.answer = rows
    found = await session.read_flows(0xA0, 0xF0)
    assert [row.flow for row in found] == list(FLOWS[:3])
    assert [(row.packets, row.duration_s) for row in found] == [(0, 9.0), (1, 9.0), (2, 9.0)]
    assert asked == [(0xA0, 0xF0)]


async def test_packets_are_summed_by_the_switch(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined
    asked = []

    def total(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.Other) and what.type == MessageType.MULTIPART_REQUEST:
            asked.append(struct.unpack_from("!QQ", what.body, 24))
            p.say(multipart(what.xid, MultipartType.AGGREGATE, struct.pack("!QQI4x", 41, 4100, 7)))
            return True
        return False

    peer.answer = total
    assert await session.read_packets(0xA0, 0xF0) == 41
    assert asked == [(0xA0, 0xF0)]


async def test_role_is_granted_or_rejected(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined

    def roles(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.Other) and what.type == MessageType.ROLE_REQUEST:
            _, generation = struct.unpack("!I4xQ", what.body)
            stale = generation < 10
            p.say(encode.error(what.xid, 11, 0) if stale else message(25, what.xid, what.body))
            return True
        return False

    peer.answer = roles
    assert await session.request_role(wire.ControllerRole.MASTER, 10) is wire.ControllerRole.MASTER
    with pytest.raises(Rejected, match="OFPRRFC_STALE"):
        await session.request_role(wire.ControllerRole.MASTER, 9)


# ---- frames and back-pressure ----


async def test_frame_is_sent_out_of_the_port(joined: tuple[OpenFlowPeer, Session]) -> None:
    peer, session = joined
    session.packet_out(b"frame", 2)
    session.packet_out(b"other", 3, in_port=4)
    await session.barrier()
    sent = [m for m in peer.heard if isinstance(m, messages.PacketOut)]
    assert [(m.frame, m.actions, m.in_port) for m in sent] == [
        (b"frame", (Output(2),), 0xFFFFFFFD),
        (b"other", (Output(3),), 4),
    ]
    assert session.packet_outs == 2


async def test_frames_for_a_switch_that_is_gone_are_dropped(joined: tuple[OpenFlowPeer, Session]) -> None:
    _, session = joined
    session.close("gone")
    session.packet_out(b"frame", 2)
    assert (session.packet_outs, session.packet_outs_dropped) == (0, 1)


async def test_frames_for_a_switch_that_does_not_read_are_dropped_not_queued(
    handler: SwitchRecorder, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "PACKET_OUT_BACKLOG", 100_000)
    session = await _deaf_switch(handler, port)
    frame = bytes(60_000)
    while not session.packet_outs_dropped:
        session.packet_out(frame, 2)
        assert session.packet_outs < 1000
    assert session.alive


async def test_switch_that_never_reads_is_cut_off(
    handler: SwitchRecorder, port: int, server: OpenFlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UNREAD_LIMIT", 100_000)
    session = await _deaf_switch(handler, port)
    frame = bytes(60_000)
    while session.alive and session.packet_outs < 1000:
        session.packet_out(frame, 2)
        await asyncio.sleep(0)
    _, reason = await handler.next("disconnected")
    assert "does not read" in reason
    assert dict(server.rejected) == {"unread": 1}


async def test_bulk_waits_for_a_switch_that_does_not_read(
    handler: SwitchRecorder, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "PER_FLOW", 0.0)
    session = await _deaf_switch(handler, port)
    many = tuple(Flow(1, 10, match(eth_dst=n), (Output(1),) * 20) for n in range(1, 50001))
    task = asyncio.create_task(session.apply(Change(add=many), 0.0, timeout=600))
    before = -1
    async with asyncio.timeout(60):
        while session.backlog <= connection.DRAIN_ABOVE or session.backlog != before:
            before = session.backlog
            await asyncio.sleep(0.05)  # Until no more is written in all this time.
    assert not task.done()
    virtual_time.pass_over(601)
    with pytest.raises(TimeoutError):
        await task
    assert session.alive
    assert connection.DRAIN_ABOVE < session.backlog < 2_000_000  # Of 20 MB.
    session.close("done")


async def _deaf_switch(handler: SwitchRecorder, port: int) -> Session:
    """A switch that has done its handshake and then reads no more."""
    peer, task = await OpenFlowPeer.join(port)
    session, _ = await handler.next("connected")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    handler.peer = peer  # type: ignore[attr-defined]  # Keeps the socket open.
    return session  # type: ignore[no-any-return]

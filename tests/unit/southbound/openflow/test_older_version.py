"""OpenFlow 1.3 with a switch that has no 1.4: what is settled, how a port is told, a change without a bundle.

What we say is compared with what os-ken's codec of 1.3 says; what a switch of 1.3 says is read as it packs
it.
"""

import asyncio
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from os_ken.ofproto import ofproto_protocol, ofproto_v1_3, ofproto_v1_3_parser

from retinue.core.pipeline.entry import Change, Flow, Group, Meter, Output, ToGroup, match
from retinue.southbound.openflow.codec import encode, messages
from retinue.southbound.openflow.codec.decode import decode
from retinue.southbound.openflow.codec.wire import OLDER, MessageType, PortReason, ProtocolError, in_version
from retinue.southbound.openflow.requests import BATCH
from retinue.southbound.openflow.server import OpenFlowServer, Rejected, Session
from support.fakes.openflow_peer import (
    OpenFlowPeer,
    SwitchRecorder,
    features,
    hello_of,
    message,
    port_desc,
    port_status,
)
from support.oracles.openflow import raw

OFP: Any = ofproto_v1_3
PARSER: Any = ofproto_v1_3_parser
DATAPATH: Any = ofproto_protocol.ProtocolDesc(OFP.OFP_VERSION)

FLOW = Flow(20, 7, match(in_port=1), (Output(2),), goto=30, cookie=0xA1)
LATER = Flow(30, 9, match(in_port=1), (Output(3),))
OLD = Flow(20, 3, match(in_port=1), (Output(9),))


@pytest.fixture
async def joined(handler: SwitchRecorder, port: int) -> AsyncIterator[tuple[OpenFlowPeer, Session]]:
    peer, task = await OpenFlowPeer.join(port, version=OLDER)
    session, _ = await handler.next("connected")
    peer.heard.clear()
    yield peer, session
    peer.writer.close()
    await task


# ---- the version ----


async def test_it_is_spoken_where_a_switch_has_no_other_and_told(
    joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder, port: int
) -> None:
    _, session = joined
    assert (session.openflow, session.ports) == ("1.3", {"up0": 1, "tap0": 2})
    peer, task = await OpenFlowPeer.join(port, dpid=0x32)
    newer, _ = await handler.next("connected")
    assert newer.openflow == "1.4", "each switch has its own"
    peer.writer.close()
    await task


async def test_every_message_is_of_the_version_that_was_settled(handler: SwitchRecorder, port: int) -> None:
    peer, task = await OpenFlowPeer.join(port, version=OLDER)
    seen: list[int] = []
    echoed = asyncio.Event()

    def note(_: OpenFlowPeer, what: Any, data: bytes) -> bool:
        if isinstance(what, messages.EchoReply):
            echoed.set()
        if not isinstance(what, messages.Hello):
            seen.append(data[0])
        return False

    peer.answer = note
    session, _ = await handler.next("connected")
    await session.apply(Change(add=(FLOW, LATER)), 0.0)
    await session.read_flows()
    session.packet_out(bytes(60), 1)
    peer.say(encode.echo_request(9))
    await echoed.wait()
    assert set(seen) == {OLDER}
    peer.writer.close()
    await task


@pytest.mark.parametrize(("settled", "other"), [(OLDER, 5), (5, OLDER)])
async def test_another_than_was_settled_ends_the_connection(
    settled: int, other: int, server: OpenFlowServer, port: int
) -> None:
    peer = await OpenFlowPeer.dial(port)
    peer.writer.write(hello_of(settled) + in_version(features(2, 5), other))
    await peer.closed()
    assert dict(server.rejected) == {"version": 1}


async def test_what_it_says_right_behind_its_hello_is_taken(handler: SwitchRecorder, port: int) -> None:
    """It may know the version before we do."""
    peer = await OpenFlowPeer.dial(port)
    peer.writer.write(hello_of(OLDER) + in_version(encode.echo_request(4, b"there?"), OLDER))
    peer.version = OLDER
    task = asyncio.create_task(peer.play())
    assert (await handler.next("connected"))[0].openflow == "1.3"
    peer.writer.close()
    await task


# ---- messages ----


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            encode.flow_add(7, FLOW, 0.0),
            PARSER.OFPFlowMod(
                DATAPATH,
                cookie=0xA1,
                table_id=20,
                priority=7,
                buffer_id=OFP.OFP_NO_BUFFER,
                out_port=OFP.OFPP_ANY,
                out_group=OFP.OFPG_ANY,
                match=PARSER.OFPMatch(in_port=1),
                instructions=[
                    PARSER.OFPInstructionActions(OFP.OFPIT_APPLY_ACTIONS, [PARSER.OFPActionOutput(2, 0)]),
                    PARSER.OFPInstructionGotoTable(30),
                ],
            ),
        ),
        (
            encode.group_add(7, Group(5, ((Output(1),),))),
            PARSER.OFPGroupMod(
                DATAPATH,
                OFP.OFPGC_ADD,
                OFP.OFPGT_SELECT,
                5,
                [PARSER.OFPBucket(1, OFP.OFPP_ANY, OFP.OFPG_ANY, [PARSER.OFPActionOutput(1, 0)])],
            ),
        ),
        (
            encode.meter_add(7, Meter(1, 100, 20)),
            PARSER.OFPMeterMod(
                DATAPATH,
                OFP.OFPMC_ADD,
                OFP.OFPMF_PKTPS | OFP.OFPMF_BURST,
                1,
                [PARSER.OFPMeterBandDrop(rate=100, burst_size=20)],
            ),
        ),
        (encode.role_request(7, 2, 9), PARSER.OFPRoleRequest(DATAPATH, OFP.OFPCR_ROLE_MASTER, 9)),
        (encode.barrier_request(7), PARSER.OFPBarrierRequest(DATAPATH)),
        (encode.flow_stats_request(7), PARSER.OFPFlowStatsRequest(DATAPATH)),
        (encode.group_desc_request(7), PARSER.OFPGroupDescStatsRequest(DATAPATH)),
    ],
    ids=lambda one: type(one).__name__ if not isinstance(one, bytes) else "",
)
def test_sent_message_is_what_os_ken_sends_in_13(ours: bytes, theirs: Any) -> None:
    assert in_version(ours, OLDER) == raw(theirs, 7)


def test_messages_in_a_row_are_each_of_the_version() -> None:
    row = encode.barrier_request(1) + encode.flow_add(2, FLOW, 0.0) + encode.barrier_request(3)
    older = in_version(row, OLDER)
    at = len(encode.barrier_request(1))
    assert [older[0], older[at], older[-8]] == [OLDER] * 3
    assert bytes(a ^ b for a, b in zip(row, older, strict=True)).count(1) == 3, "and nothing else is changed"


def test_a_port_is_read_as_13_describes_it() -> None:
    body = struct.pack("!B7x", PortReason.ADD) + port_desc(9, "tap9", OLDER)
    status = decode(struct.pack("!BBHI", OLDER, MessageType.PORT_STATUS, 8 + len(body), 0) + body)
    assert isinstance(status, messages.PortStatus)
    assert (status.port.number, status.port.name, status.port.mac) == (9, "tap9", b"\x02\0\0\0\0\1")
    with pytest.raises(ProtocolError):
        decode(struct.pack("!BBHI", OLDER, MessageType.PORT_STATUS, 71, 0) + body[:-9])


async def test_ports_follow_the_switch(joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder) -> None:
    peer, session = joined
    peer.say(port_status(PortReason.ADD, 7, "tap7", OLDER))
    await handler.next("port_status")
    assert session.ports == {"up0": 1, "tap0": 2, "tap7": 7}


# ---- changes ----


def is_question(what: Any) -> bool:
    return isinstance(what, messages.Other) and what.type == MessageType.MULTIPART_REQUEST


async def test_a_change_is_made_step_by_step_each_behind_a_barrier(
    joined: tuple[OpenFlowPeer, Session],
) -> None:
    """Groups and meters, later tables before earlier ones; removed is what goes when that is confirmed."""
    peer, session = joined
    before = peer.reads
    group, meter = Group(7, ((Output(1),),)), Meter(3, 100, 10)
    change = Change(add=(FLOW, LATER), remove=(OLD,), groups=(group,), meters=(meter,))
    await session.apply(change, 0.0)
    kinds = [type(m).__name__ for m in peer.heard if not is_question(m)]
    assert kinds == [
        "MeterMod",
        "GroupMod",
        "Other",
        "FlowMod",
        "Other",
        "FlowMod",
        "Other",
        "FlowMod",
        "Other",
    ]
    assert [m.flow.key for m in peer.applied[2:]] == [LATER.key, FLOW.key, OLD.key]
    assert peer.reads <= before + 4, "two questions about what it has, and two writes"
    assert session.flow_mods_sent == 3
    peer.applied.clear()
    await session.apply(Change(remove=(FLOW,), remove_groups=(7,), remove_meters=(3,)), 0.0)
    assert [(type(m).__name__, m.command) for m in peer.applied] == [
        *(("FlowMod", 4), ("GroupMod", 2), ("MeterMod", 2)),
    ]


async def test_nothing_is_removed_before_what_takes_its_place_is_confirmed(
    joined: tuple[OpenFlowPeer, Session],
) -> None:
    peer, session = joined
    held: asyncio.Queue[bytes] = asyncio.Queue()

    def hold(_: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        is_barrier = isinstance(what, messages.Other) and what.type == MessageType.BARRIER_REQUEST
        if is_barrier:
            held.put_nowait(message(MessageType.BARRIER_REPLY, what.xid))
        return is_barrier

    peer.answer = hold
    task = asyncio.create_task(session.apply(Change(add=(FLOW,), remove=(OLD,)), 0.0))
    reply = await held.get()
    assert [m.flow.key for m in peer.applied] == [FLOW.key]
    assert held.empty()
    peer.say(reply)
    reply = await held.get()
    assert [m.flow.key for m in peer.applied] == [FLOW.key, OLD.key]
    assert not task.done()
    peer.say(reply)
    await task


async def test_what_was_taken_of_a_change_is_told_with_the_rejection(
    joined: tuple[OpenFlowPeer, Session],
) -> None:
    peer, session = joined

    def reject(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.FlowMod) and what.flow.table == FLOW.table:
            p.say(encode.error(what.xid, 5, 1, raw[:64]))
            return True
        return False

    peer.answer = reject
    group = Group(7, ((Output(1),),))
    with pytest.raises(Rejected) as caught:
        await session.apply(Change(add=(FLOW, LATER), remove=(OLD,), groups=(group,)), 0.0)
    assert caught.value.errors == (
        "add flow (table 20, priority 7, in_port=1): OFPET_FLOW_MOD_FAILED OFPFMFC_TABLE_FULL",
    )
    taken = {key: entry for part in caught.value.taken for key, entry in part.entries.items()}
    assert taken == {("group", 7): group, LATER.key: LATER}, "and nothing has been removed"
    peer.answer = lambda p, what, raw: False
    await session.apply(Change(add=(FLOW,)), 0.0)  # The session is as good as before.


async def test_of_a_change_that_cannot_be_said_nothing_is_made(
    joined: tuple[OpenFlowPeer, Session],
) -> None:
    """However much stands before what OpenFlow cannot express: nobody would know what the switch has."""
    peer, session = joined
    many = tuple(replace(FLOW, match=match(in_port=port)) for port in range(1, BATCH + 2))
    unsayable = replace(FLOW, priority=1, cookie=1 << 64)
    with pytest.raises(ValueError, match="cannot be put in a flow-mod"):
        await session.apply(Change(add=(*many, unsayable)), 0.0)
    await session.barrier()
    assert peer.applied == []


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (messages.MeterMod, "meter 3"),
        (messages.GroupMod, "group 7"),
    ],
)
async def test_a_rejection_says_what_was_rejected(
    kind: type[Any], what: str, joined: tuple[OpenFlowPeer, Session]
) -> None:
    peer, session = joined

    def reject(p: OpenFlowPeer, heard: Any, raw: bytes) -> bool:
        if type(heard) is kind:
            p.say(encode.error(heard.xid, 1, 1, b""))
            return True
        return False

    peer.answer = reject
    group, meter = Group(7, ((Output(1),),)), Meter(3, 1, 1)
    through = replace(FLOW, actions=(ToGroup(7),), meter=3)
    with pytest.raises(Rejected, match=f"^{what}: OFPET_BAD_REQUEST"):
        await session.apply(Change(add=(through,), groups=(group,), meters=(meter,)), 0.0)


# ---- several controllers ----


async def test_that_another_one_has_become_master_shows_in_what_is_rejected(
    joined: tuple[OpenFlowPeer, Session], handler: SwitchRecorder
) -> None:
    """1.4 has a message for it (ROLE_STATUS), 1.3 has none."""
    peer, session = joined

    def is_slave(p: OpenFlowPeer, what: Any, raw: bytes) -> bool:
        if isinstance(what, messages.FlowMod):
            p.say(encode.error(what.xid, 1, 10, raw[:64]))
            return True
        return False

    peer.answer = is_slave
    with pytest.raises(ConnectionError):
        await session.apply(Change(add=(FLOW,)), 0.0)
    assert (await handler.next("disconnected"))[1] == "another controller is its master now"

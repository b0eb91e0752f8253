"""The parsers of what comes from outside: one line of PARSERS for each."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Any

import msgspec

from fuzz import samples
from fuzz.mutate import damaged, damaged_json
from retinue.agent.content import wire as content
from retinue.agent.renewal.standalone.lease_desk import answer_of, lease_of_answer
from retinue.agent.renewal.standalone.qemu_watch import nics_of
from retinue.controller.tracing import LEAST_FRAME
from retinue.core.limits import LEAST_MTU
from retinue.core.model import Network
from retinue.core.packets import (
    FrameError,
    build_dhcp,
    icmp,
    icmpv6,
    parse,
    parse_arp,
    parse_dhcp_frame,
    parse_ipv6,
    parse_nd,
    parse_udp4,
    summarize,
)
from retinue.core.packets.dhcp6 import (
    kept_options6,
    options_of_lease,
    parse_dhcp6,
    parse_relayed6,
    parse_udp6_frame,
)
from retinue.core.packets.dhcp_messages import kept_options, name_servers, name_servers_text
from retinue.core.packets.fip import parse_fip
from retinue.core.packets.ipv4 import fragments
from retinue.core.packets.lldp import parse_lldp
from retinue.core.pipeline.compiler import Compiler
from retinue.core.tracing import Place, place_named, trace
from retinue.hypervisor.memory_channel import Channel, ChannelError
from retinue.protocol import migrations, mobility, nics, pairs, traces, vms, vnets
from retinue.protocol.errors import RecordError
from retinue.protocol.events import EventType, controller_event
from retinue.protocol.migrations import MigrationRecord, Order
from retinue.protocol.records import record
from retinue.protocol.renewals import RenewalOrder
from retinue.protocol.sse import Lines
from retinue.protocol.sse import Parser as EventParser
from retinue.southbound.openflow.codec.decode import decode
from retinue.southbound.openflow.codec.wire import Framer, ProtocolError
from retinue.southbound.ovsdb import vm_ports, wire
from retinue.southbound.ovsdb.client import OvsdbError
from retinue.southbound.ovsdb.replica import Replica
from retinue.southbound.routers.link import answer_of as answer_of_router
from retinue.southbound.routers.session import table_of
from support.fabric import networks

Damage = Callable[[bytes, Sequence[bytes], Random], bytes]


@dataclass(frozen=True)
class Parser:
    """Something that reads bytes of others."""

    name: str
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    """What it declares to raise."""
    samples: Callable[[], list[bytes]]
    damage: Damage = damaged
    mend: Callable[[bytes], bytes] | None = None
    """Makes lengths and checksums right, which every second input gets."""


# ---- frames ----


def _arp(payload: bytes) -> object:
    return parse_arp(payload)


def _dhcp(frame: bytes) -> object:
    """The message, and all that is asked of it later."""
    message = parse_dhcp_frame(frame)[2]
    return (
        message.message_type, message.requested_address, message.server_id, message.lease_time,
        message.client_id, message.relay_agent, message.message, message.all_options, kept_options(message),
        build_dhcp(message), name_servers_text(name_servers(message)),
    )  # fmt: skip


def _dhcp6(payload: bytes) -> object:
    """The message, and all that is asked of it later."""
    message = parse_dhcp6(payload)
    return message.addresses, kept_options6(message), options_of_lease(message), message.build()


def _frame(frame: bytes) -> object:
    """What is read of any frame that a switch hands up, whatever is in it; its summary is for people."""
    summary = summarize(frame)
    payload = parse(frame).payload
    with suppress(FrameError):
        icmp.time_exceeded(payload, IPv4Address("10.1.0.254"))
    with suppress(FrameError):
        fragments(payload, LEAST_MTU)
    with suppress(FrameError):
        icmpv6.time_exceeded(payload, IPv6Address("fd00:1::fe"))
    return summary


# ---- switches ----


def _openflow(data: bytes) -> object:
    return decode(data)


def _openflow_stream(data: bytes) -> object:
    """A stream that comes in pieces."""
    framer = Framer(4096)
    at, found = len(data) // 3, []
    for piece in (data[:at], data[at : 2 * at], data[2 * at :]):
        found += [decode(message) for message in framer.feed(piece)]
    return found


def _json_rpc(data: bytes) -> object:
    framer = wire.Framer(1 << 20)
    at = len(data) // 3
    return [wire.decode(m) for piece in (data[:at], data[at:]) for m in framer.feed(piece)]


class _Scripted:
    """A connection whose other end has its answers ready."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers
        self.takes: dict[str, Any] = {}

    async def call(self, method: str, params: Any, timeout: Any, on_reply: Callable[[Any], object]) -> None:
        del method, params, timeout
        on_reply(self.answers.pop(0) if self.answers else None)

    def on_notification(self, method: str, take: Any) -> None:
        self.takes[method] = take


_COLUMNS = {table: list(held["columns"]) for table, held in samples.SCHEMA["tables"].items()}


def _replica(data: bytes) -> object:
    """A switch's database as it is followed, and what is read in it."""
    said = wire.decode(b'{"params": %s}' % data).params
    schema, contents, *updates = said if isinstance(said, list) and len(said) > 1 else [said, said]
    replica = Replica("db", _COLUMNS)
    connection = _Scripted([schema, contents])
    with suppress(StopIteration):
        replica.start(connection).send(None)  # type: ignore[arg-type]
    found: list[object] = []
    for update in [None, *updates]:
        if isinstance(update, list):
            connection.takes["update3"](update)
        found += [vm_ports.ovs_version(replica.tables), vm_ports.bridges(replica.tables)]
        found.append(vm_ports.interfaces(replica.tables))
    return found


# ---- agents and managers ----

_EVENTS = (*EventType, *Order, "anything")
_BODIES = tuple(
    kind
    for module in (migrations, mobility, nics, pairs, traces, vms, vnets)
    for name, kind in sorted(vars(module).items())
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and name.endswith("Body")
)


def _events(data: bytes) -> object:
    """As an event of several types: one of them has to be right."""
    found = []
    for type in (_EVENTS[len(data) % len(_EVENTS)], Order.OPEN_TARGET, EventType.VM_RENEW):
        with suppress(RecordError):
            found.append(controller_event(type, data))
    if not found:
        raise RecordError("an event of no type")
    for event in found:
        if event.renewal is not None:
            record(RenewalOrder, event.renewal)
    return found


def _json(data: bytes) -> Any:
    """As the client of the REST interface reads an answer."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise RecordError("not JSON") from error


def _renewal(data: bytes) -> object:
    return record(RenewalOrder, _json(data))


def _records(data: bytes) -> object:
    value = _json(data)
    with suppress(RecordError):
        return record(list[MigrationRecord], value)
    return record(list[vms.VMRecord], value)


def _body(data: bytes) -> object:
    """Each body is read as each kind: which it is meant to be, a request's path says."""
    for kind in _BODIES:
        with suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):  # See controller/api/http.py.
            msgspec.json.decode(data, type=kind)
    return None


_LOOP = asyncio.new_event_loop()


def _agents(data: bytes) -> object:
    """A connection between agents, from its first byte to its end."""
    reader = asyncio.StreamReader(loop=_LOOP)
    reader.feed_data(data)
    reader.feed_eof()
    channel = Channel(reader, None)  # type: ignore[arg-type]
    found: list[object] = []
    while not reader.at_eof():
        found.append(_LOOP.run_until_complete(channel.receive()))
    for said in found:
        for ask in (content.number, content.numbers):
            if isinstance(said, dict):
                with suppress(ChannelError):
                    ask(said, 100)
    return found


def _lease_of_peer(data: bytes) -> object:
    """As the channel between agents has read it."""
    try:
        said = json.loads(data)
    except RecursionError as error:  # As Channel.receive.
        raise ValueError("nested too deep") from error
    if not isinstance(said, dict):
        raise ValueError("no message")
    return answer_of(lease_of_answer(said, 1000.0), 1000.0)


def _event_stream(data: bytes) -> object:
    lines, parser = Lines(1000), EventParser()
    at = len(data) // 2
    return [parser.line(line) for piece in (data[:at], data[at:]) for line in lines.feed(piece)]


@cache
def _network() -> tuple[Network, Compiler, tuple[Place, ...]]:
    """vm1 with both families at server1, vm2 at server2; ports of each kind of switch."""
    net = networks.fabric()
    networks.add_ipv6(net)
    for number, at in ((1, 1), (2, 2)):
        networks.add_vm(net, number, at)
        net.assign(networks.holding6(number))
    compiler = Compiler(net)
    compiler.update(net.everything())
    ports = (("edge1", "tap1"), ("edge1", "up0"), ("edge1", "LOCAL"), ("leaf2", "router"), ("spine1", "l1"))
    return net, compiler, tuple(place_named(net, switch, port) for switch, port in ports)


def _trace(frame: bytes) -> object:
    """A frame that somebody asks about, at one of the ports; a header it has (controller/tracing.py)."""
    net, compiler, places = _network()
    if len(frame) < LEAST_FRAME:
        return None
    at = places[sum(frame) % len(places)]
    return trace(net, lambda name: compiler.program(name).values(), at, frame).ends


def _router(data: bytes) -> object:
    """What a router's adapter says."""
    return table_of(answer_of_router(data).routes)


def _fip(data: bytes) -> None:
    said = parse_fip(data)
    _ = said.service, said.ports, said.mac


def _lldp(data: bytes) -> None:
    said = parse_lldp(data)
    _ = said.gateway_mac, said.evb_mode
    assert parse_lldp(said.build()) == said


# ---- the list ----

FRAME, JSON = (FrameError,), damaged_json
PARSERS = (
    Parser("arp", _arp, FRAME, samples.arp),
    Parser("ipv4", parse_udp4, FRAME, samples.udp4, mend=samples.mended_ipv4),
    Parser("dhcpv4", _dhcp, FRAME, samples.dhcp, mend=samples.mended_frame),
    Parser("dhcpv6", _dhcp6, FRAME, samples.dhcp6),
    Parser("dhcpv6-relay", parse_relayed6, FRAME, samples.relayed6),
    Parser("dhcpv6-frame", parse_udp6_frame, FRAME, samples.dhcp6_frames, mend=samples.mended_frame),
    Parser("ipv6", parse_ipv6, FRAME, samples.ipv6, mend=samples.mended_ipv6),
    Parser("nd", parse_nd, FRAME, samples.nd, mend=samples.mended_ipv6),
    Parser("ra", parse_nd, FRAME, samples.router_advertisements, mend=samples.mended_ipv6),
    Parser("fip", _fip, FRAME, samples.fip),
    Parser("lldp", _lldp, FRAME, samples.lldp),
    Parser("frame", _frame, FRAME, samples.frames, mend=samples.mended_frame),
    Parser("trace", _trace, (), samples.frames, mend=samples.mended_frame),
    Parser("openflow", _openflow, (ProtocolError,), samples.openflow, mend=samples.mended_openflow),
    Parser("openflow-stream", _openflow_stream, (ProtocolError,), samples.openflow),
    Parser("json-rpc", _json_rpc, (wire.ProtocolError,), samples.json_rpc, JSON),
    Parser("ovsdb", _replica, (wire.ProtocolError, OvsdbError), samples.ovsdb_updates, JSON),
    Parser("events", _events, (RecordError,), samples.events, JSON),
    Parser("event-stream", _event_stream, (), samples.event_stream),
    Parser("renewals", _renewal, (RecordError,), samples.renewals, JSON),
    Parser("records", _records, (RecordError,), samples.vms, JSON),
    Parser("bodies", _body, (), samples.bodies, JSON),
    Parser("leases-of-peers", _lease_of_peer, (ValueError,), samples.leases_of_peers, JSON),
    Parser("routers", _router, (ValueError, ConnectionError), samples.routers, JSON),
    Parser("qemu-network", lambda data: nics_of(data.decode("latin-1")), (), samples.qemu_network),
    Parser("agents", _agents, (ChannelError,), samples.between_agents),
)
"""Whatever else comes: one line each, and its samples."""

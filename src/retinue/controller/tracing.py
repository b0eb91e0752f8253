"""Traces of frames: through the entries that switches should hold, or those that are read back from them.

The way is followed by `core.tracing`; here it is found out what is asked, and which entries there are.
Switches are only read: nothing is sent to them, nothing is mended.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from retinue.controller.audit import Auditor
from retinue.controller.context import Context
from retinue.controller.errors import RequestError, no_server, no_vm
from retinue.controller.switches.readback import SwitchSession, in_parts, with_end
from retinue.core.limits import MOST_TRACES
from retinue.core.model import IP, NIC, VM, mac
from retinue.core.packets import summarize
from retinue.core.pipeline.diff import agrees
from retinue.core.pipeline.entry import Entry, Flow, FlowKey
from retinue.core.text import quoted
from retinue.core.tracing import (
    Fate,
    Place,
    Question,
    Trace,
    follow,
    frame_of,
    joined,
    place_named,
    place_of_nic,
    tell,
)
from retinue.core.tracing.forgeries import frame_of_forgery, id_of
from retinue.core.tracing.trace import Passed
from retinue.core.tracing.words import entry_words
from retinue.protocol.errors import ErrorCode
from retinue.protocol.traces import TraceBody
from retinue.southbound.openflow.server import Rejected

LEAST_FRAME = 14
"""Bytes: an Ethernet header."""


NO_FORGERY = (
    "what the log keeps of it is no forgery: something else in it was wrong, or it has become right since"
)


class NotReadError(Exception):
    """A frame comes to a switch whose entries have not been read."""

    def __init__(self, switch: str) -> None:
        super().__init__(switch)
        self.switch = switch


@dataclass(frozen=True, slots=True)
class Held:
    """What a switch was found to hold, with the packets that each flow entry has matched."""

    entries: tuple[Entry, ...]
    packets: Mapping[FlowKey, int] = field(default_factory=dict)
    unread: str = ""
    """Why its entries are those it should hold instead."""


class Turns:
    """One at a time has a turn, and only so many wait for theirs."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = asyncio.Lock()
        self._there = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Raises RequestError when too many wait already."""
        if self._there >= MOST_TRACES:
            raise RequestError(
                f"{MOST_TRACES} traces wait {self._what} already; ask again", ErrorCode.NOT_AUDITED
            )
        self._there += 1
        try:
            async with self._lock:
                yield
        finally:
            self._there -= 1


class Tracer:
    """Answers what becomes of a frame. One trace at a time is followed, in a thread beside the event loop: a
    spine has an entry for every VM. One at a time reads switches; the others do not wait for that."""

    def __init__(self, context: Context, auditor: Auditor) -> None:
        self._context = context
        self._auditor = auditor
        self._to_read = Turns("to read switches")
        self._to_follow = Turns("to be followed")

    async def answer(self, asked: TraceBody) -> dict[str, Any]:
        """The trace, ready to be shown. Raises ModelError, RequestError among them."""
        at, frame, notes = self._asked(asked)
        if not asked.live:
            return self._shown(*await self._expected(asked, at, frame, notes))
        async with self._to_read.turn():
            expected, notes = await self._expected(asked, at, frame, notes)
            found, held = await self._follow(at, frame)
        return {**self._shown(expected, notes), "live": self._compared(expected, found, held)}

    async def _expected(
        self, asked: TraceBody, at: Place, frame: bytes, notes: tuple[str, ...]
    ) -> tuple[Trace, tuple[str, ...]]:
        """By the entries that switches should hold; and what there is to say of the frame."""
        found = await self._followed(self._wanted, at, frame)
        is_forgery = any(end.reported or end.fate is Fate.TOLD for end in found.ends)
        return found, notes if is_forgery or not asked.forgery else (*notes, NO_FORGERY)

    async def _followed(self, entries_of: Callable[[str], Iterable[Entry]], at: Place, frame: bytes) -> Trace:
        ways_between = joined(self._context.net)
        async with self._to_follow.turn():
            ways = await asyncio.to_thread(follow, entries_of, ways_between, at, frame)
        return tell(self._context.net, at, frame, ways)

    # ---- what is asked ----

    def _asked(self, asked: TraceBody) -> tuple[Place, bytes, tuple[str, ...]]:
        """Where the frame comes in, the frame, and what there is to say of it."""
        if bool(asked.vm) + bool(asked.at) + bool(asked.forgery) != 1:
            raise RequestError("say from where: from a VM, at a port, or which forgery; one of them")
        if asked.forgery:
            return self._forgery(asked.forgery)
        at = self._place(asked)
        if bool(asked.frame) == bool(asked.to):
            raise RequestError("say what is sent: to which address, or the whole frame; one of them")
        if asked.frame:
            frame = bytes.fromhex(asked.frame)
            if len(frame) < LEAST_FRAME:
                raise RequestError(f"a frame of {len(frame)} bytes has no Ethernet header, which is 14")
            return at, frame, ()
        dst = self._address(asked.to)
        question = Question(
            dst, asked.kind, asked.port,
            src=_ip(asked.src) if asked.src else None,
            src_mac=mac(asked.src_mac) if asked.src_mac else "",
            dst_mac=mac(asked.dst_mac) if asked.dst_mac else "",
            ttl=asked.ttl,
        )  # fmt: skip
        frame, notes = frame_of(self._context.net, at, question)
        return at, frame, notes

    def _place(self, asked: TraceBody) -> Place:
        net = self._context.net
        if asked.at:
            switch, _, port = asked.at.rpartition(":")
            if switch not in net.switches:
                raise RequestError(
                    f"{quoted(asked.at)} is no port: it is written SWITCH:PORT; "
                    "`retinue switch list` shows the switches",
                    ErrorCode.UNKNOWN_SWITCH,
                )
            found = place_named(net, switch, port)
            return replace(found, vlan=asked.vlan) if asked.vlan else found
        vm = self._vm(asked.vm)
        if asked.server and asked.server not in net.servers:
            raise no_server(quoted(asked.server))
        return place_of_nic(net, vm, self._nic(vm, asked.nic), asked.server)

    def _vm(self, id: str) -> VM:
        vm = self._context.net.vms.get(id)
        if vm is None:
            raise no_vm(quoted(id))
        return vm

    def _nic(self, vm: VM, id: str) -> NIC:
        nic = vm.nic_called(id) if id else vm.nic
        if nic is None:
            known = ", ".join(one.port_id for one in vm.nics)
            raise RequestError(f"VM {vm.id} has no NIC {quoted(id)}, but: {known}", ErrorCode.UNKNOWN_NIC)
        return nic

    def _address(self, text: str) -> IP:
        """An address, or the first one of a VM."""
        vm = self._context.net.vms.get(text)
        if vm is None:
            return _ip(text)
        held = [one for one in self._context.net.held_by(vm.id) if one.prefix is None]
        if not held:
            raise RequestError(f"VM {vm.id} has no address to send to; `retinue vm show {vm.id}` says why")
        return held[0].ip

    def _forgery(self, id: str) -> tuple[Place, bytes, tuple[str, ...]]:
        row = next((row for row in self._context.spoof_attempts.rows() if id_of(row) == id), None)
        if row is None or row.switch not in self._context.net.switches:
            raise RequestError(
                f"there is no spoofing attempt {quoted(id)} in the log; "
                "`retinue binding spoofing` shows those there are"
            )
        return frame_of_forgery(self._context.net, row)

    # ---- which entries ----

    def _wanted(self, switch: str) -> Iterable[Entry]:
        """As they are at this moment: the compiler may change them while they are looked at."""
        programmer = self._context.installer.switches[switch]
        entries = self._context.compiler.program(switch).whole().values()
        return tuple(entry for entry in entries if programmer.lacking.is_given(entry))

    def _compared(self, expected: Trace, found: Trace, held: Mapping[str, Held]) -> dict[str, Any]:
        packets = {name: switch.packets for name, switch in held.items() if not switch.unread}
        unread = {name: switch.unread for name, switch in held.items() if switch.unread}
        shown = self._shown(found, (), packets)
        return {**shown, "unread": unread, "differs": self._differences(expected, found, held)}

    async def _follow(self, at: Place, frame: bytes) -> tuple[Trace, dict[str, Held]]:
        """Read each switch that the frame comes to, once."""
        held: dict[str, Held] = {}

        def entries_of(switch: str) -> Iterable[Entry]:
            if switch not in held:
                raise NotReadError(switch)
            return held[switch].entries

        while True:
            try:
                return await self._followed(entries_of, at, frame), held
            except NotReadError as error:
                held[error.switch] = await self._read(error.switch)

    async def _read(self, switch: str) -> Held:
        session, busy = self._context.session(switch), self._auditor.kept_from(switch)
        if busy:
            return Held(tuple(self._wanted(switch)), unread=busy)
        if session is None:
            return Held(tuple(self._wanted(switch)), unread="it is not connected")
        try:
            return await _entries_of(session, self._context.clock())
        except (ConnectionError, TimeoutError, Rejected) as error:
            return Held(tuple(self._wanted(switch)), unread=f"it cannot be read: {error}")

    # ---- what is said ----

    def _differences(self, expected: Trace, found: Trace, held: Mapping[str, Held]) -> list[str]:
        """Of the entries that the frame meets, or should, those that are not as they should be."""
        said: list[str] = []
        for hop in expected.hops:
            have = {entry.key: entry for entry in _flows(hop.switch, held)}
            for flow in hop.matched if hop.switch in held else ():
                if flow.key not in have:
                    said.append(f"{hop.switch} lacks {_called(hop, flow)}")
                elif not agrees(flow, have[flow.key]):
                    said.append(f"{hop.switch} has {_called(hop, flow)} otherwise than it should")
        for hop in found.hops:
            wanted = self._context.compiler.program(hop.switch)
            said += [
                f"{hop.switch} has what it should not: {_called(hop, flow)}"
                for flow in hop.matched
                if flow.key not in wanted
            ]
        ends = [{(end.fate, end.who) for end in one.ends} for one in (expected, found)]
        if ends[0] != ends[1]:
            said.append("and so it ends otherwise than it should")
        return list(dict.fromkeys(said))

    def _shown(
        self, found: Trace, notes: tuple[str, ...], packets: Mapping[str, Mapping[FlowKey, int]] | None = None
    ) -> dict[str, Any]:
        return {
            "at": {"switch": found.at.switch, "port": found.at.port, "name": found.at.name},
            "frame": found.frame.hex(),
            "summary": summarize(found.frame),
            "notes": list(notes),
            "hops": [self._hop(hop, packets) for hop in found.hops],
            "ends": list(found.ends),
            "passes": found.passes,
            "ways": found.ways,
            "others": list(found.others),
        }

    def _hop(self, hop: Passed, packets: Mapping[str, Mapping[FlowKey, int]] | None) -> dict[str, Any]:
        """`packets`: None for entries as they should be, each with whether it is confirmed."""
        programmer = self._context.installer.switches[hop.switch]
        entries = []
        for flow, entry in zip(hop.matched, hop.entries, strict=True):
            shown: dict[str, Any] = {name: getattr(entry, name) for name in entry.__slots__}
            shown["owners"] = sorted(str(owner) for owner in self._context.compiler.owners_of(flow.cookie))
            if packets is None:
                shown["confirmed"] = programmer.confirmed(flow.key)
            else:
                shown["packets"] = packets.get(hop.switch, {}).get(flow.key)
            entries.append(shown)
        return {
            "switch": hop.switch, "role": hop.role, "port": hop.port, "in_port": hop.in_port,
            "frame": hop.data.hex(), "summary": hop.frame, "entries": entries, "sent": list(hop.sent),
        }  # fmt: skip


def _flows(switch: str, held: Mapping[str, Held]) -> list[Flow]:
    return [entry for entry in held[switch].entries if isinstance(entry, Flow)] if switch in held else []


def _called(hop: Passed, flow: Flow) -> str:
    words = entry_words(hop.role, flow, None)
    return f"{words.table_name} {words.priority_name} ({words.priority}) {words.match}"


async def _entries_of(session: SwitchSession, now: float) -> Held:
    """What a switch holds, with the packets of each flow entry. Raises what the session raises."""
    entries: list[Entry] = [*(await session.read_groups()).values(), *(await session.read_meters()).values()]
    packets: dict[FlowKey, int] = {}
    async for part in in_parts(await session.read_flows()):
        entries += [with_end(stats, now) for stats in part]
        packets.update((stats.flow.key, stats.packets) for stats in part)
    return Held(tuple(entries), packets)


def _ip(text: str) -> IP:
    try:
        return ip_address(text)
    except ValueError as error:
        raise RequestError(f"{quoted(text)} is neither an IP address nor a VM's id") from error

"""For which VMs a gateway stands in: since when, what still comes by it, and for how long home lets it.

A VM that is in another domain is reached through its home's gateway alone, and sends through it (see
core.pipeline.gateway): home is its anchor until it comes back, or until home ends that, by a manager's word
or by what was set for it. Then its traffic is dropped at the gateway, and counted there, though it runs on
where it is; its name and its addresses stay its own. What passes a gateway is read from that switch's own
counters, of no more than ENTRIES_A_SECOND of its entries, and only while a VM is away, or a guest.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from retinue.controller.changes import Change, Published
from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.errors import RequestError, no_vm
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.controller.state import State, Storable
from retinue.controller.switches.readback import SwitchSession, in_parts
from retinue.core.model import IP
from retinue.core.model.domains import HomeAnchor, Place, place_of, places
from retinue.core.model.network import NOTHING, Touched
from retinue.core.pipeline.cookies import COOKIE_MARK
from retinue.core.pipeline.entry import Field, Flow, FlowKey
from retinue.core.pipeline.priorities import Deliver, EdgeAdmit
from retinue.core.pipeline.tables import Table
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.southbound.openflow.codec.messages import FlowStats
from retinue.southbound.openflow.server import Rejected

LOOK_SECONDS = 5.0
"""Between two looks at who is away, and at what passes the gateways."""
ENTRIES_A_SECOND = 500
"""Of one gateway that are read: one with more is read less often than it is looked at."""
ALL_OURS = COOKIE_MARK, 0xFFFF << 48


_WAYS = {
    (int(Table.DELIVER), int(Deliver.VM)): True,
    (int(Table.ADMIT), int(EdgeAdmit.FROM_TUNNEL)): True,
    (int(Table.ADMIT), int(EdgeAdmit.BOUND)): False,
    (int(Table.DELIVER), int(Deliver.GUEST)): False,
}
"""Of a gateway's entries those that count: whether what is for a VM, or what it sends."""


@dataclass(frozen=True, slots=True)
class AnchorSet(Change):
    """A VM is away, or a guest, from now on; or what was said of its anchor is another. `said`: what became
    of it, "" for a change of its limits alone."""

    anchor: HomeAnchor
    said: str = ""
    domain: str = ""

    def apply(self, state: State) -> Touched | None:
        if state.home_anchors.get(self.anchor.vm) == self.anchor:
            return None
        state.home_anchors[self.anchor.vm] = self.anchor
        if self.anchor.ended is not None:
            return state.net.end_anchor(self.anchor.vm)
        return state.net.take_anchor(self.anchor.vm)

    def kept(self) -> tuple[Storable, ...]:
        return (self.anchor,)

    def events(self, state: State) -> Iterator[Published]:
        if self.said:
            about = {"vm": self.anchor.vm, "domain": self.domain, "state": self.said}
            yield EventType.ANCHOR, {**about, "reason": self.anchor.why}


@dataclass(frozen=True, slots=True)
class AnchorGone(Change):
    """The VM is at home again, has left, or is no more."""

    anchor: HomeAnchor

    def apply(self, state: State) -> Touched | None:
        if state.home_anchors.pop(self.anchor.vm, None) is None:
            return None
        return state.net.take_anchor(self.anchor.vm) or NOTHING

    def dropped(self) -> tuple[Storable, ...]:
        return (self.anchor,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.ANCHOR, {"vm": self.anchor.vm, "domain": "", "state": "gone", "reason": ""}


@dataclass(slots=True)
class Counted:
    """What has passed a gateway for one VM since this controller has looked: packets and bytes."""

    arrived: list[int] = field(default_factory=lambda: [0, 0])
    """For the VM, and sent on."""
    sent: list[int] = field(default_factory=lambda: [0, 0])
    """By it."""
    dropped: list[int] = field(default_factory=lambda: [0, 0])
    """For it or by it, after its anchor was ended."""
    last: float | None = None
    """When something had come for it; to LOOK_SECONDS."""
    read: float | None = None
    """When the gateway said so."""
    since: float = 0.0
    """When it was taken up again, after it had been ended."""


class Anchors:
    """Follows who is away; ends what is to end."""

    def __init__(self, context: Context, orchestrator: MigrationOrchestrator) -> None:
        self._context = context
        self._net = context.net
        self._orchestrator = orchestrator
        self._of = context.state.home_anchors
        self._counted: dict[str, Counted] = {}
        self._before: dict[str, dict[FlowKey, tuple[int, int]]] = {}
        """By gateway's switch and entry: what was read last."""
        self._next: dict[str, float] = {}
        """By that switch: when it may be read again."""
        self._reading: set[str] = set()

    # ---- who is away ----

    def follow(self) -> None:
        """Whoever is away by now, and has not been; and whoever is not any more."""
        table = self._table()
        for vm in [vm for vm in self._of if vm not in table]:
            self._gone(vm)
        for vm, row in table.items():
            if vm not in self._of:
                self._begun(row)

    def _table(self) -> dict[str, Place]:
        return {row.vm: row for row in places(self._net)} if self._net.peers else {}

    def _row_of(self, vm: str) -> Place | None:
        """Of many that are removed at once not one has the whole table made."""
        known = self._net.vms.get(vm)
        return None if known is None or not self._net.peers else place_of(self._net, known)

    def look_at(self, vm: str) -> None:
        """Its migration has ended, or it is no more."""
        row = self._row_of(vm)
        if row is None:
            self._gone(vm)
        elif vm not in self._of:
            self._begun(row)

    def _begun(self, row: Place) -> None:
        peer = self._net.peers.get(row.domain)
        idle = 0.0 if row.home or peer is None else peer.anchor_idle
        self._counted[row.vm] = Counted()
        self._do(AnchorSet(HomeAnchor(row.vm, self._context.clock(), idle=idle), "begun", row.domain))

    def _gone(self, vm: str) -> None:
        self._counted.pop(vm, None)
        if vm in self._of:
            self._do(AnchorGone(self._of[vm]))

    def _do(self, change: Change) -> None:
        touched = self._context.apply(change)
        if touched:
            self._context.spawn(self._context.install(touched), "anchor of a VM")

    # ---- what managers say ----

    async def set(
        self, vm: str, ended: bool | None = None, idle: float | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        """Change what is given; returns when the switches have it. `seconds`: from now on; 0: without end.
        Raises RequestError."""
        row = self._row(vm)
        if row.home:
            raise RequestError(f"VM {vm} is a guest: its anchor is its home's, domain {row.home}; ask there")
        if ended is not None and (under_way := self._orchestrator.of_vm(vm)) is not None:
            raise RequestError(
                f"VM {vm} is being migrated: {under_way.id} is {under_way.state}",
                ErrorCode.MIGRATION_UNDER_WAY,
            )
        now, before = self._context.clock(), self._of[vm]
        anchor = before
        if idle is not None:
            anchor = replace(anchor, idle=idle)
        if seconds is not None:
            anchor = replace(anchor, until=now + seconds if seconds else None)
        said = ""
        if ended is False and anchor.ended is not None:
            anchor, said = replace(anchor, ended=None, why=""), "resumed"
            if seconds is None and anchor.until is not None and anchor.until <= now:
                anchor = replace(anchor, until=None)  # Or it would end again at once.
            self._counted.setdefault(vm, Counted()).since = now
        elif ended and anchor.ended is None:
            anchor, said = replace(anchor, ended=now, why="a manager's word"), "ended"
        await self._context.commit(AnchorSet(anchor, said, row.domain))
        return self.shown_of(vm)

    # ---- what passes ----

    async def look(self) -> None:
        """Now and then."""
        self.follow()
        self._end_what_is_due()
        now = self._context.clock()
        for switch in sorted({self._gateway(row) for row in self._table().values()} - self._reading):
            session = self._context.session(switch)
            if session is not None and self._next.get(switch, 0.0) <= now:
                self._reading.add(switch)
                self._context.spawn(self._read(switch, session), f"counts of gateway {switch}")

    async def _read(self, switch: str, session: SwitchSession) -> None:
        try:
            found = await session.read_flows(*ALL_OURS)
            self._next[switch] = self._context.clock() + len(found) / ENTRIES_A_SECOND
            rows = [row for row in self._table().values() if self._gateway(row) == switch]
            vms = {ip: row.vm for row in rows for ip in row.addresses}
            before = self._before.get(switch)
            now: dict[FlowKey, tuple[int, int]] = {}
            async for part in in_parts(found):
                now |= self._count(part, vms, before)
            self._before[switch] = now
            for vm in set(vms.values()):
                if vm in self._counted:
                    self._counted[vm].read = self._context.clock()
        except (ConnectionError, TimeoutError, Rejected):
            self._context.counters[Count.ANCHORS_NOT_COUNTED] += 1
            return
        finally:
            self._reading.discard(switch)
        self._end_what_is_idle(set(vms.values()))

    def _count(
        self, found: Iterable[FlowStats], vms: dict[IP, str], before: dict[FlowKey, tuple[int, int]] | None
    ) -> dict[FlowKey, tuple[int, int]]:
        """`before`: what was read last, None: nothing since the start. Entries outlive a controller, and what
        they had counted for one that was away by then has come earlier."""
        began = self._context.began or 0.0
        read: dict[FlowKey, tuple[int, int]] = {}
        for stats in found:
            way = _passes(stats.flow)
            vm = None if way is None else vms.get(way[1])
            if way is None or vm is None or vm not in self._of:
                continue
            key = stats.flow.key
            earlier = before is None and self._of[vm].since < began
            last = (stats.packets, stats.bytes) if earlier else (before or {}).get(key, (0, 0))
            if stats.packets < last[0]:
                last = (0, 0)  # It was made anew.
            read[key] = stats.packets, stats.bytes
            more = stats.packets - last[0], stats.bytes - last[1]
            self._add(vm, way[0], *more)
        return read

    def _add(self, vm: str, arrived: bool, packets: int, bytes: int) -> None:
        counted = self._counted.setdefault(vm, Counted())
        ended = self._of[vm].ended is not None
        to = counted.dropped if ended else counted.arrived if arrived else counted.sent
        to[0] += packets
        to[1] += bytes
        if packets and arrived:
            counted.last = self._context.clock()

    def _gateway(self, row: Place) -> str:
        """The switch whose tunnel it is reached by, or, a guest, sends by."""
        peer = self._net.peers.get(row.home or row.domain)
        server = None if peer is None else self._net.servers.get(peer.gateway)
        return "" if server is None else server.edge

    # ---- what ends ----

    def _end_what_is_due(self) -> None:
        now = self._context.clock()
        for vm, one in list(self._of.items()):
            if one.until is not None and one.until <= now:
                self._end(vm, "its time is over")

    def _end_what_is_idle(self, vms: Collection[str]) -> None:
        """Only of what was read just now: a switch that does not answer says nothing of what passes it."""
        now = self._context.clock()
        for vm in self._of.keys() & vms:
            one, counted = self._of[vm], self._counted.get(vm, Counted())
            # Before it was started, this controller has not looked.
            quiet_since = max(one.since, self._context.began or 0.0, counted.since, counted.last or 0.0)
            if one.idle and now - quiet_since >= one.idle:
                self._end(vm, f"nothing has come for it for {one.idle:g} s")

    def _end(self, vm: str, why: str) -> None:
        one, row = self._of[vm], self._row_of(vm)
        if row is None or row.home or one.ended is not None or self._orchestrator.of_vm(vm) is not None:
            return  # One that comes home meanwhile is looked at when it has, or has not.
        self._do(AnchorSet(replace(one, ended=self._context.clock(), why=why), "ended", row.domain))

    # ---- what is shown ----

    def shown(self) -> list[dict[str, Any]]:
        self.follow()
        return [self._shown(row) for row in self._table().values()]

    def shown_of(self, vm: str) -> dict[str, Any]:
        """Raises RequestError."""
        return self._shown(self._row(vm))

    def _row(self, vm: str) -> Place:
        """Raises RequestError."""
        if vm not in self._net.vms:
            raise no_vm(vm)
        self.follow()
        row = self._row_of(vm)
        if row is None:
            raise RequestError(
                f"VM {vm} is at home, and no guest: no gateway stands in for it; `retinue anchor list` shows "
                "for whom one does"
            )
        return row

    def _shown(self, row: Place) -> dict[str, Any]:
        one, counted = self._of[row.vm], self._counted.get(row.vm, Counted())
        peer = self._net.peers.get(row.home or row.domain)
        return {
            "vm": row.vm,
            "home": row.home,
            "domain": row.domain,
            "gateway": "" if peer is None else peer.gateway,
            "addresses": [str(ip) for ip in row.addresses],
            "since": one.since,
            "ended": one.ended,
            "reason": one.why,
            "idle_seconds": one.idle,
            "until": one.until,
            **{
                what: dict(zip(("packets", "bytes"), getattr(counted, what), strict=True))
                for what in ("arrived", "sent", "dropped")
            },
            "last_arrived": counted.last,
            "read_at": counted.read,
        }


def _passes(flow: Flow) -> tuple[bool, IP] | None:
    """Whether what an entry of a gateway counts is for a VM, and the VM's address; None: it is something
    else."""
    arrived = _WAYS.get((flow.table, flow.priority))
    if arrived is None:
        return None
    four, six = (Field.IPV4_DST, Field.IPV6_DST) if arrived else (Field.IPV4_SRC, Field.IPV6_SRC)
    for name, value, _ in flow.match:
        if name == four:
            return arrived, IPv4Address(value)
        if name == six:
            return arrived, IPv6Address(value)
    return None


__all__ = ["LOOK_SECONDS", "AnchorGone", "AnchorSet", "Anchors"]

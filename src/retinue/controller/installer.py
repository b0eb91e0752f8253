"""Brings desired entries onto switches, stage by stage, and knows what each switch has confirmed.

For each switch a mirror holds what it confirmed. A change is sent as the difference between mirror and
desired program at the moment of sending, so a late sender can never put back an older entry, and sending
twice does no harm. What could not be sent stays *pending*; when the switch comes (back), its entries are
read, compared, and only the difference is sent.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from retinue.flows.change import Change
from retinue.flows.compiler import Compiler, Entry, EntryKey, Keys
from retinue.flows.difference import agrees, difference
from retinue.flows.entry import Flow, FlowKey, Group, Meter
from retinue.flows.plan import stages
from retinue.model.network import Owner
from retinue.openflow.messages import FlowStats

log = structlog.get_logger()

LONGEST_TIMEOUT = 65_535
"""Seconds; a hard timeout is 16 bits in OpenFlow. Longer leases are sent again before it runs out."""
RENEW_BEFORE = 3_600
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before what a switch refused is sent again."""


class SwitchSession(Protocol):
    """What the installer needs of a switch's session."""

    async def apply(self, change: Change, now: float) -> None: ...
    async def read_flows(self, cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]: ...
    async def read_groups(self) -> dict[int, Group]: ...
    async def read_meters(self) -> dict[int, Meter]: ...
    def close(self, reason: str) -> None: ...

    @property
    def alive(self) -> bool: ...


@dataclass
class Report:
    """What an installation did: flow entries sent, and switches that have not confirmed it."""

    flow_mods: int = 0
    missing: set[str] = field(default_factory=set)
    changed: Keys = field(default_factory=dict)


class Installer:
    def __init__(self, compiler: Compiler, clock: Callable[[], float]) -> None:
        self._compiler = compiler
        self._clock = clock
        self.sessions: dict[str, SwitchSession] = {}
        self._mirror: dict[str, dict[EntryKey, Entry]] = {}
        self._pending: dict[str, set[EntryKey]] = {}
        self._mirror_is_true: set[str] = set()
        """Switches that are connected and whose entries have been read since."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._listening: list[asyncio.Future[None]] = []
        self._resend_at: dict[tuple[str, EntryKey], float] = {}
        self._refused: dict[str, set[EntryKey]] = {}
        self._retrying: dict[str, asyncio.Task[None]] = {}
        self._pauses: dict[str, float] = {}
        self._held_until = 0.0
        self._held: set[asyncio.Task[None]] = set()
        self.flow_mods = 0
        self.rejected: dict[str, str] = {}
        """The last refusal of each switch that refused something, in words."""

    # ---- changes ----

    async def install(self, touched: Iterable[Owner], near: Collection[str] = ()) -> Report:
        """Compute the touched owners again and bring the changes onto the switches that are connected."""
        report = Report(changed=self._compiler.update(touched))
        for switch, keys in report.changed.items():
            self._pending.setdefault(switch, set()).update(keys)
        for stage in stages(report.changed, self._compiler.net.switches, near):
            counts = await asyncio.gather(*(self._send(s, report.changed[s]) for s in stage))
            for switch, count in zip(stage, counts, strict=True):
                if count is None:
                    report.missing.add(switch)
                else:
                    report.flow_mods += count
        return report

    async def settled(self, changed: Keys, *, attached: Collection[str] = (), present: bool = False) -> None:
        """Return when every switch has confirmed these entries, and those of `attached` have been read.

        With `present`, a switch that is away is not waited for: it is corrected when it comes back.
        """
        while True:
            waiting = set(self.pending(changed))
            if present:
                waiting &= set(self.sessions)
            if not waiting and self._mirror_is_true.issuperset(attached):
                return
            news = asyncio.get_running_loop().create_future()
            self._listening.append(news)
            await news

    def _tell(self) -> None:
        """Something was confirmed, or a switch went: those who wait look again."""
        for news in self._listening:
            if not news.done():
                news.set_result(None)
        self._listening.clear()

    async def _send(self, switch: str, keys: Collection[EntryKey]) -> int | None:
        """Send the difference for these keys; return how many flow entries, None when not confirmed."""
        async with self._lock(switch):
            session = self.sessions.get(switch)
            if session is None:
                return None
            change = difference(self._compiler.program(switch), self._mirror[switch], keys)
            if not change.empty and not await self._apply(switch, session, change):
                self._try_again(switch, keys)
                return None
            self._confirm(switch, keys)
            return change.flow_count

    def _try_again(self, switch: str, keys: Iterable[EntryKey]) -> None:
        """What a connected switch refused is sent again, after a pause that grows with each refusal."""
        refused = self._refused.setdefault(switch, set())
        refused.update(keys)
        if switch in self._retrying:
            return
        pause = self._pauses[switch] = min(LONGEST_PAUSE, 2 * self._pauses.get(switch, SHORTEST_PAUSE / 2))

        async def again() -> None:
            await asyncio.sleep(pause)
            del self._retrying[switch]
            await self._send(switch, self._refused.pop(switch, set()))

        self._retrying[switch] = asyncio.get_running_loop().create_task(again())

    def close(self) -> None:
        """Send nothing again any more."""
        for task in (*self._retrying.values(), *self._held):
            task.cancel()

    async def _apply(self, switch: str, session: SwitchSession, change: Change) -> bool:
        now = self._clock()
        try:
            await session.apply(change, now)
        except (ConnectionError, TimeoutError) as error:
            log.warning("switch did not confirm", switch=switch, error=str(error))
            session.close(f"did not confirm a change: {error}")
            return False
        except Exception as error:
            self.rejected[switch] = str(error)
            log.error("switch refused a change", switch=switch, error=str(error))
            return False
        self.flow_mods += change.flow_count
        mirror = self._mirror[switch]
        for flow in change.remove:
            mirror.pop(flow.key, None)
            self._resend_at.pop((switch, flow.key), None)
        for flow in change.add:
            mirror[flow.key] = flow
            if flow.expires_at is not None and flow.expires_at - now > LONGEST_TIMEOUT:
                self._resend_at[switch, flow.key] = now + LONGEST_TIMEOUT - RENEW_BEFORE
        mirror.update({("group", g.id): g for g in change.groups})
        mirror.update({("meter", m.id): m for m in change.meters})
        for number in change.remove_groups:
            mirror.pop(("group", number), None)
        for number in change.remove_meters:
            mirror.pop(("meter", number), None)
        return True

    def _confirm(self, switch: str, keys: Iterable[EntryKey]) -> None:
        """Of these keys, those the switch now holds as wanted no longer wait for it.

        Others were changed once more while the switch was answering; they are the next sender's to confirm.
        """
        program, mirror = self._compiler.program(switch), self._mirror[switch]
        waiting = self._pending.get(switch, set())
        waiting.difference_update([k for k in keys if agrees(program.get(k), mirror.get(k))])
        self._pauses.pop(switch, None)
        self._tell()

    # ---- switches that come and go ----

    def hold_removals(self, seconds: float) -> None:
        """For so long from now, take nothing from a switch that connects; what is too much goes afterwards.

        A controller that has just started knows its VMs, but not yet the numbers of the ports on switches
        that are still on their way back: what those entries are for, it cannot tell from what is left over.
        """
        self._held_until = self._clock() + seconds

    def _hold(self, switch: str, keys: Collection[EntryKey]) -> None:
        """Entries in excess, to be taken away when removals are held no longer, if they still are."""
        self._pending.setdefault(switch, set()).update(keys)
        pause = self._held_until - self._clock()

        async def release() -> None:
            await asyncio.sleep(pause)
            await self._send(switch, keys)

        task = asyncio.get_running_loop().create_task(release())
        self._held.add(task)
        task.add_done_callback(self._held.discard)

    async def attach(self, switch: str, session: SwitchSession) -> Report:
        """A switch has connected: read what it holds and send the difference.

        Raises ConnectionError for a switch that cannot be read, or has gone meanwhile.
        """
        async with self._lock(switch):
            try:
                mirror = await self._read(session)
            except Exception as error:
                raise ConnectionError(f"its entries cannot be read: {error}") from error
            if not session.alive:
                raise ConnectionError("it went while it was being read")
            self.sessions[switch] = session
            self._mirror[switch] = mirror
            self._mirror_is_true.add(switch)
            wanted = self._compiler.program(switch)
            keys = {*wanted, *mirror, *self._pending.get(switch, ())}
            if self._clock() < self._held_until:
                excess = mirror.keys() - wanted.keys()
                keys -= excess
                self._hold(switch, excess)
            change = difference(wanted, mirror, keys)
            report = Report(flow_mods=change.flow_count)
            if not change.empty:
                # Whatever was confirmed by an earlier session: this one has yet to.
                differing = (k for k in keys if not agrees(wanted.get(k), mirror.get(k)))
                self._pending.setdefault(switch, set()).update(differing)
                if not await self._apply(switch, session, change):
                    self._try_again(switch, keys)
                    report.missing.add(switch)
                    return report
            self._confirm(switch, keys)
            return report

    def detach(self, switch: str, session: SwitchSession) -> None:
        if self.sessions.get(switch) is session:
            del self.sessions[switch]
            self._mirror_is_true.discard(switch)
            self._tell()

    def flow_ended(self, switch: str, key: FlowKey) -> None:
        """The switch removed an entry by itself, at the end of its lease.

        When the lease stands all the same (it was renewed, or clocks disagree) the entry is sent again.
        """
        self._mirror.get(switch, {}).pop(key, None)
        wanted = self._compiler.program(switch).get(key)
        if isinstance(wanted, Flow) and (wanted.expires_at is None or wanted.expires_at > self._clock() + 1):
            self._pending.setdefault(switch, set()).add(key)
            self._try_again(switch, [key])

    async def renew_long_leases(self) -> None:
        """Send again the entries whose lease is longer than a switch's longest timeout."""
        now = self._clock()
        due: dict[str, list[EntryKey]] = {}
        for (switch, key), at in self._resend_at.items():
            if at <= now:
                due.setdefault(switch, []).append(key)
        for switch, keys in due.items():
            for key in keys:
                del self._resend_at[switch, key]
                self._mirror.get(switch, {}).pop(key, None)
            await self._send(switch, keys)

    # ---- questions ----

    def confirmed(self, switch: str, key: EntryKey) -> bool:
        """True when the switch is connected and has confirmed this wanted entry."""
        return (
            switch in self._mirror_is_true
            and key not in self._pending.get(switch, ())
            and key in self._mirror[switch]
        )

    def pending(self, changed: Keys | None = None) -> dict[str, int]:
        """By switch, how many entries wait for its confirmation."""
        counts = {
            switch: len(keys if changed is None else keys & changed.get(switch, frozenset()))
            for switch, keys in self._pending.items()
        }
        return {switch: count for switch, count in counts.items() if count}

    def mirror(self, switch: str) -> Mapping[EntryKey, Entry]:
        return self._mirror.get(switch, {})

    def _lock(self, switch: str) -> asyncio.Lock:
        return self._locks.setdefault(switch, asyncio.Lock())

    async def _read(self, session: SwitchSession) -> dict[EntryKey, Entry]:
        now = self._clock()
        found: dict[EntryKey, Entry] = {("group", n): g for n, g in (await session.read_groups()).items()}
        found.update({("meter", n): m for n, m in (await session.read_meters()).items()})
        for stats in await session.read_flows():
            found[stats.flow.key] = _with_end(stats, now)
        return found


def _with_end(stats: FlowStats, now: float) -> Flow:
    if not stats.hard_timeout:
        return stats.flow
    flow = stats.flow
    return Flow(
        flow.table,
        flow.priority,
        flow.match,
        flow.actions,
        flow.goto,
        flow.meter,
        flow.cookie,
        expires_at=now + stats.hard_timeout - stats.duration_s,
    )

"""Brings desired entries onto switches, stage by stage, and knows what each switch has confirmed.

For each switch a mirror holds what it confirmed. A change is sent as the difference between mirror and
desired program at the moment of sending, so a late sender can never put back an older entry, and sending
twice does no harm. What could not be sent stays *pending*; when the switch comes (back), its entries are
read, compared, and only the difference is sent. So they are by an audit, of a switch that has stayed.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from retinue.controller.readback import Audit, SwitchSession, entries_of, in_parts
from retinue.flows.change import Change
from retinue.flows.compiler import Compiler, Entry, EntryKey, Keys
from retinue.flows.difference import LEASE_SLACK, agrees, difference
from retinue.flows.entry import Flow, FlowKey
from retinue.flows.plan import Near, stages
from retinue.model.network import Owner

log = structlog.get_logger()

LONGEST_TIMEOUT = 65_535
"""Seconds; a hard timeout is 16 bits in OpenFlow. Longer leases are sent again before it runs out."""
RENEW_BEFORE = 3_600
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before what a switch refused is sent again."""


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
        self._sendings: Counter[str] = Counter()
        """By switch, how often something was sent: so that a reading knows whether it is out of date."""
        self.flow_mods = 0
        self.rejected: dict[str, str] = {}
        """The last refusal of each switch that refused something, in words."""

    # ---- changes ----

    async def install(self, touched: Iterable[Owner], near: Near = ()) -> Report:
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
        self._sendings[switch] += 1
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
                mirror = await self._read(switch, session)
            except Exception as error:
                raise ConnectionError(f"its entries cannot be read: {error}") from error
            if not session.alive:
                raise ConnectionError("it went while it was being read")
            self.sessions[switch] = session
            self._mirror[switch] = mirror
            self._mirror_is_true.add(switch)
            keys = {*self._compiler.program(switch), *mirror, *self._pending.get(switch, ())}
            return await self._make_agree(switch, session, keys)

    async def _make_agree(self, switch: str, session: SwitchSession, keys: set[EntryKey]) -> Report:
        """Of a switch that has been read: send the difference for these keys."""
        wanted, mirror = self._compiler.program(switch), self._mirror[switch]
        if self._clock() < self._held_until and (excess := {k for k in keys if k not in wanted}):
            keys = keys - excess
            self._hold(switch, excess)
        change = difference(wanted, mirror, keys)
        report = Report(flow_mods=change.flow_count)
        if not change.empty:
            # Whatever was confirmed before: these the switch has yet to.
            differing = (k for k in keys if not agrees(wanted.get(k), mirror.get(k)))
            self._pending.setdefault(switch, set()).update(differing)
            if not await self._apply(switch, session, change):
                self._try_again(switch, keys)
                report.missing.add(switch)
                return report
        self._confirm(switch, keys)
        return report

    async def audit(self, switch: str, still: Callable[[], bool] = lambda: True) -> Audit | None:
        """Read a connected switch again and mend what differs.

        None, and nothing done, when something was sent to it meanwhile, or it is `still` no more at the end:
        what was read is out of date then. Nobody waits for the reading. Entries that wait for the switch are
        left to whoever sends them, in their order; and those whose lease is just ending, to the switch.

        Raises ConnectionError for a switch that is away, or cannot be read.
        """
        async with self._lock(switch):
            session, before = self.sessions.get(switch), self._sendings[switch]
        if session is None:
            raise ConnectionError("it is not connected")
        try:
            found = await self._read(switch, session)
        except Exception as error:
            raise ConnectionError(f"its entries cannot be read: {error}") from error
        suspects = await self._differing(switch, found)
        async with self._lock(switch):
            if self.sessions.get(switch) is not session or self._sendings[switch] != before or not still():
                return None
            wanted, pending = self._compiler.program(switch), self._pending.get(switch, set())
            soon = self._clock() + LEASE_SLACK
            keys = {
                key
                for key in suspects
                if key not in pending
                and not agrees(want := wanted.get(key), found.get(key))
                and not (isinstance(want, Flow) and want.expires_at is not None and want.expires_at < soon)
            }
            mirror = self._mirror[switch]
            for key in keys:
                if key in found:
                    mirror[key] = found[key]
                else:
                    mirror.pop(key, None)
            missing, foreign = len(keys - found.keys()), len(keys - wanted.keys())
            if keys:
                await self._make_agree(switch, session, keys)
            mended = keys.isdisjoint(self._pending.get(switch, ()))
            return Audit(len(found), missing, len(keys) - missing - foreign, foreign, mended)

    async def _differing(self, switch: str, found: Mapping[EntryKey, Entry]) -> set[EntryKey]:
        """Keys by which what was found differs from what is wanted; others have their turn meanwhile."""
        differing: set[EntryKey] = set()
        async for part in in_parts(list(found)):
            wanted = self._compiler.program(switch)
            differing.update(key for key in part if not agrees(wanted.get(key), found[key]))
        async for part in in_parts(list(self._compiler.program(switch))):
            differing.update(key for key in part if key not in found)
        return differing

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
            self._pending.setdefault(switch, set()).update(keys)
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

    async def _read(self, switch: str, session: SwitchSession) -> dict[EntryKey, Entry]:
        began = self._clock()
        found = await entries_of(session, began)
        late = self._clock() - began
        leased = [e for e in found.values() if isinstance(e, Flow) and e.expires_at is not None]
        found.update((flow.key, self._as_sent(switch, flow, late)) for flow in leased)
        return found

    def _as_sent(self, switch: str, flow: Flow, late: float) -> Flow:
        """With the end of its lease as it was sent, if what was read does not speak against that.

        The reading took a while, and a lease that is longer than a switch's longest timeout has that timeout.
        """
        sent, at = self._mirror.get(switch, {}).get(flow.key), self._resend_at.get((switch, flow.key))
        if flow.expires_at is None or not isinstance(sent, Flow) or sent.expires_at is None:
            return flow
        end = sent.expires_at if at is None else at + RENEW_BEFORE
        in_time = -LEASE_SLACK <= end - flow.expires_at <= late + LEASE_SLACK
        return replace(flow, expires_at=sent.expires_at) if in_time else flow

"""One switch's programming: what it has confirmed, what it has yet to confirm, and what is sent to it again.

The *mirror* holds what the switch confirmed. A change is sent as the difference between mirror and desired
program at the moment of sending, so a late sender can never put back an older entry, and sending twice does
no harm. What could not be sent stays *pending*; when the switch comes (back), its entries are read, compared,
and only the difference is sent. The same happens by an audit, of a switch that has stayed.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from dataclasses import replace

import structlog

from retinue.controller.switches.abilities import Lacking
from retinue.controller.switches.held import Held
from retinue.controller.switches.mirror import Mirror, compared
from retinue.controller.switches.orders import Order, Orders, Sent
from retinue.controller.switches.readback import Audit, SwitchSession, entries_of
from retinue.controller.switches.taking_back import take_back
from retinue.core.model.network import Owner
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.cookies import owner_hash, owner_hash_of
from retinue.core.pipeline.diff import LEASE_SLACK, agrees, difference
from retinue.core.pipeline.entry import (
    Change,
    Entry,
    EntryKey,
    Flow,
    FlowKey,
    Program,
    named_by,
)
from retinue.core.pipeline.knowledge import Knowledge
from retinue.southbound.openflow.requests import Rejected

log = structlog.get_logger()

LONGEST_TIMEOUT = 65_535
"""Seconds; a hard timeout is 16 bits in OpenFlow. Longer leases are sent again before it runs out."""
RENEW_BEFORE = 3_600
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before what a switch rejected is sent again."""


class SwitchProgrammer:
    """Brings one switch to what the compiler wants of it, and knows how far it is.

    A switch is *connected* while it has a session, and *read* from when its entries have been read over that
    session: nothing can be sent to it, nor counts as confirmed by it, before that.
    """

    def __init__(
        self,
        switch: str,
        compiler: Compiler,
        knowledge: Knowledge,
        clock: Callable[[], float],
        notify: Callable[[], None],
    ) -> None:
        """`notify` is called when something was confirmed, when the switch was read, and when it went."""
        self._switch = switch
        self._compiler = compiler
        self._knowledge = knowledge
        self._clock = clock
        self._notify = notify
        self._lock = asyncio.Lock()
        """One change, reading or comparison at a time: mirror and switch agree whenever it is free."""
        self._orders = Orders(self._lock, self._carry_out)
        self.session: SwitchSession | None = None
        self.was_connected = False
        """It has been connected since the start, be it now or not."""
        self.is_read = False
        self.mirror = Mirror(compiler.program(switch))
        self.pending: set[EntryKey] = set()
        """Entries the switch has yet to confirm, present or gone as the program wants it."""
        self._left = Held(switch, knowledge, self.mirror, self.pending, self._wanted)
        self.flow_mods = 0
        """Flow entries sent and confirmed so far."""
        self.rejection = ""
        """Why the switch rejected a change; "" once it has taken all that it did."""
        self.lacking = Lacking(switch)
        """What it gets no entries for."""
        self._resend_at: dict[EntryKey, float] = {}
        """Entries whose lease is longer than a switch's longest timeout, and when they must be sent again."""
        self._rejected: set[EntryKey] = set()
        self._retry: asyncio.Task[None] | None = None
        self._pause: float | None = None
        """Seconds before the last retry; None when the switch has confirmed something since."""
        self._sendings = 0
        """How often something was sent: so that a reading knows whether it is out of date."""

    @property
    def held(self) -> Set[EntryKey]:
        """Of what is pending, entries that are left as they are on the switch for now."""
        return self._left.keys

    @property
    def is_connected(self) -> bool:
        """The answer to "is this switch connected?", for everyone who asks."""
        return self.session is not None

    # ---- a switch that comes and goes ----

    def connected(self, session: SwitchSession) -> None:
        """The switch has this session from now on; nothing is sent before `read` has returned."""
        self.session, self.is_read, self.was_connected = session, False, True
        self.lacking = Lacking(self._switch)

    async def read(self, session: SwitchSession) -> Sent:
        """Read what the switch holds and send the difference.

        Raises ConnectionError for a switch that cannot be read, or has disconnected meanwhile.
        """
        async with self._lock:
            try:
                found = await self._read(session)
            except Exception as error:
                raise ConnectionError(f"its entries cannot be read: {error}") from error
            if session.alive and session is self.session:
                await self.mirror.holds(found)
            if not session.alive or session is not self.session:
                raise ConnectionError("it disconnected while it was being read")
            self.is_read = True
            self._left.looked_at()
            return await self._make_agree(session, {*self.mirror.differing, *self.pending, *self.held})

    def disconnected(self, session: SwitchSession) -> bool:
        """This session has ended; False, and nothing done, when the switch has another one by now."""
        if self.session is not session:
            return False
        self.session, self.is_read = None, False
        self._notify()
        return True

    def leave(self, reason: str) -> None:
        """The session ends here, whatever becomes of the connection."""
        session, self.session, self.is_read = self.session, None, False
        self.close()
        self._retry = None
        if session is not None:
            session.close(reason)

    def close(self) -> None:
        """Send nothing again any more."""
        if self._retry is not None:
            self._retry.cancel()

    # ---- changes ----

    async def send(self, keys: Collection[EntryKey]) -> Sent:
        """Send the difference for these keys, with what waits (see `orders`)."""
        return await self._orders.give(keys)

    def flow_ended(self, key: FlowKey) -> None:
        """The switch removed an entry by itself, at the end of its lease.

        When the lease is held all the same (it was renewed, or clocks disagree) the entry is sent again.
        """
        self.mirror.set({key: None})
        wanted = self._wanted([key]).get(key)
        if isinstance(wanted, Flow) and (wanted.expires_at is None or wanted.expires_at > self._clock() + 1):
            self.pending.add(key)
            self._try_again([key])

    async def renew_long_leases(self) -> None:
        """Send again the entries whose lease is longer than a switch's longest timeout."""
        now = self._clock()
        due = [key for key, at in self._resend_at.items() if at <= now]
        if not due:
            return
        self.pending.update(due)
        for key in due:
            del self._resend_at[key]
        self.mirror.set(dict.fromkeys(due))  # So that there is a difference to send.
        await self.send(due)

    def confirmed(self, key: EntryKey) -> bool:
        """True when the switch is connected and has confirmed this wanted entry."""
        return self.is_read and key not in self.pending and self.mirror.has_all([key])

    def has_confirmed_of(self, owner: Owner) -> bool:
        """`confirmed` of all entries of an owner; of a switch that is in step they are not looked at."""
        if not self.is_read or not (self.pending or self.mirror.differing):
            return self.is_read
        keys = self._compiler.program(self._switch).of([owner])
        return self.pending.isdisjoint(keys) and self.mirror.has_all(self.lacking.given(keys))

    async def audit(self, still: Callable[[], bool]) -> Audit | None:
        """Read the connected switch again and mend what differs.

        None, and nothing done, when something was sent to it meanwhile, or `still` is no longer true at the
        end: what was read is out of date then. The lock is free during the reading, so nobody waits for it.
        Entries that wait for the switch are left to whoever sends them, in their order; and those whose lease
        is just ending, to the switch.

        Raises ConnectionError for a switch that is away, or cannot be read.
        """
        async with self._lock:
            session, sendings = self.session, self._sendings
            if session is None:
                raise ConnectionError("it is not connected")
            if not self.is_read:
                raise ConnectionError("it has just connected, and is still being read")
        try:
            found = await self._read(session)
        except Exception as error:
            raise ConnectionError(f"its entries cannot be read: {error}") from error
        suspicious = {
            key
            async for key, want in compared(self._compiler.program(self._switch), found)
            if not agrees(want if self.lacking.is_given(want) else None, found.get(key))
        }
        async with self._lock:
            if self.session is not session or self._sendings != sendings or not still():
                return None
            wanted = self._wanted(suspicious)
            keys = {key for key in suspicious if self._is_wrong(wanted.get(key), found.get(key), key)}
            self.mirror.set({key: found.get(key) for key in keys})
            missing, foreign = len(keys - found.keys()), len(keys - wanted.keys())
            if keys:
                await self._make_agree(session, keys)
            mended = keys.isdisjoint(self.pending)
            return Audit(len(found), missing, len(keys) - missing - foreign, foreign, mended)

    # ---- inside, with the lock held ----

    async def _make_agree(self, session: SwitchSession, keys: set[EntryKey]) -> Sent:
        """Of a switch that has just been read: send the difference for these keys."""
        held = self._left.not_yet(keys)
        self._left.let_go(keys)
        self._left.hold(held)
        self.pending |= held
        keys = keys - held
        # Whatever was confirmed before: the entries that differ, the switch has yet to confirm.
        self.pending.update(self._differing(keys))
        return (await self._send_difference(session, [keys]))[0]

    async def _carry_out(self, orders: Sequence[Order]) -> Sequence[Sent]:
        if self.session is None or not self.is_read:
            return [Sent(0, False)] * len(orders)
        together: set[EntryKey] = set().union(*orders)
        left = self._left.not_to_be_sent(together)
        self._left.hold(left)
        sent = await self._send_difference(self.session, [order - left for order in orders])
        return [
            Sent(one.flow_mods, one.confirmed and left.isdisjoint(order))
            for one, order in zip(sent, orders, strict=True)
        ]

    async def _send_difference(self, session: SwitchSession, orders: Sequence[Order]) -> list[Sent]:
        """What each order has sent; an entry of several counts as the first one's."""
        keys: set[EntryKey] = set().union(*orders)
        change = difference(self._wanted(keys), self.mirror.taken(keys), keys)
        while bound := self._bound_to(change) - keys:
            keys |= bound
            change = difference(self._wanted(keys), self.mirror.taken(keys), keys)
        confirmed = change.empty or await self._apply(session, change)
        if confirmed is None:  # It lacks something: without that, at once.
            return await self._send_difference(session, orders)
        if not confirmed and len(orders) > 1 and session.alive:
            # Something in one of them is at fault. It is to hold up none of the others.
            return [(await self._send_difference(session, [order]))[0] for order in orders]
        if confirmed:
            self._confirm(keys)
        else:
            self._try_again(keys)
        flows: set[EntryKey] = {flow.key for flow in (*change.add, *change.remove)}
        found = []
        for order in orders:
            found.append(Sent(len(flows & order), confirmed))
            flows -= order
        return found

    def _bound_to(self, change: Change) -> set[EntryKey]:
        """What the switch must take along with a change, though it be another one's that is yet to come here:
        meters and groups that are named and not there, and what names one that goes."""
        if not self.mirror.differing:
            return set()
        named = {key for flow in change.add for key in named_by(flow)} & self.mirror.differing
        gone: set[EntryKey] = {("group", number) for number in change.remove_groups}
        gone |= {("meter", number) for number in change.remove_meters}
        if gone:
            has = self.mirror.taken(self.mirror.differing)
            flows = (flow for flow in has.values() if isinstance(flow, Flow))
            named |= {flow.key for flow in flows if not gone.isdisjoint(named_by(flow))}
        return named - self.held

    async def _apply(self, session: SwitchSession, change: Change) -> bool | None:
        """None: the switch was found to lack something, and what is left may be sent."""
        now = self._clock()
        self._sendings += 1
        try:
            try:
                await session.apply(change, now)
            except Rejected as rejected:
                await take_back(session, self.mirror, self._switch, rejected, self._clock)
                raise
        except (ConnectionError, TimeoutError) as error:
            log.warning("switch.change_unconfirmed", switch=self._switch, error=str(error))
            session.close(f"did not confirm a change: {error}")
            return False
        except Exception as error:
            if self.lacking.learn(change, error):
                return None
            self.rejection = str(error)
            log.error("switch.change_rejected", switch=self._switch, error=str(error))
            return False
        self.flow_mods += change.flow_count
        self.mirror.sent(change)
        for flow in change.remove:
            self._resend_at.pop(flow.key, None)
        for flow in change.add:
            if flow.expires_at is not None and flow.expires_at - now > LONGEST_TIMEOUT:
                self._resend_at[flow.key] = now + LONGEST_TIMEOUT - RENEW_BEFORE
        return True

    def _confirm(self, keys: Collection[EntryKey]) -> None:
        """Of these keys, those the switch now holds as wanted no longer wait for it.

        Others were changed once more while the switch was answering; they are the next sender's to confirm.
        """
        agreed = set(keys) - self._differing(keys)
        self.pending.difference_update(agreed)
        if not self.pending:
            self.pending.clear()  # An empty set still has the room of the most that it ever had.
        self._left.let_go(agreed)
        self._pause = None
        if self._retry is None:
            self.rejection = ""
        self._notify()

    # ---- what is sent later ----

    def _try_again(self, keys: Iterable[EntryKey]) -> None:
        """What a connected switch rejected is sent again, after a pause that grows with each rejection."""
        self._rejected.update(keys)
        if self._retry is not None:
            return
        pause = SHORTEST_PAUSE if self._pause is None else min(LONGEST_PAUSE, 2 * self._pause)
        self._pause = pause

        async def again() -> None:
            await asyncio.sleep(pause)
            # From here on a new rejection has a retry of its own.
            self._retry, keys = None, self._rejected
            self._rejected = set()
            await self.send(keys)

        self._retry = asyncio.get_running_loop().create_task(again())

    # ---- what is held, and what is pending ----

    def release(self, touched: Collection[int]) -> frozenset[EntryKey]:
        """See Held.release; of a switch that is not read nothing can be judged."""
        return self._left.release(touched) if self.is_read else frozenset()

    def pending_of(self, owner: Owner, *, with_held: bool) -> bool:
        """True while the switch has yet to confirm something of this owner, gone entries among it."""
        keys = self.pending if with_held else self.pending - self.held
        wanted = self._compiler.program(self._switch).of([owner]) if keys else {}
        if any(key in keys and isinstance(entry, Flow) for key, entry in wanted.items()):
            return True
        # What it has no more, or has otherwise, is where the switch is known to differ.
        mark, gone = owner_hash(owner), self.mirror.taken(self.mirror.differing & keys).values()
        return any(isinstance(entry, Flow) and owner_hash_of(entry.cookie) == mark for entry in gone)

    # ---- reading ----

    def _wanted(self, keys: Iterable[EntryKey]) -> Program:
        """What it should hold of these keys."""
        wanted = self._compiler.program(self._switch).taken(keys)
        return self.lacking.given(wanted)

    def _differing(self, keys: Collection[EntryKey]) -> set[EntryKey]:
        """Of these keys, those in which the switch has not what it should."""
        if not self.lacking:  # What is not known to differ agrees.
            keys = self.mirror.differing & set(keys)
        wanted, has = self._wanted(keys), self.mirror.taken(keys)
        return {key for key in keys if not agrees(wanted.get(key), has.get(key))}

    async def _read(self, session: SwitchSession) -> dict[EntryKey, Entry]:
        began = self._clock()
        found = await entries_of(session, began)
        late = self._clock() - began
        leased = [e for e in found.values() if isinstance(e, Flow) and e.expires_at is not None]
        sent = self.mirror.taken([flow.key for flow in leased])
        found.update((flow.key, self._as_sent(flow, sent.get(flow.key), late)) for flow in leased)
        return found

    def _as_sent(self, flow: Flow, sent: Entry | None, late: float) -> Flow:
        """The flow with the end of its lease as it was sent, if what was read does not speak against that.

        The reading took a while, and a lease that is longer than a switch's longest timeout has that timeout.
        """
        at = self._resend_at.get(flow.key)
        if flow.expires_at is None or not isinstance(sent, Flow) or sent.expires_at is None:
            return flow
        end = sent.expires_at if at is None else at + RENEW_BEFORE
        in_time = -LEASE_SLACK <= end - flow.expires_at <= late + LEASE_SLACK
        return replace(flow, expires_at=sent.expires_at) if in_time else flow

    def _is_wrong(self, want: Entry | None, found: Entry | None, key: EntryKey) -> bool:
        """An entry found by an audit differs, is not about to be sent, and not about to end by itself."""
        if key in self.pending or agrees(want, found):
            return False
        ends = want.expires_at if isinstance(want, Flow) else None
        return ends is None or ends >= self._clock() + LEASE_SLACK

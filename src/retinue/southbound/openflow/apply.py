"""Applying a Change to a switch as a whole, and knowing that it is in force.

One entry goes as one message. Several go as an atomic, ordered bundle in two steps: Open vSwitch leaves a
message it cannot read out of a bundle and would commit the rest, so the bundle is staged, the barrier behind
it awaited, and the commit sent only when nothing was rejected. That costs a second round trip, about 0.1 ms.

A switch that speaks OpenFlow 1.3 has no bundles: see `stepwise`.
"""

import asyncio
from collections.abc import Iterator
from itertools import chain

from retinue.core.pipeline.entry import Change
from retinue.patience import patience
from retinue.southbound.openflow import bundle, stepwise
from retinue.southbound.openflow.codec import encode, wire
from retinue.southbound.openflow.codec.messages import BundleControl, GroupDesc, MeterConfig, MultipartReply
from retinue.southbound.openflow.codec.wire import BundleStep
from retinue.southbound.openflow.connection import Connection
from retinue.southbound.openflow.requests import Rejected, Request, Requests

PER_FLOW = 1e-4
"""Seconds added to the time limit of a change for each of its entries."""


class Applier:
    """Makes changes to one switch, one at a time."""

    def __init__(self, connection: Connection, requests: Requests, switch: str) -> None:
        self._connection = connection
        self._requests = requests
        self._switch = switch
        self._lock = asyncio.Lock()
        self._bundles = 0
        self._groups: set[int] | None = None
        self._meters: set[int] | None = None

    async def apply(self, change: Change, now: float, timeout: float) -> None:
        """See Session.apply."""
        async with self._lock:
            limit = timeout + PER_FLOW * change.flow_count
            try:
                async with patience(limit):
                    await self._apply(change, now)
            except TimeoutError:
                raise TimeoutError(
                    f"switch {self._switch} did not confirm a change of {change.flow_count} flows within "
                    f"{limit:.1f} s; read its flows back to see what it has"
                ) from None

    async def _apply(self, change: Change, now: float) -> None:
        if self._groups is None and change.groups:
            self._groups = await self._group_ids()
        if self._meters is None and change.meters:
            self._meters = await self._meter_ids()
        groups, meters = self._groups, self._meters
        self._groups = self._meters = None  # Not known again until the switch has confirmed.
        if self._connection.version == wire.VERSION:
            await self._send_whole(change, groups or set(), meters or set(), now)
        else:
            await stepwise.send(self._requests, change, groups or set(), meters or set(), now)
        if groups is not None:
            self._groups = (groups | {group.id for group in change.groups}) - set(change.remove_groups)
        if meters is not None:
            self._meters = (meters | {meter.id for meter in change.meters}) - set(change.remove_meters)

    async def _send_whole(self, change: Change, groups: set[int], meters: set[int], now: float) -> None:
        count = bundle.mod_count(change)
        if count == 1 and not change.meters:
            await self._send_one(change, groups, now)
        elif count or change.meters:
            await self._send_bundle(change, count, groups, meters, now)
        if change.remove_meters:
            await self._remove_meters(change.remove_meters)

    async def _send_one(self, change: Change, groups: set[int], now: float) -> None:
        with self._requests.open(2) as request:
            messages = bundle.mods(change, groups, request.first, now)
            await self._requests.send(request, _then_barrier(messages, request.last), request.last)
            _raise_errors(request, change, request.first)

    async def _send_bundle(
        self, change: Change, count: int, groups: set[int], meters: set[int], now: float
    ) -> None:
        """Transaction ids, in a row: meters, opening, entries, barrier, commit, barrier."""
        self._bundles = self._bundles % 0xFFFFFFFF + 1
        number = self._bundles
        with self._requests.open(len(change.meters) + count + 4) as request:
            opening = request.first + len(change.meters)
            staged = opening + count + 1
            sent_commit = False
            messages = chain(
                bundle.meter_mods(change, meters, request.first),
                (encode.bundle_control(opening, number, BundleStep.OPEN_REQUEST),),
                bundle.bundled(bundle.mods(change, groups, opening + 1, now), opening + 1, number),
            )
            try:
                await self._requests.send(request, _then_barrier(messages, staged), staged)
                _raise_errors(request, change, opening + 1)
                commit = (encode.bundle_control(staged + 1, number, BundleStep.COMMIT_REQUEST),)
                sent_commit = True
                await self._requests.send(request, _then_barrier(commit, request.last), request.last)
            finally:
                if not sent_commit:
                    discard = encode.bundle_control(
                        self._connection.xid(), number, BundleStep.DISCARD_REQUEST
                    )
                    self._connection.write(discard)
            _raise_errors(request, change, opening + 1)
            if not any(
                isinstance(r, BundleControl) and r.step == BundleStep.COMMIT_REPLY for r in request.replies
            ):
                raise Rejected(("the switch did not confirm the bundle's commit",))

    async def _remove_meters(self, numbers: tuple[int, ...]) -> None:
        with self._requests.open(len(numbers) + 1) as request:
            messages = (encode.meter_remove(xid, number) for xid, number in enumerate(numbers, request.first))
            await self._requests.send(request, _then_barrier(messages, request.last), request.last)
            if request.errors:
                raise Rejected(
                    tuple(f"remove meter {numbers[e.xid - request.first]}: {e.text}" for e in request.errors)
                )

    # ---- what the switch has already ----

    async def _group_ids(self) -> set[int]:
        replies = await self._requests.ask(encode.group_desc_request, "its groups", 30.0)
        parts = chain.from_iterable(reply.parts for reply in replies if isinstance(reply, MultipartReply))
        return {part.id for part in parts if isinstance(part, GroupDesc)}

    async def _meter_ids(self) -> set[int]:
        replies = await self._requests.ask(encode.meter_config_request, "its meters", 30.0)
        parts = chain.from_iterable(reply.parts for reply in replies if isinstance(reply, MultipartReply))
        return {part.id for part in parts if isinstance(part, MeterConfig)}


def _then_barrier(messages: Iterator[bytes] | tuple[bytes, ...], xid: int) -> Iterator[bytes]:
    yield from messages
    yield encode.barrier_request(xid)


def _raise_errors(request: Request, change: Change, first: int) -> None:
    """Raise Rejected if anything was rejected; the entries' messages have transaction ids from `first`."""
    if not request.errors:
        return
    texts = []
    for error in sorted(request.errors, key=lambda e: e.xid):
        index = error.xid - first
        if request.first <= error.xid < request.first + len(change.meters) and index < 0:
            about = f"meter {change.meters[error.xid - request.first].id}"
        else:
            about = bundle.subject(change, index) if index >= 0 else "opening the bundle"
        texts.append(f"{about}: {error.text}")
    raise Rejected(tuple(texts))

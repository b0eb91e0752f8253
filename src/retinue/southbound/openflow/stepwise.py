"""A change sent to a switch without bundles: message by message, each step behind a barrier of its own.

"In the absence of any barrier messages, switches may arbitrarily reorder messages to maximize performance"
(OpenFlow 1.3, section 6.2), so a barrier stands between any two steps. Nobody waits for its reply: that of
the last barrier says that all is in force, since every message that was rejected has been answered by then
with an error of its own transaction id. What is removed is sent when all that is added has been confirmed.

A switch that rejects one message has taken the others. Which ones is told with the rejection, for whoever can
take them back: it is not known here what was there before.
"""

import asyncio
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from retinue.core.pipeline import steps
from retinue.core.pipeline.entry import Change
from retinue.southbound.openflow import bundle
from retinue.southbound.openflow.codec import encode
from retinue.southbound.openflow.codec.messages import ErrorMessage
from retinue.southbound.openflow.requests import BATCH, Rejected, Requests


@dataclass(frozen=True, slots=True)
class _Sent:
    """A step, and the transaction ids of its messages, which count up from `first`; its barrier's is the
    last.
    """

    step: Change
    first: int

    @property
    def barrier(self) -> int:
        return self.first + bundle.message_count(self.step)


async def send(requests: Requests, change: Change, groups: Set[int], meters: Set[int], now: float) -> None:
    """Make the change; `groups` and `meters` are those the switch has.

    Raises Rejected, with the steps' parts that the switch has taken; what Requests.send raises otherwise.
    """
    taken: list[Change] = []
    for phase in (list(steps.makes(change)), list(steps.removes(change))):
        if phase:
            await _send(requests, phase, groups, meters, now, taken)


async def _send(
    requests: Requests,
    phase: Sequence[Change],
    groups: Set[int],
    meters: Set[int],
    now: float,
    taken: list[Change],
) -> None:
    with requests.open(sum(bundle.message_count(step) + 1 for step in phase)) as request:
        sent = []
        first = request.first
        for step in phase:
            sent.append(_Sent(step, first))
            first = sent[-1].barrier + 1

        messages: list[bytes] = []
        for one in sent:
            # All of it before any is sent: of a change that cannot be said the switch is to take nothing.
            for message in bundle.messages(one.step, groups, meters, one.first, now):
                messages.append(message)
                if len(messages) % BATCH == 0:
                    await asyncio.sleep(0)
            messages.append(encode.barrier_request(one.barrier))
        await requests.send(request, messages, request.last)
        rejected = {error.xid: error for error in request.errors}
        taken += [bundle.without(one.step, {xid - one.first for xid in rejected}) for one in sent]
        if rejected:
            raise Rejected(tuple(_texts(sent, rejected)), tuple(taken))


def _texts(sent: Sequence[_Sent], rejected: dict[int, ErrorMessage]) -> Iterator[str]:
    for one in sent:
        for xid in range(one.first, one.barrier + 1):
            if xid in rejected:
                yield f"{bundle.subject_of_message(one.step, xid - one.first)}: {rejected[xid].text}"

"""Whether what was sent to a VM by the old way has come: by marks that the controller sends behind it.

When every switch has confirmed that the VM's traffic goes to the target, some packets are still on their way
to the source: in the queue of a link, or before a switch that the machine does not run just now. A mark is a
frame that a switch is to send over a link, behind them; the switch at the other end sends it up. When those
of all links that packets may be on have come, link after link, so have the packets.

The switches have entries for such frames: it is an LLDP frame as the probes of links are (record 049).
"""

import asyncio
from collections.abc import Sequence

import structlog

from retinue.controller.context import Context
from retinue.core.migration import Migration
from retinue.core.model import Link, PortRef
from retinue.core.packets.lldp import probe_frame
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.token_bucket import TokenBucket

PATIENCE = 0.3
"""Seconds that marks may take over all the links together. One that a link or a meter has lost never comes,
and of what is slower than that nobody waits: the VM's packets do, at its target."""
KEPT = 4096
"""Marks that are remembered: a spine sends one back, too, later than anybody waits for it."""
MOST_A_SECOND = 2000
"""Marks in all, and at once: as many as probes, with which they share a meter (core.pipeline.meters.PROBES).
Beyond that probes would be lost, and sound links be taken for broken, whoever asks so often."""

log = structlog.get_logger()


class OldWays:
    """Sends marks, and knows them again."""

    def __init__(self, context: Context, secret: bytes) -> None:
        """`secret`: nobody who has seen a mark can make another."""
        self._context = context
        self._secret = secret
        self._sent = 0
        self._waiting: dict[bytes, tuple[str, asyncio.Event]] = {}
        """By frame: the switch where it is to come in, and set when it has."""
        self._room = TokenBucket(MOST_A_SECOND, 0.0)

    async def passed(self, migration: Migration) -> bool:
        """Return when what had left for the source before has come to its edge's own link; False when a mark
        did not come in time, or could not be sent: too many were by now."""
        clock = asyncio.get_running_loop().time
        ways = underlay_of(self._context.net).old_ways(migration.source, migration.target)
        try:
            async with asyncio.timeout(PATIENCE):
                for links in ways:
                    if not self._room.take(clock(), len(links)):
                        log.info("migration.too_many_marks", migration=migration.id)
                        return False
                    await asyncio.gather(*(mark.wait() for mark in self._sent_over(links)))
        except TimeoutError:
            log.info("migration.mark_not_come", migration=migration.id, limit_s=PATIENCE)
            return False
        return True

    def heard(self, switch: str, frame: bytes) -> bool:
        """A switch has sent up an LLDP frame; False if it is no mark of ours."""
        found = self._waiting.get(frame)
        if found is None:
            return False
        at, come = found
        if switch == at:
            come.set()
        return True

    def _sent_over(self, links: Sequence[tuple[Link, bool]]) -> list[asyncio.Event]:
        """The marks over these links, each up or down, that were sent."""
        marks = []
        for link, upwards in links:
            sender, receiver = (link.lower, link.upper) if upwards else (link.upper, link.lower)
            number = self._context.net.port_number(sender)
            connected = all(self._context.is_connected(end.switch) for end in (sender, receiver))
            if number is None or not connected:
                continue  # Of a switch that is away nobody hears.
            frame = self._frame(sender)
            come = asyncio.Event()
            self._waiting[frame] = (receiver.switch, come)
            if len(self._waiting) > KEPT:
                del self._waiting[next(iter(self._waiting))]
            if self._context.send_frame(sender.switch, number, frame):
                marks.append(come)
        return marks

    def _frame(self, at: PortRef) -> bytes:
        self._sent += 1
        return probe_frame(at.switch, at.port, self._secret, self._sent, self._context.net.gateway_mac)

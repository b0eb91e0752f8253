"""Whether what was sent to a VM by the old way has come, or what it has sent by that is on its way: by marks
that the controller sends behind it.

When every switch has confirmed that the VM's traffic goes to the target, some packets are still on their way
to the source: in the queue of a link, or before a switch that the machine does not run just now. A mark is a
frame that a switch is to send over a link, behind them; the switch at the other end sends it up. When those
of all links that packets may be on have come, link after link, so have the packets.

When the VM has stopped, what it has sent is in the same places: in the queue of its server's uplink, before
the leaf or a spine. What it sends from its target goes by another leaf, and would overtake it.

The switches have entries for such frames: it is an LLDP frame as the probes of links are (record 049). At a
server's port leaves take no word about links from anybody; there it is in an IP packet whose time to live
ends at the leaf, which hands it to the controller for that.
"""

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address

import structlog

from retinue.controller.context import Context
from retinue.core.migration import Migration
from retinue.core.model import Link, PortRef
from retinue.core.model.uplinks import used_uplink
from retinue.core.packets import Ethernet, EtherType
from retinue.core.packets.ipv4 import build_ipv4
from retinue.core.packets.lldp import probe_frame
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.token_bucket import TokenBucket
from retinue.patience import patience

PATIENCE = 0.3
"""Seconds that marks may take over all the links together. One that a link or a meter has lost never comes,
and of what is slower than that nobody waits: the VM's packets do, at its target."""
KEPT = 4096
"""Marks that are remembered: a spine sends one back, too, later than anybody waits for it."""
MOST_A_SECOND = 2000
"""Marks in all, and at once: as many as probes, with which they share a meter (core.pipeline.meters.PROBES).
Beyond that probes would be lost, and sound links be taken for broken, whoever asks so often."""

NOBODY = IPv4Address("192.0.2.1")
"""Where a mark over an uplink is from, and to (RFC 5737, 3: "should not appear on the public Internet")."""
FOR_EXPERIMENTS = 253
"""Protocol number of IP (RFC 3692, 2.1)."""

Mark = tuple[PortRef, str, bytes]
"""From which port it goes, at which switch it comes in, and the frame."""

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
        ways = underlay_of(self._context.net).old_ways(migration.source, migration.target)
        return await self._come(migration.id, [self._over(links) for links in ways])

    async def gone(self, migration: Migration) -> bool:
        """Return when what the VM has sent, and its source's switch has sent on, has come to the switches
        above the source's leaf; False as `passed`."""
        ways = underlay_of(self._context.net).ways_up(migration.source)
        uplink = self._over_uplink(migration.source)
        return await self._come(migration.id, [uplink, *(self._over(links) for links in ways)])

    def heard(self, switch: str, frame: bytes) -> bool:
        """A switch has sent up a frame; False if it is no mark of ours."""
        found = self._waiting.get(frame)
        if found is None:
            return False
        at, come = found
        if switch == at:
            come.set()
        return True

    async def _come(self, migration: str, ways: Sequence[Sequence[Mark]]) -> bool:
        clock = asyncio.get_running_loop().time
        try:
            async with patience(PATIENCE):
                for marks in ways:
                    if not self._room.take(clock(), len(marks)):
                        log.info("migration.too_many_marks", migration=migration)
                        return False
                    await asyncio.gather(*(mark.wait() for mark in self._sent_of(marks)))
        except TimeoutError:
            log.info("migration.mark_not_come", migration=migration, limit_s=PATIENCE)
            return False
        return True

    def _sent_of(self, marks: Sequence[Mark]) -> list[asyncio.Event]:
        """Of these marks those that were sent."""
        sent = []
        for sender, receiver, frame in marks:
            number = self._context.net.port_number(sender)
            connected = all(self._context.is_connected(end) for end in (sender.switch, receiver))
            if number is None or not connected:
                continue  # Of a switch that is away nobody hears.
            come = asyncio.Event()
            self._waiting[frame] = (receiver, come)
            if len(self._waiting) > KEPT:
                del self._waiting[next(iter(self._waiting))]
            if self._context.send_frame(sender.switch, number, frame):
                sent.append(come)
        return sent

    def _over(self, links: Sequence[tuple[Link, bool]]) -> list[Mark]:
        """Each up or down."""
        ends = ((link.lower, link.upper) if up else (link.upper, link.lower) for link, up in links)
        return [(sender, receiver.switch, self._frame(sender)) for sender, receiver in ends]

    def _over_uplink(self, server: str) -> list[Mark]:
        """From a server's edge to its leaf."""
        net = self._context.net
        edge, at = net.servers[server].edge, underlay_of(net).attachment(server)
        if not edge or at is None:
            return []
        sender = PortRef(edge, used_uplink(net, edge))
        packet = build_ipv4(NOBODY, NOBODY, FOR_EXPERIMENTS, self._frame(sender), ttl=1)
        frame = Ethernet(net.gateway_mac, net.servers[server].mac, EtherType.IPV4, packet).build()
        return [(sender, at[0], frame)]

    def _frame(self, at: PortRef) -> bytes:
        self._sent += 1
        return probe_frame(at.switch, at.port, self._secret, self._sent, self._context.net.gateway_mac)

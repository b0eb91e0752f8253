"""Probes over the fabric's links: whether what one end sends comes in at the other, and comes back.

`core.link_watch` judges. A probe is an LLDP frame that the controller has the switch at a link's lower end
send by a packet-out. The one at the upper end sends it up, and back, by an entry of its own: so it need not
be connected. A probe counts if it is, byte for byte, one that was sent, and each time once. A frame that a
switch is to send up itself, behind the probes, tells whether it was slow: then the round says nothing.

At most MOST_A_SECOND are sent, whatever the fabric's size: in one with more links a round takes longer.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.link_changes import LinkLost, LinkReturned
from retinue.core.link_watch import LinkLimits, WatchedLink
from retinue.core.model import Link, PortRef
from retinue.core.model.links import has_carrier
from retinue.core.model.network import Owner
from retinue.core.model.uplinks import all_found
from retinue.core.packets.lldp import probe_frame
from retinue.core.pipeline.entry import PortNo

MOST_A_SECOND = 2000
BATCH = 20
"""Frames sent at once, before others have their turn."""
ETHERNET_BYTES = 14
MOST_SUSPECTS = 4
"""Links that are sent many probes at a time: what is wrong with more is no link's fault."""


@dataclass(slots=True)
class _Probe:
    """One that has been sent."""

    link: Link
    number: int
    """The round."""
    there: bool = False
    back: bool = False
    """It has come in at the upper end, and at the lower one again: of either is told once, in any order."""


class LinkProbes:
    """Knows of each link between switches whether it loses frames."""

    def __init__(self, context: Context, limits: LinkLimits, secret: bytes) -> None:
        """`secret`: what makes a probe this controller's; nobody can guess it, who sees some neither."""
        self._context = context
        self._limits = limits
        self._secret = secret
        self._links: dict[Link, WatchedLink] = {}
        self._number = 0
        self._sent = 0
        """Frames, of all rounds: no two are the same."""
        self._probes: dict[bytes, _Probe] = {}
        """By what was sent: probes of the rounds that are looked at."""
        self._echoes: dict[bytes, str] = {}
        """The same, of this round, of frames that a switch is to send up itself."""
        self._answered: set[str] = set()
        """Switches that have, in this round."""
        self.changed: Callable[[str], None] = lambda lower: None
        """Called with the lower end's switch when a link was lost, or has returned."""

    def watched(self, link: Link) -> WatchedLink | None:
        return self._links.get(link)

    async def run(self, seconds: float) -> None:
        """Rounds without end, of so many seconds each at the least."""
        clock = asyncio.get_running_loop().time
        last = clock()
        while True:
            began = clock()
            try:
                sending = self.begin()
                while batch := list(islice(sending, BATCH)):
                    for send in batch:
                        send()
                    await asyncio.sleep(len(batch) / MOST_A_SECOND)
                await asyncio.sleep(max(seconds - (clock() - began), seconds / 2))
                now = clock()
                self.end(now - last)
                last = now
            except Exception as error:
                self._context.failed("probes of links", error)
                await asyncio.sleep(1.0)

    def forget(self) -> None:
        """Links are not probed any more: those that were lost are used again."""
        for link in self._all():
            if link.lower in self._context.net.lost_links:
                self._change(link, LinkReturned(link.lower, link.upper))

    # ---- a round ----

    def begin(self) -> Iterator[Callable[[], object]]:
        """What a round sends; each is to be called."""
        self._number += 1
        oldest = self._number - self._limits.looked_at
        self._probes = {frame: probe for frame, probe in self._probes.items() if probe.number >= oldest}
        self._echoes, self._answered = {}, set()
        self._follow()
        suspects = set(islice((link for link, one in self._links.items() if one.is_suspect), MOST_SUSPECTS))
        asked: dict[str, None] = {}
        ready = cache(self._is_ready)
        for link, watched in list(self._links.items()):
            if not self._can_be_probed(link):
                watched.forget()
                continue
            if not (ready(link.lower.switch) and ready(link.upper.switch)):
                continue
            count = self._limits.burst if link in suspects else 1
            watched.begin(self._number, count)
            asked[link.lower.switch] = None
            for n in range(count):
                yield partial(self._send, _Probe(link, self._number), large=(self._number + n) % 2 == 1)
        for switch in asked:
            yield partial(self._ask, switch)

    def end(self, seconds: float) -> None:
        """The round has had its time: it is looked at. `seconds`: since the last one ended."""
        there = set(self._all())
        for link, watched in self._links.items():
            if link not in there:
                continue  # An uplink that was found elsewhere since the round began.
            watched.end(seconds, answered=link.lower.switch in self._answered)
            is_lost = link.lower in self._context.net.lost_links
            if not watched.usable and not is_lost:
                self._change(link, LinkLost(link.lower, link.upper, watched.reason))
            elif watched.usable and is_lost:
                self._change(link, LinkReturned(link.lower, link.upper))

    def heard(self, switch: str, port: int, frame: bytes) -> None:
        """A switch has sent up an LLDP frame: from another, or one of ours to itself."""
        if port == PortNo.CONTROLLER:
            if self._echoes.pop(frame, "") == switch:
                self._answered.add(switch)
            return
        probe = self._probes.get(frame)
        watched = None if probe is None else self._links.get(probe.link)
        if probe is None or watched is None:
            self._context.counters[Count.PROBES_NOT_OURS] += 1
            return
        here = PortRef(switch, self._context.net.port_name(switch, port) or str(port))
        if here == probe.link.lower:
            if not probe.back:
                probe.back = True
                watched.back(probe.number)
        elif here != probe.link.upper:
            watched.elsewhere = str(here)
        elif not probe.there:
            probe.there = True
            watched.there(probe.number)

    # ---- parts of it ----

    def _all(self) -> list[Link]:
        net = self._context.net
        return [*net.links, *all_found(net)]

    def _follow(self) -> None:
        """Links are the configuration's, and uplinks as they are found; of those that were lost before this
        controller began it goes on."""
        net, links = self._context.net, self._all()
        for gone in self._links.keys() - set(links):
            del self._links[gone]
        for link in links:
            if link not in self._links:
                ends = str(link.lower), str(link.upper)
                reason = net.lost_links.get(link.lower)
                self._links[link] = (
                    WatchedLink(*ends, self._limits)
                    if reason is None
                    else WatchedLink.lost_before(*ends, self._limits, reason)
                )

    def _is_ready(self, switch: str) -> bool:
        """The switch at an end should send probes up, or back: it has its entries, or it is away."""
        if not self._context.is_connected(switch):
            return self._context.is_away(switch)
        return self._context.installer.switches[switch].has_confirmed_of(Owner("switch", switch))

    def _can_be_probed(self, link: Link) -> bool:
        net, lower = self._context.net, link.lower
        told = net.port_number(lower) is not None and self._context.is_connected(lower.switch)
        server = net.server_of_edge(lower.switch)
        shut_out = server is not None and server.id in net.fenced
        return told and has_carrier(net, link) and not shut_out

    def _send(self, probe: _Probe, *, large: bool) -> None:
        """`large`: as the longest packets are, which some links lose before others."""
        at = probe.link.lower
        number = self._context.net.port_number(at)
        if number is not None and self._context.is_connected(at.switch):
            length = ETHERNET_BYTES + self._context.net.mtu if large else 0
            frame = self._frame(at).ljust(length, b"\0")
            self._probes[frame] = probe
            self._context.send_frame(at.switch, number, frame)

    def _ask(self, switch: str) -> None:
        if self._context.is_connected(switch):
            frame = self._frame(PortRef(switch, "controller"))
            self._echoes[frame] = switch
            self._context.send_frame(switch, PortNo.TABLE, frame)

    def _frame(self, at: PortRef) -> bytes:
        self._sent += 1
        return probe_frame(at.switch, at.port, self._secret, self._sent, self._context.net.gateway_mac)

    def _change(self, link: Link, change: LinkLost | LinkReturned) -> None:
        touched = self._context.apply(change)
        self._context.spawn(self._context.install(touched), f"ways beside {link.lower}")
        self.changed(link.lower.switch)

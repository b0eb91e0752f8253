"""Switches and links as managers give them, while all runs: nobody's packet is lost by it.

    it is added     the switches at its ends get what they should hold. A link is idle: it is no way up
    it is in place  both ends have confirmed that, and probes come back: it is used
    it is to go     it is idle again; whoever sent by it confirms that he does so no more; what he has sent
                    arrives, also by what his cache of flows still knows
    it is removed   the entries that were there for it go

A switch comes before its links, and goes after them. One that joins some of the leaves only gets nothing from
any (`core.model.links`): so its links may come and go one by one.
"""

import asyncio
from collections.abc import Callable, Collection

from retinue.controller.context import Context
from retinue.controller.errors import RequestError, are_new, is_there, no_server
from retinue.controller.fabric_changes import (
    LinkLeft,
    LinkRemoved,
    LinksRegistered,
    LinkUsed,
    ServerRemoved,
    SwitchRegistered,
    SwitchRemoved,
    check_server_goes,
    places_left,
)
from retinue.controller.marks import left_elsewhere
from retinue.controller.router_changes import RouterLost, RouterReturned
from retinue.core.link_watch import WatchedLink
from retinue.core.model import Link, ModelError, PortRef, Role, Switch
from retinue.core.model.fabric_checks import forwards
from retinue.core.model.in_use import first_few
from retinue.core.model.links import has_carrier
from retinue.core.model.network import Touched
from retinue.core.model.ways import routers_beside
from retinue.protocol.errors import ErrorCode

STILL_COMING = 2.0
"""Seconds after which nothing comes any more by a link that nobody sends up by: Open vSwitch looks at its
cache of flows twice a second, and a packet crosses the fabric in milliseconds."""


class FabricInventory:
    """Registers switches and links: each call makes all of what it is asked for or, on a mistake, nothing."""

    def __init__(
        self,
        context: Context,
        watched: Callable[[Link], WatchedLink | None],
        *,
        probed: bool,
        still_coming: float = STILL_COMING,
    ) -> None:
        """`probed`: links are, and a new one is used when its probes, which are `watched`, come back."""
        self._context = context
        self._net = context.net
        self._watched = watched
        self._probed = probed
        self._still_coming = still_coming
        self._leaving: set[PortRef] = set()
        """Links that are about to go."""
        self._leaving_servers: set[str] = set()
        self.read_again: Callable[[int], None] = lambda dpid: None
        """Called with a datapath id that is one of ours from now on, or another's: whose the database is that
        shows it is judged anew."""

    # ---- requests of managers ----

    async def add_switches(self, switches: Collection[Switch]) -> None:
        """Returns when the switches that are there have confirmed it. Raises ModelError."""
        are_new("switch", [switch.id for switch in switches], self._net.switches)
        touched = self._context.apply(*(SwitchRegistered(switch) for switch in switches))
        await self._followed(touched, [switch.dpid for switch in switches])

    async def set_switch(self, switch: Switch) -> None:
        """Raises ModelError where what is at the switch would be cut off."""
        is_there("switch", switch.id, switch.id in self._net.switches, ErrorCode.UNKNOWN_SWITCH)
        before = self._net.switches[switch.id]
        is_another = before.dpid != switch.dpid
        if is_another and self._net.server_of_edge(switch.id) is not None:
            raise ModelError(
                f"switch {switch.id}: a server runs on it; its datapath id may be another once no server has "
                "it as its edge"
            )
        several = switch.uplinks if switch.standby else ()
        left = places_left(self._net, switch.id, several) if switch.role is Role.EDGE else ()
        touched = self._context.apply(SwitchRegistered(switch, left))
        if is_another:
            self._context.knowledge.edges_read.discard(switch.id)
            self._context.installer.switches[switch.id].leave(f"{switch.id} is {switch.dpid:#x} from now on")
        await self._followed(touched, [before.dpid, switch.dpid] if is_another else [])

    async def remove_switch(self, id: str) -> None:
        """Raises ModelError while a link leads there, or a server is at it. What it holds stays there."""
        is_there("switch", id, id in self._net.switches, ErrorCode.UNKNOWN_SWITCH)
        switch = self._net.switches[id]
        touched = self._context.apply(
            SwitchRemoved(switch, places_left(self._net, id), self._is_configured(f"switch {id}"))
        )
        self._context.knowledge.edges_read.discard(id)
        for left in [one for one in self._context.state.left_ports.values() if id in one.switches]:
            self._context.apply(left_elsewhere(left, id))
        await self._followed(touched, [switch.dpid])

    async def add_links(self, links: Collection[Link]) -> None:
        """Returns when the switches that are there have what they should hold for them. Raises ModelError.

        They are used when both ends are in place: see `look`.
        """
        await self._context.commit(LinksRegistered(tuple(links)))
        self.look()

    async def remove_link(self, lower: PortRef) -> None:
        """Returns when it is no more. Raises ModelError where packets would be lost without it, RequestError
        while a switch that sends by it has not confirmed that it does so no more."""
        link = self._net.link_at(lower)
        if link is None:
            raise RequestError(
                f"there is no link at {lower}; `retinue link list` shows those there are",
                ErrorCode.UNKNOWN_LINK,
            )
        if lower in self._leaving:
            raise RequestError(f"link {lower} is being removed already", ErrorCode.CONFLICT)
        was_used, configured = lower not in self._net.idle_links, self._is_configured(f"link {link}")
        self._leaving.add(lower)
        try:
            touched = self._context.apply(LinkLeft(link, configured))
            report = await self._context.install(touched)
            self._all_have_left(link, touched, report.missing, was_used=was_used)
            await asyncio.sleep(self._still_coming if was_used else 0)
            gone = LinkRemoved(link, configured)
            await self._context.install(self._context.apply(gone))
        finally:
            self._leaving.discard(lower)

    async def remove_server(self, id: str) -> None:
        """Returns when it is no more. Of several routers to one prefix the others are the way first.

        Raises ModelError while something runs there, RequestError while a switch has not confirmed the other
        ways.
        """
        if id not in self._net.servers:
            raise no_server(id)
        if id in self._leaving_servers:
            raise RequestError(f"server {id} is being removed already", ErrorCode.CONFLICT)
        check_server_goes(self._context.state, id)
        self._leaving_servers.add(id)
        try:
            await self._others_are_the_way(id)
            gone = ServerRemoved(self._net.servers[id], self._is_configured(f"server {id}"))
            await self._context.install(self._context.apply(gone))
        finally:
            self._leaving_servers.discard(id)

    def _is_configured(self, what: str) -> bool:
        return what in self._net.configured

    def is_leaving(self, server: str) -> bool:
        """A server that is about to be removed: a router of these does not become the way again."""
        return server in self._leaving_servers

    async def _others_are_the_way(self, id: str) -> None:
        """Returns when nothing comes to a router that others take the place of."""
        if not routers_beside(self._net, id) or id in self._net.lost_routers:
            return
        touched = self._context.apply(RouterLost(id, "it is about to be removed"))
        report = await self._context.install(touched)
        if report.missing:
            back = self._context.apply(RouterReturned(id))
            self._context.spawn(self._context.install(back), f"router {id} stays")
            silent = first_few(sorted(report.missing))
            raise RequestError(
                f"server {id} stays: {silent} has not confirmed the ways by the other routers; "
                "`retinue switch list` shows the switches",
                ErrorCode.PARTY_AWAY,
            )
        await asyncio.sleep(self._still_coming)

    def _all_have_left(
        self, link: Link, touched: Touched, missing: Collection[str], *, was_used: bool
    ) -> None:
        """Raises RequestError, and the link is used as before, where one has not confirmed it."""
        owners = [one for one in touched if one.kind == "switch" and not self._context.is_programmed(one)]
        silent = sorted(
            name
            for name in ({owner.id for owner in owners} | set(missing)) & self._net.switches.keys()
            if self._net.switches[name].role is not Role.EDGE and forwards(self._net, name)
        )
        if not silent:
            return
        if was_used:
            undone = self._context.apply(self._used(link))
            self._context.spawn(self._context.install(undone), f"link {link.lower} stays")
        raise RequestError(
            f"link {link.lower} - {link.upper} stays: {', '.join(silent[:3])} has not confirmed that nothing "
            "is sent by it; `retinue switch list` shows the switches",
            ErrorCode.PARTY_AWAY,
        )

    async def _followed(self, touched: Touched, dpids: Collection[int]) -> None:
        self._context.installer.follow()
        for dpid in dpids:
            self.read_again(dpid)
        await self._context.install(touched)

    # ---- new links ----

    def look(self) -> None:
        """Each second: new links that are in place are used from now on, all of them at once."""
        if self._net.idle_links:
            ready = [link for link in self._net.links if self._is_new(link) and not self.why_idle(link)]
            if ready:
                touched = self._context.apply(*(self._used(link) for link in ready))
                self._context.spawn(self._context.install(touched), "new links")

    def _used(self, link: Link) -> LinkUsed:
        return LinkUsed(link, self._is_configured(f"link {link}"))

    def _is_new(self, link: Link) -> bool:
        return link.lower in self._net.idle_links and link.lower not in self._leaving

    def why_idle(self, link: Link) -> str:
        """What a link that is idle waits for, in a sentence; "": nothing."""
        net = self._net
        if link.lower in self._leaving:
            return "it is about to be removed"
        for end in (link.lower, link.upper):
            switch = self._context.installer.switches[end.switch]
            if not switch.is_read:
                return f"switch {end.switch} is not connected"
            if net.port_number(end) is None:
                return f"switch {end.switch} has no port {end.port}"
            if not switch.pending <= switch.held:
                return f"switch {end.switch} has yet to confirm entries"
        if self._context.not_installed:
            return "entries are being computed"
        if not has_carrier(net, link):
            return "it has no carrier"
        if link.lower in net.lost_links:
            return net.lost_links[link.lower]
        watched = self._watched(link)
        if self._probed and (watched is None or not watched.is_looked_at or watched.is_suspect):
            return "its probes have not come back yet"
        return ""

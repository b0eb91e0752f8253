"""Edges with several uplinks: to which leaf each leads, and which is in use.

Where an uplink leads is found by frames of the controller's own: LLDP that the edge sends by it, and a leaf
hands up, byte for byte. Nobody else can say it: not by ARP, as of servers with one uplink. Whether an uplink
loses frames is known as of links between switches (`link_probes`); which one is used, `core.uplink_choice`
decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

from retinue.controller.context import Context
from retinue.controller.inventory.server_locations import ServerLocations
from retinue.controller.neighbours.leaf_ports import leaf_port
from retinue.controller.uplink_changes import UplinkFound, UplinkUsed
from retinue.core.model import ModelError, PortRef, Role, Server
from retinue.core.model.links import lead_on
from retinue.core.model.uplinks import Rank, at_switch, displaced, has_several, ranks
from retinue.core.packets.lldp import probe_frame
from retinue.core.pipeline.underlay.fabric_uplinks import told_at_once
from retinue.core.uplink_choice import ChoiceLimits, UplinkChoice

REMEMBERED = 5
"""Seconds for which a frame that was sent is known when it comes in."""


@dataclass(slots=True)
class _Sent:
    """A frame that was sent by an uplink."""

    uplink: PortRef
    at: float
    came: bool = False
    """A leaf has handed it up. It tells once: a server that repeats it at other leaves moves nothing."""


class Uplinks:
    """Knows of each server with several uplinks where they lead, and chooses one."""

    def __init__(
        self, context: Context, locations: ServerLocations, limits: ChoiceLimits, secret: bytes
    ) -> None:
        """`secret`: as that of LinkProbes, and another one."""
        self._context = context
        self._locations = locations
        self._limits = limits
        self._secret = secret
        self._choices: dict[str, UplinkChoice] = {}
        self._sent: dict[bytes, _Sent] = {}
        self._number = 0

    def tick(self) -> None:
        """Each second: looks where uplinks lead of which that is not known, or no longer so, and chooses."""
        now = self._context.clock()
        self._sent = {f: sent for f, sent in self._sent.items() if 0 <= now - sent.at < REMEMBERED}
        leads = cache(partial(lead_on, self._context.net))
        for server in self._several():
            known = ranks(self._context.net, server.id, leads)
            self._search(server, known)
            self._choose(server, known)

    def look(self, switch: str) -> None:
        """A port of this switch, or a link there, has changed: another uplink may be the better one."""
        net = self._context.net
        between = net.switches[switch].role in (Role.SPINE, Role.CORE)
        servers = self._several() if between else [net.servers[name] for name in at_switch(net, switch)]
        leads = cache(partial(lead_on, net))
        for server in servers:
            self._choose(server, ranks(net, server.id, leads))

    def heard(self, switch: str, port: int, frame: bytes) -> bool:
        """A switch has sent up an LLDP frame; False if it is none of these."""
        sent = self._sent.get(frame)
        if sent is None:
            return False
        net, uplink = self._context.net, sent.uplink
        here, server = leaf_port(net, switch, port), net.server_of_edge(uplink.switch)
        # What its leaf has sent back comes in at the edge.
        at_leaf = net.switches[switch].role is Role.LEAF and here is not None and not sent.came
        if at_leaf and here is not None and server is not None:
            sent.came = True
            self._found(server, uplink, here)
        return True

    # ---- parts of it ----

    def _several(self) -> list[Server]:
        net = self._context.net
        edges = (edge for edge in net.with_role(Role.EDGE) if edge.standby)
        return [server for edge in edges if (server := net.server_of_edge(edge.id)) is not None]

    def _choose(self, server: Server, known: Mapping[str, Rank]) -> None:
        net, now = self._context.net, self._context.clock()
        before = net.in_use.get(server.edge, "")
        choice = self._choices.get(server.edge)
        if choice is None or choice.used != before:
            choice = UplinkChoice.as_it_was(self._limits, before, net.switches[server.edge].uplinks)
            self._choices[server.edge] = choice
        ready = [name for name in known if self._is_ready(server, name)]
        uplink = choice.look(known, ready, now)
        if uplink is not None:
            self._use(server, uplink, before)

    def _search(self, server: Server, known: Mapping[str, Rank]) -> None:
        net = self._context.net
        if not self._context.is_connected(server.edge):
            return  # Of one that is fenced, too: it is shut out at each port that is known, and at no other.
        for name in net.switches[server.edge].uplinks:
            uplink = PortRef(server.edge, name)
            number = net.port_number(uplink)
            if number is None or net.is_down(uplink) or known.get(name, Rank.NO_CARRIER) >= Rank.SOUND:
                continue
            self._number += 1
            frame = probe_frame(server.edge, name, self._secret, self._number, net.gateway_mac)
            self._sent[frame] = _Sent(uplink, self._context.clock())
            self._context.send_frame(server.edge, number, frame)

    def _found(self, server: Server, uplink: PortRef, here: PortRef) -> None:
        net = self._context.net
        if net.uplink_places.get(uplink) == here:
            return
        if net.switches[here.switch].given:
            self._locations.reject(server.id, here, f"places at {here.switch} are given, none found")
            return
        holder = self._locations.holder(here, server.id)
        if holder is not None and not has_several(net, holder):
            reason = f"server {holder} is there; if it is not, remove or place it"
            self._locations.reject(server.id, here, reason)
            return
        former = tuple(displaced(net, uplink, here))
        try:
            touched = self._context.apply(UplinkFound(server.id, uplink, here, former))
        except ModelError as error:
            self._locations.reject(server.id, here, str(error))
            return
        self._context.spawn(self._context.install(touched, [{here.switch}]), f"uplink {uplink}")
        self.look(server.edge)

    def _is_ready(self, server: Server, uplink: str) -> bool:
        """Its leaf has all that can be judged of what it should have, and the edge has told its ports."""
        at = self._context.net.uplink_places[PortRef(server.edge, uplink)]
        leaf = self._context.installer.switches[at.switch]
        return leaf.is_read and leaf.pending <= leaf.held and self._context.is_connected(server.edge)

    def _use(self, server: Server, uplink: str, before: str) -> None:
        touched = self._context.apply(UplinkUsed(server.id, server.edge, uplink, before))
        near = [told_at_once(self._context.net, server.id)]
        self._context.spawn(self._context.install(touched, near), f"uplink of {server.id}")

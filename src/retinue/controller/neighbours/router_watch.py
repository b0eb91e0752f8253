"""Routers that share a prefix, watched: asked each second, and given up, or used again, as
`core.router_watch` says.

A router to whose prefixes no other leads is not asked: there would be nowhere else to go. One that is in VRFs
alone is asked by the first of its subinterfaces that has an address.
"""

from collections.abc import Callable
from ipaddress import IPv4Address

from retinue.controller.context import Context
from retinue.controller.neighbours.leaf_ports import leaf_port
from retinue.controller.router_changes import RouterLost, RouterReturned
from retinue.core.model import PortRef, Role, Server
from retinue.core.model.link_local import link_local
from retinue.core.model.ways import routers_beside
from retinue.core.packets import ND, NDOptions, NeighbourSolicitation, nd_frame, tagged
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.router_watch import (
    Asked,
    Event,
    Heard,
    LeafAway,
    LinkIs,
    NoAddress,
    Router,
    RouterLimits,
    RouterState,
    step,
)


class RouterWatch:
    """Knows of each router that shares a prefix whether it is there."""

    def __init__(
        self,
        context: Context,
        question: Callable[[Server, IPv4Address, str], bytes | None],
        limits: RouterLimits,
    ) -> None:
        """`question` asks a server for an address that it has in a VRF, by its MAC."""
        self._context = context
        self._question = question
        self._limits = limits
        self._routers: dict[str, Router] = {}
        self.is_leaving: Callable[[str], bool] = lambda server: False
        """Told of a router that is there, and is lost, for it is about to be removed: it stays so."""

    def look(self) -> None:
        """To be called each second: asks all that are watched."""
        net = self._context.net
        watched = {id for ids in net.routers_to.values() if len(ids) > 1 for id in ids}
        for id in sorted(self._routers.keys() | net.lost_routers.keys()):
            if id not in watched:
                self._routers.pop(id, None)
                if id in net.lost_routers:
                    self._change(id, RouterReturned(id))
        for id in sorted(watched):
            self._ask(id)

    def heard(self, switch: str, port: int, server: str) -> None:
        """A server has spoken at a leaf's port, by ARP or neighbour discovery."""
        net = self._context.net
        if server in self._routers and leaf_port(net, switch, port) == net.location(server):
            self._say(server, Heard())

    def link(self, switch: str, port: str, *, up: bool) -> None:
        """A leaf's port has a link from now on, or none; or it has gone."""
        net = self._context.net
        if net.switches[switch].role is not Role.LEAF:
            return
        here = PortRef(switch, port)
        for server in sorted({id for ids in net.routers_to.values() for id in ids}):
            if net.location(server) == here and routers_beside(net, server):
                self._say(server, LinkIs(up))

    def _ask(self, router: str) -> None:
        net = self._context.net
        at, server = net.location(router), net.servers[router]
        session = None if at is None else self._context.session(at.switch)
        number = None if session is None or at is None else session.ports.get(at.port)
        question = self._asked(server)
        if at is None or number is None:
            self._say(router, LeafAway())
        elif question is None:
            self._say(router, NoAddress())
        else:
            self._say(router, Asked())
            self._context.send_frame(at.switch, number, question)

    def _asked(self, server: Server) -> bytes | None:
        """The frame that asks for its address; None for one that has none."""
        if not server.addresses:
            return None
        vrf, ip = server.addresses[0]
        there = server.interface_in(vrf)
        if isinstance(ip, IPv4Address):
            question = self._question(server, ip, vrf)
        else:
            mac = self._context.net.gateway_mac
            solicited = NeighbourSolicitation(ip, NDOptions(source_mac=mac))
            question = nd_frame(ND(link_local(mac), ip, solicited), mac, server.mac)
        return None if question is None else tagged(question, 0 if there is None else there.vlan)

    def _say(self, id: str, event: Event) -> None:
        net, now = self._context.net, self._context.clock()
        lost = id in net.lost_routers
        # One that was lost when the last controller ended begins so: what switches have is left as it is.
        state = RouterState.LOST if lost else RouterState.WELL
        begun = Router(state, now, reason=net.lost_routers.get(id, ""))
        router = self._routers[id] = step(self._routers.get(id, begun), event, now, self._limits)
        if router.state is RouterState.LOST and not lost:
            self._change(id, RouterLost(id, router.reason))
        elif router.usable and lost and not self.is_leaving(id):
            self._change(id, RouterReturned(id))

    def _change(self, id: str, change: RouterLost | RouterReturned) -> None:
        """Whoever is the way from now on is told first."""
        net = self._context.net
        touched = self._context.apply(change)
        there = {id, *routers_beside(net, id)} - net.lost_routers.keys()
        near = frozenset().union(*(underlay_of(net).near(one) for one in there))
        self._context.spawn(self._context.install(touched, [near]), f"ways out by router {id}")

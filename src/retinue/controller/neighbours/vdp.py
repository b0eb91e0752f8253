"""The gateway's MAC comes down from leaves to edges by LLDP, as VDP's extension (IEEE 802.1Qbg).

Leaves of ours that have a gateway group say its MAC to the server at each of their ports, by packet-outs of
the controller; those of others say it by themselves. What an edge hears at its uplink comes here, and
`core.snooping.vdp` judges it. What is learned is a change of the model like the manager's own: the server is
put into the group, in the order that loses nothing, is kept, and stays so while a leaf is silent.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.core.model import ModelError, Role, Server
from retinue.core.model.nic import turn_of
from retinue.core.packets import FrameError
from retinue.core.packets.lldp import from_leaf, lldp_frame
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.snooping.vdp import Joins, Refused, judge
from retinue.protocol.events import EventType

EVERY_SECONDS = 30
"""msgTxInterval (802.1AB, 9.2.5.7)."""
TTL_SECONDS = 121
"""msgTxHold times that, and one (9.2.5.22)."""
HOLD_SECONDS = 25.0
"""Between two changes of a server's group by what is said: each is stored, and all of its VMs' entries
change. Less than EVERY_SECONDS, so that a leaf's next word counts."""
PROTOCOL = "LLDP"


class VdpPath:
    """Has leaves say what the gateway's MAC is, and hears what edges are told."""

    def __init__(
        self, context: Context, put_servers: Callable[[Collection[Server]], Awaitable[None]]
    ) -> None:
        """`put_servers`: servers are changed as a manager changes them; ModelError where that cannot be."""
        self._context = context
        self._put_servers = put_servers
        self._joined: dict[str, float] = {}
        """By server: when its group was last changed, or that was tried."""

    def from_edge(self, switch: str, port: int, frame: bytes) -> None:
        """An edge has taken in an LLDPDU."""
        context = self._context
        try:
            verdict = judge(context.net, switch, port, frame)
        except FrameError as error:
            context.reject_frame(PROTOCOL, f"{switch} port {port}", error)
            return
        match verdict:
            case Joins():
                context.spawn(self._join(switch, port, verdict), f"gateway group of {verdict.server}")
            case Refused(mac, reason):
                self._refuse(switch, port, mac, reason)

    async def _join(self, switch: str, port: int, told: Joins) -> None:
        known = self._context.net.servers.get(told.server)
        if known is None or known.gateway_group == told.group:
            return
        if not self._may_join(told.server):
            reason = f"server {told.server} was put into another group less than {HOLD_SECONDS:.0f} s before"
            self._refuse(switch, port, told.mac, reason)
            return
        try:
            await self._put_servers([replace(known, gateway_group=told.group)])
        except ModelError as error:  # The leaf says it again.
            self._refuse(switch, port, told.mac, str(error))
            return
        data = {"server": told.server, "group": told.group, "mac": told.mac}
        self._context.events.tell((switch, port), EventType.GATEWAY_LEARNED, **data)

    def _may_join(self, server: str) -> bool:
        now = self._context.clock()
        if server in self._joined and 0 <= now - self._joined[server] < HOLD_SECONDS:
            return False
        self._joined = {id: at for id, at in self._joined.items() if id in self._context.net.servers}
        self._joined[server] = now
        return True

    def _refuse(self, switch: str, port: int, mac: str, reason: str) -> None:
        self._context.counters[Count.GATEWAYS_REFUSED] += 1
        data = {"switch": switch, "port": port, "mac": mac, "reason": reason}
        self._context.events.tell((switch, port), EventType.GATEWAY_REFUSED, **data)

    def say(self) -> None:
        """Each second: the servers whose turn it is hear of the gateway from their leaves."""
        net, now = self._context.net, int(self._context.clock())
        leaves = {one.id: one for one in net.switches.values() if one.role is Role.LEAF and one.gateway_group}
        if not leaves:
            return
        for server in net.servers.values():
            at = underlay_of(net).attachment(server.id)
            if (
                at is None
                or at[0] not in leaves
                or not server.edge
                or (now - turn_of(server.id)) % EVERY_SECONDS
            ):
                continue
            leaf, group = leaves[at[0]], net.gateway_groups.get(leaves[at[0]].gateway_group)
            if group is not None and self._context.is_connected(leaf.id):
                said = from_leaf(leaf.id, net.port_name(*at) or str(at[1]), group.mac, TTL_SECONDS)
                self._context.send_frame(*at, lldp_frame(said, group.mac))

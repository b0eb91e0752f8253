"""A server's MAC by the name in a certificate: its agent says which one it is, and who the agent is, TLS has
shown.

    the server           its MAC is known        verdict
    has this MAC                                 known
    is fenced, or is several hosts               not taken
    is another           not yet                 taken: it is looked for by this one
    is another           and it answers by it    not taken: the agent means another interface
    is another           and it is silent        taken: its network card was replaced
    is another           and it has no address   not taken: nobody can ask whether it still has it
    is another           and its leaf is away    not taken yet: nobody can ask now

A server whose MAC nobody has given yet has one to come (`mac_to_come`), as one that is known by its LLDP
chassis id. Whether the MAC may be a server's at all the network judges, as for a manager.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from retinue.controller.context import Context
from retinue.controller.errors import no_server
from retinue.controller.inventory.server_locations import ServerLocations
from retinue.core.model import Mac, Server, mac_to_come
from retinue.protocol.events import EventType


@dataclass
class OwnMacs:
    """Takes the words of servers' agents."""

    _context: Context
    _locations: ServerLocations
    _put_servers: Callable[[Collection[Server]], Awaitable[None]]
    """Servers are changed as a manager changes them; ModelError where that cannot be."""

    async def told(self, server: str, mac: Mac) -> str:
        """Why the server is not known by this MAC from now on; "" if it is. Raises ModelError where it can be
        no server's, RequestError where there is no such server."""
        known = self._known(server)
        if known.mac == mac:
            return ""
        if server in self._context.net.fenced:
            return f"server {server} is fenced"
        if known.hosts:
            return f"server {server} is several hosts; its manager says which MACs they have"
        here = self._context.net.location(server)
        before = "" if known.mac == mac_to_come(server) else known.mac
        if before:
            if not isinstance(known.address, IPv4Address) or here is None:
                return (
                    f"server {server} has MAC {before}, and nobody can ask whether it still has it; "
                    "a manager may register it with another (POST /v1/servers)"
                )
            # After a start agents are often back before the leaves: who was not asked is not silent.
            could_be_asked = self._locations.can_be_asked(here)
            if could_be_asked and not await self._locations.is_silent(server, here):
                return f"server {server} answers by MAC {before}, or was asked a moment ago"
            if not could_be_asked or not self._locations.can_be_asked(here):
                return (
                    f"server {server} has MAC {before}, and is not asked whether it still has it: {here} is "
                    "down"
                )
            if self._known(server) != known:
                return f"server {server} was changed meanwhile"
        await self._put_servers([replace(known, mac=mac)])
        data = {"server": server, "mac": mac, "before": before, "location": "" if here is None else str(here)}
        self._context.events.publish(EventType.SERVER_IDENTIFIED, **data)
        self._locations.ask_for_missing()
        return ""

    def _known(self, server: str) -> Server:
        known = self._context.net.servers.get(server)
        if known is None:
            raise no_server(server)
        return known

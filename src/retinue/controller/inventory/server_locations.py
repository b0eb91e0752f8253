"""Where servers are: asked for, found by their ARP, followed when they are moved.

ARP proves nothing: whoever is at a leaf's port can send it with any server's MAC, and with the place goes the
traffic of all its VMs. So a place that was found is given up only by a server that has left it.

    a server's ARP comes in at             what becomes of it
    the place it is known at               a sign of life; ends the question, if one is open
    the place of another server            rejected
    the place the operator gave it         it is there
    a leaf whose places are all given      rejected
    a free port, its place not known       it is there
    a free port, its former port removed   it was moved
    a free port otherwise                  it is asked at its former place: it was moved if that stays silent,
                                           else rejected

Two servers that changed places each send from the other's port. A server that does not answer where it is
known, though its ARP came in elsewhere, no longer holds its port against others.
"""

import asyncio
from ipaddress import IPv4Address

from retinue.controller.changes import ServerLocated
from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.switches.readback import SwitchSession
from retinue.core.model import DEFAULT_VRF, PortRef, Role, Server, mac_to_come
from retinue.core.model.uplinks import has_several, holders, places
from retinue.core.packets import arp_request
from retinue.core.pipeline.entry import PortNo
from retinue.core.pipeline.underlay import underlay_of
from retinue.protocol.events import EventType

SILENCE = 1.0
"""Seconds in which a server answers at its place, if it is there."""
ASKED_AT_ONCE = 50
"""Servers looked for in one second; others have their turn in the next."""
LONGEST_WAIT = 60.0
"""Seconds after which a server that is not found is looked for again; sooner at first."""


class ServerLocations:
    """Decides what a server's ARP at a leaf port means, and asks for servers whose place is not known."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.silence = SILENCE
        self.pending_verification: dict[str, asyncio.Event] = {}
        """Servers being asked at their known place whether they are still there; the event is set by an
        answer."""
        self._away: set[str] = set()
        self._last: dict[tuple[str, str], float] = {}
        self._asked: dict[str, tuple[float, float]] = {}
        """When a missing server was last asked for, and how long from then until the next time."""
        self._second = (0.0, 0)
        """Since when servers are counted, and how many were asked for."""
        self._leaves: dict[str, SwitchSession] = {}

    # ---- found by their ARP ----

    def seen(self, server: str, here: PortRef) -> None:
        """A server's ARP came in at this leaf port."""
        net = self._context.net
        if net.servers[server].mac == mac_to_come(server):
            return  # No server has this MAC, and whoever knows the name can send by it.
        before = net.detected.get(server)
        several = has_several(net, server)
        if here == before or (several and here in places(net, server)):
            self._away.discard(server)
            if server in self.pending_verification:
                self.pending_verification[server].set()
            return
        if several:
            return  # Its uplinks are found by what nobody else can send (see `neighbours.uplinks`).
        if here == net.servers[server].given_at:
            self._found(server, here)
            return
        if net.switches[here.switch].given:
            self.reject(server, here, f"places at {here.switch} are given, and this is not {server}'s")
            return
        holder = self.holder(here, server)
        if holder is not None:
            self.reject(server, here, f"server {holder} is there; if it is not, remove or place it")
        if before is not None and self._port(before) is not None:
            self._ask_first(server, before, here)
        elif holder is None:
            self._found(server, here)
        else:
            self._away.add(server)

    def _found(self, server: str, here: PortRef) -> None:
        """A server found, or found elsewhere, is noticed, and its flows and its VMs' follow."""
        context = self._context
        touched = context.apply(ServerLocated(server, here, context.net.detected.get(server)))
        if touched:
            self._away.discard(server)
            near = [underlay_of(context.net).near(server)]
            context.spawn(context.install(touched, near), f"flows of server {server}")

    def reject(self, server: str, here: PortRef, reason: str) -> None:
        """What says that a server is here is not believed: counted, and told."""
        self._context.counters[Count.LOCATIONS_REJECTED] += 1
        if self._once_a_second("rejected", server):
            known = self._context.net.location(server)
            self._context.events.publish(
                EventType.SERVER_CONFLICT,
                server=server,
                location=str(here),
                known=None if known is None else str(known),
                reason=reason,
            )

    def holder(self, here: PortRef, server: str) -> str | None:
        """The other server whose place this port is."""
        there = holders(self._context.net, here)
        return next((other for other in there if other != server and other not in self._away), None)

    # ---- verified at its former place ----

    def _ask_first(self, server: str, before: PortRef, here: PortRef) -> None:
        if server in self.pending_verification or not self._once_a_second("asked", server):
            return
        answered = self.pending_verification[server] = asyncio.Event()
        question, number = self.question(self._context.net.servers[server]), self._port(before)
        if question is not None and number is not None:
            self._context.send_frame(before.switch, number, question)
        self._context.spawn(self._decide(server, before, here, answered), f"place of server {server}")

    async def _decide(self, server: str, before: PortRef, here: PortRef, answered: asyncio.Event) -> None:
        net = self._context.net
        try:
            async with asyncio.timeout(self.silence):
                await answered.wait()
        except TimeoutError:
            pass
        finally:
            self.pending_verification.pop(server, None)
        if server not in net.servers or net.detected.get(server) != before:
            return  # It was removed, or found elsewhere, meanwhile.
        if answered.is_set():
            self.reject(server, here, f"it answers at {before}; somebody at {here} uses its MAC")
        elif self.holder(here, server) is not None:
            self._away.add(server)
        elif net.port_number(here) is not None:
            self._found(server, here)

    async def is_silent(self, server: str, here: PortRef) -> bool:
        """True when a server that is asked at this port by the MAC it is known by does not answer. Asked once
        a second; False in between."""
        if server in self.pending_verification or not self._once_a_second("asked by its MAC", server):
            return False
        net, before = self._context.net, self._context.net.detected.get(server)
        answered = self.pending_verification[server] = asyncio.Event()
        question, number = self.question(net.servers[server]), self._port(here)
        if question is not None and number is not None:
            self._context.send_frame(here.switch, number, question)
        try:
            async with asyncio.timeout(self.silence):
                await answered.wait()
        except TimeoutError:
            pass
        finally:
            self.pending_verification.pop(server, None)
        # One that was missing has been found by its answer.
        return not answered.is_set() and net.detected.get(server) == before

    def can_be_asked(self, here: PortRef) -> bool:
        """Whether a question gets out of this leaf port: its leaf is there, and its link has a carrier."""
        session = self._context.session(here.switch)
        return session is not None and here.port in session.ports and here.port not in session.down

    def _port(self, at: PortRef) -> int | None:
        """The number of a leaf's port that could be asked now; None if the port, or its leaf, is away."""
        session = self._context.session(at.switch)
        return None if session is None else session.ports.get(at.port)

    def question(self, server: Server) -> bytes | None:
        """Ask a server for its address, by its own MAC; None for one that has no IPv4 address."""
        address = server.address
        return self.question_for(server, address) if isinstance(address, IPv4Address) else None

    def question_for(self, server: Server, address: IPv4Address, vrf: str = DEFAULT_VRF) -> bytes | None:
        """Ask for this address, which it has in a VRF; None where no gateway is there to ask."""
        asker = self._asker(address, vrf)
        if asker is None:
            return None
        return arp_request(self._context.net.gateway_mac, asker, address, dst=server.mac)

    def _asker(self, asked: IPv4Address, vrf: str) -> IPv4Address | None:
        """Who asks for an address: the gateway of its subnet or, where it is in none, some gateway of ours.

        Never 0.0.0.0: who asks so means to use the address, RFC 5227 2.1.1 ("ARP Probe"), and its owner
        takes it for a conflict.
        """
        net = self._context.net
        own = net.subnet_of(asked, vrf)
        subnets = [own] if own is not None else sorted(net.subnets_in(vrf), key=lambda subnet: subnet.id)
        return next((s.gateway for s in subnets if isinstance(s.gateway, IPv4Address)), None)

    def _once_a_second(self, what: str, server: str) -> bool:
        now = self._context.clock()
        last = self._last.get((what, server))
        if last is not None and 0 <= now - last < 1.0:
            return False
        self._last[what, server] = now
        return True

    # ---- asked for ----

    def ask_for_missing(self) -> None:
        """Ask for servers whose place is not known, at every leaf port that may have one.

        May be called at any time: it asks for no more than ASKED_AT_ONCE servers a second, those first that
        were not asked for the longest, and for each at most every second, then 2, 4, ... LONGEST_WAIT. A leaf
        that was not there before makes it begin again.
        """
        context, net = self._context, self._context.net
        now = context.clock()
        sessions = context.sessions()
        found_by_asking = [leaf for leaf in net.with_role(Role.LEAF) if not leaf.given]
        leaves = {leaf.id: sessions[leaf.id] for leaf in found_by_asking if leaf.id in sessions}
        if any(self._leaves.get(name) is not session for name, session in leaves.items()):
            self._asked = {name: (at, 0.0) for name, (at, _) in self._asked.items()}
        self._leaves = leaves
        missing = self._missing()
        self._asked = {s.id: self._asked[s.id] for s in missing if s.id in self._asked}
        chosen = self._whose_turn(missing, now) if leaves else []
        questions = [q for server in chosen if (q := self.question(server)) is not None]
        if not questions:
            return
        taken = {at for name in net.servers for at in places(net, name)}
        for name, session in leaves.items():
            trunks = underlay_of(net).trunk_ports(name)
            for port, number in session.ports.items():
                if number in trunks or number >= PortNo.MAX or PortRef(name, port) in taken:
                    continue
                for question in questions:
                    session.packet_out(question, number)

    def port_up(self, leaf: str, port: str, number: int) -> None:
        """A port of a leaf has a link, or has one again: whoever is missing is asked for there at once, and
        everywhere more often again. Of one that comes and goes the first time in a second counts."""
        net, here = self._context.net, PortRef(leaf, port)
        if net.switches[leaf].role is not Role.LEAF or net.switches[leaf].given:
            return
        if number in underlay_of(net).trunk_ports(leaf) or number >= PortNo.MAX:
            return
        missing = self._missing()
        if not missing or any(holders(net, here)) or not self._once_a_second("port up", str(here)):
            return
        for server in sorted(missing, key=self._asked_at)[:ASKED_AT_ONCE]:
            question = self.question(server)
            if question is not None:
                self._context.send_frame(leaf, number, question)
        self._asked = {name: (at, 0.0) for name, (at, _) in self._asked.items()}

    def _missing(self) -> list[Server]:
        """Those that are found by ARP, and have not been."""
        net = self._context.net
        return [s for s in net.servers.values() if net.location(s.id) is None and not has_several(net, s.id)]

    def _whose_turn(self, missing: list[Server], now: float) -> list[Server]:
        since, count = self._second
        if not 0 <= now - since < 1.0:
            since, count = now, 0
        due = [s for s in missing if not 0 <= now - self._asked_at(s) < self._asked.get(s.id, (0.0, 0.0))[1]]
        chosen = sorted(due, key=self._asked_at)[: ASKED_AT_ONCE - count]
        for server in chosen:
            wait = self._asked.get(server.id, (now, 0.0))[1]
            self._asked[server.id] = (now, min(max(1.0, wait * 2), LONGEST_WAIT))
        self._second = (since, count + len(chosen))
        return chosen

    def _asked_at(self, server: Server) -> float:
        return self._asked.get(server.id, (float("-inf"), 0.0))[0]

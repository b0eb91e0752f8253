"""Where servers are: asked for, found by their ARP, followed when they move (rows B2, D2).

ARP proves nothing: whoever is at a leaf's port can send it with any server's MAC, and with the place goes the
traffic of all its VMs. So a place that was found is given up only by a server that has left it.

    a server's ARP comes in at             what becomes of it
    the place it is known at               a sign of life; ends the question, if one is open
    the place of another server            refused
    the place the operator gave it         it is there
    a free port, its place not known       it is there
    a free port, its former port gone      it moved
    a free port otherwise                  it is asked at its former place: moved if that stays silent, else
                                           refused

Two servers that changed places are each heard at the other's. A server that does not answer where it is
known, though it was heard elsewhere, no longer holds its port against others.
"""

import asyncio
from ipaddress import IPv4Address

from retinue.controller.context import Context
from retinue.flows.entry import PortNo
from retinue.flows.fabric import trunk_ports
from retinue.flows.plan import near_server
from retinue.model import PortRef, Role, Server
from retinue.openflow.session import Session
from retinue.packets import arp_request
from retinue.store import Place

SILENCE = 1.0
"""Seconds in which a server answers at its place, if it is there."""
ASKED_AT_ONCE = 50
"""Servers looked for in one second; others have their turn in the next."""
LONGEST_WAIT = 60.0
"""Seconds after which a server that is not found is looked for again; sooner at first."""
NOBODY = IPv4Address(0)


class Places:
    def __init__(self, context: Context) -> None:
        self._context = context
        self.silence = SILENCE
        self.in_doubt: dict[str, asyncio.Event] = {}
        """Servers that are being asked at their place whether they are there; the event is the answer."""
        self._away: set[str] = set()
        self._last: dict[tuple[str, str], float] = {}
        self._asked: dict[str, tuple[float, float]] = {}
        """When a missing server was last asked for, and how long from then until the next time."""
        self._second = (0.0, 0)
        """Since when servers are counted, and how many were asked for."""
        self._leaves: dict[str, Session] = {}

    # ---- heard ----

    def seen(self, server: str, here: PortRef) -> None:
        """A server's ARP came in at this leaf port."""
        net = self._context.net
        before = net.detected.get(server)
        if here == before:
            self._away.discard(server)
            if server in self.in_doubt:
                self.in_doubt[server].set()
            return
        if here == net.servers[server].given_at:
            self._found(server, here)
            return
        holder = self._holder(here, server)
        if holder is not None:
            self._refuse(server, here, f"server {holder} is there; if it is not, remove or place it")
        if before is not None and self._port(before) is not None:
            self._ask_first(server, before, here)
        elif holder is None:
            self._found(server, here)
        else:
            self._away.add(server)

    def _found(self, server: str, here: PortRef) -> None:
        """A server found, or found elsewhere, is noticed, and its flows and its VMs' follow (row B2)."""
        context = self._context
        before = context.net.detected.get(server)
        touched = context.net.detect(server, here)
        if not touched:
            return
        self._away.discard(server)
        context.store.put(Place(server, here))
        given = context.net.servers[server].given_at
        if given is not None and given != here:
            context.events.publish("server.mismatch", server=server, given=str(given), detected=str(here))
        kind = "server.detected" if before is None else "server.moved"
        context.events.publish(kind, server=server, place=str(here), before=str(before) if before else None)
        near = [near_server(context.net, server)]
        context.spawn(context.install(touched, near), f"flows of server {server}")

    def _refuse(self, server: str, here: PortRef, reason: str) -> None:
        self._context.counters["servers' places refused"] += 1
        if self._once_a_second("refused", server):
            known = self._context.net.place(server)
            self._context.events.publish(
                "server.conflict",
                server=server,
                place=str(here),
                known=None if known is None else str(known),
                reason=reason,
            )

    def _holder(self, here: PortRef, server: str) -> str | None:
        """The other server whose place this port is."""
        net = self._context.net
        return next(
            (s for s in net.servers if s != server and net.place(s) == here and s not in self._away), None
        )

    # ---- in doubt ----

    def _ask_first(self, server: str, before: PortRef, here: PortRef) -> None:
        if server in self.in_doubt or not self._once_a_second("asked", server):
            return
        answered = self.in_doubt[server] = asyncio.Event()
        question, number = self._question(self._context.net.servers[server]), self._port(before)
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
            self.in_doubt.pop(server, None)
        if server not in net.servers or net.detected.get(server) != before:
            return  # It was removed, or found elsewhere, meanwhile.
        if answered.is_set():
            self._refuse(server, here, f"it answers at {before}; somebody at {here} uses its MAC")
        elif self._holder(here, server) is not None:
            self._away.add(server)
        elif net.port_number(here) is not None:
            self._found(server, here)

    def _port(self, at: PortRef) -> int | None:
        """The number of a leaf's port that could be asked now; None if it, or its leaf, is gone."""
        session = self._context.sessions.get(at.switch)
        return None if session is None else session.ports.get(at.port)

    def _question(self, server: Server) -> bytes | None:
        """Ask a server for its address, by its own MAC; None for one that has no IPv4 address."""
        net = self._context.net
        if not isinstance(server.address, IPv4Address):
            return None
        subnet = net.subnet_of(server.address)
        asker = subnet.gateway if subnet is not None else NOBODY
        if not isinstance(asker, IPv4Address):
            return None
        return arp_request(net.gateway_mac, asker, server.address, dst=server.mac)

    def _once_a_second(self, what: str, server: str) -> bool:
        now = self._context.clock()
        last = self._last.get((what, server))
        if last is not None and 0 <= now - last < 1.0:
            return False
        self._last[what, server] = now
        return True

    # ---- asked for ----

    def ask_for_missing(self) -> None:
        """Ask for servers whose place is not known, at every leaf port that may have one (row D2).

        May be called at any time: it asks for no more than ASKED_AT_ONCE servers a second, those first that
        were not asked for the longest, and for each at most every second, then 2, 4, ... LONGEST_WAIT. A leaf
        that was not there before makes it begin again.
        """
        context, net = self._context, self._context.net
        now = context.clock()
        leaves = {
            leaf.id: context.sessions[leaf.id]
            for leaf in net.with_role(Role.LEAF)
            if leaf.id in context.sessions
        }
        if any(self._leaves.get(name) is not session for name, session in leaves.items()):
            self._asked = {name: (at, 0.0) for name, (at, _) in self._asked.items()}
        self._leaves = leaves
        missing = [server for server in net.servers.values() if net.place(server.id) is None]
        self._asked = {s.id: self._asked[s.id] for s in missing if s.id in self._asked}
        chosen = self._whose_turn(missing, now) if leaves else []
        questions = [q for server in chosen if (q := self._question(server)) is not None]
        if not questions:
            return
        taken = {net.place(name) for name in net.servers}
        for name, session in leaves.items():
            trunks = trunk_ports(net, name)
            for port, number in session.ports.items():
                if number in trunks or number >= PortNo.MAX or PortRef(name, port) in taken:
                    continue
                for question in questions:
                    session.packet_out(question, number)

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

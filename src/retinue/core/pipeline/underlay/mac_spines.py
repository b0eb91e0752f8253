"""The underlay whose spines and cores forward by MAC alone: they know servers, and no address of IP.

What is above the leaves then needs one table with an entry for each server, however many VMs there are: a
switch that can match MACs is enough. The leaves hold all hosts instead, as over tunnels:

    leaf     ROUTE      a host elsewhere: TTL - 1, MAC := its server's                        SERVERS
                        the rest of a subnet, and what no router leads to                     dropped
             SERVERS    a server elsewhere: to a spine
    spine    ADMIT      IP, to any MAC                                                        SERVERS
                        anything from a leaf whose servers are all fenced                     dropped
             SERVERS    a server's MAC: to its leaf; any other: to a core, or dropped

So the sender's leaf alone says to which server a packet goes, and what it has said holds to the end. Hence
the order of an update is the fabric's, in which spines have nothing to change: the new location's edge and
leaf first, then all other leaves at once, then all other edges. And all that was sent before is on the old
way to its end: up from each leaf (`old_ways`).

A move changes two edges and all leaves, where spines that route change with the two leaves of its places.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from retinue.core.model import Link, Prefix, Role, Server, Switch
from retinue.core.model.fabric_checks import forwards, servers_at
from retinue.core.model.links import links_to
from retinue.core.model.network import Owner
from retinue.core.model.uplinks import places
from retinue.core.pipeline.cookies import Reason, cookie
from retinue.core.pipeline.entry import Action, Flow, FlowsBySwitch, Group, Match, Meter, match
from retinue.core.pipeline.priorities import SpineAdmit
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay.fabric import LeafSpine


@dataclass(frozen=True, slots=True)
class MacSpines(LeafSpine):
    """A fabric of two tiers or three, as an `Underlay` (see there what each method is for)."""

    # ---- entries ----

    def switch_flows(self, switch: Switch) -> Iterable[Flow | Group | Meter]:
        return chain(LeafSpine.switch_flows(self, switch), self._shut_out(switch))

    def _shut_out(self, spine: Switch) -> Iterator[Flow]:
        """What comes from a leaf that nobody waits for: it may forward by what it had, and heed nobody."""
        mark = cookie(Reason.QUIET, Owner("switch", spine.id))
        for link in self.net.links_at(spine.id) if spine.role is Role.SPINE else ():
            port = self.net.port_number(link.upper)
            if link.upper.switch == spine.id and port is not None and self._is_lost(link.lower.switch):
                yield Flow(Table.ADMIT, SpineAdmit.FENCED, match(in_port=port), cookie=mark)

    def prefix_flows(self, prefix: Prefix, vrf: str) -> FlowsBySwitch:
        found = LeafSpine.prefix_flows(self, prefix, vrf)
        return {switch: flows for switch, flows in found.items() if self._is_leaf(switch)}

    def _routes(self, server: Server, priority: int, to: Match, mark: int) -> FlowsBySwitch:
        found = LeafSpine._routes(self, server, priority, to, mark)
        routes = {leaf: flows for leaf, flows in found.items() if self._is_leaf(leaf)}
        there = Flow(Table.ROUTE, priority, to, self._rewrite(server), goto=Table.SERVERS, cookie=mark)
        for leaf in self.net.with_role(Role.LEAF) if found else ():
            routes.setdefault(leaf.id, [there])
        return routes

    def _up(self, switch: str) -> tuple[Action, ...]:
        """What a leaf has no way to is known nowhere above it."""
        return ()

    def _switches_with_links_up(self) -> set[str]:
        return set()

    def _would_go_wider(self, prefix: Prefix, router: str) -> Iterator[str]:
        return iter(())  # Whoever knows the one way knows the other.

    def _is_leaf(self, switch: str) -> bool:
        return self.net.switches[switch].role is Role.LEAF

    # ---- where servers are ----

    def knows(self, server: str, switch: str) -> bool:
        at = self.net.location(server)
        return at is not None and (at.switch == switch or self.net.has_told_ports(at.switch))

    def lost_with(self, server: str) -> frozenset[str]:
        """Its leaf, or leaves, when all that is there is fenced: spines take nothing from there."""
        return frozenset(at.switch for at in places(self.net, server) if self._is_lost(at.switch))

    def _is_lost(self, leaf: str) -> bool:
        servers = servers_at(self.net, leaf) if self.net.fenced else set()
        return bool(servers) and servers <= self.net.fenced

    # ---- which switches, and in which order ----

    def concerned(self, servers: Iterable[str]) -> frozenset[str]:
        """Of leaves those that forward: into one that is new nothing comes yet. Spines are among them for
        what is flooded, and for storage."""
        of_leaves = (leaf.id for leaf in self.net.with_role(Role.LEAF) if forwards(self.net, leaf.id))
        return LeafSpine.concerned(self, servers).union(of_leaves)

    def old_ways(self, source: str, target: str) -> Sequence[Sequence[tuple[Link, bool]]]:
        """From each leaf: what it has sent before it was told goes to the source."""
        end = self.attachment(source)
        return () if end is None else links_to(self.net, end[0])

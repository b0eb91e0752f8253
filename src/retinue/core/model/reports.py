"""What switches report of themselves, and of where servers are: ports, links, uplinks.

A part of `Network`; what its changes touch is told as there.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from retinue.core.model.addresses import ModelError
from retinue.core.model.entities import PortRef, Role, Service
from retinue.core.model.fabric_checks import check_link_idle
from retinue.core.model.layout import NetworkLayout
from retinue.core.model.links import leads_up, spines_of_pod
from retinue.core.model.nic import is_mirror_port
from retinue.core.model.owners import NOTHING, Owner, Touched
from retinue.core.model.uplinks import displaced, has_several, holders, links_beside, places, ways_beside


@dataclass
class NetworkReports(NetworkLayout):
    """Ports of switches, what becomes of links, and where servers are found."""

    def set_ports(self, switch: str, numbers: Mapping[str, int], down: Collection[str] = ()) -> Touched:
        """The switch's port numbers by name, all of them; `down`: those that have no link.

        Touches what uses a port whose number changed, and who sends up by other links from now on.
        """
        if not self._changes_links(switch, numbers, down):
            self._down[switch] = frozenset(down)
            return self._set_numbers(switch, numbers)
        before = ways_beside(self, switch)
        self._down[switch] = frozenset(down)
        return self._set_numbers(switch, numbers) | self._other_ways_than(before, switch)

    def _changes_links(self, switch: str, numbers: Mapping[str, int], down: Collection[str]) -> bool:
        """Whether an end of a link comes or goes, or gets or loses its carrier. An edge with one uplink has
        none."""
        if self.switches[switch].role is Role.EDGE and not self.switches[switch].standby:
            return False
        old, was_down = self._numbers.get(switch, {}), self._down.get(switch, ())
        between = (end for one in self.links_at(switch) for end in (one.lower, one.upper))
        ends = {end.port for end in between if end.switch == switch}
        ends.update(port for _, port in self.uplink_places.at_switch(switch))
        if self.switches[switch].standby:
            ends.update(self.switches[switch].uplinks)
        return any((end in old, end in was_down) != (end in numbers, end in down) for end in ends)

    def lose_link(self, lower: PortRef, reason: str) -> Touched:
        """A link loses frames: what went over it takes another way, where there is one, until it returns.

        Raises ModelError for one that is not there.
        """
        if lower not in self.uplink_places and self.link_at(lower) is None:
            raise ModelError(f"there is no link at {lower}")
        before = ways_beside(self, lower.switch)
        self.lost_links[lower] = reason
        return self._other_ways_than(before, lower.switch)

    def return_link(self, lower: PortRef) -> Touched:
        """It loses none any more."""
        if lower not in self.lost_links:
            return NOTHING
        before = ways_beside(self, lower.switch)
        del self.lost_links[lower]
        return self._other_ways_than(before, lower.switch)

    def leave_link(self, lower: PortRef) -> Touched:
        """Nothing is sent up by it any more. Raises ModelError where packets would be lost without it."""
        check_link_idle(self, lower)
        return self.set_idle(lower, idle=True)

    def set_idle(self, lower: PortRef, *, idle: bool) -> Touched:
        """Whether something is sent up by a link that is there."""
        before, ways = ways_beside(self, lower.switch), self._ways
        (self.idle_links.add if idle else self.idle_links.discard)(lower)
        self._ways = self._ways_down(self.links)
        return self._other_ways_than(before, lower.switch) if self._ways == ways else self.everything()

    def _other_ways_than(self, before: Mapping[tuple[str, str], object], switch: str) -> Touched:
        """Switches that send up by other links now; servers to which other uplinks are open."""
        after = ways_beside(self, switch)
        changed = [Owner(*one) for one in after if after[one] != before.get(one)]
        return frozenset(changed).union(*(self._by_uplink(one.id) for one in changed if one.kind == "server"))

    def _by_uplink(self, server: str) -> Touched:
        """What goes by which uplink a server has in use, and which are open: no host routes, however many."""
        logged_in = (
            Owner("vm", vm)
            for vm in self._vms_on.get(server, ())
            if any(self.logins_of(nic.mac) for nic in self.vms[vm].nics)
        )
        return self._shared_on(server).union(logged_in, {Owner("server", server)})

    def _set_numbers(self, switch: str, numbers: Mapping[str, int]) -> Touched:
        old, led_up = self._numbers.get(switch, {}), leads_up(self, switch)
        changed = {name for name in old.keys() | numbers.keys() if old.get(name) != numbers.get(name)}
        self._numbers[switch] = dict(numbers)
        self._names[switch] = {number: name for name, number in numbers.items()}
        match self.switches[switch].role:
            case Role.SPINE | Role.CORE:
                # Their entries point at leaves, and belong to what is under these.
                leaves = {
                    leaf
                    for (upper, leaf), ref in self._ways.items()
                    if upper == switch and ref.port in changed
                }
                near = [s for s in self.servers if any(at.switch in leaves for at in places(self, s))]
                itself = bool(leaves) or any(self._leads_up(switch, name) for name in changed)
            case Role.LEAF:
                at_changed = [PortRef(switch, name) for name in sorted(changed)]
                near = list(dict.fromkeys(server for at in at_changed for server in holders(self, at)))
                # A leaf knows the ports of uplinks whatever has become of the servers there.
                probed = any(self.uplink_places.at(at) for at in at_changed)
                itself = bool(near) or probed or any(self._leads_up(switch, name) for name in changed)
            case Role.EDGE:
                runs = self._server_of_edge.get(switch)
                peer = self.peer_at(runs or "")
                itself = bool({*self.switches[switch].uplinks, peer.tunnel if peer else ""} & changed)
                copies = any(map(is_mirror_port, changed))
                near = [runs] if (itself or copies) and runs is not None else []
        touched = self.shared() | {Owner("switch", switch)} if itself else NOTHING
        if leads_up(self, switch) != led_up:
            touched |= self.prefixes()
        return touched.union(*(self.server_and_vms(s) for s in near))

    # ---- where servers are ----

    def detect(self, server: str, at: PortRef) -> Touched:
        """The server's ARP came in at this leaf port.

        A port has one DHCP server at most, the first: another one that is seen there is ignored.
        """
        if self.detected.get(server) == at or has_several(self, server):
            return NOTHING
        if Service.DHCP in self.servers[server].services:
            first = self.dhcp_server_at(at)
            if first is not None and first.id != server:
                return NOTHING
        self.detected[server] = at
        return self.server_and_vms(server) | self.shut_out()

    def find_uplink(self, uplink: PortRef, at: PortRef) -> Touched:
        """One of several uplinks of an edge leads to this leaf port.

        Raises ModelError for what cannot be: each leads to another leaf, below the same spines.
        """
        edge, server = self.switches.get(uplink.switch), self.server_of_edge(uplink.switch)
        if edge is None or not edge.standby or uplink.port not in edge.uplinks or server is None:
            raise ModelError(f"{uplink} is not one of several uplinks of a server's edge")
        if at.switch not in self.switches or self.switches[at.switch].role is not Role.LEAF:
            raise ModelError(f"uplink {uplink}: {at.switch} is not a known leaf")
        if self.uplink_places.get(uplink) == at:
            return NOTHING
        gone = displaced(self, uplink, at)
        for beside in links_beside(self, uplink):
            other, place = beside.lower, beside.upper
            if other in gone:
                continue
            if place.switch == at.switch:
                raise ModelError(f"uplink {uplink} leads to {at}: {other} leads to {at.switch}, too")
            if spines_of_pod(self, place.switch) != spines_of_pod(self, at.switch):
                raise ModelError(
                    f"uplink {uplink} leads to {at}, and {other} to {place.switch}: other spines are above "
                    "that leaf, and a change could lose packets; all uplinks lead to leaves of one pod"
                )
        leaves = {at.switch, self.uplink_places.get(uplink, at).switch}
        touched = self._lead_nowhere(gone)
        self.uplink_places[uplink] = at
        self._follow_uplink(edge.id)
        told = (Owner("switch", switch) for switch in (edge.id, *leaves))
        return touched.union(told, self.server_and_vms(server.id), self.shut_out())

    def _lead_nowhere(self, uplinks: Collection[PortRef]) -> Touched:
        """Others lead where these were known to lead."""
        touched = self.shut_out() if uplinks else NOTHING
        for uplink in uplinks:
            at, server = self.uplink_places.pop(uplink), self.server_of_edge(uplink.switch)
            self.lost_links.pop(uplink, None)  # That was of the way to there.
            touched |= {Owner("switch", uplink.switch)}
            if server is not None:
                if self.detected.get(server.id) == at:
                    del self.detected[server.id]
                touched |= self.server_and_vms(server.id)
        return touched

    def use_uplink(self, edge: str, uplink: str) -> Touched:
        """All goes by this one of an edge's uplinks from now on.

        Raises ModelError for one that is not found.
        """
        server = self.server_of_edge(edge)
        if server is None or not has_several(self, server.id):
            raise ModelError(f"edge {edge} of no server, or with one uplink")
        if PortRef(edge, uplink) not in self.uplink_places:
            raise ModelError(f"where uplink {uplink} of {edge} leads is not known")
        if self.in_use.get(edge) == uplink:
            return NOTHING
        self.in_use[edge] = uplink
        known = server.id in self.detected
        self._follow_uplink(edge)
        # While its place is not known there are no entries of its VMs at any leaf.
        rest = NOTHING if known else self.server_and_vms(server.id)
        return self._by_uplink(server.id) | rest | {Owner("switch", edge)}

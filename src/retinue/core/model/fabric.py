"""Switches and the links between them: how they come, change and go while all runs.

The lowest part of `Network`; what its changes touch is told as there. A link that comes or goes is idle
first (`idle_links`): whoever makes the change decides when it is used.
"""

from collections.abc import Collection
from dataclasses import dataclass

from retinue.core.model.addresses import ModelError
from retinue.core.model.entities import (
    VM,
    Link,
    PortRef,
    Role,
    Service,
    Switch,
)
from retinue.core.model.fabric_checks import (
    check_link,
    check_link_removal,
    check_switch,
    check_switch_removal,
)
from retinue.core.model.owners import NOTHING, Owner, Touched
from retinue.core.model.uplinks import forgotten_with
from retinue.core.model.view import NetworkView


@dataclass
class NetworkFabric(NetworkView):
    """Switches and links, and every change of them."""

    def add_switch(self, switch: Switch) -> Touched:
        clash = self.by_dpid.get(switch.dpid, switch.id)
        if clash != switch.id:
            raise ModelError(f"switches {clash} and {switch.id} have the same datapath id {switch.dpid:#x}")
        twin = next((s for s in self.switches.values() if s.endpoint and s.endpoint == switch.endpoint), None)
        if twin is not None and twin.id != switch.id:
            raise ModelError(f"switches {twin.id} and {switch.id} have the same endpoint {switch.endpoint}")
        former = self.switches.get(switch.id)
        if former is not None:
            if former.role is Role.EDGE:
                self._forget_places(switch.id, switch.uplinks if switch.standby else ())
                if former.dpid != switch.dpid:
                    self._forget_vm_ports(switch.id)  # They are those of another machine.
            del self._with_role[former.role][switch.id]
            if self.by_dpid.get(former.dpid) == switch.id:
                del self.by_dpid[former.dpid]
        self.switches[switch.id] = switch
        self.by_dpid[switch.dpid] = switch.id
        self._with_role.setdefault(switch.role, {})[switch.id] = None
        of_mesh = switch.tunnel or (former is not None and former.tunnel)
        if of_mesh or (former is not None and former.standby != switch.standby):
            return self.everything()
        told = self.leaves() if switch.standby else NOTHING  # They hand up probes where there is one such.
        return self.prefixes() | told | {Owner("switch", switch.id)}

    def put_switch(self, switch: Switch) -> Touched:
        """As `add_switch`, of a network that runs: what does not fit in is rejected."""
        check_switch(self, switch)
        former = self.switches.get(switch.id)
        touched = self.add_switch(switch)
        if former == switch:
            return NOTHING
        # Leaves, spines and cores have entries of many owners; so has an edge that is changed.
        return touched if former is None and switch.role is Role.EDGE else self.everything()

    def remove_switch(self, switch: str) -> Touched:
        """Forget a switch without links and servers. Removing what is not there is no error."""
        check_switch_removal(self, switch)
        old = self.switches.pop(switch, None)
        if old is None:
            return NOTHING
        del self._with_role[old.role][switch], self.by_dpid[old.dpid]
        self._forget_vm_ports(switch)
        for known in (self._numbers, self._names, self._down):
            known.pop(switch, None)
        self._forget_places(switch)
        self.untold.discard(switch)
        itself = frozenset({Owner("switch", switch)})
        if old.role is not Role.EDGE:
            return self.everything() | itself
        return itself | self.prefixes() | (self.leaves() if old.standby else NOTHING)

    def _forget_vm_ports(self, switch: str) -> None:
        ports = [(port_id, number) for (at, number), port_id in self._port_id_at.items() if at == switch]
        for port_id, number in ports:
            del self._port_id_at[switch, number], self.vm_ports[port_id][switch]

    def _forget_places(self, switch: str, uplinks: Collection[str] = ()) -> None:
        """Where uplinks lead, as `uplinks.forgotten_with` has it, and which one is used."""
        for uplink in forgotten_with(self, switch, uplinks):
            del self.uplink_places[uplink]
            self.lost_links.pop(uplink, None)
        if self.in_use.get(switch, "") not in uplinks:
            self.in_use.pop(switch, None)

    def put_link(self, link: Link, *, idle: bool = True) -> Touched:
        """Add a link to a network that runs; it is idle until `set_idle`, unless it was used before."""
        return self.put_links([link], idle=idle)

    def put_links(self, links: Collection[Link], *, idle: bool = True) -> Touched:
        """Several, all of them or (ModelError) none. What they touch, which is everything, is told once."""
        laid: list[Link] = []
        try:
            for link in links:
                check_link(self, link)
                self._lay(link)
                laid.append(link)
            self._ways = self._ways_down(self.links)
        except ModelError:
            for link in laid:
                self._take_up(link)
            raise
        if idle:
            self.idle_links.update(link.lower for link in laid)
        return self.everything()

    def remove_link(self, lower: PortRef) -> Touched:
        """Forget a link that is idle. Removing what is not there is no error."""
        check_link_removal(self, lower)
        gone = self.link_at(lower)
        if gone is None:
            return NOTHING
        self._take_up(gone)
        self._ways = self._ways_down(self.links)
        self.idle_links.discard(lower)
        self.lost_links.pop(lower, None)
        return self.everything()

    def add_link(self, link: Link) -> Touched:
        self._lay(link)
        try:
            self._ways = self._ways_down(self.links)
        except ModelError:
            self._take_up(link)
            raise
        return self.everything()

    def _lay(self, link: Link) -> None:
        """Its ways are those that `_ways_down` finds. Raises ModelError."""
        if self.over_ip or self.over_routers:
            what = "tunnels join the leaves here" if self.over_ip else "routers of others join each other"
            raise ModelError(f"link {link.lower} - {link.upper}: {what}, and no links")
        lower = self.switches.get(link.lower.switch)
        above = lower is not None and lower.role is Role.SPINE
        roles = (Role.SPINE, Role.CORE) if above else (Role.LEAF, Role.SPINE)
        for ref, role in zip((link.lower, link.upper), roles, strict=True):
            if ref.switch not in self.switches or self.switches[ref.switch].role is not role:
                raise ModelError(
                    f"link {link.lower} - {link.upper}: {ref.switch} is not a known {role} switch"
                )
        self.links = (*self.links, link)
        for end in (link.lower, link.upper):
            self._links_at.setdefault(end.switch, []).append(link)

    def _take_up(self, link: Link) -> None:
        self.links = tuple(one for one in self.links if one.lower != link.lower)
        for end in (link.lower, link.upper):
            self._links_at[end.switch].remove(link)

    def _ways_down(self, links: tuple[Link, ...]) -> dict[tuple[str, str], PortRef]:
        """Raises ModelError for a core that would lead to a leaf by two spines: what is flooded would come
        there twice. Of several links between two switches one that is not idle is taken."""
        found: dict[tuple[str, str], PortRef] = {}
        links = tuple(sorted(links, key=lambda link: link.lower in self.idle_links))
        for link in links:
            if self.switches[link.lower.switch].role is Role.LEAF:
                found.setdefault((link.upper.switch, link.lower.switch), link.upper)
        below: dict[str, list[str]] = {}
        for spine, leaf in found:
            below.setdefault(spine, []).append(leaf)
        for link in links:
            core = link.upper.switch
            for leaf in below.get(link.lower.switch, ()):
                if found.setdefault((core, leaf), link.upper) != link.upper:
                    raise ModelError(f"core {core} leads to {leaf} by two spines; join it to one of each pod")
        return found

    # ---- what a change touches ----

    def everything(self) -> Touched:
        return frozenset(
            [
                *(Owner("switch", s) for s in self.switches),
                *(Owner("server", s) for s in self.servers),
                *(Owner("vm", v) for v in self.vms),
                *self.shared(),
                *self.prefixes(),
            ]
        )

    def shared(self) -> Touched:
        """What several VMs have part in, with entries wherever one of them may be: vnets that flood, and
        anycast addresses."""
        flooding = (Owner("vnet", vnet.id) for vnet in self.vnets.values() if vnet.floods)
        return frozenset([*flooding, *(Owner("anycast", str(ip)) for ip in self.anycast())])

    def shared_of(self, *vms: VM | None) -> Touched:
        """Of these those that VMs have part in."""
        nics = [nic for vm in vms if vm is not None for nic in vm.nics]
        vnets = {self.vnets.get(nic.vnet) for nic in nics}
        flooding = (Owner("vnet", vnet.id) for vnet in vnets if vnet is not None and vnet.floods)
        return frozenset([*flooding, *(Owner("anycast", str(ip)) for nic in nics for ip in nic.anycast)])

    def _shared_on(self, server: str) -> Touched:
        return self.shared_of(*(self.vms[vm] for vm in self._vms_on.get(server, ())))

    def prefixes(self) -> Touched:
        """All prefixes that are routed to NICs."""
        each = ((prefix, vrf) for vrf, index in self._routed.items() for prefix, _ in index)
        return frozenset(Owner.of_prefix(*one) for one in each)

    def leaves(self) -> Touched:
        return frozenset(Owner("switch", leaf.id) for leaf in self.with_role(Role.LEAF))

    def routers(self) -> Touched:
        """They may not send from what is ours."""
        return frozenset(Owner("server", s.id) for s in self.servers_with(Service.ROUTER))

"""Desired flows as a pure function of the network, computed again only for what changed.

Each owner (a switch, a server, a VM) contributes its own entries to each switch. `contribution` computes one
owner's from nothing; `Compiler` keeps all of them and, given the owners that were touched, returns what
became different. Invariant: after any history, the programs equal those of a fresh compiler.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import permutations

from retinue.core.model import VM, Role, Server, Switch
from retinue.core.model.anycast import members_of
from retinue.core.model.families import led_to
from retinue.core.model.network import Network, Owner
from retinue.core.pipeline import anycast, channels, edge, flooding, gateway, storage, trunk, uplinks, vrfs
from retinue.core.pipeline.contributions import RECENT, Contribution, Contributions, SwitchProgram
from retinue.core.pipeline.cookies import Reason, cookie, owner_hash, owner_hash_of
from retinue.core.pipeline.entry import Entry, EntryKey, Flow, FlowsBySwitch, Program, key_of, named_by
from retinue.core.pipeline.underlay import Underlay, underlay_of


class ConflictError(Exception):
    """Two owners want an entry of the same key on one switch: a fault of the pipeline, never of the input."""


def contribution(net: Network, owner: Owner) -> Contribution:
    """Everything one owner wants on all switches; nothing once the owner is gone."""
    underlay = underlay_of(net)
    found: dict[str, list[Entry]] = {}
    match owner.kind:
        case "switch" if owner.id in net.switches:
            found[owner.id] = list(_switch(underlay, net, net.switches[owner.id]))
        case "server" if owner.id in net.servers:
            _server(underlay, net, net.servers[owner.id], found)
        case "vm" if owner.id in net.vms:
            _vm(underlay, net, net.vms[owner.id], found)
        case "anycast":
            _add(found, anycast.address_flows(underlay, net, ip_address(owner.id)))
        case "prefix" if exists(net, owner):
            _add(found, underlay.prefix_flows(*owner.prefix))
        case "vnet" if owner.id in net.vnets:
            for switch, entries in flooding.vnet_entries(underlay, net, net.vnets[owner.id]).items():
                found.setdefault(switch, []).extend(entries)
    for several in [net.switches[id] for id in found if net.switches[id].standby]:
        computed, flooded = found[several.id], owner.kind == "vnet"
        found[several.id] = list(uplinks.spread(net, several, computed, flooded=flooded))
    return {switch: {key_of(e): e for e in entries} for switch, entries in found.items() if entries}


def exists(net: Network, owner: Owner) -> bool:
    """True while the owner is part of the network, with or without entries."""
    match owner.kind:
        case "switch":
            return owner.id in net.switches
        case "server":
            return owner.id in net.servers
        case "vnet":
            return owner.id in net.vnets and net.vnets[owner.id].floods
        case "prefix":
            prefix, vrf = owner.prefix
            routed = net.routed_to(prefix.network_address, vrf)
            return routed is not None and routed[0] == prefix
        case "anycast":
            return net.is_anycast(ip_address(owner.id))
        case _:
            return owner.id in net.vms


def bringers(net: Network, owner: Owner, switch: str) -> set[Owner]:
    """Who else may have the meters and groups on a switch that this owner's entries name there."""
    found = {Owner("switch", switch)}
    if owner.kind == "anycast":
        found |= {Owner("vm", vm.id) for vm, _ in members_of(net, ip_address(owner.id))}
    at = net.server_of_edge(switch)
    return found if at is None else found | {Owner("server", at.id)}  # A gateway's tunnel has meters.


def _switch(underlay: Underlay, net: Network, switch: Switch) -> Iterable[Entry]:
    if switch.role is Role.EDGE:
        return edge.switch_flows(net, switch)
    return underlay.switch_flows(switch)


def _server(underlay: Underlay, net: Network, server: Server, found: dict[str, list[Entry]]) -> None:
    _add(found, underlay.server_flows(server))
    if server.edge:
        flows = edge.server_flows(underlay, net, server, net.switches[server.edge])
        found.setdefault(server.edge, []).extend(flows)
        found[server.edge].extend(gateway.tunnel_flows(net, server))
        found[server.edge].extend(channels.server_flows(net, server))


def _vm(underlay: Underlay, net: Network, vm: VM, found: dict[str, list[Entry]]) -> None:
    for name in (vm.server, *sorted(vm.also)):
        server = net.servers[name]
        for nic in vm.nics:
            port = net.port_of(nic, server.edge)
            if port is not None and not nic.enabled:
                found.setdefault(server.edge, []).extend(trunk.disabled_flows(vm, nic, port.number))
            elif port is not None:
                at_tunnel = net.peers and net.peer_at(name) is not None
                flows_of = gateway.nic_flows if at_tunnel else edge.nic_flows
                flows_of_nic = flows_of(underlay, net, vm, nic, server, port.number)
                found.setdefault(server.edge, []).extend(flows_of_nic)
                if not at_tunnel:  # It is the port of all that are away: no flooding comes from there.
                    found[server.edge].extend(flooding.nic_flows(net, vm, nic, port.number))
                if not at_tunnel or not vm.home:
                    found[server.edge].extend(storage.nic_flows(net, vm, nic, server, port.number))
    if vm.forwarded_from:
        found.setdefault(net.servers[vm.forwarded_from].edge, []).extend(
            edge.forwarding_flows(underlay, net, vm)
        )
    mark = cookie(Reason.FORWARD, Owner("vm", vm.id))
    for flows_by_switch in storage.ways(underlay, net, vm):
        _add(found, flows_by_switch)
    if vm.home:
        _add(found, gateway.guest_flows(underlay, net, vm))
    for switch, meter in gateway.shares(net, vm):
        found.setdefault(switch, []).append(meter)
    for switch, answer in storage.answers(net, vm):
        found.setdefault(switch, []).append(answer)
    for destination, _, vrf in led_to(net, vm):
        tag = net.vrfs[vrf].tag
        if not vm.home:  # A guest is reached through its home alone.
            _add(found, vrfs.on_each(underlay.host_routes(net.servers[vm.server], destination, mark), tag))
        # Both ways and from the first, so that where the VM is delivered changes nothing of it.
        for location, other in permutations(vm.locations, 2):
            server, to = net.servers[location], net.servers[other]
            _add(found, vrfs.on_each(underlay.copy_ways(server, to, destination, mark), tag))


def _add(found: dict[str, list[Entry]], flows_by_switch: FlowsBySwitch) -> None:
    for switch, flows in flows_by_switch.items():
        found.setdefault(switch, []).extend(flows)


Keys = dict[str, frozenset[EntryKey]]
"""By switch: the entries that changed."""
Before = dict[str, dict[EntryKey, Entry | None]]
"""By switch: the entries that changed, and what was there before."""


@dataclass
class Compiler:
    """The desired program of each switch, kept up to date owner by owner."""

    net: Network
    recent: int = RECENT
    """How many contributions are kept as they were computed."""
    _contributions: Contributions = field(init=False)
    """What each owner contributes, as last computed."""
    _owners: dict[int, tuple[Owner, ...]] = field(default_factory=dict)
    """By the hash in their cookies: every owner that was ever computed. Those of a hash that are gone are
    left out, so that there is none when all have gone."""
    _shared: set[Owner] = field(default_factory=set)
    """Anycast addresses: their entries name meters of VMs."""
    _prefixes: set[Owner] = field(default_factory=set)
    """Routed prefixes: their entries name groups and meters of switches."""
    _clashed: set[Owner] = field(default_factory=set)
    """Owners whose entries clashed with another's when they were last computed: what is kept is older."""

    def __post_init__(self) -> None:
        self._contributions = Contributions(self.recent)

    def update(self, touched: Iterable[Owner]) -> Before:
        """Compute the touched owners again; return, by switch, the keys whose entry became different.

        Raises ConflictError, with nothing changed, when two owners want an entry of the same key.
        """
        fresh = {owner: contribution(self.net, owner) for owner in sorted(touched)}
        # An owner whose old entry is in another's place may have changed as well: two VMs that exchange their
        # addresses, of which only one was touched so far. Its contribution is computed again before judging.
        # So may one that brings what a fresh entry names: a switch takes the one only with the other.
        while outdated := self._owners_in_the_way(fresh) | self._bound_to(fresh):
            fresh.update({owner: contribution(self.net, owner) for owner in outdated})
        now = self._together(fresh)
        self._clashed.difference_update(fresh)
        for owner in fresh:
            self._note(owner)
        # Old entries of these owners go out first, so that a place one of them leaves is free for another;
        # `before` keeps what was there, for the comparison at the end.
        before: Before = {}
        for owner in fresh:
            for switch, entries in self._contributions.drop(owner).items():
                before.setdefault(switch, {}).update(entries)
        for owner, contributed in fresh.items():
            self._contributions.put(owner, contributed)
        for switch, entries in now.items():
            had = before.setdefault(switch, {})
            had.update({key: None for key in entries if key not in had})
        changed: Before = {}
        for switch, had in before.items():
            has = now.get(switch, {})
            different = {key: old for key, old in had.items() if has.get(key) != old}
            if different:
                changed[switch] = different
        return changed

    def update_each(self, touched: Iterable[Owner]) -> tuple[Before, ConflictError | None]:
        """As `update`, but two that clash hold up nobody else; they are told, the later stays as it was."""
        owners = sorted(touched)
        try:
            return self.update(owners), None
        except ConflictError as error:
            clash = error
        changed: Before = {}
        for owner in owners:
            try:
                found = self.update([owner])
            except ConflictError:
                self._clashed.add(owner)
            else:
                for switch, had in found.items():
                    changed[switch] = {**had, **changed.get(switch, {})}
        return changed, clash

    def _owners_in_the_way(self, fresh: dict[Owner, Contribution]) -> set[Owner]:
        """Other owners that have, as last computed, an entry where a fresh contribution has one, too."""
        return {
            other
            for contributed in fresh.values()
            for switch, entries in contributed.items()
            for key in entries
            for other in self._contributions.owners_at(switch, key)
            if other not in fresh and key in self._contributions.on(other, switch)
        }

    def _bound_to(self, fresh: dict[Owner, Contribution]) -> set[Owner]:
        """Others that may bring a meter or group which a fresh contribution names, and nobody has as last
        computed; and those shared by many whose entries name what goes with old entries: of VMs, of switches.

        A prefix may be gone from the network, and its entries not yet: whoever took it away comes later.
        """
        found: set[Owner] = set()
        for owner, contributed in fresh.items():
            for switch, entries in contributed.items():
                flows = (entry for entry in entries.values() if isinstance(entry, Flow))
                others = {key for flow in flows for key in named_by(flow) if key not in entries}
                if any(key not in self.program(switch) for key in others):
                    found |= bringers(self.net, owner, switch)
        for kind, naming in (("vm", self._shared), ("switch", self._prefixes)):
            for switch, gone in self._gone(fresh, kind).items() if naming else ():
                found |= {one for one in naming if not gone.isdisjoint(self._named_on(one, switch))}
        return found - fresh.keys()

    def _gone(self, fresh: dict[Owner, Contribution], kind: str) -> dict[str, set[EntryKey]]:
        """By switch, meters and groups that go with old entries of owners of a kind: none nearly always."""
        found: dict[str, set[EntryKey]] = {}
        for owner in (owner for owner in fresh if owner.kind == kind):
            for switch, had in self._contributions.of(owner).items():
                named = {key for key in had if key[0] in ("meter", "group")}
                gone = named - fresh[owner].get(switch, {}).keys()
                if gone:
                    found.setdefault(switch, set()).update(gone)
        return found

    def _named_on(self, owner: Owner, switch: str) -> set[EntryKey]:
        entries = self._contributions.on(owner, switch).values()
        return {key for entry in entries if isinstance(entry, Flow) for key in named_by(entry)}

    def _together(self, fresh: dict[Owner, Contribution]) -> dict[str, Program]:
        """All of these contributions. Raises ConflictError when two have an entry of the same key."""
        found: dict[str, Program] = {}
        for owner, contributed in fresh.items():
            for switch, entries in contributed.items():
                program = found.setdefault(switch, {})
                if not program.keys().isdisjoint(entries):
                    key = next(key for key in entries if key in program)
                    other = next(o for o, c in fresh.items() if key in c.get(switch, {}))
                    raise ConflictError(f"{owner} and {other} both want {key} on {switch}")
                program.update(entries)
        return found

    def _note(self, owner: Owner) -> None:
        mark = owner_hash(owner)
        others = tuple(other for other in self._owners.get(mark, ()) if other != owner)
        self._owners[mark] = (*others, owner) if exists(self.net, owner) else others
        naming = {"anycast": self._shared, "prefix": self._prefixes}.get(owner.kind)
        if naming is not None:
            (naming.add if exists(self.net, owner) else naming.discard)(owner)

    # ---- questions ----

    @property
    def programs(self) -> dict[str, Program]:
        """What every switch should hold, all of it made now."""
        return {switch: self.program(switch).whole() for switch in self._contributions.switches()}

    def program(self, switch: str) -> SwitchProgram:
        """What a switch should hold."""
        return SwitchProgram(self._contributions, switch)

    def entries(self, owner: Owner, switch: str) -> Program:
        """What an owner has on a switch, as last computed."""
        return self._contributions.on(owner, switch)

    def switches_of(self, owner: Owner) -> Collection[str] | None:
        """Where an owner has entries, as last computed; None where these clashed with another's."""
        return None if owner in self._clashed else self._contributions.switches_of(owner)

    def owners_on(self, switch: str) -> set[Owner]:
        """The owners that have entries on a switch."""
        return self._contributions.owners_on(switch)

    def owners_of(self, cookie: int) -> frozenset[Owner]:
        """The owners that an entry with this cookie may belong to: one, but for the rare same hash."""
        return frozenset(self._owners.get(owner_hash_of(cookie), ()))

    def has_gone(self, cookie: int) -> bool:
        """True when the owner of this cookie was known, and is there no longer."""
        return self._owners.get(owner_hash_of(cookie)) == ()

"""Desired flows as a pure function of the network, computed again only for what changed.

Each owner (a switch, a server, a VM) contributes its own entries to each switch. `contribution` computes one
owner's from nothing; `Compiler` keeps all of them and, given the owners that were touched, returns what
became different. Invariant: after any history, the programs equal those of a fresh compiler.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import permutations

from retinue.core.model import VM, Role, Server, Switch
from retinue.core.model.families import led_to
from retinue.core.model.network import Network, Owner
from retinue.core.pipeline import edge, flooding, gateway, storage, trunk, vrfs
from retinue.core.pipeline.cookies import Reason, cookie, owner_hash, owner_hash_of
from retinue.core.pipeline.entry import Flow, FlowKey, FlowsBySwitch, Group, Meter
from retinue.core.pipeline.underlay import Underlay, underlay_of

Entry = Flow | Group | Meter
EntryKey = FlowKey | tuple[str, int]
"""A flow's key, or ("group", id), or ("meter", id)."""


def key_of(entry: Entry) -> EntryKey:
    match entry:
        case Flow():
            return entry.key
        case Group():
            return ("group", entry.id)
        case Meter():
            return ("meter", entry.id)


Program = dict[EntryKey, Entry]
"""All a switch should hold."""

Contribution = dict[str, Program]
"""An owner's entries by switch."""


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
        case "vnet" if owner.id in net.vnets:
            for switch, entries in flooding.vnet_entries(underlay, net, net.vnets[owner.id]).items():
                found.setdefault(switch, []).extend(entries)
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
        case _:
            return owner.id in net.vms


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


@dataclass
class Compiler:
    """The desired program of each switch, kept up to date owner by owner."""

    net: Network
    programs: dict[str, Program] = field(default_factory=dict)
    _of: dict[Owner, Contribution] = field(default_factory=dict)
    """What each owner contributes, as last computed."""
    _owners: dict[int, set[Owner]] = field(default_factory=dict)
    """By the hash in their cookies: every owner that was ever computed. Those of a hash that are gone are
    left out, so that the set is empty when all have gone."""
    _clashed: set[Owner] = field(default_factory=set)
    """Owners whose entries clashed with another's when they were last computed: what is kept is older."""

    def update(self, touched: Iterable[Owner]) -> Keys:
        """Compute the touched owners again; return, by switch, the keys whose entry became different.

        Raises ConflictError, with nothing changed, when two owners want an entry of the same key.
        """
        fresh = {owner: contribution(self.net, owner) for owner in sorted(touched)}
        # An owner whose old entry is in another's place may have changed as well: two VMs that exchange their
        # addresses, of which only one was touched so far. Its contribution is computed again before judging.
        while outdated := self._owners_in_the_way(fresh):
            fresh.update({owner: contribution(self.net, owner) for owner in outdated})
        self._check(fresh)
        self._clashed.difference_update(fresh)
        for owner in fresh:
            self._note(owner)
        # Old entries of these owners go out first, so that a place one of them leaves is free for another;
        # `before` keeps what was there, for the comparison at the end.
        before: dict[str, dict[EntryKey, Entry | None]] = {}
        for owner in fresh:
            for switch, entries in self._of.pop(owner, {}).items():
                program = self.programs[switch]
                for key in entries:
                    before.setdefault(switch, {})[key] = program.pop(key)
        for owner, contributed in fresh.items():
            if contributed:
                self._of[owner] = contributed
            for switch, entries in contributed.items():
                program = self.programs.setdefault(switch, {})
                for key, entry in entries.items():
                    before.setdefault(switch, {}).setdefault(key, None)
                    program[key] = entry
        changed = {
            switch: frozenset(key for key, old in keys.items() if self.programs[switch].get(key) != old)
            for switch, keys in before.items()
        }
        return {switch: keys for switch, keys in changed.items() if keys}

    def update_each(self, touched: Iterable[Owner]) -> tuple[Keys, ConflictError | None]:
        """As `update`, but two that clash hold up nobody else; they are told, the later stays as it was."""
        owners = sorted(touched)
        try:
            return self.update(owners), None
        except ConflictError as error:
            clash = error
        changed: Keys = {}
        for owner in owners:
            try:
                found = self.update([owner])
            except ConflictError:
                self._clashed.add(owner)
            else:
                for switch, keys in found.items():
                    changed[switch] = changed.get(switch, frozenset()) | keys
        return changed, clash

    def _owners_in_the_way(self, fresh: dict[Owner, Contribution]) -> list[Owner]:
        """Other owners that have, as last computed, an entry where a fresh contribution has one, too."""
        wanted: dict[str, set[EntryKey]] = {}
        for contributed in fresh.values():
            for switch, entries in contributed.items():
                wanted.setdefault(switch, set()).update(entries.keys() & self.program(switch).keys())
        for owner in fresh:
            for switch, entries in self._of.get(owner, {}).items():
                wanted.get(switch, set()).difference_update(entries)
        if not any(wanted.values()):
            return []
        return [
            owner
            for owner, had in self._of.items()
            if owner not in fresh
            and any(keys & had[switch].keys() for switch, keys in wanted.items() if switch in had)
        ]

    def _check(self, fresh: dict[Owner, Contribution]) -> None:
        """Raises ConflictError when two of these contributions have an entry of the same key."""
        taken: dict[tuple[str, EntryKey], Owner] = {}
        for owner, contributed in fresh.items():
            for switch, entries in contributed.items():
                for key in entries:
                    other = taken.setdefault((switch, key), owner)
                    if other != owner:
                        raise ConflictError(f"{owner} and {other} both want {key} on {switch}")

    def _note(self, owner: Owner) -> None:
        same = self._owners.setdefault(owner_hash(owner), set())
        if exists(self.net, owner):
            same.add(owner)
        else:
            same.discard(owner)

    # ---- questions ----

    def program(self, switch: str) -> Program:
        return self.programs.get(switch, {})

    def contributed(self, owner: Owner) -> Contribution | None:
        """What an owner contributes, as last computed; None where that clashed with another's."""
        return None if owner in self._clashed else self._of.get(owner, {})

    def owners_on(self, switch: str) -> set[Owner]:
        """The owners that have entries on a switch, and perhaps another one of the same hash."""
        flows = (entry for entry in self.program(switch).values() if isinstance(entry, Flow))
        hashes = {owner_hash_of(flow.cookie) for flow in flows}
        return {owner for each in hashes for owner in self._owners.get(each, ())}

    def owners_of(self, cookie: int) -> frozenset[Owner]:
        """The owners that an entry with this cookie may belong to: one, but for the rare same hash."""
        return frozenset(self._owners.get(owner_hash_of(cookie), ()))

    def has_gone(self, cookie: int) -> bool:
        """True when the owner of this cookie was known, and is there no longer."""
        return self._owners.get(owner_hash_of(cookie)) == set()

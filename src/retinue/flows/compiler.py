"""Desired flows as a pure function of the network, computed again only for what changed.

Each owner (a switch, a server, a VM) contributes its own entries to each switch. `contribution` computes one
owner's from nothing; `Compiler` keeps all of them and, told which owners were touched, returns what became
different. Property to hold for ever: after any history, the programs equal those of a fresh compiler.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import permutations

from retinue.flows import edge, fabric
from retinue.flows.entry import Flow, FlowKey, Group, Meter
from retinue.flows.pipeline import Reason, cookie
from retinue.model import VM, Role, Server, Switch
from retinue.model.network import Network, Owner

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


class ClashError(Exception):
    """Two owners want different entries in one place: a fault of the pipeline, never of the input."""


def contribution(net: Network, owner: Owner) -> Contribution:
    """Everything one owner wants on all switches; nothing once the owner is gone."""
    found: dict[str, list[Entry]] = {}
    match owner.kind:
        case "switch" if owner.id in net.switches:
            found[owner.id] = list(_switch(net, net.switches[owner.id]))
        case "server" if owner.id in net.servers:
            _server(net, net.servers[owner.id], found)
        case "vm" if owner.id in net.vms:
            _vm(net, net.vms[owner.id], found)
    return {switch: {key_of(e): e for e in entries} for switch, entries in found.items() if entries}


def _switch(net: Network, switch: Switch) -> Iterable[Entry]:
    match switch.role:
        case Role.EDGE:
            return edge.switch_flows(net, switch)
        case Role.LEAF:
            return fabric.leaf_flows(net, switch)
        case Role.SPINE:
            return fabric.spine_flows(net, switch)


def _server(net: Network, server: Server, found: dict[str, list[Entry]]) -> None:
    for switch, flows in fabric.server_flows(net, server).items():
        found.setdefault(switch, []).extend(flows)
    if server.edge:
        found.setdefault(server.edge, []).extend(edge.server_flows(net, server, net.switches[server.edge]))


def _vm(net: Network, vm: VM, found: dict[str, list[Entry]]) -> None:
    for name in (vm.server, *sorted(vm.also)):
        server = net.servers[name]
        port = net.vm_ports.get(vm.id, {}).get(server.edge)
        if port is not None:
            found.setdefault(server.edge, []).extend(edge.vm_flows(net, vm, server, port.number))
    if vm.forwarded_from:
        found.setdefault(net.servers[vm.forwarded_from].edge, []).extend(edge.forwards(net, vm))
    mark = cookie(Reason.FORWARD, Owner("vm", vm.id))
    for holding in net.held_by(vm.id):
        for switch, flows in fabric.host_routes(net, net.servers[vm.server], holding.ip, mark).items():
            found.setdefault(switch, []).extend(flows)
        # Both ways and from the first, so that where the VM is delivered changes nothing of it.
        for place, other in permutations(vm.places, 2):
            ways = fabric.copy_ways(net, net.servers[place], net.servers[other], holding.ip, mark)
            for switch, flows in ways.items():
                found.setdefault(switch, []).extend(flows)


Keys = dict[str, frozenset[EntryKey]]
"""By switch: the entries that changed."""


@dataclass
class Compiler:
    """The desired program of each switch, kept up to date owner by owner."""

    net: Network
    programs: dict[str, Program] = field(default_factory=dict)
    _of: dict[Owner, Contribution] = field(default_factory=dict)

    def update(self, touched: Iterable[Owner]) -> Keys:
        """Compute the touched owners again; return, by switch, the keys whose entry became different.

        Raises ClashError, with nothing changed, when two owners want one place.
        """
        fresh = {owner: contribution(self.net, owner) for owner in sorted(touched)}
        # Who is in the way may have been touched, too, and not computed yet: it is, now.
        while in_the_way := self._in_the_way(fresh):
            fresh.update({owner: contribution(self.net, owner) for owner in in_the_way})
        self._check(fresh)
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

    def _in_the_way(self, fresh: dict[Owner, Contribution]) -> list[Owner]:
        """Other owners who have, as last computed, an entry where one of these wants one."""
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
        taken: dict[tuple[str, EntryKey], Owner] = {}
        for owner, contributed in fresh.items():
            for switch, entries in contributed.items():
                for key in entries:
                    other = taken.setdefault((switch, key), owner)
                    if other != owner:
                        raise ClashError(f"{owner} and {other} both want {key} on {switch}")

    def program(self, switch: str) -> Program:
        return self.programs.get(switch, {})

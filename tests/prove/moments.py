"""The moments in which a network may be of which it is proved.

A moment is either settled, all switches have what they should; or a stage of a change: the switches of the
stages before have it, those of later ones have not, and of the switches of this stage each may or may not.
The changes are those of a migration, as the controller makes them and in its order
(`controller/migrations/placing.py`), and those of a server's uplinks (`controller/neighbours/uplinks.py`).
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace

from prove.reach import End
from retinue.core.migration import PlacementChange
from retinue.core.migration.placement import placement_of
from retinue.core.migration.record import Migration, MigrationState
from retinue.core.model import Link, Network, PortRef, VMPort
from retinue.core.model.links import is_sound
from retinue.core.model.uplinks import found_links, has_several, used_uplink
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Program
from retinue.core.pipeline.underlay import Near, underlay_of
from retinue.core.pipeline.underlay.fabric_uplinks import told_at_once
from support.fabric.networks import nic_numbers, tunnel_ends, vm_port


@dataclass(frozen=True)
class Moment:
    """What the switches may hold, and what is to become of frames meanwhile."""

    name: str
    net: Network
    programs: dict[str, tuple[Program, ...]]
    cables: dict[End, End]
    tunnels: dict[int, End]
    """By its address on the IP network that joins leaves: each tunnel's end."""
    places: dict[str, frozenset[str]]
    """By NIC: the servers at which a frame for it may arrive; at one of them."""
    brought: dict[str, dict[str, frozenset[str]]] = field(default_factory=dict)
    """By NIC, and by server to which the fabric may still bring a frame for it: where that one may arrive."""
    copied: frozenset[str] = frozenset()
    """NICs whose frames may arrive at each of these servers, once at each."""
    everywhere: bool = False
    """What is copied does arrive at each of them."""
    senders: dict[str, frozenset[str]] = field(default_factory=dict)
    """By NIC: the servers from which its VM's honest frames must arrive."""
    open: dict[str, frozenset[str]] = field(default_factory=dict)
    """By NIC: the servers where its port may be open; at any other its port is nobody's."""


@dataclass
class Case:
    """A network, and what happens in it: the VM that is migrated, the server whose uplinks change."""

    net: Network
    vm: str = ""
    target: str = ""
    twice: str = ""
    """A server with two uplinks."""
    programs: dict[str, Program] = field(default_factory=dict)

    def settle(self) -> None:
        compiler = Compiler(self.net)
        compiler.update(self.net.everything())
        self.programs = {switch: dict(compiler.program(switch)) for switch in self.net.switches}


def cables(net: Network) -> dict[End, End]:
    """By each end of a cable: the other. One that is lost carries nothing."""
    found: dict[End, End] = {}
    pairs: list[tuple[End, End]] = []
    for link in net.links:
        leaf, spine = net.port_number(link.lower), net.port_number(link.upper)
        assert leaf is not None and spine is not None
        pairs.append(((link.lower.switch, leaf), (link.upper.switch, spine)))
    for link in (link for server in net.servers.values() if server.edge for link in _uplinks(net, server.id)):
        edge, leaf = net.port_number(link.lower), net.port_number(link.upper)
        assert edge is not None and leaf is not None
        pairs.append(((link.lower.switch, edge), (link.upper.switch, leaf)))
    for one, other in pairs:
        found[one], found[other] = other, one
    return found


def _uplinks(net: Network, server: str) -> list[Link]:
    if has_several(net, server):
        return [link for link in found_links(net, server) if is_sound(net, link)]
    at, edge = net.location(server), net.servers[server].edge
    return [] if at is None else [Link(PortRef(edge, used_uplink(net, edge)), at)]


# ---- moments ----


def moments(case: Case) -> Iterator[Moment]:
    """The network as it is; every moment in which a server's traffic comes to go by its other uplink; and
    every moment of the VM's migration: done, and undone at each of its steps."""
    case.settle()
    yield settled(case, "at rest")
    if case.twice:
        yield from uplinks(case)
    if case.vm:
        for step in migration(case):
            yield from step


def settled(case: Case, name: str) -> Moment:
    net = deepcopy(case.net)
    places: dict[str, frozenset[str]] = {}
    copied: set[str] = set()
    senders: dict[str, frozenset[str]] = {}
    brought: dict[str, dict[str, frozenset[str]]] = {}
    for vm in net.vms.values():
        copies = {vm.copied_to} - {"", vm.server}
        for nic in vm.nics:
            places[nic.port_id] = frozenset({vm.server, *copies})
            senders[nic.port_id] = frozenset({vm.server, *vm.also})
            here = {server: frozenset({server}) for server in vm.also}
            sent_on = {vm.forwarded_from} - {""}
            brought[nic.port_id] = here | dict.fromkeys({vm.server, *sent_on}, places[nic.port_id])
            if copies:
                copied.add(nic.port_id)
    held: dict[str, tuple[Program, ...]] = {s: (program,) for s, program in case.programs.items()}
    both = frozenset(copied)
    joined = {int(address): end for end, address in tunnel_ends(net)}
    return Moment(name, net, held, cables(net), joined, places, brought, both, True, senders, senders)


def changing(case: Case, name: str, near: Near, change: Callable[[Network], object]) -> Iterator[Moment]:
    """Make a change: a moment for each stage in which switches are told, and the one after."""
    before = settled(case, name)
    old = dict(case.programs)
    change(case.net)
    case.settle()
    after = settled(case, name)
    changed = {
        switch: {k for k in {*old[switch], *new} if old[switch].get(k) != new.get(k)}
        for switch, new in case.programs.items()
    }
    stages = underlay_of(case.net).stages({s: keys for s, keys in changed.items() if keys}, near)
    for number, stage in enumerate(stages, 1):
        done = {switch for earlier in stages[: number - 1] for switch in earlier}
        yield Moment(
            f"{name}: stage {number} ({', '.join(stage)})",
            after.net,
            {
                switch: (old[switch], new) if switch in stage else (new if switch in done else old[switch],)
                for switch, new in case.programs.items()
            },
            before.cables,
            before.tunnels,
            {nic: before.places[nic] | after.places[nic] for nic in after.places},
            {nic: _either(before.brought[nic], after.brought[nic]) for nic in after.brought},
            before.copied | after.copied | _may_be_copied(before.net) | _may_be_copied(after.net),
            False,
            {nic: before.senders[nic] & after.senders[nic] for nic in after.senders},
            {nic: before.senders[nic] | after.senders[nic] for nic in after.senders},
        )
    yield replace(after, name=f"{name}: done")


def _either(before: dict[str, frozenset[str]], after: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """What is promised both before and after."""
    return {server: before[server] | after[server] for server in before.keys() & after.keys()}


def _may_be_copied(net: Network) -> frozenset[str]:
    return frozenset(nic.port_id for vm in net.vms.values() if vm.copied_to for nic in vm.nics)


def uplinks(case: Case) -> Iterator[Moment]:
    """The server's traffic goes by its other uplink while both are well, and back; then one or the other is
    lost, and all goes by the one that is left."""
    net, edge = case.net, case.net.servers[case.twice].edge
    first, second = net.switches[edge].uplinks

    def by(uplink: str, name: str) -> Iterator[Moment]:
        near = [told_at_once(case.net, case.twice)]
        return changing(case, f"by {name}", near, lambda net: net.use_uplink(edge, uplink))

    yield from by(second, "the second uplink")
    yield from by(first, "the first uplink again")
    at_first = deepcopy(case)
    for lost, other in ((first, second), (second, first)):
        case.net.lose_link(PortRef(edge, lost), "nothing comes in")
        case.net.use_uplink(edge, other)
        case.settle()
        yield settled(case, f"{lost} is lost")
        _go_back(case, at_first)


def migration(case: Case) -> Iterator[Iterator[Moment]]:
    """The steps of the VM's migration. What is undone starts again from where it was."""
    vm = case.net.vms[case.vm]
    underlay = underlay_of(case.net)
    source, target = vm.server, case.target
    steps = ((MigrationState.DIVERTED, 0.0),)
    runs = Migration("migration-1", vm.id, source, target, MigrationState.DIVERTED, steps)
    paused = replace(runs, stopped_at=1.0, diverted=True)
    resumed = replace(paused, resumed_at=2.0)

    def placed(as_of: Migration, change: PlacementChange, near: Near, how: str = "") -> Iterator[Moment]:
        name = f"{change.name.lower()}{how}"
        return changing(case, name, near, lambda net: net.put_vm(placement_of(net.vms[vm.id], as_of, change)))

    edge = case.net.servers[target].edge
    ports = [(nic.port_id, VMPort(vm_port(n))) for nic, n in zip(vm.nics, nic_numbers(vm), strict=True)]
    yield changing(
        case, "a port at the target", (), lambda net: [net.set_vm_port(id, edge, port) for id, port in ports]
    )
    divert = underlay.order_to_divert(source, target)
    give_back = underlay.order_to_return(source, target)
    withdraw = underlay.order_to_withdraw
    yield placed(runs, PlacementChange.ADMITTED, [underlay.near(target)])
    admitted = deepcopy(case)
    yield placed(runs, PlacementChange.TARGET_CLOSED, withdraw(target), " (undone before it is diverted)")
    # Who cannot be held back is diverted while it stands still already.
    _go_back(case, admitted)
    yield placed(replace(paused, diverted=False), PlacementChange.DIVERTED, divert, " (paused already)")
    _go_back(case, admitted)
    yield placed(runs, PlacementChange.DIVERTED, divert)
    yield placed(replace(runs, diverted=True), PlacementChange.FORWARDED, divert)
    yield placed(paused, PlacementChange.COPIED, divert)
    copied = deepcopy(case)
    yield placed(paused, PlacementChange.RETURNED, give_back)
    yield placed(paused, PlacementChange.TARGET_CLOSED, withdraw(target), " (undone)")
    _go_back(case, copied)
    yield placed(resumed, PlacementChange.SOURCE_CLOSED, ())
    yield placed(resumed, PlacementChange.SETTLED, withdraw(source))


def _go_back(case: Case, to: Case) -> None:
    case.net, case.programs = deepcopy(to.net), dict(to.programs)

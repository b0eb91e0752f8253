"""Two joined domains, in every state of a move between them, also between any two switches of a step.

Each honest packet comes once to the right place, with the TTL of one router; forged ones come nowhere;
nothing goes round between the gateways.
"""

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core import migration as fsm
from retinue.core.migration import Migration, PlacementChange
from retinue.core.model import NIC
from retinue.core.packets import (
    ARP,
    ND,
    ArpOp,
    NDOptions,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    RouterSolicitation,
    arp_request,
    nd_frame,
)
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Output
from retinue.core.pipeline.priorities import Deliver
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import underlay_of
from support.examples import examples
from support.fabric.domains import (
    GATEWAY_MACS,
    TUNNEL,
    Domains,
    gateway_of,
    nic,
    nics_of,
    other,
    port,
    server_of,
)
from support.fabric.ipv6 import frame6, udp6

C = PlacementChange
FORTH: tuple[tuple[str, C | str], ...] = (
    ("target", C.ADMITTED),
    ("source", C.ADMITTED),
    ("target", C.DIVERTED),
    ("source", C.DIVERTED),
    ("source", C.FORWARDED),
    ("source", "stopped"),
    ("source", C.COPIED),
    ("target", C.COPIED),
    ("target", "resumed"),
    ("target", C.SOURCE_CLOSED),
    ("source", C.SOURCE_CLOSED),
    ("source", C.SETTLED),
    ("target", C.SETTLED),
)
"""What becomes of a move, by domain: the target is ready, and diverts, before the source does."""
WAYS_BACK: tuple[tuple[str, C | str], ...] = (
    ("source", C.RETURNED),
    ("target", C.RETURNED),
    ("source", C.TARGET_CLOSED),
    ("target", C.TARGET_CLOSED),
)
LAST_TO_UNDO = FORTH.index(("target", "resumed"))


@dataclass
class Move:
    """VM vm-a1 moves between server 1 of domain `source` and server 1 of the other; vm-a2 is its client."""

    world: Domains
    source: str
    halves: dict[str, Migration] = field(default_factory=dict)
    runs_in: str = ""
    may_be_late: bool = True
    """A packet may still be in the tunnel: forwarding has not ended."""

    def __post_init__(self) -> None:
        s, t = self.source, other(self.source)
        self.runs_in = s
        self.halves = {
            "source": fsm.begin("migration-1", "vm-a1", server_of(s, 1), gateway_of(s), 1.0),
            "target": fsm.begin("migration-1", "vm-a1", gateway_of(t), server_of(t, 1), 1.0),
        }
        if t == "b":
            self.world.add("b", "a", 1, gateway_of("b"))

    def steps(self, steps: tuple[tuple[str, C | str], ...]) -> None:
        for half, step in steps:
            self.may_be_late &= step not in (C.SETTLED, C.SOURCE_CLOSED, C.TARGET_CLOSED)
            if step == "stopped":
                self._at("stopped_at", 2.0)
            elif step == "resumed":
                self._at("resumed_at", 3.0)
                self.runs_in = other(self.source)
            else:
                assert isinstance(step, C)
                self._place(half, step)
            self.check()

    def _at(self, when: str, at: float) -> None:
        for half, migration in self.halves.items():
            self.halves[half] = replace(migration, **{when: at})  # type: ignore[arg-type]

    def _place(self, half: str, change: C) -> None:
        domain = self.source if half == "source" else other(self.source)
        net, migration = self.world.nets[domain], self.halves[half]
        vm = fsm.placement_of(net.vms["vm-a1"], migration, change)
        self.world.install(domain, net.put_vm(vm), self.world.near(domain, migration, change), self.check)
        if change is C.DIVERTED:
            self.halves[half] = replace(migration, diverted=True)

    def come_out(self) -> set[tuple[str, ...]]:
        """The edges where a client's packet for the VM comes out, for each way there."""
        its, client = nics_of("a", 1, dual=True)[0], dual("a", 2)
        found = self.world.arrivals(("a-edge2", port(client)), client, its)
        return {tuple(sorted(switch for switch, _ in came)) for came in found}

    def copiers(self) -> set[str]:
        """Switches that send one packet for the VM to two places."""
        return {
            switch
            for switch in self.world.fabric.switches
            for flow in self.world.fabric[switch].flows.values()
            if (flow.table, flow.priority) == (Table.DELIVER, Deliver.VM)
            if sum(isinstance(action, Output) for action in flow.actions) > 1
        }

    # ---- what holds ----

    def check(self) -> None:
        client = dual("a", 2)
        for its in nics_of("a", 1, dual=True):
            self.check_nic(its, client)
        self.forged_goes_nowhere()

    def check_nic(self, its: NIC, client: NIC) -> None:
        places = {("a-edge1", port(its)), ("b-edge1", port(its))}
        a = self.world.nets["a"].vms["vm-a1"]
        copied = any(bool(n.vms["vm-a1"].copied_to) for n in self.world.nets.values() if "vm-a1" in n.vms)
        for came in self.world.arrivals(("a-edge2", port(client)), client, its):
            assert len(came) == 1 or (copied and len(came) == len(set(came)) == 2), f"{came}, {a}"
            assert set(came) <= places
        at = (f"{self.runs_in}-edge1", port(its))
        for came in self.world.arrivals(at, its, client):
            assert came == [("a-edge2", port(client))], f"{came}, {a}"
        self.is_answered(at, its, client)
        if self.source == "b" and self.may_be_late:
            self.late_is_not_lost(client, its, places)

    def is_answered(self, at: tuple[str, int], its: NIC, client: NIC) -> None:
        """For its home's gateway by its switch, whatever becomes of the controllers; a guest for neighbours,
        too."""
        own, neighbour = its.addresses[0], client.addresses[0]
        assert isinstance(own, IPv4Address)
        assert isinstance(neighbour, IPv4Address)
        gateway = self.world.nets["a"].subnets["blue"].gateway
        assert isinstance(gateway, IPv4Address)
        for wanted in (gateway, neighbour) if self.runs_in == "b" else (gateway,):
            said = self.world.asks(at, its, wanted)
            wants = ARP(ArpOp.REPLY, GATEWAY_MACS[self.runs_in], wanted, its.mac, own)
            assert said == wants
        assert not self.world.fabric.all_paths(*at, arp_request(its.mac, own, own))[0].arrivals

    def late_is_not_lost(self, client: NIC, its: NIC, places: set[tuple[str, int]]) -> None:
        """On the way home: what home had sent into the tunnel before it diverted comes out of it, once."""
        both = zip(client.addresses, its.addresses, strict=True)
        for delivery in (
            one for src, dst in both for one in self.world.send(("b-edge3", TUNNEL), client.mac, src, dst)
        ):
            came = [(switch, port) for switch, port, _ in delivery.arrivals]
            copied = bool(self.world.nets["b"].vms["vm-a1"].copied_to)
            assert len(came) == 1 or (copied and len(came) == len(set(came)) == 2), f"late: {delivery}"
            assert set(came) <= places

    def forged_goes_nowhere(self) -> None:
        (vm, second), client, stranger = nics_of("a", 1, dual=True), dual("a", 2), dual("b", 2)
        server2_vm = dual("a", 3)
        b_server2 = ("b-edge2", port(stranger))
        ours, theirs = ("a-edge3", TUNNEL), ("b-edge3", TUNNEL)
        for at, mac, by, to in (
            # A VM of the other domain as the guest, and to it; as itself to its home.
            (b_server2, stranger.mac, vm, client),
            (b_server2, stranger.mac, stranger, vm),
            (b_server2, stranger.mac, stranger, client),
            # By the tunnel: as somebody who is at home; as a stranger; with another's MAC.
            (ours, client.mac, client, server2_vm),
            (ours, stranger.mac, stranger, client),
            (ours, stranger.mac, vm, client),
            (ours, vm.mac, second, client),
            # By the tunnel to somebody of the other domain, or to nobody.
            (theirs, client.mac, client, stranger),
            (theirs, vm.mac, vm, stranger),
            (theirs, client.mac, client, server2_vm),
        ):
            for src, dst in zip(by.addresses, to.addresses, strict=True):
                for delivery in self.world.send(at, mac, src, dst):
                    assert not delivery.arrivals, f"{src} at {at} to {dst}: {delivery}"
        for at, by, to in ((ours, vm, client), (theirs, client, vm)):
            self.is_not_carried(at, by, to)

    def is_not_carried(self, at: tuple[str, int], by: NIC, to: NIC) -> None:
        """By a tunnel, also from who may send by it: DHCPv6, and whatever is asked and said of neighbours."""
        (_, src), (_, dst) = by.addresses, to.addresses
        assert isinstance(src, IPv6Address)
        assert isinstance(dst, IPv6Address)
        packets = [udp6(src, dst, sport=547, dport=port) for port in (546, 547)]
        frames = [frame6(by.mac, GATEWAY_MACS["a"], packet) for packet in packets]
        for said in (
            NeighbourSolicitation(dst, NDOptions(source_mac=by.mac)),
            NeighbourAdvertisement(dst, router=False, solicited=True, override=True),
            RouterSolicitation(NDOptions(source_mac="52:54:00:00:00:99")),
        ):
            frames.append(nd_frame(ND(src, dst, said), by.mac, GATEWAY_MACS["a"]))
        for frame in frames:
            for delivery in self.world.fabric.all_paths(*at, frame):
                assert not delivery.arrivals, f"{frame.hex()} at {at}: {delivery}"
                assert {switch for switch, *_ in delivery.to_controller} <= {at[0]}, f"{delivery}"


def dual(domain: str, number: int) -> NIC:
    """With addresses of both families, as all here have."""
    return nic(domain, number, dual=True)


def world(leaves: int, spines: int, by_mac: bool = False) -> Domains:
    made = Domains(leaves, spines, dual=True, by_mac=by_mac)
    made.add("a", "a", 1, server_of("a", 1))
    made.add("a", "a", 2, server_of("a", 2))
    made.add("a", "a", 3, server_of("a", 2))
    made.add("b", "b", 2, server_of("b", 2))
    return made


def ended(made: Domains) -> None:
    """Incremental = recomputed, in both."""
    for domain, compiler in made.compilers.items():
        fresh = Compiler(made.nets[domain])
        fresh.update(made.nets[domain].everything())
        assert {s: p for s, p in compiler.programs.items() if p} == fresh.programs


Shape = tuple[int, int, bool]


def shapes() -> st.SearchStrategy[Shape]:
    """Leaves, spines, and whether these forward by MAC alone."""
    return st.tuples(st.integers(1, 2), st.integers(1, 2), st.booleans())


@settings(max_examples=examples(4), deadline=None)
@given(shapes())
def test_a_vm_moves_to_another_domain_and_back(shape: Shape) -> None:
    made = world(*shape)
    before = {switch: dict(program) for switch, program in made.installed.items()}
    there = Move(made, "a")
    there.check()
    there.steps(FORTH)
    ended(made)
    assert made.nets["a"].vms["vm-a1"].server == "to-b"
    back = Move(made, "b")
    back.steps(FORTH)
    made.install("b", made.nets["b"].remove_vm("vm-a1"))
    ended(made)
    assert made.installed == before, "the network is as it was"


@settings(max_examples=examples(15), deadline=None)
@given(shapes(), st.integers(1, LAST_TO_UNDO), st.booleans())
def test_a_move_is_undone_at_any_step(shape: Shape, after: int, back: bool) -> None:
    """The source first: nothing is lost, goes round, or is left behind."""
    made = world(*shape)
    if back:
        Move(made, "a").steps(FORTH)
    move = Move(made, "b" if back else "a")
    before = {switch: dict(program) for switch, program in made.installed.items()}
    move.steps(FORTH[:after])
    ways = WAYS_BACK if any(step is C.DIVERTED for _, step in FORTH[:after]) else WAYS_BACK[2:]
    move.steps(ways)
    ended(made)
    assert made.installed == before


@given(st.sampled_from(["10.1.0.101", "10.1.0.102"]))
def test_what_a_domain_without_others_has_is_what_it_had(_: str) -> None:
    """A peer adds its gateway's own entries, and no more."""
    made = world(1, 1)
    net = made.nets["a"]
    with_peer = {switch: dict(made.compilers["a"].program(switch)) for switch in net.switches}
    net.peers.clear()
    alone = Compiler(net)
    alone.update(net.everything())
    for switch in net.switches:
        more = set(with_peer[switch].items()) - set(alone.program(switch).items())
        assert not set(alone.program(switch).items()) - set(with_peer[switch].items())
        assert bool(more) == (switch == "a-edge3")


@settings(max_examples=examples(2), deadline=None)
@given(shapes())
def test_a_guest_moves_inside_the_other_domain(shape: Shape) -> None:
    """Also between two switches of a step it is found, at one of its two servers."""
    made = world(*shape)
    Move(made, "a").steps(FORTH)
    net, underlay = made.nets["b"], underlay_of(made.nets["b"])
    client = dual("a", 2)
    inside = fsm.begin("migration-2", "vm-a1", server_of("b", 1), server_of("b", 2), 1.0)

    def found() -> None:
        for its in nics_of("a", 1, dual=True):
            places = {("b-edge1", port(its)), ("b-edge2", port(its))}
            for came in made.arrivals(("a-edge2", port(client)), client, its):
                assert len(came) == 1
                assert set(came) <= places

    for change in (C.ADMITTED, C.DIVERTED, C.FORWARDED, C.SOURCE_CLOSED, C.SETTLED):
        near = underlay.order_to_divert(inside.source, inside.target) if change is not C.SETTLED else ()
        made.install("b", net.put_vm(fsm.placement_of(net.vms["vm-a1"], inside, change)), near, found)
        inside = replace(inside, diverted=inside.diverted or change is C.DIVERTED)
    ended(made)


TOLD = st.lists(
    st.tuples(st.sampled_from(["ports", "mac", "place", "vm"]), st.integers(0, 7), st.integers(0, 2)),
    max_size=8,
)
"""What may become of switches and of the gateway: its kind, whose, and what of three."""


@settings(max_examples=examples(12), deadline=None)
@given(shapes(), TOLD)
def test_what_is_kept_up_to_date_is_what_is_computed_anew(
    shape: Shape, steps: list[tuple[str, int, int]]
) -> None:
    """Whatever is told after a restart, and in whichever order: a guest's entries follow its gateway."""
    made = world(*shape)
    Move(made, "a").steps(FORTH)
    for domain, net in made.nets.items():
        switches = sorted(net.switches)
        ports = {switch: dict(net._numbers[switch]) for switch in switches}
        gateway = net.servers[gateway_of(domain)]
        at, compiler = gateway.given_at, made.compilers[domain]
        assert at is not None
        for what, whose, which in steps:
            switch = switches[whose % len(switches)]
            match what:
                case "ports":
                    told = ({}, ports[switch], {name: 50 + n for name, n in ports[switch].items()})[which]
                    touched = net.set_ports(switch, told)
                case "mac":
                    server = replace(net.servers[gateway.id], mac=f"02:00:00:0f:00:0{which}")
                    touched = net.put_server(server)
                case "place":
                    place = (None, at, replace(at, port="p9"))[which]
                    touched = net.put_server(replace(net.servers[gateway.id], given_at=place))
                case _:
                    vm = net.vms["vm-a1"]
                    off = replace(vm, nics=(replace(vm.nic, enabled=which > 0), *vm.nics[1:]))
                    touched = net.put_vm(off)
            compiler.update(touched)
            anew = Compiler(net)
            anew.update(net.everything())
            assert {s: p for s, p in compiler.programs.items() if p} == anew.programs, (domain, what, switch)


def test_between_domains_the_gateway_makes_the_copies_and_only_while_the_vm_is_paused() -> None:
    """Who has a client's packet, step by step: where the VM runs, or will run; while it runs nowhere, both,
    each held back in the tap there. The copies are made by home's gateway, and by nobody else."""
    world = Domains(2, 1, dual=True)
    world.add("a", "a", 1, server_of("a", 1))
    world.add("a", "a", 2, server_of("a", 2))
    move = Move(world, "a")
    source: tuple[str, ...] = ("a-edge1",)
    target: tuple[str, ...] = ("b-edge1",)
    wanted = dict.fromkeys(FORTH, target)
    before_diverting = FORTH[: FORTH.index(("source", C.DIVERTED))]
    copied = FORTH[FORTH.index(("source", C.COPIED)) : FORTH.index(("source", C.SOURCE_CLOSED))]
    wanted |= dict.fromkeys(before_diverting, source) | dict.fromkeys(copied, source + target)
    for step in FORTH:
        move.steps((step,))
        assert move.come_out() == {wanted[step]}, step
        assert move.copiers() == ({"a-edge3"} if step in copied else set()), step
    paused = FORTH[FORTH.index(("source", "stopped")) : FORTH.index(("target", "resumed"))]
    begins, ends = (FORTH.index(one) for one in (("source", C.COPIED), ("source", C.SOURCE_CLOSED)))
    assert FORTH[begins] in paused and FORTH[ends] not in paused, (
        "begun while it is paused, ended when it runs"
    )


def test_on_its_way_home_nothing_is_copied_into_the_tunnel() -> None:
    """There what still comes to the gateway by which it leaves is copied, which is late; at home nothing."""
    world = Domains(2, 1, dual=True)
    world.add("a", "a", 1, gateway_of("a"))
    world.add("a", "a", 2, server_of("a", 2))
    world.add("b", "a", 1, server_of("b", 1))
    move, diverted = Move(world, "b"), FORTH.index(("target", C.DIVERTED))
    for number, step in enumerate(FORTH):
        move.steps((step,))
        assert move.come_out() == {("a-edge1",) if number >= diverted else ("b-edge1",)}, step
        assert move.copiers() <= {"b-edge3"}

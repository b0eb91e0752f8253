"""Storage between two domains, in every state of a move, also between any two switches of a step.

What the forwarder at home sends comes to one place at the most, wherever the VM is; what the VM sends comes
to the forwarder as it was sent; nothing else passes a gateway, and nothing goes round between them.
"""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core import migration as fsm
from retinue.core.migration import Migration, PlacementChange
from retinue.core.model import ModelError, PortRef, Server, Service
from retinue.core.model.storage import FcLogin
from retinue.core.pipeline.compiler import Compiler
from support.examples import examples
from support.fabric.domains import TUNNEL, Domains, gateway_of, nic, other, port, server_of
from support.fabric.storage import FORWARDER_MAC, storage_frame
from support.fabric.storage_domains import FORWARDER_AT, granted, logged_in, with_storage

C = PlacementChange
FORTH: tuple[tuple[str, C], ...] = (
    ("target", C.ADMITTED),
    ("source", C.ADMITTED),
    ("target", C.DIVERTED),
    ("source", C.DIVERTED),
    ("source", C.FORWARDED),
    ("source", C.COPIED),
    ("target", C.COPIED),
    ("target", C.SOURCE_CLOSED),
    ("source", C.SOURCE_CLOSED),
    ("source", C.SETTLED),
    ("target", C.SETTLED),
)
WAYS_BACK: tuple[tuple[str, C], ...] = (
    ("source", C.RETURNED),
    ("target", C.RETURNED),
    ("source", C.TARGET_CLOSED),
    ("target", C.TARGET_CLOSED),
)
RESUMES = FORTH.index(("target", C.SOURCE_CLOSED))
NUMBER, OTHER = 1, 2
"""VM vm-a1 moves; vm-a2 is a guest of domain b all the time, with a login of the same forwarder."""
PLACES = {(f"{domain}-edge{n}", port(nic("a", NUMBER))) for domain in "ab" for n in (1, 2)}


@dataclass
class Move:
    """Between server 1 of domain `source` and server 1 of the other."""

    world: Domains
    source: str
    halves: dict[str, Migration] = field(init=False)
    runs_in: str = ""

    def __post_init__(self) -> None:
        s, t = self.source, other(self.source)
        self.runs_in = s
        self.halves = {
            "source": fsm.begin("migration-1", "vm-a1", server_of(s, 1), gateway_of(s), 1.0),
            "target": fsm.begin("migration-1", "vm-a1", gateway_of(t), server_of(t, 1), 1.0),
        }
        if t == "b":
            self.world.add("b", "a", NUMBER, gateway_of("b"))
            self.world.install("b", self.world.nets["b"].log_in(logged_in("b", NUMBER)))

    def steps(self, steps: tuple[tuple[str, C], ...]) -> None:
        for half, change in steps:
            domain = self.source if half == "source" else other(self.source)
            net, migration = self.world.nets[domain], self.halves[half]
            if change is C.COPIED:
                self.halves = {one: replace(m, stopped_at=2.0) for one, m in self.halves.items()}
            if change is C.SOURCE_CLOSED:
                self.runs_in = other(self.source)
            vm = fsm.placement_of(net.vms["vm-a1"], self.halves[half], change)
            near = self.world.near(domain, migration, change)
            self.world.install(domain, net.put_vm(vm), near, lambda: self.holds(changing=True))
            if change is C.DIVERTED:
                self.halves[half] = replace(migration, diverted=True)
            self.holds(changing=False)

    def holds(self, *, changing: bool) -> None:
        assert len(came_to(self.world, NUMBER)) <= 1, "copied, or somewhere else"
        assert came_to(self.world, OTHER) == [("b-edge2", port(nic("a", OTHER)))]
        sends(self.world, OTHER, "b-edge2")
        if not changing:
            assert came_to(self.world, NUMBER), "lost"
            sends(self.world, NUMBER, f"{self.runs_in}-edge1")
        forged_goes_nowhere(self.world)


def came_to(world: Domains, number: int) -> list[tuple[str, int]]:
    """Where a frame of the forwarder to a VM comes out, which may come nowhere but to the VM's ports."""
    frame = storage_frame(FORWARDER_MAC, granted(number))
    found = []
    for delivery in world.fabric.all_paths(*FORWARDER_AT, frame):
        assert all(same == frame for _, _, same in delivery.arrivals), delivery
        assert not delivery.to_controller
        assert {number for _, number, _ in delivery.arrivals} <= {port(nic("a", number))}, delivery
        found.append([(switch, port) for switch, port, _ in delivery.arrivals])
    assert all(one == found[0] for one in found), found
    return found[0]


def sends(world: Domains, number: int, edge: str) -> None:
    frame = storage_frame(granted(number), FORWARDER_MAC)
    for delivery in world.fabric.all_paths(edge, port(nic("a", number)), frame):
        assert list(delivery.arrivals) == [(*FORWARDER_AT, frame)], delivery


def forged_goes_nowhere(world: Domains) -> None:
    """From ports of others, as others, to others; and by the tunnel what is no such pair."""
    stranger = ("b-edge1", port(nic("b", 3)))
    ours, theirs = ("a-edge3", TUNNEL), ("b-edge3", TUNNEL)
    own, its = nic("a", NUMBER), granted(OTHER)
    for at, src, dst in (
        (stranger, its, FORWARDER_MAC),
        (("b-edge2", port(nic("a", OTHER))), granted(NUMBER), FORWARDER_MAC),
        (("b-edge2", port(nic("a", OTHER))), its, granted(NUMBER)),
        (("b-edge2", port(nic("a", OTHER))), FORWARDER_MAC, its),
        (stranger, FORWARDER_MAC, its),
        (ours, own.mac, FORWARDER_MAC),
        (ours, FORWARDER_MAC, granted(NUMBER)),
        (ours, granted(3), FORWARDER_MAC),
        (ours, its, granted(3)),
        (theirs, granted(NUMBER), its),
        (theirs, its, FORWARDER_MAC),
        (theirs, FORWARDER_MAC, granted(3)),
    ):
        for delivery in world.fabric.all_paths(*at, storage_frame(src, dst)):
            assert not delivery.arrivals, f"{src} at {at} to {dst}: {delivery}"


def world(leaves: int, spines: int) -> Domains:
    made = with_storage(Domains(leaves, spines))
    made.add("a", "a", NUMBER, server_of("a", 1))
    made.add("a", "a", OTHER, gateway_of("a"))
    made.add("a", "a", 3, server_of("a", 2))
    made.add("b", "a", OTHER, server_of("b", 2))
    made.add("b", "b", 3, server_of("b", 1))
    for domain, number in (("a", NUMBER), ("a", OTHER), ("a", 3), ("b", OTHER)):
        made.install(domain, made.nets[domain].log_in(logged_in(domain, number)))
    return made


def ended(made: Domains) -> None:
    """Incremental = recomputed, in both."""
    for domain, compiler in made.compilers.items():
        fresh = Compiler(made.nets[domain])
        fresh.update(made.nets[domain].everything())
        assert {s: p for s, p in compiler.programs.items() if p} == fresh.programs


shapes = st.tuples(st.integers(1, 2), st.integers(1, 2))


@settings(max_examples=examples(4), deadline=None)
@given(shapes)
def test_storage_goes_along_and_comes_once_wherever_the_vm_is(shape: tuple[int, int]) -> None:
    made = world(*shape)
    before = {switch: dict(program) for switch, program in made.installed.items()}
    Move(made, "a").steps(FORTH)
    ended(made)
    assert came_to(made, NUMBER) == [("b-edge1", port(nic("a", NUMBER)))]
    Move(made, "b").steps(FORTH)
    made.install("b", made.nets["b"].remove_vm("vm-a1"))
    ended(made)
    assert made.installed == before, "the networks are as they were"


@settings(max_examples=examples(15), deadline=None)
@given(shapes, st.integers(1, RESUMES), st.booleans())
def test_a_move_with_storage_is_undone_at_any_step(shape: tuple[int, int], after: int, back: bool) -> None:
    made = world(*shape)
    if back:
        Move(made, "a").steps(FORTH)
    move = Move(made, "b" if back else "a")
    before = {switch: dict(program) for switch, program in made.installed.items()}
    move.steps(FORTH[:after])
    diverted = any(change is C.DIVERTED for _, change in FORTH[:after])
    move.steps(WAYS_BACK if diverted else WAYS_BACK[2:])
    ended(made)
    assert made.installed == before


def test_where_storage_does_not_go_between_domains_nothing_of_it_passes() -> None:
    made = Domains(1, 1)
    net = made.nets["b"]
    made.add("b", "a", OTHER, server_of("b", 2))
    with pytest.raises(Exception, match="storage of domain a does not come here"):
        net.log_in(logged_in("b", OTHER))
    assert not net.fc_logins


@pytest.mark.parametrize("mac", ["", "01:00:00:00:00:01", nic("b", 3).mac, "02:00:00:01:00:01"])
def test_a_forwarder_at_home_has_nobodys_mac_here(mac: str) -> None:
    made = with_storage(Domains(1, 1))
    made.add("b", "a", OTHER, server_of("b", 2))
    made.add("b", "b", 3, server_of("b", 1))
    login = logged_in("b", OTHER)
    wrong = FcLogin(login.mac, login.vm, login.nic, login.forwarder, mac)
    with pytest.raises(Exception, match="forwarder"):
        made.nets["b"].log_in(wrong)


def test_no_login_has_a_mac_that_somebody_has_here() -> None:
    """What is for our own forwarder would be led to the guest: another domain may say what it likes. Nor
    one that our forwarder has granted; whose that is it is not told."""
    made = with_storage(Domains(1, 1))
    made.add("b", "a", OTHER, server_of("b", 2))
    own = made.add("b", "b", 3, server_of("b", 1))
    net, at = made.nets["b"], PortRef("b-leaf1", "fcf")
    net.set_ports(at.switch, {**net._numbers[at.switch], at.port: 107})
    forwarder = Server("fcf2", granted(OTHER), services=frozenset({Service.FORWARDER}), given_at=at)
    net.put_server(forwarder)
    with pytest.raises(ModelError, match="somebody has that MAC here"):
        net.log_in(logged_in("b", OTHER))
    net.put_server(replace(forwarder, mac="02:00:00:00:0f:02"))
    net.log_in(FcLogin(granted(OTHER), own.id, own.nic.mac, forwarder.id))
    with pytest.raises(ModelError, match="somebody here is logged in with it"):
        net.log_in(logged_in("b", OTHER))

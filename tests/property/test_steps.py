"""A change made step by step, as a switch without bundles makes it: nothing is wrong in between.

1. Within a table: whatever wins between two steps wins before the change or after it.
2. A move: each packet comes exactly once to where its VM may be, and none that is forged, after every step.
"""

from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue.core.pipeline import steps
from retinue.core.pipeline.diff import difference
from retinue.core.pipeline.entry import Change, EntryKey, Field, Flow, Match, Output, match
from support.examples import examples
from support.fabric.histories import Move
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric, vm_mac
from support.fabric.world import FabricWorld

# ---- one table ----


def entry(priority: int, port: int) -> Flow:
    """Of a priority there is one match, so that two entries of a priority never win over each other."""
    terms: dict[str, int] = {}
    if priority & 1:
        terms["in_port"] = 1 + (priority >> 2) % 2
    if priority & 2:
        terms["eth_dst"] = 1 + (priority >> 3) % 2
    return Flow(0, priority, match(**terms), (Output(port),))


programs = st.dictionaries(st.integers(0, 15), st.integers(1, 3)).map(
    lambda ports: {flow.key: flow for flow in (entry(*one) for one in ports.items())}
)


def winner(program: dict[EntryKey, Flow], in_port: int, eth_dst: int) -> Flow | None:
    frame = {Field.IN_PORT: in_port, Field.ETH_DST: eth_dst}

    def applies(terms: Match) -> bool:
        return all(frame[field] == value for field, value, _ in terms)

    found = [flow for flow in program.values() if applies(flow.match)]
    return max(found, key=lambda flow: flow.priority, default=None)


@settings(deadline=None, max_examples=examples(200))
@given(before=programs, after=programs)
def test_what_wins_in_between_wins_before_or_after(
    before: dict[EntryKey, Flow], after: dict[EntryKey, Flow]
) -> None:
    change = difference(after, before, before.keys() | after.keys())
    now = dict(before)
    frames = [(in_port, eth_dst) for in_port in (1, 2) for eth_dst in (1, 2)]
    for step in chain(steps.makes(change), steps.removes(change)):
        make(now, step)
        for frame in frames:
            assert winner(now, *frame) in (winner(before, *frame), winner(after, *frame)), (step, frame)
    assert now == after


def make(program: dict[EntryKey, Flow], step: Change) -> None:
    program.update({flow.key: flow for flow in step.add})
    for flow in step.remove:
        del program[flow.key]


# ---- a move ----

AT = {1: 1, 2: 2, 3: 3}


@settings(deadline=None, max_examples=examples(2), suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("undone", [False, True])
@given(data=st.data())
def test_a_move_loses_doubles_and_lets_in_nothing_without_bundles(undone: bool, data: st.DataObject) -> None:
    net = fabric()
    for vm, server in AT.items():
        add_vm(net, vm, server)
    world = FabricWorld(net)
    world.in_steps = True
    mover, other = 1, 2
    at, may = dict(AT), {vm: {server} for vm, server in AT.items()}

    def check() -> None:
        for sender, to in ((mover, other), (other, mover), (3, mover)):
            for mac in (GATEWAY_MAC, vm_mac(to)):
                world.reaches(sender, at[sender], to, may[to], mac)
        world.reaches_from_outside(mover, may[mover])
        world.reaches_outside(mover, at[mover])
        world.spoofs(mover, at[mover], other)
        world.spoofs(other, at[other], mover)

    check()
    move = Move(world, data, f"vm{mover}", at[mover], check)
    move.plug([(net.vms[f"vm{mover}"].nic.port_id, mover)])
    move.admit()
    may[mover] = {move.source, move.target}
    if undone:
        move.divert(stands_still=True)
        world.copied.add(mover)
        move.undo()
        world.copied.clear()
        may[mover] = {move.source}
        check()
        return
    at[mover] = move.target
    move.divert(stands_still=True)
    world.copied.add(mover)
    move.copy()
    move.put(move.diverted)
    world.copied.clear()
    may[mover] = {move.target}
    check()
    move.close()
    move.end()

"""Decisions over random domains: no refused server, the same from the kept snapshot, in any order."""

from dataclasses import replace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core.placement import (
    Decision,
    Metric,
    Need,
    Outcome,
    Placement,
    Policy,
    Presence,
    Reason,
    ServerState,
    Snapshot,
    Weights,
    Wish,
    checks,
    decide,
    plan,
)

WORDS = st.sampled_from(["", "db", "web"])
SHARE = st.integers(0, 10_000)
NEEDS = st.builds(
    Need, st.just("vm1"), st.integers(0, 40), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4),
    WORDS, WORDS, st.booleans(), st.none() | st.integers(0, 1000),
)  # fmt: skip
SERVERS = st.builds(
    ServerState, server=st.just(""), presence=st.sampled_from(Presence), drained=st.booleans(),
    fenced=st.booleans(), attached=st.booleans(), cpus=st.integers(0, 4), memory_mib=st.integers(0, 100),
    promised_cpus=st.integers(0, 5), promised_mib=st.integers(0, 120), unknown_vms=st.integers(0, 1),
    free_mib=st.none() | st.integers(0, 100), disk_free_mib=st.none() | st.integers(0, 5),
    bandwidth_mbps=st.integers(0, 5), bandwidth_used_mbps=st.integers(0, 5), cpu_used=st.none() | SHARE,
    cpu_pressure=SHARE, memory_pressure=SHARE, distance=st.none() | st.integers(0, 500),
    groups=st.lists(WORDS).map(tuple), images=st.lists(WORDS).map(tuple),
)  # fmt: skip
POLICIES = st.builds(
    Policy, st.integers(50, 200), st.integers(50, 200),
    st.builds(Weights, *(st.integers(0, 3) for _ in range(5))), st.integers(0, 2000), st.integers(0, 900),
)  # fmt: skip
WISHES = st.builds(Wish, st.sampled_from(Reason), SHARE, SHARE, st.integers(0, 100))


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    found = draw(st.lists(SERVERS, min_size=1, max_size=5))
    servers = tuple(replace(one, server=f"s{number}") for number, one in enumerate(found))
    named = draw(st.sampled_from(["", "", "s0", "s1"]))
    return Snapshot(
        draw(NEEDS), "s0", servers, draw(WISHES), draw(POLICIES), named, draw(st.integers(0, 2000))
    )


@given(snapshots(), st.randoms(use_true_random=False))
def test_never_a_server_that_a_filter_refuses_and_the_same_in_any_order(
    found: Snapshot, shuffle: object
) -> None:
    decision = decide(found)
    if decision.outcome is Outcome.CHOSEN:
        (state,) = (one for one in found.servers if one.server == decision.target)
        assert all(check.ok for check in checks(state, found))
        assert decision.target != found.source
        best = decision.ranked[0].total
        assert all(one.total <= best for one in decision.ranked)
    else:
        assert not decision.target
    servers = list(found.servers)
    shuffle.shuffle(servers)  # type: ignore[attr-defined]
    assert decide(replace(found, servers=tuple(servers))) == decision
    assert {one.server for one in (*decision.ranked, *decision.refused)} == {s.server for s in servers}


@given(snapshots())
def test_the_kept_snapshot_gives_the_kept_decision(found: Snapshot) -> None:
    kept = msgspec.json.encode(Placement("migration-1", "match-1", "manager", found, decide(found)))
    again = msgspec.json.decode(kept, type=Placement)
    assert again.decision == decide(again.snapshot) == decide(found)
    assert isinstance(again.decision, Decision)


@st.composite
def domains(draw: st.DrawFn) -> tuple[dict[str, ServerState], dict[str, str], dict[str, Need]]:
    """Servers whose VMs fit."""
    names = [f"s{number}" for number in range(draw(st.integers(1, 4)))]
    at = {f"vm{n}": draw(st.sampled_from(names)) for n in range(draw(st.integers(0, 6)))}
    needs = {vm: replace(draw(NEEDS), vm=vm, disk_mib=0, bandwidth_mbps=0) for vm in at}
    servers = {}
    for name in names:
        here = [needs[vm] for vm, where in at.items() if where == name]
        mib, cpus = sum(one.memory_mib for one in here), sum(one.cpus for one in here)
        servers[name] = ServerState(
            name, drained=draw(st.booleans()), cpus=cpus + draw(st.integers(0, 8)),
            memory_mib=mib + draw(st.integers(0, 80)), promised_cpus=cpus, promised_mib=mib,
            groups=tuple(sorted({one.apart for one in here} - {""})),
        )  # fmt: skip
    return servers, at, needs


@settings(deadline=None)
@given(domains(), st.integers(0, 2000), st.sampled_from(Metric))
def test_a_plan_overfills_nothing_moves_nothing_twice_and_ends(
    domain: tuple[dict[str, ServerState], dict[str, str], dict[str, Need]], margin: int, metric: Metric
) -> None:
    servers, at, needs = domain
    found = plan(servers, at, needs, Policy(margin=margin), metric)
    assert len({step.vm for step in found.steps}) == len(found.steps)
    where, held = dict(at), {name: one.promised_mib for name, one in servers.items()}
    for step in found.steps:
        need = needs[step.vm]
        assert where[step.vm] == step.source != step.target
        assert not need.pinned
        assert not servers[step.target].drained
        held[step.source] -= need.memory_mib
        held[step.target] += need.memory_mib
        assert held[step.target] <= servers[step.target].memory_mib
        assert need.apart == "" or all(
            needs[vm].apart != need.apart for vm, server in where.items() if server == step.target
        )
        where[step.vm] = step.target
        if step.rule == "spread":
            assert step.gain >= max(margin, 1)

"""Plans that spread VMs: few moves, each for a visible gain, and none where nothing is wrong."""

from dataclasses import replace

import pytest

from retinue.core.placement import Metric, Need, Plan, Policy, Rule, ServerState, plan
from retinue.core.placement.rebalance import MOST_STEPS

SIZE = 1024


def domain(**vms: list[int]) -> tuple[dict[str, ServerState], dict[str, str], dict[str, Need]]:
    """Servers of 10 GiB and 10 processors, each with VMs of so many GiB (and as many processors)."""
    servers, at, needs = {}, {}, {}
    for name, sizes in vms.items():
        for number, size in enumerate(sizes):
            vm = f"{name}-{number}"
            at[vm], needs[vm] = name, Need(vm, memory_mib=size * SIZE, cpus=size)
        held = sum(sizes)
        servers[name] = ServerState(
            name, cpus=10, memory_mib=10 * SIZE, promised_mib=held * SIZE, promised_cpus=held
        )
    return servers, at, needs


def after(found: Plan, servers: dict[str, ServerState], at: dict[str, str], needs: dict[str, Need]) -> Plan:
    """What is planned once those moves are made."""
    at = {**at, **{step.vm: step.target for step in found.steps}}
    again = {
        name: replace(
            one,
            promised_mib=sum(needs[vm].memory_mib for vm, where in at.items() if where == name),
            promised_cpus=sum(needs[vm].cpus for vm, where in at.items() if where == name),
            groups=tuple(sorted({needs[vm].apart for vm, where in at.items() if where == name} - {""})),
        )
        for name, one in servers.items()
    }
    return plan(again, at, needs, Policy())


def moves(found: Plan) -> list[tuple[str, str]]:
    return [(step.vm, step.target) for step in found.steps]


def test_what_is_even_stays() -> None:
    assert plan(*domain(a=[2, 2], b=[4], c=[4]), Policy()).steps == ()


def test_a_full_server_gives_to_the_empty_one_and_it_is_shown_what_for() -> None:
    """First wanted of any balancer: the suggested changes, before and after, without making them."""
    found = plan(*domain(a=[4, 4], b=[]), Policy())
    assert moves(found) == [("a-0", "b")]
    assert found.steps[0].text == "a 80.00 % -> 40.00 %, b 0.00 % -> 40.00 %"
    assert (found.before, found.after) == ({"a": 8000, "b": 0}, {"a": 4000, "b": 4000})
    assert (found.imbalance_before, found.imbalance_after, found.steps[0].gain) == (8000, 0, 4000)


def test_a_server_is_never_filled_over_its_memory_by_moves_of_the_same_plan() -> None:
    """Each move is made in thought before the next: 70 GB did not fit on 58.75 GB."""
    found = plan(*domain(a=[5, 5], b=[6], c=[6]), Policy(margin=0))
    assert all(load <= 10_000 for load in found.after.values())
    servers, at, needs = domain(a=[9], b=[9, 1])
    assert plan(servers, at, needs, Policy(margin=0)).steps == ()


def test_a_move_that_does_not_lower_the_fuller_servers_load_is_none() -> None:
    """Moves without visible goal, while the imbalance grows."""
    assert plan(*domain(a=[8], b=[]), Policy(margin=0)).steps == ()
    for margin, count in ((1000, 1), (1001, 0)):
        assert len(plan(*domain(a=[1, 3], b=[2]), Policy(margin=margin)).steps) == count


def test_below_the_threshold_nothing_is_wrong() -> None:
    for threshold, count in ((2000, 0), (1999, 1)):
        assert len(plan(*domain(a=[1, 3], b=[2]), Policy(), threshold=threshold).steps) == count


@pytest.mark.parametrize("vms", [{"a": [4, 4, 1], "b": [1], "c": []}, {"a": [5, 3], "b": [4], "c": [1, 1]}])
def test_after_a_plan_there_is_nothing_to_plan(vms: dict[str, list[int]]) -> None:
    """No flapping: the next run finds nothing, and never the way back."""
    servers, at, needs = domain(**vms)
    found = plan(servers, at, needs, Policy())
    assert found.steps
    assert after(found, servers, at, needs).steps == ()


def test_to_bring_two_vms_apart_one_is_moved() -> None:
    """To repair one rule most VMs were moved, and others at each run."""
    servers, at, needs = domain(a=[1, 1, 1], b=[1, 1], c=[1, 1])
    for vm in ("a-0", "a-1"):
        needs[vm] = replace(needs[vm], apart="db")
    servers["a"] = replace(servers["a"], groups=("db",))
    found = plan(servers, at, needs, Policy())
    assert [(step.vm, step.rule) for step in found.steps] == [("a-1", Rule.APART)]
    assert after(found, servers, at, needs).steps == ()


def test_what_cannot_be_brought_apart_is_said() -> None:
    servers, at, needs = domain(a=[1, 1])
    for vm in at:
        needs[vm] = replace(needs[vm], apart="db")
    found = plan(servers, at, needs, Policy())
    assert (found.steps, len(found.left)) == ((), 1)
    assert "a-1 should be apart" in found.left[0]


def test_one_metric_is_shown_and_chosen_by() -> None:
    """It was balanced by processors and chosen by memory."""
    servers, at, needs = domain(a=[4, 4], b=[8])
    needs = {vm: replace(need, cpus=1) for vm, need in needs.items()}
    servers = {
        "a": replace(servers["a"], promised_cpus=8), "b": replace(servers["b"], promised_cpus=0),
    }  # fmt: skip
    needs["a-0"] = replace(needs["a-0"], cpus=4, memory_mib=1)
    assert plan(servers, at, needs, Policy(), Metric.MEMORY).steps == ()
    found = plan(servers, at, needs, Policy(), Metric.CPU)
    assert moves(found) == [("a-0", "b")]
    assert found.before == {"a": 8000, "b": 0}


def test_pinned_resting_and_unknown_vms_stay_and_drained_servers_get_none() -> None:
    servers, at, needs = domain(a=[4, 4], b=[])
    for change in ({"pinned": True}, {"moved_ago": 5}, {"memory_mib": 0}):
        still = {vm: replace(need, **change) for vm, need in needs.items()}
        for metric in Metric:
            assert plan(servers, at, still, Policy(), metric).steps == (), (change, metric)
    for change in ({"drained": True}, {"fenced": True}, {"attached": False}):
        shut = {**servers, "b": replace(servers["b"], **change)}  # type: ignore[arg-type]
        assert plan(shut, at, needs, Policy()).steps == ()


def test_a_domain_of_many_servers_is_relieved_where_it_is_fullest() -> None:
    full = {f"full{n:02}": [3, 3, 3] for n in range(60)}
    found = plan(*domain(**full, **{f"free{n:03}": [] for n in range(200)}), Policy())
    assert len(found.steps) == MOST_STEPS == len({step.target for step in found.steps})
    assert found.after["full00"] == 3000

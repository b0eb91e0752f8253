"""Which server is chosen, why, and which never are: what operators of balancers complained of, as rules."""

from dataclasses import replace
from typing import Any

import pytest

from retinue.core.placement import (
    Filter,
    Measure,
    Need,
    Outcome,
    Policy,
    Presence,
    Reason,
    ServerState,
    Snapshot,
    Weights,
    Wish,
    checks,
    decide,
)

VM = Need("vm1", memory_mib=1024, cpus=1)


def server(name: str, **known: object) -> ServerState:
    """8 GiB and 8 processors, idle, unless told otherwise."""
    plain = ServerState(name, cpus=8, memory_mib=8192, free_mib=8000, cpu_used=0)
    return replace(plain, **known)  # type: ignore[arg-type]


def snapshot(*servers: ServerState, need: Need = VM, **more: object) -> Snapshot:
    source = server("source", promised_mib=1024, promised_cpus=1)
    return replace(Snapshot(need, "source", (*servers, source)), **more)  # type: ignore[arg-type]


def why_not(found: Snapshot, name: str) -> list[Filter]:
    (state,) = (one for one in found.servers if one.server == name)
    return [check.filter for check in checks(state, found) if not check.ok]


REFUSED: dict[Filter, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    Filter.NOT_NAMED: ({}, {}, {"named": "other"}),
    Filter.FENCED: ({"fenced": True}, {}, {}),
    Filter.DRAINED: ({"drained": True}, {}, {}),
    Filter.AWAY: ({"presence": Presence.AWAY}, {}, {}),
    Filter.SILENT: ({"presence": Presence.SILENT}, {}, {}),
    Filter.NOT_ATTACHED: ({"attached": False}, {}, {}),
    Filter.VM_SIZE_UNKNOWN: ({}, {"memory_mib": 0}, {}),
    Filter.CAPACITY_UNKNOWN: ({"cpus": 0}, {"cpus": 0}, {}),
    Filter.MEMORY: ({"promised_mib": 7169}, {}, {}),
    Filter.FREE_MEMORY: ({"free_mib": 1023}, {}, {}),
    Filter.CPU: ({"promised_cpus": 8}, {}, {}),
    Filter.DISK: ({"disk_free_mib": 9}, {"disk_mib": 10}, {}),
    Filter.BANDWIDTH: ({"bandwidth_mbps": 100, "bandwidth_used_mbps": 91}, {"bandwidth_mbps": 10}, {}),
    Filter.APART: ({"groups": ("db",)}, {"apart": "db"}, {}),
}


@pytest.mark.parametrize("filter", REFUSED)
def test_each_filter_refuses_what_it_is_for_and_nothing_else(filter: Filter) -> None:
    state, needs, more = REFUSED[filter]
    need = replace(VM, **needs)
    found = snapshot(server("a", **state), need=need, **more)
    assert why_not(found, "a") == [filter]
    decision = decide(found)
    assert (decision.outcome, decision.target) == (Outcome.NO_SERVER, "")
    assert f"a: {decision.refused[0].refused[0].text}" in decision.text
    assert why_not(snapshot(server("a")), "a") == []


def test_every_filter_has_a_case() -> None:
    assert {*REFUSED, Filter.ALREADY_THERE} == set(Filter)
    assert why_not(snapshot(), "source") == [Filter.ALREADY_THERE]


def test_memory_that_is_promised_counts_not_what_is_in_use() -> None:
    """70 GB of VMs were moved on to 58.75 GB, since little of it was in use yet; guests were killed."""
    full = server("full", promised_mib=8192, free_mib=8000)
    assert why_not(snapshot(full), "full") == [Filter.MEMORY]
    decision = decide(snapshot(full, server("room", promised_mib=7168)))
    assert decision.target == "room"
    (check,) = decision.refused[0].refused
    assert (check.have, check.need) == (0, 1024)
    assert check.text == "0 MiB of memory that are not promised, and 1024 are needed"


def test_what_nobody_has_said_of_a_server_is_not_asked_for() -> None:
    """Of a disk or an uplink of which nothing is known nothing is said; of the rest, that it is not known."""
    need = replace(VM, disk_mib=10, bandwidth_mbps=10)

    def asked(**known: int) -> set[Filter]:
        found = snapshot(server("a", **known), need=need)
        return {check.filter for check in checks(found.servers[0], found)}

    assert not asked() & {Filter.DISK, Filter.BANDWIDTH}
    assert asked(disk_free_mib=0, bandwidth_mbps=1) >= {Filter.DISK, Filter.BANDWIDTH}
    assert Filter.CAPACITY_UNKNOWN in why_not(snapshot(server("a", memory_mib=0)), "a")
    least = snapshot(server("a", memory_mib=1, cpus=1), need=replace(VM, memory_mib=1))
    assert why_not(least, "a") == []


def test_what_a_server_does_not_say_is_neither_for_it_nor_against_it() -> None:
    far, silent, near = server("far", distance=500), server("silent"), server("near", distance=0)
    ranked = decide(snapshot(far, silent, near)).ranked
    points = {one.server: {score.measure: score.points for score in one.scores} for one in ranked}
    assert [points[name][Measure.DISTANCE] for name in ("far", "silent", "near")] == [0, 5000, 10_000]


def test_vms_of_unknown_size_leave_only_what_is_free() -> None:
    (unknown,) = decide(snapshot(server("a", unknown_vms=2, free_mib=None))).refused[:1]
    assert [(check.have, check.need) for check in unknown.refused] == [(0, 1024)]
    assert why_not(snapshot(server("a", unknown_vms=2, free_mib=1024)), "a") == []
    assert why_not(snapshot(server("a", unknown_vms=2, free_mib=None)), "a") == [Filter.MEMORY]


def test_more_is_promised_than_there_is_only_where_the_operator_says_so() -> None:
    full = server("full", promised_mib=8192, promised_cpus=8, free_mib=100)
    assert why_not(snapshot(full), "full") == [Filter.MEMORY, Filter.FREE_MEMORY, Filter.CPU]
    policy = Policy(memory_percent=150, cpu_percent=200)
    assert why_not(snapshot(full, policy=policy), "full") == []


def test_it_is_shown_how_the_server_was_chosen() -> None:
    """ "Is there a way to expose more details on how the node was chosen?" """
    near, roomy = server("near", distance=100, promised_mib=4096), server("roomy", distance=500)
    decision = decide(snapshot(near, roomy, server("gone", fenced=True)))
    assert (decision.target, decision.runner_up) == ("near", "roomy")
    assert decision.decided_by == Measure.DISTANCE
    assert decision.text == ("near has 72.50 points, roomy has 62.50; distance decides: 80.00 against 0.00")
    best = {score.measure: (score.raw, score.points, score.weight) for score in decision.ranked[0].scores}
    assert best == {
        Measure.MEMORY: (3072, 3750, 1), Measure.CPU: (10_000, 10_000, 1), Measure.DISTANCE: (100, 8000, 1),
    }  # fmt: skip
    assert [one.server for one in decision.refused] == ["gone", "source"]


def test_a_weight_makes_a_measure_count_more_or_not_at_all() -> None:
    near, roomy = server("near", distance=100, promised_mib=4096), server("roomy", distance=500)
    for weights, target in (
        (Weights(memory=9), "roomy"),
        (Weights(distance=0), "roomy"),
        (Weights(), "near"),
    ):
        assert decide(snapshot(near, roomy, policy=Policy(weights=weights))).target == target


def test_an_image_that_is_there_already_decides() -> None:
    cold, warm = server("a"), server("b", images=("debian",))
    decision = decide(snapshot(cold, warm, need=replace(VM, image="debian")))
    assert (decision.target, decision.decided_by) == ("b", Measure.IMAGE)
    assert decide(snapshot(cold, warm)).target == "a"


def test_pressure_counts_beside_use() -> None:
    """A server may be busy and nobody wait, or half idle and everybody wait."""
    busy, waiting = server("busy", cpu_used=4000), server("waiting", cpu_used=3000, cpu_pressure=2000)
    assert decide(snapshot(busy, waiting)).target == "busy"


def test_bandwidth_counts_where_it_is_known() -> None:
    slow = server("a", bandwidth_mbps=1000, bandwidth_used_mbps=900)
    fast = server("b", bandwidth_mbps=10_000, bandwidth_used_mbps=900)
    decision = decide(snapshot(slow, fast))
    assert (decision.target, decision.decided_by) == ("b", Measure.BANDWIDTH)


def test_equal_servers_are_told_apart_by_name_in_whatever_order_they_come() -> None:
    one, other = server("b"), server("a")
    for found in (snapshot(one, other), snapshot(other, one)):
        decision = decide(found)
        assert (decision.target, decision.runner_up, decision.decided_by) == ("a", "b", "name")


def test_the_only_one_is_chosen_as_the_only_one() -> None:
    decision = decide(snapshot(server("a"), server("b", drained=True)))
    assert (decision.target, decision.runner_up, decision.decided_by) == ("a", "", "the only one")


def test_a_wish_of_others_than_the_manager_must_be_worth_a_move() -> None:
    """Moves without a visible goal, and back again: a server must be better than the source by a margin."""
    wish = Wish(Reason.COMPUTING, 6000, 5000, 60)
    a_little = snapshot(server("a", cpu_used=0), wish=wish)
    assert decide(a_little).outcome is Outcome.BELOW_MARGIN
    assert "0.00 % only, of 5.00 %" in decide(a_little).text
    source = server("source", promised_mib=1024, promised_cpus=1, cpu_used=5000)
    worth = replace(a_little, servers=(server("a"), source))
    assert (decide(worth).outcome, decide(worth).gain) == (Outcome.CHOSEN, 2500)
    assert decide(replace(a_little, wish=Wish())).outcome is Outcome.CHOSEN


def test_a_vm_that_has_migrated_rests_but_not_from_its_manager() -> None:
    """Flapping between two nodes."""
    source = server("source", cpu_used=9000)
    for ago, outcome in ((599, Outcome.RESTING), (600, Outcome.CHOSEN)):
        need = replace(VM, moved_ago=ago)
        found = Snapshot(need, "source", (server("a"), source), Wish(Reason.UTILISATION))
        assert decide(found).outcome is outcome
        assert decide(replace(found, wish=Wish())).outcome is Outcome.CHOSEN


def test_a_pin_is_kept() -> None:
    """Guests that were to be ignored were moved."""
    found = snapshot(server("a"), need=replace(VM, pinned=True))
    assert decide(found).outcome is Outcome.PINNED
    assert decide(replace(found, wish=Wish(Reason.UTILISATION), named="a")).outcome is Outcome.PINNED
    assert decide(replace(found, named="a")).outcome is Outcome.CHOSEN

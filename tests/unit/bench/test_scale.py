"""The bench of large networks, at a size that is none: every phase runs, and says what it should."""

import asyncio

import msgspec
import pytest

from bench.scale.plan import Plan
from bench.scale.report import Latency, Report, Size, table, written
from bench.scale.run import Bench, Effort

TINY = Effort(events=3, rate=20.0, seconds=1.0, leases=5, rest_seconds=0.2, limit=300.0)
FLOW_MODS_OF_A_MOVE = 59
"""Two servers under one leaf, two spines; it does not grow with the network."""


@pytest.fixture(scope="module")
def size(tmp_path_factory: pytest.TempPathFactory) -> Size:
    """What the bench finds of four servers and eight VMs."""
    said: list[str] = []

    async def measured() -> Size:
        bench = Bench(Plan(4, 8), TINY, tmp_path_factory.mktemp("bench"), said.append)
        await bench.run()
        return bench.size

    found = asyncio.run(measured())
    assert len(said) == 7, said
    return found


def test_every_phase_of_the_bench_has_its_figures(size: Size) -> None:
    assert all(getattr(size, name) is not None for name in Size.__struct_fields__)
    for latencies in (size.idle, size.loaded):
        for found in (latencies.add, latencies.remove, latencies.steer, latencies.move):
            assert found.p50_ms is not None
            assert 0 < found.p50_ms <= (found.p99_ms or 0)
    assert size.loaded.failures == 0


def test_a_move_costs_as_many_flow_mods_as_ever(size: Size) -> None:
    assert size.flow_mods_per_move == [FLOW_MODS_OF_A_MOVE, FLOW_MODS_OF_A_MOVE]


def test_switches_that_hold_what_they_should_are_sent_nothing_after_a_restart(size: Size) -> None:
    assert size.restart_flow_mods == 0


def test_what_is_written_has_the_schema_that_others_read() -> None:
    found = msgspec.json.decode(written(Report(sizes=[Size(50, 1000, build_s=1.5)])))
    assert found["schema"] == 1
    assert list(found) == ["schema", "sizes", "ovn", "machine"]
    assert list(found["machine"]) == ["load", "others_cores"]
    assert list(found["sizes"][0]) == [
        *("servers", "vms", "build_s", "rss_mib", "bytes_per_vm", "cpu_at_rest", "restart_s"),
        *("restart_flow_mods", "acks_per_s", "flow_mods_per_move", "idle", "loaded"),
    ]
    assert list(found["sizes"][0]["loaded"]) == ["add", "remove", "steer", "move", "failures"]


def test_latencies_are_a_median_and_the_worst_but_one_in_a_hundred() -> None:
    assert Latency.of([n / 1000 for n in range(1, 101)]) == Latency(50.5, 100.0)
    assert Latency.of([]) == Latency()


def test_the_table_has_a_row_for_each_size_also_one_that_was_given_up() -> None:
    rows = table(Report(sizes=[Size(10, 100, build_s=0.1), Size(50, 1000)])).splitlines()
    assert len(rows) == 5
    assert rows[2].startswith("| 10, 100 | 0.1 |")
    assert rows[3].startswith("| 50, 1000 |  |")


def test_servers_stand_under_leaves_and_vms_are_spread_evenly() -> None:
    plan = Plan(81, 200)
    assert plan.leaves == 3
    assert [plan.leaf_of(server) for server in (0, 39, 40, 80)] == [0, 0, 1, 2]
    assert {plan.server_of(number) for number in range(81)} == set(range(81))
    assert len({plan.vm(n).mac for n in range(200)} | {plan.leasing_vm(n).mac for n in range(200)}) == 400

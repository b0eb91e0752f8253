"""When a hypervisor wishes a VM away, and when it keeps its peace."""

import pytest

from retinue.core.model import ModelError
from retinue.core.placement import (
    Entity,
    EntityKind,
    Measured,
    Pressure,
    PressureRule,
    Profile,
    Reason,
    Wish,
    pressed,
)

RULE = PressureRule(cpu=5000, memory=1000, seconds=60)


def run(rule: PressureRule, *measured: tuple[float, int | None, int | None]) -> list[tuple[float, Wish]]:
    state, found = Pressure(), []
    for now, cpu, memory in measured:
        state, wish = pressed(state, rule, Measured(cpu, memory), now)
        if wish is not None:
            found.append((now, wish))
    return found


def test_pressure_over_the_threshold_all_the_time_is_a_wish_once_and_then_the_time_begins_anew() -> None:
    found = run(RULE, *((float(now), 5000, 0) for now in range(0, 180, 5)))
    assert found == [
        (60.0, Wish(Reason.COMPUTING, 5000, 5000, 60)), (125.0, Wish(Reason.COMPUTING, 5000, 5000, 60)),
    ]  # fmt: skip


def test_a_break_or_no_measurement_begins_the_time_anew() -> None:
    for gap in (4999, None):
        assert run(RULE, (0, 9000, 0), (59, gap, 0), (60, 9000, 0), (119, 9000, 0)) == []


def test_memory_goes_first() -> None:
    assert run(RULE, (0, 9000, 2000), (60, 9000, 2000)) == [(60, Wish(Reason.MEMORY, 2000, 1000, 60))]


def test_an_uplink_that_is_full_for_a_while_is_a_reason_too() -> None:
    rule = PressureRule(bandwidth=8000, seconds=10)
    state, wish = pressed(Pressure(), rule, Measured(bandwidth=9000), 0.0)
    assert wish is None
    assert pressed(state, rule, Measured(bandwidth=7999), 10.0) == (Pressure(), None)
    assert pressed(state, rule, Measured(bandwidth=8000), 10.0)[1] == Wish(Reason.BANDWIDTH, 8000, 8000, 10)


def test_without_thresholds_nothing_is_wished() -> None:
    assert run(PressureRule(), (0, 10_000, 10_000), (1000, 10_000, 10_000)) == []


def test_a_profile_says_only_what_its_kind_has() -> None:
    Entity("vm1", EntityKind.VM, Profile(os="debian", memory_mib=1, pinned=True))
    with pytest.raises(ModelError, match="the profile of a server has no pinned"):
        Entity("server1", EntityKind.SERVER, Profile(pinned=True))
    with pytest.raises(ModelError, match="served_by"):
        Entity("shop", EntityKind.SERVICE)

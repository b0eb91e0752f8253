"""The source's half of a migration, with a fake QEMU: what it asks for, when, and what it passes on."""

import asyncio
from collections.abc import Collection
from typing import Any

import pytest

from retinue.core.migration.precopy import PATIENCE
from retinue.hypervisor.interface import Copying, Event, MigrationFailed
from retinue.hypervisor.memory_channel import Channel, channel_pair
from retinue.hypervisor.passes import HELD_BACK_LATER
from retinue.hypervisor.qemu.outgoing import run_outgoing
from support.fakes.qemu_memory import FakeQemu


async def target(channel: Channel) -> list[Any]:
    """Takes all in, and runs the VM; what it was sent, memory by its length."""
    heard: list[Any] = []
    while True:
        match await channel.receive():
            case bytes(memory):
                heard.append(len(memory))
            case {"type": "handed_over"}:
                await channel.send_message("running", at=1000.01)
                return heard
            case word:
                heard.append(word)


@pytest.mark.parametrize(
    ("major", "told"), [(7, ["divert", "quiet"]), (9, ["divert", "quiet", "stop", "migrate-set-parameters"])]
)
async def test_the_memory_is_read_while_qemu_is_told_to_converge(major: int, told: list[str]) -> None:
    """A version before 8 is not told: it stops the VM when nothing remains, which is sooner than we can."""
    qemu = FakeQemu(written=[1 << 20, 0])
    qemu.major = major
    here, there = await channel_pair()
    taking = asyncio.create_task(target(there))

    async def divert(taps: Collection[str]) -> bool:
        qemu.asked.append("divert")
        qemu.may_stop = True
        assert qemu.remaining > 0, "something is left to be sent until the VM stands still"
        return True

    result = await run_outgoing(qemu, here, lambda event: None, divert)  # type: ignore[arg-type]
    heard = await taking
    assert sum(size for size in heard if isinstance(size, int)) == qemu.sent >= qemu.ram
    assert heard[-1] == 0
    assert result.downtime_ms > 0
    assert not qemu.stopped_itself
    assert qemu.asked[qemu.asked.index("divert") :] == [*told, "query-migrate"]


async def test_the_vm_is_handed_over_when_it_may_be_with_all_of_it_there() -> None:
    """What it has sent is on its way by then: that is looked for meanwhile."""
    qemu = FakeQemu()
    here, there = await channel_pair()
    asked, may = asyncio.Event(), asyncio.Event()

    async def until_gone() -> None:
        asked.set()
        await may.wait()

    async def divert(taps: Collection[str]) -> bool:
        qemu.may_stop = True
        return True

    here.before_handover = until_gone
    taking = asyncio.create_task(target(there))
    going = asyncio.create_task(run_outgoing(qemu, here, lambda event: None, divert))  # type: ignore[arg-type]
    await asked.wait()
    assert qemu.remaining == 0
    done, _ = await asyncio.wait({going, taking}, timeout=0.05)
    assert not done, "it is handed over before"
    may.set()
    await going
    assert 0 in await taking


async def test_the_target_is_told_how_much_will_wait_for_the_vm_before_it_is_diverted() -> None:
    qemu = FakeQemu()
    here, there = await channel_pair()
    taking = asyncio.create_task(target(there))
    diverted_after: list[int] = []

    async def divert(taps: Collection[str]) -> bool:
        diverted_after.append(qemu.sent)
        return True

    await run_outgoing(qemu, here, lambda event: None, divert)  # type: ignore[arg-type]
    heard = await taking
    (expected,) = (word for word in heard if isinstance(word, dict))
    assert expected["type"] == "expect"
    assert expected["frames_a_second"] > 0
    before = sum(size for size in heard[: heard.index(expected)] if isinstance(size, int))
    assert before <= diverted_after[0] < qemu.ram


async def test_a_departure_called_off_twice_puts_the_source_in_order_all_the_same() -> None:
    qemu = FakeQemu()
    here, there = await channel_pair()
    told: list[Event] = []
    reached, slow = asyncio.Event(), asyncio.Event()

    async def divert(taps: Collection[str]) -> bool:
        reached.set()
        return await asyncio.Event().wait()

    async def recovering() -> None:
        recovery.set()
        await slow.wait()

    recovery = asyncio.Event()
    qemu.before_resume = recovering
    taking = asyncio.create_task(target(there))
    outgoing = asyncio.create_task(run_outgoing(qemu, here, told.append, divert))  # type: ignore[arg-type]
    await reached.wait()
    outgoing.cancel()
    await recovery.wait()
    outgoing.cancel()
    done, _ = await asyncio.wait({outgoing}, timeout=0.05)
    assert not done, "it is over before the source is in order"
    slow.set()
    await asyncio.wait({outgoing})
    assert outgoing.cancelled()
    assert list(dict.fromkeys(type(event) for event in told)) == [Copying, MigrationFailed]
    taking.cancel()


def copied(heard: list[Any]) -> int:
    return sum(size for size in heard if isinstance(size, int))


async def outgoing(qemu: FakeQemu, wanted: float = 0.1) -> tuple[int, list[Any]]:
    """The bytes left when the traffic was diverted, and what the target heard."""
    here, there = await channel_pair()
    taking = asyncio.create_task(target(there))
    left: list[int] = []

    async def divert(taps: Collection[str]) -> bool:
        left.append(qemu.remaining)
        qemu.may_stop = True
        return True

    await run_outgoing(qemu, here, lambda event: None, divert, wanted)  # type: ignore[arg-type]
    heard = await taking
    assert copied(heard) == qemu.sent
    assert not qemu.stopped_itself
    return left[0], heard


ODD = (4 << 20) + (8 << 10)
"""Bytes of memory that allow several passes of an emulated VM."""


async def test_what_was_written_in_the_first_pass_goes_over_while_the_vm_runs() -> None:
    qemu = FakeQemu(ODD, [1 << 20, 40960])
    left, _ = await outgoing(qemu)
    assert qemu.sent == ODD + (1 << 20) + 40960
    assert 0 < left <= HELD_BACK_LATER
    assert qemu.looks == 3, "one after the first pass, one after the stop"


async def test_a_vm_that_writes_less_with_each_pass_gets_another_one() -> None:
    qemu = FakeQemu(ODD, [48 << 20, 24 << 20, *[12 << 20] * 9])
    await outgoing(qemu, wanted=0)
    assert qemu.looks > 4


async def test_a_vm_that_always_writes_as_much_is_not_copied_for_ever() -> None:
    qemu = FakeQemu(ODD, [16 << 20] * 50)
    await outgoing(qemu, wanted=0)
    assert 3 <= qemu.looks <= 3 + PATIENCE


@pytest.mark.parametrize(
    ("kvm", "major", "ram", "several"),
    [
        (False, 7, 4 << 20, False),
        (False, 7, ODD, True),
        (True, 7, 4 << 20, True),
        (False, 9, 4 << 20, True),
    ],
)
async def test_where_a_look_would_lose_writes_there_is_only_the_one_after_the_stop(
    kvm: bool, major: int, ram: int, several: bool
) -> None:
    qemu = FakeQemu(ram, [512 << 10, 0])
    qemu.kvm, qemu.major = kvm, major
    await outgoing(qemu)
    assert (1 in qemu.limits, qemu.looks) == (several, 3 if several else 2)


async def test_a_qemu_that_stops_the_vm_by_itself_is_read_though_it_answers_nobody() -> None:
    """It finds nothing written since its look, as of a VM that had no processor; and holds its big lock until
    its stream is read: who waits for its answer first waits for ever."""
    qemu = FakeQemu(ODD, [0])
    qemu.devices = 1 << 18
    here, there = await channel_pair()
    taking = asyncio.create_task(target(there))
    diverted: list[int] = []

    async def divert(taps: Collection[str]) -> bool:
        diverted.append(qemu.sent)
        return True

    async with asyncio.timeout(20):
        await run_outgoing(qemu, here, lambda event: None, divert)  # type: ignore[arg-type]
    assert copied(await taking) == qemu.sent == ODD + qemu.devices
    assert qemu.stopped_itself
    assert len(diverted) == 1


async def test_each_pass_is_told_once() -> None:
    qemu, told = FakeQemu(ODD, [1 << 20, 0]), list[Event]()
    here, there = await channel_pair()
    taking = asyncio.create_task(target(there))

    async def divert(taps: Collection[str]) -> bool:
        qemu.may_stop = True
        return True

    await run_outgoing(qemu, here, told.append, divert)  # type: ignore[arg-type]
    await taking
    passes = dict.fromkeys(event.copy_pass for event in told if isinstance(event, Copying))
    assert list(passes) == [1, 2]

"""What an agent has left of a post-copy at its source, as the next one finds its QEMU."""

import asyncio
from collections.abc import Iterator

import pytest

from retinue.hypervisor import (
    Channel,
    Copying,
    Event,
    HypervisorError,
    another_way,
    channel_pair,
    rest_at_source,
)
from retinue.hypervisor.interface import ignore
from retinue.hypervisor.qmp_copier import QmpCopier
from retinue.hypervisor.rest_of_memory import MOST_UNHEARD, Answers, send_the_rest
from retinue.hypervisor.throttle import Throttle
from support.fakes.qemu_memory import FakeQemu

LEFT = 1 << 20


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(another_way, "AGAIN_SECONDS", 0.0)
    yield


def left(status: str) -> FakeQemu:
    """A QEMU whose VM runs elsewhere."""
    qemu = FakeQemu(LEFT)
    qemu.status, qemu.postcopy, qemu.may_stop = status, True, True
    qemu._sending = asyncio.create_task(asyncio.Event().wait())  # type: ignore[arg-type]
    return qemu


class Ends:
    """Connections to the target's agent, which says that its QEMU listens, and takes what comes."""

    def __init__(self, *breaks: bool) -> None:
        self._breaks = list(breaks)
        self.nbytes, self.ended = 0, False
        self._taking: list[asyncio.Task[None]] = []

    async def again(self) -> Channel:
        here, there = await channel_pair()
        self._taking.append(asyncio.create_task(self._take(there, self._breaks.pop(0))))
        return here

    async def _take(self, channel: Channel, breaks: bool) -> None:
        await channel.send_message("again")
        if breaks:
            channel.abort()
            return
        await channel.send_memory(b"a page")
        while received := await channel.receive():
            self.nbytes += len(received)
        self.ended = True

    async def close(self) -> None:
        await asyncio.gather(*self._taking)


@pytest.mark.parametrize("breaks", [(False,), (True, False)])
async def test_a_qemu_with_memory_to_give_gives_it_by_as_many_ways_as_it_takes(
    breaks: tuple[bool, ...],
) -> None:
    qemu, ends, told = left("postcopy-paused"), Ends(*breaks), list[Event]()
    give = qemu.give
    qemu.rest_goes.clear()

    async def given(end: object) -> str:
        if len(ends._breaks) == 0:
            qemu.rest_goes.set()
        else:
            asyncio.get_running_loop().call_later(0.01, qemu.break_off)
        return await give(end)  # type: ignore[arg-type]

    qemu.give = given  # type: ignore[method-assign]
    async with asyncio.timeout(60):
        await rest_at_source.send(qemu, ends.again, told.append)  # type: ignore[arg-type]
        await ends.close()
    assert (ends.nbytes, ends.ended) == (LEFT, True)
    assert qemu.asked_for, "what the target's QEMU asks for reaches it"
    assert isinstance(told[-1], Copying) and told[-1].postcopy and told[-1].remaining == 0
    assert qemu.asked.count("migrate") == len(breaks)


@pytest.mark.parametrize("status", ["completed", "none", "cancelled"])
async def test_a_qemu_that_has_nothing_to_give_connects_to_nobody(status: str) -> None:
    async def again() -> Channel:
        raise AssertionError

    await rest_at_source.send(left(status), again, ignore)  # type: ignore[arg-type]


async def test_a_stream_that_was_kept_for_a_vm_that_might_come_back_ends_first() -> None:
    """Nobody knew then whether it runs at its target; now the controller says so."""
    qemu, ends, kept = left("postcopy-active"), Ends(False), Throttle()
    qemu.kept = [kept]
    sending = asyncio.create_task(rest_at_source.send(qemu, ends.again, ignore))  # type: ignore[arg-type]
    while qemu.kept:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert kept._ours.fileno() < 0, "so QEMU finds that its stream has ended"
    qemu.break_off()
    await sending
    await ends.close()
    assert ends.ended


async def test_a_source_that_reaches_nobody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(another_way, "AGAIN_LIMIT", 0.05)

    async def again() -> Channel:
        raise HypervisorError("the agent of server2 cannot be reached")

    with pytest.raises(HypervisorError, match="within 0 s: the agent of server2 cannot be reached"):
        await rest_at_source.send(left("postcopy-paused"), again, ignore)  # type: ignore[arg-type]


async def test_a_rest_that_has_gone_over_before_anybody_looked_is_told_to_be_none() -> None:
    """As on a quick machine: QEMU had sent all of it when the target said that the VM runs."""
    loop = asyncio.get_running_loop()
    completed, failed = loop.create_future(), loop.create_future()
    completed.set_result(None)
    passing = asyncio.create_task(asyncio.sleep(0))
    told = list[Event]()
    throttle = Throttle()
    copier = QmpCopier(left("completed"))  # type: ignore[arg-type]
    await send_the_rest(copier, throttle, passing, completed, failed, 3, told.append)
    throttle.close()
    (last,) = told
    assert isinstance(last, Copying) and (last.postcopy, last.remaining, last.copy_pass) == (True, 0, 3)


async def test_a_target_that_talks_without_end_is_not_listened_to() -> None:
    here, there = await channel_pair()
    throttle = Throttle()
    hearing = asyncio.create_task(Answers(here, throttle).hear())
    async with asyncio.timeout(60):
        for _ in range(2 * MOST_UNHEARD):
            await there.send_message("running", at=1.0)
        await hearing
    throttle.close()
    for channel in (here, there):
        channel.abort()

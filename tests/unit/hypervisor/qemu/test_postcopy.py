"""Post-copy, with a fake QEMU: when the VM is handed over, what goes on then, and how it is undone."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import pytest

from retinue.core.migration import copying
from retinue.core.migration.copying import CopyOptions, Postcopy
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.hypervisor import HandedOverError, HypervisorError, MigrationResult, another_way, recovering
from retinue.hypervisor.interface import Copying, Event, MigrationFailed, RunsElsewhere, Stopped
from retinue.hypervisor.memory_channel import Channel, channel_pair
from retinue.hypervisor.qemu import outgoing
from retinue.hypervisor.qemu.outgoing import run_outgoing
from retinue.hypervisor.qemu.postcopy import CAPABILITY
from support.fakes.qemu_memory import FakeQemu

ODD = (4 << 20) + (8 << 10)
ALWAYS = [64 << 20] * 50
"""Bytes that the VM has written whenever QEMU looks."""


class Target:
    """The target's agent: what it has heard, in order, and whether it can."""

    def __init__(self, channel: Channel, ready: bool = True) -> None:
        self.channel, self.ready = channel, ready
        self.breaks = False
        """The connection does, with the word that the VM runs."""
        self.heard: list[Any] = []
        self.handed_over = False
        self.nbytes = self.at_hand_over = 0

    async def take(self, says: str = "running") -> None:
        while True:
            match await self.channel.receive():
                case bytes(memory):
                    self.nbytes += len(memory)
                    if not memory:
                        self.heard.append("end")
                        if self.handed_over:
                            return
                case {"type": "postcopy"}:
                    self.heard.append("postcopy")
                    await self.channel.send_message("postcopy", ready=self.ready)
                case {"type": "handed_over"} as how:
                    self.handed_over = True
                    self.heard.append("handed over by post-copy" if how.get("postcopy") else "handed over")
                    self.at_hand_over = self.nbytes
                    if says == "hang up":
                        self.channel.abort()
                        return
                    await self.channel.send_message(says, at=1000.01, reason="no room")
                    if self.breaks:
                        self.channel.abort()
                        return
                    if says == "running" and how.get("postcopy"):
                        await self.channel.send_memory(b"a page")
                    if self.heard[-2] == "end":
                        return
                case word:
                    self.heard.append(word["type"])


async def moved(
    qemu: FakeQemu,
    how: Postcopy,
    *,
    ready: bool = True,
    says: str = "running",
    wanted: float = WANTED_DOWNTIME,
) -> tuple[Target, list[Event], Any]:
    """The target, what was told, and what came of it."""
    here, there = await channel_pair()
    target, told = Target(there, ready), list[Event]()
    taking = asyncio.create_task(target.take(says))

    async def divert(taps: Collection[str]) -> bool:
        qemu.asked.append("divert")
        qemu.may_stop = True
        return True

    going = run_outgoing(
        qemu,  # type: ignore[arg-type]
        here, told.append, divert, wanted_downtime=wanted, options=CopyOptions(how),
    )  # fmt: skip
    (came,) = await asyncio.gather(going, return_exceptions=True)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    return target, told, came


@pytest.mark.parametrize(("how", "looks"), [(Postcopy.REQUIRED, 2), (Postcopy.IF_NEEDED, 4)])
async def test_a_vm_that_always_writes_runs_at_the_target_before_its_memory_is_there(
    how: Postcopy, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "LEAST_PAUSE", 0.0)  # However quick this machine copies.
    qemu = FakeQemu(ODD, list(ALWAYS))
    target, told, came = await moved(qemu, how, wanted=0.0)
    assert came.downtime_ms > 0
    assert qemu.asked.index("divert") < qemu.asked.index("quiet") < qemu.asked.index("migrate-start-postcopy")
    assert qemu.looks >= looks if how is Postcopy.IF_NEEDED else qemu.looks == looks
    assert target.heard == ["postcopy", "expect", "handed over by post-copy", "end"]
    assert target.at_hand_over < target.nbytes == qemu.sent
    assert qemu.asked_for, "what the target's QEMU asks for reaches the source's"
    kinds = [type(event) for event in told if not (isinstance(event, Copying) and not event.postcopy)]
    assert kinds[:2] == [Stopped, RunsElsewhere]
    assert set(kinds[2:]) == {Copying}
    assert isinstance(told[-1], Copying)
    assert told[-1].remaining == 0


class SameDisks:
    """Disks that are the same at both ends; what is done to them is among what QEMU is asked."""

    def __init__(self, machine: FakeQemu, *_: object) -> None:
        self._machine = machine

    def __bool__(self) -> bool:
        return True

    def size(self) -> int:
        return 0

    async def nothing(self) -> None:
        pass

    start = until_ready = undo = close = nothing

    async def watch(self) -> None:
        await asyncio.Event().wait()

    async def finish(self) -> None:
        self._machine.asked.append("disks handed over")


async def test_disks_are_handed_over_while_qemu_answers_and_then_the_vm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From post-copy's own stop on it does not, whatever has become of the target."""
    monkeypatch.setattr(copying, "LEAST_PAUSE", 0.0)
    monkeypatch.setattr(outgoing, "Mirrors", SameDisks)
    qemu = FakeQemu(ODD, list(ALWAYS))
    qemu.answers_stopped = True
    target, told, came = await moved(qemu, Postcopy.REQUIRED, wanted=0.0)
    assert came.downtime_ms > 0
    order = ["divert", "quiet", "stop", "disks handed over", "migrate-start-postcopy"]
    assert [word for word in qemu.asked if word in order] == order
    assert target.heard[-2:] == ["handed over by post-copy", "end"]
    assert [type(event) for event in told if isinstance(event, Stopped | RunsElsewhere)] == [
        Stopped,
        RunsElsewhere,
    ]


async def test_a_vm_that_writes_little_goes_over_as_ever() -> None:
    qemu = FakeQemu(ODD, [1 << 20, 40960])
    target, told, _ = await moved(qemu, Postcopy.REQUIRED, wanted=60.0)  # However slowly this machine copies.
    assert "migrate-start-postcopy" not in qemu.asked
    assert target.heard[-2:] == ["end", "handed over"]
    assert not any(isinstance(event, RunsElsewhere) for event in told)


@pytest.mark.parametrize("who", ["source", "target"])
async def test_where_one_of_two_cannot_it_is_rejected_or_done_without(who: str) -> None:
    async def moves(how: Postcopy) -> tuple[FakeQemu, list[Event], Any]:
        qemu = FakeQemu(ODD, [1 << 20, 0])
        qemu.cannot = {CAPABILITY} if who == "source" else set()
        _, told, came = await moved(qemu, how, ready=who == "source")
        return qemu, told, came

    qemu, told, came = await moves(Postcopy.REQUIRED)
    assert isinstance(came, HypervisorError)
    assert "post-copy was asked for, and" in str(came)
    assert "migrate" not in qemu.asked, "nothing was copied"
    assert [type(event) for event in told] == [MigrationFailed]


async def test_what_the_target_says_it_never_ran_is_resumed_here() -> None:
    qemu = FakeQemu(ODD, list(ALWAYS))
    _, told, came = await moved(qemu, Postcopy.REQUIRED, says="failed")
    assert isinstance(came, HypervisorError)
    assert not isinstance(came, HandedOverError)
    assert "no room" in str(came)
    assert "migrate_cancel" in qemu.asked
    assert len(qemu.let_wait) == 1, "a QEMU that writes meanwhile may never run the VM again"
    assert isinstance(told[-1], MigrationFailed)
    assert told[-1].source_runs


async def test_what_the_target_may_run_is_neither_cancelled_nor_broken_off_here() -> None:
    """With its stream broken QEMU could not give it back; a cancel would run it."""
    qemu = FakeQemu(ODD, list(ALWAYS))
    _, told, came = await moved(qemu, Postcopy.REQUIRED, says="hang up")
    assert isinstance(came, HandedOverError)
    assert "does not confirm that it runs" in str(came)
    assert "migrate_cancel" not in qemu.asked
    (stream,) = qemu.kept
    assert stream._ours.fileno() >= 0, "it is open"
    assert not any(isinstance(event, MigrationFailed) for event in told)
    stream.close()


async def broken(
    qemu: FakeQemu, again: Callable[[], Awaitable[Channel]], *, at_once: bool = False
) -> tuple[Target, Any]:
    """What comes of a migration whose connection breaks when the VM runs at the target; `at_once`: as soon as
    that has said so, before the source has taken it in."""
    qemu.rest_goes.clear()
    here, there = await channel_pair()
    here.again = again
    target = Target(there)
    target.breaks = at_once
    taking = asyncio.create_task(target.take())

    def hear(event: Event) -> None:
        if isinstance(event, RunsElsewhere):
            there.abort()

    async def divert(taps: Collection[str]) -> bool:
        qemu.may_stop = True
        return True

    options = CopyOptions(Postcopy.REQUIRED)
    going = run_outgoing(qemu, here, hear, divert, options=options)  # type: ignore[arg-type]
    (came,) = await asyncio.gather(going, return_exceptions=True)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    return target, came


async def test_when_the_connection_breaks_the_rest_goes_over_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(another_way, "AGAIN_SECONDS", 0.0)
    at_source = recovering.at_source
    qemu = FakeQemu(ODD, list(ALWAYS))
    here, there = await channel_pair()
    last = Target(there)
    last.handed_over = True
    taking = asyncio.create_task(last.take())
    tries = ["the agent of server2 cannot be reached", "and still not", ""]

    async def again() -> Channel:
        if why := tries.pop(0):
            raise HypervisorError(why)
        await there.send_message("again")
        await there.send_memory(b"a page")
        qemu.rest_goes.set()
        return here

    async def broken_off(*of: Any) -> Any:
        qemu.break_off()  # It finds that its stream has ended.
        return await at_source(*of)

    monkeypatch.setattr(recovering, "at_source", broken_off)
    target, came = await broken(qemu, again)
    assert isinstance(came, MigrationResult), came
    await taking
    assert (tries, qemu.asked.count("migrate")) == ([], 2)
    assert last.heard == ["end"]
    assert target.nbytes + last.nbytes == qemu.sent
    assert qemu.asked_for, "what the target's QEMU asks for by that reaches the source's"


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_target_that_hangs_up_when_it_has_all_is_asked_for_nothing_more(
    at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that it has hung up is seen, though there is nothing that could not be sent."""
    qemu = FakeQemu(ODD, list(ALWAYS))

    async def completed(*_: object) -> None:
        qemu.complete()
        await asyncio.Event().wait()

    async def again() -> Channel:
        raise AssertionError

    monkeypatch.setattr(recovering, "at_source", completed)
    async with asyncio.timeout(60):
        _, came = await broken(qemu, again, at_once=at_once)
    assert isinstance(came, MigrationResult), came
    assert qemu.asked.count("migrate") == 1


async def test_a_rest_that_cannot_be_sent_is_told_and_the_vm_not_resumed() -> None:
    qemu = FakeQemu(ODD, list(ALWAYS))
    qemu.rest_goes.clear()

    def hear(event: Event) -> None:
        if isinstance(event, RunsElsewhere):
            qemu.break_off()

    here, there = await channel_pair()
    target = Target(there)
    taking = asyncio.create_task(target.take())

    async def divert(taps: Collection[str]) -> bool:
        qemu.may_stop = True
        return True

    options = CopyOptions(Postcopy.REQUIRED)
    with pytest.raises(HandedOverError, match="lacks some of its memory: the way to the target is broken"):
        await run_outgoing(qemu, here, hear, divert, options=options)  # type: ignore[arg-type]
    assert "migrate_cancel" not in qemu.asked
    taking.cancel()


async def test_a_vm_whose_rest_goes_over_is_not_called_off() -> None:
    qemu = FakeQemu(ODD, list(ALWAYS))
    qemu.rest_goes.clear()
    running = asyncio.Event()

    def hear(event: Event) -> None:
        if isinstance(event, RunsElsewhere):
            running.set()

    here, there = await channel_pair()
    target = Target(there)
    taking = asyncio.create_task(target.take())

    async def divert(taps: Collection[str]) -> bool:
        qemu.may_stop = True
        return True

    options = CopyOptions(Postcopy.REQUIRED)
    going = asyncio.create_task(run_outgoing(qemu, here, hear, divert, options=options))  # type: ignore[arg-type]
    await running.wait()
    going.cancel()
    done, _ = await asyncio.wait({going}, timeout=0.05)
    assert not done
    qemu.rest_goes.set()
    assert (await going).downtime_ms > 0
    await taking
    assert target.heard[-1] == "end"

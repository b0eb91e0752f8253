"""Works at the same time: when one fails, or what it rests on, the others do not go on."""

import asyncio
import socket

import pytest

from retinue.host.errors import HostError
from retinue.hypervisor import HypervisorError
from retinue.hypervisor.aio import both, close_socket, unless


class Work:
    """Waits for its word; is known to have ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = False
        self.word: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def do(self) -> str:
        self.begun.set()
        try:
            return await self.word
        finally:
            self.ended = True


async def test_both_end_when_each_has() -> None:
    one, other = Work(), Work()
    one.word.set_result("")
    other.word.set_result("")
    await both(one.do(), other.do())
    assert one.ended and other.ended


async def test_the_first_failure_ends_the_other() -> None:
    one, other = Work(), Work()
    one.word.set_exception(HypervisorError("QEMU has ended"))
    with pytest.raises(HostError, match="QEMU has ended"):
        await both(one.do(), other.do())
    assert other.ended


async def test_what_the_work_gives_is_given_on() -> None:
    work, failed = Work(), Work()
    work.word.set_result("sent")
    assert await unless(failed.word, work.do()) == "sent"
    assert not failed.word.done()


async def test_work_ends_with_what_it_rests_on() -> None:
    work, failed = Work(), Work()
    doing = asyncio.ensure_future(unless(failed.word, work.do()))
    await work.begun.wait()
    failed.word.set_result("the source has ended")
    with pytest.raises(HostError, match="the source has ended"):
        await doing
    assert work.ended


async def test_work_that_fails_by_itself_says_so() -> None:
    work, failed = Work(), Work()
    work.word.set_exception(ValueError("cut short"))
    with pytest.raises(ValueError, match="cut short"):
        await unless(failed.word, work.do())


async def test_who_is_called_off_leaves_no_work_behind() -> None:
    work, failed = Work(), Work()
    doing = asyncio.ensure_future(unless(failed.word, work.do()))
    await work.begun.wait()
    doing.cancel()
    await asyncio.wait({doing})
    assert work.ended
    assert not failed.word.done()


async def test_a_socket_that_somebody_waits_at_is_forgotten_before_its_number_is_another_ones() -> None:
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    full = bytes(16 << 20)
    waiting = [
        asyncio.create_task(loop.sock_sendall(ends[0], full)),
        asyncio.create_task(loop.sock_recv(ends[0], 1)),
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    number = ends[0].fileno()
    close_socket(ends[0])
    others = socket.socketpair()
    assert number in {end.fileno() for end in others}, "that is what is tried"
    for end in others:
        end.setblocking(False)
    same = next(end for end in others if end.fileno() == number)
    (other,) = set(others) - {same}
    hears = asyncio.create_task(loop.sock_recv(same, 1))
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    other.send(b"x")
    assert await asyncio.wait_for(hears, 60) == b"x"
    assert complaints == []
    for end in (ends[1], *others):
        end.close()
